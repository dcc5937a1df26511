//! From a request about one object to the object that may be stored: patch -> default -> validate -> metadata rules.
//!
//! Pure, and the same at the hub and at a device. The store's writer calls [`admit`] inside its transaction, so that
//! compare-and-swap is exact without retries.

mod content;
mod create;
mod delete;
mod metadata;
mod update;

use serde_json::Value;

use crate::api_error::ApiError;
use crate::apply::ApplyOptions;
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
    /// `status`, and of the metadata the labels and annotations the body states, as in Kubernetes.
    Status,
    /// `spec.replicas`, through an `autoscaling/v1` Scale body.
    Scale,
}

/// One write, as asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Mutation {
    /// The body; its name may be empty with a `generateName`.
    Create {
        body: Object,
    },
    /// PUT; a body with a resourceVersion is a compare-and-swap.
    Replace {
        part: Part,
        body: Value,
    },
    Patch {
        part: Part,
        patch: Patch,
    },
    Delete(DeleteOptions),
    /// Server-side apply; creates what is not there.
    Apply {
        part: Part,
        body: Value,
        options: ApplyOptions,
    },
    /// `pods/eviction`: a deletion that asks the Pod to go somewhere else.
    Evict(DeleteOptions),
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

/// Finalizer that keeps an owner until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";

/// Finalizer that keeps an owner until its dependents no longer name it.
pub const ORPHAN: &str = "orphan";

/// Largest object stored, as JSON: etcd's usual bound, so that manifests move between both worlds.
pub const OBJECT_BYTES_MAX: usize = 1_536 * 1024;

/// Decides one write. `key` is what the URL named (its name may be empty for a create, see [`created_key`]); `current` the stored
/// object, if any.
///
/// A `Namespace` being deleted is emptied by its controller, which then ends it with a write of [`Part::Main`] that states
/// `spec.finalizers: []` (Kubernetes' `finalize` subresource); no other write changes that list.
///
/// # Errors
/// 404, 409 (exists, modified, preconditions), 422 with every fault at once, 400 for an unreadable body or unknown fields
/// under `Strict`, 413 beyond [`OBJECT_BYTES_MAX`].
pub fn admit(
    key: &ObjectKey,
    current: Option<&Object>,
    mutation: &Mutation,
    context: &Context,
) -> Result<Admitted, ApiError> {
    let found = || current.ok_or_else(|| ApiError::not_found(key));
    match mutation {
        Mutation::Create { body } => create::create(key, current, body, context),
        Mutation::Replace { part, body } => update::replace(key, found()?, *part, body, context),
        Mutation::Patch { part, patch } => update::patch(key, found()?, *part, patch, context),
        Mutation::Apply { part, body, options } => update::apply(key, current, *part, body, options, context),
        Mutation::Delete(options) | Mutation::Evict(options) => delete::delete(key, found()?, options, context),
    }
}

/// The key of the object that a create is about: the body's name, or one made of its `generateName`. The store needs it to look
/// whether such an object is there.
pub fn created_key(key: &ObjectKey, body: &Object, name_suffix: &str) -> ObjectKey {
    let mut name = if body.name().is_empty() { key.name.clone() } else { body.name().to_owned() };
    let base = body.text("/metadata/generateName");
    if name.is_empty() && !base.is_empty() {
        name = create::generated_name(base, name_suffix);
    }
    ObjectKey::of(key.kind, key.namespace.clone(), name)
}

#[cfg(test)]
mod tests;
