//! What stands behind the REST front: the hub's store, or a device's replica.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_manifests::admission::{FieldValidation, Mutation, Outcome};
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::{Object, ObjectKey};
use tokio::sync::mpsc;

/// A server's objects, as the REST front needs them. Cheap to clone behind an `Arc`.
///
/// The contract of one server (DESIGN section 6): resource versions strictly increase; a list at R and a watch from R give
/// every later change once and in order; a write is durable and visible to reads before it is answered.
pub trait Backend: Send + Sync + 'static {
    /// The kinds this server serves; discovery and OpenAPI list these only.
    fn kinds(&self) -> &[KindRef];

    fn read(&self, key: &ObjectKey) -> impl Future<Output = Result<Arc<Object>, ApiError>> + Send;

    /// All objects of a kind, in key order, with the resource version the list stands at. Selectors are applied by the front.
    fn list(&self, kind: KindRef, namespace: Option<&str>) -> impl Future<Output = Result<Listing, ApiError>> + Send;

    /// The list as it stood at an earlier version, each object with the version it had then.
    /// [`Expired`](flotilla_manifests::api_error::Reason) as for [`watch`](Self::watch). [`rewound`](crate::page::rewound) undoes
    /// the changes since.
    fn list_at(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        version: u64,
    ) -> impl Future<Output = Result<Listing, ApiError>> + Send;

    /// An object as a list shows it: with what is true at this moment and stored nowhere. Asked for what is answered alone, page by
    /// page; selectors do not see it.
    fn shown(&self, object: Arc<Object>) -> Arc<Object> {
        object
    }

    /// Changes after `from`, in order. `Err` with [`Reason::Expired`](flotilla_manifests::api_error::Reason) when history
    /// no longer reaches back that far or `from` is another server's. The channel is bounded; a watcher that does not read
    /// is ended by the backend with [`WatchEvent::Expired`], never waited for.
    fn watch(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        from: u64,
    ) -> impl Future<Output = Result<mpsc::Receiver<WatchEvent>, ApiError>> + Send;

    /// One write, durable when answered.
    fn write(&self, request: WriteRequest) -> impl Future<Output = Result<Written, ApiError>> + Send;

    /// CRI log bytes of one container, already turned into plain text lines.
    fn logs(&self, request: LogRequest) -> impl Future<Output = Result<mpsc::Receiver<Bytes>, ApiError>> + Send;

    /// Whether `/readyz` says yes; `Err` names what is not ready.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// A list and where it stands.
#[derive(Debug, Clone)]
pub struct Listing {
    pub resource_version: u64,
    pub items: Vec<Arc<Object>>,
}

/// One step of a watch. Each object carries the resource version of the change, deletions too.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    Added(Arc<Object>),
    /// `previous` is what the object was, so that the front can turn a change into an entry to or exit from a selector.
    Modified {
        previous: Arc<Object>,
        object: Arc<Object>,
    },
    Deleted(Arc<Object>),
    /// Nothing of this kind happened up to this version.
    Progress(u64),
    /// The watcher fell behind, or the server is another one now: 410.
    Expired,
}

/// A write with who asks and how.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteRequest {
    pub key: ObjectKey,
    pub mutation: Mutation,
    pub dry_run: DryRun,
    pub field_validation: FieldValidation,
    pub user: User,
    /// `fieldManager`, for the audit log.
    pub field_manager: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    No,
    All,
}

/// The authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// What a write did, with the `Warning:` headers it earned.
#[derive(Debug, Clone)]
pub struct Written {
    pub outcome: Outcome,
    pub warnings: Vec<String>,
}

/// `GET .../pods/NAME/log`
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    /// Empty: the only container, or a 400 that names them.
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since_seconds: Option<u64>,
    pub since_time: Option<flotilla_manifests::time::Timestamp>,
}
