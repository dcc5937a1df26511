//! Documents: the CRDT form of one manifest, and the only door of automerge.
//!
//! At the root stand `object` (the manifest), `rollout` (number -> threshold) and `epoch`. Maps are automerge maps. A list with
//! merge keys is a map keyed by all its keys with a fractional order index; every other list is one atomic scalar. Refuses bytes
//! above its limits, and turns what automerge would panic about into an error: callers verify signatures before they load.
//!
//! Start at [`Document::create`], [`Document::edit`] and [`Document::apply`]; the mapping is in `document/mapping.rs`.

mod conflict;
mod mapping;
mod order;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, AutoCommit, Change, ChangeHash, ROOT, ReadDoc, ScalarValue};
use serde_json::Value;

use crate::channel::Hash;

pub use conflict::{Conflict, ConflictingValue};

/// Largest saved document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 960 * 1024;
/// Largest manifest a document is made of, in bytes of JSON.
pub const OBJECT_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Deepest nesting of a manifest.
pub const OBJECT_DEPTH_MAX: usize = 64;
/// Most rollout numbers in flight in one document.
pub const ROLLOUTS_MAX: usize = 256;

/// Merge keys of the list at a path of field names from the object's root (`*` for list items and map values); `None` for a list
/// that is one value.
pub type Shape<'a> = &'a dyn Fn(&[&str]) -> Option<&'static [&'static str]>;

/// Threshold of each rollout number in flight.
pub type Rollouts = BTreeMap<String, u64>;

/// One manifest with its history of one epoch.
#[derive(Debug)]
pub struct Document {
    doc: AutoCommit,
}

/// A wanted state of a document, and who wants it.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    /// The manifest.
    pub object: &'a Value,
    /// The rollout numbers in flight.
    pub rollouts: &'a Rollouts,
    /// Shown when the edit conflicts with another; may be empty.
    pub author: &'a str,
    /// When. Milliseconds; kept in seconds.
    pub time_ms: u64,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentApplied {
    /// It took effect.
    Changed,
    /// It was there before.
    Duplicate,
}

/// Why a document cannot be made, read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Larger or deeper than the limits.
    #[error("document: more than {max} {unit}")]
    TooLarge {
        /// The limit.
        max: usize,
        /// What is limited.
        unit: &'static str,
    },
    /// The manifest is no JSON object.
    #[error("document: a manifest must be a JSON object")]
    NotAnObject,
    /// The bytes are no document, or no change.
    #[error("document: damaged: {0}")]
    Damaged(String),
    /// The change builds on changes that are not here yet.
    #[error("document: {} changes that this one needs are missing", missing.len())]
    MissingChanges {
        /// Their hashes.
        missing: Vec<Hash>,
    },
}

impl Document {
    pub fn create(edit: Edit<'_>, epoch: u64, shape: Shape<'_>, actor: [u8; 8]) -> Result<Self, DocumentError> { unimplemented!() }
    pub fn load(saved: &[u8]) -> Result<Self, DocumentError> { unimplemented!() }
    #[must_use]
    pub fn with_actor(mut self, actor: [u8; 8]) -> Self { unimplemented!() }
    pub fn edit(&mut self, edit: Edit<'_>, shape: Shape<'_>) -> Result<Option<Vec<u8>>, DocumentError> { unimplemented!() }
    pub fn apply(&mut self, change: &[u8]) -> Result<DocumentApplied, DocumentError> { unimplemented!() }
    pub fn merge(&mut self, other: &mut Self) -> Result<DocumentApplied, DocumentError> { unimplemented!() }
    pub fn object(&self) -> Result<Value, DocumentError> { unimplemented!() }
    pub fn rollouts(&self) -> Rollouts { unimplemented!() }
    pub fn object_at_number(&self, number: &str) -> Result<Option<Value>, DocumentError> { unimplemented!() }
    pub fn conflicts(&self) -> Vec<Conflict> { unimplemented!() }
    pub fn save(&mut self) -> Vec<u8> { unimplemented!() }
    pub fn heads(&mut self) -> Vec<Hash> { unimplemented!() }
    pub fn epoch(&self) -> u64 { unimplemented!() }
    pub fn changes_len(&self) -> usize { unimplemented!() }
}
