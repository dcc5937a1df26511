//! Tables of manifests and the faults they must give, worded as kube-apiserver words them.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::*;
use crate::decode::{self, Format};
use crate::schema::arbitrary::any_object;
use crate::{defaults, kind};

mod pods;
mod updates;
mod volumes;

/// The defaulted object of a YAML manifest; the namespace is filled in as a request's path does.
fn manifest(yaml: &str) -> Object {
    let mut object = decode::object(yaml.as_bytes(), Format::Yaml).unwrap().value;
    if object.namespace().is_empty() && object.kind().scope == kind::Scope::Namespaced {
        object.metadata_mut().insert("namespace".into(), "default".into());
    }
    defaults::apply(&mut object);
    object
}

fn faults(found: &Object) -> Vec<String> {
    object(found).iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

fn json_manifest(value: Value) -> Object {
    manifest(&value.to_string())
}

/// A Pod with one container and a spec changed by merge.
fn pod(spec: Value) -> Object {
    let mut base = json!({"containers": [{"name": "a", "image": "nginx:1.27"}]});
    for (name, value) in spec.as_object().unwrap() {
        base[name] = value.clone();
    }
    json_manifest(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": base}))
}

fn container(fields: Value) -> Object {
    let mut base = json!({"name": "a", "image": "nginx:1.27"});
    for (name, value) in fields.as_object().unwrap() {
        base[name] = value.clone();
    }
    pod(json!({"containers": [base]}))
}

#[track_caller]
fn check(found: &Object, expected: &[&str]) {
    let found = faults(found);
    let starts = |(found, expected): (&String, &&str)| found.starts_with(*expected);
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(starts),
        "found {found:#?}\nexpected {expected:#?}"
    );
}

#[test]
fn typical_manifests_have_no_faults() {
    for text in [
        include_str!("tests/deployment.yaml"),
        include_str!("tests/daemonset.yaml"),
        include_str!("tests/pod.yaml"),
        include_str!("tests/other.yaml"),
    ] {
        let objects = decode::documents(text.as_bytes(), Format::Yaml).unwrap();
        assert!(!objects.is_empty());
        for mut decoded in objects {
            assert!(decoded.duplicates.is_empty());
            assert_eq!(schema::unknown_fields(&decoded.value), [""; 0], "{}", decoded.value.key());
            defaults::apply(&mut decoded.value);
            assert_eq!(faults(&decoded.value), [""; 0], "{}", decoded.value.key());
        }
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let found = manifest(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: Web_1
  labels: {"bad key": "ok", tier: "-x"}
spec:
  replicas: -1
  selector: {matchLabels: {app: web}}
  strategy: {type: Rolling}
  template:
    metadata: {labels: {app: db}}
    spec:
      restartPolicy: Never
      containers:
      - {name: web, image: "", ports: [{containerPort: 70000, protocol: HTTP}]}
      - {name: web, image: nginx, volumeMounts: [{name: data, mountPath: /data}]}
"#,
    );
    check(
        &found,
        &[
            "metadata.name: Invalid value: \"Web_1\": a lowercase RFC 1123 subdomain must consist of",
            "metadata.labels: Invalid value: \"bad key\": name part must consist of",
            "metadata.labels: Invalid value: \"-x\": a valid label must be an empty string or",
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template `labels`",
            "spec.strategy.type: Unsupported value: \"Rolling\": supported values: \"Recreate\", \"RollingUpdate\"",
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            "spec.template.spec.containers[0].image: Required value",
            "spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.template.spec.containers[0].ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.template.spec.containers[1].volumeMounts[0].name: Not found: \"data\"",
            "spec.template.spec.containers[1].name: Duplicate value: \"web\"",
        ],
    );
    let reasons: Vec<&str> = object(&found).iter().map(|fault| fault.reason).collect();
    for reason in [
        "FieldValueInvalid",
        "FieldValueRequired",
        "FieldValueNotSupported",
        "FieldValueDuplicate",
        "FieldValueNotFound",
    ] {
        assert!(reasons.contains(&reason), "{reason}");
    }
}

#[test]
fn wrong_types_come_without_their_consequences() {
    let wrong = json_manifest(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a"},
        "spec": {"selector": "app", "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": "nginx", "hostname": "X"}}},
    }));
    check(
        &wrong,
        &[
            "spec.selector: Invalid value: \"app\": must be of type object, found string",
            "spec.template.spec.containers: Invalid value: \"nginx\": must be of type array, found string",
            "spec.template.spec.hostname: Invalid value: \"X\": a lowercase RFC 1123 label must",
        ],
    );
}

#[test]
fn required_fields_of_the_schema_are_asked_for() {
    check(
        &json_manifest(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a"}, "spec": {}})),
        &[
            "spec.selector: Required value",
            "spec.template.spec.containers: Required value",
            "spec.template: Required value",
        ],
    );
    check(
        &json_manifest(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}})),
        &["metadata.name: Required value: name or generateName is required", "spec.containers: Required value"],
    );
    check(
        &container(json!({"volumeMounts": [{}], "env": [{}]})),
        &[
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].volumeMounts[0].name: Required value",
            "spec.containers[0].volumeMounts[0].mountPath: Required value",
        ],
    );
}

