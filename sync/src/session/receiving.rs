//! The receiving half of replication: names the peer introduced, contiguity, forks, and snapshots that are coming in.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::frame::Frame;
use super::{Event, Session, Violation};
use crate::channel::{CHANNELS_MAX, ChannelName, GENESIS, Hash, Head, Positions, WRITERS_MAX, WriterId};
use crate::few::Few;
use crate::identity::writer::{WriterChain, WriterSubject};
use crate::list::{ChannelSnapshot, SNAPSHOT_BYTES_MAX, STATE_BYTES_MAX, SignedList};
use crate::log::{Batch, Placement, VerifiedBatch, difference, place};
use crate::record::cbor::Decoder;
use crate::replica::Input;

type LogKey = (ChannelName, WriterId);

/// What the peer introduced, and what is being made durable.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    channels: BTreeMap<u64, ChannelName>,
    writers: BTreeMap<u64, WriterChain>,
    /// Device: the channels the hub announced.
    subscribed: BTreeSet<ChannelName>,
    /// What a batch without a start follows.
    chained: BTreeMap<LogKey, Chained>,
    /// Logs with a gap that was asked for: batches are ignored until one fits.
    asked: BTreeMap<LogKey, u64>,
    /// Logs of which the peer has another branch: all their batches are branches. Hub: up to where the branch has come without a gap, once it
    /// has come from its beginning.
    branching: BTreeMap<LogKey, Option<u64>>,
    /// Hub: logs that the device had read further than they go here.
    ahead: BTreeSet<LogKey>,
    /// Hub: logs whose whole branch has come in this session, which is answered once: the same comes as often as the device likes.
    answered: BTreeSet<LogKey>,
    /// Device: how far of its branch of such a log the hub has taken in.
    taken_in: BTreeMap<LogKey, u64>,
    /// Hub: such logs of which the device gave a list of another hub's writer that speaks for them, and up to where; not yet durable.
    listed: BTreeMap<LogKey, u64>,
    /// Device: such logs that a list of the hub has settled since: their records say nothing any more.
    settled: BTreeSet<LogKey>,
    /// Logs to acknowledge once all inputs are durable.
    unacknowledged: BTreeMap<(u64, u64), u64>,
    snapshot: Option<Coming>,
}

/// The end of the last batch received of a log in this session.
#[derive(Debug)]
struct Chained {
    head: Head,
    /// Its payload, where the next one may be told by what differs from it.
    payload: Option<Bytes>,
}

impl Chained {
    /// A copy: the payload itself would hold the buffer that it was read into. A hub is told no differences and keeps none.
    fn of(verified: &VerifiedBatch, keeps: bool) -> Self {
        let payload = &verified.batch().payload;
        let kept = keeps && payload.len() <= difference::KNOWN_BYTES_MAX;
        Self { head: verified.head(), payload: kept.then(|| Bytes::copy_from_slice(payload)) }
    }
}

#[derive(Debug)]
struct Coming {
    chain: WriterChain,
    list: SignedList,
    states: Vec<Bytes>,
    state: BytesMut,
    bytes: usize,
}

impl Receiving {
    pub(super) fn subscribe(&mut self, positions: &Positions) {
        self.subscribed = positions.keys().cloned().collect();
    }

    /// The peer has another branch of this log; false if that was known.
    pub(super) fn branches(&mut self, channel: &ChannelName, writer: WriterId) -> bool {
        let (key, room) = ((channel.clone(), writer), self.branching.len() < WRITERS_MAX);
        room && !self.branching.contains_key(&key) && self.branching.insert(key, None).is_none()
    }

    /// Hub: whether these records of a branch follow what came of it. What was on its way when the fork was found comes again, from the
    /// beginning on.
    fn continues(&mut self, key: &LogKey, first_seq: u64, last_seq: u64, prev: &Hash) -> bool {
        let Some(came) = self.branching.get_mut(key) else { return false };
        let follows = came.map_or(*prev == GENESIS, |came| first_seq <= came + 1);
        if follows {
            *came = (*came).max(Some(last_seq));
        }
        follows
    }

    pub(super) fn introduce_channel(&mut self, index: u64, name: ChannelName) -> Result<(), Violation> {
        if self.channels.len() >= 2 * CHANNELS_MAX || self.channels.insert(index, name).is_some() {
            return Err("a channel introduced twice, or too many".into());
        }
        Ok(())
    }
}

impl Session {
    pub(super) fn introduce_writer(&mut self, index: u64, chain: &Bytes) -> Result<(), Violation> {
        let chain = WriterChain::verify(chain, &self.config.root)?;
        let writers = &mut self.receiving.writers;
        if writers.len() >= 2 * WRITERS_MAX || writers.insert(index, chain.clone()).is_some() {
            return Err("a writer introduced twice, or too many".into());
        }
        self.events.push_back(Event::Ingest(Input::Writer(chain)));
        Ok(())
    }

