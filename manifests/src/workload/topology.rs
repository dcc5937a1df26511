//! What a Pod asks of its neighbours: affinity and anti-affinity to other Pods, and how evenly its kind is spread.

use serde::{Deserialize, Serialize};

use super::{LabelSelector, lenient};

/// `v1.PodAffinity` and `v1.PodAntiAffinity`: one shape, opposite meanings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinity {
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "lenient",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub required: Vec<PodAffinityTerm>,
    #[serde(
        rename = "preferredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "lenient",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub preferred: Vec<WeightedPodAffinityTerm>,
}

/// `v1.PodAffinityTerm`: the Pods meant, and the Node label that says what "the same place" is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinityTerm {
    /// Absent: no Pod is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// With these keys of the asking Pod, and its values, added to the selector.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub match_label_keys: Vec<String>,
    /// As above, for Pods with other values.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub mismatch_label_keys: Vec<String>,
    /// Of these namespaces and those the selector names; of the asking Pod's own if neither is said.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// An empty one means every namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

/// `v1.WeightedPodAffinityTerm`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedPodAffinityTerm {
    /// 1 to 100.
    pub weight: i64,
    pub pod_affinity_term: PodAffinityTerm,
}

/// `v1.TopologySpreadConstraint`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologySpreadConstraint {
    /// How many more matching Pods one place may have than the one with the fewest; at least 1.
    pub max_skew: i64,
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`.
    pub when_unsatisfiable: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub match_label_keys: Vec<String>,
    /// With fewer places than this, the fewest count as none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_domains: Option<i64>,
    /// `Honor` (the default): only Nodes that the Pod selects count as places.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub node_affinity_policy: String,
    /// `Honor`: only Nodes whose taints the Pod tolerates count. Default `Ignore`.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub node_taints_policy: String,
}

impl TopologySpreadConstraint {
    pub fn is_hard(&self) -> bool {
        self.when_unsatisfiable == "DoNotSchedule"
    }
}
