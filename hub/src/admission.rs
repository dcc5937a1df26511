//! The hub's own rules around [`flotilla_manifests::admission::admit`]: namespaces, rollout numbers, graceful deletion, kinds
//! that are not a user's to write.
//!
//! Pure up to [`apply`], which stores a decision inside the writer. Refuses whatever the user could not see undone later.

use flotilla_manifests::admission::{self, Context, Mutation, Outcome, Part, Propagation};
use flotilla_manifests::api_error::{ApiError, Reason, Violation};
use flotilla_manifests::kind::{self, Scope};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::{self, RolloutNumber, THRESHOLD_ALL};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::{WriteRequest, Written};
use serde_json::{Value, json};

use crate::leases::NODE_LEASES;
use crate::priority;
use crate::publish::FLEET_LABEL;
use crate::store::devices::{LAST_SEEN_ANNOTATION, ROAD_ANNOTATION, SYNC_ANNOTATION};
use crate::store::{Batch, Index};

/// What is to be stored, and what the caller hears.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) written: Written,
    /// A number minted by this write.
    number: Option<RolloutNumber>,
}

impl Decision {
    /// Of what is written without a request.
    pub(crate) fn of(written: Written, number: Option<RolloutNumber>) -> Self {
        Self { written, number }
    }
}

/// Decides one request against the current objects.
///
/// # Errors
/// Those of [`admission::admit`]; 403 and 404 of a namespace that is missing or going; 403 of a kind that is the fleet's to
/// write; 422 of orphaning.
pub(crate) fn decide(
    index: &Index,
    incarnation: u64,
    request: &WriteRequest,
    context: &Context,
) -> Result<Decision, ApiError> {
    let key = match &request.mutation {
        Mutation::Create { body } => admission::created_key(&request.key, body, &context.name_suffix),
        _ => request.key.clone(),
    };
    let current = index.get(&key).map(AsRef::as_ref);
    let creates = match &request.mutation {
        Mutation::Create { .. } => true,
        Mutation::Apply { .. } => current.is_none(),
        _ => false,
    };
    if creates {
        check_namespace(index, request)?;
    }
    check_kind(current, request, creates)?;
    let mut admitted = admission::admit(&request.key, current, &request.mutation, context)?;
    if let (Some(current), Outcome::Updated(_)) = (current, &admitted.outcome) {
        admitted.warnings.extend(overridden(index, current, request));
    }
    let mut number = None;
    let outcome = match admitted.outcome {
        Outcome::Created(mut object) => {
            number = rollout::stamp(None, &mut object, incarnation);
            match object.kind() {
                kind if *kind == kind::NAMESPACE => {
                    let name = object.name().to_owned();
                    set_label(&mut object, "kubernetes.io/metadata.name", &name);
                }
                kind if *kind == kind::POD => priority::resolve(index, &mut object)?,
                kind if *kind == kind::PRIORITY_CLASS => priority::check_class(index, &object)?,
                _ => {}
            }
            Outcome::Created(object)
        }
        Outcome::Updated(mut object) => {
            number = rollout::stamp(current, &mut object, incarnation);
            check_fleet(current, &object)?;
            if object.kind() == &kind::PRIORITY_CLASS {
                priority::check_class(index, &object)?;
            }
            keep_shown_facts(current, &mut object);
            if let Some(current) = current {
                track(current, &mut object, request, context.now);
            }
            Outcome::Updated(object)
        }
        Outcome::Unchanged(object) => Outcome::Unchanged(object),
        Outcome::Removed(object) => remove(index, current, object),
    };
    Ok(Decision { written: Written { outcome, warnings: admitted.warnings }, number })
}

/// Notes who has written what, where an object has been server-side applied.
fn track(current: &Object, object: &mut Object, request: &WriteRequest, now: Timestamp) {
    let (Mutation::Replace { part, .. } | Mutation::Patch { part, .. }) = &request.mutation else { return };
    let manager = request.field_manager.as_deref().unwrap_or(&request.user.name);
    flotilla_manifests::apply::track(current, object, manager, *part, now);
}

