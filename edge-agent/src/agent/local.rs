//! Statuses of workloads as one device sees them: its own Pods are all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::derive::uuid_v8;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::{condition, digest, kind};
use serde_json::{Value, json};

/// Adds the namespaces of what is shown: the hub's own objects stay at the hub, and `kubectl get ns` is asked here too. One that is
/// among the `known` need not be made: it says nothing but its name.
pub(super) fn add_namespaces(
    objects: &mut BTreeMap<ObjectKey, Arc<Object>>,
    known: impl Fn(&ObjectKey) -> Option<Arc<Object>>,
) {
    let names: BTreeSet<String> =
        objects.keys().map(|key| key.namespace.clone()).filter(|name| !name.is_empty()).collect();
    for name in names.into_iter().chain(["default".to_owned()]) {
        let key = ObjectKey::of(&kind::NAMESPACE, "", name.as_str());
        if let Some(known) = known(&key) {
            objects.insert(key, known);
            continue;
        }
        let mut namespace = Object::empty(&kind::NAMESPACE, "", &name);
        let uid = uuid_v8(&digest::of_parts("flotilla/local-namespace/1", &[name.as_bytes()]));
        namespace.metadata_mut().insert("uid".into(), uid.into());
        namespace.metadata_mut().insert("labels".into(), json!({"kubernetes.io/metadata.name": name}));
        namespace.value_mut()["status"] = json!({"phase": "Active"});
        objects.insert(key, Arc::new(namespace));
    }
}

/// Pods of one workload on this device.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Count {
    pods: u64,
    ready: u64,
}

/// The Pods of each workload among the objects, by its uid, as `statuses` say of them.
pub(super) fn count_pods(
    objects: &BTreeMap<ObjectKey, Arc<Object>>,
    statuses: &BTreeMap<String, Value>,
) -> BTreeMap<String, Count> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for pod in objects.values().filter(|object| object.kind() == &kind::POD) {
        let Some(owner) = pod.controller() else { continue };
        let count = counts.entry(owner.uid).or_default();
        count.pods += 1;
        count.ready += u64::from(statuses.get(pod.uid()).or(pod.status()).is_some_and(is_ready));
    }
    counts
}

/// The status of a workload; `None` for what is none.
pub(super) fn status(workload: &Object, count: Count) -> Option<Value> {
    let Count { pods, ready } = count;
    let generation = workload.generation();
    match workload.kind().name {
        "DaemonSet" => Some(json!({
            "desiredNumberScheduled": pods, "currentNumberScheduled": pods, "updatedNumberScheduled": pods,
            "numberReady": ready, "numberAvailable": ready, "numberUnavailable": pods - ready, "numberMisscheduled": 0,
            "observedGeneration": generation,
        })),
        "Deployment" => Some(json!({
            "replicas": pods, "updatedReplicas": pods, "readyReplicas": ready, "availableReplicas": ready,
            "unavailableReplicas": pods - ready, "observedGeneration": generation,
        })),
        "ReplicaSet" => Some(json!({
            "replicas": pods, "fullyLabeledReplicas": pods, "readyReplicas": ready, "availableReplicas": ready,
            "observedGeneration": generation,
        })),
        _ => None,
    }
}

fn is_ready(status: &Value) -> bool {
    condition::is_true(status, "Ready")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_workload_counts_its_own_pods_only() {
        let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "a", "uid": "w"}});
        let pod = |name: &str, owner: &str, ready: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "uid": name, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "web", "uid": owner, "controller": true},
            ]}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let all = [set, pod("p1", "w", "True"), pod("p2", "w", "False"), pod("p3", "other", "True")];
        let parsed = all.map(|value| Object::parse(value).unwrap());
        let mut objects: BTreeMap<ObjectKey, Arc<Object>> =
            parsed.into_iter().map(|one| (one.key(), Arc::new(one))).collect();
        let set = Arc::clone(&objects[&ObjectKey::of(&kind::DAEMON_SET, "a", "web")]);
        let status_of = |objects: &_, statuses: &_| status(&set, count_pods(objects, statuses)["w"]).unwrap();
        let status = status_of(&objects, &BTreeMap::new());
        assert_eq!((&status["desiredNumberScheduled"], &status["numberReady"]), (&json!(2), &json!(1)));
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let newest = status_of(&objects, &BTreeMap::from([("p2".to_owned(), ready)]));
        assert_eq!(newest["numberReady"], json!(2), "what the pass found counts before what the object says");
        add_namespaces(&mut objects, |_| None);
        let made: Vec<&str> = objects.keys().filter(|key| key.kind == &kind::NAMESPACE).map(|key| &*key.name).collect();
        assert_eq!(made, ["a", "default"]);
    }
}
