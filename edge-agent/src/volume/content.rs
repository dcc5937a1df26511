//! Files of a volume, replaced as a whole under a reader's eyes, as kubelet's AtomicWriter does it.
//!
//! ```text
//! colour -> ..data/colour          what containers open
//! ..data -> ..<boot>-<digest>      swapped by one rename: a reader through it sees the old whole or the new whole
//! ..<boot>-<digest>/colour         the content; its name says what it is, so a repeated write is seen to be done
//! ```
//! Nothing is synced: what a power cut may have damaged carries another boot's name and is written again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::{VolumeError, at, names, own, plain, remove_tree};
use crate::reconcile::volume::VolumeFile;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
const DIRECTORY_MODE: u32 = 0o755;

/// The name of the directory that holds a content.
pub(super) fn directory_name(boot: &str, digest: &str) -> String {
    format!("..{boot}-{digest}")
}

/// The digest of what readers see, if it was written in this boot.
pub(super) fn standing(volume: &Path, boot: &str) -> Option<String> {
    let target = fs::read_link(volume.join(DATA)).ok()?;
    let digest = target.to_str()?.strip_prefix(&directory_name(boot, ""))?;
    volume.join(&target).is_dir().then(|| digest.to_owned())
}

/// Makes the volume show exactly these files.
pub(super) fn replace(
    volume: &Path,
    directory: &str,
    files: &BTreeMap<String, VolumeFile>,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let data = volume.join(DATA);
    let shown = fs::read_link(&data).ok();
    if shown.as_deref() != Some(Path::new(directory)) || !volume.join(directory).is_dir() {
        // What is left of a try that did not come to its end.
        remove_tree(&volume.join(directory))?;
        write(&volume.join(directory), files, group)?;
        let next = volume.join(DATA_NEXT);
        remove_tree(&next)?;
        symlink(directory, &next).map_err(at("create", &next))?;
        fs::rename(&next, &data).map_err(at("replace", &data))?;
    }
    show(volume, files)?;
    for name in names(volume)?.iter().filter(|name| name.starts_with("..") && *name != DATA && *name != directory) {
        remove_tree(&volume.join(name))?;
    }
    Ok(())
}

fn write(folder: &Path, files: &BTreeMap<String, VolumeFile>, group: Option<u32>) -> Result<(), VolumeError> {
    make_directory(folder, group)?;
    for (path, file) in files {
        let mut parts: Vec<&str> = path.split('/').collect();
        let Some(name) = parts.pop() else { continue };
        let mut parent = folder.to_owned();
        for part in parts {
            parent.push(plain(part)?);
            if !parent.is_dir() {
                make_directory(&parent, group)?;
            }
        }
        write_file(&parent.join(plain(name)?), file, group)?;
    }
    Ok(())
}

fn make_directory(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    fs::create_dir(path).map_err(at("create", path))?;
    own(path, group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE)).map_err(at("set the mode of", path))
}

/// Nobody else can open it before it has its own mode.
fn write_file(path: &Path, file: &VolumeFile, group: Option<u32>) -> Result<(), VolumeError> {
    let mut options = fs::OpenOptions::new();
    let mut open = options.write(true).create_new(true).mode(0o600).open(path).map_err(at("create", path))?;
    open.write_all(&file.content).map_err(at("write", path))?;
    own(path, group)?;
    open.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(at("set the mode of", path))
}

/// Links for what is there, none for what is not.
fn show(volume: &Path, files: &BTreeMap<String, VolumeFile>) -> Result<(), VolumeError> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let (link, target) = (volume.join(plain(name)?), PathBuf::from(DATA).join(name));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        remove_tree(&link)?;
        symlink(&target, &link).map_err(at("create", &link))?;
    }
    for name in names(volume)?.iter().filter(|name| !name.starts_with("..") && !wanted.contains(name.as_str())) {
        remove_tree(&volume.join(name))?;
    }
    Ok(())
}
