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
    plan.writes.extend(what_remains(view, namespace, &contents).map(Write::Replace));
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

/// The Namespace with its conditions, in Kubernetes' words, if they change: what is still there, and whose finalizers hold it.
fn what_remains(view: &View<'_>, namespace: &Object, contents: &[&Object]) -> Option<Object> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for object in contents {
        let kind = object.kind();
        *kinds.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += 1;
        for finalizer in object.finalizers() {
            *finalizers.entry(finalizer).or_default() += 1;
        }
    }
    let listed = |start: &str, counts: &BTreeMap<String, usize>, word: &str| {
        let parts =
            counts.iter().take(NAMES_MAX).map(|(name, count)| format!("{name} {word} {count} resource instances"));
        format!("{start}{}", parts.collect::<Vec<_>>().join(", "))
    };
    let remaining = listed("Some resources are remaining: ", &kinds, "has");
    let held = listed("Some content in the namespace has finalizers remaining: ", &finalizers, "in");
    let (held_truth, held_reason, held) = if finalizers.is_empty() {
        (Truth::False, "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
    } else {
        (Truth::True, "SomeFinalizersRemain", held)
    };
    let mut status = namespace.status().cloned().unwrap_or_default();
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            Truth::False,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            Truth::False,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            Truth::False,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        ("NamespaceContentRemaining", Truth::True, "SomeResourcesRemain", remaining.as_str()),
        ("NamespaceFinalizersRemaining", held_truth, held_reason, held.as_str()),
    ];
    for (name, status_of, reason, message) in rows {
        condition::set(&mut status, &Condition { name, status: status_of, reason, message }, view.now);
    }
    let mut updated = namespace.clone();
    updated.value_mut()["status"] = status;
    (updated != *namespace).then_some(updated)
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
