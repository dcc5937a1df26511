//! The objects a device's local API shows, and the history of their changes.
//!
//! Owns resource versions and watch history of one agent. Refuses to decide what is shown: [`LocalView::replace`] is given all of
//! it, level-triggered, and derives the events. Start reading there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::{Object, ObjectKey};
use serde_json::Value;

/// Changes kept for watchers that come late, and for lists in pages.
const HISTORY_LEN_MAX: usize = 2_000;
/// What the kept changes hold beside the present objects, as JSON. The newest change is kept whatever its size.
const HISTORY_BYTES_MAX: usize = 512 * 1024;
/// A change without its objects, about.
const CHANGE_BYTES: usize = 128;

/// One change of one object, at one resource version.
#[derive(Debug, Clone)]
pub struct Change {
    pub version: u64,
    pub kind: KindRef,
    pub namespace: String,
    pub previous: Option<Arc<Object>>,
    pub current: Option<Arc<Object>>,
}

impl Change {
    /// The object it is about.
    pub fn key(&self) -> ObjectKey {
        let object = self.current.as_ref().or(self.previous.as_ref());
        let name = object.map_or("", |object| object.name());
        ObjectKey::of(self.kind, self.namespace.as_str(), name)
    }
}

/// Current objects with the newest changes.
#[derive(Debug)]
pub struct LocalView {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    history: VecDeque<Arc<Change>>,
    /// The sum of [`kept_bytes`] over the history.
    history_bytes: usize,
    /// Version of the newest change. Never repeats: the owner starts each life above all versions of the one before.
    version: u64,
    /// Watches from below this version are too old.
    floor: u64,
}

impl LocalView {
    /// An empty view whose versions start above `version`.
    pub fn starting_above(version: u64) -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), history_bytes: 0, version, floor: version }
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn object(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    /// Objects of a kind in key order.
    pub fn list(&self, kind: KindRef, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let of_kind = self.objects.range(ObjectKey::of(kind, "", "")..).take_while(|(key, _)| key.kind == kind);
        of_kind
            .filter(|(key, _)| namespace.is_none_or(|name| key.namespace == name))
            .map(|(_, one)| one.clone())
            .collect()
    }

    /// Changes after `from`; `None` when history does not reach back that far, or `from` is of another server.
    pub fn since(&self, from: u64) -> Option<Vec<Arc<Change>>> {
        if from < self.floor || from > self.version {
            return None;
        }
        let start = self.history.partition_point(|change| change.version <= from);
        Some(self.history.range(start..).cloned().collect())
    }

    /// Takes in what is the case now and returns what that changed, deletions first. An object whose uid changed, or that is
    /// named in `renewed`, is deleted and made anew: that is what `kubectl delete` waits for.
    pub fn replace(&mut self, now: BTreeMap<ObjectKey, Arc<Object>>, renewed: &[ObjectKey]) -> Vec<Arc<Change>> {
        let before = std::mem::take(&mut self.objects);
        let is_one = |old: &Arc<Object>, new: &Arc<Object>| Arc::ptr_eq(old, new) || old.uid() == new.uid();
        let mut changes = Vec::new();
        for (key, previous) in &before {
            let stays = now.get(key).is_some_and(|object| is_one(previous, object)) && !renewed.contains(key);
            if !stays {
                changes.push(self.record(key, Some(previous.clone()), None));
            }
        }
        let taken = now.into_iter().filter_map(|(key, object)| {
            let previous = before.get(&key).filter(|old| is_one(old, &object) && !renewed.contains(&key));
            if let Some(old) = previous.filter(|old| Arc::ptr_eq(old, &object) || is_same(old, &object)) {
                return Some((key, old.clone()));
            }
            let change = self.record(&key, previous.cloned(), Some(Arc::unwrap_or_clone(object)));
            let current = change.current.clone();
            changes.push(change);
            Some((key, current?))
        });
        self.objects = taken.collect();
        changes
    }

    fn record(&mut self, key: &ObjectKey, previous: Option<Arc<Object>>, current: Option<Object>) -> Arc<Change> {
        self.version += 1;
        let current = current.map(|mut object| {
            object.set_resource_version(self.version);
            Arc::new(object)
        });
        let change = Arc::new(Change {
            version: self.version,
            kind: key.kind,
            namespace: key.namespace.clone(),
            previous,
            current,
        });
        self.history_bytes += kept_bytes(&change);
        self.history.push_back(change.clone());
        while self.history.len() > 1 && (self.history.len() > HISTORY_LEN_MAX || self.history_bytes > HISTORY_BYTES_MAX)
        {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes = self.history_bytes.saturating_sub(kept_bytes(&oldest));
            self.floor = oldest.version;
        }
        change
    }
}

