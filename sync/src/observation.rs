//! Observations: dated facts from a device. Single writer, the newest clock wins; never a CRDT, never signed.
//!
//! A device keeps them, coalesced by subject, in its outbox until the hub says that they are durable there.

use std::fmt;

use bytes::Bytes;

/// Longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 320;
/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Most observations of one frame.
pub const OBSERVATIONS_MAX: usize = 256;
/// Most bytes of observations in one frame.
pub const OBSERVATIONS_BYTES_MAX: usize = 256 * 1024;

/// When, in the life of a device, an observation was made. Never compared with wall clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Clock {
    /// Life of the device's database; issued by the hub.
    pub incarnation: u64,
    /// Boot of the agent within that life.
    pub boot: u64,
    /// Counter within that boot.
    pub seq: u64,
}

/// A dated fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// `pod/<uid>`, `node`, `event/<uid>`, `pods`.
    pub subject: String,
    /// Orders observations of one subject.
    pub clock: Clock,
    /// When it was seen, by the device's clock. Milliseconds.
    pub time_ms: u64,
    /// JSON; absent when the device confirms the end of the subject.
    pub body: Option<Bytes>,
}

/// Which observations of the outbox are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Transitions (phase, ready, restart, exit): they leave at once.
    UrgentOnly,
    /// Everything that waits.
    All,
}

impl fmt::Display for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.incarnation, self.boot, self.seq)
    }
}

impl Observation {
    /// Whether this observation is within the limits of the protocol.
    pub fn is_within_limits(&self) -> bool {
        !self.subject.is_empty()
            && self.subject.len() <= SUBJECT_BYTES_MAX
            && self.body.as_ref().is_none_or(|body| body.len() <= BODY_BYTES_MAX)
    }
}
