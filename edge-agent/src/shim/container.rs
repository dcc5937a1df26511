//! One attempt of one container: started, read from, ended, cleaned up after.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Instant;

use flotilla_manifests::time::Timestamp;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::files::{self, ContainerRecord, ProcessId, Setup};
use super::litter::Leavings;
use super::output::{LogFile, Retention, Stream};
use super::proc_table;
use crate::runtime::{ContainerConfig, Exit, SandboxConfig};

mod oci;
mod process;

pub(crate) use oci::global_words;

/// Read from one pipe in one round; the other containers of the pod get their turn after that.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Read from a pipe after its container ended; a pipe holds at most 1 MiB, unless someone else still writes.
const DRAIN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Attempts whose logs are kept: this one and the one before, as kubelet does.
const ATTEMPTS_KEPT: u32 = 2;

/// The pod a container belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) dir: &'a Path,
    pub(super) sandbox: &'a SandboxConfig,
    pub(super) setup: &'a Setup,
    /// The shim.
    pub(super) me: ProcessId,
}

/// A container and its pipes.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    /// The OCI runtime is at work: the container neither runs nor has ended.
    pub(super) launch: Option<Launch>,
    pub(super) log: LogFile,
    pub(super) pipes: [Option<std::fs::File>; 2],
    /// When a stop turns from the stop signal into KILL.
    pub(super) kill_at: Option<Instant>,
    stop_signal: Signal,
    /// Where a stage says why it could not become the container's first process.
    complaint: Option<PathBuf>,
    pub(super) leavings: Leavings,
}

/// An OCI runtime's process that is making a container.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) pid: i32,
    pub(super) give_up_at: Instant,
    /// It was given up, or the pod ends: whatever comes of it is a failure.
    pub(super) given_up: bool,
    pid_file: PathBuf,
    complaint: PathBuf,
    log: PathBuf,
}

/// What came of a launch.
#[derive(Debug)]
pub(super) enum Launched {
    Runs(ProcessId),
    /// The command cannot be executed: an end like any other.
    Ended(Exit),
    /// The container could not be made; the start is an error and may be tried again.
    Failed(String),
}

impl Container {
    /// Starts it. A command that cannot be executed makes a container that has ended with code 128, as containerd has it. An OCI
    /// container is only begun: see [`Container::launch`]. `Err`: it could not be made.
    pub(super) fn start(pod: &Pod<'_>, config: &ContainerConfig, now: Timestamp) -> Result<Self, String> {
        std::fs::create_dir_all(pod.dir.join(&config.name))
            .map_err(|error| format!("could not make the directory of container {}: {error}", config.name))?;
        files::forget_attempts(pod.dir, &config.name, (config.attempt + 1).saturating_sub(ATTEMPTS_KEPT));
        let log = LogFile::open(&files::log_path(pod.dir, &config.name, config.attempt), Retention::default());
        let record = ContainerRecord {
            attempt: config.attempt,
            digest: config.digest.clone(),
            started_at: now,
            process: None,
            stopping: false,
            own_mounts: config.root.is_none() && !config.mounts.is_empty(),
            user: config.run_as_user,
            group: config.run_as_group,
            supplemental_groups: config.supplemental_groups.clone(),
            exit: None,
        };
        let mut container = Self {
            record,
            launch: None,
            log,
            pipes: [None, None],
            kill_at: None,
            stop_signal: stop_signal(config.stop_signal.as_deref()),
            complaint: None,
            leavings: Leavings::default(),
        };
        if config.root.is_some() {
            return container.launch(pod, config).map(|()| container);
        }
        if pod.sandbox.isolated {
            return Err("an isolated pod was asked to run a process of the host".into());
        }
        if let Err(message) = container.spawn(pod, config) {
            container.record.exit = Some(start_error(&message, now));
        }
        Ok(container)
    }

    pub(super) fn runs(&self) -> bool {
        self.record.exit.is_none()
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.record.process.filter(|_| self.runs()).map(|process| process.pid)
    }

