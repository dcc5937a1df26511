//! One API object: JSON in Kubernetes' shape, with its kind known and its key checked.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::kind::{self, KindRef};
use crate::time::Timestamp;

/// Names one object of one kind. `namespace` is empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub kind: KindRef,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn of(kind: KindRef, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    /// `daemonsets.apps default/web`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind.plural)?;
        if !self.kind.group.is_empty() {
            write!(formatter, ".{}", self.kind.group)?;
        }
        if self.namespace.is_empty() {
            write!(formatter, " {}", self.name)
        } else {
            write!(formatter, " {}/{}", self.namespace, self.name)
        }
    }
}

/// An object: `apiVersion`, `kind`, `metadata` and the rest, as JSON.
///
/// Invariant: `value` is a JSON object whose `apiVersion` and `kind` are those of `kind`, and `metadata` is an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    kind: KindRef,
    value: Value,
}

/// Why a JSON value is no object of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("the body is not a JSON object")]
    NotAnObject,
    #[error("`{0}` is missing or not a string")]
    MissingField(&'static str),
    #[error("no kind {kind:?} in {api_version:?} is served here")]
    UnknownKind { api_version: String, kind: String },
    #[error("`metadata` is not an object")]
    BadMetadata,
}

impl Object {
    /// An empty object of this kind.
    pub fn empty(kind: KindRef, namespace: &str, name: &str) -> Self {
        let mut metadata = Map::new();
        metadata.insert("name".into(), name.into());
        if !namespace.is_empty() {
            metadata.insert("namespace".into(), namespace.into());
        }
        let value = serde_json::json!({"apiVersion": kind.api_version(), "kind": kind.name, "metadata": metadata});
        Self { kind, value }
    }

    /// Accepts JSON whose `apiVersion` and `kind` are in the table of kinds; nothing below is checked.
    pub fn parse(mut value: Value) -> Result<Self, ObjectError> {
        let map = value.as_object_mut().ok_or(ObjectError::NotAnObject)?;
        let api_version =
            map.get("apiVersion").and_then(Value::as_str).ok_or(ObjectError::MissingField("apiVersion"))?.to_owned();
        let kind = map.get("kind").and_then(Value::as_str).ok_or(ObjectError::MissingField("kind"))?.to_owned();
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let found = kind::find(group, &kind).filter(|row| row.version == version);
        let row = found.ok_or(ObjectError::UnknownKind { api_version: api_version.clone(), kind })?;
        match map.entry("metadata").or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(_) => Ok(Self { kind: row, value }),
            _ => Err(ObjectError::BadMetadata),
        }
    }

    pub fn kind(&self) -> KindRef {
        self.kind
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind, self.namespace(), self.name())
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// Decimal resource version; 0 when absent.
    pub fn resource_version(&self) -> u64 {
        self.text("/metadata/resourceVersion").parse().unwrap_or(0)
    }

    pub fn set_resource_version(&mut self, version: u64) {
        self.metadata_mut().insert("resourceVersion".into(), version.to_string().into());
    }

    pub fn generation(&self) -> i64 {
        self.at("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
    }

    pub fn deletion_timestamp(&self) -> Option<Timestamp> {
        Timestamp::parse(self.text("/metadata/deletionTimestamp"))
    }

    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        Timestamp::parse(self.text("/metadata/creationTimestamp"))
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.value.get("metadata")?.get("labels")?.get(name)?.as_str()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.text_map("labels")
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.value.get("metadata")?.get("annotations")?.get(name)?.as_str()
    }

    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.text_map("annotations")
    }

    pub fn set_annotation(&mut self, name: &str, text: &str) {
        let entry = self.metadata_mut().entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if !entry.is_object() {
            *entry = Value::Object(Map::new());
        }
        if let Some(map) = entry.as_object_mut() {
            map.insert(name.to_owned(), text.into());
        }
    }

    pub fn finalizers(&self) -> Vec<String> {
        let list = self.at("/metadata/finalizers").and_then(Value::as_array);
        list.map(|list| list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()).unwrap_or_default()
    }

    pub fn owner_references(&self) -> Vec<OwnerReference> {
        self.owners().filter_map(|item| OwnerReference::deserialize(item).ok()).collect()
    }

    /// The owner with `controller: true`.
    pub fn controller(&self) -> Option<OwnerReference> {
        let mut controllers = self.owners().filter(|item| item.get("controller") == Some(&Value::Bool(true)));
        controllers.find_map(|item| OwnerReference::deserialize(item).ok())
    }

    fn owners(&self) -> impl Iterator<Item = &Value> {
        self.at("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten()
    }

    /// The value behind a JSON pointer (RFC 6901).
    pub fn at(&self, pointer: &str) -> Option<&Value> {
        behind(&self.value, pointer)
    }

    /// The string behind a JSON pointer; empty when absent.
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).and_then(Value::as_str).unwrap_or("")
    }

    pub fn spec(&self) -> Option<&Value> {
        self.value.get("spec")
    }

    pub fn status(&self) -> Option<&Value> {
        self.value.get("status")
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Everything may be changed but `apiVersion`, `kind` and that `metadata` is an object.
    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.value
    }

    pub fn into_value(self) -> Value {
        self.value
    }

    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        if !self.value["metadata"].is_object() {
            self.value["metadata"] = Value::Object(Map::new());
        }
        match self.value["metadata"].as_object_mut() {
            Some(map) => map,
            None => unreachable!("metadata was made an object above"),
        }
    }

    fn text_map(&self, field: &str) -> BTreeMap<String, String> {
        let map = self.value.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_object);
        map.map(|map| map.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect())
            .unwrap_or_default()
    }
}

/// As [`Value::pointer`], which makes two strings of each step: whoever looks at a fleet asks its objects for millions of fields.
fn behind<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    let Some(steps) = pointer.strip_prefix('/').filter(|steps| !steps.contains('~')) else {
        return value.pointer(pointer);
    };
    steps.split('/').try_fold(value, |value, step| match value {
        Value::Object(map) => map.get(step),
        Value::Array(_) => value.pointer(&format!("/{step}")),
        _ => None,
    })
}

/// `metav1.OwnerReference`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(default)]
    pub controller: bool,
    #[serde(default)]
    pub block_owner_deletion: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pointer_is_read_as_serde_json_reads_it() {
        let value = json!({"": {"": 1}, "a/b": 2, "m~n": 3, "list": [4, {"x": [5]}], "text": "t"});
        let pointers = [
            "",
            "/",
            "//",
            "a",
            "/a~1b",
            "/m~0n",
            "/m~n",
            "/list",
            "/list/0",
            "/list/1/x/0",
            "/list/00",
            "/list/+1",
            "/list/-",
            "/list/9",
            "/list/",
            "/text/0",
            "/none",
            "/list/1/x/0/y",
        ];
        for pointer in pointers {
            assert_eq!(behind(&value, pointer), value.pointer(pointer), "{pointer:?}");
        }
    }

    #[test]
    fn the_controller_is_the_first_owner_that_says_so() {
        let mut object = Object::empty(&kind::POD, "shop", "web");
        let owner = |uid: &str, controller: Value| json!({"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": uid, "controller": controller});
        let broken = json!({"controller": true});
        let owners = json!([owner("a", false.into()), broken, owner("b", true.into()), owner("c", true.into())]);
        object.metadata_mut().insert("ownerReferences".into(), owners);
        assert_eq!(object.owner_references().len(), 3);
        assert_eq!(object.controller().map(|owner| owner.uid), Some("b".to_owned()));
    }
}
