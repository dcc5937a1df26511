//! DaemonSets: devices make their own Pods; the hub decides whose turn a new template is, and counts.
//!
//! Owns status, revisions and the publication of thresholds and grants (DESIGN section 5, "Rollouts"). Creates no Pods.
//! Only devices in contact count; those that are silent are told apart. Start at [`plan`]; whose turn it is, is decided in
//! [`rollout`].

mod history;
pub mod rollout;

use std::collections::HashMap;

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::{RolloutNumber, SILENT_ANNOTATION, number_of};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::{self, DaemonSetSpec};
use flotilla_manifests::{derive, kind};
use serde_json::Value;

use super::{Plan, View, Write, pods};
use crate::fleet::contact::Contact;
use rollout::Device;

/// Condition whose `lastTransitionTime` tells when the threshold last changed. (`lastUpdateTime` is no field of a DaemonSet's
/// condition: the next write of a user would drop it.)
const STEP_CONDITION: &str = "Progressing";

/// Grants of one plan, and when the next goes on.
const GRANTS_AT_ONCE_MAX: usize = 500;
const GRANTS_GO_ON_MS: u64 = 100;

/// One Node as this DaemonSet sees it.
#[derive(Debug)]
struct Seat<'a> {
    node: &'a Object,
    name: &'a str,
    pods: Vec<Occupant>,
    selected: bool,
    silent: bool,
}

/// What a Pod's row says: read once, as a plan over a fleet asks it many times.
#[derive(Debug, Clone, Copy)]
struct Occupant {
    ending: bool,
    finished: bool,
    ready: bool,
    available_at: Option<Timestamp>,
    number: Option<RolloutNumber>,
}

impl Occupant {
    fn of(pod: &Object, min_ready_seconds: i64) -> Self {
        Self {
            ending: pod.deletion_timestamp().is_some(),
            finished: pods::is_finished(pod),
            ready: pods::is_ready(pod),
            available_at: pods::available_at(pod, min_ready_seconds),
            number: number_of(pod),
        }
    }

    fn is_live(&self) -> bool {
        !self.ending && !self.finished
    }

    fn is_available(&self, now: Timestamp) -> bool {
        self.available_at.is_some_and(|at| at <= now)
    }
}

/// Plans one DaemonSet.
pub fn plan(view: &View<'_>, key: &ObjectKey) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = view.index.get(key) else { return plan };
    if set.deletion_timestamp().is_some() {
        return plan;
    }
    let spec: DaemonSetSpec = workload::view(set.spec());
    let number = number_of(set).unwrap_or_default();
    let seats = seats(view, set, spec.min_ready_seconds);
    let stepped = stepped_at(set).or(set.creation_timestamp());
    let devices: Vec<Device> = seats
        .iter()
        .filter(|seat| seat.selected && !seat.silent)
        .map(|seat| device(view, seat, number, stepped))
        .collect();
    for seat in seats.iter().filter(|seat| seat.selected) {
        for pod in &seat.pods {
            if let Some(at) = pod.available_at.filter(|at| *at > view.now) {
                plan.wake(at);
            }
        }
        if let Some(at) = view.silent_at(seat.name).filter(|at| *at > view.now) {
            plan.wake(at);
        }
    }
    let state = view.index.rollout(set.uid());
    let step = rollout::step(&rollout::Situation {
        number,
        devices: &devices,
        state: &state,
        fleet_count: seats.iter().filter(|seat| seat.selected).count(),
        unavailable_max: usize::try_from(spec.max_unavailable(pods::count(devices.len()))).unwrap_or(1),
        on_delete: spec.update_strategy.kind == "OnDelete",
        now: view.now,
        stepped,
    });
    let stepping = step.threshold.is_some();
    if let Some(at) = step.wake_at {
        plan.wake(at);
    }
    let workload_uid = set.uid().to_owned();
    if let Some(threshold) = step.threshold {
        plan.writes.push(Write::Threshold { workload_uid: workload_uid.clone(), number, threshold: Some(threshold) });
    }
    grant(&workload_uid, step.grants, view.now, &mut plan);
    if step.finished {
        forget_numbers(view, set, number, &state.thresholds, &mut plan);
    }
    history::write(view, set, &spec, &mut plan);
    write_status(view, set, &seats, number, stepping, &mut plan);
    plan
}

/// Gives grants and takes them away, some now and the rest soon: each is a record for a device, and others want to write meanwhile.
fn grant(
    workload_uid: &str,
    grants: std::collections::BTreeMap<String, Option<RolloutNumber>>,
    now: Timestamp,
    plan: &mut Plan,
) {
    if grants.len() > GRANTS_AT_ONCE_MAX {
        plan.wake(Timestamp(now.0.saturating_add(GRANTS_GO_ON_MS)));
    }
    for (node, number) in grants.into_iter().take(GRANTS_AT_ONCE_MAX) {
        plan.writes.push(Write::Grant { workload_uid: workload_uid.to_owned(), node, number });
    }
}

