//! Whose turn it is: how far to raise a number's threshold, and whom to let in by name.
//!
//! The budget is `maxUnavailable` of the devices in contact. Spent on it are devices without an available Pod and those that
//! were let in and have not come through. A device whose Pod is not available anyway is let in for nothing.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::rollout::{self, RolloutNumber, THRESHOLD_ALL};
use flotilla_manifests::time::Timestamp;

use crate::store::RolloutState;

/// A device let in that has not begun after this long may wait for a grant: it learned of its turn by catch-up.
const MISSED_MS: u64 = 30_000;

/// A selected device in contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device<'a> {
    pub node: &'a str,
    pub uid: &'a str,
    /// It has an available Pod, of whatever number.
    pub available: bool,
    /// It has a Pod of the newest number.
    pub updated: bool,
    /// It has no Pod.
    pub vacant: bool,
    /// It has a Pod that was told to end.
    pub ending: bool,
    /// It came back after the last step, and so learned of it by catch-up: it moves by a grant only.
    pub returned: bool,
}

/// What a step is decided from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub number: RolloutNumber,
    pub devices: &'a [Device<'a>],
    pub state: &'a RolloutState,
    /// Selected devices, silent ones among them.
    pub fleet_count: usize,
    pub unavailable_max: usize,
    /// `updateStrategy: OnDelete`: a device moves when its Pod is deleted.
    pub on_delete: bool,
    pub now: Timestamp,
    /// When the threshold last changed.
    pub stepped: Option<Timestamp>,
}

/// What to publish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// The newest number's threshold, when it changes.
    pub threshold: Option<u64>,
    /// Grants to give, or with `None` to take away, in order of names.
    pub grants: BTreeMap<String, Option<RolloutNumber>>,
    /// Every device in contact runs the newest number, and all may.
    pub finished: bool,
    pub wake_at: Option<Timestamp>,
}

/// Decides the next step.
pub fn step(situation: &Situation<'_>) -> Step {
    let number = situation.number;
    let text = number.to_string();
    let threshold = situation.state.thresholds.get(&text).copied().unwrap_or(0);
    let granted = |device: &Device<'_>| situation.state.grants.get(device.node) == Some(&text);
    let admitted = |device: &Device<'_>| granted(device) || rollout::admitted(device.uid, number, threshold);
    let mut step = Step::default();

    let mut free: Vec<&Device<'_>> = Vec::new();
    let mut waiting: Vec<&Device<'_>> = Vec::new();
    let mut spent = 0;
    for device in situation.devices {
        if device.updated || admitted(device) {
            spent += usize::from(!(device.updated && device.available));
        } else if !device.available {
            spent += 1;
            free.push(device);
        } else {
            waiting.push(device);
        }
    }
    if situation.on_delete {
        free.retain(|device| device.ending || device.vacant);
        waiting.clear();
    }
    let budget = situation.unavailable_max.saturating_sub(spent).min(waiting.len());
    if threshold != THRESHOLD_ALL && !situation.on_delete {
        raise(situation, threshold, &free, &mut waiting, budget, &mut step);
    } else {
        for device in free.into_iter().chain(waiting.into_iter().take(budget)) {
            step.grants.insert(device.node.to_owned(), Some(number));
        }
    }
    nudge_returned(situation, threshold, &mut step);
    settle(situation, step.threshold.unwrap_or(threshold), &mut step);
    step
}

/// Lets in `free` and, of `waiting`, `budget` devices: by the shared threshold, or by name when they are few.
fn raise(
    situation: &Situation<'_>,
    threshold: u64,
    free: &[&Device<'_>],
    waiting: &mut Vec<&Device<'_>>,
    budget: usize,
    step: &mut Step,
) {
    let number = situation.number;
    waiting.sort_by_cached_key(|device| (rollout::turn(device.uid, number), device.node));
    if budget == waiting.len() {
        // Everyone in contact: those who come later as well.
        step.threshold = Some(THRESHOLD_ALL);
        return;
    }
    let by_name = budget * 100 < situation.fleet_count;
    if by_name {
        for device in &waiting[..budget] {
            step.grants.insert(device.node.to_owned(), Some(number));
        }
    } else {
        // The first that is not let in stands at the threshold.
        let next = rollout::turn(waiting[budget].uid, number);
        step.threshold = Some(next).filter(|next| *next > threshold);
    }
    let reached = step.threshold.unwrap_or(threshold);
    for device in free.iter().filter(|device| !rollout::admitted(device.uid, number, reached)) {
        step.grants.insert(device.node.to_owned(), Some(number));
    }
}

/// Gives those a grant that were let in by the threshold but learned of it by catch-up, or have not moved for long. They are
/// spent already; no more than the budget of them at a time.
fn nudge_returned(situation: &Situation<'_>, threshold: u64, step: &mut Step) {
    let number = situation.number;
    let text = number.to_string();
    let missed_at = situation.stepped.map(|stepped| Timestamp(stepped.0.saturating_add(MISSED_MS)));
    let missed = missed_at.is_none_or(|at| at <= situation.now);
    let behind: Vec<&Device<'_>> = situation
        .devices
        .iter()
        .filter(|device| !device.updated && rollout::admitted(device.uid, number, threshold))
        .collect();
    let granted = |device: &&&Device<'_>| situation.state.grants.get(device.node) == Some(&text);
    let moving = behind.iter().filter(granted).count();
    let unavailable_updated = situation.devices.iter().filter(|device| device.updated && !device.available).count();
    let mut left = situation.unavailable_max.saturating_sub(moving + unavailable_updated);
    for device in behind.iter().filter(|device| !granted(device)) {
        if !(device.returned || missed) {
            step.wake_at = missed_at;
        } else if !device.available {
            step.grants.insert(device.node.to_owned(), Some(number));
        } else if left > 0 {
            left -= 1;
            step.grants.insert(device.node.to_owned(), Some(number));
        }
    }
}

/// Takes grants away that have served, and says whether the rollout is over.
fn settle(situation: &Situation<'_>, threshold: u64, step: &mut Step) {
    let all_updated = situation.devices.iter().all(|device| device.updated);
    step.finished = all_updated && (threshold == THRESHOLD_ALL || situation.on_delete);
    if threshold == THRESHOLD_ALL && !situation.state.grants.is_empty() {
        let updated: BTreeSet<&str> =
            situation.devices.iter().filter(|device| device.updated).map(|device| device.node).collect();
        for node in situation.state.grants.keys().filter(|node| updated.contains(node.as_str())) {
            step.grants.insert(node.clone(), None);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
