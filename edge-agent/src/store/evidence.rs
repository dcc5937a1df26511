//! Signed proof of what the hub said: its batches as they came, and the last signed list of a channel with its states.
//!
//! Read only when a hub was restored from a backup and lacks them; see `replica/evidence.rs` for what is kept when. Bytes are
//! opaque here.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::rows::BatchRow;
use super::{Store, StoreError};

pub(super) const MIGRATION: &str = "
    CREATE TABLE evidence (channel TEXT, writer BLOB, first INTEGER, last INTEGER NOT NULL, bytes BLOB NOT NULL,
                           PRIMARY KEY (channel, writer, first));
    CREATE TABLE evidence_list (channel TEXT, writer BLOB, list BLOB NOT NULL, PRIMARY KEY (channel, writer));
    CREATE TABLE evidence_cover (channel TEXT, writer BLOB, covered BLOB, seq INTEGER NOT NULL, PRIMARY KEY (channel, writer, covered));
    CREATE TABLE evidence_state (channel TEXT, writer BLOB, place INTEGER, bytes BLOB NOT NULL, PRIMARY KEY (channel, writer, place));
";

/// All tables here begin with the channel.
const TABLES: [&str; 4] = ["evidence", "evidence_list", "evidence_cover", "evidence_state"];

/// What one ingestion adds.
#[derive(Debug, Default)]
pub struct EvidenceRows {
    /// Logs that are asked for anew: what was kept of them goes, before what is added here.
    pub dropped: Vec<(String, Vec<u8>)>,
    pub lists: Vec<ListRow>,
    pub batches: Vec<BatchRow>,
}

/// A signed list with its states. Replaces what it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRow {
    pub channel: String,
    pub writer: Vec<u8>,
    pub list: Vec<u8>,
    /// In the list's order.
    pub states: Vec<Vec<u8>>,
    /// Writer and the record of its log up to which the list speaks.
    pub covers: Vec<(Vec<u8>, u64)>,
}

/// What is kept of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRow {
    pub channel: String,
    pub writer: Vec<u8>,
    /// A list speaks for the log up to this record; 0 without one.
    pub covered: u64,
    /// First and last record of the batches kept; 0 and 0 without any.
    pub first: u64,
    pub last: u64,
    pub records: u64,
    pub bytes: u64,
}

/// What is kept of a log after a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    Batches(Vec<Vec<u8>>),
    List { list: Vec<u8>, states: Vec<Vec<u8>> },
    Nothing,
}

impl EvidenceRows {
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for (channel, writer) in &self.dropped {
            for table in TABLES {
                let statement = format!("DELETE FROM {table} WHERE channel = ?1 AND writer = ?2");
                transaction.execute(&statement, params![channel, writer])?;
            }
        }
        for list in &self.lists {
            list.write(transaction)?;
        }
        for batch in &self.batches {
            let values =
                params![batch.channel, batch.writer, batch.first.cast_signed(), batch.last.cast_signed(), batch.bytes];
            transaction.execute("INSERT OR REPLACE INTO evidence VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
        }
        Ok(())
    }

    pub(super) fn leave(transaction: &Transaction<'_>, channel: &str) -> rusqlite::Result<()> {
        for table in TABLES {
            transaction.execute(&format!("DELETE FROM {table} WHERE channel = ?1"), params![channel])?;
        }
        Ok(())
    }
}

impl ListRow {
    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for (covered, seq) in &self.covers {
            let values = params![self.channel, covered, seq.cast_signed()];
            transaction.execute("DELETE FROM evidence WHERE channel = ?1 AND writer = ?2 AND last <= ?3", values)?;
            // A list of a log goes when another list speaks for all that it spoke for.
            let mut older = transaction.prepare_cached(
                "SELECT 1 FROM evidence_cover WHERE channel = ?1 AND writer = ?2 AND covered = ?2 AND seq <= ?3",
            )?;
            if older.exists(values)? {
                for table in ["evidence_list", "evidence_cover", "evidence_state"] {
                    let statement = format!("DELETE FROM {table} WHERE channel = ?1 AND writer = ?2");
                    transaction.execute(&statement, params![self.channel, covered])?;
                }
            }
        }
        let values = params![self.channel, self.writer, self.list];
        transaction.execute("INSERT OR REPLACE INTO evidence_list VALUES (?1, ?2, ?3)", values)?;
        for table in ["evidence_cover", "evidence_state"] {
            let statement = format!("DELETE FROM {table} WHERE channel = ?1 AND writer = ?2");
            transaction.execute(&statement, params![self.channel, self.writer])?;
        }
        for (covered, seq) in &self.covers {
            let values = params![self.channel, self.writer, covered, seq.cast_signed()];
            transaction.execute("INSERT OR REPLACE INTO evidence_cover VALUES (?1, ?2, ?3, ?4)", values)?;
        }
        for (place, state) in (0_i64..).zip(&self.states) {
            let values = params![self.channel, self.writer, place, state];
            transaction.execute("INSERT INTO evidence_state VALUES (?1, ?2, ?3, ?4)", values)?;
        }
        Ok(())
    }
}

