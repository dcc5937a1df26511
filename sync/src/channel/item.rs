//! Items: what a channel holds after its records took effect, and the rules by which they do.
//!
//! The rules give the same result in whatever order the logs of several writers arrive; within one log records are in order.
//! Registers and removals: the highest [`Version`] wins. Documents: changes merge within an epoch, the later epoch replaces the
//! earlier (of two of one number that began apart, that of the later keeper), a removal wins over every snapshot of a lower version and is lifted by one of a higher. A change whose document or
//! dependencies are not here yet waits, within bounds.

mod codec;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Head, ItemId, WriterId};
use crate::blob::BlobRef;
use crate::document::{self, Document, DocumentApplied, DocumentError};
use crate::planted::{self, Bug};
use crate::recall;
use crate::record::cbor::CborError;
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
    /// The large values it names, now and at each number in flight.
    pub blobs: Vec<BlobRef>,
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
    /// The channel is full.
    #[error("item {0}: its channel holds as many items as it may")]
    TooManyItems(ItemId),
    /// A stored or received state is not an item.
    #[error("state of an item: {0}")]
    Encoding(#[from] CborError),
}

/// Most changes of one item that wait for others.
pub(super) const WAITING_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    version: Version,
    epoch: u64,
    change: Bytes,
    needs: Vec<Need>,
    author: String,
    time_ms: u64,
}

impl Item {
    /// Takes a record into effect. `current`: the item of that id, if the channel has one. Pure.
    ///
    /// # Errors
    /// When the record must be set aside; the item stays as it was.
    pub fn apply(current: Option<&Self>, record: &Record, incarnation: u64) -> Result<Applied, ItemError> {
        let version = Version { incarnation, seq: record.seq, writer: record.writer };
        let id = &record.draft.item;
        let before = current.cloned().unwrap_or_default();
        let content = || record.draft.body.inline().cloned().ok_or_else(|| ItemError::NoContent(id.clone()));
        let kind = match record.draft.kind {
            RecordKind::Remove => ItemKind::Removed(version),
            RecordKind::Register => ItemKind::Register(RegisterItem {
                value: content()?,
                version,
                needs: record.draft.needs.clone(),
                author: record.draft.author.clone(),
                time_ms: record.draft.time_ms,
            }),
            RecordKind::Snapshot => ItemKind::Document(DocumentItem {
                epoch: record.draft.epoch,
                saved: content()?,
                blobs: Vec::new(),
                created: version,
                newest: version,
                needs: record.draft.needs.clone(),
                author: record.draft.author.clone(),
                time_ms: record.draft.time_ms,
            }),
            RecordKind::Change => {
                if matches!(before.kind, ItemKind::Register(_)) {
                    return Err(ItemError::WrongKind(id.clone()));
                }
                let mut item = before.clone();
                let waiting = Waiting {
                    version,
                    epoch: record.draft.epoch,
                    change: content()?,
                    needs: record.draft.needs.clone(),
                    author: record.draft.author.clone(),
                    time_ms: record.draft.time_ms,
                };
                item.wait(waiting);
                return item.settle(id, &before, record.writer, record.seq);
            }
        };
        let state = Self { kind, touched: BTreeMap::from([(record.writer, record.seq)]), waiting: Vec::new() };
        Self::adopt(Some(&before), id, state)
    }

    /// Joins another state of the same item, as a snapshot of its channel brings it: the same rules, on states.
    ///
    /// # Errors
    /// When the state must be set aside; the item stays as it was.
    pub fn adopt(current: Option<&Self>, id: &ItemId, state: Self) -> Result<Applied, ItemError> {
        let before = current.cloned().unwrap_or_default();
        let mut item = Self { kind: joined(id, &before.kind, state.kind)?, ..before.clone() };
        for waiting in state.waiting {
            item.wait(waiting);
        }
        for (writer, seq) in state.touched {
            item.touch(writer, seq);
        }
        item.settled(id, &before)
    }

    /// Whether a list that covers these heads may delete the item by not naming it: every writer's newest record is covered.
    pub fn is_covered(&self, covers: &BTreeMap<WriterId, Head>) -> bool {
        self.touched.iter().all(|(writer, seq)| covers.get(writer).is_some_and(|head| head.seq >= *seq))
    }

    /// Whether it is in force: a document or a register.
    pub fn is_live(&self) -> bool {
        matches!(self.kind, ItemKind::Document(_) | ItemKind::Register(_))
    }

    /// Its epoch; 0 for what is no document.
    pub fn epoch(&self) -> u64 {
        if let ItemKind::Document(document) = &self.kind { document.epoch } else { 0 }
    }

    /// When it was removed, if it was.
    pub fn removed(&self) -> Option<Version> {
        if let ItemKind::Removed(version) = self.kind { Some(version) } else { None }
    }

