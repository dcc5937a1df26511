//! Which items belong in which channel: a pure function of the current objects, kept up to date by what an event touches.
//!
//! A *root* is an object that brings items into channels: a DaemonSet into the fleets it could select, a bound Pod, a Node, a
//! reverted Override, a workload with grants into device channels. An item is in a channel while at least one root brings it
//! there. [`Publication::full`] and any sequence of [`Publication::touch`] end in the same state. Owns no log and no CRDT:
//! the store writes what a [`Publication`] wants. Start at [`brought_by`], then [`content::of`].

pub(crate) mod content;
mod refs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use flotilla_manifests::derive;
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};

use crate::admission::is_daemon_pod;
use crate::store::{Change, Event, Index};

/// Label of a Node that names its fleet; set by the hub alone.
pub(crate) const FLEET_LABEL: &str = "flotilla.dev/fleet";
/// Fleet of a Node that names none.
pub(crate) const FLEET_DEFAULT: &str = "default";

/// An audience, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Channel {
    Fleet(String),
    Device(String),
}

impl fmt::Display for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet(name) => write!(formatter, "fleet/{name}"),
            Self::Device(name) => write!(formatter, "device/{name}"),
        }
    }
}

/// One thing in a channel, by what it is made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Item {
    /// The manifest of this object; in no channel while the object does not exist.
    Document(ObjectKey),
    /// By the Pod's key.
    Placement(ObjectKey),
    /// By the workload's uid.
    Grant(String),
    Secret(ObjectKey),
    /// By the Pod's uid.
    Evict(String),
    /// By the override's id.
    Revert(String),
}

impl fmt::Display for Item {
    /// What names the item's source in the store: stable over releases.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document(key) => write!(formatter, "document {key}"),
            Self::Placement(key) => write!(formatter, "placement {key}"),
            Self::Grant(uid) => write!(formatter, "grant {uid}"),
            Self::Secret(key) => write!(formatter, "secret {key}"),
            Self::Evict(uid) => write!(formatter, "evict {uid}"),
            Self::Revert(id) => write!(formatter, "revert {id}"),
        }
    }
}

/// What stands in which channel on whose account.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    brought: HashMap<ObjectKey, BTreeSet<(Channel, Item)>>,
    /// How many roots bring an item into a channel.
    standing: HashMap<Item, BTreeMap<Channel, usize>>,
    /// Roots brought since the last [`Publication::settle`].
    unsettled: BTreeSet<ObjectKey>,
}

/// What a write changed of rollouts.
#[derive(Debug, Default)]
pub(crate) struct RolloutsTouched {
    /// Workloads whose thresholds or grants are others.
    pub(crate) workloads: BTreeSet<String>,
    /// Of them, the nodes whose grant is another: a workload may have one for each device.
    pub(crate) grants: BTreeSet<(String, String)>,
}

/// Places to look at again: in each, the content now wanted is to be compared with what is there.
pub(crate) type Touched = BTreeSet<(Channel, Item)>;

impl Publication {
    /// From nothing: everything these objects want.
    pub(crate) fn full(index: &Index) -> Self {
        let mut publication = Self::default();
        for object in index.objects() {
            publication.bring(index, &object.key(), &mut Touched::new());
        }
        publication.settle();
        publication
    }

    /// What was taken in is committed.
    pub(crate) fn settle(&mut self) {
        self.unsettled.clear();
    }

    /// What was taken in was undone, wholly or in part: `index` is as it is again.
    pub(crate) fn restore(&mut self, index: &Index) {
        for root in self.unsettled.clone() {
            self.bring(index, &root, &mut Touched::new());
        }
    }

