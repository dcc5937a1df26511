//! What has to happen on this device, as a value.
//!
//! Owns every decision about pods: order, restarts and back-off, stops, probes' consequences, and the PodStatus that tells of it.
//! Refuses I/O, clocks and handles: `plan` is a function of its arguments, and calling it again before its actions are
//! carried out gives the same plan. Start reading at [`plan`], then [`history`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use crate::image::Images;
use crate::probe::machine::Check;
use crate::runtime::{ContainerConfig, Facilities, SandboxConfig, SandboxStatus};

mod environment;
pub mod history;
mod image;
mod lifecycle;
mod limits;
pub mod pod;
mod restart;
mod status;
pub mod volume;

pub use environment::expand;
pub use history::{ContainerHistory, History, PodHistory};
pub use image::ImageUses;
pub use pod::container_digest;
pub use volume::VolumePlan;

/// Everything this device shall run now: the effective state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DesiredPods {
    /// By pod uid.
    pub pods: BTreeMap<String, DesiredPod>,
    /// `data` by (namespace, name).
    pub config_maps: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// Decoded `binaryData` of those that have any: for volumes, it is not usable in an environment.
    pub config_map_binaries: BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>,
    /// Opened `data` by (namespace, name); a value that is not UTF-8 is named as the reason its container waits.
    pub secrets: BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>,
}

/// Ends the reason of a stop that makes room for a container as it is wanted now.
pub const DEFINITION_CHANGED: &str = "definition changed, will be restarted";

/// One pod that shall run, or end.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// The Pod with metadata (name, namespace, uid, creationTimestamp) and spec; its status is not read.
    pub object: Arc<Object>,
    /// `Some`: end it, with this many seconds of grace (`None` inside: the manifest's own).
    pub deletion: Option<Deletion>,
}

/// A pod is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    pub grace_seconds: Option<u32>,
}

/// A reason, in CamelCase, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

/// What is the case on this device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// From [`Runtime::list`](crate::runtime::Runtime::list), by pod uid.
    pub sandboxes: BTreeMap<String, SandboxStatus>,
    /// Pods with actions still being carried out: no further action is planned for them.
    pub busy: BTreeSet<String>,
    /// The last failed action of each pod, until one succeeds.
    pub failures: BTreeMap<String, Failure>,
    /// Newest word of the probes.
    pub probes: BTreeMap<ProbeKey, ProbeStatus>,
    /// Container images on this device.
    pub images: Arc<Images>,
    /// What stands of pods' volumes, by pod uid.
    pub volumes: BTreeMap<String, volume::VolumesStatus>,
    /// The last failed try to make volumes of each pod, until one succeeds.
    pub volume_failures: BTreeMap<String, Failure>,
}

/// An action could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub at: Timestamp,
    /// How many in a row.
    pub count: u32,
}

/// One attempt of one container, the subject of probes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    pub pod_uid: String,
    pub container: String,
    pub sandbox_attempt: u32,
    pub attempt: u32,
}

/// What the probes of one container say. A container without a probe of some kind counts as passing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeStatus {
    /// The startup probe has succeeded.
    pub started: bool,
    /// The readiness probe's newest verdict; `None` until it has reached one since the agent came up.
    pub ready: Option<bool>,
    /// `Some(why)`: the liveness or startup probe failed often enough; the container must be killed.
    pub failed: Option<String>,
}

/// A container whose probes have to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeTarget {
    /// `startupProbe`, `livenessProbe`, `readinessProbe`, and `ports` as in the manifest.
    pub container: Value,
    /// Environment and working directory, for exec probes.
    pub env: BTreeMap<String, String>,
    pub working_dir: String,
    /// The startup probe has succeeded already.
    pub started: bool,
}

/// Facts about this device that a plan needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Kernel boot id: an attempt started in another boot cannot run any more.
    pub boot_id: String,
    /// The address pods are reached at (the process backend has no network namespaces).
    pub host_ip: String,
    pub node_name: String,
    /// What the runtime can do here.
    pub facilities: Arc<Facilities>,
    /// Where volumes stand: the folder of [`VolumeStore`](crate::volume::VolumeStore).
    pub volumes: PathBuf,
    pub now: Timestamp,
}

/// One step. Steps of one pod are carried out in order, a failed one drops those after it; pods do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    PrepareVolumes(VolumePlan),
    RunSandbox(SandboxConfig),
    StartContainer(Box<ContainerConfig>),
    StopContainer {
        container: String,
        attempt: u32,
        grace_ms: u64,
        /// For the event and the log: `liveness probe failed: ...`, `definition changed`, `pod deleted`.
        why: String,
        /// `preStop`, run to its end or the end of the grace before the container is told to end.
        hook: Option<Box<Hook>>,
    },
    /// `postStart` of an attempt that was just started; when it fails the attempt is stopped.
    RunHook {
        container: String,
        attempt: u32,
        grace_ms: u64,
        hook: Box<Hook>,
    },
    /// Ends the sandbox of a pod that has come to its end; logs and exit records stay.
    StopSandbox,
    RemoveSandbox,
    /// Unmounts and deletes all volumes of the pod.
    RemoveVolumes,
}

/// Something about a pod that a person wants to be told of. It is noted in every plan for as long as it holds, and becomes one
/// Event each time it begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    pub severity: Severity,
    /// In CamelCase, kubelet's word where it has one.
    pub reason: String,
    /// What happened to what, and what to do. Without numbers that grow: each new message is a new Event.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Normal,
    Warning,
}

/// What a container's `lifecycle` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub handler: HookHandler,
    /// The device's address, for requests that name no host.
    pub host_ip: String,
    /// Environment and working directory, for commands.
    pub env: BTreeMap<String, String>,
    pub working_dir: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookHandler {
    Ask(Check),
    Sleep { ms: u64 },
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be made durable BEFORE any action is taken; `None` forgets the pod. Only what changed.
    pub history: BTreeMap<String, Option<PodHistory>>,
    /// By pod uid.
    pub actions: BTreeMap<String, Vec<Action>>,
    /// PodStatus as kubelet writes it, for every desired pod, by uid.
    pub statuses: BTreeMap<String, Value>,
    /// Pods that were to end and of which nothing is left: confirm their end.
    pub ended: BTreeSet<String>,
    /// Containers whose probes shall run; all others stop.
    pub probes: BTreeMap<ProbeKey, ProbeTarget>,
    /// What holds now of each pod and is told as Events, by uid.
    pub notices: BTreeMap<String, BTreeSet<Notice>>,
    /// Images that must stay. To be made durable BEFORE any action is taken.
    pub images: ImageUses,
    /// Plan again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Takes out what would be done about these pods.
    pub fn leave_alone(&mut self, pods: &BTreeSet<String>) {
        self.actions.retain(|uid, _| !pods.contains(uid));
        self.history.retain(|uid, _| !pods.contains(uid));
        self.ended.retain(|uid| !pods.contains(uid));
        self.notices.retain(|uid, _| !pods.contains(uid));
    }
}

/// Decides everything there is to do. Pure; the same arguments give the same plan.
pub fn plan(desired: &DesiredPods, observed: &Observed, history: &History, place: &Place) -> Plan {
    lifecycle::plan(desired, observed, history, place)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
