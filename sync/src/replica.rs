//! What a session needs of the store beneath it. The hub's store and the agent's store implement [`Replica`].
//!
//! The driver calls one method at a time per session and persists before it tells: what [`Replica::ingest`] and
//! [`Replica::observe`] returned from is durable. Methods answer from memory where they can: a storm of reconnects calls
//! [`Replica::heads`] once per device.

use std::future::Future;

use bytes::Bytes;
use tokio::sync::watch;

use crate::blob::{BlobRef, BlobStored, BlobWant};
use crate::channel::{ChannelName, Hash, Heads, Positions, WriterId};
use crate::identity::writer::WriterChain;
use crate::list::{ChannelSnapshot, VerifiedSnapshot};
use crate::log::{Batch, VerifiedBatch};
use crate::observation::{Clock, Observation, Urgency};
use crate::session::{Greeting, PeerHello};
use crate::stream::Stream;
use crate::transport::PeerIdentity;

/// A store could not do what it was asked. The session ends and is tried again later.
#[derive(Debug, thiserror::Error)]
#[error("{tried}")]
pub struct ReplicaError {
    /// What was tried, with its subject.
    pub tried: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a peer said that is verified (signature, chain, authority, contiguity) and not yet durable.
#[derive(Debug, Clone)]
pub enum Input {
    /// The certificate chain of a writer seen for the first time in this session. Precedes its first batch.
    Writer(WriterChain),
    /// Consecutive records of one log. Its `prev` is the head that [`Replica::heads`] named, or that of the batch before it.
    Batch(VerifiedBatch),
    /// Records of the peer's branch of a forked log; [`Replica::forked`] came before. They take effect by the rules of
    /// [`crate::channel::Item::apply`] and move no head; if the log was this replica's own, what they changed is stated again by
    /// its new writer. A branch comes again in each session until then, and has no effect then.
    Branch(VerifiedBatch),
    /// A channel's signed list and the states it names, for a reader behind the retention floor. At a hub it may be that of another branch
    /// of one of its own logs: then it is spared that log ([`VerifiedSnapshot::sparing`]), and moves no head of it.
    Snapshot(VerifiedSnapshot),
}

/// What a log has after a position.
#[derive(Debug, Clone)]
pub enum Reading {
    /// Whole batches in order, together about `bytes_max`, at least one if there is any. Empty: nothing is newer.
    Batches(Vec<Batch>),
    /// The position is below the retention floor, or the log is longer than its list: the whole channel of that writer.
    Snapshot(ChannelSnapshot),
    /// This replica keeps the effects of this log, not its records, and cannot pass them on.
    NotKept,
    /// What the channel holds is not known at present: it is to be asked again once the channel's logs have grown
    /// ([`Replica::grown`]).
    Later,
}

/// What an ingestion changed. Poison records are set aside and counted, they are no error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Records that took effect.
    pub applied: usize,
    /// Records set aside: what and why, one line each.
    pub set_aside: Vec<String>,
}

