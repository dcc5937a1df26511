//! Sessions: the protocol between a hub and a device, sans-io.
//!
//! Owns the order of frames, what is in flight, pace and keep-alive. Refuses sockets, clocks and stores: the driver feeds frames,
//! answers and the time, and carries out what `Session::poll_event` asks for. Symmetric but for who paces observations.
//!
//! Start at `Session::handle_frame`; frames are in `session/frame.rs`, the pace of observations in `session/pace.rs`.

mod blobs;
mod exchange;
mod frame;
mod greeting;
mod pace;
mod receiving;
mod sending;
mod streams;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::channel::{ChannelName, Head, Heads, Positions, WriterId, positions_of};
use crate::few::Few;
use crate::identity::{NodeName, PublicKey};
use crate::observation::{Clock, OBSERVATIONS_BYTES_MAX, Observation, Urgency};
use blobs::Blobs;
use frame::{Frame, REASON_BYTES_MAX, reason_within};
use pace::{Leave, Pace};
use receiving::Receiving;
use sending::Sending;
use streams::Streams;

pub(crate) use exchange::{Event, Local};
pub use greeting::{GREETING_BYTES_MAX, Greeting, GreetingError};

/// Version of the protocol that every peer speaks.
pub const PROTOCOL_VERSION: u64 = 1;
/// From this version on a device takes batches that are told by what differs from the one before.
pub const PROTOCOL_WITH_DIFFERENCES: u64 = 2;
/// From this version on a device is told which of its observations is the newest that the hub has, and a hub that has acknowledged another
/// branch of its log has taken it in, and settles it with a list.
pub const PROTOCOL_SETTLED: u64 = 3;
/// A side that has heard nothing for this long asks. Milliseconds.
pub const KEEPALIVE_MS: u64 = 60_000;
/// A side that has heard nothing for this long gives up. Milliseconds.
pub const SILENCE_MS: u64 = 3 * KEEPALIVE_MS;
/// Most observations of one question to the outbox.
const OUTBOX_LIMIT: usize = 128;
/// Most frames of observations without an answer.
const OBSERVATION_FRAMES_MAX: usize = 8;
/// More frames than this waiting to leave: the driver takes no more work from the application.
const FRAMES_WAITING_MAX: usize = 64;

/// What a session must know of its own side.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The installation's root: anchor of all writer chains.
    pub root: PublicKey,
    /// Own node name; `None` at a hub.
    pub node: Option<NodeName>,
    /// Life of the own database.
    pub incarnation: u64,
    /// Boot of this process within that life.
    pub boot: u64,
    /// Spreads coalesced observations and keep-alives: random per session.
    pub seed: u64,
}

/// What a peer said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Life of its database.
    pub incarnation: u64,
    /// Boot of its process.
    pub boot: u64,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// This side closed it.
    Closed,
    /// The peer said goodbye.
    Goodbye(String),
    /// The peer asks to come back later.
    RetryAfter {
        /// When. Milliseconds.
        ms: u64,
    },
    /// The stream broke.
    Broken(String),
    /// Nothing was heard for three keep-alives.
    Silent,
    /// The peer broke the protocol, or showed records that do not hold; it was told.
    Protocol(String),
    /// The store failed; the peer was asked to come back.
    Replica(String),
}

/// One session, from the first frame to its end.
#[derive(Debug)]
pub(crate) struct Session {
    config: SessionConfig,
    /// Where the own logs stand, inputs that are being made durable included.
    own: Few<ChannelName, Few<WriterId, Head>>,
    /// The peer said hello.
    established: bool,
    /// The peer speaks [`PROTOCOL_SETTLED`].
    settles: bool,
    sending: Sending,
    receiving: Receiving,
    streams: Streams,
    blobs: Blobs,
    pace: Pace,
    /// Observation frames the hub has not made durable yet.
    observing: BTreeMap<u64, Vec<(String, Clock)>>,
    observation_number: u64,
    /// What the outbox was asked for and has not answered.
    outbox_asked: Option<Urgency>,
    frames: VecDeque<Frame>,
    events: VecDeque<Event>,
    heard_at_ms: u64,
    pinged_at_ms: u64,
    end: Option<SessionEnd>,
}

/// The peer broke the protocol; the reason is told to it.
#[derive(Debug)]
struct Violation(String);

