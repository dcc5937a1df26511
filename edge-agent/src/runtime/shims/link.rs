//! The agent's end of one shim: starting it, asking it, and hearing of every change.
//!
//! Each request has a connection of its own; one more stays open and is told of every change. When that one ends the shim is dead.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::Entries;
use crate::runtime::RuntimeError;
use crate::shim::files::{self, ProcessId, ShimFile};
use crate::shim::proc_table;
use crate::shim::protocol::{Answer, LINE_BYTES_MAX, Request};

/// From starting a shim to its first word.
const READY_MS_MAX: u64 = 10_000;
/// From a request to its answer; a start waits for `exec`, so for the disk.
const ANSWER_MS_MAX: u64 = 30_000;
/// From asking a shim to end to killing it.
const END_MS_MAX: u64 = 5_000;

/// A living shim. Clones are the same link.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Tells this shim from an earlier one of the same pod.
    pub(super) id: u64,
    uid: String,
    dir: PathBuf,
    entries: Arc<Entries>,
}

impl Link {
    /// Connects, and listens from then on in a task of its own that ends with the shim. Returns what the shim says is the case.
    pub(super) async fn connect(
        uid: &str,
        dir: &Path,
        entries: Arc<Entries>,
    ) -> Result<(Self, ShimFile), RuntimeError> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let link = Self { id: IDS.fetch_add(1, Ordering::Relaxed), uid: uid.to_owned(), dir: dir.to_owned(), entries };
        let begun = async {
            let mut stream = link.send(&Request::Watch).await?;
            let state = next_state(&mut stream).await?.ok_or("it hung up")?;
            Ok::<_, String>((stream, state))
        };
        let begun = timeout(Duration::from_millis(ANSWER_MS_MAX / 3), begun).await;
        let begun = begun.unwrap_or_else(|_| Err("it was silent".into()));
        let (stream, state) = begun.map_err(|why| link.no_answer("watch", why))?;
        drop(tokio::spawn(link.clone().listen(stream)));
        Ok((link, state))
    }

    async fn listen(self, mut stream: BufReader<UnixStream>) {
        while let Ok(Some(state)) = next_state(&mut stream).await {
            self.entries.update(&self.uid, self.id, state);
        }
        tracing::debug!(object = %self.uid, "a shim's connection ended");
        // A shim that lives on without this connection (it dropped a slow reader) is connected to again.
        if super::shim_lives(&self.dir) && self.clone().listen_again().await {
            return;
        }
        self.entries.lost(&self.uid, self.id, &self.dir);
    }

    async fn listen_again(self) -> bool {
        let again = async {
            let mut stream = self.send(&Request::Watch).await.ok()?;
            let state = next_state(&mut stream).await.ok()??;
            Some((stream, state))
        };
        let Ok(Some((stream, state))) = timeout(Duration::from_millis(END_MS_MAX), again).await else { return false };
        self.entries.update(&self.uid, self.id, state);
        drop(tokio::spawn(self.boxed_listen(stream)));
        true
    }

    /// Boxed: `listen` and `listen_again` would otherwise be types that hold each other.
    fn boxed_listen(self, stream: BufReader<UnixStream>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.listen(stream))
    }

    /// One request, answered; what the shim says is the case afterwards is known before this returns.
    pub(super) async fn ask(&self, request: Request) -> Result<(), RuntimeError> {
        let answered = async {
            let mut stream = self.send(&request).await?;
            next_answer(&mut stream).await?.ok_or_else(|| "it hung up".to_owned())
        };
        let answered = timeout(Duration::from_millis(ANSWER_MS_MAX), answered).await;
        let answer = answered.unwrap_or_else(|_| Err(format!("nothing came within {ANSWER_MS_MAX} ms")));
        let answer = answer.map_err(|why| self.no_answer(request.name(), why))?;
        if let Some(state) = answer.state {
            self.entries.update(&self.uid, self.id, state);
        }
        match answer.error {
            None => Ok(()),
            Some(message) => Err(RuntimeError::Refused { uid: self.uid.clone(), command: request.name(), message }),
        }
    }

    /// Asks the shim to end, kills it if it does not.
    pub(super) async fn shut_down(&self, dir: &Path) -> Result<(), RuntimeError> {
        let state = files::read_state(dir).ok();
        let asked = timeout(Duration::from_millis(END_MS_MAX), self.ask(Request::Shutdown)).await;
        let ended = matches!(asked, Ok(Ok(()))) && lock_is_free(dir, &self.uid).await.is_ok();
        if let Some(state) = state.filter(|state| !ended && proc_table::runs(state.shim)) {
            tracing::warn!(object = %self.uid, "a shim that would not end is killed");
            kill_process(state.shim.pid);
        }
        Ok(())
    }

    async fn send(&self, request: &Request) -> Result<BufReader<UnixStream>, String> {
        let mut stream = connect(&self.dir).await.map_err(|error| format!("could not connect: {error}"))?;
        let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        line.push(b'\n');
        if line.len() > LINE_BYTES_MAX {
            return Err(format!("the request has {} bytes, more than {LINE_BYTES_MAX}", line.len()));
        }
        stream.write_all(&line).await.map_err(|error| format!("could not send: {error}"))?;
        Ok(BufReader::new(stream))
    }

    fn no_answer(&self, command: &'static str, why: String) -> RuntimeError {
        RuntimeError::NoAnswer { uid: self.uid.clone(), command, why }
    }
}

