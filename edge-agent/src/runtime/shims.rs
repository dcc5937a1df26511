//! The runtime that needs no daemon: a re-executed shim per pod runs its containers, as OCI containers or as plain processes.
//!
//! Owns the shims' directories `DIR/pods/<uid>/` and the connections to the shims. Refuses to decide what may run
//! ([`super::admission`]). Start reading at [`ShimRuntime::open`], then [`link`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutcome, ExecRequest, Exit, Facilities, Runtime,
    RuntimeError, RuntimeEvent, SandboxConfig, SandboxState, SandboxStatus,
};
use crate::cgroup::tree::Tree;
use crate::shim::files::{self, Setup, ShimFile, Wish};
use crate::shim::litter;
use crate::shim::proc_table::{self, Family};
use crate::shim::protocol::Request;

mod exec;
mod link;
mod survey;

use link::Link;

/// Hints waiting for the agent's loop; see [`Runtime::events`].
const EVENTS_LEN_MAX: usize = 1024;
/// A pod's directory and its environment may hold secrets.
const DIRECTORY_MODE: u32 = 0o700;

/// Runs pods below shims.
#[derive(Debug)]
pub struct ShimRuntime {
    pods: PathBuf,
    shim_exe: PathBuf,
    facilities: Facilities,
    /// Given to every new shim.
    setup: Setup,
    entries: Arc<Entries>,
    receiver: Mutex<Option<mpsc::Receiver<RuntimeEvent>>>,
}

/// What is known of each sandbox, kept up to date by the links.
#[derive(Debug)]
struct Entries {
    by_uid: Mutex<BTreeMap<String, Entry>>,
    events: mpsc::Sender<RuntimeEvent>,
}

#[derive(Debug)]
struct Entry {
    state: ShimFile,
    /// `None`: no shim lives.
    link: Option<Link>,
}

impl Entries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Each change is one assignment: a panic elsewhere cannot leave it half done.
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hint(&self, pod_uid: &str) {
        // Full: a hint is waiting already, and hints are all alike.
        drop(self.events.try_send(RuntimeEvent { pod_uid: pod_uid.to_owned() }));
    }

    /// Takes a newer state in from a link; one that is no longer the pod's is not listened to.
    fn update(&self, pod_uid: &str, link_id: u64, state: ShimFile) {
        if let Some(entry) = self.lock().get_mut(pod_uid)
            && entry.link.as_ref().is_some_and(|link| link.id == link_id)
            && state.revision >= entry.state.revision
        {
            entry.state = state;
        }
        self.hint(pod_uid);
    }

    fn lost(&self, pod_uid: &str, link_id: u64, dir: &Path) {
        if let Some(entry) = self.lock().get_mut(pod_uid)
            && entry.link.as_ref().is_some_and(|link| link.id == link_id)
        {
            entry.link = None;
            complete_from_disk(dir, &mut entry.state);
        }
        self.hint(pod_uid);
    }
}

impl ShimRuntime {
    /// Opens `data/pods` and adopts every shim that still runs. `shim_exe` is `/proc/self/exe` outside tests. One pod's directory that
    /// cannot be read is set aside with a warning; it never stops the others.
    pub async fn open(data: &Path, shim_exe: &Path) -> Result<Self, RuntimeError> {
        Self::open_with(data, shim_exe, None).await
    }

