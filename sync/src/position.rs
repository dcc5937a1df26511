//! How far a hub's log in a channel goes, signed: what a broker keeps for devices that come.
//!
//! A device that finds itself behind such a position knows it without asking the hub. Nothing follows from one that is old: a broker may show any
//! that a hub has ever signed, and nothing that none has.

use bytes::Bytes;

use crate::channel::ChannelName;
use crate::identity::PublicKey;
use crate::identity::writer::{CHAIN_BYTES_MAX, WriterChain, WriterIdentity, WriterSubject};
use crate::record::cbor::{CborError, Decoder, Encoder};

const DOMAIN: &str = "position/1";
const VERSION: u64 = 1;
/// Longest name of a channel.
const CHANNEL_BYTES_MAX: usize = 300;
/// Largest encoded position, in bytes.
pub const POSITION_BYTES_MAX: usize = CHAIN_BYTES_MAX + CHANNEL_BYTES_MAX + 256;

/// A verified position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPosition {
    /// Which channel.
    pub channel: ChannelName,
    /// The hub's writer; its log is meant.
    pub writer: crate::channel::WriterId,
    /// Number of its newest record there; 0 when it has not written there yet.
    pub seq: u64,
    /// Life of the hub's database.
    pub incarnation: u64,
    /// Newest commit of the hub when it signed.
    pub commit: u64,
    encoded: Bytes,
}

/// Why a position is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Not the encoding of this page.
    #[error("position: {0}")]
    Encoding(#[from] CborError),
    /// Not signed by a hub's writer of this installation.
    #[error("position: not signed by a hub of this installation: {0}")]
    Forged(String),
    /// Another channel's.
    #[error("position: it is one of {found}, expected was one of {expected}")]
    OtherChannel {
        /// The channel in it.
        found: String,
        /// The channel asked for.
        expected: ChannelName,
    },
}

impl SignedPosition {
    /// Signs with a hub's writer how far its log in `channel` goes.
    pub fn sign(identity: &WriterIdentity, channel: ChannelName, seq: u64, commit: u64) -> Self {
        let incarnation = identity.chain().incarnation;
        let mut body = Encoder::new();
        body.array(5).uint(VERSION).text(&channel.to_string()).uint(seq).uint(incarnation).uint(commit);
        let body = body.finish();
        let mut encoder = Encoder::new();
        encoder.array(3).bytes(identity.chain().encode()).bytes(&body).bytes(&identity.sign(DOMAIN, &body));
        Self { channel, writer: identity.id(), seq, incarnation, commit, encoded: Bytes::from(encoder.finish()) }
    }

    /// Reads and verifies a position of `channel`.
    ///
    /// # Errors
    /// Not the encoding of this page, not signed by a hub's writer under `root`, or another channel's.
    pub fn verify(encoded: &Bytes, root: &PublicKey, channel: &ChannelName) -> Result<Self, PositionError> {
        let mut outer = Decoder::new(encoded);
        outer.array_of(3)?;
        let chain = outer.bytes(CHAIN_BYTES_MAX)?;
        let body = outer.bytes(CHANNEL_BYTES_MAX + 64)?;
        let signature = outer.bytes(64)?;
        outer.end()?;
        let chain = WriterChain::verify(chain, root).map_err(|error| PositionError::Forged(error.to_string()))?;
        if chain.subject != WriterSubject::Hub {
            return Err(PositionError::Forged(format!("{} is no hub", chain.subject)));
        }
        chain.key.verify(DOMAIN, body, signature).map_err(|bad| PositionError::Forged(bad.to_string()))?;
        let mut decoder = Decoder::new(body);
        decoder.array_of(5)?;
        let version = decoder.error("the version is unknown: update this program");
        if decoder.uint()? != VERSION {
            return Err(version.into());
        }
        let found = decoder.text(CHANNEL_BYTES_MAX)?;
        if found != channel.to_string() {
            return Err(PositionError::OtherChannel { found: found.to_owned(), expected: channel.clone() });
        }
        let (seq, incarnation, commit) = (decoder.uint()?, decoder.uint()?, decoder.uint()?);
        decoder.end()?;
        if incarnation != chain.incarnation {
            return Err(PositionError::Forged("its incarnation is not its signer's".to_owned()));
        }
        let (channel, writer) = (channel.clone(), chain.id);
        Ok(Self { channel, writer, seq, incarnation, commit, encoded: encoded.clone() })
    }

    /// The bytes to publish.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Whether the same or another life of the hub signed this one later than `other`.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.commit) > (other.incarnation, other.commit)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
