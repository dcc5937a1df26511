//! What a shim leaves on disk, and how: the format of a pod's directory, read by every later agent.
//!
//! | file | what |
//! |---|---|
//! | `shim.json` | [`ShimFile`]: the sandbox, the shim and the newest attempt of each container |
//! | `shim.lock` | `flock`ed while the shim lives |
//! | `shim.sock` | requests, see [`super::protocol`] |
//! | `shim.log` | what the shim itself has to complain about |
//! | `<container>/<attempt>.log`, `.log.1` (newer) ... | output in CRI's log format |
//! | `<container>/<attempt>.exit.json` | [`Exit`], durable before anyone is told |
//! | `<container>/<attempt>.root/` | an OCI container's bundle and what it writes, while it runs |
//! | `<container>/<attempt>.made` | mount points a process of the host needed, while it runs |
//! | `oci.state/` | the OCI runtime's own state, while containers run |
//! | `etc.hosts`, `etc.hostname`, `etc.resolv.conf` | what OCI containers see in `/etc` |
//!
//! Container names hold no dot, so they never meet the shim's own files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flotilla_manifests::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cgroup::tree::Tree;
use crate::runtime::{Exit, SandboxConfig};

/// Version written. A reader takes any version up to its own; fields are only added, with defaults.
pub const FORMAT: u32 = 1;

/// What the agent leaves in `sandbox.json` for the shim it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    #[serde(flatten)]
    pub sandbox: SandboxConfig,
    #[serde(default)]
    pub setup: Setup,
}

/// With what a sandbox was made; whoever cleans up after its shim needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Setup {
    /// Present when containers are OCI containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSetup>,
    /// The pod's cgroups; absent where there can be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<Tree>,
    /// Processes that are not root need a user namespace for mounts of their own.
    pub rootless: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciSetup {
    /// `crun`, `runc`.
    pub name: String,
    pub program: PathBuf,
    /// Mounts that crun must not see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<PathBuf>,
    /// Directories crun must see empty: without any cgroup file system it wants at least a mount in its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covered: Vec<PathBuf>,
    /// See [`crate::stage::Overlay::memory_bytes_max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
}

/// `shim.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimFile {
    pub format: u32,
    /// Raised at every change: of two states of one shim the higher one is newer.
    #[serde(default)]
    pub revision: u64,
    /// Kernel boot id: in another boot nothing of this runs.
    pub boot: String,
    pub shim: ProcessId,
    pub sandbox: SandboxConfig,
    #[serde(default)]
    pub setup: Setup,
    pub created_at: Timestamp,
    pub containers: BTreeMap<String, ContainerRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    pub attempt: u32,
    pub digest: String,
    pub started_at: Timestamp,
    /// Absent when the command could not be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    #[serde(default)]
    pub stopping: bool,
    /// It is a process of the host that has mounts of its own.
    #[serde(default)]
    pub own_mounts: bool,
    /// User, group and groups of a process of the host, if they are not the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supplemental_groups: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub start_ticks: u64,
}

pub fn state_path(dir: &Path) -> PathBuf {
    dir.join("shim.json")
}

pub fn lock_path(dir: &Path) -> PathBuf {
    dir.join("shim.lock")
}

pub fn complaint_path(dir: &Path) -> PathBuf {
    dir.join("shim.log")
}

/// Socket's file name inside the pod's directory. Its full path may exceed what a socket address holds (108 bytes): both sides
/// reach it through `/proc/self/fd/<directory>`.
pub const SOCKET: &str = "shim.sock";

pub fn log_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.log"))
}

/// The `age`-th rotated file of a log, 1 the newest.
pub fn rotated_path(log: &Path, age: u32) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

pub fn exit_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.exit.json"))
}

/// Bundle and writable layer of an OCI container.
pub fn root_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.root"))
}

pub fn made_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.made"))
}

/// State of the OCI runtime for this pod.
pub fn oci_state_path(dir: &Path) -> PathBuf {
    dir.join("oci.state")
}

/// Name of a container's attempt to the OCI runtime, and of its cgroup.
pub fn container_id(container: &str, attempt: u32) -> String {
    format!("{container}-{attempt}")
}

/// A file of the pod's own that containers see as `/etc/NAME`.
pub fn etc_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("etc.{name}"))
}

/// What a write has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of the writing process.
    Process,
    /// A power cut: file and directory are synced.
    PowerCut,
}

/// Replaces a file: a reader sees the old content or the new, never a part.
pub fn write_atomically(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    if durability == Durability::PowerCut {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    match (durability, path.parent()) {
        (Durability::PowerCut, Some(parent)) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Reads `shim.json`; an unknown later format is an error that names it.
pub fn read_state(dir: &Path) -> io::Result<ShimFile> {
    let text = fs::read(state_path(dir))?;
    let state: ShimFile = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if state.format > FORMAT {
        return Err(io::Error::other(format!("format {} is newer than this agent's {FORMAT}", state.format)));
    }
    Ok(state)
}

/// Reads an exit record; `None` when there is none or it cannot be read.
pub fn read_exit(dir: &Path, container: &str, attempt: u32) -> Option<Exit> {
    serde_json::from_slice(&fs::read(exit_path(dir, container, attempt)).ok()?).ok()
}

/// Removes logs and exit records of attempts before `first_kept`; what cannot be removed stays.
pub fn forget_attempts(dir: &Path, container: &str, first_kept: u32) {
    let Ok(entries) = fs::read_dir(dir.join(container)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let attempt =
            name.to_str().and_then(|name| name.split('.').next()).and_then(|number| number.parse::<u32>().ok());
        if attempt.is_some_and(|attempt| attempt < first_kept) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Whether `text` may name a directory here: what Kubernetes allows in uids and container names, minus dots.
pub fn is_directory_name(text: &str) -> bool {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('-') && text.chars().all(allowed)
}
