mod neighbours;

use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;

use super::*;
use crate::controllers::fixture::{State, key, parse};

fn pod(state: &mut State, name: &str, spec: Value) {
    let mut body = json!({"containers": [{"name": "c", "image": "c"}]});
    for (field, value) in spec.as_object().unwrap() {
        body[field] = value.clone();
    }
    state.put(parse(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": body}),
    ));
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
}

fn run(state: &mut State) {
    let plan = plan(&state.view());
    state.carry_out(plan);
}

fn node_of(state: &State, name: &str) -> String {
    state.get(&key(&kind::POD, name)).text("/spec/nodeName").to_owned()
}

fn why(state: &State, name: &str) -> String {
    let status = state.get(&key(&kind::POD, name)).status().unwrap();
    let entry = condition::find(status, "PodScheduled").unwrap();
    assert_eq!((&entry["status"], &entry["reason"]), (&json!("False"), &json!("Unschedulable")));
    entry["message"].as_str().unwrap().to_owned()
}

fn node_edit(state: &mut State, name: &str, change: impl FnOnce(&mut Value)) {
    state.edit(&ObjectKey::of(&kind::NODE, "", name), change);
}

#[test]
fn every_reason_is_told_in_kubernetes_words() {
    let mut state = State::at(10_000_000);
    for name in ["full", "tainted", "cordoned", "silent", "broken", "elsewhere"] {
        state.node(name);
    }
    node_edit(&mut state, "full", |node| {
        node["status"]["allocatable"] = json!({"cpu": "1", "memory": "1Gi", "pods": "110"})
    });
    node_edit(&mut state, "tainted", |node| {
        node["spec"]["taints"] = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
    });
    node_edit(&mut state, "cordoned", |node| node["spec"]["unschedulable"] = true.into());
    node_edit(&mut state, "broken", |node| node["status"]["conditions"][0]["status"] = "False".into());
    node_edit(&mut state, "elsewhere", |node| node["metadata"]["labels"] = json!({"site": "south"}));
    state.silence("silent");
    for name in ["full", "tainted", "cordoned", "silent", "broken"] {
        node_edit(&mut state, name, |node| node["metadata"]["labels"]["site"] = "north".into());
    }
    let mut spec = requests("2", "2Gi");
    spec["nodeSelector"] = json!({"site": "north"});
    pod(&mut state, "p", spec);
    run(&mut state);
    assert_eq!(
        why(&state, "p"),
        "0/6 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, \
         1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {gpu: yes}, \
         1 node(s) were unschedulable, 2 node(s) were not ready or not in contact."
    );
    assert!(state.events[0].starts_with("p FailedScheduling: 0/6 nodes"), "{:?}", state.events);
    run(&mut state);
    assert_eq!(state.events.len(), 1, "the same reason is told once");
    node_edit(&mut state, "tainted", |node| node["spec"]["taints"] = json!([]));
    run(&mut state);
    assert_eq!(node_of(&state, "p"), "tainted");
    assert_eq!(state.events[1], "p Scheduled: Successfully assigned shop/p to tainted");
    let status = state.get(&key(&kind::POD, "p")).status().unwrap();
    assert!(condition::is_true(status, "PodScheduled"));
}

#[test]
fn a_fleet_without_nodes_has_a_reason_too() {
    let mut state = State::at(1);
    pod(&mut state, "p", json!({}));
    run(&mut state);
    assert_eq!(why(&state, "p"), "0/0 nodes are available.");
}

#[test]
fn pods_of_one_owner_spread_and_others_go_where_there_is_room() {
    let mut state = State::at(10_000_000);
    for name in ["edge-0", "edge-1", "edge-2"] {
        state.node(name);
    }
    pod(&mut state, "busy", {
        let mut spec = requests("2", "1Gi");
        spec["nodeName"] = "edge-1".into();
        spec
    });
    for index in 0..6 {
        let name = format!("web-{index}");
        pod(&mut state, &name, requests("100m", "64Mi"));
        state.edit(&key(&kind::POD, &name), |pod| {
            pod["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]);
        });
    }
    run(&mut state);
    let mut nodes: Vec<String> = (0..6).map(|index| node_of(&state, &format!("web-{index}"))).collect();
    nodes.sort();
    assert_eq!(nodes, ["edge-0", "edge-0", "edge-1", "edge-1", "edge-2", "edge-2"]);
    pod(&mut state, "other", requests("100m", "64Mi"));
    run(&mut state);
    assert_eq!(node_of(&state, "other"), "edge-0", "the emptiest, and of equals the first by name");
}

#[test]
fn what_is_placed_in_one_plan_counts_for_the_next_pod() {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    for name in ["a", "b", "c"] {
        pod(&mut state, name, requests("1500m", "1Gi"));
    }
    run(&mut state);
    let placed = ["a", "b", "c"].map(|name| node_of(&state, name));
    assert_eq!(placed, ["edge-0", "edge-0", ""]);
    assert_eq!(why(&state, "c"), "0/1 nodes are available: 1 Insufficient cpu.");
    // A Pod that is ending uses its room until it has ended; a finished one uses none.
    state.edit(&key(&kind::POD, "a"), |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    run(&mut state);
    assert_eq!(node_of(&state, "c"), "");
    state.edit(&key(&kind::POD, "b"), |pod| pod["status"] = json!({"phase": "Succeeded"}));
    run(&mut state);
    assert_eq!(node_of(&state, "c"), "edge-0");
}

#[test]
fn wishes_about_nodes_are_kept() {
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 5, "preference": {"matchExpressions": [{"key": "name", "operator": "In", "values": ["edge-2"]}]}}]}}});
    let required = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["edge-1"]}]}]}}}});
    let cordon = json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}],
        "nodeSelector": {"name": "edge-3"}});
    let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
    let mut state = State::at(10_000_000);
    for index in 0..4 {
        state.node(&format!("edge-{index}"));
    }
    node_edit(&mut state, "edge-3", |node| node["spec"]["unschedulable"] = true.into());
    node_edit(&mut state, "edge-0", |node| {
        node["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
        node["status"]["allocatable"]["example.com/gpu"] = "1".into();
    });
    for (name, spec) in
        [("preferred", preferred), ("required", required), ("cordon", cordon), ("gpu", gpu), ("plain", json!({}))]
    {
        pod(&mut state, name, spec);
    }
    run(&mut state);
    let nodes = ["preferred", "required", "cordon", "gpu", "plain"].map(|name| node_of(&state, name));
    assert_eq!(nodes, ["edge-2", "edge-1", "edge-3", "edge-0", "edge-1"]);
}

#[test]
fn what_is_not_ours_to_place_is_left_alone() {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    pod(&mut state, "foreign", json!({"schedulerName": "theirs"}));
    pod(&mut state, "ending", json!({}));
    state.edit(&key(&kind::POD, "ending"), |pod| {
        pod["metadata"]["deletionTimestamp"] = Timestamp(1).to_rfc3339().into()
    });
    assert_eq!(plan(&state.view()), Plan::default());
}

#[test]
fn a_node_takes_no_more_pods_than_it_says() {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    node_edit(&mut state, "edge-0", |node| node["status"]["allocatable"]["pods"] = "1".into());
    pod(&mut state, "a", json!({}));
    pod(&mut state, "b", json!({}));
    run(&mut state);
    assert_eq!(why(&state, "b"), "0/1 nodes are available: 1 Too many pods.");
}