#[test]
fn metadata_rules() {
    let with = |metadata: Value| json_manifest(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
    check(&with(json!({"name": "a.b-c"})), &[]);
    check(
        &with(json!({"name": "a", "namespace": "A"})),
        &["metadata.namespace: Invalid value: \"A\": a lowercase RFC 1123 label"],
    );
    check(&with(json!({"name": "a", "generateName": "web-"})), &[]);
    check(&with(json!({"name": "a", "generateName": "Web-"})), &["metadata.generateName: Invalid value: \"Web-\""]);
    check(&with(json!({"name": "a".repeat(254)})), &["metadata.name: Invalid value"]);
    check(
        &with(json!({"name": "a", "annotations": {"a": "x".repeat(256 * 1024)}})),
        &["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
    check(
        &with(json!({"name": "a", "finalizers": ["example.com/a", "plain", "orphan", "foregroundDeletion"]})),
        &[
            "metadata.finalizers[1]: Invalid value: \"plain\": name is neither a standard finalizer name nor is it fully qualified",
            "metadata.finalizers: Invalid value: [\"example.com/a\",\"plain\",\"orphan\",\"foregroundDeletion\"]: orphan and foregroundDeletion",
        ],
    );
    let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": true});
    check(
        &with(
            json!({"name": "a", "ownerReferences": [owner("x"), owner("y"), {"apiVersion": "v1", "kind": "Pod", "name": "z", "uid": ""}]}),
        ),
        &[
            "metadata.ownerReferences: Invalid value: ",
            "metadata.ownerReferences[2].uid: Invalid value: \"\": must not be empty",
        ],
    );
    check(
        &json_manifest(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b", "namespace": "c"}})),
        &[
            "metadata.name: Invalid value: \"a.b\": a lowercase RFC 1123 label",
            "metadata.namespace: Forbidden: not allowed on this type",
        ],
    );
}

#[test]
fn config_rules() {
    let of = |kind: &str, rest: Value| {
        let mut value = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "a"}});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json_manifest(value)
    };
    check(&of("ConfigMap", json!({"data": {"a/b": "x"}})), &["data[a/b]: Invalid value: \"a/b\": a valid config key"]);
    check(
        &of("ConfigMap", json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}})),
        &["binaryData[a]: Invalid value: \"a\": duplicate of key present in data"],
    );
    check(
        &of("ConfigMap", json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}})),
        &["data: Too long: may not be more than 1048576 bytes"],
    );
    check(
        &of("Secret", json!({"data": {"a": "no base64!"}})),
        &["data[a]: Invalid value: \"<not shown>\": must be base64"],
    );
    check(
        &of("Secret", json!({"type": "kubernetes.io/tls"})),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    check(
        &of("Node", json!({"spec": {"taints": [{"key": "a", "effect": "Never"}]}})),
        &[
            "spec.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
    check(
        &of("Event", json!({"involvedObject": {"namespace": "other", "kind": "Pod", "name": "a"}})),
        &["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
    );
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "a"}});
    check(&json_manifest(class), &["handler: Required value"]);
}

#[test]
fn override_rules() {
    let of = |spec: Value| {
        json_manifest(
            json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "Override", "metadata": {"name": "a"}, "spec": spec}),
        )
    };
    let target = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "namespace": "default", "name": "a", "uid": "u"});
    let path = "spec.template.spec.containers[name=a].image";
    let fine = json!([{"op": "set", "path": path, "value": "x"}, {"op": "remove", "path": "metadata.labels.a"}]);
    check(&of(json!({"nodeName": "n", "target": target, "operations": fine})), &[]);
    check(
        &of(json!({"target": {"apiVersion": "v1", "kind": "Pot", "name": "a", "uid": "u"}, "operations": [
            {"op": "set", "path": path}, {"op": "remove", "path": path, "value": 1}, {"op": "drop", "path": "a..b"},
        ]})),
        &[
            "spec.nodeName: Required value",
            "spec.target.kind: Unsupported value: \"Pot\": supported values: \"Namespace\", \"Node\", \"Pod\"",
            "spec.operations[0].value: Required value: must be given when `op` is 'set'",
            "spec.operations[1].value: Forbidden: may not be given when `op` is 'remove'",
            "spec.operations[2].op: Unsupported value: \"drop\": supported values: \"set\", \"remove\"",
            "spec.operations[2].path: Invalid value: \"a..b\": ",
        ],
    );
    check(
        &of(json!({"nodeName": "n", "target": target, "operations": []})),
        &["spec.operations: Required value: must have"],
    );
}

#[test]
fn the_list_of_faults_is_bounded() {
    let keys: serde_json::Map<String, Value> = (0..1000).map(|index| (format!("bad key {index}"), json!(""))).collect();
    let found =
        json_manifest(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": keys}));
    assert_eq!(object(&found).len(), FAULTS_MAX);
}

#[test]
fn no_object_makes_a_rule_panic_or_lose_its_place() {
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    for kind in kind::ALL {
        let outcome = runner.run(&(any_object(kind), any_object(kind)), |(old, new)| {
            let (old, mut new) = (Object::parse(old).unwrap(), Object::parse(new).unwrap());
            defaults::apply(&mut new);
            let found = object(&new).into_iter().chain(update(&old, &new));
            for fault in found {
                prop_assert!(!fault.field.is_empty() && !fault.field.starts_with('.'), "{fault:?}");
            }
            prop_assert_eq!(update(&new, &new), []);
            Ok(())
        });
        outcome.unwrap();
    }
}
