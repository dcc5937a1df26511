//! The dice of a simulation, in the place of the operating system's.

use std::cell::RefCell;

/// Fills a slice with random bytes.
pub type Source = Box<dyn FnMut(&mut [u8])>;

thread_local! {
    static SIMULATED: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Fills `bytes` if a source is in place on this thread.
pub(super) fn fill(bytes: &mut [u8]) -> bool {
    SIMULATED.with_borrow_mut(|source| source.as_mut().map(|source| source(bytes)).is_some())
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
    use super::super::bytes;
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
