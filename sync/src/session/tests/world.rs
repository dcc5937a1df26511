//! A hub and devices with stores in memory, and sessions between them on virtual time that may be cut at any step.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::*;
use crate::blob::{BlobRef, BlobStored, BlobWant};
use crate::channel::{ChannelState, Folded, Hash, Head, Item, ItemId, ItemKind};
use crate::document::{Document, Edit, Rollouts};
use crate::identity::writer::{WriterChain, WriterIdentity};
use crate::identity::{DeviceKeys, Installation};
use crate::log::{Batch, LogWriter};
use crate::record::Draft;
use crate::replica::{Input, Reading};

pub(super) fn shape(_path: &[&str]) -> Option<&'static [&'static str]> {
    None
}

pub(super) fn fleet() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

pub(super) fn own_channel(node: &str) -> ChannelName {
    ChannelName::parse(&format!("device/{node}")).unwrap()
}

pub(super) fn item(name: u8) -> ItemId {
    ItemId::parse(&format!("0f8fad5b-d9cb-469f-a165-7086772895{name:02x}")).unwrap()
}

/// A store in memory: folded channels and the logs they were folded from.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) node: Option<String>,
    pub(super) writer: std::sync::Arc<std::sync::Mutex<LogWriter>>,
    pub(super) seeds: u8,
    pub(super) incarnation: u64,
    pub(super) channels: BTreeMap<ChannelName, ChannelState>,
    pub(super) logs: BTreeMap<(ChannelName, WriterId), Vec<Batch>>,
    pub(super) floors: BTreeMap<(ChannelName, WriterId), u64>,
    pub(super) chains: BTreeMap<WriterId, WriterChain>,
    pub(super) outbox: BTreeMap<String, Observation>,
    pub(super) observed: BTreeMap<String, Observation>,
    pub(super) forks: usize,
    pub(super) blobs: BTreeMap<Hash, Bytes>,
    pub(super) pieces: BTreeMap<Hash, Vec<u8>>,
    /// Hub: it answers a branch with its list.
    pub(super) settles: bool,
}

pub(super) struct World {
    pub(super) installation: Installation,
    pub(super) keys: BTreeMap<String, DeviceKeys>,
    pub(super) next_seed: u8,
}

impl World {
    pub(super) fn new(nodes: &[&str]) -> Self {
        let keys = nodes.iter().map(|node| ((*node).to_owned(), DeviceKeys::generate().unwrap())).collect();
        Self { installation: Installation::create(1_700_000_000_000).unwrap(), keys, next_seed: 1 }
    }

    pub(super) fn identity(&mut self, node: Option<&str>, incarnation: u64) -> WriterIdentity {
        self.next_seed += 1;
        let seed = [self.next_seed; 32];
        let Some(node) = node else {
            return WriterIdentity::for_hub(seed, incarnation, self.installation.root()).unwrap();
        };
        let keys = &self.keys[node];
        let name = NodeName::parse(node).unwrap();
        let sealing = keys.sealing.public().unwrap();
        let certificate = self.installation.certify_device(&name, "uid", keys.signing.public(), sealing, 1).unwrap();
        WriterIdentity::for_device(seed, incarnation, &keys.signing, &certificate).unwrap()
    }

    pub(super) fn store(&mut self, node: Option<&str>, channels: &[ChannelName]) -> Store {
        let identity = self.identity(node, 1);
        let chains = BTreeMap::from([(identity.id(), identity.chain().clone())]);
        Store {
            node: node.map(str::to_owned),
            writer: std::sync::Arc::new(std::sync::Mutex::new(LogWriter::new(identity, BTreeMap::new()))),
            seeds: 0,
            incarnation: 1,
            channels: channels.iter().map(|name| (name.clone(), ChannelState::new(name.clone()))).collect(),
            logs: BTreeMap::new(),
            floors: BTreeMap::new(),
            chains,
            outbox: BTreeMap::new(),
            observed: BTreeMap::new(),
            forks: 0,
            blobs: BTreeMap::new(),
            pieces: BTreeMap::new(),
            settles: false,
        }
    }

