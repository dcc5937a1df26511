//! Get, list, watch and logs.

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason, Violation};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::scale;
use flotilla_manifests::time::Timestamp;
use http::{StatusCode, header};
use tokio::sync::mpsc;

use super::object::ListMeta;
use super::stream::{Watching, forward};
use super::{Call, Front, object};
use crate::backend::{Backend, Listing, LogRequest};
use crate::negotiate::{Count, Form};
use crate::page::{self, Token};
use crate::reply::Reply;
use crate::route::{ResourceRequest, ResourceVersion, Subresource, VersionMatch};
use crate::watch::{Filter, Lines};

/// Chunks of a stream waiting for a slow client.
const STREAM_CHUNKS_MAX: usize = 16;

impl<B: Backend> Front<B> {
    pub(super) async fn get(&self, request: &ResourceRequest, call: Call<'_>) -> Result<Reply, ApiError> {
        let form = Form::of(call.header(header::ACCEPT), Count::One)?;
        let object = self.backend.read(&request.key()).await?;
        if request.subresource == Some(Subresource::Scale) {
            return scale_reply(StatusCode::OK, form, &object);
        }
        Ok(object::one(StatusCode::OK, form, request.options.include_object, &object, (self.clock)()))
    }

    pub(super) async fn list(&self, request: &ResourceRequest, call: Call<'_>) -> Result<Reply, ApiError> {
        let form = Form::of(call.header(header::ACCEPT), Count::Many)?;
        let options = &request.options;
        let filter = Filter::parse(&options.label_selector, &options.field_selector, request.kind)?;
        let limit = options.query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let token = match options.query.text("continue") {
            "" => None,
            text => Some(Token::parse(text, request)?),
        };
        let listing = self.listing_of(request, token.as_ref()).await?;
        let page = page::cut(listing.items, token.as_ref(), &filter, limit);
        let items: Vec<_> = page.items.into_iter().map(|object| self.backend.shown(object)).collect();
        let next = |after| Token { version: Some(listing.resource_version), after }.text(request);
        let metadata = ListMeta {
            resource_version: listing.resource_version.to_string(),
            token: page.more_after.map(next),
            remaining_item_count: page.remaining,
        };
        Ok(object::many(request.kind, form, options.include_object, &metadata, &items, (self.clock)()))
    }

    /// What a deletion of a collection is about.
    pub(super) async fn listing(&self, request: &ResourceRequest) -> Result<Listing, ApiError> {
        let options = &request.options;
        let filter = Filter::parse(&options.label_selector, &options.field_selector, request.kind)?;
        let mut listing = self.listing_of(request, None).await?;
        listing.items.retain(|object| filter.matches(object));
        Ok(listing)
    }

    /// The whole list at the version the request (or the page before) demands, without its selectors.
    async fn listing_of(&self, request: &ResourceRequest, token: Option<&Token>) -> Result<Listing, ApiError> {
        let options = &request.options;
        let (kind, namespace) = (request.kind, request.namespace());
        if let Some(token) = token {
            if matches!(options.resource_version, ResourceVersion::At(_))
                || options.resource_version_match != VersionMatch::Unset
            {
                let message = "specifying resource version is not allowed when using continue";
                return Err(ApiError::of(Reason::BadRequest, message));
            }
            let Some(version) = token.version else { return self.backend.list(kind, namespace).await };
            let listed = self.backend.list_at(kind, namespace, version).await;
            let expired = |error: &ApiError| error.reason == Reason::Expired;
            return listed.map_err(|error| if expired(&error) { token.expired(request) } else { error });
        }
        let listing = self.backend.list(kind, namespace).await?;
        let current = listing.resource_version;
        match (options.resource_version, options.resource_version_match) {
            (ResourceVersion::At(version), VersionMatch::Exact) if version < current => {
                self.backend.list_at(kind, namespace, version).await
            }
            (wanted, matching) => check_list_version(wanted, matching, current).map(|()| listing),
        }
    }

    pub(super) async fn watch(&self, request: &ResourceRequest, call: Call<'_>) -> Result<Reply, ApiError> {
        let form = Form::of(call.header(header::ACCEPT), Count::One)?;
        let options = &request.options;
        let filter = Filter::parse(&options.label_selector, &options.field_selector, request.kind)?;
        let start = Start::of(request)?;
        let (kind, namespace) = (request.kind, request.namespace());
        let (from, initial) = match start {
            Start::After(version) => (version, None),
            Start::Listed { .. } | Start::Now => {
                let listing = self.backend.list(kind, namespace).await?;
                if let Start::Listed { not_older_than } = start {
                    check_not_too_new(not_older_than, listing.resource_version)?;
                }
                let listed = matches!(start, Start::Listed { .. }).then_some(listing.items);
                let items = listed.into_iter().flatten().map(|object| self.backend.shown(object)).collect();
                (listing.resource_version, Some(items))
            }
        };
        let events = self.backend.watch(kind, namespace, from).await?;
        let seconds_max = self.limits.watch_seconds_max;
        let seconds = options.watch.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(seconds_max);
        let (sender, receiver) = mpsc::channel(STREAM_CHUNKS_MAX);
        let watching = Watching {
            lines: Lines::of(kind, form.shape, filter, options.include_object, from),
            initial: initial.unwrap_or_default(),
            marks_initial_end: options.watch.initial_events == Some(true),
            bookmarks: options.watch.bookmarks,
            seconds: seconds.min(seconds_max),
            clock: self.clock.clone(),
            events,
            out: sender,
            shutdown: call.shutdown.clone(),
        };
        tokio::spawn(watching.run());
        Ok(Reply::stream(form.encoding.media_type(), receiver))
    }

