//! Revisions: which template came when, what may be forgotten.

use std::collections::BTreeSet;

use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout::{self, HASH_ANNOTATION, NUMBER_ANNOTATION, RolloutNumber, SILENT_ANNOTATION};
use flotilla_manifests::workload::DeploymentSpec;

use super::{DESIRED_ANNOTATION, MAX_ANNOTATION, Owned};
use crate::controllers::{Deletion, Plan, View, Write};

/// Which change of the template a ReplicaSet stands for; `kubectl rollout history` and `undo` read it.
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
const REVISIONS_BEFORE_ANNOTATION: &str = "deployment.kubernetes.io/revision-history";
/// Why the template changed, as the user says.
pub(super) const CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Kubernetes' `revisionHistoryLimit` when none is given.
const HISTORY_LIMIT: i64 = 10;

/// Whether an annotation says something about the object that carries it, and is not handed on.
pub(super) fn is_own_annotation(name: &str) -> bool {
    [
        REVISION_ANNOTATION,
        REVISIONS_BEFORE_ANNOTATION,
        DESIRED_ANNOTATION,
        MAX_ANNOTATION,
        LAST_APPLIED_ANNOTATION,
        NUMBER_ANNOTATION,
        HASH_ANNOTATION,
        SILENT_ANNOTATION,
    ]
    .contains(&name)
}

/// The revision a ReplicaSet carries; 0 for none.
pub(crate) fn revision_of(set: &Object) -> i64 {
    set.annotation(REVISION_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The newest set's revision: above all others', kept when it is already.
pub(super) fn next_revision(owned: &[Owned<'_>], newest: Option<usize>) -> i64 {
    let others = owned.iter().enumerate().filter(|(index, _)| Some(*index) != newest);
    let highest = others.map(|(_, set)| revision_of(set.object)).max().unwrap_or(0);
    let own = newest.map_or(0, |newest| revision_of(owned[newest].object));
    own.max(highest + 1)
}

/// Writes a revision, and the one before into the list of those the set has had.
pub(super) fn set_revision(set: &mut Object, revision: i64) {
    let before = revision_of(set);
    if before == revision {
        return;
    }
    if before > 0 {
        let mut list = set.annotation(REVISIONS_BEFORE_ANNOTATION).unwrap_or("").to_owned();
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&before.to_string());
        set.set_annotation(REVISIONS_BEFORE_ANNOTATION, &list);
    }
    set.set_annotation(REVISION_ANNOTATION, &revision.to_string());
}

/// Deletes the oldest of the empty sets beyond the limit.
pub(super) fn clean_up(
    deployment: &Object,
    spec: &DeploymentSpec,
    owned: &[Owned<'_>],
    newest: Option<usize>,
    plan: &mut Plan,
) {
    let Some(newest) = newest else { return };
    let limit = spec.revision_history_limit.unwrap_or(HISTORY_LIMIT).max(0);
    let mut empty: Vec<&Owned<'_>> = owned
        .iter()
        .enumerate()
        .filter(|(index, set)| *index != newest && set.replicas == 0 && is_without_pods(set))
        .map(|(_, set)| set)
        .collect();
    empty.sort_by_key(|set| revision_of(set.object));
    let surplus = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    for set in empty.into_iter().take(surplus) {
        if set.object.uid() != deployment.uid() {
            plan.writes.push(Write::Delete(Deletion::of(set.object)));
        }
    }
}

fn is_without_pods(set: &Owned<'_>) -> bool {
    set.census.active.is_empty() && set.census.held_count == 0 && set.census.ending_count == 0
}

/// Forgets the rollout numbers from which no Pod was made and none will be.
pub(super) fn forget_numbers(view: &View<'_>, deployment: &Object, owned: &[Owned<'_>], plan: &mut Plan) {
    let mut needed: BTreeSet<RolloutNumber> = rollout::number_of(deployment).into_iter().collect();
    for set in owned {
        if set.replicas > 0 {
            needed.extend(rollout::number_of(set.object));
        }
        let pods = view.index.owned_by(set.object.uid()).filter(|pod| pod.kind() == &kind::POD);
        needed.extend(pods.filter_map(|pod| rollout::number_of(pod)));
    }
    for text in view.index.rollout(deployment.uid()).thresholds.keys() {
        let Ok(number) = text.parse::<RolloutNumber>() else { continue };
        if !needed.contains(&number) {
            let workload_uid = deployment.uid().to_owned();
            plan.writes.push(Write::Threshold { workload_uid, number, threshold: None });
        }
    }
}
