//! The agent: one loop that turns every event into the same full plan.
//!
//! Owns the order observe, plan, persist, apply, report. Refuses decisions ([`crate::effective`], [`crate::reconcile`],
//! [`crate::local_write`] have them) and waiting: long work is the executor's and comes back as an event. Start at [`Agent::run`].

mod images;
mod local;
mod meant;
mod quiet;
mod report;
mod salvaged;
mod shown;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::derive::NodeRef;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::overrides;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::LogRequest;
use flotilla_sync::channel::ItemId;
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::record::Draft;
use flotilla_sync::replica::ReplicaError;
use tokio::sync::{mpsc, watch};

use crate::backend::{LocalBackend, Shared, WriteCommand};
use crate::clock::Clock;
use crate::effective::Memory;
use crate::events::Events;
use crate::executor::{Done, Executor};
use crate::host::Host;
use crate::image::ImageStore;
use crate::knowledge::{Knowledge, Read};
use crate::probe::{ProbeReport, ProbeRunner};
use crate::reconcile::{self, Observed, Place};
use crate::replica::{DeviceReplica, OpenedStream};
use crate::runtime::{Facilities, Runtime, RuntimeEvent};
use crate::store::{Store, StoreError};
use crate::uplink::Link;

use report::Reports;

/// Everything is looked at again at least this often, whatever happens: level, not edge. What has changed is planned anew.
const PERIOD: Duration = Duration::from_secs(30);
/// How long ending all pods may take.
const DRAIN: Duration = Duration::from_secs(300);
/// Plan again at the earliest after a failed pass.
const RETRY: Duration = Duration::from_secs(1);

/// Everything one device is made of; built by [`crate::device`].
#[derive(Debug)]
pub struct Agent<R> {
    /// Everything of this device on the disk.
    pub(crate) folder: std::path::PathBuf,
    pub(crate) node: NodeRef,
    pub(crate) store: Store,
    pub(crate) clock: Arc<Clock>,
    pub(crate) replica: Arc<DeviceReplica>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) backend: Arc<LocalBackend<R>>,
    pub(crate) runtime: Arc<R>,
    pub(crate) facilities: Arc<Facilities>,
    pub(crate) executor: Executor<R>,
    pub(crate) probes: ProbeRunner<R>,
    pub(crate) host: Host,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) knowledge: Knowledge,
    pub(crate) memory: Memory,
    /// By object uid; see [`crate::local_write::LAST_APPLIED_ANNOTATION`].
    pub(crate) last_applied: BTreeMap<String, String>,
    /// By object uid: why people at this device change it; see [`crate::local_write::Kept`].
    pub(crate) causes: BTreeMap<String, String>,
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
    /// Images were imported or removed.
    pub(crate) images: watch::Receiver<u64>,
    pub(crate) end: watch::Receiver<bool>,
}

/// What the loop carries from one pass to the next; all of it can be lost.
#[derive(Debug, Default)]
pub(crate) struct LoopState {
    pub(crate) meant: meant::Meant,
    /// `None`: the last pass was not completed.
    pub(crate) said: Option<meant::Said>,
    pub(crate) reports: Reports,
    pub(crate) shown: shown::Shown,
    pub(crate) events: Events,
    /// Evictions already confirmed in this life of the agent.
    pub(crate) confirmed: BTreeSet<String>,
    /// Pods whose next appearance is a new one to watchers.
    pub(crate) renewed: Vec<ObjectKey>,
    pub(crate) wake_at: Option<Timestamp>,
    pub(crate) pinned: Option<images::Pinned>,
    pub(crate) unsaved: Unsaved,
    /// What was wanted at the first pass over a database that was damaged; see `agent/salvaged.rs`.
    pub(crate) salvaged: Option<reconcile::DesiredPods>,
    /// `None`: the last pass was not completed.
    pub(crate) quiet: Option<quiet::Quiet>,
}

