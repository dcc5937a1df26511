//! Conflicts: fields that two writers set without knowing of each other.

use automerge::{AutoCommit, ObjId, ObjType, ROOT, ReadDoc, Value as AmValue};
use serde_json::Value;

use super::OBJECT_DEPTH_MAX;
use super::mapping::{Large, View, is_reserved, shown};
use crate::channel::Hash;

/// Most conflicts that are listed.
const CONFLICTS_MAX: usize = 256;

/// A field with several concurrent values.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Field names from the object's root; items of keyed lists by the JSON array of their keys, as in
    /// `[80,"TCP"]`.
    pub path: Vec<String>,
    /// All values; the first is the one in force.
    pub values: Vec<ConflictingValue>,
}

/// One of the values of a conflict.
#[derive(Debug, Clone, PartialEq)]
pub struct ConflictingValue {
    /// The value; of a blob its name.
    pub value: Value,
    /// Who, as named in the edit; may be empty.
    pub author: String,
    /// When, by that writer's clock. Milliseconds.
    pub time_ms: u64,
    /// The change that set it.
    pub change: Hash,
}

/// All conflicts below a key of the root, in path order.
pub(super) fn of_object(doc: &AutoCommit, root_key: &str) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    if let Ok(Some((AmValue::Object(ObjType::Map), object))) = doc.get(ROOT, root_key) {
        walk(doc, &object, &mut Vec::new(), &mut conflicts);
    }
    conflicts
}

fn walk(doc: &AutoCommit, object: &ObjId, path: &mut Vec<String>, conflicts: &mut Vec<Conflict>) {
    if path.len() > OBJECT_DEPTH_MAX + 2 {
        return;
    }
    let entries: Vec<_> = doc
        .map_range(object, ..)
        .filter(|entry| !is_reserved(&entry.key))
        .map(|entry| (entry.key.to_string(), entry.conflict, entry.id(), AmValue::from(entry.value)))
        .collect();
    for (key, conflict, id, value) in entries {
        if conflicts.len() >= CONFLICTS_MAX {
            return;
        }
        path.push(shown(&key).to_owned());
        if conflict {
            conflicts.extend(of_key(doc, object, &key, path));
        }
        if let AmValue::Object(ObjType::Map) = value {
            walk(doc, &id, path, conflicts);
        }
        path.pop();
    }
}

fn of_key(doc: &AutoCommit, object: &ObjId, key: &str, path: &[String]) -> Option<Conflict> {
    let view = View { doc, heads: None, large: Large::Named };
    let all = doc.get_all(object, key).ok()?;
    let mut values = Vec::with_capacity(all.len());
    // automerge names the winner last.
    for (value, id) in all.iter().rev() {
        let change = doc.hash_for_opid(id)?;
        let made = ReadDoc::get_change_by_hash(doc, &change);
        values.push(ConflictingValue {
            value: view.value(value, id, path.len()).ok()?,
            author: made.as_ref().and_then(|made| made.message().map(str::to_owned)).unwrap_or_default(),
            time_ms: made.map_or(0, |made| u64::try_from(made.timestamp()).unwrap_or(0).saturating_mul(1000)),
            change: change.0,
        });
    }
    let differs = values.windows(2).any(|pair| pair[0].value != pair[1].value);
    differs.then(|| Conflict { path: path.to_vec(), values })
}
