//! ReplicaSets: as many Pods as wished, no Pod twice.
//!
//! Owns the creation and ending of placed Pods and the status of their set. A Pod on a silent device counts as one that is
//! there; one that was told to end there holds its slot until the device confirms, unless it was given up
//! (DESIGN section 5, "Placement on a silent device").

use std::cmp::Reverse;
use std::collections::BTreeMap;

use flotilla_manifests::digest;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::{self, NUMBER_ANNOTATION};
use flotilla_manifests::workload::{self, ReplicaSetSpec};
use flotilla_manifests::{derive, kind};
use serde_json::{Value, json};

use super::events::Note;
use super::pods::{self, Census, Rank};
use super::{Deletion, Plan, View, Write};
use crate::priority;

/// Pods created or ended in one plan; the next plan goes on.
const BURST_MAX: usize = 500;
const SOURCE: &str = "replicaset-controller";
/// Label by which a Deployment tells its ReplicaSets apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Plans one ReplicaSet.
pub fn plan(view: &View<'_>, key: &ObjectKey) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = view.index.get(key) else { return plan };
    let spec: ReplicaSetSpec = workload::view(set.spec());
    let census = pods::census(view, set, spec.min_ready_seconds);
    if set.deletion_timestamp().is_none() {
        release_and_adopt(view, set, &spec, &mut plan);
        if plan.writes.is_empty() {
            scale(view, set, &spec, &census, &mut plan);
        }
    }
    if let Some(at) = census.available_next {
        plan.wake(at);
    }
    for pod in &census.active {
        if let Some(at) = pods::given_up_at(view, pod).filter(|at| *at > view.now) {
            plan.wake(at);
        }
    }
    plan.writes.extend(status(set, &spec, &census).map(Write::Replace));
    plan
}

/// A Pod whose labels no longer match is let go; one without a controller that matches, and was made from a rollout number
/// (so that its device can go on deriving it), is taken in.
fn release_and_adopt(view: &View<'_>, set: &Object, spec: &ReplicaSetSpec, plan: &mut Plan) {
    if spec.selector.is_empty() {
        return;
    }
    for pod in view.index.owned_by(set.uid()) {
        let controlled = pod.kind() == &kind::POD && pod.controller().is_some_and(|owner| owner.uid == set.uid());
        if controlled && pod.deletion_timestamp().is_none() && !spec.selector.matches(&pod.labels()) {
            let mut released = (**pod).clone();
            super::garbage::drop_owner(&mut released, set.uid());
            plan.writes.push(Write::Replace(released));
        }
    }
    for pod in view.index.list(&kind::POD, Some(set.namespace())) {
        let free = pod.owner_references().is_empty() && pod.deletion_timestamp().is_none() && !pods::is_finished(pod);
        if free && rollout::number_of(pod).is_some() && spec.selector.matches(&pod.labels()) {
            let mut adopted = (**pod).clone();
            adopted.metadata_mut().insert("ownerReferences".into(), json!([owner_reference(set)]));
            plan.writes.push(Write::Replace(adopted));
        }
    }
}

fn scale(view: &View<'_>, set: &Object, spec: &ReplicaSetSpec, census: &Census<'_>, plan: &mut Plan) {
    let missing = spec.replicas() - census.active_count() - census.held_count;
    let surplus = census.active_count() - spec.replicas();
    if missing > 0 {
        create(view, set, usize::try_from(missing).unwrap_or(0).min(BURST_MAX), plan);
    } else if surplus > 0 {
        end(view, set, census, usize::try_from(surplus).unwrap_or(0).min(BURST_MAX), plan);
    }
}

fn create(view: &View<'_>, set: &Object, number: usize, plan: &mut Plan) {
    let mut made = 0;
    // Names differ from those of every Pod there is, and, through `now`, from those that were.
    for attempt in 0_u64.. {
        if made == number {
            break;
        }
        let parts = [set.uid().as_bytes(), &view.now.0.to_be_bytes(), &attempt.to_be_bytes()];
        let suffix = digest::safe_text(&digest::of_parts("flotilla/replica/1", &parts), 5);
        let base = derive::prefix(set.name(), 57).trim_end_matches(['-', '.']);
        let name = format!("{base}-{suffix}");
        let key = ObjectKey::of(&kind::POD, set.namespace(), name.as_str());
        let planned = plan.writes.iter().any(|write| matches!(write, Write::Create(pod) if pod.name() == name));
        if planned || view.index.get(&key).is_some() {
            continue;
        }
        let mut pod = pod_of(set, &name);
        if let Err(error) = priority::resolve(view.index, &mut pod) {
            let message = format!("Error creating: {}", error.message);
            plan.writes.push(Write::Event(Note::warning(set, SOURCE, "FailedCreate", message)));
            return;
        }
        plan.writes.push(Write::Create(pod));
        plan.writes.push(Write::Event(Note::normal(set, SOURCE, "SuccessfulCreate", format!("Created pod: {name}"))));
        made += 1;
    }
}

