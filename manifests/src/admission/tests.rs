#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use crate::api_error::Reason;
use crate::kind::{self, KindRef};
use crate::scale;

mod deletion;
mod properties;
mod writes;

/// 2026-11-21T08:00:00Z
const NOW: Timestamp = Timestamp(1_795_248_000_000);

fn context() -> Context {
    Context {
        now: NOW,
        uid: "11111111-2222-4333-8444-555555555555".into(),
        name_suffix: "x7k2p".into(),
        field_validation: FieldValidation::Warn,
    }
}

fn key(kind: KindRef, name: &str) -> ObjectKey {
    let namespace = if kind.scope == kind::Scope::Namespaced { "default" } else { "" };
    ObjectKey::of(kind, namespace, name)
}

fn object(value: Value) -> Object {
    Object::parse(value).unwrap()
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}},
        },
    })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    })
}

fn config() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"a": "1"}})
}

/// Creates and stores as resource version 5.
#[track_caller]
fn stored(body: Value) -> Object {
    let body = object(body);
    let key = created_key(&key(body.kind(), ""), &body, "x7k2p");
    let admitted = admit(&key, None, &Mutation::Create { body }, &context());
    let Ok(Admitted { outcome: Outcome::Created(mut object), warnings }) = admitted else {
        panic!("{admitted:?}");
    };
    assert_eq!(warnings, Vec::<String>::new());
    object.set_resource_version(5);
    object
}

fn changed(mut object: Object, pointer_and_value: &[(&str, Value)]) -> Object {
    for (pointer, value) in pointer_and_value {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = object.value_mut().pointer_mut(parent).unwrap();
        parent[field] = value.clone();
    }
    object
}

fn write(current: &Object, mutation: &Mutation) -> Result<Admitted, ApiError> {
    admit(&current.key(), Some(current), mutation, &context())
}

fn replace(current: &Object, part: Part, body: Value) -> Result<Admitted, ApiError> {
    write(current, &Mutation::Replace { part, body })
}

fn merge(current: &Object, part: Part, patch: Value) -> Result<Admitted, ApiError> {
    write(current, &Mutation::Patch { part, patch: Patch::JsonMerge(patch) })
}

#[track_caller]
fn updated(result: Result<Admitted, ApiError>) -> Object {
    match result {
        Ok(Admitted { outcome: Outcome::Updated(object), .. }) => object,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn unchanged(result: Result<Admitted, ApiError>) -> Object {
    match result {
        Ok(Admitted { outcome: Outcome::Unchanged(object), .. }) => object,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn removed(result: Result<Admitted, ApiError>) -> Object {
    match result {
        Ok(Admitted { outcome: Outcome::Removed(object), .. }) => object,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(result: Result<Admitted, ApiError>, reason: Reason, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    assert!(error.message.contains(text), "{error}");
}
