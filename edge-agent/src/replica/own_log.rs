//! The device's own log: its overrides, written under a writer of its own.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_sync::chance;
use flotilla_sync::channel::{
    ChannelName, ChannelState, Head, Item, ItemId, ItemKind, Positions, RegisterItem, Version, WriterId,
};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::log::{Batch, LogWriter, VerifiedBatch};
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::record::{Draft, RecordKind};
use flotilla_sync::replica::ReplicaError;

use serde::{Deserialize, Serialize};

use super::incoming::rows_of;
use super::{DeviceReplica, Misplaced, WriterMaterial, failed, restore};
use crate::store::{BatchRow, Ingest, Loaded};

/// Where the database keeps a [`Takeover`].
const TAKEOVER: &str = "takeover";

/// Batches of the device's own log kept for reading; a hub further behind gets a signed list.
const OWN_BATCHES_MAX: usize = 256;

/// And their bytes.
const OWN_BATCHES_BYTES_MAX: usize = 256 * 1024;

/// Records stated again in one batch, and bytes of them: far from the limits of a batch.
const STATED_RECORDS_MAX: usize = 64;
const STATED_BYTES_MAX: usize = 256 * 1024;

/// More records than a damaged database can have lost of this device's own log.
const LOST_RECORDS_MAX: u64 = 1 << 20;

impl DeviceReplica {
    /// Writes records into this device's own log; durable when it returns.
    ///
    /// # Errors
    /// A limit of the log, or the disk.
    pub async fn append(&self, drafts: Vec<Draft>) -> Result<(), ReplicaError> {
        let _gate = self.gate.lock().await;
        self.append_gated(drafts).await
    }

    /// [`append`](Self::append) by one who holds the gate.
    async fn append_gated(&self, drafts: Vec<Draft>) -> Result<(), ReplicaError> {
        let (rows, next, batch) = {
            let mut state = self.state();
            let verified =
                state.log.append(&self.own_channel, drafts).map_err(|error| failed("write its log", error))?;
            let (rows, next) = self.folded(state.channel(&self.own_channel), &verified)?;
            (rows, next, verified.batch().clone())
        };
        if let Err(error) = self.store.ingest(rows).await
            && !planted::is(Bug::OverrideBeforeDurable)
        {
            self.restore_log();
            return Err(failed("store its own change", error));
        }
        {
            let mut state = self.state();
            state.channels.insert(self.own_channel.clone(), next);
            state.own_batches.push(batch);
        }
        self.bump(&self.changed);
        self.bump(&self.grown);
        self.truncate().await
    }

    /// After a fork: a fresh writer, certified by the device's key, that states what the old one held. Its registers are newer than
    /// all before them.
    pub(super) async fn take_new_writer(&self) -> Result<(), ReplicaError> {
        if planted::is(Bug::ForkIgnored) {
            return Ok(());
        }
        let start = self.newest_of_own();
        self.replace_writer(Takeover { start, unstated: true }).await?;
        self.finish_takeover().await
    }

    /// States what the writers before the present one said, if that was begun and not ended: by a disk that refused, or an end of the agent.
    pub(super) async fn finish_takeover(&self) -> Result<(), ReplicaError> {
        let (own, Takeover { start, unstated }, salvaged) = {
            let state = self.state();
            (state.log.identity().id(), state.takeover, state.salvaged)
        };
        if !unstated || salvaged {
            return Ok(());
        }
        // What was ended too: on the other branch it may be in force.
        self.state_all(self.said_by(|version| version.writer != own)).await?;
        let ended = Takeover { start, unstated: false };
        let meta = vec![ended.row()?];
        self.store
            .ingest(Ingest { meta, ..Ingest::default() })
            .await
            .map_err(|error| failed("take a new writer", error))?;
        self.state().takeover = ended;
        Ok(())
    }

    /// After the database was damaged: if this device's own log is not whole, a fresh writer takes over. It numbers its records
    /// beyond all that may have been lost, and states nothing until the hub has told what it had read: what is gone by then was
    /// ended here before.
    ///
    /// # Errors
    /// The disk, or the system's random source.
    pub async fn mend_own_log(&self) -> Result<(), ReplicaError> {
        let _gate = self.gate.lock().await;
        let whole = {
            let state = self.state();
            !state.salvaged || own_log_is_whole(&state.own_batches, state.log.head(&self.own_channel))
        };
        if whole {
            return Ok(());
        }
        tracing::warn!("this device's own log is not whole; it goes on under a new writer");
        let start = self.newest_of_own().saturating_add(LOST_RECORDS_MAX).max(self.clock.now().0);
        self.replace_writer(Takeover { start, unstated: false }).await
    }

    fn newest_of_own(&self) -> u64 {
        self.state().channel(&self.own_channel).heads.values().map(|head| head.seq).max().unwrap_or(0)
    }

