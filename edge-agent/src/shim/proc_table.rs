//! Reads `/proc`: which processes there are, who they are, and which belong to a container.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::files::ProcessId;

/// The variable that marks every process of a container: `<pod uid>/<container>/<attempt>`. It is how a process that left its
/// process group, or lost its parents, is still found; one that also clears its environment is found only while the shim lives.
pub const MARK: &str = "FLOTILLA_CONTAINER";

/// Rounds of looking for processes that forked while being killed.
const ROUNDS_MAX: u32 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub start_ticks: u64,
}

/// `/proc/<pid>/stat`; `None` when there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets and spaces included.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // Field 22 of the line is the 20th after the name; three are read.
    let start_ticks = fields.nth(16)?.parse().ok()?;
    Some(Stat { state, parent, group, start_ticks })
}

pub fn identify(pid: i32) -> Option<ProcessId> {
    stat(pid).map(|stat| ProcessId { pid, start_ticks: stat.start_ticks })
}

/// Whether exactly this process runs; a zombie does not.
pub fn runs(process: ProcessId) -> bool {
    stat(process.pid).is_some_and(|stat| stat.start_ticks == process.start_ticks && !matches!(stat.state, 'Z' | 'X'))
}

/// Children of a single-threaded process; `None` where the kernel does not list them (no `CONFIG_PROC_CHILDREN`).
pub fn children(pid: i32) -> Option<Vec<i32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some(text.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect())
}

pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Which processes are meant.
#[derive(Debug, Clone, Copy)]
pub struct Family<'a> {
    /// Processes whose mark starts with this: `<uid>/` or `<uid>/<container>/`.
    pub mark_prefix: &'a str,
    /// A process group, as long as it can be trusted: its leader lives, or is not reaped yet.
    pub group: Option<i32>,
    /// Children of this process, whoever they are.
    pub parent: Option<i32>,
}

/// Kills every process of a family with KILL, and what they fork meanwhile. Never the calling process. Returns how many were found.
pub fn kill_family(family: &Family<'_>) -> usize {
    let mut found_total = 0;
    for _ in 0..ROUNDS_MAX {
        let found = members(family);
        if found.is_empty() {
            break;
        }
        found_total += found.len();
        for pid in found {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
    found_total
}

fn members(family: &Family<'_>) -> Vec<i32> {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| pid != me && pid > 1 && is_member(pid, family)).collect()
}

fn is_member(pid: i32, family: &Family<'_>) -> bool {
    let Some(stat) = stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X')) else { return false };
    family.group == Some(stat.group) || family.parent == Some(stat.parent) || marked(pid, family.mark_prefix)
}

fn marked(pid: i32, prefix: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|&byte| byte == 0).any(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        value.is_some_and(|value| value.starts_with(prefix.as_bytes()))
    })
}