    /// What a store does whose log was forked: a new writer states its live items again.
    pub(super) fn rewrite(&mut self, store: &mut Store) {
        let old = store.writer.lock().unwrap().identity().id();
        let identity = self.identity(store.node.clone().as_deref(), store.incarnation);
        store.chains.insert(identity.id(), identity.chain().clone());
        store.writer = std::sync::Arc::new(std::sync::Mutex::new(LogWriter::new(identity, BTreeMap::new())));
        store.forks += 1;
        let names: Vec<ChannelName> = store.channels.keys().cloned().collect();
        for name in names {
            let state = &store.channels[&name];
            let newest = state.heads.values().map(|head| head.seq).max().unwrap_or(0);
            let touched =
                |(id, item): (&ItemId, &Item)| item.touched.contains_key(&old).then(|| (id.clone(), item.clone()));
            let again = state.items.iter().filter_map(touched).filter_map(|(id, item)| match item.kind {
                ItemKind::Document(doc) => Some(Draft::snapshot(id, doc.epoch, doc.saved, "", 0)),
                ItemKind::Register(register) => Some(Draft::register(id, register.value, "", 0)),
                ItemKind::Removed(_) => Some(Draft::remove(id, "", 0)),
                ItemKind::Absent => None,
            });
            let drafts: Vec<Draft> = again.collect();
            store.writer.lock().unwrap().start_at(&name, newest);
            if !drafts.is_empty() {
                store.append(&name, drafts);
            }
        }
    }
}

impl Store {
    pub(super) fn append(&mut self, channel: &ChannelName, drafts: Vec<Draft>) {
        let batch = self.writer.lock().unwrap().append(channel, drafts).unwrap();
        self.take(&batch);
    }

    pub(super) fn take(&mut self, batch: &crate::log::VerifiedBatch) -> Folded {
        let channel = batch.batch().channel.clone();
        let state = self.channels.entry(channel.clone()).or_insert_with(|| ChannelState::new(channel.clone()));
        let folded = state.apply_batch(batch).unwrap();
        let log = self.logs.entry((channel, batch.batch().writer)).or_default();
        let mut batch = batch.batch().clone();
        if let Some(last) = log.last().filter(|_| self.node.is_none()) {
            batch.follows(last);
        }
        log.push(batch);
        folded
    }

