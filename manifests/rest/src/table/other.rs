//! Configuration, namespaces, events, runtime classes, overrides, and the fallback for any kind.

use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::{
    AGE, Cell, Column, NAME, NONE, View, age, always, count, duration, integer, list, none_if_empty, since,
    text_or_none, wide,
};

pub(super) const ANY_COLUMNS: &[Column] = &[NAME, AGE];

pub(super) fn any_cells(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), age(object, now)]
}

pub(super) const CONFIG_MAP_COLUMNS: &[Column] = &[NAME, count("Data", "Number of entries"), AGE];

pub(super) fn config_map_cells(map: &Object, now: Timestamp) -> Vec<Value> {
    vec![map.name().into(), (entries(map, "/data") + entries(map, "/binaryData")).into(), age(map, now)]
}

pub(super) const SECRET_COLUMNS: &[Column] =
    &[NAME, always("Type", "What the secret is for"), count("Data", "Number of entries"), AGE];

pub(super) fn secret_cells(secret: &Object, now: Timestamp) -> Vec<Value> {
    vec![secret.name().into(), secret.text("/type").into(), entries(secret, "/data").into(), age(secret, now)]
}

fn entries(object: &Object, pointer: &str) -> usize {
    object.at(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

pub(super) const SERVICE_ACCOUNT_COLUMNS: &[Column] = &[NAME, count("Secrets", "Number of its secrets"), AGE];

pub(super) fn service_account_cells(account: &Object, now: Timestamp) -> Vec<Value> {
    vec![account.name().into(), list(account.value(), "/secrets").len().into(), age(account, now)]
}

pub(super) const NAMESPACE_COLUMNS: &[Column] = &[NAME, always("Status", "Active or Terminating"), AGE];

pub(super) fn namespace_cells(namespace: &Object, now: Timestamp) -> Vec<Value> {
    vec![namespace.name().into(), namespace.text("/status/phase").into(), age(namespace, now)]
}

pub(super) const RUNTIME_CLASS_COLUMNS: &[Column] = &[NAME, always("Handler", "What runs the containers"), AGE];

pub(super) fn runtime_class_cells(class: &Object, now: Timestamp) -> Vec<Value> {
    vec![class.name().into(), class.text("/handler").into(), age(class, now)]
}

pub(super) const PRIORITY_CLASS_COLUMNS: &[Column] = &[
    NAME,
    count("Value", "Pods of a higher value go first"),
    always("Global-Default", "Whether Pods without a class get it"),
    AGE,
    always("PreemptionPolicy", "Whether its Pods may take the place of others"),
];

pub(super) fn priority_class_cells(class: &Object, now: Timestamp) -> Vec<Value> {
    let is_default = class.at("/globalDefault").and_then(Value::as_bool).unwrap_or(false);
    vec![
        class.name().into(),
        integer(class, "/value").into(),
        is_default.to_string().into(),
        age(class, now),
        class.text("/preemptionPolicy").into(),
    ]
}

pub(super) const LEASE_COLUMNS: &[Column] = &[NAME, always("Holder", "Who has it"), AGE];

pub(super) fn lease_cells(lease: &Object, now: Timestamp) -> Vec<Value> {
    vec![lease.name().into(), lease.text("/spec/holderIdentity").into(), age(lease, now)]
}

pub(super) const EVENT_COLUMNS: &[Column] = &[
    always("Last Seen", "Time since it last happened"),
    always("Type", "Normal or Warning"),
    always("Reason", "Why, in one word"),
    always("Object", "What it is about"),
    wide("Subobject", "Which part of it"),
    wide("Source", "Who says so"),
    always("Message", "What happened"),
    wide("First Seen", "Time since it first happened"),
    wide("Count", "How often it happened"),
    Column { name: "Name", cell: Cell::Name, view: View::Wide, description: "Name of the event" },
];

pub(super) fn event_cells(event: &Object, now: Timestamp) -> Vec<Value> {
    let time = |pointer: &str| Timestamp::parse(event.text(pointer));
    let first = time("/firstTimestamp").or_else(|| time("/eventTime"));
    let last = time("/series/lastObservedTime").or_else(|| time("/lastTimestamp")).or(first);
    let number = match event.at("/series/count").and_then(Value::as_i64) {
        Some(number) => number,
        None => integer(event, "/count").max(1),
    };
    let kind = event.text("/involvedObject/kind").to_lowercase();
    let target = match event.text("/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = match event.text("/source/component") {
        "" => event.text("/reportingComponent"),
        component => component,
    };
    let source = match event.text("/source/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        since(last, now).into(),
        event.text("/type").into(),
        event.text("/reason").into(),
        target.into(),
        event.text("/involvedObject/fieldPath").into(),
        source.into(),
        event.text("/message").trim().into(),
        since(first, now).into(),
        number.to_string().into(),
        event.name().into(),
    ]
}

pub(super) const OVERRIDE_COLUMNS: &[Column] = &[
    NAME,
    always("Node", "The device it stands on"),
    always("Target", "What it changes there"),
    always("Author", "Who made it"),
    always("Changed", "Each field, what the manifest says, and what holds instead"),
    always("Reason", "Why, in the author's words"),
    AGE,
    wide("Expires", "When it ends by itself"),
    wide("Phase", "Whether it applies"),
];

/// Characters of one value in the Changed column.
const VALUE_CHARACTERS_MAX: usize = 40;
/// Operations listed in the Changed column.
const OPERATIONS_LISTED_MAX: usize = 3;

pub(super) fn override_cells(object: &Object, now: Timestamp) -> Vec<Value> {
    let made = Timestamp::parse(object.text("/spec/time")).or_else(|| object.creation_timestamp());
    let expires = match Timestamp::parse(object.text("/spec/expires")) {
        None => NONE.to_owned(),
        Some(at) if at <= now => "expired".to_owned(),
        Some(at) => duration(i128::from(at.0) - i128::from(now.0)),
    };
    let target = format!("{}/{}", object.text("/spec/target/kind").to_lowercase(), object.text("/spec/target/name"));
    vec![
        object.name().into(),
        text_or_none(object, "/spec/nodeName"),
        target.into(),
        text_or_none(object, "/spec/author"),
        changed(list(object.value(), "/spec/operations")).into(),
        text_or_none(object, "/spec/reason"),
        since(made, now).into(),
        expires.into(),
        text_or_none(object, "/status/phase"),
    ]
}

/// `spec.replicas: 3 -> 0; spec.paused: <none> -> true; +2 more`
fn changed(operations: &[Value]) -> String {
    let mut parts: Vec<String> = operations
        .iter()
        .take(OPERATIONS_LISTED_MAX)
        .map(|operation| {
            let path = operation["path"].as_str().unwrap_or("");
            let after = if operation["op"] == "remove" { NONE.to_owned() } else { short(operation.get("value")) };
            format!("{path}: {} -> {after}", short(operation.pointer("/replaced/value")))
        })
        .collect();
    if operations.len() > OPERATIONS_LISTED_MAX {
        parts.push(format!("+{} more", operations.len() - OPERATIONS_LISTED_MAX));
    }
    none_if_empty(&parts.join("; ")).to_owned()
}

fn short(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return NONE.to_owned(),
        Some(Value::String(text)) => text.replace(['\n', '\r', '\t'], " "),
        Some(other) => other.to_string(),
    };
    if text.chars().count() <= VALUE_CHARACTERS_MAX {
        return text;
    }
    text.chars().take(VALUE_CHARACTERS_MAX - 1).chain(['\u{2026}']).collect()
}
