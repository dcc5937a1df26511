//! One layer's tar, made into a folder that overlayfs can stack.
//!
//! Owns the safety of it: every path is walked component by component from the folder's own descriptor and no symbolic link is
//! followed, so an entry lands inside or is refused. Refuses what no image needs: `..`, links through links, overlayfs' own
//! attributes. Start reading at [`unpack`], then [`tree`].

use std::io::{self, Read};
use std::path::Path;

mod archive;
mod compression;
mod tree;

pub(super) use archive::{Archive, Kind, Source};
pub(super) use compression::plain;

use super::error::ImageError;
use tree::Tree;

/// After the archive's end; writers fill up to some KiB.
const TAIL_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What one layer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub entries_len_max: u64,
    /// Sum of the files' sizes once unpacked (of a sparse file, what is stored of it).
    pub unpacked_bytes_max: u64,
    /// Left free on the disk for the workloads.
    pub reserve_bytes: u64,
}

impl Bounds {
    /// What a device accepts.
    pub const DEVICE: Self =
        Self { entries_len_max: 1_000_000, unpacked_bytes_max: 64 << 30, reserve_bytes: 32 * 1024 * 1024 };
}

/// A layer could not be unpacked.
#[derive(Debug)]
pub(super) struct Fault {
    /// The entry at hand; `None`: the stream itself.
    pub(super) entry: Option<String>,
    pub(super) why: String,
    /// The disk had too little space.
    pub(super) available_bytes: Option<u64>,
}

impl Fault {
    pub(super) fn of_layer(self, layer: &str, folder: &Path, bounds: &Bounds) -> ImageError {
        let layer = layer.to_owned();
        match (self.available_bytes, self.entry) {
            (Some(available_bytes), _) => {
                let path = folder.to_owned();
                ImageError::DiskFull { path, available_bytes, reserve_bytes: bounds.reserve_bytes }
            }
            (None, Some(entry)) => ImageError::Entry { layer, entry, why: self.why },
            (None, None) => ImageError::Layer { layer, why: self.why },
        }
    }
}

/// Unpacks a plain tar into `folder`, which is empty. Reads `layer` to its end.
pub(super) fn unpack(layer: impl Read, folder: &Path, bounds: &Bounds) -> Result<(), Fault> {
    let stream = |error: &io::Error| Fault { entry: None, why: error.to_string(), available_bytes: None };
    let mut tree = Tree::open(folder, bounds).map_err(|why| Fault {
        entry: None,
        why: format!("{}: {}", folder.display(), why.text),
        available_bytes: why.available_bytes,
    })?;
    let mut archive = Archive::over(Streamed(layer));
    let mut count = 0;
    while let Some(entry) = archive.next().map_err(|error| stream(&error))? {
        count += 1;
        let named = |why: tree::Refusal| Fault {
            entry: Some(String::from_utf8_lossy(&entry.path).chars().take(300).collect()),
            why: why.text,
            available_bytes: why.available_bytes,
        };
        if count > bounds.entries_len_max {
            return Err(named(format!("it is one of more than {} entries", bounds.entries_len_max).into()));
        }
        tree.put(&entry, &mut archive).map_err(named)?;
    }
    tree.finish().map_err(|why| Fault { entry: None, why: why.text, available_bytes: why.available_bytes })?;
    // Writers fill the last record up; what follows counts for the digest only.
    let rest = &mut archive.into_inner().take(TAIL_BYTES_MAX + 1);
    match io::copy(rest, &mut io::sink()).map_err(|error| stream(&error))? {
        tail if tail > TAIL_BYTES_MAX => Err(Fault {
            entry: None,
            why: format!("more than {TAIL_BYTES_MAX} bytes follow the archive's end"),
            available_bytes: None,
        }),
        _ => Ok(()),
    }
}

/// A stream that can only be read on.
#[derive(Debug)]
struct Streamed<R>(R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Source for Streamed<R> {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
