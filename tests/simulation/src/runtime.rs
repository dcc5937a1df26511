//! A device's containers, which outlive its agent: CRI's vocabulary over a table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_agent::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutcome, ExecRequest, Exit, Facilities, Runtime,
    RuntimeError, RuntimeEvent, SandboxConfig, SandboxState, SandboxStatus,
};
use flotilla_manifests::time::Timestamp;
use tokio::sync::mpsc;

use crate::trace::Trace;

/// Hints that wait; a full channel drops one, because one is already waiting.
const EVENTS_LEN_MAX: usize = 64;
/// How long a process takes to end after it was told to.
const ENDING: Duration = Duration::from_millis(150);

/// What was done to a container: read by the oracles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    Started {
        pod: String,
        name: String,
        container: String,
        attempt: u32,
        mark: String,
    },
    /// It was started while it ran.
    Twice {
        name: String,
        container: String,
    },
    /// It ran and was told to stop.
    Stopped {
        pod: String,
        name: String,
        container: String,
    },
}

/// The containers of one device. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Containers {
    node: String,
    trace: Trace,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    sandboxes: BTreeMap<String, SandboxStatus>,
    marks: BTreeMap<(String, String), String>,
    /// Which agent may act; those before it are dead.
    life: u64,
    hints: Option<mpsc::Sender<RuntimeEvent>>,
    deeds: Vec<Deed>,
    pid: i32,
}

/// One agent's hold on them.
#[derive(Debug)]
pub(crate) struct SimRuntime {
    containers: Containers,
    life: u64,
    facilities: Facilities,
    events: Mutex<Option<mpsc::Receiver<RuntimeEvent>>>,
}

impl Containers {
    pub(crate) fn new(node: &str, trace: Trace) -> Self {
        Self { node: node.to_owned(), trace, inner: Arc::default() }
    }

    /// For the next life of the agent.
    pub(crate) fn runtime(&self) -> SimRuntime {
        let (hints, events) = mpsc::channel(EVENTS_LEN_MAX);
        let mut inner = self.lock();
        inner.life += 1;
        inner.hints = Some(hints);
        let facilities = Facilities { cpu_milli: 1000, memory_bytes: 1 << 30, ..Facilities::default() };
        SimRuntime { containers: self.clone(), life: inner.life, facilities, events: Mutex::new(Some(events)) }
    }

    /// The agent is dead.
    pub(crate) fn orphan(&self) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.hints = None;
    }

    /// The power fails: nothing runs any more, and nobody saw how it ended.
    pub(crate) fn power_cut(&self) {
        self.orphan();
        for sandbox in self.lock().sandboxes.values_mut() {
            sandbox.state = SandboxState::Lost;
            for container in sandbox.containers.values_mut() {
                if let ContainerState::Running { started_at, .. } = container.state {
                    container.state = ContainerState::Exited(Exit::unseen(Some(started_at), "the power failed"));
                }
            }
        }
    }

    /// One running container ends by itself; `false` when none runs.
    pub(crate) fn end_one(&self, choice: u64, code: i32) -> bool {
        let now = Timestamp(self.trace.true_ms());
        let mut inner = self.lock();
        let running: Vec<(String, String)> = inner
            .sandboxes
            .iter()
            .flat_map(|(pod, sandbox)| sandbox.containers.iter().map(move |(name, one)| (pod, name, one)))
            .filter(|(_, _, one)| matches!(one.state, ContainerState::Running { .. }))
            .map(|(pod, name, _)| (pod.clone(), name.clone()))
            .collect();
        let at = choice.checked_rem(running.len() as u64).and_then(|at| usize::try_from(at).ok());
        let Some((pod, name)) = at.and_then(|at| running.get(at)) else { return false };
        if choice & 6 == 0 {
            // Nobody says so: the agent finds it when it next looks.
            let hints = inner.hints.take();
            end(&mut inner, pod, name, code, now);
            inner.hints = hints;
        } else {
            end(&mut inner, pod, name, code, now);
        }
        true
    }

    /// Container by `(pod uid, container)` with the mark it was started with.
    pub(crate) fn running(&self) -> BTreeMap<(String, String), String> {
        let inner = self.lock();
        let runs = |pod: &String, name: &String| {
            let one = inner.sandboxes.get(pod).and_then(|sandbox| sandbox.containers.get(name));
            one.is_some_and(|one| matches!(one.state, ContainerState::Running { .. }))
        };
        inner
            .marks
            .iter()
            .filter(|((pod, name), _)| runs(pod, name))
            .map(|(key, mark)| (key.clone(), mark.clone()))
            .collect()
    }

    /// What was done since the last call.
    pub(crate) fn deeds(&self) -> Vec<Deed> {
        std::mem::take(&mut self.lock().deeds)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(inner: &mut Inner, pod: &str, name: &str, code: i32, now: Timestamp) {
    let Some(one) = inner.sandboxes.get_mut(pod).and_then(|sandbox| sandbox.containers.get_mut(name)) else { return };
    if let ContainerState::Running { started_at, .. } = one.state {
        let reason = if code == 0 { "Completed" } else { "Error" };
        one.state = ContainerState::Exited(Exit {
            code,
            signal: None,
            reason: reason.to_owned(),
            message: String::new(),
            started_at: Some(started_at),
            finished_at: Some(now),
        });
        if let Some(hints) = &inner.hints {
            // One that is waiting is enough.
            drop(hints.try_send(RuntimeEvent { pod_uid: pod.to_owned() }));
        }
    }
}

impl SimRuntime {
    /// The table, unless another agent has come since.
    fn table(&self, uid: &str) -> Result<MutexGuard<'_, Inner>, RuntimeError> {
        let inner = self.containers.lock();
        if inner.life == self.life { Ok(inner) } else { Err(RuntimeError::NoSandbox { uid: uid.to_owned() }) }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.containers.trace.true_ms())
    }
}

