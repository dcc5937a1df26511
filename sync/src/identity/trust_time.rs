//! Time for the verification of certificates, never the bare clock.
//!
//! A board without a clock battery boots in 1970. What it knows for certain is a *floor*: the newest time some signature has
//! proven, kept on its disk. The floor is never above the truth unless a signer lied, so nothing may be called expired on the
//! strength of a clock that the floor does not support.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What verification knows about the time. Milliseconds since the Unix epoch.
pub trait TrustTime: fmt::Debug + Send + Sync {
    /// The best estimate: the later of clock and floor. The hub judges devices by it.
    fn now_ms(&self) -> u64;

    /// The newest time proven by a signature. A device judges the hub's certificate by it: a clock that runs ahead must not
    /// lock the device out.
    fn floor_ms(&self) -> u64;
}

/// A clock that never reads below a floor.
pub struct FlooredClock {
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    floor_ms: AtomicU64,
}

impl FlooredClock {
    /// `clock` reads milliseconds since the epoch; `floor_ms` is the persisted floor.
    pub fn new(clock: impl Fn() -> u64 + Send + Sync + 'static, floor_ms: u64) -> Arc<Self> {
        Arc::new(Self { clock: Box::new(clock), floor_ms: AtomicU64::new(floor_ms) })
    }

    /// Raises the floor to a time that a verified signature has proven; a lower one changes nothing. Persist it first.
    pub fn raise(&self, proven_ms: u64) {
        self.floor_ms.fetch_max(proven_ms, Ordering::Relaxed);
    }
}

impl TrustTime for FlooredClock {
    fn now_ms(&self) -> u64 {
        (self.clock)().max(self.floor_ms())
    }

    fn floor_ms(&self) -> u64 {
        self.floor_ms.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for FlooredClock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FlooredClock").field("floor_ms", &self.floor_ms).finish_non_exhaustive()
    }
}
