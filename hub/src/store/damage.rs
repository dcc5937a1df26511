//! Damaged rows: set aside with their reason and bytes, and made again from what else is known.
//!
//! An object's row is made again from its document and its placement, a document from its object, a log from a signed list, a
//! device's item from the device. So a worn disk stops no list, no channel and no start, and takes nothing away from devices.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{ChannelName, Item, ItemId, WriterId};
use flotilla_sync::document::Document;
use rusqlite::{Connection, ErrorCode, params};

use super::{Batch, StoreError};

/// Rows kept aside; more are named in the log alone.
const SET_ASIDE_MAX: i64 = 10_000;
/// Largest row whose bytes are kept.
const BYTES_KEPT_MAX: usize = 1024 * 1024;

/// A row that cannot be what was written, found while it was read for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamagedRow {
    /// A batch of a log.
    Batch { channel: ChannelName, writer: WriterId, last_seq: u64 },
    /// What a channel holds of an item.
    Item { channel: ChannelName, id: String },
}

impl std::fmt::Display for DamagedRow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch { channel, writer, last_seq } => {
                write!(formatter, "batch {last_seq} of log {writer} in {channel}")
            }
            Self::Item { channel, id } => write!(formatter, "item {id} of {channel}"),
        }
    }
}

/// Whether an error of the database says that the file itself is damaged.
pub(super) fn is_corruption(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// An error at the opening, said so that whoever reads it knows what to do.
pub(super) fn at_opening(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Open { source, .. } | StoreError::Sql(source) if is_corruption(&source) => {
            StoreError::Unreadable { path: path.to_owned(), why: source.to_string() }
        }
        other => other,
    }
}

/// Whether the file is shorter than its own header says; what was in its log (`-wal`) may still make it whole.
///
/// # Errors
/// When it is shorter.
pub(super) fn check_length(path: &Path) -> Result<(), StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let has_wal = std::fs::metadata(wal).is_ok_and(|found| found.len() > 0);
    let Ok(length) = std::fs::metadata(path).map(|found| found.len()) else { return Ok(()) };
    let header = head_of(path);
    let Some(header) = header.filter(|_| !has_wal) else { return Ok(()) };
    let number =
        |at: usize, len: usize| header[at..at + len].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    // A page size of 1 stands for 65536 (SQLite file format, 1.3.2); the count is valid if the two change counters agree (1.3.7).
    let page = if number(16, 2) == 1 { 65_536 } else { number(16, 2) };
    let counted = number(24, 4) == number(92, 4);
    let wanted = page.saturating_mul(number(28, 4));
    if counted && length < wanted {
        let why = format!("it is truncated: {length} of {wanted} bytes are left");
        return Err(StoreError::Unreadable { path: path.to_owned(), why });
    }
    Ok(())
}

fn head_of(path: &Path) -> Option<[u8; 100]> {
    use std::io::Read as _;
    let mut header = [0; 100];
    std::fs::File::open(path).ok()?.read_exact(&mut header).ok()?;
    Some(header)
}

/// Keeps the bytes of a row that could not be read. Failing that, the log has its name.
pub(super) fn set_row_aside(connection: &Connection, place: &str, why: &str, now: Timestamp, body: &[u8]) {
    tracing::error!(place, why, "a stored row cannot be read; it is set aside");
    let kept = &body[..body.len().min(BYTES_KEPT_MAX)];
    let stored = connection.execute(
        "INSERT INTO set_aside (place, why, time, body) SELECT ?1, ?2, ?3, ?4
         WHERE (SELECT count(*) FROM set_aside) < ?5",
        params![place, why, now.0.cast_signed(), kept, SET_ASIDE_MAX],
    );
    if let Err(error) = stored {
        tracing::error!(place, %error, "its bytes are not kept");
    }
}

