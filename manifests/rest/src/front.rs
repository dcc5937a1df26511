//! One request in, one response out: routing, authorisation, negotiation, backend calls, encoding.
//!
//! Owns the protocol's behaviour; refuses sockets (see [`server`](crate::server)) and storage (see
//! [`Backend`]). Start at [`Front::handle`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::time::Timestamp;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument;

use crate::authorize::{Attributes, Authorize, Decision, DenyAll};
use crate::backend::{Backend, User};
use crate::negotiate::{DiscoveryForm, Encoding};
use crate::openapi;
use crate::reply::{Body, Reply};
use crate::route::{OpenApi, Probe, ResourceRequest, Route, Subresource, Verb};
use crate::{SERVER_VERSION, discovery};

mod body;
mod object;
mod read;
mod review;
mod stream;
mod write;

pub(crate) use stream::turned_true;

/// Reads the wall clock; only the shell that builds a [`Front`] has a real one.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Bounds of one front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A larger request body gets 413 before it is read.
    pub body_bytes_max: usize,
    /// Time a client has to send its whole body.
    pub body_read_seconds_max: u64,
    /// Requests being answered at once, watches and followed logs apart; one more gets 429.
    pub requests_in_flight_max: usize,
    /// Watches and followed logs open at once; one more gets 429.
    pub streams_open_max: usize,
    /// Connections open at once; one more waits in the kernel's backlog.
    pub connections_open_max: usize,
    /// Time for the TLS handshake and the first request's header.
    pub header_read_seconds_max: u64,
    /// A client that takes nothing from its socket for so long is cut off.
    pub write_stall_seconds_max: u64,
    /// A watch without `timeoutSeconds` ends after this.
    pub watch_seconds_max: u64,
}

impl Limits {
    /// For a hub.
    pub const HUB: Self = Self {
        body_bytes_max: 3 * 1024 * 1024,
        body_read_seconds_max: 60,
        requests_in_flight_max: 400,
        streams_open_max: 4096,
        connections_open_max: 4096,
        header_read_seconds_max: 30,
        write_stall_seconds_max: 60,
        watch_seconds_max: 3600,
    };
    /// For a device: little memory, few people.
    pub const DEVICE: Self =
        Self { requests_in_flight_max: 16, streams_open_max: 32, connections_open_max: 64, ..Self::HUB };
}

/// The Kubernetes API over one backend. Cheap to share behind an `Arc`.
pub struct Front<B> {
    backend: Arc<B>,
    clock: Clock,
    authorize: Arc<dyn Authorize>,
    limits: Limits,
    in_flight: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Requests so far: makes audit ids unique within one life of the front.
    count: AtomicU64,
    /// Hash of each OpenAPI document, once somebody has asked.
    openapi_hashes: OnceLock<BTreeMap<(&'static str, &'static str), String>>,
}

impl<B: Backend> Front<B> {
    /// Denies every request until [`Front::authorized_by`] names an authorizer.
    pub fn over(backend: Arc<B>, clock: Clock, limits: Limits) -> Self {
        Self {
            backend,
            clock,
            authorize: Arc::new(DenyAll),
            limits,
            in_flight: Arc::new(Semaphore::new(limits.requests_in_flight_max)),
            streams: Arc::new(Semaphore::new(limits.streams_open_max)),
            count: AtomicU64::new(0),
            openapi_hashes: OnceLock::new(),
        }
    }

    pub fn authorized_by(mut self, authorize: impl Authorize) -> Self {
        self.authorize = Arc::new(authorize);
        self
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Answers one request of a caller that the listener has authenticated, or of nobody. `shutdown` turning true ends watches
    /// and followed logs.
    pub async fn handle<R>(
        &self,
        request: Request<R>,
        user: Option<&User>,
        shutdown: &watch::Receiver<bool>,
    ) -> Response<Body>
    where
        R: hyper::body::Body<Data = Bytes> + Send,
        R::Error: std::error::Error + Send + Sync + 'static,
    {
        let (parts, body) = request.into_parts();
        let audit_id = self.audit_id(&parts.headers);
        let caller = user.map_or("", |user| user.name.as_str());
        let span = tracing::debug_span!("request", method = %parts.method, path = parts.uri.path(), user = caller);
        let (reply, permit) = match self.admitted(&parts, user) {
            Ok((route, permit)) => {
                let call = Call { parts: &parts, user, shutdown };
                (self.answer(route, call, body).instrument(span).await, Some(permit))
            }
            Err(error) => (Err(error), None),
        };
        let reply = reply.unwrap_or_else(|error| {
            let (method, path, code) = (&parts.method, parts.uri.path(), error.reason.code());
            if code >= 500 {
                tracing::warn!(%method, path, audit_id, code, %error, "request failed");
            } else {
                tracing::debug!(%method, path, audit_id, code, %error, "request refused");
            }
            Reply::error(&error)
        });
        reply.into_response(permit, &audit_id)
    }

    /// The caller's own `Audit-Id`, or time and count in the form of a UUID.
    fn audit_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get("audit-id").and_then(|value| value.to_str().ok());
        if let Some(given) = given.filter(|text| !text.is_empty() && text.len() <= 64) {
            return given.to_owned();
        }
        let time = (self.clock)().0;
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (count >> 48 & 0xffff, count & 0xffff_ffff_ffff);
        format!("{:08x}-{:04x}-7000-{high:04x}-{low:012x}", time >> 16 & 0xffff_ffff, time & 0xffff)
    }