/// What the disk did not take, and has to.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    histories: BTreeMap<String, Option<reconcile::PodHistory>>,
    /// Uids of pods whose end is to be told.
    ended: BTreeSet<String>,
}

impl Unsaved {
    fn is_empty(&self) -> bool {
        self.histories.is_empty() && self.ended.is_empty()
    }
}

/// All that can happen.
#[derive(Debug)]
enum Event {
    /// Items, containers or the link changed.
    Something,
    /// Time passed.
    Time,
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
    #[error("what is to be kept or told cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl<R: Runtime> Agent<R> {
    /// Runs until told to end. Pods go on running afterwards.
    pub async fn run(mut self) -> Self {
        let mut quiet = false;
        loop {
            if !quiet && let Err(error) = self.pass().await {
                tracing::error!(error = %crate::enrolment::chain(&error), "a pass failed; what runs goes on running");
                self.state.meant.forget();
                self.state.wake_at =
                    Some(Timestamp(self.clock.now().0 + u64::try_from(RETRY.as_millis()).unwrap_or(0)));
            }
            let event = self.select().await;
            quiet = matches!(event, Event::Time) && self.is_quiet().await;
            match event {
                Event::Something | Event::Time => {}
                Event::Done(done) => self.finished(done),
                Event::Probe(report) => self.probes.record(report),
                Event::Write(command) => self.answer(*command).await,
                Event::Stream(opened) => self.serve_stream(opened),
                Event::End => return self,
            }
        }
    }