    /// The stop signal now, KILL at `kill_at`. A second stop may only bring the KILL forward. One that is being launched is stopped
    /// when it runs.
    pub(super) fn stop(&mut self, kill_at: Instant) {
        if !self.runs() {
            return;
        }
        if let Some(pid) = self.pid().filter(|_| !self.record.stopping) {
            kill(Pid::from_raw(pid), self.stop_signal).ok();
        }
        self.record.stopping = true;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
    }

    /// KILL, when its time has come.
    pub(super) fn kill_if_due(&mut self, now: Instant) {
        if let Some(launch) = self.launch.as_mut().filter(|launch| !launch.given_up) {
            if launch.give_up_at <= now || self.kill_at.is_some_and(|at| at <= now) {
                launch.given_up = true;
                kill(Pid::from_raw(launch.pid), Signal::SIGKILL).ok();
            }
        } else if let (Some(pid), Some(_)) = (self.pid(), self.kill_at.filter(|&at| at <= now)) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            if let Some(cgroup) = &self.leavings.cgroup {
                cgroup.let_die();
            }
            self.kill_at = None;
        }
    }

    /// When [`kill_if_due`](Self::kill_if_due) has something to do next.
    pub(super) fn due(&self) -> Option<Instant> {
        let launch = self.launch.as_ref().filter(|launch| !launch.given_up).map(|launch| launch.give_up_at);
        launch.into_iter().chain(self.kill_at.filter(|_| self.runs())).min()
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
        if let Some(message) = self.complaint.as_ref().and_then(|path| taken(path)) {
            return start_error(&message, now);
        }
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (code, None),
            WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
            _ => (255, None),
        };
        let out_of_memory = code != 0 && self.leavings.cgroup.as_ref().is_some_and(|cgroup| cgroup.oom_kills() > 0);
        let reason = match code {
            0 => "Completed",
            _ if out_of_memory => "OOMKilled",
            _ => "Error",
        };
        let lost = self.log.lost_bytes();
        let message = if lost > 0 { format!("{lost} bytes of its log could not be written") } else { String::new() };
        Exit {
            code,
            signal,
            reason: reason.into(),
            message,
            started_at: Some(self.record.started_at),
            finished_at: Some(now),
        }
    }
}

/// containerd's end of a container whose command could not be executed.
fn start_error(message: &str, now: Timestamp) -> Exit {
    Exit {
        code: 128,
        signal: None,
        reason: "StartError".into(),
        message: format!("unable to start container process: {message}"),
        started_at: None,
        finished_at: Some(now),
    }
}

/// `SIGQUIT`, `QUIT` or `3`; TERM for anything else.
fn stop_signal(name: Option<&str>) -> Signal {
    let name = name.unwrap_or("");
    let named = Signal::from_str(name).or_else(|_| Signal::from_str(&format!("SIG{name}"))).ok();
    named.or_else(|| Signal::try_from(name.parse::<i32>().ok()?).ok()).unwrap_or(Signal::SIGTERM)
}

/// Reads a small file and removes it; `None` when there is none.
fn taken(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    drop(std::fs::remove_file(path));
    Some(text)
}

fn replace_mask(mask: &SigSet) -> SigSet {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), Some(&mut before)).ok();
    before
}

/// Starts a command with an empty signal mask: a child inherits it. A SIGCHLD lost meanwhile is made up for by reaping afterwards.
fn spawn_unmasked(command: &mut std::process::Command) -> std::io::Result<i32> {
    let ours = replace_mask(&SigSet::empty());
    let spawned = command.spawn();
    replace_mask(&ours);
    i32::try_from(spawned?.id()).map_err(std::io::Error::other)
}

/// Alive or a zombie of ours: either way its entry is still there.
fn identify(pid: i32) -> ProcessId {
    proc_table::identify(pid).unwrap_or(ProcessId { pid, start_ticks: 0 })
}

/// A pipe whose reading end does not block. Both ends close on exec.
fn pipe() -> Result<(std::fs::File, OwnedFd), String> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("no pipe: {error}"))?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| format!("no pipe: {error}"))?;
    Ok((reader.into(), writer))
}
