//! What runs pods, in the vocabulary of Kubernetes' Container Runtime Interface (CRI).
//!
//! Owns the seam between plans and processes: sandboxes (one per pod), containers, their exits. Refuses policy: when to restart,
//! how long to wait and what is healthy are decided by [`crate::reconcile`]. Start reading at [`Runtime`], then [`shims`].

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub mod admission;
pub mod facilities;
pub mod oci;
pub mod shims;

pub use facilities::{Facilities, Limits, OciRuntime};

/// Runs sandboxes and containers. Cheap to clone behind an `Arc`; every method may be called from any task.
///
/// `list` returns everything there is, from disk and from what still runs, also what an earlier agent started: adoption is the
/// normal start, not a special case. CRI's CreateContainer and StartContainer are one call here, so that there is no state
/// between them that would have to be adopted.
pub trait Runtime: Send + Sync + 'static {
    /// What this device can run, found once when the runtime was opened.
    fn facilities(&self) -> &Facilities;

    /// Makes the pod's sandbox. One that is lost ([`SandboxState::Lost`]) is cleaned up first: nothing of it survives.
    fn run_sandbox(&self, config: &SandboxConfig) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Starts one container in a ready sandbox. A command that cannot be executed is not an error here: it is an exit (code 128, `StartError`).
    fn start_container(
        &self,
        pod_uid: &str,
        config: &ContainerConfig,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Asks one container to stop: TERM now, KILL after `grace`. Answers when the stop has begun; the exit arrives as an event.
    /// Nothing happens when that attempt does not run.
    fn stop_container(
        &self,
        pod_uid: &str,
        container: &str,
        attempt: u32,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Ends a sandbox in which nothing runs (what does run is killed), keeping its logs and exit records.
    fn stop_sandbox(&self, pod_uid: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Ends a sandbox and removes its files.
    fn remove_sandbox(&self, pod_uid: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Every sandbox by pod uid.
    fn list(&self) -> impl Future<Output = Result<BTreeMap<String, SandboxStatus>, RuntimeError>> + Send;

    /// Runs a command beside a container, as an exec probe does. `Err` when it could not be started.
    fn exec(&self, request: &ExecRequest) -> impl Future<Output = Result<ExecOutcome, RuntimeError>> + Send;

    /// Where the CRI log file of one attempt is written; rotated files stand beside it.
    fn log_path(&self, pod_uid: &str, container: &str, attempt: u32) -> PathBuf;

    /// Says *that* a sandbox changed, never what: the receiver calls `list`. Bounded; a full channel drops the hint, because one
    /// is already waiting. Only the first call gets the channel.
    fn events(&self) -> Option<mpsc::Receiver<RuntimeEvent>>;
}

/// A sandbox changed: a container started or ended, or the sandbox was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub pod_uid: String,
}

/// CRI's PodSandboxConfig, as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxConfig {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Raised each time the sandbox of this uid is made again.
    pub attempt: u32,
    /// For a stop when nobody knows the pod's manifest any more.
    pub grace_seconds: u32,
    /// Its containers are OCI containers with a root of their own ([`ContainerConfig::root`]); otherwise processes of the host.
    #[serde(default)]
    pub isolated: bool,
    /// The pod's host name; used when it is isolated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Lines of its `/etc/hosts` beside the device's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_lines: Vec<String>,
    /// The pod sees the host's processes (`hostPID`).
    #[serde(default)]
    pub host_pid: bool,
    /// The pod shares the host's System V and POSIX queues (`hostIPC`).
    #[serde(default)]
    pub host_ipc: bool,
}

/// CRI's ContainerConfig, as far as it is used. Everything is resolved: no reference to another object is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerConfig {
    pub name: String,
    /// The container's restart count: 0 for its first start under this pod uid.
    pub attempt: u32,
    /// What of the manifest this container was started from; see [`crate::reconcile::container_digest`].
    pub digest: String,
    /// Program and arguments, never empty; without a `/` it is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// The whole environment; the agent's own is never inherited.
    pub env: BTreeMap<String, String>,
    pub working_dir: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<u32>,
    /// Groups of the first process beside its own: `supplementalGroups` and `fsGroup`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supplemental_groups: Vec<u32>,
    /// Outer mounts before those inside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// `None`: the host's own root, so a process of the host. `Some` only in an isolated sandbox, and always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Rootfs>,
    /// `SIGQUIT` or `3`, as an image names it; TERM when absent or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Resources::is_unlimited")]
    pub resources: Resources,
    #[serde(default)]
    pub security: Security,
}

