//! The hub's side of enrolment: read, verify, ask the [`Enroller`], answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{self, Answer, MessageError, Request, Response, SignedRequest};
use super::{EnrolProof, EnrolRefusal, EnrolRequest, EnrolResponse, Enroller, RefusalKind, TokenProof};
use crate::identity::bytes::Bytes;
use crate::identity::{DeviceCertificate, NodeName, PublicKey, SealingPublicKey, verified_request};
use crate::transport::EnrolStream;

/// A device must have sent its request by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A decision must have been made by then.
const DECISION_TIMEOUT: Duration = Duration::from_secs(15);
/// The device must have taken the answer by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How an enrolment ended when it did not end with an admitted device.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The device was refused, and told so.
    #[error("refused: {0}")]
    Refused(EnrolRefusal),
    /// The connection broke, or the device was too slow.
    #[error("the connection with {remote} ended: {why}")]
    Interrupted {
        /// Who.
        remote: String,
        /// How.
        why: String,
    },
}

/// Serves one enrolment. `root` is the installation's root key, against which device certificates are verified.
///
/// # Errors
/// See [`ServeError`]; worth a line in the log, nothing more.
pub async fn serve(
    mut stream: EnrolStream,
    root: &PublicKey,
    enroller: &impl Enroller,
) -> Result<NodeName, ServeError> {
    let remote = stream.remote.clone();
    let interrupted = |why: String| ServeError::Interrupted { remote: remote.clone(), why };
    let signed = tokio::time::timeout(REQUEST_TIMEOUT, wire::read::<SignedRequest>(&mut stream.reader)).await;
    let verified = match signed.map_err(|_elapsed| interrupted("it sent no request in time".to_owned()))? {
        Ok(signed) => verify(&signed, &stream.binding, root),
        Err(MessageError::Io(error)) => return Err(interrupted(error.to_string())),
        Err(error) => Err(refused_request(&error)),
    };
    let decided = match verified {
        Ok(request) => {
            let node = request.node.clone();
            let decision = tokio::time::timeout(DECISION_TIMEOUT, enroller.enrol(request)).await;
            decision.unwrap_or_else(|_elapsed| Err(overloaded())).map(|response| (node, response))
        }
        Err(refusal) => Err(refusal),
    };
    let (answer, outcome) = match decided {
        Ok((node, response)) => (Answer::Enrolled(Box::new(to_wire(response))), Ok(node)),
        Err(refusal) => (Answer::Refused(refusal.clone()), Err(ServeError::Refused(refusal))),
    };
    let answered = async {
        wire::write(&mut stream.writer, &answer).await?;
        stream.writer.shutdown().await?;
        // The device closes once it has the answer; closing first could discard it on the way.
        let mut rest = [0; 16];
        while stream.reader.read(&mut rest).await.is_ok_and(|length| length > 0) {}
        Ok::<(), MessageError>(())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(())) => outcome,
        Ok(Err(error)) => Err(interrupted(error.to_string())),
        Err(_elapsed) => Err(interrupted("it did not take the answer in time".to_owned())),
    }
}

pub(super) fn verify(
    signed: &SignedRequest,
    binding: &[u8; 32],
    root: &PublicKey,
) -> Result<EnrolRequest, EnrolRefusal> {
    let request: Request = wire::decode(&signed.request.0).map_err(|error| refused_request(&error))?;
    let wrong = |why: &str| refused_request(&why);
    if request.v != wire::VERSION {
        return Err(wrong(&format!("version {} is unknown to this hub", request.v)));
    }
    let device_key = PublicKey(request.device_key.array().ok_or_else(|| wrong("the device key is not 32 bytes"))?);
    let sealing = SealingPublicKey(request.sealing.array().ok_or_else(|| wrong("the sealing key is not 32 bytes"))?);
    device_key
        .verify(wire::REQUEST_DOMAIN, &wire::bound(binding, &signed.request.0), &signed.signature.0)
        .map_err(|_bad| wrong("it is not signed by its device key for this connection"))?;
    let labels_fit = request.labels.len() <= wire::LABELS_MAX
        && request.labels.iter().all(|(key, value)| key.len() + value.len() <= 2 * wire::LABEL_BYTES_MAX);
    if !labels_fit {
        return Err(wrong(&format!("it has more than {} labels, or one that is too long", wire::LABELS_MAX)));
    }
    verified_request(&request.csr.0, &request.node).map_err(|error| refused_request(&error))?;
    let proof = match request.proof {
        wire::Proof::Token { id, secret } => EnrolProof::Token(TokenProof {
            id,
            secret: secret.array().ok_or_else(|| wrong("the token's secret is not 32 bytes"))?,
        }),
        wire::Proof::Device { certificate } => {
            let certificate =
                DeviceCertificate::verify(&certificate.0, root).map_err(|error| refused_request(&error))?;
            if certificate.node != request.node || certificate.key != device_key {
                return Err(wrong("its device certificate names another node or key"));
            }
            EnrolProof::Device { node_uid: certificate.node_uid }
        }
    };
    Ok(EnrolRequest { proof, node: request.node, labels: request.labels, csr: request.csr.0, device_key, sealing })
}

pub(super) fn refused_request(why: &dyn std::fmt::Display) -> EnrolRefusal {
    EnrolRefusal {
        kind: RefusalKind::Request,
        message: format!("the enrolment request is not valid: {why}"),
        retry_after_ms: None,
    }
}

fn overloaded() -> EnrolRefusal {
    EnrolRefusal {
        kind: RefusalKind::Busy,
        message: "the hub could not decide in time; try again".to_owned(),
        retry_after_ms: Some(5_000),
    }
}

pub(super) fn to_wire(response: EnrolResponse) -> Response {
    Response {
        v: wire::VERSION,
        chain: response.chain.into_iter().map(Bytes).collect(),
        authority: Bytes(response.authority),
        root: Bytes(response.root.0.to_vec()),
        device_certificate: Bytes(response.device_certificate),
        node_uid: response.node_uid,
        fleet: response.fleet,
        incarnation: response.incarnation,
        hub_time_ms: response.hub_time_ms,
        quic: response.quic,
        mqtt: response.mqtt,
        hub_sealing: response.hub_sealing.map(|key| Bytes(key.0.to_vec())),
    }
}
