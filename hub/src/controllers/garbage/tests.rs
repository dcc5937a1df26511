use serde_json::json;

use super::super::fixture::{State, key, parse};
use super::*;

fn config_map(state: &mut State, name: &str, owners: &[(&str, bool)], finalizers: &[&str], going: bool) -> Object {
    let references: Vec<Value> = owners
        .iter()
        .map(|(uid, blocks)| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": blocks})
        })
        .collect();
    let mut object = parse(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "finalizers": finalizers, "ownerReferences": references}}));
    if going {
        object.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
    }
    state.put(object)
}

fn exists_there(state: &State, name: &str) -> bool {
    state.index.get(&key(&kind::CONFIG_MAP, name)).is_some()
}

#[test]
fn what_no_owner_is_left_of_goes_and_what_has_one_stays() {
    let mut state = State::at(1);
    config_map(&mut state, "owner", &[], &[], false);
    config_map(&mut state, "one", &[("gone", true)], &[], false);
    config_map(&mut state, "both", &[("gone", true), ("owner", true)], &[], false);
    let plan = plan_owner(&state.view(), "gone");
    state.carry_out(plan);
    assert!(!exists_there(&state, "one"));
    let owners = state.get(&key(&kind::CONFIG_MAP, "both")).owner_references();
    assert_eq!(owners.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(), ["owner"]);
    assert_eq!(plan_owner(&state.view(), "owner"), Plan::default());
}

#[test]
fn an_owner_in_another_namespace_is_none() {
    let mut state = State::at(1);
    state.put(parse(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "other", "uid": "x"}}),
    ));
    config_map(&mut state, "one", &[("x", true)], &[], false);
    let plan = plan_dependent(&state.view(), "one");
    state.carry_out(plan);
    assert!(!exists_there(&state, "one"));
}

#[test]
fn in_the_foreground_dependents_go_first() {
    let mut state = State::at(1);
    config_map(&mut state, "owner", &[], &[FOREGROUND], true);
    config_map(&mut state, "one", &[("owner", true)], &["example.com/slow"], false);
    let plan = plan_owner(&state.view(), "owner");
    state.carry_out(plan);
    assert!(exists_there(&state, "owner"), "one is held by its own finalizer");
    assert!(state.get(&key(&kind::CONFIG_MAP, "one")).deletion_timestamp().is_some());
    assert_eq!(plan_owner(&state.view(), "owner"), Plan::default());
    state.remove(&key(&kind::CONFIG_MAP, "one"));
    let plan = plan_owner(&state.view(), "owner");
    state.carry_out(plan);
    assert!(!exists_there(&state, "owner"));
}

#[test]
fn orphans_lose_their_owner_and_stay() {
    let mut state = State::at(1);
    config_map(&mut state, "owner", &[], &[ORPHAN, "example.com/other"], true);
    config_map(&mut state, "one", &[("owner", true)], &[], false);
    for _ in 0..2 {
        let plan = plan_owner(&state.view(), "owner");
        state.carry_out(plan);
    }
    assert!(state.get(&key(&kind::CONFIG_MAP, "one")).owner_references().is_empty());
    assert_eq!(state.get(&key(&kind::CONFIG_MAP, "owner")).finalizers(), ["example.com/other"]);
}

#[test]
fn nobody_waits_for_a_pod_longer_than_until_its_device_is_silent() {
    let mut state = State::at(100_000);
    state.node("edge-0");
    config_map(&mut state, "owner", &[], &[FOREGROUND], true);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "edge-0"}, "metadata": {
        "name": "p", "namespace": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "owner", "blockOwnerDeletion": true}]}});
    state.put(parse(pod));
    state.contacts.insert("edge-0".into(), crate::fleet::contact::Contact::Silent { last: state.now });
    let plan = plan_owner(&state.view(), "owner");
    assert_eq!(plan.writes, []);
    state.now = plan.wake_at.unwrap();
    let plan = plan_owner(&state.view(), "owner");
    state.carry_out(plan);
    assert!(!exists_there(&state, "owner"));
}