/// What a container's root directory is made of: an image's layers, and a layer of its own that ends with the attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rootfs {
    /// The reference the manifest gives; shown, not used.
    pub image: String,
    pub image_digest: String,
    /// Absolute, the top one first, at least one; unpacked as overlayfs has it (whiteouts are 0:0 devices, opaque directories marked).
    pub lower_dirs: Vec<PathBuf>,
    /// `readOnlyRootFilesystem`.
    pub read_only: bool,
}

/// Limits of a container; absent is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
    /// Weight against others when the processor is short, 2 to 262144; 1024 is one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processor time in each period of [`Resources::CPU_PERIOD_US`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u32>,
}

impl Resources {
    /// Kubelet's, and the kernel's default.
    pub const CPU_PERIOD_US: u64 = 100_000;

    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// What a container may do beyond or below the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// Without `CAP_`; `ALL` is all that the agent itself has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added_capabilities: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped_capabilities: Vec<String>,
    /// `seccompProfile.type: RuntimeDefault`; otherwise no system call is filtered, as in Kubernetes.
    pub seccomp_default: bool,
}

/// A file or directory of this device that a container sees: a bind mount, private to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Exists before the container is started; a symbolic link here is the agent's own and is followed.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub destination: String,
    pub read_only: bool,
}

/// CRI's PodSandboxStatus with its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    pub grace_seconds: u32,
    pub state: SandboxState,
    /// As in [`SandboxConfig`].
    pub isolated: bool,
    pub created_at: Timestamp,
    /// The newest attempt of each container started in this sandbox.
    pub containers: BTreeMap<String, ContainerStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Containers can be started in it.
    Ready,
    /// Its shim is gone: ended by us, killed, or lost in a reboot. Containers are all [`ContainerState::Exited`].
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    pub attempt: u32,
    pub digest: String,
    pub state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    Running { pid: i32, started_at: Timestamp, stopping: bool },
    Exited(Exit),
}

/// How one attempt of a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// 128 + signal when a signal ended it.
    pub code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, or `Unknown` when nobody saw the end.
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Absent when nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl Exit {
    /// The end of an attempt that nobody saw: power cut, or its shim was killed. The code is containerd's.
    pub fn unseen(started_at: Option<Timestamp>, message: &str) -> Self {
        Self {
            code: 255,
            signal: None,
            reason: "Unknown".into(),
            message: message.into(),
            started_at,
            finished_at: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    pub pod_uid: String,
    /// It runs where this container does: as its user, among its files.
    pub container: String,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub working_dir: String,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutcome {
    /// Exit code and the first bytes of what it printed (stdout and stderr, at most 10 KiB).
    Exited {
        code: i32,
        output: String,
    },
    TimedOut,
}

/// Why the runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{what:?} cannot name a pod or container directory: use letters, digits and '-', at most 253")]
    BadName { what: String },
    #[error("pod {uid} has no sandbox")]
    NoSandbox { uid: String },
    #[error("could not {action} {path}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("could not start the shim {exe} of pod {uid}")]
    Spawn { uid: String, exe: PathBuf, source: std::io::Error },
    #[error("the shim of pod {uid} did not become ready within {limit_ms} ms: {said}")]
    NotReady { uid: String, limit_ms: u64, said: String },
    #[error("the shim of pod {uid} did not answer {command:?}: {why}")]
    NoAnswer { uid: String, command: &'static str, why: String },
    #[error("the shim of pod {uid} refused {command:?}: {message}")]
    Refused { uid: String, command: &'static str, message: String },
    #[error("could not run {program:?}: {source}")]
    Exec { program: String, source: std::io::Error },
}