/// A Pod of this set, bound to no device yet.
pub(crate) fn pod_of(set: &Object, name: &str) -> Object {
    let mut pod = derive::from_template(set, name, "");
    if let Some(number) = set.annotation(NUMBER_ANNOTATION) {
        pod.set_annotation(NUMBER_ANNOTATION, number);
    }
    pod.metadata_mut().insert("generateName".into(), format!("{}-", set.name()).into());
    flotilla_manifests::defaults::apply(&mut pod);
    pod
}

fn end(view: &View<'_>, set: &Object, census: &Census<'_>, number: usize, plan: &mut Plan) {
    let mut crowd: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &census.active {
        *crowd.entry(pod.text("/spec/nodeName")).or_default() += 1;
    }
    // In a rollout the old Pods of silent devices stay and wait; otherwise what can be seen to work stays.
    let outdated = is_outdated(view, set);
    let mut left: Vec<(bool, Rank<'_>, &str, &Object)> = Vec::with_capacity(census.active.len());
    for pod in &census.active {
        let node = pod.text("/spec/nodeName");
        let silent = !node.is_empty() && view.is_silent(node);
        left.push((silent == outdated, Rank::of(pod), node, pod));
    }
    for _ in 0..number {
        // One at a time: the next device to lose a Pod is the one that then has the most.
        let next = (0..left.len()).min_by_key(|index| {
            let (stays, rank, node, _) = &left[*index];
            (*stays, rank.before_crowd, Reverse(crowd.get(node).copied().unwrap_or(0)), rank.after_crowd)
        });
        let Some(index) = next else { break };
        let (_, _, node, pod) = left.swap_remove(index);
        if let Some(crowd) = crowd.get_mut(node) {
            *crowd = crowd.saturating_sub(1);
        }
        plan.writes.push(Write::Delete(Deletion::of(pod)));
        let message = format!("Deleted pod: {}", pod.name());
        plan.writes.push(Write::Event(Note::normal(set, SOURCE, "SuccessfulDelete", message)));
    }
}

/// Whether the set belongs to a Deployment that has moved on to another template.
pub fn is_outdated(view: &View<'_>, set: &Object) -> bool {
    let Some(owner) = set.controller() else { return false };
    let Some(deployment) = view.index.by_uid(&owner.uid) else { return false };
    deployment.kind() == &kind::DEPLOYMENT && set.label(HASH_LABEL) != Some(rollout::hash_of(deployment).as_str())
}

/// `metadata.ownerReferences` of what this object controls.
pub fn owner_reference(owner: &Object) -> Value {
    json!({
        "apiVersion": owner.kind().api_version(), "kind": owner.kind().name, "name": owner.name(), "uid": owner.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The set with its status, if that changes anything.
fn status(set: &Object, spec: &ReplicaSetSpec, census: &Census<'_>) -> Option<Object> {
    let mut updated = set.clone();
    let mut status = set.status().and_then(Value::as_object).cloned().unwrap_or_default();
    let template = &spec.template.metadata.labels;
    let labelled = census.active.iter().filter(|pod| {
        let labels = pod.labels();
        template.iter().all(|(name, text)| labels.get(name) == Some(text))
    });
    status.insert("replicas".into(), census.active_count().into());
    pods::set_count(&mut status, "fullyLabeledReplicas", pods::count(labelled.count()));
    pods::set_count(&mut status, "readyReplicas", census.ready_count);
    pods::set_count(&mut status, "availableReplicas", census.available_count);
    status.insert("observedGeneration".into(), set.generation().into());
    updated.value_mut()["status"] = Value::Object(status);
    (updated != *set).then_some(updated)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
