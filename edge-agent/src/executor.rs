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
use crate::reconcile::{Action, Failure};
use crate::runtime::Runtime;
use crate::volume::{VolumeError, VolumeStore};

/// Pods whose steps are carried out at the same time; others queue.
const CONCURRENT_PODS_MAX: usize = 16;
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
                let outcome = steps_of(&*runtime, &volumes, &pod_uid, steps).await;
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
async fn steps_of<R: Runtime>(runtime: &R, volumes: &Arc<VolumeStore>, pod_uid: &str, steps: Vec<Action>) -> Done {
    let mut done = Done { pod_uid: pod_uid.to_owned(), result: Ok(()), volumes: None };
    for step in steps {
        tracing::debug!(object = %pod_uid, step = ?StepName(&step), "carrying out a step");
        if let Action::PrepareVolumes(wanted) = step {
            let (store, uid) = (volumes.clone(), pod_uid.to_owned());
            let outcome = apart(move || store.prepare(&uid, &wanted)).await;
            let failed = outcome.is_err();
            done.volumes = Some(outcome);
            if failed {
                return done;
            }
        } else if let Err(message) = step_of(runtime, volumes, pod_uid, step).await {
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
        Action::StopContainer { container, attempt, grace_ms, why } => {
            tracing::info!(object = %pod_uid, container, attempt, reason = %why, "stopping a container");
            runtime.stop_container(pod_uid, &container, attempt, Duration::from_millis(grace_ms)).await
        }
        Action::StopSandbox => runtime.stop_sandbox(pod_uid).await,
        Action::RemoveSandbox => runtime.remove_sandbox(pod_uid).await,
    };
    outcome.map_err(|error| chain(&error))
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
            Action::StopContainer { container, attempt, .. } => write!(formatter, "stop {container} attempt {attempt}"),
            Action::StopSandbox => formatter.write_str("stop sandbox"),
            Action::RemoveSandbox => formatter.write_str("remove sandbox"),
        }
    }
}
