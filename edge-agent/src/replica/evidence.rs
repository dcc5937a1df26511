//! Proof of what the hub said, for a hub that has forgotten it.
//!
//! A hub restored from a backup asks its devices for what the backup lacks, and takes nobody's word: so a device keeps, beside
//! the items it acts on, the hub's signed batches since the last signed list of a channel, and that list with its states.
//! What has no proof (an older version kept none) or too long a one is asked of the hub again, unless the hub itself is behind.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, ChannelState, GENESIS, Head, Heads, Positions, WriterId, positions_of};
use flotilla_sync::identity::writer::{WriterChain, WriterSubject};
use flotilla_sync::list::{ChannelSnapshot, SignedList, VerifiedSnapshot};
use flotilla_sync::log::{Batch, VerifiedBatch};
use flotilla_sync::replica::{Reading, ReplicaError};

use super::{DeviceReplica, State, failed};
use crate::store::{BatchRow, EvidenceRows, Ingest, Kept, KeptRow, ListRow};

/// Records of one log kept as proof; beyond, a list is asked for, which the hub serves from about this length on.
const RECORDS_MAX: u64 = 6_000;
/// Bytes of one log kept as proof.
const BYTES_MAX: u64 = 20 * 1024 * 1024;

type LogKey = (ChannelName, WriterId);

/// How far each log of a hub is proven.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    logs: BTreeMap<LogKey, Span>,
    /// Logs that are being asked for anew.
    asking: BTreeSet<LogKey>,
    /// Where logs stood when this process asked for them: again only after so many more records as make a proof too long.
    asked: BTreeMap<LogKey, u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    /// A list speaks up to here.
    covered: u64,
    /// The last record of the batches kept.
    last: u64,
    records: u64,
    bytes: u64,
    /// Where a reader that was asked anew stands.
    head: Option<Head>,
}

impl Span {
    fn end(&self) -> u64 {
        self.covered.max(self.last)
    }

    fn is_long(&self) -> bool {
        self.records > RECORDS_MAX || self.bytes > BYTES_MAX
    }
}

/// The stored proof cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("what the hub signed is damaged on this device's disk: {0}")]
struct DamagedEvidence(String);

impl Evidence {
    pub(super) fn of(rows: &[KeptRow]) -> Self {
        let mut logs = BTreeMap::new();
        for row in rows {
            let (Ok(channel), Ok(writer)) = (ChannelName::parse(&row.channel), row.writer.clone().try_into()) else {
                continue;
            };
            let span =
                Span { covered: row.covered, last: row.last, records: row.records, bytes: row.bytes, head: None };
            logs.insert((channel, WriterId(writer)), span);
        }
        Self { logs, ..Self::default() }
    }

    /// Takes a batch of a hub's log in, if it follows what is kept.
    pub(super) fn batch(&mut self, verified: &VerifiedBatch, rows: &mut EvidenceRows) {
        let batch = verified.batch();
        let key = (batch.channel.clone(), batch.writer);
        let span = self.logs.entry(key.clone()).or_default();
        let follows = if span.end() == 0 { batch.prev == GENESIS } else { batch.first_seq <= span.end() + 1 };
        if !follows || batch.last_seq <= span.end() {
            return;
        }
        let bytes = batch.encode();
        span.last = batch.last_seq;
        span.records += verified.records().len() as u64;
        span.bytes += bytes.len() as u64;
        span.head = Some(verified.head());
        rows.batches.push(BatchRow {
            channel: batch.channel.to_string(),
            writer: batch.writer.0.to_vec(),
            first: batch.first_seq,
            last: batch.last_seq,
            bytes,
        });
    }

    /// Takes a list with its states in; the batches it speaks for are no longer needed.
    pub(super) fn list(&mut self, verified: &VerifiedSnapshot, rows: &mut EvidenceRows) {
        let ChannelSnapshot { list, states } = verified.snapshot();
        let covers = verified.covers();
        for (writer, head) in &covers {
            let span = self.logs.entry((list.channel.clone(), *writer)).or_default();
            if verified.settled().contains(writer) {
                // What was kept is of another branch, and the hub has it.
                *span = Span { covered: head.seq, head: Some(*head), ..Span::default() };
                rows.dropped.push((list.channel.to_string(), writer.0.to_vec()));
                continue;
            }
            span.covered = span.covered.max(head.seq);
            if span.last <= span.covered {
                *span = Span { covered: span.covered, head: Some(*head), ..Span::default() };
            }
        }
        rows.batches.retain(|row| {
            let covered = covers.iter().find(|(writer, _)| writer.0 == *row.writer);
            let kept = |(writer, head): (&WriterId, &Head)| row.last > head.seq && !verified.settled().contains(writer);
            row.channel != list.channel.to_string() || covered.is_none_or(kept)
        });
        rows.lists.push(ListRow {
            channel: list.channel.to_string(),
            writer: list.writer.0.to_vec(),
            list: list.encoded().to_vec(),
            states: states.iter().map(|state| state.to_vec()).collect(),
            covers: covers.iter().map(|(writer, head)| (writer.0.to_vec(), head.seq)).collect(),
        });
    }

    pub(super) fn leave(&mut self, left: &[ChannelName]) {
        self.logs.retain(|(channel, _), _| !left.contains(channel));
        self.asking.retain(|(channel, _)| !left.contains(channel));
    }

