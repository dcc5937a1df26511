//! Learning back: a hub whose database is older than what its devices hold takes their word, as far as it is signed.
//!
//! Owns whether this hub is learning, from whom, and when it is done; while it is, writes are refused, controllers rest and nothing
//! is published, but reads, watches and reports go on. Refuses to trust a device: what is learned are records and lists of this
//! hub's own earlier writers ([`crate::store::learned`]). Start at [`fn@watch`]; what is made of it all is in [`adopt`].

pub(crate) mod adopt;
pub(crate) mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::condition;
use flotilla_manifests::kind;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{ChannelName, Positions, WriterId};
use flotilla_sync::identity::writer::WriterIdentity;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::fleet::door::FleetDoor;
use crate::store::settings::Setting;
use crate::store::{Batch, Index, Store, StoreError};

/// How often the state of learning is looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// A failed adoption is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the operator goes on without large values that late lessons wait for.
const LATE_PERIOD: Duration = Duration::from_secs(10);
/// Devices that are to greet a new life come back after this.
const RECONNECT_MS: u64 = 250;
/// Clients that are refused come back after this.
const RETRY_AFTER_SECONDS: u32 = 1;
/// Writers of which it is remembered whether they are hubs': all of a large fleet's present ones. Of more it is found out anew.
const WRITERS_REMEMBERED_MAX: usize = 65_536;

/// A hub that learns. Kept in the database until it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Learning {
    pub(crate) cause: Cause,
    pub(crate) since_ms: u64,
    /// Devices that were in contact when the database was last written, and those that proved it to be old.
    pub(crate) expected: BTreeSet<String>,
    /// Devices that have given all they hold.
    pub(crate) heard: BTreeSet<String>,
}

/// Why a hub learns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// `flotilla hub restore`, from a backup made at this time.
    Restored { backup_ms: u64 },
    /// This device has seen a later state of the hub than its database holds.
    Outdated { node: String },
}

impl Learning {
    /// Of a database whose state is `index`.
    pub(crate) fn of(cause: Cause, index: &Index, since: Timestamp) -> Self {
        let expected = index.list(&kind::NODE, None).filter(|node| {
            let ready = node.status().and_then(|status| condition::find(status, "Ready"));
            ready.is_none_or(|ready| ready.get("status").and_then(serde_json::Value::as_str) != Some("Unknown"))
        });
        let expected = expected.map(|node| node.name().to_owned()).collect();
        Self { cause, since_ms: since.0, expected, heard: BTreeSet::new() }
    }

    /// Whether every device that is waited for has been heard.
    pub(crate) fn is_complete(&self) -> bool {
        self.expected.is_subset(&self.heard)
    }

    pub(crate) fn unheard(&self) -> Vec<&str> {
        self.expected.difference(&self.heard).map(String::as_str).collect()
    }
}

impl std::fmt::Display for Learning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            Cause::Restored { backup_ms } => {
                write!(formatter, "the hub was restored from a backup of {}", Timestamp(*backup_ms))?;
            }
            Cause::Outdated { node } => {
                write!(formatter, "the hub's database is an old copy: device {node} has seen a later state of it")?;
            }
        }
        let heard = self.expected.intersection(&self.heard).count();
        write!(formatter, "; learning from devices: {heard} of {} heard", self.expected.len())?;
        let unheard = self.unheard();
        if !unheard.is_empty() {
            let some: Vec<&str> = unheard.iter().take(5).copied().collect();
            let more = if unheard.len() > some.len() { ", ..." } else { "" };
            write!(formatter, " (not yet: {}{more})", some.join(", "))?;
        }
        formatter.write_str("; `flotilla hub resume` goes on without the rest")
    }
}

/// What the last learning brought; shown by `flotilla hub check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) at_ms: u64,
    pub(crate) changed: Vec<String>,
    pub(crate) created: Vec<String>,
    pub(crate) deleted: Vec<String>,
    /// Secrets of which a device holds a newer content than the hub, or the hub none.
    pub(crate) secrets: Vec<String>,
    /// What could not be taken in, and why.
    pub(crate) failed: Vec<String>,
    /// Devices that were not waited for.
    pub(crate) unheard: Vec<String>,
}

