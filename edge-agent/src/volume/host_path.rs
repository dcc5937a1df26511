//! `hostPath`: whether a path is what a manifest says it is.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::{HostPathKind, VolumeError, at};

/// Checks, and makes what the kind allows to be made. Symbolic links are followed: they are the host's own.
pub(super) fn check(path: &Path, kind: HostPathKind) -> Result<(), VolumeError> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(error) => return Err(at("look at", path)(error)),
    };
    let Some(found) = found else { return missing(path, kind) };
    let (fits, fault) = match kind {
        HostPathKind::Unchecked => (true, ""),
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => (found.is_dir(), "is not a directory"),
        HostPathKind::File | HostPathKind::FileOrCreate => (found.is_file(), "is not a file"),
        HostPathKind::Socket => (found.is_socket(), "is not a socket file"),
        HostPathKind::CharDevice => (found.is_char_device(), "is not a character device"),
        HostPathKind::BlockDevice => (found.is_block_device(), "is not a block device"),
    };
    if fits { Ok(()) } else { Err(VolumeError::HostPath { path: path.to_owned(), fault }) }
}

fn missing(path: &Path, kind: HostPathKind) -> Result<(), VolumeError> {
    let fault = match kind {
        HostPathKind::Unchecked | HostPathKind::DirectoryOrCreate => {
            return DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(at("create", path));
        }
        HostPathKind::FileOrCreate => {
            let made = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
            return made.map(drop).map_err(at("create", path));
        }
        HostPathKind::Directory => "is not a directory: nothing is there",
        HostPathKind::File => "is not a file: nothing is there",
        HostPathKind::Socket => "is not a socket file: nothing is there",
        HostPathKind::CharDevice => "is not a character device: nothing is there",
        HostPathKind::BlockDevice => "is not a block device: nothing is there",
    };
    Err(VolumeError::HostPath { path: path.to_owned(), fault })
}
