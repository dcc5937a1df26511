//! What an update may not change.

use serde_json::{Map, Value};

use super::place::{At, Faults};
use crate::object::Object;

const IMMUTABLE: &str = "field is immutable";
const IMMUTABLE_WHEN_SET: &str = "field is immutable when `immutable` is set";
const POD_RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// Changed places of a Pod that are named.
const CHANGES_NAMED_MAX: usize = 8;

pub(super) fn object(old: &Object, new: &Object, faults: &mut Faults) {
    let (before, after) = (At::root(old.value()), At::root(new.value()));
    metadata(&before.field("metadata"), &after.field("metadata"), faults);
    match new.kind().name {
        "Pod" => pod(&before.field("spec"), &after.field("spec"), faults),
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            let (before, after) = (before.field("spec"), after.field("spec"));
            fixed(&before.field("selector"), &after.field("selector"), faults);
        }
        "Secret" => {
            fixed(&before.field("type"), &after.field("type"), faults);
            sealed(&before, &after, &["data"], faults);
        }
        "ConfigMap" => sealed(&before, &after, &["data", "binaryData"], faults),
        "ControllerRevision" => fixed(&before.field("data"), &after.field("data"), faults),
        "RuntimeClass" => fixed(&before.field("handler"), &after.field("handler"), faults),
        "PriorityClass" => {
            fixed(&before.field("value"), &after.field("value"), faults);
            fixed(&before.field("preemptionPolicy"), &after.field("preemptionPolicy"), faults);
        }
        "Override" => fixed(&before.field("spec"), &after.field("spec"), faults),
        "Node" => {
            let (before, after) = (before.field("spec"), after.field("spec"));
            let (provider, wanted) = (before.field("providerID"), after.field("providerID"));
            if provider.is_said() && provider.value != wanted.value {
                faults.forbidden(&wanted, "node updates may not change providerID except from \"\" to valid");
            }
        }
        _ => {}
    }
}

fn metadata(before: &At<'_>, after: &At<'_>, faults: &mut Faults) {
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        let (stored, wanted) = (before.field(name), after.field(name));
        // What the writer left out is filled from the stored object, not changed.
        if stored.is_said() && wanted.is_said() && stored.value != wanted.value {
            faults.invalid(&wanted, IMMUTABLE);
        }
    }
    let (stored, wanted) = (before.field("generation"), after.field("generation"));
    if wanted.number().is_some_and(|number| number < stored.number().unwrap_or(0)) {
        faults.invalid(&wanted, "must not be decremented");
    }
    // Once an object is going, nothing new may hold it back.
    if before.field("deletionTimestamp").is_said() {
        let known: Vec<&Value> = before.value["finalizers"].as_array().into_iter().flatten().collect();
        let finalizers = after.field("finalizers");
        let added: Vec<&str> = finalizers
            .items()
            .filter(|item| !known.contains(&item.value))
            .map(|item| item.value.as_str().unwrap_or(""))
            .collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            faults.forbidden(&finalizers, &why);
        }
    }
}

fn fixed(before: &At<'_>, after: &At<'_>, faults: &mut Faults) {
    if before.value != after.value {
        faults.invalid(after, IMMUTABLE);
    }
}

/// A ConfigMap or Secret with `immutable: true`.
fn sealed(before: &At<'_>, after: &At<'_>, contents: &[&str], faults: &mut Faults) {
    if !before.field("immutable").is_true() {
        return;
    }
    if !after.field("immutable").is_true() {
        faults.forbidden(&after.field("immutable"), IMMUTABLE_WHEN_SET);
    }
    for name in contents {
        if !same_content(&before.value[*name], &after.value[*name]) {
            faults.forbidden(&after.field(name), IMMUTABLE_WHEN_SET);
        }
    }
}

/// An absent map and an empty one say the same.
fn same_content(before: &Value, after: &Value) -> bool {
    let is_empty = |value: &Value| value.as_object().is_none_or(Map::is_empty);
    before == after || is_empty(before) && is_empty(after)
}

fn pod(before: &At<'_>, after: &At<'_>, faults: &mut Faults) {
    for list in ["containers", "initContainers"] {
        let (old, new) = (before.field(list), after.field(list));
        if old.items().count() != new.items().count() {
            faults.forbidden(&new, "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(&before.field("activeDeadlineSeconds"), &after.field("activeDeadlineSeconds"), faults);
    let (old, new) = (before.field("tolerations"), after.field("tolerations"));
    if !only_added(&old, &new) {
        faults.forbidden(&new, "existing toleration can not be modified except its tolerationSeconds");
    }
    let mut allowed = after.value.clone();
    adopt(&mut allowed, before.value);
    if allowed != *before.value {
        let mut changes = Vec::new();
        differences("spec", before.value, &allowed, &mut changes);
        faults.forbidden(after, &format!("{POD_RULE}; changed: {}", changes.join(", ")));
    }
}

/// A deadline may be set or brought nearer.
fn deadline(before: &At<'_>, after: &At<'_>, faults: &mut Faults) {
    match (before.number(), after.number()) {
        (Some(old), Some(new)) if new > old => {
            faults.invalid(after, "must be less than or equal to previous value");
        }
        (Some(_), None) => faults.invalid(after, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

/// Every old toleration is still there, but for its `tolerationSeconds`.
fn only_added(before: &At<'_>, after: &At<'_>) -> bool {
    let without_seconds = |item: &Value| {
        let mut item = item.clone();
        if let Some(map) = item.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        item
    };
    let kept: Vec<Value> = after.items().map(|item| without_seconds(item.value)).collect();
    before.items().all(|item| kept.contains(&without_seconds(item.value)))
}

/// Takes over from the stored spec what an update may change, so that what still differs may not.
fn adopt(spec: &mut Value, stored: &Value) {
    let Some(map) = spec.as_object_mut() else { return };
    for list in ["containers", "initContainers"] {
        let pairs = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in pairs.zip(stored[list].as_array().into_iter().flatten()) {
            copy(container, old, "image");
        }
    }
    let (was_negative, is_one) = (
        stored["terminationGracePeriodSeconds"].as_i64().is_some_and(|old| old < 0),
        map.get("terminationGracePeriodSeconds") == Some(&1.into()),
    );
    // A scheduler binds a Pod by an update: there is no `binding` subresource here.
    let is_bound = stored["nodeName"].as_str().is_some_and(|name| !name.is_empty());
    // A gate may be lifted, never set.
    let gates = stored["schedulingGates"].as_array().cloned().unwrap_or_default();
    let lifted = map
        .get("schedulingGates")
        .and_then(Value::as_array)
        .is_none_or(|left| left.iter().all(|gate| gates.contains(gate)));
    for (name, may) in [
        ("activeDeadlineSeconds", true),
        ("tolerations", true),
        ("terminationGracePeriodSeconds", was_negative && is_one),
        ("nodeName", !is_bound),
        ("schedulingGates", lifted),
    ] {
        if may {
            copy(spec, stored, name);
        }
    }
}

fn copy(to: &mut Value, from: &Value, name: &str) {
    let (Some(to), Some(from)) = (to.as_object_mut(), from.as_object()) else { return };
    match from.get(name) {
        Some(value) => to.insert(name.to_owned(), value.clone()),
        None => to.remove(name),
    };
}

fn differences(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    if before == after || found.len() >= CHANGES_NAMED_MAX {
        return;
    }
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|name| !old.contains_key(*name));
            for name in old.keys().chain(added) {
                differences(&format!("{path}.{name}"), &before[name], &after[name], found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                differences(&format!("{path}[{index}]"), old, new, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}
