//! What lies beside the items: large values, and the items that stay in force until the large values of newer ones are here.
//!
//! Level-based: after every change of items or blobs the same plan says which older items to hold, which to let go, and which
//! blobs nobody names any more. Start reading at [`Beside::plan`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_sync::blob::{BlobRef, BlobStored, BlobWant};
use flotilla_sync::channel::{ChannelName, ChannelState, Hash, Item, ItemId, ItemKind};
use flotilla_sync::replica::ReplicaError;

use super::{DeviceReplica, failed};
use crate::store::{BesideRows, Ingest, ItemRow, Loaded};

type Place = (ChannelName, ItemId);

/// In memory: how much of each blob is here, and the items held.
#[derive(Debug, Clone, Default)]
pub(super) struct Beside {
    parts: BTreeMap<Hash, Part>,
    held: BTreeMap<Place, Item>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    len: u64,
    offset: u64,
    whole: bool,
}

/// What is to change beside the items.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    hold: Vec<(Place, Item)>,
    release: Vec<Place>,
    forget: Vec<Hash>,
}

impl Beside {
    /// As the database has it. A held item that cannot be read is as good as none.
    pub(super) fn of(loaded: &Loaded) -> Self {
        let part = |row: &crate::store::BlobRow| Part { len: row.len, offset: row.offset, whole: row.whole };
        let held = loaded.held.iter().filter_map(|row| {
            let place = (ChannelName::parse(&row.channel).ok()?, ItemId::parse(&row.id).ok()?);
            Some((place, Item::decode(&Bytes::from(row.bytes.clone())).ok()?))
        });
        Self { parts: loaded.blobs.iter().map(|row| (row.hash, part(row))).collect(), held: held.collect() }
    }

    /// What an item says now: itself when all it names is here, else what it said before.
    pub(super) fn in_force<'a>(&'a self, channel: &ChannelName, id: &ItemId, item: &'a Item) -> Option<&'a Item> {
        if self.is_complete(item) { Some(item) } else { self.held.get(&(channel.clone(), id.clone())) }
    }

    /// Documents that are not whole and of which nothing older is held: they are here, and say nothing yet.
    pub(super) fn never_whole(&self, channels: &BTreeMap<ChannelName, ChannelState>) -> Vec<String> {
        let lacks =
            |name: &ChannelName, id: &ItemId, item: &Item| item.is_live() && self.in_force(name, id, item).is_none();
        let all = channels.iter().flat_map(|(name, state)| state.items.iter().map(move |(id, item)| (name, id, item)));
        all.filter(|(name, id, item)| lacks(name, id, item)).map(|(_, id, _)| id.as_str().to_owned()).collect()
    }

    fn is_complete(&self, item: &Item) -> bool {
        names_of(item).iter().all(|name| self.parts.get(&name.hash).is_some_and(|part| part.whole))
    }

    /// Compares the items as they were with what they are to be.
    pub(super) fn plan(
        &self,
        before: &BTreeMap<ChannelName, ChannelState>,
        after: &BTreeMap<&ChannelName, &ChannelState>,
    ) -> Plan {
        let mut plan = Plan::default();
        if self.parts.is_empty() && self.held.is_empty() && !after.values().any(|channel| names_any(channel)) {
            return plan;
        }
        let now = |(channel, id): &Place| after.get(channel).and_then(|state| state.items.get(id));
        for place in self.held.keys() {
            if now(place).is_none_or(|item| !item.is_live() || self.is_complete(item)) {
                plan.release.push(place.clone());
            }
        }
        for (name, channel) in after {
            for (id, _) in channel.items.iter().filter(|(_, item)| !self.is_complete(item)) {
                let place = ((*name).clone(), id.clone());
                let was = before.get(*name).and_then(|state| state.items.get(id));
                if let Some(was) = was.filter(|was| was.is_live() && self.is_complete(was))
                    && !self.held.contains_key(&place)
                {
                    plan.hold.push((place, was.clone()));
                }
            }
        }
        let released: BTreeSet<&Place> = plan.release.iter().collect();
        let held = self.held.iter().filter(|(place, _)| !released.contains(place)).map(|(_, item)| item);
        let items = after.values().flat_map(|channel| channel.items.values());
        let all = items.chain(held).chain(plan.hold.iter().map(|(_, item)| item));
        let named: BTreeSet<Hash> = all.flat_map(names_of).map(|name| name.hash).collect();
        plan.forget = self.parts.keys().filter(|hash| !named.contains(*hash)).copied().collect();
        plan
    }

    /// Takes a plan over once it is durable.
    pub(super) fn take(&mut self, plan: Plan) {
        for place in plan.release {
            self.held.remove(&place);
        }
        self.held.extend(plan.hold);
        for hash in plan.forget {
            self.parts.remove(&hash);
        }
    }

