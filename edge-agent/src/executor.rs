//! Carries out plans: the steps of one pod in order, all pods at once, nothing decided here.
//!
//! Owns which pods are busy and what failed last. Refuses decisions: a failed step drops the rest of that pod's steps and is
//! told to the next plan as an observation. Start reading at [`Executor::carry_out`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use crate::reconcile::{Action, Failure};
use crate::runtime::{Runtime, RuntimeError};

/// Pods whose steps are carried out at the same time; others queue.
const CONCURRENT_PODS_MAX: usize = 16;
/// Reports waiting for the agent's loop; a task that finds it full waits.
const DONE_LEN_MAX: usize = 256;

/// The steps of one pod are done, or one failed.
#[derive(Debug)]
pub struct Done {
    pub pod_uid: String,
    pub result: Result<(), String>,
}

/// Runs actions against a [`Runtime`].
#[derive(Debug)]
pub struct Executor<R> {
    runtime: Arc<R>,
    busy: BTreeSet<String>,
    failures: BTreeMap<String, Failure>,
    slots: Arc<Semaphore>,
    done: mpsc::Sender<Done>,
}

impl<R: Runtime> Executor<R> {
    /// The receiver belongs in the agent's loop; each [`Done`] goes to [`finished`](Self::finished) and asks for a new plan.
    pub fn over(runtime: Arc<R>) -> (Self, mpsc::Receiver<Done>) {
        let (done, reports) = mpsc::channel(DONE_LEN_MAX);
        let slots = Arc::new(Semaphore::new(CONCURRENT_PODS_MAX));
        (Self { runtime, busy: BTreeSet::new(), failures: BTreeMap::new(), slots, done }, reports)
    }

    /// Starts carrying out the actions of a plan whose history is durable. A pod that is still busy is left alone.
    pub fn carry_out(&mut self, actions: BTreeMap<String, Vec<Action>>) {
        for (pod_uid, steps) in actions {
            if steps.is_empty() || !self.busy.insert(pod_uid.clone()) {
                continue;
            }
            let (runtime, slots, done) = (self.runtime.clone(), self.slots.clone(), self.done.clone());
            drop(tokio::spawn(async move {
                let slot = slots.acquire_owned().await;
                let result = steps_of(&*runtime, &pod_uid, steps).await;
                drop(slot);
                // The loop is gone when the agent ends; nobody is left to tell.
                drop(done.send(Done { pod_uid, result }).await);
            }));
        }
    }

    /// Takes a report in.
    pub fn finished(&mut self, done: Done, now: Timestamp) {
        self.busy.remove(&done.pod_uid);
        match done.result {
            Ok(()) => {
                self.failures.remove(&done.pod_uid);
            }
            Err(message) => {
                tracing::warn!(object = %done.pod_uid, reason = %message, "a step of a pod failed");
                let count = self.failures.get(&done.pod_uid).map_or(0, |failure| failure.count).saturating_add(1);
                self.failures.insert(done.pod_uid, Failure { message, at: now, count });
            }
        }
    }

    pub fn busy(&self) -> &BTreeSet<String> {
        &self.busy
    }

    pub fn failures(&self) -> &BTreeMap<String, Failure> {
        &self.failures
    }

    /// Drops what is remembered of pods that are gone.
    pub fn forget(&mut self, pod_uid: &str) {
        self.failures.remove(pod_uid);
    }
}

async fn steps_of<R: Runtime>(runtime: &R, pod_uid: &str, steps: Vec<Action>) -> Result<(), String> {
    for step in steps {
        tracing::debug!(object = %pod_uid, step = ?StepName(&step), "carrying out a step");
        step_of(runtime, pod_uid, step).await.map_err(|error| chain(&error))?;
    }
    Ok(())
}

async fn step_of<R: Runtime>(runtime: &R, pod_uid: &str, step: Action) -> Result<(), RuntimeError> {
    match step {
        Action::RunSandbox(config) => runtime.run_sandbox(&config).await,
        Action::StartContainer(config) => runtime.start_container(pod_uid, &config).await,
        Action::StopContainer { container, attempt, grace_ms, why } => {
            tracing::info!(object = %pod_uid, container, attempt, reason = %why, "stopping a container");
            runtime.stop_container(pod_uid, &container, attempt, Duration::from_millis(grace_ms)).await
        }
        Action::StopSandbox => runtime.stop_sandbox(pod_uid).await,
        Action::RemoveSandbox => runtime.remove_sandbox(pod_uid).await,
    }
}

/// An action without its environment: that may hold secrets.
struct StepName<'a>(&'a Action);

impl std::fmt::Debug for StepName<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Action::RunSandbox(config) => write!(formatter, "run sandbox {}", config.attempt),
            Action::StartContainer(config) => write!(formatter, "start {} attempt {}", config.name, config.attempt),
            Action::StopContainer { container, attempt, .. } => write!(formatter, "stop {container} attempt {attempt}"),
            Action::StopSandbox => formatter.write_str("stop sandbox"),
            Action::RemoveSandbox => formatter.write_str("remove sandbox"),
        }
    }
}

/// An error with its sources, as one line of a status.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
