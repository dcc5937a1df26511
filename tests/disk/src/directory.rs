//! The names of a disk's files, and the changes of names that are not yet on the medium.
//!
//! A file system writes names in order. A file's first sync makes its name durable and all that was changed before; SQLite asks
//! for it by that sync after it made a file, and by a flag when it deletes one. Without that flag a power cut can bring the file
//! back.

use std::collections::{BTreeMap, VecDeque};

use crate::chance::Chance;

/// Changes of names that may wait; older ones are durable.
const PENDING_MAX: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    names: BTreeMap<String, u64>,
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
enum Pending {
    Made { name: String, file: u64 },
    Deleted { name: String, file: u64 },
}

impl Directory {
    pub(crate) fn find(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, u64)> {
        self.names.iter().map(|(name, file)| (name.as_str(), *file))
    }

    pub(crate) fn add(&mut self, name: &str, file: u64) {
        self.names.insert(name.to_owned(), file);
        self.push(Pending::Made { name: name.to_owned(), file });
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<u64> {
        let (name, file) = self.names.remove_entry(name)?;
        self.push(Pending::Deleted { name, file });
        Some(file)
    }

    fn push(&mut self, change: Pending) {
        if self.pending.len() == PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back(change);
    }

    /// Whether a name stands for the file, or may again after a power cut.
    pub(crate) fn knows(&self, wanted: u64) -> bool {
        let named = self.names.values().any(|file| *file == wanted);
        named || self.pending.iter().any(|change| matches!(change, Pending::Deleted { file, .. } if *file == wanted))
    }

    /// The file was synced: its making is durable, and every change before it.
    pub(crate) fn sync_file(&mut self, synced: u64) {
        let made = |change: &Pending| matches!(change, Pending::Made { file, .. } if *file == synced);
        if let Some(last) = self.pending.iter().rposition(made) {
            self.pending.drain(..=last);
        }
    }

    pub(crate) fn sync(&mut self) {
        self.pending.clear();
    }

    /// Takes back the changes after a point that chance chooses.
    pub(crate) fn power_cut(&mut self, chance: &mut Chance) {
        if self.pending.is_empty() {
            return;
        }
        let kept = chance.index(self.pending.len() + 1);
        for change in self.pending.drain(kept..).rev() {
            match change {
                Pending::Made { name, .. } => drop(self.names.remove(&name)),
                Pending::Deleted { name, file } => drop(self.names.insert(name, file)),
            }
        }
        self.pending.clear();
    }
}
