//! Documents: the CRDT form of one manifest, and the only door of automerge.
//!
//! At the root stand `object` (the manifest), `rollout` (number -> threshold), and `epoch`, `keeper`, `follows` (`document/epoch.rs`). Maps are automerge maps. A list with
//! merge keys is a map keyed by all its keys with a fractional order index; every other list is one atomic scalar. A value above
//! 4 KiB is named by its digest, and its content is a [`Blob`] beside the document. Refuses bytes above its limits, and turns what automerge would panic about into an error: callers verify signatures before they load.
//!
//! Start at [`Document::create`], [`Document::edit`] and [`Document::apply`]; the mapping is in `document/mapping.rs`.

mod conflict;
mod epoch;
mod heads;
mod mapping;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{
    ActorId, AutoCommit, Change, ChangeHash, ObjId, ObjType, ROOT, ReadDoc, ScalarValue, Value as AmValue,
};
use serde_json::Value;

use crate::blob::{BLOBS_MAX, Blob, BlobRef, Blobs};
use crate::channel::Hash;

pub use conflict::{Conflict, ConflictingValue};
pub use epoch::{Epoch, LateChange};
pub(crate) use heads::heads_of;
use mapping::{Large, Node, View};

/// Largest saved document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 960 * 1024;
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
    /// What the last edit held that is too large for a document.
    large: Vec<Blob>,
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
    /// A value is a blob that is not here yet.
    #[error("document: a large value, {name}, is not here yet")]
    MissingBlob {
        /// Which.
        name: BlobRef,
    },
    /// The change builds on changes that are not here yet.
    #[error("document: {} changes that this one needs are missing", missing.len())]
    MissingChanges {
        /// Their hashes.
        missing: Vec<Hash>,
    },
}

const OBJECT: &str = "object";
const ROLLOUT: &str = "rollout";
const THRESHOLD: &str = "threshold";
const EPOCH: &str = "epoch";

impl Document {
    /// A new document: all of it is one change. The epoch after it comes of [`Document::succeed`]. `actor`: fresh random bytes
    /// per boot and epoch.
    ///
    /// # Errors
    /// The object is no object, or over a limit.
    pub fn create(
        edit: Edit<'_>,
        epoch: impl Into<Epoch>,
        shape: Shape<'_>,
        actor: [u8; 8],
    ) -> Result<Self, DocumentError> {
        let (object, large) = mapping::node_of(edit.object, shape)?;
        Self::begin(object, large, edit, epoch.into(), &[], actor)
    }

