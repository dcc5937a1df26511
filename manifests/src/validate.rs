//! The rules of every served kind beyond its schema; all faults at once, each with its path, in kube-apiserver's words.
//!
//! Owns what may be said in one object, and what an update may change. Refuses defaults (`defaults`), and whatever needs another
//! object. Start at [`object`]; `place` holds the two types every rule is written with.

use crate::api_error::Violation;
use crate::defaults;
use crate::object::Object;
use crate::schema;

mod config;
mod container;
mod election;
mod environment;
mod metadata;
mod place;
mod pod;
mod scheduling;
mod shape;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod text;
mod update;
mod volume;
mod workload;

use place::{At, Faults};

/// Faults of one object that are named; more are not.
pub const FAULTS_MAX: usize = 200;

/// Everything wrong with a defaulted object, wrong types included (`schema::type_errors` need not be asked before).
pub fn object(object: &Object) -> Vec<Violation> {
    let types = schema::type_errors(object);
    let mut faults = Faults::default();
    let root = At::root(object.value());
    metadata::object(object.kind(), &root, &mut faults);
    match object.kind().name {
        "Pod" => pod::whole(&root, &mut faults),
        "Deployment" => workload::deployment(&root, &mut faults),
        "ReplicaSet" => workload::replica_set(&root, &mut faults),
        "DaemonSet" => workload::daemon_set(&root, &mut faults),
        "ControllerRevision" => workload::controller_revision(&root, &mut faults),
        "ConfigMap" => config::config_map(&root, &mut faults),
        "Secret" => config::secret(&root, &mut faults),
        "Node" => config::node(&root, &mut faults),
        "RuntimeClass" => config::runtime_class(&root, &mut faults),
        "Event" => config::event(&root, &mut faults),
        "PriorityClass" => election::priority_class(&root, &mut faults),
        "Lease" => election::lease(&root, &mut faults),
        "Override" => config::overriding(&root, &mut faults),
        "Namespace" => config::namespace(&root, &mut faults),
        _ => {}
    }
    shape::object(object, &mut faults);
    let mut found = types;
    // A value of the wrong type reads as absent: what follows from that is not the author's fault.
    let follows = |fault: &Violation, cause: &Violation| {
        fault.field.strip_prefix(&cause.field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let own = faults.into_list().into_iter().filter(|fault| !found.iter().any(|cause| follows(fault, cause)));
    let own: Vec<Violation> = own.collect();
    found.extend(own);
    found.truncate(FAULTS_MAX);
    found
}

/// What an update may not change: `old` is stored, `new`, defaulted, is to replace it. Call [`object`] for `new` as well.
pub fn update(old: &Object, new: &Object) -> Vec<Violation> {
    let mut faults = Faults::default();
    // What an earlier version stored lacks the defaults of this one: nobody changed those.
    let mut stored = old.clone();
    defaults::apply(&mut stored);
    update::object(&stored, new, &mut faults);
    faults.into_list()
}
