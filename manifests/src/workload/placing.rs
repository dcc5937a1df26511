//! Where a Pod may run: node selectors, required affinity, taints and tolerations.

use std::collections::BTreeMap;

use super::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use crate::object::Object;

/// The taint of a Node whose device is silent. Its effect is `NoSchedule`, never `NoExecute`.
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The operator's word that a device is dead.
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The taint of a cordoned Node.
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// `(key, effect)` of what every DaemonSet's Pod tolerates (Kubernetes, "Taints and tolerations for DaemonSets"). An empty
/// effect is every effect: a device that is silent or not ready keeps, and makes, its own.
pub const DAEMON_TOLERATIONS: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", ""),
    (TAINT_UNREACHABLE, ""),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    (TAINT_UNSCHEDULABLE, "NoSchedule"),
];

/// What keeps a Pod from a Node, apart from taints and resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmatched {
    NodeSelector,
    Affinity,
}

/// Whether nodeSelector and required Node affinity match.
pub fn unmatched(spec: &PodSpec, node: &Object) -> Option<Unmatched> {
    if !spec.node_selector.iter().all(|(key, value)| node.label(key) == Some(value)) {
        return Some(Unmatched::NodeSelector);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let labels = node.labels();
    let matched = required.node_selector_terms.iter().any(|term| term_matches(term, node.name(), &labels));
    (!matched).then_some(Unmatched::Affinity)
}

/// All expressions and fields of a term hold; an empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    term.match_expressions.iter().all(|one| requirement_holds(one, labels.get(&one.key).map(String::as_str)))
        && term.match_fields.iter().all(|one| one.key == "metadata.name" && requirement_holds(one, Some(node_name)))
}

/// The first taint with one of these effects that nothing tolerates.
pub fn untolerated<'a>(tolerations: &[Toleration], taints: &'a [Taint], effects: &[&str]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Kubernetes' `Toleration.ToleratesTaint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    if !toleration.key.is_empty() && toleration.key != taint.key {
        return false;
    }
    match toleration.operator.as_str() {
        "Exists" => true,
        "" | "Equal" => !toleration.key.is_empty() && toleration.value == taint.value,
        _ => false,
    }
}

/// Seconds after which a Pod on a silent device may be replaced elsewhere: the least `tolerationSeconds` of an explicit
/// toleration of [`TAINT_UNREACHABLE`]. `None`: never.
pub fn replaced_after_seconds(spec: &PodSpec) -> Option<u64> {
    let named = spec.tolerations.iter().filter(|toleration| toleration.key == TAINT_UNREACHABLE);
    named.filter_map(|toleration| u64::try_from(toleration.toleration_seconds?.max(0)).ok()).min()
}

/// `operator: Exists` for a key and an effect.
pub fn toleration((key, effect): &(&str, &str)) -> Toleration {
    Toleration {
        key: (*key).to_owned(),
        operator: "Exists".to_owned(),
        effect: (*effect).to_owned(),
        ..Toleration::default()
    }
}

fn requirement_holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let among = |value: &str| requirement.values.iter().any(|wanted| wanted == value);
    let numbers = || {
        let found: i64 = found?.parse().ok()?;
        let bound: i64 = requirement.values.first()?.parse().ok()?;
        Some((found, bound))
    };
    match requirement.operator.as_str() {
        "In" => found.is_some_and(among),
        "NotIn" => !found.is_some_and(among),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => numbers().is_some_and(|(found, bound)| found > bound),
        "Lt" => numbers().is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}
