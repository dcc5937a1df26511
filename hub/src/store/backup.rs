//! Backups: one SQLite file with everything of a hub, its keys included, and a list of its contents with their digests.
//!
//! Made beside a running hub from one consistent moment ([`back_up`]), verified at rest ([`check`]), and made into the database of a
//! new life ([`restore`]). A backup that holds the keys alone restores an empty hub, which learns everything from its devices.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::WriterId;
use flotilla_sync::identity::writer::WriterChain;
use flotilla_sync::identity::{Installation, InstallationMaterial};
use ring::digest::{Context, SHA256};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use super::settings::{self, Setting};
use super::{StoreError, devices, learned, life, load, schema};
use crate::config::{DATABASE_FILE, Retention};
use crate::learn::{Cause, Learning};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(500);
/// Tables of a backup that holds the keys alone: who the hub is, and which devices it knows.
const IDENTITY_TABLES: [&str; 6] = ["setting", "device", "meta", "writer", "device_writer", "life"];

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub at: Timestamp,
    pub incarnation: u64,
    /// Resource version it stands at.
    pub version: u64,
    pub bytes: u64,
    /// Rows by table.
    pub tables: Vec<(String, u64)>,
}

/// What part of a hub is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Everything,
    /// The installation's keys and the names of its devices: small, made once, kept in a safe.
    Keys,
}

/// A hub brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub contents: Contents,
    /// The new life of the database.
    pub incarnation: u64,
    /// Devices the hub waits for.
    pub expected: Vec<String>,
}

