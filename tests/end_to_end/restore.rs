//! A backup restored under a running fleet: no workload notices, nothing a device holds is lost, nothing deleted comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::{skip, wait};
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, deployment, env, pod_pids, process_has};

const NODES: [&str; 2] = ["n1", "n2"];

fn daemon_set(name: &str) -> String {
    WEB.replace("web", name)
}

const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: word}\nstringData: {PASSWORD: before}\n";

/// A DaemonSet with the Secret in its environment.
fn with_secret(name: &str) -> String {
    let variable = "        - name: PASSWORD\n          valueFrom: {secretKeyRef: {name: word, key: PASSWORD}}\n";
    daemon_set(name) + variable
}

struct Restored {
    fleet: Fleet,
    backup: PathBuf,
}

impl Restored {
    /// A fleet with workloads, a backup of its hub, and much that happened afterwards.
    fn after_an_hour() -> Self {
        let fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, NODES.len());
        let kubectl = fleet.kubectl();
        for manifest in [WEB, &daemon_set("gone"), SECRET, &with_secret("sealed"), &deployment(2, "1")] {
            fleet.apply(manifest);
        }
        for (selector, count) in [("app=web", 2), ("app=gone", 2), ("app=sealed", 2), ("app=shop", 2)] {
            fleet.running_pods(selector, count);
        }
        let backup = fleet.folder().join("hub.backup");
        let said = fleet.run(&["hub", "backup", "--data", &text(&fleet.hub_folder()), &text(&backup)]).unwrap();
        assert!(said.contains("backed up to"), "{said}");
        let said = fleet.run(&["hub", "backup", "--check", &text(&backup)]).unwrap();
        assert!(said.contains("whole: "), "{said}");

        fleet.apply(&daemon_set("fresh"));
        fleet.apply(&deployment(3, "2"));
        kubectl.run("set env ds/web COLOUR=green");
        kubectl.run("delete ds gone");
        kubectl.run("delete configmap gone-config");
        fleet.apply(&SECRET.replace("before", "after"));
        for count in 1..=20 {
            kubectl.run(&format!("annotate ds/web --overwrite count={count}"));
        }
        fleet.running_pods("app=fresh", 2);
        kubectl.run("rollout status ds/web --timeout=120s");
        kubectl.run("rollout status deploy/shop --timeout=120s");
        let before = pod_pids(&fleet, "n2");
        fleet.local_kubectl("n2").run("set env ds/fresh COLOUR=red");
        wait::until("the hub shows the override", || {
            let list = kubectl.json("get overrides.flotilla.dev")?;
            let synced = list["items"].as_array().is_some_and(|items| items.len() == 1);
            let pods = kubectl.json("get pods -l app=fresh")?;
            let red = pods["items"].as_array().into_iter().flatten().any(|pod| env(pod, "COLOUR") == "red");
            if synced && red { Ok(()) } else { Err(list.to_string()) }
        });
        // A Pod says what it is to be before its process is another.
        wait::until("the override runs", || {
            let pids = pod_pids(&fleet, "n2");
            if pids != before && pids.len() == before.len() { Ok(()) } else { Err(format!("{pids:?}")) }
        });
        for (selector, count) in [("app=web", 2), ("app=fresh", 2), ("app=sealed", 2), ("app=shop", 3)] {
            fleet.running_pods(selector, count);
        }
        wait_for_sync(&kubectl, ["synced", "synced"]);
        Self { fleet, backup }
    }

    /// The hub's disk is gone; a backup takes its place.
    fn restore(&mut self, name: &str) {
        self.fleet.kill_hub();
        std::fs::rename(self.fleet.hub_folder(), self.fleet.folder().join(name)).unwrap();
        let said = self
            .fleet
            .run(&["hub", "restore", "--data", &text(&self.fleet.hub_folder()), &text(&self.backup)])
            .unwrap();
        assert!(said.contains("2 devices: n1, n2"), "{said}");
    }

    fn pids(&self) -> Vec<Vec<i32>> {
        NODES.iter().map(|node| pod_pids(&self.fleet, node)).collect()
    }

    /// What the hub shows of the workloads: their specs, and the Pods with their uids and places.
    fn shown(&self) -> Shown {
        let kubectl = self.fleet.kubectl();
        let mut specs = BTreeMap::new();
        for object in items(&kubectl, "get daemonsets,deployments,configmaps") {
            let (metadata, kind) = (&object["metadata"], &object["kind"]);
            let number = metadata["annotations"]["flotilla.dev/rollout"].clone();
            let count = metadata["annotations"]["count"].clone();
            let held = serde_json::json!([object["spec"], object["data"], metadata["uid"], number, count]);
            specs.insert(format!("{kind}/{}", metadata["name"]), held);
        }
        let pods = items(&kubectl, "get pods").into_iter().map(|pod| {
            let place = (pod["metadata"]["uid"].to_string(), pod["spec"]["nodeName"].to_string());
            (pod["metadata"]["name"].to_string(), place)
        });
        Shown { specs, pods: pods.collect() }
    }

    /// What is written from now on arrives everywhere.
    fn later_edits_arrive(&self, colour: &str) {
        let kubectl = self.fleet.kubectl();
        kubectl.run(&format!("set env ds/web COLOUR={colour}"));
        wait::until("the edit runs on every device", || {
            for node in NODES {
                process_has(&self.fleet, node, "COLOUR", colour)?;
            }
            let pods = self.fleet.running_pods("app=web", NODES.len());
            if pods.values().all(|pod| env(pod, "COLOUR") == colour) { Ok(()) } else { Err(format!("{pods:?}")) }
        });
        for node in NODES {
            let local = self.fleet.local_kubectl(node);
            let web = local.json("get ds web").unwrap();
            let web: Value = serde_json::json!({"spec": web["spec"]["template"]["spec"]});
            assert_eq!(env(&web, "COLOUR"), colour, "at {node}");
        }
    }
}

