//! A hub and a device that only ever exchange files: join, apply, update, override, delete, lost, old and half sticks.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_tests::fleet::{Fleet, Road, is_ready};
use flotilla_tests::kubectl::{Kubectl, binaries};
use flotilla_tests::process::Process;
use flotilla_tests::{process_path, skip, wait};
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, env, local_pods};

/// A value that travels beside its document.
const LARGE_BYTES: usize = 20_000;

/// Devices in network namespaces of their own that hold a loopback and nothing else.
struct Desert {
    fleet: Fleet,
    devices: Vec<(String, Process)>,
}

/// Whether a device without network can be made here.
fn is_possible() -> bool {
    if !story::ready_to_run() {
        return false;
    }
    let is_root = nix::unistd::geteuid().is_root();
    let here = is_root && ["unshare", "nsenter", "ip"].iter().all(|name| process_path(name).is_some());
    if !here {
        skip("root, unshare, nsenter and ip, which make a device without network");
    }
    here
}

#[test]
fn a_device_without_any_network_lives_by_stick() {
    if !is_possible() {
        return;
    }
    let mut desert = Desert { fleet: Fleet::start(BINARY, Road::Quic, &[]), devices: Vec::new() };
    let kubectl = desert.fleet.kubectl();
    let local = joins(&mut desert, &kubectl);
    is_updated(&desert, &kubectl, &local);
    overrides_travel(&desert, &kubectl, &local);
    lost_and_old_sticks(&desert, &kubectl, &local);
    nothing_runs_and_bundles_work(&mut desert, &kubectl);
    the_end(&desert, &kubectl, &local);
    for (_, agent) in desert.devices.drain(..) {
        assert!(agent.terminate().success());
    }
}

/// What a backup lacks comes back on a stick, and nothing restarts.
#[test]
fn a_restored_hub_learns_by_stick() {
    if !is_possible() {
        return;
    }
    let fleet = Fleet::start(BINARY, Road::Quic, &[]);
    let mut desert = Desert { fleet, devices: Vec::new() };
    let kubectl = desert.fleet.kubectl();
    asks_to_join(&mut desert, "n1");
    kubectl.apply(WEB);
    desert.import("n1", &desert.export_down("n1", "first"), 0);
    let local = desert.local("n1");
    desert.import("hub", &desert.up_when(&local, "first-up"), 0);
    let (hub, backup) = (desert.fleet.hub_folder(), desert.path("backup"));
    desert.fleet.run(&["hub", "backup", "--data", text(&hub), text(&backup)]).unwrap();
    kubectl.run("set env ds/web COLOUR=red");
    desert.import("n1", &desert.export_down("n1", "second"), 0);
    local_colour(&desert, &local, "red");
    let before = local_pods(&local, 1).into_values().next().unwrap();

    desert.fleet.stop_hub();
    std::fs::rename(&hub, desert.path("lost")).unwrap();
    desert.fleet.run(&["hub", "restore", "--data", text(&hub), text(&backup)]).unwrap();
    // It answers, though not that it is ready: it learns.
    desert.fleet.start_hub_until("/livez");
    let refused = desert.path("refused.flotilla");
    let refused = desert.bundle(&["export", "--data", text(&hub), "--node", "n1", text(&refused)], 6);
    assert!(refused["bundles"][0]["error"]["message"].as_str().unwrap().contains("--full"), "{refused}");
    let up = desert.path("full.flotilla");
    desert.bundle(&["export", "--data", text(&desert.fleet.agent_folder("n1")), "--full", text(&up)], 0);
    desert.import("hub", &up, 0);
    wait::until("what the backup lacked", || {
        let set = kubectl.json("get ds web")?;
        let ready = kubectl.attempt("get --raw /readyz")?;
        let env = &set["spec"]["template"]["spec"]["containers"][0]["env"];
        if env.to_string().contains("red") && ready == "ok" { Ok(()) } else { Err(format!("{ready} {set}")) }
    });
    desert.import("n1", &desert.export_down("n1", "after"), 0);
    let after = local_pods(&local, 1).into_values().next().unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    desert.import("hub", &desert.up_when(&local, "after-up"), 0);
    hub_colour(&kubectl, "red");
}

