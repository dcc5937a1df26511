//! The hub as a replica: what sessions ask of it, answered from the store.

mod carried;
mod hello;
mod proof;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::blob::{BlobRef, BlobStored, BlobWant};
use flotilla_sync::channel::{ChannelName, Hash, Head, Heads, Positions, WriterId};
use flotilla_sync::driver::SessionHandle;
use flotilla_sync::few::Few;
use flotilla_sync::identity::writer::{WriterChain, WriterIdentity, WriterSubject};
use flotilla_sync::identity::{Installation, NodeName};
use flotilla_sync::observation::{Clock, Observation, Urgency};
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::replica::{Ingested, Input, Reading, Replica, ReplicaError};
use flotilla_sync::session::{Greeting, PeerHello};
use flotilla_sync::stream::Stream;
use flotilla_sync::transport::PeerIdentity;
use tokio::sync::watch;

use super::{ingest, observe};
use crate::learn::{self, Learning, Lessons};
use crate::publish::{FLEET_DEFAULT, fleet_of};
use crate::store::logs::Logs;
use crate::store::settings::Setting;
use crate::store::{Store, StoreError};
use crate::{Contact, Contacts, mint};

/// Condition of a Node by which its device says whether all large values are there.
const COMPLETE_CONDITION: &str = "ObjectsComplete";

/// The hub's end of every session.
#[derive(Debug)]
pub(crate) struct FleetDoor {
    pub(crate) store: Store,
    pub(super) contacts: Contacts,
    pub(crate) installation: Arc<Installation>,
    /// Replaced when a fork of the hub's own log is found.
    pub(super) writer: RwLock<WriterIdentity>,
    /// When a fork was last taken on a device's word.
    fork_heeded: Mutex<Option<Timestamp>>,
    /// The session of each connected node, with a number that tells a later one from an earlier.
    sessions: Mutex<BTreeMap<String, Served>>,
    /// What each connected node has made durable, as its session said.
    durable: Mutex<BTreeMap<String, Held>>,
    /// Connected nodes that owe an acknowledgement, and since when without any.
    owing: Mutex<BTreeMap<String, Timestamp>>,
    /// Nodes that have come into contact, or acknowledged something and not all, since it was last looked at who owes one.
    unlooked: Mutex<BTreeSet<String>>,
    /// Whether this hub learns from its devices what its database has lost.
    pub(crate) lessons: Lessons,
}

/// How far each log of the hub's is durable at a device.
type Held = Few<(ChannelName, WriterId), u64>;

/// One session.
#[derive(Debug)]
struct Served {
    number: u64,
    handle: SessionHandle,
    /// Transport and address, for people.
    road: String,
}

/// How much of what the hub wants of a connected device is durable there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncState {
    Synced,
    /// So many records of the hub's logs are not acknowledged yet.
    Behind(u64),
    /// All records are there; the device waits for large values that some of them name.
    WaitsForValues,
    /// The hub learns from its devices; whether this one has given all it holds.
    Learning {
        heard: bool,
    },
}

impl std::fmt::Display for SyncState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Synced => formatter.write_str("synced"),
            Self::Behind(records) => write!(formatter, "behind {records}"),
            Self::WaitsForValues => formatter.write_str("waits for values"),
            Self::Learning { heard: true } => formatter.write_str("heard"),
            Self::Learning { heard: false } => formatter.write_str("not heard"),
        }
    }
}

impl FleetDoor {
    pub(crate) fn new(
        store: Store,
        contacts: Contacts,
        installation: Arc<Installation>,
        writer: WriterIdentity,
    ) -> Self {
        let lessons = Lessons::of(&store);
        Self {
            lessons,
            store,
            contacts,
            installation,
            writer: RwLock::new(writer),
            fork_heeded: Mutex::default(),
            sessions: Mutex::default(),
            durable: Mutex::default(),
            owing: Mutex::default(),
            unlooked: Mutex::default(),
        }
    }

    /// The open session of a node.
    pub(crate) fn session(&self, node: &str) -> Option<SessionHandle> {
        self.sessions().get(node).map(|served| served.handle.clone())
    }

    /// Whether a node is in contact, or when it was last heard.
    pub(crate) fn contact(&self, node: &str) -> Option<Contact> {
        self.contacts.of(node)
    }

    /// Whether the Node of a device is there.
    pub(super) fn has_node(&self, node: &str) -> bool {
        self.store.view(|index| index.get(&ObjectKey::of(&kind::NODE, "", node)).is_some())
    }

