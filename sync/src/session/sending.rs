//! The sending half of replication: what the peer lacks, what is in flight, and names introduced to the peer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{Frame, STATE_PIECE_BYTES};
use super::{Event, Session, Violation};
use crate::channel::{ChannelName, Hash, Positions, WriterId};
use crate::few::Few;
use crate::identity::writer::WriterChain;
use crate::list::ChannelSnapshot;
use crate::log::Batch;
use crate::planted::{self, Bug};
use crate::replica::Reading;

/// Bytes asked of the store at a time.
const READ_BYTES: usize = 256 * 1024;
/// Most bytes of batches the peer has not acknowledged.
const FLIGHT_BYTES_MAX: usize = 1024 * 1024;

type LogKey = (ChannelName, WriterId);

/// What was sent and what the peer has.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Where the peer stood at its hello, for logs not yet sent from.
    peer: Few<ChannelName, Few<WriterId, u64>>,
    /// Device: only channels the hub reads are sent in.
    restricted: bool,
    /// The peer is a device that takes [`Frame::Difference`].
    differences: bool,
    logs: Few<LogKey, SendingLog>,
    channels: Few<ChannelName, u64>,
    writers: Few<WriterId, u64>,
    names: Few<(u64, u64), LogKey>,
    flight: VecDeque<Flying>,
    flight_bytes: usize,
    snapshots: VecDeque<Leaving>,
    /// Branches that the peer has given, up to which record, and whose channel's list cannot be had yet, see [`Reading::Later`].
    lists_owed: Vec<(ChannelName, WriterId, u64)>,
}

#[derive(Debug, Default)]
struct SendingLog {
    sent: u64,
    /// The head sent last in this session: the next batch may leave out what follows from it.
    chained: Option<u64>,
    reading: bool,
    /// What the store was asked for.
    asked: u64,
    /// The peer found a fork, or this replica does not keep the log.
    stopped: bool,
    /// See [`Reading::Later`].
    waits: bool,
}

#[derive(Debug)]
struct Flying {
    log: LogKey,
    seq: u64,
    bytes: usize,
}

/// A snapshot whose states are leaving piece by piece.
#[derive(Debug)]
struct Leaving {
    /// The log that it was read for.
    log: LogKey,
    /// Logs that it speaks for: the records that follow wait, or they would come before it.
    covers: Vec<WriterId>,
    head: Option<Frame>,
    states: VecDeque<Bytes>,
}

impl Sending {
    pub(super) fn peer_stands_at(&mut self, positions: &Positions, restricted: bool) {
        self.peer = positions.iter().map(|(channel, logs)| (channel.clone(), few(logs))).collect();
        self.restricted = restricted;
    }

    /// The peer takes batches told by what differs.
    pub(super) fn tell_differences(&mut self, differences: bool) {
        self.differences = differences;
    }

    /// How far the peer had read a log at its hello.
    pub(super) fn peer_stood_at(&self, key: &LogKey) -> u64 {
        self.peer.get(&key.0).and_then(|logs| logs.get(&key.1)).copied().unwrap_or(0)
    }

    /// Device: the hub reads these channels from now on.
    pub(super) fn subscribe(&mut self, positions: &Positions) {
        self.peer.retain(|channel, _| positions.contains_key(channel));
        for (channel, logs) in positions {
            self.peer.get_or_insert_with(channel.clone(), || few(logs));
        }
        self.logs.retain(|(channel, _), _| positions.contains_key(channel));
    }

    fn log(&mut self, key: &LogKey) -> &mut SendingLog {
        let stands_at = self.peer_stood_at(key);
        self.logs.get_or_insert_with(key.clone(), || SendingLog { sent: stands_at, ..SendingLog::default() })
    }

    /// The peer has sent this itself: it is not sent back.
    pub(super) fn peer_holds(&mut self, channel: &ChannelName, writer: &WriterId, seq: u64) {
        let log = self.log(&(channel.clone(), *writer));
        if seq > log.sent {
            log.sent = seq;
            log.chained = None;
        }
    }

    /// The peer lacks what follows `after`.
    pub(super) fn rewind(&mut self, channel: &ChannelName, writer: &WriterId, after: u64) {
        let log = self.log(&(channel.clone(), *writer));
        if after < log.sent || log.stopped {
            log.stopped = false;
            log.sent = after;
            log.chained = None;
        }
    }

    /// Logs have grown: those that could not be read may be read now.
    pub(super) fn grown(&mut self) {
        self.logs.values_mut().for_each(|log| log.waits = false);
    }

    /// Nothing more is sent of a log.
    pub(super) fn stop(&mut self, channel: &ChannelName, writer: &WriterId) {
        self.log(&(channel.clone(), *writer)).stopped = true;
    }

