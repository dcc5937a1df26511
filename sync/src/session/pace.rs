//! When observations leave: transitions at once within a token bucket, the rest coalesced every 5 to 10 seconds.

/// Transitions per second in the long run.
const TOKEN_INTERVAL_MS: u64 = 100;
/// Transitions that may leave at once.
const TOKENS_MAX: u64 = 20;
/// Shortest time between two coalesced frames; the jitter comes on top.
const ROUTINE_MS: u64 = 5000;
/// Largest jitter.
const ROUTINE_JITTER_MS: u64 = 5000;

/// The pace of one session.
#[derive(Debug)]
pub(super) struct Pace {
    /// The bucket is full at this time; each token in use moves it by one interval.
    full_at_ms: u64,
    routine_at_ms: u64,
    urgent_waits: bool,
    /// The outbox was asked for all it has, had nothing, and has not grown since: no clock need wake this device.
    nothing_waits: bool,
    seed: u64,
}

/// What may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    Nothing,
    Urgent,
    All,
}

impl Pace {
    /// Everything that waits leaves at the start.
    pub(super) fn new(now_ms: u64, seed: u64) -> Self {
        Self { full_at_ms: now_ms, routine_at_ms: now_ms, urgent_waits: false, nothing_waits: false, seed: seed | 1 }
    }

    /// The outbox grew. What is routine, after a time in which nothing was, waits for a moment of its own: the devices of a fleet do not
    /// tell in one moment what came to all of them in one.
    pub(super) fn grew(&mut self, now_ms: u64) {
        if std::mem::take(&mut self.nothing_waits) && self.routine_at_ms <= now_ms {
            self.routine_at_ms = now_ms + 1 + self.jitter();
        }
        self.urgent_waits = true;
    }

    /// Nothing is left in the outbox.
    pub(super) fn is_empty(&mut self) {
        self.nothing_waits = true;
    }

    /// What was on its way has arrived, or not all of it: the outbox is asked again in its time.
    pub(super) fn answered(&mut self) {
        self.nothing_waits = false;
    }

    /// What may leave now; it is counted as having left.
    pub(super) fn leave(&mut self, now_ms: u64) -> Leave {
        if self.nothing_waits {
            return Leave::Nothing;
        }
        if now_ms >= self.routine_at_ms {
            self.routine_at_ms = now_ms + ROUTINE_MS + self.jitter();
            self.urgent_waits = false;
            return Leave::All;
        }
        if self.urgent_waits && self.token_at() <= now_ms {
            self.urgent_waits = false;
            return Leave::Urgent;
        }
        Leave::Nothing
    }

    /// A frame of transitions left: takes its token.
    pub(super) fn took(&mut self, now_ms: u64) {
        self.full_at_ms = self.full_at_ms.max(now_ms) + TOKEN_INTERVAL_MS;
    }

    /// The last frame was full: go on at once.
    pub(super) fn more(&mut self, now_ms: u64) {
        self.routine_at_ms = now_ms;
    }

    /// When [`Pace::leave`] is to be asked again.
    pub(super) fn timeout(&self) -> u64 {
        if self.nothing_waits {
            return u64::MAX;
        }
        if self.urgent_waits { self.routine_at_ms.min(self.token_at()) } else { self.routine_at_ms }
    }

    fn token_at(&self) -> u64 {
        self.full_at_ms.saturating_sub((TOKENS_MAX - 1) * TOKEN_INTERVAL_MS)
    }

    fn jitter(&mut self) -> u64 {
        // xorshift64: spreads sessions, nothing more.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % (ROUTINE_JITTER_MS + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_leave_at_once_within_the_bucket_and_the_rest_rarely() {
        let mut pace = Pace::new(1000, 7);
        assert_eq!(pace.leave(1000), Leave::All);
        let mut left = 0;
        for now in 1001..3001 {
            pace.grew(now);
            if pace.leave(now) == Leave::Urgent {
                pace.took(now);
                left += 1;
            }
        }
        assert_eq!(left, 20 + 19, "a burst of twenty, then ten per second for two seconds");
        let routine = pace.timeout().max(6000);
        assert!((6000..=11_000).contains(&pace.routine_at_ms), "{routine}");
    }

    #[test]
    fn an_empty_outbox_wakes_nobody_until_it_grows() {
        let mut pace = Pace::new(0, 5);
        assert_eq!(pace.leave(0), Leave::All);
        pace.is_empty();
        assert_eq!((pace.timeout(), pace.leave(100_000)), (u64::MAX, Leave::Nothing));
        pace.grew(100_000);
        assert_eq!(pace.leave(100_000), Leave::Urgent, "what is urgent leaves at once");
        let routine = pace.timeout();
        assert!(
            (100_001..=105_001).contains(&routine),
            "the rest within the jitter, not with all other devices: {routine}"
        );
        assert_eq!(pace.leave(routine), Leave::All);
        // Something was in it: it is asked until it is empty.
        assert!(pace.timeout() <= routine + 10_000);
        pace.is_empty();
        pace.answered();
        assert!(pace.timeout() <= routine + 10_000);
    }

    #[test]
    fn nothing_waits_longer_than_ten_seconds() {
        let mut pace = Pace::new(0, 99);
        assert_eq!(pace.leave(0), Leave::All);
        for _ in 0..100 {
            let before = pace.routine_at_ms;
            assert_eq!(pace.leave(before), Leave::All);
            assert!((5000..=10_000).contains(&(pace.routine_at_ms - before)));
        }
    }
}
