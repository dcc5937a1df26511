//! The agent: one loop that turns every event into the same full plan.
//!
//! Owns the order observe, plan, persist, apply, report. Refuses decisions ([`crate::effective`], [`crate::reconcile`],
//! [`crate::local_write`] have them) and waiting: long work is the executor's and comes back as an event. Start at [`Agent::run`].

mod local;
mod report;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::derive::NodeRef;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::LogRequest;
use flotilla_sync::channel::ItemId;
use flotilla_sync::record::Draft;
use flotilla_sync::replica::ReplicaError;
use tokio::sync::{mpsc, watch};

use crate::backend::{LocalBackend, Shared, WriteCommand};
use crate::clock::Clock;
use crate::effective::{Effective, Memory, effective};
use crate::executor::{Done, Executor};
use crate::host::Host;
use crate::knowledge::{Knowledge, Read};
use crate::probe::{ProbeReport, ProbeRunner};
use crate::reconcile::{self, Observed, Place};
use crate::replica::{DeviceReplica, OpenedStream};
use crate::runtime::process::ProcessRuntime;
use crate::runtime::{Runtime as _, RuntimeEvent};
use crate::store::{Store, StoreError};
use crate::uplink::Link;

use report::Reports;

/// The plan is made again at least this often, whatever happens: level, not edge.
const PERIOD: Duration = Duration::from_secs(30);
/// How long ending all pods may take.
const DRAIN: Duration = Duration::from_secs(300);
/// Plan again at the earliest after a failed pass.
const RETRY: Duration = Duration::from_secs(1);

/// Everything one device is made of; built by [`crate::start`].
#[derive(Debug)]
pub struct Agent {
    pub(crate) node: NodeRef,
    pub(crate) store: Store,
    pub(crate) clock: Arc<Clock>,
    pub(crate) replica: Arc<DeviceReplica>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) backend: Arc<LocalBackend<ProcessRuntime>>,
    pub(crate) runtime: Arc<ProcessRuntime>,
    pub(crate) executor: Executor<ProcessRuntime>,
    pub(crate) probes: ProbeRunner<ProcessRuntime>,
    pub(crate) host: Host,
    pub(crate) knowledge: Knowledge,
    pub(crate) memory: Memory,
    /// By object uid; see [`crate::local_write::LAST_APPLIED_ANNOTATION`].
    pub(crate) last_applied: BTreeMap<String, String>,
    pub(crate) inbox: Inbox,
    pub(crate) state: LoopState,
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) items: watch::Receiver<u64>,
    pub(crate) runtime: mpsc::Receiver<RuntimeEvent>,
    pub(crate) done: mpsc::Receiver<Done>,
    pub(crate) probes: mpsc::Receiver<ProbeReport>,
    pub(crate) writes: mpsc::Receiver<WriteCommand>,
    pub(crate) streams: mpsc::Receiver<OpenedStream>,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) end: watch::Receiver<bool>,
}

/// What the loop carries from one pass to the next; all of it can be lost.
#[derive(Debug, Default)]
pub(crate) struct LoopState {
    pub(crate) effective: Effective,
    pub(crate) bases: BTreeMap<ObjectKey, Object>,
    pub(crate) records: Vec<overrides::OverrideRecord>,
    pub(crate) reports: Reports,
    /// Evictions already confirmed in this life of the agent.
    pub(crate) confirmed: BTreeSet<String>,
    /// Pods whose next appearance is a new one to watchers.
    pub(crate) renewed: Vec<ObjectKey>,
    pub(crate) wake_at: Option<Timestamp>,
}

/// All that can happen.
#[derive(Debug)]
enum Event {
    /// Items, containers or the link changed, or time passed.
    Something,
    Done(Done),
    Probe(ProbeReport),
    Write(Box<WriteCommand>),
    Stream(OpenedStream),
    End,
}

