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
    by_owner: HashMap<String, BTreeSet<ObjectKey>>,
    /// Pods by `spec.nodeName`; those that have no place yet by none.
    by_node: HashMap<String, BTreeSet<ObjectKey>>,
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
pub(crate) struct Surroundings {
    objects: Vec<Arc<Object>>,
    rollout: Option<(String, RolloutState)>,
}

impl Index {
    /// What a plan of a DaemonSet looks at, taken out in little time: whoever makes the plan from [`Index::of`] it holds up no commit.
    pub(crate) fn around(&self, workload: &ObjectKey) -> Surroundings {
        let Some(found) = self.get(workload) else { return Surroundings::default() };
        let uid = found.uid();
        let nodes = self.list(&kind::NODE, None);
        let objects = [found].into_iter().chain(self.owned_by(uid)).chain(nodes).cloned().collect();
        Surroundings { objects, rollout: Some((uid.to_owned(), self.rollout(uid))) }
    }

    /// These alone.
    pub(crate) fn of(surroundings: Surroundings) -> Self {
        let mut index = Self::default();
        for object in surroundings.objects {
            index.set(&object.key(), Some(object));
        }
        if let Some((workload, state)) = surroundings.rollout {
            index.set_rollout(&workload, state);
        }
        index
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.objects.get(self.by_uid.get(uid)?)
    }

    /// Objects of one kind in key order, of one namespace or of all.
    pub fn list<'a>(&'a self, kind: KindRef, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let first = ObjectKey::of(kind, namespace.unwrap_or(""), "");
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind && namespace.is_none_or(|name| key.namespace == name))
            .map(|(_, object)| object)
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
        self.by_owner.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Pods bound to this node.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.by_node.get(node).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Pods without a place.
    pub fn pods_unbound(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.pods_on("")
    }

    /// Thresholds and grants of a workload; empty when it has none.
    pub fn rollout(&self, workload_uid: &str) -> RolloutState {
        self.rollouts.get(workload_uid).cloned().unwrap_or_default()
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
            if previous.kind() == &kind::POD {
                take(&mut self.by_node, place(previous), key);
            }
        }
        if let Some(object) = object {
            self.by_uid.insert(object.uid().to_owned(), key.clone());
            for owner in object.owner_references() {
                self.by_owner.entry(owner.uid).or_default().insert(key.clone());
            }
            if object.kind() == &kind::POD {
                self.by_node.entry(place(&object).to_owned()).or_default().insert(key.clone());
            }
            self.objects.insert(key.clone(), object);
        }
        previous
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

fn take(map: &mut HashMap<String, BTreeSet<ObjectKey>>, name: &str, key: &ObjectKey) {
    if let Some(set) = map.get_mut(name) {
        set.remove(key);
        if set.is_empty() {
            map.remove(name);
        }
    }
}

/// `spec.nodeName` of a Pod; empty for one that has no place yet.
fn place(pod: &Object) -> &str {
    pod.text("/spec/nodeName")
}
