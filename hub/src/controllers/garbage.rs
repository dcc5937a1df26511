//! Garbage collection by owner references: background, foreground and orphaning (Kubernetes, "Garbage collection").

use flotilla_manifests::admission::Propagation;
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, OwnerReference};
use serde_json::Value;

use super::{Deletion, Plan, View, Write};

/// Finalizer of an owner whose dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents stay.
pub const ORPHAN: &str = "orphan";

/// Plans what follows from the end of the object with this uid, or from the start of it.
pub fn plan_owner(view: &View<'_>, uid: &str) -> Plan {
    let mut plan = Plan::default();
    match view.index.by_uid(uid) {
        None => {
            for dependent in view.index.owned_by(uid) {
                collect(view, dependent, &mut plan);
            }
        }
        Some(owner) if owner.deletion_timestamp().is_some() => finalize(view, owner, &mut plan),
        Some(_) => {}
    }
    plan
}

/// Plans for one object that names owners: it goes when none of them is left.
pub fn plan_dependent(view: &View<'_>, uid: &str) -> Plan {
    let mut plan = Plan::default();
    if let Some(object) = view.index.by_uid(uid) {
        collect(view, object, &mut plan);
    }
    plan
}

/// Takes one owner out of an object's references.
pub fn drop_owner(object: &mut Object, owner_uid: &str) {
    let metadata = object.metadata_mut();
    let Some(list) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) else { return };
    list.retain(|owner| owner.get("uid").and_then(Value::as_str) != Some(owner_uid));
    if list.is_empty() {
        metadata.remove("ownerReferences");
    }
}

fn collect(view: &View<'_>, object: &Object, plan: &mut Plan) {
    let owners = object.owner_references();
    if owners.is_empty() || object.deletion_timestamp().is_some() {
        return;
    }
    let (present, missing): (Vec<_>, Vec<_>) = owners.iter().partition(|owner| exists(view, object, owner));
    if present.is_empty() {
        plan.writes.push(Write::Delete(Deletion::of(object)));
        return;
    }
    let foreground = present.iter().all(|owner| is_going_foreground(view, owner));
    if foreground {
        let propagation = if view.index.owned_by(object.uid()).next().is_some() {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        plan.writes.push(Write::Delete(Deletion { propagation, ..Deletion::of(object) }));
    } else if !missing.is_empty() {
        let mut kept = object.clone();
        for owner in missing {
            drop_owner(&mut kept, &owner.uid);
        }
        plan.writes.push(Write::Replace(kept));
    }
}

/// A reference to an object of another namespace is one to nothing, as in Kubernetes.
fn exists(view: &View<'_>, object: &Object, owner: &OwnerReference) -> bool {
    view.index.by_uid(&owner.uid).is_some_and(|found| {
        found.kind().name == owner.kind && (found.namespace().is_empty() || found.namespace() == object.namespace())
    })
}

fn is_going_foreground(view: &View<'_>, owner: &OwnerReference) -> bool {
    view.index.by_uid(&owner.uid).is_some_and(|owner| {
        owner.deletion_timestamp().is_some() && owner.finalizers().iter().any(|name| name == FOREGROUND)
    })
}

/// An owner that waits for its dependents.
fn finalize(view: &View<'_>, owner: &Object, plan: &mut Plan) {
    let finalizers = owner.finalizers();
    if finalizers.iter().any(|name| name == ORPHAN) {
        let mut free = true;
        for dependent in view.index.owned_by(owner.uid()) {
            let mut kept = (**dependent).clone();
            drop_owner(&mut kept, owner.uid());
            plan.writes.push(Write::Replace(kept));
            free = false;
        }
        if free {
            plan.writes.push(without_finalizer(owner, ORPHAN));
        }
        return;
    }
    if !finalizers.iter().any(|name| name == FOREGROUND) {
        return;
    }
    let mut blocked = false;
    for dependent in view.index.owned_by(owner.uid()) {
        let blocks = dependent.owner_references().iter().any(|one| one.uid == owner.uid() && one.block_owner_deletion);
        blocked |= blocks && !is_left_behind(view, dependent);
        let node = dependent.text("/spec/nodeName");
        if let Some(at) = view.silent_at(node).filter(|at| blocks && !node.is_empty() && *at > view.now) {
            plan.wake(at);
        }
        collect(view, dependent, plan);
    }
    if !blocked {
        plan.writes.push(without_finalizer(owner, FOREGROUND));
    }
}

/// A Pod told to end on a silent device: nobody waits for it.
fn is_left_behind(view: &View<'_>, dependent: &Object) -> bool {
    let node = dependent.text("/spec/nodeName");
    let is_pod: KindRef = dependent.kind();
    is_pod == &kind::POD && dependent.deletion_timestamp().is_some() && !node.is_empty() && view.is_silent(node)
}

fn without_finalizer(owner: &Object, finalizer: &str) -> Write {
    let mut left = owner.clone();
    let finalizers: Vec<Value> =
        owner.finalizers().into_iter().filter(|name| name != finalizer).map(Value::from).collect();
    if finalizers.is_empty() {
        return Write::Remove { key: owner.key(), uid: owner.uid().to_owned() };
    }
    left.metadata_mut().insert("finalizers".into(), Value::Array(finalizers));
    Write::Replace(left)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
