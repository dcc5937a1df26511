//! The cgroups of one agent's pods: made, limited, asked about, emptied and removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Hierarchy, Layout};
use crate::runtime::{Limits, Resources};

/// Rounds of killing what forks meanwhile.
const ROUNDS_MAX: u32 = 50;
/// Controllers that limits need.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// Where the cgroups of one agent, or of one of its pods, are. A shim keeps it, so that whoever cleans up after it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tree {
    pub layout: Layout,
    /// From each hierarchy's mount: `/flotilla/<id>`, or below it.
    pub path: String,
}

impl Tree {
    /// Takes hold of `/flotilla/<id>`, making it where that is allowed, and says which limits can be kept there.
    pub fn open(layout: Layout, id: &str) -> (Self, Limits) {
        match &layout {
            Layout::None { why } => {
                let limits = Limits { why: why.clone(), ..Limits::default() };
                (Self { layout, path: String::new() }, limits)
            }
            Layout::V1 { hierarchies, .. } => {
                let path = format!("/flotilla/{id}");
                let limits = open_v1(hierarchies, &path);
                (Self { layout, path }, limits)
            }
            Layout::V2 { mount, own } => {
                let (path, limits) = open_v2(mount, own, id);
                (Self { layout, path }, limits)
            }
        }
    }

    /// The tree of one of its pods, or the cgroup of one container.
    pub fn child(&self, name: &str) -> Self {
        Self { layout: self.layout.clone(), path: format!("{}/{name}", self.path) }
    }

    /// Its folders, one in each hierarchy.
    fn folders(&self) -> Vec<PathBuf> {
        let below = |mount: &Path| mount.join(self.path.trim_start_matches('/'));
        match &self.layout {
            _ if self.path.trim_matches('/').is_empty() => Vec::new(),
            Layout::None { .. } => Vec::new(),
            Layout::V1 { hierarchies, .. } => hierarchies.iter().map(|one| below(&one.mount)).collect(),
            Layout::V2 { mount, .. } => vec![below(mount)],
        }
    }

