//! An OCI image layout (image-spec v1): a folder or one tar of it, read with every digest and size checked.
//!
//! Owns finding the images in it and choosing what is for this machine. Refuses to believe anything that its digest does not
//! prove; the index itself (`index.json`) is proven by nothing and only chooses. Start reading at [`Layout::open`] and
//! [`Layout::images`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::error::{ImageError, at};
use super::reference::{Reference, is_digest};
use super::unpack::{Archive, Source};

/// Index, manifest or configuration.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Descriptors in one index.
const DESCRIPTORS_LEN_MAX: usize = 1024;
/// Indexes within indexes.
const NESTING_LEN_MAX: usize = 4;
/// overlayfs stacks 500; Docker makes at most 127.
const LAYERS_LEN_MAX: usize = 127;
/// Entries of a layout's tar.
const ARCHIVE_LEN_MAX: usize = 65_536;

/// Annotation with an image's whole name.
const WHOLE_NAME: &str = "io.containerd.image.name";
/// Annotation with a name, or with a tag alone.
const NAME: &str = "org.opencontainers.image.ref.name";

/// An opened layout.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder,
    /// Offset and length of each file in the tar.
    Archive(File, BTreeMap<String, (u64, u64)>),
}

/// One image of a layout, chosen for this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutImage {
    /// What the layout calls it; empty: nothing.
    pub name: String,
    /// Of the manifest.
    pub digest: String,
    /// Indexes it was chosen from.
    pub aliases: Vec<String>,
    pub config: Descriptor,
    /// The bottom one first.
    pub layers: Vec<Descriptor>,
}

/// OCI content descriptor.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: BTreeMap<String, String>,
}

/// OCI platform, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

/// An index or a manifest: they are told apart by what they hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    schema_version: u64,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

impl Platform {
    /// The machine this runs on.
    pub fn here() -> Self {
        let (architecture, variant) = match crate::host::architecture(std::env::consts::ARCH) {
            "arm" => ("arm", "v7"),
            "arm64" => ("arm64", "v8"),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `offered` runs here: the higher the better, `None` not at all.
    fn fit(&self, offered: &Self) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let level = |variant: &str| variant.trim_start_matches('v').parse::<u32>().ok();
        match (level(&self.variant), level(&offered.variant)) {
            _ if offered.variant.is_empty() => Some(1),
            (Some(here), Some(there)) if there <= here => Some(1 + there),
            (None, _) if self.variant == offered.variant => Some(1),
            // amd64/v2 and the like may use instructions this machine does not have.
            _ => None,
        }
    }

    fn text(&self) -> String {
        let parts = [&self.os, &self.architecture, &self.variant];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
    }
}

impl Layout {
    /// Opens a folder with a layout, or a tar of one.
    ///
    /// # Errors
    /// When it is neither.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let facts = fs::metadata(path).map_err(at("open", path))?;
        let place = if facts.is_dir() {
            Place::Folder
        } else if facts.is_file() {
            let file = File::open(path).map_err(at("open", path))?;
            let files = contents(&file).map_err(|error| ImageError::NotALayout {
                path: path.to_owned(),
                why: format!("it is neither a folder nor a tar (uncompressed) that can be read: {error}"),
            })?;
            Place::Archive(file, files)
        } else {
            let why = "it is neither a folder nor a file".to_owned();
            return Err(ImageError::NotALayout { path: path.to_owned(), why });
        };
        let layout = Self { path: path.to_owned(), place };
        let wrong = |why: String| ImageError::NotALayout { path: path.to_owned(), why };
        let marker = layout.file("oci-layout", DOCUMENT_BYTES_MAX)?;
        let marker: serde_json::Value = serde_json::from_slice(&marker)
            .map_err(|error| wrong(format!("its file oci-layout is no JSON: {error}")))?;
        match marker["imageLayoutVersion"].as_str() {
            Some(version) if version.starts_with("1.") => Ok(layout),
            version => Err(wrong(format!("its version is {:?}, and 1.0.0 is known", version.unwrap_or_default()))),
        }
    }

    /// Every image in it that runs on `platform`, by the name the layout gives it.
    ///
    /// # Errors
    /// When a document is damaged, or an image has nothing for the platform.
    pub fn images(&self, platform: &Platform) -> Result<Vec<LayoutImage>, ImageError> {
        let bytes = self.file("index.json", DOCUMENT_BYTES_MAX)?;
        let index: Document = serde_json::from_slice(&bytes).map_err(|error| ImageError::NotALayout {
            path: self.path.clone(),
            why: format!("its index.json is damaged: {error}"),
        })?;
        let entries = bounded(index.manifests.unwrap_or_default()).map_err(|why| self.not_a_layout(why))?;
        // Entries without a name, or with the same one, are one image for several machines.
        let mut by_name: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
        for entry in entries.into_iter().filter(|entry| !is_attestation(entry)) {
            let whole = entry.annotations.get(WHOLE_NAME).and_then(|name| Reference::parse(name).ok());
            let name = whole.map(|name| name.to_string()).or_else(|| entry.annotations.get(NAME).cloned());
            by_name.entry(name.unwrap_or_default()).or_default().push(entry);
        }
        if by_name.is_empty() {
            return Err(self.not_a_layout("its index.json names no image".into()));
        }
        let of = |(name, entries): (String, Vec<Descriptor>)| {
            let mut image = self.choose(&entries, platform, NESTING_LEN_MAX)?;
            image.name = name;
            Ok(image)
        };
        by_name.into_iter().map(of).collect()
    }

