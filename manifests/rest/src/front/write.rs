//! Create, replace, patch, delete and deletion of collections.

use std::sync::Arc;

use flotilla_manifests::admission::{DeleteOptions, Mutation, Outcome, Part};
use flotilla_manifests::api_error::{ApiError, Reason, Violation};
use flotilla_manifests::apply::ApplyOptions;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::patch::Patch;
use http::{StatusCode, header};
use serde_json::{Map, Value, json};

use super::object::ListMeta;
use super::read::scale_reply;
use super::{Call, Front, body, object};
use crate::backend::{Backend, DryRun, User, WriteRequest, Written};
use crate::negotiate::{BodyType, Count, Form, PatchType};
use crate::reply::Reply;
use crate::route::{ResourceRequest, Subresource, Verb};

impl<B: Backend> Front<B> {
    pub(super) async fn write(
        &self,
        request: &ResourceRequest,
        call: Call<'_>,
        bytes: &[u8],
    ) -> Result<Reply, ApiError> {
        let count = if request.verb == Verb::DeleteCollection { Count::Many } else { Count::One };
        let form = Form::of(call.header(header::ACCEPT), count)?;
        let (mutation, dry_run, warnings) = match request.verb {
            Verb::Delete | Verb::DeleteCollection => {
                let deletion = deletion(request, call, bytes)?;
                if request.verb == Verb::DeleteCollection {
                    return self.delete_collection(request, call, form, deletion).await;
                }
                (Mutation::Delete(deletion.options), deletion.dry_run, Vec::new())
            }
            Verb::Create if request.subresource == Some(Subresource::Eviction) => {
                let deletion = eviction(request, call, bytes)?;
                (Mutation::Evict(deletion.options), deletion.dry_run, Vec::new())
            }
            _ => {
                let (mutation, warnings) = mutation(request, call, bytes)?;
                (mutation, request.options.dry_run.unwrap_or(DryRun::No), warnings)
            }
        };
        let key = match &mutation {
            Mutation::Create { body } => body.key(),
            _ => request.key(),
        };
        let mut written = self.backend.write(write_request(request, call, key, mutation, dry_run)).await?;
        written.warnings.splice(0..0, warnings);
        self.written(request, form, written)
    }

    fn written(&self, request: &ResourceRequest, form: Form, written: Written) -> Result<Reply, ApiError> {
        let Written { outcome, warnings } = written;
        if request.subresource == Some(Subresource::Eviction) {
            let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            return Ok(Reply::json(StatusCode::CREATED, form.encoding, &done).with_warnings(&warnings));
        }
        let (status, object) = match outcome {
            Outcome::Created(object) => (StatusCode::CREATED, object),
            Outcome::Updated(object) | Outcome::Unchanged(object) => (StatusCode::OK, object),
            Outcome::Removed(object) if request.verb == Verb::Delete => {
                return Ok(Reply::json(StatusCode::OK, form.encoding, &removed(&object)).with_warnings(&warnings));
            }
            // A write that took the last finalizer away.
            Outcome::Removed(object) => (StatusCode::OK, object),
        };
        let reply = if request.subresource == Some(Subresource::Scale) {
            scale_reply(status, form, &object)?
        } else {
            object::one(status, form, request.options.include_object, &object, (self.clock)())
        };
        Ok(reply.with_warnings(&warnings))
    }

