use flotilla_manifests::decode;
use flotilla_manifests::kind;

use super::*;

/// 2026-01-01T01:00:00Z
const NOW: &str = "2026-01-01T01:00:00Z";

fn now() -> Timestamp {
    Timestamp::parse(NOW).unwrap()
}

fn cells_of(yaml: &str) -> Vec<String> {
    let object = decode::object(yaml.as_bytes(), decode::Format::Yaml).unwrap().value;
    let columns = Columns::of(object.kind());
    let row = columns.row(&object, now(), MetaVersion::V1, IncludeObject::None);
    assert_eq!(row.cells.len(), columns.columns.len(), "one cell for each column of {}", object.kind());
    row.cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect()
}

#[test]
fn every_kind_has_a_row_even_of_an_empty_object() {
    for kind in kind::ALL {
        let columns = Columns::of(kind);
        let object = Object::empty(kind, "default", "x");
        let row = columns.row(&object, now(), MetaVersion::V1, IncludeObject::Metadata);
        assert_eq!(row.cells.len(), columns.columns.len(), "{kind}");
        assert_eq!(columns.columns.iter().filter(|column| column.cell == Cell::Name).count(), 1, "{kind}");
    }
}

#[test]
fn durations_read_as_kubectls() {
    let check = |seconds: i128, expected: &str| assert_eq!(duration(seconds * 1000), expected, "{seconds} s");
    check(-10, "<invalid>");
    check(-1, "0s");
    check(119, "119s");
    check(120, "2m");
    check(190, "3m10s");
    check(10 * 60 + 5, "10m");
    check(179 * 60, "179m");
    check(3 * 3600, "3h");
    check(7 * 3600 + 59 * 60, "7h59m");
    check(8 * 3600 + 59 * 60, "8h");
    check(47 * 3600, "47h");
    check(49 * 3600, "2d1h");
    check(7 * 86400, "7d");
    check(100 * 86400, "100d");
    check(800 * 86400, "2y70d");
    check(3000 * 86400, "8y");
}

/// A pod whose status is the given YAML, indented by two.
fn pod(spec: &str, status: &str) -> Vec<String> {
    cells_of(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, creationTimestamp: 2026-01-01T00:00:00Z}}\nspec: {spec}\nstatus: {status}"
    ))
}

const ONE: &str = "{nodeName: n1, containers: [{name: a}]}";
const TWO: &str = "{containers: [{name: a}, {name: b}]}";

#[test]
fn pods_that_run() {
    let cells = pod(
        ONE,
        "{phase: Running, podIP: 10.0.0.7, containerStatuses: [{name: a, ready: true, restartCount: 3, state: {running: {}},
          lastState: {terminated: {exitCode: 1, finishedAt: 2026-01-01T00:55:00Z}}}]}",
    );
    assert_eq!(cells, ["web", "1/1", "Running", "3 (5m ago)", "60m", "10.0.0.7", "n1", "<none>", "<none>"]);
    let gated = pod(
        "{readinessGates: [{conditionType: a/b}, {conditionType: c/d}], containers: [{name: a}]}",
        "{phase: Pending, conditions: [{type: a/b, status: 'True'}]}",
    );
    assert_eq!(gated, ["web", "0/1", "Pending", "0", "60m", "<none>", "<none>", "<none>", "1/2"]);
}

#[test]
fn pod_status_by_kubectls_rules() {
    let check = |spec: &str, status: &str, ready: &str, expected: &str| {
        let cells = pod(spec, status);
        assert_eq!((cells[1].as_str(), cells[2].as_str()), (ready, expected), "{spec} {status}");
    };
    check(ONE, "{phase: Pending}", "0/1", "Pending");
    check(ONE, "{phase: Failed, reason: Evicted}", "0/1", "Evicted");
    let waiting =
        |reason: &str| format!("{{phase: Running, containerStatuses: [{{state: {{waiting: {{reason: {reason}}}}}}}]}}");
    check(ONE, &waiting("CrashLoopBackOff"), "0/1", "CrashLoopBackOff");
    check(ONE, &waiting("ImagePullBackOff"), "0/1", "ImagePullBackOff");
    let ended =
        |terminated: &str| format!("{{phase: Running, containerStatuses: [{{state: {{terminated: {terminated}}}}}]}}");
    check(ONE, &ended("{exitCode: 0, reason: Completed}"), "0/1", "Completed");
    check(ONE, &ended("{exitCode: 3}"), "0/1", "ExitCode:3");
    check(ONE, &ended("{exitCode: 137, signal: 9}"), "0/1", "Signal:9");
    let half = "containerStatuses: [{state: {terminated: {reason: Completed}}}, {ready: true, state: {running: {}}}]";
    check(TWO, &format!("{{phase: Running, {half}}}"), "1/2", "NotReady");
    let conditions = "conditions: [{type: Ready, status: 'True'}]";
    check(TWO, &format!("{{phase: Running, {half}, {conditions}}}"), "1/2", "Running");
    let gates = "{phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}";
    check(ONE, gates, "0/1", "SchedulingGated");
}

