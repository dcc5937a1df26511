//! Request bodies: read within bounds of size and time, decoded, matched with what the URL names.

use std::time::Duration;

use bytes::Bytes;
use flotilla_manifests::admission::{DeleteOptions, FieldValidation, Propagation};
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::decode::{self, DecodeError, Decoded, Format};
use flotilla_manifests::kind::Scope;
use flotilla_manifests::object::{Object, ObjectKey};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value, json};

use super::Limits;
use crate::backend::DryRun;
use crate::negotiate::BodyType;
use crate::route::{ResourceRequest, parse_version};

/// The whole body.
pub(super) async fn read<R>(body: R, headers: &HeaderMap, limits: Limits) -> Result<Bytes, ApiError>
where
    R: hyper::body::Body<Data = Bytes> + Send,
    R::Error: std::error::Error + Send + Sync + 'static,
{
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > limits.body_bytes_max) {
        return Err(too_large(limits));
    }
    let whole = Limited::new(body, limits.body_bytes_max).collect();
    match tokio::time::timeout(Duration::from_secs(limits.body_read_seconds_max), whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limits)),
        Ok(Err(error)) => Err(ApiError::of(Reason::BadRequest, format!("the body could not be read: {error}"))),
        Err(_) => Err(ApiError::of(
            Reason::Timeout,
            format!("the body did not arrive within {} seconds", limits.body_read_seconds_max),
        )),
    }
}

fn too_large(limits: Limits) -> ApiError {
    let message = format!("Request entity too large: limit is {} bytes", limits.body_bytes_max);
    ApiError::of(Reason::RequestEntityTooLarge, message)
}

/// A decoded value, with a warning for each duplicate key.
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) warnings: Vec<String>,
}

/// Decodes a body; duplicate keys are refused, told or ignored as `fieldValidation` says.
pub(super) fn parse(bytes: &[u8], body_type: BodyType, strictness: FieldValidation) -> Result<Parsed, ApiError> {
    let decoded = match body_type {
        BodyType::Json => decode::value(bytes, Format::Json),
        BodyType::Yaml => decode::value(bytes, Format::Yaml),
        BodyType::Protobuf => decode::protobuf::value(bytes).map(|value| Decoded { value, duplicates: Vec::new() }),
    };
    let Decoded { value, duplicates } = decoded.map_err(|error| unreadable(&error))?;
    match strictness {
        FieldValidation::Strict if !duplicates.is_empty() => {
            let message = format!("strict decoding error: {}", duplicates.join(", "));
            Err(ApiError::of(Reason::BadRequest, message))
        }
        FieldValidation::Ignore => Ok(Parsed { value, warnings: Vec::new() }),
        FieldValidation::Strict | FieldValidation::Warn => Ok(Parsed { value, warnings: duplicates }),
    }
}

fn unreadable(error: &DecodeError) -> ApiError {
    let reason = match error {
        DecodeError::TooLarge { .. } => Reason::RequestEntityTooLarge,
        _ => Reason::BadRequest,
    };
    ApiError::of(reason, format!("the object provided is unrecognized: {error}"))
}

/// The object of a create or a replace: of the kind, namespace and name the URL names, where it names them.
pub(super) fn object(mut value: Value, request: &ResourceRequest) -> Result<Object, ApiError> {
    let kind = request.kind;
    if let Some(map) = value.as_object_mut() {
        fill(map, "apiVersion", &kind.api_version());
        fill(map, "kind", kind.name);
    }
    let given = (value["apiVersion"].as_str().unwrap_or(""), value["kind"].as_str().unwrap_or(""));
    if value.is_object() && given != (kind.api_version().as_str(), kind.name) {
        let message = format!(
            "the kind in the data ({} {}) does not match the expected kind ({} {})",
            given.0,
            given.1,
            kind.api_version(),
            kind.name
        );
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    let mut object = decode::from_value(value)
        .map_err(|error| ApiError::of(Reason::BadRequest, format!("the object provided is unrecognized: {error}")))?;
    place(&mut object, request)?;
    Ok(object)
}

fn place(object: &mut Object, request: &ResourceRequest) -> Result<(), ApiError> {
    for field in ["name", "namespace", "generateName"] {
        if object.at(&format!("/metadata/{field}")).is_some_and(|value| !value.is_string()) {
            let message = format!("the object provided is unrecognized: metadata.{field} must be a string");
            return Err(ApiError::of(Reason::BadRequest, message));
        }
    }
    let bad = |message: String| Err(ApiError::of(Reason::BadRequest, message));
    match (request.kind.scope, object.namespace()) {
        (Scope::Cluster, "") => {}
        (Scope::Cluster, given) => {
            return bad(format!("{} is not namespaced, and the object names the namespace {given:?}", request.kind));
        }
        (Scope::Namespaced, "") => {
            object.metadata_mut().insert("namespace".into(), request.namespace.clone().into());
        }
        (Scope::Namespaced, given) if given != request.namespace => {
            return bad(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({given:?}, {:?})",
                request.namespace
            ));
        }
        (Scope::Namespaced, _) => {}
    }
    match object.name() {
        _ if request.name.is_empty() => {}
        "" => {
            object.metadata_mut().insert("name".into(), request.name.clone().into());
        }
        given if given != request.name => {
            return bad(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                request.name
            ));
        }
        _ => {}
    }
    Ok(())
}

