//! Tokens: what an operator hands to a device so that it can find its hub, recognise it and be admitted.
//!
//! Text form: `flt1.` and base64url of a CBOR map. The hub keeps only a hash of the secret.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::identity::bytes::Bytes;
use crate::identity::{IdentityError, InstallationId, NodeName, PublicKey, SealingPublicKey, random_bytes};

const PREFIX: &str = "flt1.";
/// Longest token text.
const TEXT_BYTES_MAX: usize = 4096;
/// Most addresses of each kind.
const ADDRESSES_MAX: usize = 16;
/// A device whose answer was lost may use its token again until so long after the expiry.
const REPEAT_GRACE_MS: u64 = 60 * 60_000;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// QUIC addresses of the hub, `host:port`, best first.
    pub quic: Vec<String>,
    /// MQTT brokers of the hub, `mqtt://[user:password@]host:port`, best first.
    pub mqtt: Vec<String>,
    /// SHA-256 of the authority's certificate.
    pub pin: [u8; 32],
    /// The installation's root key.
    pub root: PublicKey,
    /// Names the token at the hub; not secret.
    pub id: String,
    /// The secret.
    pub secret: [u8; 32],
    /// End of its life, milliseconds.
    pub expires_ms: u64,
    /// The only node it admits.
    pub node: Option<NodeName>,
    /// To which a device without any network seals its request to join; `None` in tokens of earlier versions.
    pub sealing: Option<SealingPublicKey>,
}

/// What a device presents of its token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenProof {
    /// Names the token.
    pub id: String,
    /// Its secret.
    pub secret: [u8; 32],
}

/// What the hub keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Names the token.
    pub id: String,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// End of its life, milliseconds.
    pub expires_ms: u64,
    /// The only node it admits.
    pub node: Option<NodeName>,
    /// How many devices it admits.
    pub uses_max: u32,
    /// The devices it has admitted: name and key.
    pub used_by: Vec<(NodeName, PublicKey)>,
}

/// What [`TokenRecord::check`] found in favour of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenUse {
    /// Admit it, and add it to `used_by` in the transaction that admits it.
    First,
    /// It was admitted before: answer again, use nothing up.
    Again,
}