impl Runtime for SimRuntime {
    fn facilities(&self) -> &Facilities {
        &self.facilities
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<(), RuntimeError> {
        let status = SandboxStatus {
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            grace_seconds: config.grace_seconds,
            state: SandboxState::Ready,
            isolated: config.isolated,
            created_at: self.now(),
            containers: BTreeMap::new(),
        };
        self.table(&config.uid)?.sandboxes.insert(config.uid.clone(), status);
        Ok(())
    }

    async fn start_container(&self, pod_uid: &str, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let now = self.now();
        let mark = config.env.get("MARK").cloned().unwrap_or_default();
        let mut inner = self.table(pod_uid)?;
        let inner = &mut *inner;
        inner.pid += 1;
        let no_sandbox = || RuntimeError::NoSandbox { uid: pod_uid.to_owned() };
        let sandbox = inner.sandboxes.get_mut(pod_uid).ok_or_else(no_sandbox)?;
        let runs = |one: &ContainerStatus| matches!(one.state, ContainerState::Running { .. });
        if sandbox.containers.get(&config.name).is_some_and(runs) {
            inner.deeds.push(Deed::Twice { name: sandbox.name.clone(), container: config.name.clone() });
        }
        let state = ContainerState::Running { pid: inner.pid, started_at: now, stopping: false };
        let status = ContainerStatus { attempt: config.attempt, digest: config.digest.clone(), state };
        sandbox.containers.insert(config.name.clone(), status);
        let name = sandbox.name.clone();
        inner.marks.insert((pod_uid.to_owned(), config.name.clone()), mark.clone());
        self.containers.trace.told(
            "starts",
            &self.containers.node,
            format_args!("{name}/{} {} {mark}", config.name, config.attempt),
        );
        inner.deeds.push(Deed::Started {
            pod: pod_uid.to_owned(),
            name,
            container: config.name.clone(),
            attempt: config.attempt,
            mark,
        });
        if let Some(hints) = &inner.hints {
            drop(hints.try_send(RuntimeEvent { pod_uid: pod_uid.to_owned() }));
        }
        Ok(())
    }

    async fn stop_container(
        &self,
        pod_uid: &str,
        container: &str,
        attempt: u32,
        _grace: Duration,
    ) -> Result<(), RuntimeError> {
        let mut inner = self.table(pod_uid)?;
        let inner = &mut *inner;
        let Some(sandbox) = inner.sandboxes.get_mut(pod_uid) else { return Ok(()) };
        let name = sandbox.name.clone();
        let Some(one) = sandbox.containers.get_mut(container).filter(|one| one.attempt == attempt) else {
            return Ok(());
        };
        let ContainerState::Running { stopping, .. } = &mut one.state else { return Ok(()) };
        if !std::mem::replace(stopping, true) {
            self.containers.trace.told("stops", &self.containers.node, format_args!("{name}/{container}"));
            inner.deeds.push(Deed::Stopped { pod: pod_uid.to_owned(), name, container: container.to_owned() });
            let (containers, pod, container) = (self.containers.clone(), pod_uid.to_owned(), container.to_owned());
            drop(tokio::spawn(async move {
                tokio::time::sleep(ENDING).await;
                let now = Timestamp(containers.trace.true_ms());
                end(&mut containers.lock(), &pod, &container, 143, now);
            }));
        }
        Ok(())
    }

    async fn stop_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let now = self.now();
        let mut inner = self.table(pod_uid)?;
        let names: Vec<String> =
            inner.sandboxes.get(pod_uid).map(|one| one.containers.keys().cloned().collect()).unwrap_or_default();
        names.iter().for_each(|name| end(&mut inner, pod_uid, name, 137, now));
        if let Some(sandbox) = inner.sandboxes.get_mut(pod_uid) {
            sandbox.state = SandboxState::Lost;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let mut inner = self.table(pod_uid)?;
        inner.sandboxes.remove(pod_uid);
        inner.marks.retain(|(pod, _), _| pod != pod_uid);
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<String, SandboxStatus>, RuntimeError> {
        Ok(self.table("")?.sandboxes.clone())
    }

    async fn exec(&self, _request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        Ok(ExecOutcome::Exited { code: 0, output: String::new() })
    }

    fn log_path(&self, pod_uid: &str, container: &str, attempt: u32) -> PathBuf {
        PathBuf::from(format!("/simulated/{pod_uid}/{container}.{attempt}.log"))
    }

    fn events(&self) -> Option<mpsc::Receiver<RuntimeEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