    /// Takes in what is done, and with it all else that is: what came together is planned for together.
    fn finished(&mut self, done: Done) {
        let now = self.clock.now();
        self.executor.finished(done, now);
        while let Ok(done) = self.inbox.done.try_recv() {
            self.executor.finished(done, now);
        }
        while self.inbox.runtime.try_recv().is_ok() {}
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
                Ok(sandboxes) if sandboxes.is_empty() && self.executor.volumes().statuses().is_empty() => return,
                Ok(sandboxes) => sandboxes,
                Err(error) => {
                    tracing::error!(%error, "draining: the sandboxes cannot be listed");
                    return;
                }
            };
            let observed = self.observed(sandboxes);
            let none = reconcile::DesiredPods::default();
            self.executor.carry_out(reconcile::plan(&none, &observed, &self.shared.history(), &self.place()).actions);
            tokio::select! {
                biased;
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
            Ok(()) = inbox.images.changed() => Event::Something,
            Some(opened) = inbox.streams.recv() => Event::Stream(opened),
            () = pause => Event::Time,
        }
    }

    /// Observe, plan, persist, apply, report.
    async fn pass(&mut self) -> Result<(), PassError> {
        let now = self.clock.now();
        self.state.quiet = None;
        let said = self.state.said.take();
        let ground = self.ground();
        let anew = self.understand(&ground, now).await?;
        let (read, next) = (self.state.meant.read.clone(), self.state.meant.effective.clone());
        let observed = self.observed(self.runtime.list().await?);
        let mut plan = reconcile::plan(&next.pods, &observed, &self.shared.history(), &self.place());
        plan.leave_alone(&next.left_alone);
        let unexplained = self.unexplained(&next, &observed, &plan);
        plan.leave_alone(&unexplained);
        self.keep_histories(&read, &plan).await;
        if self.pin_images(&observed.images, std::mem::take(&mut plan.images)) {
            self.executor.carry_out(std::mem::take(&mut plan.actions));
        } else {
            plan.wake_at = Some(now);
        }
        self.probes.keep(&plan.probes);
        self.state.wake_at = plan.wake_at;
        self.note(&plan.notices);
        let same = !anew && plan.history.is_empty() && plan.ended.is_empty() && self.state.renewed.is_empty();
        let now_said = self.saying(&ground, std::mem::take(&mut plan.statuses));
        let same = same && said.as_ref() == Some(&now_said);
        if !same {
            self.show(&read, &now_said);
        }
        self.report(&read, &observed, &now_said, !same).await?;
        self.state.said = Some(now_said);
        for pod in &plan.ended {
            self.executor.forget(pod);
        }
        self.settle_on(ground, observed.sandboxes);
        Ok(())
    }

    /// Overrides the operator reverted, or whose time is over, leave this device's log.
    async fn end_overrides(&mut self, mut read: Read, now: Timestamp) -> Result<Read, PassError> {
        let proven = self.clock.proven();
        let over = |record: &overrides::OverrideRecord| {
            let dropped = planted::is(Bug::OverrideDropped) && *self.inbox.link.borrow() == Link::Up;
            dropped || read.is_reverted(record) || record.expires.is_some_and(|expires| expires <= proven)
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

    fn observed(&self, mut sandboxes: BTreeMap<String, crate::runtime::SandboxStatus>) -> Observed {
        if planted::is(Bug::RestartWhileOffline) && *self.inbox.link.borrow() == Link::Down {
            let containers = sandboxes.values_mut().flat_map(|sandbox| sandbox.containers.values_mut());
            containers.for_each(|container| container.digest.clear());
        }
        Observed {
            sandboxes,
            busy: self.executor.busy().clone(),
            failures: self.executor.failures().clone(),
            probes: self.probes.statuses().clone(),
            images: self.images.current(),
            volumes: self.executor.volumes().statuses(),
            volume_failures: self.executor.volume_failures().clone(),
        }
    }

    fn place(&self) -> Place {
        Place {
            boot_id: self.host.boot_id.clone(),
            host_ip: self.host.ip.clone(),
            node_name: self.node.name.clone(),
            facilities: self.facilities.clone(),
            volumes: self.executor.volumes().root().to_owned(),
            now: self.clock.now(),
        }
    }

    /// Makes what a plan remembers durable, with the ends of pods it forgets, before its actions are taken. A disk that takes nothing
    /// stops no workload: what was not written is kept and written later, and a life of the agent in between finds what runs by
    /// looking at it.
    async fn keep_histories(&mut self, read: &Read, plan: &reconcile::Plan) {
        let unsaved = &mut self.state.unsaved;
        unsaved.histories.extend(plan.history.iter().map(|(pod, history)| (pod.clone(), history.clone())));
        // A placed Pod that was restarted here has lives of its own; to the hub it is one Pod that has not ended.
        let ended = plan.ended.iter().filter(|uid| !read.known.placements.contains_key(*uid));
        unsaved.ended.extend(ended.cloned());
        if !unsaved.is_empty() {
            let rows = unsaved.histories.iter().map(|(pod, history)| {
                // A history that is no JSON is a fault of this program; the pod goes on without.
                let text = history.as_ref().and_then(|history| serde_json::to_string(history).ok());
                (pod.clone(), text)
            });
            let ends = unsaved.ended.iter().map(|uid| (format!("pod/{uid}"), true, None)).collect();
            let mut ends = self.replica.rows_of(ends);
            if planted::is(Bug::EndNotTold) && *self.inbox.link.borrow() == Link::Down {
                ends.clear();
            }
            match self.store.set_histories(rows.collect(), ends.clone()).await {
                Ok(()) => {
                    let unsaved = std::mem::take(&mut self.state.unsaved);
                    for uid in unsaved.ended {
                        self.state.reports.ended(&uid);
                        self.state.confirmed.insert(uid);
                    }
                    self.replica.put(ends);
                }
                Err(error) => {
                    let error = crate::enrolment::chain(&error);
                    tracing::error!(%error, "what happened to pods is not on the disk yet; workloads go on");
                }
            }
        }
        let mut histories = self.shared.history();
        for (pod, history) in &plan.history {
            match history {
                Some(history) => drop(histories.insert(pod.clone(), history.clone())),
                None => drop(histories.remove(pod)),
            }
        }
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
