//! Sealing of Secrets to one device: HPKE base mode (RFC 9180) with X25519, HKDF-SHA256 and ChaCha20-Poly1305.
//!
//! A sealed text is `version (1 byte) | encapsulated key (32) | ciphertext and tag`. The additional data names what the text is
//! for, so that a sealed Secret cannot be passed off as another one.

use std::convert::Infallible;
use std::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

use super::IdentityError;

const VERSION: u8 = 1;
const ENCAPSULATED_BYTES: usize = 32;
const INFO: &[u8] = b"flotilla:sealed/1";
/// Largest plaintext: a Secret is at most 1 MiB, and its encoding adds some.
const PLAINTEXT_BYTES_MAX: usize = 2 << 20;

/// The device's secret half of its sealing key.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

/// What the hub seals to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SealingPublicKey(pub [u8; 32]);

/// Why a text could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealingError {
    /// The public key is no point a text can be sealed to.
    #[error("the device's sealing key is not a valid X25519 key")]
    Key,
    /// More than 2 MiB.
    #[error("text to seal is {bytes} bytes, more than the {PLAINTEXT_BYTES_MAX} allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No random bytes could be drawn.
    #[error("the system's random source failed")]
    Random,
    /// Shorter than its header.
    #[error("sealed text is {bytes} bytes, too short to be one")]
    Truncated {
        /// Its size.
        bytes: usize,
    },
    /// A newer format.
    #[error("sealed text has version {version}; this program reads version 1: update it")]
    Version {
        /// The version found.
        version: u8,
    },
    /// Sealed to another key, for another purpose, or altered.
    #[error("sealed text does not open: it was sealed to another key or for another purpose, or it was altered")]
    DoesNotOpen,
}

impl SealingKey {
    /// A fresh key from the system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn generate() -> Result<Self, IdentityError> {
        let (secret, _public) = X25519HkdfSha256::derive_keypair(&super::keys::random_bytes::<32>()?);
        Ok(Self(secret.to_bytes().into()))
    }

    /// The key that belongs to a secret and a purpose, always the same one (RFC 9180, 7.1.3).
    pub(crate) fn derive(purpose: &str, secret: &[u8; 32]) -> Self {
        let material = crate::channel::sha256(&[b"flotilla:", purpose.as_bytes(), &[0], secret]);
        let (secret, _public) = X25519HkdfSha256::derive_keypair(&material);
        Self(secret.to_bytes().into())
    }

    /// The key of stored bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes to store: secret.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The public half.
    ///
    /// # Errors
    /// When stored bytes were no key.
    pub fn public(&self) -> Result<SealingPublicKey, IdentityError> {
        let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&self.0)
            .map_err(|error| IdentityError::Damaged { field: "sealing key", why: error.to_string() })?;
        Ok(SealingPublicKey(X25519HkdfSha256::sk_to_pk(&secret).to_bytes().into()))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealingKey(..)")
    }
}

/// Seals `plaintext` so that only the holder of the secret half of `to` can open it, and only with the same `aad`.
///
/// # Errors
/// A plaintext above 2 MiB, or a key that is no point.
pub fn seal(to: &SealingPublicKey, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealingError> {
    if plaintext.len() > PLAINTEXT_BYTES_MAX {
        return Err(SealingError::TooLarge { bytes: plaintext.len() });
    }
    let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&to.0).map_err(|_error| SealingError::Key)?;
    let mut dice = Dice::default();
    let (encapsulated, ciphertext) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        INFO,
        plaintext,
        aad,
        &mut dice,
    )
    .map_err(|_error| SealingError::Key)?;
    dice.drawn?;
    let mut sealed = Vec::with_capacity(1 + ENCAPSULATED_BYTES + ciphertext.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(&encapsulated.to_bytes());
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

/// [`crate::chance`] as HPKE asks for it; a failure, which it has no words for, is kept until it has ended.
struct Dice {
    drawn: Result<(), SealingError>,
}

impl Default for Dice {
    fn default() -> Self {
        Self { drawn: Ok(()) }
    }
}

impl TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if crate::chance::fill(bytes).is_err() {
            self.drawn = Err(SealingError::Random);
        }
        Ok(())
    }
}

impl TryCryptoRng for Dice {}

/// Opens what [`seal`] made.
///
/// # Errors
/// Each way in which the text is not one sealed to this key with this `aad`.
pub fn open(key: &SealingKey, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealingError> {
    match sealed.first() {
        Some(&VERSION) if sealed.len() > ENCAPSULATED_BYTES => {}
        Some(&VERSION) | None => return Err(SealingError::Truncated { bytes: sealed.len() }),
        Some(&version) => return Err(SealingError::Version { version }),
    }
    if sealed.len() > PLAINTEXT_BYTES_MAX + 64 {
        return Err(SealingError::TooLarge { bytes: sealed.len() });
    }
    let (encapsulated, ciphertext) = sealed[1..].split_at(ENCAPSULATED_BYTES);
    let encapsulated =
        <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_error| SealingError::DoesNotOpen)?;
    let secret =
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&key.0).map_err(|_error| SealingError::DoesNotOpen)?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &secret,
        &encapsulated,
        INFO,
        ciphertext,
        aad,
    )
    .map_err(|_error| SealingError::DoesNotOpen)
}
