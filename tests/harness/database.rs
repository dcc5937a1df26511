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

/// Ways in which a device's database is found after a worn card or a bad power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The first page is noise: "file is not a database".
    Header,
    /// The second half is missing, and with it whatever was only in the write-ahead log.
    Half,
    /// Every third page reads as zeros.
    Zeroed,
    /// Nothing is left.
    Emptied,
}

/// Damages the files of a device's database as they lie there.
pub fn damage(agent_folder: &Path, how: Damage) {
    let (path, wal) = (agent_folder.join("device.db"), agent_folder.join("device.db-wal"));
    // What is only in the log would repair the file: it comes into the file first, so that the damage meets it.
    let connection = Connection::open(&path).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())).unwrap();
    drop(connection);
    let mut bytes = std::fs::read(&path).unwrap();
    match how {
        Damage::Header => bytes[..4096].fill(0xa5),
        Damage::Half => bytes.truncate(bytes.len() / 2),
        Damage::Zeroed => bytes.chunks_mut(4096).skip(1).step_by(3).for_each(|page| page.fill(0)),
        Damage::Emptied => bytes.clear(),
    }
    drop(std::fs::remove_file(&wal));
    std::fs::write(&path, bytes).unwrap();
}

/// What a hub keeps of one document.
#[derive(Debug, Clone)]
pub struct HubHistory {
    pub epoch: i64,
    /// The saved document.
    pub state: Vec<u8>,
    /// All batches of the fleet's channel, in bytes.
    pub log_bytes: i64,
    /// All changes a watch can still be told of, in bytes.
    pub watch_bytes: i64,
}

/// Reads a hub's database beside the running hub.
pub fn hub_history(hub_folder: &Path, uid: &str) -> HubHistory {
    let connection = Connection::open(hub_folder.join("hub.sqlite")).unwrap();
    let (epoch, state) = connection
        .query_row("SELECT epoch, state FROM document WHERE uid = ?1", [uid], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let sum = |query: &str| connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0)).unwrap().unwrap_or(0);
    HubHistory {
        epoch,
        state,
        log_bytes: sum("SELECT sum(length(body)) FROM batch WHERE channel LIKE 'fleet/%'"),
        watch_bytes: sum("SELECT sum(length(body)) FROM event"),
    }
}

/// The stored state of one item at a device.
pub fn device_item(agent_folder: &Path, id: &str) -> Option<Vec<u8>> {
    let connection = Connection::open(agent_folder.join("device.db")).unwrap();
    connection.query_row("SELECT bytes FROM item WHERE id = ?1", [id], |row| row.get(0)).optional().unwrap()
}

/// A database with the files beside it, in bytes.
pub fn size(path: &Path) -> u64 {
    ["", "-wal"]
        .iter()
        .map(|ending| std::fs::metadata(format!("{}{ending}", path.display())).map_or(0, |file| file.len()))
        .sum()
}
