//! One command in a container, with a deadline: exec probes and hooks.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use crate::runtime::{ExecOutcome, ExecRequest, RuntimeError};
use crate::shim::container_words;
use crate::shim::files::{self, ContainerRecord, OciSetup, ShimFile};
use crate::shim::proc_table;
use crate::stage::{Namespace, Spec};

/// Kept of what the command prints; the rest is read and dropped, so that it never blocks.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// For an OCI runtime to see the end of what it started.
const REAPED_MAX: Duration = Duration::from_secs(2);

/// For a stage to become its program.
const SET_UP_MAX: Duration = Duration::from_secs(2);

/// Where a container is, if it is more than a process of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The words of the OCI runtime's command line up to its verb, and what its stage hides.
    Oci { setup: OciSetup, words: Vec<String>, id: String, pid_file: PathBuf },
    /// A process of the host, with what it is set up with.
    Process { pid: i32, spec: Spec },
}

impl Place {
    pub(super) fn of(dir: &Path, state: &ShimFile, container: &str, record: &ContainerRecord) -> Option<Self> {
        if let Some(oci) = &state.setup.oci {
            let id = files::container_id(container, record.attempt);
            return Some(Self::Oci {
                words: container_words(oci, state.setup.cgroups.is_some(), &files::oci_state_path(dir)),
                setup: oci.clone(),
                pid_file: files::root_path(dir, container, record.attempt).join("exec"),
                id,
            });
        }
        let pid = record.process?.pid;
        let spec = Spec {
            join_mounts_of: record.own_mounts.then_some(pid),
            namespace: match (record.own_mounts, state.setup.rootless) {
                (false, _) => Namespace::None,
                (true, false) => Namespace::Mount,
                (true, true) => Namespace::UserAndMount,
            },
            user: record.user,
            group: record.group,
            supplemental_groups: record.supplemental_groups.clone(),
            ..Spec::default()
        };
        let plain = !record.own_mounts && spec.user.or(spec.group).is_none() && spec.supplemental_groups.is_empty();
        (!plain).then_some(Self::Process { pid, spec })
    }
}

/// Runs it to its end or its deadline; then nothing of it is left.
pub(super) async fn run(exe: &Path, request: &ExecRequest, place: Option<Place>) -> Result<ExecOutcome, RuntimeError> {
    let program = request.argv.first().map_or("", String::as_str);
    let failed = |source| RuntimeError::Exec { program: program.to_owned(), source };
    let (mut command, pid_file) = match place {
        None => (plain(request), None),
        Some(Place::Process { pid, spec }) => {
            set_up(pid).await;
            let mut command = staged(exe, &beside(request, spec)).map_err(failed)?;
            command.envs(&request.env);
            (command, None)
        }
        Some(Place::Oci { setup, words, id, pid_file }) => {
            let pid_file = numbered(&pid_file);
            let spec = oci_exec(request, setup, words, id, &pid_file);
            (staged(exe, &spec).map_err(failed)?, Some(pid_file))
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok());
    let outcome = tokio::time::timeout(request.timeout, finish(&mut child)).await;
    // The command's own children end with it, late or not: the leader is unreaped in one case, its group unused in the other.
    if outcome.is_err() {
        if let Some(pid) = pid_file.as_deref().and_then(pid_in) {
            end_in_container(pid, group);
            // The runtime that started it reaps it and ends. Killed itself, it would leave a zombie to whoever is process 1, and a
            // container cannot end before the last process in its pid namespace is reaped.
            drop(tokio::time::timeout(REAPED_MAX, child.wait()).await);
        }
        if let Some(group) = group.filter(|_| child.id().is_some()) {
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
            drop(child.wait().await);
        }
    }
    if let Some(path) = pid_file {
        drop(std::fs::remove_file(path));
    }
    match outcome {
        Ok(finished) => finished.map_err(failed),
        Err(_) => Ok(ExecOutcome::TimedOut),
    }
}

fn plain(request: &ExecRequest) -> Command {
    let mut command = Command::new(request.argv.first().map_or("", String::as_str));
    command.args(request.argv.get(1..).unwrap_or_default()).env_clear().envs(&request.env);
    command.current_dir(&request.working_dir);
    command
}

fn staged(exe: &Path, spec: &Spec) -> std::io::Result<Command> {
    let mut command = Command::new(exe);
    command.args(spec.words().map_err(std::io::Error::other)?).env_clear().current_dir("/");
    Ok(command)
}

/// Looked up in the container's `PATH`, but among the host's files: those are the same but for the mounts.
fn beside(request: &ExecRequest, setup: Spec) -> Spec {
    let name = request.argv.first().cloned().unwrap_or_default();
    let folders = request.env.get("PATH").map_or("", String::as_str);
    let found = folders.split(':').map(|folder| Path::new(folder).join(&name)).find(|path| path.is_file());
    Spec {
        working_dir: request.working_dir.clone(),
        program: found.filter(|_| !name.contains('/')).unwrap_or_else(|| PathBuf::from(&name)),
        argv: request.argv.clone(),
        ..setup
    }
}

/// Waits until a process is no stage any more: only then are its mounts all there.
async fn set_up(pid: i32) {
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < SET_UP_MAX {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|&byte| byte == 0).nth(1) != Some(crate::stage::ARGUMENT.as_bytes()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// `crun exec`: environment, user and capabilities are those of the container.
fn oci_exec(request: &ExecRequest, setup: OciSetup, mut words: Vec<String>, id: String, pid_file: &Path) -> Spec {
    words.extend(["exec".to_owned(), "--pid-file".to_owned(), pid_file.to_string_lossy().into_owned(), id]);
    words.extend(request.argv.iter().cloned());
    let OciSetup { program, hidden, covered, .. } = setup;
    Spec { namespace: Namespace::Mount, hidden, covered, program, argv: words, ..Spec::default() }
}

/// Ends a command and what it started, unless that left its group: a probe that hangs is asked again and again. The runtime gave it
/// a session of its own; where it did not, `runtime`'s group is ended after it.
fn end_in_container(pid: i32, runtime: Option<i32>) {
    let group = proc_table::stat(pid).map(|stat| stat.group);
    let own = nix::unistd::getpgrp().as_raw();
    if let Some(group) = group.filter(|&group| group > 1 && group != own && Some(group) != runtime) {
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// Several probes of one container may run at once.
fn numbered(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    path.with_extension(format!("{}.pid", NUMBERS.fetch_add(1, Ordering::Relaxed)))
}

/// The host's process id of what runs in the container.
fn pid_in(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok().filter(|&pid| pid > 1)
}

async fn finish(child: &mut Child) -> std::io::Result<ExecOutcome> {
    use std::os::unix::process::ExitStatusExt as _;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut printed, complained, status) = tokio::join!(head_of(stdout), head_of(stderr), child.wait());
    let status = status?;
    printed.extend_from_slice(&complained);
    printed.truncate(OUTPUT_BYTES_MAX);
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    Ok(ExecOutcome::Exited { code, output: String::from_utf8_lossy(&printed).into_owned() })
}

async fn head_of(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut head = Vec::new();
    let Some(mut pipe) = pipe else { return head };
    let mut buffer = [0_u8; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(head.len());
        head.extend_from_slice(&buffer[..length.min(room)]);
    }
    head
}
