//! Strategic merge patch: JSON merge that knows which lists are maps in disguise.
//!
//! Follows Kubernetes' "Strategic Merge Patch" (sig-api-machinery) and the behaviour of its apimachinery: merge keys and
//! strategies come from the schema; `$patch`, `$retainKeys`, `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>`
//! direct the merge. Two liberties are taken, both where apimachinery only fails: `$patch: merge` means what it says, and a list
//! below a field of free form is replaced.

mod directives;
mod order;

use std::collections::HashMap;

use serde_json::{Map, Value};

use self::directives::{DELETE_FROM_PRIMITIVE_LIST, PATCH, RETAIN_KEYS, SET_ELEMENT_ORDER};
use super::PatchError;
use crate::schema::Schema;

/// Merges `patch` into `original`. Recursion is as deep as `patch`.
pub fn apply(original: Value, patch: Value, schema: Option<Schema>) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::malformed("", "a strategic merge patch is a JSON object"));
    };
    let original = match original {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    merge_map(original, patch, schema, "").map(Value::Object)
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<Schema>,
    path: &str,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => return Ok(directives::strip_map(patch)),
            Some("delete") => return Ok(Map::new()),
            Some("merge") => {}
            _ => return Err(unknown_directive(path, &directive)),
        }
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        directives::retain_keys(&mut original, &patch, &keys, path)?;
    }
    for (name, list) in order::take_orders(&mut patch, path)? {
        let list_schema = schema.and_then(|schema| schema.step(&name));
        let here = join(path, &name);
        merge_ordered(&mut original, &mut patch, &name, &list, list_schema, &here)?;
    }
    for (name, change) in patch {
        if let Some(name) = name.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            delete_scalars(&mut original, name, &change, &join(path, name))?;
            continue;
        }
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let here = join(path, &name);
        let below = schema.and_then(|schema| schema.step(&name));
        match (original.remove(&name), change) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                original.insert(name, Value::Object(merge_map(old, new, below, &here)?));
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                original.insert(name, Value::Array(merge_list(old, new, below, &here)?));
            }
            (_, change) => {
                if let Some(value) = directives::strip(change) {
                    original.insert(name, value);
                }
            }
        }
    }
    Ok(original)
}

/// A list with a `$setElementOrder` beside it.
fn merge_ordered(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    name: &str,
    order: &[Value],
    schema: Option<Schema>,
    path: &str,
) -> Result<(), PatchError> {
    let merge_key = schema.and_then(Schema::patch_merge_key);
    let list_of = |value: Value| match value {
        Value::Array(items) => Ok(items),
        _ => Err(PatchError::malformed(path, "`$setElementOrder` stands beside something that is not a list")),
    };
    // A null beside an order deletes the list, as it does anywhere.
    if patch.get(name).is_some_and(Value::is_null) {
        return Ok(());
    }
    let changes = patch.remove(name).map(list_of).transpose()?;
    let Some(before) = original.remove(name).map(list_of).transpose()? else {
        let Some(changes) = changes else { return Ok(()) };
        order::check(&changes, order, merge_key, path)?;
        let added = directives::strip_list(changes);
        let sorted = order::arrange(added, order, &[], merge_key, path)?;
        original.insert(name.to_owned(), Value::Array(sorted));
        return Ok(());
    };
    let merged = match changes {
        None => before.clone(),
        Some(changes) => {
            order::check(&changes, order, merge_key, path)?;
            merge_list(before.clone(), changes, schema, path)?
        }
    };
    let sorted = order::arrange(merged, order, &before, merge_key, path)?;
    original.insert(name.to_owned(), Value::Array(sorted));
    Ok(())
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    schema: Option<Schema>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let merges = schema.is_some_and(|schema| schema.patch_strategy().merge);
    if !merges {
        return Ok(directives::strip_list(patch));
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let of_maps = original.iter().chain(&patch).filter(|item| item.is_object()).count();
    if of_maps == 0 {
        return merge_scalars(original, patch, path);
    }
    if of_maps != original.len() + patch.len() {
        return Err(PatchError::does_not_fit(path, "list element types are not identical"));
    }
    let Some(key) = schema.and_then(Schema::patch_merge_key) else {
        return Err(PatchError::does_not_fit(path, "cannot merge lists without merge key"));
    };
    merge_list_by_key(original, patch, key, schema.and_then(Schema::items), path)
}

/// A union, in the patch's order where it says one.
fn merge_scalars(original: Vec<Value>, patch: Vec<Value>, path: &str) -> Result<Vec<Value>, PatchError> {
    let mut seen = std::collections::HashSet::new();
    let both = original.iter().chain(&patch).filter(|item| seen.insert(item.to_string())).cloned().collect();
    order::arrange(both, &patch, &original, None, path)
}

fn merge_list_by_key(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &'static str,
    items: Option<Schema>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let mut changes = Vec::with_capacity(patch.len());
    let mut deleted = std::collections::HashSet::new();
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or("")) {
            None | Some("merge") => changes.push(item),
            Some("replace") => replace = true,
            Some("delete") => drop(deleted.insert(order::identity(&item, Some(key), path)?)),
            Some(_) => return Err(unknown_directive(path, &item[PATCH])),
        }
    }
    if replace {
        return Ok(directives::strip_list(changes));
    }
    if !deleted.is_empty() {
        // An item without its key cannot be meant, and stays.
        original.retain(|item| !order::identity(item, Some(key), path).is_ok_and(|value| deleted.contains(&value)));
    }
    let before = original.clone();
    let mut places = HashMap::new();
    for (index, item) in original.iter().enumerate() {
        places.entry(order::identity(item, Some(key), path)?).or_insert(index);
    }
    for change in &changes {
        let identity = order::identity(change, Some(key), path)?;
        let Value::Object(change) = change.clone() else { continue };
        match places.get(&identity) {
            Some(index) => {
                let here = format!("{path}[{key}={}]", plain(&change[key]));
                let Value::Object(old) = original[*index].take() else { continue };
                original[*index] = Value::Object(merge_map(old, change, items, &here)?);
            }
            None => {
                if let Some(added) = directives::strip(Value::Object(change)) {
                    places.insert(identity, original.len());
                    original.push(added);
                }
            }
        }
    }
    order::arrange(original, &changes, &before, Some(key), path)
}

fn delete_scalars(original: &mut Map<String, Value>, name: &str, gone: &Value, path: &str) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return Err(PatchError::malformed(path, "`$deleteFromPrimitiveList` is not a list"));
    };
    if let Some(Value::Array(list)) = original.get_mut(name) {
        let gone: std::collections::HashSet<String> = gone.iter().map(Value::to_string).collect();
        list.retain(|item| !gone.contains(&item.to_string()));
    }
    Ok(())
}

fn unknown_directive(path: &str, directive: &Value) -> PatchError {
    PatchError::malformed(path, format!("unknown patch type: {}", plain(directive)))
}

fn join(path: &str, name: &str) -> String {
    debug_assert!(!name.starts_with(SET_ELEMENT_ORDER), "orders are taken out before the fields are walked");
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
