//! Whether what the hub has last heard under this device's name was said here.
//!
//! Two boards with copies of one card are one device to the hub, and the newest observation counts, whoever made it. What the other has told
//! stays there when it has gone, and this one would not tell it again: it has been acknowledged. So in each session the hub names the newest
//! observation that it has, and one that is not from here means: tell everything anew. Start reading at [`Heard::is_foreign`].

use std::collections::BTreeSet;

use flotilla_sync::observation::Clock as ObservationClock;

use super::DeviceReplica;

/// Sessions whose observations are known as this device's own. What the hub has of still earlier ones lies behind what it has of these.
const BOOTS_MAX: usize = 16;

/// What the hub has heard from this life of the agent.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// By the boot of its observations' clocks, each session in which the hub has named what it had before: whatever it has of them was
    /// said here, and nothing of another board is hidden behind it.
    boots: BTreeSet<u64>,
    /// Something was acknowledged, and would not be told again.
    acknowledged: bool,
}

impl Heard {
    /// The hub has made observations durable.
    pub(super) fn acknowledged(&mut self) {
        self.acknowledged = true;
    }

    /// Whether the hub's newest observation, named in the session of `boot`, means that what was acknowledged here has to be told again.
    fn is_foreign(&mut self, newest: ObservationClock, boot: u64) -> bool {
        let foreign = self.acknowledged && !self.boots.contains(&newest.boot);
        self.boots.insert(boot);
        // That of the newest stays, however many sessions have told nothing since: it is what the hub names until one does.
        let oldest_but_it = |boots: &BTreeSet<u64>| boots.iter().copied().find(|known| *known != newest.boot);
        while self.boots.len() > BOOTS_MAX
            && let Some(oldest) = oldest_but_it(&self.boots)
        {
            self.boots.remove(&oldest);
        }
        foreign
    }
}

impl DeviceReplica {
    /// The hub says which observation of this device is the newest that it has.
    pub(super) fn hub_has_heard(&self, newest: ObservationClock) {
        let foreign = {
            let mut state = self.state();
            let boot = state.boot;
            state.heard.is_foreign(newest, boot)
        };
        if foreign {
            tracing::warn!(
                "the hub has heard another board under this device's name, or this one without an answer; all is told anew"
            );
            self.was_replaced();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(boot: u64, seq: u64) -> ObservationClock {
        ObservationClock { incarnation: 1, boot, seq }
    }

    #[test]
    fn what_this_life_has_not_told_is_of_another_board() {
        let mut heard = Heard::default();
        assert!(!heard.is_foreign(clock(7, 90), 100), "of an earlier life: this one tells everything at first");
        heard.acknowledged();
        assert!(!heard.is_foreign(clock(100, 4), 200), "told in the session before");
        assert!(!heard.is_foreign(clock(100, 9), 300), "nothing was told in the last one");
        assert!(heard.is_foreign(clock(250, 3), 400), "another board was greeted in between");
        assert!(!heard.is_foreign(clock(400, 12), 500), "all was told anew");
    }

    #[test]
    fn a_session_in_which_the_hub_named_nothing_may_hide_another_board() {
        let mut heard = Heard::default();
        assert!(!heard.is_foreign(ObservationClock::default(), 100));
        heard.acknowledged();
        // In the session of 200 something was told, and what the hub had before was lost on its way here.
        assert!(heard.is_foreign(clock(200, 5), 300));
        assert!(!heard.is_foreign(clock(300, 8), 400));
    }

    #[test]
    fn a_line_that_flaps_while_there_is_nothing_to_tell_is_no_other_board() {
        let mut heard = Heard::default();
        assert!(!heard.is_foreign(ObservationClock::default(), 100));
        heard.acknowledged();
        for session in 1..=10 * BOOTS_MAX as u64 {
            assert!(!heard.is_foreign(clock(100, 9), 100 + session), "{session} sessions later");
            assert!(heard.boots.len() <= BOOTS_MAX);
        }
        assert!(!heard.is_foreign(clock(100 + 10 * BOOTS_MAX as u64, 1), 900), "told at last");
        assert!(heard.is_foreign(clock(850, 1), 1000), "another board");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut heard = Heard::default();
        heard.acknowledged();
        for boot in 1..100 {
            heard.is_foreign(clock(boot - 1, 1), boot);
        }
        assert_eq!(heard.boots.len(), BOOTS_MAX);
    }
}
