//! What this device can run, as facts that a plan reads: found once, when the runtime is opened.

use std::path::PathBuf;

/// Facts, each with the reason when something cannot be done: a refusal or a condition repeats it to whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facilities {
    /// The program that makes OCI containers.
    pub oci: Result<OciRuntime, String>,
    /// Whether a process of the host can have mounts of its own.
    pub process_mounts: Result<(), String>,
    pub limits: Limits,
    /// The machine's, which no limit needs to exceed.
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// crun, runc, or one that understands their command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRuntime {
    /// `crun`: its file name.
    pub name: String,
    /// `1.8.1`
    pub version: String,
    pub path: PathBuf,
}

/// Which limits the kernel can be asked to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu: bool,
    pub memory: bool,
    pub pids: bool,
    /// Why not all of them are; empty when they are.
    pub why: String,
}

impl Default for Facilities {
    /// Nothing but plain processes.
    fn default() -> Self {
        let unknown = || "it was not looked for".to_owned();
        Self {
            oci: Err(unknown()),
            process_mounts: Err(unknown()),
            limits: Limits { why: unknown(), ..Limits::default() },
            cpu_milli: 0,
            memory_bytes: 0,
        }
    }
}

impl Facilities {
    /// `nodeInfo.containerRuntimeVersion`: `crun://1.8.1`, `process://0.1.0`.
    pub fn version(&self) -> String {
        match &self.oci {
            Ok(oci) => format!("{}://{}", oci.name, oci.version),
            Err(_) => format!("process://{}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// Names a pod's `runtimeClassName` may have here; the empty one stands for a pod without.
    pub fn handlers(&self) -> Vec<&str> {
        match &self.oci {
            Ok(oci) => vec!["", PROCESS, OCI, oci.name.as_str()],
            Err(_) => vec![PROCESS],
        }
    }
}

/// The `runtimeClassName` of pods whose containers are processes of the host.
pub const PROCESS: &str = "process";
/// The `runtimeClassName` of pods that want an OCI container, whichever program makes it; the same as none.
pub const OCI: &str = "oci";
