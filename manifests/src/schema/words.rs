//! What types and fields mean, for `kubectl explain`: the lines of `schema/words.txt`, put into OpenAPI when it is served.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

const WORDS: &str = include_str!("../../schema/words.txt");

/// `PodSpec.containers` or `PodSpec` to its words.
fn words() -> &'static BTreeMap<&'static str, &'static str> {
    static TABLE: OnceLock<BTreeMap<&'static str, &'static str>> = OnceLock::new();
    TABLE.get_or_init(|| {
        WORDS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": ")).collect()
    })
}

fn of_type(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Writes the words into a component.
pub(super) fn describe(name: &str, component: &mut Value) {
    let table = words();
    let own = of_type(name);
    let Some(map) = component.as_object_mut() else { return };
    if let Some(text) = table.get(own) {
        map.insert("description".to_owned(), (*text).into());
    }
    let Some(fields) = map.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, schema) in fields {
        let text = table.get(format!("{own}.{field}").as_str()).or_else(|| table.get(format!("*.{field}").as_str()));
        if let (Some(text), Value::Object(schema)) = (text, schema) {
            put(schema, text);
        }
    }
}

/// Beside a reference nothing may stand (OpenAPI 3.0): it moves into `allOf`, as Kubernetes writes it.
fn put(schema: &mut Map<String, Value>, text: &str) {
    if let Some(reference) = schema.remove("$ref") {
        schema.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
    schema.insert("description".to_owned(), text.into());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::kind;
    use crate::schema::{components_for, named, names, of};

    #[test]
    fn every_line_is_about_something_and_is_said_once() {
        let lines: Vec<&str> = WORDS.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), words().len(), "a line is there twice, or is none");
        let types: BTreeMap<&str, &str> = names().map(|name| (of_type(name), name)).collect();
        for subject in words().keys() {
            let (own, field) = subject.split_once('.').map_or((*subject, None), |(own, field)| (own, Some(field)));
            if own == "*" {
                continue;
            }
            let full = types.get(own).unwrap_or_else(|| panic!("{own} is no type"));
            let known = field.is_none_or(|field| named(full).unwrap().field(field).is_some());
            assert!(known, "{subject} is no field");
        }
    }

    #[test]
    fn every_kind_and_its_own_fields_are_explained() {
        for kind in kind::ALL {
            assert!(words().contains_key(kind.name), "{kind} has no words");
            let mut component = crate::schema::openapi_component(kind.schema).unwrap();
            describe(kind.schema, &mut component);
            for field in ["apiVersion", "kind", "metadata", "spec", "data"] {
                if of(kind).field(field).is_some() {
                    assert!(component["properties"][field]["description"].is_string(), "{kind}.{field}");
                }
            }
        }
    }

    #[test]
    fn a_reference_stays_one() {
        let components = components_for("", "v1");
        let pod = &components["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
        assert_eq!(pod["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
        assert_eq!(pod.get("$ref"), None);
    }
}
