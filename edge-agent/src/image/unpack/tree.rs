//! The folder a layer is unpacked into: where an entry lands, and what it may not do there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fsetxattr, fstatvfs, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Bounds;
use super::archive::{Entry, Kind};

/// Longest path of an entry, and longest target of a symbolic link (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
/// Longest component (NAME_MAX).
const NAME_BYTES_MAX: usize = 255;
/// Nesting of folders.
const DEPTH_LEN_MAX: usize = 256;
/// One extended attribute, as the kernel bounds it.
const ATTRIBUTE_BYTES_MAX: usize = 65_536;
const ATTRIBUTES_LEN_MAX: usize = 64;
/// Free space is looked at after so many written bytes.
const CHECK_BYTES: u64 = 4 * 1024 * 1024;
/// Memory for the times of folders.
const TIMES_BYTES_MAX: usize = 16 * 1024 * 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of aufs' own files: not part of the layer.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// Why an entry is not unpacked.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) text: String,
    pub(super) available_bytes: Option<u64>,
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), available_bytes: None }
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { text, available_bytes: None }
    }
}

/// The folder in the making.
pub(super) struct Tree<'a> {
    path: &'a Path,
    root: OwnedFd,
    bounds: &'a Bounds,
    /// The folder the last entry was put into: most entries stand beside the one before.
    recent: Option<(Vec<OsString>, OwnedFd)>,
    /// Folders' times are set last: whatever is put into them would change them.
    times: Vec<(Vec<OsString>, Timespec)>,
    /// What `times` holds.
    times_bytes: usize,
    written_bytes: u64,
    checked_bytes: u64,
}

type Outcome<T = ()> = Result<T, Refusal>;

impl<'a> Tree<'a> {
    pub(super) fn open(path: &'a Path, bounds: &'a Bounds) -> Outcome<Self> {
        let root = openat(CWD, path, folder_flags(), Mode::empty()).map_err(failed("open it"))?;
        let tree = Self {
            path,
            root,
            bounds,
            recent: None,
            times: Vec::new(),
            times_bytes: 0,
            written_bytes: 0,
            checked_bytes: 0,
        };
        tree.check_space()?;
        Ok(tree)
    }

    /// Puts one entry where it belongs.
    pub(super) fn put(&mut self, entry: &Entry, content: &mut impl Read) -> Outcome {
        let mut parents = components(&entry.path)?;
        let Some(name) = parents.pop() else {
            return self.put_root(entry);
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(parents, &name);
        }
        if entry.kind == Kind::CharacterDevice || entry.kind == Kind::BlockDevice {
            if entry.device == (0, 0) {
                return Err(
                    "it is a device 0:0, which would hide a file of a lower layer; layers do that with .wh. names"
                        .into(),
                );
            }
            // The runtime gives every container its own /dev.
            return Ok(());
        }
        let folder = self.folder(parents.clone())?;
        let hides = self.make_room(&folder, &parents, &name, entry.kind)?;
        match entry.kind {
            Kind::File => self.file(&folder, &name, entry, content)?,
            Kind::Folder => {
                match mkdirat(&folder, &name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed("create the folder")(error)),
                }
                if hides {
                    let made = openat(&folder, &name, folder_flags(), Mode::empty()).map_err(failed("open it"))?;
                    opaque(&made)?;
                }
                parents.push(name.clone());
                let time = Timespec { tv_sec: entry.mtime_seconds, tv_nsec: entry.mtime_nanoseconds.into() };
                self.times_bytes += parents.iter().map(|part| part.len() + size_of::<OsString>()).sum::<usize>();
                // Beyond the bound a folder shows the time of its import: better than memory without end.
                if self.times_bytes <= TIMES_BYTES_MAX {
                    self.times.push((parents, time));
                }
            }
            Kind::SymbolicLink => {
                if entry.target.is_empty() || entry.target.len() >= PATH_BYTES_MAX || entry.target.contains(&0) {
                    return Err("its target is no path".into());
                }
                symlinkat(OsStr::from_bytes(&entry.target), &folder, &name).map_err(failed("create the link"))?;
            }
            Kind::HardLink => return self.hard_link(&folder, &name, entry),
            Kind::Fifo => {
                mknodat(&folder, &name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(failed("create the fifo"))?;
            }
            Kind::CharacterDevice | Kind::BlockDevice => {}
        }
        describe(&folder, &name, entry)
    }

    /// Sets what had to wait, and gives the space a last look.
    pub(super) fn finish(self) -> Outcome {
        for (folder, time) in &self.times {
            // A folder may have been replaced by a later entry.
            let Ok(made) = walk(&self.root, folder) else { continue };
            let times = Timestamps { last_access: *time, last_modification: *time };
            rustix::fs::futimens(&made, &times).map_err(failed("set the time of a folder"))?;
        }
        self.check_space()
    }

