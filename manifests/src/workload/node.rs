//! Nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lenient;

/// `v1.NodeSpec`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(deserialize_with = "lenient")]
    pub unschedulable: bool,
    #[serde(deserialize_with = "lenient")]
    pub taints: Vec<Taint>,
}

/// `v1.Taint`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    #[serde(deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// `v1.NodeStatus`, what decides something.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "super::container::quantities")]
    pub capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "super::container::quantities")]
    pub allocatable: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient")]
    pub conditions: Vec<NodeCondition>,
}

impl NodeStatus {
    /// `True`, `False` or `Unknown` of condition `Ready`; empty when it was never set.
    pub fn ready(&self) -> &str {
        self.conditions.iter().find(|condition| condition.kind == "Ready").map_or("", |ready| &ready.status)
    }
}

/// `v1.NodeCondition`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}
