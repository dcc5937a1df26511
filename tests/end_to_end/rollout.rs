//! Story g: a Deployment spreads, rolls without losing more than it may, goes back; a silent device blocks nobody and nothing of
//! it runs twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_tests::fleet::{Containers, Fleet, Road, is_ready};
use flotilla_tests::kubectl::{Kubectl, Watch};
use flotilla_tests::wait;
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, deployment, env, pod_pids};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The Pods as a watch has told them so far, with the bounds that hold in every single state.
struct Seen {
    watch: Watch,
    pods: BTreeMap<String, Value>,
    available_min: usize,
    active_max: usize,
    states: usize,
}

impl Seen {
    /// Follows the Pods of the Deployment, and has seen all six before it returns.
    fn follow(kubectl: &Kubectl, available_min: usize, active_max: usize) -> Self {
        let watch = kubectl.watch("get pods -l app=shop");
        let mut seen = Self { watch, pods: BTreeMap::new(), available_min: 0, active_max, states: 0 };
        seen.until("six ready pods", |pods| pods.values().filter(|pod| is_ready(pod)).count() == 6);
        seen.available_min = available_min;
        seen
    }

    /// Takes events in, checking the bounds after each, until the state is as wished.
    fn until(&mut self, what: &str, wished: impl Fn(&BTreeMap<String, Value>) -> bool) {
        while !wished(&self.pods) {
            let event = self.watch.expect(what);
            let name = event["object"]["metadata"]["name"].as_str().unwrap().to_owned();
            match event["type"].as_str().unwrap() {
                "DELETED" => drop(self.pods.remove(&name)),
                _ => drop(self.pods.insert(name, event["object"].clone())),
            }
            self.states += 1;
            let available = self.pods.values().filter(|pod| is_ready(pod)).count();
            let active = self.pods.values().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count();
            assert!(available >= self.available_min, "{available} available after {event}");
            assert!(active <= self.active_max, "{active} pods after {event}");
        }
    }
}

fn runs(version: &'static str, count: usize) -> impl Fn(&BTreeMap<String, Value>) -> bool {
    move |pods| pods.len() == count && pods.values().all(|pod| is_ready(pod) && env(pod, "VERSION") == version)
}

