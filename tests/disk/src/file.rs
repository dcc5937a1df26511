//! One file: what the operating system shows, and how to get back to what is surely on the medium.
//!
//! A file is kept once, as the operating system shows it. Each write since the last sync keeps what it replaced, so that a power
//! cut can take all of them back and then lay down again those, or those parts, that chance kept.

use std::collections::VecDeque;
use std::sync::Weak;

use crate::chance::Chance;
use crate::lock::Locks;
use crate::shm::Shm;

/// What a power cut leaves whole or not at all, in bytes.
pub(crate) const SECTOR: usize = 512;
/// Writes that may wait for a sync: the operating system writes back the oldest by itself, as a real one does.
const UNSYNCED_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct File {
    content: Vec<u8>,
    unsynced: VecDeque<Change>,
    pub(crate) handles: u32,
    pub(crate) locks: Locks,
    pub(crate) shm: Weak<Shm>,
}

/// A write or a cut to length, with what it replaced.
#[derive(Debug)]
struct Change {
    offset: usize,
    /// Bytes written; a cut to length writes none.
    len: usize,
    before: Vec<u8>,
    len_before: usize,
}

/// A change that was taken back, with what it had brought.
struct Undone {
    offset: usize,
    after: Vec<u8>,
    len_after: usize,
    cut: bool,
}

impl File {
    pub(crate) fn durable(content: Vec<u8>) -> Self {
        Self { content, ..Self::default() }
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let len_before = self.content.len();
        let end = offset + data.len();
        let before = self.content.get(offset..end.min(len_before)).unwrap_or_default().to_vec();
        self.remember(Change { offset, len: data.len(), before, len_before });
        grow(&mut self.content, end);
        self.content[offset..end].copy_from_slice(data);
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        let len_before = self.content.len();
        let before = self.content.get(len..).unwrap_or_default().to_vec();
        self.remember(Change { offset: len, len: 0, before, len_before });
        grow(&mut self.content, len);
        self.content.truncate(len);
        shrink(&mut self.content);
    }

    fn remember(&mut self, change: Change) {
        if self.unsynced.len() == UNSYNCED_MAX {
            self.unsynced.pop_front();
        }
        self.unsynced.push_back(change);
    }

    pub(crate) fn sync(&mut self) {
        self.unsynced.clear();
        self.unsynced.shrink_to(64);
    }

    /// What a power cut leaves: each change since the last sync is kept, lost or torn at a sector.
    pub(crate) fn power_cut(&mut self, chance: &mut Chance) {
        if self.unsynced.is_empty() {
            return;
        }
        let mut undone = Vec::with_capacity(self.unsynced.len());
        while let Some(change) = self.unsynced.pop_back() {
            undone.push(change.undo(&mut self.content));
        }
        let fate = Fate::choose(chance, undone.len());
        for (index, change) in undone.iter().rev().enumerate() {
            match fate.of(chance, index) {
                Outcome::Kept => change.redo(&mut self.content),
                Outcome::Torn => change.tear(&mut self.content, chance),
                Outcome::Lost => change.lose(&mut self.content, chance),
            }
        }
        self.content.shrink_to_fit();
    }

    /// Writes some sectors of `data`, as a failing write may.
    pub(crate) fn write_torn(&mut self, offset: usize, data: &[u8], chance: &mut Chance) {
        for (start, end) in chosen_sectors(offset, data.len(), chance) {
            self.write(start, &data[start - offset..end - offset]);
        }
    }

    /// Damages one bit; answers its byte's place.
    pub(crate) fn flip_bit(&mut self, chance: &mut Chance) -> Option<usize> {
        let place = chance.index(self.content.len());
        *self.content.get_mut(place)? ^= 1 << chance.below(8);
        Some(place)
    }
}

impl Change {
    fn undo(self, content: &mut Vec<u8>) -> Undone {
        let len_after = content.len();
        let after = content.get(self.offset..self.offset + self.len).unwrap_or_default().to_vec();
        if self.len == 0 {
            content.truncate(self.offset);
            content.extend_from_slice(&self.before);
        } else if let Some(place) = content.get_mut(self.offset..self.offset + self.before.len()) {
            place.copy_from_slice(&self.before);
        }
        content.resize(self.len_before, 0);
        Undone { offset: self.offset, after, len_after, cut: self.len == 0 }
    }
}

impl Undone {
    fn redo(&self, content: &mut Vec<u8>) {
        if self.cut {
            content.resize(self.len_after, 0);
        } else {
            lay(content, self.offset, &self.after);
        }
    }

    fn tear(&self, content: &mut Vec<u8>, chance: &mut Chance) {
        for (start, end) in chosen_sectors(self.offset, self.after.len(), chance) {
            lay(content, start, &self.after[start - self.offset..end - self.offset]);
        }
    }

    /// The bytes are lost; the file's new length, which a file system writes elsewhere, may not be.
    fn lose(&self, content: &mut Vec<u8>, chance: &mut Chance) {
        if !self.cut && self.offset + self.after.len() > content.len() && chance.one_in(4) {
            content.resize(self.offset + self.after.len(), 0);
        }
    }
}

fn lay(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

#[derive(Clone, Copy)]
enum Outcome {
    Kept,
    Torn,
    Lost,
}

/// How one power cut treats one file's changes. Disks differ: some write in order, others as they like, and what they had
/// written by then is more or less.
enum Fate {
    Ordered { kept: usize },
    Independent { kept_of_eight: u64 },
}

impl Fate {
    fn choose(chance: &mut Chance, changes: usize) -> Self {
        if chance.one_in(2) {
            Self::Ordered { kept: chance.index(changes + 1) }
        } else {
            Self::Independent { kept_of_eight: chance.below(9) }
        }
    }

    fn of(&self, chance: &mut Chance, index: usize) -> Outcome {
        match self {
            Self::Ordered { kept } if index < *kept => Outcome::Kept,
            Self::Ordered { kept } if index == *kept => Outcome::Torn,
            Self::Ordered { .. } => Outcome::Lost,
            Self::Independent { kept_of_eight } if chance.below(8) < *kept_of_eight => Outcome::Kept,
            Self::Independent { .. } if chance.one_in(2) => Outcome::Torn,
            Self::Independent { .. } => Outcome::Lost,
        }
    }
}

/// The parts of a write that reach the medium when it is torn, as ranges of the file: the first sectors, the last, or any.
fn chosen_sectors(offset: usize, len: usize, chance: &mut Chance) -> Vec<(usize, usize)> {
    let end = offset + len;
    let mut sectors = Vec::new();
    let mut start = offset;
    while start < end {
        let next = ((start / SECTOR + 1) * SECTOR).min(end);
        sectors.push((start, next));
        start = next;
    }
    let count = chance.index(sectors.len() + 1);
    match chance.below(3) {
        0 => sectors.truncate(count),
        1 => drop(sectors.drain(..count)),
        _ => sectors.retain(|_| chance.one_in(2)),
    }
    sectors
}

/// Makes room for `len` bytes with an eighth to spare: thousands of files lie in memory, so not twice.
fn grow(content: &mut Vec<u8>, len: usize) {
    if len > content.capacity() {
        content.reserve_exact(len + len / 8 + SECTOR - content.len());
    }
    if len > content.len() {
        content.resize(len, 0);
    }
}

fn shrink(content: &mut Vec<u8>) {
    if content.capacity() > content.len() + content.len() / 4 + 4096 {
        content.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests;