impl<T: std::fmt::Display> From<T> for Violation {
    fn from(error: T) -> Self {
        Self(error.to_string())
    }
}

impl Session {
    pub(crate) fn new(config: SessionConfig, own: Heads, greeting: Option<&Greeting>, now_ms: u64) -> Self {
        let hello = Frame::Hello {
            versions: vec![PROTOCOL_VERSION, PROTOCOL_WITH_DIFFERENCES, PROTOCOL_SETTLED],
            incarnation: config.incarnation,
            boot: config.boot,
            positions: positions_of(&own),
            digests: own.values().flat_map(BTreeMap::values).map(Head::digest).collect(),
            greeting: greeting.map(|greeting| greeting.encoded().clone()),
        };
        let is_hub = config.node.is_none();
        Self {
            pace: Pace::new(now_ms, config.seed),
            streams: Streams::new(u64::from(is_hub)),
            config,
            own: few(own),
            established: false,
            settles: false,
            sending: Sending::default(),
            receiving: Receiving::default(),
            blobs: Blobs::default(),
            observing: BTreeMap::new(),
            observation_number: 0,
            outbox_asked: None,
            frames: VecDeque::from([hello]),
            events: VecDeque::new(),
            heard_at_ms: now_ms,
            pinged_at_ms: now_ms,
            end: None,
        }
    }

    fn is_hub(&self) -> bool {
        self.config.node.is_none()
    }

    /// One whole frame came.
    pub(crate) fn handle_frame(&mut self, encoded: &Bytes, now_ms: u64) {
        if self.end.is_some() {
            return;
        }
        self.heard_at_ms = now_ms;
        let handled = Frame::decode(encoded)
            .map_err(|error| Violation(format!("frame: {error}")))
            .and_then(|frame| self.handle(frame, now_ms));
        if let Err(Violation(reason)) = handled {
            self.finish(&reason, None, SessionEnd::Protocol(reason.clone()));
        }
    }

    fn handle(&mut self, frame: Frame, now_ms: u64) -> Result<(), Violation> {
        if !self.established && !matches!(frame, Frame::Hello { .. } | Frame::Goodbye { .. }) {
            return Err("the first frame must be a hello".into());
        }
        match frame {
            Frame::Hello { versions, incarnation, boot, positions, digests, greeting } => {
                if self.established {
                    return Err("a second hello".into());
                }
                if !versions.contains(&PROTOCOL_VERSION) {
                    let reason = format!("no common version of the protocol: {versions:?} and {PROTOCOL_VERSION}");
                    return Err(Violation(reason));
                }
                self.sending.tell_differences(versions.contains(&PROTOCOL_WITH_DIFFERENCES));
                self.settles = versions.contains(&PROTOCOL_SETTLED);
                self.hello(PeerHello { incarnation, boot }, positions, &digests, greeting.as_ref())?;
                if self.is_hub() && self.settles {
                    self.events.push_back(Event::NeedHeard);
                }
            }
            Frame::Channels { positions } if !self.is_hub() => {
                self.sending.subscribe(&positions);
                self.receiving.subscribe(&positions);
                self.events.push_back(Event::Subscribed(positions));
                self.ask_for_records();
            }
            Frame::Channels { .. } => return Err("a device has no channels to announce".into()),
            Frame::Channel { index, name } => self.receiving.introduce_channel(index, name)?,
            Frame::Writer { index, chain } => self.introduce_writer(index, &chain)?,
            Frame::Batch { channel, writer, start, payload } => self.receive_batch(channel, writer, start, payload)?,
            Frame::Snapshot { writer, list } => self.receive_snapshot(writer, list)?,
            Frame::State { ends, piece } => self.receive_state(ends, &piece)?,
            Frame::Ack { logs } => self.acknowledge(&logs)?,
            Frame::Want { channel, writer, after } => {
                self.sending.rewind(&channel, &writer, after);
                self.ask_for_records();
            }
            Frame::Forked { channel, writer, seq } => {
                self.sending.stop(&channel, &writer);
                self.want_branch(&channel, writer);
                self.events.push_back(Event::Forked { channel, writer, seq });
            }
            Frame::Ping => self.frames.push_back(Frame::Pong),
            Frame::Pong => {}
            Frame::Goodbye { reason, retry_after_ms } => {
                self.end = Some(match retry_after_ms {
                    Some(ms) => SessionEnd::RetryAfter { ms },
                    None => SessionEnd::Goodbye(reason),
                });
                self.frames.clear();
            }
            other => self.handle_rest(other, now_ms)?,
        }
        Ok(())
    }

