//! The folder `DIR/images`, shared by the agent and by the commands that run beside it.
//!
//! | name | what |
//! |---|---|
//! | `index.json` | what is here: images, their names, their layers, and the generation |
//! | `in-use.json` | which images the agent's pods use, with their layers; written by the agent only |
//! | `index.lock` | `flock`ed while either is changed: short |
//! | `import.lock` | `flock`ed while layers are unpacked or removed: long |
//! | `layers/<diff id>/` | one unpacked layer, whole and on the disk |
//! | `tmp/` | what is being unpacked or removed; leftovers go at the next import and start |
//!
//! Both JSON files are replaced whole. Start reading at [`ImageStore::current`] and [`ImageStore::pin`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::{ImageError, at};
use super::facts::{ImageFacts, Images};
use super::reference::is_sha256_hex;

/// Version written. A reader takes any version up to its own; fields are only added, with defaults.
const FORMAT: u32 = 1;
/// Far above what a device holds.
const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Images on one device.
pub const IMAGES_LEN_MAX: usize = 4096;

/// The images of one device. One per process; clones of what it knows are cheap.
#[derive(Debug)]
pub struct ImageStore {
    folder: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Modification time, inode and length of the index that was read.
    stamp: Option<(i64, i64, u64, u64)>,
    images: Arc<Images>,
}

/// `index.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct IndexFile {
    pub(super) format: u32,
    pub(super) generation: u64,
    /// Normalised reference -> manifest digest.
    pub(super) names: BTreeMap<String, String>,
    /// By manifest digest.
    pub(super) images: BTreeMap<String, ImageRecord>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ImageRecord {
    pub(super) facts: ImageFacts,
    /// Hex digits of the layers' diff ids, the bottom one first.
    pub(super) layers: Vec<String>,
    /// Digests of the indexes this manifest was chosen from.
    pub(super) aliases: BTreeSet<String>,
}

/// `in-use.json`: manifest digest -> who uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InUse {
    pub images: BTreeMap<String, Use>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Use {
    /// `namespace/name` of pods.
    pub pods: BTreeSet<String>,
    /// As in the index, which may be lost.
    pub layers: Vec<String>,
}

