//! One end of a numbered byte stream: order, duplicates, gaps, credit and liveness. Pure: time is an argument.
//!
//! A broker may drop, delay and repeat messages, but keeps the order of one publisher on one topic. Bytes are numbered: what was seen
//! before is dropped, a gap ends the stream. Nobody sends more than the other side has room for, in bytes and in messages, so that
//! no queue of a broker overflows on account of one device. Loss at the very end shows itself by a probe.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{Body, CloseReason, DATA_BYTES_MAX};

/// Bytes that may be sent beyond what the peer has consumed.
pub(super) const WINDOW_BYTES: u64 = 64 * 1024;
/// The same in messages.
pub(super) const WINDOW_FRAMES: usize = 16;
/// What a stranger may send before its handshake is over.
pub(super) const STRANGER_BYTES: u64 = 16 * 1024;
/// Consumption is acknowledged after so many bytes or messages, at the latest.
const ACK_BYTES: u64 = WINDOW_BYTES / 4;
const ACK_FRAMES: usize = WINDOW_FRAMES / 4;
/// What was sent and not acknowledged is asked about after this time; the wait doubles up to [`PROBE_MS_MAX`].
const PROBE_MS: u64 = 5_000;
const PROBE_MS_MAX: u64 = 60_000;
/// A probe must be answered within this time.
const ANSWER_MS: u64 = 15_000;

/// Which end this is: they take turns in asking whether the other still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Device,
    Hub,
}

/// Why a stream has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("{missing} bytes were lost between {expected} and {found}")]
    Gap { expected: u64, found: u64, missing: u64 },
    #[error("the peer sent more than it was given room for")]
    Overrun,
    #[error("the peer sent what contradicts itself")]
    Contradiction,
    #[error("the peer did not answer for {ANSWER_MS} ms")]
    Silent,
    #[error("the peer closed the stream: {0:?}")]
    Closed(CloseReason),
}

/// One end of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    role: Role,
    sent: u64,
    acknowledged: u64,
    /// Ends of the messages in flight.
    in_flight: VecDeque<u64>,
    received: u64,
    consumed: u64,
    consumption_told: u64,
    frames_untold: usize,
    /// Messages that the application has not yet taken whole.
    frames_waiting: usize,
    room_bytes: u64,
    answer_due: bool,
    heard_ms: u64,
    unacknowledged_since_ms: u64,
    probe_wait_ms: u64,
    probed_ms: Option<u64>,
}

impl Stream {
    pub(super) fn new(role: Role, now_ms: u64) -> Self {
        Self {
            role,
            sent: 0,
            acknowledged: 0,
            in_flight: VecDeque::new(),
            received: 0,
            consumed: 0,
            consumption_told: 0,
            frames_untold: 0,
            frames_waiting: 0,
            room_bytes: if role == Role::Hub { STRANGER_BYTES } else { WINDOW_BYTES },
            answer_due: false,
            heard_ms: now_ms,
            unacknowledged_since_ms: now_ms,
            probe_wait_ms: PROBE_MS,
            probed_ms: None,
        }
    }

    /// The peer has proven itself: it gets the whole window.
    pub(super) fn trust(&mut self) {
        self.room_bytes = WINDOW_BYTES;
    }

    /// How many bytes may be sent now in one message.
    pub(super) fn credit(&self) -> usize {
        if self.in_flight.len() >= WINDOW_FRAMES {
            return 0;
        }
        let bytes = WINDOW_BYTES.saturating_sub(self.sent - self.acknowledged);
        usize::try_from(bytes).unwrap_or(usize::MAX).min(DATA_BYTES_MAX)
    }

    /// Numbers bytes for sending; they must fit [`Self::credit`].
    pub(super) fn send(&mut self, data: Bytes, now_ms: u64) -> Body {
        if self.sent == self.acknowledged {
            self.unacknowledged_since_ms = now_ms;
            self.probe_wait_ms = PROBE_MS;
        }
        let offset = self.sent;
        self.sent += data.len() as u64;
        self.in_flight.push_back(self.sent);
        self.told();
        Body::Data { offset, consumed: self.consumed, data }
    }

    /// The application has taken `bytes` bytes, and with them the last of `frames` messages.
    pub(super) fn consume(&mut self, bytes: u64, frames: usize) {
        self.consumed += bytes;
        self.frames_untold += frames;
        self.frames_waiting = self.frames_waiting.saturating_sub(frames);
    }

