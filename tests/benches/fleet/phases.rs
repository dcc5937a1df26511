//! What is done with the fleet, in order.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flotilla_hub::tokens::{self, TokenRequest};
use serde_json::{Value, json};

use super::TOKEN_USES;
use super::crowd::now_us;
use super::device::CONFIG_MAP;
use super::floor::Broker;
use super::generators::{Arrival, Generators};
use super::hub::{self, Hub};
use super::probe::Probe;
use super::traffic::Traffic;
use crate::api::Connection;
use crate::report::{Report, percentile};
use crate::say;

/// Devices that come within a second when nothing is measured.
const ARRIVALS_PER_S: usize = 300;
/// The API ends connections that are idle for ten seconds.
const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(5);
/// Changes made while all devices are away: a simulated day.
const CHANGES_AWAY: usize = 200;
/// Aims at the API in milliseconds: get, list, mutate.
const AIMS: (f64, f64, f64) = (10.0, 300.0, 20.0);
const AIMS_IN_A_STORM: (f64, f64, f64) = (200.0, 1000.0, 200.0);

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) devices: usize,
    pub(crate) generators: usize,
    /// Devices that dial at one time.
    pub(crate) dialling: usize,
    pub(crate) road: String,
    /// Where the hub lives; kept when named, so that the next run need not enrol again.
    pub(crate) folder: Option<PathBuf>,
    /// Where the devices' databases live, each of which is a device's own disk in truth: a file system in memory, say.
    pub(crate) memory: Option<PathBuf>,
    pub(crate) changes: usize,
    pub(crate) idle_s: usize,
    pub(crate) phases: Vec<String>,
}

/// One run.
struct Bench<'a> {
    settings: &'a Settings,
    hub: Hub,
    generators: Generators,
    connection: Connection,
    used: Instant,
    broker: Option<Broker>,
    edits: usize,
}

pub(crate) fn run(binary: &str, settings: &Settings, report: &mut Report) {
    let temporary = tempfile::Builder::new().prefix("flotilla-fleet-").tempdir().unwrap();
    let folder = settings.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).unwrap();
    settings.memory.iter().for_each(|memory| std::fs::create_dir_all(memory).unwrap());
    let asked = |name: &str| settings.phases.iter().any(|phase| phase == name);
    if ["change", "idle", "reconnect", "handshakes"].into_iter().any(asked) {
        let memory = settings.memory.clone().unwrap_or_else(|| folder.clone());
        enrol(binary, &folder, &memory, settings, report);
        let broker = (settings.road == "mqtt").then(|| Broker::start(temporary.path()));
        let mut bench = Bench::start(binary, (&folder, &memory), settings, broker, report);
        if asked("change") {
            say("change ...");
            bench.change(report);
        }
        if asked("idle") {
            say("idle ...");
            bench.idle(report);
        }
        if asked("reconnect") {
            say("reconnect ...");
            bench.reconnect(report);
        }
        if asked("handshakes") {
            say("handshakes ...");
            bench.handshakes(report);
        }
        bench.hub.stop();
    }
    if asked("floor") {
        super::floor::measure(temporary.path(), settings.devices, report);
    }
    if asked("writes") {
        super::writes::measure(binary, temporary.path(), report);
    }
}

/// All devices join over QUIC with real tokens; those that have joined in an earlier run are who they were.
fn enrol(binary: &str, folder: &Path, memory: &Path, settings: &Settings, report: &mut Report) {
    let marker = folder.join(format!("joined-{}", settings.devices));
    if marker.exists() {
        return;
    }
    say(&format!("{} devices join ...", settings.devices));
    let hub = Hub::start(binary, folder, None, settings.devices);
    let mut connection = hub.server().connect().unwrap();
    prepare(&mut connection);
    let request = TokenRequest {
        node: None,
        fleet: "default".to_owned(),
        ttl_ms: 86_400_000,
        uses: u32::try_from(TOKEN_USES).unwrap(),
    };
    let count = settings.devices.div_ceil(TOKEN_USES) + settings.generators;
    let tokens: Vec<String> = (0..count).map(|_| tokens::create(&hub.folder, &request).unwrap()).collect();
    let start = Instant::now();
    let before = hub.usage();
    let mut generators = Generators::start(memory, settings, &hub.quic.to_string());
    generators.open(&tokens);
    let devices = settings.devices as f64;
    report.add("joins per second", devices / start.elapsed().as_secs_f64(), "1/s");
    report.add("hub: processor per join", (hub.usage().cpu_ms - before.cpu_ms) / devices, "ms");
    drop(generators);
    hub.rest();
    hub.stop();
    std::fs::write(marker, "").unwrap();
}

