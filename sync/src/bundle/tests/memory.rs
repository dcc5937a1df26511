//! A hub and a device with stores in memory, which only ever exchange bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::watch;

use super::super::{BundleError, Direction, Export, Incoming, Receiver, Report, Seal, Side, export};
use crate::blob::{BlobRef, BlobStored, BlobWant};
use crate::channel::{
    ChannelName, ChannelState, Hash, Heads, ItemId, ItemKind, Positions, WriterId, positions_of, sha256,
};
use crate::identity::writer::{WriterChain, WriterIdentity};
use crate::identity::{DeviceKeys, Installation, InstallationId, NodeName};
use crate::log::{Batch, LogWriter, Placement, VerifiedBatch};
use crate::observation::{Clock, Observation, Urgency};
use crate::record::Draft;
use crate::replica::{Ingested, Input, Reading, Replica, ReplicaError};
use crate::session::{Greeting, PeerHello};
use crate::stream::Stream;
use crate::transport::PeerIdentity;

pub(super) const NODE: &str = "n1";

pub(super) fn fleet() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

pub(super) fn own() -> ChannelName {
    ChannelName::Device(node())
}

pub(super) fn node() -> NodeName {
    NodeName::parse(NODE).unwrap()
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) channels: BTreeMap<ChannelName, ChannelState>,
    pub(super) logs: BTreeMap<(ChannelName, WriterId), Vec<Batch>>,
    /// Behind these only lists are given.
    pub(super) floors: BTreeMap<(ChannelName, WriterId), u64>,
    pub(super) chains: BTreeMap<WriterId, WriterChain>,
    pub(super) outbox: BTreeMap<String, Observation>,
    pub(super) observed: BTreeMap<String, Observation>,
    pub(super) greeting: Option<Greeting>,
    pub(super) subscribed: Positions,
    pub(super) acknowledged: Positions,
    pub(super) forks: usize,
    pub(super) blobs: BTreeMap<Hash, Vec<u8>>,
    pub(super) wanted: BTreeMap<Hash, BlobRef>,
    pub(super) pieces: BTreeMap<Hash, Vec<u8>>,
    pub(super) newest: Option<Clock>,
}

/// One side's store.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) is_hub: bool,
    pub(super) log: Mutex<LogWriter>,
    pub(super) state: Mutex<State>,
    pub(super) side: Side,
    pub(super) ticks: Mutex<u64>,
}

/// An installation with one device.
pub(super) struct World {
    pub(super) installation: Installation,
    pub(super) keys: DeviceKeys,
    pub(super) hub: Memory,
    pub(super) device: Memory,
}

impl World {
    pub(super) fn new() -> Self {
        let installation = Installation::create(1_700_000_000_000).unwrap();
        let keys = DeviceKeys::generate().unwrap();
        let sealing = keys.sealing.public().unwrap();
        let certificate = installation.certify_device(&node(), "uid", keys.signing.public(), sealing, 1).unwrap();
        let root = installation.root().public();
        let hub = WriterIdentity::for_hub([2; 32], 1, installation.root()).unwrap();
        let device = WriterIdentity::for_device([3; 32], 1, &keys.signing, &certificate).unwrap();
        let hub_side = Side { root, receiver: Receiver::Hub, key: installation.sealing() };
        let device_side = Side { root, receiver: Receiver::Device(node()), key: keys.sealing.clone() };
        let hub = Memory::over(true, hub, hub_side, &[fleet(), own()]);
        let device = Memory::over(false, device, device_side, &[own()]);
        Self { installation, keys, hub, device }
    }

    pub(super) fn seal_to(&self, side: &Side, time_ms: u64) -> Seal {
        Seal {
            installation: InstallationId::of(&side.root),
            receiver: side.receiver.clone(),
            key: side.key.public().unwrap(),
            time_ms,
        }
    }

