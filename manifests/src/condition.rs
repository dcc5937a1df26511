//! Conditions of a status (api-conventions, "Typical status properties").
//!
//! Owns one rule: `lastTransitionTime` moves only when `status` does.

use serde_json::{Map, Value, json};

use crate::time::Timestamp;

/// What a condition is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition<'a> {
    /// `type`: `Ready`, `Available`, `Progressing`, ...
    pub name: &'a str,
    pub status: Truth,
    /// One CamelCase word.
    pub reason: &'a str,
    pub message: &'a str,
}

/// The three values of a condition's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }

    pub fn of(yes: bool) -> Self {
        if yes { Self::True } else { Self::False }
    }
}

/// Sets a condition in `status.conditions` and says whether anything changed. Fields it does not know (such as
/// `lastUpdateTime` or `observedGeneration`) are kept.
pub fn set(status: &mut Value, condition: &Condition<'_>, now: Timestamp) -> bool {
    if !status.is_object() {
        *status = Value::Object(Map::new());
    }
    let Some(status) = status.as_object_mut() else { return false };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return false };
    let found = list.iter_mut().filter_map(Value::as_object_mut).find(|entry| text(entry, "type") == condition.name);
    let Some(entry) = found else {
        let mut entry = Map::new();
        entry.insert("type".into(), condition.name.into());
        write(&mut entry, condition);
        entry.insert("lastTransitionTime".into(), now.to_rfc3339().into());
        list.push(Value::Object(entry));
        return true;
    };
    let moved = text(entry, "status") != condition.status.as_str();
    let same = !moved && text(entry, "reason") == condition.reason && text(entry, "message") == condition.message;
    if same {
        return false;
    }
    write(entry, condition);
    if moved || !entry.contains_key("lastTransitionTime") {
        entry.insert("lastTransitionTime".into(), now.to_rfc3339().into());
    }
    true
}

/// The condition's entry in `status.conditions`.
pub fn find<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let list = status.get("conditions")?.as_array()?;
    list.iter().find(|entry| entry.get("type").and_then(Value::as_str) == Some(name))
}

/// Whether the condition is there and `True`.
pub fn is_true(status: &Value, name: &str) -> bool {
    find(status, name).and_then(|entry| entry.get("status")).and_then(Value::as_str) == Some("True")
}

/// Takes the condition away and says whether it was there.
pub fn remove(status: &mut Value, name: &str) -> bool {
    let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) else { return false };
    let before = list.len();
    list.retain(|entry| entry.get("type").and_then(Value::as_str) != Some(name));
    list.len() != before
}

fn text<'a>(entry: &'a Map<String, Value>, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or("")
}

/// An empty reason or message is left out, as Kubernetes' `omitempty` does.
fn write(entry: &mut Map<String, Value>, condition: &Condition<'_>) {
    entry.insert("status".into(), condition.status.as_str().into());
    for (field, text) in [("reason", condition.reason), ("message", condition.message)] {
        if text.is_empty() {
            entry.remove(field);
        } else {
            entry.insert(field.into(), text.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_1: Timestamp = Timestamp(1_000);
    const AT_9: Timestamp = Timestamp(9_000);

    fn ready(status: Truth, reason: &'static str) -> Condition<'static> {
        Condition { name: "Ready", status, reason, message: "" }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut status = json!(null);
        assert!(set(&mut status, &ready(Truth::False, "Starting"), AT_1));
        assert!(!set(&mut status, &ready(Truth::False, "Starting"), AT_9));
        assert!(set(&mut status, &ready(Truth::False, "StillStarting"), AT_9));
        assert_eq!(
            find(&status, "Ready").map(|entry| entry["lastTransitionTime"].clone()),
            Some("1970-01-01T00:00:01Z".into())
        );
        assert!(set(&mut status, &ready(Truth::True, ""), AT_9));
        let expected = json!({"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:09Z"});
        assert_eq!(find(&status, "Ready"), Some(&expected));
        assert!(is_true(&status, "Ready"));
    }

    #[test]
    fn neighbours_and_unknown_fields_are_kept() {
        let mut status = json!({"phase": "Running", "conditions": [
            {"type": "Old", "status": "True"}, {"type": "Ready", "status": "True", "lastUpdateTime": "x"}]});
        assert!(set(&mut status, &ready(Truth::Unknown, "Silent"), AT_1));
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["conditions"][0], json!({"type": "Old", "status": "True"}));
        assert_eq!(status["conditions"][1]["lastUpdateTime"], "x");
        assert!(remove(&mut status, "Old"));
        assert!(!remove(&mut status, "Old"));
    }

    #[test]
    fn a_damaged_status_is_repaired() {
        let mut status = json!({"conditions": "none"});
        assert!(set(&mut status, &ready(Truth::True, ""), AT_1));
        assert!(is_true(&status, "Ready"));
    }
}