/// What is applied here never conflicts with what technicians hold at their devices: it is told instead.
fn overridden(index: &Index, current: &Object, request: &WriteRequest) -> Option<String> {
    let Mutation::Apply { part: Part::Main, .. } = &request.mutation else { return None };
    let stands = |one: &&std::sync::Arc<Object>| {
        one.text("/spec/target/uid") == current.uid() && one.deletion_timestamp().is_none()
    };
    let nodes: std::collections::BTreeSet<&str> =
        index.list(&kind::OVERRIDE, None).filter(stands).map(|one| one.text("/spec/nodeName")).collect();
    match nodes.len() {
        0 => None,
        1 => Some(format!("device {} overrides fields of this object: kubectl get overrides", nodes.first()?)),
        count => Some(format!("{count} devices override fields of this object: kubectl get overrides")),
    }
}

/// Stores a decision. The answer carries the resource versions given.
pub(crate) fn apply(batch: &mut Batch<'_>, decision: Decision) -> Result<Written, ApiError> {
    let Decision { written: Written { outcome, warnings }, number } = decision;
    let outcome = match outcome {
        Outcome::Created(object) => {
            let stored = batch.create(object)?;
            if let Some(number) = number {
                batch.set_threshold(stored.uid(), &number.to_string(), Some(THRESHOLD_ALL))?;
            }
            if stored.kind() == &kind::NAMESPACE {
                batch.create(default_account(stored.name()))?;
            }
            Outcome::Created((*stored).clone())
        }
        Outcome::Updated(object) => {
            let key = object.key();
            let current = batch.get(&key).ok_or_else(|| ApiError::not_found(&key))?;
            let stored = batch.replace(&current, object)?;
            if let Some(number) = number {
                let threshold = if key.kind == &kind::DAEMON_SET { 0 } else { THRESHOLD_ALL };
                batch.set_threshold(stored.uid(), &number.to_string(), Some(threshold))?;
            }
            Outcome::Updated((*stored).clone())
        }
        Outcome::Unchanged(object) => Outcome::Unchanged(object),
        Outcome::Removed(object) => {
            let removed = batch.remove(&object.key())?;
            batch.forget_rollout(object.uid())?;
            Outcome::Removed(removed.map_or(object, |last| (*last).clone()))
        }
    };
    Ok(Written { outcome, warnings })
}

/// The `default` ServiceAccount of a namespace.
pub(crate) fn default_account(namespace: &str) -> Object {
    Object::empty(&kind::SERVICE_ACCOUNT, namespace, "default")
}

fn check_namespace(index: &Index, request: &WriteRequest) -> Result<(), ApiError> {
    let key = &request.key;
    if key.kind.scope == Scope::Cluster {
        return Ok(());
    }
    let namespace = ObjectKey::of(&kind::NAMESPACE, "", key.namespace.as_str());
    let Some(found) = index.get(&namespace) else { return Err(ApiError::not_found(&namespace)) };
    if found.deletion_timestamp().is_some() {
        let message = format!(
            "{} {:?} is forbidden: unable to create new content in namespace {} because it is being terminated",
            key.kind.plural, key.name, key.namespace
        );
        let mut error = ApiError::of(Reason::Forbidden, message).about(key);
        error.causes.push(Violation {
            reason: "NamespaceTerminating",
            field: "metadata.namespace".into(),
            message: format!("namespace {} is being terminated", key.namespace),
        });
        return Err(error);
    }
    Ok(())
}