/// One writer's log of one channel.
pub(crate) type LogKey = (ChannelName, WriterId);

/// What a device said in its hello, or in the introduction of a bundle, and has given since.
#[derive(Debug, Default)]
struct Said {
    /// What it has read of the hub's logs.
    positions: Positions,
    /// Logs of which it has another branch than this hub, and how far that goes.
    apart: BTreeMap<LogKey, u64>,
    /// How far it has given its branches of forked logs: there may be more than two of one log.
    branches: BTreeMap<LogKey, u64>,
}

impl Said {
    /// An acknowledgement never takes back what was said before.
    fn extend(&mut self, positions: &Positions) {
        for (channel, logs) in positions {
            let known = self.positions.entry(channel.clone()).or_default();
            for (writer, seq) in logs {
                let furthest = known.entry(*writer).or_default();
                *furthest = (*furthest).max(*seq);
            }
        }
    }

    /// Whether it holds nothing of a hub's log that `stands_at` does not.
    fn is_given(&self, stands_at: impl Fn(&ChannelName, &WriterId) -> Option<u64>) -> bool {
        let given = |log: &LogKey| self.branches.get(log).copied();
        let mut logs = self.positions.iter().flat_map(|(channel, logs)| logs.iter().map(move |log| (channel, log)));
        let by_number = logs.all(|(channel, (writer, seq))| {
            let here = stands_at(channel, writer).unwrap_or(0);
            here.max(given(&(channel.clone(), *writer)).unwrap_or(0)) >= *seq
        });
        // On another branch the number says nothing of what is here.
        by_number && self.apart.iter().all(|(log, seq)| given(log).is_some_and(|given| given >= *seq))
    }
}

/// The learning of a running hub.
#[derive(Debug)]
pub(crate) struct Lessons {
    state: watch::Sender<Option<Learning>>,
    /// What devices said of themselves since the lesson began, by node.
    said: Mutex<BTreeMap<String, Said>>,
    /// How often any of these changed.
    moved: AtomicU64,
    /// Writers by whether they are hubs'.
    writers: Mutex<BTreeMap<WriterId, bool>>,
}

impl Lessons {
    /// As the database says. What it says and cannot be read counts as learning: the hub waits for the operator.
    pub(crate) fn of(store: &Store) -> Self {
        let stored = store.setting(Setting::Learning).unwrap_or_default();
        let learning = stored.map(|stored| {
            serde_json::from_slice(&stored).unwrap_or_else(|error| {
                tracing::error!(%error, "the stored state of learning is damaged; every device is waited for");
                store.view(|index| Learning::of(Cause::Restored { backup_ms: 0 }, index, store.now()))
            })
        });
        Self {
            state: watch::Sender::new(learning),
            said: Mutex::default(),
            moved: AtomicU64::new(0),
            writers: Mutex::default(),
        }
    }

    /// Whether a device has been heard, while the hub learns and waits for it or hears it.
    pub(crate) fn heard_of(&self, node: &str) -> Option<bool> {
        let state = self.state.borrow();
        let learning = state.as_ref()?;
        let heard = learning.heard.contains(node);
        (heard || learning.expected.contains(node)).then_some(heard)
    }

    /// Whether a writer is a hub's, remembered once it is known.
    pub(crate) fn is_hub_writer(&self, writer: &WriterId, look: impl FnOnce() -> Option<bool>) -> bool {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = writers.get(writer) {
            return *hub;
        }
        let found = look();
        if let Some(hub) = found {
            if writers.len() >= WRITERS_REMEMBERED_MAX {
                writers.clear();
            }
            writers.insert(*writer, hub);
        }
        found.unwrap_or(false)
    }

