//! The device's copy of its channels: what sessions write into and read from, and what the agent's loop acts on.
//!
//! Owns the order "durable first, then visible": state in memory is swapped only after the store has it. Refuses meaning: what
//! items say is [`crate::knowledge`]'s. What sessions ask is in `replica/peer.rs`, what they bring in
//! `replica/incoming.rs`, what waits for the hub in `replica/outbox.rs`, the device's own log in `replica/own_log.rs`. Start reading at [`DeviceReplica::take_up`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{ChannelName, ChannelState, Head, Item, ItemId, Positions, WriterId};
use flotilla_sync::identity::writer::{WriterChain, WriterIdentity};
use flotilla_sync::identity::{DeviceCertificate, FlooredClock, NodeName, PublicKey, SigningKey};
use flotilla_sync::log::{Batch, LogWriter, Placement};
use flotilla_sync::observation::Clock as ObservationClock;
use flotilla_sync::replica::ReplicaError;
use flotilla_sync::session::Greeting;
use flotilla_sync::stream::Stream;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::store::salvage::SALVAGED;
use crate::store::{Ingest, ItemRow, Loaded, OutboxRow, Store};

mod beside;
mod evidence;
mod greeting;
mod heard;
mod incoming;
mod outbox;
mod own_log;
mod peer;

pub(crate) use outbox::Fact;

/// Log streams the hub may have waiting for the loop.
const STREAMS_LEN_MAX: usize = 16;

/// A stream the hub opened, with its request.
#[derive(Debug)]
pub struct OpenedStream {
    pub request: Bytes,
    pub stream: Stream,
}

/// Who this device is, as its records say it.
#[derive(Debug, Clone)]
pub struct WriterMaterial {
    pub seed: [u8; 32],
    /// [`WriterChain::encode`]
    pub chain: Vec<u8>,
}

/// Implements [`Replica`](flotilla_sync::replica::Replica) for one device.
#[derive(Debug)]
pub struct DeviceReplica {
    store: Store,
    root: PublicKey,
    own_channel: ChannelName,
    /// The device's long-lived key and its certificate: they certify a new writer after a fork.
    signing: SigningKey,
    certificate: DeviceCertificate,
    incarnation: u64,
    clock: Arc<Clock>,
    trust: Arc<FlooredClock>,
    /// Serialises writers: a new state is computed, made durable and swapped in by one at a time.
    gate: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// For the session: logs or outbox grew.
    grown: watch::Sender<u64>,
    /// For the loop: items changed.
    changed: watch::Sender<u64>,
    streams: mpsc::Sender<OpenedStream>,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<ChannelName, ChannelState>,
    writers: BTreeMap<WriterId, WriterChain>,
    log: LogWriter,
    writer: WriterMaterial,
    takeover: own_log::Takeover,
    own_batches: Vec<Batch>,
    evidence: evidence::Evidence,
    beside: beside::Beside,
    outbox: BTreeMap<String, OutboxRow>,
    /// What the hub said this device reads; `None` until it has.
    subscribed: Option<Positions>,
    greeting: Option<Greeting>,
    greeting_stored: Option<greeting::Stored>,
    /// Rows that could not be read at start. Their channels are read anew from the hub, and then they go.
    damaged: BTreeSet<(ChannelName, String)>,
    /// The database was damaged, and not everything has been read from the hub anew: more may be missing than is known.
    salvaged: bool,
    incarnation: u64,
    /// Of this process at first; the time of the hub's greeting in milliseconds once it was heard.
    boot: u64,
    /// Last counter given to an observation in this boot.
    seq: u64,
    /// See [`DeviceReplica::was_replaced`].
    replaced: u64,
    heard: heard::Heard,
}

/// Stored rows that cannot be what this agent wrote.
#[derive(Debug, thiserror::Error)]
#[error(
    "the device's database holds a damaged {what}: {why}; workloads go on running, the damaged row must be removed"
)]
pub struct DamagedRow {
    what: String,
    why: String,
}

/// This life of the device, read from its identity.
#[derive(Debug, Clone)]
pub struct Life {
    pub node: NodeName,
    pub root: PublicKey,
    pub writer: WriterMaterial,
    pub signing: SigningKey,
    pub certificate: DeviceCertificate,
    pub incarnation: u64,
    pub boot: u64,
}

