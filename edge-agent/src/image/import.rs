//! Bringing images from an OCI layout into the store.
//!
//! Owns the order: read and check the documents, unpack each missing layer beside its place, sync, rename, and only then name the
//! image. Whatever ends this in between leaves nothing that can be seen. Start reading at [`import`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::error::{ImageError, at};
use super::facts::ImageFacts;
use super::layout::{Descriptor, Layout, LayoutImage, Platform, digest_text};
use super::reference::{Reference, is_digest};
use super::store::{IMAGES_LEN_MAX, ImageRecord, ImageStore, remove_all};
use super::unpack::{self, Bounds, Fault};

mod accounts;

/// Words, variables and ports in one configuration.
const CONFIG_LEN_MAX: usize = 4096;

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub reference: String,
    pub digest: String,
    pub layers: usize,
    /// Layers that were not there before.
    pub unpacked: usize,
    pub size_bytes: u64,
}

/// Imports what is in the layout at `path`: under `name`, or under the names the layout itself gives. All of it or nothing.
///
/// # Errors
/// When the layout cannot be read, something in it is not what its digest says, it would write outside its own folder, or the
/// disk is full. Nothing of it is left then.
pub fn import(
    store: &ImageStore,
    path: &Path,
    name: Option<&str>,
    bounds: &Bounds,
    now_ms: u64,
) -> Result<Vec<Imported>, ImageError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    let platform = Platform::here();
    let layout = Layout::open(path)?;
    let named = named(path, layout.images(&platform)?, name)?;
    let lock = store.import_lock()?;
    store.clear_away();
    let outcome = import_locked(store, &layout, &named, &platform, bounds, now_ms);
    // Layers without an image: of the failed import, or of an image that lost its name just now.
    if let Err(error) = store.collect_locked() {
        tracing::warn!(error = %crate::enrolment::chain(&error), "what is unused could not be removed; it is tried again");
    }
    drop(lock);
    outcome
}

/// The images to take and what they are called.
fn named(
    path: &Path,
    mut images: Vec<LayoutImage>,
    name: Option<&str>,
) -> Result<Vec<(Reference, LayoutImage)>, ImageError> {
    let Some(name) = name else {
        // `latest` or `v1` alone is a tag of an image whose name is not told.
        let full = |said: &str| said.contains(['/', ':']).then(|| Reference::parse(said).ok()).flatten();
        let unnamed = |said: &str| ImageError::Unnamed { path: path.to_owned(), said: said.to_owned() };
        return images
            .into_iter()
            .map(|image| Ok((full(&image.name).ok_or_else(|| unnamed(&image.name))?, image)))
            .collect();
    };
    let reference = Reference::parse(name)?;
    if reference.digest().is_some() {
        let why = "an image is named by a tag; its digest is found when it is read";
        return Err(super::reference::ParseError { text: name.to_owned(), why }.into());
    }
    if images.len() > 1 {
        let said = |image: &LayoutImage| {
            let whole = Reference::parse(&image.name).is_ok_and(|said| said == reference);
            whole || Some(image.name.as_str()) == reference.tag()
        };
        let names = images.iter().map(|image| image.name.clone()).collect::<Vec<_>>().join(", ");
        let count = images.len();
        images.retain(said);
        if images.len() != 1 {
            return Err(ImageError::Ambiguous { path: path.to_owned(), count, names });
        }
    }
    Ok(images.into_iter().map(|image| (reference.clone(), image)).collect())
}