    /// An acknowledgement or probe that is due now.
    pub(super) fn poll(&mut self, now_ms: u64) -> Result<Option<Body>, Broken> {
        if self.probed_ms.is_some_and(|at_ms| now_ms >= at_ms + ANSWER_MS) {
            return Err(Broken::Silent);
        }
        let untold = self.consumed - self.consumption_told;
        if self.answer_due || untold >= ACK_BYTES || (untold > 0 && self.frames_untold >= ACK_FRAMES) {
            self.told();
            return Ok(Some(Body::Ack { consumed: self.consumed }));
        }
        if self.probed_ms.is_none() && now_ms >= self.probe_at_ms() {
            self.probed_ms = Some(now_ms);
            self.unacknowledged_since_ms = now_ms;
            self.probe_wait_ms = (self.probe_wait_ms * 2).min(PROBE_MS_MAX);
            return Ok(Some(Body::Probe { sent: self.sent }));
        }
        Ok(None)
    }

    /// When [`Self::poll`] has something to do at the latest.
    pub(super) fn timeout_ms(&self) -> u64 {
        self.probed_ms.map_or_else(|| self.probe_at_ms(), |at_ms| at_ms + ANSWER_MS)
    }

    fn probe_at_ms(&self) -> u64 {
        // An idle device speaks up; the hub only when it has waited in vain for that.
        let idle_ms = match self.role {
            Role::Device => 120_000,
            Role::Hub => 150_000,
        };
        let idle_at_ms = self.heard_ms + idle_ms;
        if self.sent > self.acknowledged {
            idle_at_ms.min(self.unacknowledged_since_ms + self.probe_wait_ms)
        } else {
            idle_at_ms
        }
    }

    /// Takes a message of the peer; bytes that are new come back.
    pub(super) fn handle(&mut self, body: Body, now_ms: u64) -> Result<Option<Bytes>, Broken> {
        // Whatever the peer says shows that it lives; what it misses of a probe it says by closing.
        self.heard_ms = now_ms;
        self.probed_ms = None;
        match body {
            Body::Open => {
                // Asked again because the answer is late.
                self.answer_due |= self.received == 0 && self.role == Role::Hub;
                Ok(None)
            }
            Body::Data { offset, consumed, data } => {
                self.acknowledge(consumed, now_ms)?;
                self.take(offset, data)
            }
            Body::Ack { consumed } => {
                self.acknowledge(consumed, now_ms)?;
                Ok(None)
            }
            Body::Probe { sent } if sent > self.received => Err(self.gap(sent)),
            Body::Probe { .. } => {
                self.answer_due = true;
                Ok(None)
            }
            Body::Close { reason } => Err(Broken::Closed(reason)),
        }
    }

    fn take(&mut self, offset: u64, data: Bytes) -> Result<Option<Bytes>, Broken> {
        let end = offset.checked_add(data.len() as u64).ok_or(Broken::Contradiction)?;
        if end <= self.received {
            return Ok(None);
        }
        if offset > self.received {
            return Err(self.gap(offset));
        }
        if offset < self.received {
            return Err(Broken::Contradiction);
        }
        // A flood of tiny messages costs more than its bytes: their number is bounded too.
        if end - self.consumed > self.room_bytes || self.frames_waiting >= WINDOW_FRAMES {
            return Err(Broken::Overrun);
        }
        self.received = end;
        self.frames_waiting += 1;
        Ok(Some(data))
    }

    fn gap(&self, found: u64) -> Broken {
        Broken::Gap { expected: self.received, found, missing: found - self.received }
    }

    fn acknowledge(&mut self, consumed: u64, now_ms: u64) -> Result<(), Broken> {
        if consumed > self.sent {
            return Err(Broken::Contradiction);
        }
        if consumed > self.acknowledged {
            self.acknowledged = consumed;
            self.unacknowledged_since_ms = now_ms;
            self.probe_wait_ms = PROBE_MS;
            while self.in_flight.front().is_some_and(|end| *end <= consumed) {
                self.in_flight.pop_front();
            }
        }
        Ok(())
    }

    fn told(&mut self) {
        self.consumption_told = self.consumed;
        self.frames_untold = 0;
        self.answer_due = false;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
