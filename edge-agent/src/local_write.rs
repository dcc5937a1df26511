//! What a write at the device's own API amounts to: override records, a restart, a hold, or a clear refusal.
//!
//! Pure. Owns the technician's rules of DESIGN section 6: a change becomes an override, setting a field back ends it, deleting a
//! Pod restarts it, deleting a workload holds it, applying it again lifts the hold. Start reading at [`decide`];
//! [`expiry`] has how long a change stands.

mod expiry;

use flotilla_manifests::admission::{self, Admitted, Context, Mutation, Outcome, Part};
use flotilla_manifests::api_error::{ApiError, Reason, Violation};
use flotilla_manifests::apply::ApplyOptions;
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::{self, Authorship, CAUSE_ANNOTATION, OverrideRecord, Revision};

use crate::effective::HOLD_ANNOTATION;

/// Where `kubectl apply` keeps what it applied last.
pub const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What the loop is to make durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Records of this device's own log.
    Revise { revision: Box<Revision>, outcome: Box<Outcome>, kept: Kept },
    /// End this attempt of a derived Pod and begin the next.
    Restart { pod: Box<Object> },
    /// The override with this id is no more.
    EndOverride { id: String, removed: Box<Object> },
    /// Nothing changes.
    Nothing(Box<Outcome>),
}

/// Annotations that are kept on this device and never in an override.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// What `kubectl apply` left.
    pub last_applied: Option<String>,
    /// The reason of this change and of those after it, where it is not the base's own.
    pub cause: Option<String>,
}

/// What the device knows about the object written to.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What the local API shows; `None` when nothing is shown under that key.
    pub shown: Option<&'a Object>,
    /// The manifest as the hub wrote it, also when a hold hides it.
    pub base: Option<&'a Object>,
    /// This device's records.
    pub records: &'a [OverrideRecord],
}

/// A decision with its `Warning:` headers.
pub type Decided = Result<(Decision, Vec<String>), ApiError>;

/// Decides one write. `id` is a fresh override id; `author` the caller's name.
pub fn decide(
    key: &ObjectKey,
    subject: &Subject<'_>,
    mutation: &Mutation,
    context: &Context,
    id: &str,
    author: &str,
) -> Decided {
    if let Mutation::Evict(_) = mutation {
        let message = format!(
            "pods {:?} cannot be evicted at its device: only the hub can place it elsewhere (kubectl drain there). Here, deleting \
             the Pod restarts it, and deleting its workload holds it back on this device",
            key.name
        );
        return Err(ApiError::of(Reason::Forbidden, message).about(key));
    }
    match key.kind {
        k if k == &kind::LEASE => {
            let message = format!(
                "leases.coordination.k8s.io {:?} is forbidden: a Lease means one holder everywhere, and a device that may be cut off \
                 cannot promise that (both sides would elect a leader). Use the hub's API",
                key.name
            );
            Err(ApiError::of(Reason::Forbidden, message).about(key))
        }
        k if k == &kind::OVERRIDE => end_override(key, subject, mutation, context),
        k if k == &kind::POD && matches!(mutation, Mutation::Delete(_)) => restart(key, subject, mutation, context),
        _ => {
            refuse_status(key, mutation)?;
            // Not 422: kubectl shows no message of that without a field.
            overrides::overridable(key.kind)
                .map_err(|error| ApiError::of(Reason::Forbidden, error.message).about(key))?;
            revise(key, subject, mutation, context, id, author)
        }
    }
}

fn refuse_status(key: &ObjectKey, mutation: &Mutation) -> Result<(), ApiError> {
    let part = match mutation {
        Mutation::Replace { part, .. } | Mutation::Patch { part, .. } | Mutation::Apply { part, .. } => *part,
        Mutation::Create { .. } | Mutation::Delete(_) | Mutation::Evict(_) => Part::Main,
    };
    if part == Part::Status {
        let message = format!("the status of {key} is what this device observes; it cannot be written");
        return Err(ApiError::of(Reason::MethodNotAllowed, message).about(key));
    }
    Ok(())
}

