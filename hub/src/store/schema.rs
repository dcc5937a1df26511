//! The tables, as numbered migrations: a database of any earlier version is brought up to date at its opening.

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::StoreError;

/// Each entry brings the schema from version `index` to `index + 1`. Entries are never edited once shipped.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001.sql"),
    include_str!("schema/blobs.sql"),
    include_str!("schema/learn.sql"),
    include_str!("schema/epochs.sql"),
    include_str!("schema/branches.sql"),
    include_str!("schema/writers.sql"),
];

/// A connection by SQLite's own VFS or another.
pub(crate) fn connect(path: &std::path::Path, vfs: Option<&str>) -> rusqlite::Result<Connection> {
    match vfs {
        None => Connection::open(path),
        Some(vfs) => Connection::open_with_flags_and_vfs(path, rusqlite::OpenFlags::default(), vfs),
    }
}

/// Settings of every connection: WAL, each commit on the disk before it is answered.
pub(crate) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    Ok(())
}

/// Applies the missing migrations, each in one transaction with its new version.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let steps = (1_u32..).zip(MIGRATIONS);
    if let Some((known, _)) = steps.clone().last().filter(|(known, _)| version > *known) {
        let path = connection.path().unwrap_or_default().into();
        return Err(StoreError::TooNew { path, found: version, known });
    }
    for (reached, statements) in steps.filter(|(reached, _)| *reached > version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(statements)?;
        transaction.pragma_update(None, "user_version", reached)?;
        transaction.commit()?;
    }
    Ok(())
}

/// A number of the `meta` table; `None` when it was never set.
pub(crate) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
}

pub(crate) fn set_meta(transaction: &Transaction<'_>, name: &str, value: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )?
        .execute(rusqlite::params![name, value])?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn writers_of_devices_in_an_older_database_are_counted() {
        let mut connection = Connection::open_in_memory().unwrap();
        for statements in &MIGRATIONS[..5] {
            connection.execute_batch(statements).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO writer VALUES (x'01', 0, x''), (x'02', 0, x''), (x'03', 1, x'');
                 INSERT INTO head VALUES ('device/edge-1', x'01', 1, x'', 1, 1, 1), ('device/edge-1', x'03', 1, x'', 1, 1, 1);
                 PRAGMA user_version = 5;",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let rows = |query: &str| -> Vec<String> {
            let mut statement = connection.prepare(query).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        assert_eq!(rows("SELECT node || ' ' || hex(writer) FROM device_writer"), ["edge-1 01"]);
        assert_eq!(rows("SELECT hex(id) FROM writer ORDER BY id"), ["01", "03"], "one that said nothing is forgotten");
    }
}
