//! A channel's whole state in memory: items and heads. The reference for stores that keep the same as rows.

use std::collections::BTreeMap;

use super::item::{Applied, Item, ItemError, ItemKind};
use super::{ChannelName, Head, ItemId, WriterId, state_digest};
use crate::identity::writer::WriterIdentity;
use crate::list::{ChannelSnapshot, ListEntry, ListError, SignedList, VerifiedSnapshot};
use crate::log::{Placement, VerifiedBatch};

/// Most items of a channel.
pub const CHANNEL_ITEMS_MAX: usize = 16_384;
/// Most removed items a channel remembers; the oldest versions are forgotten first.
pub const TOMBSTONES_MAX: usize = 4096;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Records set aside.
    pub count: u64,
    /// The newest error.
    pub error: String,
}

/// What a batch or a snapshot did to a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folded {
    /// Items that are different now, removed ones included.
    pub changed: Vec<ItemId>,
    /// Records set aside.
    pub set_aside: Vec<ItemError>,
}

impl ChannelState {
    /// An empty channel.
    pub fn new(channel: ChannelName) -> Self { unimplemented!() }
    /// Takes a batch into effect if it follows; anything else is a placement for the caller to answer.
    pub fn apply_batch(&mut self, batch: &VerifiedBatch) -> Result<Folded, Placement> { unimplemented!() }
    /// Takes a snapshot whole.
    pub fn apply_snapshot(&mut self, snapshot: &VerifiedSnapshot) -> Folded { unimplemented!() }
    /// Signs a list of the live items.
    pub fn snapshot(&self, identity: &WriterIdentity) -> Result<ChannelSnapshot, ListError> { unimplemented!() }
}
