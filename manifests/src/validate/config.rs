//! ConfigMap, Secret, Namespace, Node, RuntimeClass, Event, Override.

use serde_json::Value;

use super::place::{At, Faults};
use super::{container, metadata, scheduling, text};
use crate::kind;
use crate::label::syntax;
use crate::overrides;

/// All values of one ConfigMap or Secret together.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const EVENT_MESSAGE_BYTES_MAX: usize = 1024;
const REASON_BYTES_MAX: usize = 1024;

pub(super) fn config_map(root: &At<'_>, faults: &mut Faults) {
    let (data, binary) = (root.field("data"), root.field("binaryData"));
    let mut total = 0;
    for (key, value) in data.entries() {
        key_syntax(&value, key, faults);
        total += value.text().len();
    }
    for (key, value) in binary.entries() {
        key_syntax(&value, key, faults);
        if !data.value[key].is_null() {
            faults.invalid_as(&value, &Value::from(key), "duplicate of key present in data");
        }
        total += bytes(&value, faults);
    }
    if total > DATA_BYTES_MAX {
        faults.too_long(&data, DATA_BYTES_MAX);
    }
}

pub(super) fn secret(root: &At<'_>, faults: &mut Faults) {
    let data = root.field("data");
    let mut total = 0;
    for (key, value) in data.entries() {
        key_syntax(&value, key, faults);
        total += bytes(&value, faults);
    }
    if total > DATA_BYTES_MAX {
        faults.too_long(&data, DATA_BYTES_MAX);
    }
    let required: &[&str] = match root.field("type").text() {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required {
        if data.value[*key].is_null() {
            let path = format!("{}[{key}]", data.path());
            faults.push("FieldValueRequired", path, "Required value".to_owned());
        }
    }
    if root.field("type").text() == "kubernetes.io/service-account-token" {
        let metadata = root.field("metadata");
        let annotations = metadata.field("annotations");
        if !annotations.field("kubernetes.io/service-account.name").is_said() {
            let path = format!("{}[kubernetes.io/service-account.name]", annotations.path());
            faults.push("FieldValueRequired", path, "Required value".to_owned());
        }
    }
}

fn key_syntax(value: &At<'_>, key: &str, faults: &mut Faults) {
    if let Err(why) = text::config_key(key) {
        faults.invalid_as(value, &Value::from(key), why);
    }
}

/// The length of what base64 holds. What is there is not shown: it may be a secret.
fn bytes(value: &At<'_>, faults: &mut Faults) -> usize {
    text::base64_bytes(value.text()).unwrap_or_else(|| {
        faults.invalid_as(value, &Value::from("<not shown>"), "must be base64 (standard alphabet, padded)");
        0
    })
}

pub(super) fn namespace(root: &At<'_>, faults: &mut Faults) {
    for item in root.field("spec").field("finalizers").items() {
        metadata::finalizer(&item, faults);
    }
}

pub(super) fn node(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    scheduling::taints(&spec.field("taints"), faults);
}

pub(super) fn runtime_class(root: &At<'_>, faults: &mut Faults) {
    faults.required_syntax(&root.field("handler"), syntax::dns_label);
    let (overhead, scheduling_at) = (root.field("overhead"), root.field("scheduling"));
    container::amounts(&overhead.field("podFixed"), faults);
    metadata::labels(&scheduling_at.field("nodeSelector"), faults);
}

pub(super) fn event(root: &At<'_>, faults: &mut Faults) {
    let involved = root.field("involvedObject");
    let about = involved.field("namespace");
    let metadata = root.field("metadata");
    let own = metadata.field("namespace");
    if about.is_said() && about.text() != own.text() {
        faults.invalid(&about, "does not match event.namespace");
    }
    if !about.is_said() && involved.is_said() && !matches!(own.text(), "default" | "kube-system") {
        faults.invalid_as(&about, &Value::from(""), "does not match event.namespace");
    }
    let message = root.field("message");
    if message.text().len() > EVENT_MESSAGE_BYTES_MAX {
        faults.too_long(&message, EVENT_MESSAGE_BYTES_MAX);
    }
}

pub(super) fn overriding(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    faults.required_syntax(&spec.field("nodeName"), syntax::dns_subdomain);
    let target = spec.field("target");
    let (api_version, kind_at) = (target.field("apiVersion"), target.field("kind"));
    let (group, _) = api_version.text().split_once('/').unwrap_or(("", api_version.text()));
    if kind_at.is_said() && kind::find(group, kind_at.text()).is_none() {
        let known: Vec<&str> = kind::ALL.iter().filter(|kind| kind.group == group).map(|kind| kind.name).collect();
        faults.unsupported(&kind_at, &known);
    }
    faults.required_syntax(&target.field("name"), syntax::dns_subdomain);
    faults.syntax(&target.field("namespace"), syntax::dns_label);
    let operations = spec.field("operations");
    let count = operations.items().count();
    if count == 0 {
        faults.required(&operations, "must have at least one operation");
    }
    if count > overrides::OPERATIONS_MAX {
        faults.too_many(&operations, count, overrides::OPERATIONS_MAX);
    }
    for operation in operations.items() {
        let (verb, path, value) = (operation.field("op"), operation.field("path"), operation.field("value"));
        faults.one_of(&verb, &["set", "remove"]);
        if path.is_said()
            && let Err(error) = path.text().parse::<overrides::Path>()
        {
            faults.invalid(&path, &error.to_string());
        }
        match verb.text() {
            "set" if value.value.is_null() => faults.required(&value, "must be given when `op` is 'set'"),
            "remove" if !value.value.is_null() => faults.forbidden(&value, "may not be given when `op` is 'remove'"),
            _ => {}
        }
    }
    let reason = spec.field("reason");
    if reason.text().len() > REASON_BYTES_MAX {
        faults.too_long(&reason, REASON_BYTES_MAX);
    }
}
