//! The hub's memory: a commit log and the state folded from it, in one SQLite database.
//!
//! Owns durability, resource versions, the order of all writes and the watch history. Refuses every decision: what may be
//! written is admission's, what follows from it is the controllers'. One thread writes ([`writer`]), many read from memory.
//! Start reading at [`Store`], then [`Batch`].

pub mod backup;
mod batch;
mod blobs;
mod channels;
pub mod check;
mod damage;
pub(crate) mod devices;
pub(crate) mod documents;
mod history;
pub(crate) mod inbox;
mod index;
mod lanes;
pub(crate) mod learned;
pub(crate) mod life;
mod load;
pub(crate) mod logs;
mod retention;
mod schema;
pub(crate) mod settings;
pub(crate) mod sticks;
pub(crate) mod tokens;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::{Listing, WatchEvent};
use flotilla_rest::page::rewound;
use tokio::sync::{mpsc, watch};

pub use batch::Batch;
pub use damage::DamagedRow;
pub use history::{Change, Event};
pub use index::{Index, RolloutState, Surroundings};

use crate::clock::Clock;
use crate::config::Retention;
use history::{History, Kept, Read};
use lanes::Entrances;
use writer::{Call, Moved, Working};

/// Events a watcher may have unread in its channel; beyond that it falls behind in the history.
const WATCH_LEN_MAX: usize = 16;
/// Events read from the history at a time, as they are kept there: references, for the most part.
const WATCH_ROWS_MAX: usize = 256;

/// How long somebody at the API waits for room in the queue, and when to ask again after that.
const ROOM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
const BUSY_RETRY_SECONDS: u32 = 1;
/// Whoever is refused because the disk is full asks again after this.
const FULL_RETRY_SECONDS: u32 = 2;

/// What goes wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {path}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the database refused a statement")]
    Sql(#[from] rusqlite::Error),
    #[error(
        "the hub's database {path} was written by a newer version ({found} > {known}); run that version or a newer one"
    )]
    TooNew { path: PathBuf, found: u32, known: u32 },
    #[error("{0} already exists")]
    Exists(ObjectKey),
    #[error("{from} cannot become {to}")]
    Renamed { from: ObjectKey, to: ObjectKey },
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    #[error("{what} in the database is damaged")]
    Damaged { what: &'static str, source: serde_json::Error },
    #[error("{what} cannot be published to devices: {why}")]
    Publish { what: String, why: String },
    #[error("{what} is too large to be sent to devices: {why}")]
    TooLarge { what: String, why: String },
    #[error(
        "the hub's database {path} cannot be read: {why}. What it held since the last backup is with the devices: move the file \
         away, bring a backup back with `flotilla hub restore`, and the hub learns the rest from them"
    )]
    Unreadable { path: PathBuf, why: String },
    #[error("{0} is damaged")]
    Row(DamagedRow),
    #[error("the disk of the hub's database is full, or fails")]
    GaveUp,
    #[error("the hub's database {path} keeps no write-ahead log (its journal mode is {mode}): the disk may fail")]
    Journal { path: PathBuf, mode: String },
    #[error("reading the hub's database ended by a fault of this program")]
    Asked,
    #[error("cannot start the writer's thread")]
    Thread(#[source] std::io::Error),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Exists(key) => Self::already_exists(&key),
            StoreError::TooLarge { .. } => Self::of(Reason::RequestEntityTooLarge, error.to_string()),
            StoreError::GaveUp => disk_is_full(),
            StoreError::Sql(source) if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {
                disk_is_full()
            }
            StoreError::Sql(source) => {
                Self::of(Reason::InternalError, format!("the hub's database refused the write: {source}"))
            }
            other => Self::of(Reason::InternalError, other.to_string()),
        }
    }
}

fn stopped() -> ApiError {
    ApiError::of(Reason::ServiceUnavailable, "the hub's store has stopped")
}

fn too_busy() -> ApiError {
    let mut error = ApiError::of(
        Reason::TooManyRequests,
        "the hub writes as fast as it can and more is waiting: nothing was written",
    );
    error.retry_after_seconds = Some(BUSY_RETRY_SECONDS);
    error
}

fn disk_is_full() -> ApiError {
    let why = "the hub's disk is full or fails: nothing is written until there is room; what is stored can be read";
    let mut error = ApiError::of(Reason::ServiceUnavailable, why);
    error.retry_after_seconds = Some(FULL_RETRY_SECONDS);
    error
}

