//! Which of the possible Nodes is best.

use std::cmp::Reverse;

use flotilla_manifests::quantity::Quantity;
use flotilla_manifests::workload::resources::Amounts;
use flotilla_manifests::workload::{PodSpec, placing};

use super::{Candidate, Judgement};

/// Greater is better, field by field: what was asked for comes before what is merely sensible. Equal scores are decided by the
/// order of Nodes' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Taints `PreferNoSchedule` that are not tolerated.
    taints: Reverse<usize>,
    /// By how many Pods the constraints `ScheduleAnyway` would find the Node uneven.
    unevenness: Reverse<i64>,
    /// Weight of the preferred affinity terms, to Nodes and to Pods, that match.
    preferred: i64,
    /// Pods of the same owner that are there already.
    siblings: Reverse<usize>,
    /// The fullest of cpu and memory with this Pod, in thousandths.
    fullness: Reverse<i64>,
    pods: Reverse<usize>,
}

pub(super) fn of(
    spec: &PodSpec,
    requests: &Amounts,
    owner: Option<&str>,
    judgement: &Judgement,
    node: &Candidate<'_>,
) -> Score {
    let siblings = owner.and_then(|owner| node.owners.get(owner)).copied().unwrap_or(0);
    let disliked = node.taints.iter().filter(|taint| {
        taint.effect == "PreferNoSchedule"
            && !spec.tolerations.iter().any(|toleration| placing::tolerates(toleration, taint))
    });
    let terms = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let matching = terms.into_iter().flat_map(|affinity| &affinity.preferred);
    let preferred: i64 = matching
        .filter(|term| placing::term_matches(&term.preference, node.object.name(), &node.labels))
        .map(|term| term.weight)
        .sum();
    Score {
        taints: Reverse(disliked.count()),
        unevenness: Reverse(judgement.unevenness(&node.labels)),
        preferred: preferred + judgement.preferred(&node.labels),
        siblings: Reverse(siblings),
        fullness: Reverse(fullness(requests, node)),
        pods: Reverse(node.pods_count),
    }
}

fn fullness(requests: &Amounts, node: &Candidate<'_>) -> i64 {
    let share = |resource: &str| {
        let of = |amounts: &Amounts| amounts.get(resource).copied().unwrap_or(Quantity::ZERO);
        let whole = i128::from(of(&node.allocatable).milli());
        let used = i128::from(of(&node.used).plus(of(requests)).milli());
        if whole <= 0 { 0 } else { i64::try_from(used * 1000 / whole).unwrap_or(i64::MAX) }
    };
    share("cpu").max(share("memory"))
}