impl DeviceReplica {
    /// Takes up what the store has. The receiver gets the streams that the hub opens.
    ///
    /// # Errors
    /// When the device's own writer or the name of a channel is damaged. A damaged item or foreign writer is set aside with a
    /// warning: it comes again from the hub.
    pub fn take_up(
        store: Store,
        loaded: &Loaded,
        life: Life,
        clock: Arc<Clock>,
        trust: Arc<FlooredClock>,
    ) -> Result<(Self, mpsc::Receiver<OpenedStream>), DamagedRow> {
        let own_channel = ChannelName::Device(life.node.clone());
        let identity = restore(&life.writer, &life.root)?;
        let (mut channels, damaged) = channels_of(loaded)?;
        channels.entry(own_channel.clone()).or_insert_with(|| ChannelState::new(own_channel.clone()));
        let own = identity.id();
        let salvaged = loaded.meta.contains_key(SALVAGED);
        for channel in channels.values_mut().filter(|one| damaged.iter().any(|(name, _)| *name == one.channel)) {
            // What was read may be lost: it is asked for again, from the beginning.
            channel.heads.retain(|writer, _| *writer == own);
        }
        let writers = loaded.writers.iter().filter_map(|(_, chain)| WriterChain::verify(chain, &life.root).ok());
        let own_batches = loaded.batches.iter().filter(|row| row.writer == own.0);
        let own_batches: Vec<Batch> =
            own_batches.filter_map(|row| Batch::decode(&Bytes::from(row.bytes.clone())).ok()).collect();
        if let Some(channel) = channels.get_mut(&own_channel).filter(|_| salvaged || !damaged.is_empty()) {
            own_log::read_again(channel, &identity, &own_batches, salvaged);
        }
        let heads = channels.iter().filter_map(|(name, state)| Some((name.clone(), *state.heads.get(&own)?))).collect();
        let takeover = own_log::Takeover::of(loaded);
        let greeting = loaded.meta.get("greeting").map(|bytes| Bytes::from(bytes.clone()));
        let greeting = greeting.and_then(|bytes| Greeting::verify(&bytes, &life.root).ok());
        if let Some(greeting) = &greeting {
            clock.raise(Timestamp(greeting.time_ms));
            trust.raise(greeting.time_ms);
        }
        let state = State {
            channels,
            writers: writers.map(|chain| (chain.id, chain)).collect(),
            log: takeover.log(identity, heads, &own_channel),
            takeover,
            writer: life.writer.clone(),
            own_batches,
            evidence: evidence::Evidence::of(&loaded.evidence),
            beside: beside::Beside::of(loaded),
            outbox: loaded.outbox.iter().map(|row| (row.subject.clone(), row.clone())).collect(),
            subscribed: None,
            greeting_stored: greeting.as_ref().map(greeting::Stored::of),
            greeting,
            damaged,
            salvaged,
            incarnation: life.incarnation,
            boot: life.boot,
            seq: 0,
            replaced: 0,
            heard: heard::Heard::default(),
        };
        let (streams, opened) = mpsc::channel(STREAMS_LEN_MAX);
        let replica = Self {
            store,
            root: life.root,
            own_channel,
            signing: life.signing,
            certificate: life.certificate,
            incarnation: life.incarnation,
            clock,
            trust,
            gate: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            grown: watch::Sender::new(0),
            changed: watch::Sender::new(0),
            streams,
        };
        Ok((replica, opened))
    }