    /// Every place that is wanted.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (&Channel, &Item)> {
        self.standing.iter().flat_map(|(item, channels)| channels.keys().map(move |channel| (channel, item)))
    }

    pub(crate) fn wants(&self, channel: &Channel, item: &Item) -> bool {
        self.standing.get(item).is_some_and(|channels| channels.contains_key(channel))
    }

    /// Takes events and changes of rollouts in, in order, `index` standing after the last of them. Answers the places to look at.
    pub(crate) fn touch(&mut self, index: &Index, events: &[Event], rollouts: &RolloutsTouched) -> Touched {
        let mut roots = BTreeSet::new();
        let mut touched = Touched::new();
        for event in events.iter().filter(|event| matters(event)) {
            self.roots_of(index, event, &mut roots);
            let item = match event.key.kind {
                kind if kind == &kind::SECRET => Item::Secret(event.key.clone()),
                _ => Item::Document(event.key.clone()),
            };
            self.everywhere(&item, &mut touched);
            if event.key.kind == &kind::POD {
                self.everywhere(&Item::Placement(event.key.clone()), &mut touched);
            }
        }
        for (uid, node) in &rollouts.grants {
            let place = (Channel::Device(node.clone()), Item::Grant(uid.clone()));
            if self.wants(&place.0, &place.1) {
                touched.insert(place);
            }
        }
        for uid in &rollouts.workloads {
            if let Some(workload) = index.by_uid(uid) {
                roots.insert(workload.key());
                self.everywhere(&Item::Document(workload.key()), &mut touched);
            }
        }
        for root in roots {
            self.bring(index, &root, &mut touched);
        }
        touched
    }

    /// Every Secret of a device.
    pub(crate) fn secrets_at(&self, node: &str, touched: &mut Touched) {
        let device = Channel::Device(node.to_owned());
        let secrets = self
            .standing
            .iter()
            .filter(|(item, channels)| matches!(item, Item::Secret(_)) && channels.contains_key(&device));
        touched.extend(secrets.map(|(item, _)| (device.clone(), item.clone())));
    }

    fn everywhere(&self, item: &Item, touched: &mut Touched) {
        for channel in self.standing.get(item).into_iter().flat_map(BTreeMap::keys) {
            touched.insert((channel.clone(), item.clone()));
        }
    }

    /// Recomputes what one root brings, and counts the difference.
    fn bring(&mut self, index: &Index, root: &ObjectKey, touched: &mut Touched) {
        self.unsettled.insert(root.clone());
        let now = index.get(root).map(|object| brought_by(index, object)).unwrap_or_default();
        let before = self.brought.remove(root).unwrap_or_default();
        for (channel, item) in now.difference(&before) {
            let count = self.standing.entry(item.clone()).or_default().entry(channel.clone()).or_default();
            *count += 1;
            if *count == 1 {
                touched.insert((channel.clone(), item.clone()));
            }
        }
        for place @ (channel, item) in before.difference(&now) {
            let Some(channels) = self.standing.get_mut(item) else { continue };
            let Some(count) = channels.get_mut(channel) else { continue };
            *count -= 1;
            if *count == 0 {
                channels.remove(channel);
                touched.insert(place.clone());
            }
            if channels.is_empty() {
                self.standing.remove(item);
            }
        }
        if !now.is_empty() {
            self.brought.insert(root.clone(), now);
        }
    }

    /// The roots whose items may be others after this event.
    fn roots_of(&self, index: &Index, event: &Event, roots: &mut BTreeSet<ObjectKey>) {
        roots.insert(event.key.clone());
        let kind: KindRef = event.key.kind;
        if kind == &kind::NODE {
            let before = event.previous.as_deref();
            let after = (event.change != Change::Deleted).then_some(&*event.object);
            let daemon_sets = index.list(&kind::DAEMON_SET, None);
            roots.extend(daemon_sets.filter(|set| self.moves(set, before, after)).map(|set| set.key()));
            if before.map(fleet_of) != after.map(fleet_of) {
                roots.extend(index.pods_on(&event.key.name).map(|pod| pod.key()));
            }
        } else if kind == &kind::DEPLOYMENT || kind == &kind::REPLICA_SET {
            for child in index.owned_by(event.object.uid()) {
                roots.insert(child.key());
                roots.extend(index.owned_by(child.uid()).map(|pod| pod.key()));
            }
        }
    }

    /// Whether a Node's change can change the channels of a DaemonSet.
    fn moves(&self, daemon_set: &Object, before: Option<&Object>, after: Option<&Object>) -> bool {
        let may_stay = |node: Option<&Object>| node.is_some_and(|node| derive::selection(daemon_set, node).may_stay);
        let (was, is) = (may_stay(before), may_stay(after));
        if !was && !is {
            return false;
        }
        let place = |node: Option<&Object>| node.map(|node| Channel::Fleet(fleet_of(node).to_owned()));
        let settled = place(after).is_some_and(|fleet| self.wants(&fleet, &Item::Document(daemon_set.key())));
        let secrets = !refs::of_template(daemon_set).secrets.is_empty();
        let stays = was == is && place(before) == place(after);
        !(stays || is && !was && settled && !secrets)
    }
}

/// The fleet of a Node.
pub(crate) fn fleet_of(node: &Object) -> &str {
    node.label(FLEET_LABEL).filter(|fleet| !fleet.is_empty()).unwrap_or(FLEET_DEFAULT)
}

