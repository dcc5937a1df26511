//! Carries out plans: the steps of one pod in order, all pods at once, nothing decided here.
//!
//! Owns which pods are busy and what failed last. Refuses decisions: a failed step drops the rest of that pod's steps and is
//! told to the next plan as an observation. Start reading at [`Executor::carry_out`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use crate::enrolment::chain;
use crate::probe;
use crate::reconcile::{Action, Failure, Hook, HookHandler};
use crate::runtime::Runtime;
use crate::volume::{VolumeError, VolumeStore};

/// Pods whose steps are carried out at the same time; others queue.
const CONCURRENT_PODS_MAX: usize = 16;
/// For a `postStart` hook; Kubernetes gives it no end.
const POST_START: Duration = Duration::from_secs(600);
/// What is left for a container whose `preStop` hook took all of its grace, as with kubelet.
const GRACE_LEFT: Duration = Duration::from_secs(2);
/// Reports waiting for the agent's loop; a task that finds it full waits.
const DONE_LEN_MAX: usize = 256;

/// The steps of one pod are done, or one failed.
#[derive(Debug)]
pub struct Done {
    pub pod_uid: String,
    pub result: Result<(), String>,
    /// How making its volumes went, if that was a step.
    pub volumes: Option<Result<(), String>>,
}

/// Runs actions against a [`Runtime`].
#[derive(Debug)]
pub struct Executor<R> {
    runtime: Arc<R>,
    volumes: Arc<VolumeStore>,
    busy: BTreeSet<String>,
    failures: BTreeMap<String, Failure>,
    volume_failures: BTreeMap<String, Failure>,
    slots: Arc<Semaphore>,
    done: mpsc::Sender<Done>,
}

impl<R: Runtime> Executor<R> {
    /// The receiver belongs in the agent's loop; each [`Done`] goes to [`finished`](Self::finished) and asks for a new plan.
    pub fn over(runtime: Arc<R>, volumes: Arc<VolumeStore>) -> (Self, mpsc::Receiver<Done>) {
        let (done, reports) = mpsc::channel(DONE_LEN_MAX);
        let slots = Arc::new(Semaphore::new(CONCURRENT_PODS_MAX));
        let (busy, failures, volume_failures) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        (Self { runtime, volumes, busy, failures, volume_failures, slots, done }, reports)
    }

    /// Starts carrying out the actions of a plan whose history is durable. A pod that is still busy is left alone.
    pub fn carry_out(&mut self, actions: BTreeMap<String, Vec<Action>>) {
        for (pod_uid, steps) in actions {
            if steps.is_empty() || !self.busy.insert(pod_uid.clone()) {
                continue;
            }
            let (runtime, slots, done) = (self.runtime.clone(), self.slots.clone(), self.done.clone());
            let volumes = self.volumes.clone();
            drop(tokio::spawn(async move {
                let slot = slots.acquire_owned().await;
                let outcome = steps_of(&runtime, &volumes, &pod_uid, steps).await;
                drop(slot);
                // The loop is gone when the agent ends; nobody is left to tell.
                drop(done.send(outcome).await);
            }));
        }
    }

    /// Takes a report in.
    pub fn finished(&mut self, done: Done, now: Timestamp) {
        self.busy.remove(&done.pod_uid);
        match done.volumes {
            None => {}
            Some(Ok(())) => drop(self.volume_failures.remove(&done.pod_uid)),
            Some(Err(message)) => count(&mut self.volume_failures, &done.pod_uid, message, now),
        }
        match done.result {
            Ok(()) => {
                self.failures.remove(&done.pod_uid);
            }
            Err(message) => count(&mut self.failures, &done.pod_uid, message, now),
        }
    }

    pub fn busy(&self) -> &BTreeSet<String> {
        &self.busy
    }

    pub fn failures(&self) -> &BTreeMap<String, Failure> {
        &self.failures
    }

    /// Failed tries to make volumes, apart from those of other steps.
    pub fn volume_failures(&self) -> &BTreeMap<String, Failure> {
        &self.volume_failures
    }

    pub fn volumes(&self) -> &VolumeStore {
        &self.volumes
    }

    /// Drops what is remembered of pods that are gone.
    pub fn forget(&mut self, pod_uid: &str) {
        self.failures.remove(pod_uid);
        self.volume_failures.remove(pod_uid);
    }
}

fn count(failures: &mut BTreeMap<String, Failure>, pod_uid: &str, message: String, now: Timestamp) {
    tracing::warn!(object = %pod_uid, reason = %message, "a step of a pod failed");
    let count = failures.get(pod_uid).map_or(0, |failure| failure.count).saturating_add(1);
    failures.insert(pod_uid.to_owned(), Failure { message, at: now, count });
}