#[test]
fn pods_that_initialise() {
    let spec = "{initContainers: [{name: x}, {name: y}], containers: [{name: a}]}";
    let check = |statuses: &str, expected: &str| {
        let cells = pod(spec, &format!("{{phase: Pending, initContainerStatuses: {statuses}}}"));
        assert_eq!(cells[2], expected, "{statuses}");
    };
    check("[{state: {running: {}}}, {state: {waiting: {reason: PodInitializing}}}]", "Init:0/2");
    check("[{state: {terminated: {exitCode: 0}}}, {state: {waiting: {reason: PodInitializing}}}]", "Init:1/2");
    check("[{state: {waiting: {reason: CrashLoopBackOff}}}]", "Init:CrashLoopBackOff");
    check("[{state: {terminated: {exitCode: 2}}}]", "Init:ExitCode:2");
    check("[{state: {terminated: {exitCode: 1, reason: Error}}}]", "Init:Error");
    let sidecar = pod(
        "{initContainers: [{name: x, restartPolicy: Always}], containers: [{name: a}]}",
        "{phase: Running, initContainerStatuses: [{name: x, started: true, ready: true, restartCount: 1, state: {running: {}}}],
          containerStatuses: [{name: a, ready: true, restartCount: 1, state: {running: {}}}]}",
    );
    assert_eq!((sidecar[1].as_str(), sidecar[2].as_str(), sidecar[3].as_str()), ("2/2", "Running", "2"));
}

#[test]
fn pods_that_go() {
    let going = |phase: &str, reason: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, deletionTimestamp: {NOW}}}\nspec: {ONE}\nstatus: {{phase: {phase}, reason: '{reason}'}}"
        );
        cells_of(&yaml)[2].clone()
    };
    assert_eq!(going("Running", ""), "Terminating");
    assert_eq!(going("Succeeded", ""), "Succeeded");
    assert_eq!(going("Running", "NodeLost"), "Unknown");
}

#[test]
fn nodes_tell_site_contact_and_sync() {
    let node = |ready: &str, unschedulable: bool| {
        cells_of(&format!(
            "apiVersion: v1
kind: Node
metadata:
  name: n1
  creationTimestamp: 2025-12-30T00:00:00Z
  labels: {{flotilla.dev/site: mill, node-role.kubernetes.io/edge: '', node-role.kubernetes.io/camera: ''}}
  annotations: {{flotilla.dev/last-seen: '2026-01-01T00:59:18Z', flotilla.dev/sync: behind, flotilla.dev/road: 'quic udp 10.0.0.9:4'}}
spec: {{unschedulable: {unschedulable}}}
status:
  conditions: [{{type: Ready, status: '{ready}'}}]
  nodeInfo: {{kubeletVersion: v0.1.0, osImage: Debian, kernelVersion: '6.1', containerRuntimeVersion: process://1}}
  addresses: [{{type: Hostname, address: n1}}, {{type: InternalIP, address: 10.1.1.1}}]"
        ))
    };
    assert_eq!(
        node("True", false),
        [
            "n1",
            "Ready",
            "camera,edge",
            "2d1h",
            "v0.1.0",
            "mill",
            "42s",
            "behind",
            "10.1.1.1",
            "<none>",
            "Debian",
            "6.1",
            "process://1",
            "quic udp 10.0.0.9:4"
        ]
    );
    assert_eq!(node("False", true)[1], "NotReady,SchedulingDisabled");
    assert_eq!(node("Unknown", false)[1], "Unknown", "unknown is never shown as failed");
    let bare = cells_of("apiVersion: v1\nkind: Node\nmetadata: {name: n2}");
    assert_eq!(bare[1..8], ["Unknown", "<none>", "<unknown>", "", "<none>", "<none>", "<none>"]);
}

#[test]
fn workloads() {
    let template = "selector: {matchLabels: {app: web}}, template: {spec: {nodeSelector: {b: '2', a: '1'}, containers: [{name: a, image: x:1}, {name: b, image: z}]}}";
    let workload = |kind: &str, spec: &str, status: &str| {
        cells_of(&format!(
            "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web, creationTimestamp: 2026-01-01T00:59:55Z, annotations: {{flotilla.dev/silent: '2'}}}}\nspec: {{{spec}{template}}}\nstatus: {status}"
        ))
    };
    let status = "{desiredNumberScheduled: 5, currentNumberScheduled: 4, numberReady: 3, updatedNumberScheduled: 2, numberAvailable: 1}";
    let daemon_set = workload("DaemonSet", "", status);
    assert_eq!(daemon_set, ["web", "5", "4", "3", "2", "1", "a=1,b=2", "5s", "a,b", "x:1,z", "app=web", "2"]);
    let status = "{replicas: 3, readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}";
    let deployment = workload("Deployment", "replicas: 3, ", status);
    assert_eq!(deployment, ["web", "1/3", "2", "1", "5s", "a,b", "x:1,z", "app=web"]);
    assert_eq!(workload("ReplicaSet", "replicas: 0, ", status)[1..4], ["0", "3", "1"]);
    assert_eq!(workload("ReplicaSet", "", "{}")[1..4], ["1", "0", "0"]);
    let revision = cells_of(
        "apiVersion: apps/v1\nkind: ControllerRevision\nmetadata: {name: web-1, ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: web, uid: u, controller: true}]}\nrevision: 4",
    );
    assert_eq!(revision[..3], ["web-1", "daemonset.apps/web", "4"]);
}

#[test]
fn configuration_and_namespaces() {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b, c: d}\nbinaryData: {e: AA==}";
    assert_eq!(cells_of(map)[..2], ["c", "3"]);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: Opaque\ndata: {a: AA==}";
    assert_eq!(cells_of(secret)[..3], ["s", "Opaque", "1"]);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\nstatus: {phase: Terminating}";
    assert_eq!(cells_of(namespace)[..2], ["x", "Terminating"]);
    let class = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: process}\nhandler: process";
    assert_eq!(cells_of(class)[..2], ["process", "process"]);
}