    /// A writer is a hub's by the root's word, whatever a device said of its key before.
    pub(crate) fn know_hub_writer(&self, writer: WriterId) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).insert(writer, true);
    }

    pub(crate) fn current(&self) -> Option<Learning> {
        self.state.borrow().clone()
    }

    pub(crate) fn is_on(&self) -> bool {
        self.state.borrow().is_some()
    }

    /// A lesson begins. What was said before it says nothing: its devices say hello anew.
    pub(crate) fn begin(&self, learning: Learning) {
        self.said().clear();
        // In this order: who looks in between looks again.
        self.state.send_replace(Some(learning));
        self.moved.fetch_add(1, Ordering::Release);
    }

    /// Goes on from `known`, unless another lesson has begun since; whether it did.
    fn go_on(&self, known: &Learning, then: Option<Learning>) -> bool {
        let moved = self.state.send_if_modified(|state| {
            let stands = state.as_ref() == Some(known);
            if stands {
                *state = then;
            }
            stands
        });
        self.moved.fetch_add(1, Ordering::Release);
        moved
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Learning>> {
        self.state.subscribe()
    }

    /// What writes are answered meanwhile.
    pub(crate) fn refusal(&self) -> Option<ApiError> {
        let why = self.state.borrow().as_ref().map(ToString::to_string)?;
        let mut error = ApiError::of(Reason::ServiceUnavailable, why);
        error.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        Some(error)
    }

    /// A device says hello: where it stands, and which of its logs are on other branches than here. It takes the place of all that it said in
    /// an earlier session.
    pub(crate) fn greeted(&self, node: &str, positions: Positions, apart: BTreeMap<LogKey, u64>) {
        self.said().insert(node.to_owned(), Said { positions, apart, branches: BTreeMap::new() });
        self.moved.fetch_add(1, Ordering::Release);
    }

    /// A bundle was taken in that says this of its device; a session says it better.
    pub(crate) fn introduced(&self, node: &str, positions: &Positions, apart: BTreeMap<LogKey, u64>) {
        let mut said = self.said();
        let known = said.entry(node.to_owned()).or_default();
        known.extend(positions);
        known.apart.extend(apart);
        self.moved.fetch_add(1, Ordering::Release);
    }

    /// A device says how far it has read since its hello. Of one whose hello is not known it says too little: of its other logs nothing.
    pub(crate) fn acknowledged(&self, node: &str, positions: &Positions) {
        self.tell(node, |said| said.extend(positions));
    }

    /// A log is found to be on another branch at a device than here: all that the device says it has of it is to be given.
    pub(crate) fn forked(&self, node: &str, channel: &ChannelName, writer: &WriterId, seq: u64) {
        self.tell(node, |said| {
            let stands_at = said.positions.get(channel).and_then(|logs| logs.get(writer)).copied();
            said.apart.entry((channel.clone(), *writer)).or_insert(stands_at.unwrap_or(seq));
        });
    }

    /// All of a device's branch of a forked log was taken in up to here.
    pub(crate) fn branch_heard(&self, node: &str, channel: &ChannelName, writer: &WriterId, seq: u64) {
        self.tell(node, |said| {
            let heard = said.branches.entry((channel.clone(), *writer)).or_default();
            *heard = seq.max(*heard);
        });
    }

    /// A device's session ended.
    pub(crate) fn left(&self, node: &str) {
        self.said().remove(node);
        self.moved.fetch_add(1, Ordering::Release);
    }

    /// Something more of a device whose hello is known.
    fn tell(&self, node: &str, more: impl FnOnce(&mut Said)) {
        if let Some(said) = self.said().get_mut(node) {
            more(said);
        }
        self.moved.fetch_add(1, Ordering::Release);
    }

    fn said(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Devices that hold nothing of a hub's log that `stands_at` does not.
    fn heard(&self, stands_at: impl Fn(&ChannelName, &WriterId) -> Option<u64>) -> BTreeSet<String> {
        let said = self.said();
        said.iter().filter(|(_, said)| said.is_given(&stands_at)).map(|(node, _)| node.clone()).collect()
    }
}

/// What the database says of learning.
pub(crate) fn stored(batch: &Batch<'_>) -> Result<Option<Learning>, StoreError> {
    let Some(stored) = batch.setting(Setting::Learning)? else { return Ok(None) };
    match serde_json::from_slice(&stored) {
        Ok(learning) => Ok(Some(learning)),
        Err(source) => Err(StoreError::Damaged { what: "the state of learning", source }),
    }
}

fn keep(batch: &mut Batch<'_>, learning: &Learning) -> Result<(), StoreError> {
    let encoded =
        serde_json::to_vec(learning).map_err(|source| StoreError::Damaged { what: "the state of learning", source })?;
    batch.set_setting(Setting::Learning, &encoded)
}

/// Whether the hub still writes as `identity`: a new life, or a successor of a forked log, may have been noted since.
pub(crate) fn is_present(batch: &Batch<'_>, identity: &WriterIdentity) -> Result<bool, StoreError> {
    let stored = batch.setting(Setting::Writer)?;
    Ok(stored.is_some_and(|stored| stored.ends_with(identity.chain().encode())))
}

/// Looks at the learning from time to time while there is any, and ends it; until `shutdown`.
pub(crate) async fn watch(door: Arc<FleetDoor>, mut shutdown: watch::Receiver<bool>) {
    let mut changes = door.lessons.subscribe();
    let mut looked = Looked::default();
    loop {
        let learning = changes.borrow_and_update().is_some();
        let done = if learning { look(&door, &mut looked).await } else { go_on_without_values(&door).await };
        let wait = match done {
            Ok(()) if learning => PERIOD,
            Ok(()) => LATE_PERIOD,
            Err(error) => {
                tracing::error!(%error, "what devices gave back cannot be taken in; it is tried again");
                AGAIN
            }
        };
        tokio::select! {
            biased;
            _ended = shutdown.wait_for(|stop| *stop) => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One look: who has been heard since, and whether that is all.
pub(crate) async fn look(door: &FleetDoor, looked: &mut Looked) -> Result<(), ApiError> {
    if !door.lessons.is_on() {
        return Ok(());
    }
    // Before all else: what is found is worth nothing once a later writer has taken its place.
    let identity = door.identity();
    let ground = (door.lessons.moved.load(Ordering::Acquire), door.store.logs().growth(), identity.id());
    if looked.ground != Some(ground) {
        // Before it is asked who was heard: what comes meanwhile is asked at the next look.
        looked.complete = note_heard(door, &identity).await?;
        looked.ground = Some(ground);
    }
    let resumed = door.store.setting(Setting::Resume)?.is_some();
    if (resumed || (looked.complete && !door.store.logs().lacks_learned_blobs()?))
        && let Some(learning) = door.lessons.current()
    {
        finish(door, learning, identity).await?;
    }
    Ok(())
}

/// What the last look was made from, and found: of a thousand devices most say nothing new from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Changes of what devices claim, growth of the logs, and the hub's writer.
    ground: Option<(u64, u64, WriterId)>,
    complete: bool,
}

/// Notes which devices have given all they hold; whether that is every one that is waited for.
async fn note_heard(door: &FleetDoor, identity: &WriterIdentity) -> Result<bool, ApiError> {
    let own = identity.id();
    let Some(mut learning) = door.lessons.current() else { return Ok(false) };
    let logs = door.store.logs();
    // A hub that learns writes under a fresh writer: what a device has of that one was said here, if only in a list.
    let stands_at = |channel: &ChannelName, writer: &WriterId| match *writer == own {
        true => Some(u64::MAX),
        false => logs.heads(channel).get(writer).map(|head| head.seq),
    };
    let heard = door.lessons.heard(stands_at);
    let before = learning.clone();
    learning.heard.extend(heard);
    if learning == before {
        return Ok(learning.is_complete());
    }
    let (known, identity) = (learning.clone(), identity.clone());
    let noted = door.store.write(move |batch| {
        let present = is_present(batch, &identity)?;
        if present {
            keep(batch, &known)?;
        }
        Ok(present)
    });
    if !noted.await? || !door.lessons.go_on(&before, Some(learning.clone())) {
        return Ok(false);
    }
    tracing::info!(state = %learning, "a device was heard");
    Ok(learning.is_complete())
}

/// Takes in what was learned and goes on as the hub.
async fn finish(door: &FleetDoor, learning: Learning, identity: WriterIdentity) -> Result<(), ApiError> {
    let unheard: Vec<String> = learning.unheard().into_iter().map(str::to_owned).collect();
    let report = door.store.write(move |batch| {
        if !is_present(batch, &identity)? {
            return Ok(None);
        }
        batch.set_author("hub:restore");
        let mut report = adopt::adopt(batch)?;
        report.unheard = unheard;
        adopt::tell(batch, &report)?;
        batch.remove_setting(Setting::Learning)?;
        batch.remove_setting(Setting::Resume)?;
        batch.start_publishing(identity)?;
        crate::fleet::replay_deferred(batch)?;
        Ok(Some(report))
    });
    let Some(report) = report.await? else { return Ok(()) };
    tracing::info!(
        changed = report.changed.len(),
        created = report.created.len(),
        deleted = report.deleted.len(),
        secrets = report.secrets.len(),
        failed = report.failed.len(),
        unheard = report.unheard.len(),
        "the hub has learned what its devices held and goes on"
    );
    door.lessons.go_on(&learning, None);
    // What sessions were told to ask for later they ask for now, also in channels in which nothing has grown.
    door.store.logs().bells().ring_fleet();
    Ok(())
}

/// Takes in what a device gave back after the hub went on without it, once all large values it names are here.
pub(crate) fn take_late(batch: &mut Batch<'_>) -> Result<(), ApiError> {
    if stored(batch)?.is_some() || !batch.has_learned()? {
        return Ok(());
    }
    if batch.lacks_learned_blobs()? {
        tracing::warn!(
            "what a device gave back late waits for large values that it names, and devices new to its channels wait for that; \
             `flotilla hub resume` goes on without the values"
        );
        return Ok(());
    }
    take_in_late(batch)
}

/// The operator goes on without large values of late lessons: no device may have them any more.
pub(crate) async fn go_on_without_values(door: &FleetDoor) -> Result<(), ApiError> {
    if door.store.setting(Setting::Resume)?.is_none() {
        return Ok(());
    }
    let gone_on = door.store.write(|batch| {
        // A lesson that has begun meanwhile is another matter.
        if stored(batch)?.is_some() {
            return Ok(());
        }
        batch.remove_setting(Setting::Resume)?;
        if batch.has_learned()? { take_in_late(batch) } else { Ok(()) }
    });
    gone_on.await
}

fn take_in_late(batch: &mut Batch<'_>) -> Result<(), ApiError> {
    let report = adopt::adopt(batch)?;
    tracing::info!(
        changed = report.changed.len(),
        created = report.created.len(),
        deleted = report.deleted.len(),
        failed = report.failed.len(),
        "a device that was not waited for has given back what it held"
    );
    adopt::tell(batch, &report)?;
    batch.publish_everything()?;
    Ok(())
}

/// At a start: makes objects again whose rows were damaged, from what their channels hold.
pub(crate) fn take_missing(batch: &mut Batch<'_>) -> Result<(), ApiError> {
    if batch.learn_missing()? == 0 {
        return Ok(());
    }
    let report = adopt::adopt(batch)?;
    tracing::error!(
        created = report.created.len(),
        "objects whose rows were damaged were made again from their channels"
    );
    Ok(())
}

/// A running hub learns that its database is an old copy: a new life under a new writer, and a lesson.
pub(crate) async fn begin(door: &FleetDoor, node: &str, above: u64) -> Result<(), ApiError> {
    let node = node.to_owned();
    let installation = Arc::clone(&door.installation);
    let begun = door.store.write(move |batch| {
        let mut learning = match stored(batch)? {
            Some(learning) => learning,
            None => Learning::of(Cause::Outdated { node: node.clone() }, batch.index(), batch.now()),
        };
        // Whoever proves it has something to give, though it was away when the database was last written, or has been heard before.
        learning.heard.remove(&node);
        learning.expected.insert(node);
        keep(batch, &learning)?;
        batch.remove_setting(Setting::Resume)?;
        let incarnation = batch.begin_life(above)?;
        let (writer, stored) = crate::installation::fresh_writer(&installation, incarnation)
            .map_err(|error| ApiError::of(Reason::InternalError, error.to_string()))?;
        batch.set_setting(Setting::Writer, &stored)?;
        batch.announce_writer(&writer)?;
        Ok((learning, writer))
    });
    let (learning, writer) = begun.await?;
    tracing::error!(state = %learning, incarnation = door.store.incarnation(), "the hub pauses until its devices have taught it");
    door.begin_life(writer, learning);
    // Greeted by the new life, devices tell it everything they told the ones before.
    let sessions = door.sessions_open();
    tokio::spawn(async move {
        for session in sessions {
            session.close("the hub begins a new life", Some(RECONNECT_MS)).await;
        }
    });
    Ok(())
}