    /// Route, authentication, authorisation and a place in the bounds, in this order.
    fn admitted(&self, parts: &Parts, user: Option<&User>) -> Result<(Route, OwnedSemaphorePermit), ApiError> {
        let path = parts.uri.path();
        let route = Route::parse(&parts.method, path, parts.uri.query().unwrap_or(""), self.backend.kinds());
        let open = matches!(route, Ok(Route::Probe(_) | Route::Version));
        if !open {
            let user = user.ok_or_else(|| {
                let message = "Unauthorized: this server knows its callers by client certificates, and none was shown";
                ApiError::of(Reason::Unauthorized, message)
            })?;
            refuse_impersonation(&parts.headers)?;
            self.authorized(user, &parts.method, path, route.as_ref().ok())?;
        }
        let route = route?;
        let (bound, what) =
            if streams(&route) { (&self.streams, "watches and followed logs") } else { (&self.in_flight, "requests") };
        let permit = Arc::clone(bound).try_acquire_owned().map_err(|_| {
            let message = format!("this server answers as many {what} as it may at once, please try again later");
            let mut error = ApiError::of(Reason::TooManyRequests, message);
            error.retry_after_seconds = Some(1);
            error
        })?;
        Ok((route, permit))
    }

    fn authorized(&self, user: &User, method: &Method, path: &str, route: Option<&Route>) -> Result<(), ApiError> {
        let lower = method.as_str().to_ascii_lowercase();
        let plain =
            Attributes { verb: &lower, group: "", resource: "", subresource: "", namespace: "", name: "", path };
        let attributes = match route {
            Some(Route::Resource(request)) => Attributes {
                verb: request.verb.as_str(),
                group: request.kind.group,
                resource: request.kind.plural,
                subresource: request.subresource.map_or("", Subresource::as_str),
                namespace: &request.namespace,
                name: &request.name,
                path,
            },
            _ => plain,
        };
        match self.authorize.authorize(user, &attributes) {
            // Whoever is known may ask who it is and what it may do.
            _ if matches!(route, Some(Route::Review(_))) => Ok(()),
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(forbidden(user, &attributes, &reason)),
        }
    }