fn import_locked(
    store: &ImageStore,
    layout: &Layout,
    named: &[(Reference, LayoutImage)],
    platform: &Platform,
    bounds: &Bounds,
    now_ms: u64,
) -> Result<Vec<Imported>, ImageError> {
    let mut records = Vec::new();
    let mut imported = Vec::new();
    for (reference, image) in named {
        let (mut record, unpacked) = take(store, layout, image, platform, bounds)?;
        record.facts.imported_at_ms = now_ms;
        imported.push(Imported {
            reference: reference.to_string(),
            digest: image.digest.clone(),
            layers: image.layers.len(),
            unpacked,
            size_bytes: record.facts.size_bytes,
        });
        records.push((reference.to_string(), image.digest.clone(), record));
    }
    store.change(|index, _| {
        for (reference, digest, mut record) in records {
            if let Some(known) = index.images.get(&digest) {
                record.facts.imported_at_ms = known.facts.imported_at_ms;
                record.aliases.extend(known.aliases.iter().cloned());
            }
            index.names.insert(reference, digest.clone());
            index.images.insert(digest, record);
        }
        if index.images.len() > IMAGES_LEN_MAX {
            let why = format!("it would hold more than {IMAGES_LEN_MAX} images: remove some");
            return Err(ImageError::Index { path: store.folder().to_owned(), why });
        }
        Ok(())
    })?;
    Ok(imported)
}

/// Brings one image's layers into the store and says what it is. Returns how many layers were new.
fn take(
    store: &ImageStore,
    layout: &Layout,
    image: &LayoutImage,
    platform: &Platform,
    bounds: &Bounds,
) -> Result<(ImageRecord, usize), ImageError> {
    let config = Configuration::read(layout, image, platform)?;
    let mut fresh = Fresh { store, bounds, layers: Vec::new() };
    let mut layers: Vec<String> = Vec::new();
    for (layer, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
        let hex = diff_id.trim_start_matches("sha256:").to_owned();
        if !store.layer_path(&hex).is_dir() && !layers.contains(&hex) {
            fresh.unpack(layout, layer, &hex)?;
        }
        // A layer that comes twice counts where it comes last: everything of the earlier one is covered by it. overlayfs stacks no
        // folder twice.
        layers.retain(|earlier| *earlier != hex);
        layers.push(hex);
    }
    let unpacked = fresh.settle()?;
    let folders: Vec<_> = layers.iter().rev().map(|layer| store.layer_path(layer)).collect();
    let mut facts = config.facts();
    facts.digest.clone_from(&image.digest);
    facts.config_digest.clone_from(&image.config.digest);
    facts.size_bytes = image.layers.iter().map(|layer| layer.size).fold(image.config.size, u64::saturating_add);
    accounts::resolve(&folders, &mut facts);
    Ok((ImageRecord { facts, layers, aliases: image.aliases.iter().cloned().collect() }, unpacked))
}

/// Layers that are unpacked and not in their places yet. Dropped before they are, they go.
struct Fresh<'a> {
    store: &'a ImageStore,
    bounds: &'a Bounds,
    layers: Vec<String>,
}

impl Fresh<'_> {
    /// Unpacks one layer beside its place and proves it.
    fn unpack(&mut self, layout: &Layout, layer: &Descriptor, hex: &str) -> Result<(), ImageError> {
        let folder = self.store.temporary(hex);
        remove_all(&folder).map_err(at("remove", &folder))?;
        self.layers.push(hex.to_owned());
        fs::DirBuilder::new().mode(0o755).create(&folder).map_err(|error| full_or(error, &folder, self.bounds))?;
        // The process' umask does not count.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(at("set the mode of", &folder))?;
        unpack_into(layout, layer, hex, &folder, self.bounds)
    }

    /// Makes all of them durable at once, and puts each in its place. Returns how many there were.
    fn settle(mut self) -> Result<usize, ImageError> {
        let count = self.layers.len();
        if count == 0 {
            return Ok(0);
        }
        let folder = self.store.folder();
        let opened = File::open(folder).map_err(at("open", folder))?;
        rustix::fs::syncfs(&opened).map_err(|error| full_or(error.into(), folder, self.bounds))?;
        while let Some(hex) = self.layers.last() {
            let place = self.store.layer_path(hex);
            fs::rename(self.store.temporary(hex), &place).map_err(|error| full_or(error, &place, self.bounds))?;
            self.layers.pop();
        }
        let layers = folder.join("layers");
        File::open(&layers).and_then(|layers| layers.sync_all()).map_err(at("sync", &layers))?;
        Ok(count)
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for hex in &self.layers {
            let folder = self.store.temporary(hex);
            if let Err(error) = remove_all(&folder) {
                tracing::warn!(path = %folder.display(), %error, "a half-unpacked layer could not be removed; the next import does");
            }
        }
    }
}

