//! Objects and lists as bytes, in the negotiated shape.

use std::sync::Arc;

use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use http::StatusCode;
use serde_json::{Value, json};

use crate::negotiate::{Form, Shape};
use crate::reply::{Reply, write_json};
use crate::route::IncludeObject;
use crate::table::{Columns, Partial};

/// One object.
pub(super) fn one(status: StatusCode, form: Form, include: IncludeObject, object: &Object, now: Timestamp) -> Reply {
    match form.shape {
        Shape::Whole => Reply::json(status, form.encoding, object.value()),
        Shape::Partial(version) => Reply::json(status, form.encoding, &Partial::of(object, version)),
        Shape::Table(version) => {
            let columns = Columns::of(object.kind());
            let table = json!({
                "kind": "Table", "apiVersion": version.api_version(),
                "metadata": {"resourceVersion": object.resource_version().to_string()},
                "columnDefinitions": columns.definitions(),
                "rows": [columns.row(object, now, version, include)],
            });
            Reply::json(status, form.encoding, &table)
        }
    }
}

/// `ListMeta`
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remaining_item_count: Option<usize>,
}

impl ListMeta {
    /// Of a whole list.
    pub(super) fn at(version: u64) -> Self {
        Self { resource_version: version.to_string(), token: None, remaining_item_count: None }
    }
}

/// A list. Written item by item, so that a long list is never copied as a tree.
pub(super) fn many(
    kind: KindRef,
    form: Form,
    include: IncludeObject,
    metadata: &ListMeta,
    items: &[Arc<Object>],
    now: Timestamp,
) -> Reply {
    let columns = Columns::of(kind);
    let (head, field): (Value, &str) = match form.shape {
        Shape::Whole => {
            let name = format!("{}List", kind.name);
            (json!({"kind": name, "apiVersion": kind.api_version(), "metadata": metadata}), "items")
        }
        Shape::Partial(version) => (
            json!({"kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": metadata}),
            "items",
        ),
        Shape::Table(version) => (
            json!({
                "kind": "Table", "apiVersion": version.api_version(), "metadata": metadata,
                "columnDefinitions": columns.definitions(),
            }),
            "rows",
        ),
    };
    let mut bytes = head.to_string().into_bytes();
    bytes.pop();
    bytes.extend_from_slice(format!(",\"{field}\":[").as_bytes());
    for (index, object) in items.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        match form.shape {
            Shape::Whole => write_json(object.value(), &mut bytes),
            Shape::Partial(version) => write_json(&Partial::of(object, version), &mut bytes),
            Shape::Table(version) => write_json(&columns.row(object, now, version, include), &mut bytes),
        }
    }
    bytes.extend_from_slice(b"]}");
    Reply::bytes(StatusCode::OK, form.encoding.media_type(), bytes)
}
