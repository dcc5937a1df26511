use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::controllers::fixture::{State, deployment, key, parse};

/// A Deployment, its ReplicaSet and a Pod of it on `edge-0`, and a DaemonSet.
fn state() -> State {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    let web = state.apply(deployment(1, "web:1", json!({})));
    let owned = |kind: &str, name: &str, owner: &Object, spec: Value| {
        let version = if kind == "Pod" { "v1" } else { "apps/v1" };
        parse(json!({"apiVersion": version, "kind": kind, "spec": spec, "metadata": {"name": name, "namespace": "shop",
            "ownerReferences": [crate::controllers::replica_set::owner_reference(owner)]}}))
    };
    let set = state.put(owned("ReplicaSet", "web-1", &web, json!({})));
    state.put(owned("Pod", "web-1-a", &set, json!({"nodeName": "edge-0"})));
    state.apply(crate::controllers::fixture::daemon_set("agent:1", json!({})));
    state
}

fn names(tasks: Tasks) -> Vec<String> {
    tasks
        .into_keys()
        .map(|task| match task {
            Task::Deployment(key) => format!("deployment {}", key.name),
            Task::ReplicaSet(key) => format!("replica set {}", key.name),
            Task::DaemonSet(key) => format!("daemon set {}", key.name),
            Task::Node(name) => format!("node {name}"),
            Task::Namespace(name) => format!("namespace {name}"),
            Task::Owner(_) => "owner".to_owned(),
            Task::Dependent(_) => "dependent".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        })
        .collect()
}

fn modified(state: &State, key: &ObjectKey, change: impl FnOnce(&mut Value)) -> WatchEvent {
    let previous = Arc::new(state.get(key).clone());
    let mut object = (*previous).clone();
    change(object.value_mut());
    WatchEvent::Modified { previous, object: Arc::new(object) }
}

#[test]
fn a_change_wakes_whom_it_concerns_and_nobody_else() {
    let state = state();
    let pod = key(&kind::POD, "web-1-a");
    let node = key(&kind::NODE, "edge-0");
    let added = |object: Object| WatchEvent::Added(Arc::new(object));
    let bare = |spec: Value| {
        parse(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": "shop"}, "spec": spec}),
        )
    };
    let cases: Vec<(&str, WatchEvent, Vec<&str>)> = vec![
        (
            "a Pod's status",
            modified(&state, &pod, |pod| pod["status"] = json!({"phase": "Running"})),
            vec!["deployment web", "replica set web-1"],
        ),
        (
            "a Pod that ends by itself leaves room",
            modified(&state, &pod, |pod| pod["status"] = json!({"phase": "Failed"})),
            vec!["deployment web", "replica set web-1", "schedule"],
        ),
        ("a Pod to place", added(bare(json!({}))), vec!["schedule"]),
        ("a Pod that is placed", added(bare(json!({"nodeName": "edge-0"}))), vec!["node edge-0"]),
        (
            "a Node's heartbeat",
            modified(&state, &node, |node| node["status"]["nodeInfo"] = json!({"x": 1})),
            vec!["node edge-0"],
        ),
        (
            "a Node's room",
            modified(&state, &node, |node| node["status"]["allocatable"]["cpu"] = "8".into()),
            vec!["schedule", "node edge-0"],
        ),
        (
            "a Node's labels",
            modified(&state, &node, |node| node["metadata"]["labels"]["a"] = "b".into()),
            vec!["deployment web", "replica set web-1", "schedule", "daemon set agent", "node edge-0"],
        ),
        (
            "a ReplicaSet",
            modified(&state, &key(&kind::REPLICA_SET, "web-1"), |set| set["spec"]["replicas"] = 3.into()),
            vec!["deployment web", "replica set web-1"],
        ),
        (
            "a ConfigMap",
            added(parse(
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}),
            )),
            vec![],
        ),
        ("progress", WatchEvent::Progress(7), vec![]),
    ];
    for (name, event, expected) in cases {
        assert_eq!(names(by_change(&state.index, &event)), expected, "{name}");
    }
}

#[test]
fn the_end_of_an_owner_and_of_what_it_waits_for_wakes_the_collector() {
    let mut state = state();
    let web = state.get(&key(&kind::DEPLOYMENT, "web")).clone();
    let set = state.get(&key(&kind::REPLICA_SET, "web-1")).clone();
    state.remove(&web.key());
    assert_eq!(names(by_change(&state.index, &WatchEvent::Deleted(Arc::new(web.clone())))), ["owner"]);

    let mut going = web;
    going.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
    going.metadata_mut().insert("finalizers".into(), json!(["foregroundDeletion"]));
    let going = state.put(going);
    state.remove(&set.key());
    let told = names(by_change(&state.index, &WatchEvent::Deleted(Arc::new(set.clone()))));
    assert_eq!(told, ["deployment web", "replica set web-1", "owner", "owner"], "its Pods, and the owner that waits");
    // One that comes too late has no owner to live for.
    let told = names(by_change(&state.index, &WatchEvent::Added(Arc::new(set))));
    assert!(told.contains(&"dependent".to_owned()), "{told:?}");
    let told = names(by_change(&state.index, &WatchEvent::Added(Arc::new(going))));
    assert!(told.contains(&"owner".to_owned()), "{told:?}");
}

