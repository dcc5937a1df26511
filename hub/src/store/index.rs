//! Every current object in memory, with the secondary orders that controllers and publication ask for.
//!
//! Plain data: no lock, no I/O. The writer keeps one of its own (uncommitted), readers share another (committed).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};

/// Read access to a consistent set of current objects.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    by_uid: HashMap<String, ObjectKey>,
    /// Dependents by the uid of each of their owners.
    by_owner: HashMap<String, BTreeMap<ObjectKey, Arc<Object>>>,
    /// Pods by `spec.nodeName`; those that have no place yet by none.
    by_node: HashMap<String, BTreeMap<ObjectKey, Arc<Object>>>,
    /// Events by namespace and age: they come in numbers, and the oldest go first.
    events: BTreeMap<String, BTreeSet<(u64, String)>>,
    /// Rollout facts of each workload, by its uid.
    rollouts: BTreeMap<String, RolloutState>,
}

/// What the hub has let devices move to, for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RolloutState {
    /// Threshold by rollout number (`"<incarnation>-<counter>"`): the numbers in flight.
    pub thresholds: BTreeMap<String, u64>,
    /// Number granted, by node name.
    pub grants: BTreeMap<String, String>,
}

/// A workload with all it owns, its rollout, and every Node. Objects are shared with the index it was taken from.
#[derive(Debug, Default)]
pub struct Surroundings {
    pub(crate) workload: Option<Arc<Object>>,
    pub(crate) rollout: RolloutState,
    /// In order of their keys.
    pub(crate) owned: Vec<Arc<Object>>,
    /// In order of names.
    pub(crate) nodes: Vec<Arc<Object>>,
}

impl Index {
    /// What a plan of a DaemonSet looks at, taken out in little time: whoever makes the plan from it holds up no commit.
    pub(crate) fn around(&self, workload: &ObjectKey) -> Surroundings {
        let Some(found) = self.get(workload) else { return Surroundings::default() };
        Surroundings {
            workload: Some(Arc::clone(found)),
            rollout: self.rollout(found.uid()),
            owned: self.owned_by(found.uid()).cloned().collect(),
            nodes: self.list(&kind::NODE, None).cloned().collect(),
        }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.objects.get(self.by_uid.get(uid)?)
    }

    /// Objects of one kind in key order, of one namespace or of all.
    pub fn list<'a>(&'a self, kind: KindRef, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.entries(kind, namespace).map(|(_, object)| object)
    }

    /// The same with their keys: a name need not be looked for in the object.
    pub(crate) fn entries<'a>(
        &'a self,
        kind: KindRef,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Object>)> + 'a {
        let first = ObjectKey::of(kind, namespace.unwrap_or(""), "");
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind && namespace.is_none_or(|name| key.namespace == name))
    }

    /// Every object of a namespace, whatever its kind.
    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        kind::ALL
            .iter()
            .copied()
            .filter(|kind| kind.scope == kind::Scope::Namespaced)
            .flat_map(move |kind| self.list(kind, Some(namespace)))
    }

    /// Objects that name this uid among their owner references.
    pub fn owned_by<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.by_owner.get(uid).into_iter().flat_map(BTreeMap::values)
    }

    /// Pods bound to this node.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.by_node.get(node).into_iter().flat_map(BTreeMap::values)
    }

    /// Pods without a place.
    pub fn pods_unbound(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.pods_on("")
    }

    /// How many Events a namespace has.
    pub fn events_count(&self, namespace: &str) -> usize {
        self.events.get(namespace).map_or(0, BTreeSet::len)
    }

    /// The Event of a namespace that was changed longest ago.
    pub fn event_oldest(&self, namespace: &str) -> Option<ObjectKey> {
        let (_, name) = self.events.get(namespace)?.first()?;
        Some(ObjectKey::of(&kind::EVENT, namespace, name.as_str()))
    }

    /// Thresholds and grants of a workload; empty when it has none.
    pub fn rollout(&self, workload_uid: &str) -> RolloutState {
        self.rollouts.get(workload_uid).cloned().unwrap_or_default()
    }

    /// The same where it stands: with a grant for every device it is large.
    pub fn rollout_at(&self, workload_uid: &str) -> Option<&RolloutState> {
        self.rollouts.get(workload_uid)
    }

    pub fn rollouts(&self) -> &BTreeMap<String, RolloutState> {
        &self.rollouts
    }

    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Puts or (with `None`) removes one object; answers what stood there.
    pub(crate) fn set(&mut self, key: &ObjectKey, object: Option<Arc<Object>>) -> Option<Arc<Object>> {
        let previous = self.objects.remove(key);
        if let Some(previous) = &previous {
            if self.by_uid.get(previous.uid()) == Some(key) {
                self.by_uid.remove(previous.uid());
            }
            for owner in previous.owner_references() {
                take(&mut self.by_owner, &owner.uid, key);
            }
            if previous.kind() == &kind::EVENT
                && let Some(events) = self.events.get_mut(&key.namespace)
            {
                events.remove(&(previous.resource_version(), key.name.clone()));
                if events.is_empty() {
                    self.events.remove(&key.namespace);
                }
            }
            if previous.kind() == &kind::POD {
                take(&mut self.by_node, place(previous), key);
            }
        }
        if let Some(object) = object {
            self.by_uid.insert(object.uid().to_owned(), key.clone());
            for owner in object.owner_references() {
                self.by_owner.entry(owner.uid).or_default().insert(key.clone(), Arc::clone(&object));
            }
            if object.kind() == &kind::EVENT {
                let events = self.events.entry(key.namespace.clone()).or_default();
                events.insert((object.resource_version(), key.name.clone()));
            }
            if object.kind() == &kind::POD {
                let pods = self.by_node.entry(place(&object).to_owned()).or_default();
                pods.insert(key.clone(), Arc::clone(&object));
            }
            self.objects.insert(key.clone(), object);
        }
        previous
    }

    /// Sets or (with `None`) removes the threshold of one number; answers what it was.
    pub(crate) fn set_threshold(&mut self, workload_uid: &str, number: &str, threshold: Option<u64>) -> Option<u64> {
        let state = self.rollouts.entry(workload_uid.to_owned()).or_default();
        let previous = match threshold {
            Some(threshold) => state.thresholds.insert(number.to_owned(), threshold),
            None => state.thresholds.remove(number),
        };
        self.forget_if_empty(workload_uid);
        previous
    }

    /// Sets or (with `None`) removes the grant of one node; answers what it was.
    pub(crate) fn set_grant(&mut self, workload_uid: &str, node: &str, number: Option<&str>) -> Option<String> {
        let state = self.rollouts.entry(workload_uid.to_owned()).or_default();
        let previous = match number {
            Some(number) => state.grants.insert(node.to_owned(), number.to_owned()),
            None => state.grants.remove(node),
        };
        self.forget_if_empty(workload_uid);
        previous
    }

    fn forget_if_empty(&mut self, workload_uid: &str) {
        if self.rollouts.get(workload_uid) == Some(&RolloutState::default()) {
            self.rollouts.remove(workload_uid);
        }
    }

    /// Replaces the rollout facts of one workload; an empty state removes the entry.
    pub(crate) fn set_rollout(&mut self, workload_uid: &str, state: RolloutState) -> RolloutState {
        let previous = self.rollouts.remove(workload_uid).unwrap_or_default();
        if state != RolloutState::default() {
            self.rollouts.insert(workload_uid.to_owned(), state);
        }
        previous
    }
}

