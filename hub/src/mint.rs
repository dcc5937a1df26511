//! What the hub draws by chance: uids, name suffixes, secrets.

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_sync::chance;

/// Kubernetes' alphabet for generated names: no vowels, no look-alikes.
const SAFE_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `N` random bytes.
///
/// # Errors
/// When the operating system has no randomness to give.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], ApiError> {
    chance::bytes().map_err(|none| ApiError::of(Reason::InternalError, none.to_string()))
}

/// A version 4 UUID (RFC 9562).
///
/// # Errors
/// When the operating system has no randomness to give.
pub(crate) fn uid() -> Result<String, ApiError> {
    let mut raw = bytes::<16>()?;
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    let hex = hex(&raw);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// Five characters for `generateName`.
///
/// # Errors
/// When the operating system has no randomness to give.
pub(crate) fn name_suffix() -> Result<String, ApiError> {
    let raw = bytes::<5>()?;
    Ok(raw.iter().map(|byte| char::from(SAFE_ALPHABET[usize::from(*byte) % SAFE_ALPHABET.len()])).collect())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(raw: &[u8]) -> String {
    use std::fmt::Write;
    raw.iter().fold(String::with_capacity(raw.len() * 2), |mut text, byte| {
        if write!(text, "{byte:02x}").is_err() {
            unreachable!("writing to a String does not fail");
        }
        text
    })
}
