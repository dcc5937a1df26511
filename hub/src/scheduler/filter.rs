//! What keeps a Pod from a Node.

use std::fmt;

use flotilla_manifests::quantity::Quantity;
use flotilla_manifests::workload::placing::{self, TAINT_UNSCHEDULABLE, Unmatched};
use flotilla_manifests::workload::resources::Amounts;
use flotilla_manifests::workload::{PodSpec, Taint};

use super::{Candidate, Judgement};

/// Pods on a Node that says nothing of its own; Kubernetes' default.
const PODS_MAX: usize = 110;

/// One reason, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    NotReady,
    Unschedulable,
    Taint {
        key: String,
        value: String,
    },
    Selector,
    Spread,
    /// The Node lacks the label that a spread constraint speaks of.
    SpreadLabel,
    PodAffinity,
    AntiAffinity,
    /// A Pod that runs there does not want this one near.
    ExistingAntiAffinity,
    TooManyPods,
    Insufficient(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => formatter.write_str("node(s) were not ready or not in contact"),
            Self::Unschedulable => formatter.write_str("node(s) were unschedulable"),
            Self::Taint { key, value } => write!(formatter, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::Selector => formatter.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Spread => formatter.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadLabel => {
                formatter.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Self::PodAffinity => formatter.write_str("node(s) didn't match pod affinity rules"),
            Self::AntiAffinity => formatter.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::ExistingAntiAffinity => {
                formatter.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Self::TooManyPods => formatter.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(formatter, "Insufficient {resource}"),
        }
    }
}

/// Everything that keeps a Pod from a Node: the first matter of principle, or else every resource that is short.
pub(super) fn obstacles(
    spec: &PodSpec,
    requests: &Amounts,
    judgement: &Judgement,
    node: &Candidate<'_>,
) -> Vec<Obstacle> {
    if !node.ready {
        return vec![Obstacle::NotReady];
    }
    if node.unschedulable && !tolerates_cordon(spec) {
        return vec![Obstacle::Unschedulable];
    }
    if let Some(taint) = placing::untolerated(&spec.tolerations, &node.taints, &["NoSchedule", "NoExecute"]) {
        return vec![Obstacle::Taint { key: taint.key.clone(), value: taint.value.clone() }];
    }
    match placing::unmatched(spec, node.object) {
        Some(Unmatched::NodeSelector | Unmatched::Affinity) => return vec![Obstacle::Selector],
        None => {}
    }
    let short = shortages(requests, node);
    if short.is_empty() { judgement.obstacle(&node.labels).into_iter().collect() } else { short }
}

/// Every resource of which too little is left.
fn shortages(requests: &Amounts, node: &Candidate<'_>) -> Vec<Obstacle> {
    let mut short = Vec::new();
    let pods_max = node.allocatable.get("pods").map_or(PODS_MAX, |pods| usize::try_from(pods.units()).unwrap_or(0));
    if node.pods_count >= pods_max {
        short.push(Obstacle::TooManyPods);
    }
    for (resource, wanted) in requests {
        if wanted.is_zero() {
            continue;
        }
        let used = node.used.get(resource).copied().unwrap_or(Quantity::ZERO);
        // A device that says nothing of a resource everyone has is not measured by it; of any other it has none.
        let Some(whole) = node.allocatable.get(resource).copied() else {
            if !matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                short.push(Obstacle::Insufficient(resource.clone()));
            }
            continue;
        };
        if used.plus(*wanted) > whole {
            short.push(Obstacle::Insufficient(resource.clone()));
        }
    }
    short
}

fn tolerates_cordon(spec: &PodSpec) -> bool {
    let cordon = Taint { key: TAINT_UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    spec.tolerations.iter().any(|toleration| placing::tolerates(toleration, &cordon))
}