#[test]
fn an_owner_that_ends_hears_of_dependents_that_let_go_or_are_told_to_end() {
    let mut state = state();
    state.edit(&key(&kind::DEPLOYMENT, "web"), |web| {
        web["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        web["metadata"]["finalizers"] = json!(["orphan"]);
    });
    let set = key(&kind::REPLICA_SET, "web-1");
    let orphaned = modified(&state, &set, |set| {
        set["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    });
    assert!(names(by_change(&state.index, &orphaned)).contains(&"owner".to_owned()), "it waits for this alone");
    let told = modified(&state, &set, |set| set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    assert!(names(by_change(&state.index, &told)).contains(&"owner".to_owned()));
    let counted = modified(&state, &set, |set| set["status"] = json!({"replicas": 1}));
    assert!(!names(by_change(&state.index, &counted)).contains(&"owner".to_owned()));

    // Nobody waits for a Pod on a device that fell silent.
    state.edit(&set, |set| {
        set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        set["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    });
    state.edit(&key(&kind::POD, "web-1-a"), |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    assert!(names(by_contact(&state.index, "edge-0")).contains(&"owner".to_owned()));
    let unknown = modified(&state, &key(&kind::NODE, "edge-0"), |node| {
        node["status"]["conditions"][0]["status"] = "Unknown".into();
    });
    assert!(names(by_change(&state.index, &unknown)).contains(&"owner".to_owned()));
}

#[test]
fn a_namespace_that_ends_hears_of_its_contents() {
    let mut state = state();
    state.edit(&key(&kind::NAMESPACE, "shop"), |namespace| {
        namespace["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    let pod = Arc::new(state.get(&key(&kind::POD, "web-1-a")).clone());
    assert!(names(by_change(&state.index, &WatchEvent::Deleted(pod))).contains(&"namespace shop".to_owned()));
}

#[test]
fn contact_wakes_the_workloads_on_the_device() {
    let state = state();
    let expected = ["deployment web", "replica set web-1", "schedule", "daemon set agent", "node edge-0"];
    assert_eq!(names(by_contact(&state.index, "edge-0")), expected);
    let all = names(everything(&state.index));
    for task in expected.into_iter().chain(["namespace shop", "events"]) {
        assert!(all.contains(&task.to_owned()), "{task} is not in {all:?}");
    }
}

#[test]
fn a_daemon_set_is_planned_for_the_devices_that_it_selects() {
    let mut state = state();
    state.edit(&key(&kind::DAEMON_SET, "agent"), |set| {
        set["spec"]["template"]["spec"]["nodeSelector"] = json!({"group": "b"});
    });
    let wakes = |tasks: Tasks| names(tasks).contains(&"daemon set agent".to_owned());
    assert!(!wakes(by_contact(&state.index, "edge-0")), "nothing of it is there");
    let node = key(&kind::NODE, "edge-0");
    let join = |node: &mut Value| node["metadata"]["labels"] = json!({"group": "b"});
    assert!(wakes(by_change(&state.index, &modified(&state, &node, join))));
    state.edit(&node, join);
    assert!(wakes(by_contact(&state.index, "edge-0")));
    let leave = modified(&state, &node, |node| node["metadata"]["labels"] = json!({"group": "c"}));
    assert!(wakes(by_change(&state.index, &leave)), "it selected the device until now");
    assert!(wakes(by_change(&state.index, &WatchEvent::Deleted(Arc::new(state.get(&node).clone())))));
}

#[test]
fn what_is_wished_of_a_large_workload_is_planned_at_once_and_its_status_is_not() {
    let mut state = state();
    let set = key(&kind::DAEMON_SET, "agent");
    state.edit(&set, |set| set["status"] = json!({"desiredNumberScheduled": 1000}));
    let gathers = |event: &WatchEvent| by_change(&state.index, event).get(&Task::DaemonSet(set.clone())).copied();
    let told = modified(&state, &set, |set| set["status"]["numberReady"] = 7.into());
    assert_eq!(gathers(&told), Some(250));
    let wished = modified(&state, &set, |set| set["spec"]["minReadySeconds"] = 5.into());
    assert_eq!(gathers(&wished), Some(0));
    let ends = modified(&state, &set, |set| set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    assert_eq!(gathers(&ends), Some(0));
}
