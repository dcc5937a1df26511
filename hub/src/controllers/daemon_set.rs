//! DaemonSets: devices make their own Pods; the hub decides whose turn a new template is, and counts.
//!
//! Owns status, revisions and the publication of thresholds and grants (DESIGN section 5, "Rollouts"). Creates no Pods.
//! Only devices in contact count; those that are silent are told apart. Start at [`plan`]; whose turn it is, is decided in
//! [`rollout`].

mod history;
mod readings;
pub mod rollout;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout::{RolloutNumber, SILENT_ANNOTATION, number_of};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::{self, DaemonSetSpec};
use serde_json::Value;

use super::{Plan, View, Write, pods};
use crate::fleet::contact::Contact;
use crate::store::Surroundings;
use readings::Occupant;
pub use readings::Readings;
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
    name: &'a str,
    uid: &'a str,
    pods: Vec<&'a Occupant>,
    selected: bool,
    contact: Option<&'a Contact>,
    /// As [`View::silent_by`] has it.
    silent_at: Option<Timestamp>,
    silent: bool,
}

/// Plans one DaemonSet. `readings` are those of its plan before.
pub fn plan(view: &View<'_, Surroundings>, readings: &mut Readings) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = &view.index.workload else { return plan };
    if set.deletion_timestamp().is_some() {
        return plan;
    }
    let spec: DaemonSetSpec = workload::view(set.spec());
    let number = number_of(set).unwrap_or_default();
    readings.renew(view.index, set, spec.min_ready_seconds);
    let readings = &*readings;
    let seats = seats(view, readings);
    let stepped = stepped_at(set).or(set.creation_timestamp());
    let devices: Vec<Device<'_>> = seats
        .iter()
        .filter(|seat| seat.selected && !seat.silent)
        .map(|seat| device(view, seat, number, stepped))
        .collect();
    for seat in seats.iter().filter(|seat| seat.selected) {
        let times = seat.pods.iter().filter_map(|pod| pod.available_at).chain(seat.silent_at);
        for at in times.filter(|at| *at > view.now) {
            plan.wake(at);
        }
    }
    let state = &view.index.rollout;
    let step = rollout::step(&rollout::Situation {
        number,
        devices: &devices,
        state,
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
        let run = readings.pods(view.index).filter_map(|pod| pod.number).collect();
        forget_numbers(set, number, &run, &state.thresholds, &mut plan);
    }
    history::write(&view.index.owned, set, &spec, &mut plan);
    write_status(view, set, &seats, number, stepping, &mut plan);
    plan
}

/// Gives grants and takes them away, some now and the rest soon: each is a record for a device, and others want to write meanwhile.
fn grant(workload_uid: &str, grants: BTreeMap<String, Option<RolloutNumber>>, now: Timestamp, plan: &mut Plan) {
    if grants.len() > GRANTS_AT_ONCE_MAX {
        plan.wake(Timestamp(now.0.saturating_add(GRANTS_GO_ON_MS)));
    }
    for (node, number) in grants.into_iter().take(GRANTS_AT_ONCE_MAX) {
        plan.writes.push(Write::Grant { workload_uid: workload_uid.to_owned(), node, number });
    }
}

/// Every Node that the DaemonSet selects or has a Pod on, in order of names.
fn seats<'a>(view: &View<'a, Surroundings>, readings: &'a Readings) -> Vec<Seat<'a>> {
    let mut by_node: HashMap<&str, Vec<&Occupant>> = HashMap::new();
    for pod in readings.pods(view.index) {
        by_node.entry(pod.node.as_str()).or_default().push(pod);
    }
    let seat = |node: &'a readings::Ground| {
        let pods = by_node.remove(node.name.as_str()).unwrap_or_default();
        let selected = node.selection.should_run || (node.selection.may_stay && !pods.is_empty());
        if !selected && pods.is_empty() {
            return None;
        }
        let contact = view.contacts.get(&node.name);
        let silent_at = view.silent_by(contact);
        let silent = silent_at.is_some_and(|at| at <= view.now);
        Some(Seat { name: &node.name, uid: &node.uid, pods, selected, contact, silent_at, silent })
    };
    readings.nodes(view.index).filter_map(seat).collect()
}

fn device<'a>(
    view: &View<'_, Surroundings>,
    seat: &Seat<'a>,
    number: RolloutNumber,
    stepped: Option<Timestamp>,
) -> Device<'a> {
    let live = || seat.pods.iter().filter(|pod| pod.is_live());
    let returned = match seat.contact {
        Some(Contact::Connected { since }) => stepped.is_some_and(|stepped| *since > stepped),
        _ => false,
    };
    Device {
        node: seat.name,
        uid: seat.uid,
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
    set: &Object,
    number: RolloutNumber,
    run: &BTreeSet<RolloutNumber>,
    thresholds: &BTreeMap<String, u64>,
    plan: &mut Plan,
) {
    for old in thresholds.keys().filter_map(|text| text.parse::<RolloutNumber>().ok()) {
        if old != number && !run.contains(&old) {
            let workload_uid = set.uid().to_owned();
            plan.writes.push(Write::Threshold { workload_uid, number: old, threshold: None });
        }
    }
}

fn write_status(
    view: &View<'_, Surroundings>,
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
