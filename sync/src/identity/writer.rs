//! Writers of logs: a fresh Ed25519 key per life of a database, certified down from the installation's root.
//!
//! A hub's writer is certified by the root itself, a device's by the device's long-lived key, which the root certified at
//! enrolment: a device takes a new writer id without a link. Verified offline, valid without end: a log outlives all clocks.

use std::fmt;

use super::{DeviceCertificate, IdentityError, NodeName, PublicKey, SigningKey};
use crate::channel::{ChannelName, WriterId};
use crate::record::cbor::{Decoder, Encoder};

const DOMAIN: &str = "writer-certificate/1";
const VERSION: u64 = 1;
/// Largest encoded chain, in bytes.
pub const CHAIN_BYTES_MAX: usize = 8 * 1024;

/// On whose behalf a writer writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriterSubject {
    /// A hub: may write in every channel.
    Hub,
    /// A device: may write in its own channel.
    Device(NodeName),
}

/// A writer's public half, verified against the root.
#[derive(Clone, PartialEq, Eq)]
pub struct WriterChain {
    /// SHA-256 of the key.
    pub id: WriterId,
    /// The writer's key.
    pub key: PublicKey,
    /// On whose behalf.
    pub subject: WriterSubject,
    /// The life of the database it writes for. Orders registers before seq does.
    pub incarnation: u64,
    /// The long-lived key of the device it writes for; `None` for a hub.
    device: Option<PublicKey>,
    encoded: Vec<u8>,
}

/// A writer: signs the heads of its logs.
#[derive(Clone)]
pub struct WriterIdentity {
    key: SigningKey,
    chain: WriterChain,
}

impl WriterSubject {
    /// Whether this subject may write in `channel`.
    pub fn may_write(&self, channel: &ChannelName) -> bool {
        match self {
            Self::Hub => true,
            Self::Device(node) => *channel == ChannelName::Device(node.clone()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("device/") {
            Some(node) => NodeName::parse(node).ok().map(Self::Device),
            None => (text == "hub").then_some(Self::Hub),
        }
    }
}

impl fmt::Display for WriterSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => formatter.write_str("hub"),
            Self::Device(node) => write!(formatter, "device/{node}"),
        }
    }
}

impl WriterIdentity {
    /// A hub's writer, certified by the root. `seed`: 32 fresh random bytes, kept with the database.
    ///
    /// # Errors
    /// Never for 32 bytes; the signature follows ring's.
    pub fn for_hub(seed: [u8; 32], incarnation: u64, root: &SigningKey) -> Result<Self, IdentityError> {
        Self::mint(seed, incarnation, &WriterSubject::Hub, root, &[])
    }

    /// A device's writer, certified by its long-lived key. `seed`: 32 fresh random bytes, kept with the database.
    ///
    /// # Errors
    /// When `device_key` is not the key of `certificate`.
    pub fn for_device(
        seed: [u8; 32],
        incarnation: u64,
        device_key: &SigningKey,
        certificate: &DeviceCertificate,
    ) -> Result<Self, IdentityError> {
        if device_key.public() != certificate.key {
            return Err(damaged("the device's key is not the one in its certificate"));
        }
        let subject = WriterSubject::Device(certificate.node.clone());
        Self::mint(seed, incarnation, &subject, device_key, &certificate.encode())
    }

    /// A stored writer: its seed and the bytes of [`WriterChain::encode`].
    ///
    /// # Errors
    /// When the chain does not verify or is not that of the seed's key.
    pub fn restore(seed: [u8; 32], chain: &[u8], root: &PublicKey) -> Result<Self, IdentityError> {
        let key = SigningKey::from_seed(seed)?;
        let chain = WriterChain::verify(chain, root)?;
        if chain.key != key.public() {
            return Err(damaged("the stored seed is not that of the stored certificate"));
        }
        Ok(Self { key, chain })
    }

