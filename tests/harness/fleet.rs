//! A hub and its agents as real processes in one temporary folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::images;
use crate::kubectl::Kubectl;
use crate::leftovers;
use crate::port;
use crate::process::{self, Process};
use crate::wait;

/// How devices reach the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    Quic,
    Mqtt,
    /// The hub is reachable by both; devices choose.
    Both,
}

/// What the stories' containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// Commands of this machine, `runtimeClassName: process`.
    Processes,
    /// Real containers from a busybox image, imported from an OCI layout into every device.
    Oci,
}

/// Everything of one test. Dropping it ends every process it started and removes the folder.
#[derive(Debug)]
pub struct Fleet {
    binary: PathBuf,
    folder: tempfile::TempDir,
    road: Road,
    containers: Containers,
    api_port: u16,
    quic_port: u16,
    broker_port: u16,
    hub: Option<Process>,
    broker: Option<Process>,
    /// What the broker is told beside its listener.
    broker_settings: String,
    /// Where the hub finds it.
    broker_url: String,
    agents: BTreeMap<String, Process>,
    hub_arguments: Vec<String>,
}

impl Fleet {
    /// Starts the hub (and for MQTT a mosquitto); no agents yet. Containers are processes.
    pub fn start(binary: &str, road: Road, hub_arguments: &[&str]) -> Self {
        Self::start_with(binary, road, Containers::Processes, hub_arguments)
    }

    pub fn start_with(binary: &str, road: Road, containers: Containers, hub_arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("flotilla-test-").tempdir().unwrap();
        let broker_port = port::free();
        let mut fleet = Self {
            binary: binary.into(),
            folder,
            road,
            containers,
            api_port: port::free(),
            quic_port: port::free(),
            broker_port,
            hub: None,
            broker: None,
            broker_settings: format!("listener {broker_port} 127.0.0.1\nallow_anonymous true\npersistence false\n"),
            broker_url: format!("mqtt://127.0.0.1:{broker_port}"),
            agents: BTreeMap::new(),
            hub_arguments: hub_arguments.iter().map(|text| (*text).to_owned()).collect(),
        };
        if road != Road::Quic {
            fleet.start_broker();
        }
        if containers == Containers::Oci {
            images::busybox(&fleet.layout());
        }
        fleet.start_hub();
        fleet
    }

    /// Starts the hub and `nodes` agents named `n1`, `n2`, ... and waits until they are Ready.
    pub fn with_agents(binary: &str, road: Road, containers: Containers, nodes: usize) -> Self {
        let mut fleet = Self::start_with(binary, road, containers, &[]);
        for number in 1..=nodes {
            fleet.join(&format!("n{number}"), &[]);
        }
        let kubectl = fleet.kubectl();
        wait::until(&format!("{nodes} Ready nodes"), || {
            let list = kubectl.json("get nodes")?;
            let ready = list["items"].as_array().into_iter().flatten().filter(|node| is_ready_node(node)).count();
            if ready == nodes { Ok(()) } else { Err(format!("{ready} Ready")) }
        });
        fleet
    }

    /// Waits until a Node is there and its condition is as said (`Ready=True`).
    pub fn wait_for_node(&self, name: &str, condition: &str) {
        let kubectl = self.kubectl();
        // kubectl waits for conditions, not for objects.
        wait::until(&format!("node {name} is {condition}"), || {
            kubectl.attempt(&format!("wait --for=condition={condition} node/{name} --timeout=90s"))
        });
    }

    /// A story's manifest, written for processes, as this fleet runs it.
    pub fn manifest(&self, text: &str) -> String {
        match self.containers {
            Containers::Processes => text.to_owned(),
            Containers::Oci => {
                let lines = text.lines().filter(|line| line.trim() != "runtimeClassName: process");
                lines.map(|line| line.replace("image: host", "image: busybox") + "\n").collect()
            }
        }
    }

    /// `kubectl apply` of a story's manifest at the hub.
    pub fn apply(&self, text: &str) -> String {
        self.kubectl().apply(&self.manifest(text))
    }