/// What all devices run: a DaemonSet, and the ConfigMap it refers to.
fn prepare(connection: &mut Connection) {
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": "0"}});
    for name in [CONFIG_MAP, "aside"] {
        connection.request("POST", maps, "application/json", Some(&map(name)));
    }
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
        "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{
            "name": "main", "image": "busybox", "command": ["/bin/sleep", "3600"],
            "env": [{"name": "VALUE", "valueFrom": {"configMapKeyRef": {"name": CONFIG_MAP, "key": "value"}}}]}]}}}});
    connection.request("POST", "/apis/apps/v1/namespaces/default/daemonsets", "application/json", Some(&set));
}

impl<'a> Bench<'a> {
    /// Starts the hub anew, measures it empty and with all devices in contact.
    fn start(
        binary: &str,
        (folder, memory): (&Path, &Path),
        settings: &'a Settings,
        broker: Option<Broker>,
        report: &mut Report,
    ) -> Self {
        let url = broker.as_ref().map(Broker::url);
        let hub = Hub::start(binary, folder, url.as_deref(), settings.devices);
        let (connection, used) = (hub.server().connect().unwrap(), Instant::now());
        hub.rest();
        let alone = hub.usage();
        let road = url.unwrap_or_else(|| hub.quic.to_string());
        let generators = Generators::start(memory, settings, &road);
        let mut bench = Self { settings, hub, generators, connection, used, broker, edits: 0 };
        bench.generators.open(&[]);
        let (before, traffic_before) = (bench.hub.usage(), Traffic::now());
        let start = Instant::now();
        let within_ms = settings.devices * 1000 / ARRIVALS_PER_S;
        bench.generators.ask(&json!({"do": "connect", "within_ms": within_ms}));
        bench.generators.arrival();
        let devices = settings.devices as f64;
        report.add("all devices in contact, coming at 300 a second", start.elapsed().as_secs_f64(), "s");
        let passed = Traffic::now().since(traffic_before);
        report.add("bytes per session begun, both ways", passed.bytes / devices, "B");
        report.add("hub: processor per session begun", (bench.hub.usage().cpu_ms - before.cpu_ms) / devices, "ms");
        bench.hub.rest();
        let connected = bench.hub.usage();
        report.add("hub: memory with all known and none in contact (PSS)", alone.pss_kib / 1024.0, "MiB");
        report.add("hub: memory with all in contact (PSS)", connected.pss_kib / 1024.0, "MiB");
        let each = (connected.pss_kib - alone.pss_kib) / devices;
        report.add_with_aim("hub: memory per device in contact", each, "KiB", 40.0);
        report.add("generators: memory per device (PSS)", bench.generators.pss_kib() / devices, "KiB");
        let pods = bench.generators.sum(&json!({"do": "report"}), "pods");
        Traffic::settle(settings.devices);
        bench.hub.rest();
        let reported = bench.hub.usage();
        report.add("pods reported", pods as f64, "");
        report.add(
            "hub: processor per first report (Node and Pod)",
            (reported.cpu_ms - connected.cpu_ms) / devices,
            "ms",
        );
        report.add("hub: memory with all reports (PSS)", reported.pss_kib / 1024.0, "MiB");
        say(&format!("{}", bench.generators.counts()));
        bench
    }

    /// One field of the shared ConfigMap; answers when the request left.
    fn edit(&mut self) -> u64 {
        if self.used.elapsed() > CONNECTION_IDLE_MAX {
            self.connection = self.hub.server().connect().unwrap();
        }
        self.used = Instant::now();
        self.edits += 1;
        let body = json!({"data": {"value": format!("{}", 100_000 + self.edits)}});
        let path = format!("/api/v1/namespaces/default/configmaps/{CONFIG_MAP}");
        let sent = now_us();
        self.connection.request("PATCH", &path, "application/merge-patch+json", Some(&body));
        sent
    }

    /// Milliseconds from the edit until each device had it, and until it was durable there.
    fn edited(&mut self) -> (Vec<f64>, Vec<f64>) {
        let seq = self.generators.newest() + 1;
        self.generators.expect(seq);
        let sent = self.edit();
        let Arrival { came, durable } = self.generators.arrival();
        let ms = |times: Vec<u64>| times.into_iter().map(|at| at.saturating_sub(sent) as f64 / 1000.0).collect();
        (ms(came), ms(durable))
    }

