//! What every body goes through, whatever the verb: kind, depth, unknown fields, nulls, size, validation.

use std::io;

use serde_json::Value;

use super::{Context, FieldValidation, OBJECT_BYTES_MAX};
use crate::api_error::{ApiError, Reason, Violation};
use crate::object::{Object, ObjectKey};
use crate::{patch, schema, validate};

/// Reads a body that must be of the kind the URL names.
pub(super) fn object_of(key: &ObjectKey, body: Value) -> Result<Object, ApiError> {
    let kind = key.kind;
    let object = Object::parse(body).map_err(|error| {
        let why = format!("{kind} in version {:?} cannot be handled as a {kind}: {error}", kind.version);
        ApiError::of(Reason::BadRequest, why).about(key)
    })?;
    check_kind(key, &object)?;
    Ok(object)
}

pub(super) fn check_kind(key: &ObjectKey, object: &Object) -> Result<(), ApiError> {
    if object.kind() == key.kind {
        return Ok(());
    }
    let why = format!(
        "{} in version {:?} cannot be handled as a {} in version {:?}: the body is of another kind than the URL",
        object.kind(),
        object.kind().api_version(),
        key.kind,
        key.kind.api_version()
    );
    Err(ApiError::of(Reason::BadRequest, why).about(key))
}

/// Meets unknown fields as asked, removes them and explicit nulls, and bounds the depth. Returns the warnings.
pub(super) fn clean(key: &ObjectKey, object: &mut Object, context: &Context) -> Result<Vec<String>, ApiError> {
    if patch::depth(object.value(), patch::DEPTH_MAX).is_none() {
        let why = format!("the object is nested deeper than {} levels", patch::DEPTH_MAX);
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    let unknown = match context.field_validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn | FieldValidation::Strict => schema::unknown_fields(object),
    };
    if context.field_validation == FieldValidation::Strict && !unknown.is_empty() {
        let kind = key.kind;
        let why = format!(
            "{kind} in version {:?} cannot be handled as a {kind}: strict decoding error: {}",
            kind.version,
            unknown.join(", ")
        );
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    schema::prune(object);
    schema::drop_nulls(object);
    Ok(unknown)
}

/// Refuses a new object with any fault.
pub(super) fn check_new(key: &ObjectKey, object: &Object) -> Result<(), ApiError> {
    check_size(key, object)?;
    refuse(key, validate::object(object))
}

/// Refuses a changed object, but for faults the stored one has already: stricter rules of later versions must not freeze what an
/// earlier one admitted.
pub(super) fn check_changed(key: &ObjectKey, old: &Object, new: &Object) -> Result<(), ApiError> {
    check_size(key, new)?;
    let mut faults = validate::object(new);
    if !faults.is_empty() {
        let known = validate::object(old);
        faults.retain(|fault| !known.contains(fault));
    }
    faults.extend(validate::update(old, new));
    let mut seen: Vec<Violation> = Vec::with_capacity(faults.len());
    for fault in faults {
        if !seen.contains(&fault) {
            seen.push(fault);
        }
    }
    refuse(key, seen)
}

/// Refuses a changed status (or label) only: what else the object holds is not this write's concern.
pub(super) fn check_status(key: &ObjectKey, old: &Object, new: &Object) -> Result<(), ApiError> {
    check_size(key, new)?;
    let metadata_changed = old.at("/metadata") != new.at("/metadata");
    let mut faults = if metadata_changed { validate::object(new) } else { schema::type_errors(new) };
    faults.retain(|fault| fault.field.starts_with("status") || fault.field.starts_with("metadata"));
    refuse(key, faults)
}

pub(super) fn refuse(key: &ObjectKey, faults: Vec<Violation>) -> Result<(), ApiError> {
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(key, faults)) }
}

fn check_size(key: &ObjectKey, object: &Object) -> Result<(), ApiError> {
    let mut counter = Counter { bytes_left: OBJECT_BYTES_MAX };
    serde_json::to_writer(&mut counter, object.value()).map_err(|_| {
        let why = format!("{} {:?} is larger than {OBJECT_BYTES_MAX} bytes as JSON; split it", key.kind, object.name());
        ApiError::of(Reason::RequestEntityTooLarge, why).about(key)
    })
}

/// Counts what is written to it and fails beyond its bound.
struct Counter {
    bytes_left: usize,
}

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes_left = self.bytes_left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
