//! Generates `manifests/schema/kubernetes.json` and `protobuf.json` from Kubernetes' published API tables.
//!
//! `cargo run -p flotilla-manifests --example generate_schema -- FOLDER [OUTPUT]`, where FOLDER holds `k8s-1.36-schemas.json` and
//! `k8s-1.36-protobuf-fields.json`, and OUTPUT is a folder. Only what served kinds reach is kept, without descriptions. Written one
//! schema a line: the files are JSON objects, and each line can be parsed alone.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flotilla_manifests::kind;
use serde_json::{Map, Value, json};

const SOURCE: &str = "k8s-1.36-schemas.json";
const PROTOBUF: &str = "k8s-1.36-protobuf-fields.json";
const DEFINITION: &str = "#/definitions/";
const COMPONENT: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// What the protocol itself needs beside the kinds: bodies of errors, deletions, patches, scales, watches and discovery.
const PROTOCOL: &[&str] = &[
    "io.k8s.api.authentication.v1.SelfSubjectReview",
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Condition",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
];
/// Keys of a schema node that are kept; everything else in the source says nothing this project uses.
const KEPT: &[&str] = &[
    "$ref",
    "additionalProperties",
    "format",
    "items",
    "oneOf",
    "properties",
    "required",
    "type",
    "x-kubernetes-group-version-kind",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-patch-strategy",
];

#[allow(dead_code, reason = "the test of the generated table includes this file as a module")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: generate_schema FOLDER [OUTPUT]")?;
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/schema");
    let output = arguments.next().unwrap_or_else(|| default.to_owned());
    let folder = Path::new(&folder);
    for (name, text) in [("kubernetes.json", table(folder)?), ("protobuf.json", protobuf_table(folder)?)] {
        let path = Path::new(&output).join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The text of the table of schemas.
pub(crate) fn table(folder: &Path) -> Result<String> {
    Ok(text_of(&kept(folder)?))
}

/// The text of the table of protobuf fields: number to the field's name in JSON, or `>` and the message whose fields stand in
/// JSON where this one is (Go's embedded structs).
pub(crate) fn protobuf_table(folder: &Path) -> Result<String> {
    let schemas = kept(folder)?;
    let source = read(&folder.join(PROTOBUF))?;
    let mut wanted: BTreeSet<String> = schemas.keys().cloned().collect();
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    while let Some(name) = wanted.pop_first() {
        let message = name.replacen("io.k8s.", "k8s.io.", 1);
        let Some(fields) = source["messages"][message.as_str()]["fields"].as_object() else { continue };
        let known = |field: &str| schemas.get(&name).is_none_or(|schema| schema["properties"].get(field).is_some());
        let mut row: BTreeMap<u64, String> = BTreeMap::new();
        for (number, field) in fields {
            let (stated, kind) = (field[0].as_str().unwrap_or(""), field[1].as_str().unwrap_or(""));
            let properties = schemas.get(&name).and_then(|schema| schema["properties"].as_object());
            let alike = properties.and_then(|map| map.keys().find(|known| known.eq_ignore_ascii_case(stated)));
            let text = match alike {
                _ if known(stated) => stated.to_owned(),
                Some(alike) => alike.clone(),
                None if kind.contains('.') => {
                    let embedded = kind.replacen("k8s.io.", "io.k8s.", 1);
                    if !rows.contains_key(&embedded) {
                        wanted.insert(embedded.clone());
                    }
                    format!(">{embedded}")
                }
                // The wire form of a special type, such as the seconds of a Time.
                None => continue,
            };
            row.insert(number.parse().context("a field without a number")?, text);
        }
        if !row.is_empty() {
            rows.insert(name, json!(row));
        }
    }
    Ok(text_of(&rows))
}

fn text_of(rows: &BTreeMap<String, Value>) -> String {
    let lines: Vec<String> = rows.iter().map(|(name, row)| format!("{}:{row}", json!(name))).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// The schemas that served kinds reach.
fn kept(folder: &Path) -> Result<BTreeMap<String, Value>> {
    let source = read(&folder.join(SOURCE))?;
    let definitions = source["definitions"].as_object().context("the source has no `definitions`")?;
    let mut kept: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: BTreeSet<String> = roots();
    while let Some(name) = wanted.pop_first() {
        let definition = definitions.get(&name).with_context(|| format!("the source does not define {name}"))?;
        let schema = special(&name).unwrap_or_else(|| compact(definition));
        references(&schema, &mut |found| {
            if !kept.contains_key(found) {
                wanted.insert(found.to_owned());
            }
        });
        if let Some(unknown) = untyped(&name, &schema) {
            bail!("{name}: the meaning of {unknown} is unknown to this generator");
        }
        kept.insert(name, schema);
    }
    Ok(kept)
}

fn roots() -> BTreeSet<String> {
    let kinds = kind::ALL.iter().filter(|kind| kind.schema.starts_with("io.k8s."));
    let kinds = kinds.flat_map(|kind| [kind.schema.to_owned(), format!("{}List", kind.schema)]);
    kinds.chain(PROTOCOL.iter().map(|name| (*name).to_owned())).collect()
}

/// Types whose published schema says `string` or `object` and whose JSON is something else.
fn special(name: &str) -> Option<Value> {
    let schema = match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        _ => return None,
    };
    Some(schema)
}

/// A definition with the keys this project uses, references made those of OpenAPI v3.
fn compact(schema: &Value) -> Value {
    let Some(map) = schema.as_object() else { return schema.clone() };
    let mut out = Map::new();
    for key in KEPT {
        let Some(value) = map.get(*key) else { continue };
        let value = match *key {
            "$ref" => json!(value.as_str().map(|text| text.replace(DEFINITION, COMPONENT))),
            "items" | "additionalProperties" => compact(value),
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                Value::Object(fields.map(|(name, field)| (name.clone(), compact(field))).collect())
            }
            "x-kubernetes-group-version-kind" => served_only(value),
            _ => value.clone(),
        };
        out.insert((*key).to_owned(), value);
    }
    Value::Object(out)
}

/// Kinds such as `DeleteOptions` stand in every group there is; only served groups are kept.
fn served_only(kinds: &Value) -> Value {
    let served = |entry: &&Value| {
        kind::ALL.iter().any(|kind| entry["group"] == kind.group && entry["version"] == kind.version)
            || entry["group"] == "autoscaling" && entry["version"] == "v1" && entry["kind"] == "Scale"
    };
    kinds.as_array().into_iter().flatten().filter(served).cloned().collect()
}

fn references(schema: &Value, found: &mut impl FnMut(&str)) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                found(name.trim_start_matches(COMPONENT));
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// The first thing in a schema whose type the loader of the table could only guess.
fn untyped(name: &str, schema: &Value) -> Option<String> {
    let opaque =
        [format!("{META}FieldsV1"), format!("{META}Patch"), "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned()];
    if special(name).is_some() || opaque.iter().any(|known| known == name) {
        return None;
    }
    let known = |schema: &Value| {
        let kind = schema["type"].as_str().unwrap_or("");
        match kind {
            "object" => schema.get("properties").is_some() || schema.get("additionalProperties").is_some(),
            "array" => schema.get("items").is_some(),
            _ => ["string", "integer", "number", "boolean"].contains(&kind) || schema.get("$ref").is_some(),
        }
    };
    if !known(schema) {
        return Some("the schema itself".to_owned());
    }
    let fields = schema["properties"].as_object().into_iter().flatten();
    fields.filter(|(_, field)| !known(field)).map(|(name, _)| format!("field {name}")).next()
}