/// A token, an agent, its request, and the hub's word.
fn asks_to_join(desert: &mut Desert, node: &str) -> PathBuf {
    let hub = desert.fleet.hub_folder();
    let token = ["token", "create", "--data", text(&hub), "--node", node, "--ttl", "7d"];
    let token = desert.fleet.run(&token).unwrap();
    desert.start(node, &["--join", token.trim()]);
    let request = desert.fleet.agent_folder(node).join("join.flotilla");
    wait::until_true("the request to join", || request.exists());
    desert.import("hub", &request, 0);
    request
}

/// From a token to a running workload, which the hub shows.
fn joins(desert: &mut Desert, kubectl: &Kubectl) -> Kubectl {
    for node in ["n1", "n2"] {
        let request = asks_to_join(desert, node);
        std::fs::copy(&request, desert.path(&format!("{node}-join.flotilla"))).unwrap();
        let sealed = desert.inspect(&request);
        assert_eq!((&sealed["to"], &sealed["from"], &sealed["whole"]), (&"hub".into(), &"".into(), &true.into()));
        // Again: the same device, admitted again.
        desert.import("hub", &request, 0);
        let shown = kubectl.json(&format!("get node {node}")).unwrap();
        assert_eq!(shown["metadata"]["name"], node);
    }
    let large = "x".repeat(LARGE_BYTES);
    let config = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: web-config}}\ndata: {{GREETING: \"hello from the hub\", LARGE: {large}}}\n"
    );
    kubectl.apply(&WEB[WEB.rfind("---").unwrap()..]);
    kubectl.apply(&config);
    let down = desert.export_down("n1", "first");
    let wrong = desert.import("n2", &down, 4);
    assert!(wrong["error"]["message"].as_str().unwrap().contains("device/n1"), "{wrong}");
    let taken = desert.import("n1", &down, 0);
    assert_eq!((&taken["report"]["enrolment"], &taken["report"]["blobs"]), (&true.into(), &1.into()), "{taken}");
    let kubeconfig = desert.fleet.agent_folder("n1").join("local.kubeconfig");
    wait::until_true("the device's own API", || kubeconfig.exists());
    let local = desert.local("n1");
    local_pods(&local, 1);
    let config = local.json("get cm web-config").unwrap();
    assert_eq!(config["data"]["LARGE"].as_str().unwrap().len(), LARGE_BYTES);

    let up = desert.up_when(&local, "first-up");
    let report = desert.import("hub", &up, 0);
    assert!(report["report"]["observations"].as_u64().unwrap() > 0, "{report}");
    let pod = hub_pod(kubectl, "n1").unwrap();
    assert!(is_ready(&pod), "{pod}");
    let node = kubectl.json("get node n1").unwrap();
    let seen = node["metadata"]["annotations"]["flotilla.dev/last-seen"].as_str().unwrap();
    assert!(seen.starts_with("20"), "{seen}");
    local
}

/// An update, first on a stick that was pulled too early.
fn is_updated(desert: &Desert, kubectl: &Kubectl, local: &Kubectl) {
    kubectl.run("set env ds/web COLOUR=red");
    let down = desert.export_down("n1", "red");
    let bytes = std::fs::read(&down).unwrap();
    let half = desert.path("half.flotilla");
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let partly = desert.import("n1", &half, 3);
    assert!(partly["missing"].to_string().contains("cut off"), "{partly}");
    assert_eq!(desert.inspect(&half)["whole"], false);
    let endless = Command::new(BINARY).args(["bundle", "inspect", "/dev/zero"]).output().unwrap();
    let said = String::from_utf8_lossy(&endless.stderr).into_owned();
    assert!(!endless.status.success() && said.contains("no regular file"), "{said}");
    let taken = desert.import("n1", &down, 0);
    assert_eq!(taken["report"]["whole"], true);
    local_colour(desert, local, "red");
    desert.import("hub", &desert.up_when(local, "red-up"), 0);
    hub_colour(kubectl, "red");
}

/// A technician's edit shows at the hub with its author; the operator ends it.
fn overrides_travel(desert: &Desert, kubectl: &Kubectl, local: &Kubectl) {
    local.run("set env ds/web COLOUR=white");
    local_colour(desert, local, "white");
    desert.import("hub", &desert.up_when(local, "white-up"), 0);
    let overrides = kubectl.json("get overrides -A").unwrap().to_string();
    for word in ["COLOUR", "white", "red", "technician"] {
        assert!(overrides.contains(word), "{word} is missing: {overrides}");
    }
    hub_colour(kubectl, "white");
    // What the device said before it does not undo it.
    let old = desert.import("hub", &desert.path("red-up.flotilla"), 0);
    assert!(old["report"]["notes"].to_string().contains("later bundle"), "{old}");
    assert_eq!(kubectl.run("get overrides -A -o name").lines().count(), 1);
    hub_colour(kubectl, "white");

    let name = kubectl.run("get overrides -o name");
    kubectl.run(&format!("delete {} --wait=false", name.trim()));
    desert.import("n1", &desert.export_down("n1", "reverted"), 0);
    local_colour(desert, local, "red");
    desert.import("hub", &desert.up_when(local, "reverted-up"), 0);
    assert_eq!(kubectl.run("get overrides -A -o name"), "");
    hub_colour(kubectl, "red");
}

