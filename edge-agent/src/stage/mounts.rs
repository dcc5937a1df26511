//! Mounts, made in the stage's own mount namespace.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::Overlay;
use crate::runtime::Mount;

const NOTHING: Option<&str> = None;

/// Keeps what is mounted here from the host; what the host unmounts later goes here too.
pub(super) fn seclude() -> Result<(), String> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)
        .map_err(|error| format!("could not make the mounts of the host private: {error}"))
}

pub(super) fn hide(path: &Path) -> Result<(), String> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(format!("could not hide {}: {error}", path.display())),
    }
}

pub(super) fn cover(path: &Path) -> Result<(), String> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=0755"))
        .map_err(|error| format!("could not cover {}: {error}", path.display()))
}

/// Mounts a container's root directory. All names are short and relative, because the kernel takes one page of options: layers
/// are symbolic links beside the mount point, so a hundred of them fit whatever their paths are.
pub(super) fn overlay(overlay: &Overlay) -> Result<(), String> {
    let dir = &overlay.dir;
    std::env::set_current_dir(dir).map_err(|error| format!("could not enter {}: {error}", dir.display()))?;
    let mut own = "";
    if let Some(size) = overlay.memory_bytes_max {
        let options = format!("size={size},mode=0700");
        mount(Some("tmpfs"), "memory", Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|error| format!("could not mount memory at {}: {error}", dir.join("memory").display()))?;
        for name in ["memory/upper", "memory/work"] {
            fs::create_dir(name).map_err(|error| format!("could not create {name}: {error}"))?;
        }
        own = "memory/";
    }
    let lower = (0..overlay.layers).map(|layer| format!("l{layer}")).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={lower},upperdir={own}upper,workdir={own}work");
    // What a container writes to its root ends with it, so nothing of it has to reach the disk: that spares the flash.
    let volatile = format!("{options},volatile");
    let tried = |options: &str| mount(Some("overlay"), "rootfs", Some("overlay"), MsFlags::empty(), Some(options));
    match tried(&volatile) {
        Err(Errno::EINVAL) => tried(&options),
        outcome => outcome,
    }
    .map_err(|error| {
        let hint = match error {
            Errno::EINVAL => "; can the file system of the agent's folder be the upper layer of an overlay?",
            Errno::ENODEV => "; the kernel has no overlay file system",
            _ => "",
        };
        format!("could not mount the image's {} layers at {}: {error}{hint}", overlay.layers, dir.display())
    })
}

/// Binds files and directories over the host's own, making mount points that are missing.
pub(super) fn bind_all(mounts: &[Mount], made: Option<&Path>) -> Result<(), String> {
    let mut new = Vec::new();
    let outcome = mounts.iter().try_for_each(|one| {
        mount_point(one, &mut new)?;
        bind(one)
    });
    if let Some(path) = made.filter(|_| !new.is_empty()) {
        let lines: String = new.iter().map(|path| format!("{}\n", path.display())).collect();
        fs::write(path, lines).map_err(|error| format!("could not write {}: {error}", path.display()))?;
    }
    outcome
}

fn mount_point(one: &Mount, made: &mut Vec<PathBuf>) -> Result<(), String> {
    let target = Path::new(&one.destination);
    if target.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| format!("could not make the mount point {}: {error}", target.display());
    let is_file = fs::metadata(&one.source).map_err(|error| format!("{}: {error}", one.source.display()))?.is_file();
    let missing: Vec<&Path> = target.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.into_iter().rev() {
        if is_file && path == target {
            fs::File::create(path).map_err(failed)?;
        } else {
            fs::create_dir(path).map_err(failed)?;
        }
        made.push(path.to_owned());
    }
    Ok(())
}

fn bind(one: &Mount) -> Result<(), String> {
    let target = Path::new(&one.destination);
    let failed = |error: Errno| format!("could not mount {} at {}: {error}", one.source.display(), target.display());
    mount(Some(&one.source), target, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING).map_err(failed)?;
    if one.read_only {
        // Flags of the source's own mount have to be given again: in a user namespace they are locked.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(target).map_err(failed)?;
        mount(NOTHING, target, NOTHING, flags, NOTHING).map_err(failed)?;
    }
    Ok(())
}

fn kept_flags(target: &Path) -> Result<MsFlags, Errno> {
    let now = statvfs(target)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.into_iter().filter(|(is, _)| now.contains(*is)).map(|(_, flag)| flag).collect())
}
