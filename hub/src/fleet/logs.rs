//! Container logs: asked of the device over its session, passed on as they come.

use std::time::Duration;

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_rest::backend::LogRequest;
use flotilla_sync::stream::{Stream, StreamError};
use tokio::sync::mpsc;

use super::door::FleetDoor;

/// Chunks on their way to one reader.
const CHUNKS_LEN_MAX: usize = 16;
/// A refusal comes at once; after this long a quiet log is taken for what it is.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens the log of a container.
///
/// # Errors
/// 404 of the Pod, 400 of one that is on no node, 503 when its device is not in contact, and what the device says.
pub(crate) async fn open(door: &FleetDoor, request: LogRequest) -> Result<mpsc::Receiver<Bytes>, ApiError> {
    let key = ObjectKey::of(&kind::POD, request.namespace.as_str(), request.pod.as_str());
    let pod = door.store.read(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let node = pod.text("/spec/nodeName");
    if node.is_empty() {
        let message = format!("pod {:?} has no logs yet: it is not placed on a node", request.pod);
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    let unreachable = || {
        let why = door.silence(node);
        let message = format!("{why}; its logs can be read at the device itself (kubectl against its local API)");
        ApiError::of(Reason::ServiceUnavailable, message)
    };
    let session = door.session(node).ok_or_else(unreachable)?;
    let bytes = serde_json::to_vec(&request)
        .map_err(|error| ApiError::of(Reason::InternalError, format!("cannot write the request: {error}")))?;
    let mut stream = session.open_stream(Bytes::from(bytes)).await.map_err(|_| unreachable())?;
    let first = tokio::time::timeout(FIRST_WORD_TIMEOUT, stream.receive()).await;
    let (sender, receiver) = mpsc::channel(CHUNKS_LEN_MAX);
    match first {
        Ok(Err(error)) => return Err(refused(&error)),
        Ok(Ok(None)) => return Ok(receiver),
        Ok(Ok(Some(chunk))) => {
            tokio::spawn(pass_on(stream, Some(chunk), sender));
        }
        Err(_quiet) => {
            tokio::spawn(pass_on(stream, None, sender));
        }
    }
    Ok(receiver)
}

async fn pass_on(mut stream: Stream, first: Option<Bytes>, sender: mpsc::Sender<Bytes>) {
    if let Some(chunk) = first
        && sender.send(chunk).await.is_err()
    {
        return;
    }
    loop {
        let received = tokio::select! {
            received = stream.receive() => received,
            // The reader went: dropping the stream tells the device.
            () = sender.closed() => return,
        };
        match received {
            Ok(Some(chunk)) => {
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                let note = Bytes::from(format!("\n[the log ends here: {error}]\n"));
                // A reader that went does not miss it.
                drop(sender.send(note).await);
                return;
            }
        }
    }
}

/// A device's refusal is a Status; anything else is shown as it stands.
fn refused(error: &StreamError) -> ApiError {
    let StreamError::Peer(reason) = error else {
        return ApiError::of(Reason::ServiceUnavailable, format!("the device went while it was asked: {error}"));
    };
    let status: serde_json::Value = serde_json::from_str(reason).unwrap_or_default();
    let message = status.get("message").and_then(serde_json::Value::as_str).unwrap_or(reason);
    let code = status.get("code").and_then(serde_json::Value::as_u64);
    let known =
        [Reason::BadRequest, Reason::Forbidden, Reason::NotFound, Reason::ServiceUnavailable, Reason::TooManyRequests];
    let reason =
        known.into_iter().find(|reason| code == Some(u64::from(reason.code()))).unwrap_or(Reason::InternalError);
    ApiError::of(reason, message)
}