    /// One delete after the other; what somebody else has deleted meanwhile is gone too, and no fault.
    async fn delete_collection(
        &self,
        request: &ResourceRequest,
        call: Call<'_>,
        form: Form,
        deletion: body::Deletion,
    ) -> Result<Reply, ApiError> {
        if deletion.options.uid.is_some() || deletion.options.resource_version.is_some() {
            let message = "preconditions are about one object and cannot be met by a collection";
            return Err(ApiError::of(Reason::BadRequest, message));
        }
        let listing = self.listing(request).await?;
        let mut warnings = Vec::new();
        let mut deleted: Vec<Arc<Object>> = Vec::with_capacity(listing.items.len());
        for object in listing.items {
            let options = DeleteOptions { uid: Some(object.uid().to_owned()), ..deletion.options.clone() };
            let options = if object.uid().is_empty() { deletion.options.clone() } else { options };
            let write = write_request(request, call, object.key(), Mutation::Delete(options), deletion.dry_run);
            match self.backend.write(write).await {
                Ok(written) => {
                    warnings.extend(written.warnings);
                    deleted.push(object);
                }
                Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        let include = request.options.include_object;
        let reply = object::many(
            request.kind,
            form,
            include,
            &ListMeta::at(listing.resource_version),
            &deleted,
            (self.clock)(),
        );
        Ok(reply.with_warnings(&warnings))
    }
}

fn write_request(
    request: &ResourceRequest,
    call: Call<'_>,
    key: ObjectKey,
    mutation: Mutation,
    dry_run: DryRun,
) -> WriteRequest {
    let nobody = || User { name: String::new(), groups: Vec::new() };
    WriteRequest {
        key,
        mutation,
        dry_run,
        field_validation: request.options.field_validation,
        user: call.user.cloned().unwrap_or_else(nobody),
        field_manager: request.options.field_manager.clone(),
    }
}

/// The mutation of a create, replace or patch, and a warning for each duplicate key.
fn mutation(request: &ResourceRequest, call: Call<'_>, bytes: &[u8]) -> Result<(Mutation, Vec<String>), ApiError> {
    let strictness = request.options.field_validation;
    let content_type = call.header(header::CONTENT_TYPE);
    if request.verb == Verb::Patch {
        let patch_type = PatchType::of(content_type)?;
        let format = if patch_type == PatchType::Apply { BodyType::Yaml } else { BodyType::Json };
        let body::Parsed { value, warnings } = body::parse(bytes, format, strictness)?;
        let patch = match patch_type {
            PatchType::JsonMerge => Patch::JsonMerge(value),
            PatchType::StrategicMerge => Patch::StrategicMerge(value),
            PatchType::Json => Patch::Json(value),
            PatchType::Apply => {
                let mutation = Mutation::Apply { part: part(request), body: value, options: apply_options(request)? };
                return Ok((mutation, warnings));
            }
        };
        return Ok((Mutation::Patch { part: part(request), patch }, warnings));
    }
    let body::Parsed { value, warnings } = body::parse(bytes, BodyType::of(content_type)?, strictness)?;
    let mutation = match (request.verb, part(request)) {
        (Verb::Create, _) => Mutation::Create { body: body::object(value, request)? },
        (_, Part::Scale) => Mutation::Replace { part: Part::Scale, body: body::scale(value, &request.key())? },
        (_, part) => Mutation::Replace { part, body: body::object(value, request)?.into_value() },
    };
    Ok((mutation, warnings))
}

/// An apply must say for whom it is.
fn apply_options(request: &ResourceRequest) -> Result<ApplyOptions, ApiError> {
    let force = request.options.query.flag("force")?;
    if let Some(manager) = request.options.field_manager.clone() {
        return Ok(ApplyOptions { manager, force });
    }
    let fault = Violation {
        reason: "FieldValueRequired",
        field: "fieldManager".to_owned(),
        message: "Required value: is required for apply patch".to_owned(),
    };
    let message = format!("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: {}", fault.message);
    let mut error = ApiError::of(Reason::Invalid, message);
    error.causes = vec![fault];
    Err(error)
}

fn part(request: &ResourceRequest) -> Part {
    match request.subresource {
        Some(Subresource::Status) => Part::Status,
        Some(Subresource::Scale) => Part::Scale,
        Some(Subresource::Log | Subresource::Eviction) | None => Part::Main,
    }
}

fn deletion(request: &ResourceRequest, call: Call<'_>, bytes: &[u8]) -> Result<body::Deletion, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return body::deletion(None, request);
    }
    let body_type = BodyType::of(call.header(header::CONTENT_TYPE))?;
    let parsed = body::parse(bytes, body_type, request.options.field_validation)?;
    body::deletion(Some(&parsed.value), request)
}

fn eviction(request: &ResourceRequest, call: Call<'_>, bytes: &[u8]) -> Result<body::Deletion, ApiError> {
    let body_type = BodyType::of(call.header(header::CONTENT_TYPE))?;
    let parsed = body::parse(bytes, body_type, request.options.field_validation)?;
    body::eviction(&parsed.value, request)
}

/// `Status` Success, from which kubectl takes the uid it waits for.
fn removed(object: &Object) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), object.name().into());
    if !object.kind().group.is_empty() {
        details.insert("group".into(), object.kind().group.into());
    }
    details.insert("kind".into(), object.kind().plural.into());
    details.insert("uid".into(), object.uid().into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
