//! How a device gets its identity: by a token, or again by its long-lived key.
//!
//! Over a TLS stream on which only the hub has proven itself (the token pins the installation's authority) the device sends one
//! request, signed with its long-lived key together with a value that belongs to this TLS connection alone, so that nobody can
//! carry a request from one connection to another. The hub answers once.
//!
//! An answer may be lost. The device then sends the same token with the same device key again; a single-use token knows the key
//! that used it and admits it again until an hour after its expiry. Keys must therefore be stored *before* the first request,
//! and the answer before it is used.
//!
//! Owns the two messages and their verification. Refuses every decision: which node may enrol is the hub's, behind [`Enroller`].

mod device;
mod file;
mod hub;
mod token;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;

use serde::{Deserialize, Serialize};

pub use device::{EnrolError, Enrolment, EnrolmentMaterial, Introduction, Proof, enrol};
pub use file::{JoinMaterial, answer_of, request_of};
pub use hub::{ServeError, serve};
pub use token::{Token, TokenError, TokenParseError, TokenProof, TokenRecord, TokenUse};

use crate::identity::{NodeName, PublicKey, SealingPublicKey};

/// A request whose signature, certificate request and, for a re-enrolment, device certificate have been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolRequest {
    /// Why the device may.
    pub proof: EnrolProof,
    /// The name it asks for (re-enrolment: the name it has).
    pub node: NodeName,
    /// Labels for its Node; keys and values are not yet validated as labels.
    pub labels: BTreeMap<String, String>,
    /// PKCS#10 request for the session key; proof of possession and subject are verified.
    pub csr: Vec<u8>,
    /// The device's long-lived key, which has signed this request.
    pub device_key: PublicKey,
    /// The key to which Secrets are sealed.
    pub sealing: SealingPublicKey,
}

/// Why a device may enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolProof {
    /// A token, still to be checked by [`TokenRecord::check`].
    Token(TokenProof),
    /// The root's certificate over its key, verified: it is this node.
    Device {
        /// Uid of its Node as the certificate says.
        node_uid: String,
    },
}

/// The hub's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolResponse {
    /// Session certificate chain, DER, leaf first ([`Installation::issue_session`](crate::identity::Installation)).
    pub chain: Vec<Vec<u8>>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// The installation's root key.
    pub root: PublicKey,
    /// The root's certificate over the device's keys, encoded.
    pub device_certificate: Vec<u8>,
    /// Uid of the Node.
    pub node_uid: String,
    /// The fleet it belongs to.
    pub fleet: String,
    /// This life of the device's database.
    pub incarnation: u64,
    /// The hub's time, milliseconds: raises the device's floor.
    pub hub_time_ms: u64,
    /// QUIC addresses of the hub, best first.
    pub quic: Vec<String>,
    /// MQTT brokers of the hub, best first.
    pub mqtt: Vec<String>,
    /// To which the device seals what it sends by stick; `None`: a hub of an earlier version.
    pub hub_sealing: Option<SealingPublicKey>,
}

/// Why the hub does not enrol a device; the message is shown to whoever stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EnrolRefusal {
    /// Whether trying again may help.
    pub kind: RefusalKind,
    /// What is wrong and what to do.
    pub message: String,
    /// For [`RefusalKind::Busy`]: when to come back. Milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The token does not admit this device: another one is needed.
    Token,
    /// The name is taken by another device, or not allowed.
    Name,
    /// The request itself is wrong.
    Request,
    /// The hub cannot now; the same request may succeed later.
    Busy,
}

/// The hub's decision over requests.
pub trait Enroller: Send + Sync {
    /// Decides. Must be durable before it answers, and must answer the same token and device key alike when asked again.
    fn enrol(&self, request: EnrolRequest) -> impl Future<Output = Result<EnrolResponse, EnrolRefusal>> + Send;
}

impl From<TokenError> for EnrolRefusal {
    fn from(error: TokenError) -> Self {
        Self { kind: RefusalKind::Token, message: error.to_string(), retry_after_ms: None }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