    /// The blob of a descriptor, whole and proven, for documents.
    ///
    /// # Errors
    /// When it is missing, too large, or not what its digest says.
    pub fn document(&self, what: &'static str, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let wrong = |why: String| ImageError::Blob { what, digest: blob.digest.clone(), why };
        if blob.size > DOCUMENT_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes, more than {DOCUMENT_BYTES_MAX}", blob.size)));
        }
        let mut reader = self.blob(what, blob)?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        reader.prove().map_err(wrong)?;
        Ok(bytes)
    }

    /// Opens a blob. Call [`Proven::prove`] after its end.
    ///
    /// # Errors
    /// When it is not there.
    pub fn blob(&self, what: &'static str, blob: &Descriptor) -> Result<Proven<Box<dyn Read>>, ImageError> {
        let wrong = |why: String| ImageError::Blob { what, digest: blob.digest.clone(), why };
        if !is_digest(&blob.digest) {
            return Err(wrong("only sha256 digests are known".into()));
        }
        let name = format!("blobs/{}", blob.digest.replace(':', "/"));
        let (reader, length) = self.open_file(&name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => wrong("it is missing in the image layout".into()),
            _ => wrong(format!("it cannot be opened: {error}")),
        })?;
        if length != blob.size {
            return Err(wrong(format!("it has {length} bytes and should have {}", blob.size)));
        }
        Ok(Proven::over(reader, blob))
    }

    fn choose(&self, offers: &[Descriptor], platform: &Platform, nesting: usize) -> Result<LayoutImage, ImageError> {
        // An offer that does not say what it is for is looked into.
        let fit = |offer: &&Descriptor| offer.platform.as_ref().map_or(Some(0), |offered| platform.fit(offered));
        let best = offers.iter().filter(|offer| fit(offer).is_some()).max_by_key(fit);
        let Some(best) = best else {
            let offered: Vec<String> = offers.iter().filter_map(|one| Some(one.platform.as_ref()?.text())).collect();
            return Err(ImageError::Platform { wanted: platform.text(), offered: offered.join(", ") });
        };
        let bytes = self.document("manifest", best)?;
        let wrong = |why: String| ImageError::Blob { what: "manifest", digest: best.digest.clone(), why };
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if document.schema_version != 2 {
            return Err(wrong(format!("its schemaVersion is {}, and 2 is known", document.schema_version)));
        }
        match (document.manifests, document.config) {
            (Some(_), Some(_)) => Err(wrong("it is both an index and a manifest".into())),
            (Some(_), None) if nesting == 0 => Err(wrong("indexes are nested too deeply".into())),
            (Some(offers), None) => {
                let offers = bounded(offers).map_err(wrong)?;
                let offers: Vec<Descriptor> = offers.into_iter().filter(|offer| !is_attestation(offer)).collect();
                let mut image = self.choose(&offers, platform, nesting - 1)?;
                image.aliases.push(best.digest.clone());
                Ok(image)
            }
            (None, Some(config)) => {
                let layers = document.layers;
                if layers.is_empty() || layers.len() > LAYERS_LEN_MAX {
                    return Err(wrong(format!("it has {} layers: 1 to {LAYERS_LEN_MAX} can be run", layers.len())));
                }
                if let Some(other) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
                    return Err(wrong(format!(
                        "its layer {} is a {:?}, which is no layer",
                        other.digest, other.media_type
                    )));
                }
                let digest = best.digest.clone();
                Ok(LayoutImage { name: String::new(), digest, aliases: Vec::new(), config, layers })
            }
            (None, None) => Err(wrong("it is neither an index nor a manifest".into())),
        }
    }

    fn not_a_layout(&self, why: String) -> ImageError {
        ImageError::NotALayout { path: self.path.clone(), why }
    }

    fn file(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
        let (reader, length) = self
            .open_file(name)
            .map_err(|error| self.not_a_layout(format!("its file {name} cannot be read: {error}")))?;
        if length > bytes_max {
            return Err(self.not_a_layout(format!("its file {name} has {length} bytes, more than {bytes_max}")));
        }
        let mut bytes = Vec::new();
        reader
            .take(bytes_max)
            .read_to_end(&mut bytes)
            .map_err(|error| self.not_a_layout(format!("its file {name} cannot be read: {error}")))?;
        Ok(bytes)
    }

    /// `name` is ours: `index.json`, `oci-layout`, or made from a digest.
    fn open_file(&self, name: &str) -> io::Result<(Box<dyn Read>, u64)> {
        match &self.place {
            Place::Folder => {
                let path = self.path.join(name);
                // Looked at before it is opened: opening a fifo would wait for a writer.
                if !fs::metadata(&path)?.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
                }
                let file = File::open(&path)?;
                let length = file.metadata()?.len();
                Ok((Box::new(file), length))
            }
            Place::Archive(file, files) => {
                let (offset, length) = *files.get(name).ok_or(io::ErrorKind::NotFound)?;
                let window = Window { file: file.try_clone()?, at: offset, end: offset.saturating_add(length) };
                Ok((Box::new(window), length))
            }
        }
    }
}

