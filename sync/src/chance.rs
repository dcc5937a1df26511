//! The one door to randomness of hub, agent and everything between them.
//!
//! Owns where random bytes come from: the operating system, always, but for a simulation, which must draw the same bytes again for the
//! same seed. Keys, uids, seeds and waits are all drawn here, so that a simulated fleet is the real one with other dice. Refuses to be
//! an argument of everything: keys are made deep inside libraries' callbacks, and a source that can be replaced on one thread, by one
//! function that only a simulation calls, is fewer parts than a handle in forty signatures (`docs/decisions/0027`).

use std::cell::RefCell;

use ring::rand::{SecureRandom as _, SystemRandom};

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoChance;

/// Fills a slice with random bytes.
pub type Source = Box<dyn FnMut(&mut [u8])>;

thread_local! {
    static SIMULATED: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Fills `bytes`.
///
/// # Errors
/// When the operating system has none to give.
pub fn fill(bytes: &mut [u8]) -> Result<(), NoChance> {
    let simulated = SIMULATED.with_borrow_mut(|source| source.as_mut().map(|source| source(bytes)).is_some());
    if simulated {
        return Ok(());
    }
    SystemRandom::new().fill(bytes).map_err(|_unspecified| NoChance)
}

/// `N` random bytes.
///
/// # Errors
/// When the operating system has none to give.
pub fn bytes<const N: usize>() -> Result<[u8; N], NoChance> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Draws from `source` on this thread until the answer is dropped. For simulations alone: whoever knows the source knows every key.
#[must_use = "the source is taken away when this is dropped"]
pub fn simulate(source: Source) -> Simulated {
    SIMULATED.set(Some(source));
    Simulated(())
}

/// Keeps a simulated source in place.
#[derive(Debug)]
pub struct Simulated(());

impl Drop for Simulated {
    fn drop(&mut self) {
        SIMULATED.set(None);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_source_holds_on_its_thread_until_it_is_dropped() {
        let simulated = simulate(Box::new(|bytes| bytes.fill(7)));
        assert_eq!(bytes::<4>().unwrap(), [7; 4]);
        let elsewhere = std::thread::spawn(|| bytes::<16>().unwrap()).join().unwrap();
        assert_ne!(elsewhere, [7; 16]);
        drop(simulated);
        assert_ne!(bytes::<16>().unwrap(), [7; 16]);
    }
}