/// A pass could not be completed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("the runtime cannot list its sandboxes")]
    Runtime(#[from] crate::runtime::RuntimeError),
    #[error("the pods' history cannot be written as JSON")]
    History(#[from] serde_json::Error),
}

impl Agent {
    /// Runs until told to end. Pods go on running afterwards.
    pub async fn run(mut self) -> Self {
        loop {
            if let Err(error) = self.pass().await {
                tracing::error!(error = %crate::enrolment::chain(&error), "a pass failed; what runs goes on running");
                self.state.wake_at =
                    Some(Timestamp(self.clock.now().0 + u64::try_from(RETRY.as_millis()).unwrap_or(0)));
            }
            match self.select().await {
                Event::Something => {}
                Event::Done(done) => self.executor.finished(done, self.clock.now()),
                Event::Probe(report) => self.probes.record(report),
                Event::Write(command) => self.answer(*command).await,
                Event::Stream(opened) => self.serve_stream(opened),
                Event::End => return self,
            }
        }
    }

    /// Ends every pod in an orderly way, within [`DRAIN`]; used with `--drain`. What is remembered of the pods stays, so that the
    /// next start counts on.
    pub async fn drain(&mut self) {
        if tokio::time::timeout(DRAIN, self.end_all()).await.is_err() {
            tracing::error!("draining took too long; what still runs is adopted by the next agent");
        }
    }

    async fn end_all(&mut self) {
        loop {
            let sandboxes = match self.runtime.list().await {
                Ok(sandboxes) if sandboxes.is_empty() => return,
                Ok(sandboxes) => sandboxes,
                Err(error) => {
                    tracing::error!(%error, "draining: the sandboxes cannot be listed");
                    return;
                }
            };
            let observed = self.observed(sandboxes);
            let none = reconcile::DesiredPods::default();
            self.executor.carry_out(reconcile::plan(&none, &observed, &self.history(), &self.place()).actions);
            tokio::select! {
                Some(done) = self.inbox.done.recv() => self.executor.finished(done, self.clock.now()),
                Some(_event) = self.inbox.runtime.recv() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn select(&mut self) -> Event {
        let now = self.clock.now().0;
        let until_wake = self.state.wake_at.map(|at| Duration::from_millis(at.0.saturating_sub(now)));
        let pause = tokio::time::sleep(until_wake.unwrap_or(PERIOD).min(PERIOD));
        let inbox = &mut self.inbox;
        tokio::select! {
            biased;
            _closed = inbox.end.changed() => Event::End,
            Some(done) = inbox.done.recv() => Event::Done(done),
            Some(command) = inbox.writes.recv() => Event::Write(Box::new(command)),
            Some(_event) = inbox.runtime.recv() => Event::Something,
            Some(report) = inbox.probes.recv() => Event::Probe(report),
            Ok(()) = inbox.items.changed() => Event::Something,
            Ok(()) = inbox.link.changed() => Event::Something,
            Some(opened) = inbox.streams.recv() => Event::Stream(opened),
            () = pause => Event::Something,
        }
    }

    /// Observe, plan, persist, apply, report.
    async fn pass(&mut self) -> Result<(), PassError> {
        let now = self.clock.now();
        let read = self.knowledge.read(&self.replica);
        let read = self.end_overrides(read, now).await?;
        let next = effective(&self.node, &read.known, &self.memory, now);
        if next.memory != self.memory {
            self.store.set_meta("memory", serde_json::to_vec(&next.memory)?).await?;
            self.memory = next.memory.clone();
        }
        let sandboxes = self.runtime.list().await?;
        let observed = self.observed(sandboxes);
        let plan = reconcile::plan(&next.pods, &observed, &self.history(), &self.place());
        self.persist_histories(&plan.history).await?;
        self.executor.carry_out(plan.actions);
        self.probes.keep(&plan.probes);
        self.state.wake_at = plan.wake_at;
        self.state.effective = next;
        self.show(&read, &plan.statuses);
        self.report(&read, &observed, &plan.statuses, &plan.ended).await?;
        self.state.bases = read.known.manifests.into_values().map(|one| (one.object.key(), one.object)).collect();
        self.state.records = read.known.overrides;
        for pod in &plan.ended {
            self.executor.forget(pod);
        }
        Ok(())
    }

    /// Overrides the operator reverted, or whose time is over, leave this device's log.
    async fn end_overrides(&mut self, mut read: Read, now: Timestamp) -> Result<Read, PassError> {
        let over = |record: &overrides::OverrideRecord| {
            read.reverted.contains(&record.id) || record.expires.is_some_and(|expires| expires <= now)
        };
        let ended: Vec<String> =
            read.known.overrides.iter().filter(|record| over(record)).map(|record| record.id.clone()).collect();
        if !ended.is_empty() {
            let drafts =
                ended.iter().filter_map(|id| Some(Draft::remove(override_item(id)?, "agent", now.0))).collect();
            self.replica.append(drafts).await?;
            read.known.overrides.retain(|record| !ended.contains(&record.id));
            tracing::info!(count = ended.len(), "overrides ended");
        }
        Ok(read)
    }

    fn observed(&self, sandboxes: BTreeMap<String, crate::runtime::SandboxStatus>) -> Observed {
        Observed {
            sandboxes,
            busy: self.executor.busy().clone(),
            failures: self.executor.failures().clone(),
            probes: self.probes.statuses().clone(),
        }
    }

    fn place(&self) -> Place {
        Place {
            boot_id: self.host.boot_id.clone(),
            host_ip: self.host.ip.clone(),
            node_name: self.node.name.clone(),
            handler: self.runtime.handler().to_owned(),
            now: self.clock.now(),
        }
    }

    fn history(&self) -> reconcile::History {
        self.shared.history().clone()
    }

    async fn persist_histories(
        &self,
        changed: &BTreeMap<String, Option<reconcile::PodHistory>>,
    ) -> Result<(), PassError> {
        if changed.is_empty() {
            return Ok(());
        }
        let row = |(pod, history): (&String, &Option<reconcile::PodHistory>)| {
            Ok((pod.clone(), history.as_ref().map(serde_json::to_string).transpose()?))
        };
        let rows = changed.iter().map(row).collect::<Result<Vec<_>, serde_json::Error>>()?;
        self.store.set_histories(rows).await?;
        let mut histories = self.shared.history();
        for (pod, history) in changed {
            match history {
                Some(history) => drop(histories.insert(pod.clone(), history.clone())),
                None => drop(histories.remove(pod)),
            }
        }
        Ok(())
    }

    /// A log that the hub reads through a stream.
    fn serve_stream(&self, opened: OpenedStream) {
        let answer = serde_json::from_slice::<LogRequest>(&opened.request)
            .map_err(|error| {
                let message = format!("this device does not know such a stream: {error}");
                ApiError::of(flotilla_manifests::api_error::Reason::BadRequest, message)
            })
            .and_then(|request| self.backend.read_log(&request));
        drop(tokio::spawn(async move {
            let stream = opened.stream;
            match answer {
                Ok(mut chunks) => {
                    while let Some(chunk) = chunks.recv().await {
                        if stream.send(chunk).await.is_err() {
                            return;
                        }
                    }
                    stream.close(None).await;
                }
                Err(error) => stream.close(Some(error.to_status().to_string())).await,
            }
        }));
    }
}

/// The item of an override with this id; `None` for an id that cannot be one.
pub(crate) fn override_item(id: &str) -> Option<ItemId> {
    ItemId::parse(&format!("override/{id}")).ok()
}
