//! The hub under load: one real process, and what the kernel says of it.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flotilla_tests::process::Process;
use flotilla_tests::wait;

use crate::api::Server;

/// Below this share of a core over a second, a hub has nothing to do: at all, and for each device it knows.
const REST_CPU_MS_PER_S: f64 = 30.0;
const REST_CPU_MS_PER_S_AND_DEVICE: f64 = 0.01;
/// No rest is waited for longer than this.
const REST_MAX: Duration = Duration::from_secs(180);

pub(crate) struct Hub {
    pub(crate) folder: PathBuf,
    pub(crate) quic: SocketAddr,
    /// Devices that it is to have.
    devices: usize,
    process: Process,
}

/// How much a process has used, and how much it holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_ms: f64,
    pub(crate) pss_kib: f64,
}

impl Hub {
    /// Starts a hub in `folder`, on free ports of the loopback; with a broker if one is named.
    pub(crate) fn start(binary: &str, folder: &Path, broker: Option<&str>, devices: usize) -> Self {
        let api: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let quic: SocketAddr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = folder.join("hub");
        let kubeconfig = data.join("admin.kubeconfig");
        if kubeconfig.exists() {
            std::fs::remove_file(&kubeconfig).unwrap();
        }
        let mut arguments: Vec<String> = ["hub", "run", "--data"].map(str::to_owned).into();
        arguments.push(data.to_string_lossy().into_owned());
        arguments.extend(["--listen".to_owned(), api.to_string(), "--quic".to_owned(), quic.to_string()]);
        if let Some(broker) = broker {
            arguments.extend(["--mqtt".to_owned(), broker.to_owned()]);
        }
        let mut process = Process::start(Path::new(binary), &arguments, &folder.join("hub.log"));
        wait::until("the hub is ready", || {
            assert!(process.is_running(), "the hub ended:\n{}", process.output());
            let server = kubeconfig.exists().then(|| Server::of(&kubeconfig).ok()).flatten().ok_or("no kubeconfig")?;
            server.connect().map(|_open| ())
        });
        Self { folder: data, quic, devices, process }
    }

    pub(crate) fn server(&self) -> Server {
        Server::of(&self.folder.join("admin.kubeconfig")).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(crate) fn usage(&self) -> Usage {
        usage(self.pid())
    }

    pub(crate) fn stop(self) {
        let status = self.process.terminate();
        assert!(status.success(), "the hub ended with {status}");
    }

    /// Waits until the hub has done what was to be done.
    pub(crate) fn rest(&self) {
        let start = Instant::now();
        let mut quiet = 0;
        while quiet < 2 && start.elapsed() < REST_MAX {
            let before = self.usage().cpu_ms;
            std::thread::park_timeout(Duration::from_secs(1));
            let little = self.devices as f64 * REST_CPU_MS_PER_S_AND_DEVICE + REST_CPU_MS_PER_S;
            quiet = if self.usage().cpu_ms - before < little { quiet + 1 } else { 0 };
        }
    }
}

/// What a process has used of processors and holds of memory.
pub(crate) fn usage(pid: i32) -> Usage {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    // USER_HZ is 100 on every Linux that Rust runs on.
    Usage { cpu_ms: ticks * 10.0, pss_kib: pss.unwrap_or(0.0) }
}

/// Memory without walking all pages: cheap enough to ask often.
pub(crate) fn rss_kib(pid: i32) -> f64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4.0
}
