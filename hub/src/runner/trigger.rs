//! What has to be planned again after a change. Pure; a change says *that* something happened, the plans look for themselves.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::condition;
use flotilla_manifests::derive;
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout;
use flotilla_rest::backend::WatchEvent;
use serde_json::Value;

use super::queue::Task;
use crate::controllers::pods;
use crate::store::Index;

/// Tasks, each with the milliseconds to gather further changes before it is planned.
pub type Tasks = BTreeMap<Task, u64>;

/// Every task there is.
pub fn everything(index: &Index) -> Tasks {
    let mut tasks = Tasks::from([(Task::Schedule, 0), (Task::Events, 0)]);
    for object in index.objects() {
        let key = object.key();
        match key.kind.name {
            "Deployment" => tasks.insert(Task::Deployment(key), 0),
            "ReplicaSet" => tasks.insert(Task::ReplicaSet(key), 0),
            "DaemonSet" => tasks.insert(Task::DaemonSet(key), 0),
            "Node" => tasks.insert(Task::Node(key.name), 0),
            "Namespace" => tasks.insert(Task::Namespace(key.name), 0),
            _ => None,
        };
        for owner in object.owner_references() {
            if index.by_uid(&owner.uid).is_none() {
                tasks.insert(Task::Owner(owner.uid), 0);
            }
        }
        if object.deletion_timestamp().is_some() && !object.finalizers().is_empty() {
            tasks.insert(Task::Owner(object.uid().to_owned()), 0);
        }
    }
    tasks
}

/// What follows from one change.
pub fn by_change(index: &Index, event: &WatchEvent) -> Tasks {
    let mut tasks = Tasks::new();
    let (object, previous, gone) = match event {
        WatchEvent::Added(object) => (object.as_ref(), None, false),
        WatchEvent::Modified { previous, object } => (object.as_ref(), Some(previous.as_ref()), false),
        WatchEvent::Deleted(object) => (object.as_ref(), None, true),
        WatchEvent::Progress(_) | WatchEvent::Expired => return tasks,
    };
    ownership(index, object, previous, gone, &mut tasks);
    let key = object.key();
    match key.kind.name {
        "Deployment" if !gone => {
            tasks.insert(Task::Deployment(key), itself_ms(object, previous));
        }
        "ReplicaSet" => {
            tasks.insert(Task::ReplicaSet(key), itself_ms(object, previous));
            by_owner(index, object, &mut tasks);
        }
        "DaemonSet" if !gone => {
            tasks.insert(Task::DaemonSet(key), itself_ms(object, previous));
        }
        "ControllerRevision" => by_owner(index, object, &mut tasks),
        "Pod" => by_pod(index, object, previous, gone, &mut tasks),
        "Node" => by_node(index, object, previous, gone, &mut tasks),
        "Namespace" => {
            tasks.insert(Task::Namespace(key.name), 0);
        }
        // Pods of sets that named it could not be made.
        "PriorityClass" if !gone => {
            for set in index.list(&kind::REPLICA_SET, None) {
                tasks.insert(Task::ReplicaSet(set.key()), gathering_ms(set));
            }
        }
        _ => {}
    }
    tasks
}

/// What follows when a device comes into contact or goes.
pub fn by_contact(index: &Index, node: &str) -> Tasks {
    let mut tasks = Tasks::from([(Task::Node(node.to_owned()), 0), (Task::Schedule, 0)]);
    by_placed(index, node, &mut tasks);
    let row = index.get(&ObjectKey::of(&kind::NODE, "", node));
    daemon_sets(index, node, row.map(AsRef::as_ref).into_iter(), &mut tasks);
    tasks
}

fn ownership(index: &Index, object: &Object, previous: Option<&Object>, gone: bool, tasks: &mut Tasks) {
    let uid = object.uid().to_owned();
    let owners = object.owner_references();
    if gone {
        if index.owned_by(&uid).next().is_some() {
            tasks.insert(Task::Owner(uid), 0);
        }
        waiting_owners(index, object, tasks);
    } else {
        if object.deletion_timestamp().is_some() && !object.finalizers().is_empty() {
            tasks.insert(Task::Owner(uid.clone()), 0);
        }
        let news = previous
            .is_none_or(|previous| previous.at("/metadata/ownerReferences") != object.at("/metadata/ownerReferences"));
        if news
            && owners
                .iter()
                .any(|owner| index.by_uid(&owner.uid).is_none_or(|owner| owner.deletion_timestamp().is_some()))
        {
            tasks.insert(Task::Dependent(uid), 0);
        }
        if let Some(previous) = previous
            .filter(|previous| news || previous.deletion_timestamp().is_some() != object.deletion_timestamp().is_some())
        {
            waiting_owners(index, previous, tasks);
            waiting_owners(index, object, tasks);
        }
    }
    let namespace = ObjectKey::of(&kind::NAMESPACE, "", object.namespace());
    if !object.namespace().is_empty()
        && index.get(&namespace).is_some_and(|namespace| namespace.deletion_timestamp().is_some())
    {
        tasks.insert(Task::Namespace(namespace.name), 0);
    }
}

/// Owners that end once this dependent is gone, lets go of them, or is left behind on a silent device.
fn waiting_owners(index: &Index, dependent: &Object, tasks: &mut Tasks) {
    let owners = dependent.owner_references();
    for owner in owners.iter().filter_map(|owner| index.by_uid(&owner.uid)) {
        if owner.deletion_timestamp().is_some() {
            tasks.insert(Task::Owner(owner.uid().to_owned()), 0);
        }
    }
}

