//! Deployments: from one template to the next without losing more Pods than allowed.
//!
//! Owns ReplicaSets (one per template), their sizes in a rolling update, revisions and history. Pods on silent devices neither
//! block an update nor count as its success: they are left out of the arithmetic of availability, keep their slot (no Pod runs
//! twice), and move when their device is back. Start at [`plan`]; the arithmetic is in [`rolling`].

mod history;
pub mod rolling;
mod status;

use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::{self, HASH_ANNOTATION, NUMBER_ANNOTATION};
use flotilla_manifests::workload::{self, DeploymentSpec, ReplicaSetSpec};
use flotilla_manifests::{derive, kind};
use serde_json::{Value, json};

use super::events::Note;
use super::pods::{self, Census};
use super::replica_set::{HASH_LABEL, owner_reference};
use super::{Plan, View, Write};
use rolling::{Set, Sizes};

pub use history::REVISION_ANNOTATION;
pub(crate) use history::revision_of;

const SOURCE: &str = "deployment-controller";
const DESIRED_ANNOTATION: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_ANNOTATION: &str = "deployment.kubernetes.io/max-replicas";

/// One ReplicaSet of a Deployment, with its Pods counted.
#[derive(Debug)]
struct Owned<'a> {
    object: &'a Object,
    replicas: i64,
    census: Census<'a>,
}

/// Plans one Deployment.
pub fn plan(view: &View<'_>, key: &ObjectKey) -> Plan {
    let mut plan = Plan::default();
    let Some(deployment) = view.index.get(key) else { return plan };
    if deployment.deletion_timestamp().is_some() {
        return plan;
    }
    let spec: DeploymentSpec = workload::view(deployment.spec());
    let hash = rollout::hash_of(deployment);
    let owned = owned(view, deployment, spec.min_ready_seconds);
    let newest = owned.iter().position(|set| set.object.label(HASH_LABEL) == Some(hash.as_str()));
    for set in &owned {
        if let Some(at) = set.census.available_next {
            plan.wake(at);
        }
    }
    let revision = history::next_revision(&owned, newest);
    let mut edits = Edits::of(&owned);
    match newest {
        Some(newest) if !spec.paused => {
            edits.mark_newest(newest, deployment, revision);
            resize(&spec, &owned, newest, &mut edits);
        }
        Some(newest) => scale_only(&spec, &owned, Some(newest), &mut edits),
        None if !spec.paused => {
            let replicas = rolling::first_size(&sizes(&spec), &sets(&owned));
            plan.writes.push(Write::Create(replica_set(deployment, &spec, &hash, revision, replicas)));
            let message = format!("Scaled up replica set {}-{hash} from 0 to {replicas}", deployment.name());
            plan.writes.push(Write::Event(Note::normal(deployment, SOURCE, "ScalingReplicaSet", message)));
        }
        None => scale_only(&spec, &owned, None, &mut edits),
    }
    edits.into_writes(deployment, &spec, &owned, &mut plan);
    history::clean_up(deployment, &spec, &owned, newest, &mut plan);
    history::forget_numbers(view, deployment, &owned, &mut plan);
    let shown_revision = if spec.paused && newest.is_none() { None } else { Some(revision) };
    status::write(view, deployment, &spec, &owned, newest, shown_revision, &mut plan);
    plan
}

/// The ReplicaSets controlled by a Deployment, oldest first.
fn owned<'a>(view: &View<'a>, deployment: &Object, min_ready_seconds: i64) -> Vec<Owned<'a>> {
    let mut owned: Vec<Owned<'a>> = view
        .index
        .owned_by(deployment.uid())
        .filter(|set| set.kind() == &kind::REPLICA_SET && set.deletion_timestamp().is_none())
        .filter(|set| set.controller().is_some_and(|owner| owner.uid == deployment.uid()))
        .map(|set| Owned {
            object: set,
            replicas: workload::view::<ReplicaSetSpec>(set.spec()).replicas(),
            census: pods::census(view, set, min_ready_seconds),
        })
        .collect();
    owned.sort_by(|one, other| {
        let age = |set: &Owned<'_>| (set.object.creation_timestamp(), revision_of(set.object));
        age(one).cmp(&age(other)).then_with(|| one.object.name().cmp(other.object.name()))
    });
    owned
}

fn sizes(spec: &DeploymentSpec) -> Sizes {
    let (surge, unavailable) = spec.surge_and_unavailable();
    Sizes { replicas: spec.replicas(), surge, unavailable, recreate: spec.is_recreate() }
}