/// A store of documents, registers and logs with a position in each channel.
pub trait Replica: Send + Sync + 'static {
    /// The session stands: the peer has said hello. Must return at once.
    fn established(&self, peer: &PeerIdentity, hello: &PeerHello);

    /// The channels this replica shares with `peer`, each with the heads of its logs. At a hub: the channels the device is
    /// to read, present and empty when nothing was written yet. At a device: all channels it holds.
    fn heads(&self, peer: &PeerIdentity) -> impl Future<Output = Result<Heads, ReplicaError>> + Send;

    /// What a log has after `after`, a position at a batch boundary. What follows a hole is given too: a reader that lacks what is
    /// missing ignores it, and for a fork it is evidence.
    fn read(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Reading, ReplicaError>> + Send;

    /// Hub: the device has given all of its branch of a forked log, up to this record, and it is durable here. Answers with the list of the
    /// channel as it is now, signed by the present writer, or with [`Reading::Later`]. No business of a device's.
    fn branch_came(
        &self,
        _peer: &PeerIdentity,
        _channel: &ChannelName,
        _writer: &WriterId,
        _seq: u64,
    ) -> impl Future<Output = Result<Reading, ReplicaError>> + Send {
        std::future::ready(Ok(Reading::NotKept))
    }

    /// The certificate chain of a writer that [`Replica::heads`] named.
    fn writer(&self, writer: &WriterId) -> impl Future<Output = Result<Option<WriterChain>, ReplicaError>> + Send;

    /// Makes inputs durable, in order, and takes them into effect. Again the same input: no effect.
    fn ingest(
        &self,
        peer: &PeerIdentity,
        inputs: Vec<Input>,
    ) -> impl Future<Output = Result<Ingested, ReplicaError>> + Send;

    /// Device: the hub says which channels this device reads, and where their logs stand. A channel that is missing was left;
    /// a new one is complete, and its predecessor may be dropped, once the device's own heads reach these positions.
    fn subscribed(
        &self,
        peer: &PeerIdentity,
        channels: Positions,
    ) -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Hub: where the device's logs stand as the session begins, each with [`crate::channel::Head::digest`] of its head, in the order of the
    /// positions. Answers with those that go no further than here and are on another branch, with their numbers: before the device is told anything of
    /// these logs. No business of a device's.
    fn stands_at(
        &self,
        _peer: &PeerIdentity,
        _positions: &Positions,
        _digests: &[u64],
    ) -> impl Future<Output = Result<Vec<(ChannelName, WriterId, u64)>, ReplicaError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Hub: what the device has made durable of the hub's channels. A position beyond the head of this replica's own current log
    /// proves nothing; the signed records that come with it do: this database is an old copy. A device takes the hub's word for it in
    /// [`Replica::subscribed`] and takes a new writer id, as in [`Replica::forked`].
    fn acknowledged(
        &self,
        peer: &PeerIdentity,
        positions: Positions,
    ) -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Device: keeps the hub's newest verified greeting (signed time and commit number); it is durable before, or with, anything that
    /// follows from it.
    /// Hub: a device shows the newest greeting of a hub it has seen; one that names a later incarnation or a later commit
    /// than this hub's means that this hub was restored from a backup.
    fn greeted(&self, peer: &PeerIdentity, greeting: Greeting)
    -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Device: the newest greeting stored. Hub: a fresh signed greeting.
    fn greeting(&self) -> impl Future<Output = Result<Option<Greeting>, ReplicaError>> + Send;

    /// This side or the peer found another record at `(writer, seq)`: the log was forked by a restored or cloned database. If the writer
    /// is this replica's own, it takes a new writer id (see [`crate::log::LogWriter::start_at`]) and states its live items
    /// again under it: both branches are kept and merge.
    fn forked(
        &self,
        peer: &PeerIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        seq: u64,
    ) -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Hub: makes observations durable; an older clock than the stored one of a subject has no effect.
    fn observe(
        &self,
        peer: &PeerIdentity,
        observations: Vec<Observation>,
    ) -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Hub: the newest observation it has of the device, the earliest of all clocks if it has none. A device answers with that.
    fn newest_observation(&self, _peer: &PeerIdentity) -> impl Future<Output = Result<Clock, ReplicaError>> + Send {
        std::future::ready(Ok(Clock::default()))
    }

    /// Device: the hub's newest observation of this device, before anything that this session tells. One that this device has not told
    /// is that of another board under its name. No business of a hub's.
    fn heard(&self, _peer: &PeerIdentity, _clock: Clock) -> impl Future<Output = Result<(), ReplicaError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Device: what waits for the hub, oldest first, at most `limit`, coalesced by subject. A hub answers with nothing.
    fn outbox(
        &self,
        urgency: Urgency,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Observation>, ReplicaError>> + Send;

    /// Device: the hub has these; an entry leaves the outbox if its clock is still the one named.
    fn outbox_acknowledged(
        &self,
        entries: Vec<(String, Clock)>,
    ) -> impl Future<Output = Result<(), ReplicaError>> + Send;

    /// Changes whenever a log that concerns `peer`, its set of channels, or the outbox grew. The value has no meaning.
    fn grown(&self, peer: &PeerIdentity) -> watch::Receiver<u64>;

    /// The peer opened a stream with this request (for example a pod's log). Must return at once: spawn the work.
    fn open_stream(&self, peer: &PeerIdentity, request: Bytes, stream: Stream);

    /// At most `len` bytes of a blob from `offset` on; nothing when it is not here as a whole, or names nothing that `peer` may read.
    fn read_blob(
        &self,
        peer: &PeerIdentity,
        hash: &Hash,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = Result<Option<Bytes>, ReplicaError>> + Send;

    /// At most `limit` blobs that items here name and that are not here as a whole, in the order they are wanted. Answers from
    /// memory: it is asked after each ingestion.
    fn missing_blobs(
        &self,
        peer: &PeerIdentity,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<BlobWant>, ReplicaError>> + Send;

    /// The blobs that items in the channels of `peer` name and that are here as a whole: what a bundle for it may carry.
    fn named_blobs(&self, peer: &PeerIdentity) -> impl Future<Output = Result<Vec<BlobRef>, ReplicaError>> + Send;

    /// Makes a piece of a blob durable, which begins where the last one ended. The last piece makes the blob whole if its digest
    /// holds: then what waited for it takes effect.
    fn store_blob(
        &self,
        peer: &PeerIdentity,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> impl Future<Output = Result<BlobStored, ReplicaError>> + Send;
}
