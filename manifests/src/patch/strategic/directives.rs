//! The words of a strategic merge patch that are no data.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::patch::PatchError;

pub(super) const PATCH: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
pub(super) const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

/// What of a patch becomes data where there was none: directives and nulls go, and so does what is marked to be deleted.
pub(super) fn strip(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let directive = map.get(PATCH).and_then(Value::as_str);
            if directive == Some("delete") {
                return None;
            }
            Some(Value::Object(strip_map(map)))
        }
        Value::Array(items) => Some(Value::Array(strip_list(items))),
        scalar => Some(scalar),
    }
}

pub(super) fn strip_map(map: Map<String, Value>) -> Map<String, Value> {
    let data = map.into_iter().filter(|(name, _)| !is_directive(name));
    data.filter_map(|(name, value)| Some((name, strip(value)?))).collect()
}

/// An item that says `replace` speaks of its list and is no data. Nulls stay: dropping one would move what follows.
pub(super) fn strip_list(items: Vec<Value>) -> Vec<Value> {
    let data = items.into_iter().filter(|item| item.get(PATCH).and_then(Value::as_str) != Some("replace"));
    data.filter_map(|item| if item.is_null() { Some(item) } else { strip(item) }).collect()
}

/// `$retainKeys`: fields of `original` that it does not name go; the patch may set no others.
pub(super) fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: &Value,
    path: &str,
) -> Result<(), PatchError> {
    let Value::Array(keys) = keys else {
        return Err(PatchError::malformed(path, "`$retainKeys` is not a list"));
    };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let stray =
        patch.iter().find(|(name, value)| !value.is_null() && !is_directive(name) && !keys.contains(name.as_str()));
    if let Some((name, _)) = stray {
        return Err(PatchError::malformed(
            path,
            format!("the patch sets {name:?}, which its `$retainKeys` does not name"),
        ));
    }
    original.retain(|name, _| keys.contains(name.as_str()));
    Ok(())
}

fn is_directive(name: &str) -> bool {
    name == PATCH
        || name == RETAIN_KEYS
        || name.starts_with(SET_ELEMENT_ORDER)
        || name.starts_with(DELETE_FROM_PRIMITIVE_LIST)
}
