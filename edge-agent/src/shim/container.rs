//! One attempt of one container: spawned, read from, ended.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use flotilla_manifests::time::Timestamp;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::files::{self, ContainerRecord, ProcessId};
use super::output::{LogFile, Retention, Stream};
use super::proc_table::{self, MARK};
use crate::runtime::{ContainerConfig, Exit};

/// Read from one pipe in one round; the other containers of the pod get their turn after that.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Read from a pipe after its container ended; a pipe holds at most 1 MiB, unless someone else still writes.
const DRAIN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Attempts whose logs are kept: this one and the one before, as kubelet does.
const ATTEMPTS_KEPT: u32 = 2;

/// A container and its pipes.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    pub(super) log: LogFile,
    pub(super) pipes: [Option<std::fs::File>; 2],
    /// When a stop turns from TERM into KILL.
    pub(super) kill_at: Option<Instant>,
}

impl Container {
    /// Starts it. A command that cannot be executed makes a container that has ended with code 128, as containerd has it.
    pub(super) fn start(dir: &Path, pod_uid: &str, config: &ContainerConfig, now: Timestamp) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir.join(&config.name))?;
        files::forget_attempts(dir, &config.name, (config.attempt + 1).saturating_sub(ATTEMPTS_KEPT));
        let log = LogFile::open(&files::log_path(dir, &config.name, config.attempt), Retention::default());
        let mut record = ContainerRecord {
            attempt: config.attempt,
            digest: config.digest.clone(),
            started_at: now,
            process: None,
            stopping: false,
            exit: None,
        };
        match spawn(pod_uid, config) {
            Ok((process, pipes)) => {
                record.process = Some(process);
                Ok(Self { record, log, pipes: pipes.map(Some), kill_at: None })
            }
            Err(message) => {
                record.exit = Some(Exit {
                    code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message: format!("unable to start container process: {message}"),
                    started_at: None,
                    finished_at: Some(now),
                });
                Ok(Self { record, log, pipes: [None, None], kill_at: None })
            }
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.record.exit.is_none()
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.record.process.filter(|_| self.runs()).map(|process| process.pid)
    }

    /// TERM now, KILL at `kill_at`. A second stop may only bring the KILL forward.
    pub(super) fn stop(&mut self, kill_at: Instant) {
        let Some(pid) = self.pid() else { return };
        if !self.record.stopping {
            self.record.stopping = true;
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
    }

    /// KILL, when its time has come.
    pub(super) fn kill_if_due(&mut self, now: Instant) {
        if let (Some(pid), Some(_)) = (self.pid(), self.kill_at.filter(|&at| at <= now)) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            self.kill_at = None;
        }
    }

    /// Reads what there is from one pipe, one round's worth.
    pub(super) fn read(&mut self, stream: Stream) {
        self.read_up_to(stream, READ_BYTES_MAX);
    }

    fn read_up_to(&mut self, stream: Stream, bytes_max: usize) {
        let mut buffer = [0_u8; 16 * 1024];
        let mut total = 0;
        while total < bytes_max {
            let Some(pipe) = self.pipes[stream as usize].as_mut() else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    self.pipes[stream as usize] = None;
                    self.log.finish(stream, &super::log_time());
                }
                Ok(length) => {
                    total += length;
                    self.log.write(stream, &buffer[..length], &super::log_time());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipes[stream as usize] = None,
            }
        }
    }

    /// Its main process has ended: takes the last output in, closes the pipes and makes the record of the end.
    pub(super) fn end(&mut self, status: WaitStatus, now: Timestamp) -> Exit {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.read_up_to(stream, DRAIN_BYTES_MAX);
            if self.pipes[stream as usize].take().is_some() {
                self.log.finish(stream, &super::log_time());
            }
        }
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (code, None),
            WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
            _ => (255, None),
        };
        let lost = self.log.lost_bytes();
        let message = if lost > 0 { format!("{lost} bytes of its log could not be written") } else { String::new() };
        Exit {
            code,
            signal,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message,
            started_at: Some(self.record.started_at),
            finished_at: Some(now),
        }
    }
}

/// Starts the process in its own group, with nothing of ours but two pipes. `Err` reads as runc's message.
fn spawn(pod_uid: &str, config: &ContainerConfig) -> Result<(ProcessId, [std::fs::File; 2]), String> {
    let program = config.argv.first().ok_or("no command specified")?;
    check_directory(&config.working_dir)?;
    let program_path = find_program(program, config)?;
    let (out, out_end) = pipe()?;
    let (err, err_end) = pipe()?;
    let mut command = Command::new(program_path);
    command.arg0(program).args(&config.argv[1..]).current_dir(&config.working_dir).process_group(0);
    command.env_clear().envs(&config.env).env(MARK, format!("{pod_uid}/{}/{}", config.name, config.attempt));
    command.stdin(Stdio::null()).stdout(out_end).stderr(err_end);
    if let Some(user) = config.run_as_user {
        command.uid(user);
    }
    if let Some(group) = config.run_as_group {
        command.gid(group);
    }
    // A child inherits the signal mask: it must not start with ours. A SIGCHLD lost in between is made up for by reaping after.
    let ours = replace_mask(&SigSet::empty());
    let spawned = command.spawn();
    replace_mask(&ours);
    let child = spawned.map_err(|error| format!("exec: {program:?}: {error}"))?;
    let pid = i32::try_from(child.id()).map_err(|_| "the kernel gave a pid beyond its own bound".to_owned())?;
    // Alive or a zombie of ours: either way its entry is still there.
    let process = proc_table::identify(pid).unwrap_or(ProcessId { pid, start_ticks: 0 });
    Ok((process, [out, err]))
}

fn replace_mask(mask: &SigSet) -> SigSet {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), Some(&mut before)).ok();
    before
}

/// A pipe whose reading end does not block. Both ends close on exec.
fn pipe() -> Result<(std::fs::File, OwnedFd), String> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("no pipe: {error}"))?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| format!("no pipe: {error}"))?;
    Ok((reader.into(), writer))
}

fn check_directory(path: &str) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(format!("chdir to cwd ({path:?}) failed: not a directory")),
        Err(error) => Err(format!("chdir to cwd ({path:?}) failed: {error}")),
    }
}

/// Looks a program up as `execvp` would, in the container's own `PATH`, to tell a wrong name from a wrong directory.
fn find_program(program: &str, config: &ContainerConfig) -> Result<std::path::PathBuf, String> {
    let base = Path::new(&config.working_dir);
    if program.contains('/') {
        let path = base.join(program);
        return match std::fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(format!("exec: {program:?}: stat {}: {error}", path.display())),
        };
    }
    let path = config.env.get("PATH").map_or("", String::as_str);
    let candidates = path.split(':').filter(|folder| !folder.is_empty()).map(|folder| base.join(folder).join(program));
    candidates
        .into_iter()
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