async fn next_state(stream: &mut BufReader<UnixStream>) -> Result<Option<ShimFile>, String> {
    Ok(next_answer(stream).await?.and_then(|answer| answer.state))
}

/// The next line; `None` at the end of the stream.
async fn next_answer(stream: &mut BufReader<UnixStream>) -> Result<Option<Answer>, String> {
    let mut line = Vec::new();
    let mut bounded = stream.take(LINE_BYTES_MAX as u64);
    bounded.read_until(b'\n', &mut line).await.map_err(|error| format!("could not read: {error}"))?;
    if !line.ends_with(b"\n") {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| format!("it spoke another language: {error}"))
}

/// Through the directory's descriptor: the full path may be longer than a socket address may be.
async fn connect(dir: &Path) -> std::io::Result<UnixStream> {
    let folder = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), files::SOCKET)).await
}

/// Starts a shim for `dir` and waits until it can be talked to.
pub(super) async fn spawn_shim(exe: &Path, dir: &Path, uid: &str) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Spawn { uid: uid.to_owned(), exe: exe.to_owned(), source };
    let complaints = files::complaint_path(dir);
    let complaints = fs::OpenOptions::new().create(true).append(true).open(&complaints).map_err(failed)?;
    let mut command = Command::new(exe);
    command.arg(crate::shim::ARGUMENT).arg("--dir").arg(dir).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
    let mut child = command.spawn().map_err(failed)?;
    let stdout = child.stdout.take();
    let heard = async {
        let mut line = String::new();
        if let Some(stdout) = stdout {
            drop(BufReader::new(stdout.take(4096)).read_line(&mut line).await);
        }
        line.trim().to_owned()
    };
    let limit = Duration::from_millis(READY_MS_MAX);
    let said = timeout(limit, heard).await.unwrap_or_else(|_| "nothing".to_owned());
    if said == crate::shim::READY {
        // A child is reaped by whoever waits for it; this agent, as long as it lives.
        drop(tokio::spawn(async move { drop(child.wait().await) }));
        return Ok(());
    }
    drop(child.kill().await);
    Err(RuntimeError::NotReady { uid: uid.to_owned(), limit_ms: READY_MS_MAX, said })
}

/// Waits until no shim holds the pod's lock.
pub(super) async fn lock_is_free(dir: &Path, uid: &str) -> Result<(), RuntimeError> {
    let Ok(file) = fs::OpenOptions::new().write(true).open(files::lock_path(dir)) else { return Ok(()) };
    if file.try_lock().is_ok() {
        return Ok(());
    }
    // Waiting for a lock blocks a thread; it ends when the shim does, at the latest when that was killed.
    let waited = timeout(Duration::from_millis(END_MS_MAX), tokio::task::spawn_blocking(move || file.lock())).await;
    match waited {
        Ok(Ok(Ok(()))) => Ok(()),
        _ => Err(RuntimeError::NoAnswer {
            uid: uid.to_owned(),
            command: "shutdown",
            why: format!("it still held its lock after {END_MS_MAX} ms"),
        }),
    }
}

/// Waits until a shim that has let go of its lock is gone: it does so a moment earlier.
pub(super) async fn is_gone(shim: ProcessId) {
    let gone = async {
        while proc_table::runs(shim) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if timeout(Duration::from_millis(END_MS_MAX), gone).await.is_err() {
        kill_process(shim.pid);
    }
}

pub(super) fn kill_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}
