//! Volumes on this device: directories, files and mounts below `DIR/volumes/<pod uid>/`.
//!
//! Owns that folder and every mount in it. Refuses decisions: what stands where is said by a
//! [`VolumePlan`]. Every step can be repeated after a crash at any point of it.
//! Start reading at [`VolumeStore::prepare`].
//!
//! | name | what |
//! |---|---|
//! | `empty~<volume>` | `emptyDir` |
//! | `memory~<volume>` | `emptyDir` in memory: a tmpfs |
//! | `files~<volume>` | ConfigMap, downward API: see [`content`] |
//! | `secret~<volume>` | files of which one is secret: the same on a tmpfs |
//! | `sub~<container>~<index>` | a part of a volume that a container mounts: a bind mount |
//! | `new~...` | not finished |
//!
//! No name of Kubernetes holds a `~`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::reconcile::volume::{
    FilesMedium, HostPathKind, SubPath, SubPathRoot, Volume, VolumeContent, VolumePlan, VolumesStatus,
};
use crate::shim::files::is_directory_name;

mod content;
mod host_path;
mod mount_table;
mod sub_path;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

/// Pods' volumes may hold secrets: nobody but root gets past this folder, containers see what is mounted into them.
const FOLDER_MODE: u32 = 0o700;
/// kubelet's mode of an `emptyDir`.
const EMPTY_MODE: u32 = 0o777;
const SET_GROUP_ID: u32 = 0o2000;
/// Mounts of one pod come off in at most this many rounds: one place can be mounted upon several times.
const UNMOUNT_ROUNDS_MAX: u32 = 16;

/// Makes and removes volumes. Its methods block: call them where that hurts nobody.
#[derive(Debug)]
pub struct VolumeStore {
    root: PathBuf,
    /// Of the kernel: content written before a power cut is not trusted after it.
    boot: String,
    /// By pod uid.
    pods: Mutex<BTreeMap<String, VolumesStatus>>,
}

/// A volume could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{what:?} cannot name a directory of a volume")]
    BadName { what: String },
    #[error("could not {action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("hostPath type check failed: {path} {fault}")]
    HostPath { path: PathBuf, fault: &'static str },
    #[error("could not give {path} to group {group} (fsGroup): only an agent that runs as root may")]
    Group { path: PathBuf, group: u32, source: io::Error },
    #[error("subPath {sub_path:?} {fault}")]
    SubPath { sub_path: String, fault: &'static str },
    #[error("{path} is still mounted: end what uses it, unmount it, and the rest follows by itself")]
    StillMounted { path: PathBuf },
    #[error("a size of {size_bytes} bytes for the volume at {path} was refused: more than that may be in use")]
    Size { path: PathBuf, size_bytes: u64, source: io::Error },
}

/// Whether this agent may mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounted {
    Yes,
    /// The kernel says no, or said so when it was made: what would be in memory stands on the disk.
    NotAllowed,
}

impl VolumeStore {
    /// Finds what earlier agents left in `data/volumes`. A folder that cannot be made now, on a full disk, is made with the first volume.
    ///
    /// # Errors
    /// When `data` is not there, or the folder cannot be listed. One pod's damaged directory stops nothing.
    pub fn open(data: &Path, boot_id: &str) -> Result<Self, VolumeError> {
        let root = data.canonicalize().map_err(at("find", data))?.join("volumes");
        if let Err(error) = make_folder(&root) {
            tracing::error!(%error, "the folder of volumes is not there yet; it is made when it is needed");
        }
        let boot: String = boot_id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let store = Self { root, boot, pods: Mutex::new(BTreeMap::new()) };
        let left = if store.root.exists() { names(&store.root)? } else { Vec::new() };
        for uid in left.into_iter().filter(|name| is_directory_name(name)) {
            let status = store.left(&uid);
            store.lock().insert(uid, status);
        }
        Ok(store)
    }

    /// Nothing stands below `root`, and nothing is asked of the file system until a volume is wanted.
    pub fn empty(root: PathBuf, boot_id: &str) -> Self {
        Self { root, boot: boot_id.to_owned(), pods: Mutex::new(BTreeMap::new()) }
    }

    /// `DIR/volumes`: a pod's volumes stand in a directory named by its uid.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What stands, by pod uid.
    pub fn statuses(&self) -> BTreeMap<String, VolumesStatus> {
        self.lock().clone()
    }

