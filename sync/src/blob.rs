//! Blobs: values too large for a document. The document holds a digest, the content travels and is stored beside it.
//!
//! Owns the names and bounds of blobs. Refuses storage: a [`crate::replica::Replica`] keeps them, by digest, and gives a peer only
//! those that an item names which that peer may read. A reader asks for a range at a time and takes up where it stopped, also
//! after a restart; what came is used only once its digest holds. Start at [`BlobRef`]; the session's half is in
//! `session/blobs.rs`.

use bytes::Bytes;

use crate::channel::{Hash, sha256};

/// Values larger than this are blobs, in bytes.
pub const BLOB_BYTES_MIN: usize = 4096;
/// Largest blob, in bytes: all of an API request fits.
pub const BLOB_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most blobs of one document.
pub const BLOBS_MAX: usize = 256;
/// Largest piece of a blob in one frame, in bytes.
pub const BLOB_PIECE_BYTES_MAX: usize = 16 * 1024;

/// Names a blob: equal names, equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobRef {
    /// SHA-256 of the content.
    pub hash: Hash,
    /// Its length, in bytes.
    pub len: u64,
}

/// A blob with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub name: BlobRef,
    /// What it holds.
    pub content: Bytes,
}

/// A blob that a replica lacks, and how much of it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobWant {
    /// Which.
    pub name: BlobRef,
    /// Where what is there ends.
    pub offset: u64,
}

/// What came of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobStored {
    /// It is durable; more is missing.
    Partly,
    /// The blob is whole and its digest holds.
    Whole,
    /// All is there and is not what was named: it was thrown away.
    Damaged,
    /// Nobody needs it any more, or the piece does not follow what is there.
    Unwanted,
}

/// Finds the content of a blob by its digest.
pub type Blobs<'a> = &'a dyn Fn(&Hash) -> Option<Bytes>;

/// For documents that are known to name no blob, and to ask which are missing.
pub fn no_blobs(_hash: &Hash) -> Option<Bytes> {
    None
}

impl Blob {
    /// Names a content.
    pub fn of(content: Bytes) -> Self {
        Self { name: BlobRef { hash: sha256(&[&content]), len: content.len() as u64 }, content }
    }
}

impl BlobRef {
    /// Whether this is the name of `content`.
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.len == content.len() as u64 && self.hash == sha256(&[content])
    }
}

impl std::fmt::Display for BlobRef {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("sha256:")?;
        self.hash.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        write!(formatter, " ({} bytes)", self.len)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_content() {
        let blob = Blob::of(Bytes::from_static(b"abc"));
        assert!(blob.name.is_of(b"abc") && !blob.name.is_of(b"abd"));
        let shown = blob.name.to_string();
        assert_eq!(shown, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad (3 bytes)");
    }
}
