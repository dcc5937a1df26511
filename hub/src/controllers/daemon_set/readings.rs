//! What rows say to the plans of one DaemonSet, read once for each row that is new.
//!
//! A plan follows each report of a device, and looks at the whole fleet, of which hardly a row is another than at the plan before.
//! Owns nothing that the rows do not say: a plan from kept readings is the plan from none. Start at [`Readings::renew`].

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use flotilla_manifests::derive::{DaemonPlacing, Selection};
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout::{RolloutNumber, number_of};
use flotilla_manifests::time::Timestamp;

use crate::controllers::pods;
use crate::store::Surroundings;

/// What the rows around one DaemonSet said when they were last looked at.
#[derive(Debug, Default)]
pub struct Readings {
    /// The DaemonSet by whose spec they were read.
    set: Option<Arc<Object>>,
    pods: Rows<Occupant>,
    nodes: Rows<Ground>,
}

/// What a Pod's row says.
#[derive(Debug)]
pub(super) struct Occupant {
    pub(super) node: String,
    pub(super) ending: bool,
    pub(super) finished: bool,
    pub(super) ready: bool,
    pub(super) available_at: Option<Timestamp>,
    pub(super) number: Option<RolloutNumber>,
}

/// What a Node's row says.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) selection: Selection,
}

impl Occupant {
    fn of(pod: &Object, min_ready_seconds: i64) -> Self {
        Self {
            node: pod.text("/spec/nodeName").to_owned(),
            ending: pod.deletion_timestamp().is_some(),
            finished: pods::is_finished(pod),
            ready: pods::is_ready(pod),
            available_at: pods::available_at(pod, min_ready_seconds),
            number: number_of(pod),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        !self.ending && !self.finished
    }

    pub(super) fn is_available(&self, now: Timestamp) -> bool {
        self.available_at.is_some_and(|at| at <= now)
    }
}

impl Readings {
    /// Reads what is new around the DaemonSet, and forgets what is gone.
    pub(super) fn renew(&mut self, surroundings: &Surroundings, set: &Arc<Object>, min_ready_seconds: i64) {
        let same = |kept: &Arc<Object>| Arc::ptr_eq(kept, set) || kept.spec() == set.spec();
        if !self.set.as_ref().is_some_and(same) {
            *self = Self::default();
        }
        self.set = Some(Arc::clone(set));
        let placing = DaemonPlacing::of(set);
        let pods = surroundings.owned.iter().filter(|object| object.kind() == &kind::POD);
        self.pods.renew(pods, |pod| Occupant::of(pod, min_ready_seconds));
        self.nodes.renew(surroundings.nodes.iter(), |node| Ground {
            name: node.name().to_owned(),
            uid: node.uid().to_owned(),
            selection: placing.selection(node),
        });
    }

    /// Pods that the DaemonSet owns, in order of their keys.
    pub(super) fn pods<'a>(&'a self, surroundings: &'a Surroundings) -> impl Iterator<Item = &'a Occupant> + 'a {
        surroundings.owned.iter().filter_map(|object| self.pods.get(object))
    }

    /// Every Node, in order of names.
    pub(super) fn nodes<'a>(&'a self, surroundings: &'a Surroundings) -> impl Iterator<Item = &'a Ground> + 'a {
        surroundings.nodes.iter().filter_map(|node| self.nodes.get(node))
    }
}

/// What rows say, by the address of the row.
#[derive(Debug)]
struct Rows<T> {
    read: HashMap<usize, Row<T>>,
    /// Counts [`Rows::renew`].
    round: u64,
}

#[derive(Debug)]
struct Row<T> {
    /// Keeps the address from any other row, and not what stands there: a DaemonSet may rest for long.
    _address: Weak<Object>,
    says: T,
    /// The last round in which the row was there.
    round: u64,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { read: HashMap::new(), round: 0 }
    }
}

impl<T> Rows<T> {
    fn renew<'a>(&mut self, rows: impl Iterator<Item = &'a Arc<Object>>, read: impl Fn(&Object) -> T) {
        self.round += 1;
        let round = self.round;
        let mut count = 0;
        for object in rows {
            count += 1;
            let new = || Row { _address: Arc::downgrade(object), says: read(object), round };
            self.read.entry(Arc::as_ptr(object).addr()).or_insert_with(new).round = round;
        }
        if self.read.len() > count {
            self.read.retain(|_, row| row.round == round);
        }
    }

    fn get(&self, object: &Arc<Object>) -> Option<&T> {
        self.read.get(&Arc::as_ptr(object).addr()).map(|row| &row.says)
    }
}
