//! Node health, and what follows for Pods: `Ready` becomes `Unknown` when a device is silent, never `False`, and nothing is
//! moved by that alone.
//!
//! Owns the taint `unreachable` (effect `NoSchedule`), and ends Pods only where someone gave leave: the operator's taint
//! `out-of-service`, a Pod's own `tolerationSeconds` for silence, or an operator's `NoExecute` taint on a device in contact.

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::placing::{self, TAINT_OUT_OF_SERVICE, TAINT_UNREACHABLE};
use flotilla_manifests::workload::{self, NodeSpec, PodSpec, Taint};
use serde_json::{Value, json};

use super::events::Note;
use super::namespace::LEFT_RUNNING;
use super::{Deletion, Plan, View, Write, pods};

const SOURCE: &str = "node-controller";
/// Reason of a `Ready` that this controller set.
const UNKNOWN_REASON: &str = "NodeStatusUnknown";

/// Plans one Node.
pub fn plan(view: &View<'_>, key: &ObjectKey) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = view.index.get(key).filter(|node| node.deletion_timestamp().is_none()) else { return plan };
    let unheard = view.unheard_since(node.name());
    if let Some(at) = view.silent_at(node.name()).filter(|at| *at > view.now) {
        plan.wake(at);
    }
    let mut updated = (**node).clone();
    match unheard {
        Some(since) if view.is_silent(node.name()) => {
            if silence(&mut updated, since, view.now) {
                let message = format!("Node {} is silent: not heard since {since}", node.name());
                plan.writes.push(Write::Event(Note::warning(node, SOURCE, "NodeNotReady", message)));
            }
        }
        Some(_) => {}
        None => {
            if welcome(&mut updated, view.now) {
                let message = format!("Node {} is in contact", node.name());
                plan.writes.push(Write::Event(Note::normal(node, SOURCE, "NodeReady", message)));
            }
        }
    }
    if updated != **node {
        plan.writes.push(Write::Replace(updated));
    }
    end_pods(view, node, &mut plan);
    plan
}

/// Marks a silent device; says whether its readiness changed.
fn silence(node: &mut Object, since: Timestamp, now: Timestamp) -> bool {
    let mut status = node.status().cloned().unwrap_or_else(|| json!({}));
    let was_unknown = ready(&status).as_deref() == Some("Unknown");
    let message = format!("the device has not been heard since {since}; what it runs is as last reported");
    let unknown = Condition { name: "Ready", status: Truth::Unknown, reason: UNKNOWN_REASON, message: &message };
    condition::set(&mut status, &unknown, now);
    node.value_mut()["status"] = status;
    let taints = workload::view::<NodeSpec>(node.spec()).taints;
    if !taints.iter().any(is_own) {
        let taint = json!({"key": TAINT_UNREACHABLE, "effect": "NoSchedule", "timeAdded": now.to_rfc3339()});
        let spec = node.value_mut().as_object_mut().map(|map| map.entry("spec").or_insert_with(|| json!({})));
        if let Some(spec) = spec.and_then(Value::as_object_mut) {
            match spec.entry("taints").or_insert_with(|| json!([])) {
                Value::Array(list) => list.push(taint),
                other => *other = json!([taint]),
            }
        }
    }
    !was_unknown
}

/// Takes the marks of silence away; says whether the readiness changed.
fn welcome(node: &mut Object, now: Timestamp) -> bool {
    let mut status = node.status().cloned().unwrap_or_else(|| json!({}));
    let reason = condition::find(&status, "Ready").and_then(|entry| entry.get("reason")).and_then(Value::as_str);
    let ours = ready(&status).is_none() || reason == Some(UNKNOWN_REASON);
    if ours {
        let message = "the device is in contact";
        let there = Condition { name: "Ready", status: Truth::True, reason: "DeviceInContact", message };
        condition::set(&mut status, &there, now);
    }
    let left = condition::remove(&mut status, LEFT_RUNNING);
    if ours || left {
        node.value_mut()["status"] = status;
    }
    if let Some(spec) = node.value_mut().get_mut("spec").and_then(Value::as_object_mut)
        && let Some(Value::Array(list)) = spec.get_mut("taints")
    {
        list.retain(|taint| {
            let field = |name| taint.get(name).and_then(Value::as_str);
            field("key") != Some(TAINT_UNREACHABLE) || field("effect") != Some("NoSchedule")
        });
        if list.is_empty() {
            spec.remove("taints");
        }
    }
    ours
}

fn is_own(taint: &Taint) -> bool {
    taint.key == TAINT_UNREACHABLE && taint.effect == "NoSchedule"
}

fn ready(status: &Value) -> Option<String> {
    condition::find(status, "Ready")?.get("status")?.as_str().map(str::to_owned)
}

fn end_pods(view: &View<'_>, node: &Object, plan: &mut Plan) {
    let silent = view.is_silent(node.name());
    let taints = workload::view::<NodeSpec>(node.spec()).taints;
    let dead = pods::out_of_service(node).is_some();
    for pod in view.index.pods_on(node.name()) {
        if pods::is_daemon_pod(pod) {
            continue;
        }
        if silent {
            end_on_silent(view, pod, dead, plan);
        } else if pod.deletion_timestamp().is_none() {
            match ended_by_taint(view, pod, &taints) {
                Some(at) if at <= view.now => end(pod, "its device is tainted NoExecute", plan),
                Some(at) => plan.wake(at),
                None => {}
            }
        }
    }
}

fn end_on_silent(view: &View<'_>, pod: &Object, dead: bool, plan: &mut Plan) {
    let Some(at) = pods::given_up_at(view, pod) else { return };
    if at > view.now {
        plan.wake(at);
    } else if dead {
        // The device will not confirm anything any more.
        let message = format!("Removing Pod {}: its device is out of service", pod.name());
        plan.writes.push(Write::Event(Note::normal(pod, SOURCE, "DeviceOutOfService", message)));
        plan.writes.push(Write::Delete(Deletion { grace_seconds: Some(0), ..Deletion::of(pod) }));
    } else if pod.deletion_timestamp().is_none() {
        end(pod, "its device is silent for longer than it tolerates", plan);
    }
}

fn end(pod: &Object, why: &str, plan: &mut Plan) {
    let message = format!("Ending Pod {}: {why}", pod.name());
    plan.writes.push(Write::Event(Note::normal(pod, SOURCE, "TaintManagerEviction", message)));
    plan.writes.push(Write::Delete(Deletion::of(pod)));
}

/// When an operator's `NoExecute` taint ends a Pod: at once, or after the shortest `tolerationSeconds` for it.
fn ended_by_taint(view: &View<'_>, pod: &Object, taints: &[Taint]) -> Option<Timestamp> {
    let spec: PodSpec = workload::view(pod.spec());
    let relevant = taints.iter().filter(|taint| {
        taint.effect == "NoExecute" && taint.key != TAINT_UNREACHABLE && taint.key != TAINT_OUT_OF_SERVICE
    });
    relevant
        .filter_map(|taint| {
            let matching: Vec<_> =
                spec.tolerations.iter().filter(|toleration| placing::tolerates(toleration, taint)).collect();
            let seconds = match matching.as_slice() {
                [] => 0,
                some => some.iter().filter_map(|toleration| toleration.toleration_seconds).min()?.max(0),
            };
            let from = taint.time_added.as_deref().and_then(Timestamp::parse).unwrap_or(view.now);
            Some(Timestamp(from.0.saturating_add(seconds.unsigned_abs().saturating_mul(1000))))
        })
        .min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
