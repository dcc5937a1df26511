//! Blobs in a session: the reader asks for one range at a time, the sender answers in pieces, below everything else.
//!
//! Nothing of a blob is on its way that the reader did not ask for, and the range follows the speed of the link, so that
//! a change waits behind a fraction of a second of it at most. What came is durable before more is asked for: a session that
//! breaks costs one range.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::frame::Frame;
use super::{Event, Session, Violation};
use crate::blob::{BLOB_BYTES_MAX, BLOB_PIECE_BYTES_MAX, BlobRef, BlobStored, BlobWant};
use crate::channel::Hash;

/// Bounds of a range, in bytes.
pub(super) const RANGE_BYTES_MAX: usize = 128 * 1024;
const RANGE_BYTES_MIN: usize = 4 * 1024;
const RANGE_BYTES_FIRST: usize = 16 * 1024;
/// A range that came sooner is followed by one of twice its size, one that took four times as long by one of half.
const RANGE_MS: u64 = 200;
/// Most wanted blobs asked of the store at once, beside those that the peer does not have.
pub(super) const WANTED_MAX: usize = 64;
/// Most blobs remembered that the peer does not have.
const REFUSED_MAX: usize = 4096;
/// Most ranges a peer may ask for ahead of the answers.
const ASKED_MAX: usize = 4;
/// What the peer did not have is asked for again after this time.
const AGAIN_MS: u64 = 60_000;

/// Both halves of one session.
#[derive(Debug)]
pub(super) struct Blobs {
    /// The store was asked what is missing.
    asking: bool,
    /// More may be missing since.
    stale: bool,
    wanted: VecDeque<BlobWant>,
    /// The store knows of more that are missing.
    more: bool,
    coming: Option<Coming>,
    range_bytes: usize,
    /// What the peer does not have, or has damaged.
    refused: BTreeSet<Hash>,
    again_at_ms: u64,
    /// Ranges the peer asked for.
    asked: VecDeque<(Hash, u64, usize)>,
    reading: bool,
    leaving: Option<Leaving>,
}

/// A range on its way here.
#[derive(Debug)]
struct Coming {
    want: BlobWant,
    len: usize,
    bytes: BytesMut,
    asked_at_ms: u64,
    /// It is complete and being made durable.
    storing: bool,
}

/// A range on its way out.
#[derive(Debug)]
struct Leaving {
    hash: Hash,
    offset: u64,
    bytes: Bytes,
}

impl Default for Blobs {
    fn default() -> Self {
        Self {
            asking: false,
            stale: false,
            wanted: VecDeque::new(),
            more: false,
            coming: None,
            range_bytes: RANGE_BYTES_FIRST,
            refused: BTreeSet::new(),
            again_at_ms: u64::MAX,
            asked: VecDeque::new(),
            reading: false,
            leaving: None,
        }
    }
}

impl Blobs {
    /// The next piece that may leave when nothing else has to.
    pub(super) fn next_piece(&mut self) -> Option<Frame> {
        let leaving = self.leaving.as_mut()?;
        let bytes = leaving.bytes.split_to(leaving.bytes.len().min(BLOB_PIECE_BYTES_MAX));
        let frame = Frame::BlobPiece { hash: leaving.hash, offset: leaving.offset, bytes: bytes.clone() };
        leaving.offset += bytes.len() as u64;
        if leaving.bytes.is_empty() {
            self.leaving = None;
        }
        Some(frame)
    }

    /// When what was refused is to be asked for again. Milliseconds.
    pub(super) fn again_at_ms(&self) -> u64 {
        self.again_at_ms
    }

    /// How many to ask the store for: those refused may stand before others that the peer has.
    fn limit(&self) -> usize {
        WANTED_MAX + self.refused.len()
    }

    fn refuse(&mut self, hash: Hash, now_ms: u64) {
        self.wanted.retain(|want| want.name.hash != hash);
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert(hash);
        }
        self.again_at_ms = self.again_at_ms.min(now_ms + AGAIN_MS);
    }
}

impl Session {
    /// Asks the store which blobs are missing, once at a time.
    pub(super) fn ask_missing_blobs(&mut self) {
        if !self.established {
            return;
        }
        if self.blobs.asking {
            self.blobs.stale = true;
            return;
        }
        self.blobs.asking = true;
        self.events.push_back(Event::NeedMissingBlobs { limit: self.blobs.limit() });
    }

    /// The store's answer.
    pub(super) fn blobs_are_missing(&mut self, missing: Vec<BlobWant>, now_ms: u64) {
        self.blobs.asking = false;
        let full = missing.len() >= WANTED_MAX;
        let refused = &self.blobs.refused;
        let coming = self.blobs.coming.as_ref().map(|coming| coming.want.name.hash);
        let open = |want: &BlobWant| !refused.contains(&want.name.hash) && Some(want.name.hash) != coming;
        self.blobs.wanted = missing.into_iter().filter(open).collect();
        self.blobs.more = full && !self.blobs.wanted.is_empty() && self.blobs.refused.len() < REFUSED_MAX;
        if std::mem::take(&mut self.blobs.stale) {
            self.ask_missing_blobs();
        }
        self.ask_for_range(now_ms);
    }

