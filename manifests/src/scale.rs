//! `autoscaling/v1` Scale: a workload seen as nothing but its number of replicas.
//!
//! Owns the view and the way back. Which kinds have one is said by their `scale` subresource.

use serde_json::{Map, Value, json};

use crate::label::Selector;
use crate::object::Object;

/// The Scale of a workload; `None` for a kind without one.
pub fn of(object: &Object) -> Option<Value> {
    if !object.kind().subresources.contains(&"scale") {
        return None;
    }
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at("/metadata").and_then(|metadata| metadata.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let replicas = |pointer| object.at(pointer).and_then(Value::as_i64).unwrap_or(0);
    let selector = Selector::of_workload(object);
    Some(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": replicas("/spec/replicas")},
        "status": {"replicas": replicas("/status/replicas"), "selector": selector.to_string()},
    }))
}
