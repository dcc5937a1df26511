//! JSON merge patch (RFC 7386), and the patch between two values.

use serde_json::{Map, Value};

/// Merges objects, replaces everything else; null removes. Recursion is as deep as `patch`.
pub fn apply(target: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut merged = match target {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (name, change) in changes {
        if change.is_null() {
            merged.remove(name);
        } else {
            let before = merged.remove(name).unwrap_or(Value::Null);
            merged.insert(name.clone(), apply(before, change));
        }
    }
    Value::Object(merged)
}

/// The patch that makes `after` of `before`. Exact for objects without nulls, which is what is stored here; a null in `after` is
/// not expressible and reads as absent.
pub fn diff(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let mut patch = Map::new();
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, new) in after {
        match before.get(name) {
            Some(old) if old == new => {}
            Some(old) => drop(patch.insert(name.clone(), diff(old, new))),
            None => drop(patch.insert(name.clone(), new.clone())),
        }
    }
    Value::Object(patch)
}
