//! One object against its schema: unknown fields, nulls, types.

use serde_json::{Map, Value};

use super::{Schema, Type};
use crate::api_error::Violation;
use crate::time::Timestamp;

/// Findings of one object that are told; more are not, so that a large body cannot make a larger answer.
const FINDINGS_MAX: usize = 200;

/// Longest path told: a key may be as long as its body.
const PATH_BYTES_MAX: usize = 1024;

/// A path or message as it may be told: at most `bytes_max` long, and a mark where it was cut.
pub(crate) fn bounded(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// Where a walk stands; one growing string instead of one per field.
struct Walk {
    path: String,
}

impl Walk {
    fn told(&self) -> String {
        bounded(&self.path, PATH_BYTES_MAX)
    }

    fn at_field<T>(&mut self, name: &str, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = visit(self);
        self.path.truncate(length);
        result
    }

    fn at_index<T>(&mut self, index: usize, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        let result = visit(self);
        self.path.truncate(length);
        result
    }

    fn at_key<T>(&mut self, key: &str, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(&format!("[{key}]"));
        let result = visit(self);
        self.path.truncate(length);
        result
    }
}

pub(super) fn unknown_fields(schema: Schema, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    visit_unknown(schema, value, &mut Walk { path: String::new() }, &mut found);
    found
}

fn visit_unknown(schema: Schema, value: &Value, walk: &mut Walk, found: &mut Vec<String>) {
    if found.len() >= FINDINGS_MAX {
        return;
    }
    match (schema.node_type(), value) {
        (Type::Object, Value::Object(map)) => {
            for (name, value) in map {
                walk.at_field(name, |walk| match schema.field(name) {
                    Some(field) => visit_unknown(field, value, walk, found),
                    None if found.len() < FINDINGS_MAX => found.push(format!("unknown field \"{}\"", walk.told())),
                    None => {}
                });
            }
        }
        (Type::Array, Value::Array(list)) => {
            let Some(items) = schema.items() else { return };
            for (index, item) in list.iter().enumerate() {
                walk.at_index(index, |walk| visit_unknown(items, item, walk, found));
            }
        }
        (Type::Map, Value::Object(map)) => {
            let Some(values) = schema.items() else { return };
            for (key, value) in map {
                walk.at_field(key, |walk| visit_unknown(values, value, walk, found));
            }
        }
        _ => {}
    }
}

pub(super) fn prune(schema: Schema, value: &mut Value) {
    match (schema.node_type(), value) {
        (Type::Object, Value::Object(map)) => {
            map.retain(|name, value| match schema.field(name) {
                Some(field) => {
                    prune(field, value);
                    true
                }
                None => false,
            });
        }
        (Type::Array, Value::Array(list)) => {
            if let Some(items) = schema.items() {
                list.iter_mut().for_each(|item| prune(items, item));
            }
        }
        (Type::Map, Value::Object(map)) => {
            if let Some(values) = schema.items() {
                map.values_mut().for_each(|value| prune(values, value));
            }
        }
        _ => {}
    }
}

pub(super) fn drop_nulls(schema: Schema, value: &mut Value) {
    match (schema.node_type(), value) {
        (Type::Object, Value::Object(map)) => {
            map.retain(|name, value| match schema.field(name) {
                // A field nobody knows is named by `unknown_fields`, null or not.
                None => true,
                Some(field) if field.node_type() == Type::Any => true,
                Some(field) => {
                    drop_nulls(field, value);
                    !value.is_null()
                }
            });
        }
        (Type::Array, Value::Array(list)) => {
            if let Some(items) = schema.items() {
                list.iter_mut().for_each(|item| entry_without_nulls(items, item));
            }
        }
        (Type::Map, Value::Object(map)) => {
            if let Some(values) = schema.items() {
                map.values_mut().for_each(|value| entry_without_nulls(values, value));
            }
        }
        _ => {}
    }
}

/// An entry cannot be left out as a field can: null is the zero value of its type.
fn entry_without_nulls(schema: Schema, value: &mut Value) {
    if !value.is_null() {
        return drop_nulls(schema, value);
    }
    *value = match schema.node_type() {
        Type::Object | Type::Map => Value::Object(Map::new()),
        Type::Array => Value::Array(Vec::new()),
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => 0.into(),
        Type::Quantity => Value::String("0".to_owned()),
        Type::Boolean => Value::Bool(false),
        Type::Time | Type::MicroTime | Type::Any => return,
    };
}

pub(super) fn type_errors(schema: Schema, value: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    visit_types(schema, value, &mut Walk { path: String::new() }, &mut found);
    found
}

fn visit_types(schema: Schema, value: &Value, walk: &mut Walk, found: &mut Vec<Violation>) {
    if found.len() >= FINDINGS_MAX {
        return;
    }
    match (schema.node_type(), value) {
        (Type::Object, Value::Object(map)) => {
            for (name, value) in map {
                if let Some(field) = schema.field(name) {
                    walk.at_field(name, |walk| visit_types(field, value, walk, found));
                }
            }
        }
        (Type::Map, Value::Object(map)) => {
            let Some(values) = schema.items() else { return };
            for (key, value) in map {
                walk.at_key(key, |walk| visit_types(values, value, walk, found));
            }
        }
        (Type::Array, Value::Array(list)) => {
            let Some(items) = schema.items() else { return };
            for (index, item) in list.iter().enumerate() {
                walk.at_index(index, |walk| visit_types(items, item, walk, found));
            }
        }
        (node_type, value) => {
            if let Some(message) = mismatch(node_type, value) {
                found.push(Violation { reason: "FieldValueTypeInvalid", field: walk.told(), message });
            }
        }
    }
}

/// Why a value is not of a type; `None` if it is.
fn mismatch(node_type: Type, value: &Value) -> Option<String> {
    let expected = match node_type {
        Type::Any => return None,
        Type::String if value.is_string() => return None,
        Type::Bytes if value.is_string() => return None,
        Type::Boolean if value.is_boolean() => return None,
        Type::Number if value.is_number() => return None,
        Type::Quantity if value.is_string() || value.is_number() => return None,
        Type::Int64 if value.is_i64() => return None,
        Type::Int32 if fits_int32(value) => return None,
        Type::IntOrString if value.is_string() || fits_int32(value) => return None,
        Type::Time | Type::MicroTime => match value.as_str() {
            Some(text) if Timestamp::parse(text).is_some() => return None,
            Some(_) => {
                return Some(format!(
                    "Invalid value: {value}: must be a time in RFC 3339, such as 2026-11-21T07:30:53Z"
                ));
            }
            None => "string",
        },
        Type::String | Type::Bytes => "string",
        Type::Boolean => "boolean",
        Type::Number => "number",
        Type::Int32 | Type::Int64 if value.is_number() => {
            let bits = if node_type == Type::Int32 { 32 } else { 64 };
            return Some(format!("Invalid value: {value}: must be a whole number of {bits} bits"));
        }
        Type::Int32 | Type::Int64 => "integer",
        Type::IntOrString => "integer or string",
        Type::Quantity => "string or number",
        Type::Object | Type::Map => "object",
        Type::Array => "array",
    };
    let (found, shown) = match value {
        Value::Null => ("null", "null".to_owned()),
        Value::Bool(_) => ("boolean", value.to_string()),
        Value::Number(_) => ("number", value.to_string()),
        Value::String(text) => ("string", format!("{:?}", text.chars().take(64).collect::<String>())),
        Value::Array(_) => ("array", "[...]".to_owned()),
        Value::Object(_) => ("object", "{...}".to_owned()),
    };
    let hint =
        if expected == "string" && matches!(value, Value::Bool(_) | Value::Number(_)) { "; quote it" } else { "" };
    Some(format!("Invalid value: {shown}: must be of type {expected}, found {found}{hint}"))
}

fn fits_int32(value: &Value) -> bool {
    value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}
