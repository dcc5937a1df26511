//! What a device runs, from what it knows and remembers.

use flotilla_manifests::overrides::{Operation, Path, Target, Verb};
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn number(counter: u64) -> RolloutNumber {
    RolloutNumber { incarnation: 1, counter }
}

fn node() -> NodeRef {
    NodeRef { name: "n1".into(), uid: "node-uid".into() }
}

fn node_manifest(labels: serde_json::Value) -> Manifest {
    let object = Object::parse(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "node-uid", "labels": labels}, "spec": {}}),
    );
    Manifest { object: Arc::new(object.unwrap()), thresholds: BTreeMap::new(), at_number: BTreeMap::new() }
}

fn workload(kind: &str, selector: serde_json::Value, version: &str, counter: u64) -> Arc<Object> {
    let object = Object::parse(json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": "web", "namespace": "default", "uid": "w", "annotations": {"flotilla.dev/rollout": number(counter).to_string()}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "replicas": 2, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"nodeSelector": selector, "runtimeClassName": "process", "containers": [
                {"name": "web", "image": "host", "command": ["sleep", "1"], "env": [{"name": "VERSION", "value": version}]},
            ]},
        }},
    }));
    Arc::new(object.unwrap())
}

fn daemon_set(versions: &[(u64, u64)]) -> Manifest {
    let newest = versions.iter().map(|(counter, _)| *counter).max().unwrap();
    Manifest {
        object: workload("DaemonSet", json!({}), &format!("v{newest}"), newest),
        thresholds: versions.iter().map(|(counter, threshold)| (number(*counter), *threshold)).collect(),
        at_number: versions
            .iter()
            .map(|(counter, _)| (number(*counter), workload("DaemonSet", json!({}), &format!("v{counter}"), *counter)))
            .collect(),
    }
}

fn known(manifest: Manifest) -> Known {
    let manifests = [("node-uid", node_manifest(json!({}))), ("w", manifest)];
    let manifests = manifests.into_iter().map(|(uid, one)| (uid.to_owned(), Arc::new(one))).collect();
    Known { manifests, ..Known::default() }
}

fn versions(result: &Effective) -> Vec<String> {
    let version = |pod: &DesiredPod| pod.object.text("/spec/containers/0/env/0/value").to_owned();
    result.pods.pods.values().map(version).collect()
}

fn run(known: &Known, memory: &Memory) -> Effective {
    let result = effective(&node(), known, memory, NOW);
    if known.unreadable.is_empty() && !memory.loses_to(&result.memory) {
        // What it remembers changes nothing that follows: the agent does not derive it again for that.
        assert_eq!(effective(&node(), known, &result.memory, NOW), result);
    }
    result
}

#[test]
fn the_newest_number_that_lets_this_device_in_runs() {
    let result = run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, 0)])), &Memory::default());
    assert_eq!(versions(&result), ["v1"]);
    let result = run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, rollout::THRESHOLD_ALL)])), &result.memory);
    assert_eq!(versions(&result), ["v2"]);
}

#[test]
fn a_grant_lets_in_where_the_threshold_does_not() {
    let mut all = known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, 0)]));
    all.grants.insert("w".into(), number(2));
    assert_eq!(versions(&run(&all, &Memory::default())), ["v2"]);
}

#[test]
fn one_that_returns_waits_for_a_grant_before_it_replaces_what_runs() {
    let first = run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL)])), &Memory::default());
    let mut all = known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, rollout::THRESHOLD_ALL)]));
    all.caught_up.insert("w".into());
    assert_eq!(versions(&run(&all, &first.memory)), ["v1"]);
    assert_eq!(versions(&run(&all, &Memory::default())), ["v2"], "nothing runs yet: nothing to wait for");
    all.grants.insert("w".into(), number(2));
    assert_eq!(versions(&run(&all, &first.memory)), ["v2"]);
}

/// The case for which the agent derives once more: nothing else would tell it to.
#[test]
fn a_workload_that_left_this_device_is_met_like_a_new_one() {
    let first = run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL)])), &Memory::default());
    let mut manifest = daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, rollout::THRESHOLD_ALL)]);
    manifest.at_number.insert(number(1), workload("DaemonSet", json!({"role": "pump"}), "v1", 1));
    let mut all = known(manifest);
    all.caught_up.insert("w".into());
    let left = run(&all, &first.memory);
    assert_eq!(
        versions(&left),
        Vec::<String>::new(),
        "what runs belongs here no longer, and the next waits for its turn"
    );
    assert!(first.memory.loses_to(&left.memory));
    assert_eq!(versions(&run(&all, &left.memory)), ["v2"]);
}

