//! The process backend: containers are plain supervised processes of this machine, and nothing isolates them.
//!
//! Owns the shims' directories `DIR/pods/<uid>/` and the connections to the shims. Refuses images other than `host` and volumes
//! (see [`refusal`]). Start reading at [`ProcessRuntime::open`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::RuntimeError;
use crate::reconcile::Refusal;

/// Runs pods as processes below shims.
#[derive(Debug)]
pub struct ProcessRuntime {
    _root: PathBuf,
}

impl ProcessRuntime {
    /// Opens `data/pods` and adopts every shim that still runs. `shim_exe` is `/proc/self/exe` outside tests.
    pub async fn open(data: &Path, shim_exe: &Path) -> Result<Self, RuntimeError> {
        let _ = (data, shim_exe);
        unimplemented!("bodies follow")
    }
}

/// Why a pod with this spec cannot run in the process backend, and what to do about it. Pure.
pub fn refusal(spec: &Value) -> Option<Refusal> {
    let _ = spec;
    unimplemented!("bodies follow")
}
