//! What makes one object into another, as operations by merge key.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::{Path, Step, key_text};
use super::{Operation, Replaced, Verb, tree};
use crate::object::Object;
use crate::schema::{self, ListType, Schema, Type};

/// Metadata that servers keep: no wish of a user's.
const SERVER_METADATA: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Annotations that tools and the hub keep.
const SERVER_ANNOTATIONS: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
    crate::rollout::NUMBER_ANNOTATION,
    crate::rollout::HASH_ANNOTATION,
    crate::rollout::SILENT_ANNOTATION,
    crate::derive::ATTEMPT_ANNOTATION,
    super::CAUSE_ANNOTATION,
];

/// The operations that make the desired part of `base` into that of `wanted`. The order of keyed list items is not compared.
pub fn between(base: &Object, wanted: &Object) -> Vec<Operation> {
    let schema = schema::of(base.kind());
    let (base, wanted) = (desired(base), desired(wanted));
    at(schema, &Path::default(), Some(&base), Some(&wanted))
}

/// The operations that make one value, at `path` of an object with this schema, into another.
pub(super) fn at(root: Schema, path: &Path, base: Option<&Value>, wanted: Option<&Value>) -> Vec<Operation> {
    let schema = path.steps().iter().try_fold(root, tree::advance);
    let mut operations = Vec::new();
    compare(
        schema,
        path,
        base.filter(|value| !value.is_null()),
        wanted.filter(|value| !value.is_null()),
        &mut operations,
    );
    operations
}

fn compare(
    schema: Option<Schema>,
    path: &Path,
    base: Option<&Value>,
    wanted: Option<&Value>,
    out: &mut Vec<Operation>,
) {
    match (base, wanted) {
        (None, None) => {}
        (Some(base), Some(wanted)) if base == wanted => {}
        // Entries of free maps (labels, annotations, data) are wishes of their own, also the first and the last one.
        (None, Some(Value::Object(_))) if is_free_map(schema) => {
            compare(schema, path, Some(&Value::Object(Map::new())), wanted, out);
        }
        (Some(Value::Object(_)), None) if is_free_map(schema) => {
            compare(schema, path, base, Some(&Value::Object(Map::new())), out);
        }
        (Some(Value::Object(base)), Some(Value::Object(wanted))) => {
            let names: BTreeSet<&String> = base.keys().chain(wanted.keys()).collect();
            for name in names {
                let step = Step::Field(name.clone());
                let inner = schema.and_then(|schema| tree::advance(schema, &step));
                let of = |map: &'_ Map<String, Value>| map.get(name).filter(|value| !value.is_null()).cloned();
                compare(inner, &path.then(step), of(base).as_ref(), of(wanted).as_ref(), out);
            }
        }
        (Some(Value::Array(base_items)), Some(Value::Array(wanted_items))) => {
            let keys = schema.map(Schema::list_type);
            let keyed = match keys {
                Some(ListType::Map(keys)) => by_key(keys, base_items).zip(by_key(keys, wanted_items)),
                _ => None,
            };
            match keyed {
                Some((base_by, wanted_by)) => {
                    let all: BTreeSet<&Vec<(String, String)>> = base_by.keys().chain(wanted_by.keys()).collect();
                    for key in all {
                        let step = Step::Item(key.clone());
                        let inner = schema.and_then(Schema::items);
                        let pair = (base_by.get(key).copied(), wanted_by.get(key).copied());
                        compare(inner, &path.then(step), pair.0, pair.1, out);
                    }
                }
                None => out.push(operation(path, base, wanted)),
            }
        }
        _ => out.push(operation(path, base, wanted)),
    }
}

fn is_free_map(schema: Option<Schema>) -> bool {
    schema.is_some_and(|schema| schema.node_type() == Type::Map && !schema.is_atomic())
}

fn operation(path: &Path, base: Option<&Value>, wanted: Option<&Value>) -> Operation {
    Operation {
        op: if wanted.is_some() { Verb::Set } else { Verb::Remove },
        path: path.clone(),
        value: wanted.cloned(),
        replaced: base.map(Replaced::of),
    }
}

/// Items by the values of their keys; `None` when a key is missing everywhere or two items share theirs.
fn by_key<'a>(keys: &[&str], items: &'a [Value]) -> Option<BTreeMap<Vec<(String, String)>, &'a Value>> {
    let mut map = BTreeMap::new();
    for item in items {
        let key = keys
            .iter()
            .map(|name| match item.get(*name) {
                Some(value) => key_text(value).map(|text| ((*name).to_owned(), text)),
                None => Some(((*name).to_owned(), String::new())),
            })
            .collect::<Option<Vec<_>>>()?;
        if key.iter().all(|(_, text)| text.is_empty()) || map.insert(key, item).is_some() {
            return None;
        }
    }
    Some(map)
}

/// The object without what servers keep.
fn desired(object: &Object) -> Value {
    let mut value = object.value().clone();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in SERVER_METADATA {
            metadata.remove(*field);
        }
        for field in ["annotations", "labels"] {
            if let Some(map) = metadata.get_mut(field).and_then(Value::as_object_mut) {
                for name in SERVER_ANNOTATIONS {
                    map.remove(*name);
                }
                if map.is_empty() {
                    metadata.remove(field);
                }
            }
        }
    }
    value
}