    fn touch(&mut self, writer: WriterId, seq: u64) {
        let newest = self.touched.entry(writer).or_insert(seq);
        *newest = seq.max(*newest);
    }

    /// Adds a waiting change in its place, once.
    fn wait(&mut self, waiting: Waiting) {
        if let Err(place) = self.waiting.binary_search(&waiting) {
            self.waiting.insert(place, waiting);
        }
    }

    fn settle(mut self, id: &ItemId, before: &Self, writer: WriterId, seq: u64) -> Result<Applied, ItemError> {
        self.touch(writer, seq);
        self.settled(id, before)
    }

    /// Applies the waiting changes that can be applied, and says what came of it all.
    fn settled(mut self, id: &ItemId, before: &Self) -> Result<Applied, ItemError> {
        if !self.waiting.is_empty() {
            match &self.kind {
                ItemKind::Document(document) => {
                    let (document, waiting) = document.clone().with_changes(id, std::mem::take(&mut self.waiting))?;
                    self.kind = ItemKind::Document(document);
                    self.waiting = waiting;
                }
                ItemKind::Removed(removed) => {
                    let removed = *removed;
                    self.waiting.retain(|waiting| waiting.version > removed);
                }
                ItemKind::Absent | ItemKind::Register(_) => {}
            }
        }
        if self.waiting.len() > WAITING_MAX {
            return Err(ItemError::TooManyWaiting(id.clone()));
        }
        Ok(if self == *before {
            Applied::Unchanged
        } else if self.kind == before.kind && self.waiting != before.waiting {
            Applied::Waiting(self)
        } else {
            Applied::Changed(self)
        })
    }

    /// The bytes to store, and to state in snapshots.
    pub fn encode(&self) -> Bytes {
        codec::encode(self)
    }

    /// Reads a stored or received state.
    ///
    /// # Errors
    /// Not the encoding of an item.
    pub fn decode(encoded: &Bytes) -> Result<Self, ItemError> {
        codec::decode(encoded)
    }
}

impl Default for Item {
    fn default() -> Self {
        Self { kind: ItemKind::Absent, touched: BTreeMap::new(), waiting: Vec::new() }
    }
}

/// The rules between what is in force and what comes.
fn joined(id: &ItemId, current: &ItemKind, coming: ItemKind) -> Result<ItemKind, ItemError> {
    use ItemKind::{Absent, Document as Doc, Register, Removed};
    let keep = |current: &ItemKind| Ok(current.clone());
    match (current, coming) {
        (_, Absent) => keep(current),
        (Absent, Doc(coming)) => coming.opened(id).map(Doc),
        (Absent, coming) => Ok(coming),
        (Doc(_), Register(_)) | (Register(_), Doc(_)) => Err(ItemError::WrongKind(id.clone())),
        (Register(current), Register(coming)) => {
            Ok(Register(if coming.version > current.version { coming } else { current.clone() }))
        }
        (Register(register), Removed(removed)) if removed > register.version => Ok(Removed(removed)),
        (Doc(document), Removed(removed)) if removed > document.created => Ok(Removed(removed)),
        (Register(_) | Doc(_), Removed(_)) => keep(current),
        (Removed(removed), Register(coming)) if coming.version > *removed => Ok(Register(coming)),
        (Removed(removed), Doc(coming)) if coming.created > *removed => coming.opened(id).map(Doc),
        (Removed(removed), Removed(coming)) => Ok(Removed(coming.max(*removed))),
        (Removed(_), _) => keep(current),
        (Doc(current), Doc(coming)) => current.clone().joined(id, coming).map(Doc),
    }
}

fn open(id: &ItemId, saved: &[u8]) -> Result<Document, ItemError> {
    Document::load(saved).map_err(|error| ItemError::Document { item: id.clone(), error })
}

/// Whether a document's history has all that of a saved one.
fn goes_on_from(document: &mut Document, saved: &[u8]) -> bool {
    document::heads_of(saved).is_some_and(|heads| !heads.is_empty() && document.holds(&heads))
}

impl DocumentItem {
    /// What came, once it is seen to be a document; what it names is read from it.
    fn opened(self, id: &ItemId) -> Result<Self, ItemError> {
        let blobs =
            recall::or("blobs", &[&self.saved], || Document::load(&self.saved).map(|document| document.blobs()));
        let blobs = blobs.map_err(|error| ItemError::Document { item: id.clone(), error })?;
        Ok(Self { blobs, ..self })
    }

