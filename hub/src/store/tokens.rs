//! The table of enrolment tokens. A running hub reads it at each use, so that another process may add to it: SQLite's own lock
//! orders them, and nothing of it is kept in memory.

use std::path::Path;

use flotilla_sync::enrol::TokenRecord;
use rusqlite::{Connection, OptionalExtension, params};

use super::settings::{self, Setting};
use super::{Batch, StoreError, schema};

/// Tokens that may wait for their use.
const TOKENS_MAX: i64 = 10_000;

/// A token as the hub keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredToken {
    pub(crate) record: TokenRecord,
    pub(crate) fleet: String,
}

impl Batch<'_> {
    pub(crate) fn token(&self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT fleet, record FROM token WHERE id = ?1")?;
        let row: Option<(String, String)> =
            statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((fleet, record)) = row else { return Ok(None) };
        let record = serde_json::from_str(&record).map_err(|source| StoreError::Damaged { what: "a token", source })?;
        Ok(Some(StoredToken { record, fleet }))
    }

    /// A token for this node alone that may still be used.
    pub(crate) fn token_for_node(&self, node: &str) -> Result<Option<StoredToken>, StoreError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT fleet, record FROM token WHERE expires > ?1 ORDER BY expires DESC")?;
        let mut rows = statement.query([self.now.0.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let (fleet, record): (String, String) = (row.get(0)?, row.get(1)?);
            let Ok(record) = serde_json::from_str::<TokenRecord>(&record) else { continue };
            let own = record.node.as_ref().is_some_and(|named| named.as_str() == node);
            if own && record.used_by.len() < record.uses_max as usize {
                return Ok(Some(StoredToken { record, fleet }));
            }
        }
        Ok(None)
    }

    pub(crate) fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError> {
        put(self.transaction, token)
    }
}

/// The database of a hub, opened beside the hub itself: for tokens alone.
#[derive(Debug)]
pub(crate) struct TokenTable {
    connection: Connection,
}

impl TokenTable {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = || -> rusqlite::Result<Connection> {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            schema::configure(&connection)?;
            Ok(connection)
        };
        let mut connection = opened().map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        schema::migrate(&mut connection)?;
        Ok(Self { connection })
    }

    pub(crate) fn setting(&self, setting: Setting) -> Result<Option<Vec<u8>>, StoreError> {
        settings::read(&self.connection, setting)
    }

    /// Adds a token; those that expired a day ago go, and beyond the limit the oldest.
    pub(crate) fn add(&mut self, token: &StoredToken, now_ms: u64) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let day_ago = now_ms.saturating_sub(86_400_000).cast_signed();
        transaction.execute("DELETE FROM token WHERE expires < ?1", [day_ago])?;
        transaction.execute(
            "DELETE FROM token WHERE id IN (SELECT id FROM token ORDER BY expires DESC LIMIT -1 OFFSET ?1)",
            [TOKENS_MAX - 1],
        )?;
        put(&transaction, token)?;
        transaction.commit()?;
        Ok(())
    }
}

fn put(connection: &Connection, token: &StoredToken) -> Result<(), StoreError> {
    let record =
        serde_json::to_string(&token.record).map_err(|source| StoreError::Damaged { what: "a token", source })?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO token (id, fleet, expires, record) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![token.record.id, token.fleet, token.record.expires_ms.cast_signed(), record])?;
    Ok(())
}
