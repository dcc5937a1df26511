//! The device itself, as a Node's status tells of it: capacity, identity, pressure.
//!
//! Owns reading `/proc`, `/sys` and `/etc`. Refuses to fail: what cannot be read is left out or said as zero. Start reading at
//! [`Host::read`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use crate::runtime::{Facilities, admission};

/// Kubernetes' version this agent behaves as.
const KUBELET: &str = "v1.33.0";
/// kubelet's default for `maxPods`.
const PODS_MAX: u32 = 110;
/// kubelet's default eviction thresholds.
const MEMORY_AVAILABLE_BYTES_MIN: u64 = 100 * 1024 * 1024;
const DISK_AVAILABLE_PERCENT_MIN: u64 = 10;
const PIDS_USED_PERCENT_MAX: u64 = 90;

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hostname: String,
    /// Address of the interface with the default route, else any non-loopback one, else 127.0.0.1.
    pub ip: String,
    pub boot_id: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub kernel_version: String,
    pub os_image: String,
    /// Kubernetes' names: `amd64`, `arm64`, `arm`.
    pub architecture: &'static str,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    pub source: Source,
}

/// Where what changes is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This machine, and the file system of the agent's folder: that is what `ephemeral-storage` means.
    Machine(PathBuf),
    /// It never changes: a simulated device.
    Fixed(Pressure),
}

/// What does: read before each Node status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    pub memory_available_bytes: u64,
    pub disk_bytes: u64,
    pub disk_available_bytes: u64,
    pub pids: u64,
    pub pids_max: u64,
}

/// What a Node's status says of its pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strain {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
    pub disk_bytes: u64,
}

impl Pressure {
    pub fn strain(&self) -> Strain {
        let percent = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole).unwrap_or(0);
        // A size that could not be read is no pressure.
        let disk_percent = percent(self.disk_available_bytes, self.disk_bytes);
        Strain {
            memory: self.memory_available_bytes > 0 && self.memory_available_bytes < MEMORY_AVAILABLE_BYTES_MIN,
            disk: self.disk_bytes > 0 && disk_percent < DISK_AVAILABLE_PERCENT_MIN,
            pids: percent(self.pids, self.pids_max) > PIDS_USED_PERCENT_MAX,
            disk_bytes: self.disk_bytes,
        }
    }
}

impl Host {
    /// Reads this machine. `data` is the agent's folder.
    pub fn read(data: &Path) -> Self {
        let machine_id = line("/etc/machine-id");
        let product = line("/sys/class/dmi/id/product_uuid");
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            hostname: line("/proc/sys/kernel/hostname"),
            ip: address().to_string(),
            boot_id: crate::shim::proc_table::boot_id(),
            system_uuid: if product.is_empty() { machine_id.clone() } else { product },
            machine_id,
            kernel_version: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            architecture: architecture(std::env::consts::ARCH),
            cpu_milli: (cpus as u64).saturating_mul(1000),
            memory_bytes: memory_bytes(),
            source: Source::Machine(data.to_owned()),
        }
    }

    pub fn pressure(&self) -> Pressure {
        let data = match &self.source {
            Source::Machine(data) => data,
            Source::Fixed(pressure) => return *pressure,
        };
        let (disk_bytes, disk_available_bytes) = nix::sys::statvfs::statvfs(data)
            .map(|disk| {
                let block = wide(disk.fragment_size());
                (block.saturating_mul(wide(disk.blocks())), block.saturating_mul(wide(disk.blocks_available())))
            })
            .unwrap_or_default();
        let loads = line("/proc/loadavg");
        let pids = loads.split(' ').nth(3).and_then(|tasks| tasks.split_once('/')?.1.parse().ok()).unwrap_or(0);
        Pressure {
            memory_available_bytes: memory_line(
                &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
                "MemAvailable:",
            ),
            disk_bytes,
            disk_available_bytes,
            pids,
            pids_max: line("/proc/sys/kernel/pid_max").parse().unwrap_or(0),
        }
    }

    pub fn strain(&self) -> Strain {
        self.pressure().strain()
    }

    /// NodeStatus: capacity, allocatable, nodeInfo, addresses, conditions. `previous` keeps `lastTransitionTime` of conditions
    /// that did not change.
    pub fn node_status(
        &self,
        node_name: &str,
        facilities: &Facilities,
        pressure: &Pressure,
        previous: Option<&Value>,
        now: Timestamp,
    ) -> Value {
        let amounts = json!({
            "cpu": cpu(self.cpu_milli),
            "memory": format!("{}Ki", self.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", pressure.disk_bytes / 1024),
            "pods": PODS_MAX.to_string(),
        });
        let hostname = if self.hostname.is_empty() { node_name } else { &self.hostname };
        json!({
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": conditions(facilities, pressure, previous, now),
            "addresses": [
                {"type": "InternalIP", "address": self.ip},
                {"type": "Hostname", "address": hostname},
            ],
            "runtimeHandlers": facilities.handlers().iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "nodeInfo": {
                "machineID": self.machine_id,
                "systemUUID": self.system_uuid,
                "bootID": self.boot_id,
                "kernelVersion": self.kernel_version,
                "osImage": self.os_image,
                "containerRuntimeVersion": facilities.version(),
                "kubeletVersion": format!("{KUBELET}-flotilla.{}", env!("CARGO_PKG_VERSION")),
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": self.architecture,
            },
        })
    }
}