/// What was on a lost stick is on the next one; what is on an old one is no news.
fn lost_and_old_sticks(desert: &Desert, kubectl: &Kubectl, local: &Kubectl) {
    kubectl.run("set env ds/web COLOUR=green");
    std::fs::remove_file(desert.export_down("n1", "lost")).unwrap();
    kubectl.run("set env ds/web SIZE=large");
    desert.import("n1", &desert.export_down("n1", "found"), 0);
    local_colour(desert, local, "green");
    let pods = local_pods(local, 1);
    assert_eq!(env(pods.values().next().unwrap(), "SIZE"), "large");

    local.run("set env ds/web NOTE=one");
    std::fs::remove_file(desert.export_up("n1", "lost-up")).unwrap();
    local.run("set env ds/web HINT=two");
    let before = wait::until("both edits run", || {
        story::process_has(&desert.fleet, "n1", "HINT", "two")?;
        let pods = local_pods(local, 1);
        let pod = pods.values().next().unwrap().clone();
        if env(&pod, "NOTE") == "one" && env(&pod, "HINT") == "two" { Ok(pod) } else { Err(pod.to_string()) }
    });
    desert.import("hub", &desert.up_when(local, "both-up"), 0);
    let overrides = kubectl.json("get overrides -A").unwrap().to_string();
    assert!(overrides.contains("NOTE") && overrides.contains("HINT"), "{overrides}");

    // A request that has served begins nothing anew.
    let served = desert.import("hub", &desert.path("n1-join.flotilla"), 0);
    assert!(served["report"]["notes"].to_string().contains("joined before"), "{served}");
    assert!(!desert.fleet.agent_folder("n1").join("join.flotilla").exists());
    for old in ["red", "found", "first"] {
        let taken = desert.import("n1", &desert.path(&format!("{old}.flotilla")), 0);
        assert_eq!(taken["report"]["recordsNew"], 0, "{taken}");
    }
    let after = local_pods(local, 1).into_values().next().unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "an old bundle touched a pod");
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
}

/// Neither hub nor agent runs: the command opens their databases itself.
fn nothing_runs_and_bundles_work(desert: &mut Desert, kubectl: &Kubectl) {
    kubectl.run("set env ds/web COLOUR=violet");
    wait::until("the rollout is published", || {
        let set = kubectl.json("get ds web")?;
        let seen = set["status"]["observedGeneration"] == set["metadata"]["generation"];
        if seen { Ok(()) } else { Err(set.to_string()) }
    });
    desert.fleet.stop_hub();
    let down = desert.export_down("n1", "violet");
    desert.fleet.start_hub();
    desert.stop("n1");
    desert.import("n1", &down, 0);
    let up = desert.export_up("n1", "stopped-up");
    desert.import("hub", &up, 0);
    desert.start("n1", &[]);
    local_colour(desert, &desert.local("n1"), "violet");
}

/// What is deleted ends, and both sides say so.
fn the_end(desert: &Desert, kubectl: &Kubectl, local: &Kubectl) {
    let local = local.with_binary(&desert.wrapper("n1"));
    kubectl.run("delete ds/web cm/web-config --wait=false");
    let folder = desert.path("sticks");
    let output = desert.bundle(&["export", "--data", text(&desert.fleet.hub_folder()), "--all", text(&folder)], 0);
    assert_eq!(output["bundles"].as_array().unwrap().len(), 2);
    // A folder with bundles for several devices: each takes its own.
    let taken = desert.bundle(&["import", "--data", text(&desert.fleet.agent_folder("n1")), text(&folder)], 0);
    assert_eq!(taken["bundles"].as_array().unwrap().len(), 1, "{taken}");
    wait::until("nothing is left at the device", || {
        let rows = local.attempt("get ds,pods,cm,overrides -A -o name")?;
        if rows.is_empty() { Ok(()) } else { Err(rows) }
    });
    desert.import("hub", &desert.export_up("n1", "end-up"), 0);
    wait::until("nothing is left at the hub", || {
        let rows = kubectl.attempt("get ds,pods,overrides -A -o name")?;
        if rows.is_empty() { Ok(()) } else { Err(rows) }
    });
}