    /// A bundle for the device: from what the hub knows of it, or everything.
    pub(super) fn down(&self, full: bool) -> Vec<u8> {
        let state = self.hub.state();
        let positions = if full { Positions::new() } else { state.acknowledged.clone() };
        let acknowledged = state.observed.iter().map(|(subject, one)| (subject.clone(), one.clock)).collect();
        let blobs = state.blobs.iter().map(|(hash, content)| BlobRef { hash: *hash, len: content.len() as u64 });
        let blobs = blobs.collect();
        drop(state);
        let clock = self.hub.tick();
        let signer = self.hub.identity();
        let export = Export {
            signer: &signer,
            seal: self.seal_to(&self.device.side, clock.seq),
            direction: Direction::Down,
            clock,
            positions,
            own_log_only: false,
            hub_sealing: Some(self.installation.sealing().public().unwrap()),
            enrolled: None,
            acknowledged,
            blobs,
        };
        written(&self.hub, &PeerIdentity::Device { node: node() }, export)
    }

    pub(super) fn up(&self) -> Vec<u8> {
        let clock = self.device.tick();
        let signer = self.device.identity();
        let export = Export {
            signer: &signer,
            seal: self.seal_to(&self.hub.side, clock.seq),
            direction: Direction::Up,
            clock,
            positions: self.device.state().subscribed.clone(),
            own_log_only: true,
            hub_sealing: None,
            enrolled: None,
            acknowledged: Vec::new(),
            blobs: Vec::new(),
        };
        written(&self.device, &PeerIdentity::Hub, export)
    }

    pub(super) fn take_down(&self, bytes: &[u8]) -> Result<Report, BundleError> {
        taken(&self.device, &PeerIdentity::Hub, bytes)
    }

    pub(super) fn take_up(&self, bytes: &[u8]) -> Result<Report, BundleError> {
        taken(&self.hub, &PeerIdentity::Device { node: node() }, bytes)
    }

    /// Clean sticks both ways, until both sides know all.
    pub(super) fn settle(&self) {
        for _ in 0..2 {
            self.take_down(&self.down(false)).unwrap();
            self.take_up(&self.up()).unwrap();
        }
        self.take_down(&self.down(false)).unwrap();
    }
}

pub(super) fn blocking<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(super) fn written(store: &Memory, peer: &PeerIdentity, wish: Export<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let report = blocking(export(store, peer, wish, &mut bytes)).unwrap();
    assert_eq!(report.bytes, bytes.len() as u64);
    bytes
}

pub(super) fn taken(store: &Memory, peer: &PeerIdentity, bytes: &[u8]) -> Result<Report, BundleError> {
    blocking(async {
        let Incoming::Bundle(intake) = Incoming::open(bytes, &store.side).await? else { panic!("a request to join") };
        let clock = intake.maker().introduction.clock;
        let newest = store.state().newest.is_none_or(|newest| newest <= clock);
        let report = intake.take(store, peer, newest).await?;
        if newest {
            store.state().newest = Some(clock);
        }
        Ok(report)
    })
}

impl Memory {
    fn over(is_hub: bool, identity: WriterIdentity, side: Side, channels: &[ChannelName]) -> Self {
        let state = State {
            channels: channels.iter().map(|name| (name.clone(), ChannelState::new(name.clone()))).collect(),
            chains: BTreeMap::from([(identity.id(), identity.chain().clone())]),
            ..State::default()
        };
        let log = Mutex::new(LogWriter::new(identity, BTreeMap::new()));
        Self { is_hub, log, state: Mutex::new(state), side, ticks: Mutex::new(0) }
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn identity(&self) -> WriterIdentity {
        self.log.lock().unwrap().identity().clone()
    }

    pub(super) fn tick(&self) -> Clock {
        let mut ticks = self.ticks.lock().unwrap();
        *ticks += 1;
        Clock { incarnation: 1, boot: 1, seq: *ticks }
    }

    pub(super) fn append(&self, channel: &ChannelName, drafts: Vec<Draft>) {
        let batch = self.log.lock().unwrap().append(channel, drafts).unwrap();
        take(&mut self.state(), &batch).unwrap();
    }

    pub(super) fn set(&self, channel: &ChannelName, id: &str, value: &[u8]) {
        self.append(channel, vec![Draft::register(ItemId::parse(id).unwrap(), value.to_vec(), "", 0)]);
    }

    pub(super) fn remove(&self, channel: &ChannelName, id: &str) {
        self.append(channel, vec![Draft::remove(ItemId::parse(id).unwrap(), "", 0)]);
    }

    pub(super) fn see(&self, subject: &str, value: u8) {
        let clock = self.tick();
        let body = Some(Bytes::from(vec![value]));
        let observation = Observation { subject: subject.to_owned(), clock, time_ms: clock.seq, body };
        self.state().outbox.insert(subject.to_owned(), observation);
    }

    pub(super) fn shown(&self, channel: &ChannelName) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let Some(channel) = state.channels.get(channel) else { return BTreeMap::new() };
        let value = |(id, item): (&ItemId, &crate::channel::Item)| match &item.kind {
            ItemKind::Register(register) => Some((id.as_str().to_owned(), register.value.to_vec())),
            _ => None,
        };
        channel.items.iter().filter_map(value).collect()
    }

