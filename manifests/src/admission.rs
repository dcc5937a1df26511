//! From a request about one object to the object that may be stored: patch -> default -> validate -> metadata rules.
//!
//! Pure, and the same at the hub and at a device. The store's writer calls [`admit`] inside its transaction, so that
//! compare-and-swap is exact without retries.

use crate::api_error::ApiError;
use crate::object::{Object, ObjectKey};
use crate::patch::Patch;
use crate::time::Timestamp;

/// How strictly unknown and duplicate fields are met (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Which part of the object a write may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but `status`.
    Main,
    /// `status` and nothing else.
    Status,
    /// `spec.replicas`, through an `autoscaling/v1` Scale body.
    Scale,
}

/// One write, as asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Mutation {
    /// The body; its name may be empty with a `generateName`.
    Create { body: Object },
    /// PUT; a body with a resourceVersion is a compare-and-swap.
    Replace { part: Part, body: serde_json::Value },
    Patch { part: Part, patch: Patch },
    Delete(DeleteOptions),
}

/// `metav1.DeleteOptions`, what of it is honoured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Propagation,
    pub uid: Option<String>,
    pub resource_version: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    #[default]
    Background,
    Foreground,
    Orphan,
}

/// What the caller minted and knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    pub now: Timestamp,
    /// A fresh uid, used by a create.
    pub uid: String,
    /// Five characters for `generateName`, from Kubernetes' safe alphabet.
    pub name_suffix: String,
    pub field_validation: FieldValidation,
}

/// What the store is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Created(Object),
    /// Metadata `generation` already raised if the spec changed.
    Updated(Object),
    /// The write changed nothing: no event, no new resourceVersion.
    Unchanged(Object),
    /// Remove the row; the object is as it was last.
    Removed(Object),
}

/// The outcome and the `Warning:` headers it earns.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    pub outcome: Outcome,
    pub warnings: Vec<String>,
}

/// Decides one write. `key` is what the URL named; `current` the stored object, if any.
///
/// # Errors
/// 404, 409 (exists, modified, preconditions), 422 with every fault at once, 400 for an unreadable body or unknown fields
/// under `Strict`.
pub fn admit(
    key: &ObjectKey,
    current: Option<&Object>,
    mutation: &Mutation,
    context: &Context,
) -> Result<Admitted, ApiError> {
    unimplemented!("{key} {current:?} {mutation:?} {context:?}")
}
