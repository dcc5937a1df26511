//! The device's database: one SQLite file, one thread that owns it, every answer durable.
//!
//! Owns the file's schema and its migrations. Refuses meaning: rows are bytes to it. What a device acts on is in memory and was
//! read at start; a transaction that returned is on the disk (WAL, `synchronous=FULL`). Start reading at [`Store::open`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::{mpsc, oneshot};

mod blobs;
pub(crate) mod damage;
mod evidence;
mod opening;
mod pages;
pub(crate) mod reserve;
mod rows;
pub(crate) mod salvage;

pub use blobs::{BesideRows, BlobRow};
pub use damage::{Damage, Entry};
pub use evidence::{EvidenceRows, Kept, KeptRow, ListRow};
pub use rows::{BatchRow, HeadRow, Ingest, ItemRow, Loaded, OutboxRow};
pub use salvage::Salvage;

/// A second copy of who this device is, beside the database; see [`crate::enrolment`].
pub(crate) const IDENTITY_COPY: &str = "identity.json";
/// Transactions waiting for the thread; a caller that finds it full waits.
const JOBS_LEN_MAX: usize = 64;

/// Each entry moves the file one version on; never edited once released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE writer (id BLOB PRIMARY KEY, chain BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE head (channel TEXT, writer BLOB, seq INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (channel, writer)) WITHOUT ROWID;
    CREATE TABLE batch (channel TEXT, writer BLOB, first INTEGER, last INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (channel, writer, first));
    CREATE TABLE item (channel TEXT, id TEXT, bytes BLOB NOT NULL, PRIMARY KEY (channel, id));
    CREATE TABLE history (pod TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE outbox (subject TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, boot INTEGER NOT NULL, seq INTEGER NOT NULL,
                         time_ms INTEGER NOT NULL, urgent INTEGER NOT NULL, body BLOB) WITHOUT ROWID;
", evidence::MIGRATION, blobs::MIGRATION];

/// The database could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the device's database {path}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the device's database {path} was written by a newer version ({found} > {known}); run that version or a newer one"
    )]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("the device's database {path} is damaged: {found}")]
    Corrupt { path: PathBuf, found: String },
    #[error("the device's database {path} is empty, though this device has one")]
    Emptied { path: PathBuf },
    #[error("the device's database {path} is damaged and cannot be mended")]
    Mend { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the device's disk is full: it cannot {what}; free some space, then try again")]
    Full { what: &'static str },
    #[error("the device's database cannot {what}")]
    Write { what: &'static str, source: rusqlite::Error },
    #[error("the device's database {path} keeps no write-ahead log (its journal mode is {mode}): the disk may fail")]
    Journal { path: PathBuf, mode: String },
    #[error("the device's database is closed")]
    Closed,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle; cheap to clone. The thread ends with the last one.
#[derive(Debug, Clone)]
pub struct Store {
    hands: Hands,
    reader: Arc<blobs::Reader>,
    path: Arc<PathBuf>,
}

/// Who carries transactions out.
#[derive(Debug, Clone)]
enum Hands {
    /// The thread that owns the connection.
    Thread(mpsc::Sender<Job>),
    /// Whoever asks.
    Caller(Arc<Mutex<Connection>>),
}

/// Another place for a database than a folder of the file system: where many devices share one process, as in a simulation or a
/// generator of load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Elsewhere<'a> {
    /// Name of a registered SQLite VFS; `None` is SQLite's own.
    pub vfs: Option<&'a str>,
}

impl Store {
    /// Opens or creates `folder/device.db` and reads all of it. A damaged one is mended: what could be read of it is there, and
    /// [`Loaded::salvage`] says so.
    ///
    /// # Errors
    /// When the file belongs to a newer version, cannot be read at all, or the disk has no room to mend it.
    pub fn open(folder: &Path) -> Result<(Self, Loaded), StoreError> {
        let path = opening::path(folder);
        let open = |source| StoreError::Open { path: path.clone(), source };
        let (mut connection, loaded) = opening::open(folder)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS_LEN_MAX);
        let thread = std::thread::Builder::new().name("store".into()).stack_size(512 * 1024);
        let started = thread.spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
            }
        });
        started.map_err(|error| open(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        Ok((Self { hands: Hands::Thread(jobs), reader: Arc::default(), path: Arc::new(path) }, loaded))
    }

    /// As [`open`](Self::open), without a thread: a transaction is carried out by whoever asks for it, before the call returns. A
    /// damaged database is not mended.
    ///
    /// # Errors
    /// When the file belongs to a newer version, is damaged, or the disk refuses.
    pub fn open_here(folder: &Path, elsewhere: Elsewhere<'_>) -> Result<(Self, Loaded), StoreError> {
        let path = opening::path(folder);
        let (connection, loaded) = opening::read(folder, &path, elsewhere.vfs)?;
        let reader = Arc::new(blobs::Reader::over(elsewhere.vfs));
        Ok((Self { hands: Hands::Caller(Arc::new(Mutex::new(connection))), reader, path: Arc::new(path) }, loaded))
    }

    /// Runs `work` in one transaction; durable when it returns. `what` completes "the device's database cannot ...".
    ///
    /// # Errors
    /// When SQLite refuses (disk full, I/O error): nothing of the transaction happened.
    async fn transact<T, W>(&self, what: &'static str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let result = match &self.hands {
            Hands::Caller(connection) => attempt(&mut connection.lock().unwrap_or_else(PoisonError::into_inner), &work),
            Hands::Thread(jobs) => {
                let (reply, answer) = oneshot::channel();
                // The caller may have been dropped; what was committed stays.
                let job: Job = Box::new(move |connection| drop(reply.send(attempt(connection, &work))));
                jobs.send(job).await.map_err(|_closed| StoreError::Closed)?;
                answer.await.map_err(|_closed| StoreError::Closed)?
            }
        };
        result.map_err(
            |source| {
                if is_full(&source) { StoreError::Full { what } } else { StoreError::Write { what, source } }
            },
        )
    }

    /// Sets one fact about this device.
    pub async fn set_meta(&self, name: &'static str, value: Vec<u8>) -> Result<(), StoreError> {
        self.transact("store a fact about itself", move |transaction| {
            transaction.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![name, value]).map(|_rows| ())
        })
        .await
    }

    /// Makes what was read from a peer, or written here, durable: all of it or nothing.
    pub async fn ingest(&self, rows: Ingest) -> Result<(), StoreError> {
        self.transact("store what the hub sent", move |transaction| rows.write(transaction)).await
    }

    /// Makes the histories of pods durable, before the actions they belong to, together with the ends of pods that they forget: a
    /// pod without a history would never be told of again.
    pub async fn set_histories(
        &self,
        changed: Vec<(String, Option<String>)>,
        ends: Vec<OutboxRow>,
    ) -> Result<(), StoreError> {
        self.transact("store the history of pods", move |transaction| {
            for (pod, value) in &changed {
                match value {
                    Some(value) => {
                        transaction.execute("INSERT OR REPLACE INTO history VALUES (?1, ?2)", params![pod, value])?
                    }
                    None => transaction.execute("DELETE FROM history WHERE pod = ?1", params![pod])?,
                };
            }
            ends.iter().try_for_each(|row| row.write(transaction))
        })
        .await
    }

    /// Puts observations into the outbox, in place of older ones of the same subject.
    pub async fn put_outbox(&self, observed: Vec<OutboxRow>) -> Result<(), StoreError> {
        self.transact("store what it observed", move |transaction| {
            observed.iter().try_for_each(|row| row.write(transaction))
        })
        .await
    }

    /// Takes entries out whose clock is still the one named.
    pub async fn remove_outbox(&self, entries: Vec<(String, u64, u64, u64)>) -> Result<(), StoreError> {
        self.transact("clear its outbox", move |transaction| {
            for (subject, incarnation, boot, seq) in &entries {
                transaction.execute(
                    "DELETE FROM outbox WHERE subject = ?1 AND incarnation = ?2 AND boot = ?3 AND seq = ?4",
                    params![subject, incarnation.cast_signed(), boot.cast_signed(), seq.cast_signed()],
                )?;
            }
            Ok(())
        })
        .await
    }
}

/// One transaction, tried again once when the disk is full and the write-ahead log can give some room back.
fn attempt<T>(
    connection: &mut Connection,
    work: &impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let once = |connection: &mut Connection| {
        let transaction = connection.transaction()?;
        let value = work(&transaction)?;
        transaction.commit()?;
        Ok(value)
    };
    let result = once(connection);
    if result.as_ref().is_err_and(is_full) {
        // The write-ahead log takes room that the database may have.
        let written_back = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()));
        if written_back.is_ok() {
            return once(connection);
        }
    }
    result
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::Open { path: path.to_path_buf(), source };
    let found: usize = connection
        .query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))
        .optional()
        .map_err(open)?
        .map_or(0, |version| version as usize);
    if found > MIGRATIONS.len() {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known: MIGRATIONS.len() });
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction().map_err(open)?;
        transaction.execute_batch(migration).map_err(open)?;
        transaction.execute_batch(&format!("PRAGMA user_version = {}", index + 1)).map_err(open)?;
        transaction.commit().map_err(open)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
