//! Pods, containers, workloads.

use serde_json::{Value, json};

use super::{check, container, faults, json_manifest, pod};

#[test]
fn pod_rules() {
    for (spec, expected) in [
        (
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            json!({"dnsPolicy": "None"}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"terminationGracePeriodSeconds": -1}),
            "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (json!({"hostname": "A"}), "spec.hostname: Invalid value: \"A\": a lowercase RFC 1123 label"),
        (json!({"nodeSelector": {"a b": "c"}}), "spec.nodeSelector: Invalid value: \"a b\""),
        (
            json!({"tolerations": [{"value": "x"}]}),
            "spec.tolerations[0].operator: Invalid value: null: operator must be Exists when `key` is empty",
        ),
        (
            json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3}]}),
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            json!({"hostAliases": [{"ip": "1.2.3"}]}),
            "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address",
        ),
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        ),
        (json!({"initContainers": [{"name": "a", "image": "x"}]}), "spec.containers[0].name: Duplicate value: \"a\""),
        (
            json!({"initContainers": [{"name": "i", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
    ] {
        check(&pod(spec), &[expected]);
    }
}

/// Each container must give the fault; a limit is copied to the request, so that its fault may stand at both.
#[track_caller]
fn check_containers(table: Vec<(Value, &str)>) {
    for (fields, expected) in table {
        let found = faults(&container(fields));
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "found {found:#?}\nexpected {expected}");
        assert!(found.len() <= 2, "{found:#?}");
    }
}

#[test]
fn container_rules() {
    check_containers(vec![
        (json!({"name": "A"}), "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"),
        (
            json!({"image": " nginx"}),
            "spec.containers[0].image: Invalid value: \" nginx\": must not have leading or trailing whitespace",
        ),
        (
            json!({"imagePullPolicy": "Often"}),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"env": [{"name": "A=B"}]}),
            "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {}}]}),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`",
        ),
        (
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\": supported values: \"metadata.name\"",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "a"}}}]}),
            "spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value",
        ),
        (
            json!({"envFrom": [{}]}),
            "spec.containers[0].envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ),
        (
            json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]}),
            "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"containerPort": 1, "name": "UPPER"}]}),
            "spec.containers[0].ports[0].name: Invalid value: \"UPPER\": must contain only alpha-numeric",
        ),
        (
            json!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}]}),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP/80\"",
        ),
    ]);
}

#[test]
fn probe_and_resource_rules() {
    check_containers(vec![
        (json!({"livenessProbe": {}}), "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}}),
            "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": "web"}}}),
            "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: \"web\": must be the name of a port",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"readinessProbe": {"exec": {"command": []}}}),
            "spec.containers[0].readinessProbe.exec.command: Required value",
        ),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"resources": {"limits": {"memory": "-1"}}}),
            "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            json!({"resources": {"limits": {"disk": "1"}}}),
            "spec.containers[0].resources.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
        ),
        (
            json!({"resources": {"limits": {"memory": "64MB"}}}),
            "spec.containers[0].resources.limits[memory]: Invalid value: \"64MB\": ",
        ),
        (
            json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
            "spec.containers[0].securityContext: Invalid value: ",
        ),
        (json!({"terminationMessagePolicy": "None"}), "spec.containers[0].terminationMessagePolicy: Unsupported value"),
        (
            json!({"lifecycle": {"preStop": {}}}),
            "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type",
        ),
    ]);
}

#[test]
fn workload_rules() {
    let deployment = |spec: Value| {
        let mut base = json!({
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}},
        });
        for (name, value) in spec.as_object().unwrap() {
            base[name] = value.clone();
        }
        base
    };
    let object = |kind: &str, spec: Value| {
        json_manifest(
            json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "a"}, "spec": deployment(spec)}),
        )
    };
    for (kind, spec, expected) in [
        (
            "Deployment",
            json!({"selector": {}}),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            "ReplicaSet",
            json!({"selector": {}}),
            "spec.selector: Invalid value: {}: empty selector is invalid for replicaset",
        ),
        (
            "DaemonSet",
            json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
            "spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
        ),
        (
            "Deployment",
            json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "Deployment",
            json!({"strategy": {"rollingUpdate": {"maxSurge": "x"}}}),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string",
        ),
        (
            "Deployment",
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (
            "Deployment",
            json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "Deployment",
            json!({"progressDeadlineSeconds": 5, "minReadySeconds": 5}),
            "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
        ),
        (
            "DaemonSet",
            json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
        (
            "DaemonSet",
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            "DaemonSet",
            json!({"updateStrategy": {"type": "Now"}}),
            "spec.updateStrategy.type: Unsupported value: \"Now\": supported values: \"RollingUpdate\", \"OnDelete\"",
        ),
    ] {
        check(&object(kind, spec), &[expected]);
    }
    check(&object("Deployment", json!({"strategy": {"type": "Recreate"}})), &[]);
    check(
        &object("DaemonSet", json!({"updateStrategy": {"rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}}})),
        &[],
    );
}
