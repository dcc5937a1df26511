//! A device's long-lived keys and the root's certificate over them.

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;
use super::{IdentityError, NodeName, PublicKey, SealingKey, SealingPublicKey, SigningKey};

const DOMAIN: &str = "device-certificate/1";
/// Largest encoded device certificate.
const CERTIFICATE_BYTES_MAX: usize = 4096;

/// The two keys a device makes once, before its first enrolment. The signing key certifies writer keys and re-enrols; it signs
/// nothing else.
#[derive(Debug, Clone)]
pub struct DeviceKeys {
    /// Long-lived Ed25519 key.
    pub signing: SigningKey,
    /// Long-lived X25519 key to which Secrets are sealed.
    pub sealing: SealingKey,
}

/// [`DeviceKeys`] as stored: secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKeysMaterial {
    /// Seed of the Ed25519 key.
    pub signing_seed: [u8; 32],
    /// Secret bytes of the X25519 key.
    pub sealing: [u8; 32],
}

/// The root's statement that a key belongs to a node. Travels and is stored as the bytes of [`DeviceCertificate::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// The device.
    pub node: NodeName,
    /// Uid of its Node, which survives re-enrolment.
    pub node_uid: String,
    /// Its long-lived signing key.
    pub key: PublicKey,
    /// Its sealing key.
    pub sealing: SealingPublicKey,
    /// When the root said so. Milliseconds.
    pub issued_ms: u64,
    body: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    v: u8,
    node: NodeName,
    uid: String,
    key: Bytes,
    sealing: Bytes,
    issued: u64,
}

#[derive(Serialize, Deserialize)]
struct Signed(Bytes, Bytes);

impl DeviceKeys {
    /// Fresh keys from the system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self { signing: SigningKey::generate()?, sealing: SealingKey::generate()? })
    }

    /// Reads stored keys.
    ///
    /// # Errors
    /// When they are no keys.
    pub fn from_material(material: &DeviceKeysMaterial) -> Result<Self, IdentityError> {
        Ok(Self {
            signing: SigningKey::from_seed(material.signing_seed)?,
            sealing: SealingKey::from_bytes(material.sealing),
        })
    }

    /// What to store.
    pub fn to_material(&self) -> DeviceKeysMaterial {
        DeviceKeysMaterial { signing_seed: self.signing.seed(), sealing: self.sealing.to_bytes() }
    }
}

impl std::fmt::Debug for DeviceKeysMaterial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DeviceKeysMaterial(..)")
    }
}

impl DeviceCertificate {
    /// Signs a certificate with the installation's root.
    ///
    /// # Errors
    /// When the body cannot be encoded, which its types exclude.
    pub(super) fn issue(
        root: &SigningKey,
        node: &NodeName,
        node_uid: &str,
        key: PublicKey,
        sealing: SealingPublicKey,
        issued_ms: u64,
    ) -> Result<Self, IdentityError> {
        let body = Body {
            v: 1,
            node: node.clone(),
            uid: node_uid.to_owned(),
            key: Bytes(key.0.to_vec()),
            sealing: Bytes(sealing.0.to_vec()),
            issued: issued_ms,
        };
        let mut bytes = Vec::new();
        ciborium::into_writer(&body, &mut bytes).map_err(|error| damaged(&error))?;
        let signature = root.sign(DOMAIN, &bytes).to_vec();
        Ok(Self { node: node.clone(), node_uid: node_uid.to_owned(), key, sealing, issued_ms, body: bytes, signature })
    }

    /// Reads a certificate and verifies it against the root.
    ///
    /// # Errors
    /// Too large, not decodable, of another version, or not signed by `root`.
    pub fn verify(bytes: &[u8], root: &PublicKey) -> Result<Self, IdentityError> {
        if bytes.len() > CERTIFICATE_BYTES_MAX {
            return Err(damaged(&format!("{} bytes are more than {CERTIFICATE_BYTES_MAX}", bytes.len())));
        }
        let Signed(body, signature) = ciborium::from_reader(bytes).map_err(|error| damaged(&error))?;
        root.verify(DOMAIN, &body.0, &signature.0)
            .map_err(|_bad| damaged(&"it is not signed by this installation's root"))?;
        let decoded: Body = ciborium::from_reader(&body.0[..]).map_err(|error| damaged(&error))?;
        if decoded.v != 1 {
            return Err(damaged(&format!("version {} is unknown: update this program", decoded.v)));
        }
        Ok(Self {
            node: decoded.node,
            node_uid: decoded.uid,
            key: PublicKey(decoded.key.array().ok_or_else(|| damaged(&"its key is not 32 bytes"))?),
            sealing: SealingPublicKey(
                decoded.sealing.array().ok_or_else(|| damaged(&"its sealing key is not 32 bytes"))?,
            ),
            issued_ms: decoded.issued,
            body: body.0,
            signature: signature.0,
        })
    }

    /// The bytes to store and send: CBOR of `[body, signature]`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.body.len() + 80);
        let signed = Signed(Bytes(self.body.clone()), Bytes(self.signature.clone()));
        // Two byte strings into a growing vector: there is nothing in it that can fail.
        ciborium::into_writer(&signed, &mut bytes).unwrap_or_default();
        bytes
    }
}

fn damaged(why: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Damaged { field: "device certificate", why: why.to_string() }
}