/// The body of `PUT .../scale`.
pub(super) fn scale(mut value: Value, key: &ObjectKey) -> Result<Value, ApiError> {
    let Some(map) = value.as_object_mut() else {
        return Err(ApiError::of(Reason::BadRequest, "the body is not a JSON object"));
    };
    fill(map, "apiVersion", "autoscaling/v1");
    fill(map, "kind", "Scale");
    if value["kind"] != "Scale" || value["apiVersion"] != "autoscaling/v1" {
        let message =
            format!("a scale is written as autoscaling/v1 Scale, not {} {}", value["apiVersion"], value["kind"]);
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    match value.pointer("/metadata/name").and_then(Value::as_str) {
        None | Some("") => {}
        Some(given) if given == key.name => {}
        Some(given) => {
            let message = format!("the name of the object ({given}) does not match the name on the URL ({})", key.name);
            return Err(ApiError::of(Reason::BadRequest, message));
        }
    }
    Ok(value)
}

fn fill(map: &mut Map<String, Value>, field: &str, text: &str) {
    let absent = map.get(field).is_none_or(|value| value.is_null() || value == "");
    if absent {
        map.insert(field.to_owned(), text.into());
    }
}

/// The body of `POST .../pods/NAME/eviction`: which Pod, and how it is to be deleted.
pub(super) fn eviction(value: &Value, request: &ResourceRequest) -> Result<Deletion, ApiError> {
    let (api_version, kind) = (value["apiVersion"].as_str().unwrap_or(""), value["kind"].as_str().unwrap_or(""));
    if (api_version, kind) != ("policy/v1", "Eviction") {
        let message = format!("a Pod is evicted with a policy/v1 Eviction, not {api_version:?} {kind:?}");
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    let given = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
    if !given.is_empty() && given != request.name {
        let message = format!("the name of the object ({given}) does not match the name on the URL ({})", request.name);
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    deletion(value.get("deleteOptions").filter(|options| !options.is_null()), request)
}

/// What a delete asks for, from its body (`DeleteOptions`) and the query; the body wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deletion {
    pub(super) options: DeleteOptions,
    pub(super) dry_run: DryRun,
}

pub(super) fn deletion(body: Option<&Value>, request: &ResourceRequest) -> Result<Deletion, ApiError> {
    let query = &request.options.query;
    let empty = json!({});
    let body = body.unwrap_or(&empty);
    let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
    if !body.is_object() || kind != "DeleteOptions" {
        let message = "the body of a delete is a DeleteOptions object, or nothing";
        return Err(ApiError::of(Reason::BadRequest, message));
    }
    let grace = match body.get("gracePeriodSeconds").filter(|value| !value.is_null()) {
        None => query.number("gracePeriodSeconds")?.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX)),
        Some(value) => Some(value.as_i64().filter(|seconds| *seconds >= 0).ok_or_else(|| {
            ApiError::of(Reason::BadRequest, format!("gracePeriodSeconds: {value} is not a whole number, 0 or more"))
        })?),
    };
    let policy = body["propagationPolicy"].as_str().unwrap_or_else(|| query.text("propagationPolicy"));
    let orphan = body["orphanDependents"].as_bool().unwrap_or(query.flag("orphanDependents")?);
    let propagation = match policy {
        "" if orphan => Propagation::Orphan,
        "" | "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        "Orphan" => Propagation::Orphan,
        other => {
            let message =
                format!("propagationPolicy: {other:?} is not one of \"Background\", \"Foreground\", \"Orphan\"");
            return Err(ApiError::of(Reason::BadRequest, message));
        }
    };
    let expected_version = body.pointer("/preconditions/resourceVersion").and_then(Value::as_str);
    let dry_run = match body["dryRun"].as_array().map(Vec::as_slice) {
        None | Some([]) => request.options.dry_run.unwrap_or(DryRun::No),
        Some([word]) if word == "All" => DryRun::All,
        Some(_) => return Err(ApiError::of(Reason::BadRequest, "dryRun: the only known value is \"All\"")),
    };
    let options = DeleteOptions {
        grace_period_seconds: grace,
        propagation,
        uid: body.pointer("/preconditions/uid").and_then(Value::as_str).map(str::to_owned),
        resource_version: expected_version.map(parse_version).transpose()?,
    };
    Ok(Deletion { options, dry_run })
}