    /// The same, with the OCI runtime at this path instead of the one that is found.
    pub async fn open_with(data: &Path, shim_exe: &Path, oci: Option<&Path>) -> Result<Self, RuntimeError> {
        let pods = std::path::absolute(data).map(|data| data.join("pods")).map_err(at("make absolute", data))?;
        make_directory(&pods).map_err(at("create", &pods))?;
        let (events, receiver) = mpsc::channel(EVENTS_LEN_MAX);
        let entries = Arc::new(Entries { by_uid: Mutex::new(BTreeMap::new()), events });
        let (facilities, setup) = survey::of_this_device(&pods, oci).await;
        let runtime = Self {
            pods,
            shim_exe: shim_exe.to_owned(),
            facilities,
            setup,
            entries,
            receiver: Mutex::new(Some(receiver)),
        };
        let names = fs::read_dir(&runtime.pods).map_err(at("list", &runtime.pods))?;
        let names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        for uid in names.filter(|name| files::is_directory_name(name)) {
            if let Err(error) = runtime.adopt(&uid).await {
                tracing::warn!(object = %uid, reason = %error, "a pod's directory was set aside");
            }
        }
        Ok(runtime)
    }

    /// Where the cgroups of this agent's pods are, if it can have any. The folder stays when the last pod goes: another may be on its
    /// way into it.
    pub fn cgroups(&self) -> Option<&Tree> {
        self.setup.cgroups.as_ref()
    }

    /// Connects to a pod's shim if it lives, else reads what it left.
    async fn adopt(&self, uid: &str) -> Result<(), RuntimeError> {
        let dir = self.pods.join(uid);
        if shim_lives(&dir) {
            match Link::connect(uid, &dir, self.entries.clone()).await {
                Ok((link, state)) => {
                    self.entries.lock().insert(uid.to_owned(), Entry { state, link: Some(link) });
                    return Ok(());
                }
                // A dying shim hangs up before it lets go of its lock.
                Err(error) => link::lock_is_free(&dir, uid).await.map_err(|_held| error)?,
            }
        }
        match files::read_state(&dir) {
            Ok(mut state) if state.sandbox.uid == uid => {
                complete_from_disk(&dir, &mut state);
                self.entries.lock().insert(uid.to_owned(), Entry { state, link: None });
                Ok(())
            }
            outcome => {
                let why = outcome.err().map_or_else(|| "it names another pod".to_owned(), |error| error.to_string());
                tracing::warn!(object = %uid, reason = %why, "a pod's directory tells nothing and is removed");
                self.kill_leftovers(uid, None).await;
                remove_tree(&dir).await
            }
        }
    }

    fn directory(&self, pod_uid: &str) -> Result<PathBuf, RuntimeError> {
        if files::is_directory_name(pod_uid) {
            Ok(self.pods.join(pod_uid))
        } else {
            Err(RuntimeError::BadName { what: pod_uid.to_owned() })
        }
    }

    fn link(&self, pod_uid: &str) -> Result<Link, RuntimeError> {
        let entries = self.entries.lock();
        let link = entries.get(pod_uid).and_then(|entry| entry.link.clone());
        link.ok_or_else(|| RuntimeError::NoSandbox { uid: pod_uid.to_owned() })
    }

    /// Ends what a dead shim left running: by recorded process (never a later one with the same pid, nor one of another boot), its
    /// group, mark and cgroup; and removes what its containers left.
    async fn kill_leftovers(&self, uid: &str, state: Option<&ShimFile>) {
        let mark_prefix = format!("{uid}/");
        let running = state.filter(|state| is_of_this_boot(state));
        let records = running.into_iter().flat_map(|state| state.containers.values());
        for process in records.filter_map(|record| record.process).filter(|process| proc_table::runs(*process)) {
            proc_table::kill_family(&Family { mark_prefix: &mark_prefix, group: Some(process.pid), parent: None });
        }
        let killed = proc_table::kill_family(&Family { mark_prefix: &mark_prefix, group: None, parent: None });
        if killed > 0 {
            tracing::info!(object = %uid, killed, "ended processes that had lost their shim");
        }
        let (dir, state) = (self.pods.join(uid), state.cloned());
        let own = self.setup.cgroups.as_ref().map(|tree| tree.child(uid));
        let cleaned = tokio::task::spawn_blocking(move || {
            let cleaned = litter::remove_all(&dir, state.as_ref());
            // Also what was made before anything was written down.
            let leavings = litter::Leavings { cgroup: own, ..litter::Leavings::default() };
            litter::remove(&leavings, litter::Patience::Wait) && cleaned
        });
        if !cleaned.await.unwrap_or(false) {
            tracing::warn!(object = %uid, "something of a pod could not be removed yet; it is tried again with the pod's folder");
        }
    }