#[test]
fn a_device_never_moves_back_by_itself_even_when_its_number_is_forgotten() {
    let moved =
        run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, rollout::THRESHOLD_ALL)])), &Memory::default());
    let mut withdrawn = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    assert_eq!(versions(&run(&withdrawn, &moved.memory)), ["v2"], "the document forgot number 2");
    withdrawn = known(daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, 0)]));
    assert_eq!(versions(&run(&withdrawn, &moved.memory)), ["v2"], "the threshold was lowered");
}

#[test]
fn a_node_that_is_not_selected_runs_and_shows_nothing_of_it() {
    let mut elsewhere = daemon_set(&[(1, rollout::THRESHOLD_ALL)]);
    elsewhere.at_number.insert(number(1), workload("DaemonSet", json!({"site": "hall-9"}), "v1", 1));
    let result = run(&known(elsewhere), &Memory::default());
    assert!(result.pods.pods.is_empty());
    assert!(result.objects.keys().all(|key| key.kind.name == "Node"), "{:?}", result.objects.keys());
}

#[test]
fn a_template_that_waits_for_its_turn_already_says_where_the_set_belongs() {
    let mut moved = daemon_set(&[(1, rollout::THRESHOLD_ALL), (2, 0)]);
    let here = run(&known(daemon_set(&[(1, rollout::THRESHOLD_ALL)])), &Memory::default());
    assert_eq!(versions(&run(&known(moved.clone()), &here.memory)), ["v1"]);
    moved.object = workload("DaemonSet", json!({"site": "hall-9"}), "v2", 2);
    moved.at_number.insert(number(2), moved.object.clone());
    assert!(run(&known(moved), &here.memory).pods.pods.is_empty());
}

#[test]
fn an_eviction_raises_the_attempt_once_and_for_good() {
    let mut all = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    let first = run(&all, &Memory::default());
    let uid = first.pods.pods.keys().next().unwrap().clone();
    all.evictions.insert(uid.clone());
    let second = run(&all, &first.memory);
    assert!(!second.pods.pods.contains_key(&uid));
    assert_eq!(second.memory.attempts["w"], 1);
    assert_eq!(run(&all, &second.memory).pods, second.pods, "the same eviction again changes nothing");
    all.evictions.clear();
    assert_eq!(run(&all, &second.memory).pods, second.pods, "the attempt outlives the eviction");
}

fn override_of(operations: Vec<Operation>) -> OverrideRecord {
    OverrideRecord {
        id: "o1".into(),
        target: Target::of(&workload("DaemonSet", json!({}), "v1", 1)),
        operations,
        author: "technician".into(),
        reason: String::new(),
        time: NOW,
        expires: Some(Timestamp(NOW.0 + 10)),
    }
}

#[test]
fn an_override_runs_on_top_until_its_time_is_over() {
    let mut all = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    let path: Path =
        serde_json::from_value(json!("spec.template.spec.containers[name=web].env[name=VERSION].value")).unwrap();
    all.overrides.push(override_of(vec![Operation {
        op: Verb::Set,
        path,
        value: Some("mine".into()),
        replaced: None,
    }]));
    assert_eq!(versions(&run(&all, &Memory::default())), ["mine"]);
    let later = effective(&node(), &all, &Memory::default(), Timestamp(NOW.0 + 10));
    assert_eq!(versions(&later), ["v1"]);
}

#[test]
fn a_hold_stops_and_hides_the_workload_and_nothing_else() {
    let mut all = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    let base = all.manifests["w"].object.clone();
    let mut held = Object::clone(&base);
    held.set_annotation(HOLD_ANNOTATION, "true");
    all.overrides.push(override_of(overrides::between(&base, &held)));
    let result = run(&all, &Memory::default());
    assert!(result.pods.pods.is_empty());
    assert!(result.objects.keys().all(|key| key.kind.name == "Node"));
}

