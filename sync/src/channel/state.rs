//! A channel's whole state in memory: items and heads. The reference for stores that keep the same as rows.

use std::collections::BTreeMap;

use super::item::{Applied, Item, ItemError};
use super::{ChannelName, Head, ItemId, WriterId, state_digest};
use crate::identity::writer::WriterIdentity;
use crate::list::{ChannelSnapshot, ListEntry, ListError, SignedList, VerifiedSnapshot};
use crate::log::{Placement, VerifiedBatch};
use crate::planted::{self, Bug};

/// Most items of a channel.
pub const CHANNEL_ITEMS_MAX: usize = 16_384;
/// Most removed items a channel remembers; the oldest versions are forgotten first.
pub const TOMBSTONES_MAX: usize = 4096;

/// Most items of a channel whose quarantine is remembered; records of more are set aside all the same.
const QUARANTINED_MAX: usize = 1024;

/// Items and heads of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelState {
    /// Which channel.
    pub channel: ChannelName,
    /// All items, removed ones included.
    pub items: BTreeMap<ItemId, Item>,
    /// Where each log stands.
    pub heads: BTreeMap<WriterId, Head>,
    /// Items with records that had to be set aside.
    pub quarantined: BTreeMap<ItemId, Quarantined>,
}

/// Why an item is in quarantine: it keeps its last good state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantined {
    /// Records set aside.
    pub count: u64,
    /// The newest error.
    pub error: String,
}

/// What a batch or a snapshot did to a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folded {
    /// Items whose rows are different now: removed and forgotten ones, and those with a change that waits, included.
    pub changed: Vec<ItemId>,
    /// Records set aside.
    pub set_aside: Vec<ItemError>,
}

impl ChannelState {
    /// An empty channel.
    pub fn new(channel: ChannelName) -> Self {
        Self { channel, items: BTreeMap::new(), heads: BTreeMap::new(), quarantined: BTreeMap::new() }
    }

    /// Takes a batch into effect if it follows what is here.
    ///
    /// # Errors
    /// Its placement if it does not follow; nothing is changed.
    pub fn apply_batch(&mut self, batch: &VerifiedBatch) -> Result<Folded, Placement> {
        let writer = batch.batch().writer;
        match batch.place(self.heads.get(&writer).copied()) {
            Placement::Next => {}
            other => return Err(other),
        }
        let mut folded = self.fold(batch);
        self.heads.insert(writer, batch.head());
        self.forget_tombstones(&mut folded);
        Ok(folded)
    }

    /// Takes the records of another branch of a log into effect; heads stay. See [`crate::replica::Input::Branch`].
    pub fn apply_branch(&mut self, batch: &VerifiedBatch) -> Folded {
        self.fold(batch)
    }

    fn fold(&mut self, batch: &VerifiedBatch) -> Folded {
        let mut folded = Folded::default();
        for record in batch.records() {
            let id = &record.draft.item;
            let applied = if self.items.len() >= CHANNEL_ITEMS_MAX + TOMBSTONES_MAX && !self.items.contains_key(id) {
                Err(ItemError::TooManyItems(id.clone()))
            } else {
                Item::apply(self.items.get(id), record, batch.incarnation())
            };
            self.take(id, applied, &mut folded);
        }
        folded
    }

    /// Takes a snapshot whole: joins every state, deletes what the list covers and does not name, and stands at its heads.
    pub fn apply_snapshot(&mut self, snapshot: &VerifiedSnapshot) -> Folded {
        let ChannelSnapshot { list, states } = snapshot.snapshot();
        let mut folded = Folded::default();
        for (entry, state) in list.items.iter().zip(states).filter(|_| !planted::is(Bug::ListNotApplied)) {
            let current = self.items.get(&entry.item);
            let applied = Item::decode(state).and_then(|state| Item::adopt(current, &entry.item, state));
            self.take(&entry.item, applied, &mut folded);
        }
        let covers = snapshot.covers();
        let named: std::collections::BTreeSet<&ItemId> = list.items.iter().map(|entry| &entry.item).collect();
        let reach = snapshot.reach();
        let gone = |(id, item): (&ItemId, &Item)| (!named.contains(id) && item.is_covered(&reach)).then(|| id.clone());
        let mut gone: Vec<ItemId> = self.items.iter().filter_map(gone).collect();
        if planted::is(Bug::AbsenceIgnored) {
            gone.clear();
        }
        for id in gone {
            if self.items.remove(&id).is_some_and(|item| item.is_live()) {
                folded.changed.push(id.clone());
            }
            self.quarantined.remove(&id);
        }
        for (writer, head) in &covers {
            let current = self.heads.entry(*writer).or_insert(*head);
            if head.seq > current.seq || snapshot.settled().contains(writer) {
                *current = *head;
            }
        }
        folded
    }

    /// Signs the list of the items, live or known to be removed, of which `identity` has said anything, and of those whose every record comes from
    /// a writer that it may speak for: all logs in `covers`. Absence deletes; a removal that is named also wins over what another writer, unknown here, says of
    /// the item. The states are in the list's order.
    ///
    /// # Errors
    /// More items than a list holds.
    pub fn snapshot(
        &self,
        identity: &WriterIdentity,
        covers: BTreeMap<WriterId, Head>,
    ) -> Result<ChannelSnapshot, ListError> {
        let head = self.heads.get(&identity.id()).copied().unwrap_or(Head::START);
        let mut all = covers.clone();
        all.insert(identity.id(), head);
        let (mut entries, mut states) = (Vec::new(), Vec::new());
        let stands = |item: &Item| item.is_live() || item.removed().is_some();
        // Whoever takes the list stands at its head: what was said up to there is in it, whoever else has spoken of the same item.
        let spoken = |item: &Item| item.touched.contains_key(&identity.id()) || item.is_covered(&all);
        for (id, item) in self.items.iter().filter(|(_, item)| stands(item) && spoken(item)) {
            let state = item.encode();
            entries.push(ListEntry { item: id.clone(), epoch: item.epoch(), digest: state_digest(&state) });
            states.push(state);
        }
        let list = SignedList::sign(identity, &self.channel, head, entries, covers)?;
        Ok(ChannelSnapshot { list, states })
    }

    fn take(&mut self, id: &ItemId, applied: Result<Applied, ItemError>, folded: &mut Folded) {
        match applied {
            Ok(Applied::Changed(item)) => {
                self.items.insert(id.clone(), item);
                self.quarantined.remove(id);
                folded.changed.push(id.clone());
            }
            Ok(Applied::Waiting(item)) => {
                // Nothing shows yet; a store must keep it all the same, for the log's head moves on.
                self.items.insert(id.clone(), item);
                folded.changed.push(id.clone());
            }
            Ok(Applied::Unchanged) => {}
            Err(error) if self.quarantined.len() >= QUARANTINED_MAX && !self.quarantined.contains_key(id) => {
                folded.set_aside.push(error);
            }
            Err(error) => {
                let quarantined = self.quarantined.entry(id.clone()).or_default();
                quarantined.count += 1;
                quarantined.error = error.to_string();
                folded.set_aside.push(error);
            }
        }
    }

    /// What is forgotten counts as changed: a store forgets its row.
    fn forget_tombstones(&mut self, folded: &mut Folded) {
        let mut tombstones: Vec<_> =
            self.items.iter().filter_map(|(id, item)| Some((item.removed()?, id.clone()))).collect();
        if tombstones.len() > TOMBSTONES_MAX {
            tombstones.sort_unstable();
            for (_, id) in tombstones.drain(..tombstones.len() - TOMBSTONES_MAX) {
                self.items.remove(&id);
                folded.changed.push(id);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
