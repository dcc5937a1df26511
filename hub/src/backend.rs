//! The hub behind the REST front: the store for objects, the fleet door for logs.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_manifests::admission::{Context, Mutation, Outcome};
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::backend::{Backend, DryRun, Listing, LogRequest, WatchEvent, WriteRequest, Written};
use tokio::sync::mpsc;

use crate::admission::{apply, decide};
use crate::fleet::door::FleetDoor;
use crate::fleet::logs;
use crate::leases::{self, NODE_LEASES};
use crate::mint;
use crate::store::devices::{LAST_SEEN_ANNOTATION, ROAD_ANNOTATION, SYNC_ANNOTATION};
use crate::store::inbox::AuditEntry;
use crate::store::{Batch, Store};

/// Times another name suffix is drawn when a generated name is taken.
const NAME_ATTEMPTS_MAX: usize = 8;

/// What the hub serves over HTTP.
#[derive(Debug)]
pub struct HubBackend {
    store: Store,
    door: Arc<FleetDoor>,
    audit_count_max: u64,
}

impl HubBackend {
    pub(crate) fn new(store: Store, door: Arc<FleetDoor>, audit_count_max: u64) -> Self {
        Self { store, door, audit_count_max }
    }

    /// A Node as it is shown: that its device is in contact, and how far it is, is said at the moment of the question and
    /// never stored (a heartbeat per device would be a write per device).
    fn in_contact(&self, node: Arc<Object>) -> Arc<Object> {
        let Some(state) = self.door.sync_state(node.name()) else { return node };
        let mut shown = (*node).clone();
        shown.set_annotation(SYNC_ANNOTATION, &state.to_string());
        if let Some(road) = self.door.road(node.name()) {
            shown.set_annotation(ROAD_ANNOTATION, &road);
        }
        if self.door.session(node.name()).is_some() {
            shown.set_annotation(LAST_SEEN_ANNOTATION, &self.store.now().to_rfc3339());
        }
        Arc::new(shown)
    }

    fn lease_of(&self, node: &Object) -> Arc<Object> {
        Arc::new(leases::of_node(node, self.door.contact(node.name()), self.store.now()))
    }

    /// A list with the Leases of Nodes, which are made at the moment of the question.
    fn with_leases(
        &self,
        mut listing: Listing,
        kind: KindRef,
        namespace: Option<&str>,
        nodes: impl FnOnce() -> Result<Listing, ApiError>,
    ) -> Result<Listing, ApiError> {
        if kind == &kind::LEASE && namespace.is_none_or(|namespace| namespace == NODE_LEASES) {
            listing.items.extend(nodes()?.items.iter().map(|node| self.lease_of(node)));
            listing.items.sort_by_key(|lease| lease.key());
        }
        Ok(listing)
    }
}

impl Backend for HubBackend {
    fn kinds(&self) -> &[KindRef] {
        kind::ALL
    }

    async fn read(&self, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        if key.kind == &kind::LEASE && key.namespace == NODE_LEASES {
            let node = self.store.read(&ObjectKey::of(&kind::NODE, "", key.name.as_str()));
            return node.map(|node| self.lease_of(&node)).ok_or_else(|| ApiError::not_found(key));
        }
        let object = self.store.read(key).ok_or_else(|| ApiError::not_found(key))?;
        Ok(self.shown(object))
    }

    async fn list(&self, kind: KindRef, namespace: Option<&str>) -> Result<Listing, ApiError> {
        let nodes = || Ok(self.store.list(&kind::NODE, None));
        self.with_leases(self.store.list(kind, namespace), kind, namespace, nodes)
    }

    async fn list_at(&self, kind: KindRef, namespace: Option<&str>, version: u64) -> Result<Listing, ApiError> {
        let nodes = || self.store.list_at(&kind::NODE, None, version);
        self.with_leases(self.store.list_at(kind, namespace, version)?, kind, namespace, nodes)
    }

    fn shown(&self, object: Arc<Object>) -> Arc<Object> {
        if object.kind() == &kind::NODE { self.in_contact(object) } else { object }
    }

    async fn watch(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, ApiError> {
        self.store.watch(kind, namespace, from)
    }

    async fn write(&self, request: WriteRequest) -> Result<Written, ApiError> {
        if let Some(refusal) = self.door.lessons.refusal() {
            return Err(refusal);
        }
        let audit_count_max = self.audit_count_max;
        match request.dry_run {
            DryRun::All => {
                let now = self.store.now();
                let incarnation = self.store.incarnation();
                let decided = self
                    .store
                    .view(|index| drawn(&request, now, |context| decide(index, incarnation, &request, context)));
                Ok(without_version(decided?.written))
            }
            DryRun::No => self.store.write_soon(move |batch| write(batch, &request, audit_count_max)).await,
        }
    }

    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        logs::open(&self.door, request).await
    }

    async fn ready(&self) -> Result<(), String> {
        self.door.lessons.refusal().map_or(Ok(()), |refusal| Err(refusal.message))
    }
}

/// One API write inside the writer, with its line in the audit trail.
fn write(batch: &mut Batch<'_>, request: &WriteRequest, audit_count_max: u64) -> Result<Written, ApiError> {
    batch.set_author(&request.user.name);
    let (now, incarnation) = (batch.now(), batch.incarnation());
    let decision = drawn(request, now, |context| decide(batch.index(), incarnation, request, context))?;
    let written = apply(batch, decision)?;
    let (result, object) = match &written.outcome {
        Outcome::Created(object) => ("created", object),
        Outcome::Updated(object) => ("updated", object),
        Outcome::Removed(object) => ("removed", object),
        Outcome::Unchanged(_) => return Ok(written),
    };
    let entry = AuditEntry {
        user: &request.user.name,
        field_manager: request.field_manager.as_deref(),
        verb: match &request.mutation {
            Mutation::Create { .. } => "create",
            Mutation::Replace { .. } => "update",
            Mutation::Patch { .. } => "patch",
            Mutation::Delete(_) => "delete",
            Mutation::Evict(_) => "evict",
            Mutation::Apply { .. } => "apply",
        },
        key: &object.key(),
        result,
    };
    batch.audit(&entry, audit_count_max)?;
    Ok(written)
}

/// Decides with fresh names, and again when a generated name happens to be taken.
fn drawn<T>(
    request: &WriteRequest,
    now: flotilla_manifests::time::Timestamp,
    mut decide: impl FnMut(&Context) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let generated = matches!(&request.mutation, Mutation::Create { body } if body.name().is_empty());
    let mut attempts = if generated { NAME_ATTEMPTS_MAX } else { 1 };
    loop {
        let context = Context {
            now,
            uid: mint::uid()?,
            name_suffix: mint::name_suffix()?,
            field_validation: request.field_validation,
        };
        attempts -= 1;
        match decide(&context) {
            Err(error) if error.reason == Reason::AlreadyExists && attempts > 0 => {}
            decided => return decided,
        }
    }
}

/// A dry run stores nothing: its answer carries no version of its own.
fn without_version(mut written: Written) -> Written {
    if let Outcome::Created(object) = &mut written.outcome {
        object.metadata_mut().remove("resourceVersion");
    }
    written
}
