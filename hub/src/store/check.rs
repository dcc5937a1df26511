//! `flotilla hub check`: everything the database says of its own health, read beside a running hub.

use std::path::Path;

use bytes::Bytes;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::Item;
use flotilla_sync::document::Document;
use flotilla_sync::log::Batch;
use rusqlite::{Connection, OpenFlags};

use super::settings::{self, Setting};
use super::{StoreError, backup::BackupError};
use crate::config::DATABASE_FILE;
use crate::learn::{Learning, Report};

/// Damages named at most, and names shown of each list of a report.
const DAMAGES_MAX: usize = 1000;
const NAMES_SHOWN_MAX: usize = 20;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// For people, one line each.
    pub facts: Vec<String>,
    /// Where and what, one line each.
    pub damages: Vec<String>,
}

/// Looks at the database of the hub in `data_dir`, which may run. Changes nothing.
///
/// # Errors
/// When there is no hub there, or its file is no database.
pub fn check(data_dir: &Path) -> Result<Found, BackupError> {
    let path = data_dir.join(DATABASE_FILE);
    if !path.exists() {
        return Err(BackupError::NoHub { folder: data_dir.to_owned() });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = |source| StoreError::Open { path: path.clone(), source };
    let connection = Connection::open_with_flags(&path, flags).map_err(opened)?;
    connection.busy_timeout(std::time::Duration::from_secs(10)).map_err(opened)?;
    connection.pragma_update(None, "query_only", true).map_err(opened)?;
    let mut found = Found::default();
    structure(&connection, &mut found);
    if let Err(error) = set_aside(&connection, &mut found) {
        found.damage(format!("the list of what was set aside: {error}"));
    }
    rows(&connection, &mut found);
    if let Err(error) = learning(&connection, &mut found) {
        found.damage(format!("the state of learning: {error}"));
    }
    Ok(found)
}

impl Found {
    fn damage(&mut self, what: String) {
        if self.damages.len() < DAMAGES_MAX {
            self.damages.push(what);
        }
    }
}

fn structure(connection: &Connection, found: &mut Found) {
    let verdicts = connection.prepare("PRAGMA integrity_check(20)").and_then(|mut statement| {
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect::<Result<Vec<_>, _>>()
    });
    match verdicts {
        Ok(verdicts) => verdicts.into_iter().filter(|verdict| verdict != "ok").for_each(|verdict| {
            found.damage(format!("the file: {}", verdict.replace('\n', " ")));
        }),
        Err(error) => found.damage(format!("the file: {error}")),
    }
}

fn set_aside(connection: &Connection, found: &mut Found) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare("SELECT place, why, time, length(body) FROM set_aside ORDER BY id LIMIT 1000")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (place, why): (String, String) = (row.get(0)?, row.get(1)?);
        let (time, bytes): (i64, Option<i64>) = (row.get(2)?, row.get(3)?);
        let at = Timestamp(time.cast_unsigned());
        found.damage(format!("{place}: set aside at {at} ({} bytes kept): {why}", bytes.unwrap_or(0)));
    }
    Ok(())
}

/// Reads every row that is more than numbers and names.
fn rows(connection: &Connection, found: &mut Found) {
    type Read = fn(Bytes) -> Result<(), String>;
    let object: Read = |bytes| {
        let value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Object::parse(value).map(drop).map_err(|error| error.to_string())
    };
    let document: Read = |bytes| Document::load(&bytes).map(drop).map_err(|error| error.to_string());
    let batch: Read = |bytes| Batch::decode(&bytes).map(drop).map_err(|error| error.to_string());
    let item: Read = |bytes| Item::decode(&bytes).map(drop).map_err(|error| error.to_string());
    let tables = [
        ("object", "kind || ' ' || namespace || '/' || name", "body", object),
        ("document", "uid", "state", document),
        ("batch", "channel || ' from ' || first_seq", "body", batch),
        ("device_item", "channel || ' ' || id", "state", item),
    ];
    for (table, name, column, read) in tables {
        match scan(connection, table, name, column, read, found) {
            Ok(count) => found.facts.push(format!("{count} rows of {table} read")),
            Err(error) => found.damage(format!("table {table}: {error}")),
        }
    }
}

fn scan(
    connection: &Connection,
    table: &str,
    name: &str,
    column: &str,
    read: fn(Bytes) -> Result<(), String>,
    found: &mut Found,
) -> rusqlite::Result<usize> {
    let mut statement = connection.prepare(&format!("SELECT {name}, {column} FROM {table}"))?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        let name = row.get::<_, String>(0).unwrap_or_else(|_| "(a name that is no text)".to_owned());
        let bytes = row.get_ref(1)?.as_bytes().unwrap_or_default().to_vec();
        if let Err(why) = read(Bytes::from(bytes)) {
            found.damage(format!("{table} {name}: {why}"));
        }
    }
    Ok(count)
}

fn learning(connection: &Connection, found: &mut Found) -> Result<(), StoreError> {
    let damaged = |source| StoreError::Damaged { what: "the state of learning", source };
    if let Some(stored) = settings::read(connection, Setting::Learning)? {
        let learning: Learning = serde_json::from_slice(&stored).map_err(damaged)?;
        found.facts.push(learning.to_string());
    }
    let Some(stored) = settings::read(connection, Setting::Learned)? else { return Ok(()) };
    let report: Report = serde_json::from_slice(&stored).map_err(damaged)?;
    found.facts.push(format!("learned from devices at {}", Timestamp(report.at_ms)));
    for (what, names) in [
        ("changed", &report.changed),
        ("created", &report.created),
        ("deleted", &report.deleted),
        ("Secrets of which devices hold a newer content: apply them again", &report.secrets),
        ("not taken in", &report.failed),
        ("devices that were not heard", &report.unheard),
    ] {
        if !names.is_empty() {
            let some: Vec<&str> = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect();
            let more = if names.len() > some.len() {
                format!(" and {} more", names.len() - some.len())
            } else {
                String::new()
            };
            found.facts.push(format!("  {what}: {}{more}", some.join(", ")));
        }
    }
    Ok(())
}