    /// From here on another writer signs, in whatever life of the agent.
    async fn replace_writer(&self, takeover: Takeover) -> Result<(), ReplicaError> {
        let seed = chance::bytes::<32>().map_err(|none| failed("take a new writer", none))?;
        let identity = WriterIdentity::for_device(seed, self.incarnation, &self.signing, &self.certificate);
        let identity = identity.map_err(|error| failed("take a new writer", error))?;
        let material = WriterMaterial { seed, chain: identity.chain().encode().to_vec() };
        let stored = serde_json::to_vec(&(material.seed, &material.chain));
        let stored = stored.map_err(|error| failed("take a new writer", error))?;
        let rows = Ingest { meta: vec![("writer", stored), takeover.row()?], ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("take a new writer", error))?;
        let mut state = self.state();
        state.log = takeover.log(identity, BTreeMap::new(), &self.own_channel);
        state.takeover = takeover;
        state.writer = material;
        state.own_batches.clear();
        Ok(())
    }

    /// States again, under the present writer, the overrides in force that another one wrote: the hub may not have them.
    pub(super) async fn state_what_others_wrote(&self) -> Result<(), ReplicaError> {
        let own = self.state().log.identity().id();
        let mut drafts = self.said_by(|version| version.writer != own);
        drafts.retain(|draft| draft.kind == RecordKind::Register);
        self.state_all(drafts).await
    }

    /// States again, under the present writer, what an earlier one of this device said and the hub does not know: a hub that was restored
    /// has lost it, and of earlier logs nothing is kept to send. What was ended is stated too: such a hub may still show it.
    pub(super) async fn state_what_the_hub_lost(&self, hub: &Positions) -> Result<(), ReplicaError> {
        let behind: BTreeSet<WriterId> = {
            let state = self.state();
            if state.salvaged {
                // What it says itself may not be whole yet.
                return Ok(());
            }
            let own = state.log.identity().id();
            let known = |writer| hub.get(&self.own_channel).and_then(|logs| logs.get(writer)).copied().unwrap_or(0);
            let heads = state.channels.get(&self.own_channel).map(|channel| &channel.heads).into_iter().flatten();
            heads
                .filter(|(writer, head)| **writer != own && known(*writer) < head.seq)
                .map(|(writer, _)| *writer)
                .collect()
        };
        // All of such a log: if it was forked, its numbers do not say which branch the hub knows.
        let drafts = self.said_by(|version| behind.contains(&version.writer));
        if drafts.is_empty() {
            return Ok(());
        }
        tracing::info!(count = drafts.len(), "the hub has lost changes that were made here; they are stated again");
        self.state_all(drafts).await
    }

    /// States items again that another branch of this device's log has changed.
    pub(super) async fn state_again(&self, changed: &[ItemId]) -> Result<(), ReplicaError> {
        let drafts = drafts_of(&self.state().channel(&self.own_channel), changed.iter());
        self.state_all(drafts).await
    }

    /// What this device says of its overrides, in force or ended, of records like these.
    fn said_by(&self, of: impl Fn(&Version) -> bool) -> Vec<Draft> {
        let state = self.state();
        let draft = |(id, item): (&ItemId, &Item)| match &item.kind {
            ItemKind::Register(register) if of(&register.version) => Some(register_draft(id, register)),
            ItemKind::Removed(version) if of(version) => Some(Draft::remove(id.clone(), "", self.clock.now().0)),
            ItemKind::Absent | ItemKind::Document(_) | ItemKind::Register(_) | ItemKind::Removed(_) => None,
        };
        let items = state.channels.get(&self.own_channel).map(|channel| &channel.items).into_iter().flatten();
        items.filter(|(id, _)| is_override(id)).filter_map(draft).collect()
    }

    /// Writes as many records as there are, in batches that a log takes.
    async fn state_all(&self, drafts: Vec<Draft>) -> Result<(), ReplicaError> {
        let (mut together, mut bytes) = (Vec::new(), 0);
        for draft in drafts {
            let size = draft.body.inline().map_or(0, |body| body.len());
            if together.len() == STATED_RECORDS_MAX || !together.is_empty() && bytes + size > STATED_BYTES_MAX {
                self.append_gated(std::mem::take(&mut together)).await?;
                bytes = 0;
            }
            bytes += size;
            together.push(draft);
        }
        if together.is_empty() { Ok(()) } else { self.append_gated(together).await }
    }

    fn folded(&self, mut next: ChannelState, verified: &VerifiedBatch) -> Result<(Ingest, ChannelState), ReplicaError> {
        let folded = next.apply_batch(verified).map_err(|placement| failed("write its log", Misplaced(placement)))?;
        let batch: &Batch = verified.batch();
        let mut rows = rows_of(&next, &folded.changed);
        rows.batches.push(BatchRow {
            channel: self.own_channel.to_string(),
            writer: batch.writer.0.to_vec(),
            first: batch.first_seq,
            last: batch.last_seq,
            bytes: batch.encode(),
        });
        Ok((rows, next))
    }

