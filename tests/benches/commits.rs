//! Durable commits: what one costs on this disk, and how many lie between an apply and Running.
//!
//! They are counted by `strace` in runs of their own, because tracing slows what it watches: the counts are exact, the
//! latencies reported elsewhere come from runs without it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One commit seen: seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Commit {
    pub(crate) begun: f64,
    pub(crate) took: f64,
}

/// A running `strace`.
#[derive(Debug)]
pub(crate) struct Trace {
    child: Child,
    file: PathBuf,
}

/// A file of one page on the disk of hub and devices.
#[derive(Debug)]
pub(crate) struct Probe {
    file: File,
}

impl Probe {
    /// Opens it with its size on the disk: as a write-ahead log that is used again after a checkpoint.
    pub(crate) fn beside(folder: &Path) -> Self {
        let mut file = File::create(folder.join("commit-probe")).unwrap();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_all().unwrap();
        Self { file }
    }

    /// How long writing the page durably takes, by `fdatasync`.
    pub(crate) fn commit_ms(&mut self) -> f64 {
        let begun = Instant::now();
        self.file.seek(SeekFrom::Start(0)).unwrap();
        self.file.write_all(&[1; 4096]).unwrap();
        self.file.sync_data().unwrap();
        begun.elapsed().as_secs_f64() * 1000.0
    }
}

impl Trace {
    /// Attaches to a process, its threads and what they start; `None` where strace is missing or may not attach.
    pub(crate) fn attach(pid: i32, file: &Path) -> Option<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-ttt", "-T", "-e", "trace=fsync,fdatasync", "-o"]).arg(file);
        command.args(["-p", &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        // It says "attached" once it is; it says something else, or ends, when it cannot.
        let mut said = Vec::new();
        let mut byte = [0];
        let mut complaints = child.stderr.take()?;
        while complaints.read(&mut byte).ok()? == 1 {
            said.push(byte[0]);
            if said.ends_with(b"attached") {
                std::thread::spawn(move || std::io::copy(&mut complaints, &mut std::io::sink()));
                return Some(Self { child, file: file.to_owned() });
            }
        }
        child.wait().ok()?;
        None
    }

    /// Detaches and answers what was seen, in order.
    pub(crate) fn detach(mut self) -> Vec<Commit> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        let text = std::fs::read_to_string(&self.file).unwrap();
        let mut commits: Vec<Commit> = text.lines().filter_map(commit).collect();
        commits.sort_by(|one, other| one.begun.total_cmp(&other.begun));
        commits
    }
}

/// Reads one line's end of a commit: `PID TIME fdatasync(7) = 0 <0.000812>`, or `<... fdatasync resumed>) = 0 <0.0008>`, whose
/// time is that of the end.
fn commit(line: &str) -> Option<Commit> {
    let (head, took) = line.strip_suffix('>')?.rsplit_once(" = 0 <")?;
    let took: f64 = took.parse().ok()?;
    let stamp: f64 = head.split_whitespace().nth(1)?.parse().ok()?;
    let begun = if head.contains("resumed") { stamp - took } else { stamp };
    Some(Commit { begun, took })
}

/// Seconds within `[from, to]` in which at least one commit was under way; `commits` in order of their beginning.
pub(crate) fn covered(commits: &[Commit], from: f64, to: f64) -> f64 {
    let mut end = from;
    let mut sum = 0.0;
    for one in commits {
        let (begin, stop) = (one.begun.max(end), (one.begun + one.took).min(to));
        if stop > begin {
            sum += stop - begin;
            end = stop;
        }
    }
    sum
}

/// How many began within `[from, to]`.
pub(crate) fn begun_within(commits: &[Commit], from: f64, to: f64) -> usize {
    commits.iter().filter(|one| one.begun >= from && one.begun <= to).count()
}

/// Lets what the last sample caused come to its end before the next begins.
pub(crate) fn pause() {
    std::thread::park_timeout(Duration::from_millis(150));
}
