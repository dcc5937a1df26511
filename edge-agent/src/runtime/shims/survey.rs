//! What this device can run: looked for once, when the runtime is opened.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs};
use nix::unistd::Uid;
use tokio::process::Command;

use crate::cgroup::Layout;
use crate::cgroup::tree::Tree;
use crate::runtime::{Facilities, OciRuntime};
use crate::shim::files::{OciSetup, Setup};

/// Looked for in this order.
const NAMES: [&str; 2] = ["crun", "runc"];
/// Looked in after `PATH`, which is short where a service manager starts the agent.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// For a runtime to say its version.
const VERSION_MS_MAX: u64 = 5_000;
/// Of what a container may write to its root where that has to be kept in memory.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Looks. `pods` is the folder of the pods; `oci` the runtime the operator named.
pub(super) async fn of_this_device(pods: &Path, oci: Option<&Path>) -> (Facilities, Setup) {
    let root = Uid::effective().is_root();
    let layout = Layout::read();
    let hidden = layout.hidden();
    let has_cgroup_mount = !matches!(layout, Layout::None { .. });
    let (tree, limits) = Tree::open(layout, &id_of(pods));
    let cgroups = (limits.cpu || limits.memory || limits.pids).then_some(tree);
    let oci = match root {
        true => find_runtime(oci).await,
        false => Err("OCI containers need the agent to run as root".to_owned()),
    };
    let oci = oci.and_then(|oci| usable(oci, cgroups.is_some(), &limits.why));
    let memory_bytes_max = memory_for(pods);
    let setup = Setup {
        oci: oci.as_ref().ok().map(|oci: &OciRuntime| OciSetup {
            name: oci.name.clone(),
            program: oci.path.clone(),
            hidden,
            covered: if has_cgroup_mount { Vec::new() } else { vec![PathBuf::from(crate::cgroup::PLACE)] },
            memory_bytes_max,
        }),
        cgroups,
        rootless: !root,
    };
    if let Err(why) = &oci {
        tracing::info!(reason = %why, "only pods with runtimeClassName process can run here");
    }
    if !limits.why.is_empty() {
        tracing::warn!(reason = %limits.why, "resource limits of containers are not all kept on this device");
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let facilities = Facilities {
        oci,
        process_mounts: if root { Ok(()) } else { user_namespaces() },
        limits,
        cpu_milli: (cpus as u64).saturating_mul(1000),
        memory_bytes: crate::host::memory_bytes(),
    };
    (facilities, setup)
}

/// Names this agent's cgroups among those of others on the machine.
fn id_of(pods: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let data = pods.parent().unwrap_or(pods);
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let hash = ring::digest::digest(&ring::digest::SHA256, data.as_os_str().as_bytes());
    hash.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn find_runtime(named: Option<&Path>) -> Result<OciRuntime, String> {
    if let Some(path) = named {
        return version_of(path).await.map_err(|why| format!("--oci-runtime {}: {why}", path.display()));
    }
    let folders = format!("{}:{FOLDERS}", std::env::var("PATH").unwrap_or_default());
    let mut unusable = Vec::new();
    for name in NAMES {
        let candidates =
            folders.split(':').filter(|folder| folder.starts_with('/')).map(|folder| Path::new(folder).join(name));
        let Some(path) = candidates.into_iter().find(|path| path.is_file()) else { continue };
        match version_of(&path).await {
            Ok(found) => return Ok(found),
            Err(why) => unusable.push(format!("{}: {why}", path.display())),
        }
    }
    Err(if unusable.is_empty() { "neither crun nor runc is installed".to_owned() } else { unusable.join(", ") })
}

/// Only crun makes containers where there are no cgroups to put them into.
fn usable(oci: OciRuntime, has_cgroups: bool, why: &str) -> Result<OciRuntime, String> {
    if has_cgroups || oci.name == "crun" {
        return Ok(oci);
    }
    Err(format!("{} cannot work without cgroups ({why}), crun can: install it", oci.name))
}

/// `crun version 1.8.1`, or `runc version 1.1.5+ds1`.
async fn version_of(path: &Path) -> Result<OciRuntime, String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_millis(VERSION_MS_MAX), command.output()).await;
    let output = output.map_err(|_late| format!("it did not say its version within {VERSION_MS_MAX} ms"))?;
    let output = output.map_err(|error| format!("it cannot be executed: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (name, version) = parse_version(&text).ok_or("its --version names no version")?;
    Ok(OciRuntime { name, version, path: std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path)) })
}

fn parse_version(text: &str) -> Option<(String, String)> {
    let mut words = text.lines().next()?.split_whitespace();
    let name = words.next()?;
    let version = words.find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))?;
    Some((name.to_owned(), version.split('+').next().unwrap_or(version).to_owned()))
}

/// `Some` where the file system cannot be the upper layer of an overlay: what containers write to their root is kept in memory.
fn memory_for(pods: &Path) -> Option<u64> {
    let kind = statfs(pods).ok()?.filesystem_type();
    const V9FS_MAGIC: FsType = FsType(0x0102_1997);
    const MSDOS_SUPER_MAGIC: FsType = FsType(0x4d44);
    let known = [OVERLAYFS_SUPER_MAGIC, NFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, SMB_SUPER_MAGIC];
    let unfit: Vec<FsType> = known.into_iter().chain([V9FS_MAGIC, MSDOS_SUPER_MAGIC]).collect();
    unfit.contains(&kind).then(|| {
        tracing::warn!(
            folder = %pods.display(), bytes = MEMORY_BYTES_MAX,
            "the file system of the agent's folder cannot hold what containers write to their root: it is kept in memory"
        );
        MEMORY_BYTES_MAX
    })
}

/// Whether somebody who is not root may have mounts of its own.
fn user_namespaces() -> Result<(), String> {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if number("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        return Err("the kernel allows no user namespaces".into());
    }
    // Debian's and Ubuntu's own switches.
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0)
        || number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1)
    {
        return Err("user namespaces are only for root on this device".into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_runtimes_say() {
        let read = |text: &str| parse_version(text).map(|(name, version)| format!("{name}://{version}"));
        assert_eq!(read("crun version 1.8.1\ncommit: f8a\n").as_deref(), Some("crun://1.8.1"));
        assert_eq!(read("runc version 1.1.5+ds1\n").as_deref(), Some("runc://1.1.5"));
        assert_eq!(read(""), None);
        assert_eq!(read("no such thing\n"), None);
    }

    #[test]
    fn agents_of_different_folders_have_different_cgroups() {
        assert_ne!(id_of(Path::new("/a/pods")), id_of(Path::new("/b/pods")));
        assert_eq!(id_of(Path::new("/a/pods")).len(), 12);
    }
}
