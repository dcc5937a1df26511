//! The fields of `metadata` (and the first `status`) that the server alone writes.

use serde_json::{Map, Value, json};

use crate::api_error::{ApiError, Reason};
use crate::kind::{self, KindRef};
use crate::object::{Object, ObjectKey};

/// Fields an update takes over from the stored object, whatever its body says.
const SYSTEM_FIELDS: [&str; 7] =
    ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Fields that are nowhere stored.
const DROPPED_FIELDS: [&str; 2] = ["managedFields", "selfLink"];

/// Removes what is nowhere stored, empty maps and lists among it: to say nothing of labels is to have none.
pub(super) fn drop_unstored(object: &mut Object) {
    let metadata = object.metadata_mut();
    for field in DROPPED_FIELDS {
        metadata.remove(field);
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

pub(super) fn take_system_fields(object: &mut Object, stored: &Object) {
    drop_unstored(object);
    for field in SYSTEM_FIELDS.into_iter().chain(["resourceVersion"]) {
        set(object.metadata_mut(), field, stored.at("/metadata").and_then(|metadata| metadata.get(field)));
    }
}

/// Writes or removes one field.
pub(super) fn set(map: &mut Map<String, Value>, field: &str, value: Option<&Value>) {
    match value {
        Some(value) => drop(map.insert(field.to_owned(), value.clone())),
        None => drop(map.remove(field)),
    }
}

/// Whether objects of this kind count their specs in `metadata.generation`.
pub(super) fn has_generation(kind: KindRef) -> bool {
    match kind.group {
        "" => *kind == kind::POD,
        "apps" => *kind != kind::CONTROLLER_REVISION,
        group => group == "flotilla.dev",
    }
}

pub(super) fn raise_generation(object: &mut Object) {
    if has_generation(object.kind()) {
        let next = object.generation().saturating_add(1);
        object.metadata_mut().insert("generation".into(), next.into());
    }
}

/// Whether `status` is written through its own subresource only.
pub(super) fn has_status(kind: KindRef) -> bool {
    kind.subresources.contains(&"status")
}

/// The status a new object starts with, where a user may not say it.
pub(super) fn first_status(object: &Object) -> Option<Value> {
    match (object.kind().group, object.kind().name) {
        // A node is registered with its status, as a kubelet does it.
        ("", "Node") => object.status().cloned(),
        ("", "Pod") => Some(json!({"phase": "Pending"})),
        ("", "Namespace") => Some(json!({"phase": "Active"})),
        ("apps", "DaemonSet") => Some(json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        })),
        ("apps", "ReplicaSet") => Some(json!({"replicas": 0})),
        _ if has_status(object.kind()) => Some(json!({})),
        _ => object.status().cloned(),
    }
}

pub(super) fn set_phase(object: &mut Object, phase: &str) {
    let Some(map) = object.value_mut().as_object_mut() else { return };
    if let Some(status) = map.entry("status").or_insert_with(|| json!({})).as_object_mut() {
        status.insert("phase".into(), phase.into());
    }
}

/// The namespace of a body against that of the URL.
pub(super) fn take_namespace(object: &mut Object, key: &ObjectKey) -> Result<(), ApiError> {
    if object.namespace() == key.namespace {
        return Ok(());
    }
    if key.namespace.is_empty() {
        object.metadata_mut().remove("namespace");
        return Ok(());
    }
    if object.namespace().is_empty() {
        object.metadata_mut().insert("namespace".into(), key.namespace.clone().into());
        return Ok(());
    }
    let why = format!(
        "the namespace of the provided object ({}) does not match the namespace sent on the request ({})",
        object.namespace(),
        key.namespace
    );
    Err(ApiError::of(Reason::BadRequest, why).about(key))
}