    fn mint(
        seed: [u8; 32],
        incarnation: u64,
        subject: &WriterSubject,
        issuer: &SigningKey,
        issuer_certificate: &[u8],
    ) -> Result<Self, IdentityError> {
        let key = SigningKey::from_seed(seed)?;
        let public = key.public();
        let mut body = Encoder::new();
        body.array(4).uint(VERSION).text(&subject.to_string()).bytes(&public.0).uint(incarnation);
        let body = body.finish();
        let signature = issuer.sign(DOMAIN, &body);
        let mut encoded = Encoder::new();
        encoded.array(3).bytes(&body).bytes(issuer_certificate).bytes(&signature);
        let id = WriterId::of(&public);
        let device = matches!(subject, WriterSubject::Device(_)).then(|| issuer.public());
        let encoded = encoded.finish();
        let chain = WriterChain { id, key: public, subject: subject.clone(), incarnation, device, encoded };
        Ok(Self { key, chain })
    }

    /// The writer's id.
    pub fn id(&self) -> WriterId {
        self.chain.id
    }

    /// Its certificate chain.
    pub fn chain(&self) -> &WriterChain {
        &self.chain
    }

    /// Signs for a purpose of this crate.
    pub(crate) fn sign(&self, domain: &str, body: &[u8]) -> [u8; 64] {
        self.key.sign(domain, body)
    }
}

impl fmt::Debug for WriterIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("WriterIdentity").field(&self.chain).finish()
    }
}

impl WriterChain {
    /// Reads a chain and verifies it against the root.
    ///
    /// # Errors
    /// Too large, not decodable, of an unknown version, of an unknown subject, or not signed as it must be.
    pub fn verify(encoded: &[u8], root: &PublicKey) -> Result<Self, IdentityError> {
        if encoded.len() > CHAIN_BYTES_MAX {
            return Err(damaged("it is larger than 8 KiB"));
        }
        let undecodable = |error| IdentityError::Damaged { field: "writer certificate", why: format!("{error}") };
        let mut decoder = Decoder::new(encoded);
        decoder.array_of(3).map_err(undecodable)?;
        let body = decoder.bytes(CHAIN_BYTES_MAX).map_err(undecodable)?;
        let issuer = decoder.bytes(CHAIN_BYTES_MAX).map_err(undecodable)?;
        let signature = decoder.bytes(64).map_err(undecodable)?;
        decoder.end().map_err(undecodable)?;
        let issuer_certificate = match issuer {
            [] => None,
            bytes => Some(DeviceCertificate::verify(bytes, root)?),
        };
        let issuer_key = issuer_certificate.as_ref().map_or(root, |certificate| &certificate.key);
        issuer_key.verify(DOMAIN, body, signature).map_err(|_bad| damaged("its signature does not verify"))?;
        let mut decoder = Decoder::new(body);
        decoder.array_of(4).map_err(undecodable)?;
        if decoder.uint().map_err(undecodable)? != VERSION {
            return Err(damaged("its version is unknown: update this program"));
        }
        let subject = decoder.text(512).map_err(undecodable)?;
        let subject = WriterSubject::parse(subject).ok_or_else(|| damaged("its subject is neither hub nor device"))?;
        let key = PublicKey(decoder.hash().map_err(undecodable)?);
        let incarnation = decoder.uint().map_err(undecodable)?;
        decoder.end().map_err(undecodable)?;
        match (&subject, &issuer_certificate) {
            (WriterSubject::Hub, None) => {}
            (WriterSubject::Device(node), Some(certificate)) if *node == certificate.node => {}
            _ => return Err(damaged("its subject is not its issuer's to certify")),
        }
        let device = issuer_certificate.map(|certificate| certificate.key);
        Ok(Self { id: WriterId::of(&key), key, subject, incarnation, device, encoded: encoded.to_vec() })
    }

    /// The bytes to store and send.
    pub fn encode(&self) -> &[u8] {
        &self.encoded
    }

    /// The long-lived key of the device it writes for; `None` for a hub. Tells a device from one that had its name before.
    pub fn device_key(&self) -> Option<PublicKey> {
        self.device
    }
}

impl fmt::Debug for WriterChain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WriterChain({}, {}, incarnation {})", self.id, self.subject, self.incarnation)
    }
}

fn damaged(why: &str) -> IdentityError {
    IdentityError::Damaged { field: "writer certificate", why: why.to_owned() }
}
