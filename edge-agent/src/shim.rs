//! The shim: a small single-threaded process per pod that is the parent of its containers and survives the agent.
//!
//! Owns the containers' processes, their output and their exit records. Refuses policy (it never restarts anything) and
//! threads. Both binaries call [`main`] first thing when their first argument is `shim`. Start reading at [`main`], then
//! [`supervisor`] (the loop) and [`files`] (what is left on disk).
//!
//! Invariants: the shim holds `shim.lock` as long as it lives; an exit record is durable before anyone is told of the exit; no
//! descriptor of the shim is inherited by a container; nothing a container does, or a full disk, blocks the loop.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

mod connection;
mod container;
pub mod files;
pub mod litter;
pub mod output;
pub mod proc_table;
pub mod protocol;
mod supervisor;

pub(crate) use container::global_words as container_words;

use crate::runtime::SandboxConfig;

/// The word that makes either binary a shim: `/proc/self/exe shim --dir DIR`, DIR being one pod's directory.
pub const ARGUMENT: &str = "shim";

/// What the shim prints on stdout once it can be talked to; anything else it prints there says why it cannot.
pub const READY: &str = "ready";

/// Runs the shim, or the [stage](crate::stage), when that is what this process was started as; call it first in `main`, before anything starts a thread.
/// `arguments` are the process's own, program name first. `None`: this is no shim.
pub fn main(arguments: &[OsString]) -> Option<ExitCode> {
    if arguments.get(1).is_some_and(|word| word == crate::stage::ARGUMENT) {
        return Some(crate::stage::main(arguments));
    }
    if arguments.get(1).is_none_or(|word| word != ARGUMENT) {
        return None;
    }
    let outcome = match (arguments.get(2), arguments.get(3), arguments.len()) {
        (Some(flag), Some(dir), 4) if flag == "--dir" && Path::new(dir).is_absolute() => run(Path::new(dir)),
        _ => {
            Err("usage: shim --dir DIR, DIR being the absolute path of one pod's directory (started by the agent)"
                .into())
        }
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Before it was ready the agent reads this; afterwards stdout is the shim's own log.
            drop(writeln!(std::io::stdout(), "{message}"));
            ExitCode::FAILURE
        }
    })
}

/// Why the shim ends, for people.
type Complaint = String;

fn run(dir: &Path) -> Result<(), Complaint> {
    close_inherited();
    // Fails only for a process group leader, which then has no controlling terminal of ours either.
    setsid().ok();
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| format!("could not become a subreaper: {error}"))?;
    nix::sys::prctl::set_name(c"flotilla-shim").ok();
    let _lock = lock(dir)?;
    let wish: files::Wish = std::fs::read(sandbox_path(dir))
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
        .map_err(|error| format!("could not read {}: {error}", sandbox_path(dir).display()))?;
    if wish.sandbox.isolated {
        isolate(dir, &wish.sandbox)?;
    }
    let mut supervisor = supervisor::Supervisor::open(dir, wish)?;
    drop(writeln!(std::io::stdout(), "{READY}"));
    detach(dir).map_err(|error| format!("could not leave the agent's standard streams: {error}"))?;
    supervisor.run()
}

/// Makes what the pod's containers share: System V and POSIX queues, a host name, and a few files of `/etc`. This process is what
/// holds the namespaces.
fn isolate(dir: &Path, sandbox: &SandboxConfig) -> Result<(), Complaint> {
    use nix::sched::{CloneFlags, unshare};
    let mut flags = CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWIPC, !sandbox.host_ipc);
    unshare(flags)
        .map_err(|error| format!("could not make the pod's namespaces (OCI containers need root): {error}"))?;
    let named = std::fs::write("/proc/sys/kernel/hostname", &sandbox.hostname);
    named.map_err(|error| format!("could not set the pod's host name to {:?}: {error}", sandbox.hostname))?;
    let own = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let lines: String = sandbox.host_lines.iter().map(|line| format!("{line}\n")).collect();
    let hosts = format!("{}\n# Entries of the pod.\n{lines}", own("/etc/hosts").trim_end());
    let contents =
        [("hosts", hosts), ("hostname", format!("{}\n", sandbox.hostname)), ("resolv.conf", own("/etc/resolv.conf"))];
    for (name, text) in contents {
        let path = files::etc_path(dir, name);
        std::fs::write(&path, text).map_err(|error| format!("could not write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Closes what whoever started the agent left open: it would live on in the shim and leak into every container.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The listing's own descriptor is among them and closed by now.
    for descriptor in open.into_iter().filter(|&descriptor| descriptor > 2) {
        nix::unistd::close(descriptor).ok();
    }
}

/// The wish the agent leaves for the shim it starts.
pub fn sandbox_path(dir: &Path) -> PathBuf {
    dir.join("sandbox.json")
}

/// Takes the lock that says this pod has a living shim. The kernel gives it back when the shim dies, however it dies.
fn lock(dir: &Path) -> Result<File, Complaint> {
    let path = files::lock_path(dir);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| format!("could not open {}: {error}", path.display()))?;
    file.try_lock().map_err(|error| format!("could not lock {}, another shim has it: {error}", path.display()))?;
    Ok(file)
}

/// Standard streams of its own: the agent's may be pipes that end with it.
fn detach(dir: &Path) -> std::io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).open(files::complaint_path(dir))?;
    dup2_stdin(&null)?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    Ok(())
}

/// Since 1970, for records and log lines.
#[expect(clippy::disallowed_methods, reason = "a shim is a process of its own: this is its one door to the clock")]
fn since_epoch() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Monotonic, for deadlines.
#[expect(clippy::disallowed_methods, reason = "a shim is a process of its own: this is its one door to the clock")]
fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

fn clock() -> flotilla_manifests::time::Timestamp {
    flotilla_manifests::time::Timestamp(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// `2026-11-21T07:30:53.123456789Z`
fn log_time() -> String {
    let nanoseconds = i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX);
    jiff::Timestamp::from_nanosecond(nanoseconds).map(|time| format!("{time:.9}")).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