    fn handle_rest(&mut self, frame: Frame, now_ms: u64) -> Result<(), Violation> {
        match frame {
            Frame::Observations { number, observations } if self.is_hub() => {
                if let Some(large) = observations.iter().find(|observation| !observation.is_within_limits()) {
                    return Err(Violation(format!("observation of {:?} is over a limit", large.subject)));
                }
                self.events.push_back(Event::Observe { number, observations });
            }
            Frame::ObservationsAck { number } => {
                if let Some(entries) = self.observing.remove(&number) {
                    self.events.push_back(Event::OutboxAcknowledged(entries));
                    self.pace.answered();
                    self.ask_outbox(now_ms);
                }
            }
            Frame::StreamOpen { id, request } => {
                if self.streams.open_peer(id)? {
                    self.events.push_back(Event::StreamOpened { id, request });
                } else {
                    let reason = Some("too many open streams".to_owned());
                    self.frames.push_back(Frame::StreamClose { id, reason });
                }
            }
            Frame::StreamData { id, bytes } => {
                if self.streams.receive(id, bytes.len())? {
                    self.events.push_back(Event::StreamData { id, bytes });
                }
            }
            Frame::StreamCredit { id, bytes } if self.streams.is_open(id) => {
                let bytes = u32::try_from(bytes).map_err(|_large| Violation::from("a credit beyond all bounds"))?;
                self.events.push_back(Event::StreamCredit { id, bytes });
            }
            Frame::StreamClose { id, reason } if self.streams.close(id) => {
                self.events.push_back(Event::StreamClosed { id, reason });
            }
            Frame::StreamCredit { .. } | Frame::StreamClose { .. } => {}
            Frame::Difference { channel, writer, difference } if !self.is_hub() => {
                self.receive_difference(channel, writer, &difference)?;
            }
            Frame::Heard { clock } if !self.is_hub() => self.events.push_back(Event::Heard(clock)),
            Frame::WantBlob { hash, offset, len } => self.range_is_wanted(hash, offset, len)?,
            Frame::BlobPiece { hash, offset, bytes } => self.receive_blob_piece(&hash, offset, &bytes, now_ms)?,
            Frame::NoBlob { hash } => self.blob_is_refused(hash, now_ms),
            _ => return Err("a frame that is not this side's to send".into()),
        }
        Ok(())
    }

    fn hello(
        &mut self,
        hello: PeerHello,
        positions: Positions,
        digests: &[u64],
        greeting: Option<&Bytes>,
    ) -> Result<(), Violation> {
        let greeting = greeting.map(|greeting| Greeting::verify(greeting, &self.config.root)).transpose()?;
        self.established = true;
        self.sending.peer_stands_at(&positions, !self.is_hub());
        self.events.push_back(Event::Established(hello));
        if let Some(greeting) = greeting {
            self.events.push_back(Event::Greeted(greeting));
        }
        if self.is_hub() {
            self.note_ahead(&positions);
            let digests = digests.to_vec();
            self.events.push_back(Event::StandsAt { positions: positions.clone(), digests });
            self.events.push_back(Event::Acknowledged(positions.clone()));
        } else {
            self.receiving.subscribe(&positions);
            self.events.push_back(Event::Subscribed(positions.clone()));
        }
        self.compare_heads(&positions, digests);
        self.ask_for_records();
        self.ask_missing_blobs();
        Ok(())
    }

    /// Logs that stand at the same number with another hash are forked, though neither side lacks a record.
    fn compare_heads(&mut self, positions: &Positions, digests: &[u64]) {
        let theirs =
            positions.iter().flat_map(|(channel, logs)| logs.iter().map(move |(writer, seq)| (channel, writer, seq)));
        let mut forks = Vec::new();
        for ((channel, writer, seq), digest) in theirs.zip(digests) {
            let own = self.own.get(channel).and_then(|logs| logs.get(writer));
            if own.is_some_and(|own| own.seq == *seq && own.digest() != *digest) {
                forks.push((channel.clone(), *writer, *seq));
            }
        }
        for (channel, writer, seq) in forks {
            self.find_fork(channel, writer, seq);
        }
    }

