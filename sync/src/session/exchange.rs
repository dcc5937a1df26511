//! What a session asks of its driver, and what the driver tells it.

use bytes::Bytes;

use super::{Greeting, PeerHello, SessionEnd};
use crate::blob::{BlobRef, BlobStored, BlobWant};
use crate::channel::{ChannelName, Hash, Heads, Positions, WriterId};
use crate::identity::writer::WriterChain;
use crate::observation::{Clock, Observation, Urgency};
use crate::replica::{Input, Reading};
use crate::stream::StreamId;

/// What the driver is asked to do, in order.
#[derive(Debug)]
pub(crate) enum Event {
    /// The peer said hello.
    Established(PeerHello),
    /// A verified greeting of a hub.
    Greeted(Greeting),
    /// Device: the channels it reads, and where their logs stand at the hub.
    Subscribed(Positions),
    /// Hub: where the device's logs stand, with the digests of their heads in the same order; answer with [`Local::Branches`].
    StandsAt { positions: Positions, digests: Vec<u64> },
    /// Hub: the device has these.
    Acknowledged(Positions),
    /// Read a log; answer with [`Local::Records`].
    NeedRecords { channel: ChannelName, writer: WriterId, after: u64, bytes_max: usize, with_chain: bool },
    /// Hub: the device has given all of its branch of a log, up to this record; answer with [`Local::List`].
    BranchCame { channel: ChannelName, writer: WriterId, seq: u64 },
    /// Make durable; answer with [`Local::Ingested`] once all that stand in a row are.
    Ingest(Input),
    /// The peer found a fork in this log.
    Forked { channel: ChannelName, writer: WriterId, seq: u64 },
    /// A fork was found in a log of the peer's: for the log book.
    ForkFound { channel: ChannelName, writer: WriterId, seq: u64 },
    /// Ask the outbox; answer with [`Local::Outbox`].
    NeedOutbox { urgency: Urgency, limit: usize },
    /// Make durable; answer with [`Local::Observed`].
    Observe { number: u64, observations: Vec<Observation> },
    /// The hub has these.
    OutboxAcknowledged(Vec<(String, Clock)>),
    /// Hub: ask which observation of the device is the newest; answer with [`Local::Heard`].
    NeedHeard,
    /// Device: the newest observation that the hub has of it.
    Heard(Clock),
    /// The peer opened a stream.
    StreamOpened { id: StreamId, request: Bytes },
    /// Bytes on a stream.
    StreamData { id: StreamId, bytes: Bytes },
    /// The peer takes this much more.
    StreamCredit { id: StreamId, bytes: u32 },
    /// The peer closed a stream.
    StreamClosed { id: StreamId, reason: Option<String> },
    /// Ask which blobs are missing; answer with [`Local::MissingBlobs`].
    NeedMissingBlobs { limit: usize },
    /// Make a piece of a blob durable; answer with [`Local::BlobStored`].
    StoreBlob { name: BlobRef, offset: u64, bytes: Bytes },
    /// Read a piece of a blob; answer with [`Local::BlobRead`].
    ReadBlob { hash: Hash, offset: u64, len: usize },
}

/// What the driver tells a session.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time, passed and consumed at once")]
pub(crate) enum Local {
    /// Logs or channels changed: where they stand now.
    Heads(Heads),
    /// The outbox may have grown.
    OutboxGrew,
    /// Answer to [`Event::NeedRecords`].
    Records { channel: ChannelName, writer: WriterId, reading: Reading, chain: Option<WriterChain> },
    /// Answer to [`Event::StandsAt`]: logs of which the device has another branch, and how far.
    Branches(Vec<(ChannelName, WriterId, u64)>),
    /// Answer to [`Event::BranchCame`].
    List { channel: ChannelName, writer: WriterId, seq: u64, reading: Reading, chain: Option<WriterChain> },
    /// All inputs so far are durable.
    Ingested,
    /// Answer to [`Event::NeedOutbox`].
    Outbox { observations: Vec<Observation>, limit: usize },
    /// Answer to [`Event::Observe`].
    Observed { number: u64 },
    /// Answer to [`Event::NeedHeard`].
    Heard(Clock),
    /// Open a stream. Refused, by closing it, beyond the limit.
    StreamOpen { id: StreamId, request: Bytes },
    /// Send on a stream.
    StreamData { id: StreamId, bytes: Bytes },
    /// The application consumed this much.
    StreamGrant { id: StreamId, bytes: u32 },
    /// Close a stream.
    StreamClose { id: StreamId, reason: Option<String> },
    /// Answer to [`Event::NeedMissingBlobs`].
    MissingBlobs(Vec<BlobWant>),
    /// Answer to [`Event::StoreBlob`].
    BlobStored { name: BlobRef, stored: BlobStored },
    /// Answer to [`Event::ReadBlob`]: nothing when the peer may not have it.
    BlobRead { hash: Hash, offset: u64, bytes: Option<Bytes> },
    /// Say goodbye.
    Close { reason: String, retry_after_ms: Option<u64>, end: SessionEnd },
}