    /// The layer's `/`.
    fn put_root(&mut self, entry: &Entry) -> Outcome {
        if entry.kind != Kind::Folder {
            return Err("the root of a layer is a folder".into());
        }
        rustix::fs::fchown(&self.root, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(failed("set the owner"))?;
        rustix::fs::fchmod(&self.root, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode"))?;
        Ok(())
    }

    fn whiteout(&mut self, parents: Vec<OsString>, name: &OsStr) -> Outcome {
        let name = name.as_bytes();
        if name == OPAQUE {
            let folder = self.folder(parents)?;
            return opaque(&folder);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("it hides nothing that could be there".into());
        }
        let hidden = OsStr::from_bytes(hidden);
        let folder = self.folder(parents)?;
        match look(&folder, hidden)? {
            // What the layer itself brings stays; only what is below it is hidden.
            Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                let found = openat(&folder, hidden, folder_flags(), Mode::empty()).map_err(failed("open it"))?;
                opaque(&found)
            }
            Some(_) => Ok(()),
            None => mknodat(&folder, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
                .map_err(failed("create the whiteout")),
        }
    }

    /// The folder with this path, made if it is not there.
    fn folder(&mut self, path: Vec<OsString>) -> Outcome<OwnedFd> {
        if let Some((recent, folder)) = &self.recent
            && *recent == path
        {
            return folder.try_clone().map_err(|error| format!("could not duplicate a descriptor: {error}").into());
        }
        let mut at = self.root.try_clone().map_err(|error| format!("could not duplicate a descriptor: {error}"))?;
        for (depth, name) in path.iter().enumerate() {
            at = match openat(&at, name, folder_flags(), Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    mkdirat(&at, name, Mode::from_raw_mode(0o755)).map_err(failed("create a folder above it"))?;
                    chmodat(&at, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                        .map_err(failed("set the mode of a folder above it"))?;
                    openat(&at, name, folder_flags(), Mode::empty()).map_err(failed("open a folder above it"))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let so_far: PathBuf = path[..=depth].iter().collect();
                    return Err(
                        format!("it goes through {}, which is no folder in this layer", so_far.display()).into()
                    );
                }
                Err(error) => return Err(failed("open a folder above it")(error)),
            };
        }
        let kept = at.try_clone().map_err(|error| format!("could not duplicate a descriptor: {error}"))?;
        self.recent = Some((path, kept));
        Ok(at)
    }

    /// Takes away what stands where an entry goes: the last of several entries with one name counts. True: a whiteout stood there.
    fn make_room(&mut self, folder: &OwnedFd, parents: &[OsString], name: &OsStr, kind: Kind) -> Outcome<bool> {
        let Some(found) = look(folder, name)? else { return Ok(false) };
        let found_kind = FileType::from_raw_mode(found.st_mode);
        if found_kind == FileType::Directory {
            if kind == Kind::Folder {
                return Ok(false);
            }
            let full: PathBuf =
                std::iter::once(self.path.as_os_str()).chain(parents.iter().map(OsString::as_os_str)).collect();
            // Every component above is a folder, as the walk just found, and nobody else writes here.
            std::fs::remove_dir_all(full.join(name))
                .map_err(|error| format!("could not replace an earlier folder of that name: {error}"))?;
            self.recent = None;
            return Ok(false);
        }
        unlinkat(folder, name, AtFlags::empty()).map_err(failed("replace an earlier entry of that name"))?;
        Ok(found_kind == FileType::CharacterDevice)
    }

    fn file(&mut self, folder: &OwnedFd, name: &OsStr, entry: &Entry, content: &mut impl Read) -> Outcome {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("create the file"))?;
        let mut file = File::from(made);
        match &entry.sparse {
            None => self.copy(content, &mut file, entry.size_bytes)?,
            Some(parts) => {
                file.set_len(entry.size_bytes).map_err(|error| format!("could not set its size: {error}"))?;
                for (offset, length) in parts {
                    file.seek(SeekFrom::Start(*offset)).map_err(|error| format!("could not seek in it: {error}"))?;
                    self.copy(content, &mut file, *length)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, content: &mut impl Read, file: &mut File, length: u64) -> Outcome {
        if length > self.bounds.unpacked_bytes_max.saturating_sub(self.written_bytes) {
            let most = self.bounds.unpacked_bytes_max;
            return Err(format!("with it the layer is larger than {most} bytes").into());
        }
        let mut left = length;
        let mut buffer = [0_u8; 32 * 1024];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = match content.read(&mut buffer[..most]) {
                Ok(0) => return Err("its content ends early: the layer is not whole".into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("its content cannot be read: {error}").into()),
            };
            file.write_all(&buffer[..count]).map_err(|error| self.write_failed(&error))?;
            left -= count as u64;
            self.written_bytes += count as u64;
            if self.written_bytes - self.checked_bytes >= CHECK_BYTES {
                self.checked_bytes = self.written_bytes;
                self.check_space()?;
            }
        }
        Ok(())
    }

    fn write_failed(&self, error: &io::Error) -> Refusal {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Refusal {
            text: format!("could not write it: {error}"),
            available_bytes: full.then(|| available(&self.root).unwrap_or(0)),
        }
    }

    /// A layer must not take the last of the disk: workloads need it.
    fn check_space(&self) -> Outcome {
        match available(&self.root) {
            Some(available) if available < self.bounds.reserve_bytes => {
                Err(Refusal { text: "the disk is full".into(), available_bytes: Some(available) })
            }
            _ => Ok(()),
        }
    }

    fn hard_link(&mut self, folder: &OwnedFd, name: &OsStr, entry: &Entry) -> Outcome {
        let mut target = components(&entry.target).map_err(|why| Refusal::from(format!("its target: {}", why.text)))?;
        let Some(target_name) = target.pop() else { return Err("its target is the root".into()) };
        let said = String::from_utf8_lossy(&entry.target).into_owned();
        let from = walk(&self.root, &target)
            .map_err(|_| Refusal::from(format!("it is a hard link to {said:?}, which is not in this layer")))?;
        match look(&from, &target_name)? {
            None => Err(format!("it is a hard link to {said:?}, which is not in this layer").into()),
            Some(found) => match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile | FileType::Symlink | FileType::Fifo => {
                    linkat(&from, &target_name, folder, name, AtFlags::empty()).map_err(failed("create the hard link"))
                }
                _ => Err(format!("it is a hard link to {said:?}, which is no file").into()),
            },
        }
    }
}

/// A path as components without `.`; a leading slash means the layer's root.
fn components(path: &[u8]) -> Outcome<Vec<OsString>> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("its path has {} bytes, more than {PATH_BYTES_MAX}", path.len()).into());
    }
    if path.contains(&0) {
        return Err("its path holds a NUL byte".into());
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return Err("its path leads out with ..".into());
        }
        if part.len() > NAME_BYTES_MAX {
            return Err(format!("a part of its path has {} bytes, more than {NAME_BYTES_MAX}", part.len()).into());
        }
        parts.push(OsString::from_vec(part.to_vec()));
    }
    if parts.len() > DEPTH_LEN_MAX {
        return Err(format!("it is nested more than {DEPTH_LEN_MAX} folders deep").into());
    }
    if path.is_empty() { Err("it has no name".into()) } else { Ok(parts) }
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens a folder below `root`, following nothing.
fn walk(root: &OwnedFd, path: &[OsString]) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    for name in path {
        at = openat(&at, name, folder_flags(), Mode::empty())?;
    }
    Ok(at)
}

