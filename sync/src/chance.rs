//! The one door to randomness of hub, agent and everything between them.
//!
//! Owns where random bytes come from: the operating system, always, but for a simulation, which must draw the same bytes again for the
//! same seed. Keys, uids, seeds and waits are all drawn here, so that a simulated fleet is the real one with other dice. Refuses to be
//! an argument of everything: keys are made deep inside libraries' callbacks, and a source that can be replaced on one thread, by one
//! function that no program which is shipped has, is fewer parts than a handle in forty signatures (`docs/decisions/0027`).

#[cfg(any(test, feature = "planted-bugs"))]
mod simulated;

use ring::rand::{SecureRandom as _, SystemRandom};

#[cfg(any(test, feature = "planted-bugs"))]
pub use simulated::{Simulated, Source, simulate};

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoChance;

/// Fills `bytes`.
///
/// # Errors
/// When the operating system has none to give.
pub fn fill(bytes: &mut [u8]) -> Result<(), NoChance> {
    #[cfg(any(test, feature = "planted-bugs"))]
    if simulated::fill(bytes) {
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
