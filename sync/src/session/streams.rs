//! The accounting of a session's streams: who opened which, and how much the peer may still send on it.

use std::collections::BTreeMap;

use crate::stream::{STREAM_CREDIT_BYTES, STREAMS_MAX, StreamId, cost_of};

/// The open streams of a session.
#[derive(Debug)]
pub(super) struct Streams {
    /// Credit the peer has left, by stream.
    open: BTreeMap<StreamId, u32>,
    /// Parity of the ids the peer opens.
    peer_parity: u64,
    /// Newest id the peer opened: ids are never used twice.
    peer_newest: Option<StreamId>,
}

impl Streams {
    pub(super) fn new(peer_parity: u64) -> Self {
        Self { open: BTreeMap::new(), peer_parity, peer_newest: None }
    }

    fn count(&self, parity: u64) -> usize {
        self.open.keys().filter(|id| **id % 2 == parity).count()
    }

    /// This side opens; false when it has too many.
    pub(super) fn open_own(&mut self, id: StreamId) -> bool {
        let fits = self.count(1 - self.peer_parity) < STREAMS_MAX;
        if fits {
            self.open.insert(id, STREAM_CREDIT_BYTES);
        }
        fits
    }

    /// The peer opens: `Ok(false)` when it has too many.
    pub(super) fn open_peer(&mut self, id: StreamId) -> Result<bool, &'static str> {
        if id % 2 != self.peer_parity || self.peer_newest.is_some_and(|newest| id <= newest) {
            return Err("a stream id that is not its own or not new");
        }
        self.peer_newest = Some(id);
        let fits = self.count(self.peer_parity) < STREAMS_MAX;
        if fits {
            self.open.insert(id, STREAM_CREDIT_BYTES);
        }
        Ok(fits)
    }

    pub(super) fn is_open(&self, id: StreamId) -> bool {
        self.open.contains_key(&id)
    }

    /// Data came: `Ok(false)` when the stream is closed here already.
    pub(super) fn receive(&mut self, id: StreamId, len: usize) -> Result<bool, &'static str> {
        let Some(credit) = self.open.get_mut(&id) else { return Ok(false) };
        *credit = credit.checked_sub(cost_of(len)).ok_or("stream data beyond its credit")?;
        Ok(true)
    }

    /// The application consumed: whether the peer is to know.
    pub(super) fn grant(&mut self, id: StreamId, bytes: u32) -> bool {
        let Some(credit) = self.open.get_mut(&id) else { return false };
        *credit = credit.saturating_add(bytes).min(STREAM_CREDIT_BYTES);
        true
    }

    /// Whether it was open.
    pub(super) fn close(&mut self, id: StreamId) -> bool {
        self.open.remove(&id).is_some()
    }
}