fn full_or(error: io::Error, path: &Path, bounds: &Bounds) -> ImageError {
    if error.kind() == io::ErrorKind::StorageFull {
        let reserve_bytes = bounds.reserve_bytes;
        return ImageError::DiskFull { path: path.to_owned(), available_bytes: 0, reserve_bytes };
    }
    ImageError::File { action: "write", path: path.to_owned(), source: error }
}

fn unpack_into(
    layout: &Layout,
    layer: &Descriptor,
    hex: &str,
    folder: &Path,
    bounds: &Bounds,
) -> Result<(), ImageError> {
    let wrong = |why: String| ImageError::Blob { what: "layer", digest: layer.digest.clone(), why };
    let mut blob = layout.blob("layer", layer)?;
    let mut hash = Context::new(&SHA256);
    let outcome = match unpack::plain(&mut blob) {
        Ok(reader) => unpack::unpack(Hashed { reader, hash: &mut hash }, folder, bounds),
        Err(error) => Err(Fault { entry: None, why: format!("it cannot be read: {error}"), available_bytes: None }),
    };
    if let Err(fault) = outcome {
        // A disk that is full says nothing about the blob; everything else may come from a blob that is not what it should be.
        if fault.available_bytes.is_none()
            && let Err(why) = blob.prove()
        {
            return Err(wrong(why));
        }
        return Err(fault.of_layer(&layer.digest, folder, bounds));
    }
    blob.prove().map_err(wrong)?;
    let found = digest_text(hash.finish().as_ref());
    if found != format!("sha256:{hex}") {
        return Err(wrong(format!(
            "unpacked it has the digest {found}, and the image's configuration says sha256:{hex}"
        )));
    }
    Ok(())
}

/// Hashes what is read through it.
struct Hashed<'a, R> {
    reader: R,
    hash: &'a mut Context,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// OCI image configuration, as far as it is used. Docker writes `null` for what is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configuration {
    architecture: String,
    os: String,
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

impl Configuration {
    fn read(layout: &Layout, image: &LayoutImage, platform: &Platform) -> Result<Self, ImageError> {
        let bytes = layout.document("configuration", &image.config)?;
        let wrong = |why: String| ImageError::Blob { what: "configuration", digest: image.config.digest.clone(), why };
        let config: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if config.os != platform.os || config.architecture != platform.architecture {
            let offered = format!("{}/{}", config.os, config.architecture);
            return Err(ImageError::Platform { wanted: format!("{}/{}", platform.os, platform.architecture), offered });
        }
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let (told, there) = (diff_ids.len(), image.layers.len());
            return Err(wrong(format!("it tells of {told} layers, and the manifest has {there}")));
        }
        if let Some(other) = diff_ids.iter().find(|diff_id| !is_digest(diff_id)) {
            return Err(wrong(format!("its diff id {other:?} is no sha256 digest")));
        }
        let execution = config.config.clone().unwrap_or_default();
        let lists = [&execution.env, &execution.entrypoint, &execution.cmd];
        let ports = execution.exposed_ports.as_ref().map_or(0, BTreeMap::len);
        if ports > CONFIG_LEN_MAX || lists.into_iter().flatten().any(|list| list.len() > CONFIG_LEN_MAX) {
            return Err(wrong(format!("a list in it has more than {CONFIG_LEN_MAX} entries")));
        }
        Ok(config)
    }

    fn facts(self) -> ImageFacts {
        let execution = self.config.unwrap_or_default();
        let variable = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut facts = ImageFacts {
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            env: execution.env.unwrap_or_default().iter().filter_map(variable).collect(),
            working_dir: execution.working_dir.unwrap_or_default(),
            stop_signal: execution.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: execution.exposed_ports.unwrap_or_default().into_keys().collect(),
            ..ImageFacts::default()
        };
        facts.user.text = execution.user.unwrap_or_default();
        facts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