impl Store {
    /// What is kept of a log after a record: batches that follow it, else a list that goes beyond it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn evidence(
        &self,
        channel: String,
        writer: Vec<u8>,
        after: u64,
        bytes_max: usize,
    ) -> Result<Kept, StoreError> {
        self.transact("read what the hub signed", move |transaction| {
            let batches = batches(transaction, &channel, &writer, after, bytes_max)?;
            if batches.is_empty() { list(transaction, &channel, &writer, after) } else { Ok(Kept::Batches(batches)) }
        })
        .await
    }
}

/// Batches in a row, from the one that holds the record behind `after`. A reader that stands within a batch has another branch of the log:
/// it learns so from that batch.
fn batches(
    connection: &Connection,
    channel: &str,
    writer: &[u8],
    after: u64,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut statement = connection.prepare_cached(
        "SELECT first, last, bytes FROM evidence WHERE channel = ?1 AND writer = ?2 AND last > ?3 ORDER BY first",
    )?;
    let mut rows = statement.query(params![channel, writer, after.cast_signed()])?;
    let (mut found, mut bytes, mut next) = (Vec::new(), 0, after + 1);
    while let Some(row) = rows.next()? {
        let (first, last): (i64, i64) = (row.get(0)?, row.get(1)?);
        let body: Vec<u8> = row.get(2)?;
        bytes += body.len();
        let follows = first.cast_unsigned() == next || (found.is_empty() && first.cast_unsigned() < next);
        if !follows || (!found.is_empty() && bytes > bytes_max) {
            break;
        }
        next = last.cast_unsigned() + 1;
        found.push(body);
    }
    Ok(found)
}

fn list(connection: &Connection, channel: &str, writer: &[u8], after: u64) -> rusqlite::Result<Kept> {
    let mut statement = connection.prepare_cached(
        "SELECT evidence_list.writer, evidence_list.list FROM evidence_list JOIN evidence_cover USING (channel, writer)
         WHERE evidence_list.channel = ?1 AND evidence_cover.covered = ?2 AND evidence_cover.seq > ?3
         ORDER BY evidence_cover.seq DESC",
    )?;
    let found: Option<(Vec<u8>, Vec<u8>)> = statement
        .query_row(params![channel, writer, after.cast_signed()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((speaker, list)) = found else { return Ok(Kept::Nothing) };
    let mut statement = connection
        .prepare_cached("SELECT bytes FROM evidence_state WHERE channel = ?1 AND writer = ?2 ORDER BY place")?;
    let states = statement.query_map(params![channel, speaker], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Kept::List { list, states })
}

/// What is kept, by log.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<KeptRow>> {
    let mut statement = connection.prepare(
        "SELECT channel, writer, max(covered), max(first), max(last), max(records), max(bytes) FROM (
             SELECT channel, covered AS writer, max(seq) AS covered, 0 AS first, 0 AS last, 0 AS records, 0 AS bytes
             FROM evidence_cover GROUP BY channel, evidence_cover.covered
             UNION ALL
             SELECT channel, writer, 0, min(first), max(last), sum(last - first + 1), sum(length(bytes))
             FROM evidence GROUP BY channel, writer
         ) GROUP BY channel, writer",
    )?;
    let unsigned = |row: &rusqlite::Row<'_>, column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let rows = statement.query_map([], |row| {
        Ok(KeptRow {
            channel: row.get(0)?,
            writer: row.get(1)?,
            covered: unsigned(row, 2)?,
            first: unsigned(row, 3)?,
            last: unsigned(row, 4)?,
            records: unsigned(row, 5)?,
            bytes: unsigned(row, 6)?,
        })
    })?;
    rows.collect()
}
