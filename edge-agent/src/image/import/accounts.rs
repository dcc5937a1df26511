//! The image's own users and groups, and who it runs as.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};

use crate::image::facts::{Account, ImageFacts, ImageUser};

/// Of `/etc/passwd` and `/etc/group` each.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Lines taken from them.
const ACCOUNTS_LEN_MAX: usize = 512;
const GROUPS_LEN_MAX: usize = 64;

/// Fills in `accounts` and who the image runs as. `layers` are folders, the top one first.
pub(super) fn resolve(layers: &[PathBuf], facts: &mut ImageFacts) {
    let passwd = read(layers, "passwd");
    let groups = Groups::parse(&read(layers, "group"));
    for line in passwd.lines().take(ACCOUNTS_LEN_MAX) {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { continue };
        let (Some(uid), Some(gid)) = (id(uid), id(gid)) else { continue };
        let account = Account {
            name: (*name).to_owned(),
            gid,
            home: (*home).to_owned(),
            groups: groups.of(name).filter(|group| *group != gid).take(GROUPS_LEN_MAX).collect(),
        };
        // The first line of a user counts.
        facts.accounts.entry(uid).or_insert(account);
    }
    facts.user = user(&facts.user.text, facts, &groups);
}

/// `user`, `uid`, `user:group`, `uid:gid`, and mixtures (OCI image-spec, config). Numbers need no account.
fn user(text: &str, facts: &ImageFacts, groups: &Groups) -> ImageUser {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let named = |name: &str| facts.accounts.iter().find(|(_, account)| account.name == name).map(|(uid, _)| *uid);
    let uid = if user.is_empty() { Some(0) } else { id(user).or_else(|| named(user)) };
    let gid = match group {
        Some(group) => id(group).or_else(|| groups.id(group)),
        None => uid.map(|uid: u32| facts.accounts.get(&uid).map_or(0, |account| account.gid)),
    };
    ImageUser { text: text.to_owned(), uid, gid }
}

/// A number of a user or group. The highest means "no change" to the kernel: a runtime told to become it stays root.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct Groups(Vec<(String, u32, Vec<String>)>);

impl Groups {
    fn parse(text: &str) -> Self {
        let of = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members, ..] = fields.as_slice() else { return None };
            let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
            Some(((*name).to_owned(), id(gid)?, members))
        };
        Self(text.lines().take(ACCOUNTS_LEN_MAX).filter_map(of).collect())
    }

    fn id(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(known, ..)| known == name).map(|(_, gid, _)| *gid)
    }

    fn of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().filter(move |(_, _, members)| members.iter().any(|member| member == user)).map(|(_, gid, _)| *gid)
    }
}

/// `/etc/<name>` as the stacked layers show it, without following links; empty when it is not there or no text.
fn read(layers: &[PathBuf], name: &str) -> String {
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for layer in layers {
        let Ok(root) = openat(CWD, layer, folder, Mode::empty()) else { return String::new() };
        let Ok(etc) = openat(&root, "etc", folder, Mode::empty()) else {
            // Hidden, or a link: then what lower layers have is not seen either.
            if statat(&root, "etc", AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return String::new();
            }
            continue;
        };
        match statat(&etc, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let Ok(file) = openat(&etc, OsStr::new(name), flags, Mode::empty()) else { return String::new() };
                let mut bytes = Vec::new();
                let read = std::fs::File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes);
                return read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned());
            }
            Ok(_) => return String::new(),
            Err(_) => {
                let mut value = [0_u8; 1];
                if rustix::fs::fgetxattr(&etc, "trusted.overlay.opaque", &mut value).is_ok() {
                    return String::new();
                }
            }
        }
    }
    String::new()
}
