//! Who may read and who may write a file, as SQLite's rollback protocol wants it (sqlite.org/lockingv3.html).

use rusqlite::ffi;

use crate::state::Answer;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    #[default]
    None,
    Shared,
    Reserved,
    Pending,
    Exclusive,
}

impl Level {
    /// From the number SQLite gives.
    pub(crate) fn parse(level: i32) -> Answer<Self> {
        Ok(match level {
            ffi::SQLITE_LOCK_NONE => Self::None,
            ffi::SQLITE_LOCK_SHARED => Self::Shared,
            ffi::SQLITE_LOCK_RESERVED => Self::Reserved,
            ffi::SQLITE_LOCK_PENDING => Self::Pending,
            ffi::SQLITE_LOCK_EXCLUSIVE => Self::Exclusive,
            _ => return Err(ffi::SQLITE_MISUSE),
        })
    }
}

/// The locks on one file. A handle knows its own level.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    /// Handles at [`Level::Shared`] or above.
    readers: u32,
    /// The one handle above [`Level::Shared`], which is also among the readers.
    writer: Option<(u64, Level)>,
}

impl Locks {
    /// Raises `held` of handle `id`, which may end higher than it was even if the answer is busy: a writer that waits for readers
    /// keeps new ones out.
    pub(crate) fn raise(&mut self, id: u64, held: &mut Level, wanted: Level) -> Answer<()> {
        if *held >= wanted {
            return Ok(());
        }
        if *held == Level::None {
            if self.writer.is_some_and(|(_, level)| level >= Level::Pending) {
                return Err(ffi::SQLITE_BUSY);
            }
            self.readers += 1;
            *held = Level::Shared;
        }
        if wanted == Level::Shared {
            return Ok(());
        }
        if self.writer.is_some_and(|(other, _)| other != id) {
            return Err(ffi::SQLITE_BUSY);
        }
        let waits = wanted == Level::Exclusive && self.readers > 1;
        *held = if waits { Level::Pending } else { wanted };
        self.writer = Some((id, *held));
        if waits { Err(ffi::SQLITE_BUSY) } else { Ok(()) }
    }

    pub(crate) fn lower(&mut self, held: &mut Level, wanted: Level) {
        if *held > Level::Shared && wanted <= Level::Shared {
            self.writer = None;
        }
        if *held >= Level::Shared && wanted == Level::None {
            self.readers = self.readers.saturating_sub(1);
        }
        *held = (*held).min(wanted);
    }

    pub(crate) fn is_reserved(&self) -> bool {
        self.writer.is_some()
    }
}