fn sets(owned: &[Owned<'_>]) -> Vec<Set> {
    owned
        .iter()
        .map(|set| Set {
            wished: set.replicas,
            active: set.census.active_count(),
            silent: set.census.silent_count,
            held: set.census.held_count,
            ending: set.census.ending_count,
            available: set.census.available_count,
            annotated_max: annotated(set.object, MAX_ANNOTATION),
        })
        .collect()
}

fn annotated(set: &Object, name: &str) -> Option<i64> {
    set.annotation(name)?.parse().ok()
}

/// A scaling event (the Deployment's size changed) is answered before an update goes on, as in Kubernetes.
fn resize(spec: &DeploymentSpec, owned: &[Owned<'_>], newest: usize, edits: &mut Edits) {
    let scaled = owned.iter().any(|set| {
        set.replicas > 0 && annotated(set.object, DESIRED_ANNOTATION).is_some_and(|desired| desired != spec.replicas())
    });
    if scaled {
        return scale_only(spec, owned, Some(newest), edits);
    }
    edits.sizes = rolling::step(&sizes(spec), &sets(owned), newest);
}

fn scale_only(spec: &DeploymentSpec, owned: &[Owned<'_>], newest: Option<usize>, edits: &mut Edits) {
    edits.sizes = rolling::proportional(&sizes(spec), &sets(owned), newest);
}

/// What the ReplicaSets are to become.
struct Edits {
    sizes: Vec<i64>,
    objects: Vec<Object>,
}

impl Edits {
    fn of(owned: &[Owned<'_>]) -> Self {
        Self {
            sizes: owned.iter().map(|set| set.replicas).collect(),
            objects: owned.iter().map(|set| set.object.clone()).collect(),
        }
    }

    /// Gives the newest set the revision and the rollout number its next Pods are made from: an undo takes up an old set again.
    fn mark_newest(&mut self, newest: usize, deployment: &Object, revision: i64) {
        let Some(set) = self.objects.get_mut(newest) else { return };
        history::set_revision(set, revision);
        for name in [NUMBER_ANNOTATION, HASH_ANNOTATION, history::CAUSE_ANNOTATION] {
            if let Some(text) = deployment.annotation(name).map(str::to_owned) {
                set.set_annotation(name, &text);
            }
        }
        let wished = deployment.at("/spec/minReadySeconds").cloned().unwrap_or_else(|| 0.into());
        let has = set.at("/spec/minReadySeconds").cloned().unwrap_or_else(|| 0.into());
        if has != wished {
            set.value_mut()["spec"]["minReadySeconds"] = wished;
        }
    }

    fn into_writes(self, deployment: &Object, spec: &DeploymentSpec, owned: &[Owned<'_>], plan: &mut Plan) {
        let sizes = sizes(spec);
        for ((mut object, size), before) in self.objects.into_iter().zip(self.sizes).zip(owned) {
            if size != before.replicas {
                object.value_mut()["spec"]["replicas"] = size.into();
                let direction = if size > before.replicas { "up" } else { "down" };
                let message =
                    format!("Scaled {direction} replica set {} from {} to {size}", object.name(), before.replicas);
                plan.writes.push(Write::Event(Note::normal(deployment, SOURCE, "ScalingReplicaSet", message)));
            }
            if size > 0 {
                object.set_annotation(DESIRED_ANNOTATION, &sizes.replicas.to_string());
                object.set_annotation(MAX_ANNOTATION, &(sizes.replicas + sizes.surge).to_string());
            }
            if object != *before.object {
                plan.writes.push(Write::Replace(object));
            }
        }
    }
}

/// The ReplicaSet of a Deployment's present template.
pub(crate) fn replica_set(
    deployment: &Object,
    spec: &DeploymentSpec,
    hash: &str,
    revision: i64,
    replicas: i64,
) -> Object {
    let name = format!("{}-{hash}", deployment.name());
    let mut set = Object::empty(&kind::REPLICA_SET, deployment.namespace(), &name);
    let mut template = deployment.at("/spec/template").cloned().unwrap_or_else(|| json!({}));
    add_label(&mut template, hash);
    let mut labels = json!({"metadata": {"labels": template.pointer("/metadata/labels")}});
    add_label(&mut labels, hash);
    let mut selector = deployment.at("/spec/selector").cloned().unwrap_or_else(|| json!({}));
    match selector.get_mut("matchLabels").and_then(Value::as_object_mut) {
        Some(labels) => {
            labels.insert(HASH_LABEL.into(), hash.into());
        }
        None => selector["matchLabels"] = json!({HASH_LABEL: hash}),
    }
    set.metadata_mut().insert("labels".into(), labels["metadata"]["labels"].take());
    set.metadata_mut().insert("ownerReferences".into(), json!([owner_reference(deployment)]));
    for (name, text) in deployment.annotations() {
        if !history::is_own_annotation(&name) {
            set.set_annotation(&name, &text);
        }
    }
    history::set_revision(&mut set, revision);
    set.set_annotation(DESIRED_ANNOTATION, &spec.replicas().to_string());
    set.set_annotation(MAX_ANNOTATION, &(spec.replicas() + sizes(spec).surge).to_string());
    set.set_annotation(HASH_ANNOTATION, hash);
    if let Some(number) = deployment.annotation(NUMBER_ANNOTATION) {
        set.set_annotation(NUMBER_ANNOTATION, number);
    }
    let mut body = json!({"replicas": replicas, "selector": selector, "template": template});
    if spec.min_ready_seconds > 0 {
        body["minReadySeconds"] = spec.min_ready_seconds.into();
    }
    set.value_mut()["spec"] = body;
    debug_assert!(derive::from_template(&set, "check", "").label(HASH_LABEL) == Some(hash));
    set
}

fn add_label(template: &mut Value, hash: &str) {
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    if !template["metadata"]["labels"].is_object() {
        template["metadata"]["labels"] = json!({});
    }
    template["metadata"]["labels"][HASH_LABEL] = hash.into();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