    /// Drops the older half of a long log of its own: a hub that far behind reads the signed list.
    async fn truncate(&self) -> Result<(), ReplicaError> {
        let forgotten = {
            let mut state = self.state();
            let surplus = surplus(&state.own_batches);
            if surplus == 0 {
                return Ok(());
            }
            state.own_batches.drain(..surplus);
            state.own_batches.first().map(|oldest| (self.own_channel.to_string(), oldest.first_seq))
        };
        let rows = Ingest { batches_before: forgotten, ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("shorten its log", error))
    }

    /// The log writer ran ahead of the disk: it goes back to what is durable.
    fn restore_log(&self) {
        let mut state = self.state();
        if let Ok(identity) = restore(&state.writer, &self.root) {
            let own = identity.id();
            let heads = state.channels.iter().filter_map(|(name, one)| Some((name.clone(), *one.heads.get(&own)?)));
            let heads = heads.collect();
            state.log = state.takeover.log(identity, heads, &self.own_channel);
        }
    }
}

/// How the present writer came to follow others; all zero for a device's first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Takeover {
    /// Its log begins after this number, beyond all that they said.
    start: u64,
    /// What they said has not been stated again yet, or not all of it.
    unstated: bool,
}

impl Takeover {
    /// As the database has it.
    pub(super) fn of(loaded: &Loaded) -> Self {
        let row = loaded.meta.get(TAKEOVER);
        row.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    fn row(&self) -> Result<(&'static str, Vec<u8>), ReplicaError> {
        let bytes = serde_json::to_vec(self).map_err(|error| failed("take a new writer", error))?;
        Ok((TAKEOVER, bytes))
    }

    /// The present writer's log, with the records that are durable.
    pub(super) fn log(
        &self,
        identity: WriterIdentity,
        heads: BTreeMap<ChannelName, Head>,
        own_channel: &ChannelName,
    ) -> LogWriter {
        let mut log = LogWriter::new(identity, heads);
        log.start_at(own_channel, self.start);
        log
    }
}

/// How many of the oldest batches have to go: none within the bounds, else what is beyond half of them.
fn surplus(batches: &[Batch]) -> usize {
    let bytes: usize = batches.iter().map(|batch| batch.payload.len()).sum();
    if batches.len() <= OWN_BATCHES_MAX && bytes <= OWN_BATCHES_BYTES_MAX {
        return 0;
    }
    let (mut kept, mut kept_bytes) = (0, 0);
    for batch in batches.iter().rev() {
        kept_bytes += batch.payload.len();
        if kept == OWN_BATCHES_MAX / 2 || (kept > 0 && kept_bytes > OWN_BATCHES_BYTES_MAX / 2) {
            break;
        }
        kept += 1;
    }
    batches.len() - kept
}

/// Takes what the device's own log says into effect once more. `salvaged`: its head too is what the batches say.
pub(super) fn read_again(channel: &mut ChannelState, identity: &WriterIdentity, batches: &[Batch], salvaged: bool) {
    for batch in batches.iter().filter_map(|batch| batch.clone().verify(identity.chain()).ok()) {
        drop(channel.apply_branch(&batch));
        if salvaged {
            let head = channel.heads.entry(identity.id()).or_insert(batch.head());
            *head = batch.head().max(*head);
        }
    }
}

/// Whether the batches follow one another up to where the log stands. One that says nothing may have lost everything.
fn own_log_is_whole(batches: &[Batch], head: Head) -> bool {
    let follow = batches.windows(2).all(|pair| pair[0].last_seq + 1 == pair[1].first_seq);
    let end = batches.last().map_or(0, |batch| batch.last_seq);
    follow && head.seq > 0 && end == head.seq
}

/// Overrides in force among these items, as records to write.
fn drafts_of<'a>(channel: &ChannelState, ids: impl Iterator<Item = &'a ItemId>) -> Vec<Draft> {
    let draft = |id: &ItemId| match &channel.items.get(id)?.kind {
        ItemKind::Register(register) => Some(register_draft(id, register)),
        ItemKind::Absent | ItemKind::Document(_) | ItemKind::Removed(_) => None,
    };
    ids.filter(|id| is_override(id)).filter_map(draft).collect()
}

/// What this device itself says in its channel.
fn is_override(id: &ItemId) -> bool {
    id.as_str().starts_with("override/")
}

fn register_draft(id: &ItemId, register: &RegisterItem) -> Draft {
    Draft::register(id.clone(), register.value.clone(), &register.author, register.time_ms)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
