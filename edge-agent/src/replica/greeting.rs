//! The hub's newest greeting: kept in memory at once, on the flash as rarely as is safe.
//!
//! A link that flaps greets many times an hour, and each greeting is a commit. What a device owes is to show every hub the newest
//! life and commit whose consequences it holds. So a greeting becomes durable at once when it is the first of a hub's life, or of
//! the last hour, and else with the next records of the hub, in their commit: what came of a commit and the proof that the
//! hub had made it lie on the disk together. A power cut loses at most a greeting that nothing followed from, and an hour of the
//! floor of trusted time.

use flotilla_manifests::time::Timestamp;
use flotilla_sync::replica::ReplicaError;
use flotilla_sync::session::Greeting;

use super::{DeviceReplica, State, failed};

/// A greeting that is newer than the stored one by this is stored at once. Milliseconds.
const STORED_EVERY_MS: u64 = 60 * 60_000;

/// The greeting of which life and time is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    incarnation: u64,
    commit: u64,
    time_ms: u64,
}

impl Stored {
    pub(super) fn of(greeting: &Greeting) -> Self {
        Self { incarnation: greeting.incarnation, commit: greeting.commit, time_ms: greeting.time_ms }
    }
}

/// Whether a greeting is worth a commit of its own.
fn is_due(stored: Option<Stored>, greeting: &Greeting) -> bool {
    stored.is_none_or(|stored| {
        stored.incarnation != greeting.incarnation || greeting.time_ms >= stored.time_ms.saturating_add(STORED_EVERY_MS)
    })
}

impl State {
    /// The greeting to be stored with the next commit, if it is not on the disk yet.
    pub(super) fn unsaved_greeting(&self) -> Option<(&'static str, Vec<u8>)> {
        let greeting = self.greeting.as_ref().filter(|greeting| self.greeting_stored != Some(Stored::of(greeting)))?;
        Some(("greeting", greeting.encoded().to_vec()))
    }

    /// That commit is durable. A greeting that came meanwhile waits for the next.
    pub(super) fn greeting_saved(&mut self, row: Option<&(&'static str, Vec<u8>)>) {
        if let (Some((_, bytes)), Some(greeting)) = (row, &self.greeting)
            && greeting.encoded()[..] == bytes[..]
        {
            self.greeting_stored = Some(Stored::of(greeting));
        }
    }
}

impl DeviceReplica {
    /// Takes a verified greeting.
    pub(super) async fn take_greeting(&self, greeting: Greeting) -> Result<(), ReplicaError> {
        self.outrank_copies(&greeting).await?;
        let newest = |one: &Greeting| (one.incarnation, one.commit, one.time_ms);
        if self.state().greeting.as_ref().is_some_and(|known| newest(known) >= newest(&greeting)) {
            return Ok(());
        }
        let due = is_due(self.state().greeting_stored, &greeting);
        if due {
            let bytes = greeting.encoded().to_vec();
            self.store.set_meta("greeting", bytes).await.map_err(|error| failed("store the hub's greeting", error))?;
        }
        self.clock.raise(Timestamp(greeting.time_ms));
        self.trust.raise(greeting.time_ms);
        let before = {
            let mut state = self.state();
            if due {
                state.greeting_stored = Some(Stored::of(&greeting));
            }
            state.greeting.replace(greeting).map(|known| known.incarnation)
        };
        if before.is_some_and(|before| before != self.hub_life()) {
            // The loop tells such a hub everything anew.
            self.bump(&self.changed);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_sync::identity::Installation;
    use flotilla_sync::identity::writer::WriterIdentity;

    use super::*;

    #[test]
    fn a_greeting_is_stored_by_itself_once_an_hour_and_in_each_life() {
        let installation = Installation::create(0).unwrap();
        let greeting = |incarnation, commit, time_ms| {
            let hub = WriterIdentity::for_hub([7; 32], incarnation, installation.root()).unwrap();
            Greeting::sign(&hub, commit, time_ms)
        };
        let first = greeting(1, 5, 1_000);
        assert!(is_due(None, &first));
        let stored = Some(Stored::of(&first));
        assert!(!is_due(stored, &greeting(1, 900, 2_000)), "it goes with the records of that commit");
        assert!(is_due(stored, &greeting(1, 6, 1_000 + STORED_EVERY_MS)));
        assert!(is_due(stored, &greeting(2, 1, 2_000)), "a restored hub");
    }
}