    /// The next piece of a snapshot.
    pub(super) fn next_piece(&mut self) -> Option<Frame> {
        let leaving = self.snapshots.front_mut()?;
        if let Some(frame) = leaving.head.take() {
            if leaving.states.is_empty() {
                self.snapshot_left();
            }
            return Some(frame);
        }
        let state = leaving.states.front_mut()?;
        let piece = state.split_to(state.len().min(STATE_PIECE_BYTES));
        let ends = state.is_empty();
        if ends {
            leaving.states.pop_front();
            if leaving.states.is_empty() {
                self.snapshot_left();
            }
        }
        Some(Frame::State { ends, piece })
    }

    pub(super) fn all_lists_left(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// A list of this channel waits to leave, or is leaving.
    fn is_listing(&self, channel: &ChannelName) -> bool {
        self.snapshots.iter().any(|leaving| leaving.log.0 == *channel)
    }

    /// A list that speaks for this log waits to leave, or is leaving.
    fn is_listing_log(&self, channel: &ChannelName, writer: &WriterId) -> bool {
        self.snapshots.iter().any(|leaving| leaving.log.0 == *channel && leaving.covers.contains(writer))
    }

    fn snapshot_left(&mut self) {
        if let Some(leaving) = self.snapshots.pop_front() {
            self.log(&leaving.log).reading = false;
        }
    }

    /// Introduces names to the peer where that is due.
    fn introduce(
        &mut self,
        key: &LogKey,
        chain: Option<WriterChain>,
        frames: &mut VecDeque<Frame>,
    ) -> Option<(u64, u64)> {
        let known_writer = self.writers.get(&key.1).copied();
        let writer = match (known_writer, chain) {
            (Some(index), _) => index,
            (None, Some(chain)) => {
                let index = self.writers.len() as u64;
                self.writers.insert(key.1, index);
                frames.push_back(Frame::Writer { index, chain: Bytes::copy_from_slice(chain.encode()) });
                index
            }
            (None, None) => return None,
        };
        let known = self.channels.len() as u64;
        let channel = *self.channels.get_or_insert_with(key.0.clone(), || {
            frames.push_back(Frame::Channel { index: known, name: key.0.clone() });
            known
        });
        self.names.insert((channel, writer), key.clone());
        Some((channel, writer))
    }

    fn batch(&mut self, key: &LogKey, (channel, writer): (u64, u64), batch: &Batch) -> Frame {
        let log = self.log(key);
        let follows = log.chained == Some(batch.first_seq - 1);
        let start: Option<(u64, Hash)> = (!follows).then_some((batch.first_seq, batch.prev));
        log.sent = batch.last_seq;
        log.chained = Some(batch.last_seq);
        let bytes = batch.payload.len();
        self.flight_bytes += bytes;
        self.flight.push_back(Flying { log: key.clone(), seq: batch.last_seq, bytes });
        match &batch.difference {
            Some(difference) if follows && self.differences => {
                Frame::Difference { channel, writer, difference: difference.clone() }
            }
            _ => Frame::Batch { channel, writer, start, payload: batch.payload.clone() },
        }
    }

    fn snapshot(&mut self, key: &LogKey, writer: u64, snapshot: ChannelSnapshot) {
        let head = Frame::Snapshot { writer, list: snapshot.list.encoded().clone() };
        for (covered, head) in &snapshot.list.covers {
            let log = self.log(&(key.0.clone(), *covered));
            if head.seq > log.sent {
                log.sent = head.seq;
                log.chained = None;
            }
        }
        let (covers, states) = (snapshot.list.covers.into_keys().collect(), VecDeque::from(snapshot.states));
        self.log(key).reading = true;
        self.snapshots.push_back(Leaving { log: key.clone(), covers, head: Some(head), states });
    }
}

fn few(logs: &std::collections::BTreeMap<WriterId, u64>) -> Few<WriterId, u64> {
    logs.iter().map(|(writer, seq)| (*writer, *seq)).collect()
}

impl Session {
    /// Asks the store for what the peer lacks, one question per log, within the bounds of what is in flight.
    pub(super) fn ask_for_records(&mut self) {
        if !self.established {
            return;
        }
        for (channel, logs) in self.own.iter() {
            if self.sending.restricted && !self.sending.peer.contains_key(channel) {
                continue;
            }
            for (writer, head) in logs.iter() {
                if self.sending.flight_bytes >= FLIGHT_BYTES_MAX {
                    return;
                }
                if self.sending.is_listing_log(channel, writer) {
                    continue;
                }
                let with_chain = !self.sending.writers.contains_key(writer);
                let log = self.sending.log(&(channel.clone(), *writer));
                if head.seq > log.sent && !log.reading && !log.stopped && !log.waits {
                    log.reading = true;
                    log.asked = log.sent;
                    let (channel, after) = (channel.clone(), log.sent);
                    let ask = Event::NeedRecords { channel, writer: *writer, after, bytes_max: READ_BYTES, with_chain };
                    self.events.push_back(ask);
                }
            }
        }
    }