/// Kinds that devices, not users, bring into being.
fn check_kind(current: Option<&Object>, request: &WriteRequest, creates: bool) -> Result<(), ApiError> {
    let key = &request.key;
    let forbidden = |why: &str| {
        let message = format!("{} {:?} is forbidden: {why}", key.kind.plural, key.name);
        Err(ApiError::of(Reason::Forbidden, message).about(key))
    };
    match &request.mutation {
        _ if creates && key.kind == &kind::NODE => {
            forbidden("a Node appears when its device enrols: make a token with `flotilla token create`")
        }
        Mutation::Create { .. } | Mutation::Replace { .. } | Mutation::Patch { .. } | Mutation::Apply { .. }
            if key.kind == &kind::OVERRIDE =>
        {
            forbidden("an Override is made at its device; here it can be read, and deleted to revert it")
        }
        Mutation::Replace { part: Part::Main, .. }
        | Mutation::Patch { part: Part::Main, .. }
        | Mutation::Apply { part: Part::Main, .. }
            if current.is_some_and(is_daemon_pod) =>
        {
            forbidden(
                "the device makes this Pod from its DaemonSet: change the DaemonSet, or the Pod at the device's own API",
            )
        }
        _ if key.kind == &kind::LEASE && key.namespace == NODE_LEASES => {
            forbidden("the Lease of a Node is made from its device's session; it can only be read")
        }
        Mutation::Delete(_) if key.kind == &kind::PRIORITY_CLASS && priority::is_system(&key.name) => {
            forbidden("this is a system priority class and cannot be deleted")
        }
        Mutation::Delete(options) if options.propagation == Propagation::Orphan && has_pods(key) => {
            let fault = Violation {
                reason: "FieldValueNotSupported",
                field: "propagationPolicy".into(),
                message:
                    "Unsupported value: \"Orphan\": devices make these Pods from the workload and end them with it"
                        .into(),
            };
            Err(ApiError::invalid(key, vec![fault]))
        }
        _ => Ok(()),
    }
}

/// The fleet is the boundary of what a device may read: it comes from the device's token alone.
fn check_fleet(current: Option<&Object>, object: &Object) -> Result<(), ApiError> {
    if object.kind() != &kind::NODE || current.and_then(|node| node.label(FLEET_LABEL)) == object.label(FLEET_LABEL) {
        return Ok(());
    }
    let key = object.key();
    let message = format!(
        "nodes {:?} is forbidden: label {FLEET_LABEL} is set by the hub alone; to move the device, let it enrol again with \
         a token of the other fleet: `flotilla token create --node {} --fleet FLEET`",
        key.name, key.name
    );
    Err(ApiError::of(Reason::Forbidden, message).about(&key))
}

fn has_pods(key: &ObjectKey) -> bool {
    [&kind::DAEMON_SET, &kind::DEPLOYMENT, &kind::REPLICA_SET].contains(&key.kind)
}

pub(crate) fn is_daemon_pod(object: &Object) -> bool {
    object.kind() == &kind::POD && object.controller().is_some_and(|owner| owner.kind == kind::DAEMON_SET.name)
}

pub(crate) fn set_label(object: &mut Object, name: &str, text: &str) {
    let labels = object.metadata_mut().entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(name.to_owned(), text.into());
    }
}

/// What the hub shows of a Node at each question is not a user's to write: an edit of what was shown carries it back.
fn keep_shown_facts(current: Option<&Object>, object: &mut Object) {
    if object.kind() != &kind::NODE {
        return;
    }
    for name in [SYNC_ANNOTATION, LAST_SEEN_ANNOTATION, ROAD_ANNOTATION] {
        match current.and_then(|current| current.annotation(name)) {
            Some(text) => object.set_annotation(name, text),
            None => {
                if let Some(map) = object.metadata_mut().get_mut("annotations").and_then(Value::as_object_mut) {
                    map.remove(name);
                }
            }
        }
    }
}

/// A removal; where a device has the last word, the mark alone, which asks the device to end the thing.
fn remove(index: &Index, current: Option<&Object>, object: Object) -> Outcome {
    let waits = is_daemon_pod(&object) || object.kind() == &kind::OVERRIDE;
    if !waits || !node_exists(index, &object) {
        return Outcome::Removed(object);
    }
    if current.is_some_and(|current| current.deletion_timestamp().is_some()) {
        return Outcome::Unchanged(object);
    }
    Outcome::Updated(object)
}

fn node_exists(index: &Index, object: &Object) -> bool {
    let node = object.text("/spec/nodeName");
    !node.is_empty() && index.get(&ObjectKey::of(&kind::NODE, "", node)).is_some()
}
