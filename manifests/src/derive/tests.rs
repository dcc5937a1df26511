use serde_json::json;

use super::*;
use crate::overrides::{Operation, Target, Verb};

fn daemon_set() -> Object {
    let mut set = Object::empty(&kind::DAEMON_SET, "shop", "web");
    set.metadata_mut().insert("uid".into(), "ds-uid".into());
    set.value_mut()["spec"] = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "web", "image": "web:1"}], "tolerations": [{"key": "own", "operator": "Exists"}]},
        },
    });
    rollout::stamp(None, &mut set, 1);
    set
}

fn node(name: &str, spec: Value, labels: Value) -> Object {
    let mut node = Object::empty(&kind::NODE, "", name);
    node.metadata_mut().insert("uid".into(), format!("{name}-uid").into());
    node.metadata_mut().insert("labels".into(), labels);
    node.value_mut()["spec"] = spec;
    node
}

const NUMBER: RolloutNumber = RolloutNumber { incarnation: 1, counter: 1 };

#[test]
fn a_daemon_pod_is_what_kubernetes_would_make() {
    let node = NodeRef { name: "edge-1".into(), uid: "n1".into() };
    let set = daemon_set();
    let pod = daemon_pod(&set, &node, NUMBER, 0, &[]);
    assert_eq!(pod.namespace(), "shop");
    assert!(pod.name().starts_with("web-edge-1-"), "{}", pod.name());
    assert_eq!(pod.text("/spec/nodeName"), "edge-1");
    assert_eq!(pod.text("/spec/serviceAccountName"), "default");
    let owner = pod.controller().unwrap();
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("DaemonSet", "ds-uid"));
    assert_eq!(pod.label("app"), Some("web"));
    assert_eq!(pod.label("controller-revision-hash"), set.annotation(rollout::HASH_ANNOTATION));
    assert_eq!(pod.annotation(rollout::NUMBER_ANNOTATION), Some("1-1"));
    assert_eq!(pod.annotation("a"), Some("b"));
    let tolerations: Vec<Toleration> = view(pod.at("/spec/tolerations"));
    assert_eq!(tolerations.len(), 1 + DAEMON_TOLERATIONS.len());
    assert_eq!(pod, daemon_pod(&set, &node, NUMBER, 0, &[]));
}

#[test]
fn every_part_of_a_pods_identity_makes_another_uid() {
    let uid = daemon_pod_uid("o", "n", NUMBER, 0);
    let others = [
        daemon_pod_uid("p", "n", NUMBER, 0),
        daemon_pod_uid("o", "m", NUMBER, 0),
        daemon_pod_uid("o", "n", RolloutNumber { incarnation: 1, counter: 2 }, 0),
        daemon_pod_uid("o", "n", NUMBER, 1),
    ];
    assert!(!others.contains(&uid));
    // RFC 9562: version 8, variant 10.
    assert_eq!(uid.len(), 36);
    assert_eq!(&uid[14..15], "8");
    assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
    assert_eq!(uid, "3a5eecef-0314-847a-a11e-688fb69930d5");
}

#[test]
fn names_are_labels_and_tell_owners_and_nodes_apart() {
    assert_ne!(daemon_pod_name("a-b", "c"), daemon_pod_name("a", "b-c"));
    let long = "n".repeat(253);
    let names = [
        daemon_pod_name("web", "edge-1"),
        daemon_pod_name("web", "edge-1.site.example"),
        daemon_pod_name("web", &long),
        daemon_pod_name(&long, "edge-1"),
        daemon_pod_name("web", &format!("{}-{}", "a".repeat(47), "b".repeat(100))),
    ];
    for name in &names {
        assert!(crate::label::syntax::dns_label(name).is_ok(), "{name}");
    }
}

#[test]
fn a_prefix_ends_between_characters() {
    for (text, bytes_max, expected) in [("web", 9, "web"), ("web", 2, "we"), ("aüb", 2, "a"), ("ü", 0, "")] {
        assert_eq!(prefix(text, bytes_max), expected);
    }
}

fn record(target: &Object, path: &str, value: Value) -> OverrideRecord {
    OverrideRecord {
        id: "o1".into(),
        target: Target::of(target),
        operations: vec![Operation { op: Verb::Set, path: path.parse().unwrap(), value: Some(value), replaced: None }],
        author: "ada".into(),
        reason: String::new(),
        time: Timestamp(1),
        expires: None,
    }
}

