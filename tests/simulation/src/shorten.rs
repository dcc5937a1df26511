//! From a schedule that fails to a short one that fails in the same way: steps are left out by halves, quarters and so on to single ones
//! (Zeller's ddmin), as long as the same oracle still speaks.

use std::time::{Duration, Instant};

use crate::schedule::Step;
use crate::{Setup, run_steps};

/// The shortest schedule found within `limit` of real time, in which `oracle` fails.
#[allow(clippy::disallowed_methods, reason = "how long a person waits for the answer is real time")]
pub fn shorten(setup: &Setup, steps: &[Step], oracle: &str, limit: Duration) -> Vec<Step> {
    let began = Instant::now();
    let setup = Setup { aloud: false, ..setup.clone() };
    let fails = |steps: &[Step]| run_steps(&setup, steps).failure.is_some_and(|failure| failure.oracle == oracle);
    shortened(steps, || began.elapsed() > limit, fails)
}

fn shortened<T: Clone>(steps: &[T], over: impl Fn() -> bool, fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    let mut shortest = steps.to_vec();
    let mut size = shortest.len().div_ceil(2).max(1);
    loop {
        let mut left_out = false;
        let mut start = 0;
        while start < shortest.len() {
            if over() {
                return shortest;
            }
            let end = (start + size).min(shortest.len());
            let without: Vec<T> = shortest[..start].iter().chain(&shortest[end..]).cloned().collect();
            if fails(&without) {
                (shortest, left_out) = (without, true);
            } else {
                start = end;
            }
        }
        if size == 1 && !left_out {
            return shortest;
        }
        size = size.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let steps: Vec<u32> = (0..100).collect();
        let both = |steps: &[u32]| steps.contains(&17) && steps.contains(&83);
        assert_eq!(shortened(&steps, || false, both), [17, 83]);
        assert_eq!(shortened(&steps, || true, both).len(), 100);
        assert!(shortened(&steps, || false, |_| true).is_empty());
    }
}
