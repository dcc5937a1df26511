//! One bundle on its way into a replica: what follows, what is here already, what is missing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::super::section::Section;
use super::super::{BundleError, Direction, Missing, Report};
use super::Maker;
use crate::blob::{BlobRef, BlobStored};
use crate::channel::{ChannelName, Hash, Head, Heads, WriterId};
use crate::identity::PublicKey;
use crate::identity::writer::WriterChain;
use crate::list::{ChannelSnapshot, SNAPSHOT_BYTES_MAX, STATE_BYTES_MAX, SignedList};
use crate::log::{Batch, Placement, VerifiedBatch, place};
use crate::replica::{Input, Replica};
use crate::transport::PeerIdentity;

/// Most inputs of one commit, and their bytes.
const INPUTS_MAX: usize = 64;
const INPUT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most blobs of one bundle that are told apart.
const BLOBS_MAX: usize = 16_384;

/// What is taken, and what was.
pub(super) struct Taking<'a, R> {
    replica: &'a R,
    peer: &'a PeerIdentity,
    root: PublicKey,
    channels: BTreeSet<ChannelName>,
    /// Where the logs stand, inputs that wait included.
    heads: Heads,
    chains: BTreeMap<WriterId, WriterChain>,
    branching: BTreeSet<(ChannelName, WriterId)>,
    inputs: Vec<Input>,
    input_bytes: usize,
    coming: Option<Coming>,
    observed: u64,
    /// Blobs that are wanted here, with what is here of each; asked for when the first one comes.
    lacking: Option<BTreeMap<Hash, u64>>,
    /// Bytes that came of each blob.
    blobs: BTreeMap<Hash, (u64, u64)>,
}

/// A snapshot whose states come.
struct Coming {
    chain: WriterChain,
    list: SignedList,
    states: Vec<Bytes>,
    state: BytesMut,
    bytes: usize,
    /// All it covers is here already.
    known: bool,
}

impl<'a, R: Replica> Taking<'a, R> {
    /// Takes from `channels` alone.
    pub(super) async fn begin(
        replica: &'a R,
        peer: &'a PeerIdentity,
        root: PublicKey,
        channels: BTreeSet<ChannelName>,
    ) -> Result<Self, BundleError> {
        Ok(Self {
            replica,
            peer,
            root,
            channels,
            heads: replica.heads(peer).await?,
            chains: BTreeMap::new(),
            branching: BTreeSet::new(),
            inputs: Vec::new(),
            input_bytes: 0,
            coming: None,
            observed: 0,
            lacking: None,
            blobs: BTreeMap::new(),
        })
    }