    /// Something happened at this side.
    pub(crate) fn handle_local(&mut self, local: Local, now_ms: u64) {
        if self.end.is_some() {
            return;
        }
        match local {
            Local::Heads(heads) => {
                let channels_changed = !heads.keys().eq(self.own.keys());
                if !self.is_hub() {
                    self.want_again(&heads);
                }
                if self.is_hub() && channels_changed {
                    self.frames.push_back(Frame::Channels { positions: positions_of(&heads) });
                }
                self.own = few(heads);
                self.sending.grown();
                self.ask_for_lists();
                self.ask_for_records();
            }
            Local::OutboxGrew => {
                self.pace.grew(now_ms);
                self.ask_outbox(now_ms);
            }
            Local::Records { channel, writer, reading, chain } => self.send_records(&channel, writer, reading, chain),
            Local::Branches(branches) => {
                branches.into_iter().for_each(|(channel, writer, seq)| self.find_fork(channel, writer, seq));
            }
            Local::List { channel, writer, seq, reading, chain } => {
                self.send_list((channel, writer, seq), reading, chain);
            }
            Local::Ingested => {
                self.send_acks();
                self.ask_missing_blobs();
            }
            Local::Outbox { observations, limit } => self.send_observations(observations, limit, now_ms),
            Local::Heard(clock) => self.frames.push_back(Frame::Heard { clock }),
            Local::Observed { number } => self.frames.push_back(Frame::ObservationsAck { number }),
            Local::StreamOpen { id, request } => {
                if self.streams.open_own(id) {
                    self.frames.push_back(Frame::StreamOpen { id, request });
                } else {
                    let reason = Some("too many open streams".to_owned());
                    self.events.push_back(Event::StreamClosed { id, reason });
                }
            }
            Local::StreamData { id, bytes } if self.streams.is_open(id) => {
                self.frames.push_back(Frame::StreamData { id, bytes });
            }
            Local::StreamGrant { id, bytes } if self.streams.grant(id, bytes) => {
                self.frames.push_back(Frame::StreamCredit { id, bytes: u64::from(bytes) });
            }
            Local::StreamClose { id, reason } if self.streams.close(id) => {
                let reason = reason.map(|reason| reason_within(&reason, REASON_BYTES_MAX));
                self.frames.push_back(Frame::StreamClose { id, reason });
            }
            Local::StreamData { .. } | Local::StreamGrant { .. } | Local::StreamClose { .. } => {}
            Local::MissingBlobs(missing) => self.blobs_are_missing(missing, now_ms),
            Local::BlobStored { name, stored } => self.blob_was_stored(&name, stored, now_ms),
            Local::BlobRead { hash, offset, bytes } => self.blob_was_read(hash, offset, bytes),
            Local::Close { reason, retry_after_ms, end } => self.finish(&reason, retry_after_ms, end),
        }
    }

    /// Logs that go back were given up by the store, which wants to read them anew.
    fn want_again(&mut self, heads: &Heads) {
        for (channel, logs) in self.own.iter() {
            let Some(now) = heads.get(channel) else { continue };
            for (writer, before) in logs.iter() {
                let after = now.get(writer).map_or(0, |head| head.seq);
                if after < before.seq {
                    self.frames.push_back(Frame::Want { channel: channel.clone(), writer: *writer, after });
                }
            }
        }
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now_ms: u64) {
        if self.end.is_some() {
            return;
        }
        if now_ms >= self.heard_at_ms + SILENCE_MS {
            self.end = Some(SessionEnd::Silent);
            self.frames.clear();
            return;
        }
        if now_ms >= self.heard_at_ms.max(self.pinged_at_ms) + KEEPALIVE_MS {
            self.pinged_at_ms = now_ms;
            self.frames.push_back(Frame::Ping);
        }
        self.ask_refused_again(now_ms);
        self.ask_outbox(now_ms);
    }

    /// When [`Session::handle_timeout`] is to be called at the latest.
    pub(crate) fn poll_timeout(&self) -> u64 {
        let keepalive = (self.heard_at_ms.max(self.pinged_at_ms) + KEEPALIVE_MS).min(self.heard_at_ms + SILENCE_MS);
        let asked = keepalive.min(self.blobs.again_at_ms());
        if self.may_ask_outbox() { asked.min(self.pace.timeout()) } else { asked }
    }

