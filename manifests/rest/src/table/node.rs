//! Nodes: Kubernetes' columns, and where a device is, when it was heard and how far it is.

use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, NONE, age, always, list, none_if_empty, since, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    always("Status", "Ready, NotReady or Unknown, as last heard, and whether it takes new pods"),
    always("Roles", "The node's roles"),
    AGE,
    always("Version", "Version of the agent"),
    always("Site", "Devices of one site reach each other without the hub"),
    always("Seen", "Time since the device was last heard"),
    always("Sync", "Whether the device holds all that concerns it"),
    wide("Internal-IP", "Address inside its network"),
    wide("External-IP", "Address outside its network"),
    wide("OS-Image", "Operating system"),
    wide("Kernel-Version", "Kernel"),
    wide("Container-Runtime", "What runs its containers"),
    wide("Road", "How its session with the hub goes, and from where"),
];

/// Label: the node's site.
const SITE: &str = "flotilla.dev/site";
/// Annotation: RFC 3339 time of the last contact.
const LAST_SEEN: &str = "flotilla.dev/last-seen";
/// Annotation: a word on how far the device's copy is.
const SYNC: &str = "flotilla.dev/sync";
/// Annotation: the road of its session.
const ROAD: &str = "flotilla.dev/road";
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) fn cells(node: &Object, now: Timestamp) -> Vec<Value> {
    let info = |field: &str| {
        let text = node.text(&format!("/status/nodeInfo/{field}"));
        if text.is_empty() { super::UNKNOWN } else { text }.to_owned()
    };
    let seen = match node.annotation(LAST_SEEN) {
        None | Some("") => NONE.to_owned(),
        Some(text) => since(Timestamp::parse(text), now),
    };
    vec![
        node.name().into(),
        status(node).into(),
        roles(node).into(),
        age(node, now),
        node.text("/status/nodeInfo/kubeletVersion").into(),
        none_if_empty(node.label(SITE).unwrap_or("")).into(),
        seen.into(),
        none_if_empty(node.annotation(SYNC).unwrap_or("")).into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
        none_if_empty(node.annotation(ROAD).unwrap_or("")).into(),
    ]
}

/// Kubernetes prints `NotReady` for an unknown condition too; here unknown is never shown as failed (DESIGN, promise 5).
fn status(node: &Object) -> String {
    let ready = list(node.value(), "/status/conditions").iter().find(|row| row["type"] == "Ready");
    let word = match ready.and_then(|row| row["status"].as_str()) {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        _ => "Unknown",
    };
    let cordoned = node.at("/spec/unschedulable").and_then(Value::as_bool).unwrap_or(false);
    if cordoned { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

fn roles(node: &Object) -> String {
    let mut roles: Vec<String> = node
        .labels()
        .into_iter()
        .filter_map(|(name, value)| match name.strip_prefix(ROLE_PREFIX) {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            None if name == "kubernetes.io/role" && !value.is_empty() => Some(value),
            _ => None,
        })
        .collect();
    roles.sort();
    roles.dedup();
    none_if_empty(&roles.join(",")).to_owned()
}

fn address(node: &Object, kind: &str) -> String {
    let row = list(node.value(), "/status/addresses").iter().find(|row| row["type"] == kind);
    none_if_empty(row.and_then(|row| row["address"].as_str()).unwrap_or("")).to_owned()
}