/// A handle on the store; cheap to clone. The writer ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

/// What readers and the writer share.
struct Shared {
    committed: RwLock<Committed>,
    revision: watch::Sender<u64>,
    clock: Clock,
    logs: logs::Logs,
}

#[derive(Debug)]
struct Committed {
    index: Index,
    history: History,
    version: u64,
    incarnation: u64,
}

struct Handle {
    shared: Arc<Shared>,
    entrances: Option<Entrances>,
    writer: Writing,
    path: PathBuf,
}

/// What drains the queue.
enum Writing {
    /// A thread; nothing when it was waited for.
    Thread(Option<JoinHandle<()>>),
    /// A task of the runtime, beside its readers: in a simulation everything has one thread.
    Task,
}

impl Store {
    /// Opens or creates the database at `path` and loads it. Rows that cannot be read are set aside and counted.
    ///
    /// # Errors
    /// When the file is no database of ours, or of a newer build.
    pub fn open(path: &Path, retention: Retention, clock: Clock) -> Result<Self, StoreError> {
        damage::check_length(path)?;
        let opened = || -> Result<Self, StoreError> {
            let ready = Ready::read(path, None, &retention, clock)?;
            let (entrances, mut lanes) = lanes::open();
            let shared = Arc::clone(&ready.shared);
            let mut writer = writer::Writer::over(ready, retention);
            // Only waits for jobs: no sockets, no timers.
            let waiting = tokio::runtime::Builder::new_current_thread().build().map_err(StoreError::Thread)?;
            let thread = std::thread::Builder::new()
                .name("store-writer".into())
                .spawn(move || while waiting.block_on(writer.commit(&mut lanes)) {})
                .map_err(StoreError::Thread)?;
            let writer = Writing::Thread(Some(thread));
            let handle = Handle { shared, entrances: Some(entrances), writer, path: path.to_owned() };
            Ok(Self { handle: Arc::new(handle) })
        };
        opened().map_err(|error| damage::at_opening(path, error))
    }

