use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kind;
use crate::schema::arbitrary::any_object;

fn defaulted(value: Value) -> Value {
    let mut object = Object::parse(value).unwrap();
    apply(&mut object);
    object.into_value()
}

fn pod_spec(spec: Value) -> Value {
    defaulted(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}))["spec"].take()
}

fn container(fields: Value) -> Value {
    pod_spec(json!({"containers": [fields]}))["containers"][0].take()
}

#[test]
fn a_pod_gets_what_kubernetes_gives_it() {
    let pod = defaulted(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "a", "image": "nginx"}], "volumes": [{"name": "v"}]},
    }));
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {
                "containers": [{
                    "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "resources": {},
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "securityContext": {},
                "serviceAccountName": "default", "serviceAccount": "default",
            },
            "status": {"phase": "Pending", "qosClass": "BestEffort"},
        })
    );
}

#[test]
fn what_is_said_stays() {
    let said = json!({
        "containers": [], "restartPolicy": "Never", "dnsPolicy": "Default", "schedulerName": "own",
        "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "securityContext": {"runAsUser": 0},
        "serviceAccountName": "robot", "serviceAccount": "robot",
    });
    assert_eq!(pod_spec(said.clone()), said);
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, expected) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/team/nginx:1.27", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("nginx:latest@sha256:0123", "IfNotPresent"),
    ] {
        assert_eq!(container(json!({"name": "a", "image": image}))["imagePullPolicy"], expected, "{image}");
    }
    assert_eq!(container(json!({"image": "a", "imagePullPolicy": "Never"}))["imagePullPolicy"], "Never");
}

#[test]
fn containers_are_filled() {
    let found = container(json!({
        "name": "a", "image": "a:1", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "livenessProbe": {"httpGet": {"port": 80}}, "readinessProbe": {"grpc": {"port": 1}, "periodSeconds": 3},
        "lifecycle": {"preStop": {"httpGet": {"port": "http"}}},
        "resources": {"limits": {"cpu": 0.5, "memory": "64Mi"}, "requests": {"memory": "32Mi"}},
    }));
    assert_eq!(
        found["ports"],
        json!([{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}])
    );
    assert_eq!(found["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        found["livenessProbe"],
        json!({
            "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
            "successThreshold": 1, "failureThreshold": 3,
        })
    );
    assert_eq!(found["readinessProbe"]["grpc"], json!({"port": 1, "service": ""}));
    assert_eq!(found["readinessProbe"]["periodSeconds"], 3);
    assert_eq!(found["lifecycle"]["preStop"]["httpGet"]["scheme"], "HTTP");
    assert_eq!(
        found["resources"],
        json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "500m", "memory": "32Mi"}})
    );
}

#[test]
fn volumes_are_filled() {
    let found = pod_spec(json!({"containers": [], "volumes": [
        {"name": "a", "configMap": {"name": "a"}}, {"name": "b", "secret": {"secretName": "b", "defaultMode": 256}},
        {"name": "c", "hostPath": {"path": "/c"}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "e", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ]}));
    assert_eq!(
        found["volumes"],
        json!([
            {"name": "a", "configMap": {"name": "a", "defaultMode": 420}},
            {"name": "b", "secret": {"secretName": "b", "defaultMode": 256}},
            {"name": "c", "hostPath": {"path": "/c", "type": ""}},
            {"name": "d", "downwardAPI": {"defaultMode": 420, "items": [
                {"path": "labels", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}},
            ]}},
            {"name": "e", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            ]}},
        ])
    );
}

#[test]
fn quality_of_service_follows_the_resources() {
    for (resources, expected) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        (json!({"limits": {"cpu": "0"}}), "BestEffort"),
    ] {
        let pod = defaulted(json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "resources": resources}]},
        }));
        assert_eq!(pod["status"]["qosClass"], expected, "{resources}");
    }
}

#[test]
fn workloads_get_what_kubernetes_gives_them() {
    let template = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 1}}}]}});
    let spec = |api_version: &str, kind: &str| {
        let spec = json!({"template": template});
        defaulted(json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}))["spec"]
            .take()
    };
    let mut deployment = spec("apps/v1", "Deployment");
    let pod = deployment.as_object_mut().unwrap().remove("template").unwrap()["spec"].take();
    assert_eq!(pod["restartPolicy"], "Always");
    // A template keeps its author's words where only a Pod is filled.
    assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
    assert!(pod.get("serviceAccountName").is_none());
    assert_eq!(
        deployment,
        json!({
            "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
        })
    );
    let daemon_set = spec("apps/v1", "DaemonSet");
    assert_eq!(daemon_set["revisionHistoryLimit"], 10);
    assert_eq!(
        daemon_set["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
    );
    assert_eq!(spec("apps/v1", "ReplicaSet")["replicas"], 1);
    let zero = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
    let zero = defaulted(zero);
    assert_eq!(zero["spec"]["replicas"], 0);
    assert_eq!(zero["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn the_other_kinds() {
    assert_eq!(
        defaulted(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"a": "b2xk", "b": "YmI="}, "stringData": {"a": "new"}})
        ),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "type": "Opaque", "data": {"a": "bmV3", "b": "YmI="}})
    );
    assert_eq!(
        defaulted(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})),
        json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        })
    );
    let going = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "a", "deletionTimestamp": "2026-11-21T07:30:53Z"}, "spec": {}, "status": {"phase": "Terminating"},
    });
    assert_eq!(defaulted(going)["spec"], json!({}));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {}, "status": {"capacity": {"cpu": 4}}});
    assert_eq!(defaulted(node)["status"]["allocatable"], json!({"cpu": "4"}));
}

#[test]
fn wrong_types_are_left_alone() {
    for spec in [json!("text"), json!([1]), json!({"containers": "a", "volumes": [1, "x"], "securityContext": 3})] {
        let found = pod_spec(spec.clone());
        match spec.as_object() {
            Some(fields) => fields.iter().for_each(|(name, value)| assert_eq!(&found[name], value)),
            None => assert_eq!(found, spec),
        }
    }
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "type": "Opaque", "stringData": {"a": 1}});
    assert_eq!(defaulted(secret.clone()), secret);
}

#[test]
fn defaults_are_idempotent_and_keep_the_schema() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    for kind in kind::ALL {
        let outcome = runner.run(&any_object(kind), |value| {
            let mut once = Object::parse(value.clone()).unwrap();
            schema::drop_nulls(&mut once);
            let before = schema::type_errors(&once).len();
            apply(&mut once);
            let mut twice = once.clone();
            apply(&mut twice);
            prop_assert_eq!(&once, &twice);
            prop_assert!(schema::type_errors(&once).len() <= before, "defaults added a wrong type to {}", once.value());
            prop_assert!(schema::unknown_fields(&once).is_empty());
            Ok(())
        });
        outcome.unwrap();
    }
}