    pub(super) fn heads(&self, only: Option<&[ChannelName]>) -> Heads {
        let wanted = |name: &ChannelName| only.is_none_or(|only| only.contains(name));
        self.channels
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, state)| (name.clone(), state.heads.clone()))
            .collect()
    }

    pub(super) fn read(&self, channel: &ChannelName, writer: &WriterId, after: u64) -> Reading {
        let key = (channel.clone(), *writer);
        if self.floors.get(&key).is_some_and(|floor| after < *floor) {
            return Reading::Snapshot(self.list(channel));
        }
        let log = self.logs.get(&key).cloned().unwrap_or_default();
        let batches: Vec<Batch> = log.into_iter().filter(|batch| batch.first_seq > after).take(3).collect();
        // Behind a snapshot taken meanwhile a log has a hole: what follows it is evidence for a fork, a gap for the others.
        if batches.is_empty() { Reading::NotKept } else { Reading::Batches(batches) }
    }

    /// What the present writer says of a channel, and of the logs of the writers before it.
    pub(super) fn list(&self, channel: &ChannelName) -> crate::list::ChannelSnapshot {
        let identity = self.writer.lock().unwrap().identity().clone();
        let covers: BTreeMap<WriterId, Head> = self.channels[channel]
            .heads
            .iter()
            .filter(|(writer, _)| self.chains[*writer].subject == identity.chain().subject)
            .map(|(writer, head)| (*writer, *head))
            .collect();
        self.channels[channel].snapshot(&identity, covers).unwrap()
    }

    pub(super) fn truncate(&mut self) {
        let own = self.writer.lock().unwrap().identity().id();
        for ((channel, writer), log) in &mut self.logs {
            if *writer == own
                && let Some(last) = log.last()
            {
                self.floors.insert((channel.clone(), *writer), last.last_seq);
                log.clear();
            }
        }
    }

    pub(super) fn edit(&mut self, name: u8, field: u8, value: i64) {
        self.set(name, field, json!(value));
    }

    pub(super) fn set(&mut self, name: u8, field: u8, value: Value) {
        let id = item(name);
        self.seeds = self.seeds.wrapping_add(1);
        let mut actor = [self.seeds; 8];
        actor[..8].copy_from_slice(&self.writer.lock().unwrap().identity().id().0[..8]);
        actor[0] = self.seeds;
        let none = Rollouts::new();
        let field = format!("f{field}");
        match self.channels[&fleet()].items.get(&id).map(|item| item.kind.clone()) {
            Some(ItemKind::Document(document)) => {
                let mut loaded = Document::load(&document.saved).unwrap().with_actor(actor);
                let mut object = loaded.object(&|hash| self.blobs.get(hash).cloned()).unwrap();
                object[&field] = value;
                let edit = Edit { object: &object, rollouts: &none, author: "a", time_ms: 0 };
                let change = loaded.edit(edit, &shape).unwrap();
                self.blobs.extend(loaded.take_large().into_iter().map(|blob| (blob.name.hash, blob.content)));
                if let Some(change) = change {
                    self.append(&fleet(), vec![Draft::change(id, document.epoch, change, "", 0)]);
                }
            }
            Some(ItemKind::Removed(_)) => {}
            _ => {
                let object = json!({ field: value });
                let edit = Edit { object: &object, rollouts: &none, author: "a", time_ms: 0 };
                let mut document = Document::create(edit, 1, &shape, actor).unwrap();
                self.blobs.extend(document.take_large().into_iter().map(|blob| (blob.name.hash, blob.content)));
                self.append(&fleet(), vec![Draft::snapshot(id, 1, document.save(), "", 0)]);
            }
        }
    }

    fn answer_blobs(&mut self, event: Event) -> Option<Local> {
        match event {
            Event::NeedMissingBlobs { limit } => {
                Some(Local::MissingBlobs(self.missing().into_iter().take(limit).collect()))
            }
            Event::StoreBlob { name, offset, bytes } => {
                let stored = self.store_piece(&name, offset, &bytes);
                Some(Local::BlobStored { name, stored })
            }
            Event::ReadBlob { hash, offset, len } => {
                let start = usize::try_from(offset).unwrap();
                let content = self.blobs.get(&hash);
                let bytes = content.map(|content| content.slice(start..content.len().min(start + len)));
                Some(Local::BlobRead { hash, offset, bytes })
            }
            _ => None,
        }
    }

    fn missing(&self) -> Vec<BlobWant> {
        let names = self.channels.values().flat_map(|channel| channel.items.values()).filter_map(|item| {
            if let ItemKind::Document(document) = &item.kind { Some(document.blobs.clone()) } else { None }
        });
        let names: BTreeSet<BlobRef> = names.flatten().filter(|name| !self.blobs.contains_key(&name.hash)).collect();
        let offset = |name: &BlobRef| self.pieces.get(&name.hash).map_or(0, |bytes| bytes.len() as u64);
        names.iter().map(|name| BlobWant { name: *name, offset: offset(name) }).collect()
    }

    fn store_piece(&mut self, name: &BlobRef, offset: u64, bytes: &Bytes) -> BlobStored {
        let piece = self.pieces.entry(name.hash).or_default();
        assert_eq!(piece.len() as u64, offset);
        piece.extend_from_slice(bytes);
        if (piece.len() as u64) < name.len {
            return BlobStored::Partly;
        }
        let whole = self.pieces.remove(&name.hash).unwrap();
        if !name.is_of(&whole) {
            return BlobStored::Damaged;
        }
        self.blobs.insert(name.hash, whole.into());
        BlobStored::Whole
    }

    fn shown(&self, document: &crate::channel::DocumentItem) -> Value {
        Document::load(&document.saved).unwrap().object(&|hash| self.blobs.get(hash).cloned()).unwrap_or(Value::Null)
    }

    /// What people see of a channel; nothing of a document whose large values are not here.
    pub(super) fn seen(&self, channel: &ChannelName) -> BTreeMap<ItemId, Value> {
        let Some(state) = self.channels.get(channel) else { return BTreeMap::new() };
        let show = |(id, item): (&ItemId, &Item)| match &item.kind {
            ItemKind::Document(document) => Some((id.clone(), self.shown(document))),
            ItemKind::Register(register) => Some((id.clone(), json!(register.value.to_vec()))),
            _ => None,
        };
        state.items.iter().filter_map(show).collect()
    }

    /// Answers what a session asks for.
    pub(super) fn answer(&mut self, session: &mut Session, now: u64, forked: &mut bool) {
        let mut ingested = false;
        while let Some(event) = session.poll_event() {
            let answer = match event {
                Event::Ingest(Input::Writer(chain)) => {
                    self.chains.insert(chain.id, chain);
                    None
                }
                Event::Ingest(Input::Batch(batch)) => {
                    self.take(&batch);
                    ingested = true;
                    None
                }
                Event::Ingest(Input::Branch(batch)) => {
                    self.channels.get_mut(&batch.batch().channel).unwrap().apply_branch(&batch);
                    ingested = true;
                    None
                }
                Event::Ingest(Input::Snapshot(snapshot)) => {
                    let channel = snapshot.snapshot().list.channel.clone();
                    self.channels
                        .entry(channel.clone())
                        .or_insert_with(|| ChannelState::new(channel))
                        .apply_snapshot(&snapshot);
                    ingested = true;
                    None
                }
                Event::NeedRecords { channel, writer, after, .. } => {
                    let reading = self.read(&channel, &writer, after);
                    let speaker =
                        if let Reading::Snapshot(snapshot) = &reading { snapshot.list.writer } else { writer };
                    Some(Local::Records { channel, writer, reading, chain: self.chains.get(&speaker).cloned() })
                }
                Event::BranchCame { channel, writer, seq } if self.settles => {
                    let reading = Reading::Snapshot(self.list(&channel));
                    let chain = self.chains.get(&self.writer.lock().unwrap().identity().id()).cloned();
                    Some(Local::List { channel, writer, seq, reading, chain })
                }
                Event::NeedOutbox { limit, .. } => {
                    Some(Local::Outbox { observations: self.outbox.values().take(limit).cloned().collect(), limit })
                }
                Event::Observe { number, observations } => {
                    for observation in observations {
                        let known = self.observed.get(&observation.subject).map(|known| known.clock);
                        if known.is_none_or(|known| known < observation.clock) {
                            self.observed.insert(observation.subject.clone(), observation);
                        }
                    }
                    Some(Local::Observed { number })
                }
                Event::OutboxAcknowledged(entries) => {
                    for (subject, clock) in entries {
                        if self.outbox.get(&subject).is_some_and(|waiting| waiting.clock == clock) {
                            self.outbox.remove(&subject);
                        }
                    }
                    None
                }
                Event::Forked { writer, .. } => {
                    *forked |= writer == self.writer.lock().unwrap().identity().id();
                    None
                }
                Event::Acknowledged(positions) | Event::Subscribed(positions) => {
                    let writer = self.writer.lock().unwrap();
                    let own = writer.identity().id();
                    let beyond = |(channel, logs): (&ChannelName, &BTreeMap<WriterId, u64>)| {
                        logs.get(&own).is_some_and(|seq| *seq > writer.head(channel).seq)
                    };
                    *forked |= positions.iter().any(beyond);
                    None
                }
                event => self.answer_blobs(event),
            };
            if let Some(answer) = answer {
                session.handle_local(answer, now);
            }
        }
        if ingested {
            session.handle_local(Local::Ingested, now);
            self.answer(session, now, forked);
        }
    }
}

