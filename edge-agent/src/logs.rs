//! Reads container logs: files in CRI's log format, rotated by the shim, turned into what `kubectl logs` shows.
//!
//! Owns choosing the file, tail, since, limits and following across rotation. Refuses to hold a file in memory: chunks are
//! bounded and a reader who does not read stops the reading. Start at [`choose`], then [`stream`] and [`reader`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::LogRequest;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::reconcile::PodHistory;
use crate::runtime::{ContainerState, Runtime};

mod reader;

use reader::{Reader, Selection, Step};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

/// Chunks read ahead of a slow reader.
const CHUNKS_LEN_MAX: usize = 4;
/// How often a followed file at its end is looked at again.
const FOLLOW_MS: u64 = 100;

/// One attempt of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTarget {
    pub pod_uid: String,
    pub container: String,
    pub attempt: u32,
}

/// Which attempt of which container a request is about; errors read as kubelet's. `history` is that of the pod, if there is one.
pub fn choose(pod: &Object, history: Option<&PodHistory>, request: &LogRequest) -> Result<LogTarget, ApiError> {
    let bad = |message: String| ApiError::of(Reason::BadRequest, message);
    let names = |field: &str| -> Vec<&str> {
        let list = pod.spec().and_then(|spec| spec.get(field)?.as_array());
        list.into_iter().flatten().filter_map(|container| container.get("name").and_then(Value::as_str)).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let container = match (request.container.as_str(), main.as_slice()) {
        ("", [only]) if init.is_empty() => only,
        ("", _) => {
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                main.join(" ")
            );
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            return Err(bad(message));
        }
        (named, _) if main.contains(&named) || init.contains(&named) => named,
        (named, _) => return Err(bad(format!("container {named} is not valid for pod {}", pod.name()))),
    };
    let known = history.and_then(|history| history.containers.get(container));
    let Some((newest, known)) = known.and_then(|known| Some((known.attempt?, known))) else {
        let why = format!("container {container:?} in pod {:?} is waiting to start: ContainerCreating", pod.name());
        return Err(bad(why));
    };
    let attempt = if request.previous {
        let over = known.last_exit_attempt == Some(newest);
        let ended_for_good = history.is_some_and(|history| history.terminal_phase.is_some());
        match newest.checked_sub(1) {
            Some(previous) => previous,
            // The only attempt so far has ended and waits for its restart.
            None if over && !ended_for_good => newest,
            None => {
                let why = format!("previous terminated container {container:?} in pod {:?} not found", pod.name());
                return Err(bad(why));
            }
        }
    } else {
        newest
    };
    Ok(LogTarget { pod_uid: pod.uid().to_owned(), container: container.to_owned(), attempt })
}

/// The log, from oldest to newest line, in chunks of whole lines where they fit. Ends at the end of the file, or with `follow`
/// when the attempt no longer runs and everything was read.
pub fn stream<R: Runtime>(
    runtime: Arc<R>,
    target: LogTarget,
    request: &LogRequest,
    now: Timestamp,
) -> mpsc::Receiver<Bytes> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_LEN_MAX);
    let by_age = request.since_seconds.map(|seconds| Timestamp(now.0.saturating_sub(seconds.saturating_mul(1000))));
    let selection = Selection {
        tail_lines: request.tail_lines,
        since: by_age.max(request.since_time),
        timestamps: request.timestamps,
        bytes_max: request.limit_bytes,
    };
    let path = runtime.log_path(&target.pod_uid, &target.container, target.attempt);
    let follow = request.follow.then_some((runtime, target));
    drop(tokio::spawn(async move {
        if let Err(error) = copy(path.clone(), selection, follow, &chunks).await {
            tracing::warn!(path = %path.display(), reason = %error, "a container's log could not be read to its end");
        }
    }));
    receiver
}

async fn copy<R: Runtime>(
    path: PathBuf,
    selection: Selection,
    follow: Option<(Arc<R>, LogTarget)>,
    chunks: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut reader = blocking(move || Reader::open(&path, selection)).await??;
    let mut last_round = follow.is_none();
    loop {
        let step;
        (reader, step) = blocking(move || {
            let step = reader.step();
            (reader, step)
        })
        .await?;
        match step? {
            Step::Chunk(chunk) => {
                if chunks.send(chunk).await.is_err() {
                    return Ok(());
                }
            }
            Step::Limit => return Ok(()),
            Step::End if last_round => return Ok(()),
            Step::End => {
                // First asked, then read once more: what was written before the end is not missed.
                if let Some((runtime, target)) = &follow {
                    last_round = !runs(&**runtime, target).await;
                }
                if !last_round {
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(FOLLOW_MS)) => {}
                        () = chunks.closed() => return Ok(()),
                    }
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}

async fn runs<R: Runtime>(runtime: &R, target: &LogTarget) -> bool {
    let Ok(sandboxes) = runtime.list().await else { return false };
    let status = sandboxes.get(&target.pod_uid).and_then(|sandbox| sandbox.containers.get(&target.container));
    status.is_some_and(|status| {
        status.attempt == target.attempt && matches!(status.state, ContainerState::Running { .. })
    })
}
