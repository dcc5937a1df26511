//! Bytes to objects: JSON and YAML (protobuf in [`protobuf`]), with limits checked before parsing and duplicate keys reported.
//!
//! Owns the syntax of bodies and manifest files. Refuses meaning: defaults and rules are `defaults` and `validate`; unknown fields and
//! wrong types are `schema`. Start at [`object`] for one body, [`documents`] for a manifest file.

use serde_json::Value;

use crate::object::{Object, ObjectError};
use crate::schema;

mod json;
pub mod protobuf;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod yaml;

/// kube-apiserver's limit of one request body.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Levels of nesting of lists and maps.
pub const DEPTH_MAX: usize = 100;
/// Documents in one YAML stream.
pub const DOCUMENTS_MAX: usize = 10_000;

/// What the aliases of one YAML stream may add, about.
pub const ALIAS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Duplicate keys that are named; more are not.
pub const DUPLICATES_MAX: usize = 32;
const REPORT_BYTES_MAX: usize = 1024;

/// The syntax of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`; JSON is YAML too.
    Yaml,
}

/// A parsed value and the keys that stood twice in one map; the last one counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded<T> {
    pub value: T,
    /// `duplicate field "spec.replicas"`: refused under `fieldValidation=Strict`, else a warning.
    pub duplicates: Vec<String>,
}

/// Why bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// 413 `RequestEntityTooLarge`.
    #[error("request entity too large: limit is {limit_bytes}, the body has {actual_bytes} bytes")]
    TooLarge { limit_bytes: usize, actual_bytes: usize },
    #[error("the body is nested deeper than {limit} levels at line {line}")]
    TooDeep { limit: usize, line: usize },
    #[error("the YAML stream expands by more than {limit_bytes} bytes through its aliases")]
    TooExpanded { limit_bytes: usize },
    #[error("the YAML stream has more than {limit} documents")]
    TooManyDocuments { limit: usize },
    #[error("the body is empty")]
    Empty,
    #[error("the body has more than one document where one is expected")]
    NotOne,
    #[error("{what} at line {line} column {column}")]
    Syntax { what: String, line: usize, column: usize },
    #[error("the body is no protobuf of Kubernetes: {what}")]
    Protobuf { what: String },
    #[error(transparent)]
    NoObject(#[from] ObjectError),
}

/// One value: a patch, a Scale, DeleteOptions, or anything else whose nulls have a meaning.
///
/// # Errors
/// Limits, syntax, or no or more than one YAML document.
pub fn value(bytes: &[u8], format: Format) -> Result<Decoded<Value>, DecodeError> {
    let mut all = values(bytes, format)?;
    match all.len() {
        0 => Err(DecodeError::Empty),
        1 => Ok(all.remove(0)),
        _ => Err(DecodeError::NotOne),
    }
}

/// One object of a served kind, without its nulls.
///
/// # Errors
/// As [`value`]; and what is no object of a served kind.
pub fn object(bytes: &[u8], format: Format) -> Result<Decoded<Object>, DecodeError> {
    let Decoded { value, duplicates } = value(bytes, format)?;
    Ok(Decoded { value: from_value(value)?, duplicates })
}

/// Every object of a manifest file (YAML documents, or JSON), the items of a `List` unfolded; empty documents are left out.
///
/// # Errors
/// The first document that is not an object of a served kind.
pub fn documents(bytes: &[u8], format: Format) -> Result<Vec<Decoded<Object>>, DecodeError> {
    let mut objects = Vec::new();
    for Decoded { mut value, duplicates } in values(bytes, format)? {
        let is_list = value["kind"] == "List" && value["apiVersion"] == "v1";
        match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if is_list => {
                for (index, item) in items.into_iter().enumerate() {
                    let duplicates = if index == 0 { duplicates.clone() } else { Vec::new() };
                    objects.push(Decoded { value: from_value(item)?, duplicates });
                }
            }
            _ => objects.push(Decoded { value: from_value(value)?, duplicates }),
        }
    }
    Ok(objects)
}

/// The object a parsed body is, without its nulls.
///
/// # Errors
/// What is no object of a served kind.
pub fn from_value(mut value: Value) -> Result<Object, ObjectError> {
    if let Some(map) = value.as_object_mut()
        && map.get("metadata").is_some_and(Value::is_null)
    {
        map.remove("metadata");
    }
    let mut object = Object::parse(value)?;
    schema::drop_nulls(&mut object);
    Ok(object)
}

fn values(bytes: &[u8], format: Format) -> Result<Vec<Decoded<Value>>, DecodeError> {
    if bytes.len() > BODY_BYTES_MAX {
        return Err(DecodeError::TooLarge { limit_bytes: BODY_BYTES_MAX, actual_bytes: bytes.len() });
    }
    match format {
        Format::Json => json::parse(bytes).map(|value| vec![value]),
        Format::Yaml => yaml::parse(bytes),
    }
}

fn report_duplicate(duplicates: &mut Vec<String>, report: &str) {
    let report = schema::bounded(report, REPORT_BYTES_MAX);
    if duplicates.len() < DUPLICATES_MAX && !duplicates.contains(&report) {
        duplicates.push(report);
    }
}
