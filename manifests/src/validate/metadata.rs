//! `metadata` of objects and of Pod templates: names, labels, annotations, finalizers, owners.

use serde_json::Value;

use super::place::{At, Faults};
use crate::kind::{Kind, Scope};
use crate::label::syntax;

/// Keys and values of all annotations together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

pub(super) fn object(kind: &Kind, root: &At<'_>, faults: &mut Faults) {
    let metadata = root.field("metadata");
    name(kind, &metadata, faults);
    let namespace = metadata.field("namespace");
    match kind.scope {
        Scope::Namespaced => faults.required_syntax(&namespace, syntax::dns_label),
        Scope::Cluster if namespace.is_said() => faults.forbidden(&namespace, "not allowed on this type"),
        Scope::Cluster => {}
    }
    labels(&metadata.field("labels"), faults);
    annotations(&metadata.field("annotations"), faults);
    finalizers(&metadata.field("finalizers"), faults);
    owners(&metadata.field("ownerReferences"), faults);
    faults.not_negative(&metadata.field("generation"));
}

/// `metadata` of a Pod template: only labels and annotations count.
pub(super) fn template(template: &At<'_>, faults: &mut Faults) {
    let metadata = template.field("metadata");
    labels(&metadata.field("labels"), faults);
    annotations(&metadata.field("annotations"), faults);
}

fn name(kind: &Kind, metadata: &At<'_>, faults: &mut Faults) {
    let check = match kind.name {
        "Namespace" => syntax::dns_label,
        _ => syntax::dns_subdomain,
    };
    let generate = metadata.field("generateName");
    // The random end follows: a prefix may close with what a name may not.
    faults.syntax(&generate, |text| match text.strip_suffix('-') {
        Some(rest) => check(&format!("{rest}a")),
        None => check(text),
    });
    let name = metadata.field("name");
    if name.is_said() {
        faults.syntax(&name, check);
    } else {
        faults.required(&name, "name or generateName is required");
    }
}

/// A map of labels: of an object, of a template, of a node selector.
pub(super) fn labels(labels: &At<'_>, faults: &mut Faults) {
    for (key, value) in labels.entries() {
        if let Err(why) = syntax::qualified_name(key) {
            faults.invalid_as(labels, &Value::from(key), why);
        }
        if let Err(why) = syntax::label_value(value.text()) {
            faults.invalid_as(labels, value.value, why);
        }
    }
}

fn annotations(annotations: &At<'_>, faults: &mut Faults) {
    let mut total = 0;
    for (key, value) in annotations.entries() {
        total += key.len() + value.text().len();
        if let Err(why) = syntax::qualified_name(&key.to_ascii_lowercase()) {
            faults.invalid_as(annotations, &Value::from(key), why);
        }
    }
    if total > ANNOTATIONS_BYTES_MAX {
        faults.too_long(annotations, ANNOTATIONS_BYTES_MAX);
    }
}

fn finalizers(finalizers: &At<'_>, faults: &mut Faults) {
    for item in finalizers.items() {
        finalizer(&item, faults);
    }
    let has = |name: &str| finalizers.items().any(|item| item.text() == name);
    if has("orphan") && has("foregroundDeletion") {
        faults.invalid(finalizers, "orphan and foregroundDeletion cannot both be set");
    }
}

pub(super) fn finalizer(item: &At<'_>, faults: &mut Faults) {
    if let Err(why) = syntax::qualified_name(item.text()) {
        faults.invalid(item, why);
    } else if !item.text().contains('/') && !STANDARD_FINALIZERS.contains(&item.text()) {
        faults.invalid(item, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn owners(owners: &At<'_>, faults: &mut Faults) {
    let mut controller = "";
    for owner in owners.items() {
        for (name, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            let field = owner.field(name);
            if !field.is_said() {
                faults.invalid_as(&field, &Value::from(""), why);
            }
        }
        if owner.field("kind").text() == "Event" && owner.field("apiVersion").text() == "v1" {
            faults.invalid(&owner, "v1, Kind=Event is disallowed from being an owner");
        }
        if !owner.field("controller").is_true() {
            continue;
        }
        let name = owner.value["name"].as_str().unwrap_or("");
        if controller.is_empty() {
            controller = name;
        } else {
            let why = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
            );
            faults.invalid(owners, &why);
        }
    }
}
