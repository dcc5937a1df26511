//! Who may begin a handshake: so many a second, and nobody while the hub is behind with those it has.
//!
//! A fleet that comes back offers more handshakes than any hub can do. Taken all the same, they are slow together, and end when the
//! devices give up: work that is done again and again. Refused at once, each costs a packet.

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

/// The gate of the fleet's doors.
#[derive(Debug)]
pub(crate) struct FleetGate {
    bucket: AcceptBucket,
    /// When the measuring task is to have had its turn; nothing while nobody measures.
    due: Mutex<Option<Instant>>,
}

impl FleetGate {
    pub(crate) fn new(handshakes_per_second: u32) -> Self {
        Self { bucket: AcceptBucket::new(handshakes_per_second, Instant::now()), due: Mutex::default() }
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

    fn is_behind(&self, now: Instant) -> bool {
        let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.is_some_and(|due| now.saturating_duration_since(due) > LAG_MAX)
    }
}

impl Gate for FleetGate {
    fn handshake(&self) -> bool {
        let now = Instant::now();
        !self.is_behind(now) && self.bucket.take(now)
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
    async fn nobody_is_taken_while_tasks_wait_for_their_turn() {
        let gate = Arc::new(FleetGate::new(500));
        assert!(gate.handshake(), "nobody measures yet");
        let (stop, stopped) = watch::channel(false);
        let measuring = tokio::spawn(Arc::clone(&gate).measure(stopped));
        while gate.due.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        let now = Instant::now();
        assert!(!gate.is_behind(now + LAG_MAX), "a turn now and then is late");
        assert!(gate.is_behind(now + PERIOD + LAG_MAX + Duration::from_millis(1)), "none came for so long");
        stop.send_replace(true);
        measuring.await.unwrap();
        assert!(!gate.is_behind(now + Duration::from_secs(60)), "nobody measures any more");
    }

    #[tokio::test]
    async fn so_many_are_taken_a_second() {
        let gate = FleetGate::new(3);
        assert_eq!([(); 4].map(|()| gate.handshake()), [true, true, true, false]);
    }
}
