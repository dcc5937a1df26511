//! Kubernetes' defaults for every served kind, from its documentation. Idempotent.
//!
//! Owns what a stored object says where its author said nothing. Refuses rules (`validate`) and anything that needs a clock, a random
//! number or another object. Start at [`apply`].

use serde_json::{Map, Value, json};

use crate::object::Object;
use crate::quantity::Quantity;
use crate::schema::{self, Schema, Type};

mod pod;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

/// Fills what the user left out, as kube-apiserver stores it: field defaults of the kind, `stringData` of a Secret merged into `data`,
/// the name label and finalizer of a Namespace, the `default` ServiceAccount of a Pod, quantities in their canonical form. The name
/// must be final. Leaves values of a wrong type alone (`schema::type_errors` names them). Applying it again changes nothing.
pub fn apply(object: &mut Object) {
    let kind = object.kind();
    if let Some(root) = object.value_mut().as_object_mut() {
        match kind.name {
            "Pod" => pod::whole(root),
            "Deployment" => deployment(root),
            "ReplicaSet" => replica_set(root),
            "DaemonSet" => daemon_set(root),
            "Secret" => secret(root),
            "Namespace" => namespace(root),
            "Node" => node(root),
            "PriorityClass" => {
                zero(root, "preemptionPolicy", "PreemptLowerPriority");
                absent(root, "value", 0);
            }
            _ => {}
        }
    }
    canonical_quantities(schema::of(kind), object.value_mut());
}

/// A field that Kubernetes keeps as a pointer: absent is the only way to say nothing.
fn absent(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    if map.get(name).is_none_or(Value::is_null) {
        map.insert(name.to_owned(), value.into());
    }
}

/// A field that Kubernetes keeps as a plain value: zero and the empty text say nothing too.
fn zero(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let says_nothing = match map.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(_) => false,
    };
    if says_nothing {
        map.insert(name.to_owned(), value.into());
    }
}

/// The object in a field, if there is one.
fn inside<'a>(map: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(name)?.as_object_mut()
}

/// The object in a field, made if the field is absent; `None` where something else stands.
fn made<'a>(map: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    absent(map, name, Map::new());
    inside(map, name)
}

/// The objects of the list in a field.
fn each<'a>(map: &'a mut Map<String, Value>, name: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn deployment(root: &mut Map<String, Value>) {
    let Some(spec) = inside(root, "spec") else { return };
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    absent(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = made(spec, "strategy") {
        zero(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            absent(rolling, "maxUnavailable", "25%");
            absent(rolling, "maxSurge", "25%");
        }
    }
    template(spec);
}

fn replica_set(root: &mut Map<String, Value>) {
    let Some(spec) = inside(root, "spec") else { return };
    absent(spec, "replicas", 1);
    template(spec);
}

fn daemon_set(root: &mut Map<String, Value>) {
    let Some(spec) = inside(root, "spec") else { return };
    absent(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = made(spec, "updateStrategy") {
        zero(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            absent(rolling, "maxUnavailable", 1);
            absent(rolling, "maxSurge", 0);
        }
    }
    template(spec);
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(pod_spec) = inside(spec, "template").and_then(|template| inside(template, "spec")) {
        pod::spec(pod_spec);
    }
}

fn secret(root: &mut Map<String, Value>) {
    use base64::Engine as _;
    zero(root, "type", "Opaque");
    let texts = root.get("stringData").and_then(Value::as_object);
    if texts.is_none_or(|texts| !texts.values().all(Value::is_string)) {
        return;
    }
    let Some(Value::Object(texts)) = root.remove("stringData") else { return };
    if texts.is_empty() {
        return;
    }
    let Some(data) = made(root, "data") else {
        root.insert("stringData".to_owned(), Value::Object(texts));
        return;
    };
    for (key, text) in texts {
        let bytes = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or(""));
        data.insert(key, Value::String(bytes));
    }
}

fn namespace(root: &mut Map<String, Value>) {
    if let Some(metadata) = inside(root, "metadata")
        && let Some(name) = metadata.get("name").and_then(Value::as_str).filter(|name| !name.is_empty())
    {
        let name = name.to_owned();
        if let Some(labels) = made(metadata, "labels") {
            labels.insert("kubernetes.io/metadata.name".to_owned(), Value::String(name));
        }
    }
    let is_going = root.get("metadata").is_some_and(|metadata| metadata.get("deletionTimestamp").is_some());
    if let Some(spec) = made(root, "spec")
        && !is_going
    {
        absent(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = made(root, "status") {
        zero(status, "phase", "Active");
    }
}

fn node(root: &mut Map<String, Value>) {
    if let Some(status) = inside(root, "status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        absent(status, "allocatable", capacity);
    }
}

/// Writes quantities alone as they are stored, so that what is applied compares with what is there.
pub(crate) fn canonical(object: &mut Object) {
    let kind = object.kind();
    canonical_quantities(schema::of(kind), object.value_mut());
}

/// Writes every quantity in its canonical form, as kube-apiserver stores it: `0.5` as `500m`, the number 1 as `"1"`.
fn canonical_quantities(schema: Schema, value: &mut Value) {
    match (schema.node_type(), value) {
        (Type::Quantity, value) => {
            if let Ok(quantity) = Quantity::of_json(value) {
                *value = Value::String(quantity.to_string());
            }
        }
        (Type::Object, Value::Object(map)) => {
            for (name, value) in map {
                if let Some(field) = schema.field(name) {
                    canonical_quantities(field, value);
                }
            }
        }
        (Type::Map, Value::Object(map)) => {
            if let Some(values) = schema.items() {
                map.values_mut().for_each(|value| canonical_quantities(values, value));
            }
        }
        (Type::Array, Value::Array(list)) => {
            if let Some(items) = schema.items() {
                list.iter_mut().for_each(|item| canonical_quantities(items, item));
            }
        }
        _ => {}
    }
}
