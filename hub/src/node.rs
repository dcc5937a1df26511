//! Node objects: made when a device enrols, kept when it enrols again.

use std::collections::BTreeMap;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind;
use flotilla_manifests::label::syntax;
use flotilla_manifests::object::{Object, ObjectKey};
use serde_json::json;

use crate::admission::set_label;
use crate::publish::FLEET_LABEL;
use crate::store::Batch;
use crate::store::devices::Device;

/// Labels in reserved domains that a device may state about itself.
const OWN_LABELS: [&str; 4] =
    ["kubernetes.io/arch", "kubernetes.io/os", "flotilla.dev/site", "node.kubernetes.io/instance-type"];

/// Why labels of a device are refused; shown to whoever stands there.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, text) in labels {
        syntax::qualified_name(name).map_err(|why| format!("label {name:?}: {why}"))?;
        syntax::label_value(text).map_err(|why| format!("value {text:?} of label {name:?}: {why}"))?;
        let domain = name.split_once('/').map_or("", |(domain, _)| domain);
        let reserved = ["kubernetes.io", "k8s.io", "flotilla.dev"]
            .iter()
            .any(|owner| domain == *owner || domain.ends_with(&format!(".{owner}")));
        if reserved && !OWN_LABELS.contains(&name.as_str()) && name != "kubernetes.io/hostname" {
            return Err(format!("label {name:?}: the domain {domain} is reserved; use one of your own"));
        }
    }
    Ok(())
}

/// Creates the Node of a device, or brings the labels of an existing one up to date; others, put there by operators, stay.
pub(crate) fn ensure(
    batch: &mut Batch<'_>,
    device: &Device,
    labels: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    let key = ObjectKey::of(&kind::NODE, "", device.node.as_str());
    let label = |object: &mut Object| {
        for (name, text) in labels {
            set_label(object, name, text);
        }
        set_label(object, "kubernetes.io/hostname", &device.node);
        set_label(object, FLEET_LABEL, &device.fleet);
    };
    if batch.get(&key).is_some_and(|node| node.uid() == device.uid) {
        batch.update(&key, label)?;
        return Ok(());
    }
    // Another device had the name, or the operator deleted the Node: a Node of its own.
    batch.remove(&key)?;
    let mut node = Object::empty(&kind::NODE, "", &device.node);
    node.metadata_mut().insert("uid".into(), device.uid.as_str().into());
    label(&mut node);
    node.value_mut()["spec"] = json!({});
    node.value_mut()["status"] = json!({});
    batch.create(node)?;
    Ok(())
}
