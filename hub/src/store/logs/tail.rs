//! The newest batches of the hub's own logs in memory: what a change says is read by every session it concerns, and what a storm of
//! returning devices lacks is mostly the same.
//!
//! Owns which batches are kept and for how long. Refuses to guess: a log whose batches do not follow one another to its head is read
//! from the disk.

use std::collections::{BTreeMap, HashMap, VecDeque, vec_deque};

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, WriterId};
use flotilla_sync::log::Batch;

/// Bytes kept of one log, and of all logs.
const LOG_BYTES_MAX: usize = 256 * 1024;
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of a batch beside its payload: names, hashes, and the maps that hold it.
const BATCH_OVERHEAD_BYTES: usize = 256;

type LogKey = (ChannelName, WriterId);

/// The ends of the logs, newest growth last.
#[derive(Debug, Default)]
pub(super) struct Tails {
    logs: HashMap<LogKey, Tail>,
    /// By when a log last grew.
    order: BTreeMap<u64, LogKey>,
    grown: u64,
    bytes: usize,
    /// How often all was forgotten.
    life: u64,
}

/// Consecutive batches at the end of one log.
#[derive(Debug, Default)]
struct Tail {
    batches: VecDeque<Batch>,
    bytes: usize,
    grown: u64,
}

/// What is known here of a log after a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// These batches, all the records there are up to the head; together about `bytes_max`, at least one if there is any.
    Batches(Vec<Batch>),
    /// Not all of it is here.
    Elsewhere,
}

impl Tails {
    /// The log has grown by this batch, and it is durable.
    pub(super) fn grew(&mut self, batch: Batch) {
        let key = (batch.channel.clone(), batch.writer);
        self.grown += 1;
        let tail = self.logs.entry(key.clone()).or_default();
        self.order.remove(&tail.grown);
        tail.grown = self.grown;
        self.order.insert(self.grown, key);
        if tail.batches.back().is_some_and(|last| last.last_seq + 1 != batch.first_seq) {
            self.bytes -= tail.bytes;
            (tail.batches, tail.bytes) = (VecDeque::new(), 0);
        }
        let size = size_of(&batch);
        tail.batches.push_back(batch);
        (tail.bytes, self.bytes) = (tail.bytes + size, self.bytes + size);
        while tail.bytes > LOG_BYTES_MAX && tail.batches.len() > 1 {
            let Some(oldest) = tail.batches.pop_front() else { break };
            let size = size_of(&oldest);
            (tail.bytes, self.bytes) = (tail.bytes - size, self.bytes - size);
        }
        while self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(tail) = self.logs.remove(&oldest) {
                self.bytes -= tail.bytes;
            }
        }
    }

    /// The newest batch of a log.
    pub(super) fn newest(&self, channel: &ChannelName, writer: &WriterId) -> Option<Batch> {
        self.logs.get(&(channel.clone(), *writer))?.batches.back().cloned()
    }

    /// The batch of a log that holds this record.
    pub(super) fn holding(&self, key: &LogKey, seq: u64) -> Option<&Batch> {
        let batches = &self.logs.get(key)?.batches;
        let at = batches.partition_point(|batch| batch.last_seq < seq);
        batches.get(at).filter(|batch| batch.first_seq <= seq)
    }

    /// What [`Self::learn`] is to be told of a reading that begins now.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// What was read from the disk up to the head, from a time when this life had begun: the next reader finds it here.
    pub(super) fn learn(&mut self, life: u64, batches: &[Batch]) {
        let Some(first) = batches.first().filter(|_| life == self.life) else { return };
        let key = (first.channel.clone(), first.writer);
        let known = self.logs.get(&key).and_then(|tail| tail.batches.front()).map_or(u64::MAX, |batch| batch.first_seq);
        if known <= first.first_seq {
            return;
        }
        self.forget(&key);
        batches.iter().cloned().for_each(|batch| self.grew(batch));
    }

    /// The log is another one now, or its records are gone.
    pub(super) fn forget(&mut self, key: &LogKey) {
        if let Some(tail) = self.logs.remove(key) {
            self.order.remove(&tail.grown);
            self.bytes -= tail.bytes;
        }
    }

    pub(super) fn forget_all(&mut self) {
        *self = Self { life: self.life + 1, ..Self::default() };
    }

    /// Payload bytes of all that the log has after `after`; `None` when not all of it is here.
    pub(super) fn bytes_after(&self, channel: &ChannelName, writer: &WriterId, head: u64, after: u64) -> Option<usize> {
        Some(self.run_after(channel, writer, head, after)?.map(|batch| batch.payload.len()).sum())
    }

    /// What the log, which stands at `head`, has after `after`.
    pub(super) fn after(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        head: u64,
        after: u64,
        bytes_max: usize,
    ) -> Rest {
        let Some(run) = self.run_after(channel, writer, head, after) else { return Rest::Elsewhere };
        let mut bytes = 0;
        let fits = |batch: &&Batch| {
            let first = bytes == 0;
            bytes += batch.payload.len();
            first || bytes <= bytes_max
        };
        Rest::Batches(run.take_while(fits).cloned().collect())
    }

    /// The batches after `after` up to `head`; `None` when not all of them are here.
    fn run_after(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        head: u64,
        after: u64,
    ) -> Option<vec_deque::Iter<'_, Batch>> {
        if after >= head {
            return Some(vec_deque::Iter::default());
        }
        let batches = &self.logs.get(&(channel.clone(), *writer))?.batches;
        let from = batches.partition_point(|batch| batch.first_seq <= after);
        let whole = batches.get(from).is_some_and(|batch| batch.first_seq == after + 1)
            && batches.back().is_some_and(|batch| batch.last_seq >= head);
        whole.then(|| batches.range(from..))
    }
}

