//! What a Pod's row says, read the same way by every controller.

use std::cmp::Reverse;

use flotilla_manifests::condition;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::placing::{self, TAINT_OUT_OF_SERVICE, TAINT_UNREACHABLE};
use flotilla_manifests::workload::{NodeSpec, PodSpec, Taint, view};
use flotilla_manifests::{kind, object::ObjectKey};
use serde_json::Value;

use super::View;

/// How a Pod counts towards what its owner wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It runs or is about to, as far as is known. On a silent device nothing more is known.
    Active { silent: bool },
    /// It was told to end, on a device that cannot say that it has: it may run still, and is not to run twice.
    Held,
    /// It ended, or is ending on a device in contact, or its device was given up.
    Gone,
}

/// Reads how a Pod counts.
pub fn standing(view: &View<'_>, pod: &Object) -> Standing {
    let node = pod.text("/spec/nodeName");
    let silent = !node.is_empty() && view.is_silent(node);
    if is_finished(pod) {
        return Standing::Gone;
    }
    match (pod.deletion_timestamp(), silent) {
        (None, silent) => Standing::Active { silent },
        (Some(_), true) if !is_given_up(view, pod) => Standing::Held,
        (Some(_), _) => Standing::Gone,
    }
}

/// `Succeeded` or `Failed`: it will not run again.
pub fn is_finished(pod: &Object) -> bool {
    matches!(pod.text("/status/phase"), "Succeeded" | "Failed")
}

pub fn is_ready(pod: &Object) -> bool {
    pod.status().is_some_and(|status| condition::is_true(status, "Ready"))
}

/// Since when a Pod is ready.
pub fn ready_since(pod: &Object) -> Option<Timestamp> {
    let ready = condition::find(pod.status()?, "Ready")?;
    Timestamp::parse(ready.get("lastTransitionTime")?.as_str()?)
}

/// When a ready Pod becomes, or became, available.
pub fn available_at(pod: &Object, min_ready_seconds: i64) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp(0));
    }
    let wait = min_ready_seconds.unsigned_abs().saturating_mul(1000);
    ready_since(pod).map(|since| Timestamp(since.0.saturating_add(wait)))
}

/// Whether the permission to replace a Pod of a silent device has come: its device is out of service, or its own toleration of
/// the silence has run out. Pods of DaemonSets stay with their device.
pub fn is_given_up(view: &View<'_>, pod: &Object) -> bool {
    given_up_at(view, pod).is_some_and(|at| at <= view.now)
}

/// When that permission comes. `None`: never by itself.
pub fn given_up_at(view: &View<'_>, pod: &Object) -> Option<Timestamp> {
    let node_name = pod.text("/spec/nodeName");
    if node_name.is_empty() || is_daemon_pod(pod) {
        return None;
    }
    let silent_at = view.silent_at(node_name)?;
    let Some(node) = view.index.get(&ObjectKey::of(&kind::NODE, "", node_name)) else {
        // The Node was deleted: the operator's word as well.
        return Some(silent_at);
    };
    let spec: PodSpec = flotilla_manifests::workload::view(pod.spec());
    if out_of_service(node).is_some_and(|taint| {
        placing::untolerated(&spec.tolerations, std::slice::from_ref(&taint), &[taint.effect.as_str()]).is_some()
    }) {
        return Some(silent_at);
    }
    let seconds = placing::replaced_after_seconds(&spec)?;
    let from = unreachable_since(node).unwrap_or(silent_at).max(silent_at);
    Some(Timestamp(from.0.saturating_add(seconds.saturating_mul(1000))))
}

/// The operator's word that a device is dead.
pub fn out_of_service(node: &Object) -> Option<Taint> {
    view::<NodeSpec>(node.spec()).taints.into_iter().find(|taint| taint.key == TAINT_OUT_OF_SERVICE)
}

pub fn is_daemon_pod(pod: &Object) -> bool {
    pod.controller().is_some_and(|owner| owner.kind == kind::DAEMON_SET.name)
}