fn per_node(pods: &BTreeMap<String, Value>) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods.values() {
        *counts.entry(pod["spec"]["nodeName"].as_str().unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn a_deployment_spreads_rolls_and_goes_back() {
    if story::ready_to_run() {
        spreads_rolls_and_goes_back(Containers::Processes);
    }
}

#[test]
fn a_deployment_of_containers_spreads_rolls_and_goes_back() {
    if story::ready_to_run() && story::containers_are_here() {
        spreads_rolls_and_goes_back(Containers::Oci);
    }
}

fn spreads_rolls_and_goes_back(containers: Containers) {
    let fleet = Fleet::with_agents(BINARY, Road::Quic, containers, 3);
    let kubectl = fleet.kubectl();
    fleet.apply(&deployment(6, "1"));
    let pods = fleet.running_pods("app=shop", 6);
    assert_eq!(per_node(&pods), BTreeMap::from([("n1", 2), ("n2", 2), ("n3", 2)]));
    kubectl.run("rollout status deploy/shop --timeout=120s");

    let mut seen = Seen::follow(&kubectl, 5, 7);
    kubectl.run("set env deploy/shop VERSION=2");
    seen.until("six pods of the second version", runs("2", 6));
    let status = kubectl.run("rollout status deploy/shop --timeout=120s");
    assert!(status.contains("successfully rolled out"), "{status}");
    assert!(seen.states > 12, "a rolling update of six pods in {} states", seen.states);
    assert_eq!(revisions(&kubectl), ["1", "2"]);

    kubectl.run("rollout undo deploy/shop");
    seen.until("six pods of the first version again", runs("1", 6));
    kubectl.run("rollout status deploy/shop --timeout=120s");
    assert_eq!(revisions(&kubectl), ["2", "3"]);
    let before = kubectl.run("rollout history deploy/shop --revision=2");
    assert!(before.contains("VERSION:\t2"), "{before}");

    drop(seen);
    kubectl.run("scale deploy/shop --replicas=3");
    let left = fleet.running_pods("app=shop", 3);
    assert_eq!(per_node(&left).len(), 3, "scaling down emptied a device");
    kubectl.run("delete deploy/shop");
    wait::until("nothing of it runs any more", || {
        let running: Vec<_> = NODES.iter().map(|node| pod_pids(&fleet, node)).collect();
        let rows = kubectl.attempt("get deploy,rs,pods -o name")?;
        if running.iter().all(Vec::is_empty) && rows.is_empty() { Ok(()) } else { Err(format!("{running:?} {rows}")) }
    });
}

fn revisions(kubectl: &Kubectl) -> Vec<String> {
    let history = kubectl.run("rollout history deploy/shop");
    let rows = history.lines().filter_map(|line| line.split_whitespace().next());
    rows.filter(|word| word.parse::<u32>().is_ok()).map(str::to_owned).collect()
}

#[test]
fn a_silent_device_blocks_nobody_and_runs_nothing_twice() {
    if story::ready_to_run() {
        a_silent_device(Containers::Processes);
    }
}

#[test]
fn a_silent_device_blocks_nobody_and_runs_no_container_twice() {
    if story::ready_to_run() && story::containers_are_here() {
        a_silent_device(Containers::Oci);
    }
}

fn a_silent_device(containers: Containers) {
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, containers, 3);
    let kubectl = fleet.kubectl();
    fleet.apply(WEB);
    fleet.apply(&deployment(6, "1"));
    fleet.running_pods("app=web", 3);
    let placed = fleet.running_pods("app=shop", 6);
    let there = uids_on(&placed, "n3");
    assert_eq!(there.len(), 2);
    let alone = pod_pids(&fleet, "n3");

    // Its agent is gone, its pods are not; a hub that has just started has not heard it either.
    fleet.kill_agent("n3");
    fleet.kill_hub();
    fleet.start_hub();
    fleet.wait_for_node("n3", "Ready=Unknown");
    for node in ["n1", "n2"] {
        fleet.wait_for_node(node, "Ready=True");
    }
    let nodes = kubectl.run("get nodes");
    assert!(nodes.lines().any(|line| line.starts_with("n3") && line.contains("Unknown")), "{nodes}");
    silent_is_told_apart(&kubectl, 2, "1");
    let now = fleet.running_pods("app=shop", 6);
    assert_eq!(now.keys().collect::<Vec<_>>(), placed.keys().collect::<Vec<_>>(), "silence moved a pod");

    rollouts_pass_it_by(&kubectl, &there);
    assert_eq!(pod_pids(&fleet, "n3"), alone, "nobody told the silent device's pods to change");

    fleet.start_agent("n3", &[]);
    wait::until("the returned device runs what it missed", || {
        let list = kubectl.json("get pods")?;
        let pods = by_name(&list);
        let web = pods.values().filter(|pod| env(pod, "SIZE") == "large" && is_ready(pod)).count();
        let shop = pods.values().filter(|pod| env(pod, "VERSION") == "2" && is_ready(pod)).count();
        if (web, shop, pods.len()) == (3, 6, 9) { Ok(()) } else { Err(list.to_string()) }
    });
    silent_is_told_apart(&kubectl, 3, "0");
    kubectl.run("rollout status deploy/shop --timeout=120s");
    wait::until("as many processes as pods", || {
        let pids: Vec<_> = NODES.iter().map(|node| pod_pids(&fleet, node)).collect();
        if pids.iter().map(Vec::len).sum::<usize>() == 9 { Ok(()) } else { Err(format!("{pids:?}")) }
    });
}

/// Both workloads move on where they can, and the Pods of the silent device are neither touched nor replaced, at any moment.
fn rollouts_pass_it_by(kubectl: &Kubectl, there: &BTreeSet<String>) {
    kubectl.run("set env ds/web SIZE=large");
    kubectl.run("rollout status ds/web --timeout=120s");
    let watch = kubectl.watch("get pods -l app=shop");
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    kubectl.run("set env deploy/shop VERSION=2");
    let done = |pods: &BTreeMap<String, Value>| {
        let new = pods.values().filter(|pod| env(pod, "VERSION") == "2" && is_ready(pod)).count();
        (new, pods.len()) == (4, 6)
    };
    let mut quiet = false;
    // Done, and then nothing more happens: no fifth new Pod ever comes.
    while !(done(&pods) && quiet) {
        let limit = if done(&pods) { Duration::from_secs(3) } else { wait::LIMIT };
        let Some(event) = watch.next(limit) else {
            assert!(done(&pods), "the rollout stopped short: {pods:?}");
            quiet = true;
            continue;
        };
        quiet = false;
        let name = event["object"]["metadata"]["name"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "DELETED" => drop(pods.remove(&name)),
            _ => drop(pods.insert(name, event["object"].clone())),
        }
        let on_silent = uids_on(&pods, "n3");
        assert!(on_silent.is_subset(there), "a new pod was placed on the silent device: {event}");
        let new = pods.values().filter(|pod| env(pod, "VERSION") == "2").count();
        assert!(new <= 5, "a pod of the silent device is replaced while it may still run: {event}");
    }
    assert_eq!(&uids_on(&pods, "n3"), there);
}

fn silent_is_told_apart(kubectl: &Kubectl, desired: u32, silent: &str) {
    wait::until(&format!("{desired} desired, {silent} silent"), || {
        let table = kubectl.attempt("get ds web -o wide")?;
        let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        let right = row.get(1) == Some(&desired.to_string().as_str()) && row.last() == Some(&silent);
        if right { Ok(()) } else { Err(table) }
    });
}

fn uids_on(pods: &BTreeMap<String, Value>, node: &str) -> BTreeSet<String> {
    let there = pods.values().filter(|pod| pod["spec"]["nodeName"] == node);
    there.map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), pod.clone())).collect()
}
