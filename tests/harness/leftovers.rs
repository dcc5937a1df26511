//! What the pods of one agent have on the machine: processes, mounts, cgroups, folders. Nothing of it may be left once they ended.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use ring::digest::{SHA256, digest};

use crate::process;

/// Everything there is now of the pods of the agent with this data folder, a line each.
pub fn of(data: &Path) -> Vec<String> {
    let pods = data.join("pods").to_string_lossy().into_owned();
    let processes = process::table().into_iter().filter(|row| row.command.contains(&pods));
    let processes = processes.map(|row| format!("process {}: {}", row.pid, row.command));
    let folders =
        ["pods", "volumes"].into_iter().flat_map(|name| std::fs::read_dir(data.join(name)).into_iter().flatten());
    let folders = folders.flatten().map(|entry| format!("folder {}", entry.path().display()));
    let mounts = mounts(data).into_iter().map(|path| format!("mount {}", path.display()));
    // The agent's own group may stay, empty.
    let name = group_name(data);
    let cgroups = cgroups(data).into_iter().filter(|path| !path.ends_with(&name));
    let cgroups = cgroups.map(|path| format!("cgroup {}", path.display()));
    processes.chain(folders).chain(mounts).chain(cgroups).collect()
}

/// Takes away what a power cut takes away beside the processes: mounts and cgroups.
pub fn forget_kernel_state(data: &Path) {
    for path in mounts(data) {
        // Mounted twice over, or gone since the table was read: the next look tells.
        umount2(&path, MntFlags::MNT_DETACH).ok();
    }
    for path in cgroups(data) {
        drop(std::fs::remove_dir(path));
    }
}

/// Mount points at or below a folder, the deepest first.
fn mounts(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(point.replace("\\040", " ")));
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    points.reverse();
    points
}

/// The control groups that an agent made, in all hierarchies, the deepest first.
fn cgroups(data: &Path) -> Vec<PathBuf> {
    let name = group_name(data);
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = waiting.pop() {
        if folder.components().any(|part| part.as_os_str() == name.as_str()) {
            found.push(folder.clone());
        }
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        waiting.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// What an agent calls its control group: the first 12 hex digits of SHA-256 of its data folder's path.
fn group_name(data: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let path = data.canonicalize().unwrap_or_else(|_gone| data.to_owned());
    digest(&SHA256, path.as_os_str().as_bytes()).as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
