//! What a Deployment says of itself.

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout;
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::DeploymentSpec;
use serde_json::{Value, json};

use super::history::REVISION_ANNOTATION;
use super::{Owned, pods};
use crate::controllers::{Plan, View, Write};

/// Kubernetes' `progressDeadlineSeconds` when none is given.
const DEADLINE_SECONDS: i64 = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
    silent: i64,
    ending: i64,
}

/// Adds the write of status and revision, if they changed.
pub(super) fn write(
    view: &View<'_>,
    deployment: &Object,
    spec: &DeploymentSpec,
    owned: &[Owned<'_>],
    newest: Option<usize>,
    revision: Option<i64>,
    plan: &mut Plan,
) {
    let sum = |part: fn(&Owned<'_>) -> i64| owned.iter().map(part).sum::<i64>();
    let counts = Counts {
        replicas: sum(|set| set.census.active_count()),
        updated: newest.map_or(0, |newest| owned[newest].census.active_count()),
        ready: sum(|set| set.census.ready_count),
        available: sum(|set| set.census.available_count),
        silent: sum(|set| set.census.silent_count + set.census.held_count),
        ending: sum(|set| set.census.ending_count),
    };
    let before = deployment.status().cloned().unwrap_or_else(|| json!({}));
    let mut status = before.clone();
    if let Some(map) = status.as_object_mut() {
        map.insert("observedGeneration".into(), deployment.generation().into());
        pods::set_count(map, "replicas", counts.replicas);
        pods::set_count(map, "updatedReplicas", counts.updated);
        pods::set_count(map, "readyReplicas", counts.ready);
        pods::set_count(map, "availableReplicas", counts.available);
        pods::set_count(map, "unavailableReplicas", (counts.replicas.max(spec.replicas()) - counts.available).max(0));
    }
    set_available(&mut status, spec, counts, view.now);
    let set_name = newest.map_or_else(
        || format!("{}-{}", deployment.name(), rollout::hash_of(deployment)),
        |newest| owned[newest].object.name().to_owned(),
    );
    set_progressing(view, &before, &mut status, spec, counts, &set_name, plan);
    let mut updated = deployment.clone();
    updated.value_mut()["status"] = status;
    if let Some(revision) = revision {
        updated.set_annotation(REVISION_ANNOTATION, &revision.to_string());
    }
    if updated != *deployment {
        plan.writes.push(Write::Replace(updated));
    }
}

fn set_available(status: &mut Value, spec: &DeploymentSpec, counts: Counts, now: Timestamp) {
    let (_, unavailable) = spec.surge_and_unavailable();
    let enough = counts.available >= spec.replicas() - unavailable;
    let (reason, message) = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(status, "Available", Truth::of(enough), reason, message, now, Touch::OnChange);
}

fn set_progressing(
    view: &View<'_>,
    before: &Value,
    status: &mut Value,
    spec: &DeploymentSpec,
    counts: Counts,
    set_name: &str,
    plan: &mut Plan,
) {
    let now = view.now;
    let present = condition::find(before, "Progressing");
    let present_reason = present.and_then(|entry| entry.get("reason")).and_then(Value::as_str).unwrap_or("");
    if spec.paused {
        set(status, "Progressing", Truth::Unknown, "DeploymentPaused", "Deployment is paused", now, Touch::OnChange);
        return;
    }
    let wished = spec.replicas();
    if counts.updated == wished && counts.replicas == wished && counts.available == wished && counts.ending == 0 {
        let message = format!("ReplicaSet {set_name:?} has successfully progressed.");
        set(status, "Progressing", Truth::True, "NewReplicaSetAvailable", &message, now, Touch::OnChange);
        return;
    }
    let old = |field: &str| before.get(field).and_then(Value::as_i64).unwrap_or(0);
    let moved = counts.updated > old("updatedReplicas")
        || counts.replicas - counts.updated < old("replicas") - old("updatedReplicas")
        || counts.ready > old("readyReplicas")
        || counts.available > old("availableReplicas")
        || before.get("observedGeneration") != status.get("observedGeneration");
    if moved || present.is_none() || present_reason == "DeploymentPaused" {
        let message = format!("ReplicaSet {set_name:?} is progressing.");
        set(status, "Progressing", Truth::True, "ReplicaSetUpdated", &message, now, Touch::Always);
    }
    // Once complete, the loss of a Pod is no failed update.
    let finished = matches!(present_reason, "NewReplicaSetAvailable" | "ProgressDeadlineExceeded") && !moved;
    if counts.silent > 0 || finished {
        return;
    }
    let seconds = spec.progress_deadline_seconds.unwrap_or(DEADLINE_SECONDS).max(0).unsigned_abs();
    let since = condition::find(status, "Progressing").and_then(|entry| entry.get("lastUpdateTime")?.as_str());
    let since = since.and_then(Timestamp::parse).unwrap_or(now);
    let deadline = Timestamp(since.0.saturating_add(seconds.saturating_mul(1000)));
    if deadline > now {
        plan.wake(deadline);
        return;
    }
    let message = format!("ReplicaSet {set_name:?} has timed out progressing.");
    set(status, "Progressing", Truth::False, "ProgressDeadlineExceeded", &message, now, Touch::OnChange);
}

/// When `lastUpdateTime` moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touch {
    OnChange,
    Always,
}

fn set(status: &mut Value, name: &str, truth: Truth, reason: &str, message: &str, now: Timestamp, touch: Touch) {
    let changed = condition::set(status, &Condition { name, status: truth, reason, message }, now);
    if !changed && touch == Touch::OnChange {
        return;
    }
    let list = status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten();
    for entry in list.filter(|entry| entry.get("type").and_then(Value::as_str) == Some(name)) {
        entry["lastUpdateTime"] = now.to_rfc3339().into();
    }
}