    /// The next frame to send.
    pub(crate) fn poll_frame(&mut self) -> Option<Bytes> {
        self.frames.pop_front().map(|frame| frame.encode())
    }

    /// A piece of something large, to be sent when nothing else waits to leave: a snapshot before a blob.
    pub(crate) fn poll_piece(&mut self) -> Option<Bytes> {
        if self.end.is_some() {
            return None;
        }
        if let Some(frame) = self.sending.next_piece() {
            // A snapshot that has left lets its log go on, and the next list leave.
            if self.sending.all_lists_left() {
                self.ask_for_lists();
            }
            self.ask_for_records();
            return Some(frame.encode());
        }
        let frame = self.blobs.next_piece()?;
        self.read_next_range();
        Some(frame.encode())
    }

    /// The next thing to do.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Session::poll_event`] has something.
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// How it ended; frames that are left are still to be sent.
    pub(crate) fn end(&self) -> Option<&SessionEnd> {
        self.end.as_ref()
    }

    /// Whether the application may ask for more.
    pub(crate) fn has_room(&self) -> bool {
        self.frames.len() < FRAMES_WAITING_MAX
    }

    fn finish(&mut self, reason: &str, retry_after_ms: Option<u64>, end: SessionEnd) {
        self.frames.clear();
        let reason = reason_within(reason, REASON_BYTES_MAX);
        self.frames.push_back(Frame::Goodbye { reason, retry_after_ms });
        self.events.clear();
        self.end = Some(end);
    }

    fn may_ask_outbox(&self) -> bool {
        self.established
            && !self.is_hub()
            && self.outbox_asked.is_none()
            && self.observing.len() < OBSERVATION_FRAMES_MAX
    }

    fn ask_outbox(&mut self, now_ms: u64) {
        if !self.may_ask_outbox() {
            return;
        }
        let urgency = match self.pace.leave(now_ms) {
            Leave::Nothing => return,
            Leave::Urgent => Urgency::UrgentOnly,
            Leave::All => Urgency::All,
        };
        self.outbox_asked = Some(urgency);
        let flying: usize = self.observing.values().map(Vec::len).sum();
        self.events.push_back(Event::NeedOutbox { urgency, limit: OUTBOX_LIMIT + flying });
    }

    fn send_observations(&mut self, observations: Vec<Observation>, limit: usize, now_ms: u64) {
        if self.outbox_asked.take() == Some(Urgency::All) && observations.is_empty() {
            self.pace.is_empty();
        }
        let full = observations.len() >= limit;
        let is_flying = |observation: &Observation| {
            self.observing
                .values()
                .flatten()
                .any(|(subject, clock)| *subject == observation.subject && *clock == observation.clock)
        };
        let mut bytes = 0;
        let mut fits = |observation: &Observation| {
            bytes += observation.subject.len() + observation.body.as_ref().map_or(0, Bytes::len) + 64;
            bytes <= OBSERVATIONS_BYTES_MAX
        };
        let waiting = observations.len();
        let batch: Vec<Observation> = observations
            .into_iter()
            .filter(|observation| observation.is_within_limits() && !is_flying(observation))
            .take(OUTBOX_LIMIT)
            .take_while(|observation| fits(observation))
            .collect();
        if batch.is_empty() {
            return;
        }
        let flying: usize = self.observing.values().map(Vec::len).sum();
        if full || batch.len() + flying < waiting {
            self.pace.more(now_ms);
        }
        self.pace.took(now_ms);
        self.observation_number += 1;
        let number = self.observation_number;
        let entries = batch.iter().map(|observation| (observation.subject.clone(), observation.clock)).collect();
        self.observing.insert(number, entries);
        self.frames.push_back(Frame::Observations { number, observations: batch });
        self.ask_outbox(now_ms);
    }
}

fn few(heads: Heads) -> Few<ChannelName, Few<WriterId, Head>> {
    heads.into_iter().map(|(channel, logs)| (channel, logs.into_iter().collect())).collect()
}

/// A goodbye without a session.
pub(crate) fn goodbye(reason: &str) -> Bytes {
    Frame::Goodbye { reason: reason_within(reason, REASON_BYTES_MAX), retry_after_ms: None }.encode()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
