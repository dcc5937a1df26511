//! Replacement and patching of what is stored.

use serde_json::{Map, Value};

use super::{Admitted, Context, Outcome, Part, content, create, delete, metadata};
use crate::api_error::{ApiError, Reason, Violation};
use crate::apply::ApplyOptions;
use crate::object::{Object, ObjectKey};
use crate::patch::Patch;
use crate::{defaults, kind, scale, schema};

pub(super) fn replace(
    key: &ObjectKey,
    current: &Object,
    part: Part,
    body: &Value,
    context: &Context,
) -> Result<Admitted, ApiError> {
    check_part(key, part)?;
    if part == Part::Scale {
        return rescale(key, current, body);
    }
    put(key, current, part, body.clone(), context)
}

pub(super) fn patch(
    key: &ObjectKey,
    current: &Object,
    part: Part,
    patch: &Patch,
    context: &Context,
) -> Result<Admitted, ApiError> {
    check_part(key, part)?;
    if part == Part::Scale {
        let view = scale::of(current).unwrap_or_default();
        let shape = schema::named("io.k8s.api.autoscaling.v1.Scale");
        let scaled = patch.apply_to(view, shape).map_err(|error| ApiError::from(error).about(key))?;
        return rescale(key, current, &scaled);
    }
    let patched = patch.apply(current)?;
    put(key, current, part, patched, context)
}

