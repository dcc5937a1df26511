//! A history of transactions that tells afterwards whether one was lost, or is there by half.

use std::collections::BTreeMap;

use flotilla_disk::Disk;
use rusqlite::{Connection, ffi, params};

/// How a database is kept, and so what of it a power cut may touch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Journal {
    /// Synced at each commit.
    Wal,
    /// A journal that is deleted at each commit, and the folder synced then.
    Rollback,
    /// As before, without the sync of the folder: the last transaction may be taken back.
    RollbackWithoutFolder,
}

pub(crate) const FILE: &str = "history.db";
/// Rows of one transaction, each in a place of its own in the table.
const PARTS: i64 = 3;

/// Opens the database, made or not.
pub(crate) fn open(disk: &Disk, journal: Journal) -> rusqlite::Result<Connection> {
    let connection = disk.open(FILE)?;
    let (mode, settings) = match journal {
        Journal::Wal => ("wal", "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=20"),
        Journal::Rollback => ("delete", "PRAGMA synchronous=EXTRA"),
        Journal::RollbackWithoutFolder => ("delete", "PRAGMA synchronous=FULL"),
    };
    connection.execute_batch(settings)?;
    connection.pragma_update(None, "journal_mode", mode)?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS part (place INTEGER PRIMARY KEY, step INTEGER NOT NULL, filling BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS step (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER NOT NULL)",
    )?;
    // SQLite answers with the new mode before it has committed the change, and rusqlite does not ask on: that it failed shows only
    // in the mode that is there after the file was read again.
    let kept: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if kept != mode {
        let refused = format!("the journal mode is still {kept}");
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(refused)));
    }
    Ok(connection)
}

/// One transaction: new rows far apart, an old one changed, and the number of the step.
pub(crate) fn commit(connection: &mut Connection, step: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for part in 0..PARTS {
        let filling = vec![u8::try_from(step % 251).unwrap(); 200 + usize::try_from(step * 37 % 700).unwrap()];
        transaction.execute("INSERT INTO part VALUES (?1, ?2, ?3)", params![part * 100_000 + step, step, filling])?;
    }
    transaction.execute("INSERT INTO step VALUES (1, ?1) ON CONFLICT DO UPDATE SET last = ?1", [step])?;
    transaction.commit()
}

/// Commits steps until one fails; answers the last that was acknowledged.
pub(crate) fn run(connection: &mut Connection, steps: std::ops::RangeInclusive<i64>) -> i64 {
    let before = steps.start() - 1;
    steps.take_while(|step| commit(connection, *step).is_ok()).last().unwrap_or(before)
}

/// What the database holds, if it is whole: the last step of which anything is there.
pub(crate) fn last_whole(connection: &Connection) -> Result<i64, String> {
    let told = |error: rusqlite::Error| error.to_string();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(told)?;
    if verdict != "ok" {
        return Err(verdict);
    }
    let last: i64 =
        connection.query_row("SELECT ifnull(max(last), 0) FROM step", [], |row| row.get(0)).map_err(told)?;
    let mut statement = connection.prepare("SELECT step, filling FROM part").map_err(told)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(told)?;
    let mut parts = BTreeMap::<i64, i64>::new();
    for row in rows {
        let (step, filling): (i64, Vec<u8>) = row.map_err(told)?;
        if filling.iter().any(|byte| i64::from(*byte) != step % 251) {
            return Err(format!("step {step} has other bytes than were written"));
        }
        *parts.entry(step).or_default() += 1;
    }
    let expected: BTreeMap<i64, i64> = (1..=last).map(|step| (step, PARTS)).collect();
    if parts == expected { Ok(last) } else { Err(format!("last step {last}, but the parts are {parts:?}")) }
}

/// What is there after a death, by a new process.
pub(crate) fn survived(disk: &Disk, journal: Journal) -> Result<i64, String> {
    let connection = open(disk, journal).map_err(|error| error.to_string())?;
    last_whole(&connection)
}

/// Whether what survived is what was acknowledged, and no more than the one step that was under way.
pub(crate) fn check(acknowledged: i64, survived: Result<i64, String>, journal: Journal) -> Result<(), String> {
    let may_be_taken_back = i64::from(journal == Journal::RollbackWithoutFolder);
    let last = survived?;
    if (acknowledged - may_be_taken_back..=acknowledged + 1).contains(&last) {
        Ok(())
    } else {
        Err(format!("step {acknowledged} was acknowledged, {last} is the last there"))
    }
}
