//! One open file of SQLite's.

use std::ops::Range;
use std::sync::Arc;

use rusqlite::ffi;

use crate::disk::Machine;
use crate::lock::Level;
use crate::shm::Link;
use crate::state::{Answer, Place};

#[derive(Debug)]
pub(crate) struct Handle {
    machine: Arc<Machine>,
    place: Place,
    held: Level,
    link: Option<Link>,
}

impl Handle {
    /// Opens a file by its path, or one without a name, which lies on a disk of its own where nothing fails.
    pub(crate) fn open(path: Option<&str>, flags: i32) -> Answer<Self> {
        let (machine, name) = match path {
            Some(path) => crate::disk::find(path).ok_or(ffi::SQLITE_CANTOPEN)?,
            None => (Arc::new(Machine::nameless()), "temporary"),
        };
        let place = machine.state().open(name, flags | if path.is_none() { ffi::SQLITE_OPEN_CREATE } else { 0 })?;
        Ok(Self { machine, place, held: Level::None, link: None })
    }

    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Answer<usize> {
        self.machine.state().read(self.place, offset, into)
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Answer<()> {
        self.machine.state().write(self.place, offset, data)
    }

    pub(crate) fn set_len(&self, len: usize) -> Answer<()> {
        self.machine.state().set_len(self.place, len)
    }

    pub(crate) fn sync(&self) -> Answer<()> {
        self.machine.state().sync(self.place)
    }

    pub(crate) fn len(&self) -> Answer<usize> {
        self.machine.state().len(self.place)
    }

    pub(crate) fn lock(&mut self, level: i32) -> Answer<()> {
        let wanted = Level::parse(level)?;
        self.machine.state().locks(self.place)?.raise(self.place.id, &mut self.held, wanted)
    }

    pub(crate) fn unlock(&mut self, level: i32) -> Answer<()> {
        let wanted = Level::parse(level)?;
        self.machine.state().locks(self.place)?.lower(&mut self.held, wanted);
        Ok(())
    }

    pub(crate) fn is_reserved(&self) -> Answer<bool> {
        Ok(self.machine.state().locks(self.place)?.is_reserved())
    }

    pub(crate) fn shm_region(&mut self, index: usize, bytes: usize, extend: bool) -> Answer<*mut std::ffi::c_void> {
        let shm = self.machine.state().shm(self.place)?;
        self.link.get_or_insert_with(|| Link::new(shm)).region(index, bytes, extend)
    }

    pub(crate) fn shm_lock(&mut self, slots: Range<usize>, flags: i32) -> Answer<()> {
        self.machine.state().is_alive(self.place)?;
        self.link.as_mut().ok_or(ffi::SQLITE_IOERR_SHMLOCK)?.lock(slots, flags)
    }

    pub(crate) fn shm_unmap(&mut self) {
        self.link = None;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.machine.state().close(self.place, self.held);
    }
}