#[derive(Debug, PartialEq)]
struct Shown {
    specs: BTreeMap<String, Value>,
    pods: BTreeMap<String, (String, String)>,
}

/// Waits until the nodes are shown like this.
fn wait_for_sync(kubectl: &Kubectl, wanted: [&str; 2]) {
    wait::until(&format!("the nodes are {wanted:?}"), || {
        let list = kubectl.json("get nodes")?;
        let nodes = list["items"].as_array().cloned().unwrap_or_default();
        let shown: Vec<&str> = nodes
            .iter()
            .map(|node| node["metadata"]["annotations"]["flotilla.dev/sync"].as_str().unwrap_or(""))
            .collect();
        if shown == wanted { Ok(()) } else { Err(format!("{shown:?}")) }
    });
}

fn items(kubectl: &Kubectl, line: &str) -> Vec<Value> {
    kubectl.json(line).unwrap()["items"].as_array().unwrap().clone()
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_backup_from_an_hour_ago_is_restored_under_a_running_fleet() {
    if !story::ready_to_run() {
        return;
    }
    let mut world = Restored::after_an_hour();
    let (pids, shown) = (world.pids(), world.shown());
    world.fleet.kill_agent("n2");
    world.restore("hub-lost");
    world.fleet.start_hub_until("/livez");
    let kubectl = world.fleet.kubectl();
    wait_for_sync(&kubectl, ["heard", "not heard"]);
    let refused = kubectl.attempt("label ds web a=b").unwrap_err();
    assert!(refused.contains("learning from devices: 1 of 2 heard (not yet: n2)"), "{refused}");
    assert!(kubectl.attempt("get --raw /readyz").is_err());
    assert_eq!(world.pids(), pids, "a workload noticed the restored hub");

    world.fleet.start_agent("n2", &[]);
    wait::until("the hub is ready", || kubectl.attempt("get --raw /readyz"));
    wait::until("the hub shows what it showed before", || {
        let now = world.shown();
        if now == shown { Ok(()) } else { Err(format!("{now:#?}\nbefore: {shown:#?}")) }
    });
    kubectl.run("rollout status ds/web --timeout=120s");
    kubectl.run("rollout status deploy/shop --timeout=120s");
    assert_eq!(world.shown(), shown);
    assert_eq!(world.pids(), pids, "a workload was touched");
    let overrides = items(&kubectl, "get overrides.flotilla.dev");
    assert_eq!(overrides.len(), 1, "{overrides:?}");
    // The Secret's newest content is sealed to its devices: the hub says that its own is older, and keeps it to itself.
    let secret = kubectl.json("get secret word").unwrap();
    assert!(secret["metadata"]["annotations"]["flotilla.dev/older-than-devices"].is_string(), "{secret}");
    let report = world.fleet.run(&["hub", "check", "--data", &text(&world.fleet.hub_folder())]).unwrap();
    assert!(
        report.contains("Secrets of which devices hold a newer content") && report.contains("no damage"),
        "{report}"
    );

    world.later_edits_arrive("white");
    kubectl.run("delete ds fresh");
    wait::until("a deletion arrives", || {
        let left = kubectl.attempt("get pods -l app=fresh -o name")?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_restored_hub_goes_on_without_a_device_that_is_gone_for_good() {
    if !story::ready_to_run() {
        return;
    }
    let mut world = Restored::after_an_hour();
    let pids = pod_pids(&world.fleet, "n1");
    world.fleet.power_cut("n2");
    world.restore("hub-lost");
    world.fleet.start_hub_until("/livez");
    let kubectl = world.fleet.kubectl();
    wait_for_sync(&kubectl, ["heard", "not heard"]);
    let said = world.fleet.run(&["hub", "resume", "--data", &text(&world.fleet.hub_folder())]).unwrap();
    assert!(said.contains("goes on"), "{said}");
    wait::until("the hub is ready", || kubectl.attempt("get --raw /readyz"));
    kubectl.run("set env ds/web COLOUR=white");
    wait::until("the edit is at the device that is left", || {
        let pods = world.fleet.local_kubectl("n1").json("get pods -l app=web")?;
        let white = pods["items"].as_array().into_iter().flatten().any(|pod| env(pod, "COLOUR") == "white");
        if white { Ok(()) } else { Err(pods.to_string()) }
    });
    // A Pod says what it is to be before its process is another.
    wait::until("one pod is replaced by the edit, and no other", || {
        let left = pod_pids(&world.fleet, "n1");
        let untouched = pids.iter().filter(|pid| left.contains(pid)).count();
        if untouched + 1 == pids.len() { Ok(()) } else { Err(format!("{pids:?} {left:?}")) }
    });
    assert!(kubectl.attempt("get ds fresh").is_ok(), "what the device holds is lost");
    assert!(kubectl.attempt("get ds gone").is_err(), "what was deleted came back");
}

#[test]
fn a_backup_restored_twice_is_two_lives() {
    if !story::ready_to_run() {
        return;
    }
    let mut world = Restored::after_an_hour();
    world.restore("hub-lost");
    world.fleet.start_hub();
    world.later_edits_arrive("white");
    let (pids, shown) = (world.pids(), world.shown());
    world.restore("hub-lost-again");
    world.fleet.start_hub();
    wait::until("the hub shows what it showed before", || {
        let now = world.shown();
        if now == shown { Ok(()) } else { Err(format!("{now:#?}\nbefore: {shown:#?}")) }
    });
    assert_eq!(world.pids(), pids, "a workload was touched");
    world.later_edits_arrive("black");
}

/// A hub's disk of a few MiB: full, it says no to writes and to backups, shows what it has, and goes on when there is room.
#[test]
fn a_hub_on_a_full_disk_refuses_writes_and_loses_nothing() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, 1);
    fleet.apply(WEB);
    fleet.running_pods("app=web", 1);
    let pids = pod_pids(&fleet, "n1");
    fleet.stop_hub();
    let (folder, moved) = (fleet.hub_folder(), fleet.folder().join("moved"));
    std::fs::rename(&folder, &moved).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let none = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), &folder, Some("tmpfs"), none, Some("size=6m")).is_err() {
        return skip("nothing can be mounted here");
    }
    let mounted = Mounted(folder.clone());
    for entry in std::fs::read_dir(&moved).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    fleet.start_hub();
    let kubectl = fleet.kubectl();
    fleet.running_pods("app=web", 1);
    fill(&folder);

    let large = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{text: {}}}\n",
        "x".repeat(200_000)
    );
    let refused = kubectl.feed("create", &large).unwrap_err();
    assert!(refused.contains("disk is full"), "{refused}");
    assert!(kubectl.attempt("get ds web").is_ok(), "what is stored can be read");
    let backup = fleet.run(&["hub", "backup", "--data", &text(&folder), &text(&folder.join("backup"))]).unwrap_err();
    assert!(backup.contains("disk is full"), "{backup}");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("backup")), "{left:?}");
    assert_eq!(pod_pids(&fleet, "n1"), pids);

    std::fs::remove_file(folder.join("filler")).unwrap();
    wait::until("a write is taken", || kubectl.feed("create", &large));
    kubectl.run("set env ds/web COLOUR=white");
    wait::until("the edit runs", || {
        let pods = fleet.running_pods("app=web", 1);
        if pods.values().all(|pod| env(pod, "COLOUR") == "white") { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    fleet.stop_hub();
    let said = fleet.run(&["hub", "check", "--data", &text(&folder)]).unwrap();
    assert!(said.contains("no damage found"), "{said}");
    drop(fleet);
    drop(mounted);
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// Leaves not a byte.
fn fill(folder: &std::path::Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(folder.join("filler")).unwrap();
    for size in [4096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}
