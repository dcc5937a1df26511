//! Values and their fields: which fields a value has, what two values differ in, one merged into another, fields removed.
//!
//! Everything goes by the schema: an atomic list or map is one field, a list with keys is a map of its items, the items of a set are
//! fields of their own (structured merge, KEP-555). A list whose items lack or repeat their keys is one field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{self, FieldSet};
use crate::schema::{ListType, Schema, Type};

/// How a value is divided into fields.
enum Shape<'a> {
    Whole,
    Fields(&'a Map<String, Value>),
    /// Items by element, in order.
    Items(Vec<(String, &'a Value)>),
}

fn shape(value: &Value, schema: Option<Schema>) -> Shape<'_> {
    match value {
        Value::Object(map) if schema.is_none_or(|schema| !is_whole(schema)) => Shape::Fields(map),
        Value::Array(list) => match schema.map(Schema::list_type) {
            Some(ListType::Map(keys)) => items(list, |item| fields::key(item, keys)),
            Some(ListType::Set) => items(list, |item| Some(fields::member(item))),
            Some(ListType::Atomic) | None => Shape::Whole,
        },
        _ => Shape::Whole,
    }
}

fn is_whole(schema: Schema) -> bool {
    schema.is_atomic() || !matches!(schema.node_type(), Type::Object | Type::Map | Type::Any)
}

fn items(list: &[Value], element: impl Fn(&Value) -> Option<String>) -> Shape<'_> {
    let mut found: Vec<(String, &Value)> = Vec::with_capacity(list.len());
    let mut seen = std::collections::BTreeSet::new();
    for item in list {
        match element(item) {
            Some(element) if seen.insert(element.clone()) => found.push((element, item)),
            _ => return Shape::Whole,
        }
    }
    Shape::Items(found)
}

/// Whether a list that has keys or is a set lacks or repeats them, and where.
pub(super) fn repeated(value: &Value, schema: Option<Schema>, path: &str) -> Option<String> {
    let keyed = matches!(schema.map(Schema::list_type), Some(ListType::Map(_) | ListType::Set));
    match shape(value, schema) {
        Shape::Whole if keyed && value.is_array() => Some(path.to_owned()),
        Shape::Whole => None,
        Shape::Fields(map) => {
            map.iter().find_map(|(name, value)| repeated(value, child(schema, name), &format!("{path}.{name}")))
        }
        Shape::Items(items) => {
            let item = schema.and_then(Schema::items);
            items.iter().find_map(|(element, value)| repeated(value, item, &format!("{path}[{element}]")))
        }
    }
}

fn child(schema: Option<Schema>, name: &str) -> Option<Schema> {
    let schema = schema?;
    match schema.node_type() {
        Type::Object => schema.field(name),
        Type::Map => schema.items(),
        _ => None,
    }
}

/// Whether a field's name is the author's own and not the schema's: it is a field even when its value has fields.
fn is_free(schema: Option<Schema>, name: &str) -> bool {
    match schema {
        Some(schema) if schema.node_type() == Type::Object => schema.field(name).is_none(),
        _ => true,
    }
}

fn says_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// The fields a value has.
pub(super) fn fields_of(value: &Value, schema: Option<Schema>) -> FieldSet {
    let mut set = FieldSet::default();
    collect(value, schema, &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, schema: Option<Schema>, path: &mut Vec<String>, set: &mut FieldSet) {
    match shape(value, schema) {
        Shape::Whole => set.insert(path),
        Shape::Fields(map) => {
            for (name, value) in map {
                path.push(fields::field(name));
                if says_nothing(value) || is_free(schema, name) {
                    set.insert(path);
                }
                if !says_nothing(value) {
                    collect(value, child(schema, name), path, set);
                }
                path.pop();
            }
        }
        Shape::Items(items) => {
            for (element, item) in items {
                path.push(element);
                set.insert(path);
                collect(item, schema.and_then(Schema::items), path, set);
                path.pop();
            }
        }
    }
}

/// What changed between two values.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Fields that are new or have another value.
    pub(super) written: FieldSet,
    pub(super) removed: FieldSet,
}

pub(super) fn difference(before: &Value, after: &Value, schema: Option<Schema>) -> Difference {
    let mut found = Difference::default();
    compare(Some(before), Some(after), schema, &mut Vec::new(), &mut found);
    found
}