    /// Logs that stand at the same number with another hash are forked.
    pub(super) async fn compare(&self, theirs: &Heads) -> Result<(), BundleError> {
        for (channel, logs) in theirs {
            for (writer, head) in logs {
                let own = self.heads.get(channel).and_then(|logs| logs.get(writer));
                if own.is_some_and(|own| own.seq == head.seq && own.hash != head.hash) {
                    self.replica.forked(self.peer, channel, writer, head.seq).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn take(
        &mut self,
        section: Section,
        maker: &Maker,
        report: &mut Report,
    ) -> Result<(), BundleError> {
        let down = maker.introduction.direction == Direction::Down;
        match section {
            Section::Writer { chain } => match WriterChain::verify(&chain, &self.root) {
                Ok(chain) => drop(self.chains.insert(chain.id, chain)),
                Err(error) => report.set_aside(vec![error.to_string()]),
            },
            Section::Batch { batch } => self.batch(&batch, report).await?,
            Section::List { list } => self.list(list, report).await?,
            Section::State { ends, piece } => self.state(ends, &piece, report)?,
            Section::Observations { observations } if !down => {
                let (lawful, large): (Vec<_>, Vec<_>) =
                    observations.into_iter().partition(|observation| observation.is_within_limits());
                let lines = large.iter().map(|one| format!("observation of {:?} is over a limit", one.subject));
                report.set_aside(lines.collect());
                self.flush(report).await?;
                self.observed += (lawful.len() + large.len()) as u64;
                report.observations += lawful.len() as u64;
                self.replica.observe(self.peer, lawful).await?;
            }
            Section::Acknowledged { entries } if down => {
                report.acknowledgements += entries.len() as u64;
                self.replica.outbox_acknowledged(entries).await?;
            }
            Section::Enrolled { .. } if down => {}
            Section::Blob { name, offset, piece } => self.blob(name, offset, piece, report).await?,
            Section::End => self.flush(report).await?,
            Section::Opening { .. }
            | Section::Join { .. }
            | Section::Enrolled { .. }
            | Section::Observations { .. }
            | Section::Acknowledged { .. } => {
                report.set_aside(vec!["a section that has no place in a bundle of this direction".to_owned()]);
            }
        }
        if self.inputs.len() >= INPUTS_MAX || self.input_bytes >= INPUT_BYTES_MAX {
            self.flush(report).await?;
        }
        Ok(())
    }

    /// Makes durable what waits.
    pub(super) async fn flush(&mut self, report: &mut Report) -> Result<(), BundleError> {
        if self.inputs.is_empty() {
            return Ok(());
        }
        self.input_bytes = 0;
        let ingested = self.replica.ingest(self.peer, std::mem::take(&mut self.inputs)).await?;
        report.set_aside(ingested.set_aside);
        Ok(())
    }

    /// The chain of a writer, from this bundle or from an earlier one.
    async fn chain(
        &mut self,
        channel: &ChannelName,
        writer: &WriterId,
        report: &mut Report,
    ) -> Result<Option<WriterChain>, BundleError> {
        if let Some(chain) = self.chains.get(writer) {
            return Ok(Some(chain.clone()));
        }
        let known = self.replica.writer(writer).await?;
        if known.is_none() {
            report.miss(Missing::Writer { channel: channel.to_string(), writer: writer.to_string() });
        }
        Ok(known)
    }

    async fn batch(&mut self, encoded: &Bytes, report: &mut Report) -> Result<(), BundleError> {
        let batch = match Batch::decode(encoded) {
            Ok(batch) => batch,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        let records = batch.last_seq - batch.first_seq + 1;
        report.records = report.records.saturating_add(records);
        let (channel, writer) = (batch.channel.clone(), batch.writer);
        if !self.channels.contains(&channel) {
            return Ok(());
        }
        let have = self.heads.get(&channel).and_then(|logs| logs.get(&writer)).copied();
        let at = have.map_or(0, |head| head.seq);
        report.log(&channel, &writer, at);
        let branches = self.branching.contains(&(channel.clone(), writer));
        let placement = place(have, batch.first_seq, batch.last_seq, &batch.prev, None);
        if let (Placement::Gap { after }, false) = (placement, branches) {
            let before = batch.first_seq;
            report.miss(Missing::Records { channel: channel.to_string(), writer: writer.to_string(), after, before });
            return Ok(());
        }
        if placement == Placement::Duplicate && batch.last_seq < at && !branches {
            return Ok(());
        }
        let Some(chain) = self.chain(&channel, &writer, report).await? else { return Ok(()) };
        let size = batch.payload.len();
        let verified = match batch.verify(&chain) {
            Ok(verified) => verified,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        self.place(verified, chain, have, report).await?;
        self.input_bytes += size;
        Ok(())
    }

    async fn place(
        &mut self,
        verified: VerifiedBatch,
        chain: WriterChain,
        have: Option<Head>,
        report: &mut Report,
    ) -> Result<(), BundleError> {
        let key = (verified.batch().channel.clone(), verified.batch().writer);
        let placement = verified.place(have);
        if self.branching.contains(&key) || matches!(placement, Placement::Fork { .. }) {
            if let Placement::Fork { seq } = placement
                && self.branching.insert(key.clone())
            {
                self.flush(report).await?;
                self.replica.forked(self.peer, &key.0, &key.1, seq).await?;
                report.notes.push(format!("log {} in {} was forked by a restored or cloned database", key.1, key.0));
            }
            self.inputs.extend([Input::Writer(chain), Input::Branch(verified)]);
            return Ok(());
        }
        if placement == Placement::Next {
            let head = verified.head();
            report.records_new += verified.records().len() as u64;
            report.log(&key.0, &key.1, have.map_or(0, |head| head.seq)).to = head.seq;
            self.heads.entry(key.0).or_default().insert(key.1, head);
            self.inputs.extend([Input::Writer(chain), Input::Batch(verified)]);
        }
        Ok(())
    }

    async fn list(&mut self, encoded: Bytes, report: &mut Report) -> Result<(), BundleError> {
        self.abandon(report);
        let list = match SignedList::decode(encoded) {
            Ok(list) => list,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        report.snapshots += 1;
        if !self.channels.contains(&list.channel) {
            return Ok(());
        }
        let Some(chain) = self.chain(&list.channel, &list.writer, report).await? else { return Ok(()) };
        let logs = self.heads.get(&list.channel);
        // An older list says nothing new, and what was made after it is not in it.
        let known = logs.and_then(|logs| logs.get(&list.writer)).is_some_and(|own| own.seq >= list.head.seq);
        let empty = list.items.is_empty();
        self.coming = Some(Coming { chain, list, states: Vec::new(), state: BytesMut::new(), bytes: 0, known });
        if empty {
            self.snapshot_came(report);
        }
        Ok(())
    }

    fn state(&mut self, ends: bool, piece: &Bytes, report: &mut Report) -> Result<(), BundleError> {
        let Some(coming) = &mut self.coming else { return Ok(()) };
        coming.bytes += piece.len();
        if coming.state.len() + piece.len() > STATE_BYTES_MAX || coming.bytes > SNAPSHOT_BYTES_MAX {
            return Err(BundleError::TooLarge { what: "a snapshot", max: SNAPSHOT_BYTES_MAX });
        }
        if !coming.known {
            coming.state.extend_from_slice(piece);
        }
        if ends {
            coming.states.push(coming.state.split().freeze());
        }
        if coming.states.len() == coming.list.items.len() {
            self.snapshot_came(report);
        }
        Ok(())
    }

    fn snapshot_came(&mut self, report: &mut Report) {
        let Some(Coming { chain, list, states, known, bytes, .. }) = self.coming.take() else { return };
        let branches = |writer: &WriterId| self.branching.contains(&(list.channel.clone(), *writer));
        if known || list.covers.keys().any(branches) {
            return;
        }
        let verified = match (ChannelSnapshot { list, states }).verify(&chain) {
            Ok(verified) => verified,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return;
            }
        };
        let list = &verified.snapshot().list;
        let logs = self.heads.entry(list.channel.clone()).or_default();
        for (writer, head) in &list.covers {
            let stands_at = logs.entry(*writer).or_insert(Head::START);
            let line = report.log(&list.channel, writer, stands_at.seq);
            line.to = line.to.max(head.seq);
            if head.seq > stands_at.seq {
                *stands_at = *head;
            }
        }
        report.snapshots_new += 1;
        self.input_bytes += bytes;
        self.inputs.extend([Input::Writer(chain), Input::Snapshot(verified)]);
    }

    /// A piece of a blob: only as far as it is wanted, and from where what is here ends.
    async fn blob(&mut self, name: BlobRef, offset: u64, piece: Bytes, report: &mut Report) -> Result<(), BundleError> {
        self.flush(report).await?;
        let end = offset.saturating_add(piece.len() as u64);
        if self.blobs.len() < BLOBS_MAX || self.blobs.contains_key(&name.hash) {
            let (came, _) = self.blobs.entry(name.hash).or_insert((0, name.len));
            *came = if *came == offset { end } else { *came };
        }
        let lacking = match &mut self.lacking {
            Some(lacking) => lacking,
            none => {
                let wants = self.replica.missing_blobs(self.peer, BLOBS_MAX).await?;
                none.insert(wants.into_iter().map(|want| (want.name.hash, want.offset)).collect())
            }
        };
        let Some(here) = lacking.get_mut(&name.hash).filter(|here| (offset..end).contains(*here)) else {
            return Ok(());
        };
        let Ok(skip) = usize::try_from(*here - offset) else { return Ok(()) };
        let stored = self.replica.store_blob(self.peer, &name, *here, piece.slice(skip..)).await?;
        match stored {
            BlobStored::Partly => *here = end,
            BlobStored::Whole => report.blobs += 1,
            BlobStored::Damaged => report.set_aside(vec!["a blob that is not what its name says".to_owned()]),
            BlobStored::Unwanted => {}
        }
        if stored != BlobStored::Partly {
            lacking.remove(&name.hash);
        }
        Ok(())
    }

    /// A snapshot that goes no further.
    pub(super) fn abandon(&mut self, report: &mut Report) {
        if let Some(coming) = self.coming.take().filter(|coming| !coming.known) {
            report.miss(Missing::Snapshot { channel: coming.list.channel.to_string() });
        }
    }

    /// Compares what was to come with what came.
    pub(super) fn account(&self, maker: &Maker, report: &mut Report) {
        let introduction = &maker.introduction;
        for (channel, logs) in introduction.heads.iter().filter(|(channel, _)| self.channels.contains(*channel)) {
            for (writer, goal) in logs {
                // Of an upward bundle only the maker's own log is meant to come.
                let meant = introduction.direction == Direction::Down || *writer == maker.chain.id;
                let at = self.heads.get(channel).and_then(|logs| logs.get(writer)).map_or(0, |head| head.seq);
                let named = report.missing.iter().any(|missing| {
                    matches!(missing, Missing::Records { channel: one, writer: other, .. }
                        if *one == channel.to_string() && *other == writer.to_string())
                });
                if meant && at < goal.seq && !named {
                    let (channel, writer) = (channel.to_string(), writer.to_string());
                    report.miss(Missing::Behind { channel, writer, at, meant: goal.seq });
                }
            }
        }
        let whole = self.blobs.values().filter(|(came, len)| came == len).count() as u64;
        if let Some(count) = introduction.blobs.checked_sub(whole).filter(|count| *count > 0) {
            report.miss(Missing::Blobs { count });
        }
        if let Some(count) = introduction.observations.checked_sub(self.observed).filter(|count| *count > 0) {
            report.miss(Missing::Observations { count });
        }
    }
}