fn end_override(key: &ObjectKey, subject: &Subject<'_>, mutation: &Mutation, context: &Context) -> Decided {
    let Mutation::Delete(_) = mutation else {
        let message =
            "an override is made by editing the object it changes, and ended by deleting it or setting the field back";
        return Err(ApiError::of(Reason::MethodNotAllowed, message).about(key));
    };
    let admitted = admission::admit(key, subject.shown, mutation, context)?;
    let Outcome::Removed(removed) = admitted.outcome else {
        return Ok((Decision::Nothing(Box::new(admitted.outcome)), admitted.warnings));
    };
    let id = key.name.rsplit_once('.').map_or(key.name.as_str(), |(_, id)| id).to_owned();
    Ok((Decision::EndOverride { id, removed: Box::new(removed) }, admitted.warnings))
}

fn restart(key: &ObjectKey, subject: &Subject<'_>, mutation: &Mutation, context: &Context) -> Decided {
    let admitted = admission::admit(key, subject.shown, mutation, context)?;
    let pod = match admitted.outcome {
        Outcome::Removed(pod) | Outcome::Updated(pod) => pod,
        other => return Ok((Decision::Nothing(Box::new(other)), admitted.warnings)),
    };
    if pod.controller().is_none() {
        let message = format!(
            "pod {:?} has no workload that would make it again; delete it at the hub, or edit it here to override it",
            key.name
        );
        return Err(ApiError::of(Reason::Forbidden, message).about(key));
    }
    Ok((Decision::Restart { pod: Box::new(pod) }, admitted.warnings))
}

fn revise(
    key: &ObjectKey,
    subject: &Subject<'_>,
    mutation: &Mutation,
    context: &Context,
    id: &str,
    author: &str,
) -> Decided {
    if let Mutation::Create { .. } | Mutation::Apply { .. } = mutation
        && subject.base.is_none()
    {
        let message = format!(
            "{key} is not known to this device: new objects come from the hub; what is selected or placed here can be changed here"
        );
        return Err(ApiError::of(Reason::Forbidden, message).about(key));
    }
    let admitted = match mutation {
        Mutation::Apply { .. } => applied(key, subject, mutation, context, author)?,
        _ => admission::admit(key, subject.shown, mutation, context)?,
    };
    let base = subject.base.ok_or_else(|| ApiError::not_found(key))?;
    let (wanted, outcome) = match admitted.outcome {
        Outcome::Unchanged(_) => return Ok((Decision::Nothing(Box::new(admitted.outcome)), admitted.warnings)),
        Outcome::Created(object) => {
            let wanted = applied_again(object, base);
            (wanted.clone(), Outcome::Created(wanted))
        }
        Outcome::Updated(object) if object.deletion_timestamp().is_none() => (object.clone(), Outcome::Updated(object)),
        Outcome::Updated(object) | Outcome::Removed(object) => {
            let mut wanted = subject.shown.unwrap_or(base).clone();
            wanted.set_annotation(HOLD_ANNOTATION, "true");
            (wanted, Outcome::Removed(object))
        }
    };
    let (mut wanted, last_applied) = without_last_applied(wanted);
    let expiry = expiry::take(&mut wanted, base, context.now)?;
    refuse_scaling_up(key, base, &wanted)?;
    // The base's cause is why the operator changed it.
    let cause = wanted.annotation(CAUSE_ANNOTATION).filter(|cause| base.annotation(CAUSE_ANNOTATION) != Some(cause));
    let cause = cause.map(str::to_owned);
    let reason = cause.clone().unwrap_or_default();
    let by =
        Authorship { id: id.to_owned(), author: author.to_owned(), reason, time: context.now, expires: expiry.time() };
    let mut revision = overrides::revise(base, subject.records, &wanted, by)?;
    expiry.extend(&mut revision, base.uid(), subject.records);
    let known = |name: &str| subject.shown.and_then(|shown| shown.annotation(name));
    let known_cause = known(CAUSE_ANNOTATION).filter(|cause| base.annotation(CAUSE_ANNOTATION) != Some(cause));
    let same = last_applied.as_deref() == known(LAST_APPLIED_ANNOTATION) && cause.as_deref() == known_cause;
    if revision == Revision::default() && same {
        return Ok((Decision::Nothing(Box::new(Outcome::Unchanged(wanted))), admitted.warnings));
    }
    let revision = Box::new(revision);
    let kept = Kept { last_applied, cause };
    Ok((Decision::Revise { revision, outcome: Box::new(outcome), kept }, admitted.warnings))
}

