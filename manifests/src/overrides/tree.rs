//! Reading and changing JSON at a [`Path`].

use serde_json::{Map, Value};

use super::path::{Path, Step, key_text};
use crate::schema::{Schema, Type};

/// The value at a path.
pub(super) fn get<'a>(root: &'a Value, path: &Path) -> Option<&'a Value> {
    path.steps().iter().try_fold(root, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(keys) => value.as_array()?.iter().find(|item| is_item(item, keys)),
    })
}

/// Puts a value at a path, making the maps on the way. A list item is replaced or, as the last step, appended; an item on the
/// way must exist. `false`, and the tree half-made, when the place cannot be reached.
pub(super) fn set(root: &mut Value, schema: Schema, path: &Path, wish: Value) -> bool {
    let Some((last, way)) = path.steps().split_last() else { return false };
    let mut value = root;
    let mut schema = Some(schema);
    for (index, step) in way.iter().enumerate() {
        let next_is_item = matches!(path.steps().get(index + 1), Some(Step::Item(_)));
        let found = match step {
            Step::Field(name) => value.as_object_mut().map(|map| {
                let empty = if next_is_item { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
                let entry = map.entry(name.clone()).or_insert(Value::Null);
                if entry.is_null() {
                    *entry = empty;
                }
                entry
            }),
            Step::Item(keys) => value.as_array_mut().and_then(|list| list.iter_mut().find(|item| is_item(item, keys))),
        };
        let Some(found) = found else { return false };
        value = found;
        schema = schema.and_then(|schema| advance(schema, step));
    }
    match last {
        Step::Field(name) => {
            let Some(map) = value.as_object_mut() else { return false };
            map.insert(name.clone(), wish);
        }
        Step::Item(keys) => {
            let Some(list) = value.as_array_mut() else { return false };
            match list.iter_mut().find(|item| is_item(item, keys)) {
                Some(item) => *item = wish,
                None => list.push(wish),
            }
        }
    }
    true
}

/// Takes away what is at a path. Already gone is as good; only a place that could never hold it is `false`.
pub(super) fn remove(root: &mut Value, path: &Path) -> bool {
    let Some((last, way)) = path.steps().split_last() else { return false };
    let mut value = root;
    for step in way {
        let next = match step {
            Step::Field(name) => value.get_mut(name),
            Step::Item(keys) => value.as_array_mut().and_then(|list| list.iter_mut().find(|item| is_item(item, keys))),
        };
        let Some(next) = next else { return true };
        value = next;
    }
    match (last, value) {
        (Step::Field(name), Value::Object(map)) => {
            map.remove(name);
            true
        }
        (Step::Item(keys), Value::Array(list)) => {
            list.retain(|item| !is_item(item, keys));
            true
        }
        (_, Value::Null) => true,
        _ => false,
    }
}

/// The schema one step further; a list's item for an item step.
pub(super) fn advance(schema: Schema, step: &Step) -> Option<Schema> {
    match step {
        Step::Field(name) if schema.node_type() == Type::Object => schema.field(name),
        Step::Field(_) | Step::Item(_) => schema.items(),
    }
}

fn is_item(item: &Value, keys: &[(String, String)]) -> bool {
    keys.iter().all(|(name, text)| match item.get(name) {
        Some(value) => key_text(value).as_deref() == Some(text),
        None => text.is_empty(),
    })
}
