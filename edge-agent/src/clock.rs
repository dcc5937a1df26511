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
    /// The later of the system's clock and [`proven`](Self::proven): for dates that people read. A clock that runs ahead is
    /// believed here; what must not come early is judged by `proven`.
    #[expect(clippy::disallowed_methods, reason = "this is the one place of the agent that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let system = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Timestamp(system).max(self.proven())
    }

    /// The newest time a signature has proven plus what has passed since then here: never ahead of the truth, whatever the
    /// system's clock says; behind it after a restart, until the hub is heard again.
    pub fn proven(&self) -> Timestamp {
        // Read in the reverse of the order they are written in: at worst a new date with an old floor, never the other way round.
        let floor = self.floor.load(Ordering::Acquire);
        let passed = monotonic_ms().saturating_sub(self.raised_at.load(Ordering::Relaxed));
        Timestamp(floor.saturating_add(passed))
    }

    /// Says that a signature has proven `time` to be past; one that is known to be past changes nothing.
    pub fn raise(&self, time: Timestamp) {
        if time > self.proven() {
            self.raised_at.store(monotonic_ms(), Ordering::Relaxed);
            self.floor.store(time.0, Ordering::Release);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_ahead_proves_nothing() {
        let clock = Clock::default();
        clock.raise(Timestamp(1_000_000));
        assert!(clock.now() > Timestamp(1_000_000_000_000), "this machine's clock is believed for dates");
        assert!((1_000_000..1_060_000).contains(&clock.proven().0));
        clock.raise(Timestamp(2_000_000));
        clock.raise(Timestamp(1_500_000));
        assert!((2_000_000..2_060_000).contains(&clock.proven().0));
    }
}