/// Server-side apply. Who owns the manifest's fields is the hub's matter; here it conflicts with what others hold by overrides.
fn applied(
    key: &ObjectKey,
    subject: &Subject<'_>,
    mutation: &Mutation,
    context: &Context,
    author: &str,
) -> Result<Admitted, ApiError> {
    let Mutation::Apply { part, body, options } = mutation else {
        return admission::admit(key, subject.shown, mutation, context);
    };
    let forced = ApplyOptions { force: true, ..options.clone() };
    let forced = Mutation::Apply { part: *part, body: body.clone(), options: forced };
    let mut admitted = admission::admit(key, subject.shown, &forced, context)?;
    if let Outcome::Created(object) | Outcome::Updated(object) = &mut admitted.outcome {
        object.metadata_mut().remove("managedFields");
        if let Some(shown) = subject.shown.filter(|_| !options.force) {
            check_overrides(shown, object, subject.records, author)?;
        }
        if subject.shown == Some(object) {
            admitted.outcome = Outcome::Unchanged(object.clone());
        }
    }
    Ok(admitted)
}

fn check_overrides(shown: &Object, wanted: &Object, records: &[OverrideRecord], author: &str) -> Result<(), ApiError> {
    let others = records.iter().filter(|record| record.target.uid == shown.uid() && record.author != author);
    let held: Vec<(&OverrideRecord, &overrides::Path)> =
        others.flat_map(|record| record.operations.iter().map(move |operation| (record, &operation.path))).collect();
    let mut causes = Vec::new();
    for change in overrides::between(shown, wanted) {
        let holder = held.iter().find(|(_, path)| path.is_within(&change.path) || change.path.is_within(path));
        if let Some((record, path)) = holder {
            let message = format!("conflict with the override {} of {:?}", record.id, record.author);
            causes.push(Violation { reason: "FieldManagerConflict", field: path.to_string(), message });
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.message, cause.field)).collect();
    let word = if lines.len() == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {} {word}: {}", lines.len(), lines.join("\n- "));
    let mut error = ApiError::of(Reason::Conflict, message).about(&shown.key());
    error.causes = causes;
    Err(error)
}

/// How many replicas there are is the hub's to say; a device can run its share or none of it.
fn refuse_scaling_up(key: &ObjectKey, base: &Object, wanted: &Object) -> Result<(), ApiError> {
    let replicas = |object: &Object| object.at("/spec/replicas").and_then(serde_json::Value::as_i64);
    let wish = replicas(wanted);
    if wish == replicas(base) || wish == Some(0) {
        return Ok(());
    }
    let message = format!(
        "{key} can be scaled here to 0 (nothing of it runs on this device) or back to {}; any other number is the hub's to place",
        replicas(base).unwrap_or(1)
    );
    Err(ApiError::of(Reason::Forbidden, message).about(key))
}

/// What a held workload is to be when it is applied again: what the body says, on the identity that the base has.
fn applied_again(mut body: Object, base: &Object) -> Object {
    for field in ["uid", "creationTimestamp", "generation"] {
        match base.at(&format!("/metadata/{field}")) {
            Some(value) => drop(body.metadata_mut().insert(field.to_owned(), value.clone())),
            None => drop(body.metadata_mut().remove(field)),
        }
    }
    for (name, text) in base.annotations().iter().filter(|(name, _)| name.starts_with("flotilla.dev/")) {
        body.set_annotation(name, text);
    }
    body
}

fn without_last_applied(mut wanted: Object) -> (Object, Option<String>) {
    let annotations = wanted.metadata_mut().get_mut("annotations").and_then(serde_json::Value::as_object_mut);
    let taken = annotations.and_then(|annotations| annotations.remove(LAST_APPLIED_ANNOTATION));
    let text = taken.and_then(|value| value.as_str().map(str::to_owned));
    if wanted.annotations().is_empty() {
        wanted.metadata_mut().remove("annotations");
    }
    (wanted, text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