    /// Ends the shim, if one lives, and everything it left. Afterwards nothing of the pod runs.
    async fn end_shim(&self, uid: &str) -> Result<(), RuntimeError> {
        let dir = self.directory(uid)?;
        let (link, state) = {
            let mut entries = self.entries.lock();
            match entries.get_mut(uid) {
                Some(entry) => (entry.link.clone(), Some(entry.state.clone())),
                None => (None, None),
            }
        };
        if let Some(link) = link {
            link.shut_down(&dir).await?;
        } else if shim_lives(&dir) {
            // A shim nobody could talk to at adoption. It is killed by what its own file says it is.
            if let Ok(state) = files::read_state(&dir)
                && is_of_this_boot(&state)
                && proc_table::runs(state.shim)
            {
                link::kill_process(state.shim.pid);
            }
        }
        link::lock_is_free(&dir, uid).await?;
        if let Some(state) = state.as_ref().filter(|state| is_of_this_boot(state)) {
            link::is_gone(state.shim).await;
        }
        self.kill_leftovers(uid, state.as_ref()).await;
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.link = None;
            complete_from_disk(&dir, &mut entry.state);
        }
        Ok(())
    }
}

impl ShimRuntime {
    fn wish(&self, config: &SandboxConfig) -> Wish {
        let setup = Setup {
            oci: self.setup.oci.clone().filter(|_| config.isolated),
            cgroups: self.setup.cgroups.as_ref().map(|tree| tree.child(&config.uid)),
            rootless: self.setup.rootless,
        };
        Wish { sandbox: config.clone(), setup }
    }
}

/// Removes a folder with everything in it, beside the agent's loop: a container may have written a lot.
async fn remove_tree(dir: &Path) -> Result<(), RuntimeError> {
    let path = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
    match removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at("remove", dir)(error)),
        _ => Ok(()),
    }
}

