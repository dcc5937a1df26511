//! Creation.

use super::{Admitted, Context, Outcome, content, created_key, metadata};
use crate::api_error::{ApiError, Reason, Violation};
use crate::defaults;
use crate::object::{Object, ObjectKey};

/// Longest part of a `generateName` that is kept, so that the name fits an RFC 1123 label.
const GENERATE_NAME_BYTES_MAX: usize = 58;

pub(super) fn create(
    key: &ObjectKey,
    current: Option<&Object>,
    body: &Object,
    context: &Context,
) -> Result<Admitted, ApiError> {
    content::check_kind(key, body)?;
    let named = created_key(key, body, &context.name_suffix);
    if named.name.is_empty() {
        return Err(ApiError::invalid(&named, vec![name_required()]));
    }
    if !key.name.is_empty() && named.name != key.name {
        let why = format!("the name of the object ({}) does not match the name on the URL ({})", named.name, key.name);
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    let mut object = body.clone();
    metadata::take_namespace(&mut object, key)?;
    if !matches!(object.text("/metadata/resourceVersion"), "" | "0") {
        let why = "resourceVersion should not be set on objects to be created";
        return Err(ApiError::of(Reason::BadRequest, why).about(&named));
    }
    let warnings = content::clean(&named, &mut object, context)?;
    if current.is_some() {
        return Err(ApiError::already_exists(&named));
    }
    metadata::drop_unstored(&mut object);
    let fields = object.metadata_mut();
    for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        fields.remove(field);
    }
    fields.insert("name".into(), named.name.clone().into());
    fields.insert("uid".into(), context.uid.clone().into());
    fields.insert("creationTimestamp".into(), context.now.to_rfc3339().into());
    metadata::raise_generation(&mut object);
    let status = metadata::first_status(&object);
    if let Some(map) = object.value_mut().as_object_mut() {
        metadata::set(map, "status", status.as_ref());
    }
    defaults::apply(&mut object);
    content::check_new(&named, &object)?;
    Ok(Admitted { outcome: Outcome::Created(object), warnings })
}

/// The base, cut so that five more bytes fit.
pub(super) fn generated_name(base: &str, suffix: &str) -> String {
    let mut end = base.len().min(GENERATE_NAME_BYTES_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

fn name_required() -> Violation {
    Violation {
        reason: "FieldValueRequired",
        field: "metadata.name".into(),
        message: "Required value: name or generateName is required".into(),
    }
}
