//! What containers leave behind, and its removal: by their shim, or by the agent when the shim is gone.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::files::{self, ShimFile};
use crate::cgroup::tree::Tree;
use crate::stage::Spec;

/// Entries that may be removed while the shim's loop waits.
const SMALL_ENTRIES_MAX: usize = 256;
/// How long the kernel may need to let go of a cgroup whose processes have been killed.
const CGROUP_TRIES_MAX: u32 = 100;
const CGROUP_AGAIN: Duration = Duration::from_millis(10);

/// What a container leaves behind that somebody has to remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leavings {
    pub cgroup: Option<Tree>,
    pub folders: Vec<PathBuf>,
    /// A list of mount points, to be removed with what it names.
    pub made: Option<PathBuf>,
}

/// How long a removal may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// One try.
    Now,
    /// Waits for the kernel, up to a second; not in a loop.
    Wait,
}

/// Removes what can be removed; true when nothing is left.
pub fn remove(leavings: &Leavings, patience: Patience) -> bool {
    if let Some(list) = &leavings.made {
        remove_made(list);
    }
    let mut clean = true;
    for folder in &leavings.folders {
        clean &= gone(fs::remove_dir_all(folder));
    }
    leavings.cgroup.as_ref().is_none_or(|cgroup| remove_cgroup(cgroup, patience)) && clean
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when a cgroup is empty; only threads that may wait ask for this"
)]
fn remove_cgroup(cgroup: &Tree, patience: Patience) -> bool {
    for _ in 0..CGROUP_TRIES_MAX {
        if cgroup.remove().is_ok() {
            return true;
        }
        cgroup.kill();
        if patience == Patience::Now {
            return false;
        }
        std::thread::sleep(CGROUP_AGAIN);
    }
    false
}

fn gone(outcome: std::io::Result<()>) -> bool {
    outcome.is_ok() || outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Mount points that were made for a container; one that somebody has put something into stays.
fn remove_made(list: &Path) {
    let text = fs::read_to_string(list).unwrap_or_default();
    for path in text.lines().rev().map(Path::new) {
        let empty_file = fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
        drop(if empty_file { fs::remove_file(path) } else { fs::remove_dir(path) });
    }
    drop(fs::remove_file(list));
}

/// Whether its folders can be removed in no time.
pub fn is_small(leavings: &Leavings) -> bool {
    let mut left = SMALL_ENTRIES_MAX;
    leavings.folders.iter().all(|folder| counts_down(folder, &mut left))
}

fn counts_down(folder: &Path, left: &mut usize) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return true };
    for entry in entries.flatten() {
        *left = left.saturating_sub(1);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if *left == 0 || (is_folder && !counts_down(&entry.path(), left)) {
            return false;
        }
    }
    true
}

/// Starts a process that removes a folder, and returns its pid.
pub(super) fn remove_beside(folder: &Path) -> Result<i32, String> {
    let spec = Spec { removed: Some(folder.to_owned()), ..Spec::default() };
    let failed = |error: std::io::Error| format!("could not remove {}: {error}", folder.display());
    let mut command = Command::new("/proc/self/exe");
    command.args(spec.words()?).env_clear().process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(failed)?;
    i32::try_from(child.id()).map_err(|error| error.to_string())
}

/// Removes what the containers of a dead shim left, as far as its directory and its state tell; nothing of the pod runs any more.
pub fn remove_all(dir: &Path, state: Option<&ShimFile>) -> bool {
    let mut leavings = Leavings { folders: vec![files::oci_state_path(dir)], ..Leavings::default() };
    leavings.cgroup = state.and_then(|state| state.setup.cgroups.clone());
    let mut lists = Vec::new();
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for container in entries(dir).filter(|path| path.is_dir()) {
        for path in entries(&container) {
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("root") => leavings.folders.push(path),
                Some("made") => lists.push(path),
                _ => {}
            }
        }
    }
    for list in lists {
        remove_made(&list);
    }
    if let Some(cgroup) = &leavings.cgroup {
        cgroup.kill();
    }
    remove(&leavings, Patience::Wait)
}