/// Sets the unreadable items of devices' own logs aside, and forgets how far those logs were read: the devices state them again.
pub(super) fn heal_device_items(connection: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let mut statement = connection.prepare("SELECT channel, id, state FROM device_item")?;
    let mut rows = statement.query([])?;
    let mut damaged = Vec::new();
    while let Some(row) = rows.next()? {
        let state = row.get_ref(2)?.as_bytes().unwrap_or_default();
        if let Err(error) = Item::decode(&Bytes::copy_from_slice(state)) {
            damaged.push((row.get::<_, String>(0)?, row.get::<_, String>(1)?, state.to_vec(), error.to_string()));
        }
    }
    drop(rows);
    for (channel, id, state, why) in damaged {
        set_row_aside(connection, &format!("device_item {channel} {id}"), &why, now, &state);
        connection.execute("DELETE FROM device_item WHERE channel = ?1 AND id = ?2", [&channel, &id])?;
        for table in ["batch", "head"] {
            let own =
                format!("DELETE FROM {table} WHERE channel = ?1 AND writer NOT IN (SELECT id FROM writer WHERE hub)");
            connection.execute(&own, [&channel])?;
        }
    }
    Ok(())
}

impl Batch<'_> {
    /// Makes objects again whose rows are gone while channels hold them; answers how many items there are.
    pub(crate) fn learn_missing(&mut self) -> Result<usize, StoreError> {
        let mut statement = self
            .transaction
            .prepare("SELECT channel, id FROM item WHERE source LIKE 'document %' OR source LIKE 'placement %'")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
        let mut found = 0;
        for (channel, id) in rows {
            let uid = id.strip_prefix("placement/").unwrap_or(&id);
            if self.working.index.by_uid(uid).is_some() {
                continue;
            }
            if let (Ok(channel), Ok(id)) = (ChannelName::parse(&channel), ItemId::parse(&id)) {
                found += usize::from(self.learn_own(&channel, &id)?);
            }
        }
        Ok(found)
    }

    /// Sets a damaged row aside and makes what it said again.
    pub(crate) fn heal(&mut self, row: &DamagedRow) -> Result<(), StoreError> {
        match row {
            DamagedRow::Batch { channel, writer, last_seq } => {
                let name = channel.to_string();
                let key = params![name, writer.0, last_seq.cast_signed()];
                let body = self
                    .transaction
                    .query_row(
                        "SELECT body FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq = ?3",
                        key,
                        |row| row.get::<_, Vec<u8>>(0),
                    )
                    .unwrap_or_default();
                set_row_aside(self.transaction, &row.to_string(), "it is not what was signed", self.now, &body);
                // Whoever stands before it reads a list.
                self.transaction
                    .execute("DELETE FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq <= ?3", key)?;
                self.transaction
                    .execute("UPDATE head SET floor = max(floor, ?3) WHERE channel = ?1 AND writer = ?2", key)?;
            }
            DamagedRow::Item { channel, id } => {
                let name = channel.to_string();
                let mut damaged = self.damaged_documents(&name)?;
                damaged.entry(id.clone()).or_default();
                for (id, body) in damaged {
                    let place = DamagedRow::Item { channel: channel.clone(), id: id.clone() }.to_string();
                    set_row_aside(self.transaction, &place, "its content cannot be read", self.now, &body);
                    // It is wanted, and not what is wanted: publication makes it again.
                    self.transaction.execute("UPDATE document SET digest = x'' WHERE uid = ?1", [&id])?;
                    self.transaction
                        .execute("UPDATE item SET digest = x'' WHERE channel = ?1 AND id = ?2", [&name, &id])?;
                }
                if ItemId::parse(id).is_err() {
                    self.drop_standing(&name, id)?;
                }
                self.publish_everything()?;
            }
        }
        Ok(())
    }

    /// Documents of a channel that cannot be read, with their bytes.
    fn damaged_documents(&self, channel: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        let mut statement = self.transaction.prepare(
            "SELECT document.uid, document.state FROM item JOIN document ON document.uid = item.id WHERE item.channel = ?1",
        )?;
        let mut rows = statement.query([channel])?;
        let mut damaged = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let state = row.get_ref(1)?.as_bytes().unwrap_or_default();
            if Document::load(state).is_err() {
                damaged.insert(row.get(0)?, state.to_vec());
            }
        }
        Ok(damaged)
    }

    /// Bounds the file, for tests of a full disk.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pragma: &str) {
        self.transaction.query_row(pragma, [], |_row| Ok(())).unwrap_or_default();
    }

    /// Notes a row that is made again on the spot.
    pub(super) fn note_damage(&self, place: &str, why: &str, body: &[u8]) {
        set_row_aside(self.transaction, place, why, self.now, body);
    }
}
