//! The documents behind the objects: brought up to date with each write, and begun anew when their history grows.
//!
//! A document starts a new epoch after [`EPOCH_CHANGES_MAX`] changes or at four times its fresh size. The hub whose incarnation the
//! document names does it, or one of a higher incarnation; another hub goes on in the epoch there is. What an epoch was when it was
//! cut stays for a while, for changes that arrive late ([`crate::late`]).

use bytes::Bytes;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::{digest, schema};
use flotilla_sync::blob::{Blob, BlobRef};
use flotilla_sync::channel::Hash;
use flotilla_sync::document::{Document, DocumentError, Edit, Epoch, Shape};
use flotilla_sync::record::RECORD_BODY_BYTES_MAX;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::StoreError;
use super::batch::Batch;
use crate::publish::content::{self, Content};

/// A document starts a new epoch after so many changes.
const EPOCH_CHANGES_MAX: usize = 1000;
/// Or once its history makes it so many times as large as it began, but not below [`EPOCH_BYTES_MIN`].
const EPOCH_GROWTH_MAX: usize = 4;
const EPOCH_BYTES_MIN: usize = 16 * 1024;
/// Or once little room is left in a record.
const EPOCH_BYTES_MAX: usize = RECORD_BODY_BYTES_MAX / 4 * 3;
/// Epochs of which the hub remembers where they were cut.
const PAST_EPOCHS_MAX: u64 = 64;
/// Epochs of which it keeps the state.
const PAST_STATES_MAX: u64 = 2;

/// A row of the `document` table.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) epoch: u64,
    /// Of its content.
    pub(crate) digest: Vec<u8>,
    pub(crate) state: Vec<u8>,
    fresh: usize,
}

/// A document brought up to its wanted content.
#[derive(Debug)]
pub(super) struct Edited {
    pub(super) digest: Vec<u8>,
    /// What it stood at before, and the change from there to here.
    pub(super) change: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) saved: Bytes,
    pub(super) epoch: u64,
    /// Its large values: their content, as far as this edit brought it, and the names of all.
    large: Vec<Blob>,
    blobs: Vec<BlobRef>,
    fresh: usize,
}

/// An epoch that a document has left.
#[derive(Debug)]
pub(crate) struct PastEpoch {
    /// Where it was cut.
    pub(crate) heads: Vec<Hash>,
    pub(crate) state: Option<Vec<u8>>,
}