/// The workload that controls an object, and the one above it.
fn by_owner(index: &Index, object: &Object, tasks: &mut Tasks) {
    let mut owner = object.controller();
    while let Some(reference) = owner {
        let Some(found) = index.by_uid(&reference.uid) else { return };
        match found.kind().name {
            "Deployment" => tasks.insert(Task::Deployment(found.key()), gathering_ms(found)),
            "ReplicaSet" => tasks.insert(Task::ReplicaSet(found.key()), gathering_ms(found)),
            "DaemonSet" => tasks.insert(Task::DaemonSet(found.key()), gathering_ms(found)),
            _ => return,
        };
        owner = found.controller();
    }
}

fn by_pod(index: &Index, pod: &Object, previous: Option<&Object>, gone: bool, tasks: &mut Tasks) {
    by_owner(index, pod, tasks);
    if let Some(previous) = previous {
        by_owner(index, previous, tasks);
    }
    let unbound = pod.text("/spec/nodeName").is_empty();
    let freed = gone || (pods::is_finished(pod) && previous.is_some_and(|previous| !pods::is_finished(previous)));
    if (unbound && !gone) || freed {
        tasks.insert(Task::Schedule, 0);
    }
    if !unbound && !gone && previous.is_none_or(|previous| previous.text("/spec/nodeName").is_empty()) {
        tasks.insert(Task::Node(pod.text("/spec/nodeName").to_owned()), 0);
    }
    if pod.owner_references().is_empty() && rollout::number_of(pod).is_some() {
        for set in index.list(&kind::REPLICA_SET, Some(pod.namespace())) {
            tasks.insert(Task::ReplicaSet(set.key()), 0);
        }
    }
}

fn by_node(index: &Index, node: &Object, previous: Option<&Object>, gone: bool, tasks: &mut Tasks) {
    tasks.insert(Task::Node(node.name().to_owned()), 0);
    let ready = |node: &Object| {
        let entry = condition::find(node.status()?, "Ready")?;
        entry.get("status").and_then(Value::as_str).map(str::to_owned)
    };
    let place = |node: &Object| (node.labels(), node.spec().cloned(), ready(node));
    let moved = previous.is_none_or(|previous| place(previous) != place(node));
    let room = |node: &Object| (node.at("/status/allocatable").cloned(), node.at("/status/capacity").cloned());
    if moved || gone {
        daemon_sets(index, node.name(), previous.into_iter().chain([node]), tasks);
        by_placed(index, node.name(), tasks);
    }
    if moved || gone || previous.is_some_and(|previous| room(previous) != room(node)) {
        tasks.insert(Task::Schedule, 0);
    }
}

/// The workloads of the Pods on a device, and the owners that wait for Pods that may be left behind there.
fn by_placed(index: &Index, node: &str, tasks: &mut Tasks) {
    for pod in index.pods_on(node) {
        if !pods::is_daemon_pod(pod) {
            by_owner(index, pod, tasks);
        }
        if pod.deletion_timestamp().is_some() {
            waiting_owners(index, pod, tasks);
        }
    }
}

/// The DaemonSets that have a Pod on a Node, or select it as it is or was: each looks at the whole fleet when it is planned.
fn daemon_sets<'a>(index: &Index, name: &str, node: impl Iterator<Item = &'a Object> + Clone, tasks: &mut Tasks) {
    let mut here =
        index.pods_on(name).filter_map(|pod| pod.controller()).map(|owner| owner.uid).collect::<BTreeSet<_>>();
    for set in index.list(&kind::DAEMON_SET, None) {
        let selects = |node: &Object| {
            let selection = derive::selection(set, node);
            selection.should_run || selection.may_stay
        };
        if here.remove(set.uid()) || node.clone().any(selects) {
            tasks.insert(Task::DaemonSet(set.key()), gathering_ms(set));
        }
    }
}

/// How long a workload gathers after it was changed itself: what somebody wishes is planned at once, but for the rest
/// of a dear plan. Its status is what the last plan
/// wrote, and another plan says nothing new of it.
fn itself_ms(workload: &Object, previous: Option<&Object>) -> u64 {
    let wishes = |of: &Object| (of.deletion_timestamp(), rollout::number_of(of));
    match previous {
        Some(previous) if wishes(previous) == wishes(workload) && previous.spec() == workload.spec() => {
            gathering_ms(workload)
        }
        _ => 0,
    }
}

/// How long a workload gathers changes from one plan to the next: one with many Pods longer, so that ten thousand reports do not make
/// ten thousand plans over ten thousand Pods.
fn gathering_ms(workload: &Object) -> u64 {
    let count = |field: &str| workload.status().and_then(|status| status.get(field)?.as_u64()).unwrap_or(0);
    gathering_of(count("replicas").max(count("desiredNumberScheduled")))
}

/// The same for what looks at `count` things.
pub fn gathering_of(count: u64) -> u64 {
    /// Fewer are planned as soon as anything happens to them.
    const COUNT_MIN: u64 = 20;
    const PER_MS: u64 = 4;
    const MS_MAX: u64 = 1000;
    if count < COUNT_MIN { 0 } else { (count / PER_MS).min(MS_MAX) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
