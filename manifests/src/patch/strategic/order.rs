//! The order of a merged list.
//!
//! What the patch names comes in the patch's order; what only the server has keeps its own order and its place before the
//! first item it stood before. Items are told apart by their identity: the value of the merge key, or the scalar itself.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::directives::{PATCH, SET_ELEMENT_ORDER};
use crate::patch::PatchError;

/// Takes every `$setElementOrder/<list>` out of a patch, with the name of its list.
pub(super) fn take_orders(patch: &mut Map<String, Value>, path: &str) -> Result<Vec<(String, Vec<Value>)>, PatchError> {
    let names: Vec<String> = patch.keys().filter(|name| name.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
    let mut orders = Vec::with_capacity(names.len());
    for directive in names {
        let name = directive[SET_ELEMENT_ORDER.len()..].to_owned();
        match patch.remove(&directive) {
            Some(Value::Array(order)) => orders.push((name, order)),
            _ => return Err(PatchError::malformed(&super::join(path, &name), "`$setElementOrder` is not a list")),
        }
    }
    Ok(orders)
}

/// The items of a patch must stand in the order it demands.
pub(super) fn check(changes: &[Value], order: &[Value], merge_key: Option<&str>, path: &str) -> Result<(), PatchError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut demanded = order.iter();
    // What is deleted has no place, and neither has a word about the whole list.
    let speaks_only = |change: &Value| {
        let directive = change.get(PATCH).and_then(Value::as_str);
        directive == Some("delete") || (directive.is_some() && merge_key.is_some_and(|key| change.get(key).is_none()))
    };
    for change in changes.iter().filter(|change| !speaks_only(change)) {
        let wanted = identity(change, merge_key, path)?;
        let mut found = false;
        for item in demanded.by_ref() {
            if identity(item, merge_key, path)? == wanted {
                found = true;
                break;
            }
        }
        if !found {
            let wanted: String = wanted.chars().take(100).collect();
            let why = format!("the order in the patch's list doesn't match its `$setElementOrder` list at {wanted}");
            return Err(PatchError::malformed(path, why));
        }
    }
    Ok(())
}

/// Orders `merged`: items in `order` by it, the others by `server`, and both woven together by `server`.
pub(super) fn arrange(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    merge_key: Option<&str>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let in_order = positions(order, merge_key, path)?;
    let in_server = positions(server, merge_key, path)?;
    let mut named = Vec::new();
    let mut server_only = Vec::new();
    for item in merged {
        let identity = identity(&item, merge_key, path)?;
        let place = in_server.get(&identity).copied();
        match in_order.get(&identity) {
            Some(position) => named.push((*position, place, item)),
            None => server_only.push((place.unwrap_or(usize::MAX), place, item)),
        }
    }
    named.sort_by_key(|(position, ..)| *position);
    server_only.sort_by_key(|(position, ..)| *position);
    let mut woven = Vec::with_capacity(named.len() + server_only.len());
    let mut named = named.into_iter().peekable();
    let mut server_only = server_only.into_iter().peekable();
    while let Some((_, right, _)) = named.peek() {
        let before = match (server_only.peek(), right) {
            (Some((_, Some(left), _)), Some(right)) => left < right,
            _ => false,
        };
        let next = if before { server_only.next() } else { named.next() };
        woven.extend(next.map(|(_, _, item)| item));
    }
    woven.extend(server_only.map(|(_, _, item)| item));
    Ok(woven)
}

/// What tells an item from its neighbours.
pub(super) fn identity(item: &Value, merge_key: Option<&str>, path: &str) -> Result<String, PatchError> {
    match merge_key {
        Some(key) if item.is_object() => match item.get(key) {
            Some(value) => Ok(value.to_string()),
            None => {
                let fields: Vec<&str> =
                    item.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).take(8).collect();
                let why = format!("map: [{}] does not contain declared merge key: {key}", fields.join(" "));
                Err(PatchError::does_not_fit(path, why))
            }
        },
        _ => Ok(item.to_string()),
    }
}

fn positions(list: &[Value], merge_key: Option<&str>, path: &str) -> Result<HashMap<String, usize>, PatchError> {
    let mut positions = HashMap::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        positions.entry(identity(item, merge_key, path)?).or_insert(index);
    }
    Ok(positions)
}
