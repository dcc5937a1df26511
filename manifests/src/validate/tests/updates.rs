//! What updates may not change.

use serde_json::{Value, json};

use super::{manifest, pod};
use crate::object::Object;
use crate::validate;

fn changed(old: &Object, pointer: &str, value: Value) -> Vec<String> {
    let mut new = old.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = new.value_mut().pointer_mut(parent).unwrap();
    match (parent, name.parse::<usize>()) {
        (Value::Array(list), Ok(index)) if index < list.len() => list[index] = value,
        (Value::Array(list), _) => list.push(value),
        (parent, _) if value.is_null() => {
            parent.as_object_mut().unwrap().remove(name);
        }
        (parent, _) => parent[name] = value,
    }
    validate::update(old, &new).iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[track_caller]
fn check(old: &Object, pointer: &str, value: Value, expected: &[&str]) {
    let found = changed(old, pointer, value);
    let starts = |(found, expected): (&String, &&str)| found.starts_with(*expected);
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(starts),
        "{pointer}: found {found:#?}\nexpected {expected:#?}"
    );
}

const NOT_OTHERS: &str = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`";

#[test]
fn of_a_pod_only_a_few_fields() {
    let old = pod(
        json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}], "activeDeadlineSeconds": 60}),
    );
    check(&old, "/metadata/labels", json!({"a": "b"}), &[]);
    check(&old, "/spec/containers/0/image", json!("nginx:1.28"), &[]);
    check(&old, "/spec/activeDeadlineSeconds", json!(30), &[]);
    check(
        &old,
        "/spec/activeDeadlineSeconds",
        json!(90),
        &["spec.activeDeadlineSeconds: Invalid value: 90: must be less than or equal to previous value"],
    );
    check(
        &old,
        "/spec/activeDeadlineSeconds",
        json!(null),
        &["spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive"],
    );
    check(&old, "/spec/tolerations/1", json!({"key": "b", "operator": "Exists"}), &[]);
    check(
        &old,
        "/spec/tolerations/0",
        json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}),
        &[],
    );
    check(
        &old,
        "/spec/tolerations/0",
        json!({"key": "c", "operator": "Exists"}),
        &["spec.tolerations: Forbidden: existing toleration can not be modified"],
    );
    check(&old, "/spec/nodeName", json!("node-1"), &[]);
    check(&old, "/spec/hostname", json!("a"), &[NOT_OTHERS]);
    check(
        &old,
        "/spec/containers/1",
        json!({"name": "b", "image": "x"}),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    check(&old, "/spec/terminationGracePeriodSeconds", json!(1), &[NOT_OTHERS]);
    let found = changed(&old, "/spec/containers/0/env", json!([{"name": "A"}]));
    assert!(found[0].ends_with("; changed: spec.containers[0].env"), "{found:?}");
    let bound = pod(json!({"nodeName": "node-1", "schedulingGates": [{"name": "a/b"}]}));
    check(&bound, "/spec/nodeName", json!("node-2"), &[NOT_OTHERS]);
    check(&bound, "/spec/nodeName", json!(null), &[NOT_OTHERS]);
    check(&bound, "/spec/schedulingGates", json!([]), &[]);
    check(&bound, "/spec/schedulingGates/1", json!({"name": "c/d"}), &[NOT_OTHERS]);
}

#[test]
fn defaults_that_came_later_are_no_change() {
    let new = pod(json!({}));
    let mut old = new.clone();
    for name in ["enableServiceLinks", "schedulerName", "serviceAccountName", "serviceAccount"] {
        old.value_mut()["spec"].as_object_mut().unwrap().remove(name);
    }
    assert_eq!(validate::update(&old, &new), []);
}

#[test]
fn metadata_is_fixed() {
    let mut old = manifest("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, uid: u, generation: 3}}");
    check(&old, "/metadata/name", json!("b"), &["metadata.name: Invalid value: \"b\": field is immutable"]);
    check(&old, "/metadata/uid", json!("v"), &["metadata.uid: Invalid value: \"v\": field is immutable"]);
    check(&old, "/metadata/uid", json!(null), &[]);
    check(&old, "/metadata/generation", json!(2), &["metadata.generation: Invalid value: 2: must not be decremented"]);
    check(&old, "/metadata/finalizers", json!(["a.b/c"]), &[]);
    old.metadata_mut().insert("deletionTimestamp".into(), "2026-11-21T07:30:53Z".into());
    check(
        &old,
        "/metadata/finalizers",
        json!(["a.b/c"]),
        &["metadata.finalizers: Forbidden: no new finalizers can be added"],
    );
}

#[test]
fn the_other_kinds() {
    let deployment = manifest(include_str!("deployment.yaml").split("---").next().unwrap());
    check(
        &deployment,
        "/spec/selector/matchLabels/app",
        json!("x"),
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"],
    );
    check(&deployment, "/spec/replicas", json!(9), &[]);
    let secret = manifest("{apiVersion: v1, kind: Secret, metadata: {name: a}, immutable: true, data: {a: YQ==}}");
    check(&secret, "/type", json!("other"), &["type: Invalid value: \"other\": field is immutable"]);
    check(&secret, "/data/a", json!("Yg=="), &["data: Forbidden: field is immutable when `immutable` is set"]);
    check(&secret, "/immutable", json!(false), &["immutable: Forbidden: field is immutable when `immutable` is set"]);
    check(&secret, "/metadata/labels", json!({"a": "b"}), &[]);
    let config_map = manifest("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: b}}");
    check(&config_map, "/data/a", json!("c"), &[]);
    check(&config_map, "/immutable", json!(true), &[]);
    let class = manifest("{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: a}, handler: runc}");
    check(&class, "/handler", json!("crun"), &["handler: Invalid value: \"crun\": field is immutable"]);
    let node = manifest("{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {providerID: x}}");
    check(
        &node,
        "/spec/providerID",
        json!("y"),
        &["spec.providerID: Forbidden: node updates may not change providerID"],
    );
    check(&node, "/spec/unschedulable", json!(true), &[]);
}
