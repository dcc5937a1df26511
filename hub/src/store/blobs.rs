//! Large values beside the documents: stored once by digest, given to whoever reads a channel with a document that names them,
//! and dropped with the last such document.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_sync::blob::{Blob, BlobRef, BlobStored, BlobWant};
use flotilla_sync::channel::{ChannelName, Hash};
use rusqlite::{Connection, OptionalExtension, params};

use super::logs::Logs;
use super::{Batch, StoreError};

/// A blob is stored in pieces of at most this size, so that a range of it is read without the rest.
const PIECE_BYTES: usize = 256 * 1024;

impl Batch<'_> {
    /// Notes which blobs a document names from now on, with the content of those that are known here; blobs that no document
    /// names any more go. A blob without content is asked of the devices.
    pub(crate) fn put_document_blobs(
        &mut self,
        uid: &str,
        large: &[Blob],
        names: &[BlobRef],
    ) -> Result<(), StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT hash FROM blob_reference WHERE uid = ?1")?;
        let before: Vec<Hash> = statement.query_map([uid], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for name in names {
            self.transaction
                .prepare_cached("INSERT OR IGNORE INTO blob (hash, len, whole) VALUES (?1, ?2, 0)")?
                .execute(params![name.hash, name.len.cast_signed()])?;
            self.transaction
                .prepare_cached("INSERT OR IGNORE INTO blob_reference (hash, uid) VALUES (?1, ?2)")?
                .execute(params![name.hash, uid])?;
        }
        for blob in large.iter().filter(|blob| names.contains(&blob.name)) {
            self.put_blob(blob)?;
        }
        for hash in before.iter().filter(|hash| names.iter().all(|name| name.hash != **hash)) {
            self.transaction
                .prepare_cached("DELETE FROM blob_reference WHERE hash = ?1 AND uid = ?2")?
                .execute(params![hash, uid])?;
            self.forget_unnamed(hash)?;
        }
        Ok(())
    }

    fn put_blob(&mut self, blob: &Blob) -> Result<(), StoreError> {
        if part(self.transaction, &blob.name.hash)?.is_some_and(|part| part.whole) {
            return Ok(());
        }
        self.forget_pieces(&blob.name.hash)?;
        let mut start = 0_i64;
        for piece in blob.content.chunks(PIECE_BYTES) {
            self.put_piece(&blob.name.hash, start, piece)?;
            start += i64::try_from(piece.len()).unwrap_or(i64::MAX);
        }
        self.transaction.prepare_cached("UPDATE blob SET whole = 1 WHERE hash = ?1")?.execute([blob.name.hash])?;
        Ok(())
    }

    /// Takes a piece that a device gave; see [`flotilla_sync::replica::Replica::store_blob`].
    pub(crate) fn store_blob(&mut self, name: &BlobRef, offset: u64, bytes: &[u8]) -> Result<BlobStored, StoreError> {
        let known = part(self.transaction, &name.hash)?.filter(|part| !part.whole && part.want.name == *name);
        let Some(part) = known.filter(|part| part.want.offset == offset && !bytes.is_empty()) else {
            return Ok(BlobStored::Unwanted);
        };
        let end = offset + bytes.len() as u64;
        if end > part.want.name.len {
            return Ok(BlobStored::Unwanted);
        }
        self.put_piece(&name.hash, offset.cast_signed(), bytes)?;
        if end < name.len {
            return Ok(BlobStored::Partly);
        }
        let content = range(self.transaction, &name.hash, 0, usize::try_from(name.len).unwrap_or(usize::MAX))?;
        if !name.is_of(&content) {
            self.forget_pieces(&name.hash)?;
            return Ok(BlobStored::Damaged);
        }
        self.transaction.prepare_cached("UPDATE blob SET whole = 1 WHERE hash = ?1")?.execute([name.hash])?;
        Ok(BlobStored::Whole)
    }

    /// The content of a blob, if all of it is here.
    pub(crate) fn blob(&self, hash: &Hash) -> Option<Bytes> {
        let found = part(self.transaction, hash).and_then(|part| {
            let Some(part) = part.filter(|part| part.whole) else { return Ok(None) };
            range(self.transaction, hash, 0, usize::try_from(part.want.name.len).unwrap_or(usize::MAX)).map(Some)
        });
        found.unwrap_or_else(|error| {
            tracing::error!(%error, "a large value cannot be read");
            None
        })
    }

    fn put_piece(&mut self, hash: &Hash, start: i64, bytes: &[u8]) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO blob_piece (hash, start, bytes) VALUES (?1, ?2, ?3)")?
            .execute(params![hash, start, bytes])?;
        Ok(())
    }

    fn forget_pieces(&mut self, hash: &Hash) -> Result<(), StoreError> {
        self.transaction.prepare_cached("DELETE FROM blob_piece WHERE hash = ?1")?.execute([hash])?;
        Ok(())
    }

    fn forget_unnamed(&mut self, hash: &Hash) -> Result<(), StoreError> {
        let named = self.transaction.prepare_cached("SELECT 1 FROM blob_reference WHERE hash = ?1")?.exists([hash])?;
        if !named {
            self.forget_pieces(hash)?;
            self.transaction.prepare_cached("DELETE FROM blob WHERE hash = ?1")?.execute([hash])?;
        }
        Ok(())
    }
}

