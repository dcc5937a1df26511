use flotilla_manifests::time::Timestamp;

use super::super::fixture::{State, deployment as manifest, key, ready};
use super::*;

fn web(state: &State) -> &Object {
    state.get(&key(&kind::DEPLOYMENT, "web"))
}

fn run(state: &mut State) -> Plan {
    let plan = plan(&state.view(), &key(&kind::DEPLOYMENT, "web"));
    state.carry_out(plan.clone());
    plan
}

fn sets_of(state: &State) -> Vec<Object> {
    state.index.list(&kind::REPLICA_SET, None).map(|set| (**set).clone()).collect()
}

/// Runs the ReplicaSets, binds what waits to `edge-0` and readies it.
fn run_sets(state: &mut State) {
    for set in sets_of(state) {
        let plan = super::super::replica_set::plan(&state.view(), &set.key());
        state.carry_out(plan);
    }
    let pods: Vec<ObjectKey> = state.index.list(&kind::POD, None).map(|pod| pod.key()).collect();
    let status = ready(state.now);
    for pod in pods {
        state.edit(&pod, |pod| {
            pod["spec"]["nodeName"] = "edge-0".into();
            pod["status"] = status.clone();
        });
    }
}

fn condition<'a>(state: &'a State, name: &str) -> (&'a str, &'a str) {
    let entry = flotilla_manifests::condition::find(web(state).status().unwrap(), name).unwrap();
    (entry["status"].as_str().unwrap(), entry["reason"].as_str().unwrap())
}

fn started(replicas: i64) -> State {
    let mut state = State::at(10_000_000);
    state.node("edge-0");
    state.apply(manifest(replicas, "web:1", json!({})));
    run(&mut state);
    state
}

#[test]
fn the_first_replica_set_is_named_labelled_and_numbered_as_kubernetes_and_devices_expect() {
    let mut state = started(3);
    let hash = rollout::hash_of(web(&state));
    let set = sets_of(&state).remove(0);
    assert_eq!(set.name(), format!("web-{hash}"));
    assert_eq!(set.label(HASH_LABEL), Some(hash.as_str()));
    assert_eq!(set.text("/spec/selector/matchLabels/pod-template-hash"), hash);
    assert_eq!(set.text("/spec/template/metadata/labels/pod-template-hash"), hash);
    assert_eq!(set.annotation(REVISION_ANNOTATION), Some("1"));
    assert_eq!(set.annotation(NUMBER_ANNOTATION), Some("1-1"));
    assert_eq!(set.at("/spec/replicas"), Some(&json!(3)));
    assert_eq!(set.controller().unwrap().uid, web(&state).uid());
    assert_eq!(web(&state).annotation(REVISION_ANNOTATION), Some("1"));
    assert!(state.events[0].contains("ScalingReplicaSet: Scaled up replica set web-"), "{:?}", state.events);
    assert_eq!(condition(&state, "Progressing"), ("True", "ReplicaSetUpdated"));
    assert_eq!(condition(&state, "Available"), ("False", "MinimumReplicasUnavailable"));
    run_sets(&mut state);
    run(&mut state);
    assert_eq!(condition(&state, "Progressing"), ("True", "NewReplicaSetAvailable"));
    assert_eq!(condition(&state, "Available"), ("True", "MinimumReplicasAvailable"));
    assert_eq!(run(&mut state).writes, [], "nothing is left to do");
}

#[test]
fn an_update_that_does_not_come_through_is_told_after_its_deadline() {
    let mut state = started(2);
    state.edit(&key(&kind::DEPLOYMENT, "web"), |web| web["spec"]["progressDeadlineSeconds"] = 60.into());
    let plan = run(&mut state);
    let deadline = plan.wake_at.unwrap();
    assert_eq!(deadline, Timestamp(10_000_000 + 60_000));
    state.now = deadline;
    run(&mut state);
    assert_eq!(condition(&state, "Progressing"), ("False", "ProgressDeadlineExceeded"));
    // A Pod that comes late is progress all the same.
    run_sets(&mut state);
    run(&mut state);
    assert_eq!(condition(&state, "Progressing"), ("True", "NewReplicaSetAvailable"));
}

#[test]
fn a_silent_device_is_no_failed_update() {
    let mut state = started(2);
    run_sets(&mut state);
    run(&mut state);
    state.silence("edge-0");
    state.apply(manifest(2, "web:2", json!({})));
    run(&mut state);
    run(&mut state);
    state.now = Timestamp(state.now.0 + 3_600_000);
    run(&mut state);
    assert_eq!(condition(&state, "Progressing").0, "True");
    let sizes: Vec<_> = sets_of(&state).iter().map(|set| set.at("/spec/replicas").cloned().unwrap()).collect();
    assert!(sizes.contains(&json!(2)), "the silent Pods stay with their old set: {sizes:?}");
}

#[test]
fn pausing_stops_updates_and_lets_scaling_go_on() {
    let mut state = started(2);
    run_sets(&mut state);
    run(&mut state);
    let mut paused = manifest(4, "web:2", json!({}));
    paused.value_mut()["spec"]["paused"] = true.into();
    state.apply(paused);
    run(&mut state);
    assert_eq!(sets_of(&state).len(), 1);
    assert_eq!(sets_of(&state)[0].at("/spec/replicas"), Some(&json!(4)));
    assert_eq!(condition(&state, "Progressing"), ("Unknown", "DeploymentPaused"));
    assert_eq!(web(&state).annotation(REVISION_ANNOTATION), Some("1"));
    state.apply(manifest(4, "web:2", json!({})));
    run(&mut state);
    assert_eq!(sets_of(&state).len(), 2);
}

#[test]
fn an_undo_takes_up_the_old_set_with_the_new_number_and_history_is_limited() {
    let mut state = started(1);
    let update = |state: &mut State, image: &str| {
        let mut next = manifest(1, image, json!({"type": "Recreate"}));
        next.value_mut()["spec"]["revisionHistoryLimit"] = 1.into();
        state.apply(next);
        for _ in 0..4 {
            run(state);
            run_sets(state);
            let ended: Vec<ObjectKey> = state
                .index
                .list(&kind::POD, None)
                .filter(|pod| pod.deletion_timestamp().is_some())
                .map(|pod| pod.key())
                .collect();
            for pod in ended {
                state.remove(&pod);
            }
        }
        run(state);
    };
    for image in ["web:1", "web:2", "web:1"] {
        update(&mut state, image);
    }
    let sets = sets_of(&state);
    assert_eq!(sets.len(), 2);
    let newest = sets.iter().find(|set| set.at("/spec/replicas") == Some(&json!(1))).unwrap();
    assert_eq!(newest.annotation(REVISION_ANNOTATION), Some("3"));
    assert_eq!(newest.annotation("deployment.kubernetes.io/revision-history"), Some("1"));
    assert_eq!(newest.annotation(NUMBER_ANNOTATION), web(&state).annotation(NUMBER_ANNOTATION));
    update(&mut state, "web:3");
    let mut revisions: Vec<i64> = sets_of(&state).iter().map(revision_of).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [3, 4]);
}
