//! The shim's loop: signals, requests, output, deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

use super::Complaint;
use super::connection::Connection;
use super::container::{Container, Launched, Pod};
use super::files::{self, Durability, FORMAT, ProcessId, Setup, ShimFile, Wish};
use super::litter::{self, Leavings};
use super::output::Stream;
use super::proc_table::{self, Family};
use super::protocol::{Answer, Request};
use crate::runtime::{ContainerConfig, SandboxConfig};

const CONNECTIONS_MAX: usize = 16;
/// Until what could not be removed is tried again: the kernel needs a moment after the last process of a cgroup.
const LITTER_AGAIN: Duration = Duration::from_millis(50);
/// The shim's own complaints; more are dropped.
const COMPLAINTS_BYTES_MAX: u64 = 256 * 1024;

#[derive(Debug)]
pub(super) struct Supervisor {
    dir: PathBuf,
    sandbox: SandboxConfig,
    setup: Setup,
    boot: String,
    me: ProcessId,
    created_at: Timestamp,
    containers: BTreeMap<String, Container>,
    listener: UnixListener,
    connections: Vec<Connection>,
    signals: SignalFd,
    /// Children that ended while a launch was under way: one of them may be the container it made.
    strays: BTreeMap<i32, WaitStatus>,
    /// Processes that remove what containers left.
    sweepers: BTreeSet<i32>,
    /// What could not be removed at once.
    litter: Vec<Leavings>,
    /// End once nothing runs any more.
    ending: bool,
    /// The state changed since it was written and told.
    changed: bool,
    revision: u64,
}

/// Whether a request is done.
#[derive(Debug)]
enum Done {
    Now,
    /// When this container is launched.
    Later(String),
}

/// Whom a ready descriptor belongs to.
#[derive(Debug, Clone)]
enum Source {
    Signals,
    Listener,
    Connection(usize),
    Pipe(String, Stream),
}

