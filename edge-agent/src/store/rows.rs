//! Rows of the device's database, and reading all of them at start.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, params};

use super::blobs::{self, BesideRows, BlobRow};
use super::evidence::{self, EvidenceRows, KeptRow};
use super::salvage::Salvage;

/// Damaged rows that are named.
const SET_ASIDE_MAX: usize = 64;

/// Everything in the file. A row of the wrong shape is set aside.
#[derive(Debug, Default)]
pub struct Loaded {
    pub meta: BTreeMap<String, Vec<u8>>,
    /// Writer id -> certificate chain.
    pub writers: Vec<(Vec<u8>, Vec<u8>)>,
    pub heads: Vec<HeadRow>,
    pub items: Vec<ItemRow>,
    /// Pod uid -> history as JSON.
    pub histories: Vec<(String, String)>,
    pub outbox: Vec<OutboxRow>,
    /// The device's own batches, in order.
    pub batches: Vec<BatchRow>,
    /// How far the hub's logs are proven.
    pub evidence: Vec<KeptRow>,
    /// How much of each large value is here.
    pub blobs: Vec<BlobRow>,
    /// Items in force in place of newer ones that are not complete.
    pub held: Vec<ItemRow>,
    /// What a damaged database gave, if this start found it so.
    pub salvage: Option<Salvage>,
    /// Rows that cannot be what this agent wrote: what and why.
    pub set_aside: Vec<(String, String)>,
}

/// Where a log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    pub channel: String,
    pub writer: Vec<u8>,
    pub seq: u64,
    pub hash: Vec<u8>,
}

/// A document or register, encoded by `sync`. Empty bytes remove the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemRow {
    pub channel: String,
    pub id: String,
    pub bytes: Vec<u8>,
}

/// One batch of this device's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    pub channel: String,
    pub writer: Vec<u8>,
    pub first: u64,
    pub last: u64,
    pub bytes: Vec<u8>,
}

/// One observation that waits for the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    pub subject: String,
    pub incarnation: u64,
    pub boot: u64,
    pub seq: u64,
    pub time_ms: u64,
    pub urgent: bool,
    /// JSON; absent when the end of the subject is confirmed.
    pub body: Option<Vec<u8>>,
}

