//! Deletion: preconditions, finalizers, propagation, graceful end of Pods.

use serde_json::Value;

use super::{Admitted, Context, DeleteOptions, FOREGROUND, ORPHAN, Outcome, Propagation, metadata};
use crate::api_error::{ApiError, Reason};
use crate::kind;
use crate::object::{Object, ObjectKey};
use crate::time::Timestamp;

/// Namespaces that stay.
const IMMORTAL_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Longest grace, so that its end is a time that can be written.
const GRACE_SECONDS_MAX: i64 = i32::MAX as i64;

/// What a Pod gets that says nothing.
const GRACE_PERIOD_SECONDS: i64 = 30;

pub(super) fn delete(
    key: &ObjectKey,
    current: &Object,
    options: &DeleteOptions,
    context: &Context,
) -> Result<Admitted, ApiError> {
    check_preconditions(key, current, options)?;
    if *key.kind == kind::NAMESPACE && IMMORTAL_NAMESPACES.contains(&key.name.as_str()) {
        let why = format!("namespaces {:?} is forbidden: this namespace may not be deleted", key.name);
        return Err(ApiError::of(Reason::Forbidden, why).about(key));
    }
    let mut object = current.clone();
    set_finalizers(&mut object, options.propagation);
    mark(&mut object, options.grace_period_seconds, context.now);
    let outcome = if is_finished(&object) {
        Outcome::Removed(object)
    } else if object == *current {
        Outcome::Unchanged(object)
    } else {
        Outcome::Updated(object)
    };
    Ok(Admitted { outcome, warnings: Vec::new() })
}

/// Whether nothing keeps the object any more: it is marked, its grace is over, and all finalizers are gone.
pub(super) fn is_finished(object: &Object) -> bool {
    let grace = object.at("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let kept_by_namespace =
        *object.kind() == kind::NAMESPACE && object.at("/spec/finalizers").is_some_and(|list| !is_empty(list));
    object.deletion_timestamp().is_some() && grace == 0 && object.finalizers().is_empty() && !kept_by_namespace
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn check_preconditions(key: &ObjectKey, current: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != current.uid()) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            current.uid()
        );
        return Err(ApiError::conflict(key, &why));
    }
    if let Some(version) = options.resource_version.filter(|version| *version != current.resource_version()) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            current.resource_version()
        );
        return Err(ApiError::conflict(key, &why));
    }
    Ok(())
}

/// The two finalizers of the garbage collector say how dependents are met; at most one stands.
fn set_finalizers(object: &mut Object, propagation: Propagation) {
    let wanted = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let before = object.finalizers();
    let mut after: Vec<String> = before
        .iter()
        .filter(|name| ![FOREGROUND, ORPHAN].contains(&name.as_str()) || Some(name.as_str()) == wanted)
        .cloned()
        .collect();
    if let Some(wanted) = wanted.filter(|wanted| !after.iter().any(|name| name == wanted)) {
        after.push(wanted.to_owned());
    }
    if after == before {
        return;
    }
    if after.is_empty() {
        object.metadata_mut().remove("finalizers");
    } else {
        object.metadata_mut().insert("finalizers".into(), after.into());
    }
}

/// Sets when the object is to be gone. A second deletion may only shorten the time.
fn mark(object: &mut Object, asked_seconds: Option<i64>, now: Timestamp) {
    let marked = object.deletion_timestamp();
    let current_grace = object.at("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let grace = match marked {
        None => grace_seconds(object, asked_seconds),
        Some(_) => match asked_seconds {
            Some(asked) => grace_seconds(object, Some(asked)).min(current_grace),
            None if ends_at_once(object) => 0,
            None => current_grace,
        },
    };
    if marked.is_some() && grace == current_grace {
        return;
    }
    let start = marked.map_or(now, |end| shift(end, current_grace.saturating_neg()));
    let end = shift(start, grace);
    let metadata = object.metadata_mut();
    metadata.insert("deletionTimestamp".into(), end.to_rfc3339().into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if marked.is_none() {
        metadata::raise_generation(object);
        if *object.kind() == kind::NAMESPACE {
            metadata::set_phase(object, "Terminating");
        }
    }
}

/// Only a Pod that a node may be running is given time.
fn grace_seconds(object: &Object, asked: Option<i64>) -> i64 {
    if ends_at_once(object) {
        return 0;
    }
    let stated = object.at("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let seconds = asked.or(stated).unwrap_or(GRACE_PERIOD_SECONDS);
    if seconds < 0 { 1 } else { seconds.min(GRACE_SECONDS_MAX) }
}

fn ends_at_once(object: &Object) -> bool {
    *object.kind() != kind::POD
        || object.text("/spec/nodeName").is_empty()
        || matches!(object.text("/status/phase"), "Succeeded" | "Failed")
}

fn shift(time: Timestamp, seconds: i64) -> Timestamp {
    let milliseconds = seconds.unsigned_abs().saturating_mul(1000);
    Timestamp(if seconds < 0 { time.0.saturating_sub(milliseconds) } else { time.0.saturating_add(milliseconds) })
}
