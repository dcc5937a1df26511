//! Typed, lenient views of the parts of workloads and Nodes that decide something.
//!
//! Owns the shapes that derivation, scheduling and controllers read; a view is made from admitted JSON, so unknown fields are
//! ignored and absent or `null` ones take Kubernetes' zero values. Refuses to write: an object is changed as JSON, so that
//! nothing a user wrote is lost on the way. Start at [`PodSpec`]; [`placing`] decides where a Pod may run, [`resources`] what
//! it asks for.

mod container;
mod node;
pub mod placing;
mod pod;
pub mod resources;
mod sets;
mod topology;

pub use container::{
    ConfigMapKeySelector, Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, ExecAction, HttpGetAction,
    HttpHeader, Lifecycle, LifecycleHandler, LocalObjectSource, ObjectFieldSelector, Probe, ResourceFieldSelector,
    ResourceRequirements, SleepAction, TcpSocketAction, VolumeMount,
};
pub use node::{NodeCondition, NodeSpec, NodeStatus, Taint};
pub use pod::{
    Affinity, ConfigMapVolumeSource, EmptyDirVolumeSource, GRACE_SECONDS_DEFAULT, HostPathVolumeSource, KeyToPath,
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PodTemplateSpec,
    PreferredSchedulingTerm, SecretVolumeSource, TemplateMetadata, Toleration, Volume,
};
pub use sets::{
    DaemonSetSpec, DaemonSetUpdateStrategy, DeploymentSpec, DeploymentStrategy, LabelSelector,
    LabelSelectorRequirement, ReplicaSetSpec, RollingUpdate,
};
pub use topology::{PodAffinity, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::int_or_string::{IntOrPercent, Rounding};

/// Reads a view; what is absent, `null` or of a wrong type gives the default (admission has refused the latter).
pub fn view<T: DeserializeOwned + Default>(value: Option<&Value>) -> T {
    value.and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
}

/// `intstr.IntOrString`: `2` or `"25%"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    Text(String),
}

impl IntOrString {
    /// The number meant, of `total`; unreadable text is 0, and nothing is below 0.
    pub fn of_total(&self, total: i64, rounding: Rounding) -> i64 {
        let total = u32::try_from(total.max(0)).unwrap_or(u32::MAX);
        let value = match self {
            Self::Int(number) => Value::from(*number),
            Self::Text(text) => Value::from(text.as_str()),
        };
        IntOrPercent::of_json(&value).map_or(0, |wish| wish.of_total(total, rounding)).max(0)
    }
}

/// `null` reads as the default.
pub(crate) fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