    /// Brings a pod's volumes to what a plan says. What was done before an error stays, and is not done again.
    ///
    /// # Errors
    /// The first volume that cannot be made.
    pub fn prepare(&self, uid: &str, plan: &VolumePlan) -> Result<(), VolumeError> {
        let folder = self.folder(uid)?;
        make_folder(&folder)?;
        self.lock().entry(uid.to_owned()).or_default();
        self.remove_others(uid, &folder, &plan.kept)?;
        for (name, volume) in &plan.volumes {
            let mounted = self.one(&folder.join(plain(name)?), volume)?;
            let mut pods = self.lock();
            let status = pods.entry(uid.to_owned()).or_default();
            status.prepared.insert(name.clone(), volume.digest.clone());
            match mounted {
                Mounted::Yes => drop(status.on_disk.remove(name)),
                Mounted::NotAllowed => drop(status.on_disk.insert(name.clone())),
            }
        }
        plan.sub_paths.iter().try_for_each(|sub_path| self.part(&folder, sub_path))
    }

    /// Removes everything of a pod. Nothing is left mounted or on the disk.
    ///
    /// # Errors
    /// When something stays mounted, or cannot be deleted.
    pub fn remove(&self, uid: &str) -> Result<(), VolumeError> {
        remove_tree(&self.folder(uid)?)?;
        self.lock().remove(uid);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, VolumesStatus>> {
        // Each change is one assignment: a panic elsewhere cannot leave it half done.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, uid: &str) -> Result<PathBuf, VolumeError> {
        if is_directory_name(uid) {
            Ok(self.root.join(uid))
        } else {
            Err(VolumeError::BadName { what: uid.to_owned() })
        }
    }

    /// What an earlier agent made in this boot. Anything doubtful is not named, and so made again.
    fn left(&self, uid: &str) -> VolumesStatus {
        let mut status = VolumesStatus::default();
        let folder = self.root.join(uid);
        for name in names(&folder).unwrap_or_default() {
            let path = folder.join(&name);
            let Some(digest) = content::standing(&path, &self.boot) else { continue };
            if name.starts_with("secret~") && mount_table::is_mounted(&path).is_ok_and(|mounted| !mounted) {
                status.on_disk.insert(name.clone());
            }
            status.prepared.insert(name, digest);
        }
        status
    }

    fn one(&self, path: &Path, volume: &Volume) -> Result<Mounted, VolumeError> {
        match &volume.content {
            VolumeContent::Empty => empty(path, volume.group).map(|()| Mounted::Yes),
            VolumeContent::Memory { size_bytes_max } => memory(path, *size_bytes_max, volume.group),
            VolumeContent::Host { path, kind } => host_path::check(path, *kind).map(|()| Mounted::Yes),
            VolumeContent::Files { files, medium } => {
                make_folder(path)?;
                let mounted = match medium {
                    FilesMedium::Disk => Mounted::Yes,
                    FilesMedium::Memory => self.secret_medium(path)?,
                };
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at("open to readers", path))?;
                content::replace(path, &content::directory_name(&self.boot, &volume.digest), files, volume.group)?;
                Ok(mounted)
            }
        }
    }