impl Logs {
    /// A range of a blob, if all of it is here and a document in one of these channels names it. Blocks on the disk.
    pub(crate) fn read_blob(
        &self,
        channels: &[ChannelName],
        hash: &Hash,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached(
            "SELECT 1 FROM blob JOIN blob_reference USING (hash) JOIN item ON item.id = blob_reference.uid
             WHERE blob.hash = ?1 AND blob.whole AND item.channel = ?2",
        )?;
        let mut may_read = false;
        for channel in channels {
            may_read |= statement.exists(params![hash, channel.to_string()])?;
        }
        if may_read { range(&reader, hash, offset, len).map(Some) } else { Ok(None) }
    }

    /// The blobs that documents in these channels name, as far as they are here. Blocks on the disk.
    pub(crate) fn named_blobs(&self, channels: &[ChannelName]) -> Result<Vec<BlobRef>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached(
            "SELECT DISTINCT blob.hash, blob.len FROM item JOIN blob_reference ON blob_reference.uid = item.id
             JOIN blob USING (hash) WHERE item.channel = ?1 AND blob.whole",
        )?;
        let mut named = BTreeSet::new();
        for channel in channels {
            let rows = statement.query_map([channel.to_string()], |row| {
                Ok(BlobRef { hash: row.get(0)?, len: row.get::<_, i64>(1)?.cast_unsigned() })
            })?;
            for row in rows {
                named.insert(row?);
            }
        }
        Ok(named.into_iter().collect())
    }

    /// Blobs that documents name and that are not here. Blocks on the disk.
    pub(crate) fn missing_blobs(&self, limit: usize) -> Result<Vec<BlobWant>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached("SELECT hash FROM blob WHERE whole = 0 ORDER BY hash LIMIT ?1")?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let hashes: Vec<Hash> = statement.query_map([limit], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut missing = Vec::new();
        for hash in hashes {
            missing.extend(part(&reader, &hash)?.map(|part| part.want));
        }
        Ok(missing)
    }
}

/// What is here of a blob that a document names.
struct Part {
    want: BlobWant,
    whole: bool,
}

fn part(connection: &Connection, hash: &Hash) -> Result<Option<Part>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT len, whole, (SELECT coalesce(max(start + length(bytes)), 0) FROM blob_piece WHERE hash = ?1)
         FROM blob WHERE hash = ?1",
    )?;
    let row = statement.query_row([hash], |row| {
        let name = BlobRef { hash: *hash, len: row.get::<_, i64>(0)?.cast_unsigned() };
        let want = BlobWant { name, offset: row.get::<_, i64>(2)?.cast_unsigned() };
        Ok(Part { want, whole: row.get(1)? })
    });
    Ok(row.optional()?)
}

fn range(connection: &Connection, hash: &Hash, offset: u64, len: usize) -> Result<Bytes, StoreError> {
    let end = offset.saturating_add(len as u64);
    let mut statement = connection.prepare_cached(
        "SELECT substr(bytes, max(?2 - start, 0) + 1, ?3 - max(start, ?2)) FROM blob_piece
         WHERE hash = ?1 AND start < ?3 AND start + length(bytes) > ?2 ORDER BY start",
    )?;
    let mut rows = statement.query(params![hash, offset.cast_signed(), i64::try_from(end).unwrap_or(i64::MAX)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend_from_slice(&row.get::<_, Vec<u8>>(0)?);
    }
    Ok(found.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
