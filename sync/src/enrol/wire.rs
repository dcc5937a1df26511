//! The messages of enrolment: length-prefixed CBOR, bounded before allocation.

use std::collections::BTreeMap;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::EnrolRefusal;
use crate::identity::NodeName;
use crate::identity::bytes::Bytes;

/// Largest message.
pub(super) const MESSAGE_BYTES_MAX: u32 = 64 * 1024;
/// What a request is signed for.
pub(super) const REQUEST_DOMAIN: &str = "enrol-request/1";
/// Version of both messages.
pub(super) const VERSION: u8 = 1;
/// Most labels, and the longest text in one.
pub(super) const LABELS_MAX: usize = 64;
pub(super) const LABEL_BYTES_MAX: usize = 317;

/// A request as sent: the encoded [`Request`] and the device key's signature over it and the connection's binding.
#[derive(Serialize, Deserialize)]
pub(super) struct SignedRequest {
    pub(super) request: Bytes,
    pub(super) signature: Bytes,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) v: u8,
    pub(super) proof: Proof,
    pub(super) node: NodeName,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) csr: Bytes,
    pub(super) device_key: Bytes,
    pub(super) sealing: Bytes,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Proof {
    Token { id: String, secret: Bytes },
    Device { certificate: Bytes },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Enrolled(Box<Response>),
    Refused(EnrolRefusal),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Response {
    pub(super) v: u8,
    pub(super) chain: Vec<Bytes>,
    pub(super) authority: Bytes,
    pub(super) root: Bytes,
    pub(super) device_certificate: Bytes,
    pub(super) node_uid: String,
    pub(super) fleet: String,
    pub(super) incarnation: u64,
    pub(super) hub_time_ms: u64,
    pub(super) quic: Vec<String>,
    pub(super) mqtt: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hub_sealing: Option<Bytes>,
}

/// A message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("connection lost")]
    Io(#[from] io::Error),
    #[error("message of {bytes} bytes is larger than the {MESSAGE_BYTES_MAX} allowed")]
    TooLarge { bytes: usize },
    #[error("message does not decode: {why}")]
    Malformed { why: String },
}

/// What the device key signs: the connection's binding, then the request.
pub(super) fn bound(binding: &[u8; 32], request: &[u8]) -> Vec<u8> {
    [&binding[..], request].concat()
}

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(|error| MessageError::Malformed { why: error.to_string() })?;
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    ciborium::from_reader(bytes).map_err(|error| MessageError::Malformed { why: error.to_string() })
}

pub(super) async fn write<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin + ?Sized),
    message: &T,
) -> Result<(), MessageError> {
    let body = encode(message)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.ok_or(MessageError::TooLarge { bytes: body.len() })?;
    writer.write_all(&[&length.to_be_bytes()[..], &body].concat()).await?;
    writer.flush().await?;
    Ok(())
}

pub(super) async fn read<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin + ?Sized),
) -> Result<T, MessageError> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(MessageError::TooLarge { bytes });
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).await?;
    decode(&body)
}