    /// A tmpfs for secrets. What an agent that might not mount has left on the disk is removed first, unless it may be in use.
    fn secret_medium(&self, path: &Path) -> Result<Mounted, VolumeError> {
        if mount_table::is_mounted(path)? {
            return Ok(Mounted::Yes);
        }
        if content::standing(path, &self.boot).is_some() {
            return Ok(Mounted::NotAllowed);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trial = path.with_file_name(format!("new~{name}"));
        make_folder(&trial)?;
        // Tried beside it, so that secrets are not taken off the disk by an agent that cannot put them anywhere else.
        let allowed = tmpfs(&trial, "mode=755")?;
        remove_tree(&trial)?;
        if allowed == Mounted::NotAllowed {
            return Ok(Mounted::NotAllowed);
        }
        for name in names(path)? {
            remove_tree(&path.join(name))?;
        }
        tmpfs(path, "mode=755")
    }

    /// Shows a part of a volume under its own name.
    fn part(&self, folder: &Path, wanted: &SubPath) -> Result<(), VolumeError> {
        let (root, missing) = match &wanted.root {
            SubPathRoot::Files(name) => (folder.join(plain(name)?), sub_path::Missing::Refused),
            SubPathRoot::Directory(name) => (folder.join(plain(name)?), sub_path::Missing::Made),
            SubPathRoot::Host(path) => (path.clone(), sub_path::Missing::Made),
        };
        let place = folder.join(plain(&wanted.name)?);
        remove_tree(&place)?;
        sub_path::show(&root, &wanted.path, missing, &place)
    }

    fn remove_others(&self, uid: &str, folder: &Path, kept: &BTreeSet<String>) -> Result<(), VolumeError> {
        let others = |name: &String| !kept.contains(name) && !name.starts_with("sub~");
        for name in names(folder)?.into_iter().filter(others) {
            remove_tree(&folder.join(&name))?;
            if let Some(status) = self.lock().get_mut(uid) {
                status.prepared.remove(&name);
                status.on_disk.remove(&name);
            }
        }
        Ok(())
    }
}

/// An `emptyDir`: it appears with its mode and group, or not at all.
fn empty(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    if let Ok(there) = path.symlink_metadata() {
        // What its containers made of it stays, but a group that came later is given to it.
        return if group.is_none_or(|group| group == there.gid()) { Ok(()) } else { own(path, group) };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unfinished = path.with_file_name(format!("new~{name}"));
    make_folder(&unfinished)?;
    let mode = if group.is_some() { EMPTY_MODE | SET_GROUP_ID } else { EMPTY_MODE };
    own(&unfinished, group)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", &unfinished))?;
    fs::rename(&unfinished, path).map_err(at("name", path))
}

/// An `emptyDir` in memory; on the disk where this agent may not mount.
fn memory(path: &Path, size_bytes_max: Option<u64>, group: Option<u32>) -> Result<Mounted, VolumeError> {
    let size = size_bytes_max.map(|bytes| format!("size={bytes}"));
    if mount_table::is_mounted(path)? {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        return match mount(None::<&str>, path, None::<&str>, flags, size.as_deref()) {
            Ok(()) => Ok(Mounted::Yes),
            Err(errno) => {
                let size_bytes = size_bytes_max.unwrap_or(0);
                Err(VolumeError::Size { path: path.to_owned(), size_bytes, source: errno.into() })
            }
        };
    }
    let mode = if group.is_some() { EMPTY_MODE | SET_GROUP_ID } else { EMPTY_MODE };
    let owner = group.map(|group| format!("gid={group}"));
    let options: Vec<String> = [Some(format!("mode={mode:o}")), size, owner].into_iter().flatten().collect();
    if path.symlink_metadata().is_err() {
        make_folder(path)?;
    }
    match tmpfs(path, &options.join(","))? {
        Mounted::Yes => Ok(Mounted::Yes),
        Mounted::NotAllowed => {
            own(path, group)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))?;
            Ok(Mounted::NotAllowed)
        }
    }
}

fn tmpfs(path: &Path, options: &str) -> Result<Mounted, VolumeError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)) {
        Ok(()) => Ok(Mounted::Yes),
        Err(Errno::EPERM | Errno::EACCES) => Ok(Mounted::NotAllowed),
        Err(errno) => Err(at("mount a tmpfs at", path)(errno.into())),
    }
}

/// Removes a file or a directory with all that is in it. Nothing below a mount is ever deleted: mounts come off first.
fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    for _round in 0..UNMOUNT_ROUNDS_MAX {
        let mounts = mount_table::below(path)?;
        if mounts.is_empty() {
            break;
        }
        // Inner ones were mounted later.
        for place in mounts.iter().rev() {
            match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Gone with the one above it.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(errno) => return Err(at("unmount", place)(errno.into())),
            }
        }
    }
    if let Some(place) = mount_table::below(path)?.into_iter().next() {
        return Err(VolumeError::StillMounted { path: place });
    }
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn own(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    let Some(group) = group else { return Ok(()) };
    let fault = |source| VolumeError::Group { path: path.to_owned(), group, source };
    std::os::unix::fs::lchown(path, None, Some(group)).map_err(fault)
}

fn make_folder(path: &Path) -> Result<(), VolumeError> {
    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(at("create", path))
}

/// Names in a directory, in order.
fn names(folder: &Path) -> Result<Vec<String>, VolumeError> {
    let entries = fs::read_dir(folder).map_err(at("list", folder))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// A name that stays in its directory.
fn plain(name: &str) -> Result<&str, VolumeError> {
    let sound = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 255;
    if sound { Ok(name) } else { Err(VolumeError::BadName { what: name.to_owned() }) }
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> VolumeError + 'a {
    move |source| VolumeError::File { action, path: path.to_owned(), source }
}