    pub(super) fn may_receive(&self, channel: &ChannelName) -> bool {
        if self.is_hub() { self.own.contains_key(channel) } else { self.receiving.subscribed.contains(channel) }
    }

    /// A batch that is told by what differs from the one before it.
    pub(super) fn receive_difference(
        &mut self,
        channel_index: u64,
        writer_index: u64,
        difference: &[u8],
    ) -> Result<(), Violation> {
        let channel = self.receiving.channels.get(&channel_index).ok_or("a batch in an unknown channel")?;
        let chain = self.receiving.writers.get(&writer_index).ok_or("a batch of an unknown writer")?;
        let payload = match self.receiving.chained.get(&(channel.clone(), chain.id)) {
            Some(Chained { payload: Some(before), .. }) => difference::whole(before, difference)?,
            Some(Chained { payload: None, .. }) => return Err("a difference to a batch too large to be kept".into()),
            // It follows a batch that was not taken: what is missing is asked for, as without it.
            None => Bytes::new(),
        };
        self.receive_batch(channel_index, writer_index, None, payload)
    }

    pub(super) fn receive_batch(
        &mut self,
        channel_index: u64,
        writer_index: u64,
        start: Option<(u64, Hash)>,
        payload: Bytes,
    ) -> Result<(), Violation> {
        let channel = self.receiving.channels.get(&channel_index).ok_or("a batch in an unknown channel")?.clone();
        let chain = self.receiving.writers.get(&writer_index).ok_or("a batch of an unknown writer")?.clone();
        if !self.may_receive(&channel) {
            // The device was moved between channels while this was on its way, or the peer oversteps: nothing is taken.
            return if self.is_hub() {
                Err(Violation(format!("{channel} is not this device's to write in")))
            } else {
                Ok(())
            };
        }
        if !chain.subject.may_write(&channel) {
            return Err(Violation(format!("{} may not write in {channel}", chain.subject)));
        }
        let key = (channel.clone(), chain.id);
        let (first_seq, prev) = match (start, self.receiving.chained.get(&key)) {
            (Some(start), _) => start,
            (None, Some(Chained { head, .. })) => (head.seq + 1, head.hash),
            // It follows a batch that was not taken: what is missing is asked for, once.
            (None, None) => {
                let after = self.own.get(&channel).and_then(|logs| logs.get(&chain.id)).map_or(0, |head| head.seq);
                if self.receiving.asked.insert(key, after) != Some(after) {
                    self.frames.push_back(Frame::Want { channel, writer: chain.id, after });
                }
                return Ok(());
            }
        };
        let count = Decoder::new(&payload).array(crate::log::BATCH_RECORDS_MAX)? as u64;
        let last_seq =
            first_seq.checked_add(count).and_then(|end| end.checked_sub(1)).ok_or("a batch without records")?;
        let have = self.own.get(&channel).and_then(|logs| logs.get(&chain.id)).copied();
        let batch =
            Batch { channel: channel.clone(), writer: chain.id, first_seq, last_seq, prev, payload, difference: None };
        if self.receiving.branching.contains_key(&key) {
            return self.receive_branch((channel_index, writer_index), key, batch.verify(&chain)?);
        }
        match place(have, first_seq, last_seq, &prev, None) {
            Placement::Next => {
                let verified = batch.verify(&chain)?;
                let head = verified.head();
                self.receiving.chained.insert(key.clone(), Chained::of(&verified, !self.is_hub()));
                self.receiving.asked.remove(&key);
                self.sending.peer_holds(&channel, &chain.id, head.seq);
                self.own.get_or_insert_with(channel, Few::default).insert(chain.id, head);
                self.receiving.unacknowledged.insert((channel_index, writer_index), head.seq);
                self.events.push_back(Event::Ingest(Input::Batch(verified)));
            }
            Placement::Duplicate => {
                let verified = batch.verify(&chain)?;
                if let Placement::Fork { seq } = verified.place(have) {
                    self.find_fork(channel, chain.id, seq);
                    return Ok(());
                }
                self.receiving.chained.insert(key, Chained::of(&verified, !self.is_hub()));
                self.sending.peer_holds(&channel, &chain.id, last_seq);
                self.receiving.unacknowledged.insert((channel_index, writer_index), last_seq);
                if !self.events.iter().any(|event| matches!(event, Event::Ingest(_))) {
                    self.send_acks();
                }
            }
            Placement::Gap { after } => {
                self.receiving.chained.remove(&key);
                if self.receiving.asked.insert(key, after) != Some(after) {
                    self.frames.push_back(Frame::Want { channel, writer: chain.id, after });
                }
            }
            // Only a signed batch is evidence of a fork.
            Placement::Fork { seq } => {
                let verified = batch.verify(&chain)?;
                self.receiving.chained.insert(key, Chained::of(&verified, !self.is_hub()));
                self.find_fork(channel, chain.id, seq);
            }
        }
        Ok(())
    }

