//! The stage: this program executed again to set a process up in ways that only a process can do for itself, and to become that
//! process.
//!
//! A program with threads must not run code between fork and exec, and this one is written without `unsafe`, so whatever has to
//! happen there (a mount namespace, mounts, a cgroup, another user) happens in a second execution of this very binary, which is
//! single threaded: it reads its [`Spec`], does the steps in order, and executes the program in its own place. Owns those steps.
//! Refuses to stay: it has no loop and answers nobody; what goes wrong is written to [`Spec::complaint`].
//!
//! Every call of an OCI runtime goes through it ([`Spec::hidden`]: crun refuses to work where cgroups are hybrid), and so does a
//! process of the host that has mounts or limits. Start reading at [`run`].

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::runtime::Mount;

mod mounts;

/// The word that makes either binary a stage: `/proc/self/exe stage SPEC`, SPEC being a [`Spec`] as JSON.
pub const ARGUMENT: &str = "stage";

/// The exit code of a stage that could not become its program; its complaint says why.
pub const FAILED: u8 = 125;

/// What to set up, in the order of the fields, and what to become. The environment is the stage's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// `cgroup.procs` files to write itself into.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<PathBuf>,
    /// Join the namespace of this process instead of having one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_mounts_of: Option<i32>,
    /// Have a mount namespace of its own; mounts made in it are seen by nobody else and end with its last process.
    pub namespace: Namespace,
    /// Mounts to take out of its own view.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<PathBuf>,
    /// Directories to put an empty one over, in its own view.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// Mounts over the host's own files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Where to write which mount points it had to make, a line each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Groups beside `group`; with a user or group given, these are all there are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supplemental_groups: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    pub no_new_privileges: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Removed with everything below it instead of becoming a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<PathBuf>,
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, its own name first.
    pub argv: Vec<String>,
    /// Where to say what went wrong; without it, on standard error. Absent when nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complaint: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    /// The host's.
    #[default]
    None,
    /// As root.
    Mount,
    /// As anybody else, with a user namespace around it in which its user is the same.
    UserAndMount,
}

/// A root directory to be mounted at `DIR/rootfs` from `DIR/l0` (top), `DIR/l1` ..., `DIR/upper` and `DIR/work`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    pub dir: PathBuf,
    pub layers: usize,
    /// `Some(size)`: what is written goes to memory, because the file system of DIR cannot be the upper layer of an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
}

/// A process to be started; its spec is one word of its command line.
impl Spec {
    /// The command that runs this stage with nothing of the caller's environment. `exe` is `/proc/self/exe` in a shim.
    pub fn words(&self) -> Result<[OsString; 2], String> {
        let text = serde_json::to_string(self).map_err(|error| format!("no spec for the stage: {error}"))?;
        Ok([ARGUMENT.into(), text.into()])
    }
}

/// Runs the stage when that is what this process was started as; see [`crate::shim::main`], which calls it. Returns only when it
/// could not become its program.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let spec: Option<Spec> =
        arguments.get(2).and_then(|text| text.to_str()).and_then(|text| serde_json::from_str(text).ok());
    let Some(spec) = spec.filter(|_| arguments.len() == 3) else {
        complain(None, "usage: stage SPEC, SPEC being JSON (started by the agent and its shims)");
        return ExitCode::from(FAILED);
    };
    match run(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(spec.complaint.as_deref(), &message);
            ExitCode::from(FAILED)
        }
    }
}

fn complain(path: Option<&Path>, message: &str) {
    let written = path.map(|path| std::fs::write(path, message));
    if !matches!(written, Some(Ok(()))) {
        use std::io::Write as _;
        drop(writeln!(std::io::stderr(), "{message}"));
    }
}