    /// As [`open`](Self::open) without a thread of its own, by a VFS that is registered with SQLite: the writer is a task of the
    /// tokio runtime in which this is called, and reading the disk does not leave the reader's task.
    ///
    /// # Errors
    /// When the file is no database of ours, or of a newer build, or the disk refuses.
    pub fn open_here(path: &Path, vfs: &str, retention: Retention, clock: Clock) -> Result<Self, StoreError> {
        let ready = Ready::read(path, Some(vfs), &retention, clock)?;
        let (entrances, mut lanes) = lanes::open();
        let shared = Arc::clone(&ready.shared);
        let mut writer = writer::Writer::over(ready, retention);
        drop(tokio::spawn(async move { while writer.commit(&mut lanes).await {} }));
        let handle = Handle { shared, entrances: Some(entrances), writer: Writing::Task, path: path.to_owned() };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Runs `work` in the writer, durable when this returns `Ok`; nothing of it stays when it answers `Err`.
    ///
    /// # Errors
    /// What `work` answered, or that the database failed.
    pub async fn write<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Batch<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        let (call, answer) = Call::of(work);
        let entrances = self.handle.entrances.as_ref().ok_or_else(stopped)?;
        entrances.fleet.send(Box::new(call)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// As [`write`](Self::write), for somebody at the API: before what the fleet writes, and with 429 when the writer has had no room
    /// for a while. Sessions wait instead, which holds their devices back.
    ///
    /// # Errors
    /// As for [`write`](Self::write); nothing was written after a 429.
    pub async fn write_soon<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Batch<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        let (call, answer) = Call::of(work);
        let entrances = self.handle.entrances.as_ref().ok_or_else(stopped)?;
        let room =
            tokio::time::timeout(ROOM_TIMEOUT, entrances.people.reserve()).await.map_err(|_elapsed| too_busy())?;
        room.map_err(|_| stopped())?.send(Box::new(call));
        answer.await.map_err(|_| stopped())?
    }

    pub fn read(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.view(|index| index.get(key).cloned())
    }

    /// Objects of a kind in key order, with the version the list stands at.
    pub fn list(&self, kind: KindRef, namespace: Option<&str>) -> Listing {
        let committed = self.committed();
        let items = committed.index.list(kind, namespace).cloned().collect();
        Listing { resource_version: committed.version, items }
    }

    /// The list as it stood at an earlier version that the history still reaches back to.
    ///
    /// # Errors
    /// 410 when it does not, or `version` is another server's.
    pub fn list_at(&self, kind: KindRef, namespace: Option<&str>, version: u64) -> Result<Listing, ApiError> {
        let committed = self.committed();
        let expired = |floor: u64| {
            ApiError::of(
                Reason::Expired,
                format!("The provided resource version is not kept any more: {version} ({floor})"),
            )
        };
        let floor = committed.history.floor();
        let before = committed.history.before(kind, namespace, version, committed.version);
        let before = before.ok_or_else(|| expired(floor))?;
        let items: Vec<Arc<Object>> = committed.index.list(kind, namespace).cloned().collect();
        drop(committed);
        let read = |(key, kept): (ObjectKey, Option<Kept>)| match kept {
            Some(kept) => kept.object().map(|object| (key, Some(object))),
            None => Some((key, None)),
        };
        let undone: Option<Vec<_>> = before.into_iter().map(read).collect();
        let undone = undone.ok_or_else(|| expired(floor))?;
        Ok(Listing { resource_version: version, items: rewound(items, undone.into_iter()) })
    }

    /// Looks at all committed objects at one version. `look` must be short: the next commit waits for it.
    pub fn view<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.committed().index)
    }

    /// The newest committed version.
    pub fn version(&self) -> u64 {
        self.committed().version
    }

    /// Which life of the database this is; the upper part of every resource version.
    pub fn incarnation(&self) -> u64 {
        self.committed().incarnation
    }

    /// Signals *that* something was committed: the newest version.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.handle.shared.revision.subscribe()
    }

    pub fn now(&self) -> Timestamp {
        (self.handle.shared.clock)()
    }

    /// Changes of a kind after `from`, in order, each once. A watcher that falls out of the history is ended with
    /// [`WatchEvent::Expired`]. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// 410 when history does not reach back to `from`, or `from` is another server's.
    pub fn watch(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, ApiError> {
        let namespace = namespace.map(str::to_owned);
        let wanted =
            move |key: &ObjectKey| key.kind == kind && namespace.as_deref().is_none_or(|name| key.namespace == name);
        self.watch_where(wanted, from)
    }

    /// The same for whatever `wanted` says yes to.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub(crate) fn watch_where(
        &self,
        wanted: impl Fn(&ObjectKey) -> bool + Send + Sync + 'static,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, ApiError> {
        let committed = self.committed();
        let floor = committed.history.floor();
        if from < floor || from > committed.version {
            let message = format!("too old resource version: {from} ({floor})");
            return Err(ApiError::of(Reason::Expired, message));
        }
        drop(committed);
        let (sender, receiver) = mpsc::channel(WATCH_LEN_MAX);
        let revision = self.changes();
        let shared = Arc::clone(&self.handle.shared);
        tokio::spawn(feed(shared, revision, wanted, from, sender));
        Ok(receiver)
    }

    /// A setting as the database has it now: another process may have written it.
    pub(crate) fn setting(&self, setting: settings::Setting) -> Result<Option<Vec<u8>>, StoreError> {
        settings::read(&self.logs().reader(), setting)
    }

    /// The logs of the channels, for sessions.
    pub(crate) fn logs(&self) -> &logs::Logs {
        &self.handle.shared.logs
    }

    /// Rows that could not be read at a start: place and reason.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside(&self) -> Result<Vec<(String, String)>, ApiError> {
        self.write(|batch| Ok(batch.set_aside()?)).await
    }

    /// Reads the disk for a session: beside the tasks of the others, unless everything has one thread.
    pub(crate) async fn ask_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&logs::Logs) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        self.aside(move || work(store.logs())).await.map_err(|_fault| StoreError::Asked)?
    }

    /// Does what takes long beside the tasks of the sessions, unless everything has one thread.
    ///
    /// # Errors
    /// When it ended by a fault.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if matches!(self.handle.writer, Writing::Task) {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await
    }

    /// Writes that wait for the writer.
    pub fn queued(&self) -> usize {
        self.handle.entrances.as_ref().map_or(0, Entrances::queued)
    }

    fn committed(&self) -> std::sync::RwLockReadGuard<'_, Committed> {
        self.handle.shared.committed.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies one watcher's events from the history into its channel, at the watcher's own pace. The history is shared and
