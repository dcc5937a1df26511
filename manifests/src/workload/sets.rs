//! Workloads that make Pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{IntOrString, PodTemplateSpec, lenient};
use crate::int_or_string::Rounding;

/// `apps/v1.DaemonSetSpec`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    #[serde(deserialize_with = "lenient")]
    pub selector: LabelSelector,
    #[serde(deserialize_with = "lenient")]
    pub template: PodTemplateSpec,
    #[serde(deserialize_with = "lenient")]
    pub update_strategy: DaemonSetUpdateStrategy,
    #[serde(deserialize_with = "lenient")]
    pub min_ready_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<i64>,
}

/// `apps/v1.DaemonSetUpdateStrategy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetUpdateStrategy {
    /// `RollingUpdate` when empty, or `OnDelete`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "lenient")]
    pub rolling_update: RollingUpdate,
}

/// `maxSurge` and `maxUnavailable`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
}

impl DaemonSetSpec {
    /// How many of `total` devices in contact may be without a ready Pod; at least 1 (default 1).
    pub fn max_unavailable(&self, total: i64) -> i64 {
        let wish = self.update_strategy.rolling_update.max_unavailable.as_ref();
        wish.map_or(1, |wish| wish.of_total(total, Rounding::Up)).max(1)
    }
}

/// `apps/v1.DeploymentSpec`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub selector: LabelSelector,
    #[serde(deserialize_with = "lenient")]
    pub template: PodTemplateSpec,
    #[serde(deserialize_with = "lenient")]
    pub strategy: DeploymentStrategy,
    #[serde(deserialize_with = "lenient")]
    pub min_ready_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_deadline_seconds: Option<i64>,
}

/// `apps/v1.DeploymentStrategy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStrategy {
    /// `RollingUpdate` when empty, or `Recreate`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "lenient")]
    pub rolling_update: RollingUpdate,
}

impl DeploymentSpec {
    /// Wished Pods; 1 when not given.
    pub fn replicas(&self) -> i64 {
        self.replicas.unwrap_or(1).max(0)
    }

    pub fn is_recreate(&self) -> bool {
        self.strategy.kind == "Recreate"
    }

    /// `(maxSurge, maxUnavailable)` as numbers of Pods; both 25 % by default, the surge rounded up, the other down, never both 0.
    pub fn surge_and_unavailable(&self) -> (i64, i64) {
        if self.is_recreate() {
            return (0, self.replicas());
        }
        let quarter = IntOrString::Text("25%".to_owned());
        let total = self.replicas();
        let rolling = &self.strategy.rolling_update;
        let surge = rolling.max_surge.as_ref().unwrap_or(&quarter).of_total(total, Rounding::Up);
        let unavailable =
            rolling.max_unavailable.as_ref().unwrap_or(&quarter).of_total(total, Rounding::Down).min(total);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }
}

/// `apps/v1.ReplicaSetSpec`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub selector: LabelSelector,
    #[serde(deserialize_with = "lenient")]
    pub template: PodTemplateSpec,
    #[serde(deserialize_with = "lenient")]
    pub min_ready_seconds: i64,
}

impl ReplicaSetSpec {
    /// Wished Pods; 1 when not given.
    pub fn replicas(&self) -> i64 {
        self.replicas.unwrap_or(1).max(0)
    }
}

/// `metav1.LabelSelector`; an empty one matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(deserialize_with = "lenient", skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// `metav1.LabelSelectorRequirement`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelectorRequirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl LabelSelector {
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// An unknown operator matches nothing.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let found = labels.get(&requirement.key);
                match requirement.operator.as_str() {
                    "In" => found.is_some_and(|value| requirement.values.contains(value)),
                    "NotIn" => found.is_none_or(|value| !requirement.values.contains(value)),
                    "Exists" => found.is_some(),
                    "DoesNotExist" => found.is_none(),
                    _ => false,
                }
            })
    }
}