    /// The OCI layout that devices import.
    fn layout(&self) -> PathBuf {
        self.folder.path().join("busybox-layout")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn hub_folder(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    pub fn agent_folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn start_broker(&mut self) {
        let configuration = self.folder.path().join("mosquitto.conf");
        std::fs::write(&configuration, &self.broker_settings).unwrap();
        let arguments = vec!["-c".to_owned(), configuration.to_string_lossy().into_owned()];
        let program = crate::process_path("mosquitto").expect("mosquitto was looked for before this test began");
        self.broker = Some(Process::start(&program, &arguments, &self.folder.path().join("mosquitto.log")));
        let port = self.broker_port;
        wait::until_true("mosquitto listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Starts it anew with more settings.
    pub fn restart_broker_with(&mut self, settings: &str) {
        self.kill_broker();
        self.broker_settings.push_str(settings);
        self.start_broker();
    }

    /// Starts it anew as `flotilla hub broker` has it, for devices and hub on its port and for those who enrol on another; the hub
    /// must be told.
    pub fn secure_broker(&mut self) {
        self.kill_broker();
        let (folder, enrol_port) = (self.folder.path().join("broker"), port::free());
        let (data, out) = (self.hub_folder(), folder.to_string_lossy().into_owned());
        let (port, enrol) = (self.broker_port.to_string(), enrol_port.to_string());
        let words = ["hub", "broker", "--data", &data.to_string_lossy(), "--name", "localhost", "--name", "127.0.0.1"];
        let words = [&words[..], &["--port", &port, "--enrol-port", &enrol, &out]].concat();
        self.broker_url = self.run(&words).unwrap().trim().to_owned();
        let path = folder.join("flotilla.conf");
        let mut text = std::fs::read_to_string(&path).unwrap();
        for port in [port, enrol] {
            text = text.replace(&format!("listener {port}\n"), &format!("listener {port} 127.0.0.1\n"));
        }
        // Started by root it would become a user who cannot read the test's folder.
        self.broker_settings = format!("{text}user root\n");
        self.start_broker();
    }

    pub fn broker_port(&self) -> u16 {
        self.broker_port
    }

    pub fn kill_broker(&mut self) {
        self.broker.take().unwrap().kill();
    }

    /// Starts (or starts again) the hub on its ports and waits until it is ready.
    pub fn start_hub(&mut self) {
        self.start_hub_until("/readyz");
    }

    /// Starts the hub and waits until it answers at this path.
    pub fn start_hub_until(&mut self, path: &str) {
        let mut arguments = self.words(&["hub", "run"]);
        arguments.extend(self.words(&["--data", &self.hub_folder().to_string_lossy()]));
        arguments.extend(self.words(&["--listen", &format!("127.0.0.1:{}", self.api_port)]));
        arguments.extend(self.words(&["--quic", &format!("127.0.0.1:{}", self.quic_port)]));
        if self.road != Road::Quic {
            arguments.extend(self.words(&["--mqtt", &self.broker_url]));
        }
        arguments.extend(self.hub_arguments.clone());
        let log = self.folder.path().join("hub.log");
        self.hub = Some(Process::start(&self.binary, &arguments, &log));
        wait::until(&format!("the hub answers {path}"), || {
            let hub = self.hub.as_mut().unwrap();
            assert!(hub.is_running(), "the hub ended:\n{}", hub.output());
            let kubeconfig = self.folder.path().join("hub/admin.kubeconfig");
            if !kubeconfig.exists() {
                return Err("no kubeconfig yet".to_owned());
            }
            let Some(kubectl) = Kubectl::newest(&kubeconfig, self.folder.path()) else { return Ok(()) };
            kubectl.attempt(&format!("get --raw {path}")).map(|_| ())
        });
    }

    pub fn hub(&mut self) -> &mut Process {
        self.hub.as_mut().expect("the hub runs")
    }

    pub fn kill_hub(&mut self) {
        self.hub.take().unwrap().kill();
    }

    /// Mints a token and starts an agent that joins with it.
    pub fn join(&mut self, name: &str, arguments: &[&str]) {
        let token =
            self.run(&["token", "create", "--data", &self.hub_folder().to_string_lossy(), "--node", name]).unwrap();
        if self.containers == Containers::Oci {
            let (data, layout) = (self.agent_folder(name), self.layout());
            self.run(&["agent", "image", "import", "--data", &data.to_string_lossy(), &layout.to_string_lossy()])
                .unwrap();
        }
        let mut all = vec!["--join".to_owned(), token.trim().to_owned()];
        all.extend(arguments.iter().map(|text| (*text).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.start_agent(name, &all);
    }

    /// Starts (or starts again) the agent of that name.
    pub fn start_agent(&mut self, name: &str, arguments: &[&str]) {
        let mut all =
            self.words(&["agent", "run", "--name", name, "--data", &self.agent_folder(name).to_string_lossy()]);
        let transport = match self.road {
            Road::Quic => "quic",
            Road::Mqtt => "mqtt",
            Road::Both => "auto",
        };
        all.extend(self.words(&["--transport", transport]));
        all.extend(self.words(arguments));
        let log = self.folder.path().join(format!("{name}.log"));
        self.agents.insert(name.to_owned(), Process::start(&self.binary, &all, &log));
    }

    pub fn agent(&mut self, name: &str) -> &mut Process {
        self.agents.get_mut(name).expect("the agent was started")
    }

    /// `kill -9` of the agent alone; its shims and pods go on.
    pub fn kill_agent(&mut self, name: &str) {
        self.agents.remove(name).unwrap().kill();
    }

    /// Kills agent, shims and pods: what a power cut leaves.
    pub fn power_cut(&mut self, name: &str) {
        self.agents.remove(name).unwrap().kill();
        process::kill_all_of(&self.agent_folder(name));
    }

    /// A reboot's first half: everything of the device ends, and mounts and cgroups with it. [`Self::start_agent`] is the other.
    pub fn reboot(&mut self, name: &str) {
        self.power_cut(name);
        leftovers::forget_kernel_state(&self.agent_folder(name));
    }

    /// What the pods of one agent have on the machine now, a line each; see [`leftovers::of`].
    pub fn leftovers(&self, name: &str) -> Vec<String> {
        leftovers::of(&self.agent_folder(name))
    }

    /// kubectl as the hub's administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::newest(&self.hub_folder().join("admin.kubeconfig"), self.folder.path()).expect("a kubectl")
    }

    /// kubectl against one device's own API.
    pub fn local_kubectl(&self, name: &str) -> Kubectl {
        let home = self.folder.path().join(format!("{name}-home"));
        Kubectl::newest(&self.agent_folder(name).join("local.kubeconfig"), &home).expect("a kubectl")
    }

    /// Runs the one binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.binary).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Runs the one binary, which must refuse: answers what it said. A process that goes on instead fails the test.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let number = std::fs::read_dir(self.folder.path()).unwrap().count();
        let log = self.folder.path().join(format!("refused-{number}.log"));
        let mut process = Process::start(&self.binary, &self.words(arguments), &log);
        let status = wait::until(&format!("the refusal of {arguments:?}"), || process.status().ok_or(process.output()));
        let output = process.output();
        assert!(!status.success(), "{arguments:?} ended as if all were well:\n{output}");
        output
    }

    /// A token for this node.
    pub fn token(&self, arguments: &[&str]) -> String {
        let folder = self.hub_folder();
        let mut all = vec!["token", "create", "--data", folder.to_str().unwrap()];
        all.extend(arguments);
        self.run(&all).unwrap_or_else(|error| panic!("{all:?}: {error}")).trim().to_owned()
    }

    /// The hub's API, `127.0.0.1:PORT`.
    pub fn api(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// The hub's fleet door over QUIC.
    pub fn quic(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.quic_port).into()
    }

    /// SIGTERM to the hub; it must end well.
    pub fn stop_hub(&mut self) {
        let status = self.hub.take().unwrap().terminate();
        assert!(status.success(), "the hub ended with {status}");
    }

    /// SIGTERM to an agent; it must end well and leave its pods running.
    pub fn stop_agent(&mut self, name: &str) {
        let status = self.agents.remove(name).unwrap().terminate();
        assert!(status.success(), "the agent {name} ended with {status}");
    }

    /// The logs of all processes, for a failing test.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "log") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(60).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                all.push_str(&format!("--- {}\n{}\n", entry.file_name().to_string_lossy(), tail.join("\n")));
            }
        }
        all
    }

    /// Running pods by name with their node, once there are `count` of them.
    pub fn running_pods(&self, selector: &str, count: usize) -> BTreeMap<String, Value> {
        let kubectl = self.kubectl();
        wait::until(&format!("{count} running pods with {selector}"), || {
            let list = kubectl.json(&format!("get pods -l {selector}"))?;
            let pods: BTreeMap<String, Value> = list["items"].as_array().into_iter().flatten().map(named).collect();
            let ready = pods.values().filter(|pod| is_ready(pod)).count();
            if ready == count && pods.len() == count { Ok(pods) } else { Err(summary(&pods)) }
        })
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the person who reads a failed test needs the logs")]
            {
                eprintln!("{}", self.logs());
            }
        }
        self.agents.clear();
        self.hub = None;
        self.broker = None;
        process::kill_all_of(self.folder.path());
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        for folder in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            leftovers::forget_kernel_state(&folder);
        }
    }
}

/// Whether a Pod is Running with every container ready, and not on its way out.
pub fn is_ready(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    pod["status"]["phase"] == "Running"
        && pod["metadata"]["deletionTimestamp"].is_null()
        && containers.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["ready"] == true))
}

/// Whether a Node's Ready condition is True.
pub fn is_ready_node(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn named(pod: &Value) -> (String, Value) {
    (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), pod.clone())
}

fn summary(pods: &BTreeMap<String, Value>) -> String {
    let one = |(name, pod): (&String, &Value)| {
        format!(
            "{name}: {} on {} ({})",
            pod["status"]["phase"], pod["spec"]["nodeName"], pod["status"]["containerStatuses"]
        )
    };
    pods.iter().map(one).collect::<Vec<_>>().join("; ")
}