    async fn answer<R>(&self, route: Route, call: Call<'_>, body: R) -> Result<Reply, ApiError>
    where
        R: hyper::body::Body<Data = Bytes> + Send,
        R::Error: std::error::Error + Send + Sync + 'static,
    {
        match route {
            Route::Probe(probe) => Ok(self.probe(probe).await),
            Route::Version => Ok(Reply::json(StatusCode::OK, Encoding::Json, &version())),
            Route::Discovery(path) => {
                let form = DiscoveryForm::of(call.header(header::ACCEPT))?;
                let document = discovery::document(&path, form, self.backend.kinds())?;
                let bytes = document.to_string();
                Ok(Reply::bytes(StatusCode::OK, form.content_type(), bytes).with_header(header::VARY, "Accept"))
            }
            Route::OpenApi(path) => self.openapi(&path, call),
            Route::Review(review) => {
                let bytes = body::read(body, &call.parts.headers, self.limits).await?;
                self.review(review, call, &bytes)
            }
            Route::Resource(request) => self.resource(&request, call, body).await,
        }
    }

    async fn resource<R>(&self, request: &ResourceRequest, call: Call<'_>, body: R) -> Result<Reply, ApiError>
    where
        R: hyper::body::Body<Data = Bytes> + Send,
        R::Error: std::error::Error + Send + Sync + 'static,
    {
        match (request.verb, request.subresource) {
            (Verb::Get, Some(Subresource::Log)) => self.log(request, call).await,
            (Verb::Get, _) => self.get(request, call).await,
            (Verb::List, _) => self.list(request, call).await,
            (Verb::Watch, _) => self.watch(request, call).await,
            _ => {
                let bytes = body::read(body, &call.parts.headers, self.limits).await?;
                self.write(request, call, &bytes).await
            }
        }
    }

    async fn probe(&self, probe: Probe) -> Reply {
        let ready = match probe {
            Probe::Livez | Probe::Healthz => Ok(()),
            Probe::Readyz => self.backend.ready().await,
        };
        match ready {
            Ok(()) => Reply::bytes(StatusCode::OK, "text/plain; charset=utf-8", "ok"),
            Err(what) => {
                let text = format!("[-]{what}\nreadyz check failed\n");
                Reply::bytes(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", text)
            }
        }
    }

    fn openapi(&self, path: &OpenApi, call: Call<'_>) -> Result<Reply, ApiError> {
        let kinds = self.backend.kinds();
        let hashes = self.openapi_hashes.get_or_init(|| {
            let row = |(group, version)| {
                let text = openapi::document(group, version, kinds).map(|document| document.to_string());
                ((group, version), openapi::hash_text(text.unwrap_or_default().as_bytes()))
            };
            openapi::group_versions(kinds).into_iter().map(row).collect()
        });
        let hash = |group: &str, version: &str| hashes.get(&(group, version)).cloned().unwrap_or_default();
        match path {
            OpenApi::Old => {
                let (media_type, body) = openapi::nothing_of_version_2(call.header(header::ACCEPT).unwrap_or_default());
                Ok(Reply::bytes(StatusCode::OK, media_type, body))
            }
            OpenApi::Index => Ok(Reply::json(StatusCode::OK, Encoding::Json, &openapi::index(kinds, hash))),
            OpenApi::Document { group, version } => {
                let etag = format!("\"{}\"", hash(group, version));
                if call.header(header::IF_NONE_MATCH) == Some(etag.as_str()) {
                    let reply = Reply::bytes(StatusCode::NOT_MODIFIED, "application/json", "");
                    return Ok(reply.with_header(header::ETAG, &etag));
                }
                let document = openapi::document(group, version, kinds)?;
                let mut reply = Reply::json(StatusCode::OK, Encoding::Json, &document).with_header(header::ETAG, &etag);
                let named = call.parts.uri.query().is_some_and(|query| query.contains("hash="));
                if named {
                    reply = reply.with_header(header::CACHE_CONTROL, "public, immutable");
                }
                Ok(reply)
            }
        }
    }
}

/// What of a request every verb may need.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    parts: &'a Parts,
    user: Option<&'a User>,
    shutdown: &'a watch::Receiver<bool>,
}

impl<'a> Call<'a> {
    fn header(&self, name: header::HeaderName) -> Option<&'a str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Whether the answer may go on for long.
fn streams(route: &Route) -> bool {
    match route {
        Route::Resource(request) => {
            let log = request.subresource == Some(Subresource::Log);
            request.verb == Verb::Watch || (log && request.options.query.flag("follow").unwrap_or(false))
        }
        _ => false,
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": SERVER_VERSION, "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform_arch()),
    })
}

/// The architecture as container images name it.
fn platform_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// To ignore `--as` would do something as the wrong person.
fn refuse_impersonation(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.keys().find(|name| name.as_str().starts_with("impersonate-")) {
        None => Ok(()),
        Some(name) => {
            let message = format!("impersonation is not allowed here: send the request without {name} (kubectl --as)");
            Err(ApiError::of(Reason::Forbidden, message))
        }
    }
}

/// kube-apiserver's sentence.
fn forbidden(user: &User, attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let Attributes { verb, group, resource, subresource, namespace, name, path } = attributes;
    let name_of_user = &user.name;
    if resource.is_empty() {
        let message = format!("forbidden: User {name_of_user:?} cannot {verb} path {path:?}: {reason}");
        return ApiError::of(Reason::Forbidden, message);
    }
    let qualified = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
    let object = if name.is_empty() { String::new() } else { format!(" {name:?}") };
    let what = if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let message = format!(
        "{qualified}{object} is forbidden: User {name_of_user:?} cannot {verb} resource {what:?} in API group {group:?} {place}: {reason}"
    );
    ApiError::of(Reason::Forbidden, message)
}

impl<B> fmt::Debug for Front<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Front").field("limits", &self.limits).finish_non_exhaustive()
    }
}
