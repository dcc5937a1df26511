//! A hub's signed greeting: its time and how far its commits go. Devices keep the newest and show it to every hub.

use bytes::Bytes;

use crate::identity::PublicKey;
use crate::identity::writer::{CHAIN_BYTES_MAX, WriterChain, WriterIdentity, WriterSubject};
use crate::record::cbor::{CborError, Decoder, Encoder};

const DOMAIN: &str = "greeting/1";
const VERSION: u64 = 1;
/// Largest encoded greeting, in bytes.
pub const GREETING_BYTES_MAX: usize = CHAIN_BYTES_MAX + 256;

/// A verified greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Life of the hub's database.
    pub incarnation: u64,
    /// Newest commit of the hub when it signed.
    pub commit: u64,
    /// Time of the hub when it signed. Milliseconds. Raises the floor of trusted time.
    pub time_ms: u64,
    encoded: Bytes,
}

/// Why a greeting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// Not the encoding of this page.
    #[error("greeting: {0}")]
    Encoding(#[from] CborError),
    /// Not signed by a hub's writer of this installation.
    #[error("greeting: not signed by a hub of this installation: {0}")]
    Forged(String),
}

impl Greeting {
    /// Signs a greeting with a hub's writer.
    pub fn sign(identity: &WriterIdentity, commit: u64, time_ms: u64) -> Self {
        let incarnation = identity.chain().incarnation;
        let mut body = Encoder::new();
        body.array(4).uint(VERSION).uint(incarnation).uint(commit).uint(time_ms);
        let body = body.finish();
        let mut encoder = Encoder::new();
        encoder.array(3).bytes(identity.chain().encode()).bytes(&body).bytes(&identity.sign(DOMAIN, &body));
        Self { incarnation, commit, time_ms, encoded: Bytes::from(encoder.finish()) }
    }

    /// Reads and verifies a greeting.
    ///
    /// # Errors
    /// Not the encoding of this page, or not signed by a hub's writer under `root`.
    pub fn verify(encoded: &Bytes, root: &PublicKey) -> Result<Self, GreetingError> {
        let mut outer = Decoder::new(encoded);
        outer.array_of(3)?;
        let chain = outer.bytes(CHAIN_BYTES_MAX)?;
        let body = outer.bytes(128)?;
        let signature = outer.bytes(64)?;
        outer.end()?;
        let chain = WriterChain::verify(chain, root).map_err(|error| GreetingError::Forged(error.to_string()))?;
        if chain.subject != WriterSubject::Hub {
            return Err(GreetingError::Forged(format!("{} is no hub", chain.subject)));
        }
        chain.key.verify(DOMAIN, body, signature).map_err(|bad| GreetingError::Forged(bad.to_string()))?;
        let mut decoder = Decoder::new(body);
        decoder.array_of(4)?;
        let version = decoder.error("the version is unknown: update this program");
        if decoder.uint()? != VERSION {
            return Err(version.into());
        }
        let greeting = Self {
            incarnation: decoder.uint()?,
            commit: decoder.uint()?,
            time_ms: decoder.uint()?,
            encoded: encoded.clone(),
        };
        decoder.end()?;
        if greeting.incarnation != chain.incarnation {
            return Err(GreetingError::Forged("its incarnation is not its signer's".to_owned()));
        }
        Ok(greeting)
    }

    /// The bytes to store and send.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Whether this greeting is newer than `other`: a hub that sees a newer one than its own was restored from a backup.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.commit) > (other.incarnation, other.commit)
    }
}
