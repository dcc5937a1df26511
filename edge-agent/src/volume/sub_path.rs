//! Parts of volumes. A container may have put symbolic links into a volume to be led out of it: the way is gone step by step, each
//! directory held open, and no link leads further up than the volume. What is found is mounted by its open file, so that nothing
//! can be exchanged in between (CVE-2017-1002101).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};

use super::{VolumeError, at, make_folder};

/// The kernel's bound on links in one path.
const LINKS_MAX: u32 = 40;

/// What to do where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// A directory is made, as kubelet does.
    Made,
    Refused,
}

/// Shows the part `path` of the volume `root` at `place`, which does not exist: as a bind mount, or as a symbolic link where this
/// agent may not mount (its containers are then processes of its own user, from which nothing is kept).
pub(super) fn show(root: &Path, path: &str, missing: Missing, place: &Path) -> Result<(), VolumeError> {
    let found = find(root, path, missing)?;
    let opened = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let kind = nix::sys::stat::fstat(&found).map_err(|errno| at("look at", &root.join(path))(errno.into()))?;
    if is(&kind, libc_mode::DIRECTORY) {
        make_folder(place)?;
    } else {
        fs::File::create(place).map_err(at("create", place))?;
    }
    match mount(Some(&opened), place, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM | Errno::EACCES) => {
            let real = fs::read_link(&opened).map_err(at("find", &opened))?;
            super::remove_tree(place)?;
            symlink(&real, place).map_err(at("create", place))
        }
        Err(errno) => Err(at("mount", place)(errno.into())),
    }
}

/// Bits of `st_mode` (inode(7)).
mod libc_mode {
    pub(super) const KIND: u32 = 0o170_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const LINK: u32 = 0o120_000;
}

fn is(status: &FileStat, kind: u32) -> bool {
    status.st_mode & libc_mode::KIND == kind
}

/// Opens what `path` means inside `root`, without leaving it.
fn find(root: &Path, path: &str, missing: Missing) -> Result<OwnedFd, VolumeError> {
    let refuse = |fault: &'static str| VolumeError::SubPath { sub_path: path.to_owned(), fault };
    let here = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let top = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let mut way: Vec<OwnedFd> = vec![top.map_err(|errno| at("open", root)(errno.into()))?];
    let mut steps: VecDeque<OsString> = parts(Path::new(path)).ok_or_else(|| refuse("must be relative"))?;
    let mut links = 0;
    while let Some(step) = steps.pop_front() {
        if step == ".." {
            way.pop();
            if way.is_empty() {
                return Err(refuse("leads out of the volume"));
            }
            continue;
        }
        let Some(current) = way.last() else { return Err(refuse("leads out of the volume")) };
        let name = Path::new(&step);
        let status = match fstatat(current, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) if missing == Missing::Made => {
                make(current, name).map_err(|errno| at("create", &root.join(path))(errno.into()))?;
                fstatat(current, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            }
            Err(Errno::ENOENT) => return Err(refuse("is not in the volume; the container starts once it is")),
            Err(Errno::ENOTDIR) => return Err(refuse("leads through a file")),
            other => other,
        };
        let status = status.map_err(|errno| at("look at", &root.join(path))(errno.into()))?;
        if is(&status, libc_mode::LINK) {
            links += 1;
            if links > LINKS_MAX {
                return Err(refuse("leads through too many symbolic links"));
            }
            let target = readlinkat(current, name).map_err(|errno| at("read", &root.join(path))(errno.into()))?;
            let inner = parts(Path::new(&target)).ok_or_else(|| refuse("leads out of the volume"))?;
            for part in inner.into_iter().rev() {
                steps.push_front(part);
            }
            continue;
        }
        // Exchanged for a link since: the link itself would be opened, and is no directory to go on in.
        let next = openat(current, name, here, Mode::empty());
        way.push(next.map_err(|errno| at("open", &root.join(path))(errno.into()))?);
    }
    let found = way.pop().ok_or_else(|| refuse("leads out of the volume"))?;
    let status = nix::sys::stat::fstat(&found).map_err(|errno| at("look at", &root.join(path))(errno.into()))?;
    if is(&status, libc_mode::LINK) { Err(refuse("is a symbolic link that keeps changing")) } else { Ok(found) }
}

/// Components of a relative path; `None` for an absolute one.
fn parts(path: &Path) -> Option<VecDeque<OsString>> {
    let mut parts = VecDeque::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push_back(part.to_owned()),
            Component::ParentDir => parts.push_back("..".into()),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

/// A directory with the mode and group of the one it is in.
fn make(parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
    let like = nix::sys::stat::fstat(parent)?;
    match mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty())?;
    let group = nix::unistd::Gid::from_raw(like.st_gid);
    match nix::unistd::fchown(&made, None, Some(group)) {
        // Not root: it has the group of the agent.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    nix::sys::stat::fchmod(&made, Mode::from_bits_truncate(like.st_mode & 0o7777))
}