    /// The store's answer.
    pub(super) fn send_records(
        &mut self,
        channel: &ChannelName,
        writer: WriterId,
        reading: Reading,
        chain: Option<WriterChain>,
    ) {
        let key = (channel.clone(), writer);
        let log = self.sending.log(&key);
        log.reading = false;
        if log.asked != log.sent {
            // The peer asked for earlier ones while the store was read.
            self.ask_for_records();
            return;
        }
        let nothing_newer = match &reading {
            Reading::Batches(batches) => batches.is_empty(),
            Reading::Snapshot(_) => false,
            Reading::NotKept => true,
            Reading::Later => {
                log.waits = true;
                return;
            }
        };
        // A list may be that of a later writer, whose covers contain this log.
        let speaker = match &reading {
            Reading::Snapshot(snapshot) => (channel.clone(), snapshot.list.writer),
            Reading::Batches(_) | Reading::NotKept | Reading::Later => key.clone(),
        };
        let names = if nothing_newer { None } else { self.sending.introduce(&speaker, chain, &mut self.frames) };
        let Some(names) = names else {
            // Not kept, or no certificate to prove it by: this log is not this replica's to pass on.
            self.sending.log(&key).stopped = true;
            return;
        };
        match reading {
            Reading::Batches(batches) => {
                for batch in &batches {
                    let frame = self.sending.batch(&key, names, batch);
                    self.frames.push_back(frame);
                }
            }
            Reading::Snapshot(snapshot) => {
                self.sending.log(&key).stopped =
                    planted::is(Bug::SilentAfterList) || !snapshot.list.covers.contains_key(&writer);
                self.sending.snapshot(&key, names.1, snapshot);
            }
            Reading::NotKept | Reading::Later => {}
        }
        self.ask_for_records();
    }

    /// Logs have grown, or a list has left: those that could not be made may be made now.
    pub(super) fn ask_for_lists(&mut self) {
        for (channel, writer, seq) in std::mem::take(&mut self.sending.lists_owed) {
            if self.sending.is_listing(&channel) {
                self.sending.lists_owed.push((channel, writer, seq));
            } else {
                self.events.push_back(Event::BranchCame { channel, writer, seq });
            }
        }
    }

    /// The store's answer to [`Event::BranchCame`].
    pub(super) fn send_list(
        &mut self,
        branch: (ChannelName, WriterId, u64),
        reading: Reading,
        chain: Option<WriterChain>,
    ) {
        let waits = matches!(reading, Reading::Later)
            // One list of a channel at a time: whoever does not read would have the hub hold any number of them.
            || (matches!(reading, Reading::Snapshot(_)) && self.sending.is_listing(&branch.0));
        match reading {
            _ if waits => {
                if !self.sending.lists_owed.contains(&branch) {
                    self.sending.lists_owed.push(branch);
                }
            }
            Reading::Snapshot(snapshot) if self.settles => {
                let speaker = (branch.0, snapshot.list.writer);
                if let Some((_, writer)) = self.sending.introduce(&speaker, chain, &mut self.frames) {
                    self.sending.snapshot(&speaker, writer, snapshot);
                }
            }
            Reading::Snapshot(_) | Reading::Later | Reading::Batches(_) | Reading::NotKept => {}
        }
    }

    /// The peer has made these durable.
    pub(super) fn acknowledge(&mut self, acks: &[(u64, u64, u64)]) -> Result<(), Violation> {
        let mut positions = Positions::new();
        for (channel, writer, seq) in acks {
            let key =
                self.sending.names.get(&(*channel, *writer)).ok_or("an acknowledgement of an unknown log")?.clone();
            let mut freed = 0;
            self.sending.flight.retain(|flying| {
                let acknowledged = flying.log == key && flying.seq <= *seq;
                freed += if acknowledged { flying.bytes } else { 0 };
                !acknowledged
            });
            self.sending.flight_bytes -= freed;
            self.was_taken_in(&key, *seq);
            positions.entry(key.0).or_default().insert(key.1, *seq);
        }
        if self.is_hub() {
            self.events.push_back(Event::Acknowledged(positions));
        }
        self.ask_for_records();
        Ok(())
    }
}