/// What one ingestion, or one write here, changes.
#[derive(Debug, Default)]
pub struct Ingest {
    pub writers: Vec<(Vec<u8>, Vec<u8>)>,
    pub heads: Vec<HeadRow>,
    pub items: Vec<ItemRow>,
    pub batches: Vec<BatchRow>,
    /// Channels that were left: all of their rows go.
    pub left: Vec<String>,
    pub meta: Vec<(&'static str, Vec<u8>)>,
    /// Facts about this device that are over.
    pub meta_ended: Vec<&'static str>,
    /// Batches of this channel that begin before this record are forgotten.
    pub batches_before: Option<(String, u64)>,
    pub evidence: EvidenceRows,
    pub beside: BesideRows,
}

impl Ingest {
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for channel in &self.left {
            for table in ["head", "item", "batch", "held"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE channel = ?1"), params![channel])?;
            }
            EvidenceRows::leave(transaction, channel)?;
        }
        self.evidence.write(transaction)?;
        self.beside.write(transaction)?;
        for (id, chain) in &self.writers {
            transaction.prepare_cached("INSERT OR REPLACE INTO writer VALUES (?1, ?2)")?.execute(params![id, chain])?;
        }
        for head in &self.heads {
            let values = params![head.channel, head.writer, head.seq.cast_signed(), head.hash];
            transaction.prepare_cached("INSERT OR REPLACE INTO head VALUES (?1, ?2, ?3, ?4)")?.execute(values)?;
        }
        for item in &self.items {
            if item.bytes.is_empty() {
                transaction
                    .prepare_cached("DELETE FROM item WHERE channel = ?1 AND id = ?2")?
                    .execute(params![item.channel, item.id])?;
            } else {
                let values = params![item.channel, item.id, item.bytes];
                transaction.prepare_cached("INSERT OR REPLACE INTO item VALUES (?1, ?2, ?3)")?.execute(values)?;
            }
        }
        for batch in &self.batches {
            let values =
                params![batch.channel, batch.writer, batch.first.cast_signed(), batch.last.cast_signed(), batch.bytes];
            transaction.prepare_cached("INSERT OR REPLACE INTO batch VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(values)?;
        }
        if let Some((channel, first)) = &self.batches_before {
            let values = params![channel, first.cast_signed()];
            transaction.prepare_cached("DELETE FROM batch WHERE channel = ?1 AND first < ?2")?.execute(values)?;
        }
        for (name, value) in &self.meta {
            transaction.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?.execute(params![name, value])?;
        }
        for name in &self.meta_ended {
            transaction.prepare_cached("DELETE FROM meta WHERE name = ?1")?.execute(params![name])?;
        }
        Ok(())
    }
}

impl OutboxRow {
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let values = params![
            self.subject,
            self.incarnation.cast_signed(),
            self.boot.cast_signed(),
            self.seq.cast_signed(),
            self.time_ms.cast_signed(),
            self.urgent,
            self.body
        ];
        transaction
            .prepare_cached("INSERT OR REPLACE INTO outbox VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(values)
            .map(|_rows| ())
    }
}

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    let mut aside = Vec::new();
    let mut loaded = Loaded {
        meta: noted(connection, "SELECT name, value FROM meta", &mut aside, pair)?.into_iter().collect(),
        writers: noted(connection, "SELECT id, chain FROM writer", &mut aside, pair)?,
        heads: noted(connection, "SELECT channel, writer, seq, hash FROM head", &mut aside, |row| {
            Ok(HeadRow { channel: row.get(0)?, writer: row.get(1)?, seq: unsigned(row, 2)?, hash: row.get(3)? })
        })?,
        items: noted(connection, "SELECT channel, id, bytes FROM item ORDER BY channel, id", &mut aside, |row| {
            Ok(ItemRow { channel: row.get(0)?, id: row.get(1)?, bytes: row.get(2)? })
        })?,
        histories: noted(connection, "SELECT pod, value FROM history", &mut aside, pair)?,
        outbox: noted(
            connection,
            "SELECT subject, incarnation, boot, seq, time_ms, urgent, body FROM outbox",
            &mut aside,
            |row| {
                Ok(OutboxRow {
                    subject: row.get(0)?,
                    incarnation: unsigned(row, 1)?,
                    boot: unsigned(row, 2)?,
                    seq: unsigned(row, 3)?,
                    time_ms: unsigned(row, 4)?,
                    urgent: row.get(5)?,
                    body: row.get(6)?,
                })
            },
        )?,
        batches: noted(
            connection,
            "SELECT channel, writer, first, last, bytes FROM batch ORDER BY channel, writer, first",
            &mut aside,
            |row| {
                Ok(BatchRow {
                    channel: row.get(0)?,
                    writer: row.get(1)?,
                    first: unsigned(row, 2)?,
                    last: unsigned(row, 3)?,
                    bytes: row.get(4)?,
                })
            },
        )?,
        evidence: evidence::load(connection)?,
        blobs: blobs::load(connection)?,
        held: blobs::load_held(connection)?,
        ..Loaded::default()
    };
    loaded.set_aside = aside;
    Ok(loaded)
}

pub(super) fn all<T>(
    connection: &Connection,
    query: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    noted(connection, query, &mut Vec::new(), read)
}

/// All rows of a query; those of the wrong shape are noted.
fn noted<T>(
    connection: &Connection,
    query: &str,
    aside: &mut Vec<(String, String)>,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(one) => all.push(one),
            Err(
                error @ (rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)),
            ) => {
                let key = row.get::<_, String>(0).unwrap_or_else(|_unreadable| "(unreadable key)".to_owned());
                let table = query.split(" FROM ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or(query);
                tracing::error!(%table, %key, %error, "a row of the device's database is damaged and was set aside");
                if aside.len() < SET_ASIDE_MAX {
                    aside.push((format!("row {key} of table {table}"), error.to_string()));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn pair<A: rusqlite::types::FromSql, B: rusqlite::types::FromSql>(row: &Row<'_>) -> rusqlite::Result<(A, B)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}