    /// Why a node cannot be asked now, for people.
    pub(crate) fn silence(&self, node: &str) -> String {
        match self.contacts.of(node) {
            Some(Contact::Silent { last }) => format!("the device {node} is not in contact since {last}"),
            _ => format!("the device {node} is not in contact"),
        }
    }

    /// The road that the session of a connected node takes: its transport, and the address it comes from.
    pub(crate) fn road(&self, node: &str) -> Option<String> {
        self.sessions().get(node).map(|served| served.road.clone())
    }

    /// Registers a session; answers the one it replaces.
    pub(super) fn opened(&self, node: &str, number: u64, handle: SessionHandle, road: String) -> Option<SessionHandle> {
        let served = Served { number, handle, road };
        let replaced = self.sessions().insert(node.to_owned(), served).map(|served| served.handle);
        self.look_at_next(node);
        self.contacts.set(node, Contact::Connected { since: self.store.now() });
        replaced
    }

    /// Takes a session off; `false` when a later one stands in its place.
    pub(super) fn closed(&self, node: &str, number: u64) -> bool {
        let mut sessions = self.sessions();
        let current = sessions.get(node).is_some_and(|served| served.number == number);
        if current {
            sessions.remove(node);
            self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
            self.owing(node, None);
            self.contacts.set(node, Contact::Silent { last: self.store.now() });
            self.lessons.left(node);
        }
        current
    }

    /// How far a device is; `None` for one that is not in contact, and that is not waited for either.
    pub(crate) fn sync_state(&self, node: &str) -> Option<SyncState> {
        if let Some(heard) = self.lessons.heard_of(node) {
            return Some(SyncState::Learning { heard });
        }
        Some(match self.records_behind(node)? {
            0 if self.lacks_values(node) => SyncState::WaitsForValues,
            0 => SyncState::Synced,
            records => SyncState::Behind(records),
        })
    }

    /// How many records of the hub's logs a device in contact has not acknowledged.
    fn records_behind(&self, node: &str) -> Option<u64> {
        let name = NodeName::parse(node).ok()?;
        let durable = self.durable(node)?;
        let writer = self.writer_id();
        let logs = self.store.logs();
        let behind = |channel: &ChannelName| {
            let heads = logs.heads(channel);
            let there = durable.get(channel);
            let position = |writer: &WriterId| there.and_then(|logs| logs.get(writer)).copied().unwrap_or(0);
            let lacks = |(writer, head): (&WriterId, &Head)| head.seq.saturating_sub(position(writer));
            match heads.get_key_value(&writer) {
                // What earlier writers said is in the present one's list, or came before its first record.
                Some(own) => lacks(own),
                None => heads.iter().filter(|(writer, _)| self.is_hub_writer(writer)).map(lacks).sum(),
            }
        };
        Some(self.channels_of(&name).iter().map(behind).sum())
    }

    /// Whether a device in contact lacks records that the hub would give it.
    pub(super) fn is_behind(&self, node: &str) -> bool {
        self.lessons.heard_of(node).is_none() && self.records_behind(node).is_some_and(|records| records > 0)
    }

    /// Whether the device last said that it lacks large values.
    fn lacks_values(&self, node: &str) -> bool {
        let key = ObjectKey::of(&kind::NODE, "", node);
        self.store.view(|index| {
            let conditions = index.get(&key).and_then(|node| node.at("/status/conditions")?.as_array());
            let lacks = |one: &serde_json::Value| one["type"] == COMPLETE_CONDITION && one["status"] == "False";
            conditions.is_some_and(|all| all.iter().any(lacks))
        })
    }

