use flotilla_manifests::{derive, kind};
use serde_json::json;

use super::super::fixture::{State, daemon_set as manifest, key, ready};
use super::*;

fn run(state: &mut State) -> Plan {
    let plan = state.plan_daemon_set(&key(&kind::DAEMON_SET, "agent"));
    state.carry_out(plan.clone());
    plan
}

fn agent(state: &State) -> &Object {
    state.get(&key(&kind::DAEMON_SET, "agent"))
}

/// Three devices, each with a ready Pod of the present number.
fn running() -> State {
    let mut state = State::at(10_000_000);
    let set = state.apply(manifest("agent:1", json!({})));
    for name in ["edge-0", "edge-1", "edge-2"] {
        let node = state.node(name);
        place(&mut state, &set, &node);
    }
    state
}

fn place(state: &mut State, set: &Object, node: &Object) {
    let number = number_of(set).unwrap();
    let mut pod = derive::daemon_pod(set, &derive::NodeRef::of(node), number, 0, &[]);
    pod.value_mut()["status"] = ready(state.now);
    state.put(pod);
}

fn counts(state: &State) -> [i64; 5] {
    let status = agent(state).status().unwrap();
    ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberUnavailable"]
        .map(|field| status.get(field).and_then(Value::as_i64).unwrap_or(0))
}

#[test]
fn the_status_counts_devices_in_contact_and_tells_the_silent_apart() {
    let mut state = running();
    run(&mut state);
    assert_eq!(counts(&state), [3, 3, 3, 3, 0]);
    assert_eq!(agent(&state).annotation(SILENT_ANNOTATION), Some("0"));
    assert_eq!(agent(&state).at("/status/observedGeneration"), Some(&json!(1)));
    assert_eq!(run(&mut state).writes, [], "nothing is left to do");
    state.silence("edge-1");
    run(&mut state);
    assert_eq!(counts(&state), [2, 2, 2, 2, 0]);
    assert_eq!(agent(&state).annotation(SILENT_ANNOTATION), Some("1"));
}

#[test]
fn nodes_that_are_not_selected_do_not_count_and_their_pods_are_misplaced() {
    let mut state = running();
    state.edit(&key(&kind::NODE, "edge-2"), |node| {
        node["spec"]["taints"] = json!([{"key": "k", "effect": "NoExecute"}]);
    });
    run(&mut state);
    assert_eq!(counts(&state), [2, 2, 2, 2, 0]);
    assert_eq!(agent(&state).at("/status/numberMisscheduled"), Some(&json!(1)));
}

#[test]
fn revisions_follow_the_templates_and_an_undo_is_the_newest_again() {
    let mut state = running();
    run(&mut state);
    let revisions = |state: &State| -> Vec<(String, i64)> {
        let mut list: Vec<(String, i64)> = state
            .index
            .list(&kind::CONTROLLER_REVISION, None)
            .map(|one| {
                let image = one.text("/data/spec/template/spec/containers/0/image").to_owned();
                (image, one.at("/revision").and_then(Value::as_i64).unwrap())
            })
            .collect();
        list.sort();
        list
    };
    assert_eq!(revisions(&state), [("agent:1".to_owned(), 1)]);
    state.apply(manifest("agent:2", json!({})));
    run(&mut state);
    state.apply(manifest("agent:1", json!({})));
    run(&mut state);
    assert_eq!(revisions(&state), [("agent:1".to_owned(), 3), ("agent:2".to_owned(), 2)]);
    let one = state.index.list(&kind::CONTROLLER_REVISION, None).next().unwrap();
    assert_eq!(one.text("/data/spec/template/$patch"), "replace");
    assert!(one.label("controller-revision-hash").is_some());
    assert_eq!(one.label("app"), Some("agent"));
}

#[test]
fn a_step_is_published_with_its_time() {
    let mut state = running();
    run(&mut state);
    state.apply(manifest("agent:2", json!({})));
    state.now = Timestamp(10_005_000);
    let plan = run(&mut state);
    let thresholds = plan.writes.iter().filter(|write| matches!(write, Write::Threshold { threshold: Some(_), .. }));
    assert_eq!(thresholds.count(), 1);
    assert_eq!(stepped_at(agent(&state)), Some(Timestamp(10_005_000)));
    assert_eq!(counts(&state), [3, 3, 3, 0, 0]);
    state.now = Timestamp(10_006_000);
    assert_eq!(run(&mut state).writes, [], "the budget is spent");
}

#[test]
fn grants_for_a_large_fleet_are_given_in_pieces() {
    let number = RolloutNumber::default();
    let mut left: BTreeMap<String, Option<RolloutNumber>> =
        (0..GRANTS_AT_ONCE_MAX * 2 + 3).map(|node| (format!("n{node:05}"), Some(number))).collect();
    let mut wakes = Vec::new();
    while !left.is_empty() {
        let mut plan = Plan::default();
        grant("web", left.clone(), Timestamp(1000), &mut plan);
        assert!(plan.writes.len() <= GRANTS_AT_ONCE_MAX && !plan.writes.is_empty());
        for write in plan.writes {
            let Write::Grant { node, .. } = write else { panic!("{write:?}") };
            left.remove(&node);
        }
        wakes.push(plan.wake_at);
    }
    let soon = Some(Timestamp(1000 + GRANTS_GO_ON_MS));
    assert_eq!(wakes, [soon, soon, None]);
}