fn take(map: &mut HashMap<String, BTreeMap<ObjectKey, Arc<Object>>>, name: &str, key: &ObjectKey) {
    if let Some(rows) = map.get_mut(name) {
        rows.remove(key);
        if rows.is_empty() {
            map.remove(name);
        }
    }
}

/// `spec.nodeName` of a Pod; empty for one that has no place yet.
fn place(pod: &Object) -> &str {
    pod.text("/spec/nodeName")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(index: &mut Index, mut object: Object, version: u64) {
        object.set_resource_version(version);
        index.set(&object.key(), Some(Arc::new(object)));
    }

    #[test]
    fn events_are_known_by_their_age() {
        let mut index = Index::default();
        let event = |name: &str| Object::empty(&kind::EVENT, "shop", name);
        let oldest = |index: &Index| index.event_oldest("shop").map(|key| key.name);
        assert_eq!((index.events_count("shop"), oldest(&index)), (0, None));
        set(&mut index, event("a"), 1);
        set(&mut index, event("b"), 2);
        set(&mut index, Object::empty(&kind::EVENT, "other", "c"), 3);
        assert_eq!((index.events_count("shop"), oldest(&index)), (2, Some("a".to_owned())));
        set(&mut index, event("a"), 4);
        assert_eq!((index.events_count("shop"), oldest(&index)), (2, Some("b".to_owned())), "it happened again");
        index.set(&ObjectKey::of(&kind::EVENT, "shop", "b"), None);
        assert_eq!((index.events_count("shop"), oldest(&index)), (1, Some("a".to_owned())));
        index.set(&ObjectKey::of(&kind::EVENT, "shop", "a"), None);
        assert_eq!((index.events_count("shop"), oldest(&index)), (0, None));
    }

    #[test]
    fn a_pod_waits_until_it_has_a_place() {
        let mut index = Index::default();
        let pod = |node: Option<&str>| {
            let mut pod = Object::empty(&kind::POD, "shop", "web");
            pod.value_mut()["spec"] = node.map_or(json!({}), |node| json!({"nodeName": node}));
            pod
        };
        set(&mut index, pod(None), 1);
        set(&mut index, Object::empty(&kind::CONFIG_MAP, "shop", "web"), 2);
        assert_eq!((index.pods_unbound().count(), index.pods_on("a").count()), (1, 0));
        set(&mut index, pod(Some("a")), 3);
        assert_eq!((index.pods_unbound().count(), index.pods_on("a").count()), (0, 1));
    }
}