impl ImageStore {
    /// Opens `data/images`, making it if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made. A damaged index is no error: it is set aside and told of, and images are imported again.
    pub fn open(data: &Path) -> Result<Self, ImageError> {
        let store = Self::over(data);
        for folder in [store.folder.clone(), store.folder.join("layers"), store.folder.join("tmp")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at("create", &folder))?;
        }
        Ok(store)
    }

    /// The same of what is there: without a folder (a disk was full) there are no images.
    pub fn over(data: &Path) -> Self {
        let folder = std::path::absolute(data).unwrap_or_else(|_no_working_directory| data.to_owned()).join("images");
        Self { folder, known: Mutex::new(Known::default()) }
    }

    /// Clears away what an interrupted import or removal left, and what nobody uses. Does nothing while one is under way.
    ///
    /// # Errors
    /// As [`Self::collect`].
    pub fn tidy(&self) -> Result<(), ImageError> {
        let Some(lock) = self.try_import_lock()? else { return Ok(()) };
        self.clear_away();
        let count = self.collect_locked();
        drop(lock);
        count.map(drop)
    }

    /// What is here now. Cheap while nothing changed (one `stat`). What cannot be read is told of once and answered by what was known.
    pub fn current(&self) -> Arc<Images> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.index_path());
        if stamp != known.stamp {
            match self.read_index() {
                Ok(index) => known.images = Arc::new(self.images(&index)),
                Err(error) => tracing::error!(
                    error = %crate::enrolment::chain(&error),
                    "the list of images cannot be read; import them again"
                ),
            }
            known.stamp = stamp;
        }
        known.images.clone()
    }

    /// Makes durable which images pods use, before anything is started from them: manifest digest -> `namespace/name` of pods.
    /// False when the store changed after `generation`: look again and decide again.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn pin(&self, uses: &BTreeMap<String, BTreeSet<String>>, generation: u64) -> Result<bool, ImageError> {
        let lock = self.index_lock()?;
        let index = self.read_index_to_change()?;
        if index.generation != generation {
            return Ok(false);
        }
        let before = self.in_use();
        let mut in_use = InUse::default();
        for (digest, pods) in uses {
            let known = index.images.get(digest).map(|image| image.layers.clone());
            let layers = known.or_else(|| Some(before.images.get(digest)?.layers.clone())).unwrap_or_default();
            in_use.images.insert(digest.clone(), Use { pods: pods.clone(), layers });
        }
        if in_use != before {
            self.write_whole(&self.in_use_path(), &in_use)?;
        }
        drop(lock);
        Ok(true)
    }

    /// Who uses which image, as the agent last wrote it.
    pub fn in_use(&self) -> InUse {
        let bytes = fs::read(self.in_use_path()).unwrap_or_default();
        if bytes.is_empty() {
            return InUse::default();
        }
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::error!(%error, "the list of images in use is damaged; the agent writes it anew");
            InUse::default()
        })
    }

    /// Removes what has no name and no user any more. Returns how many layers went.
    ///
    /// # Errors
    /// When the disk does not allow it; it is tried again at the next import, removal or start.
    pub fn collect(&self) -> Result<usize, ImageError> {
        let Some(lock) = self.try_import_lock()? else { return Ok(0) };
        let count = self.collect_locked();
        drop(lock);
        count
    }

    pub(super) fn collect_locked(&self) -> Result<usize, ImageError> {
        let lock = self.index_lock()?;
        let mut index = self.read_index_to_change()?;
        let in_use = self.in_use();
        let named: BTreeSet<String> = index.names.values().cloned().collect();
        let before = index.images.len();
        index.images.retain(|digest, _| named.contains(digest) || in_use.images.contains_key(digest));
        if index.images.len() != before {
            self.write_index(&mut index)?;
        }
        let wanted: BTreeSet<&String> = index.images.values().flat_map(|image| &image.layers).collect();
        let pinned: BTreeSet<&String> = in_use.images.values().flat_map(|image| &image.layers).collect();
        let layers = self.folder.join("layers");
        let mut doomed = Vec::new();
        for entry in fs::read_dir(&layers).map_err(at("list", &layers))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !wanted.contains(&name) && !pinned.contains(&name) {
                let grave = self.temporary(&format!("gone-{}", doomed.len()));
                fs::rename(entry.path(), &grave).map_err(at("move away", &entry.path()))?;
                doomed.push(grave);
            }
        }
        drop(lock);
        for grave in &doomed {
            remove_all(grave).map_err(at("remove", grave))?;
        }
        Ok(doomed.len())
    }

    /// Changes the index under its lock.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut IndexFile, &InUse) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let lock = self.index_lock()?;
        let mut index = self.read_index_to_change()?;
        let before = index.clone();
        let outcome = change(&mut index, &self.in_use())?;
        if index != before {
            self.write_index(&mut index)?;
        }
        drop(lock);
        Ok(outcome)
    }

    /// Reads the index. A missing one is an empty one.
    pub(super) fn read_index(&self) -> Result<IndexFile, ImageError> {
        let path = self.index_path();
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(IndexFile::default()),
            Err(error) => return Err(at("read", &path)(error)),
            Ok(facts) if facts.len() > INDEX_BYTES_MAX => Vec::new(),
            Ok(_) => fs::read(&path).map_err(at("read", &path))?,
        };
        match serde_json::from_slice::<IndexFile>(&bytes) {
            Ok(index) if index.format > FORMAT => {
                let why = format!("it was written by a later version (format {})", index.format);
                Err(ImageError::Index { path, why })
            }
            Ok(index) => Ok(index),
            Err(error) => Err(ImageError::Index { path, why: error.to_string() }),
        }
    }

    /// Reads the index to change it, under its lock: a damaged one is set aside under another name.
    fn read_index_to_change(&self) -> Result<IndexFile, ImageError> {
        let error = match self.read_index() {
            Err(ImageError::Index { why, .. }) if !why.contains("later version") => why,
            other => return other,
        };
        let (path, aside) = (self.index_path(), self.folder.join("index.json.damaged"));
        fs::rename(&path, &aside).map_err(at("set aside", &path))?;
        tracing::error!(%error, aside = %aside.display(), "the list of images is damaged and was set aside: import the images again");
        // A generation no reader has seen, whatever the damaged one said.
        let seconds = fs::metadata(&aside).map_or(0, |facts| facts.mtime());
        Ok(IndexFile { generation: u64::try_from(seconds).unwrap_or(0), ..IndexFile::default() })
    }

    fn write_index(&self, index: &mut IndexFile) -> Result<(), ImageError> {
        index.format = FORMAT;
        index.generation += 1;
        self.write_whole(&self.index_path(), index)
    }

    /// Writes, syncs, renames, syncs the folder.
    fn write_whole(&self, path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
        let temporary = path.with_extension("json.new");
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| ImageError::Index { path: path.to_owned(), why: error.to_string() })?;
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        if let Err(error) = written {
            drop(fs::remove_file(&temporary));
            return Err(at("write", &temporary)(error));
        }
        fs::rename(&temporary, path).map_err(at("replace", path))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(at("sync", &self.folder))
    }

    fn images(&self, index: &IndexFile) -> Images {
        let mut images = Images { generation: index.generation, names: index.names.clone(), ..Images::default() };
        for (digest, record) in &index.images {
            let missing = record.layers.iter().find(|layer| !is_sha256_hex(layer) || !self.layer_path(layer).is_dir());
            if let Some(layer) = missing {
                tracing::error!(image = %digest, layer = %layer, "a layer is gone: import the image again");
                continue;
            }
            let mut facts = record.facts.clone();
            facts.lower_dirs = record.layers.iter().rev().map(|layer| self.layer_path(layer)).collect();
            images.by_digest.insert(digest.clone(), Arc::new(facts));
            images.aliases.extend(record.aliases.iter().map(|alias| (alias.clone(), digest.clone())));
        }
        images
    }

    /// Leftovers of imports and removals that did not come to their end.
    pub(super) fn clear_away(&self) {
        let tmp = self.folder.join("tmp");
        for entry in fs::read_dir(&tmp).into_iter().flatten().flatten() {
            if let Err(error) = remove_all(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "a leftover of an import cannot be removed");
            }
        }
    }

    pub(super) fn layer_path(&self, hex: &str) -> PathBuf {
        self.folder.join("layers").join(hex)
    }

    /// A name in `tmp` that this process alone uses.
    pub(super) fn temporary(&self, name: &str) -> PathBuf {
        self.folder.join("tmp").join(format!("{}-{name}", std::process::id()))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn index_path(&self) -> PathBuf {
        self.folder.join("index.json")
    }

    fn in_use_path(&self) -> PathBuf {
        self.folder.join("in-use.json")
    }

    fn index_lock(&self) -> Result<Flock<File>, ImageError> {
        self.lock("index.lock", FlockArg::LockExclusive)
    }

    /// Waits for another import or removal to end.
    pub(super) fn import_lock(&self) -> Result<Flock<File>, ImageError> {
        self.lock("import.lock", FlockArg::LockExclusive)
    }

    /// `None`: somebody is importing or removing.
    pub(super) fn try_import_lock(&self) -> Result<Option<Flock<File>>, ImageError> {
        match self.lock("import.lock", FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, name: &str, how: FlockArg) -> Result<Flock<File>, ImageError> {
        let path = self.folder.join(name);
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(at("open", &path))?;
        Flock::lock(file, how).map_err(|(_, error)| at("lock", &path)(error.into()))
    }
}

fn stamp(path: &Path) -> Option<(i64, i64, u64, u64)> {
    let facts = fs::metadata(path).ok()?;
    Some((facts.mtime(), facts.mtime_nsec(), facts.ino(), facts.len()))
}

/// A folder with all below it, or a file. Folders without write permission are no obstacle to root.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