    /// Records of the peer's branch of a log. The hub acknowledges a branch as far as it came from its beginning.
    fn receive_branch(&mut self, names: (u64, u64), key: LogKey, verified: VerifiedBatch) -> Result<(), Violation> {
        let settled = self.receiving.settled.contains(&key);
        self.receiving.chained.insert(key.clone(), Chained::of(&verified, !self.is_hub()));
        let batch = verified.batch();
        if !self.is_hub() || self.receiving.continues(&key, batch.first_seq, batch.last_seq, &batch.prev) {
            self.receiving.unacknowledged.insert(names, batch.last_seq);
        }
        if !settled {
            self.events.push_back(Event::Ingest(Input::Branch(verified)));
        }
        Ok(())
    }

    /// A log of which the peer has another branch: both sides learn it, and each asks for the other's branch.
    /// One that is known already is not found again: the peer would stop what it was asked for.
    pub(super) fn find_fork(&mut self, channel: ChannelName, writer: WriterId, seq: u64) {
        if self.receiving.branching.contains_key(&(channel.clone(), writer)) {
            return;
        }
        self.frames.push_back(Frame::Forked { channel: channel.clone(), writer, seq });
        self.want_branch(&channel, writer);
        self.events.push_back(Event::ForkFound { channel: channel.clone(), writer, seq });
        self.events.push_back(Event::Forked { channel, writer, seq });
    }

    /// Both branches are kept: the peer's is asked for, as far as its signed records are kept there. What the peer itself got as a
    /// list with states cannot be passed on: it would be the peer's word.
    pub(super) fn want_branch(&mut self, channel: &ChannelName, writer: WriterId) {
        if self.may_receive(channel) && self.receiving.branches(channel, writer) {
            self.frames.push_back(Frame::Want { channel: channel.clone(), writer, after: 0 });
        }
    }

    pub(super) fn receive_snapshot(&mut self, writer_index: u64, list: Bytes) -> Result<(), Violation> {
        if self.receiving.snapshot.is_some() {
            return Err("a snapshot within a snapshot".into());
        }
        let chain = self.receiving.writers.get(&writer_index).ok_or("a snapshot of an unknown writer")?.clone();
        let list = SignedList::decode(list)?;
        if self.is_hub() && !self.may_receive(&list.channel) {
            return Err(Violation(format!("{} is not this device's to write in", list.channel)));
        }
        let empty = list.items.is_empty();
        self.receiving.snapshot = Some(Coming { chain, list, states: Vec::new(), state: BytesMut::new(), bytes: 0 });
        if empty { self.snapshot_came() } else { Ok(()) }
    }

    pub(super) fn receive_state(&mut self, ends: bool, piece: &Bytes) -> Result<(), Violation> {
        let coming = self.receiving.snapshot.as_mut().ok_or("a state without a list")?;
        coming.bytes += piece.len();
        if coming.state.len() + piece.len() > STATE_BYTES_MAX || coming.bytes > SNAPSHOT_BYTES_MAX {
            return Err(Violation(format!("snapshot of {} is larger than allowed", coming.list.channel)));
        }
        coming.state.extend_from_slice(piece);
        if ends {
            coming.states.push(coming.state.split().freeze());
        }
        if coming.states.len() == coming.list.items.len() { self.snapshot_came() } else { Ok(()) }
    }

