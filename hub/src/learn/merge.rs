//! What learned content makes of the hub's objects. Pure.

use flotilla_manifests::derive::Placement;
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout::{NUMBER_ANNOTATION, hash_of};
use flotilla_manifests::workload::{self, DeploymentSpec};
use serde_json::{Map, Value};

use crate::controllers::replica_set::{HASH_LABEL, pod_of};
use crate::controllers::{deployment, pods};
use crate::publish::content::{KEPT_BACK_ANNOTATIONS, KEPT_BACK_TAINTS};
use crate::store::Index;

/// `current` with the manifest that devices hold: status, owners, finalizers and the hub's bookkeeping stay the hub's.
pub(crate) fn overlaid(current: &Object, manifest: &Object) -> Object {
    let mut value = manifest.value().clone();
    let Some(map) = value.as_object_mut() else { return current.clone() };
    if let Some(status) = current.status() {
        map.insert("status".into(), status.clone());
    }
    let mut metadata = current.value()["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match manifest.at(&format!("/metadata/{field}")) {
            Some(held) => metadata.insert(field.into(), held.clone()),
            None => metadata.remove(field),
        };
    }
    map.insert("metadata".into(), Value::Object(metadata));
    if current.kind() == &kind::NODE {
        keep_taints(current, map);
    }
    let Ok(mut object) = Object::parse(value) else { return current.clone() };
    for name in KEPT_BACK_ANNOTATIONS {
        if let Some(text) = current.annotation(name) {
            object.set_annotation(name, text);
        }
    }
    object
}

fn keep_taints(current: &Object, map: &mut Map<String, Value>) {
    let own: Vec<Value> = current
        .at("/spec/taints")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|taint| KEPT_BACK_TAINTS.contains(&taint["key"].as_str().unwrap_or("")))
        .cloned()
        .collect();
    if own.is_empty() {
        return;
    }
    let spec = map.entry("spec").or_insert_with(|| Value::Object(Map::new()));
    if let Some(spec) = spec.as_object_mut() {
        match spec.entry("taints").or_insert_with(|| Value::Array(Vec::new())) {
            Value::Array(taints) => taints.extend(own),
            other => *other = Value::Array(own),
        }
    }
}

/// The ReplicaSet that a placed Pod belongs to: the present one, or what the Deployment's controller would have made. `at_number`:
/// the workload as it was at the placement's number. `None` when the Pod's name fits neither.
pub(super) fn set_of(index: &Index, at_number: &Object, placement: &Placement) -> Option<SetOf> {
    if at_number.kind() == &kind::REPLICA_SET {
        let set = index.by_uid(at_number.uid()).map_or_else(|| at_number.clone(), |set| (**set).clone());
        return Some(SetOf::Present(set));
    }
    let rest = placement.name.strip_prefix(at_number.name())?.strip_prefix('-')?;
    let (hash, _) = rest.rsplit_once('-')?;
    let mut revision = 1;
    for set in index.owned_by(at_number.uid()).filter(|set| set.kind() == &kind::REPLICA_SET) {
        if set.label(HASH_LABEL) == Some(hash) {
            return Some(SetOf::Present((**set).clone()));
        }
        revision = revision.max(deployment::revision_of(set) + 1);
    }
    if hash_of(at_number) != hash {
        return None;
    }
    let spec: DeploymentSpec = workload::view(at_number.spec());
    Some(SetOf::Missing(Box::new(deployment::replica_set(at_number, &spec, hash, revision, 0))))
}

/// A Pod's ReplicaSet.
pub(super) enum SetOf {
    Present(Object),
    Missing(Box<Object>),
}

/// The row of a Pod that runs on a device and that the hub does not know.
pub(super) fn placed(set: &Object, placement: &Placement, node: &str) -> Object {
    let mut pod = pod_of(set, &placement.name);
    pod.metadata_mut().insert("uid".into(), placement.uid.as_str().into());
    pod.set_annotation(NUMBER_ANNOTATION, &placement.number.to_string());
    pod.value_mut()["spec"]["nodeName"] = node.into();
    pod
}

/// Pods of a set that are not ending or ended.
pub(super) fn present(index: &Index, set: &Object) -> i64 {
    let owned = index.owned_by(set.uid()).filter(|pod| pod.kind() == &kind::POD && !pods::is_finished(pod));
    pods::count(owned.filter(|pod| pod.deletion_timestamp().is_none()).count())
}