    pub(super) async fn log(&self, request: &ResourceRequest, call: Call<'_>) -> Result<Reply, ApiError> {
        let chunks = self.backend.logs(log_request(request)?).await?;
        let (sender, receiver): (mpsc::Sender<Bytes>, _) = mpsc::channel(STREAM_CHUNKS_MAX);
        tokio::spawn(forward(chunks, sender, call.shutdown.clone()));
        Ok(Reply::stream("text/plain", receiver))
    }
}

impl ResourceRequest {
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind, self.namespace.clone(), self.name.clone())
    }

    /// `None`: all namespaces, or a kind without them.
    pub(super) fn namespace(&self) -> Option<&str> {
        Some(self.namespace.as_str()).filter(|text| !text.is_empty())
    }
}

/// The object seen as `autoscaling/v1` Scale.
pub(super) fn scale_reply(status: StatusCode, form: Form, object: &Object) -> Result<Reply, ApiError> {
    let scale = scale::of(object).ok_or_else(|| {
        ApiError::of(Reason::NotFound, format!("{} cannot be scaled", object.key())).about(&object.key())
    })?;
    Ok(Reply::json(status, form.encoding, &scale))
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With later changes only.
    After(u64),
    /// With the present state as synthetic `ADDED` events.
    Listed { not_older_than: u64 },
    /// At the present state, unseen.
    Now,
}

impl Start {
    fn of(request: &ResourceRequest) -> Result<Self, ApiError> {
        let options = &request.options;
        let forbidden = |field: &str, message: &str| {
            let fault = Violation {
                reason: "FieldValueForbidden",
                field: field.to_owned(),
                message: format!("Forbidden: {message}"),
            };
            let mut error = ApiError::of(
                Reason::Invalid,
                format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {}", fault.message),
            );
            error.causes = vec![fault];
            Err(error)
        };
        let matching = options.resource_version_match;
        match (options.watch.initial_events, options.resource_version) {
            (Some(_), _) if matching != VersionMatch::NotOlderThan => forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (None, _) if matching != VersionMatch::Unset => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            (Some(true), ResourceVersion::At(version)) => Ok(Self::Listed { not_older_than: version }),
            (Some(true) | None, ResourceVersion::Unset | ResourceVersion::Any) => {
                Ok(Self::Listed { not_older_than: 0 })
            }
            (Some(false), ResourceVersion::Unset | ResourceVersion::Any) => Ok(Self::Now),
            (Some(false) | None, ResourceVersion::At(version)) => Ok(Self::After(version)),
        }
    }
}

fn check_list_version(wanted: ResourceVersion, matching: VersionMatch, current: u64) -> Result<(), ApiError> {
    match (wanted, matching) {
        (ResourceVersion::Unset, VersionMatch::Unset) => Ok(()),
        (ResourceVersion::Unset, _) | (ResourceVersion::Any, VersionMatch::Exact) => Err(ApiError::of(
            Reason::BadRequest,
            "resourceVersionMatch is forbidden unless resourceVersion is provided, and Exact needs one that is not 0",
        )),
        (ResourceVersion::Any, _) => Ok(()),
        (ResourceVersion::At(version), _) => check_not_too_new(version, current),
    }
}

/// 504 with the cause client-go looks for.
fn check_not_too_new(wanted: u64, current: u64) -> Result<(), ApiError> {
    if wanted <= current {
        return Ok(());
    }
    let message = format!("Too large resource version: {wanted}, current: {current}");
    let mut error = ApiError::of(Reason::Timeout, message);
    error.retry_after_seconds = Some(1);
    error.causes = vec![Violation {
        reason: "ResourceVersionTooLarge",
        field: String::new(),
        message: "Too large resource version".to_owned(),
    }];
    Err(error)
}

fn log_request(request: &ResourceRequest) -> Result<LogRequest, ApiError> {
    let query = &request.options.query;
    let since_time = match query.text("sinceTime") {
        "" => None,
        text => {
            let time =
                Timestamp::parse(text).ok_or_else(|| query.bad("sinceTime", text, "must be an RFC 3339 time"))?;
            Some(time)
        }
    };
    let since_seconds = query.number("sinceSeconds")?;
    if since_seconds.is_some() && since_time.is_some() {
        return Err(query.bad("sinceSeconds", query.text("sinceSeconds"), "at most one of sinceTime and sinceSeconds"));
    }
    Ok(LogRequest {
        namespace: request.namespace.clone(),
        pod: request.name.clone(),
        container: query.text("container").to_owned(),
        follow: query.flag("follow")?,
        previous: query.flag("previous")?,
        timestamps: query.flag("timestamps")?,
        tail_lines: query.number("tailLines")?,
        limit_bytes: query.number("limitBytes")?,
        since_seconds,
        since_time,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
