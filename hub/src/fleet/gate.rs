//! Who may begin a handshake: so many a second, and few while the hub is behind with those it has.
//!
//! A fleet that comes back offers more handshakes than any hub can do. Taken all the same, they are slow together, and end when the
//! devices give up: work that is done again and again. Refused at once, each costs a packet. A few are taken all the same: what the hub
//! is behind with need not be handshakes, and then nobody would come in until it ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotilla_sync::identity::NodeName;
use flotilla_sync::transport::{AcceptBucket, Gate, RetryAfter};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the tasks' turn is measured.
const PERIOD: Duration = Duration::from_millis(50);
/// A task that waits this long for its turn: the hub is behind.
const LAG_MAX: Duration = Duration::from_millis(200);

/// Handshakes a second while the hub is behind.
const BEHIND_PER_SECOND: u32 = 5;
/// People are told that the hub is behind, and not for each device.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The gate of the fleet's doors.
#[derive(Debug)]
pub(crate) struct FleetGate {
    bucket: AcceptBucket,
    bucket_behind: AcceptBucket,
    /// When people were last told that the hub is behind.
    told: Mutex<Option<Instant>>,
    /// When the measuring task is to have had its turn; nothing while nobody measures.
    due: Mutex<Option<Instant>>,
}

impl FleetGate {
    pub(crate) fn new(handshakes_per_second: u32) -> Self {
        let now = Instant::now();
        Self {
            bucket: AcceptBucket::new(handshakes_per_second, now),
            bucket_behind: AcceptBucket::new(BEHIND_PER_SECOND.min(handshakes_per_second), now),
            told: Mutex::default(),
            due: Mutex::default(),
        }
    }

    /// Measures how long a task waits for its turn, until `shutdown`.
    pub(crate) async fn measure(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        loop {
            let due = Instant::now() + PERIOD;
            self.set_due(Some(due));
            tokio::select! {
                biased;
                _ended = shutdown.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep_until(due) => {}
            }
        }
        self.set_due(None);
    }

    fn set_due(&self, due: Option<Instant>) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    /// How long the tasks have waited for their turn, if that is too long.
    fn behind(&self, now: Instant) -> Option<Duration> {
        let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.map(|due| now.saturating_duration_since(due)).filter(|lag| *lag > LAG_MAX)
    }

    fn takes(&self, now: Instant) -> bool {
        let Some(lag) = self.behind(now) else { return self.bucket.take(now) };
        if self.is_to_be_told(now) {
            tracing::warn!(
                lag_ms = lag.as_millis(),
                "the hub is behind with its work: devices that come now are taken {BEHIND_PER_SECOND} a second; \
                 those that are here are served, the others come again by themselves"
            );
        }
        self.bucket_behind.take(now)
    }

    fn is_to_be_told(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl Gate for FleetGate {
    fn handshake(&self) -> bool {
        self.takes(Instant::now())
    }

    fn admit(&self, _node: &NodeName) -> Result<(), RetryAfter> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn few_are_taken_while_tasks_wait_for_their_turn() {
        let gate = Arc::new(FleetGate::new(500));
        assert!(gate.handshake(), "nobody measures yet");
        let (stop, stopped) = watch::channel(false);
        let measuring = tokio::spawn(Arc::clone(&gate).measure(stopped));
        while gate.due.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        let now = Instant::now();
        assert_eq!(gate.behind(now + LAG_MAX), None, "a turn now and then is late");
        let late = now + PERIOD + LAG_MAX + Duration::from_millis(1);
        assert!(gate.behind(late).is_some(), "none came for so long");
        let taken = (0..100).filter(|_| gate.takes(late)).count();
        assert_eq!(taken, BEHIND_PER_SECOND as usize, "the hub may be behind with something else");
        let taken = (0..100).filter(|_| gate.takes(late + Duration::from_secs(1))).count();
        assert_eq!(taken, BEHIND_PER_SECOND as usize, "and for long");
        assert!(!gate.is_to_be_told(late + Duration::from_secs(1)), "it was told");
        assert!(gate.is_to_be_told(late + TELL_EVERY), "it still is");
        stop.send_replace(true);
        measuring.await.unwrap();
        assert_eq!(gate.behind(now + Duration::from_secs(60)), None, "nobody measures any more");
    }

    #[tokio::test]
    async fn so_many_are_taken_a_second() {
        let gate = FleetGate::new(3);
        assert_eq!([(); 4].map(|()| gate.handshake()), [true, true, true, false]);
    }
}