/// What leaves next.
pub(super) fn next_of(session: &mut Session) -> Option<Bytes> {
    session.poll_frame().or_else(|| session.poll_piece())
}

pub(super) fn config(root: PublicKey, node: Option<&str>) -> SessionConfig {
    SessionConfig { root, node: node.map(|node| NodeName::parse(node).unwrap()), incarnation: 1, boot: 1, seed: 5 }
}

/// Runs one session of `steps` exchanges; a cut drops what is on its way. Returns the bytes that went each way.
pub(super) fn meet(world: &mut World, hub: &mut Store, device: &mut Store, steps: usize) -> [usize; 2] {
    let node = device.node.clone().unwrap();
    let channels = [fleet(), own_channel(&node)];
    let root = world.installation.root().public();
    let mut ends = [
        Session::new(config(root, None), hub.heads(Some(&channels)), None, 0),
        Session::new(config(root, Some(&node)), device.heads(None), None, 0),
    ];
    let mut bytes = [0, 0];
    let mut forked = [false, false];
    for step in 0..steps {
        let now = step as u64 * 10;
        let mut quiet = true;
        for (end, store) in ends.iter_mut().zip([&mut *hub, &mut *device]) {
            if end.poll_timeout() <= now {
                end.handle_timeout(now);
                store.answer(end, now, &mut false);
            }
        }
        for from in [0, 1] {
            let mut frames = Vec::new();
            while let Some(frame) = next_of(&mut ends[from]) {
                bytes[from] += frame.len() + 4;
                frames.push(frame);
            }
            quiet &= frames.is_empty();
            for frame in frames {
                ends[1 - from].handle_frame(&frame, now);
            }
            let store = if from == 0 { &mut *device } else { &mut *hub };
            store.answer(&mut ends[1 - from], now, &mut forked[1 - from]);
            let store = if from == 0 { &mut *hub } else { &mut *device };
            store.answer(&mut ends[from], now, &mut forked[from]);
        }
        for end in &ends {
            assert!(end.end().is_none(), "{:?}", end.end());
        }
        if quiet {
            break;
        }
    }
    if forked[0] {
        world.rewrite(hub);
    }
    if forked[1] {
        world.rewrite(device);
    }
    bytes
}

pub(super) fn settle(world: &mut World, hub: &mut Store, devices: &mut [Store]) {
    for _ in 0..4 {
        for device in devices.iter_mut() {
            meet(world, hub, device, 1000);
        }
    }
}

pub(super) fn trio() -> (World, Store, Vec<Store>) {
    let mut world = World::new(&["a", "b"]);
    let hub = world.store(None, &[fleet(), own_channel("a"), own_channel("b")]);
    let devices = ["a", "b"].map(|node| world.store(Some(node), &[own_channel(node)])).into();
    (world, hub, devices)
}

pub(super) fn observation(subject: &str, seq: u64) -> Observation {
    let clock = Clock { incarnation: 1, boot: 1, seq };
    Observation { subject: subject.to_owned(), clock, time_ms: seq, body: Some(Bytes::from_static(b"{}")) }
}