impl Supervisor {
    pub(super) fn open(dir: &Path, wish: Wish) -> Result<Self, Complaint> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(|error| format!("no signal mask: {error}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| format!("no signalfd: {error}"))?;
        let pid = i32::try_from(std::process::id()).map_err(|error| error.to_string())?;
        let me = proc_table::identify(pid).ok_or("could not read /proc/self/stat: is /proc mounted?")?;
        let mut supervisor = Self {
            dir: dir.to_owned(),
            sandbox: wish.sandbox,
            setup: wish.setup,
            boot: proc_table::boot_id(),
            me,
            created_at: super::clock(),
            containers: BTreeMap::new(),
            listener: listen(dir)?,
            connections: Vec::new(),
            signals,
            strays: BTreeMap::new(),
            sweepers: BTreeSet::new(),
            litter: Vec::new(),
            ending: false,
            changed: false,
            revision: 1,
        };
        supervisor
            .write_state()
            .map_err(|error| format!("could not write {}: {error}", files::state_path(dir).display()))?;
        Ok(supervisor)
    }

    pub(super) fn run(&mut self) -> Result<(), Complaint> {
        loop {
            self.turn()?;
            if self.ending && self.containers.values().all(|container| !container.runs()) {
                break;
            }
        }
        // Nothing of the pod may outlive it, also what no container was known for.
        proc_table::kill_family(&Family {
            mark_prefix: &format!("{}/", self.sandbox.uid),
            group: None,
            parent: Some(self.me.pid),
        });
        for leavings in std::mem::take(&mut self.litter) {
            litter::remove(&leavings, litter::Patience::Now);
        }
        for connection in &mut self.connections {
            connection.flush();
        }
        drop(fs::remove_file(self.dir.join(files::SOCKET)));
        Ok(())
    }

    /// Waits once, and serves everything that is ready.
    fn turn(&mut self) -> Result<(), Complaint> {
        for source in self.wait()? {
            match source {
                Source::Signals => self.take_signals(),
                Source::Listener => self.accept(),
                Source::Connection(index) => self.serve(index),
                Source::Pipe(name, stream) => {
                    if let Some(container) = self.containers.get_mut(&name) {
                        container.read(stream);
                    }
                }
            }
        }
        let now = super::instant();
        for container in self.containers.values_mut() {
            container.kill_if_due(now);
        }
        self.litter.retain(|leavings| !litter::remove(leavings, litter::Patience::Now));
        self.tell();
        self.connections.retain(|connection| !connection.closed);
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>, Complaint> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, connection.has_output());
            sources.push(Source::Connection(index));
            fds.push(PollFd::new(connection.stream.as_fd(), flags));
        }
        for (name, container) in &self.containers {
            // What an OCI runtime says while it launches is not the container's.
            let streams = [Stream::Stdout, Stream::Stderr].into_iter().filter(|_| container.launch.is_none());
            for stream in streams {
                if let Some(pipe) = &container.pipes[stream as usize] {
                    sources.push(Source::Pipe(name.clone(), stream));
                    fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
                }
            }
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(format!("poll failed: {error}")),
        }
        let ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let again = (!self.litter.is_empty()).then(|| super::instant() + LITTER_AGAIN);
        let Some(next) = self.containers.values().filter_map(Container::due).chain(again).min() else {
            return PollTimeout::NONE;
        };
        // Rounded up: a deadline that has not quite come must not spin the loop.
        let left = next.saturating_duration_since(super::instant()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < CONNECTIONS_MAX {
                match Connection::over(stream) {
                    Ok(connection) => self.connections.push(connection),
                    Err(error) => self.complain(&format!("a connection could not be used: {error}")),
                }
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.flush();
        for request in connection.read() {
            let error = match request {
                Ok(request) => match self.obey(index, request) {
                    Ok(Done::Now) => None,
                    // Answered when the launch has ended; a connection asks one thing at a time.
                    Ok(Done::Later(name)) => {
                        if let Some(connection) = self.connections.get_mut(index) {
                            connection.awaits = Some(name);
                        }
                        continue;
                    }
                    Err(message) => Some(message),
                },
                Err(message) => Some(message),
            };
            // What was done is on disk before it is answered, and the answer tells of it.
            self.tell();
            let answer = Answer { error, state: Some(self.state()) };
            if let Some(connection) = self.connections.get_mut(index) {
                connection.answer(&answer);
            }
        }
    }

    fn obey(&mut self, index: usize, request: Request) -> Result<Done, String> {
        match request {
            Request::Start { container } => return self.start(&container),
            Request::Stop { container, attempt, grace_ms } => {
                self.stop(&container, attempt, Duration::from_millis(grace_ms));
            }
            Request::Status => {}
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.watches = true;
                }
            }
            Request::Shutdown => self.end(Duration::ZERO),
        }
        Ok(Done::Now)
    }

    fn start(&mut self, config: &ContainerConfig) -> Result<Done, String> {
        if !files::is_directory_name(&config.name) {
            return Err(format!("{:?} is no container name", config.name));
        }
        if self.ending {
            return Err("the sandbox is ending".into());
        }
        match self.containers.get(&config.name) {
            // Asked again after a lost answer: it is done already.
            Some(known) if known.record.attempt == config.attempt && known.launch.is_some() => {
                return Ok(Done::Later(config.name.clone()));
            }
            Some(known) if known.record.attempt == config.attempt => return Ok(Done::Now),
            Some(known) if known.runs() => {
                return Err(format!("container {} still runs as attempt {}", config.name, known.record.attempt));
            }
            _ => {}
        }
        let pod = Pod { dir: &self.dir, sandbox: &self.sandbox, setup: &self.setup, me: self.me };
        let container = Container::start(&pod, config, super::clock())?;
        let launches = container.launch.is_some();
        if let Some(exit) = &container.record.exit {
            self.write_exit(&config.name, config.attempt, exit);
            self.sweep(container.leavings.clone());
        }
        self.containers.insert(config.name.clone(), container);
        self.changed |= !launches;
        // Its SIGCHLD may have come while the mask was open.
        self.reap();
        let launches =
            launches && self.containers.get(&config.name).is_some_and(|container| container.launch.is_some());
        Ok(if launches { Done::Later(config.name.clone()) } else { Done::Now })
    }

    fn stop(&mut self, name: &str, attempt: u32, grace: Duration) {
        if let Some(container) = self.containers.get_mut(name).filter(|container| container.record.attempt == attempt) {
            self.changed |= container.runs() && !container.record.stopping;
            container.stop(super::instant() + grace.min(Duration::from_secs(7 * 24 * 3600)));
            container.kill_if_due(super::instant());
        }
    }

    fn end(&mut self, grace: Duration) {
        self.ending = true;
        let running: Vec<(String, u32)> =
            self.containers.iter().map(|(name, container)| (name.clone(), container.record.attempt)).collect();
        for (name, attempt) in running {
            self.stop(&name, attempt, grace);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            // The machine goes down, or an administrator ends the pod: as gently as its manifest asks.
            if let Ok(Signal::SIGTERM | Signal::SIGINT) = Signal::try_from(number) {
                self.end(Duration::from_secs(self.sandbox.grace_seconds.into()));
            }
        }
        self.reap();
    }

    /// Takes every ended child in: mains of containers, and orphans this process inherited as subreaper.
    ///
    /// A main is looked at before it is reaped: as long as it is a zombie its pid and process group are its own.
    fn reap(&mut self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            let pid = match waitid(Id::All, look) {
                Ok(status) => status.pid(),
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let Some(pid) = pid else { return };
            let main = self.containers.iter().find(|(_, container)| container.pid() == Some(pid.as_raw()));
            let main = main.map(|(name, _)| name.clone());
            if let Some(name) = &main {
                self.kill_rest(name, pid.as_raw());
            }
            let Ok(status) = waitpid(pid, Some(WaitPidFlag::WNOHANG)) else { continue };
            match main {
                Some(name) => self.ended(&name, status),
                None => self.reaped(pid.as_raw(), status),
            }
        }
    }

    /// A child that is no container's first process, as far as is known.
    fn reaped(&mut self, pid: i32, status: WaitStatus) {
        let launching = |container: &Container| container.launch.as_ref().is_some_and(|launch| launch.pid == pid);
        let name = self.containers.iter().find(|(_, container)| launching(container)).map(|(name, _)| name.clone());
        if let Some(name) = name {
            self.launched(&name, status);
        } else if !self.sweepers.remove(&pid) && self.containers.values().any(|container| container.launch.is_some()) {
            self.strays.insert(pid, status);
        }
        if self.containers.values().all(|container| container.launch.is_none()) {
            self.strays.clear();
        }
    }

    /// An OCI runtime has ended: those who wait for its container are told what came of it.
    fn launched(&mut self, name: &str, status: WaitStatus) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let error = match container.launched(status) {
            Launched::Runs(process) => {
                // It may have ended before its launch did.
                if let Some(status) = self.strays.remove(&process.pid) {
                    self.ended(name, status);
                }
                None
            }
            Launched::Ended(exit) => {
                let (attempt, leavings) = (container.record.attempt, container.leavings.clone());
                container.record.exit = Some(exit.clone());
                self.write_exit(name, attempt, &exit);
                self.sweep(leavings);
                None
            }
            Launched::Failed(message) => {
                let attempt = container.record.attempt;
                let leavings = container.leavings.clone();
                self.containers.remove(name);
                let mark = format!("{}/{name}/{attempt}", self.sandbox.uid);
                proc_table::kill_family(&Family { mark_prefix: &mark, group: None, parent: None });
                self.sweep(leavings);
                Some(message)
            }
        };
        self.changed = true;
        self.tell();
        let state = self.state();
        for connection in self.connections.iter_mut().filter(|one| one.awaits.as_deref() == Some(name)) {
            connection.awaits = None;
            connection.answer(&Answer { error: error.clone(), state: Some(state.clone()) });
        }
    }

    /// Removes what a container left; what takes long, or cannot be removed yet, does not hold the loop up.
    fn sweep(&mut self, leavings: Leavings) {
        if litter::is_small(&leavings) {
            if !litter::remove(&leavings, litter::Patience::Now) {
                self.litter.push(leavings);
            }
            return;
        }
        for folder in &leavings.folders {
            match litter::remove_beside(folder) {
                Ok(pid) => drop(self.sweepers.insert(pid)),
                Err(message) => self.complain(&message),
            }
        }
        self.litter.push(Leavings { folders: Vec::new(), ..leavings });
    }

    /// As in a pid namespace: the end of the first process is the end of all.
    fn kill_rest(&self, name: &str, pid: i32) {
        if self.sandbox.isolated && !self.sandbox.host_pid {
            // Its pid namespace has ended with it.
            return;
        }
        let launches = self.containers.values().filter_map(|container| Some(container.launch.as_ref()?.pid));
        let mains: Vec<i32> = self.containers.values().filter_map(Container::pid).chain(launches).collect();
        // What the main left behind is a child of this process by now, or below one.
        if proc_table::children(self.me.pid).is_some_and(|children| children.iter().all(|child| mains.contains(child)))
        {
            return;
        }
        let alone = !self.containers.iter().any(|(other, container)| other != name && container.runs());
        let alone = alone && self.sweepers.is_empty();
        if let Some(cgroup) = self.containers.get(name).and_then(|container| container.leavings.cgroup.as_ref()) {
            cgroup.kill();
        }
        proc_table::kill_family(&Family {
            mark_prefix: &format!("{}/{name}/", self.sandbox.uid),
            group: Some(pid),
            parent: alone.then_some(self.me.pid),
        });
    }

    fn ended(&mut self, name: &str, status: WaitStatus) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let exit = container.end(status, super::clock());
        let attempt = container.record.attempt;
        container.record.exit = Some(exit.clone());
        container.kill_at = None;
        let leavings = container.leavings.clone();
        self.changed = true;
        self.write_exit(name, attempt, &exit);
        self.sweep(leavings);
    }

    fn write_exit(&self, name: &str, attempt: u32, exit: &crate::runtime::Exit) {
        let path = files::exit_path(&self.dir, name, attempt);
        let written = serde_json::to_vec(exit)
            .map_err(std::io::Error::other)
            .and_then(|text| files::write_atomically(&path, &text, Durability::PowerCut));
        if let Err(error) = written {
            self.complain(&format!("could not write {}: {error}", path.display()));
        }
    }

    /// Writes the state when it changed, then tells those who watch.
    fn tell(&mut self) {
        if self.changed {
            self.changed = false;
            self.revision += 1;
            if let Err(error) = self.write_state() {
                self.complain(&format!("could not write {}: {error}", files::state_path(&self.dir).display()));
            }
            for connection in &mut self.connections {
                connection.stale = connection.watches;
            }
        }
        let state = self.connections.iter().any(|connection| connection.stale).then(|| self.state());
        for connection in &mut self.connections {
            // One that has not read the last state yet gets the newest one when it has.
            if connection.stale && !connection.has_output() {
                connection.stale = false;
                connection.answer(&Answer { error: None, state: state.clone() });
            }
        }
    }

    fn state(&self) -> ShimFile {
        ShimFile {
            format: FORMAT,
            revision: self.revision,
            boot: self.boot.clone(),
            shim: self.me,
            sandbox: self.sandbox.clone(),
            setup: self.setup.clone(),
            created_at: self.created_at,
            containers: self
                .containers
                .iter()
                // One that is being launched is nothing yet.
                .filter(|(_, container)| container.launch.is_none())
                .map(|(name, container)| (name.clone(), container.record.clone()))
                .collect(),
        }
    }

    /// Not synced: after a power cut nothing of it runs, and the agent's own history knows the attempts.
    fn write_state(&mut self) -> std::io::Result<()> {
        let text = serde_json::to_vec(&self.state()).map_err(std::io::Error::other)?;
        files::write_atomically(&files::state_path(&self.dir), &text, Durability::Process)
    }

    fn complain(&self, message: &str) {
        let path = files::complaint_path(&self.dir);
        let small = fs::metadata(&path).map_or(true, |metadata| metadata.len() < COMPLAINTS_BYTES_MAX);
        if let (true, Ok(mut file)) = (small, fs::OpenOptions::new().create(true).append(true).open(&path)) {
            drop(writeln!(file, "{} {message}", super::log_time()));
        }
    }
}

/// Binds the socket through the directory's descriptor: its full path may be longer than an address may be.
fn listen(dir: &Path) -> Result<UnixListener, Complaint> {
    let complaint =
        |error: std::io::Error| format!("could not listen on {}: {error}", dir.join(files::SOCKET).display());
    drop(fs::remove_file(dir.join(files::SOCKET)));
    let folder = File::open(dir).map_err(complaint)?;
    let borrowed: BorrowedFd<'_> = folder.as_fd();
    let path = format!("/proc/self/fd/{}/{}", borrowed.as_raw_fd(), files::SOCKET);
    let listener = UnixListener::bind(path).map_err(complaint)?;
    listener.set_nonblocking(true).map_err(complaint)?;
    Ok(listener)
}
