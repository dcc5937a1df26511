//! Conflicts: fields that two writers set without knowing of each other.

use serde_json::Value;

use crate::channel::Hash;

/// A field with several concurrent values.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Field names from the object's root; items of keyed lists by their keys, as in `ports[containerPort=80,protocol=TCP]`.
    pub path: Vec<String>,
    /// All values; the first is the one in force.
    pub values: Vec<ConflictingValue>,
}

/// One of the values of a conflict.
#[derive(Debug, Clone, PartialEq)]
pub struct ConflictingValue {
    /// The value.
    pub value: Value,
    /// Who, as named in the edit; may be empty.
    pub author: String,
    /// When, by that writer's clock. Milliseconds.
    pub time_ms: u64,
    /// The change that set it.
    pub change: Hash,
}
