//! ControllerRevisions: the templates a DaemonSet has had, for `kubectl rollout history` and `undo`.

use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout;
use flotilla_manifests::workload::DaemonSetSpec;
use serde_json::{Value, json};

use crate::controllers::replica_set::owner_reference;
use crate::controllers::{Deletion, Plan, Write};

/// Label that names a template.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
const CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";
/// Kubernetes' `revisionHistoryLimit` when none is given.
const HISTORY_LIMIT: i64 = 10;

/// Keeps one revision per template, the present one the newest, and no more than the limit of the others.
pub(super) fn write(owned: &[Arc<Object>], set: &Object, spec: &DaemonSetSpec, plan: &mut Plan) {
    let hash = rollout::hash_of(set);
    let mut revisions: Vec<&Object> = owned
        .iter()
        .map(AsRef::as_ref)
        .filter(|object| object.kind() == &kind::CONTROLLER_REVISION && object.deletion_timestamp().is_none())
        .collect();
    revisions.sort_by_key(|revision| number_of(revision));
    let highest = revisions.last().map_or(0, |last| number_of(last));
    let present = revisions.iter().position(|revision| revision.label(HASH_LABEL) == Some(hash.as_str()));
    match present {
        Some(index) if number_of(revisions[index]) < highest => {
            let mut raised = revisions[index].clone();
            raised.value_mut()["revision"] = (highest + 1).into();
            plan.writes.push(Write::Replace(raised));
        }
        Some(_) => {}
        None => plan.writes.push(Write::Create(revision(set, &hash, highest + 1))),
    }
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(HISTORY_LIMIT).max(0)).unwrap_or(usize::MAX);
    let old: Vec<&Object> =
        revisions.iter().enumerate().filter(|(index, _)| Some(*index) != present).map(|(_, one)| *one).collect();
    let surplus = old.len().saturating_sub(limit);
    plan.writes.extend(old[..surplus].iter().map(|revision| Write::Delete(Deletion::of(revision))));
}

fn number_of(revision: &Object) -> i64 {
    revision.at("/revision").and_then(Value::as_i64).unwrap_or(0)
}

fn revision(set: &Object, hash: &str, number: i64) -> Object {
    let mut revision = Object::empty(&kind::CONTROLLER_REVISION, set.namespace(), &format!("{}-{hash}", set.name()));
    let mut labels = set.at("/spec/template/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    labels[HASH_LABEL] = hash.into();
    revision.metadata_mut().insert("labels".into(), labels);
    revision.metadata_mut().insert("ownerReferences".into(), json!([owner_reference(set)]));
    if let Some(cause) = set.annotation(CAUSE_ANNOTATION) {
        revision.set_annotation(CAUSE_ANNOTATION, cause);
    }
    let mut template = set.at("/spec/template").cloned().unwrap_or_else(|| json!({}));
    template["$patch"] = "replace".into();
    revision.value_mut()["data"] = json!({"spec": {"template": template}});
    revision.value_mut()["revision"] = number.into();
    revision
}
