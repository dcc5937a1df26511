//! The end of a namespace: its contents first, then itself.
//!
//! Nothing waits for a silent device: Pods there are withdrawn for good, and the device's Node says so until it has been
//! heard again (DESIGN section 5, "Deletion").

use std::collections::BTreeMap;

use flotilla_manifests::condition::{self, Condition, Truth};
use flotilla_manifests::kind::{self, Kind};
use flotilla_manifests::object::{Object, ObjectKey};

use super::{Deletion, Plan, View, Write};

/// Objects deleted in one plan; the next plan goes on.
const BURST_MAX: usize = 500;
/// Names told in a condition.
const NAMES_MAX: usize = 10;
/// Condition of a Node: Pods of namespaces that are gone may still run on its silent device.
pub const LEFT_RUNNING: &str = "flotilla.dev/LeftRunning";

/// Workloads before what they make, so that nothing is made anew.
static FIRST: &[&Kind] = &[&kind::DEPLOYMENT, &kind::DAEMON_SET, &kind::REPLICA_SET];

/// Plans one namespace.
pub fn plan(view: &View<'_>, key: &ObjectKey) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = view.index.get(key).filter(|found| found.deletion_timestamp().is_some()) else { return plan };
    let contents: Vec<&Object> = view.index.in_namespace(&key.name).map(AsRef::as_ref).collect();
    if contents.is_empty() {
        plan.writes.push(Write::Remove { key: key.clone(), uid: namespace.uid().to_owned() });
        return plan;
    }
    let workloads_left = contents.iter().any(|object| FIRST.contains(&object.kind()));
    let mut left_running: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for object in contents {
        if plan.writes.len() >= BURST_MAX {
            break;
        }
        if workloads_left && !FIRST.contains(&object.kind()) {
            continue;
        }
        let node = node_of(object);
        if !node.is_empty() && view.is_silent(node) {
            if object.kind() == &kind::POD {
                left_running.entry(node).or_default().push(object.name());
            }
            plan.writes.push(Write::Remove { key: object.key(), uid: object.uid().to_owned() });
        } else if object.deletion_timestamp().is_none() {
            plan.writes.push(Write::Delete(Deletion::of(object)));
        }
    }
    for (node, pods) in left_running {
        plan.writes.extend(left_running_condition(view, &key.name, node, &pods));
    }
    plan
}

/// The device whose word ends an object.
fn node_of(object: &Object) -> &str {
    match object.kind().name {
        "Pod" => object.text("/spec/nodeName"),
        "Override" => object.text("/spec/nodeName"),
        _ => "",
    }
}

fn left_running_condition(view: &View<'_>, namespace: &str, node: &str, pods: &[&str]) -> Option<Write> {
    let mut node = (**view.index.get(&ObjectKey::of(&kind::NODE, "", node))?).clone();
    let mut status = node.status().cloned().unwrap_or_default();
    let mut message =
        format!("of namespace {namespace}, which is gone: {}", pods[..pods.len().min(NAMES_MAX)].join(", "));
    if pods.len() > NAMES_MAX {
        message.push_str(&format!(" and {} more", pods.len() - NAMES_MAX));
    }
    let left = Condition { name: LEFT_RUNNING, status: Truth::True, reason: "DeviceSilent", message: &message };
    condition::set(&mut status, &left, view.now);
    node.value_mut()["status"] = status;
    Some(Write::Replace(node))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