    fn begin(
        object: Node,
        large: Vec<Blob>,
        edit: Edit<'_>,
        epoch: Epoch,
        follows: &[Hash],
        actor: [u8; 8],
    ) -> Result<Self, DocumentError> {
        check(&edit)?;
        let rollout = edit.rollouts.iter().map(|(number, threshold)| (number.clone(), rollout_node(*threshold)));
        let mut root: BTreeMap<String, Node> = epoch::marks(epoch, follows).into_iter().collect();
        root.insert(OBJECT.to_owned(), object);
        root.insert(ROLLOUT.to_owned(), Node::Map(rollout.collect()));
        let automerge::hydrate::Value::Map(root) = Node::Map(root).hydrate() else {
            return Err(DocumentError::NotAnObject);
        };
        let mut doc = AutoCommit::new().with_actor(ActorId::from(actor));
        doc.init_root_from_hydrate(&root).map_err(damaged)?;
        doc.commit_with(commit_options(&edit));
        let mut document = Self { doc, large };
        if document.save().len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge { max: DOCUMENT_BYTES_MAX, unit: "bytes" });
        }
        Ok(document)
    }

    /// Reads a saved document. Damaged bytes are an error, also where automerge would panic.
    ///
    /// # Errors
    /// Over the limit, or no document.
    pub fn load(saved: &[u8]) -> Result<Self, DocumentError> {
        if saved.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge { max: DOCUMENT_BYTES_MAX, unit: "bytes" });
        }
        let doc = guarded(|| AutoCommit::load(saved).map_err(damaged))?;
        let document = Self { doc, large: Vec::new() };
        match document.doc.get(ROOT, OBJECT) {
            Ok(Some((AmValue::Object(ObjType::Map), _))) => Ok(document),
            _ => Err(DocumentError::Damaged("it has no object at its root".to_owned())),
        }
    }

    /// For editing: fresh random bytes per boot and epoch, never those of another replica.
    #[must_use]
    pub fn with_actor(mut self, actor: [u8; 8]) -> Self {
        self.doc.set_actor(ActorId::from(actor));
        self
    }

    /// Makes the document say what `edit` says, in one change with as few operations as it takes. Returns the change to
    /// append to a log, or nothing if it said so before.
    ///
    /// # Errors
    /// The object is no object, or over a limit; then the document is as before.
    pub fn edit(&mut self, edit: Edit<'_>, shape: Shape<'_>) -> Result<Option<Vec<u8>>, DocumentError> {
        check(&edit)?;
        let (node, large) = mapping::node_of(edit.object, shape)?;
        if let Err(error) = self.reconcile(node, edit.rollouts) {
            self.doc.rollback();
            return Err(damaged(error));
        }
        self.large = large;
        if self.doc.pending_ops() == 0 {
            return Ok(None);
        }
        self.doc.commit_with(commit_options(&edit));
        Ok(self.doc.get_last_local_change().map(|mut change| change.bytes().into_owned()))
    }

    fn reconcile(&mut self, node: Node, rollouts: &Rollouts) -> Result<(), automerge::AutomergeError> {
        mapping::reconcile_field(&mut self.doc, &ROOT, OBJECT, node)?;
        let rollouts = rollouts.iter().map(|(number, threshold)| (number.clone(), rollout_node(*threshold)));
        mapping::reconcile_field(&mut self.doc, &ROOT, ROLLOUT, Node::Map(rollouts.collect()))
    }

    /// Takes a change of another replica into effect. After an error other than [`DocumentError::MissingChanges`] the document
    /// must be thrown away and loaded again.
    ///
    /// # Errors
    /// Over the limit, no change, or one that needs others first.
    pub fn apply(&mut self, change: &[u8]) -> Result<DocumentApplied, DocumentError> {
        if change.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge { max: DOCUMENT_BYTES_MAX, unit: "bytes" });
        }
        let change = guarded(|| Change::from_bytes(change.to_vec()).map_err(damaged))?;
        let doc = &mut self.doc;
        guarded(|| {
            // What is said of a change is at hand; the change itself would be made anew from the whole document.
            if doc.get_change_meta_by_hash(&change.hash()).is_some() {
                return Ok(DocumentApplied::Duplicate);
            }
            let is_missing = |hash: &&ChangeHash| doc.get_change_meta_by_hash(hash).is_none();
            let missing: Vec<ChangeHash> = change.deps().to_vec();
            let missing: Vec<Hash> = missing.iter().filter(is_missing).map(|hash| hash.0).collect();
            if !missing.is_empty() {
                return Err(DocumentError::MissingChanges { missing });
            }
            doc.apply_changes([change]).map_err(damaged)?;
            Ok(DocumentApplied::Changed)
        })
    }

    /// Joins the history of another copy of this document, of the same epoch.
    ///
    /// # Errors
    /// When the histories do not fit together; then the document must be thrown away and loaded again.
    pub fn merge(&mut self, other: &mut Self) -> Result<DocumentApplied, DocumentError> {
        if self.holds(&other.heads()) {
            return Ok(DocumentApplied::Duplicate);
        }
        let doc = &mut self.doc;
        guarded(|| doc.merge(&mut other.doc).map_err(damaged))?;
        Ok(DocumentApplied::Changed)
    }

    /// The content of the large values that [`Document::create`] or [`Document::edit`] was just given: to be stored beside the
    /// document, before it is shown to anyone.
    pub fn take_large(&mut self) -> Vec<Blob> {
        std::mem::take(&mut self.large)
    }

    /// The blobs that the manifest names, now and at each rollout number in flight.
    pub fn blobs(&self) -> Vec<BlobRef> {
        let mut found = BTreeSet::new();
        let mut within = |heads: Option<&[ChangeHash]>| {
            if let Ok(Some((AmValue::Object(ObjType::Map), object))) = self.at(&ROOT, OBJECT, heads) {
                mapping::blobs_in(&self.doc, &object, heads, 0, &mut found);
            }
        };
        within(None);
        let numbers = self.doc.get(ROOT, ROLLOUT).ok().flatten().map(|(_, rollout)| rollout);
        for number in numbers.iter().flat_map(|rollout| self.doc.keys(rollout)) {
            if let Some((_, entry)) = numbers.as_ref().and_then(|map| self.doc.get(map, number.as_str()).ok().flatten())
                && let Some(change) = self.doc.hash_for_opid(&entry)
            {
                within(Some(&[change]));
            }
        }
        // Beyond the bound no edit goes; a merge of several may.
        found.into_iter().take(2 * BLOBS_MAX).collect()
    }

    /// The manifest, with the content of its large values from `blobs`.
    ///
    /// # Errors
    /// A blob is missing, or the document holds what no edit makes.
    pub fn object(&self, blobs: Blobs<'_>) -> Result<Value, DocumentError> {
        self.object_at(None, blobs)
    }

    fn object_at(&self, heads: Option<&[ChangeHash]>, blobs: Blobs<'_>) -> Result<Value, DocumentError> {
        let view = View { doc: &self.doc, heads, large: Large::Filled(blobs) };
        match self.at(&ROOT, OBJECT, heads)? {
            Some((AmValue::Object(ObjType::Map), id)) => view.map(&id, 0),
            _ => Err(DocumentError::Damaged("it has no object at its root".to_owned())),
        }
    }

    /// The rollout numbers in flight and their thresholds.
    pub fn rollouts(&self) -> Rollouts {
        let Ok(Some((_, rollout))) = self.doc.get(ROOT, ROLLOUT) else { return Rollouts::new() };
        let threshold = |number: &String| {
            let (_, entry) = self.doc.get(&rollout, number.as_str()).ok().flatten()?;
            let (threshold, _) = self.doc.get(&entry, THRESHOLD).ok().flatten()?;
            threshold.as_u64().or_else(|| threshold.as_i64().and_then(|signed| u64::try_from(signed).ok()))
        };
        self.doc.keys(&rollout).filter_map(|number| threshold(&number).map(|value| (number, value))).collect()
    }

    /// The manifest as it was at the change that introduced a rollout number; nothing if the number is not in flight.
    ///
    /// # Errors
    /// A blob is missing, or the document holds what no edit makes.
    pub fn object_at_number(&self, number: &str, blobs: Blobs<'_>) -> Result<Option<Value>, DocumentError> {
        let Some((_, rollout)) = self.at(&ROOT, ROLLOUT, None)? else { return Ok(None) };
        let Some((AmValue::Object(_), entry)) = self.at(&rollout, number, None)? else { return Ok(None) };
        match self.doc.hash_for_opid(&entry) {
            Some(change) => self.object_at(Some(&[change]), blobs).map(Some),
            None => Ok(None),
        }
    }

    fn at(
        &self,
        object: &ObjId,
        key: &str,
        heads: Option<&[ChangeHash]>,
    ) -> Result<Option<(AmValue<'_>, ObjId)>, DocumentError> {
        match heads {
            Some(heads) => self.doc.get_at(object, key, heads),
            None => self.doc.get(object, key),
        }
        .map_err(damaged)
    }

    /// Fields that several writers set without knowing of each other. An edit that sets a field to another value resolves it.
    pub fn conflicts(&self) -> Vec<Conflict> {
        conflict::of_object(&self.doc, OBJECT)
    }

    /// All of it, compressed.
    pub fn save(&mut self) -> Vec<u8> {
        self.doc.save()
    }

    /// The hashes of its newest changes, sorted.
    pub fn heads(&mut self) -> Vec<Hash> {
        self.doc.get_heads().iter().map(|head| head.0).collect()
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.doc.get(ROOT, EPOCH).ok().flatten().and_then(|(epoch, _)| epoch.as_u64()).unwrap_or_default()
    }

    /// How many changes its history has: after about a thousand its writer starts a new epoch.
    pub fn changes_len(&mut self) -> usize {
        self.doc.get_changes_meta(&[]).len()
    }
}