    /// From now on those behind get a list.
    pub(super) fn truncate(&self) {
        let own = self.identity().id();
        let mut state = self.state();
        let State { logs, floors, .. } = &mut *state;
        for (key, log) in logs.iter_mut().filter(|((_, writer), _)| *writer == own) {
            if let Some(last) = log.last() {
                floors.insert(key.clone(), last.last_seq);
                log.clear();
            }
        }
    }
}

fn take(state: &mut State, batch: &VerifiedBatch) -> Result<Vec<String>, Placement> {
    let name = batch.batch().channel.clone();
    let channel = state.channels.entry(name.clone()).or_insert_with(|| ChannelState::new(name.clone()));
    let folded = channel.apply_batch(batch)?;
    state.logs.entry((name, batch.batch().writer)).or_default().push(batch.batch().clone());
    Ok(folded.set_aside.iter().map(ToString::to_string).collect())
}

fn failed(why: String) -> ReplicaError {
    ReplicaError { tried: "test".to_owned(), source: why.into() }
}

impl Replica for Memory {
    fn established(&self, _peer: &PeerIdentity, _hello: &PeerHello) {}

    async fn heads(&self, _peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        Ok(self.state().channels.iter().map(|(name, channel)| (name.clone(), channel.heads.clone())).collect())
    }

    async fn read(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        _: usize,
    ) -> Result<Reading, ReplicaError> {
        let state = self.state();
        let key = (channel.clone(), *writer);
        if state.floors.get(&key).is_some_and(|floor| after < *floor) {
            let snapshot = state.channels[channel].snapshot(&self.identity(), BTreeMap::new());
            return Ok(Reading::Snapshot(snapshot.map_err(|error| failed(error.to_string()))?));
        }
        let Some(log) = state.logs.get(&key) else { return Ok(Reading::NotKept) };
        Ok(Reading::Batches(log.iter().filter(|batch| batch.first_seq > after).take(3).cloned().collect()))
    }

    async fn writer(&self, writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        Ok(self.state().chains.get(writer).cloned())
    }

    async fn ingest(&self, _peer: &PeerIdentity, inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        let mut state = self.state();
        let mut ingested = Ingested::default();
        for input in inputs {
            match input {
                Input::Writer(chain) => drop(state.chains.insert(chain.id, chain)),
                Input::Batch(batch) => {
                    let set_aside = take(&mut state, &batch).map_err(|placement| failed(format!("{placement:?}")))?;
                    ingested.set_aside.extend(set_aside);
                }
                Input::Branch(batch) => {
                    let channel = &batch.batch().channel;
                    drop(state.channels.get_mut(channel).unwrap().apply_branch(&batch));
                }
                Input::Snapshot(snapshot) => {
                    let name = snapshot.snapshot().list.channel.clone();
                    let channel = state.channels.entry(name.clone()).or_insert_with(|| ChannelState::new(name));
                    drop(channel.apply_snapshot(&snapshot));
                }
            }
        }
        Ok(ingested)
    }