    /// A log that is asked for anew stands, for its sessions, where its proof ends.
    pub(super) fn heads(&self, mut heads: Heads) -> Heads {
        for key @ (channel, writer) in &self.asking {
            let Some(logs) = heads.get_mut(channel) else { continue };
            match self.logs.get(key).and_then(|span| span.head) {
                Some(head) => logs.insert(*writer, head),
                None => logs.remove(writer),
            };
        }
        heads
    }
}

impl State {
    /// Logs of hubs without proof, or with too long a one, of a hub that holds all that this device does.
    fn unproven(&self, hub: &Positions) -> Vec<LogKey> {
        let hubs =
            |writer: &WriterId| self.writers.get(writer).is_some_and(|chain| chain.subject == WriterSubject::Hub);
        let mut found = Vec::new();
        for (name, channel) in &self.channels {
            let Some(there) = hub.get(name) else { continue };
            for (writer, head) in channel.heads.iter().filter(|(writer, _)| hubs(writer)) {
                let key = (name.clone(), *writer);
                let span = self.evidence.logs.get(&key).copied().unwrap_or_default();
                let has_all = there.get(writer).is_some_and(|seq| *seq >= head.seq);
                let asked = self.evidence.asked.get(&key).is_some_and(|seq| head.seq < seq.saturating_add(RECORDS_MAX));
                if has_all && !asked && (span.end() < head.seq || span.is_long()) {
                    found.push(key);
                }
            }
        }
        found
    }

    /// Logs asked for anew whose proof is whole again are logs like others.
    pub(super) fn settle_evidence(&mut self) {
        let (channels, logs) = (&self.channels, &self.evidence.logs);
        self.evidence.asking.retain(|key| {
            let head = channels.get(&key.0).and_then(|channel| channel.heads.get(&key.1)).map_or(0, |head| head.seq);
            logs.get(key).is_none_or(|span| span.end() < head)
        });
    }
}

impl DeviceReplica {
    /// Whether a log is that of a hub; `fresh` are writers that are not stored yet.
    pub(super) fn is_of_hub(&self, writer: &WriterId, fresh: &[WriterChain]) -> bool {
        let is_hub = |chain: &WriterChain| chain.subject == WriterSubject::Hub;
        let among = fresh.iter().any(|chain| chain.id == *writer && is_hub(chain));
        among || self.state().writers.get(writer).is_some_and(is_hub)
    }

    /// Asks for logs anew whose proof is missing or too long. What was kept of them goes first, so that it stays bounded.
    pub(super) async fn ask_for_evidence(&self, hub: &Positions) -> Result<(), ReplicaError> {
        let keys = self.state().unproven(hub);
        if keys.is_empty() {
            return Ok(());
        }
        let dropped = keys.iter().map(|(channel, writer)| (channel.to_string(), writer.0.to_vec())).collect();
        let rows = Ingest { evidence: EvidenceRows { dropped, ..EvidenceRows::default() }, ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("forget what the hub signed", error))?;
        {
            let mut state = self.state();
            for key in keys {
                state.evidence.logs.remove(&key);
                let head = state.channels.get(&key.0).and_then(|channel| channel.heads.get(&key.1));
                let seq = head.map_or(0, |head| head.seq);
                state.evidence.asked.insert(key.clone(), seq);
                state.evidence.asking.insert(key);
            }
        }
        self.bump(&self.grown);
        Ok(())
    }

    /// In the middle of a session: the hub that has just sent records holds all of its log. A proof that has become too long is asked
    /// for anew, as a list.
    pub(super) async fn shorten_evidence(&self) -> Result<(), ReplicaError> {
        let heads: Heads = {
            let state = self.state();
            let long = |key: &LogKey| state.evidence.logs.get(key).is_some_and(Span::is_long);
            if !state.evidence.logs.keys().any(|key| long(key) && !state.evidence.asking.contains(key)) {
                return Ok(());
            }
            let long_only = |(name, channel): (&ChannelName, &ChannelState)| {
                let heads = channel.heads.iter().filter(|(writer, _)| long(&(name.clone(), **writer)));
                (name.clone(), heads.map(|(writer, head)| (*writer, *head)).collect())
            };
            state.channels.iter().map(long_only).collect()
        };
        self.ask_for_evidence(&positions_of(&heads)).await
    }

    /// What is kept of a hub's log, for a hub that has lost it.
    pub(super) async fn read_evidence(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Reading, ReplicaError> {
        let read = |error| failed("read what the hub signed", error);
        let damaged = |why: String| failed("read what the hub signed", DamagedEvidence(why));
        let kept = self.store.evidence(channel.to_string(), writer.0.to_vec(), after, bytes_max).await.map_err(read)?;
        match kept {
            Kept::Nothing => Ok(Reading::NotKept),
            Kept::Batches(batches) => {
                let decoded = batches.into_iter().map(|bytes| Batch::decode(&Bytes::from(bytes)));
                let batches = decoded.collect::<Result<_, _>>().map_err(|error| damaged(error.to_string()))?;
                Ok(Reading::Batches(batches))
            }
            Kept::List { list, states } => {
                let list = SignedList::decode(Bytes::from(list)).map_err(|error| damaged(error.to_string()))?;
                Ok(Reading::Snapshot(ChannelSnapshot { list, states: states.into_iter().map(Bytes::from).collect() }))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