fn look(folder: &OwnedFd, name: &OsStr) -> Outcome<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(failed("look at")(error)),
    }
}

/// Owner, mode (after the owner, whose change takes setuid away), attributes and time.
fn describe(folder: &OwnedFd, name: &OsStr, entry: &Entry) -> Outcome {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the owner"))?;
    if entry.kind != Kind::SymbolicLink {
        // It was made just now and is no link.
        chmodat(folder, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).map_err(failed("set the mode"))?;
    }
    attributes(folder, name, entry)?;
    let time = Timespec { tv_sec: entry.mtime_seconds, tv_nsec: entry.mtime_nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the time"))
}

fn attributes(folder: &OwnedFd, name: &OsStr, entry: &Entry) -> Outcome {
    if entry.attributes.len() > ATTRIBUTES_LEN_MAX {
        return Err(format!("it has more than {ATTRIBUTES_LEN_MAX} extended attributes").into());
    }
    for (key, value) in &entry.attributes {
        let shown = String::from_utf8_lossy(key).into_owned();
        // overlayfs' own attributes (some builders leak them) could lead it elsewhere; what a security module of another machine wrote
        // (SELinux, IMA, Smack) means nothing here.
        let of_users = key.starts_with(b"user.") && !key.starts_with(b"user.overlay.");
        let kept = of_users || key == b"security.capability" || key.starts_with(b"system.posix_acl_");
        if !kept || key.contains(&0) {
            continue;
        }
        if key.len() > NAME_BYTES_MAX || value.len() > ATTRIBUTE_BYTES_MAX {
            return Err(format!("its attribute {:?} is too long", shown.chars().take(300).collect::<String>()).into());
        }
        // The last component is not followed, and those before it are a descriptor.
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        match lsetxattr(&path, OsStr::from_bytes(key), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A link has no user attributes, and some file systems know none: nothing that runs depends on them.
            Err(Errno::OPNOTSUPP | Errno::PERM) if key.starts_with(b"user.") => {}
            Err(Errno::OPNOTSUPP) if key.starts_with(b"system.") => {}
            Err(error) => return Err(format!("could not set its attribute {shown:?}: {error}").into()),
        }
    }
    Ok(())
}

/// Hides what lower layers have in this folder.
fn opaque(folder: &OwnedFd) -> Outcome {
    fsetxattr(folder.as_fd(), OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).map_err(failed("make the folder opaque"))
}

fn available(folder: &OwnedFd) -> Option<u64> {
    let disk = fstatvfs(folder).ok()?;
    Some(disk.f_frsize.saturating_mul(disk.f_bavail))
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Refusal {
    move |error| {
        let full = matches!(error, Errno::NOSPC | Errno::DQUOT);
        Refusal { text: format!("could not {what}: {error}"), available_bytes: full.then_some(0) }
    }
}