#[test]
fn events() {
    let event = cells_of(
        "apiVersion: v1
kind: Event
metadata: {name: web.1}
involvedObject: {kind: Pod, name: web, fieldPath: 'spec.containers{a}'}
type: Warning
reason: BackOff
message: \"restarting\\n\"
count: 7
source: {component: agent, host: n1}
firstTimestamp: 2026-01-01T00:00:00Z
lastTimestamp: 2026-01-01T00:59:30Z",
    );
    assert_eq!(
        event,
        ["30s", "Warning", "BackOff", "pod/web", "spec.containers{a}", "agent, n1", "restarting", "60m", "7", "web.1"]
    );
    let series = cells_of(
        "{apiVersion: v1, kind: Event, metadata: {name: e}, involvedObject: {kind: Node}, eventTime: '2026-01-01T00:58:00.000000Z', series: {count: 3, lastObservedTime: '2026-01-01T00:59:59.000000Z'}, reportingComponent: hub}",
    );
    assert_eq!(series, ["1s", "", "", "node", "", "hub", "", "2m", "3", "e"]);
}

#[test]
fn overrides_say_who_when_and_what_they_replaced() {
    let row = cells_of(
        "apiVersion: flotilla.dev/v1alpha1
kind: Override
metadata: {name: n1.7}
spec:
  nodeName: n1
  target: {apiVersion: apps/v1, kind: DaemonSet, name: web, uid: u}
  author: maria
  reason: pump is loud
  time: '2026-01-01T00:50:00Z'
  expires: '2026-01-01T03:00:00Z'
  operations:
  - {op: set, path: spec.replicas, replaced: {digest: d, value: 3}, value: 0}
  - {op: set, path: spec.paused, value: true}
  - {op: remove, path: spec.note, replaced: {digest: d, value: \"a\\nb\"}}
  - {op: set, path: spec.other, value: 1}",
    );
    let changed = "spec.replicas: 3 -> 0; spec.paused: <none> -> true; spec.note: a b -> <none>; +1 more";
    assert_eq!(row, ["n1.7", "n1", "daemonset/web", "maria", changed, "pump is loud", "10m", "120m", "<none>"]);
}

#[test]
fn definitions_name_types_and_priorities() {
    let definitions = Columns::of(&kind::POD).definitions();
    let names: Vec<&str> = definitions.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"]
    );
    assert_eq!(definitions[0]["format"], "name");
    assert_eq!((&definitions[4]["priority"], &definitions[5]["priority"]), (&json!(0), &json!(1)));
    let object = Object::empty(&kind::POD, "d", "x");
    let row = Columns::of(&kind::POD).row(&object, now(), MetaVersion::V1Beta1, IncludeObject::Metadata);
    let row = serde_json::to_value(row).unwrap();
    assert_eq!(row["object"]["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(row["object"]["metadata"]["name"], "x");
}
