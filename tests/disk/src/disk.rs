//! A machine's disk as the simulation holds it, and the table in which SQLite finds it by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rusqlite::{Connection, OpenFlags};

use crate::state::{Counters, Failures, State};

/// The disks that live, by name.
static DISKS: Mutex<BTreeMap<String, Weak<Machine>>> = Mutex::new(BTreeMap::new());

/// One machine's disk. Clones are the same disk; it is gone with its last clone and its last open database.
///
/// A *life* is the time between two deaths of the machine. [`Disk::kill`] and [`Disk::power_cut`] end one and begin the next:
/// connections of an earlier life answer only I/O errors from then on and change nothing, so that they may be dropped whenever
/// it suits. A connection that is *opened* belongs to the life of that moment, whoever opens it.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Machine>);

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("a disk named {0:?} is in use; names are one for the whole process")]
    NameTaken(String),
    #[error("{0:?} names no disk: it is the first part of a path, so neither empty nor with a slash")]
    Name(String),
    #[error("SQLite does not take the simulated disk: result code {0}")]
    Refused(i32),
}

#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    state: Mutex<State>,
}

impl Disk {
    /// An empty disk. Whatever is left to chance on it follows from `seed` and from what is done to it.
    ///
    /// # Errors
    /// When another disk of this process has the name, or it is no name.
    pub fn new(name: &str, seed: u64) -> Result<Self, DiskError> {
        crate::vfs::register()?;
        if name.is_empty() || name.contains('/') {
            return Err(DiskError::Name(name.to_owned()));
        }
        let mut disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
        // Not by upgrading: to drop the last owner here would ask for this lock again.
        if disks.get(name).is_some_and(|disk| disk.strong_count() > 0) {
            return Err(DiskError::NameTaken(name.to_owned()));
        }
        let machine = Arc::new(Machine::new(name, seed));
        disks.insert(name.to_owned(), Arc::downgrade(&machine));
        Ok(Self(machine))
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The path by which SQLite finds a file of this disk through the VFS [`crate::NAME`].
    #[must_use]
    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        Path::new(&self.0.name).join(file)
    }

    /// Opens or makes a database on this disk.
    ///
    /// # Errors
    /// As SQLite does; also while [`Disk::is_dead`].
    pub fn open(&self, file: impl AsRef<Path>) -> rusqlite::Result<Connection> {
        Connection::open_with_flags_and_vfs(self.path(file), OpenFlags::default(), crate::NAME)
    }

    /// The process dies: all that was written stays, in the operating system's memory if not on the medium.
    pub fn kill(&self) {
        self.0.state().kill();
    }

    /// The power fails: each write since its file's last sync is kept, lost, or torn at a sector, and new names without a sync
    /// may be gone, by the disk's seed.
    pub fn power_cut(&self) {
        self.0.state().power_cut();
    }

    /// Lets the power fail at a point to come: so many writes, cuts to length, syncs and deletions are done yet; in the one
    /// after them the disk dies, before or while it does it. It then stays dead until [`Disk::power_cut`] or [`Disk::kill`]
    /// begins the next life. Either also calls this off.
    pub fn cut_after(&self, operations: u64) {
        self.0.state().cut_after = Some(operations);
    }

    /// Whether the disk died by [`Disk::cut_after`] and nothing has begun its next life.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.state().dead
    }

    /// Another disk with what the operating system shows of this one, all of it durable: a cloned card, a backup. Faults are
    /// not copied.
    ///
    /// # Errors
    /// As [`Disk::new`].
    pub fn copy(&self, name: &str, seed: u64) -> Result<Self, DiskError> {
        let copy = Self::new(name, seed)?;
        for file in self.files() {
            if let Some(content) = self.read(&file) {
                copy.put(&file, content);
            }
        }
        Ok(copy)
    }

    /// How many bytes the files may hold together; a write beyond is answered by `SQLITE_FULL`. `None` has no end.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.0.state().room_bytes = bytes;
    }

    pub fn set_failures(&self, failures: Failures) {
        self.0.state().failures = failures;
    }

    /// A planted bug, to show that a simulation finds it: syncs are answered and not done.
    pub fn lose_syncs(&self, lost: bool) {
        self.0.state().loses_syncs = lost;
    }

    /// Damages one bit, each byte of all files as likely as another; answers file and byte, none on an empty disk. What a
    /// connection has in its cache stays as it is.
    pub fn flip_bit(&self) -> Option<(String, usize)> {
        self.0.state().flip_bit()
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.state().counters
    }

    /// The names of all files, in order.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.0.state().names()
    }

    /// A file's content as the operating system shows it.
    #[must_use]
    pub fn read(&self, file: &str) -> Option<Vec<u8>> {
        self.0.state().content(file).map(<[u8]>::to_vec)
    }

    /// Puts a file there, durably, in the place of what had the name: databases that are open keep what they opened.
    pub fn put(&self, file: &str, content: Vec<u8>) {
        self.0.state().put(file, content);
    }

    /// Takes a file away, durably.
    pub fn remove(&self, file: &str) {
        self.0.state().remove(file);
    }
}

impl Machine {
    fn new(name: &str, seed: u64) -> Self {
        Self { name: name.to_owned(), state: Mutex::new(State::new(seed)) }
    }

    /// A disk that no path leads to.
    pub(crate) fn nameless() -> Self {
        Self::new("", 0)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        let mut disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
        if disks.get(&self.name).is_some_and(|disk| disk.strong_count() == 0) {
            disks.remove(&self.name);
        }
    }
}

/// The disk that a path leads to, and the file's name on it.
pub(crate) fn find(path: &str) -> Option<(Arc<Machine>, &str)> {
    let (disk, file) = path.trim_start_matches('/').split_once('/')?;
    let disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = disks.get(disk)?.upgrade()?;
    Some((machine, file))
}