/// bounded: a slow watcher costs what its channel holds and up to [`WATCH_ROWS_MAX`] rows as they were when they were read, in the end falls out of the window, and is told so. What is packed is unpacked
/// here, once there is room for it, and not while others wait for the history.
async fn feed(
    shared: Arc<Shared>,
    mut revision: watch::Receiver<u64>,
    wanted: impl Fn(&ObjectKey) -> bool + Send + Sync,
    from: u64,
    sender: mpsc::Sender<WatchEvent>,
) {
    let mut position = from;
    loop {
        revision.mark_unchanged();
        let read = {
            let committed = shared.committed.read().unwrap_or_else(PoisonError::into_inner);
            committed.history.read(&wanted, position, committed.version, WATCH_ROWS_MAX)
        };
        match read {
            Read::Expired => {
                // A watcher that is gone need not hear it.
                drop(sender.send(WatchEvent::Expired).await);
                return;
            }
            Read::Events(events, end) => {
                let full = events.len() == WATCH_ROWS_MAX;
                let progressed = events.is_empty() && end > position;
                for event in events {
                    let Ok(room) = sender.reserve().await else { return };
                    // Whoever cannot be told all starts anew.
                    let Some(told) = event.to_watch() else {
                        room.send(WatchEvent::Expired);
                        return;
                    };
                    room.send(told);
                }
                position = end;
                if full {
                    continue;
                }
                if progressed && sender.try_send(WatchEvent::Progress(end)).is_err() && sender.is_closed() {
                    return;
                }
            }
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            changed = revision.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    /// Makes a commit visible: state, history and version in one step.
    fn publish(&self, events: Vec<Event>, moved: &[Moved], working: &Working, retention: &Retention, now: Timestamp) {
        self.logs.moved(moved);
        if events.is_empty() && working.rollouts_touched.is_empty() && !working.reborn {
            return;
        }
        // Nobody else changes the history in between.
        let aged = self.committed.read().unwrap_or_else(PoisonError::into_inner).history.aged(events.len());
        let mut committed = self.committed.write().unwrap_or_else(PoisonError::into_inner);
        committed.history.exchange(aged);
        if working.reborn {
            // Watches of an earlier life start anew.
            committed.incarnation = working.incarnation;
            committed.history = History::starting_at(working.incarnation << load::SEQ_BITS);
        }
        for event in events {
            let object = (event.change != Change::Deleted).then(|| Arc::clone(&event.object));
            committed.index.set(&event.key, object);
            committed.history.push(event);
        }
        for workload in &working.rollouts_touched {
            committed.index.set_rollout(workload, working.index.rollout(workload));
        }
        committed.history.trim(retention, now);
        committed.version = working.version;
        drop(committed);
        self.revision.send_replace(working.version);
    }

    fn history_floor(&self) -> u64 {
        self.committed.read().unwrap_or_else(PoisonError::into_inner).history.floor()
    }
}

/// A database that was read, before anything writes to it.
struct Ready {
    connection: rusqlite::Connection,
    working: Working,
    shared: Arc<Shared>,
}

impl Ready {
    fn read(path: &Path, vfs: Option<&str>, retention: &Retention, clock: Clock) -> Result<Self, StoreError> {
        let opened = || -> rusqlite::Result<rusqlite::Connection> {
            let connection = schema::connect(path, vfs)?;
            schema::configure(&connection)?;
            Ok(connection)
        };
        let mut connection = opened().map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        schema::migrate(&mut connection)?;
        let now = clock();
        let loaded = load::load(&mut connection, retention, now)?;
        let incarnation = loaded.incarnation;
        let working = Working::starting(load::copy(&loaded.index), incarnation, loaded.version)?;
        // A disk that fails while the mode is set is told of by nobody: without the log the newest commit could go with the power.
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::Journal { path: path.to_owned(), mode });
        }
        let logs = logs::Logs::open(path, vfs, &connection)?;
        let committed =
            Committed { index: loaded.index, history: loaded.history, version: loaded.version, incarnation };
        let (revision, _) = watch::channel(committed.version);
        let shared = Arc::new(Shared { committed: RwLock::new(committed), revision, clock, logs });
        Ok(Self { connection, working, shared })
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("revision", &*self.revision.borrow()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.entrances = None;
        // Every acknowledged write is on the disk already; waiting only lets the database close its WAL.
        if let Writing::Thread(thread) = &mut self.writer
            && let Some(thread) = thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer ended by a fault");
        }
    }
}

#[cfg(test)]
mod tests;