/// Carries out the steps of one pod. Volumes that cannot be made are no fault of a step, but what comes after them is left out.
async fn steps_of<R: Runtime>(runtime: &Arc<R>, volumes: &Arc<VolumeStore>, pod_uid: &str, steps: Vec<Action>) -> Done {
    let mut done = Done { pod_uid: pod_uid.to_owned(), result: Ok(()), volumes: None };
    let mut steps = steps.into_iter().peekable();
    // Containers that stop together do so at once: their hooks share the pod's grace.
    let mut stops = tokio::task::JoinSet::new();
    while let Some(step) = steps.next() {
        if matches!(step, Action::StopContainer { .. }) {
            let (runtime, uid) = (runtime.clone(), pod_uid.to_owned());
            stops.spawn(async move { stop(&*runtime, &uid, step).await });
            if matches!(steps.peek(), Some(Action::StopContainer { .. })) {
                continue;
            }
            while let Some(stopped) = stops.join_next().await {
                let stopped = stopped.unwrap_or_else(|error| Err(format!("the agent's own fault: {error}")));
                done.result = done.result.and(stopped);
            }
            if done.result.is_err() {
                return done;
            }
            continue;
        }
        tracing::debug!(object = %pod_uid, step = ?StepName(&step), "carrying out a step");
        if let Action::PrepareVolumes(wanted) = step {
            let (store, uid) = (volumes.clone(), pod_uid.to_owned());
            let outcome = apart(move || store.prepare(&uid, &wanted)).await;
            let failed = outcome.is_err();
            done.volumes = Some(outcome);
            if failed {
                return done;
            }
        } else if let Err(message) = step_of(&**runtime, volumes, pod_uid, step).await {
            done.result = Err(message);
            return done;
        }
    }
    done
}

/// Runs what blocks on a thread of its own.
async fn apart(work: impl FnOnce() -> Result<(), VolumeError> + Send + 'static) -> Result<(), String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(error) => Err(format!("the agent's own fault: {error}")),
    }
}

async fn step_of<R: Runtime>(
    runtime: &R,
    volumes: &Arc<VolumeStore>,
    pod_uid: &str,
    step: Action,
) -> Result<(), String> {
    let outcome = match step {
        Action::PrepareVolumes(_) => Ok(()),
        Action::RemoveVolumes => {
            let (store, uid) = (volumes.clone(), pod_uid.to_owned());
            return apart(move || store.remove(&uid)).await;
        }
        Action::RunSandbox(config) => runtime.run_sandbox(&config).await,
        Action::StartContainer(config) => runtime.start_container(pod_uid, &config).await,
        Action::StopContainer { .. } => return stop(runtime, pod_uid, step).await,
        Action::RunHook { container, attempt, grace_ms, hook } => {
            let outcome = run_hook(runtime, pod_uid, &container, &hook, POST_START).await;
            let Err(why) = outcome else { return Ok(()) };
            let grace = Duration::from_millis(grace_ms);
            let stopped = runtime.stop_container(pod_uid, &container, attempt, grace).await;
            let also = stopped.err().map_or_else(String::new, |error| format!("; {}", chain(&error)));
            return Err(format!("the postStart hook of container {container} failed: {why}{also}"));
        }
        Action::StopSandbox => runtime.stop_sandbox(pod_uid).await,
        Action::RemoveSandbox => runtime.remove_sandbox(pod_uid).await,
    };
    outcome.map_err(|error| chain(&error))
}

/// Runs the `preStop` hook, if there is one, in the time there is, then tells the container to end in what is left of it.
async fn stop<R: Runtime>(runtime: &R, pod_uid: &str, step: Action) -> Result<(), String> {
    let Action::StopContainer { container, attempt, grace_ms, why, hook } = step else { return Ok(()) };
    tracing::info!(object = %pod_uid, container, attempt, reason = %why, "stopping a container");
    let mut grace = Duration::from_millis(grace_ms);
    if let Some(hook) = hook {
        let begun = tokio::time::Instant::now();
        if let Err(why) = run_hook(runtime, pod_uid, &container, &hook, grace).await {
            tracing::warn!(object = %pod_uid, container, reason = %why, "a preStop hook failed; the container is stopped");
        }
        grace = grace.saturating_sub(begun.elapsed()).max(GRACE_LEFT);
    }
    runtime.stop_container(pod_uid, &container, attempt, grace).await.map_err(|error| chain(&error))
}

async fn run_hook<R: Runtime>(
    runtime: &R,
    pod_uid: &str,
    container: &str,
    hook: &Hook,
    limit: Duration,
) -> Result<(), String> {
    match &hook.handler {
        HookHandler::Sleep { ms } => {
            tokio::time::sleep(Duration::from_millis(*ms).min(limit)).await;
            Ok(())
        }
        HookHandler::Ask(check) => {
            let Hook { env, working_dir, host_ip, .. } = hook;
            probe::ask(runtime, check, &probe::Asked { pod_uid, container, host_ip, env, working_dir }, limit).await
        }
    }
}

/// An action without its environment: that may hold secrets.
struct StepName<'a>(&'a Action);

impl std::fmt::Debug for StepName<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Action::PrepareVolumes(plan) => write!(formatter, "prepare volumes {:?}", plan.volumes.keys()),
            Action::RemoveVolumes => formatter.write_str("remove volumes"),
            Action::RunSandbox(config) => write!(formatter, "run sandbox {}", config.attempt),
            Action::StartContainer(config) => write!(formatter, "start {} attempt {}", config.name, config.attempt),
            Action::RunHook { container, attempt, .. } => write!(formatter, "hook of {container} attempt {attempt}"),
            Action::StopContainer { container, attempt, .. } => write!(formatter, "stop {container} attempt {attempt}"),
            Action::StopSandbox => formatter.write_str("stop sandbox"),
            Action::RemoveSandbox => formatter.write_str("remove sandbox"),
        }
    }
}