    /// Changes whenever items did.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// It changes with whatever [`DeviceReplica::items`] answers from: each change in memory says so before anything else can fail.
    pub fn generation(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Live items in force of every channel this device reads, the device's own channel last. A fleet's channel that is left stays
    /// until the new one is complete.
    pub fn items<T>(&self, mut visit: impl FnMut(&ChannelName, &ItemId, &Item) -> Option<T>) -> Vec<T> {
        let state = self.state();
        let complete = state.is_complete();
        let mut seen = Vec::new();
        for (name, channel) in state.channels.iter().rev() {
            let left = state.subscribed.as_ref().is_some_and(|wanted| !wanted.contains_key(name));
            let new = !complete && !left && state.has_left_channels() && *name != self.own_channel;
            if (left && complete) || new {
                continue;
            }
            let live = channel.items.iter().filter(|(_, item)| item.is_live());
            let in_force = live.filter_map(|(id, item)| Some((id, state.beside.in_force(name, id, item)?)));
            seen.extend(in_force.filter_map(|(id, item)| visit(name, id, item)));
        }
        seen
    }

    /// Who signs for this device now.
    pub(crate) fn identity(&self) -> WriterIdentity {
        self.state().log.identity().clone()
    }

    /// The next place in this boot's order, for a statement about the whole device.
    pub(crate) fn tick(&self) -> ObservationClock {
        let mut state = self.state();
        state.seq += 1;
        ObservationClock { incarnation: state.incarnation, boot: state.boot, seq: state.seq }
    }

    /// Where the logs of this device's channels stood at the hub when it last said so.
    pub(crate) fn subscriptions(&self) -> Positions {
        self.state().subscribed.clone().unwrap_or_default()
    }

    /// The hub's time when it last greeted this device; 0 if it never has.
    pub fn greeted_at_ms(&self) -> u64 {
        self.state().greeting.as_ref().map_or(0, |greeting| greeting.time_ms)
    }

    /// The newest life of the hub that greeted this device: another one may have lost what the ones before were told.
    pub fn hub_life(&self) -> u64 {
        self.state().greeting.as_ref().map_or(0, |greeting| greeting.incarnation)
    }

    /// The hub has heard somebody else under this device's name: what it was told here may not be what it shows.
    pub fn was_replaced(&self) {
        self.state().replaced += 1;
        self.bump(&self.changed);
    }

    /// How often that happened in this life of the agent.
    pub fn replaced(&self) -> u64 {
        self.state().replaced
    }

    /// Uids of documents and placements whose rows were damaged and that did not come again yet, and of documents that wait for
    /// large values and of which nothing older is here.
    pub fn damaged(&self) -> BTreeSet<String> {
        let state = self.state();
        let lacking = state.damaged.iter().filter(|(name, id)| state.live(name, id).is_none());
        let damaged = lacking.map(|(_, id)| id.strip_prefix("placement/").unwrap_or(id).to_owned());
        damaged.chain(state.beside.never_whole(&state.channels)).collect()
    }

    /// How far each log of each channel is durable here.
    pub fn positions(&self) -> Positions {
        let state = self.state();
        let of = |channel: &ChannelState| channel.heads.iter().map(|(writer, head)| (*writer, head.seq)).collect();
        state.channels.iter().map(|(name, channel)| (name.clone(), of(channel))).collect()
    }

    /// Whether the database was damaged and more may be missing than is known.
    pub fn is_salvaged(&self) -> bool {
        self.state().salvaged
    }

    /// Damaged rows by channel and item, for people.
    pub fn damaged_rows(&self) -> Vec<String> {
        self.state().damaged.iter().map(|(channel, id)| format!("item {id} of {channel}")).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the hub knows records under this device's writer that this database has never written.
    fn is_old_copy(&self, positions: &Positions) -> bool {
        let state = self.state();
        let own = state.log.identity().id();
        let read = positions.get(&self.own_channel).and_then(|logs| logs.get(&own)).copied().unwrap_or(0);
        read > state.log.head(&self.own_channel).seq
    }

    fn bump(&self, signal: &watch::Sender<u64>) {
        signal.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Damaged rows that were not replaced go once all was read anew: what they stood for is deleted at the hub.
    async fn forget_damaged(&self) -> Result<(), ReplicaError> {
        let (gone, salvaged): (Vec<ItemRow>, bool) = {
            let state = self.state();
            let damaged = state.salvaged || !state.damaged.is_empty();
            if !damaged || state.subscribed.is_none() || !state.is_complete() {
                return Ok(());
            }
            let lacking = state.damaged.iter().filter(|(name, id)| state.live(name, id).is_none());
            let row = |(name, id): &(ChannelName, String)| ItemRow {
                channel: name.to_string(),
                id: id.clone(),
                bytes: Vec::new(),
            };
            (lacking.map(row).collect(), state.salvaged)
        };
        if salvaged {
            self.state_what_others_wrote().await?;
        }
        let rows = Ingest { items: gone, meta_ended: vec![SALVAGED], ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("forget damaged rows", error))?;
        {
            let mut state = self.state();
            state.damaged.clear();
            state.salvaged = false;
        }
        tracing::info!("what was damaged on this device's disk has been read again from the hub");
        self.bump(&self.changed);
        Ok(())
    }

    /// Channels that were left go once every channel to be read is complete.
    async fn leave(&self) -> Result<(), ReplicaError> {
        let left: Vec<ChannelName> = {
            let state = self.state();
            match &state.subscribed {
                Some(wanted) if state.is_complete() => {
                    state.channels.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect()
                }
                _ => return Ok(()),
            }
        };
        if left.is_empty() {
            return Ok(());
        }
        let rows = Ingest { left: left.iter().map(ToString::to_string).collect(), ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("leave a fleet", error))?;
        {
            let mut state = self.state();
            state.channels.retain(|name, _| !left.contains(name));
            state.evidence.leave(&left);
        }
        self.bump(&self.changed);
        self.settle_beside().await
    }
}

impl State {
    fn channel(&self, name: &ChannelName) -> ChannelState {
        self.channels.get(name).cloned().unwrap_or_else(|| ChannelState::new(name.clone()))
    }

    fn live(&self, channel: &ChannelName, id: &str) -> Option<&Item> {
        let id = ItemId::parse(id).ok()?;
        self.channels.get(channel)?.items.get(&id).filter(|item| item.is_live())
    }

    fn has_left_channels(&self) -> bool {
        self.subscribed.as_ref().is_some_and(|wanted| self.channels.keys().any(|name| !wanted.contains_key(name)))
    }

    /// Whether every channel this device reads has reached what the hub said.
    fn is_complete(&self) -> bool {
        let Some(wanted) = &self.subscribed else { return true };
        let own = self.log.identity().id();
        wanted.iter().all(|(name, logs)| {
            let heads = self.channels.get(name).map(|channel| &channel.heads);
            let others = logs.iter().filter(|(writer, _)| **writer != own);
            others
                .into_iter()
                .all(|(writer, seq)| heads.and_then(|heads| heads.get(writer)).is_some_and(|head| head.seq >= *seq))
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it does not follow what is here: {0:?}")]
struct Misplaced(Placement);

fn failed(tried: &str, source: impl std::error::Error + Send + Sync + 'static) -> ReplicaError {
    ReplicaError { tried: format!("the device cannot {tried}"), source: Box::new(source) }
}

fn restore(writer: &WriterMaterial, root: &PublicKey) -> Result<WriterIdentity, DamagedRow> {
    let damaged = |error: flotilla_sync::identity::IdentityError| DamagedRow {
        what: "writer key".into(),
        why: error.to_string(),
    };
    WriterIdentity::restore(writer.seed, &writer.chain, root).map_err(damaged)
}

/// The channels, and the items that could not be read.
type Channels = (BTreeMap<ChannelName, ChannelState>, BTreeSet<(ChannelName, String)>);

fn channels_of(loaded: &Loaded) -> Result<Channels, DamagedRow> {
    let parse = |text: &str| {
        ChannelName::parse(text)
            .map_err(|error| DamagedRow { what: format!("channel name {text:?}"), why: error.to_string() })
    };
    let mut channels: BTreeMap<ChannelName, ChannelState> = BTreeMap::new();
    for row in &loaded.heads {
        let name = parse(&row.channel)?;
        let channel = channels.entry(name.clone()).or_insert_with(|| ChannelState::new(name));
        let damaged = |_bytes| DamagedRow { what: format!("head of {}", row.channel), why: "wrong length".into() };
        let writer = WriterId(row.writer.clone().try_into().map_err(damaged)?);
        channel.heads.insert(writer, Head { seq: row.seq, hash: row.hash.clone().try_into().map_err(damaged)? });
    }
    let mut unreadable = BTreeSet::new();
    for row in &loaded.items {
        let name = parse(&row.channel)?;
        let channel = channels.entry(name.clone()).or_insert_with(|| ChannelState::new(name.clone()));
        let why = match (ItemId::parse(&row.id), Item::decode(&Bytes::from(row.bytes.clone()))) {
            (Ok(id), Ok(item)) => {
                channel.items.insert(id, item);
                continue;
            }
            (_, Err(error)) => error.to_string(),
            (Err(error), _) => error.to_string(),
        };
        tracing::error!(object = %row.id, reason = %why, "a stored item is damaged; it is asked of the hub again");
        unreadable.insert((name, row.id.clone()));
    }
    Ok((channels, unreadable))
}
