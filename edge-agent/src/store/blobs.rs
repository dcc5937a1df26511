//! Large values beside the items, in pieces as they came, and what was in force before an item whose large values are not all here.
//!
//! Pieces are not joined once all are there: each byte is written to the flash once.

use std::sync::{Mutex, PoisonError};

use flotilla_sync::blob::{BlobRef, BlobStored};
use flotilla_sync::channel::Hash;
use rusqlite::{Connection, Transaction, params};

use super::rows::{ItemRow, all};
use super::{Store, StoreError, opening};

pub(super) const MIGRATION: &str = "
    CREATE TABLE blob (hash BLOB PRIMARY KEY, len INTEGER NOT NULL, whole INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE blob_piece (hash BLOB NOT NULL, start INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (hash, start));
    CREATE TABLE held (channel TEXT, id TEXT, bytes BLOB NOT NULL, PRIMARY KEY (channel, id));
";

/// How much of a blob is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    pub hash: Hash,
    pub len: u64,
    pub offset: u64,
    pub whole: bool,
}

/// What an ingestion changes beside the items.
#[derive(Debug, Default)]
pub struct BesideRows {
    /// Items in force until the newer ones are complete. Empty bytes remove the row.
    pub held: Vec<ItemRow>,
    /// Blobs that nothing names any more.
    pub forgotten: Vec<Hash>,
}

/// Reads blobs beside the thread that writes; opened when the first is read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    connection: Mutex<Option<Connection>>,
    vfs: Option<String>,
}

impl Reader {
    pub(super) fn over(vfs: Option<&str>) -> Self {
        Self { connection: Mutex::default(), vfs: vfs.map(str::to_owned) }
    }
}

impl BesideRows {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.forgotten.is_empty()
    }

    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for row in &self.held {
            if row.bytes.is_empty() {
                transaction.execute("DELETE FROM held WHERE channel = ?1 AND id = ?2", params![row.channel, row.id])?;
            } else {
                let values = params![row.channel, row.id, row.bytes];
                transaction.execute("INSERT OR REPLACE INTO held VALUES (?1, ?2, ?3)", values)?;
            }
        }
        for hash in &self.forgotten {
            transaction.execute("DELETE FROM blob_piece WHERE hash = ?1", params![hash])?;
            transaction.execute("DELETE FROM blob WHERE hash = ?1", params![hash])?;
        }
        Ok(())
    }
}

impl Store {
    /// Makes a piece of a blob durable, which begins where the last one ended; the last one proves the whole.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub async fn put_blob_piece(&self, name: BlobRef, offset: u64, bytes: Vec<u8>) -> Result<BlobStored, StoreError> {
        self.transact("store a large value", move |transaction| {
            let end = offset + bytes.len() as u64;
            transaction.execute(
                "INSERT OR IGNORE INTO blob (hash, len, whole) VALUES (?1, ?2, 0)",
                params![name.hash, name.len.cast_signed()],
            )?;
            transaction.execute(
                "INSERT OR REPLACE INTO blob_piece (hash, start, bytes) VALUES (?1, ?2, ?3)",
                params![name.hash, offset.cast_signed(), bytes],
            )?;
            if end < name.len {
                return Ok(BlobStored::Partly);
            }
            if name.is_of(&content(transaction, &name.hash)?) {
                transaction.execute("UPDATE blob SET whole = 1 WHERE hash = ?1", params![name.hash])?;
                return Ok(BlobStored::Whole);
            }
            BesideRows { forgotten: vec![name.hash], ..BesideRows::default() }.write(transaction)?;
            Ok(BlobStored::Damaged)
        })
        .await
    }

    /// A blob as its pieces are here. Blocks on the disk.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn blob(&self, hash: &Hash) -> Result<Vec<u8>, StoreError> {
        let read = |source| StoreError::Write { what: "read a large value", source };
        let mut guard = self.reader.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match &mut *guard {
            Some(connection) => connection,
            empty => {
                let connection = opening::connect(&self.path, self.reader.vfs.as_deref()).map_err(read)?;
                connection.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-64;").map_err(read)?;
                empty.insert(connection)
            }
        };
        content(connection, hash).map_err(read)
    }
}

fn content(connection: &Connection, hash: &Hash) -> rusqlite::Result<Vec<u8>> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM blob_piece WHERE hash = ?1 ORDER BY start")?;
    let mut rows = statement.query([hash])?;
    let mut content = Vec::new();
    while let Some(row) = rows.next()? {
        content.extend_from_slice(row.get_ref(0)?.as_blob()?);
    }
    Ok(content)
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<BlobRow>> {
    let query = "SELECT hash, len, whole, (SELECT coalesce(max(start + length(bytes)), 0) FROM blob_piece
                 WHERE blob_piece.hash = blob.hash) FROM blob";
    all(connection, query, |row| {
        Ok(BlobRow {
            hash: row.get(0)?,
            len: row.get::<_, i64>(1)?.cast_unsigned(),
            whole: row.get(2)?,
            offset: row.get::<_, i64>(3)?.cast_unsigned(),
        })
    })
}

pub(super) fn load_held(connection: &Connection) -> rusqlite::Result<Vec<ItemRow>> {
    all(connection, "SELECT channel, id, bytes FROM held", |row| {
        Ok(ItemRow { channel: row.get(0)?, id: row.get(1)?, bytes: row.get(2)? })
    })
}
