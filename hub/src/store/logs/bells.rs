//! Who is told that a log has grown: one device at once, a fleet at the pace at which it can answer.
//!
//! A change of a large fleet's channel that goes to all in one moment comes back as twenty thousand acknowledgements in the next: they
//! fall out of full buffers, and what falls is sent again. So a fleet is told in turns. Whoever is told reads all there is by then, so that
//! one turn over the fleet is enough for whatever was written before each device's own. Owns the turns; refuses to know what grew.
//! Start at [`Bells::ring_fleet`] and [`Bells::walk`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Devices that are told at one time, and the time between two of them: five thousand a second.
const AT_ONCE: usize = 250;
const PAUSE: Duration = Duration::from_millis(50);

/// One bell for each device that has been in contact since the start.
#[derive(Debug)]
pub(crate) struct Bells {
    bells: RwLock<BTreeMap<String, watch::Sender<u64>>>,
    /// How often a fleet's log grew that is told in turns.
    rounds: watch::Sender<u64>,
}

/// How far a turn has come.
#[derive(Debug, Default)]
struct Turn {
    /// Who was told last.
    last: Option<String>,
    /// Devices still to be told.
    left: usize,
}

impl Default for Bells {
    fn default() -> Self {
        Self { bells: RwLock::default(), rounds: watch::Sender::new(0) }
    }
}

impl Bells {
    pub(super) fn of(&self, node: &str) -> watch::Receiver<u64> {
        let mut bells = self.bells.write().unwrap_or_else(PoisonError::into_inner);
        bells.entry(node.to_owned()).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    /// One device is told.
    pub(super) fn ring(&self, node: &str) {
        if let Some(bell) = self.bells.read().unwrap_or_else(PoisonError::into_inner).get(node) {
            ring(bell);
        }
    }

    /// All are told: a small fleet at once, which is answered, a large one by whoever [walks](Self::walk).
    pub(crate) fn ring_fleet(&self) -> bool {
        let bells = self.bells.read().unwrap_or_else(PoisonError::into_inner);
        if bells.len() <= AT_ONCE {
            for bell in bells.values() {
                ring(bell);
            }
            return true;
        }
        drop(bells);
        self.rounds.send_modify(|rounds| *rounds = rounds.wrapping_add(1));
        false
    }

    /// Tells large fleets in turns, until `shutdown`.
    pub(crate) async fn walk(&self, mut shutdown: watch::Receiver<bool>) {
        let mut rounds = self.rounds.subscribe();
        // What was written before anybody walked is told too.
        let mut turn = Turn { last: None, left: self.len() };
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ended = shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep_until(next), if turn.left > 0 => {
                    self.step(&mut turn);
                    next = Instant::now() + PAUSE;
                }
                // Whoever was told in this turn does not know of what came since: from here on it is everybody's turn again.
                changed = rounds.changed() => match changed {
                    Ok(()) => turn.left = self.len(),
                    Err(_) => return,
                },
            }
        }
    }

    fn len(&self) -> usize {
        self.bells.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The next devices in the circle are told.
    fn step(&self, turn: &mut Turn) {
        let bells = self.bells.read().unwrap_or_else(PoisonError::into_inner);
        let after = turn.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut told, mut passed, mut last) = (0, 0, None);
        for (node, bell) in bells.range::<str, _>((after, Bound::Unbounded)).chain(&*bells).take(turn.left) {
            (passed, last) = (passed + 1, Some(node));
            told += usize::from(ring(bell));
            if told == AT_ONCE {
                break;
            }
        }
        turn.left -= passed;
        turn.last = last.cloned().or(turn.last.take());
    }
}

/// Answers whether anybody hears it.
fn ring(bell: &watch::Sender<u64>) -> bool {
    // Those of devices that are away hang where they were.
    let heard = bell.receiver_count() > 0;
    if heard {
        bell.send_modify(|count| *count = count.wrapping_add(1));
    }
    heard
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn bells(count: usize) -> (Arc<Bells>, Vec<watch::Receiver<u64>>) {
        let bells = Arc::new(Bells::default());
        let heard = (0..count).map(|number| bells.of(&format!("n{number:04}"))).collect();
        (bells, heard)
    }

    /// Devices that have been told since the last time.
    fn told(heard: &mut [watch::Receiver<u64>]) -> Vec<usize> {
        let told = heard.iter_mut().enumerate().filter(|(_, bell)| bell.has_changed().unwrap());
        told.map(|(number, bell)| {
            bell.mark_unchanged();
            number
        })
        .collect()
    }

    /// Steps the paused clock, which goes on once every task waits: nothing real is waited for. What is told when is the subject here.
    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[test]
    fn a_small_fleet_is_told_at_once_and_one_device_always() {
        let (bells, mut heard) = bells(AT_ONCE);
        assert!(bells.ring_fleet());
        assert_eq!(told(&mut heard).len(), AT_ONCE);
        let mut one_more = bells.of("n9999");
        assert!(!bells.ring_fleet());
        assert_eq!(told(&mut heard).len(), 0, "a large one by whoever walks");
        bells.ring("n9999");
        assert!(one_more.has_changed().unwrap());
        one_more.mark_unchanged();
        bells.ring("nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_fleet_is_told_in_turns_and_everybody_of_what_comes_meanwhile() {
        let (bells, mut heard) = bells(2 * AT_ONCE + 10);
        let (stop, stopping) = watch::channel(false);
        let walking = tokio::spawn({
            let bells = Arc::clone(&bells);
            async move { bells.walk(stopping).await }
        });
        let half = PAUSE / 2;
        pass(half).await;
        assert_eq!(told(&mut heard), (0..AT_ONCE).collect::<Vec<_>>(), "from the start on");
        pass(4 * PAUSE).await;
        assert_eq!(told(&mut heard).len(), AT_ONCE + 10, "the rest");

        bells.ring_fleet();
        pass(half).await;
        let first = told(&mut heard);
        assert_eq!(first.len(), AT_ONCE);
        bells.ring_fleet();
        pass(4 * PAUSE).await;
        assert_eq!(told(&mut heard), (0..heard.len()).collect::<Vec<_>>(), "those that were told already too");
        pass(100 * PAUSE).await;
        assert_eq!(told(&mut heard).len(), 0, "and nobody without need");

        // Those that are away take nobody's place.
        let mut present = heard.split_off(AT_ONCE + 5);
        drop(heard);
        bells.ring_fleet();
        pass(half).await;
        let at_once = told(&mut present).len();
        pass(2 * PAUSE).await;
        assert_eq!((at_once, told(&mut present).len()), (AT_ONCE, 5));
        stop.send_replace(true);
        walking.await.unwrap();
    }
}
