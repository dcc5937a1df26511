//! The agent's one reading of the wall clock, never behind what a signed hub greeting or this device's own disk has shown.
//!
//! A board without a clock battery boots in 1970; the floor keeps its certificates, expiries and statuses from believing it.

use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_manifests::time::Timestamp;

/// Wall clock with a floor. Share it behind an `Arc`.
#[derive(Debug)]
pub struct Clock {
    hands: Hands,
    /// Newest time known to be past, in milliseconds; only rises.
    floor: AtomicU64,
    /// Monotonic time at which the floor was last raised, in milliseconds since start.
    raised_at: AtomicU64,
}

/// Where a clock reads: this machine's, or that of a simulated device.
pub struct Hands {
    /// Milliseconds since 1970, as the device believes: it may step, drift, or begin in 1970.
    pub wall_ms: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Milliseconds since some moment of this boot, unmoved by steps.
    pub monotonic_ms: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Default for Clock {
    /// This machine's.
    fn default() -> Self {
        Self::over(Hands { wall_ms: Box::new(system_ms), monotonic_ms: Box::new(monotonic_ms) })
    }
}

impl Clock {
    pub fn over(hands: Hands) -> Self {
        Self { hands, floor: AtomicU64::new(0), raised_at: AtomicU64::new(0) }
    }

    /// The later of the system's clock and [`proven`](Self::proven): for dates that people read. A clock that runs ahead is
    /// believed here; what must not come early is judged by `proven`.
    pub fn now(&self) -> Timestamp {
        Timestamp((self.hands.wall_ms)()).max(self.proven())
    }

    /// Milliseconds of this boot, unmoved by clock steps: for waits.
    pub fn monotonic_ms(&self) -> u64 {
        (self.hands.monotonic_ms)()
    }

    /// The newest time a signature has proven plus what has passed since then here: never ahead of the truth, whatever the
    /// system's clock says; behind it after a restart, until the hub is heard again.
    pub fn proven(&self) -> Timestamp {
        // Read in the reverse of the order they are written in: at worst a new date with an old floor, never the other way round.
        let floor = self.floor.load(Ordering::Acquire);
        let passed = self.monotonic_ms().saturating_sub(self.raised_at.load(Ordering::Relaxed));
        Timestamp(floor.saturating_add(passed))
    }

    /// Says that a signature has proven `time` to be past; one that is known to be past changes nothing.
    pub fn raise(&self, time: Timestamp) {
        if time > self.proven() {
            self.raised_at.store(self.monotonic_ms(), Ordering::Relaxed);
            self.floor.store(time.0, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hands").finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place of the agent that reads the wall clock")]
fn system_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
