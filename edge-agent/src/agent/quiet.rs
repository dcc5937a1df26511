//! Whether another pass could say anything new.
//!
//! A pass is a function of what is known, what is observed and what time it is. Most of them, on a device left alone, find all of it
//! as it was: a battery or a slow board pays for each. Owns the comparison; refuses to remember a plan: what is not the same is
//! planned whole. Start reading at [`Agent::is_quiet`].

use std::collections::BTreeMap;

use flotilla_manifests::time::Timestamp;

use super::Agent;
use super::meant::Ground;
use crate::runtime::{Runtime, SandboxStatus};

/// What the newest whole pass was made from, besides what wakes the loop by itself: containers that end, work that is done, probes,
/// writes.
#[derive(Debug)]
pub(crate) struct Quiet {
    ground: Ground,
    sandboxes: BTreeMap<String, SandboxStatus>,
    sync: &'static str,
    /// When it was last looked at.
    at: Timestamp,
}

impl<R: Runtime> Agent<R> {
    /// After a whole pass.
    pub(super) fn settle_on(&mut self, ground: Ground, sandboxes: BTreeMap<String, SandboxStatus>) {
        self.state.quiet = Some(Quiet { ground, sandboxes, sync: self.sync(), at: self.clock.now() });
    }

    /// Nothing has woken the loop for a while: whether a pass would find everything as the last one did.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let now = self.clock.now();
        let due = self.state.wake_at.is_some_and(|at| at <= now) || !self.state.events.untold(now).is_empty();
        let (ground, sync) = (self.ground(), self.sync());
        if due || !self.state.unsaved.is_empty() || !self.still_means(&ground) {
            return false;
        }
        let Ok(sandboxes) = self.runtime.list().await else { return false };
        let Some(quiet) = &mut self.state.quiet else { return false };
        // A clock that was set back: what waits for a time would wait too long.
        let set_back = now < std::mem::replace(&mut quiet.at, now);
        !set_back && quiet.ground == ground && quiet.sync == sync && quiet.sandboxes == sandboxes
    }
}