/// Why there is no backup, or no hub from it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("no hub has run in {folder}: there is no {DATABASE_FILE}")]
    NoHub { folder: PathBuf },
    #[error("{path} exists already; it is not overwritten")]
    Exists { path: PathBuf },
    #[error("cannot write {path}{hint}")]
    File { path: PathBuf, hint: &'static str, source: std::io::Error },
    #[error("cannot copy the database to {path}{hint}")]
    Copy { path: PathBuf, hint: &'static str, source: rusqlite::Error },
    #[error("{path} is no backup of a hub")]
    NoBackup { path: PathBuf, source: rusqlite::Error },
    #[error("the backup {path} is damaged: {why}; use another one")]
    Damaged { path: PathBuf, why: String },
    #[error("the hub in {folder} runs: stop it first")]
    Running { folder: PathBuf },
    #[error("the keys in the backup cannot be used")]
    Keys(#[from] crate::installation::InstallationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes a backup of the hub in `data_dir`, which may run, to `target`, which must not exist. `progress` is told the bytes written
/// and about how many there will be.
///
/// # Errors
/// When there is no hub, `target` exists, or a disk is full or fails; nothing is left at `target` then.
pub fn back_up(
    data_dir: &Path,
    target: &Path,
    part: Part,
    now: Timestamp,
    progress: impl FnMut(u64, u64),
) -> Result<Contents, BackupError> {
    let source = data_dir.join(DATABASE_FILE);
    if !source.exists() {
        return Err(BackupError::NoHub { folder: data_dir.to_owned() });
    }
    if target.exists() {
        return Err(BackupError::Exists { path: target.to_owned() });
    }
    let partial = Partial::beside(target)?;
    copy(&source, &partial.path, progress)?;
    let mut copied = open(&partial.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let failed = |source| copy_failed(&partial.path, source);
    finish(&mut copied, part, now).map_err(failed)?;
    let contents = contents_of(&copied, &partial.path)?;
    drop(copied);
    partial.publish(target)?;
    Ok(contents)
}

/// Verifies a backup: its structure, that it is complete, and the digest of every table.
///
/// # Errors
/// When it is no backup, or anything in it is not what was written.
pub fn check(path: &Path) -> Result<Contents, BackupError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let contents = contents_of(&connection, path)?;
    let damaged = |why: String| BackupError::Damaged { path: path.to_owned(), why };
    let broken = |source: rusqlite::Error| damaged(source.to_string());
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(broken)?;
    if verdict != "ok" {
        return Err(damaged(verdict));
    }
    let mut listed = connection.prepare("SELECT name, row_count, digest FROM backup_table").map_err(broken)?;
    let rows = listed.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(broken)?;
    let mut listed = Vec::new();
    for row in rows {
        let row: (String, i64, Vec<u8>) = row.map_err(broken)?;
        listed.push(row);
    }
    let present = tables(&connection).map_err(broken)?;
    if listed.len() != present.len() {
        return Err(damaged(format!("it lists {} tables and has {}", listed.len(), present.len())));
    }
    for (name, rows, digest) in listed {
        if !present.contains(&name) {
            return Err(damaged(format!("table {name} is missing")));
        }
        let (found_rows, found) = table_digest(&connection, &name).map_err(broken)?;
        if found_rows != rows.cast_unsigned() || found[..] != digest[..] {
            return Err(damaged(format!("table {name} is not what was backed up ({found_rows} rows of {rows})")));
        }
    }
    Ok(contents)
}

/// Makes a verified backup the database of a hub in `data_dir`, where none may be: a new life, which learns from its devices what it
/// lacks before it goes on.
///
/// # Errors
/// When the backup does not verify, the folder has a hub, or the disk fails; the folder has no hub then.
pub fn restore(data_dir: &Path, backup: &Path, now: Timestamp) -> Result<Restored, BackupError> {
    let contents = check(backup)?;
    let target = data_dir.join(DATABASE_FILE);
    let file = |source| file_failed(data_dir, source);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(file)?;
    let lock = File::options().create(true).append(true).open(data_dir.join("hub.lock")).map_err(file)?;
    lock.try_lock().map_err(|_held| BackupError::Running { folder: data_dir.to_owned() })?;
    for name in ["", "-wal", "-shm"] {
        let path = data_dir.join(format!("{DATABASE_FILE}{name}"));
        if path.exists() {
            return Err(BackupError::Exists { path });
        }
    }
    let partial = Partial::beside(&target)?;
    let mut from = File::open(backup).map_err(|source| file_failed(backup, source))?;
    let mut into =
        OpenOptions::new().write(true).open(&partial.path).map_err(|source| file_failed(&partial.path, source))?;
    std::io::copy(&mut from, &mut into).map_err(|source| file_failed(&partial.path, source))?;
    drop(into);
    let mut connection = open(&partial.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    schema::migrate(&mut connection)?;
    let (incarnation, learning) = reborn(&mut connection, contents.at, now)?;
    drop(connection);
    partial.publish(&target)?;
    drop(lock);
    Ok(Restored { contents, incarnation, expected: learning.expected.into_iter().collect() })
}

/// Tells the hub in `data_dir`, running or not, to go on without the devices it has not heard, or without large values of what a device
/// gave back late. Answers whether it was waiting for any.
///
/// # Errors
/// When there is no hub, or its database fails.
pub fn resume(data_dir: &Path) -> Result<bool, BackupError> {
    let path = data_dir.join(DATABASE_FILE);
    if !path.exists() {
        return Err(BackupError::NoHub { folder: data_dir.to_owned() });
    }
    let mut connection = open(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    schema::configure(&connection).map_err(StoreError::from)?;
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(StoreError::from)?;
    let learning = settings::read(&transaction, Setting::Learning)?.is_some();
    let waits = learning || learned::lacks_blobs(&transaction)?;
    if waits {
        settings::put(&transaction, Setting::Resume, b"1")?;
    }
    transaction.commit().map_err(StoreError::from)?;
    Ok(waits)
}

/// Begins the new life in a copied database.
fn reborn(connection: &mut Connection, backup: Timestamp, now: Timestamp) -> Result<(u64, Learning), BackupError> {
    let loaded = load::load(connection, &Retention::default(), now)?;
    let transaction = connection.transaction().map_err(StoreError::from)?;
    transaction.execute_batch("DROP TABLE backup; DROP TABLE backup_table;").map_err(StoreError::from)?;
    remember_writer(&transaction)?;
    let (incarnation, _version) = life::begin(&transaction, 0, now)?;
    let mut learning = Learning::of(Cause::Restored { backup_ms: backup.0 }, &loaded.index, now);
    if loaded.index.is_empty() {
        learning.expected = devices::all(&transaction)?.into_iter().map(|device| device.node).collect();
    }
    let encoded = serde_json::to_vec(&learning)
        .map_err(|source| StoreError::Damaged { what: "the state of learning", source })?;
    settings::put(&transaction, Setting::Learning, &encoded)?;
    for setting in [Setting::Resume, Setting::Writer] {
        settings::remove(&transaction, setting)?;
    }
    transaction.commit().map_err(StoreError::from)?;
    connection.query_row("PRAGMA journal_mode=DELETE", [], |_row| Ok(())).map_err(StoreError::from)?;
    Ok((incarnation, learning))
}

/// Notes whose logs the tables were made of: the new life has another writer.
fn remember_writer(transaction: &Transaction<'_>) -> Result<(), BackupError> {
    let damaged = crate::installation::InstallationError::from;
    let Some(material) = settings::read(transaction, Setting::Installation)? else { return Ok(()) };
    let material: InstallationMaterial = serde_json::from_slice(&material).map_err(damaged)?;
    let installation = Installation::from_material(&material).map_err(crate::installation::InstallationError::from)?;
    let stored = settings::read(transaction, Setting::Writer)?.unwrap_or_default();
    if let Some((_seed, chain)) = stored.split_first_chunk::<32>() {
        let chain = WriterChain::verify(chain, &installation.root().public())
            .map_err(crate::installation::InstallationError::from)?;
        let writer: WriterId = chain.id;
        life::put_life(transaction, chain.incarnation, &writer)?;
    }
    Ok(())
}

/// Copies one moment of the database, on a thread of its own, while progress is told here.
fn copy(source: &Path, target: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(), BackupError> {
    let connection = open(source, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(StoreError::from)?;
    let size: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(StoreError::from)?;
    let total = pages.saturating_mul(size).cast_unsigned();
    let (tell, told) = sync_channel(1);
    let into = target.to_string_lossy().into_owned();
    let spawned = std::thread::Builder::new().name("backup".into()).spawn(move || {
        let copied = connection.execute("VACUUM INTO ?1", [into]);
        // Whoever waits hears it.
        drop(tell.send(copied));
    });
    spawned.map_err(|source| file_failed(target, source))?;
    loop {
        match told.recv_timeout(PROGRESS) {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(source)) => return Err(copy_failed(target, source)),
            Err(RecvTimeoutError::Timeout) => {
                progress(std::fs::metadata(target).map_or(0, |found| found.len()), total);
            }
            Err(RecvTimeoutError::Disconnected) => {
                let source = std::io::Error::other("the copying ended by a fault");
                return Err(file_failed(target, source));
            }
        }
    }
}

/// Lists the contents in the copy.
fn finish(copied: &mut Connection, part: Part, now: Timestamp) -> rusqlite::Result<()> {
    copied.pragma_update(None, "synchronous", "FULL")?;
    if part == Part::Keys {
        for name in tables(copied)?.iter().filter(|name| !IDENTITY_TABLES.contains(&name.as_str())) {
            copied.execute(&format!("DELETE FROM \"{name}\""), [])?;
        }
        copied.execute_batch("VACUUM")?;
    }
    let transaction = copied.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE backup (at INTEGER NOT NULL, incarnation INTEGER NOT NULL, version INTEGER NOT NULL);
         CREATE TABLE backup_table (name TEXT PRIMARY KEY, row_count INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;",
    )?;
    let number = |name: &str| schema::meta(&transaction, name).map(Option::unwrap_or_default);
    transaction.execute(
        "INSERT INTO backup (at, incarnation, version) VALUES (?1, ?2, ?3)",
        params![now.0.cast_signed(), number("incarnation")?, number("version")?],
    )?;
    for name in tables(&transaction)? {
        let (rows, digest) = table_digest(&transaction, &name)?;
        transaction.execute(
            "INSERT INTO backup_table (name, row_count, digest) VALUES (?1, ?2, ?3)",
            params![name, rows.cast_signed(), digest],
        )?;
    }
    transaction.commit()
}

fn contents_of(connection: &Connection, path: &Path) -> Result<Contents, BackupError> {
    let none = |source| BackupError::NoBackup { path: path.to_owned(), source };
    let unsigned = |row: &rusqlite::Row<'_>, column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let mut statement = connection.prepare("SELECT at, incarnation, version FROM backup").map_err(none)?;
    let (at, incarnation, version) =
        statement.query_row([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?, unsigned(row, 2)?))).map_err(none)?;
    let mut statement = connection.prepare("SELECT name, row_count FROM backup_table ORDER BY name").map_err(none)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?))).map_err(none)?;
    let tables = rows.collect::<Result<_, _>>().map_err(none)?;
    let bytes = std::fs::metadata(path).map_or(0, |found| found.len());
    Ok(Contents { at: Timestamp(at), incarnation, version, bytes, tables })
}

/// Every table but the list itself.
fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT IN ('backup', 'backup_table')
         ORDER BY name",
    )?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Number of rows of a table, and SHA-256 over them in the order of its key: each value with its type and length.
fn table_digest(connection: &Connection, name: &str) -> rusqlite::Result<(u64, [u8; 32])> {
    let keys: Option<String> = connection
        .query_row(
            "SELECT group_concat('\"' || name || '\"', ', ') FROM (SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk)",
            [name],
            |row| row.get(0),
        )
        .optional()?
        .flatten();
    let order = keys.unwrap_or_else(|| "rowid".to_owned());
    let mut statement = connection.prepare(&format!("SELECT * FROM \"{name}\" ORDER BY {order}"))?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let (mut count, mut context) = (0_u64, Context::new(&SHA256));
    while let Some(row) = rows.next()? {
        count += 1;
        for column in 0..columns {
            let number;
            let (tag, bytes): (u8, &[u8]) = match row.get_ref(column)? {
                ValueRef::Null => (0, &[]),
                ValueRef::Integer(integer) => {
                    number = integer.to_be_bytes();
                    (1, &number)
                }
                ValueRef::Real(real) => {
                    number = real.to_bits().to_be_bytes();
                    (2, &number)
                }
                ValueRef::Text(text) => (3, text),
                ValueRef::Blob(blob) => (4, blob),
            };
            context.update(&[tag]);
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((count, digest))
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, BackupError> {
    let none = |source| BackupError::NoBackup { path: path.to_owned(), source };
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(none)?;
    connection.busy_timeout(Duration::from_secs(30)).map_err(none)?;
    Ok(connection)
}

/// A file that is not complete yet; it goes unless it is published.
struct Partial {
    path: PathBuf,
    published: bool,
}

impl Partial {
    fn beside(target: &Path) -> Result<Self, BackupError> {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let path = target.with_file_name(name);
        // One of an earlier attempt that was killed.
        if path.exists() {
            std::fs::remove_file(&path).map_err(|source| file_failed(&path, source))?;
        }
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        created.map_err(|source| file_failed(&path, source))?;
        Ok(Self { path, published: false })
    }

    /// On the disk whole, under its name.
    fn publish(mut self, target: &Path) -> Result<(), BackupError> {
        let failed = |source| file_failed(target, source);
        let mut file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        file.flush().map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&self.path, target).map_err(failed)?;
        self.published = true;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        for ending in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %PathBuf::from(path).display(), %error, "an incomplete file was left behind");
            }
        }
    }
}

const FULL: &str = ": the disk is full; make room or choose another place";

fn file_failed(path: &Path, source: std::io::Error) -> BackupError {
    let hint = if source.kind() == std::io::ErrorKind::StorageFull { FULL } else { "" };
    BackupError::File { path: path.to_owned(), hint, source }
}

fn copy_failed(path: &Path, source: rusqlite::Error) -> BackupError {
    let hint = if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) { FULL } else { "" };
    BackupError::Copy { path: path.to_owned(), hint, source }
}
