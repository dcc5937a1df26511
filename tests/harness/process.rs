//! A child process whose output goes to a file and that dies with its owner; and the process table.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A running program of ours.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with its output appended to `log`.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("starting {}: {error}", program.display()));
        Self { child, log: log.to_path_buf() }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What it has printed so far, in all its lives.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// How it ended, once it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// `kill -9`, and reaps it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        wait::until("the end after SIGTERM", || self.status().ok_or_else(|| self.output()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // It may have died between the two calls; then there is nothing left to do.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// One row of the process table.
#[derive(Debug, Clone)]
pub struct Row {
    pub pid: i32,
    pub parent: i32,
    pub command: String,
}

/// Every process on the machine that can be seen.
pub fn table() -> Vec<Row> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        Some(Row { pid, parent, command })
    })
    .collect()
}

/// Kills every process whose command line names `folder`, and all their descendants.
pub fn kill_all_of(folder: &Path) {
    loop {
        let table = table();
        let folder = folder.to_string_lossy();
        let own = i32::try_from(std::process::id()).unwrap();
        let mut doomed: Vec<i32> =
            table.iter().filter(|row| row.pid != own && row.command.contains(&*folder)).map(|row| row.pid).collect();
        let mut at = 0;
        while at < doomed.len() {
            let children = table.iter().filter(|row| row.parent == doomed[at] && !doomed.contains(&row.pid));
            let children: Vec<i32> = children.map(|row| row.pid).collect();
            doomed.extend(children);
            at += 1;
        }
        if doomed.is_empty() {
            return;
        }
        for pid in doomed {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => panic!("killing {pid}: {error}"),
            }
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}