/// Why a token does not admit a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No such token.
    #[error(
        "token {id} is unknown to this hub: it was deleted, or it belongs to another installation; create a new one with `flotilla token create`"
    )]
    Unknown {
        /// The id presented.
        id: String,
    },
    /// The secret is another one.
    #[error("token {id}: the secret is wrong; copy the whole token again")]
    WrongSecret {
        /// Which token.
        id: String,
    },
    /// Too late.
    #[error("token {id} expired {ago_s} s ago; create a new one with `flotilla token create`")]
    Expired {
        /// Which token.
        id: String,
        /// How long ago.
        ago_s: u64,
    },
    /// Restricted to another node.
    #[error(
        "token {id} admits only node {admits}, not {node}; start the agent with --name {admits} or create another token"
    )]
    WrongNode {
        /// Which token.
        id: String,
        /// Whom it admits.
        admits: NodeName,
        /// Who came.
        node: NodeName,
    },
    /// Used up.
    #[error("token {id} has been used by {used} of {uses_max} devices; create a new one with `flotilla token create`")]
    UsedUp {
        /// Which token.
        id: String,
        /// By how many.
        used: usize,
        /// How many it admits.
        uses_max: u32,
    },
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenParseError {
    /// Another prefix.
    #[error("not a Flotilla token: a token begins with \"{PREFIX}\"")]
    Prefix,
    /// A newer format.
    #[error("token of a newer version ({found}): this program reads {PREFIX} tokens, update it")]
    Version {
        /// The prefix found.
        found: String,
    },
    /// Too long.
    #[error("token is {bytes} bytes long, more than the {TEXT_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Cut short or altered.
    #[error("token is damaged ({why}): copy it again, whole and without line breaks")]
    Damaged {
        /// What the parser said.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "q", default, skip_serializing_if = "Vec::is_empty")]
    quic: Vec<String>,
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    mqtt: Vec<String>,
    #[serde(rename = "c")]
    pin: Bytes,
    #[serde(rename = "r")]
    root: Bytes,
    #[serde(rename = "i")]
    id: String,
    #[serde(rename = "s")]
    secret: Bytes,
    #[serde(rename = "e")]
    expires_ms: u64,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    sealing: Option<Bytes>,
}

impl Token {
    /// A new token with fresh id and secret, and the record the hub must store before it hands the token out.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn generate(
        (quic, mqtt): (Vec<String>, Vec<String>),
        (pin, root): ([u8; 32], PublicKey),
        expires_ms: u64,
        node: Option<NodeName>,
        uses_max: u32,
    ) -> Result<(Self, TokenRecord), IdentityError> {
        let secret = random_bytes::<32>()?;
        let id = crate::identity::hex(&random_bytes::<5>()?);
        let record = TokenRecord {
            id: id.clone(),
            secret_hash: hash(&secret),
            expires_ms,
            node: node.clone(),
            uses_max,
            used_by: Vec::new(),
        };
        Ok((Self { quic, mqtt, pin, root, id, secret, expires_ms, node, sealing: None }, record))
    }

    /// Reads the text form; surrounding white space is ignored.
    ///
    /// # Errors
    /// Each way in which it is no token.
    pub fn parse(text: &str) -> Result<Self, TokenParseError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenParseError::TooLong { bytes: text.len() });
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            let (prefix, rest) = text.split_once('.').unwrap_or((text, ""));
            let version = prefix.strip_prefix("flt").filter(|version| version.parse::<u16>().is_ok());
            return Err(match version {
                Some(_) if !rest.is_empty() => TokenParseError::Version { found: prefix.to_owned() },
                _ => TokenParseError::Prefix,
            });
        };
        let damaged = |why: &dyn fmt::Display| TokenParseError::Damaged { why: why.to_string() };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|error| damaged(&error))?;
        let mut rest = &bytes[..];
        let wire: Wire = ciborium::from_reader(&mut rest).map_err(|error| damaged(&error))?;
        if !rest.is_empty() {
            return Err(damaged(&"bytes after its end"));
        }
        if wire.quic.len() > ADDRESSES_MAX || wire.mqtt.len() > ADDRESSES_MAX {
            return Err(damaged(&format!("more than {ADDRESSES_MAX} addresses")));
        }
        if wire.quic.is_empty() && wire.mqtt.is_empty() {
            return Err(damaged(&"it names no address of a hub"));
        }
        Ok(Self {
            quic: wire.quic,
            mqtt: wire.mqtt,
            pin: wire.pin.array().ok_or_else(|| damaged(&"the authority's hash is not 32 bytes"))?,
            root: PublicKey(wire.root.array().ok_or_else(|| damaged(&"the root key is not 32 bytes"))?),
            id: wire.id,
            secret: wire.secret.array().ok_or_else(|| damaged(&"the secret is not 32 bytes"))?,
            expires_ms: wire.expires_ms,
            node: wire.node,
            sealing: match wire.sealing {
                Some(key) => {
                    Some(SealingPublicKey(key.array().ok_or_else(|| damaged(&"the sealing key is not 32 bytes"))?))
                }
                None => None,
            },
        })
    }

    /// The text form: secret.
    pub fn encode(&self) -> String {
        let wire = Wire {
            quic: self.quic.clone(),
            mqtt: self.mqtt.clone(),
            pin: Bytes(self.pin.to_vec()),
            root: Bytes(self.root.0.to_vec()),
            id: self.id.clone(),
            secret: Bytes(self.secret.to_vec()),
            expires_ms: self.expires_ms,
            node: self.node.clone(),
            sealing: self.sealing.map(|key| Bytes(key.0.to_vec())),
        };
        let mut bytes = Vec::new();
        // Texts, numbers and byte strings into a growing vector: there is nothing in it that can fail.
        ciborium::into_writer(&wire, &mut bytes).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// With the hub's sealing key, so that a device can ask to join by stick.
    #[must_use]
    pub fn with_sealing(mut self, key: SealingPublicKey) -> Self {
        self.sealing = Some(key);
        self
    }

    /// What the device presents.
    pub fn proof(&self) -> TokenProof {
        TokenProof { id: self.id.clone(), secret: self.secret }
    }

    /// The installation it belongs to.
    pub fn installation(&self) -> InstallationId {
        InstallationId::of(&self.root)
    }
}

impl TokenRecord {
    /// Whether a token admits a device now. `record` is what the hub keeps under the presented id.
    ///
    /// # Errors
    /// Each reason why not. Who does not know the secret learns nothing else about a token.
    pub fn check(
        record: Option<&Self>,
        presented: &TokenProof,
        now_ms: u64,
        node: &NodeName,
        device_key: &PublicKey,
    ) -> Result<TokenUse, TokenError> {
        let id = presented.id.chars().take(64).collect::<String>();
        let Some(record) = record.filter(|record| record.id == presented.id) else {
            return Err(TokenError::Unknown { id });
        };
        // Hashes are compared: how long that takes tells nothing about the secret.
        if hash(&presented.secret) != record.secret_hash {
            return Err(TokenError::WrongSecret { id });
        }
        if let Some(admits) = record.node.as_ref().filter(|admits| *admits != node) {
            return Err(TokenError::WrongNode { id, admits: admits.clone(), node: node.clone() });
        }
        let again = record.used_by.iter().any(|(name, key)| name == node && key == device_key);
        let grace_ms = if again { REPEAT_GRACE_MS } else { 0 };
        if now_ms > record.expires_ms.saturating_add(grace_ms) {
            return Err(TokenError::Expired { id, ago_s: now_ms.saturating_sub(record.expires_ms) / 1000 });
        }
        if again {
            return Ok(TokenUse::Again);
        }
        let used = record.used_by.len();
        if used >= usize::try_from(record.uses_max).unwrap_or(usize::MAX) {
            return Err(TokenError::UsedUp { id, used, uses_max: record.uses_max });
        }
        Ok(TokenUse::First)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Token")
            .field("id", &self.id)
            .field("quic", &self.quic)
            .field("expires_ms", &self.expires_ms)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenProof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenProof").field("id", &self.id).finish_non_exhaustive()
    }
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
    bytes
}