    fn folder_of(&self, controller: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::None { .. } => None,
            Layout::V1 { hierarchies, .. } => {
                let found = hierarchies.iter().find(|one| one.controllers.iter().any(|name| name == controller))?;
                Some(found.mount.join(self.path.trim_start_matches('/')))
            }
            Layout::V2 { mount, .. } => Some(mount.join(self.path.trim_start_matches('/'))),
        }
    }

    /// Makes this cgroup with these limits and returns the files a process joins it through. Only what is limited is made.
    pub fn limit(&self, resources: &Resources) -> io::Result<Vec<PathBuf>> {
        let is_v2 = matches!(self.layout, Layout::V2 { .. });
        let mut folders: Vec<PathBuf> = Vec::new();
        for (controller, file, value) in files_of(resources, is_v2) {
            let Some(folder) = self.folder_of(controller) else { continue };
            if !folders.contains(&folder) {
                if is_v2 {
                    self.make_v2(&folder)?;
                } else {
                    make(&folder)?;
                }
                folders.push(folder.clone());
            }
            write(&folder.join(file), &value)?;
        }
        Ok(folders.into_iter().map(|folder| folder.join("cgroup.procs")).collect())
    }

    /// Makes a cgroup whose ancestors give it their controllers.
    fn make_v2(&self, folder: &Path) -> io::Result<()> {
        let Some(parent) = folder.parent() else { return Ok(()) };
        make(parent)?;
        give_controllers(parent);
        make(folder)
    }

    /// How often the kernel killed something here because the memory was used up.
    pub fn oom_kills(&self) -> u64 {
        let Some(folder) = self.folder_of("memory") else { return 0 };
        let file = if matches!(self.layout, Layout::V2 { .. }) { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Nothing starts in it any more, and what has been killed there is not held back: a process needs the processor to die, and one
    /// that forks without end would use up all that its limit leaves.
    pub fn let_die(&self) {
        let is_v2 = matches!(self.layout, Layout::V2 { .. });
        let cpu = if is_v2 { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
        for (controller, (file, value)) in [("pids", ("pids.max", "0")), ("cpu", cpu)] {
            // A file that is not there limits nothing.
            if let Some(path) = self.folder_of(controller).map(|folder| folder.join(file)).filter(|path| path.exists())
            {
                drop(fs::write(path, value));
            }
        }
    }

    /// Kills everything in it and below it. Returns how many processes were found.
    pub fn kill(&self) -> usize {
        let Some(folder) = self.folders().into_iter().max_by_key(|folder| members(folder).len()) else { return 0 };
        let found = members(&folder).len();
        if found == 0 {
            return 0;
        }
        // Version 2 does it at once (since Linux 5.14).
        if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
            return found;
        }
        for _ in 0..ROUNDS_MAX {
            let members = members(&folder);
            if members.is_empty() {
                break;
            }
            for pid in members {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        found
    }

    /// Removes it and what is below it. `Err`: something is still in it, for a moment after its last process ended.
    pub fn remove(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        for folder in self.folders() {
            outcome = outcome.and(remove_folder(&folder));
        }
        outcome
    }

    /// Whether anything of it is left.
    pub fn exists(&self) -> bool {
        self.folders().iter().any(|folder| folder.exists())
    }
}

fn open_v1(hierarchies: &[Hierarchy], path: &str) -> Limits {
    let mut limits = Limits::default();
    let mut missing = Vec::new();
    for name in WANTED {
        let one = hierarchies.iter().find(|one| one.controllers.iter().any(|controller| controller == name));
        let outcome = match one {
            None => Err("not in this kernel".to_owned()),
            Some(one) => {
                let folder = one.mount.join(path.trim_start_matches('/'));
                make(&folder).map_err(|error| format!("could not create {}: {error}", folder.display()))
            }
        };
        match outcome {
            Ok(()) => limits.grant(name),
            Err(why) => missing.push(format!("{name} ({why})")),
        }
    }
    limits.why = missing.join(", ");
    limits
}

/// Below the root if that is allowed, else below the agent's own cgroup, or the one around it: a cgroup with processes in it cannot
/// limit its children, so systemd puts a service that asks for it (`DelegateSubgroup=`) one below what it delegates.
fn open_v2(mount: &Path, own: &str, id: &str) -> (String, Limits) {
    let mut why = String::new();
    let mut best: Option<(String, Limits)> = None;
    let own = own.trim_end_matches('/');
    let around = own.rsplit_once('/').map_or("", |(around, _)| around);
    let delegated = [own, around].into_iter().filter(|parent| !parent.is_empty());
    for parent in std::iter::once("").chain(delegated) {
        let path = format!("{parent}/flotilla/{id}");
        let folder = mount.join(path.trim_start_matches('/'));
        if let Err(error) = make(&folder) {
            why = format!("could not create {}: {error}", folder.display());
            continue;
        }
        // From the parent down to the agent's own folder, so that pods below it can be limited.
        let start = mount.join(parent.trim_start_matches('/'));
        give_controllers(&start);
        give_controllers(&start.join("flotilla"));
        let given = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let mut limits = Limits::default();
        let mut missing = Vec::new();
        for name in WANTED {
            if given.split_whitespace().any(|one| one == name) {
                limits.grant(name);
            } else {
                missing.push(name);
            }
        }
        if missing.is_empty() {
            return (path, limits);
        }
        limits.why = format!(
            "controllers {} are not delegated to {}: start the agent as root outside a container, or by systemd with Delegate=yes and DelegateSubgroup=agent",
            missing.join(", "),
            folder.display()
        );
        best.get_or_insert((path, limits));
    }
    best.unwrap_or_else(|| (String::new(), Limits { why, ..Limits::default() }))
}

/// Lets the children of a cgroup be limited. What the kernel refuses (there are processes in it, or its parent gives nothing) is
/// seen by reading `cgroup.controllers` of the child.
fn give_controllers(folder: &Path) {
    let file = folder.join("cgroup.subtree_control");
    let given = fs::read_to_string(&file).unwrap_or_default();
    for name in WANTED.iter().filter(|name| !given.split_whitespace().any(|one| one == **name)) {
        // One at a time: the kernel takes all or none of one write.
        drop(fs::write(&file, format!("+{name}")));
    }
}

impl Limits {
    fn grant(&mut self, controller: &str) {
        match controller {
            "cpu" => self.cpu = true,
            "memory" => self.memory = true,
            _ => self.pids = true,
        }
    }
}

/// Controller, file and value of each limit.
fn files_of(resources: &Resources, is_v2: bool) -> Vec<(&'static str, &'static str, String)> {
    let period = Resources::CPU_PERIOD_US;
    let mut files = Vec::new();
    if let Some(bytes) = resources.memory_bytes_max {
        files.push(("memory", if is_v2 { "memory.max" } else { "memory.limit_in_bytes" }, bytes.to_string()));
    }
    if let Some(shares) = resources.cpu_shares {
        files.push(match is_v2 {
            true => ("cpu", "cpu.weight", weight(shares).to_string()),
            false => ("cpu", "cpu.shares", shares.to_string()),
        });
    }
    if let Some(quota) = resources.cpu_quota_us {
        if is_v2 {
            files.push(("cpu", "cpu.max", format!("{quota} {period}")));
        } else {
            files.push(("cpu", "cpu.cfs_period_us", period.to_string()));
            files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
        }
    }
    if let Some(pids) = resources.pids_max {
        files.push(("pids", "pids.max", pids.to_string()));
    }
    files
}

/// The weight of version 2 for shares of version 1, as the OCI runtimes convert it (2..262144 to 1..10000).
pub(crate) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("writing {value} to {}: {error}", path.display())))
}

/// Processes in a cgroup and below it.
fn members(folder: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(folder) {
        found.extend(members(&child));
    }
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// A cgroup's files cannot be removed and need not be; only folders are, from below.
fn remove_folder(folder: &Path) -> io::Result<()> {
    for child in children(folder) {
        remove_folder(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("removing cgroup {}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}
