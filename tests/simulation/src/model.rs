//! What people were promised: the newest answered write of each object and of each technician's change, and what may have happened to
//! those that were never answered.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::object::{Object, ObjectKey};

/// Annotation and environment variable that tell one write from the next: numbers only grow.
pub(crate) const MARK: &str = "mark";

/// A marked object, or none.
pub(crate) type Mark = Option<u64>;

/// One thing that people write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// As last answered.
    pub(crate) sure: Mark,
    /// Asked for since and not answered: each may have happened or not.
    pub(crate) maybe: BTreeSet<Mark>,
}

impl Cell {
    pub(crate) fn asks(&mut self, mark: Mark) {
        self.maybe.insert(mark);
    }

    /// The write was answered: it and nothing before it holds.
    pub(crate) fn answered(&mut self, mark: Mark) {
        self.sure = mark;
        self.maybe.clear();
    }

    /// The server said no: it did not happen.
    pub(crate) fn refused(&mut self, mark: Mark) {
        if self.sure != mark {
            self.maybe.remove(&mark);
        }
    }

    pub(crate) fn allows(&self, mark: Mark) -> bool {
        self.sure == mark || self.maybe.contains(&mark)
    }
}

/// All that people were promised.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Objects at the hub.
    pub(crate) objects: BTreeMap<ObjectKey, Cell>,
    /// Technicians' changes: by device and object.
    pub(crate) overrides: BTreeMap<(usize, ObjectKey), Cell>,
    /// Of which life of an object the newest of them speaks, by its uid: a change ends with it.
    pub(crate) bases: BTreeMap<(usize, ObjectKey), String>,
    /// Every mark ever written into a workload, with the group it was for.
    pub(crate) ever: BTreeMap<String, String>,
    /// The hub was restored from a backup: what was answered since may be lost where no device holds it.
    pub(crate) restored: bool,
    /// When each object was last asked to be deleted, by the counter of marks.
    pub(crate) deleted: BTreeMap<ObjectKey, u64>,
    /// What a technician stopped at a device, until it is made again: by device and object.
    pub(crate) held: BTreeSet<(usize, ObjectKey)>,
    /// Pods that a technician told to begin anew: by device and uid.
    pub(crate) restarted: BTreeSet<(usize, String)>,
    /// Names under which a board joined in the place of another: the hub goes on listing that one's changes (docs/testing.md, known).
    pub(crate) replaced: BTreeSet<String>,
    /// A device came back with an old card: what was answered there since may be lost, until it has been told anew.
    pub(crate) rolled_back: BTreeSet<usize>,
    mark: u64,
}

impl Model {
    pub(crate) fn fresh_mark(&mut self) -> u64 {
        self.mark += 1;
        self.mark
    }

    /// Something that was asked for and not answered yet.
    pub(crate) fn unanswered(&self) -> Option<String> {
        let object = self.objects.iter().find(|(_, cell)| !cell.maybe.is_empty()).map(|(key, _)| key.to_string());
        let change = || self.overrides.iter().find(|(_, cell)| !cell.maybe.is_empty());
        object.or_else(|| change().map(|((device, key), _)| format!("a change of {key} at device {device}")))
    }

    pub(crate) fn object(&mut self, key: &ObjectKey) -> &mut Cell {
        self.objects.entry(key.clone()).or_default()
    }

    /// Asked for a change of an object that is there with this uid.
    pub(crate) fn asks_change(&mut self, device: usize, key: &ObjectKey, uid: &str, mark: Mark) {
        self.bases.insert((device, key.clone()), uid.to_owned());
        self.change(device, key).asks(mark);
    }

    pub(crate) fn change(&mut self, device: usize, key: &ObjectKey) -> &mut Cell {
        self.overrides.entry((device, key.clone())).or_default()
    }
}

/// The mark of an object that is there and not going.
pub(crate) fn mark_of(object: Option<&Object>) -> Mark {
    let object = object.filter(|object| object.deletion_timestamp().is_none())?;
    object.annotation(MARK)?.parse().ok()
}