    /// It is to be looked at whether a node owes an acknowledgement, at the next time.
    pub(super) fn look_at_next(&self, node: &str) {
        self.unlooked.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned());
    }

    /// Whether a node was found to owe an acknowledgement.
    pub(super) fn is_owing(&self, node: &str) -> bool {
        self.owing.lock().unwrap_or_else(PoisonError::into_inner).contains_key(node)
    }

    /// Nodes that owe an acknowledgement, and those that are to be looked at.
    pub(super) fn owing_or_unlooked(&self) -> Vec<String> {
        let mut nodes = std::mem::take(&mut *self.unlooked.lock().unwrap_or_else(PoisonError::into_inner));
        nodes.extend(self.owing.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        nodes.into_iter().collect()
    }

    /// Names of the nodes with a session.
    pub(super) fn connected(&self) -> Vec<String> {
        self.sessions().keys().cloned().collect()
    }

    /// Since when a node has owed an acknowledgement: `now` begins it, or leaves an earlier begin; `None` ends it.
    pub(super) fn owing(&self, node: &str, now: Option<Timestamp>) -> Option<Timestamp> {
        let mut owing = self.owing.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Some(now) => Some(*owing.entry(node.to_owned()).or_insert(now)),
            None => {
                owing.remove(node);
                None
            }
        }
    }

    /// Whether a log is that of a hub of this installation.
    fn is_hub_writer(&self, writer: &WriterId) -> bool {
        self.lessons.is_hub_writer(writer, || self.store.logs().is_hub_writer(writer).ok().flatten())
    }

    /// A new life, with its lesson, unless a later one has begun already. Whoever sees its writer sees the lesson too.
    pub(crate) fn begin_life(&self, writer: WriterIdentity, learning: Learning) {
        let mut own = self.writer.write().unwrap_or_else(PoisonError::into_inner);
        if writer.chain().incarnation > own.chain().incarnation {
            self.lessons.begin(learning);
            *own = writer;
        }
    }

    /// Writes under a fresh id from now on, if `writer` is still the hub's: its log was continued elsewhere.
    async fn take_new_writer(&self, writer: &WriterId) -> Result<(), ReplicaError> {
        let forked = self.identity();
        if forked.id() != *writer {
            return Ok(());
        }
        let tried = || "take a new writer id".to_owned();
        let failed = |source: ApiError| ReplicaError { tried: tried(), source: Box::new(source) };
        let seed = mint::bytes::<32>().map_err(failed)?;
        let successor = WriterIdentity::for_hub(seed, forked.chain().incarnation, self.installation.root())
            .map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })?;
        let identity = successor.clone();
        let write = self.store.write(move |batch| {
            // A life that has begun meanwhile has a writer of its own, and one that learns says nothing yet: no device can have more of it.
            let present = learn::is_present(batch, &forked)? && learn::stored(batch)?.is_none();
            if present {
                let mut stored = seed.to_vec();
                stored.extend(successor.chain().encode());
                batch.set_setting(Setting::Writer, &stored)?;
                batch.succeed_writer(successor)?;
            }
            Ok(present)
        });
        let taken = write.await.map_err(failed)?;
        let mut own = self.writer.write().unwrap_or_else(PoisonError::into_inner);
        if taken && own.id() == *writer {
            *own = identity;
        }
        Ok(())
    }

    /// Asks the disk beside the tasks of the sessions.
    async fn ask_disk<T: Send + 'static>(
        &self,
        tried: &str,
        work: impl FnOnce(&Logs) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReplicaError> {
        let read = self.store.ask_disk(work).await;
        read.map_err(|source| ReplicaError { tried: tried.to_owned(), source: Box::new(source) })
    }

    /// Every open session.
    pub(crate) fn sessions_open(&self) -> Vec<SessionHandle> {
        self.sessions().values().map(|served| served.handle.clone()).collect()
    }

    pub(crate) fn identity(&self) -> WriterIdentity {
        self.writer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn writer_id(&self) -> WriterId {
        self.writer.read().unwrap_or_else(PoisonError::into_inner).id()
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Served>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channels a device reads, each with where its logs stand.
    pub(crate) fn heads_of(&self, node: &NodeName) -> Heads {
        let logs = self.store.logs();
        let own = self.writer_id();
        let shown = |channel: ChannelName| (channel.clone(), proof::readable(logs.heads(&channel), &own));
        self.channels_of(node).into_iter().map(shown).collect()
    }

    /// The channels a device reads: its own and its fleet's.
    fn channels_of(&self, node: &NodeName) -> Vec<ChannelName> {
        let key = ObjectKey::of(&kind::NODE, "", node.as_str());
        let fleet = self.store.view(|index| index.get(&key).map_or(FLEET_DEFAULT, |node| fleet_of(node)).to_owned());
        let fleet = NodeName::parse(&fleet).ok().map(ChannelName::Fleet);
        fleet.into_iter().chain([ChannelName::Device(node.clone())]).collect()
    }
}

impl Replica for FleetDoor {
    async fn heads(&self, peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        Ok(self.heads_of(device(peer)?))
    }

    async fn read(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Reading, ReplicaError> {
        let identity = self.identity();
        if let Some(reading) = self.store.logs().at_hand(&identity, channel, writer, after, bytes_max) {
            return Ok(reading);
        }
        let (name, asked) = (channel.clone(), *writer);
        let tried = format!("read channel {channel} after {after}");
        let read = move |logs: &Logs| match logs.read(&identity, &name, &asked, after, bytes_max) {
            Err(StoreError::Row(row)) => Ok(Err(row)),
            other => other.map(Ok),
        };
        match self.ask_disk(&tried, read.clone()).await? {
            Ok(reading) => return Ok(reading),
            Err(row) => {
                let healed = self.store.write(move |batch| Ok(batch.heal(&row)?)).await;
                healed.map_err(|source| ReplicaError { tried: tried.clone(), source: Box::new(source) })?;
            }
        }
        // What was made again is read once; what is damaged still ends the session, which is tried again later.
        let again = self.ask_disk(&tried, read).await?;
        again.map_err(|row| ReplicaError { tried, source: Box::new(StoreError::Row(row)) })
    }

    async fn branch_came(
        &self,
        peer: &PeerIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        seq: u64,
    ) -> Result<Reading, ReplicaError> {
        if !self.is_hub_writer(writer) {
            tracing::debug!(?peer, %channel, %writer, "a device has given another branch of a log of its own");
            return Ok(Reading::NotKept);
        }
        if self.lessons.is_on() {
            self.lessons.branch_heard(device(peer)?.as_str(), channel, writer, seq);
            return Ok(Reading::Later);
        }
        let (identity, name) = (self.identity(), channel.clone());
        self.ask_disk(&format!("list channel {channel}"), move |logs| logs.list(&identity, &name)).await
    }

    async fn writer(&self, writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        let own = self.identity();
        if own.id() == *writer {
            return Ok(Some(own.chain().clone()));
        }
        let tried = || format!("read the certificate of writer {writer}");
        let stored = self.store.logs().writer(writer);
        let stored = stored.map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })?;
        let root = self.installation.root().public();
        let chain = stored.map(|encoded| WriterChain::verify(&encoded, &root)).transpose();
        chain.map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })
    }

    async fn ingest(&self, peer: &PeerIdentity, inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        let node = device(peer)?.clone();
        let tried = format!("take in the log of device {node}");
        if !planted::is(Bug::RestoreIgnored) {
            self.heed_quotes(&node, &inputs).await?;
        }
        for input in &inputs {
            if let Input::Writer(chain) = input
                && chain.subject == WriterSubject::Hub
            {
                self.lessons.know_hub_writer(chain.id);
            }
        }
        let ingested = self.store.write(move |batch| ingest::ingest(batch, &node, inputs)).await;
        ingested.map_err(|source| ReplicaError { tried, source: Box::new(source) })
    }

    async fn subscribed(&self, _peer: &PeerIdentity, _channels: Positions) -> Result<(), ReplicaError> {
        // A device's business: the hub subscribes to nothing.
        Ok(())
    }

    async fn stands_at(
        &self,
        peer: &PeerIdentity,
        positions: &Positions,
        digests: &[u64],
    ) -> Result<Vec<(ChannelName, WriterId, u64)>, ReplicaError> {
        let node = device(peer)?;
        let branches = self.branches_of(positions, digests).await?;
        if self.lessons.is_on() {
            self.lessons.greeted(node.as_str(), self.of_hubs(node, positions.clone()), branches.clone());
        }
        Ok(branches.into_iter().map(|((channel, writer), seq)| (channel, writer, seq)).collect())
    }

    async fn acknowledged(&self, peer: &PeerIdentity, positions: Positions) -> Result<(), ReplicaError> {
        // For people and rollouts: a device says itself where it stands when it comes back.
        let node = device(peer)?;
        if self.lessons.is_on() {
            self.lessons.acknowledged(node.as_str(), &self.of_hubs(node, positions.clone()));
        }
        {
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
            if !durable.contains_key(node.as_str()) {
                durable.insert(node.to_string(), Few::default());
            }
            if let Some(known) = durable.get_mut(node.as_str()) {
                for (channel, logs) in positions {
                    logs.into_iter().for_each(|(writer, seq)| known.insert((channel.clone(), writer), seq));
                }
            }
        }
        self.answered(node.as_str());
        Ok(())
    }

    async fn greeted(&self, peer: &PeerIdentity, greeting: Greeting) -> Result<(), ReplicaError> {
        let node = device(peer)?;
        let own = (self.store.incarnation(), self.store.version());
        if (greeting.incarnation, greeting.commit) > own && !planted::is(Bug::RestoreIgnored) {
            tracing::error!(
                %node,
                incarnation = greeting.incarnation,
                commit = greeting.commit,
                "a device has seen a later state of this hub: its database was restored from a backup"
            );
            let begun = learn::begin(self, node.as_str(), greeting.incarnation).await;
            let tried = || "learn from devices".to_owned();
            begun.map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })?;
        }
        Ok(())
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        Ok(Some(Greeting::sign(&self.identity(), self.store.version(), self.store.now().0)))
    }

    async fn forked(
        &self,
        peer: &PeerIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        seq: u64,
    ) -> Result<(), ReplicaError> {
        let node = device(peer)?;
        tracing::error!(%node, %channel, %writer, seq, "a log was forked by a restored or cloned database");
        if self.lessons.is_on() && self.is_hub_writer(writer) {
            self.lessons.forked(node.as_str(), channel, writer, seq);
        }
        if self.writer_id() != *writer {
            return Ok(());
        }
        self.heed_fork()?;
        let taken = self.take_new_writer(writer).await;
        if taken.is_err() {
            // Nothing came of it: the next to come is heeded.
            *self.fork_heeded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        taken
    }

    fn established(&self, peer: &PeerIdentity, hello: &PeerHello) {
        tracing::debug!(?peer, incarnation = hello.incarnation, boot = hello.boot, "a device said hello");
    }

    async fn observe(&self, peer: &PeerIdentity, observations: Vec<Observation>) -> Result<(), ReplicaError> {
        let node = device(peer)?.clone();
        let tried = format!("take in the observations of device {node}");
        let observed = self.store.write(move |batch| observe::observe(batch, &node, &observations)).await;
        observed.map_err(|source| ReplicaError { tried, source: Box::new(source) })
    }

    async fn newest_observation(&self, peer: &PeerIdentity) -> Result<Clock, ReplicaError> {
        let node = device(peer)?.clone();
        let asked = move |logs: &Logs| logs.newest_observation(node.as_str());
        Ok(self.ask_disk("look for the newest observation of a device", asked).await?.unwrap_or_default())
    }

    async fn outbox(&self, _urgency: Urgency, _limit: usize) -> Result<Vec<Observation>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn outbox_acknowledged(&self, _entries: Vec<(String, Clock)>) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn grown(&self, peer: &PeerIdentity) -> watch::Receiver<u64> {
        let node = match peer {
            PeerIdentity::Device { node } => node.as_str(),
            PeerIdentity::Hub => "",
        };
        self.store.logs().bell(node)
    }

    fn open_stream(&self, peer: &PeerIdentity, _request: Bytes, stream: Stream) {
        // Devices ask nothing of the hub by streams.
        tracing::debug!(?peer, "a device opened a stream");
        let refusal =
            ApiError::of(Reason::MethodNotAllowed, "the hub serves no streams to devices").to_status().to_string();
        tokio::spawn(stream.close(Some(refusal)));
    }

    async fn read_blob(
        &self,
        peer: &PeerIdentity,
        hash: &Hash,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, ReplicaError> {
        let channels = self.channels_of(device(peer)?);
        let hash = *hash;
        self.ask_disk("read a large value", move |logs| logs.read_blob(&channels, &hash, offset, len)).await
    }

    async fn missing_blobs(&self, _peer: &PeerIdentity, limit: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        self.ask_disk("look for missing large values", move |logs| logs.missing_blobs(limit)).await
    }

    async fn named_blobs(&self, peer: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        let channels = self.channels_of(device(peer)?);
        self.ask_disk("list the large values of a device", move |logs| logs.named_blobs(&channels)).await
    }

    async fn store_blob(
        &self,
        peer: &PeerIdentity,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<BlobStored, ReplicaError> {
        let tried = format!("take a large value of device {}", device(peer)?);
        let name = *name;
        let stored = self.store.write(move |batch| {
            let stored = batch.store_blob(&name, offset, &bytes)?;
            if stored == BlobStored::Whole {
                learn::take_late(batch)?;
            }
            Ok(stored)
        });
        let stored = stored.await;
        stored.map_err(|source| ReplicaError { tried, source: Box::new(source) })
    }
}

fn device(peer: &PeerIdentity) -> Result<&NodeName, ReplicaError> {
    match peer {
        PeerIdentity::Device { node } => Ok(node),
        PeerIdentity::Hub => {
            Err(ReplicaError { tried: "serve a session".to_owned(), source: "the peer is a hub, not a device".into() })
        }
    }
}