/// Does the steps and becomes the program.
fn run(spec: &Spec) -> Result<(), String> {
    for procs in &spec.cgroups {
        std::fs::write(procs, "0").map_err(|error| format!("could not join cgroup {}: {error}", procs.display()))?;
    }
    match spec.join_mounts_of {
        Some(pid) => join(pid, spec.namespace)?,
        None => enter(spec.namespace)?,
    }
    for path in &spec.hidden {
        mounts::hide(path)?;
    }
    for path in &spec.covered {
        mounts::cover(path)?;
    }
    if let Some(overlay) = &spec.overlay {
        mounts::overlay(overlay)?;
    }
    if !spec.mounts.is_empty() {
        mounts::bind_all(&spec.mounts, spec.made.as_deref())?;
    }
    become_user(spec)?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(|error| format!("could not give up new privileges: {error}"))?;
    }
    if let Some(path) = &spec.removed {
        return match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("could not remove {}: {error}", path.display()))
            }
            _ => Ok(()),
        };
    }
    if !spec.working_dir.is_empty() {
        std::env::set_current_dir(&spec.working_dir)
            .map_err(|error| format!("chdir to cwd ({:?}) failed: {error}", spec.working_dir))?;
    }
    let name = spec.argv.first().map_or(spec.program.as_os_str(), OsStr::new);
    let mut command = Command::new(&spec.program);
    command.arg0(name).args(spec.argv.get(1..).unwrap_or_default());
    // Also clears the signal mask and what this program does about SIGPIPE.
    let error = command.exec();
    Err(format!("exec: {name:?}: {error}"))
}

fn join(pid: i32, namespace: Namespace) -> Result<(), String> {
    let join = |kind: &str, flag: CloneFlags| {
        let path = format!("/proc/{pid}/ns/{kind}");
        let file = std::fs::File::open(&path).map_err(|error| error.to_string());
        let joined = file.and_then(|file| nix::sched::setns(file, flag).map_err(|error| error.to_string()));
        joined.map_err(|error| format!("could not join the container's namespace {path}: {error}"))
    };
    if namespace == Namespace::UserAndMount {
        join("user", CloneFlags::CLONE_NEWUSER)?;
    }
    join("mnt", CloneFlags::CLONE_NEWNS)
}

fn enter(namespace: Namespace) -> Result<(), String> {
    let flags = match namespace {
        Namespace::None => return Ok(()),
        Namespace::Mount => CloneFlags::CLONE_NEWNS,
        Namespace::UserAndMount => CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER,
    };
    let (user, group) = (Uid::effective(), Gid::effective());
    unshare(flags).map_err(|error| format!("no mount namespace: {error}"))?;
    if namespace == Namespace::UserAndMount {
        // Setting groups has to be given up before a group may be mapped by somebody without privileges (user_namespaces(7)).
        let maps = [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("{user} {user} 1")),
            ("/proc/self/gid_map", format!("{group} {group} 1")),
        ];
        for (path, text) in maps {
            std::fs::write(path, text).map_err(|error| format!("no user namespace: {path}: {error}"))?;
        }
    }
    mounts::seclude()
}

fn become_user(spec: &Spec) -> Result<(), String> {
    let failed = |what: &str, error: nix::Error| format!("could not become {what}: {error}");
    if spec.user.is_some() || spec.group.is_some() || !spec.supplemental_groups.is_empty() {
        let groups: Vec<Gid> = spec.supplemental_groups.iter().copied().map(Gid::from_raw).collect();
        match setgroups(&groups) {
            // Somebody without privileges keeps the groups it has; it may not ask for others.
            Err(_) if groups.is_empty() && !Uid::effective().is_root() => {}
            outcome => {
                outcome.map_err(|error| failed(&format!("a member of groups {:?}", spec.supplemental_groups), error))?
            }
        }
    }
    if let Some(group) = spec.group.map(Gid::from_raw) {
        setresgid(group, group, group).map_err(|error| failed(&format!("group {group}"), error))?;
    }
    if let Some(user) = spec.user.map(Uid::from_raw) {
        setresuid(user, user, user).map_err(|error| failed(&format!("user {user}"), error))?;
    }
    Ok(())
}
