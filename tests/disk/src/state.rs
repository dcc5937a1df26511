//! All that one disk is: its files, its faults, its counters. Every operation of SQLite passes through here, under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use rusqlite::ffi;

use crate::chance::Chance;
use crate::directory::Directory;
use crate::file::File;
use crate::lock::{Level, Locks};
use crate::shm::Shm;

/// An answer to SQLite: a value, or one of its result codes.
pub(crate) type Answer<T> = Result<T, i32>;

/// What a disk has done since it was made: what wears flash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub writes: u64,
    pub bytes_written: u64,
    /// Also those that were lost by [`crate::Disk::lose_syncs`].
    pub syncs: u64,
}

/// Which operations fail with an I/O error. Counted are writes, cuts to length, syncs and deletions, and reads if `reads` says
/// so. A write that fails may have written a part. Zero operations are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Failures {
    #[default]
    None,
    /// Each time that many operations are counted.
    Every { operations: u64, reads: bool },
    /// By the disk's seed, one in so many on average.
    OneIn { operations: u64, reads: bool },
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) chance: Chance,
    /// A handle of another life is dead.
    life: u64,
    /// Died by itself ([`State::cut_after`]); nothing opens until the next life begins.
    pub(crate) dead: bool,
    id_last: u64,
    files: BTreeMap<u64, File>,
    directory: Directory,
    pub(crate) counters: Counters,
    pub(crate) room_bytes: Option<u64>,
    pub(crate) failures: Failures,
    failures_counted: u64,
    pub(crate) cut_after: Option<u64>,
    pub(crate) loses_syncs: bool,
}

/// A handle's place in the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) id: u64,
    life: u64,
    file: u64,
}

/// What befalls one operation.
#[derive(PartialEq)]
enum Fortune {
    Done,
    Fails,
    Dies,
}

impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed),
            life: 0,
            dead: false,
            id_last: 0,
            files: BTreeMap::new(),
            directory: Directory::default(),
            counters: Counters::default(),
            room_bytes: None,
            failures: Failures::None,
            failures_counted: 0,
            cut_after: None,
            loses_syncs: false,
        }
    }

    pub(crate) fn open(&mut self, name: &str, flags: i32) -> Answer<Place> {
        if self.dead {
            return Err(ffi::SQLITE_CANTOPEN);
        }
        let file = match self.directory.find(name) {
            Some(_) if flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & ffi::SQLITE_OPEN_EXCLUSIVE != 0 => {
                return Err(ffi::SQLITE_CANTOPEN);
            }
            Some(file) => file,
            None if flags & ffi::SQLITE_OPEN_CREATE == 0 => return Err(ffi::SQLITE_CANTOPEN),
            None => {
                let file = self.new_id();
                self.files.insert(file, File::default());
                self.directory.add(name, file);
                file
            }
        };
        self.file(file)?.handles += 1;
        Ok(Place { id: self.new_id(), life: self.life, file })
    }

    /// Ends a handle. One of an earlier life has nothing left to give back.
    pub(crate) fn close(&mut self, place: Place, mut held: Level) {
        let Ok(file) = self.of(place) else { return };
        file.locks.lower(&mut held, Level::None);
        file.handles = file.handles.saturating_sub(1);
        self.sweep();
    }

    pub(crate) fn delete(&mut self, name: &str, durable: bool) -> Answer<()> {
        if self.dead {
            return Err(ffi::SQLITE_IOERR_DELETE);
        }
        if self.directory.find(name).is_none() {
            return Err(ffi::SQLITE_IOERR_DELETE_NOENT);
        }
        let fortune = self.fortune();
        if fortune == Fortune::Fails {
            return Err(ffi::SQLITE_IOERR_DELETE);
        }
        if fortune == Fortune::Done || self.chance.one_in(2) {
            self.directory.remove(name);
            if durable && !self.loses_syncs {
                self.directory.sync();
            }
            self.sweep();
        }
        self.survives(&fortune)
    }

    /// Whether there is such a file with anything in it: SQLite takes an empty one for none, as on Unix.
    pub(crate) fn holds(&self, name: &str) -> bool {
        !self.dead && self.content(name).is_some_and(|content| !content.is_empty())
    }

    /// Fills `into` with the bytes from `offset`; answers how many there were.
    pub(crate) fn read(&mut self, place: Place, offset: usize, into: &mut [u8]) -> Answer<usize> {
        self.of(place)?;
        if self.failures != Failures::None && self.fails(true) {
            return Err(ffi::SQLITE_IOERR_READ);
        }
        let content = self.of(place)?.content();
        let from = content.get(offset..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    pub(crate) fn write(&mut self, place: Place, offset: usize, data: &[u8]) -> Answer<()> {
        self.of(place)?;
        self.admit(place, offset + data.len())?;
        let fortune = self.fortune();
        let file = self.files.get_mut(&place.file).ok_or(ffi::SQLITE_IOERR)?;
        match fortune {
            Fortune::Done => file.write(offset, data),
            Fortune::Fails => file.write_torn(offset, data, &mut self.chance),
            // The cut itself tears it, or not even that much was sent.
            Fortune::Dies if self.chance.one_in(2) => file.write(offset, data),
            Fortune::Dies => {}
        }
        if fortune == Fortune::Fails {
            return Err(ffi::SQLITE_IOERR_WRITE);
        }
        self.survives(&fortune)?;
        self.counters.writes += 1;
        self.counters.bytes_written += data.len() as u64;
        Ok(())
    }

    pub(crate) fn set_len(&mut self, place: Place, len: usize) -> Answer<()> {
        self.of(place)?;
        self.admit(place, len)?;
        let fortune = self.fortune();
        if fortune == Fortune::Fails {
            return Err(ffi::SQLITE_IOERR_TRUNCATE);
        }
        if fortune == Fortune::Done || self.chance.one_in(2) {
            self.of(place)?.set_len(len);
        }
        self.survives(&fortune)
    }

    pub(crate) fn sync(&mut self, place: Place) -> Answer<()> {
        self.of(place)?;
        let fortune = self.fortune();
        if fortune == Fortune::Fails {
            return Err(ffi::SQLITE_IOERR_FSYNC);
        }
        if !self.loses_syncs && (fortune == Fortune::Done || self.chance.one_in(2)) {
            self.of(place)?.sync();
            self.directory.sync_file(place.file);
            self.sweep();
        }
        self.survives(&fortune)?;
        self.counters.syncs += 1;
        Ok(())
    }

    pub(crate) fn len(&mut self, place: Place) -> Answer<usize> {
        Ok(self.of(place)?.content().len())
    }

    pub(crate) fn locks(&mut self, place: Place) -> Answer<&mut Locks> {
        Ok(&mut self.of(place)?.locks)
    }

    /// The file's shared memory, which begins empty with its first user.
    pub(crate) fn shm(&mut self, place: Place) -> Answer<Arc<Shm>> {
        let file = self.of(place)?;
        let shm = file.shm.upgrade().unwrap_or_default();
        file.shm = Arc::downgrade(&shm);
        Ok(shm)
    }

    /// That the handle is of this life.
    pub(crate) fn is_alive(&self, place: Place) -> Answer<()> {
        if place.life == self.life && !self.dead { Ok(()) } else { Err(ffi::SQLITE_IOERR) }
    }

    /// Ends this life: no handle of it does anything any more. What was written stays.
    pub(crate) fn kill(&mut self) {
        self.life += 1;
        self.dead = false;
        self.cut_after = None;
        for file in self.files.values_mut() {
            file.handles = 0;
            file.locks = Locks::default();
            file.shm = Weak::new();
        }
        self.sweep();
    }

    /// Ends this life, and of what was not synced chance decides what stays.
    pub(crate) fn power_cut(&mut self) {
        self.directory.power_cut(&mut self.chance);
        for file in self.files.values_mut() {
            file.power_cut(&mut self.chance);
            file.sync();
        }
        self.kill();
    }

    pub(crate) fn content(&self, name: &str) -> Option<&[u8]> {
        Some(self.files.get(&self.directory.find(name)?)?.content())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.directory.names().map(|(name, _)| name.to_owned()).collect()
    }

    /// Puts a durable file in the place of what the name stood for.
    pub(crate) fn put(&mut self, name: &str, content: Vec<u8>) {
        let file = self.new_id();
        self.directory.remove(name);
        self.directory.add(name, file);
        self.directory.sync();
        self.files.insert(file, File::durable(content));
        self.sweep();
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.directory.remove(name);
        self.directory.sync();
        self.sweep();
    }

    /// Damages one bit somewhere, each byte as likely as another; answers which byte.
    pub(crate) fn flip_bit(&mut self) -> Option<(String, usize)> {
        let sizes: Vec<(String, u64, u64)> =
            self.directory.names().map(|(name, file)| (name.to_owned(), file, self.size(file))).collect();
        let mut place = self.chance.below(sizes.iter().map(|(_, _, size)| size).sum());
        for (name, file, size) in sizes {
            if place < size {
                let offset = self.files.get_mut(&file)?.flip_bit(&mut self.chance)?;
                return Some((name, offset));
            }
            place -= size;
        }
        None
    }

    fn new_id(&mut self) -> u64 {
        self.id_last += 1;
        self.id_last
    }

    fn file(&mut self, file: u64) -> Answer<&mut File> {
        self.files.get_mut(&file).ok_or(ffi::SQLITE_IOERR)
    }

    fn of(&mut self, place: Place) -> Answer<&mut File> {
        self.is_alive(place)?;
        self.file(place.file)
    }

    fn size(&self, file: u64) -> u64 {
        self.files.get(&file).map_or(0, |file| file.content().len() as u64)
    }

    /// Refuses what makes a file longer than the room that is left.
    fn admit(&mut self, place: Place, len: usize) -> Answer<()> {
        let Some(room) = self.room_bytes else { return Ok(()) };
        let more = (len as u64).saturating_sub(self.size(place.file));
        let used: u64 = self.directory.names().map(|(_, file)| self.size(file)).sum();
        if more > 0 && used + more > room { Err(ffi::SQLITE_FULL) } else { Ok(()) }
    }

    /// Decides about the next operation, and counts it.
    fn fortune(&mut self) -> Fortune {
        match &mut self.cut_after {
            Some(0) => return Fortune::Dies,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.fails(false) { Fortune::Fails } else { Fortune::Done }
    }

    fn fails(&mut self, read: bool) -> bool {
        match self.failures {
            Failures::None => false,
            Failures::Every { reads, .. } | Failures::OneIn { reads, .. } if read && !reads => false,
            Failures::Every { operations, .. } => {
                self.failures_counted += 1;
                self.failures_counted.is_multiple_of(operations)
            }
            Failures::OneIn { operations, .. } => operations > 0 && self.chance.one_in(operations),
        }
    }

    /// Ends the life of a disk whose hour has come.
    fn survives(&mut self, fortune: &Fortune) -> Answer<()> {
        if *fortune != Fortune::Dies {
            return Ok(());
        }
        self.power_cut();
        self.dead = true;
        Err(ffi::SQLITE_IOERR)
    }

    /// Forgets the files that nothing can reach any more.
    fn sweep(&mut self) {
        let directory = &self.directory;
        self.files.retain(|id, file| file.handles > 0 || directory.knows(*id));
    }
}