    async fn subscribed(&self, _peer: &PeerIdentity, channels: Positions) -> Result<(), ReplicaError> {
        let mut state = self.state();
        for name in channels.keys() {
            state.channels.entry(name.clone()).or_insert_with(|| ChannelState::new(name.clone()));
        }
        state.subscribed = channels;
        Ok(())
    }

    async fn acknowledged(&self, _peer: &PeerIdentity, positions: Positions) -> Result<(), ReplicaError> {
        self.state().acknowledged = positions;
        Ok(())
    }

    async fn greeted(&self, _peer: &PeerIdentity, greeting: Greeting) -> Result<(), ReplicaError> {
        if !self.is_hub {
            self.state().greeting = Some(greeting);
        }
        Ok(())
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        if !self.is_hub {
            return Ok(self.state().greeting.clone());
        }
        let at = *self.ticks.lock().unwrap();
        Ok(Some(Greeting::sign(&self.identity(), at, at)))
    }

    async fn forked(&self, _: &PeerIdentity, _: &ChannelName, _: &WriterId, _: u64) -> Result<(), ReplicaError> {
        self.state().forks += 1;
        Ok(())
    }

    async fn observe(&self, _peer: &PeerIdentity, observations: Vec<Observation>) -> Result<(), ReplicaError> {
        let observed = &mut self.state().observed;
        for observation in observations {
            if observed.get(&observation.subject).is_none_or(|known| known.clock < observation.clock) {
                observed.insert(observation.subject.clone(), observation);
            }
        }
        Ok(())
    }

    async fn outbox(&self, _urgency: Urgency, limit: usize) -> Result<Vec<Observation>, ReplicaError> {
        Ok(self.state().outbox.values().take(limit).cloned().collect())
    }

    async fn outbox_acknowledged(&self, entries: Vec<(String, Clock)>) -> Result<(), ReplicaError> {
        let entries: BTreeSet<(String, Clock)> = entries.into_iter().collect();
        self.state().outbox.retain(|subject, waiting| !entries.contains(&(subject.clone(), waiting.clock)));
        Ok(())
    }

    fn grown(&self, _peer: &PeerIdentity) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn open_stream(&self, _peer: &PeerIdentity, _request: Bytes, _stream: Stream) {}

    async fn read_blob(
        &self,
        _: &PeerIdentity,
        hash: &Hash,
        at: u64,
        len: usize,
    ) -> Result<Option<Bytes>, ReplicaError> {
        let at = usize::try_from(at).unwrap();
        let state = self.state();
        let content = state.blobs.get(hash);
        Ok(content.map(|content| Bytes::copy_from_slice(&content[at..content.len().min(at + len)])))
    }

    async fn missing_blobs(&self, _peer: &PeerIdentity, limit: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        let state = self.state();
        let lacks = state.wanted.values().filter(|name| !state.blobs.contains_key(&name.hash));
        let offset = |name: &BlobRef| state.pieces.get(&name.hash).map_or(0, |piece| piece.len() as u64);
        Ok(lacks.take(limit).map(|name| BlobWant { name: *name, offset: offset(name) }).collect())
    }

    async fn named_blobs(&self, _peer: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn store_blob(
        &self,
        _: &PeerIdentity,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<BlobStored, ReplicaError> {
        let mut state = self.state();
        let piece = state.pieces.entry(name.hash).or_default();
        if piece.len() as u64 != offset {
            return Ok(BlobStored::Unwanted);
        }
        piece.extend_from_slice(&bytes);
        if (piece.len() as u64) < name.len {
            return Ok(BlobStored::Partly);
        }
        let whole = state.pieces.remove(&name.hash).unwrap();
        if sha256(&[&whole]) != name.hash {
            return Ok(BlobStored::Damaged);
        }
        state.blobs.insert(name.hash, whole);
        Ok(BlobStored::Whole)
    }
}

/// Where a store's logs stand.
pub(super) fn positions(store: &Memory) -> Positions {
    positions_of(&blocking(store.heads(&PeerIdentity::Hub)).unwrap())
}
