//! After the database was damaged, until everything was read from the hub anew: what runs goes on running.
//!
//! Documents that are missing may be lost, not deleted. A workload that is remembered runs on as it is remembered; a pod of which
//! nothing explains why it runs is left as it is, and so is one that is only wanted otherwise because something is missing.

use std::collections::BTreeSet;

use super::Agent;
use crate::effective::{Effective, Known};
use crate::reconcile::{Action, DEFINITION_CHANGED, Observed, Plan};
use crate::runtime::Runtime;
use crate::store::Damage;
use crate::uplink::Link;

impl<R: Runtime> Agent<R> {
    /// Counts what is remembered and missing as unreadable, not as deleted.
    pub(super) fn expect_remembered(&self, known: &mut Known) {
        if !self.replica.is_salvaged() {
            return;
        }
        let remembered = self.memory.workloads.keys().chain(self.memory.attempts.keys()).chain([&self.node.uid]);
        let missing =
            remembered.filter(|uid| !known.manifests.contains_key(*uid) && !known.placements.contains_key(*uid));
        let missing: Vec<String> = missing.cloned().collect();
        known.unreadable.extend(missing);
    }

    /// Pods that run or are remembered and that nothing wants; and those that would be restarted because they are wanted otherwise,
    /// though nobody has changed a wish since this start: an override or a ConfigMap may be lost.
    pub(super) fn unexplained(&mut self, next: &Effective, observed: &Observed, plan: &Plan) -> BTreeSet<String> {
        if !self.replica.is_salvaged() {
            self.state.salvaged = None;
            return BTreeSet::new();
        }
        if *self.inbox.link.borrow() == Link::Up {
            // What arrives now may be half of it.
            self.state.salvaged = Some(next.pods.clone());
        }
        let first = self.state.salvaged.get_or_insert_with(|| next.pods.clone());
        let same_sources = (&first.config_maps, &first.secrets) == (&next.pods.config_maps, &next.pods.secrets);
        let as_at_first = |uid: &String| same_sources && first.pods.get(uid) == next.pods.pods.get(uid);
        let replaces =
            |action: &Action| matches!(action, Action::StopContainer { why, .. } if why.ends_with(DEFINITION_CHANGED));
        let replaced = plan.actions.iter().filter(|(uid, actions)| as_at_first(uid) && actions.iter().any(replaces));
        let mut found: BTreeSet<String> = replaced.map(|(uid, _)| uid.clone()).collect();
        let histories = self.shared.history();
        let known = observed.sandboxes.keys().chain(histories.keys());
        found.extend(known.filter(|uid| !next.pods.pods.contains_key(*uid)).cloned());
        found
    }

    /// What is noted as damaged.
    pub(super) fn damage(&self) -> Damage {
        Damage::read(&self.folder)
    }
}
