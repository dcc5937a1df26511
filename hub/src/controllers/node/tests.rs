use flotilla_manifests::kind;

use super::super::fixture::{State, key, parse, ready};
use super::*;
use crate::fleet::contact::Contact;

fn run(state: &mut State) -> Plan {
    let plan = plan(&state.view(), &key(&kind::NODE, "edge-0"));
    state.carry_out(plan.clone());
    plan
}

fn state_with_pod(tolerations: Value) -> State {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    let mut pod = parse(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"nodeName": "edge-0", "containers": [], "tolerations": tolerations}}));
    pod.value_mut()["status"] = ready(Timestamp(0));
    state.put(pod);
    state
}

fn ready_of(state: &State) -> (String, String) {
    let status = state.get(&key(&kind::NODE, "edge-0")).status().unwrap();
    let entry = condition::find(status, "Ready").unwrap();
    (entry["status"].as_str().unwrap().to_owned(), entry["reason"].as_str().unwrap().to_owned())
}

#[test]
fn silence_is_unknown_after_its_time_and_contact_takes_it_back() {
    let mut state = state_with_pod(json!([]));
    state.contacts.insert("edge-0".into(), Contact::Silent { last: Timestamp(9_990_000) });
    let plan = run(&mut state);
    assert_eq!((plan.writes.len(), plan.wake_at), (0, Some(Timestamp(9_990_000 + 40_000))));
    state.now = Timestamp(10_030_000);
    run(&mut state);
    assert_eq!(ready_of(&state), ("Unknown".into(), "NodeStatusUnknown".into()));
    let node = state.get(&key(&kind::NODE, "edge-0"));
    assert_eq!(node.at("/spec/taints/0/effect"), Some(&json!("NoSchedule")));
    assert!(state.get(&key(&kind::POD, "p")).deletion_timestamp().is_none(), "nothing is ended by silence");
    assert_eq!(run(&mut state).writes, []);
    state.hear("edge-0");
    run(&mut state);
    assert_eq!(ready_of(&state), ("True".into(), "DeviceInContact".into()));
    assert_eq!(state.get(&key(&kind::NODE, "edge-0")).at("/spec/taints"), None);
    assert_eq!(state.events.len(), 2);
}

#[test]
fn silence_counts_from_the_start_of_the_hub() {
    let mut state = state_with_pod(json!([]));
    state.started = Timestamp(9_999_000);
    state.contacts.insert("edge-0".into(), Contact::Silent { last: Timestamp(5) });
    let plan = run(&mut state);
    assert_eq!((plan.writes.len(), plan.wake_at), (0, Some(Timestamp(10_039_000))));
}

#[test]
fn what_the_device_says_of_itself_stands_while_it_is_in_contact() {
    let mut state = state_with_pod(json!([]));
    state.edit(&key(&kind::NODE, "edge-0"), |node| {
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "False", "reason": "DiskBroken"}]);
    });
    assert_eq!(run(&mut state).writes, []);
}

#[test]
fn a_pod_is_ended_on_a_silent_device_only_with_leave() {
    let unreachable = |seconds: Value| json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": seconds}]);
    let out_of_service = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    let tolerates_it = json!([{"key": "node.kubernetes.io/out-of-service", "operator": "Exists"}]);
    // (name, tolerations, taints, ended, removed)
    let cases = [
        ("by default never", json!([]), json!([]), false, false),
        (
            "not by tolerating everything",
            json!([{"operator": "Exists", "tolerationSeconds": 1}]),
            json!([]),
            false,
            false,
        ),
        ("its own time has run out", unreachable(json!(20)), json!([]), true, false),
        ("its own time has not", unreachable(json!(3000)), json!([]), false, false),
        ("the operator's word", json!([]), out_of_service.clone(), true, true),
        ("unless it tolerates that", tolerates_it, out_of_service, false, false),
    ];
    for (name, tolerations, taints, ended, removed) in cases {
        let mut state = state_with_pod(tolerations);
        state.edit(&key(&kind::NODE, "edge-0"), |node| node["spec"]["taints"] = taints);
        state.silence("edge-0");
        run(&mut state);
        state.now = Timestamp(state.now.0 + 60_000);
        run(&mut state);
        let pod = state.index.get(&key(&kind::POD, "p"));
        assert_eq!(pod.is_none(), removed, "{name}");
        assert_eq!(pod.is_none_or(|pod| pod.deletion_timestamp().is_some()), ended, "{name}");
    }
}

#[test]
fn a_taint_no_execute_ends_what_does_not_tolerate_it() {
    let taint = json!([{"key": "k", "effect": "NoExecute", "timeAdded": Timestamp(10_000_000).to_rfc3339()}]);
    for (name, tolerations, at) in [
        ("at once", json!([]), Some(0)),
        ("never", json!([{"key": "k", "operator": "Exists"}]), None),
        ("after its time", json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]), Some(30_000)),
    ] {
        let mut state = state_with_pod(tolerations);
        let taint = taint.clone();
        state.edit(&key(&kind::NODE, "edge-0"), |node| node["spec"]["taints"] = taint);
        for later in [0, 29_999, 30_000] {
            state.now = Timestamp(10_000_000 + later);
            run(&mut state);
            let ended = state.get(&key(&kind::POD, "p")).deletion_timestamp().is_some();
            assert_eq!(ended, at.is_some_and(|at| at <= later), "{name} {later}");
        }
    }
}

#[test]
fn a_daemon_sets_pod_stays_with_its_device() {
    let mut state = state_with_pod(json!([]));
    state.edit(&key(&kind::POD, "p"), |pod| {
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]);
    });
    state.edit(&key(&kind::NODE, "edge-0"), |node| {
        node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    });
    state.silence("edge-0");
    run(&mut state);
    assert!(state.get(&key(&kind::POD, "p")).deletion_timestamp().is_none());
}
