//! After the database was damaged, until everything was read from the hub anew: what runs goes on running.
//!
//! Documents that are missing may be lost, not deleted. A workload that is remembered runs on as it is remembered; a pod of which
//! nothing explains why it runs is left as it is.

use std::collections::BTreeSet;

use super::Agent;
use crate::effective::{Effective, Known};
use crate::reconcile::Observed;
use crate::store::Damage;

impl Agent {
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

    /// Pods that run or are remembered, and that nothing wants.
    pub(super) fn unexplained(&self, next: &Effective, observed: &Observed) -> BTreeSet<String> {
        if !self.replica.is_salvaged() {
            return BTreeSet::new();
        }
        let histories = self.shared.history();
        let known = observed.sandboxes.keys().chain(histories.keys());
        known.filter(|uid| !next.pods.pods.contains_key(*uid)).cloned().collect()
    }

    /// What is noted as damaged.
    pub(super) fn damage(&self) -> Damage {
        Damage::read(&self.folder)
    }
}