/// Whether an event can change any channel: status and bookkeeping cannot.
fn matters(event: &Event) -> bool {
    let shipped: [KindRef; 8] = [
        &kind::NODE,
        &kind::POD,
        &kind::CONFIG_MAP,
        &kind::SECRET,
        &kind::DAEMON_SET,
        &kind::DEPLOYMENT,
        &kind::REPLICA_SET,
        &kind::OVERRIDE,
    ];
    let Some(previous) = event.previous.as_deref().filter(|_| event.change == Change::Modified) else {
        return shipped.contains(&event.key.kind);
    };
    let object = &*event.object;
    let differs = |pointer: &str| previous.at(pointer) != object.at(pointer);
    shipped.contains(&event.key.kind)
        && (["/data", "/binaryData", "/stringData", "/type", "/immutable"].iter().any(|pointer| differs(pointer))
            || ["/metadata/labels", "/metadata/deletionTimestamp", "/metadata/ownerReferences"]
                .iter()
                .any(|pointer| differs(pointer))
            || content::differ_in_annotations(previous, object)
            || content::differ_in_spec(previous, object))
}

/// What one object brings into channels.
fn brought_by(index: &Index, root: &Object) -> BTreeSet<(Channel, Item)> {
    let mut places = BTreeSet::new();
    let kind = root.kind();
    if kind == &kind::NODE {
        places.insert((Channel::Device(root.name().to_owned()), Item::Document(root.key())));
    } else if kind == &kind::POD {
        pod(index, root, &mut places);
    } else if kind == &kind::OVERRIDE {
        if root.deletion_timestamp().is_some() {
            let device = Channel::Device(root.text("/spec/nodeName").to_owned());
            places.insert((device, Item::Revert(content::override_id(root).to_owned())));
        }
    } else if [&kind::DAEMON_SET, &kind::DEPLOYMENT, &kind::REPLICA_SET].contains(&kind)
        && root.deletion_timestamp().is_none()
    {
        if kind == &kind::DAEMON_SET {
            daemon_set(index, root, &mut places);
        }
        let granted = index.rollout_at(root.uid()).into_iter().flat_map(|state| state.grants.keys());
        for node in granted.filter(|node| node_exists(index, node)) {
            places.insert((Channel::Device(node.clone()), Item::Grant(root.uid().to_owned())));
        }
    }
    places
}

fn daemon_set(index: &Index, root: &Object, places: &mut BTreeSet<(Channel, Item)>) {
    let refs = refs::of_template(root);
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    for node in index.list(&kind::NODE, None) {
        if refs.secrets.is_empty() && reached.contains(fleet_of(node)) {
            continue;
        }
        if derive::selection(root, node).may_stay {
            reached.insert(fleet_of(node));
            let device = Channel::Device(node.name().to_owned());
            places.extend(refs.secrets.iter().map(|secret| (device.clone(), Item::Secret(secret.clone()))));
        }
    }
    for fleet in reached {
        let channel = Channel::Fleet(fleet.to_owned());
        places.insert((channel.clone(), Item::Document(root.key())));
        places.extend(refs.config_maps.iter().map(|map| (channel.clone(), Item::Document(map.clone()))));
    }
}

fn is_owned_by_what_stays(index: &Index, pod: &Object) -> bool {
    let owner = pod.controller().and_then(|owner| index.by_uid(&owner.uid));
    owner.is_some_and(|owner| owner.deletion_timestamp().is_none())
}

fn pod(index: &Index, root: &Object, places: &mut BTreeSet<(Channel, Item)>) {
    let node = root.text("/spec/nodeName");
    if node.is_empty() || !node_exists(index, node) {
        return;
    }
    let device = Channel::Device(node.to_owned());
    if root.deletion_timestamp().is_some() {
        // What a DaemonSet made ends with it. A device that is told of the Pod first would make another in its place.
        if !is_daemon_pod(root) || is_owned_by_what_stays(index, root) {
            places.insert((device, Item::Evict(root.uid().to_owned())));
        }
        return;
    }
    let mut refs = refs::of_pod(root);
    let audience = if is_daemon_pod(root) {
        // The fleet has the DaemonSet's references; this device may still run an older template with others.
        let fleet = index.get(&ObjectKey::of(&kind::NODE, "", node)).map_or(FLEET_DEFAULT, |node| fleet_of(node));
        Channel::Fleet(fleet.to_owned())
    } else {
        match content::workload_of(index, root) {
            Some(workload) => {
                refs.extend(refs::of_template(workload));
                places.insert((device.clone(), Item::Document(workload.key())));
                places.insert((device.clone(), Item::Placement(root.key())));
            }
            None if root.controller().is_none() => {
                places.insert((device.clone(), Item::Document(root.key())));
            }
            None => return,
        }
        device.clone()
    };
    places.extend(refs.config_maps.into_iter().map(|map| (audience.clone(), Item::Document(map))));
    places.extend(refs.secrets.into_iter().map(|secret| (device.clone(), Item::Secret(secret))));
}

fn node_exists(index: &Index, node: &str) -> bool {
    index.get(&ObjectKey::of(&kind::NODE, "", node)).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