#[test]
fn a_placement_runs_its_number_and_ends_with_it() {
    let manifest = Manifest {
        object: workload("Deployment", json!({}), "v2", 2),
        thresholds: BTreeMap::new(),
        at_number: BTreeMap::from([(number(1), workload("Deployment", json!({}), "v1", 1))]),
    };
    let mut all = known(manifest);
    let place = |uid: &str, counter| Placement {
        namespace: "default".into(),
        name: format!("web-abc-{uid}"),
        uid: uid.into(),
        workload: "w".into(),
        number: number(counter),
    };
    all.placements.insert("p1".into(), place("p1", 1));
    all.placements.insert("p2".into(), place("p2", 2));
    let result = run(&all, &Memory::default());
    assert_eq!(result.pods.pods.keys().collect::<Vec<_>>(), ["p1", "p2"]);
    assert_eq!(versions(&result), ["v1", "v2"]);

    Arc::make_mut(all.manifests.get_mut("w").unwrap()).at_number.clear();
    assert_eq!(versions(&run(&all, &result.memory)), ["v1", "v2"], "a forgotten number runs from memory");
    all.placements.remove("p1");
    assert_eq!(versions(&run(&all, &result.memory)), ["v2"]);
}

#[test]
fn a_restarted_placement_lives_anew_here_and_stays_itself_to_the_hub() {
    let manifest = Manifest {
        object: workload("Deployment", json!({}), "v1", 1),
        thresholds: BTreeMap::new(),
        at_number: BTreeMap::new(),
    };
    let mut all = known(manifest);
    let placement = Placement {
        namespace: "default".into(),
        name: "web-a-b".into(),
        uid: "p1".into(),
        workload: "w".into(),
        number: number(1),
    };
    all.placements.insert("p1".into(), placement);
    let memory = Memory { attempts: BTreeMap::from([("p1".to_owned(), 1)]), ..Memory::default() };
    let result = run(&all, &memory);
    let (uid, origin) = result.origins.first_key_value().unwrap();
    assert_ne!(uid, "p1");
    assert_eq!((origin.subject.as_str(), origin.attempt), ("p1", 1));
    assert_eq!(result.memory.attempts, memory.attempts);
}

#[test]
fn what_cannot_be_read_is_not_taken_for_deleted() {
    let whole = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    let before = run(&whole, &Memory::default());
    let mut damaged = known(daemon_set(&[(1, rollout::THRESHOLD_ALL)]));
    damaged.manifests.clear();
    damaged.unreadable.extend(["w".to_owned(), "node-uid".to_owned(), "bare".to_owned()]);
    let after = run(&damaged, &before.memory);
    assert_eq!(after.pods.pods.keys().collect::<Vec<_>>(), before.pods.pods.keys().collect::<Vec<_>>());
    assert_eq!(versions(&after), ["v1"]);
    assert_eq!(after.memory, before.memory);
    assert_eq!(after.left_alone, BTreeSet::from(["bare".to_owned(), "node-uid".to_owned()]));
    damaged.unreadable.clear();
    assert!(run(&damaged, &after.memory).pods.pods.is_empty(), "absence ends");
}

#[test]
fn a_placed_pod_outlives_its_unreadable_placement_and_workload() {
    let mut all = known(Manifest { object: workload("Deployment", json!({}), "v1", 1), ..daemon_set(&[(1, 0)]) });
    Arc::make_mut(all.manifests.get_mut("w").unwrap()).at_number.clear();
    let placement = json!({"namespace": "default", "name": "web-1", "uid": "p", "workload": "w", "number": number(1)});
    all.placements.insert("p".into(), serde_json::from_value(placement).unwrap());
    let before = run(&all, &Memory::default());
    assert_eq!(before.pods.pods.keys().collect::<Vec<_>>(), ["p"]);
    all.manifests.remove("w");
    all.unreadable.insert("w".into());
    let after = run(&all, &before.memory);
    assert_eq!(after.pods.pods.keys().collect::<Vec<_>>(), ["p"]);
    all.placements.clear();
    all.unreadable = BTreeSet::from(["p".to_owned()]);
    let after = run(&all, &before.memory);
    assert!(after.left_alone.contains("p") && after.memory.workloads.contains_key("p"));
}