    /// Edits in a row, each once the one before is everywhere: first undisturbed, then with people at the API.
    fn change(&mut self, report: &mut Report) {
        let devices = self.settings.devices as f64;
        let changes = self.settings.changes;
        let (mut came, mut durable, mut last, mut bytes, mut packets) = (vec![], vec![], vec![], vec![], vec![]);
        let broker_ms = |bench: &Self| bench.broker.as_ref().map_or(0.0, |broker| hub::usage(broker.pid()).cpu_ms);
        let broker_before = broker_ms(self);
        let (hub_before, generators_before, start) =
            (self.hub.usage().cpu_ms, self.generators.cpu_ms(), Instant::now());
        let mut dropped = 0.0;
        for _ in 0..changes {
            Traffic::settle(self.settings.devices);
            let before = Traffic::now();
            let (one_came, one_durable) = self.edited();
            last.push(one_durable.iter().copied().fold(0.0, f64::max));
            came.extend(one_came);
            durable.extend(one_durable);
            Traffic::settle(self.settings.devices);
            let passed = Traffic::now().since(before);
            bytes.push(passed.bytes / devices);
            packets.push(passed.packets / devices);
            dropped += passed.dropped;
        }
        let hub_ms = self.hub.usage().cpu_ms - hub_before;
        let generators_ms = self.generators.cpu_ms() - generators_before;
        let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
        report.spread("change -> received at each device", &came, "ms", None);
        report.spread("change -> durable at each device", &durable, "ms", None);
        report.spread("change -> durable at the last device", &last, "ms", Some(2000.0));
        report.add("hub: processor per change", hub_ms / changes as f64, "ms");
        report.add("hub: processor per change and device", hub_ms * 1000.0 / changes as f64 / devices, "us");
        report.add(
            "generators: processor per change and device",
            generators_ms * 1000.0 / changes as f64 / devices,
            "us",
        );
        if self.broker.is_some() {
            let each = (broker_ms(self) - broker_before) * 1000.0 / changes as f64 / devices;
            report.add("broker: processor per change and device", each, "us");
        }
        report.add("processor meanwhile: hub", hub_ms / wall_ms * 100.0, "% of a core");
        report.add("processor meanwhile: generators", generators_ms / wall_ms * 100.0, "% of a core");
        report.add_with_aim("bytes per change and device, both ways", percentile(&bytes, 50.0), "B", 300.0);
        report.add("packets per change and device, both ways", percentile(&packets, 50.0), "");
        report.add("datagrams dropped at full buffers", dropped, "");
        let right = self.generators.sum(&json!({"do": "check", "value": (100_000 + self.edits).to_string()}), "right");
        assert_eq!(right, self.settings.devices as u64, "not every device understands the newest value");
        let probe = Probe::start(&self.hub.server(), self.settings.devices, AIMS);
        let mut last = Vec::new();
        let start = Instant::now();
        while last.len() < changes || start.elapsed() < Duration::from_secs(10) {
            last.push(self.edited().1.iter().copied().fold(0.0, f64::max));
        }
        probe.end("changes spread", report);
        report.spread("change -> durable at the last device, with the API in use", &last, "ms", None);
    }

    fn idle(&mut self, report: &mut Report) {
        self.hub.rest();
        let seconds = self.settings.idle_s as f64;
        let devices = self.settings.devices as f64;
        let (before, cpu_before) = (Traffic::now(), self.hub.usage().cpu_ms);
        std::thread::park_timeout(Duration::from_secs_f64(seconds));
        let passed = Traffic::now().since(before);
        let per_hour = passed.bytes / devices / seconds * 3600.0;
        report.add("idle: bytes per device and hour, both ways", per_hour, "B");
        report.add_with_aim("idle: traffic per device", per_hour * 8.0 / 3600.0 / 1000.0, "kbit/s", 0.05);
        report.add("idle: hub's processor", (self.hub.usage().cpu_ms - cpu_before) / seconds / 10.0, "% of a core");
        let pss = self.hub.usage().pss_kib;
        report.add("idle: hub's memory (PSS)", pss / 1024.0, "MiB");
    }

