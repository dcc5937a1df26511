//! Opening the device's database whatever state it is in: whole, cut off in the middle of a write, damaged, on a full disk.
//!
//! SQLite repairs by itself what a power cut left. What it cannot repair is mended ([`super::salvage`]). A database that was not
//! closed in an orderly way is examined before it is believed, if it is small enough not to delay the start.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Loaded, StoreError, migrate, reserve, rows, salvage};

/// Largest database that is examined at a start, in bytes: about 50 ms on a slow card. Reading all rows examines the rest.
const EXAMINED_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Pages of the write-ahead log before it is written back: bounds the log, which a small disk must hold beside the database.
const WAL_PAGES: usize = 128;

/// Opens or creates `folder/device.db`, mending it if it is damaged.
pub(super) fn open(folder: &Path) -> Result<(Connection, Loaded), StoreError> {
    let path = folder.join("device.db");
    let io = |source| StoreError::Mend { path: path.clone(), source: Box::new(source) };
    salvage::finish(folder).map_err(io)?;
    let why = match with_room(folder, || read(folder, &path, None)) {
        Ok(opened) => return Ok(opened),
        Err(error) => damage(&error).ok_or(error)?,
    };
    tracing::error!(path = %path.display(), reason = %why, "the device's database is damaged; what can be read goes into a new one");
    let mended = with_room(folder, || {
        salvage::mend(folder, why.clone())
            .map_err(|source| StoreError::Mend { path: path.clone(), source: Box::new(source) })
    })?;
    tracing::error!(kept = %mended.file, rows = ?mended.rows, unreadable = mended.unreadable, "the device's database was mended");
    let (connection, mut loaded) = read(folder, &path, None)?;
    loaded.salvage = Some(mended);
    Ok((connection, loaded))
}

/// Opens the file and reads all of it, or says why it cannot be believed.
pub(super) fn read(folder: &Path, path: &Path, vfs: Option<&str>) -> Result<(Connection, Loaded), StoreError> {
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    let wal_size = std::fs::metadata(folder.join("device.db-wal")).map_or(0, |file| file.len());
    if size == 0 && has_lived(folder) {
        return Err(StoreError::Emptied { path: path.to_owned() });
    }
    let mut connection = connect(path, vfs).map_err(open)?;
    let settings = format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-256; PRAGMA mmap_size=0;
         PRAGMA wal_autocheckpoint={WAL_PAGES}; PRAGMA journal_size_limit=0;"
    );
    connection.execute_batch(&settings).map_err(open)?;
    // Of a file of another VFS nothing is known beforehand.
    if vfs.is_some() || (wal_size > 0 && size <= EXAMINED_BYTES_MAX) {
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(open)?;
        if found != "ok" {
            return Err(StoreError::Corrupt { path: path.to_owned(), found });
        }
    }
    migrate(&mut connection, path)?;
    let loaded = rows::load(&connection).map_err(open)?;
    // A disk that fails while the mode is set is told of by nobody: without the log the newest transaction could go with the power.
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(open)?;
    if mode != "wal" {
        return Err(StoreError::Journal { path: path.to_owned(), mode });
    }
    Ok((connection, loaded))
}

/// A connection by SQLite's own VFS or another.
pub(super) fn connect(path: &Path, vfs: Option<&str>) -> rusqlite::Result<Connection> {
    match vfs {
        None => Connection::open(path),
        Some(vfs) => Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs),
    }
}

/// Whether an agent has run here: it leaves more than its database.
fn has_lived(folder: &Path) -> bool {
    let pods = std::fs::read_dir(folder.join("pods")).is_ok_and(|mut pods| pods.next().is_some());
    pods || folder.join(super::IDENTITY_COPY).exists()
}

/// Tries again with the space that was set aside when the disk is full.
fn with_room<T>(folder: &Path, work: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let first = work();
    match &first {
        Err(error) if lacks_room(error) && reserve::give_up(folder) => work(),
        _ => first,
    }
}

/// Without room the files beside the database cannot be made, which SQLite tells in several ways.
fn lacks_room(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rusqlite::Error>() {
        let code = error.sqlite_error_code();
        return matches!(code, Some(ErrorCode::DiskFull | ErrorCode::CannotOpen | ErrorCode::SystemIoFailure));
    }
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return error.kind() == std::io::ErrorKind::StorageFull;
    }
    error.source().is_some_and(lacks_room)
}

/// What is wrong with the file itself, if that is why it cannot be used.
fn damage(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Emptied { .. } => Some("the file is empty".to_owned()),
        StoreError::Corrupt { found, .. } => Some(found.clone()),
        StoreError::Open { source, .. } => {
            let rusqlite::Error::SqliteFailure(failure, message) = source else { return None };
            // 522: less could be read than the file should hold. 1: a table is missing.
            let short = failure.extended_code == 522;
            let headless = failure.code == ErrorCode::Unknown && failure.extended_code == 1;
            let damaged = matches!(failure.code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt);
            (damaged || short || headless).then(|| message.clone().unwrap_or_else(|| failure.to_string()))
        }
        _ => None,
    }
}

/// Where a database lies.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("device.db")
}
