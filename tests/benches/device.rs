//! One device with the slim agent: its memory with 20 idle pods, what a change costs on the wire, how fast it is back.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flotilla_tests::fleet::{Containers, Fleet, Road, is_ready};
use flotilla_tests::process::{self, Process};
use flotilla_tests::wait;
use serde_json::{Value, json};

use crate::api::{Connection, Server};
use crate::relay::Relay;
use crate::report::Report;

const PODS: usize = 20;
const CHANGES: u64 = 50;
/// How long nothing is asked of the device before its memory is read, and while its idle traffic is counted.
const IDLE: Duration = Duration::from_secs(60);

/// The merge patch of one change, by its number.
type Patch = fn(u64) -> Value;

const MERGE: &str = "application/merge-patch+json";

/// Builds the slim agent, runs it with 20 pods, and measures.
pub(crate) fn measure(binary: &str, report: &mut Report) {
    let agent = Path::new(binary).ancestors().nth(2).unwrap().join("slim/flotilla-agent");
    build(&agent);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.add("binary flotilla-agent, stripped", mib(std::fs::metadata(&agent).unwrap().len()), "MiB");
    report.add("binary flotilla, stripped", mib(std::fs::metadata(binary).unwrap().len()), "MiB");

    let mut fleet = Fleet::start(binary, Road::Quic, &[]);
    let token = fleet.token(&["--node", "n1"]);
    let relay = Relay::start(fleet.quic());
    let hub = relay.address.to_string();
    let folder = fleet.agent_folder("n1").to_string_lossy().into_owned();
    let log = fleet.folder().join("n1.log");
    let words = ["run", "--data", &folder, "--name", "n1", "--join", &token, "--transport", "quic", "--hub", &hub];
    let start = || Process::start(&agent, &words.map(str::to_owned), &log);
    let running = start();

    let server = Server::of(&fleet.hub_folder().join("admin.kubeconfig")).unwrap();
    let mut api = server.connect().unwrap();
    let path = "/apis/apps/v1/namespaces/default/deployments";
    api.request("POST", path, "application/json", Some(&workload("Deployment", "idle", Containers::Processes)));
    wait::until("20 Running pods", || all_ready(&api.get("/api/v1/namespaces/default/pods"), PODS));
    let before = relay.count();
    std::thread::park_timeout(IDLE);
    let idle = relay.count().since(before);
    memory(&fleet, running.pid(), report);
    report.add("idle traffic with 20 pods", idle.all_bytes() as f64 * 8.0 / 1000.0 / IDLE.as_secs_f64(), "kbit/s");

    // The server has closed the connection that was idle for so long.
    wire(&fleet, &mut server.connect().unwrap(), &relay, report);

    running.kill();
    fleet.kill_hub();
    process::kill_all_of(&fleet.agent_folder("n1"));
    let begun = Instant::now();
    let again = start();
    let kubeconfig = fleet.agent_folder("n1").join("local.kubeconfig");
    let mut local = wait::until("the device's own API", || connected(&kubeconfig));
    wait::until("all pods run again", || all_ready(&local.get("/api/v1/pods"), PODS + 1));
    report.add("agent start -> 21 pods Running again, no hub", begun.elapsed().as_secs_f64() * 1000.0, "ms");
    again.kill();
}

fn build(agent: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--profile", "slim", "--quiet", "--package", "flotilla-agent"];
    let status = Command::new(cargo).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).status().unwrap();
    assert!(status.success() && agent.exists(), "flotilla-agent was not built at {}", agent.display());
}

/// Proportional, private and resident memory, of the agent and of its shims apart.
fn memory(fleet: &Fleet, agent: i32, report: &mut Report) {
    let pods = fleet.agent_folder("n1").join("pods").to_string_lossy().into_owned();
    let shims: Vec<i32> =
        process::table().iter().filter(|row| row.command.contains(&pods)).map(|row| row.pid).collect();
    assert_eq!(shims.len(), PODS, "one shim per pod");
    report.add_with_aim("agent PSS, 20 idle pods", kib(agent, "Pss:") / 1024.0, "MiB", 8.0);
    report.add("agent anonymous memory (in PSS)", kib(agent, "Pss_Anon:") / 1024.0, "MiB");
    report.add("agent RSS", kib(agent, "Rss:") / 1024.0, "MiB");
    let sum: f64 = shims.iter().map(|pid| kib(*pid, "Pss:")).sum();
    let anonymous: f64 = shims.iter().map(|pid| kib(*pid, "Pss_Anon:")).sum();
    report.add("20 shims PSS", sum / 1024.0, "MiB");
    report.add("one shim PSS, mean", sum / 20.0, "KiB");
    report.add("one shim anonymous memory, mean", anonymous / 20.0, "KiB");
}

