//! Items: what a channel holds after its records took effect, and the rules by which they do.
//!
//! The rules give the same result in whatever order the logs of several writers arrive; within one log records are in order.
//! Registers and removals: the highest [`Version`] wins. Documents: changes merge within an epoch, the later epoch replaces the
//! earlier, a removal wins over every snapshot of a lower version and is lifted by one of a higher. A change whose document or
//! dependencies are not here yet waits, within bounds.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Head, ItemId, WriterId};
use crate::document::{Document, DocumentApplied, DocumentError};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::record::{Need, Record, RecordKind};

/// Orders the writes of all writers of an item. A writer that follows another starts its log above it
/// ([`crate::log::LogWriter::start_at`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Life of the writer's database.
    pub incarnation: u64,
    /// Number in the writer's log.
    pub seq: u64,
    /// The writer: breaks ties.
    pub writer: WriterId,
}

/// The state of one item id of one channel. Stored as the bytes of [`Item::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What is in force.
    pub kind: ItemKind,
    /// Newest record of each writer that touched it.
    pub touched: BTreeMap<WriterId, u64>,
    waiting: Vec<Waiting>,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// Nothing yet: only changes that wait.
    Absent,
    /// A document.
    Document(DocumentItem),
    /// A register.
    Register(RegisterItem),
    /// It was removed. Kept so that late records of other writers find it; see [`Item::is_covered`].
    Removed(Version),
}

/// A document in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentItem {
    /// Its epoch.
    pub epoch: u64,
    /// [`Document::save`].
    pub saved: Bytes,
    /// Newest snapshot record.
    pub created: Version,
    /// Newest record.
    pub newest: Version,
    /// What that record needs.
    pub needs: Vec<Need>,
    /// Author of that record.
    pub author: String,
    /// Time of that record. Milliseconds.
    pub time_ms: u64,
}

/// A register in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterItem {
    /// Its value.
    pub value: Bytes,
    /// The record that set it.
    pub version: Version,
    /// What that record needs.
    pub needs: Vec<Need>,
    /// Author of that record.
    pub author: String,
    /// Time of that record. Milliseconds.
    pub time_ms: u64,
}

/// What a record did to its item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// This is the item now.
    Changed(Item),
    /// The record waits in the item for others; what is in force is as before.
    Waiting(Item),
    /// No effect: older, or a duplicate.
    Unchanged,
}

/// Why a record is set aside. The item stays as it was; the log goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// A document record for a register, or the other way round.
    #[error("item {0}: a record of the wrong kind: an item is a document or a register for all its life")]
    WrongKind(ItemId),
    /// The content travels beside the log and is not here.
    #[error("item {0}: the record's content is not in it")]
    NoContent(ItemId),
    /// The document or the change is damaged.
    #[error("item {item}: {error}")]
    Document {
        /// Which item.
        item: ItemId,
        /// What is wrong.
        error: DocumentError,
    },
    /// Too many changes wait for what they need.
    #[error("item {0}: more than {WAITING_MAX} changes wait for others that are missing")]
    TooManyWaiting(ItemId),
    /// A stored or received state is not an item.
    #[error("state of an item: {0}")]
    Encoding(#[from] CborError),
}

/// Most changes of one item that wait for others.
pub const WAITING_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    version: Version,
    epoch: u64,
    change: Bytes,
}

impl Item {
    /// Takes a record into effect. `current`: the item of that id, if the channel has one. Pure.
    ///
    /// # Errors
    /// When the record must be set aside.
    pub fn apply(current: Option<&Self>, record: &Record, incarnation: u64) -> Result<Applied, ItemError> { unimplemented!() }
    /// Joins the state of a snapshot: the same rules, on states.
    pub fn adopt(current: Option<&Self>, id: &ItemId, state: Self) -> Result<Applied, ItemError> { unimplemented!() }
    pub fn is_covered(&self, covers: &BTreeMap<WriterId, Head>) -> bool { unimplemented!() }
    pub fn is_live(&self) -> bool { unimplemented!() }
    pub fn encode(&self) -> Bytes { unimplemented!() }
    pub fn decode(encoded: &Bytes) -> Result<Self, ItemError> { unimplemented!() }
}
