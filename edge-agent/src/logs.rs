//! Reads container logs: files in CRI's log format, rotated by the shim, turned into what `kubectl logs` shows.
//!
//! Owns choosing the file, tail, since, limits and following across rotation. Refuses to hold a file in memory: chunks are
//! bounded and a reader who does not read stops the reading. Start at [`choose`], then [`stream`].

use std::sync::Arc;

use bytes::Bytes;
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::LogRequest;
use tokio::sync::mpsc;

use crate::reconcile::PodHistory;
use crate::runtime::Runtime;

/// One attempt of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTarget {
    pub pod_uid: String,
    pub container: String,
    pub attempt: u32,
}

/// Which attempt of which container a request is about; errors read as kubelet's. `history` is that of the pod, if there is one.
pub fn choose(pod: &Object, history: Option<&PodHistory>, request: &LogRequest) -> Result<LogTarget, ApiError> {
    let _ = (pod, history, request);
    unimplemented!("bodies follow")
}

/// The log, from oldest to newest line, in chunks of whole lines where they fit. Ends at the end of the file, or with `follow`
/// when the attempt no longer runs and everything was read.
pub fn stream<R: Runtime>(
    runtime: Arc<R>,
    target: LogTarget,
    request: &LogRequest,
    now: Timestamp,
) -> mpsc::Receiver<Bytes> {
    let _ = (runtime, target, request, now);
    unimplemented!("bodies follow")
}