fn compare(
    before: Option<&Value>,
    after: Option<&Value>,
    schema: Option<Schema>,
    path: &mut Vec<String>,
    found: &mut Difference,
) {
    if before == after {
        return;
    }
    let (before, after) = match (before, after) {
        (Some(before), Some(after)) => (before, after),
        (None, Some(after)) => return collect_under(after, schema, path, &mut found.written),
        (Some(before), None) => return collect_under(before, schema, path, &mut found.removed),
        (None, None) => return,
    };
    let pairs = match (shape(before, schema), shape(after, schema)) {
        (Shape::Fields(old), Shape::Fields(new)) => {
            let rows = |map: &'_ Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            let mut names = rows(old);
            names.extend(rows(new).into_iter().filter(|name| !old.contains_key(name)));
            names
                .into_iter()
                .map(|name| (fields::field(&name), child(schema, &name), old.get(&name), new.get(&name)))
                .collect::<Vec<_>>()
        }
        (Shape::Items(old), Shape::Items(new)) => {
            let item = schema.and_then(Schema::items);
            let mut rows: BTreeMap<String, (Option<&Value>, Option<&Value>)> = BTreeMap::new();
            for (element, value) in old {
                rows.entry(element).or_default().0 = Some(value);
            }
            for (element, value) in new {
                rows.entry(element).or_default().1 = Some(value);
            }
            rows.into_iter().map(|(element, (old, new))| (element, item, old, new)).collect()
        }
        _ => {
            found.written.insert(path);
            return;
        }
    };
    for (element, schema, old, new) in pairs {
        path.push(element);
        compare(old, new, schema, path, found);
        path.pop();
    }
}

/// A whole value that came or went: its fields, and itself where it is an item or has none.
fn collect_under(value: &Value, schema: Option<Schema>, path: &mut Vec<String>, set: &mut FieldSet) {
    let is_item = path.last().is_some_and(|element| !element.starts_with("f:"));
    if is_item || says_nothing(value) {
        set.insert(path);
    }
    if !says_nothing(value) {
        collect(value, schema, path, set);
    }
}

/// What is there with what is applied on top; of lists the order of what is applied.
pub(super) fn merged(live: Option<&Value>, applied: &Value, schema: Option<Schema>) -> Value {
    let Some(live) = live else { return applied.clone() };
    match (shape(live, schema), shape(applied, schema)) {
        (Shape::Fields(old), Shape::Fields(new)) => {
            let mut out = old.clone();
            for (name, value) in new {
                out.insert(name.clone(), merged(old.get(name), value, child(schema, name)));
            }
            Value::Object(out)
        }
        (Shape::Items(old), Shape::Items(new)) => {
            Value::Array(merged_items(&old, &new, schema.and_then(Schema::items)))
        }
        _ => applied.clone(),
    }
}

/// Items of both in the order of what is applied; what is there alone keeps its place among its neighbours.
fn merged_items(old: &[(String, &Value)], new: &[(String, &Value)], schema: Option<Schema>) -> Vec<Value> {
    let known: BTreeMap<&str, &Value> = old.iter().map(|(element, value)| (element.as_str(), *value)).collect();
    let wanted: BTreeMap<&str, &Value> = new.iter().map(|(element, value)| (element.as_str(), *value)).collect();
    let mut out = Vec::with_capacity(old.len() + new.len());
    let mut old = old.iter().peekable();
    for (element, value) in new {
        while let Some((other, item)) = old.peek() {
            if wanted.contains_key(other.as_str()) {
                break;
            }
            out.push((*item).clone());
            old.next();
        }
        if old.peek().is_some_and(|(other, _)| other == element) {
            old.next();
        }
        out.push(merged(known.get(element.as_str()).copied(), value, schema));
    }
    out.extend(old.filter(|(element, _)| !wanted.contains_key(element.as_str())).map(|(_, item)| (*item).clone()));
    out
}

/// Takes away what `gone` has and `kept` has not. A struct of which nothing is kept goes with what was defaulted in it; a map or a
/// list that loses its last entry goes too.
pub(super) fn remove(value: &mut Value, gone: &FieldSet, kept: &FieldSet, schema: Option<Schema>, depth: usize) {
    let elements: Vec<(usize, String)> = match shape(value, schema) {
        Shape::Items(items) => items.into_iter().map(|(element, _)| element).enumerate().collect(),
        _ => Vec::new(),
    };
    match value {
        Value::Object(map) => {
            for (element, entry) in gone.entries() {
                let Some(name) = element.strip_prefix("f:") else { continue };
                let below = child(schema, name);
                let kept_entry = kept.entry(element);
                let is_struct = below.is_some_and(|below| below.node_type() == Type::Object);
                if kept_entry.is_none() && (entry.member || (is_struct && depth > 0)) {
                    map.remove(name);
                    continue;
                }
                let nothing = FieldSet::default();
                let Some(inner) = map.get_mut(name) else { continue };
                let was_empty = is_empty(inner);
                remove(inner, &entry.below, kept_entry.map_or(&nothing, |kept| &kept.below), below, depth + 1);
                if !was_empty && is_empty(inner) && kept_entry.is_none() {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) => {
            let item = schema.and_then(Schema::items);
            let mut leaving = Vec::new();
            for (index, element) in elements {
                let Some(entry) = gone.entry(&element) else { continue };
                match kept.entry(&element) {
                    None if entry.member => leaving.push(index),
                    kept_entry => {
                        let nothing = FieldSet::default();
                        let kept = kept_entry.map_or(&nothing, |kept| &kept.below);
                        remove(&mut list[index], &entry.below, kept, item, depth + 1);
                    }
                }
            }
            for index in leaving.into_iter().rev() {
                list.remove(index);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}
