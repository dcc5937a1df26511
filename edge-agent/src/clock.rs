//! The agent's one reading of the wall clock, never behind what a signed hub greeting or this device's own disk has shown.
//!
//! A board without a clock battery boots in 1970; the floor keeps its certificates, expiries and statuses from believing it.

use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_manifests::time::Timestamp;

/// Wall clock with a floor. Share it behind an `Arc`.
#[derive(Debug, Default)]
pub struct Clock {
    /// Newest time known to be past, in milliseconds; only rises.
    floor: AtomicU64,
    /// Monotonic time at which the floor was last raised, in milliseconds since start.
    raised_at: AtomicU64,
}

impl Clock {
    /// The later of the system's clock and the floor plus what has passed since it was raised.
    #[expect(clippy::disallowed_methods, reason = "this is the one place of the agent that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let system = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let passed = monotonic_ms().saturating_sub(self.raised_at.load(Ordering::Relaxed));
        Timestamp(system.max(self.floor.load(Ordering::Relaxed).saturating_add(passed)))
    }

    /// Says that `time` is past; an earlier one changes nothing.
    pub fn raise(&self, time: Timestamp) {
        if time > self.now() {
            self.floor.store(time.0, Ordering::Relaxed);
            self.raised_at.store(monotonic_ms(), Ordering::Relaxed);
        }
    }
}

/// Milliseconds since the first call in this process; unmoved by clock steps.
#[expect(clippy::disallowed_methods, reason = "this is the one place of the agent that reads the monotonic clock")]
pub fn monotonic_ms() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