/// Works out once, for every session that will send them, how batches in a row differ from one another.
pub(super) fn tell_by_difference(batches: &mut [Batch]) {
    for at in 1..batches.len() {
        let (before, rest) = batches.split_at_mut(at);
        if let (Some(before), Some(batch)) = (before.last(), rest.first_mut())
            && matches!(batch.channel, ChannelName::Fleet(_))
        {
            batch.follows(before);
        }
    }
}

fn size_of(batch: &Batch) -> usize {
    batch.payload.len() + batch.difference.as_ref().map_or(0, Bytes::len) + BATCH_OVERHEAD_BYTES
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const WRITER: WriterId = WriterId([1; 32]);

    fn batch(channel: &str, first_seq: u64, last_seq: u64, len: usize) -> Batch {
        let channel = ChannelName::parse(channel).unwrap();
        Batch {
            channel,
            writer: WRITER,
            first_seq,
            last_seq,
            prev: [0; 32],
            payload: Bytes::from(vec![0; len]),
            difference: None,
        }
    }

    fn seqs(rest: Rest) -> Option<Vec<u64>> {
        match rest {
            Rest::Batches(batches) => Some(batches.iter().map(|batch| batch.first_seq).collect()),
            Rest::Elsewhere => None,
        }
    }

    #[test]
    fn what_follows_a_position_is_given_whole_or_not_at_all() {
        let fleet = ChannelName::parse("fleet/default").unwrap();
        let mut tails = Tails::default();
        assert_eq!(seqs(tails.after(&fleet, &WRITER, 3, 0, 100)), None, "nothing is here");
        assert_eq!(seqs(tails.after(&fleet, &WRITER, 3, 3, 100)), Some(vec![]), "nothing is newer");
        tails.grew(batch("fleet/default", 4, 5, 40));
        tails.grew(batch("fleet/default", 6, 6, 40));
        tails.grew(batch("fleet/default", 7, 7, 40));
        let rest = |tails: &Tails, head, after, max| seqs(tails.after(&fleet, &WRITER, head, after, max));
        assert_eq!(rest(&tails, 7, 2, 1000), None, "3 is not here");
        assert_eq!(rest(&tails, 7, 3, 1000), Some(vec![4, 6, 7]));
        assert_eq!(rest(&tails, 7, 3, 80), Some(vec![4, 6]), "as much as was asked for");
        assert_eq!(rest(&tails, 7, 6, 1), Some(vec![7]), "one at least");
        assert_eq!(rest(&tails, 7, 4, 1000), None, "within a batch");
        assert_eq!(rest(&tails, 8, 6, 1000), None, "the head is further");
        let key = (fleet.clone(), WRITER);
        let holding = |seq| tails.holding(&key, seq).map(|batch| batch.first_seq);
        assert_eq!(
            [holding(3), holding(4), holding(5), holding(7), holding(8)],
            [None, Some(4), Some(4), Some(7), None]
        );
        // A hole: what was before is of no use.
        tails.grew(batch("fleet/default", 9, 9, 40));
        assert_eq!(rest(&tails, 9, 6, 1000), None);
        assert_eq!(rest(&tails, 9, 8, 1000), Some(vec![9]));
        tails.forget(&(fleet.clone(), WRITER));
        assert_eq!(rest(&tails, 9, 8, 1000), None);
        assert_eq!(tails.bytes, 0);
    }

    #[test]
    fn what_was_read_from_the_disk_is_kept_if_it_reaches_further_back() {
        let fleet = ChannelName::parse("fleet/default").unwrap();
        let mut tails = Tails::default();
        tails.grew(batch("fleet/default", 3, 3, 10));
        let life = tails.life();
        tails.learn(life, &[batch("fleet/default", 1, 2, 10), batch("fleet/default", 3, 3, 10)]);
        assert_eq!(seqs(tails.after(&fleet, &WRITER, 3, 0, 100)), Some(vec![1, 3]));
        tails.learn(life, &[batch("fleet/default", 3, 3, 10)]);
        assert_eq!(seqs(tails.after(&fleet, &WRITER, 3, 0, 100)), Some(vec![1, 3]));
        // Read before old records went, kept after: it would be more than the disk has.
        tails.forget_all();
        tails.learn(life, &[batch("fleet/default", 1, 2, 10), batch("fleet/default", 3, 3, 10)]);
        assert_eq!(seqs(tails.after(&fleet, &WRITER, 3, 0, 100)), None);
    }

    #[test]
    fn batches_in_a_row_are_told_by_their_difference_and_those_of_one_device_are_not() {
        let mut shared = [batch("fleet/default", 1, 1, 400), batch("fleet/default", 2, 2, 400)];
        tell_by_difference(&mut shared);
        assert_eq!(shared.each_ref().map(|batch| batch.difference.is_some()), [false, true]);
        let mut own = [batch("device/a", 1, 1, 400), batch("device/a", 2, 2, 400)];
        tell_by_difference(&mut own);
        assert_eq!(own.each_ref().map(|batch| batch.difference.is_some()), [false, false]);
    }

    #[test]
    fn both_bounds_hold_whatever_grows() {
        let mut tails = Tails::default();
        for seq in 1..=100 {
            tails.grew(batch("fleet/default", seq, seq, 10_000));
        }
        assert!(tails.bytes <= LOG_BYTES_MAX);
        let fleet = ChannelName::parse("fleet/default").unwrap();
        assert!(matches!(tails.after(&fleet, &WRITER, 100, 99, 1), Rest::Batches(_)), "the newest is kept");
        for device in 0..1000 {
            tails.grew(batch(&format!("device/d{device}"), 1, 1, 100_000));
        }
        assert!(tails.bytes <= BYTES_MAX, "{}", tails.bytes);
        assert_eq!(tails.logs.len(), tails.order.len());
        let first = ChannelName::parse("device/d0").unwrap();
        let last = ChannelName::parse("device/d999").unwrap();
        assert_eq!(seqs(tails.after(&first, &WRITER, 1, 0, 1)), None, "the longest unchanged went");
        assert_eq!(seqs(tails.after(&last, &WRITER, 1, 0, 1)), Some(vec![1]));
    }
}
