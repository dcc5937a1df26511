//! Ed25519 keys (RFC 8032) and signatures over domain-separated bytes.
//!
//! Every signature of the protocol covers `"flotilla:" domain 0x00 body`, so that bytes signed for one purpose never verify for
//! another. A domain is a constant that names purpose and version, such as `record/1`.

use std::fmt;
use std::sync::Arc;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::IdentityError;

/// An Ed25519 private key with its seed. Clones share what was computed from it: a hub hands its writer's key to every session.
#[derive(Clone)]
pub struct SigningKey {
    seed: [u8; 32],
    pair: Arc<Ed25519KeyPair>,
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PublicKey(pub [u8; 32]);

/// A signature does not fit key, domain and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

impl SigningKey {
    /// A fresh key from the system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_seed(random_bytes()?)
    }

    /// The key of a seed.
    ///
    /// # Errors
    /// Never for 32 bytes; ring's signature forces the result.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed)
            .map_err(|error| IdentityError::Damaged { field: "Ed25519 seed", why: error.to_string() })?;
        Ok(Self { seed, pair: Arc::new(pair) })
    }

    /// The seed: secret.
    pub fn seed(&self) -> [u8; 32] {
        self.seed
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs `body` for the purpose `domain`.
    pub fn sign(&self, domain: &str, body: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(&signed_bytes(domain, body)).as_ref());
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.public())
    }
}

impl PublicKey {
    /// Verifies that `signature` was made over `domain` and `body` by this key.
    ///
    /// # Errors
    /// [`BadSignature`] in every other case, a signature of a wrong length included.
    pub fn verify(&self, domain: &str, body: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&signed_bytes(domain, body), signature)
            .map_err(|_unspecified| BadSignature)
    }

    /// The key in lower case hexadecimal.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_hex())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

fn signed_bytes(domain: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10 + domain.len() + body.len());
    bytes.extend_from_slice(b"flotilla:");
    bytes.extend_from_slice(domain.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(body);
    bytes
}

/// Lower case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// Fresh random bytes.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], IdentityError> {
    crate::chance::bytes().map_err(|_none| IdentityError::Random)
}