fn bounded(descriptors: Vec<Descriptor>) -> Result<Vec<Descriptor>, String> {
    if descriptors.len() > DESCRIPTORS_LEN_MAX {
        return Err(format!("it lists {} images, more than {DESCRIPTORS_LEN_MAX}", descriptors.len()));
    }
    Ok(descriptors)
}

/// What BuildKit puts beside an image to tell how it was built.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

fn is_layer(media_type: &str) -> bool {
    let tar = media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar");
    // Encrypted layers end in +encrypted.
    tar && ["tar", "tar+gzip", "tar+zstd", "tar.gzip", "tar.zstd"].iter().any(|ending| media_type.ends_with(ending))
}

/// Where each file of a tar lies.
fn contents(file: &File) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let length = file.metadata()?.len();
    let mut archive = Archive::over(Window { file: file.try_clone()?, at: 0, end: length });
    let mut files = BTreeMap::new();
    while let Some(entry) = archive.next()? {
        if files.len() == ARCHIVE_LEN_MAX {
            return Err(io::Error::other(format!("it has more than {ARCHIVE_LEN_MAX} files")));
        }
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        if entry.kind == super::unpack::Kind::File && entry.sparse.is_none() {
            let name = name.trim_start_matches("./").to_owned();
            files.insert(name, (archive.position(), entry.size_bytes));
        }
    }
    Ok(files)
}

/// A part of a file, with a position of its own.
#[derive(Debug)]
struct Window {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Source for Window {
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        let passed = bytes.min(self.end.saturating_sub(self.at));
        self.at += passed;
        Ok(passed)
    }
}

impl Archive<Window> {
    /// Where the content of the entry at hand begins.
    fn position(&self) -> u64 {
        self.source().at
    }
}

/// Hashes and counts what is read through it.
pub struct Proven<R> {
    reader: R,
    context: Context,
    read_bytes: u64,
    digest: String,
    size: u64,
}

impl<R> std::fmt::Debug for Proven<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Proven").field("digest", &self.digest).field("size", &self.size).finish_non_exhaustive()
    }
}

impl<R: Read> Proven<R> {
    fn over(reader: R, blob: &Descriptor) -> Self {
        let (digest, size) = (blob.digest.clone(), blob.size);
        Self { reader, context: Context::new(&SHA256), read_bytes: 0, digest, size }
    }

    /// Reads the rest and says what is wrong, if anything is.
    ///
    /// # Errors
    /// The difference between what was promised and what was read.
    pub fn prove(mut self) -> Result<(), String> {
        io::copy(&mut self, &mut io::sink()).map_err(|error| format!("it cannot be read: {error}"))?;
        if self.read_bytes != self.size {
            return Err(format!("it has {} bytes and should have {}", self.read_bytes, self.size));
        }
        let found = digest_text(self.context.finish().as_ref());
        if found != self.digest {
            return Err(format!("its content has the digest {found}"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Proven<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than promised is enough to know.
        let left = usize::try_from(self.size.saturating_add(1) - self.read_bytes).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let count = self.reader.read(&mut buffer[..most])?;
        self.context.update(&buffer[..count]);
        self.read_bytes += count as u64;
        Ok(count)
    }
}

/// `sha256:...`.
pub(super) fn digest_text(hash: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn the_best_that_runs_here_is_chosen() {
        let table = [
            ("linux/amd64", "linux/amd64", Some(1)),
            ("linux/amd64", "linux/arm64", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/arm/v7", "linux/arm/v7", Some(8)),
            ("linux/arm/v7", "linux/arm/v6", Some(7)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm64/v8", "linux/arm64", Some(1)),
            ("linux/arm64/v8", "linux/arm64/v8", Some(9)),
        ];
        for (here, offered, fit) in table {
            assert_eq!(platform(here).fit(&platform(offered)), fit, "{offered} on {here}");
        }
    }
}