/// What is 32 bits wide on some boards and 64 on others.
fn wide(count: impl Into<u64>) -> u64 {
    count.into()
}

/// `2`, or `1500m`.
fn cpu(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

fn conditions(facilities: &Facilities, pressure: &Pressure, previous: Option<&Value>, now: Timestamp) -> Value {
    let Strain { memory, disk, pids, .. } = pressure.strain();
    let facts = [
        ("MemoryPressure", memory, ["KubeletHasSufficientMemory", "KubeletHasInsufficientMemory"], "memory available"),
        ("DiskPressure", disk, ["KubeletHasNoDiskPressure", "KubeletHasDiskPressure"], "disk space available"),
        ("PIDPressure", pids, ["KubeletHasSufficientPID", "KubeletHasInsufficientPID"], "PID available"),
    ];
    let mut told: Vec<Value> = facts
        .into_iter()
        .map(|(kind, bad, reasons, what)| {
            let message = format!("agent has {} {what}", if bad { "insufficient" } else { "sufficient" });
            condition(kind, bad, reasons[usize::from(bad)], &message, previous, now)
        })
        .collect();
    if facilities.oci.is_err() {
        told.push(condition("IsolationUnavailable", true, "ProcessBackend", admission::NOT_ISOLATED, previous, now));
    }
    if !facilities.limits.why.is_empty() {
        let why = format!("resource limits of containers are not kept on this device: {}", facilities.limits.why);
        told.push(condition("LimitsUnavailable", true, "CgroupsUnavailable", &why, previous, now));
    }
    told.push(condition("Ready", true, "KubeletReady", "agent is posting ready status", previous, now));
    told.into()
}

fn condition(kind: &str, truth: bool, reason: &str, message: &str, previous: Option<&Value>, now: Timestamp) -> Value {
    let status = if truth { "True" } else { "False" };
    let known = previous.and_then(|previous| previous.get("conditions")?.as_array()).into_iter().flatten();
    let same = known.into_iter().find(|condition| condition["type"] == kind && condition["status"] == status);
    let since = same.and_then(|condition| condition["lastTransitionTime"].as_str()).map(str::to_owned);
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now.to_rfc3339(), "lastTransitionTime": since.unwrap_or_else(|| now.to_rfc3339()),
    })
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn os_image(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

pub(crate) fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64" => "riscv64",
        other => other,
    }
}

/// All the memory there is.
pub(crate) fn memory_bytes() -> u64 {
    memory_line(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
}

/// `MemTotal:       24683700 kB`, in bytes.
fn memory_line(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// Connecting a datagram socket sends nothing; the kernel only picks the source address of the route.
fn address() -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // A documentation address (RFC 5737): only the default route leads there.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match routed {
        Ok(address) if !address.ip().is_unspecified() => address.ip(),
        _ => any_interface().unwrap_or(loopback),
    }
}

fn any_interface() -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| IpAddr::V4(address.ip())))
        .find(|ip| !ip.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const GOOD: Pressure = Pressure {
        memory_available_bytes: 1 << 30,
        disk_bytes: 100 << 30,
        disk_available_bytes: 50 << 30,
        pids: 100,
        pids_max: 32768,
    };

    fn status_of<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap()
    }

    #[test]
    fn this_machine_can_be_read() {
        let host = Host::read(Path::new("/"));
        assert!(host.memory_bytes > 0 && host.cpu_milli >= 1000 && host.boot_id.len() == 36, "{host:?}");
        assert!(host.ip.parse::<IpAddr>().is_ok());
        let pressure = host.pressure();
        assert!(pressure.disk_bytes > 0 && pressure.pids > 0 && pressure.pids_max > 0, "{pressure:?}");
    }

    #[test]
    fn pressure_becomes_a_condition_and_keeps_its_date_while_it_lasts() {
        let host = Host::read(Path::new("/"));
        let first = host.node_status("edge-1", &Facilities::default(), &GOOD, None, Timestamp(1_000));
        assert_eq!(status_of(&first, "DiskPressure")["status"], "False");
        let isolation = status_of(&first, "IsolationUnavailable");
        assert!(isolation["status"] == "True" && isolation["message"].as_str().unwrap().contains("install crun"));
        let full = Pressure { disk_available_bytes: 9 << 30, memory_available_bytes: 1 << 20, pids: 32000, ..GOOD };
        let second = host.node_status("edge-1", &Facilities::default(), &full, Some(&first), Timestamp(60_000));
        for kind in ["DiskPressure", "MemoryPressure", "PIDPressure"] {
            assert_eq!(status_of(&second, kind)["status"], "True", "{kind}");
            assert_eq!(status_of(&second, kind)["lastTransitionTime"], "1970-01-01T00:01:00Z");
        }
        assert_eq!(status_of(&second, "Ready")["lastTransitionTime"], "1970-01-01T00:00:01Z");
        assert_eq!(status_of(&second, "Ready")["lastHeartbeatTime"], "1970-01-01T00:01:00Z");
    }

    #[test]
    fn small_readers() {
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
        assert_eq!(memory_line("MemTotal:  10 kB\nMemAvailable: 5 kB\n", "MemAvailable:"), 5120);
        assert_eq!((cpu(2000), cpu(1500)), ("2".to_owned(), "1500m".to_owned()));
    }
}