#[test]
fn overrides_of_the_workload_and_of_the_pod_take_effect_and_keep_its_identity() {
    let node = NodeRef { name: "edge-1".into(), uid: "n1".into() };
    let set = daemon_set();
    let plain = daemon_pod(&set, &node, NUMBER, 0, &[]);
    let records = [
        record(&set, "spec.template.spec.containers[name=web].image", json!("web:fixed")),
        OverrideRecord { id: "o2".into(), ..record(&plain, "metadata.labels.seen", json!("yes")) },
        OverrideRecord {
            id: "o3".into(),
            target: Target { uid: "another".into(), ..Target::of(&set) },
            ..record(&set, "spec.template.spec.containers[name=web].image", json!("web:wrong"))
        },
    ];
    let pod = daemon_pod(&set, &node, NUMBER, 0, &records);
    assert_eq!(pod.text("/spec/containers/0/image"), "web:fixed");
    assert_eq!(pod.label("seen"), Some("yes"));
    assert_eq!((pod.uid(), pod.name()), (plain.uid(), plain.name()));
    assert_eq!(pod.label("controller-revision-hash"), plain.label("controller-revision-hash"));
}

#[test]
fn a_placed_pod_is_the_one_that_was_placed() {
    let mut deployment = Object::empty(&kind::DEPLOYMENT, "shop", "api");
    deployment.metadata_mut().insert("uid".into(), "dep-uid".into());
    deployment.value_mut()["spec"] =
        json!({"template": {"metadata": {"labels": {"app": "api"}}, "spec": {"containers": []}}});
    let placement = Placement {
        namespace: "shop".into(),
        name: "api-5d89bdfd4b-x7k2p".into(),
        uid: "pod-uid".into(),
        workload: "dep-uid".into(),
        number: NUMBER,
    };
    let pod = placed_pod(&deployment, &placement, "edge-1", 2, &[]);
    assert_eq!((pod.name(), pod.uid()), ("api-5d89bdfd4b-x7k2p", "pod-uid"));
    assert_eq!(pod.label("pod-template-hash"), Some("5d89bdfd4b"));
    assert_eq!(pod.annotation(ATTEMPT_ANNOTATION), Some("2"));
    assert_eq!(pod.text("/spec/nodeName"), "edge-1");
    let text = serde_json::to_value(&placement).unwrap();
    assert_eq!(text["number"], json!("1-1"));
    assert_eq!(serde_json::from_value::<Placement>(text).unwrap(), placement);
}

fn with_pod_spec(spec: Value) -> Object {
    let mut set = daemon_set();
    set.value_mut()["spec"]["template"]["spec"] = spec;
    set
}

fn affinity(operator: &str, values: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "slot", "operator": operator, "values": values}]}]}}}})
}

#[test]
fn selection_follows_selectors_affinity_and_taints() {
    let labels = json!({"site": "north", "slot": "7"});
    let plain = node("edge-1", json!({}), labels.clone());
    let tainted = |effect: &str| {
        node("edge-1", json!({"taints": [{"key": "gpu", "value": "yes", "effect": effect}]}), labels.clone())
    };
    let both = (true, true);
    let neither = (false, false);
    let cases: Vec<(&str, Value, Object, (bool, bool))> = vec![
        ("everything", json!({}), plain.clone(), both),
        ("selector matches", json!({"nodeSelector": {"site": "north"}}), plain.clone(), both),
        ("selector differs", json!({"nodeSelector": {"site": "south"}}), plain.clone(), neither),
        ("named", json!({"nodeName": "edge-1"}), plain.clone(), both),
        ("another is named", json!({"nodeName": "edge-2"}), plain.clone(), neither),
        ("In", affinity("In", json!(["6", "7"])), plain.clone(), both),
        ("NotIn", affinity("NotIn", json!(["7"])), plain.clone(), neither),
        ("Gt", affinity("Gt", json!(["6"])), plain.clone(), both),
        ("Lt", affinity("Lt", json!(["7"])), plain.clone(), neither),
        ("Exists", affinity("Exists", json!([])), plain.clone(), both),
        ("DoesNotExist", affinity("DoesNotExist", json!([])), plain.clone(), neither),
        ("NoSchedule keeps away and evicts none", json!({}), tainted("NoSchedule"), (false, true)),
        ("NoExecute ends", json!({}), tainted("NoExecute"), neither),
        ("PreferNoSchedule is a wish", json!({}), tainted("PreferNoSchedule"), both),
        (
            "tolerated",
            json!({"tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes"}]}),
            tainted("NoExecute"),
            both,
        ),
        (
            "another value is not",
            json!({"tolerations": [{"key": "gpu", "value": "no"}]}),
            tainted("NoSchedule"),
            (false, true),
        ),
        (
            "cordoned and silent Nodes are not spared",
            json!({}),
            node(
                "edge-1",
                json!({"unschedulable": true, "taints": [
                    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
                    {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]}),
                json!({}),
            ),
            both,
        ),
    ];
    for (name, spec, node, expected) in cases {
        let found = selection(&with_pod_spec(spec), &node);
        assert_eq!((found.should_run, found.may_stay), expected, "{name}");
    }
}