    fn joined(self, id: &ItemId, coming: Self) -> Result<Self, ItemError> {
        let created = self.created.max(coming.created);
        let (older, newer) = if (coming.epoch > self.epoch) != planted::is(Bug::StaleEpochTaken) {
            (&self, &coming)
        } else {
            (&coming, &self)
        };
        if older.epoch != newer.epoch {
            return Self { created, ..newer.clone() }.opened(id);
        }
        let (saved, blobs) = if self.saved == coming.saved {
            (self.saved.clone(), self.blobs.clone())
        } else {
            let mut other = open(id, &coming.saved)?;
            if goes_on_from(&mut other, &self.saved) {
                // Nothing was said here that is not in it, as mostly: no reading of what is here, and no merge.
                (coming.saved.clone(), other.blobs())
            } else {
                let mut document = open(id, &self.saved)?;
                if document.genesis() != other.genesis() {
                    // This epoch began twice, by two hubs that did not know of each other, or anew by one that had removed it: the
                    // histories have nothing in common to merge.
                    let (here, there) = ((document.keeper(), self.created), (other.keeper(), coming.created));
                    let winner = if here > there { self } else { Self { blobs: other.blobs(), ..coming } };
                    return Ok(Self { created, ..winner });
                }
                let merged = document.merge(&mut other);
                match merged.map_err(|error| ItemError::Document { item: id.clone(), error })? {
                    DocumentApplied::Changed => (Bytes::from(document.save()), document.blobs()),
                    DocumentApplied::Duplicate => (self.saved.clone(), self.blobs.clone()),
                }
            }
        };
        let newest = if coming.newest > self.newest { coming } else { self };
        Ok(Self { saved, blobs, created, ..newest })
    }

    /// Applies waiting changes until none fits any more. Changes of an earlier epoch have no effect; what is left waits on.
    fn with_changes(self, id: &ItemId, mut changes: Vec<Waiting>) -> Result<(Self, Vec<Waiting>), ItemError> {
        match changes.pop() {
            Some(change) if changes.is_empty() && change.epoch == self.epoch => self.with_change(id, change),
            last => {
                changes.extend(last);
                self.with_several(id, changes)
            }
        }
    }

    /// One change of this epoch, as most of them come.
    fn with_change(mut self, id: &ItemId, change: Waiting) -> Result<(Self, Vec<Waiting>), ItemError> {
        let after = recall::or("change", &[&self.saved, &change.change], || After::of(&self.saved, &change.change));
        match after {
            Ok(After::Changed { saved, blobs }) => {
                (self.saved, self.blobs) = (saved, blobs);
                self.note(change);
            }
            Ok(After::Duplicate) => self.note(change),
            Err(DocumentError::MissingChanges { .. }) => return Ok((self, vec![change])),
            Err(error) => return Err(ItemError::Document { item: id.clone(), error }),
        }
        Ok((self, Vec::new()))
    }

    fn with_several(mut self, id: &ItemId, changes: Vec<Waiting>) -> Result<(Self, Vec<Waiting>), ItemError> {
        let (original, all, only_one) = (self.clone(), changes.clone(), changes.len() == 1);
        let mut document = open(id, &self.saved)?;
        let (mut ready, mut later): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .filter(|change| change.epoch >= self.epoch)
            .partition(|change| change.epoch == self.epoch);
        let mut changed = false;
        loop {
            let before = ready.len();
            let mut missing = Vec::new();
            for change in ready {
                match document.apply(&change.change) {
                    Ok(applied) => {
                        changed |= applied == DocumentApplied::Changed;
                        self.note(change);
                    }
                    Err(DocumentError::MissingChanges { .. }) => missing.push(change),
                    Err(error) if only_one => return Err(ItemError::Document { item: id.clone(), error }),
                    // One that waited proves to be damaged: the others go on without it.
                    Err(_damaged) => return original.with_changes(id, others(&all, &change)),
                }
            }
            ready = missing;
            if ready.is_empty() || ready.len() == before {
                break;
            }
        }
        if changed {
            self.saved = Bytes::from(document.save());
            self.blobs = document.blobs();
        }
        later.append(&mut ready);
        later.sort_unstable();
        Ok((self, later))
    }

    fn note(&mut self, change: Waiting) {
        if change.version > self.newest {
            self.newest = change.version;
            self.needs = change.needs;
            self.author = change.author;
            self.time_ms = change.time_ms;
        }
    }
}

/// What one change makes of a saved document.
#[derive(Debug, Clone)]
enum After {
    Changed { saved: Bytes, blobs: Vec<BlobRef> },
    Duplicate,
}

impl After {
    fn of(saved: &[u8], change: &[u8]) -> Result<Self, DocumentError> {
        let mut document = Document::load(saved)?;
        Ok(match document.apply(change)? {
            DocumentApplied::Changed => Self::Changed { saved: document.save().into(), blobs: document.blobs() },
            DocumentApplied::Duplicate => Self::Duplicate,
        })
    }
}

fn others(all: &[Waiting], damaged: &Waiting) -> Vec<Waiting> {
    all.iter().filter(|change| *change != damaged).cloned().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
