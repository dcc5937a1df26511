//! Controllers: from what is wished and what is observed to the writes that bring them together.
//!
//! Each is a pure function `plan(view, ...) -> Plan`: the same full plan on every trigger, no handle, no clock. The
//! [`runner`](crate::runner) carries plans out and comes back when something changes. Refuses to talk to devices: what they are
//! to do is written to the store, and published from there. Start at [`View`] and [`Plan`], then [`daemon_set`].

pub mod daemon_set;
pub mod deployment;
pub mod events;
pub mod garbage;
pub mod namespace;
pub mod node;
pub mod pods;
pub mod replica_set;

use std::collections::BTreeMap;

use flotilla_manifests::admission::Propagation;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::RolloutNumber;
use flotilla_manifests::time::Timestamp;

use crate::fleet::contact::Contact;
use crate::store::Index;
use events::Note;

/// A device not heard for this long is silent: its Node's `Ready` becomes `Unknown`.
pub const SILENCE_MS_MAX: u64 = 40_000;

/// What every plan is made from.
#[derive(Debug)]
pub struct View<'a, I = Index> {
    /// The objects that it looks at.
    pub index: &'a I,
    /// Contact of each enrolled device, by node name.
    pub contacts: &'a BTreeMap<String, Contact>,
    /// When this hub started: silence counts from the later of this and the last contact.
    pub started: Timestamp,
    pub now: Timestamp,
}

// Derived, they would ask the same of the objects.
impl<I> Clone for View<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for View<'_, I> {}

impl<I> View<'_, I> {
    /// Since when a device has not been heard; `None` while it is in contact.
    pub fn unheard_since(&self, node: &str) -> Option<Timestamp> {
        self.unheard(self.contacts.get(node))
    }

    fn unheard(&self, contact: Option<&Contact>) -> Option<Timestamp> {
        match contact {
            Some(Contact::Connected { .. }) => None,
            Some(Contact::Silent { last }) => Some((*last).max(self.started)),
            None => Some(self.started),
        }
    }

    /// When a device that is not heard counts, or began to count, as silent.
    pub fn silent_at(&self, node: &str) -> Option<Timestamp> {
        self.silent_by(self.contacts.get(node))
    }

    /// The same of the device that has this contact.
    pub fn silent_by(&self, contact: Option<&Contact>) -> Option<Timestamp> {
        self.unheard(contact).map(|since| Timestamp(since.0.saturating_add(SILENCE_MS_MAX)))
    }

    /// Whether nothing is known of a device any more: neither that it works nor that it does not.
    pub fn is_silent(&self, node: &str) -> bool {
        self.silent_at(node).is_some_and(|at| at <= self.now)
    }
}

/// What is to be done, completely; the runner has no choice left.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Carried out in this order, all or none; but of very many that stand alone ([`Write::stands_alone`]) some come after the others.
    pub writes: Vec<Write>,
    /// When the answer would change by time alone.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Asks to be woken at `at`, or earlier.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    Create(Object),
    /// Compare-and-swap: refused when the stored object no longer has this one's resource version.
    Replace(Object),
    Delete(Deletion),
    /// The row goes, whatever its finalizers say.
    Remove {
        key: ObjectKey,
        uid: String,
    },
    /// Which devices may run a number of a workload; `None` forgets the number.
    Threshold {
        workload_uid: String,
        number: RolloutNumber,
        threshold: Option<u64>,
    },
    /// Lets one device move to a number; `None` takes the leave away.
    Grant {
        workload_uid: String,
        node: String,
        number: Option<RolloutNumber>,
    },
    Event(Note),
}

impl Write {
    /// Whether nothing else in its plan follows from it, and it can come after all the rest: whoever plans again after half of them sees
    /// which are left.
    pub fn stands_alone(&self) -> bool {
        match self {
            Self::Grant { .. } => true,
            Self::Remove { key, .. } => key.kind == &flotilla_manifests::kind::EVENT,
            _ => false,
        }
    }
}

/// A deletion as a user would ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub key: ObjectKey,
    /// Only this one, not another of its name.
    pub uid: String,
    pub grace_seconds: Option<i64>,
    pub propagation: Propagation,
}

impl Deletion {
    pub fn of(object: &Object) -> Self {
        Self {
            key: object.key(),
            uid: object.uid().to_owned(),
            grace_seconds: None,
            propagation: Propagation::Background,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod fixture;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod world;
