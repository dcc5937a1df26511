//! What an item says: the manifest part of an object, or the value of a register.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_manifests::derive::Placement;
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout;
use serde_json::{Map, Value, json};

use super::{Channel, Item};
use crate::store::Index;
use crate::store::devices::{LAST_SEEN_ANNOTATION, ROAD_ANNOTATION, SYNC_ANNOTATION};

/// Annotations that are the hub's or kubectl's own bookkeeping.
pub(crate) const KEPT_BACK_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    rollout::SILENT_ANNOTATION,
    "deployment.kubernetes.io/revision",
    LAST_SEEN_ANNOTATION,
    SYNC_ANNOTATION,
    ROAD_ANNOTATION,
];
/// Taints by which the hub tells its own scheduler of a silence; the device knows better.
pub(crate) const KEPT_BACK_TAINTS: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

/// The wanted content of one place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A document: the manifest part, and for workloads the numbers in flight with their thresholds.
    Document { uid: String, kind: KindRef, object: Value, rollouts: BTreeMap<String, u64> },
    /// A register: its id and value.
    Register { id: String, value: Value },
    /// A Secret in clear, to be sealed to the device before it goes anywhere.
    Secret { id: String, uid: String, namespace: String, name: String, plain: Value },
}

impl Content {
    /// The item's id on the wire.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Document { uid, .. } => uid,
            Self::Register { id, .. } | Self::Secret { id, .. } => id,
        }
    }
}

/// The content wanted at a place; `None` when what it is made from does not exist.
pub(crate) fn of(index: &Index, channel: &Channel, item: &Item) -> Option<Content> {
    match item {
        Item::Document(key) => {
            let object = index.get(key)?;
            Some(document(index, object))
        }
        Item::Placement(key) => {
            let pod = index.get(key)?;
            let placement = Placement {
                namespace: pod.namespace().to_owned(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                workload: workload_of(index, pod)?.uid().to_owned(),
                number: rollout::number_of(pod)?,
            };
            let value = serde_json::to_value(&placement).ok()?;
            Some(Content::Register { id: format!("placement/{}", pod.uid()), value })
        }
        Item::Grant(uid) => {
            let Channel::Device(node) = channel else { return None };
            let number = index.rollout_at(uid)?.grants.get(node)?.clone();
            Some(Content::Register { id: format!("grant/{uid}"), value: json!({"number": number}) })
        }
        Item::Secret(key) => {
            let secret = index.get(key)?;
            let mut plain = Map::new();
            for field in ["type", "data"] {
                plain.extend(secret.value().get(field).map(|value| (field.to_owned(), value.clone())));
            }
            Some(Content::Secret {
                id: format!("secret/{}", secret.uid()),
                uid: secret.uid().to_owned(),
                namespace: secret.namespace().to_owned(),
                name: secret.name().to_owned(),
                plain: Value::Object(plain),
            })
        }
        Item::Evict(uid) => Some(Content::Register { id: format!("evict/{uid}"), value: json!({"uid": uid}) }),
        Item::Revert(id) => {
            let value = if is_of_deleted(index, channel, id) { json!({"baseDeleted": true}) } else { json!({}) };
            Some(Content::Register { id: format!("revert/{id}"), value })
        }
    }
}

/// The Deployment, or else the ReplicaSet, that a Pod was made from.
pub(crate) fn workload_of<'a>(index: &'a Index, pod: &Object) -> Option<&'a Object> {
    let owner = pod.controller()?;
    let replica_set = index.by_uid(&owner.uid).filter(|object| object.kind() == &kind::REPLICA_SET)?;
    let Some(above) = replica_set.controller() else { return Some(replica_set) };
    index
        .by_uid(&above.uid)
        .map(AsRef::as_ref)
        .filter(|object| object.kind() == &kind::DEPLOYMENT)
        .or(Some(replica_set))
}

/// The id of the override behind an Override object, which is named `<node>.<id>`.
pub(crate) fn override_id(object: &Object) -> &str {
    let node = object.text("/spec/nodeName");
    object.name().strip_prefix(node).and_then(|rest| rest.strip_prefix('.')).unwrap_or(object.name())
}

/// Whether the object that a device's override changes is gone: then it ends with it, and no sooner.
fn is_of_deleted(index: &Index, channel: &Channel, id: &str) -> bool {
    let Channel::Device(node) = channel else { return false };
    let is_it = |shown: &&Arc<Object>| shown.text("/spec/nodeName") == node && override_id(shown) == id;
    let shown = index.list(&kind::OVERRIDE, None).find(is_it);
    shown.is_some_and(|shown| index.by_uid(shown.text("/spec/target/uid")).is_none())
}

/// The document of an object.
pub(crate) fn document(index: &Index, object: &Object) -> Content {
    Content::Document {
        uid: object.uid().to_owned(),
        kind: object.kind(),
        object: manifest(object),
        rollouts: index.rollout_at(object.uid()).map(|state| state.thresholds.clone()).unwrap_or_default(),
    }
}

/// Whether annotations that devices are shown are others.
pub(crate) fn differ_in_annotations(before: &Object, after: &Object) -> bool {
    fn shown(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
        let all = object.at("/metadata/annotations").and_then(Value::as_object);
        all.into_iter().flatten().filter(|(name, _)| !KEPT_BACK_ANNOTATIONS.contains(&name.as_str()))
    }
    !shown(before).eq(shown(after))
}

/// Whether the specs differ in what devices are shown: that one fell silent is no news for them, and would be for twenty thousand.
pub(crate) fn differ_in_spec(before: &Object, after: &Object) -> bool {
    if before.kind() != &kind::NODE {
        return before.spec() != after.spec();
    }
    fn fields(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
        object.spec().and_then(Value::as_object).into_iter().flatten().filter(|(name, _)| *name != "taints")
    }
    fn taints(object: &Object) -> impl Iterator<Item = &Value> {
        let all = object.at("/spec/taints").and_then(Value::as_array).into_iter().flatten();
        all.filter(|taint| !is_kept_back(taint))
    }
    !(fields(before).eq(fields(after)) && taints(before).eq(taints(after)))
}

fn is_kept_back(taint: &Value) -> bool {
    KEPT_BACK_TAINTS.contains(&taint.get("key").and_then(Value::as_str).unwrap_or(""))
}

/// Everything of an object that a device needs: not status, not the hub's bookkeeping.
fn manifest(object: &Object) -> Value {
    let mut value = object.value().clone();
    let Some(map) = value.as_object_mut() else { return value };
    map.remove("status");
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "creationTimestamp", "labels"] {
        metadata.extend(object.at(&format!("/metadata/{field}")).map(|value| (field.to_owned(), value.clone())));
    }
    let annotations: Map<String, Value> = object
        .annotations()
        .into_iter()
        .filter(|(name, _)| !KEPT_BACK_ANNOTATIONS.contains(&name.as_str()))
        .map(|(name, text)| (name, text.into()))
        .collect();
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), Value::Object(annotations));
    }
    map.insert("metadata".into(), Value::Object(metadata));
    if object.kind() == &kind::NODE
        && let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(taints) = spec.get_mut("taints").and_then(Value::as_array_mut)
    {
        taints.retain(|taint| !is_kept_back(taint));
        if taints.is_empty() {
            // As before the silence: it is no news for the device.
            spec.remove("taints");
        }
    }
    value
}
