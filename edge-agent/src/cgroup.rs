//! Control groups: which there are on this device, and what is done with them.
//!
//! Owns finding out how cgroups are mounted (version 1, both versions, version 2, or not usable; [`Layout::of`], pure), the tree
//! `/flotilla/<id>/<pod uid>/<container>-<attempt>` ([`tree`]), limits written there for processes of the host, and the end of
//! everything in it. An OCI runtime makes the container's own cgroup in the same tree from its config. Refuses to fail a pod:
//! what cannot be done is a fact ([`crate::runtime::Limits`]) that statuses tell of. Start reading at [`Layout::of`], then
//! [`tree::Tree`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod tree;

/// How cgroups are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "version")]
pub enum Layout {
    #[serde(rename = "none")]
    None { why: String },
    #[serde(rename = "1")]
    V1 {
        hierarchies: Vec<Hierarchy>,
        /// Where version 2 is mounted beside it (hybrid); crun works only where it is not seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unified: Option<PathBuf>,
    },
    #[serde(rename = "2")]
    V2 {
        mount: PathBuf,
        /// This process's own cgroup, `/` at the root.
        own: String,
    },
}

/// One mounted hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// `cpu`, `cpuacct`, `name=systemd`.
    pub controllers: Vec<String>,
}

impl Layout {
    /// Reads this machine's.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&text("/proc/thread-self/mountinfo"), &text("/proc/thread-self/cgroup"))
    }

    /// From the texts of `/proc/self/mountinfo` (proc(5)) and `/proc/self/cgroup` (cgroups(7)). A mount that hides an earlier one
    /// at the same place counts.
    pub fn of(mountinfo: &str, own: &str) -> Self {
        let mounts: Vec<CgroupMount> = mountinfo.lines().filter_map(CgroupMount::of).collect();
        let last_at = |place: &Path| mounts.iter().rposition(|mount| mount.place == place);
        let seen = mounts.iter().enumerate().filter(|(index, mount)| last_at(&mount.place) == Some(*index));
        let seen: Vec<&CgroupMount> = seen.map(|(_, mount)| mount).collect();
        let hierarchies: Vec<Hierarchy> = seen
            .iter()
            .filter(|mount| mount.version == 1)
            .map(|mount| Hierarchy { mount: mount.place.clone(), controllers: mount.controllers(own) })
            .collect();
        let unified = seen.iter().find(|mount| mount.version == 2);
        // `name=systemd` alone limits nothing: then version 2 has the controllers.
        let limits = hierarchies.iter().flat_map(|one| &one.controllers).any(|name| !name.starts_with("name="));
        match (limits, unified) {
            (true, unified) => Self::V1 { hierarchies, unified: unified.map(|mount| mount.place.clone()) },
            (false, Some(unified)) => {
                let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
                // What is above the mounted part is shown as `/..`: not reachable here.
                let own = own.strip_prefix(unified.root.as_str()).filter(|_| unified.root != "/").unwrap_or(own);
                let own = if own.is_empty() || own.starts_with("/..") { "/" } else { own };
                Self::V2 { mount: unified.place.clone(), own: own.to_owned() }
            }
            (false, None) => Self::None { why: "no cgroup file system is mounted".into() },
        }
    }

    /// Mounts that must not be seen by crun.
    pub fn hidden(&self) -> Vec<PathBuf> {
        match self {
            Self::V1 { unified, .. } => unified.iter().cloned().collect(),
            Self::None { .. } | Self::V2 { .. } => Vec::new(),
        }
    }
}

/// Where cgroups are by convention (file-hierarchy(7)).
pub const PLACE: &str = "/sys/fs/cgroup";

struct CgroupMount {
    version: u8,
    /// What of the hierarchy is mounted: `/`, or a subtree in a container.
    root: String,
    place: PathBuf,
    options: Vec<String>,
}

impl CgroupMount {
    /// `34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu`
    fn of(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup" => 1,
            "cgroup2" => 2,
            _ => return None,
        };
        let options = right.nth(1).unwrap_or("").split(',').map(str::to_owned).collect();
        let root = unescaped(left.get(3)?);
        Some(Self { version, root, place: PathBuf::from(unescaped(left.get(4)?)), options })
    }

    /// The options that are names of controllers: those that `/proc/self/cgroup` lists.
    fn controllers(&self, own: &str) -> Vec<String> {
        let known = |option: &&String| {
            own.lines()
                .filter_map(|line| line.split(':').nth(1))
                .flat_map(|names| names.split(','))
                .any(|one| one == *option)
        };
        self.options.iter().filter(known).cloned().collect()
    }
}

/// Spaces and the like stand as octal numbers in mountinfo.
fn unescaped(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => result.push(char::from(code)),
            None => result.push('\\'),
        }
        rest = &rest[at + if code.is_some() { 4 } else { 1 }..];
    }
    result + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
