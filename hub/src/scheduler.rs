//! The scheduler: which device runs a Pod, and why not the others.
//!
//! Pods of higher priority first, then the oldest. Filters Nodes by contact, cordon, taints, selectors, affinity (to Nodes and to
//! Pods), spread and resources; among the rest [`score`] decides. The same view gives the same answer. Refuses to move what is
//! placed: there is no preemption, a Pod of high priority waits for room as any other. Start at [`plan`].

mod filter;
mod neighbours;
mod score;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::workload::resources::{self, Amounts};
use flotilla_manifests::workload::{self, NodeSpec, NodeStatus, PodSpec, Taint};
use serde_json::{Value, json};

use crate::controllers::events::Note;
use crate::controllers::{Plan, View, Write, pods};
pub use filter::Obstacle;
use neighbours::{Judgement, Neighbours};

const SOURCE: &str = "default-scheduler";
/// `spec.schedulerName` of Pods that are ours.
const OWN_NAME: &str = "default-scheduler";
/// Pods placed or refused in one plan; the next plan goes on.
const BURST_MAX: usize = 1000;

/// A Node with what is left of it.
#[derive(Debug)]
struct Candidate<'a> {
    object: &'a Object,
    labels: BTreeMap<String, String>,
    unschedulable: bool,
    taints: Vec<Taint>,
    ready: bool,
    allocatable: Amounts,
    used: Amounts,
    /// Placed Pods by the uid of their controller.
    owners: BTreeMap<String, usize>,
    pods_count: usize,
}

/// Places every Pod that waits, and says of the others why they wait.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut waiting: Vec<&Object> = view
        .index
        .pods_unbound()
        .map(AsRef::as_ref)
        .filter(|pod| pod.deletion_timestamp().is_none())
        .filter(|pod| !pods::is_finished(pod) && matches!(pod.text("/spec/schedulerName"), "" | OWN_NAME))
        .collect();
    if waiting.is_empty() {
        return plan;
    }
    waiting.sort_by(|one, other| {
        let turn = |pod: &Object| (Reverse(priority(pod)), pod.creation_timestamp(), pod.resource_version());
        turn(one).cmp(&turn(other)).then_with(|| one.key().cmp(&other.key()))
    });
    let mut candidates: Vec<Candidate<'_>> =
        view.index.list(&kind::NODE, None).map(|node| candidate(view, node)).collect();
    waiting.truncate(BURST_MAX);
    let mut neighbours = Neighbours::survey(view, &waiting, &candidates);
    for pod in waiting {
        let spec: PodSpec = workload::view(pod.spec());
        let requests = resources::pod_requests(&spec);
        let judgement = neighbours.as_ref().map(|neighbours| neighbours.judge(pod, &spec, &candidates));
        match place(pod, &spec, &requests, &judgement.unwrap_or_default(), &candidates) {
            Ok(chosen) => {
                let candidate = &mut candidates[chosen];
                bind(view, pod, candidate.object.name(), &mut plan);
                candidate.take(pod, &requests);
                if let Some(neighbours) = &mut neighbours {
                    neighbours.take(pod, chosen);
                }
            }
            Err(message) => refuse(view, pod, &message, &mut plan),
        }
    }
    plan
}

/// The best Node for a Pod, or Kubernetes' sentence on why there is none.
fn place(
    pod: &Object,
    spec: &PodSpec,
    requests: &Amounts,
    judgement: &Judgement,
    candidates: &[Candidate<'_>],
) -> Result<usize, String> {
    let mut obstacles: BTreeMap<String, usize> = BTreeMap::new();
    let owner = pod.controller().map(|owner| owner.uid);
    let mut best: Option<(score::Score, usize)> = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let found = filter::obstacles(spec, requests, judgement, candidate);
        if found.is_empty() {
            let score = score::of(spec, requests, owner.as_deref(), judgement, candidate);
            if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
                best = Some((score, index));
            }
        }
        for obstacle in found {
            *obstacles.entry(obstacle.to_string()).or_default() += 1;
        }
    }
    if let Some((_, index)) = best {
        return Ok(index);
    }
    let mut reasons: Vec<String> = obstacles.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    let list = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    Err(format!("0/{} nodes are available{list}.", candidates.len()))
}

fn candidate<'a>(view: &View<'a>, node: &'a Object) -> Candidate<'a> {
    let spec: NodeSpec = workload::view(node.spec());
    let status: NodeStatus = workload::view(node.status());
    let going = node.deletion_timestamp().is_some();
    let mut candidate = Candidate {
        object: node,
        labels: node.labels(),
        unschedulable: spec.unschedulable,
        taints: spec.taints,
        ready: status.ready() == "True" && !view.is_silent(node.name()) && !going,
        allocatable: resources::amounts(if status.allocatable.is_empty() {
            &status.capacity
        } else {
            &status.allocatable
        }),
        used: Amounts::new(),
        owners: BTreeMap::new(),
        pods_count: 0,
    };
    for pod in view.index.pods_on(node.name()).filter(|pod| !pods::is_finished(pod)) {
        candidate.take(pod, &resources::pod_requests_in(pod.spec()));
    }
    candidate
}

impl Candidate<'_> {
    fn take(&mut self, pod: &Object, requests: &Amounts) {
        resources::add(&mut self.used, requests);
        self.pods_count += 1;
        if let Some(owner) = pod.controller().filter(|_| pod.deletion_timestamp().is_none()) {
            *self.owners.entry(owner.uid).or_default() += 1;
        }
    }
}

/// `spec.priority`, as admission resolved it from its PriorityClass.
fn priority(pod: &Object) -> i64 {
    pod.value().pointer("/spec/priority").and_then(Value::as_i64).unwrap_or(0)
}

/// A Pod gets its Node; the store lets `spec.nodeName` be set once.
fn bind(view: &View<'_>, pod: &Object, node: &str, plan: &mut Plan) {
    let mut bound = pod.clone();
    bound.value_mut()["spec"]["nodeName"] = node.into();
    let mut status = pod.status().cloned().unwrap_or_else(|| json!({"phase": "Pending"}));
    let placed = Condition { name: "PodScheduled", status: Truth::True, reason: "", message: "" };
    condition::set(&mut status, &placed, view.now);
    bound.value_mut()["status"] = status;
    let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
    plan.writes.push(Write::Replace(bound));
    plan.writes.push(Write::Event(Note::normal(pod, SOURCE, "Scheduled", message)));
}

/// A Pod that waits says why; it is told again only when the reason is another.
fn refuse(view: &View<'_>, pod: &Object, message: &str, plan: &mut Plan) {
    let mut waiting = pod.clone();
    let mut status = pod.status().cloned().unwrap_or_else(|| json!({"phase": "Pending"}));
    let why = Condition { name: "PodScheduled", status: Truth::False, reason: "Unschedulable", message };
    if condition::set(&mut status, &why, view.now) {
        waiting.value_mut()["status"] = Value::clone(&status);
        plan.writes.push(Write::Replace(waiting));
        plan.writes.push(Write::Event(Note::warning(pod, SOURCE, "FailedScheduling", message.to_owned())));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
