//! What can go wrong with images, in words for the person who brought them.

use std::io;
use std::path::{Path, PathBuf};

use super::reference::ParseError;

/// Why an image could not be imported, listed, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("could not {action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Reference(#[from] ParseError),
    #[error("{path} is no OCI image layout: {why}")]
    NotALayout { path: PathBuf, why: String },
    #[error(
        "{what} {digest} is damaged or not what it should be: {why}; nothing was imported, make the image layout again"
    )]
    Blob { what: &'static str, digest: String, why: String },
    #[error("layer {layer}, entry {entry:?}: {why}; nothing was imported")]
    Entry { layer: String, entry: String, why: String },
    #[error("layer {layer}: {why}; nothing was imported")]
    Layer { layer: String, why: String },
    #[error("the image has nothing for this machine ({wanted}): it is for {offered}")]
    Platform { wanted: String, offered: String },
    #[error("{path} holds {count} images ({names}): say which with --name")]
    Ambiguous { path: PathBuf, count: usize, names: String },
    #[error("{path} does not say what its image is called (its own name is {said:?}): give a name with --name")]
    Unnamed { path: PathBuf, said: String },
    #[error(
        "the disk of {path} has too little space: {available_bytes} bytes are free, and {reserve_bytes} are kept for the workloads; \
         nothing was imported, free some space"
    )]
    DiskFull { path: PathBuf, available_bytes: u64, reserve_bytes: u64 },
    #[error("images are imported by root: layers hold files of many owners")]
    NotRoot,
    #[error("{path} is damaged: {why}")]
    Index { path: PathBuf, why: String },
    #[error("no image {reference} on this device")]
    NoSuchImage { reference: String },
    #[error(
        "image {reference} is used by {users}: remove those pods first, or give --force (what runs keeps its files)"
    )]
    InUse { reference: String, users: String },
}

/// For `map_err`: what was tried with which file.
pub(super) fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ImageError + 'a {
    move |source| ImageError::File { action, path: path.to_owned(), source }
}