/// Whether nothing but their resource versions tells two objects from each other.
fn is_same(one: &Object, other: &Object) -> bool {
    let fields = |of: &Object| of.value().as_object().map(serde_json::Map::len);
    let same = |name: &str| {
        if name != "metadata" {
            return one.value().get(name) == other.value().get(name);
        }
        let metadata = |of: &Object| of.value().get(name).and_then(Value::as_object).map(|map| map.len());
        let versioned = |of: &Object| of.value()[name].get("resourceVersion").is_some();
        let length = |of: &Object| metadata(of).map(|length| length - usize::from(versioned(of)));
        let mut entries = one.value()[name].as_object().into_iter().flatten();
        length(one) == length(other)
            && entries.all(|(field, value)| field == "resourceVersion" || other.value()[name].get(field) == Some(value))
    };
    fields(one) == fields(other) && one.value().as_object().is_some_and(|all| all.keys().all(|name| same(name)))
}

/// What a change holds that nothing else does: the object as it was before. What it became is shown now, or is what the next
/// change of the object holds.
fn kept_bytes(change: &Change) -> usize {
    CHANGE_BYTES + change.previous.as_ref().map_or(0, |object| json_bytes(object.value()))
}

/// The length of a value as JSON, about: escapes are not counted.
fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null => 4,
        Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|item| json_bytes(item) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + 4 + json_bytes(value)).sum::<usize>() + 2,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, phase: &str) -> (ObjectKey, Arc<Object>) {
        let object = Object::parse(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": uid}, "status": {"phase": phase}}),
        );
        (ObjectKey::of(&kind::POD, "default", name), Arc::new(object.unwrap()))
    }

    #[test]
    fn a_replacement_tells_each_change_once_and_in_order() {
        let mut view = LocalView::starting_above(100);
        view.replace(BTreeMap::from([pod("a", "1", "Pending"), pod("b", "2", "Running")]), &[]);
        assert_eq!(view.version(), 102);
        assert!(view.replace(BTreeMap::from([pod("a", "1", "Pending"), pod("b", "2", "Running")]), &[]).is_empty());

        let changes = view.replace(BTreeMap::from([pod("a", "9", "Running")]), &[]);
        let told: Vec<(u64, bool, bool)> =
            changes.iter().map(|one| (one.version, one.previous.is_some(), one.current.is_some())).collect();
        assert_eq!(told, [(103, true, false), (104, true, false), (105, false, true)]);
        assert_eq!(view.since(102).unwrap().len(), 3);
        assert!(view.since(99).is_none(), "before this life");
        assert!(view.since(106).is_none(), "a version nobody has given out");
    }

    #[test]
    fn a_renewed_object_is_deleted_and_made_anew() {
        let mut view = LocalView::starting_above(0);
        let (key, object) = pod("a", "1", "Running");
        view.replace(BTreeMap::from([(key.clone(), object.clone())]), &[]);
        let changes = view.replace(BTreeMap::from([(key.clone(), object)]), &[key]);
        assert_eq!(changes.len(), 2);
        assert!(changes[0].current.is_none() && changes[1].previous.is_none());
    }

    #[test]
    fn large_objects_shorten_the_history() {
        let mut view = LocalView::starting_above(0);
        let text = |round: usize| format!("{round:0>20000}");
        for round in 0..60 {
            view.replace(BTreeMap::from([pod("a", "1", &text(round))]), &[]);
        }
        assert!(view.since(0).is_none() && view.history.len() < 30, "{}", view.history.len());
        assert!(view.history_bytes <= HISTORY_BYTES_MAX);
        assert_eq!(view.history.iter().map(|change| kept_bytes(change)).sum::<usize>(), view.history_bytes);
        let huge = "x".repeat(HISTORY_BYTES_MAX);
        view.replace(BTreeMap::from([pod("a", "1", &huge)]), &[]);
        view.replace(BTreeMap::from([pod("a", "1", "small")]), &[]);
        assert_eq!(view.history.len(), 1, "the newest change is kept");
        assert_eq!(view.since(view.version() - 1).unwrap().len(), 1);
    }

    #[test]
    fn history_is_bounded() {
        let mut view = LocalView::starting_above(0);
        // Small enough that the count is the bound.
        let (key, object) = (ObjectKey::of(&kind::POD, "", "a"), Arc::new(Object::empty(&kind::POD, "", "a")));
        for _ in 0..=HISTORY_LEN_MAX {
            view.replace(BTreeMap::from([(key.clone(), object.clone())]), &[]);
            view.replace(BTreeMap::new(), &[]);
        }
        assert!(view.since(view.version() - HISTORY_LEN_MAX as u64 - 1).is_none());
        assert_eq!(view.since(view.version() - HISTORY_LEN_MAX as u64).unwrap().len(), HISTORY_LEN_MAX);
    }
}
