//! The demo's machinery: processes in a temporary folder, waiting with visible progress, tables, and leaving nothing behind.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::api::Api;
use super::relay::Relay;

/// How long one step may take on a slow machine.
const STEP_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// One device of the demo.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    folder: PathBuf,
    child: Child,
    pub(super) relay: Relay,
    pub(super) api: Api,
}

/// Everything the demo started. Dropping it ends all of it.
#[derive(Debug)]
pub(super) struct Stage {
    folder: tempfile::TempDir,
    binary: PathBuf,
    hub_process: Child,
    quic: SocketAddr,
    pub(super) hub: Api,
    devices: Vec<Device>,
    steps: u32,
}

impl Stage {
    /// Starts the hub.
    pub(super) fn build() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("flotilla-demo-").tempdir()?;
        let binary = std::env::current_exe().context("finding the running program")?;
        write_line(&format!("1. start a hub in {}", folder.path().display()))?;
        let api_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let data = folder.path().join("hub");
        let kubeconfig = data.join("admin.kubeconfig");
        let data = data.to_string_lossy().into_owned();
        let (api_text, quic_text) = (api_port.to_string(), quic.to_string());
        let words = ["hub", "run", "--data", &data, "--listen", &api_text, "--quic", &quic_text];
        let mut hub_process = start(&binary, &words, &folder.path().join("hub.log"))?;
        let begun = now();
        let hub = loop {
            if let Some(status) = hub_process.try_wait()? {
                bail!("the hub ended ({status}): {}", std::fs::read_to_string(folder.path().join("hub.log"))?);
            }
            let answer =
                Api::from_kubeconfig(&kubeconfig).and_then(|api| api.get("/api/v1/namespaces/default").map(|_| api));
            match answer {
                Ok(api) => break api,
                Err(error) if now() - begun > STEP_LIMIT => return Err(error.context("the hub did not become ready")),
                Err(_) => std::thread::park_timeout(POLL),
            }
        };
        write_line(&format!("   ready after {:.1} s", (now() - begun).as_secs_f32()))?;
        Ok(Self { folder, binary, hub_process, quic, hub, devices: Vec::new(), steps: 1 })
    }

    /// Announces a step, runs it, and says how long it took.
    pub(super) fn step(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.steps += 1;
        write_line(&format!("{}. {what}", self.steps))?;
        let begun = now();
        let result = work(self);
        match &result {
            Ok(()) => write_line(&format!("   done after {:.1} s", (now() - begun).as_secs_f32()))?,
            Err(_) => write_line(&format!("   FAILED; the logs:\n{}", self.logs()))?,
        }
        result
    }

    /// Waits for an observation, showing what is seen meanwhile.
    pub(super) fn until(&self, what: &str, probe: impl Fn(&Self) -> Result<Result<(), String>>) -> Result<()> {
        let begun = now();
        let terminal = std::io::stdout().is_terminal();
        let mut shown = String::new();
        loop {
            let seen = match probe(self) {
                Ok(Ok(())) => {
                    clear(terminal)?;
                    return write_line(&format!("   seen: {what}"));
                }
                Ok(Err(seen)) => seen,
                Err(error) => format!("{error:#}"),
            };
            if now() - begun > STEP_LIMIT {
                clear(terminal)?;
                return Err(anyhow!("never seen: {what}; last: {seen}"));
            }
            if seen != shown && now() - begun > Duration::from_millis(500) {
                clear(terminal)?;
                let line = format!("   waiting: {what} ({seen})");
                if terminal {
                    write_text(&line)?
                } else {
                    write_line(&line)?
                }
                shown = seen;
            }
            std::thread::park_timeout(POLL);
        }
    }

    /// Mints a token and starts an agent behind a relay of its own.
    pub(super) fn add_device(&mut self, name: &str) -> Result<()> {
        let data = self.folder.path().join("hub").to_string_lossy().into_owned();
        let output = Command::new(&self.binary).args(["token", "create", "--data", &data, "--node", name]).output()?;
        if !output.status.success() {
            bail!("flotilla token create: {}", String::from_utf8_lossy(&output.stderr));
        }
        let token = String::from_utf8(output.stdout)?;
        let relay = Relay::start(self.quic)?;
        let folder = self.folder.path().join(name);
        let (path, hub) = (folder.to_string_lossy().into_owned(), relay.address().to_string());
        let words = ["agent", "run", "--drain", "--data", &path, "--name", name, "--hub", &hub, "--join", token.trim()];
        let mut child = start(&self.binary, &words, &self.folder.path().join(format!("{name}.log")))?;
        let begun = now();
        let api = loop {
            match Api::from_kubeconfig(&folder.join("local.kubeconfig"))
                .and_then(|api| api.get("/version").map(|_| api))
            {
                Ok(api) => break api,
                Err(error) if child.try_wait()?.is_some() || now() - begun > STEP_LIMIT => {
                    return Err(error.context(format!("{name} did not start:\n{}", self.logs())));
                }
                Err(_) => std::thread::park_timeout(POLL),
            }
        };
        self.devices.push(Device { name: name.to_owned(), folder, child, relay, api });
        Ok(())
    }

    pub(super) fn device(&self, name: &str) -> Result<&Device> {
        self.devices.iter().find(|device| device.name == name).with_context(|| format!("no device {name}"))
    }

    pub(super) fn hub_kubeconfig(&self) -> PathBuf {
        self.folder.path().join("hub/admin.kubeconfig")
    }

    pub(super) fn show_pods(&self) -> Result<()> {
        let pods = self.hub.get(super::PODS)?;
        let row = |pod: &Value| {
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            let env = |name| if super::env(pod, name).is_empty() { "-" } else { super::env(pod, name) }.to_owned();
            vec![
                text("/metadata/name"),
                text("/spec/nodeName"),
                text("/status/phase"),
                restarts.to_string(),
                env("COLOUR"),
                env("SIZE"),
            ]
        };
        table(&["POD", "NODE", "STATUS", "RESTARTS", "COLOUR", "SIZE"], super::items(&pods).map(row).collect())
    }

    pub(super) fn show_overrides(&self) -> Result<()> {
        let list = self.hub.get("/apis/flotilla.dev/v1alpha1/overrides")?;
        let mut rows = Vec::new();
        for one in super::items(&list) {
            let text = |pointer: &str| one.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
            let value = |operation: &Value, field: &str| {
                operation.pointer(field).map_or("nothing".to_owned(), Value::to_string)
            };
            for operation in one["spec"]["operations"].as_array().into_iter().flatten() {
                let path = operation["path"].as_str().unwrap_or("-");
                let (new, old) = (value(operation, "/value"), value(operation, "/replaced/value"));
                let node = text("/spec/nodeName");
                rows.push(vec![
                    node,
                    text("/spec/target/name"),
                    path.to_owned(),
                    old,
                    new,
                    text("/spec/author"),
                    text("/spec/time"),
                ]);
            }
        }
        table(&["NODE", "OBJECT", "PATH", "BASE", "HERE", "AUTHOR", "TIME"], rows)
    }

    pub(super) fn say(&self, text: &str) -> Result<()> {
        write_line(text)
    }

    /// Ends every process in an orderly way, checks that none is left, and removes the folder.
    pub(super) fn tear_down(mut self) -> Result<()> {
        write_line("ending: pods, agents, hub")?;
        for device in &mut self.devices {
            terminate(&mut device.child)?;
        }
        terminate(&mut self.hub_process)?;
        let left = processes_of(&self.folder.path().to_string_lossy());
        if !left.is_empty() {
            bail!("processes {left:?} were left behind");
        }
        self.devices.clear();
        let path = self.folder.path().to_path_buf();
        drop(self);
        if path.exists() {
            bail!("{} was left behind", path.display());
        }
        write_line("nothing is left behind")
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "log") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(20).collect();
                all.push_str(&format!("--- {}\n", entry.file_name().to_string_lossy()));
                tail.into_iter().rev().for_each(|line| all.push_str(&format!("{line}\n")));
            }
        }
        all
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.devices.iter_mut().map(|device| &mut device.child).chain([&mut self.hub_process]) {
            // Ended already is what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
        // What a killed agent could not end itself.
        for pid in processes_of(&self.folder.path().to_string_lossy()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
        }
    }
}

