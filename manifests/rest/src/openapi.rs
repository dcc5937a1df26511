//! OpenAPI v3 of what is served: the index and one document for each group and version. Pure.
//!
//! Owns paths and operations; the components are the schema tables'. Holds what kubectl looks for: a `patch` operation with
//! `x-kubernetes-group-version-kind` and the query parameter `fieldValidation`, and schemas by group, version and kind.
//! Start at [`index`] and [`document`].

use std::collections::BTreeSet;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind::{KindRef, Scope};
use flotilla_manifests::schema;
use serde_json::{Map, Value, json};

use crate::route::no_such_path;

/// An OpenAPI 2 document that describes nothing, in the media type asked for.
///
/// kubectl falls back to it for a kind that version 3 does not list; where it is missing the user reads "the server could not
/// find the requested resource" instead of which kind is not served.
pub(crate) fn nothing_of_version_2(accept: &str) -> (&'static str, &'static [u8]) {
    if accept.contains("spec.v2@v1.0+protobuf") {
        // The media type as asked for cannot be parsed (RFC 2045 has no @ in it). Field 1, `swagger`, of gnostic's openapi.v2.Document.
        ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", b"\x0a\x032.0")
    } else {
        ("application/json", br#"{"swagger":"2.0","info":{"title":"Flotilla","version":"v1"},"paths":{}}"#)
    }
}

/// The index: relative URL, with a hash, of each document. `hash` answers for a group and version.
pub fn index(kinds: &[KindRef], hash: impl Fn(&str, &str) -> String) -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions(kinds) {
        let path = path(group, version);
        let url = format!("/openapi/v3/{path}?hash={}", hash(group, version));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// Every `(group, version)` with a served kind.
pub(crate) fn group_versions(kinds: &[KindRef]) -> BTreeSet<(&'static str, &'static str)> {
    kinds.iter().map(|kind| (kind.group, kind.version)).collect()
}

fn path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The document of one group and version.
///
/// # Errors
/// 404 when no kind of it is served.
pub fn document(group: &str, version: &str, kinds: &[KindRef]) -> Result<Value, ApiError> {
    let served: Vec<KindRef> =
        kinds.iter().copied().filter(|kind| (kind.group, kind.version) == (group, version)).collect();
    if served.is_empty() {
        return Err(no_such_path());
    }
    let mut paths = Map::new();
    for kind in &served {
        let scope = if kind.scope == Scope::Namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{}/{scope}{}", path(group, version), kind.plural);
        paths.insert(format!("{collection}/{{name}}"), object_operations(kind));
        paths.insert(collection, collection_operations(kind));
        for subresource in kind.subresources.iter().filter(|name| !matches!(**name, "log" | "eviction")) {
            let path = format!("/{}/{scope}{}/{{name}}/{subresource}", path(group, version), kind.plural);
            paths.insert(path, subresource_operations(kind, subresource));
        }
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": {"title": "Flotilla", "version": super::SERVER_VERSION},
        "paths": paths,
        "components": {"schemas": schema::components_for(group, version)},
    }))
}