    fn ask_for_range(&mut self, now_ms: u64) {
        if self.blobs.coming.is_some() {
            return;
        }
        let Some(want) = self.blobs.wanted.pop_front() else {
            if std::mem::take(&mut self.blobs.more) {
                self.ask_missing_blobs();
            }
            return;
        };
        let left = want.name.len.saturating_sub(want.offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.blobs.range_bytes);
        let bytes = BytesMut::new();
        self.blobs.coming = Some(Coming { want, len, bytes, asked_at_ms: now_ms, storing: false });
        self.frames.push_back(Frame::WantBlob { hash: want.name.hash, offset: want.offset, len: len as u64 });
    }

    /// A piece came.
    pub(super) fn receive_blob_piece(
        &mut self,
        hash: &Hash,
        offset: u64,
        bytes: &Bytes,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let range_bytes = &mut self.blobs.range_bytes;
        let fitting = |coming: &&mut Coming| {
            coming.want.name.hash == *hash
                && offset == coming.want.offset + coming.bytes.len() as u64
                && !bytes.is_empty()
                && coming.bytes.len() + bytes.len() <= coming.len
                && !coming.storing
        };
        let coming = self.blobs.coming.as_mut().filter(fitting).ok_or("a piece of a blob that was not asked for")?;
        coming.bytes.extend_from_slice(bytes);
        if coming.bytes.len() < coming.len {
            return Ok(());
        }
        let took_ms = now_ms.saturating_sub(coming.asked_at_ms);
        if took_ms < RANGE_MS && coming.len == *range_bytes {
            *range_bytes = (*range_bytes * 2).min(RANGE_BYTES_MAX);
        } else if took_ms > 4 * RANGE_MS {
            *range_bytes = (*range_bytes / 2).max(RANGE_BYTES_MIN);
        }
        coming.storing = true;
        let BlobWant { name, offset } = coming.want;
        let bytes = coming.bytes.split().freeze();
        self.events.push_back(Event::StoreBlob { name, offset, bytes });
        Ok(())
    }

    /// The store has made a range durable, or thrown it away.
    pub(super) fn blob_was_stored(&mut self, name: &BlobRef, stored: BlobStored, now_ms: u64) {
        let Some(Coming { want, len, .. }) = self.blobs.coming.take_if(|coming| coming.want.name == *name) else {
            return;
        };
        match stored {
            BlobStored::Partly => {
                let offset = want.offset + len as u64;
                self.blobs.wanted.push_front(BlobWant { offset, ..want });
            }
            BlobStored::Damaged => self.blobs.refuse(name.hash, now_ms),
            BlobStored::Whole | BlobStored::Unwanted => self.ask_missing_blobs(),
        }
        self.ask_for_range(now_ms);
    }

    /// The peer does not have a blob, or does not give it.
    pub(super) fn blob_is_refused(&mut self, hash: Hash, now_ms: u64) {
        if self.blobs.coming.take_if(|coming| coming.want.name.hash == hash && !coming.storing).is_some() {
            self.blobs.refuse(hash, now_ms);
            self.ask_for_range(now_ms);
        }
    }

    /// Time passed: what the peer did not have it may have now.
    pub(super) fn ask_refused_again(&mut self, now_ms: u64) {
        if now_ms >= self.blobs.again_at_ms {
            self.blobs.again_at_ms = u64::MAX;
            self.blobs.refused.clear();
            self.ask_missing_blobs();
        }
    }

    /// The peer asks for a range.
    pub(super) fn range_is_wanted(&mut self, hash: Hash, offset: u64, len: u64) -> Result<(), Violation> {
        let len = usize::try_from(len).ok().filter(|len| (1..=RANGE_BYTES_MAX).contains(len));
        let len = len.filter(|_| offset < BLOB_BYTES_MAX as u64).ok_or("a range of a blob beyond all bounds")?;
        if self.blobs.asked.len() >= ASKED_MAX {
            return Err("too many ranges of blobs asked for".into());
        }
        self.blobs.asked.push_back((hash, offset, len));
        self.read_next_range();
        Ok(())
    }

    /// Reads the next range once the one before has left: one is in memory at a time.
    pub(super) fn read_next_range(&mut self) {
        if self.blobs.reading || self.blobs.leaving.is_some() {
            return;
        }
        if let Some((hash, offset, len)) = self.blobs.asked.pop_front() {
            self.blobs.reading = true;
            self.events.push_back(Event::ReadBlob { hash, offset, len });
        }
    }

    /// The store's answer.
    pub(super) fn blob_was_read(&mut self, hash: Hash, offset: u64, bytes: Option<Bytes>) {
        self.blobs.reading = false;
        match bytes.filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => self.blobs.leaving = Some(Leaving { hash, offset, bytes }),
            None => {
                self.frames.push_back(Frame::NoBlob { hash });
                self.read_next_range();
            }
        }
    }
}
