//! The memory that connections to one database in WAL mode share, and the locks on it. It is no file: nothing of it outlives the
//! connections, and SQLite makes it anew from the log.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::ffi;

use crate::state::Answer;

const LOCKS: usize = ffi::SQLITE_SHM_NLOCK as usize;
/// Regions of 32 KiB that one log's index may take: a log of 4 million pages.
const REGIONS_MAX: usize = 1024;

/// A region's bytes, in words so that they are aligned. SQLite reads and writes them through pointers, which is what a cell
/// allows: no reference into it is ever made.
type Region = Box<[UnsafeCell<u64>]>;

#[derive(Debug, Default)]
pub(crate) struct Shm {
    regions: Mutex<Vec<Region>>,
    locks: Mutex<[Holders; LOCKS]>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Holders {
    #[default]
    Nobody,
    Readers(u32),
    Writer,
}

/// One connection's part in the shared memory. The regions live as long as any connection that mapped them, also after the
/// death of its machine: SQLite still holds pointers into them.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) shm: Arc<Shm>,
    shared: [bool; LOCKS],
    exclusive: [bool; LOCKS],
}

impl Link {
    pub(crate) fn new(shm: Arc<Shm>) -> Self {
        Self { shm, shared: [false; LOCKS], exclusive: [false; LOCKS] }
    }

    /// Where region `index` of `bytes` bytes lies, null if there is none and none is to be made.
    pub(crate) fn region(&self, index: usize, bytes: usize, extend: bool) -> Answer<*mut c_void> {
        let mut regions = self.shm.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if index >= REGIONS_MAX {
            return Err(ffi::SQLITE_IOERR_SHMSIZE);
        }
        if index >= regions.len() && !extend {
            return Ok(std::ptr::null_mut());
        }
        while regions.len() <= index {
            regions.push((0..bytes.div_ceil(8)).map(|_| UnsafeCell::new(0)).collect());
        }
        let region = &regions[index];
        if region.len() * 8 < bytes {
            return Err(ffi::SQLITE_IOERR_SHMSIZE);
        }
        Ok(region.as_ptr().cast_mut().cast())
    }

    pub(crate) fn lock(&mut self, slots: std::ops::Range<usize>, flags: i32) -> Answer<()> {
        if slots.end > LOCKS {
            return Err(ffi::SQLITE_MISUSE);
        }
        let shm = Arc::clone(&self.shm);
        let mut locks = shm.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
            slots.for_each(|slot| self.release(&mut locks, slot));
            return Ok(());
        }
        let mine = |slot: usize| if exclusive { self.exclusive[slot] } else { self.shared[slot] };
        let free = |slot: usize| match locks[slot] {
            Holders::Nobody => true,
            Holders::Readers(_) => !exclusive,
            Holders::Writer => false,
        };
        if !slots.clone().all(|slot| mine(slot) || free(slot)) {
            return Err(ffi::SQLITE_BUSY);
        }
        for slot in slots.filter(|slot| !mine(*slot)).collect::<Vec<_>>() {
            if exclusive {
                locks[slot] = Holders::Writer;
                self.exclusive[slot] = true;
            } else {
                let readers = if let Holders::Readers(readers) = locks[slot] { readers } else { 0 };
                locks[slot] = Holders::Readers(readers + 1);
                self.shared[slot] = true;
            }
        }
        Ok(())
    }

    fn release(&mut self, locks: &mut [Holders; LOCKS], slot: usize) {
        if std::mem::take(&mut self.exclusive[slot]) {
            locks[slot] = Holders::Nobody;
        }
        if std::mem::take(&mut self.shared[slot]) {
            locks[slot] = match locks[slot] {
                Holders::Readers(readers) if readers > 1 => Holders::Readers(readers - 1),
                _ => Holders::Nobody,
            };
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let shm = Arc::clone(&self.shm);
        let mut locks = shm.locks.lock().unwrap_or_else(PoisonError::into_inner);
        (0..LOCKS).for_each(|slot| self.release(&mut locks, slot));
    }
}