impl Runtime for ShimRuntime {
    fn facilities(&self) -> &Facilities {
        &self.facilities
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<(), RuntimeError> {
        let dir = self.directory(&config.uid)?;
        {
            let entries = self.entries.lock();
            let known = entries.get(&config.uid).filter(|entry| entry.link.is_some());
            if known.is_some_and(|entry| entry.state.sandbox.attempt == config.attempt) {
                return Ok(());
            }
        }
        self.end_shim(&config.uid).await?;
        make_directory(&dir).map_err(at("create", &dir))?;
        let wish = crate::shim::sandbox_path(&dir);
        let text = serde_json::to_vec(&self.wish(config)).map_err(std::io::Error::other).map_err(at("write", &wish))?;
        files::write_atomically(&wish, &text, files::Durability::Process).map_err(at("write", &wish))?;
        link::spawn_shim(&self.shim_exe, &dir, &config.uid).await?;
        let (link, state) = Link::connect(&config.uid, &dir, self.entries.clone()).await?;
        self.entries.lock().insert(config.uid.clone(), Entry { state, link: Some(link) });
        self.entries.hint(&config.uid);
        Ok(())
    }

    async fn start_container(&self, pod_uid: &str, config: &ContainerConfig) -> Result<(), RuntimeError> {
        if !files::is_directory_name(&config.name) {
            return Err(RuntimeError::BadName { what: config.name.clone() });
        }
        let link = self.link(pod_uid)?;
        link.ask(Request::Start { container: Box::new(config.clone()) }).await
    }

    async fn stop_container(
        &self,
        pod_uid: &str,
        container: &str,
        attempt: u32,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.link(pod_uid)?.ask(Request::Stop { container: container.to_owned(), attempt, grace_ms }).await
    }

    async fn stop_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        self.end_shim(pod_uid).await?;
        self.entries.hint(pod_uid);
        Ok(())
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let dir = self.directory(pod_uid)?;
        self.end_shim(pod_uid).await?;
        remove_tree(&dir).await?;
        self.entries.lock().remove(pod_uid);
        self.entries.hint(pod_uid);
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<String, SandboxStatus>, RuntimeError> {
        let entries = self.entries.lock();
        Ok(entries.iter().map(|(uid, entry)| (uid.clone(), status_of(entry))).collect())
    }

    async fn exec(&self, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        let place = {
            let entries = self.entries.lock();
            entries.get(&request.pod_uid).and_then(|entry| {
                let record = entry.state.containers.get(&request.container)?;
                exec::Place::of(&self.pods.join(&request.pod_uid), &entry.state, &request.container, record)
            })
        };
        // In a task of its own: a caller that goes away must not leave half of it behind.
        let (exe, request) = (self.shim_exe.clone(), request.clone());
        let program = request.argv.first().cloned().unwrap_or_default();
        let run = tokio::spawn(async move { exec::run(&exe, &request, place).await });
        run.await.unwrap_or_else(|error| Err(RuntimeError::Exec { program, source: std::io::Error::other(error) }))
    }

    fn log_path(&self, pod_uid: &str, container: &str, attempt: u32) -> PathBuf {
        files::log_path(&self.pods.join(pod_uid), container, attempt)
    }

    fn events(&self) -> Option<mpsc::Receiver<RuntimeEvent>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn status_of(entry: &Entry) -> SandboxStatus {
    let state = &entry.state;
    let containers = state.containers.iter().map(|(name, record)| {
        let container = match &record.exit {
            Some(exit) => ContainerState::Exited(exit.clone()),
            None => ContainerState::Running {
                pid: record.process.map_or(0, |process| process.pid),
                started_at: record.started_at,
                stopping: record.stopping,
            },
        };
        (name.clone(), ContainerStatus { attempt: record.attempt, digest: record.digest.clone(), state: container })
    });
    SandboxStatus {
        uid: state.sandbox.uid.clone(),
        namespace: state.sandbox.namespace.clone(),
        name: state.sandbox.name.clone(),
        attempt: state.sandbox.attempt,
        grace_seconds: state.sandbox.grace_seconds,
        state: if entry.link.is_some() { SandboxState::Ready } else { SandboxState::Lost },
        isolated: state.sandbox.isolated,
        created_at: state.created_at,
        containers: containers.collect(),
    }
}

/// Fills in how the containers of a dead shim ended: by their exit records, else as unseen.
fn complete_from_disk(dir: &Path, state: &mut ShimFile) {
    if let Ok(newest) = files::read_state(dir)
        && newest.shim == state.shim
    {
        *state = newest;
    }
    let why = if is_of_this_boot(state) {
        "the container's shim was killed; its processes were ended"
    } else {
        "the device went down while the container ran"
    };
    for (name, record) in state.containers.iter_mut().filter(|(_, record)| record.exit.is_none()) {
        let exit = files::read_exit(dir, name, record.attempt);
        record.exit = Some(exit.unwrap_or_else(|| Exit::unseen(Some(record.started_at), why)));
    }
}

/// Whether the processes it names can still be there. Ticks count from the boot: a device that boots the same way every time may give
/// another process the same pid at the same tick.
fn is_of_this_boot(state: &ShimFile) -> bool {
    state.boot == proc_table::boot_id()
}

/// Whether a living shim holds the pod's lock.
fn shim_lives(dir: &Path) -> bool {
    let Ok(file) = fs::OpenOptions::new().write(true).open(files::lock_path(dir)) else { return false };
    file.try_lock().is_err()
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::File { action, path: path.to_owned(), source }
}
