//! DaemonSets, Deployments, ReplicaSets and their revisions.

use flotilla_manifests::label::Selector;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, NONE, age, always, count, integer, labels_text, list, none_if_empty, wide};

const CONTAINERS: Column = wide("Containers", "Names of the template's containers");
const IMAGES: Column = wide("Images", "Images of the template's containers");
const SELECTOR: Column = wide("Selector", "Labels of the pods it owns");

pub(super) const DAEMON_SET_COLUMNS: &[Column] = &[
    NAME,
    count("Desired", "Nodes that should run the pod"),
    count("Current", "Nodes that run it"),
    count("Ready", "Nodes on which it is ready"),
    count("Up-to-date", "Nodes that run the newest template"),
    count("Available", "Nodes on which it has been ready long enough"),
    always("Node Selector", "Labels of the nodes that should run it"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
    wide("Silent", "Devices among them that are not in contact: what they run is as last heard"),
];

/// Annotation: how many of a workload's devices are not in contact.
const SILENT: &str = "flotilla.dev/silent";

pub(super) fn daemon_set_cells(set: &Object, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        set.name().into(),
        integer(set, "/status/desiredNumberScheduled").into(),
        integer(set, "/status/currentNumberScheduled").into(),
        integer(set, "/status/numberReady").into(),
        integer(set, "/status/updatedNumberScheduled").into(),
        integer(set, "/status/numberAvailable").into(),
        labels_text(set.at("/spec/template/spec/nodeSelector")).into(),
        age(set, now),
    ];
    cells.extend(template_cells(set));
    cells.push(none_if_empty(set.annotation(SILENT).unwrap_or("")).into());
    cells
}

pub(super) const DEPLOYMENT_COLUMNS: &[Column] = &[
    NAME,
    always("Ready", "Ready pods of wanted pods"),
    count("Up-to-date", "Pods of the newest template"),
    count("Available", "Pods that have been ready long enough"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn deployment_cells(deployment: &Object, now: Timestamp) -> Vec<Value> {
    let ready = integer(deployment, "/status/readyReplicas");
    let mut cells = vec![
        deployment.name().into(),
        format!("{ready}/{}", wanted(deployment)).into(),
        integer(deployment, "/status/updatedReplicas").into(),
        integer(deployment, "/status/availableReplicas").into(),
        age(deployment, now),
    ];
    cells.extend(template_cells(deployment));
    cells
}

pub(super) const REPLICA_SET_COLUMNS: &[Column] = &[
    NAME,
    count("Desired", "Wanted pods"),
    count("Current", "Existing pods"),
    count("Ready", "Ready pods"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn replica_set_cells(set: &Object, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        set.name().into(),
        wanted(set).into(),
        integer(set, "/status/replicas").into(),
        integer(set, "/status/readyReplicas").into(),
        age(set, now),
    ];
    cells.extend(template_cells(set));
    cells
}

pub(super) const REVISION_COLUMNS: &[Column] =
    &[NAME, always("Controller", "What it is a revision of"), count("Revision", "Its number"), AGE];

pub(super) fn revision_cells(revision: &Object, now: Timestamp) -> Vec<Value> {
    let controller = revision.controller().map(|owner| {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = owner.kind.to_lowercase();
        if group.is_empty() { format!("{kind}/{}", owner.name) } else { format!("{kind}.{group}/{}", owner.name) }
    });
    vec![
        revision.name().into(),
        controller.unwrap_or_else(|| NONE.to_owned()).into(),
        integer(revision, "/revision").into(),
        age(revision, now),
    ]
}

/// `spec.replicas`, which is 1 when nobody has said.
fn wanted(object: &Object) -> i64 {
    object.at("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)
}

fn template_cells(object: &Object) -> [Value; 3] {
    let containers = list(object.value(), "/spec/template/spec/containers");
    let join = |field: &str| {
        let texts: Vec<&str> = containers.iter().filter_map(|container| container[field].as_str()).collect();
        texts.join(",")
    };
    let selector = Selector::of_json(object.at("/spec/selector"), "spec.selector").map(|selector| selector.to_string());
    [join("name").into(), join("image").into(), none_if_empty(&selector.unwrap_or_default()).into()]
}