/// Every Node that the DaemonSet selects or has a Pod on, in order of names.
fn seats<'a>(view: &View<'a>, set: &Object, min_ready_seconds: i64) -> Vec<Seat<'a>> {
    let mut by_node: HashMap<&str, Vec<Occupant>> = HashMap::new();
    for pod in view.index.owned_by(set.uid()).filter(|pod| pod.kind() == &kind::POD) {
        by_node.entry(pod.text("/spec/nodeName")).or_default().push(Occupant::of(pod, min_ready_seconds));
    }
    let placing = derive::DaemonPlacing::of(set);
    let nodes = view.index.entries(&kind::NODE, None);
    nodes
        .filter_map(|(key, node)| {
            let name = key.name.as_str();
            let pods = by_node.remove(name).unwrap_or_default();
            let selection = placing.selection(node);
            let selected = selection.should_run || (selection.may_stay && !pods.is_empty());
            (selected || !pods.is_empty()).then(|| Seat { node, name, pods, selected, silent: view.is_silent(name) })
        })
        .collect()
}

fn device(view: &View<'_>, seat: &Seat<'_>, number: RolloutNumber, stepped: Option<Timestamp>) -> Device {
    let live = || seat.pods.iter().filter(|pod| pod.is_live());
    let returned = match view.contacts.get(seat.name) {
        Some(Contact::Connected { since }) => stepped.is_some_and(|stepped| *since > stepped),
        _ => false,
    };
    Device {
        node: seat.name.to_owned(),
        uid: seat.node.uid().to_owned(),
        available: live().any(|pod| pod.is_available(view.now)),
        updated: live().any(|pod| pod.number == Some(number)),
        vacant: live().next().is_none(),
        ending: seat.pods.iter().any(|pod| pod.ending),
        returned,
    }
}

/// When the threshold last changed.
fn stepped_at(set: &Object) -> Option<Timestamp> {
    let step = condition::find(set.status()?, STEP_CONDITION)?;
    Timestamp::parse(step.get("lastTransitionTime")?.as_str()?)
}

/// Forgets numbers that no Pod runs, once nobody has to move from or to them.
fn forget_numbers(
    view: &View<'_>,
    set: &Object,
    number: RolloutNumber,
    thresholds: &std::collections::BTreeMap<String, u64>,
    plan: &mut Plan,
) {
    let pods = view.index.owned_by(set.uid()).filter(|pod| pod.kind() == &kind::POD);
    let run: std::collections::BTreeSet<RolloutNumber> = pods.filter_map(|pod| number_of(pod)).collect();
    for old in thresholds.keys().filter_map(|text| text.parse::<RolloutNumber>().ok()) {
        if old != number && !run.contains(&old) {
            let workload_uid = set.uid().to_owned();
            plan.writes.push(Write::Threshold { workload_uid, number: old, threshold: None });
        }
    }
}

fn write_status(
    view: &View<'_>,
    set: &Object,
    seats: &[Seat<'_>],
    number: RolloutNumber,
    stepping: bool,
    plan: &mut Plan,
) {
    let heard: Vec<&Seat<'_>> = seats.iter().filter(|seat| !seat.silent).collect();
    let selected = || heard.iter().filter(|seat| seat.selected);
    let desired = pods::count(selected().count());
    let count = |holds: &dyn Fn(&Occupant) -> bool| {
        pods::count(selected().filter(|seat| seat.pods.iter().any(|pod| !pod.ending && holds(pod))).count())
    };
    let available = count(&|pod| pod.is_available(view.now) && !pod.finished);
    let updated_count = count(&|pod| pod.number == Some(number));
    let mut updated = set.clone();
    let mut status = set.status().and_then(Value::as_object).cloned().unwrap_or_default();
    status.insert("currentNumberScheduled".into(), count(&|_| true).into());
    status.insert("desiredNumberScheduled".into(), desired.into());
    let misplaced = heard.iter().filter(|seat| !seat.selected);
    status.insert("numberMisscheduled".into(), pods::count(misplaced.count()).into());
    status.insert("numberReady".into(), count(&|pod| pod.ready).into());
    pods::set_count(&mut status, "numberAvailable", available);
    pods::set_count(&mut status, "numberUnavailable", (desired - available).max(0));
    pods::set_count(&mut status, "updatedNumberScheduled", updated_count);
    status.insert("observedGeneration".into(), set.generation().into());
    let mut status = Value::Object(status);
    if stepping || condition::find(&status, STEP_CONDITION).is_some() {
        let done = updated_count == desired;
        let message = format!("{updated_count} of {desired} devices in contact run rollout {number}");
        let reason = if done { "RolloutComplete" } else { "RolloutStep" };
        let step = Condition { name: STEP_CONDITION, status: Truth::True, reason, message: &message };
        condition::set(&mut status, &step, view.now);
    }
    if stepping {
        let list = status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten();
        for entry in list.filter(|entry| entry.get("type").and_then(Value::as_str) == Some(STEP_CONDITION)) {
            entry["lastTransitionTime"] = view.now.to_rfc3339().into();
        }
    }
    updated.value_mut()["status"] = status;
    let silent = seats.iter().filter(|seat| seat.selected && seat.silent).count();
    updated.set_annotation(SILENT_ANNOTATION, &silent.to_string());
    if updated != *set {
        plan.writes.push(Write::Replace(updated));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
