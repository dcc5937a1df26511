//! Patches: JSON merge (RFC 7386), strategic merge (Kubernetes), JSON patch (RFC 6902).
//!
//! Owns what a patch makes of one JSON value, within bounds of depth, size and work, so that no patch can exhaust the stack
//! or the memory of who applies it. Refuses to judge the result: that is `admission`'s. Start at [`Patch::apply`].

pub mod json_merge;
pub mod json_patch;
pub mod strategic;

use serde_json::Value;

use crate::api_error::{ApiError, Reason};
use crate::object::Object;
use crate::schema;

/// Deepest nesting of a patch, and of what a JSON patch makes. Below what the JSON reader accepts, so that whatever is stored
/// can be read again.
pub const DEPTH_MAX: usize = 100;

/// A patch body with its media type known.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`
    JsonMerge(Value),
    /// `application/strategic-merge-patch+json`
    StrategicMerge(Value),
    /// `application/json-patch+json`
    Json(Value),
}

impl Patch {
    /// What the patch makes of an object.
    ///
    /// # Errors
    /// 400 for a malformed patch, 422 for one that does not fit the object, 413 for one beyond the bounds.
    pub fn apply(&self, object: &Object) -> Result<Value, ApiError> {
        self.apply_to(object.value().clone(), Some(schema::of(object.kind())))
            .map_err(|error| ApiError::from(error).about(&object.key()))
    }

    /// What the patch makes of a value whose schema is known, or is not (then strategic merge replaces all lists).
    pub fn apply_to(&self, target: Value, schema: Option<schema::Schema>) -> Result<Value, PatchError> {
        let (Self::JsonMerge(body) | Self::StrategicMerge(body) | Self::Json(body)) = self;
        if depth(body, DEPTH_MAX).is_none() {
            return Err(PatchError::TooLarge(format!("the patch is nested deeper than {DEPTH_MAX} levels")));
        }
        if !matches!(self, Self::Json(_)) && !body.is_object() {
            return Err(PatchError::malformed("", "a merge patch is a JSON object"));
        }
        match self {
            Self::JsonMerge(body) => Ok(json_merge::apply(target, body)),
            Self::StrategicMerge(body) => strategic::apply(target, body.clone(), schema),
            Self::Json(body) => json_patch::apply(target, body),
        }
    }
}

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// No object could make sense of it: 400.
    #[error("{}", at_path(path, why))]
    Malformed { path: String, why: String },
    /// Well formed, but this object is not what it expects: 422.
    #[error("{}", at_path(path, why))]
    DoesNotFit { path: String, why: String },
    /// Beyond a bound: 413.
    #[error("{0}")]
    TooLarge(String),
}

impl PatchError {
    pub(crate) fn malformed(path: &str, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn does_not_fit(path: &str, why: impl Into<String>) -> Self {
        Self::DoesNotFit { path: path.to_owned(), why: why.into() }
    }
}

impl From<PatchError> for ApiError {
    fn from(error: PatchError) -> Self {
        let reason = match &error {
            PatchError::Malformed { .. } => Reason::BadRequest,
            PatchError::DoesNotFit { .. } => Reason::Invalid,
            PatchError::TooLarge(_) => Reason::RequestEntityTooLarge,
        };
        Self::of(reason, format!("error in the patch: {error}"))
    }
}

/// Levels of nesting, 1 for a scalar; `None` beyond `limit`, found without going deeper than that.
pub(crate) fn depth(value: &Value, limit: usize) -> Option<usize> {
    let below = limit.checked_sub(1)?;
    let deepest = match value {
        Value::Array(items) => items.iter().try_fold(0, |deepest, item| Some(deepest.max(depth(item, below)?)))?,
        Value::Object(map) => map.values().try_fold(0, |deepest, item| Some(deepest.max(depth(item, below)?)))?,
        _ => 0,
    };
    Some(deepest + 1)
}

fn at_path(path: &str, why: &str) -> String {
    if path.is_empty() { why.to_owned() } else { format!("{path}: {why}") }
}

#[cfg(test)]
mod tests;
