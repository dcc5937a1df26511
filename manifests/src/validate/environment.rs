//! `env` and `envFrom` of a container, and references to fields of its Pod.

use serde_json::Value;

use super::place::{At, Faults};
use super::text;
use crate::label::syntax;

const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
/// Fields an environment variable may show.
const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields a file of a `downwardAPI` volume may show.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const CONTAINER_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Who shows the field of a Pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shower {
    Variable,
    File,
}

pub(super) fn variables(container: &At<'_>, faults: &mut Faults) {
    for variable in container.field("env").items() {
        let name = variable.field("name");
        faults.required_syntax(&name, text::variable_name);
        let from = variable.field("valueFrom");
        if from.is_said() {
            value_from(&variable, &from, faults);
        }
    }
    for source in container.field("envFrom").items() {
        faults.syntax(&source.field("prefix"), text::variable_name);
        let (config_map, secret) = (source.field("configMapRef"), source.field("secretRef"));
        match (config_map.is_said(), secret.is_said()) {
            (false, false) => {
                faults.invalid_as(&source, &Value::from(""), "must specify one of: `configMapRef` or `secretRef`")
            }
            (true, true) => {
                faults.invalid_as(&source, &Value::from(""), "may not have more than one field specified at a time");
            }
            (true, false) => faults.required_syntax(&config_map.field("name"), syntax::dns_subdomain),
            (false, true) => faults.required_syntax(&secret.field("name"), syntax::dns_subdomain),
        }
    }
}

fn value_from(variable: &At<'_>, from: &At<'_>, faults: &mut Faults) {
    if variable.field("value").is_said() {
        faults.invalid_as(from, &Value::from(""), "may not be specified when `value` is not empty");
    }
    let said = SOURCES.iter().filter(|source| from.field(source).is_said()).count();
    if said == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        faults.invalid_as(from, &Value::from(""), why);
    } else if said > 1 {
        faults.invalid_as(from, &Value::from(""), "may not have more than one field specified at a time");
    }
    field_reference(&from.field("fieldRef"), Shower::Variable, faults);
    resource_reference(&from.field("resourceFieldRef"), faults);
    for name in ["configMapKeyRef", "secretKeyRef"] {
        let reference = from.field(name);
        if reference.is_said() {
            faults.required_syntax(&reference.field("name"), syntax::dns_subdomain);
            faults.required_syntax(&reference.field("key"), text::config_key);
        }
    }
}

/// `fieldRef`; says nothing about an absent one.
pub(super) fn field_reference(reference: &At<'_>, shower: Shower, faults: &mut Faults) {
    if !reference.is_said() {
        return;
    }
    let path = reference.field("fieldPath");
    if !path.is_said() {
        return faults.required(&path, "");
    }
    let supported = if shower == Shower::Variable { VARIABLE_FIELDS } else { FILE_FIELDS };
    match path.text().split_once("['") {
        Some(("metadata.annotations" | "metadata.labels", rest)) => {
            let Some(key) = rest.strip_suffix("']") else {
                return faults.invalid(&path, "must end with `']`");
            };
            if let Err(why) = syntax::qualified_name(&key.to_ascii_lowercase()) {
                faults.invalid_as(&path, &Value::from(key), why);
            }
        }
        Some(_) => faults.invalid(&path, "does not support subscript"),
        None => faults.one_of(&path, supported),
    }
}

/// `resourceFieldRef`; says nothing about an absent one.
pub(super) fn resource_reference(reference: &At<'_>, faults: &mut Faults) {
    if !reference.is_said() {
        return;
    }
    let resource = reference.field("resource");
    let huge = |text: &str| text.starts_with("limits.hugepages-") || text.starts_with("requests.hugepages-");
    if !resource.is_said() {
        faults.required(&resource, "");
    } else if !huge(resource.text()) {
        faults.one_of(&resource, CONTAINER_RESOURCES);
    }
}