fn check(edit: &Edit<'_>) -> Result<(), DocumentError> {
    if edit.rollouts.len() > ROLLOUTS_MAX {
        return Err(DocumentError::TooLarge { max: ROLLOUTS_MAX, unit: "rollout numbers" });
    }
    Ok(())
}

fn commit_options(edit: &Edit<'_>) -> CommitOptions {
    let options = CommitOptions::default().with_time(i64::try_from(edit.time_ms / 1000).unwrap_or(i64::MAX));
    if edit.author.is_empty() { options } else { options.with_message(edit.author) }
}

fn rollout_node(threshold: u64) -> Node {
    let threshold = i64::try_from(threshold).map_or(ScalarValue::Uint(threshold), ScalarValue::Int);
    Node::Map(BTreeMap::from([(THRESHOLD.to_owned(), Node::Scalar(threshold))]))
}

fn damaged(error: impl std::fmt::Display) -> DocumentError {
    DocumentError::Damaged(error.to_string())
}

/// Runs automerge on bytes of others. It is known to panic on some damaged input; what it worked on is thrown away then, so no
/// broken invariant is ever seen.
fn guarded<T>(work: impl FnOnce() -> Result<T, DocumentError>) -> Result<T, DocumentError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_panic| Err(DocumentError::Damaged("automerge gave up on it".to_owned())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