impl Desert {
    fn start(&mut self, node: &str, arguments: &[&str]) {
        let folder = self.fleet.agent_folder(node);
        let up = "ip link set lo up && exec \"$@\"";
        let mut all = vec!["-n", "sh", "-c", up, "sh", BINARY, "agent", "run", "--offline"];
        all.extend(["--name", node, "--data", text(&folder)]);
        all.extend(arguments);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let log = self.path(&format!("{node}.log"));
        let agent = Process::start(&process_path("unshare").unwrap(), &all, &log);
        self.devices.push((node.to_owned(), agent));
    }

    fn stop(&mut self, node: &str) {
        let at = self.devices.iter().position(|(name, _)| name == node).unwrap();
        assert!(self.devices.remove(at).1.terminate().success());
    }

    /// A kubectl that stands in a device's network.
    fn wrapper(&self, node: &str) -> PathBuf {
        let pid = self.devices.iter().find(|(name, _)| name == node).unwrap().1.pid();
        let path = self.path(&format!("kubectl-{node}-{pid}"));
        let kubectl = binaries().pop().unwrap();
        let text = format!("#!/bin/sh\nexec nsenter -t {pid} -n {} \"$@\"\n", kubectl.display());
        // Written by a process of its own: a child of another test that was just made would have it open for writing, and nobody could run it.
        let mut install = Command::new("install");
        install.args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(std::process::Stdio::piped());
        let mut install = install.spawn().unwrap();
        std::io::Write::write_all(&mut install.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
        path
    }

    fn local(&self, node: &str) -> Kubectl {
        self.fleet.local_kubectl(node).with_binary(&self.wrapper(node))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fleet.folder().join(name)
    }

    /// Runs `flotilla bundle ... -o json`, which must end with this code.
    fn bundle(&self, arguments: &[&str], code: i32) -> Value {
        let output = Command::new(BINARY).arg("bundle").args(arguments).args(["-o", "json"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "bundle {arguments:?}: {said}{complained}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{complained}"))
    }

    fn export_down(&self, node: &str, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.flotilla"));
        self.bundle(&["export", "--data", text(&self.fleet.hub_folder()), "--node", node, text(&path)], 0);
        path
    }

    fn export_up(&self, node: &str, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.flotilla"));
        self.bundle(&["export", "--data", text(&self.fleet.agent_folder(node)), text(&path)], 0);
        path
    }

    /// The device's bundle once its pod is ready: what it says is dated then.
    fn up_when(&self, local: &Kubectl, name: &str) -> PathBuf {
        local_pods(local, 1);
        self.export_up("n1", name)
    }

    fn import(&self, side: &str, path: &Path, code: i32) -> Value {
        let folder = self.fleet.folder().join(side);
        self.bundle(&["import", "--data", text(&folder), text(path)], code)["bundles"][0].clone()
    }

    fn inspect(&self, path: &Path) -> Value {
        let output = Command::new(BINARY).args(["bundle", "inspect", "-o", "json", text(path)]).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["bundles"][0]["report"].clone()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn local_colour(desert: &Desert, local: &Kubectl, colour: &str) {
    wait::until(&format!("COLOUR={colour} at the device"), || {
        story::process_has(&desert.fleet, "n1", "COLOUR", colour)?;
        let list = local.json("get pods")?;
        let right = |pod: &Value| is_ready(pod) && env(pod, "COLOUR") == colour;
        let pods = list["items"].as_array().unwrap();
        if pods.len() == 1 && pods.iter().all(right) { Ok(()) } else { Err(list.to_string()) }
    });
}

fn hub_colour(kubectl: &Kubectl, colour: &str) {
    let pod = hub_pod(kubectl, "n1").unwrap();
    assert!(is_ready(&pod) && env(&pod, "COLOUR") == colour, "{pod}");
}

fn hub_pod(kubectl: &Kubectl, node: &str) -> Result<Value, String> {
    let list = kubectl.json("get pods -l app=web")?;
    let found = list["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == node).cloned();
    found.ok_or_else(|| format!("no pod on {node}: {list}"))
}