    /// All devices go, a day's changes are made, all come back within a second.
    fn reconnect(&mut self, report: &mut Report) {
        let devices = self.settings.devices as f64;
        let seq = self.generators.newest();
        self.generators.ask(&json!({"do": "cut"}));
        self.wait_for_silence();
        for _ in 0..CHANGES_AWAY {
            self.edit();
        }
        self.hub.rest();
        self.generators.counts();
        let before = self.hub.usage();
        let (generators_before, traffic_before) = (self.generators.cpu_ms(), Traffic::now());
        let probe = Probe::start(&self.hub.server(), self.settings.devices, AIMS_IN_A_STORM);
        let watching = Peak::watch(self.hub.pid());
        self.generators.expect(seq + CHANGES_AWAY as u64);
        let (start, began) = (Instant::now(), now_us());
        self.generators.ask(&json!({"do": "connect", "within_ms": 1000}));
        let arrival = self.generators.arrival();
        let all = start.elapsed().as_secs_f64();
        let (hub_ms, generators_ms) =
            (self.hub.usage().cpu_ms - before.cpu_ms, self.generators.cpu_ms() - generators_before);
        probe.end("all come back", report);
        let back: Vec<f64> = arrival.durable.iter().map(|at| at.saturating_sub(began) as f64 / 1e6).collect();
        report.spread("return -> converged, each device", &back, "s", None);
        report.add_with_aim("return -> all converged", all, "s", 60.0);
        report.add("devices converged per second", devices / all, "1/s");
        report.add("hub: processor per return", hub_ms / devices, "ms");
        report.add("generators: processor per return", generators_ms / devices, "ms");
        report.add("processor meanwhile: hub", hub_ms / all / 10.0, "% of a core");
        report.add("processor meanwhile: generators", generators_ms / all / 10.0, "% of a core");
        report.add("hub: memory before the return (PSS)", before.pss_kib / 1024.0, "MiB");
        report.add("hub: highest memory meanwhile (RSS)", watching.end() / 1024.0, "MiB");
        Traffic::settle(self.settings.devices);
        let passed = Traffic::now().since(traffic_before);
        report.add("datagrams dropped at full buffers", passed.dropped, "");
        say(&format!("{}", self.generators.counts()));
        self.hub.rest();
        report.add("hub: memory after the return (PSS)", self.hub.usage().pss_kib / 1024.0, "MiB");
        let right = self.generators.sum(&json!({"do": "check", "value": (100_000 + self.edits).to_string()}), "right");
        assert_eq!(right, self.settings.devices as u64, "not every device understands the newest value");
    }

    /// Every device opens a pipe and lets it go: each anew, then each with what its last session left it.
    fn handshakes(&mut self, report: &mut Report) {
        let devices = self.settings.devices as f64;
        self.generators.ask(&json!({"do": "cut"}));
        self.hub.rest();
        self.generators.counts();
        for (what, fresh) in [("full", true), ("resumed", false)] {
            let (hub, generators, traffic, start) =
                (self.hub.usage(), self.generators.cpu_ms(), Traffic::now(), Instant::now());
            self.generators.ask(&json!({"do": "shake", "fresh": fresh}));
            let seconds = start.elapsed().as_secs_f64();
            self.hub.rest();
            report.add(&format!("{what} handshakes (the hub takes 500 a second)"), devices / seconds, "1/s");
            let each = (self.hub.usage().cpu_ms - hub.cpu_ms) / devices;
            report.add(&format!("hub: processor per {what} handshake and session begun and ended"), each, "ms");
            let each = (self.generators.cpu_ms() - generators) / devices;
            report.add(&format!("generators: processor per {what} handshake"), each, "ms");
            report.add(&format!("bytes per {what} handshake"), Traffic::now().since(traffic).bytes / devices, "B");
        }
        say(&format!("{}", self.generators.counts()));
    }

    /// Until the hub shows every Node as silent: a day has passed long before that matters.
    fn wait_for_silence(&self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(600) {
            self.hub.rest();
            let set = self.hub.server().connect().unwrap().get("/apis/apps/v1/namespaces/default/daemonsets/agent");
            let silent = &set["metadata"]["annotations"]["flotilla.dev/silent"];
            if *silent == Value::String(self.settings.devices.to_string()) {
                return;
            }
            std::thread::park_timeout(Duration::from_secs(2));
        }
        panic!("the hub does not notice that all devices are gone");
    }
}

/// The highest memory of a process, looked at often.
struct Peak {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Peak {
    fn watch(pid: i32) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peak: f64 = 0.0;
            while !told.load(std::sync::atomic::Ordering::Relaxed) {
                peak = peak.max(hub::rss_kib(pid));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            peak
        });
        Self { stop, thread }
    }

    fn end(self) -> f64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
