//! Sealing: the file key, and each section under it.
//!
//! ChaCha20-Poly1305 (RFC 8439) with the section's number as nonce; a file key is used for one file alone. The additional data is
//! the header's digest and the frame's beginning, so that a section opens in its file and at its number only.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::format::{Frame, Header, encode_frame, frame_head};
use super::section::Section;
use super::{BundleError, Receiver};
use crate::channel::{Hash, sha256};
use crate::identity::{
    IdentityError, InstallationId, SealingError, SealingKey, SealingPublicKey, open, random_bytes, seal,
};

const COMMITMENT_DOMAIN: &[u8] = b"flotilla:bundle-key/1\0";

/// For whom and when: what a bundle's header says.
#[derive(Debug, Clone)]
pub struct Seal {
    /// Whose bundle it is.
    pub installation: InstallationId,
    /// For whom.
    pub receiver: Receiver,
    /// The receiver's sealing key.
    pub key: SealingPublicKey,
    /// Now, by the maker's clock. Milliseconds.
    pub time_ms: u64,
}

/// The key of one file.
pub(super) struct FileKey {
    key: LessSafeKey,
    header: Hash,
    /// What section 0 is signed over, and a request to join is bound to.
    pub(super) binding: Hash,
}

/// Seals sections, one after the other.
#[derive(Debug)]
pub(super) struct Sealer {
    key: FileKey,
    index: u32,
}

impl Sealer {
    /// A fresh file: its first bytes.
    pub(super) fn begin(seal_to: &Seal) -> Result<(Self, Vec<u8>, Header), BundleError> {
        let (secret, id) = (random_bytes::<32>()?, random_bytes::<16>()?);
        let bare = Header::bare(&seal_to.installation, &seal_to.receiver, seal_to.time_ms, &id);
        let (encoded, header) = Header::encode(&bare, &seal(&seal_to.key, &bare, &secret)?)?;
        let key = FileKey::new(&secret, header.digest)?;
        Ok((Self { key, index: 0 }, encoded, header))
    }

    pub(super) fn binding(&self) -> &Hash {
        &self.key.binding
    }

    pub(super) fn sections(&self) -> u32 {
        self.index
    }

    /// The bytes of the next frame.
    pub(super) fn seal(&mut self, section: &Section, last: bool) -> Result<Vec<u8>, BundleError> {
        let mut sealed = section.encode();
        let head = frame_head(self.index, sealed.len(), last)?;
        let aad = [&self.key.header[..], &head].concat();
        self.key
            .key
            .seal_in_place_append_tag(nonce(self.index), Aad::from(aad), &mut sealed)
            .map_err(|_unspecified| BundleError::Sealing(SealingError::TooLarge { bytes: sealed.len() }))?;
        self.index = self.index.checked_add(1).ok_or(BundleError::TooLarge { what: "the bundle", max: 1 << 31 })?;
        Ok(encode_frame(&head, &sealed))
    }
}

impl FileKey {
    fn new(secret: &[u8; 32], header: Hash) -> Result<Self, BundleError> {
        let unusable = |_unspecified| IdentityError::Damaged { field: "file key", why: "it is no key".to_owned() };
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, secret).map_err(unusable)?);
        let binding = sha256(&[COMMITMENT_DOMAIN, &header, secret]);
        Ok(Self { key, header, binding })
    }

    /// Opens the file key of a bundle that is for the holder of `key`.
    pub(super) fn open(header: &Header, key: &SealingKey) -> Result<Self, BundleError> {
        let bare = Header::bare(&header.installation, &header.receiver, header.time_ms, &header.id);
        let other = |_error| BundleError::OtherKey { meant: header.receiver.clone() };
        let secret: [u8; 32] = open(key, &bare, &header.sealed_key)
            .map_err(other)?
            .try_into()
            .map_err(|_length| BundleError::Damaged { why: "its key is not 32 bytes".to_owned() })?;
        Self::new(&secret, header.digest)
    }

    /// A section in clear; `None` when it was not sealed for this file and this place.
    pub(super) fn section(&self, frame: &Frame) -> Option<Vec<u8>> {
        let aad = [&self.header[..], &frame.head].concat();
        let mut sealed = frame.sealed.to_vec();
        let length = self.key.open_in_place(nonce(frame.index), Aad::from(aad), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FileKey(..)")
    }
}

fn nonce(index: u32) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 4..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