    fn snapshot_came(&mut self) -> Result<(), Violation> {
        let Some(Coming { chain, list, states, .. }) = self.receiving.snapshot.take() else { return Ok(()) };
        let verified = ChannelSnapshot { list, states }.verify(&chain)?;
        let list = &verified.snapshot().list;
        for (writer, head) in &list.covers {
            // One that stands where this replica does was signed here: the peer has its own branch beside it.
            let here = self.own.get(&list.channel).and_then(|logs| logs.get(writer));
            let key = (list.channel.clone(), *writer);
            let branch = self.receiving.branching.get_mut(&key);
            if let Some(came) = branch.filter(|_| here != Some(head)) {
                *came = (*came).max(Some(head.seq));
                if *writer != list.writer && chain.subject == WriterSubject::Hub {
                    self.receiving.listed.insert(key, head.seq);
                }
            }
        }
        let is_branch = |writer: &WriterId| self.receiving.branching.contains_key(&(list.channel.clone(), *writer));
        if !self.may_receive(&list.channel) || (is_branch(&list.writer) && !self.is_hub()) {
            return Ok(());
        }
        // What the list of another branch does not name is not deleted; what it names holds all the same.
        // Nor is what it does not name of a log that goes further here: nobody knows yet whether it is on another branch.
        let goes_further = |writer: &WriterId, head: &Head| {
            let here = self.own.get(&list.channel).and_then(|logs| logs.get(writer));
            !self.is_hub() && *writer != list.writer && here.is_some_and(|here| here.seq > head.seq)
        };
        let apart = list.covers.iter().filter(|(writer, head)| is_branch(writer) || goes_further(writer, head));
        let (settled, branches): (BTreeSet<_>, BTreeSet<_>) =
            apart.map(|(writer, _)| *writer).partition(|writer| self.has_given_all(&list.channel, writer));
        let logs = self.own.get_or_insert_with(list.channel.clone(), Few::default);
        for (writer, head) in list.covers.iter().filter(|(writer, _)| !branches.contains(*writer)) {
            let key = (list.channel.clone(), *writer);
            let stands_at = logs.get_or_insert_with(*writer, || *head);
            if head.seq > stands_at.seq || settled.contains(writer) {
                *stands_at = *head;
            }
            if settled.contains(writer) {
                self.receiving.settled.insert(key.clone());
            }
            self.receiving.asked.remove(&key);
            self.receiving.chained.remove(&key);
            self.sending.peer_holds(&list.channel, writer, head.seq);
        }
        let channel = self.receiving.channels.iter().find(|(_, name)| **name == list.channel).map(|(index, _)| *index);
        let writer = self.receiving.writers.iter().find(|(_, known)| known.id == list.writer).map(|(index, _)| *index);
        if let (Some(channel), Some(writer)) = (channel, writer) {
            self.receiving.unacknowledged.insert((channel, writer), list.head.seq);
        }
        self.events.push_back(Event::Ingest(Input::Snapshot(verified.sparing(branches).settling(settled))));
        Ok(())
    }

    /// Device: whether the hub has taken in all of this branch of a log.
    fn has_given_all(&self, channel: &ChannelName, writer: &WriterId) -> bool {
        let taken_in = self.receiving.taken_in.get(&(channel.clone(), *writer)).copied();
        let here = self.own.get(channel).and_then(|logs| logs.get(writer)).map_or(0, |head| head.seq);
        !self.is_hub() && self.settles && taken_in.is_some_and(|seq| seq >= here)
    }

    /// Device: the hub has made a record of its own durable; of another branch than it knew, it has taken in all before it too.
    pub(super) fn was_taken_in(&mut self, key: &LogKey, seq: u64) {
        if self.receiving.branching.contains_key(key) {
            let furthest = self.receiving.taken_in.entry(key.clone()).or_insert(0);
            *furthest = seq.max(*furthest);
        }
    }

    /// Everything received so far is durable.
    pub(super) fn send_acks(&mut self) {
        let acks = std::mem::take(&mut self.receiving.unacknowledged);
        self.answer_branches(&acks);
        let logs: Vec<_> = acks.into_iter().map(|((channel, writer), seq)| (channel, writer, seq)).collect();
        for logs in logs.chunks(super::frame::ACKS_MAX) {
            self.frames.push_back(Frame::Ack { logs: logs.to_vec() });
        }
    }

    /// Hub: the device has read these logs further than they go here: it has something to give.
    pub(super) fn note_ahead(&mut self, positions: &Positions) {
        for (channel, logs) in positions {
            for (writer, seq) in logs {
                if self.own.get(channel).and_then(|logs| logs.get(writer)).map_or(0, |head| head.seq) < *seq {
                    self.receiving.ahead.insert((channel.clone(), *writer));
                }
            }
        }
    }

    /// Hub: who has given all that it had further, or of another branch, is told what has become of it. The list leaves behind the
    /// acknowledgement.
    fn answer_branches(&mut self, acks: &BTreeMap<(u64, u64), u64>) {
        let listed = std::mem::take(&mut self.receiving.listed);
        if !self.is_hub() {
            return;
        }
        let known = |((channel, writer), seq): (&(u64, u64), &u64)| {
            let chain = self.receiving.writers.get(writer)?;
            // A device's own log is its own affair: no list of the hub says what becomes of it.
            let log = (self.receiving.channels.get(channel)?.clone(), chain.id);
            (chain.subject == WriterSubject::Hub).then_some((log, *seq))
        };
        let given: Vec<(LogKey, u64)> = acks.iter().filter_map(known).chain(listed).collect();
        for (key, seq) in given {
            let gives = self.receiving.branching.contains_key(&key) || self.receiving.ahead.contains(&key);
            if gives && seq >= self.sending.peer_stood_at(&key) && self.receiving.answered.insert(key.clone()) {
                let (channel, writer) = key;
                self.events.push_back(Event::BranchCame { channel, writer, seq });
            }
        }
    }
}