/// Server-side apply: a configuration merged into what is stored, or made the first of it.
pub(super) fn apply(
    key: &ObjectKey,
    current: Option<&Object>,
    part: Part,
    body: &Value,
    options: &ApplyOptions,
    context: &Context,
) -> Result<Admitted, ApiError> {
    check_part(key, part)?;
    if part == Part::Scale {
        let why = "a scale is not applied: apply spec.replicas of the object, or patch the scale";
        return Err(ApiError::of(Reason::UnsupportedMediaType, why).about(key));
    }
    let mut config = content::object_of(key, body.clone())?;
    metadata::take_namespace(&mut config, key)?;
    if config.name().is_empty() {
        config.metadata_mut().insert("name".into(), key.name.clone().into());
    }
    check_name(key, &config)?;
    let managed = config.at("/metadata/managedFields").and_then(Value::as_array);
    if managed.is_some_and(|rows| !rows.is_empty()) {
        let why = "metadata.managedFields must be nil";
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    match current {
        Some(current) => check_preconditions(key, current, &config)?,
        None if part == Part::Status || !matches!(config.text("/metadata/resourceVersion"), "" | "0") => {
            return Err(ApiError::not_found(key));
        }
        None => {}
    }
    let warnings = content::clean(key, &mut config, context)?;
    metadata::drop_unstored(&mut config);
    defaults::canonical(&mut config);
    let value = crate::apply::merge(current, &config, part, options, context.now)?;
    let managed = value.pointer("/metadata/managedFields").cloned();
    let object = content::object_of(key, value)?;
    let Some(current) = current else {
        let mut admitted = create::create(key, None, &object, context)?;
        if let Outcome::Created(created) = &mut admitted.outcome {
            metadata::set(created.metadata_mut(), "managedFields", managed.as_ref());
        }
        admitted.warnings.splice(0..0, warnings);
        return Ok(admitted);
    };
    let mut new = match part {
        Part::Status => status_of(current, object),
        Part::Main | Part::Scale => main_of(current, object),
    };
    metadata::set(new.metadata_mut(), "managedFields", managed.as_ref());
    settle(key, current, new, part, warnings)
}

fn check_name(key: &ObjectKey, object: &Object) -> Result<(), ApiError> {
    if object.name().is_empty() || object.name() == key.name {
        return Ok(());
    }
    let why = format!("the name of the object ({}) does not match the name on the URL ({})", object.name(), key.name);
    Err(ApiError::of(Reason::BadRequest, why).about(key))
}

/// Main and Status: `body` is what the whole object is to be, as far as the part goes.
fn put(key: &ObjectKey, current: &Object, part: Part, body: Value, context: &Context) -> Result<Admitted, ApiError> {
    let managed = crate::apply::restated(current, &body);
    let mut object = content::object_of(key, body)?;
    metadata::take_namespace(&mut object, key)?;
    check_name(key, &object)?;
    check_preconditions(key, current, &object)?;
    let warnings = content::clean(key, &mut object, context)?;
    let mut new = match part {
        Part::Status => status_of(current, object),
        Part::Main | Part::Scale => main_of(current, object),
    };
    metadata::set(new.metadata_mut(), "managedFields", managed.as_ref());
    settle(key, current, new, part, warnings)
}

/// The resource version and uid that a body states must be the stored ones.
fn check_preconditions(key: &ObjectKey, current: &Object, body: &Object) -> Result<(), ApiError> {
    check_version(key, current, body.text("/metadata/resourceVersion"))?;
    if !body.uid().is_empty() && body.uid() != current.uid() {
        let why =
            format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", body.uid(), current.uid());
        return Err(ApiError::conflict(key, &why));
    }
    Ok(())
}

fn check_version(key: &ObjectKey, current: &Object, stated: &str) -> Result<(), ApiError> {
    if matches!(stated, "" | "0") {
        return Ok(());
    }
    let Ok(version) = stated.parse::<u64>() else {
        let message = format!("Invalid value: {stated:?}: must be a decimal number given by this server");
        let fault = Violation { reason: "FieldValueInvalid", field: "metadata.resourceVersion".into(), message };
        return Err(ApiError::invalid(key, vec![fault]));
    };
    if version == current.resource_version() { Ok(()) } else { Err(ApiError::modified(key)) }
}

/// The body with the server's fields put back.
fn main_of(current: &Object, mut object: Object) -> Object {
    metadata::take_system_fields(&mut object, current);
    if metadata::has_status(object.kind())
        && let Some(map) = object.value_mut().as_object_mut()
    {
        metadata::set(map, "status", current.status());
    }
    if *object.kind() == kind::NAMESPACE {
        keep_namespace_finalizers(current, &mut object);
    }
    if *object.kind() == kind::POD {
        keep_priority(current, &mut object);
    }
    let spelled_alike = contents(&object).eq(contents(current));
    defaults::apply(&mut object);
    if spelled_alike {
        // Defaults that a later version brought are no wish of this writer: they must not restart anything.
        restore_contents(&mut object, current);
    }
    object
}

/// Everything but `metadata` and `status`, in order of name.
fn contents(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
    let fields = object.value().as_object().into_iter().flatten();
    let mut fields: Vec<_> = fields.filter(|(name, _)| *name != "metadata" && *name != "status").collect();
    fields.sort_by_key(|(name, _)| *name);
    fields.into_iter()
}

fn restore_contents(object: &mut Object, current: &Object) {
    if let Some(map) = object.value_mut().as_object_mut() {
        map.retain(|name, _| name == "metadata" || name == "status");
        map.extend(contents(current).map(|(name, value)| (name.clone(), value.clone())));
    }
}

/// What admission made of a Pod's class once; a body that leaves it out does not take it away.
fn keep_priority(current: &Object, object: &mut Object) {
    let Some(spec) = object.value_mut().get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["priority", "preemptionPolicy", "priorityClassName"] {
        if spec.get(field).is_none_or(Value::is_null) {
            metadata::set(spec, field, current.spec().and_then(|stored| stored.get(field)));
        }
    }
}

/// `spec.finalizers` of a Namespace changes only by being emptied, explicitly and while the Namespace is going.
fn keep_namespace_finalizers(current: &Object, object: &mut Object) {
    let emptied = object.at("/spec/finalizers").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if emptied && current.deletion_timestamp().is_some() {
        return;
    }
    let stored = current.at("/spec/finalizers").cloned();
    let Some(map) = object.value_mut().as_object_mut() else { return };
    let spec = map.entry("spec").or_insert_with(|| Value::Object(Map::new()));
    if let Some(spec) = spec.as_object_mut() {
        metadata::set(spec, "finalizers", stored.as_ref());
    }
}

/// The stored object with the body's status, and with the labels and annotations that the body states.
fn status_of(current: &Object, body: Object) -> Object {
    let mut object = current.clone();
    let Value::Object(mut body) = body.into_value() else { return object };
    if let Some(map) = object.value_mut().as_object_mut() {
        metadata::set(map, "status", body.get("status"));
    }
    let keeps_labels = *object.kind() == kind::DEPLOYMENT;
    for field in ["labels", "annotations"] {
        let stated = body.get_mut("metadata").and_then(|metadata| metadata.get_mut(field)).map(Value::take);
        if let Some(stated) = stated.filter(|_| field == "annotations" || !keeps_labels) {
            object.metadata_mut().insert(field.into(), stated);
        }
    }
    metadata::drop_unstored(&mut object);
    object
}

/// Takes `spec.replicas` out of a Scale.
fn rescale(key: &ObjectKey, current: &Object, scale: &Value) -> Result<Admitted, ApiError> {
    let text = |pointer: &str| scale.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    if text("/kind") != "Scale" || !text("/apiVersion").starts_with("autoscaling/") {
        let why = "the body of a scale subresource is a Scale of autoscaling/v1";
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    let name = text("/metadata/name");
    if !name.is_empty() && name != key.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", key.name);
        return Err(ApiError::of(Reason::BadRequest, why).about(key));
    }
    check_version(key, current, text("/metadata/resourceVersion"))?;
    let stated = scale.pointer("/spec/replicas").cloned().unwrap_or_else(|| 0.into());
    let replicas = stated.as_i64().filter(|count| (0..=i64::from(i32::MAX)).contains(count));
    let Some(replicas) = replicas else {
        let message = format!("Invalid value: {stated}: must be an integer greater than or equal to 0");
        let fault = Violation { reason: "FieldValueInvalid", field: "spec.replicas".into(), message };
        return Err(ApiError::invalid(key, vec![fault]));
    };
    let mut object = current.clone();
    if let Some(spec) = object.value_mut().get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("replicas".into(), replicas.into());
    }
    settle(key, current, object, Part::Scale, Vec::new())
}

/// Checks what the object has become, counts its generation, and says what the store is to do.
fn settle(
    key: &ObjectKey,
    current: &Object,
    mut new: Object,
    part: Part,
    warnings: Vec<String>,
) -> Result<Admitted, ApiError> {
    if new == *current {
        return Ok(Admitted { outcome: Outcome::Unchanged(new), warnings });
    }
    match part {
        Part::Status => content::check_status(key, current, &new)?,
        Part::Main | Part::Scale => content::check_changed(key, current, &new)?,
    }
    if new.spec() != current.spec() {
        metadata::raise_generation(&mut new);
    }
    let outcome = if delete::is_finished(&new) { Outcome::Removed(new) } else { Outcome::Updated(new) };
    Ok(Admitted { outcome, warnings })
}

fn check_part(key: &ObjectKey, part: Part) -> Result<(), ApiError> {
    let name = match part {
        Part::Main => return Ok(()),
        Part::Status => "status",
        Part::Scale => "scale",
    };
    if key.kind.subresources.contains(&name) {
        return Ok(());
    }
    let why = format!("{} have no {name:?} subresource", key.kind.plural);
    Err(ApiError::of(Reason::NotFound, why).about(key))
}