impl Device {
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("local.kubeconfig")
    }

    /// `kill -9` of the workload's process: the child of this device's shim.
    pub(super) fn kill_workload(&self) -> Result<()> {
        let shims = processes_of(&self.folder.join("pods").to_string_lossy());
        let children = process_table().into_iter().filter(|(_, parent, _)| shims.contains(parent));
        let victim = children.map(|(pid, _, _)| pid).min().context("no workload process found")?;
        kill(Pid::from_raw(victim), Signal::SIGKILL).with_context(|| format!("killing {victim}"))
    }
}

fn start(binary: &std::path::Path, words: &[&str], log: &std::path::Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(binary);
    command.args(words).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.spawn().with_context(|| format!("starting {}", binary.display()))
}

fn terminate(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    }
    child.wait()?;
    Ok(())
}

/// Processes whose command line names this folder.
fn processes_of(folder: &str) -> Vec<i32> {
    process_table().into_iter().filter(|(_, _, command)| command.contains(folder)).map(|(pid, _, _)| pid).collect()
}

/// (pid, parent, command line) of everything that can be seen.
fn process_table() -> Vec<(i32, i32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let row = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, parent, String::from_utf8_lossy(&command).replace('\0', " ")))
    };
    entries.filter_map(|entry| row(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(head[column].len()))
        .collect();
    let print = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        write_line(&format!("   {}", padded.join("  ").trim_end()))
    };
    print(head.to_vec())?;
    rows.iter().try_for_each(|row| print(row.iter().map(String::as_str).collect()))
}

#[expect(clippy::disallowed_methods, reason = "the demo times itself for the person who watches")]
fn now() -> Instant {
    Instant::now()
}

fn clear(terminal: bool) -> Result<()> {
    if terminal { write_text("\r\x1b[2K") } else { Ok(()) }
}

fn write_line(line: &str) -> Result<()> {
    write_text(&format!("{line}\n"))
}

fn write_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