impl Batch<'_> {
    /// Brings the document of an object up to its manifest part; `None` when there is no such object.
    pub(super) fn edit_document(&mut self, key: &ObjectKey) -> Result<Option<Edited>, StoreError> {
        let Some(object) = self.working.index.get(key) else { return Ok(None) };
        let Content::Document { uid, kind, object, rollouts } = content::document(&self.working.index, object) else {
            return Ok(None);
        };
        let wanted = digest::of_value(&json!({"object": object, "rollout": rollouts})).to_vec();
        let stored = stored_document(self.transaction, &uid)?;
        if let Some(stored) = stored.as_ref().filter(|stored| stored.digest == wanted) {
            return Ok(Some(Edited {
                digest: wanted,
                change: None,
                saved: stored.state.clone().into(),
                epoch: stored.epoch,
                large: Vec::new(),
                blobs: Vec::new(),
                fresh: stored.fresh,
            }));
        }
        let refused = |error: DocumentError| {
            let (what, why) = (key.to_string(), error.to_string());
            match error {
                DocumentError::TooLarge { .. } => StoreError::TooLarge { what, why },
                _ => StoreError::Publish { what, why },
            }
        };
        let shape = |path: &[&str]| schema::list_keys(kind, path);
        let edit = Edit { object: &object, rollouts: &rollouts, author: &self.author, time_ms: self.now.0 };
        let (edited, past) = self.edited(edit, stored, wanted, &shape).map_err(refused)?;
        if edited.saved.len() > RECORD_BODY_BYTES_MAX {
            let why = format!("its document has {} bytes, {RECORD_BODY_BYTES_MAX} fit", edited.saved.len());
            return Err(StoreError::TooLarge { what: key.to_string(), why });
        }
        if let Some(past) = past {
            tracing::debug!(object = %key, epoch = edited.epoch, bytes = edited.saved.len(), "a document was begun anew");
            self.put_past_epoch(&uid, edited.epoch - 1, &past)?;
        }
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO document (uid, epoch, digest, state, fresh) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                uid,
                edited.epoch.cast_signed(),
                edited.digest,
                &edited.saved[..],
                i64::try_from(edited.fresh).unwrap_or(i64::MAX)
            ])?;
        self.put_document_blobs(&uid, &edited.large, &edited.blobs)?;
        Ok(Some(edited))
    }

    /// The document after an edit, and the epoch it has left for that, if it has.
    fn edited(
        &self,
        edit: Edit<'_>,
        stored: Option<Stored>,
        wanted: Vec<u8>,
        shape: Shape<'_>,
    ) -> Result<(Edited, Option<PastEpoch>), DocumentError> {
        let (actor, keeper) = (self.working.actor, self.working.incarnation);
        let Some(stored) = stored else {
            let document = Document::create(edit, Epoch { number: 1, keeper }, shape, actor)?;
            return Ok((Edited::whole(document, wanted), None));
        };
        let mut document = match Document::load(&stored.state) {
            Ok(document) => document.with_actor(actor),
            Err(error) => {
                // The object knows what it said; devices take the new epoch whole.
                self.note_damage(
                    &format!("document {}", edit.object["metadata"]["name"]),
                    &error.to_string(),
                    &stored.state,
                );
                let epoch = Epoch { number: stored.epoch + 1, keeper };
                return Ok((Edited::whole(Document::create(edit, epoch, shape, actor)?, wanted), None));
            }
        };
        let worn = stored.is_worn(&mut document, edit.object.to_string().len());
        let may_begin = document.keeper() <= keeper;
        if !(worn && may_begin) {
            let change = document.edit(edit, shape)?;
            let fits = |change: &Vec<u8>| change.len() <= RECORD_BODY_BYTES_MAX;
            // A change too large for a record is said as the whole state, which is compressed.
            let change = change.filter(fits).map(|change| (stored.digest.clone(), change));
            let edited = Edited { change, fresh: stored.fresh, ..Edited::whole(document, wanted.clone()) };
            if edited.saved.len() <= RECORD_BODY_BYTES_MAX || !may_begin {
                return Ok((edited, None));
            }
            document = Document::load(&stored.state)?;
        }
        let past = PastEpoch { heads: document.heads(), state: Some(stored.state) };
        let next = document.succeed(edit, keeper, shape, actor)?;
        Ok((Edited::whole(next, wanted), Some(past)))
    }

    fn put_past_epoch(&mut self, uid: &str, epoch: u64, past: &PastEpoch) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO past_epoch (uid, epoch, heads, state, time) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![uid, epoch.cast_signed(), past.heads.concat(), past.state, self.now.0.cast_signed()])?;
        self.transaction
            .prepare_cached("UPDATE past_epoch SET state = NULL WHERE uid = ?1 AND epoch <= ?2 AND state IS NOT NULL")?
            .execute(params![uid, epoch.saturating_sub(PAST_STATES_MAX).cast_signed()])?;
        self.transaction
            .prepare_cached("DELETE FROM past_epoch WHERE uid = ?1 AND epoch <= ?2")?
            .execute(params![uid, epoch.saturating_sub(PAST_EPOCHS_MAX).cast_signed()])?;
        Ok(())
    }

    /// What is remembered of an epoch that a document has left.
    pub(crate) fn past_epoch(&self, uid: &str, epoch: u64) -> Result<Option<PastEpoch>, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT heads, state FROM past_epoch WHERE uid = ?1 AND epoch = ?2")?;
        let row = statement.query_row(params![uid, epoch.cast_signed()], |row| {
            let heads: Vec<u8> = row.get(0)?;
            let heads = heads.chunks_exact(32).filter_map(|head| Hash::try_from(head).ok()).collect();
            Ok(PastEpoch { heads, state: row.get(1)? })
        });
        Ok(row.optional()?)
    }

    /// Forgets the document of an object that is gone.
    pub(crate) fn forget_document(&mut self, uid: &str) -> Result<(), StoreError> {
        self.transaction.prepare_cached("DELETE FROM document WHERE uid = ?1")?.execute([uid])?;
        self.forget_past_epochs(uid)?;
        self.put_document_blobs(uid, &[], &[])
    }

    pub(crate) fn forget_past_epochs(&mut self, uid: &str) -> Result<(), StoreError> {
        self.transaction.prepare_cached("DELETE FROM past_epoch WHERE uid = ?1")?.execute([uid])?;
        Ok(())
    }
}

impl Stored {
    /// Whether it has grown by its history, not by its content, so much that it should begin anew.
    fn is_worn(&self, document: &mut Document, object_bytes: usize) -> bool {
        let fresh = if self.fresh > 0 { self.fresh } else { object_bytes };
        let grown = (fresh * EPOCH_GROWTH_MAX).clamp(EPOCH_BYTES_MIN, EPOCH_BYTES_MAX);
        // One that is large without any history gains nothing.
        let by_history = self.state.len() > fresh + fresh / 8;
        document.changes_len() >= EPOCH_CHANGES_MAX || (self.state.len() >= grown && by_history)
    }
}

impl Edited {
    /// A document that is said as a whole.
    fn whole(mut document: Document, digest: Vec<u8>) -> Self {
        let (large, blobs) = (document.take_large(), document.blobs());
        let (saved, epoch) = (Bytes::from(document.save()), document.epoch());
        Self { digest, change: None, fresh: saved.len(), saved, epoch, large, blobs }
    }
}

/// The stored document of an object.
pub(super) fn stored_document(transaction: &Connection, uid: &str) -> Result<Option<Stored>, StoreError> {
    let mut statement =
        transaction.prepare_cached("SELECT epoch, digest, state, fresh FROM document WHERE uid = ?1")?;
    let row = statement.query_row([uid], |row| {
        Ok(Stored {
            epoch: row.get::<_, i64>(0)?.cast_unsigned(),
            digest: row.get(1)?,
            state: row.get(2)?,
            fresh: usize::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        })
    });
    Ok(row.optional()?)
}
