use flotilla_manifests::time::Timestamp;

use super::super::fixture::{State, key, parse, ready};
use super::*;

/// A bare ReplicaSet `web` with Pods given as `(name, node, status)`.
fn with_pods(replicas: i64, pods: &[(&str, &str, Value)]) -> State {
    let mut state = State::at(10_000_000);
    for node in ["edge-0", "edge-1", "edge-2"] {
        state.node(node);
    }
    let set = state.apply(parse(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "w", "image": "w:1"}]}}},
    })));
    for (name, node, status) in pods {
        let mut pod = pod_of(&set, name);
        pod.value_mut()["status"] = status.clone();
        if !node.is_empty() {
            pod.value_mut()["spec"]["nodeName"] = (*node).into();
        }
        state.put(pod);
    }
    state
}

fn planned(state: &State) -> Plan {
    plan(&state.view(), &key(&kind::REPLICA_SET, "web"))
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.writes
        .iter()
        .filter_map(|write| match write {
            Write::Delete(deletion) => Some(deletion.key.name.as_str()),
            _ => None,
        })
        .collect()
}

fn created(plan: &Plan) -> Vec<&Object> {
    plan.writes
        .iter()
        .filter_map(|write| match write {
            Write::Create(object) => Some(object),
            _ => None,
        })
        .collect()
}

#[test]
fn missing_pods_are_made_with_names_of_their_own() {
    let mut state = with_pods(3, &[("web-x", "edge-0", ready(Timestamp(0)))]);
    let plan = planned(&state);
    let pods = created(&plan);
    assert_eq!(pods.len(), 2);
    assert_ne!(pods[0].name(), pods[1].name());
    for pod in &pods {
        assert!(pod.name().starts_with("web-") && pod.name().len() == "web-".len() + 5);
        assert_eq!(pod.annotation(NUMBER_ANNOTATION), Some("1-1"));
        assert_eq!(pod.text("/spec/restartPolicy"), "Always");
        assert_eq!(pod.controller().unwrap().uid, state.get(&key(&kind::REPLICA_SET, "web")).uid());
    }
    assert_eq!(planned(&state), plan, "the same view, the same plan");
    state.carry_out(plan);
    assert_eq!(created(&planned(&state)).len(), 0);
    let set = state.get(&key(&kind::REPLICA_SET, "web"));
    assert_eq!(set.at("/status/observedGeneration"), Some(&json!(1)));
}

#[test]
fn the_least_useful_pods_go_first() {
    let now = Timestamp(9_000_000);
    let running = json!({"phase": "Running"});
    let mut state = with_pods(
        1,
        &[
            ("web-ready-long", "edge-0", ready(Timestamp(1_000_000))),
            ("web-ready-short", "edge-1", ready(now)),
            ("web-running", "edge-1", running),
            ("web-pending", "edge-2", json!({"phase": "Pending"})),
            ("web-unplaced", "", json!({"phase": "Pending"})),
        ],
    );
    let all = ["web-unplaced", "web-pending", "web-running", "web-ready-short"];
    assert_eq!(deleted(&planned(&state)), all);
    // Of a silent device nothing is known: what can be seen to work stays.
    state.silence("edge-0");
    assert_eq!(deleted(&planned(&state))[0], "web-ready-long");
}

#[test]
fn scaling_down_leaves_every_device_its_share() {
    let names: Vec<String> = (0..6).map(|index| format!("web-{index}")).collect();
    let pods: Vec<(&str, &str, Value)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let time = Timestamp(1_000_000 + 1000 * u64::try_from(index).unwrap());
            (name.as_str(), ["edge-0", "edge-1", "edge-2"][index / 2], ready(time))
        })
        .collect();
    let state = with_pods(3, &pods);
    let mut ended = deleted(&planned(&state)).into_iter().map(str::to_owned).collect::<Vec<_>>();
    ended.sort();
    assert_eq!(ended, ["web-1", "web-3", "web-5"], "of each device the younger");
}

#[test]
fn finished_pods_are_replaced_and_silent_ones_are_not() {
    let mut state =
        with_pods(2, &[("web-a", "edge-0", ready(Timestamp(0))), ("web-b", "edge-1", json!({"phase": "Failed"}))]);
    assert_eq!(created(&planned(&state)).len(), 1);
    state.edit(&key(&kind::POD, "web-b"), |pod| pod["status"] = ready(Timestamp(0)));
    state.silence("edge-1");
    let plan = planned(&state);
    assert_eq!((created(&plan).len(), deleted(&plan).len()), (0, 0));
    state.carry_out(plan);
    let status = state.get(&key(&kind::REPLICA_SET, "web")).status().unwrap();
    assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(2), &json!(1)));
}

#[test]
fn a_pod_is_available_after_its_minimum_time_and_the_plan_wakes_for_it() {
    let since = Timestamp(9_995_000);
    let mut state = with_pods(1, &[("web-a", "edge-0", ready(since))]);
    state.edit(&key(&kind::REPLICA_SET, "web"), |set| set["spec"]["minReadySeconds"] = 10.into());
    let plan = planned(&state);
    assert_eq!(plan.wake_at, Some(Timestamp(10_005_000)));
    state.carry_out(plan);
    assert_eq!(state.get(&key(&kind::REPLICA_SET, "web")).at("/status/availableReplicas"), None);
    state.now = Timestamp(10_005_000);
    state.carry_out(planned(&state));
    assert_eq!(state.get(&key(&kind::REPLICA_SET, "web")).at("/status/availableReplicas"), Some(&json!(1)));
}

#[test]
fn pods_are_let_go_and_taken_in_by_their_labels() {
    let mut state = with_pods(1, &[("web-a", "edge-0", ready(Timestamp(0)))]);
    state.edit(&key(&kind::POD, "web-a"), |pod| pod["metadata"]["labels"]["app"] = "other".into());
    state.carry_out(planned(&state));
    assert_eq!(state.get(&key(&kind::POD, "web-a")).controller(), None);
    state.edit(&key(&kind::POD, "web-a"), |pod| pod["metadata"]["labels"]["app"] = "web".into());
    state.carry_out(planned(&state));
    assert!(state.get(&key(&kind::POD, "web-a")).controller().is_some());
    // A Pod that a user made is its own manifest: no template would be its.
    state.put(parse(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "mine", "namespace": "shop", "labels": {"app": "web"}}, "spec": {"containers": []}})));
    let plan = planned(&state);
    assert!(!plan.writes.iter().any(|write| matches!(write, Write::Replace(pod) if pod.name() == "mine")));
}