/// A value of `smaps_rollup` in KiB.
fn kib(pid: i32, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes through the relay for one field of a document in the fleet's channel, and for one value of a ConfigMap.
fn wire(fleet: &Fleet, api: &mut Connection, relay: &Relay, report: &mut Report) {
    let namespace = "/api/v1/namespaces/default";
    let before = relay.count();
    let data = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wire"}, "data": {"SPEED": "0"}});
    api.request("POST", &format!("{namespace}/configmaps"), "application/json", Some(&data));
    let mut daemon = workload("DaemonSet", "wire", Containers::Processes);
    daemon["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "SPEED", "valueFrom": {"configMapKeyRef": {"name": "wire", "key": "SPEED"}}}]);
    api.request("POST", "/apis/apps/v1/namespaces/default/daemonsets", "application/json", Some(&daemon));
    wait::until("21 Running pods", || all_ready(&api.get(&format!("{namespace}/pods")), PODS + 1));
    relay.settle(before);

    let config = format!("{namespace}/configmaps/wire");
    let seconds = "/apis/apps/v1/namespaces/default/daemonsets/wire".to_owned();
    let cases: [(&str, &str, Patch); 2] = [
        ("a DaemonSet's minReadySeconds", &seconds, |number| json!({"spec": {"minReadySeconds": number}})),
        ("a ConfigMap's value", &config, |number| json!({"data": {"SPEED": number.to_string()}})),
    ];
    for (what, path, patch) in cases {
        let start = relay.count();
        for number in 1..=CHANGES {
            let before = relay.count();
            api.request("PATCH", path, MERGE, Some(&patch(number)));
            assert!(relay.settle(before), "{what}: change {number} never left");
        }
        let all = relay.count().since(start);
        let per = |count: u64| count as f64 / CHANGES as f64;
        report.add_with_aim(&format!("one-field change, {what}: both ways"), per(all.all_bytes()), "B", 300.0);
        report.add(&format!("  to the device, in {:.1} datagrams", per(all.down_datagrams)), per(all.down_bytes), "B");
        report.add(&format!("  from the device, in {:.1} datagrams", per(all.up_datagrams)), per(all.up_bytes), "B");
    }
    let mut local = connected(&fleet.agent_folder("n1").join("local.kubeconfig")).unwrap();
    let last = CHANGES.to_string();
    wait::until("the last change is at the device", || {
        let (config, daemon) = (local.get(&config), local.get(&seconds));
        let arrived = config["data"]["SPEED"].as_str() == Some(&*last) && daemon["spec"]["minReadySeconds"] == CHANGES;
        if arrived { Ok(()) } else { Err(format!("{config} {daemon}")) }
    });
}

pub(crate) fn connected(kubeconfig: &Path) -> Result<Connection, String> {
    Server::of(kubeconfig)?.connect()
}

pub(crate) fn all_ready(list: &Value, count: usize) -> Result<(), String> {
    let ready = list["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod)).count();
    if ready == count { Ok(()) } else { Err(format!("{ready} of {count} ready")) }
}

pub(crate) fn workload(kind: &str, name: &str, containers: Containers) -> Value {
    let mut all = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "busybox", "command": ["/bin/sleep", "36000"]}],
        }},
    }});
    if containers == Containers::Processes {
        let pod = &mut all["spec"]["template"]["spec"];
        pod["runtimeClassName"] = json!("process");
        pod["containers"][0]["image"] = json!("host");
    }
    if kind == "Deployment" {
        all["spec"]["replicas"] = json!(PODS);
    }
    all
}