fn object_operations(kind: KindRef) -> Value {
    let mut item = json!({
        "parameters": path_parameters(kind),
        "get": operation(kind, "get", &kind_of(kind), &[]),
        "put": operation(kind, "put", &kind_of(kind), &WRITE_PARAMETERS),
        "patch": operation(kind, "patch", &kind_of(kind), &PATCH_PARAMETERS),
        "delete": operation(kind, "delete", &kind_of(kind), &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
    });
    item["put"]["requestBody"] = body(&["application/json", "application/yaml"], &reference(kind.schema));
    item["patch"]["requestBody"] = body(&PATCH_TYPES, &json!({"type": "object"}));
    item
}

fn collection_operations(kind: KindRef) -> Value {
    let list_parameters = ["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"];
    let mut parameters = path_parameters(kind);
    if let Some(list) = parameters.as_array_mut() {
        list.retain(|parameter| parameter["name"] != "name");
    }
    let mut item = json!({
        "parameters": parameters,
        "get": operation(kind, "list", &kind_of(kind), &list_parameters),
        "post": operation(kind, "post", &kind_of(kind), &WRITE_PARAMETERS),
        "delete": operation(kind, "deletecollection", &kind_of(kind), &["labelSelector", "fieldSelector", "dryRun"]),
    });
    item["get"]["responses"]["200"]["content"]["application/json"]["schema"] =
        reference(&format!("{}List", kind.schema));
    item["post"]["requestBody"] = body(&["application/json", "application/yaml"], &reference(kind.schema));
    item
}

fn subresource_operations(kind: KindRef, subresource: &str) -> Value {
    let gvk = match subresource {
        "scale" => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
        _ => kind_of(kind),
    };
    let mut item = json!({
        "parameters": path_parameters(kind),
        "get": operation(kind, "get", &gvk, &[]),
        "put": operation(kind, "put", &gvk, &WRITE_PARAMETERS),
        "patch": operation(kind, "patch", &gvk, &WRITE_PARAMETERS),
    });
    let answer =
        if subresource == "scale" { reference("io.k8s.api.autoscaling.v1.Scale") } else { reference(kind.schema) };
    for method in ["get", "put", "patch"] {
        item[method]["responses"]["200"]["content"]["application/json"]["schema"] = answer.clone();
    }
    item["put"]["requestBody"] = body(&["application/json", "application/yaml"], &answer);
    item["patch"]["requestBody"] = body(&PATCH_TYPES, &json!({"type": "object"}));
    item
}

const WRITE_PARAMETERS: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
const PATCH_PARAMETERS: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "force"];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

fn operation(kind: KindRef, action: &str, gvk: &Value, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let kind = match *name {
                "limit" | "gracePeriodSeconds" => "integer",
                "watch" | "force" => "boolean",
                _ => "string",
            };
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
        })
        .collect();
    json!({
        "parameters": parameters,
        "responses": {"200": {
            "description": "OK", "content": {"application/json": {"schema": reference(kind.schema)}},
        }},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    })
}

fn path_parameters(kind: KindRef) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    match kind.scope {
        Scope::Namespaced => json!([parameter("name"), parameter("namespace")]),
        Scope::Cluster => json!([parameter("name")]),
    }
}

fn body(media_types: &[&str], schema: &Value) -> Value {
    let content: Map<String, Value> =
        media_types.iter().map(|media_type| ((*media_type).to_owned(), json!({"schema": schema}))).collect();
    json!({"required": true, "content": content})
}

fn kind_of(kind: KindRef) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.name})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// FNV-1a, 64 bits, of a document's text: names one version of it in its URL; no secret hangs on it.
pub(crate) fn hash_text(text: &[u8]) -> String {
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016X}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;

    use super::*;

    #[test]
    fn every_reference_resolves_and_every_kind_can_be_patched() {
        for (group, version) in group_versions(kind::ALL) {
            let document = document(group, version, kind::ALL).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let mut references = Vec::new();
            collect_references(&document, &mut references);
            for reference in references {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(schemas.contains_key(name), "{group}/{version}: {name} is referred to and missing");
            }
            for kind in kind::ALL.iter().filter(|kind| (kind.group, kind.version) == (group, version)) {
                let found = document["paths"].as_object().unwrap().values().any(|item| {
                    let patch = &item["patch"];
                    let validates = patch["parameters"]
                        .as_array()
                        .is_some_and(|list| list.iter().any(|one| one["name"] == "fieldValidation"));
                    validates && patch["x-kubernetes-group-version-kind"]["kind"] == kind.name
                });
                assert!(found, "{kind} has no patch operation with fieldValidation");
            }
        }
    }

    fn collect_references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.clone());
                }
                map.values().for_each(|value| collect_references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| collect_references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_index_names_served_documents_with_their_hash() {
        let index =
            index(&[&kind::DEPLOYMENT, &kind::POD], |group, version| hash_text(format!("{group}{version}").as_bytes()));
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(paths.keys().collect::<Vec<_>>(), ["api/v1", "apis/apps/v1"]);
        let url = paths["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
        assert!(document("batch", "v1", kind::ALL).is_err());
    }
}
