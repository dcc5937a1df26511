//! The device itself, as a Node's status tells of it: capacity, identity, pressure.
//!
//! Owns reading `/proc`, `/sys` and `/etc`; every path is below a root that tests may choose. Refuses to fail: what cannot be
//! read is left out or said as `Unknown`. Start reading at [`Host::read`].

use std::path::{Path, PathBuf};

use flotilla_manifests::time::Timestamp;
use serde_json::Value;

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hostname: String,
    /// Address of the interface with the default route, else any non-loopback one, else 127.0.0.1.
    pub ip: String,
    pub boot_id: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub kernel_version: String,
    pub os_image: String,
    /// Kubernetes' names: `amd64`, `arm64`, `arm`.
    pub architecture: &'static str,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    data: PathBuf,
}

/// What does: read before each Node status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    pub memory_available_bytes: u64,
    pub disk_bytes: u64,
    pub disk_available_bytes: u64,
    pub pids: u64,
    pub pids_max: u64,
}

impl Host {
    /// Reads this machine. `data` is the agent's folder: its file system is what `ephemeral-storage` means.
    pub fn read(data: &Path) -> Self {
        let _ = data;
        unimplemented!("bodies follow")
    }

    pub fn pressure(&self) -> Pressure {
        unimplemented!("bodies follow")
    }

    /// NodeStatus: capacity, allocatable, nodeInfo, addresses, conditions. `previous` keeps `lastTransitionTime` of conditions
    /// that did not change. `runtime_version` is [`Runtime::version`](crate::runtime::Runtime::version).
    pub fn node_status(
        &self,
        node_name: &str,
        runtime_version: &str,
        pressure: &Pressure,
        previous: Option<&Value>,
        now: Timestamp,
    ) -> Value {
        let _ = (node_name, runtime_version, pressure, previous, now);
        unimplemented!("bodies follow")
    }
}