    fn missing(&self, channels: &BTreeMap<ChannelName, ChannelState>) -> Vec<BlobWant> {
        let items = channels.values().flat_map(|channel| channel.items.values());
        let mut seen = BTreeSet::new();
        let missing = items.flat_map(names_of).filter_map(|name| {
            let part = self.parts.get(&name.hash).copied();
            let offset = part.filter(|part| part.len == name.len).map_or(0, |part| part.offset);
            let wanted = part.is_none_or(|part| !part.whole) && seen.insert(name.hash);
            wanted.then_some(BlobWant { name: *name, offset })
        });
        missing.collect()
    }
}

impl Plan {
    pub(super) fn rows(&self) -> BesideRows {
        let row = |(channel, id): &Place, bytes: Vec<u8>| ItemRow {
            channel: channel.to_string(),
            id: id.as_str().to_owned(),
            bytes,
        };
        let hold = self.hold.iter().map(|(place, item)| row(place, item.encode().to_vec()));
        let release = self.release.iter().map(|place| row(place, Vec::new()));
        BesideRows { held: release.chain(hold).collect(), forgotten: self.forget.clone() }
    }
}

fn names_of(item: &Item) -> &[BlobRef] {
    if let ItemKind::Document(document) = &item.kind { &document.blobs } else { &[] }
}

fn names_any(channel: &ChannelState) -> bool {
    channel.items.values().any(|item| !names_of(item).is_empty())
}

impl DeviceReplica {
    /// The content of a large value that an item in force names. Blocks on the disk; takes no lock of the replica's.
    pub fn blob(&self, hash: &Hash) -> Option<Bytes> {
        let content = self.store.blob(hash).map(Bytes::from);
        content.map_err(|error| tracing::error!(%error, "a large value cannot be read")).ok()
    }

    /// How many large values of the hub's newest word are not here yet.
    pub fn missing_large_values(&self) -> usize {
        let state = self.state();
        state.beside.missing(&state.channels).len()
    }

    pub(super) fn missing(&self, limit: usize) -> Vec<BlobWant> {
        let state = self.state();
        let mut missing = state.beside.missing(&state.channels);
        missing.truncate(limit);
        missing
    }

    /// All that is here as a whole: everything here is named by an item of the hub's.
    pub(super) fn whole_blobs(&self) -> Vec<BlobRef> {
        let state = self.state();
        let whole = state.beside.parts.iter().filter(|(_, part)| part.whole);
        whole.map(|(hash, part)| BlobRef { hash: *hash, len: part.len }).collect()
    }

    pub(super) fn range(&self, hash: &Hash, offset: u64, len: usize) -> Option<Bytes> {
        let whole = self.state().beside.parts.get(hash).is_some_and(|part| part.whole);
        let content = whole.then(|| self.blob(hash))??;
        let start = usize::try_from(offset).ok().filter(|start| *start < content.len())?;
        Some(content.slice(start..content.len().min(start + len)))
    }

    pub(super) async fn take_piece(
        &self,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<BlobStored, ReplicaError> {
        let _gate = self.gate.lock().await;
        let wanted = {
            let state = self.state();
            let missing = state.beside.missing(&state.channels);
            missing.iter().any(|want| want.name == *name && want.offset == offset)
        };
        let end = offset + bytes.len() as u64;
        if !wanted || bytes.is_empty() || end > name.len {
            return Ok(BlobStored::Unwanted);
        }
        let stored = self.store.put_blob_piece(*name, offset, bytes.to_vec()).await;
        let stored = stored.map_err(|error| failed("store a large value", error))?;
        {
            let parts = &mut self.state().beside.parts;
            match stored {
                BlobStored::Damaged => drop(parts.remove(&name.hash)),
                _ => {
                    let whole = stored == BlobStored::Whole;
                    parts.insert(name.hash, Part { len: name.len, offset: end, whole });
                }
            }
        }
        if stored == BlobStored::Whole {
            self.bump(&self.changed);
            self.settle_beside().await?;
        }
        Ok(stored)
    }

    /// Lets go what is not needed any more. The gate is held.
    pub(super) async fn settle_beside(&self) -> Result<(), ReplicaError> {
        let plan = {
            let state = self.state();
            state.beside.plan(&state.channels, &state.channels.iter().collect())
        };
        let beside = plan.rows();
        if beside.is_empty() {
            return Ok(());
        }
        let rows = Ingest { beside, ..Ingest::default() };
        self.store.ingest(rows).await.map_err(|error| failed("take newer items into force", error))?;
        self.state().beside.take(plan);
        self.bump(&self.changed);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