fn unreachable_since(node: &Object) -> Option<Timestamp> {
    let taints = view::<NodeSpec>(node.spec()).taints;
    let taint = taints.into_iter().find(|taint| taint.key == TAINT_UNREACHABLE)?;
    Timestamp::parse(taint.time_added.as_deref()?)
}

/// Where a Pod stands among those to end when there are too many, as Kubernetes ranks them (`ActivePodsWithRanks`): what is not
/// placed, not running, not ready; then what is crowded (more of the same set on its device); then what is ready for less
/// long, restarted more often, younger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank<'a> {
    pub before_crowd: (bool, u8, bool),
    pub after_crowd: (Reverse<Timestamp>, Reverse<i64>, Reverse<Timestamp>, &'a str),
}

impl<'a> Rank<'a> {
    pub fn of(pod: &'a Object) -> Self {
        let phase = match pod.text("/status/phase") {
            "" | "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let ready_since = Reverse(ready_since(pod).unwrap_or_default());
        let created = Reverse(pod.creation_timestamp().unwrap_or_default());
        Self {
            before_crowd: (!pod.text("/spec/nodeName").is_empty(), phase, is_ready(pod)),
            after_crowd: (ready_since, Reverse(restarts(pod)), created, pod.name()),
        }
    }
}

fn restarts(pod: &Object) -> i64 {
    let statuses = pod.at("/status/containerStatuses").and_then(Value::as_array);
    let counts = statuses.into_iter().flatten().filter_map(|one| one.get("restartCount")?.as_i64());
    counts.max().unwrap_or(0)
}

/// The Pods of one set, counted.
#[derive(Debug, Clone, Default)]
pub struct Census<'a> {
    /// Active ones, those on silent devices among them.
    pub active: Vec<&'a Object>,
    /// Of the active ones, those on silent devices.
    pub silent_count: i64,
    /// See [`Standing::Held`].
    pub held_count: i64,
    /// Told to end, on devices in contact, which have not said yet that they did.
    pub ending_count: i64,
    /// In contact and ready.
    pub ready_count: i64,
    /// In contact and ready for long enough.
    pub available_count: i64,
    /// When the next ready one becomes available.
    pub available_next: Option<Timestamp>,
}

impl Census<'_> {
    pub fn active_count(&self) -> i64 {
        count(self.active.len())
    }

    /// Active ones of which something is known.
    pub fn in_contact_count(&self) -> i64 {
        self.active_count() - self.silent_count
    }
}

/// Counts the Pods controlled by `owner`.
pub fn census<'a>(view: &View<'a>, owner: &Object, min_ready_seconds: i64) -> Census<'a> {
    let mut census = Census::default();
    for pod in view.index.owned_by(owner.uid()) {
        if pod.kind() != &kind::POD || pod.controller().is_none_or(|controller| controller.uid != owner.uid()) {
            continue;
        }
        match standing(view, pod) {
            Standing::Gone if pod.deletion_timestamp().is_some() && !is_finished(pod) => census.ending_count += 1,
            Standing::Gone => {}
            Standing::Held => census.held_count += 1,
            Standing::Active { silent } => {
                census.active.push(pod.as_ref());
                if silent {
                    census.silent_count += 1;
                    continue;
                }
                census.ready_count += i64::from(is_ready(pod));
                match available_at(pod, min_ready_seconds) {
                    Some(at) if at <= view.now => census.available_count += 1,
                    Some(at) => {
                        let next = census.available_next.map_or(at, |next| next.min(at));
                        census.available_next = Some(next);
                    }
                    None => {}
                }
            }
        }
    }
    census
}

/// A number of things, for a status.
pub fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Puts a count into a status; 0 is left out, as Kubernetes does.
pub fn set_count(status: &mut serde_json::Map<String, Value>, name: &str, count: i64) {
    if count == 0 {
        status.remove(name);
    } else {
        status.insert(name.to_owned(), count.into());
    }
}
