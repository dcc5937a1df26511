//! What the databases of hubs and devices look like from outside: whole, and how far their logs reach back.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

/// SQLite's own examination: `ok`, or what it found.
pub fn integrity(path: &Path) -> String {
    let connection = Connection::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap_or_else(|error| error.to_string())
}

/// Up to which record the hub has truncated its log of a channel; 0 when all of it is there.
pub fn log_floor(hub_folder: &Path, channel: &str) -> i64 {
    let connection = Connection::open(hub_folder.join("hub.sqlite")).unwrap();
    let floor = connection.query_row("SELECT max(floor) FROM head WHERE channel = ?1", [channel], |row| row.get(0));
    floor.optional().unwrap().flatten().unwrap_or(0)
}

/// Bytes of the hub's largest document.
pub fn largest_document(hub_folder: &Path) -> i64 {
    let connection = Connection::open(hub_folder.join("hub.sqlite")).unwrap();
    connection.query_row("SELECT max(length(state)) FROM document", [], |row| row.get(0)).unwrap()
}

/// Sets the schema version, as a newer program would have; answers the one before.
pub fn set_version(path: &Path, version: u32) -> u32 {
    let connection = Connection::open(path).unwrap();
    let before = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "user_version", version).unwrap();
    before
}

/// Overwrites what a device has stored of every document and register; answers how many there were.
pub fn damage_items(agent_folder: &Path) -> usize {
    let connection = Connection::open(agent_folder.join("device.db")).unwrap();
    connection.execute("UPDATE item SET bytes = x'deadbeef'", []).unwrap()
}

/// Replaces a database by another that nobody has open, its log included.
pub fn copy(from: &Path, to: &Path) {
    for ending in ["-wal", "-shm"] {
        let mut name = to.as_os_str().to_owned();
        name.push(ending);
        drop(std::fs::remove_file(name));
    }
    Connection::open(from).unwrap().execute("VACUUM INTO ?1", [format!("{}.new", to.display())]).unwrap();
    std::fs::rename(format!("{}.new", to.display()), to).unwrap();
}
