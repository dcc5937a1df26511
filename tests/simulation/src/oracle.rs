//! What must hold, looked at after every step and every moment: the promises of DESIGN.md as far as a fleet can break them.
//!
//! | oracle | promise |
//! |---|---|
//! | `acknowledged` | 3: an answered write is there, in every later life of the hub |
//! | `override` | 3: a technician's answered change is in force at the device until its base is deleted |
//! | `durable` | 3: what a device acknowledged is there after any crash |
//! | `restart` | 2: nothing that runs is stopped unless something new was wished since it started |
//! | `twice` | 2: nothing is started that runs |
//! | `meant` | 6: a device runs what selects it, and only what somebody wished for |
//! | `told` | 1: whatever a device has learned, its loop was told of |
//! | `watch` | the API's: nothing lost, repeated or out of order |
//! | `bounded` | 7 |
//! | `converge` | 4, once faults have ended |
//! | `goes on` | 3 and 4, for what is asked for then |

mod overrides;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use flotilla_disk::Disk;
use flotilla_hub::{Retention, Store};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::Backend as _;
use flotilla_sync::channel::{ChannelName, Item, ItemKind, Positions, Version};

use crate::device::Node;
use crate::hub::HubLife;
use crate::model::mark_of;
use crate::people::{SharedModel, Watcher};
use crate::runtime::Deed;
use crate::trace::Trace;

use overrides::{backend_marks, holds, overrides_agree};

/// What may wait at a device for the hub: its bound of rows that last, and a status for each pod and the node.
const OUTBOX_MAX: usize = 1024 + 256;

/// A container is started within this time after what it was started for. Milliseconds.
const STARTING_MS: u64 = 3_000;
/// A new wish is heeded within this time. Milliseconds.
const UNDER_WAY_MS: u64 = 30_000;

/// A device that has had a session and nothing to tell for so long knows what it was told. Milliseconds.
const CALM_MS: u64 = 60_000;

/// Events of one commit, which may stand beyond the bound until the next. Many.
const EVENTS_OF_A_COMMIT: usize = 2_000;

/// All oracles and what they remember.
#[derive(Debug)]
pub(crate) struct Oracles {
    trace: Trace,
    model: SharedModel,
    devices: Vec<Seen>,
    /// The hub has not finished learning since it was restored.
    learning: bool,
    /// What each device held of the hub's newer life when the hub was put back to an older one: the newest mark of each object.
    held: BTreeMap<usize, BTreeMap<ObjectKey, u64>>,
}

/// What was seen of one device.
#[derive(Debug, Default)]
struct Seen {
    /// How far the hub was told its logs are durable here, the furthest.
    acknowledged: Positions,
    wishes: Wishes,
    /// Since when it has had a session and nothing to tell, after its card was changed. Milliseconds.
    calm_ms: Option<u64>,
    /// When each container was started. Milliseconds.
    started_ms: BTreeMap<(String, String), u64>,
    /// Changed objects that are not shown, and since when. Milliseconds.
    hidden_ms: BTreeMap<ObjectKey, u64>,
    /// Its disk refused, or it was down, when it was last looked at, and when that was last so. Milliseconds.
    troubled: bool,
    troubled_ms: Option<u64>,
}

/// One item in force at a device, and its newest word as a number.
type Wish = (ChannelName, String, u64);

/// What is wished of one device, each as one number with the moment since when it has been that. Milliseconds.
#[derive(Debug, Default)]
struct Wishes {
    /// All of them.
    items: Vec<Wish>,
    /// What the device's loop was told of by then; nothing before the first look at a life of its agent.
    generation: Option<u64>,
    /// Since when those of its own channel are as they are: its changes, and what is placed on it. Milliseconds.
    own_ms: u64,
    /// Of each document of a fleet, by uid.
    documents: BTreeMap<String, u64>,
    /// Of each DaemonSet, by name.
    sets: BTreeMap<String, WishedSet>,
}

#[derive(Debug)]
struct WishedSet {
    uid: String,
    /// Another one whenever something else is wished.
    print: u64,
    since_ms: u64,
}

impl WishedSet {
    fn is_now(&mut self, print: u64, now: u64) {
        if self.print != print {
            (self.print, self.since_ms) = (print, now);
        }
    }
}

/// Of the document with this uid, as it is now; another one for each uid.
fn print_in(documents: &BTreeMap<String, u64>, uid: &str) -> u64 {
    let newest = documents.get(uid).copied().unwrap_or(0);
    uid.bytes().fold(1_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) ^ newest
}

impl Wishes {
    /// Since when what runs as this Pod is wished as it is.
    fn since_ms(&self, pod: &str) -> u64 {
        let set = pod.split_once('-').map_or(pod, |(set, _)| set);
        self.sets.get(set).map_or(0, |set| set.since_ms).max(self.own_ms)
    }
}

impl Oracles {
    pub(crate) fn new(trace: Trace, model: SharedModel, devices: usize) -> Self {
        Self {
            trace,
            model,
            devices: (0..devices).map(|_| Seen::default()).collect(),
            learning: false,
            held: BTreeMap::new(),
        }
    }

    /// The hub's disk is an old one now.
    pub(crate) fn hub_restored(&mut self) {
        self.learning = true;
        self.devices.iter_mut().for_each(|seen| seen.acknowledged.clear());
    }

    /// A device's disk is an old one now.
    pub(crate) fn card_changed(&mut self, index: usize) {
        self.held.remove(&index);
        if let Some(seen) = self.devices.get_mut(index) {
            *seen = Seen::default();
        }
    }

    /// The hub is about to be put back: what devices hold of what it forgets must come back.
    pub(crate) async fn note_what_devices_hold(&mut self, nodes: &[Node]) {
        self.held.clear();
        for (index, node) in nodes.iter().enumerate() {
            let Some(backend) = node.backend() else { continue };
            if self.model.lock().unwrap_or_else(PoisonError::into_inner).rolled_back.contains(&index) {
                continue;
            }
            let mut held = BTreeMap::new();
            for kind in [&kind::DAEMON_SET, &kind::DEPLOYMENT, &kind::CONFIG_MAP] {
                let Ok(listing) = backend.list(kind, None).await else { continue };
                held.extend(listing.items.iter().filter_map(|one| Some((one.key(), mark_of(Some(one))?))));
            }
            self.held.insert(index, held);
        }
    }

    /// Takes in what is wished of a device, as it knows it.
    pub(crate) async fn note_wishes(&mut self, index: usize, node: &Node) {
        let now = self.trace.now_ms();
        let (Some(seen), Some(replica), Some(backend)) = (self.devices.get_mut(index), node.replica(), node.backend())
        else {
            return;
        };
        let wishes = &mut seen.wishes;
        let items = replica.items(|channel, id, item| Some((channel.clone(), id.as_str().to_owned(), print_of(item))));
        let generation = replica.generation();
        let told = wishes.generation.replace(generation) != Some(generation);
        if items != wishes.items {
            if !told {
                let what = format!("{} holds something new, and its loop has not been told", node.name);
                self.trace.fail("told", what);
            }
            let own = |items: &[Wish]| -> Vec<Wish> {
                items.iter().filter(|(channel, ..)| matches!(channel, ChannelName::Device(_))).cloned().collect()
            };
            if own(&items) != own(&wishes.items) {
                wishes.own_ms = now;
            }
            let of_fleet = items.iter().filter(|(channel, ..)| matches!(channel, ChannelName::Fleet(_)));
            wishes.documents = of_fleet.map(|(_, id, print)| (id.clone(), *print)).collect();
            wishes.items = items;
        }
        let Ok(listing) = backend.list(&kind::DAEMON_SET, None).await else { return };
        let documents = std::mem::take(&mut wishes.documents);
        for (name, set) in &mut wishes.sets {
            // Nothing is shown before the first pass of an agent, and nothing after the last set has gone.
            let shown = listing.items.is_empty() || listing.items.iter().any(|one| one.name() == name);
            set.is_now(if shown { print_in(&documents, &set.uid) } else { 0 }, now);
        }
        for one in &listing.items {
            let print = print_in(&documents, one.uid());
            let fresh = || WishedSet { uid: one.uid().to_owned(), print, since_ms: now };
            let set = wishes.sets.entry(one.name().to_owned()).or_insert_with(fresh);
            one.uid().clone_into(&mut set.uid);
            set.is_now(print, now);
        }
        wishes.documents = documents;
    }

    /// A device whose card was changed, or beside which another board ran, may have lost what was answered there, and whatever it was told
    /// contradicts itself. Once it has been told anew it counts like any other. `true`: not yet.
    pub(crate) fn look_at_card(&mut self, index: usize, node: &Node, hub: Option<&HubLife>) -> bool {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if !model.rolled_back.contains(&index) {
            return false;
        }
        let now = self.trace.now_ms();
        let Some(seen) = self.devices.get_mut(index) else { return true };
        let told = !self.learning
            && hub.is_some_and(|hub| is_told(hub, node))
            && node.replica().is_some_and(|replica| replica.unreported() == 0);
        if !told {
            seen.calm_ms = None;
            return true;
        }
        if *seen.calm_ms.get_or_insert(now) + CALM_MS > now {
            return true;
        }
        self.trace.told("counts again", &node.name, "");
        model.rolled_back.remove(&index);
        model.overrides.retain(|(device, _), _| *device != index);
        seen.acknowledged.clear();
        false
    }

    /// A device has read its disk: what it has said to have must be there.
    pub(crate) fn device_started(&mut self, index: usize, node: &Node) {
        if let Some(seen) = self.devices.get_mut(index) {
            seen.hidden_ms.clear();
            seen.wishes.generation = None;
        }
        if let Some(held) = node.held() {
            self.holds(index, node, &held);
        }
    }

    /// What a device has said to have is on its disk, at any moment.
    fn holds(&self, index: usize, node: &Node, held: &Positions) {
        let Some(seen) = self.devices.get(index) else { return };
        if self.model.lock().unwrap_or_else(PoisonError::into_inner).rolled_back.contains(&index) {
            return;
        }
        for (channel, logs) in &seen.acknowledged {
            for (writer, seq) in logs {
                let here = held.get(channel).and_then(|logs| logs.get(writer)).copied().unwrap_or(0);
                if here < *seq {
                    let what = format!("{} acknowledged {seq} of {writer} in {channel} and holds {here}", node.name);
                    self.trace.fail("durable", what);
                }
            }
        }
    }

    /// Looks at everything that can be seen from outside without waiting, of devices at those that are due.
    pub(crate) fn look(&mut self, hub: Option<&HubLife>, nodes: &[Node], due: &[usize]) {
        if let Some(hub) = hub {
            self.look_at_hub(hub, nodes, due);
        }
        for index in due {
            if let Some(node) = nodes.get(*index) {
                self.look_at_device(*index, node);
            }
        }
    }

    fn look_at_hub(&mut self, hub: &HubLife, nodes: &[Node], due: &[usize]) {
        let store = hub.mind.store();
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if self.learning {
            if hub.mind.is_learning() || nodes.iter().any(|node| hub.mind.acknowledged(&node.name).is_none()) {
                return;
            }
            // What no device held is lost, which is said; from here on the hub counts again.
            self.learning = false;
            for (key, cell) in &mut model.objects {
                cell.answered(marked(store, key));
            }
        }
        for (key, cell) in &model.objects {
            let mark = marked(store, key);
            if !cell.allows(mark) {
                let what = format!("{key} is {mark:?}, answered was {:?}, asked for since {:?}", cell.sure, cell.maybe);
                self.trace.fail("acknowledged", what);
            }
        }
        drop(model);
        // Logs of earlier writers may be forked, and then a number says not which of the branches is acknowledged.
        let present = hub.mind.writer();
        for index in due {
            let (Some(seen), Some(node)) = (self.devices.get_mut(*index), nodes.get(*index)) else { continue };
            for (channel, logs) in hub.mind.acknowledged(&node.name).unwrap_or_default() {
                let known = seen.acknowledged.entry(channel).or_default();
                for (writer, seq) in logs.into_iter().filter(|(writer, _)| *writer == present) {
                    let furthest = known.entry(writer).or_insert(0);
                    *furthest = (*furthest).max(seq);
                }
            }
        }
    }

    fn look_at_device(&mut self, index: usize, node: &Node) {
        let now = self.trace.now_ms();
        let Some(seen) = self.devices.get_mut(index) else { return };
        // What began between two looks held until this one.
        let troubled = node.in_trouble || !node.is_up();
        if std::mem::replace(&mut seen.troubled, troubled) || troubled {
            seen.troubled_ms = Some(now);
        }
        if let Some(held) = node.held() {
            self.holds(index, node, &held);
        }
        let Some(seen) = self.devices.get_mut(index) else { return };
        let deeds = node.containers.deeds();
        if let Some(replica) = node.replica()
            && replica.unreported() > OUTBOX_MAX
        {
            self.trace.fail("bounded", format_args!("{} has {} waiting for the hub", node.name, replica.unreported()));
        }
        if deeds.is_empty() {
            return;
        }
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        for deed in deeds {
            match deed {
                Deed::Twice { name, container } => {
                    self.trace
                        .fail("twice", format_args!("{}: {name}/{container} was started while it ran", node.name));
                }
                Deed::Started { pod, name, container, mark, .. } => {
                    let meant = model.ever.get(&mark).is_some_and(|group| *group == "any" || *group == node.group);
                    if !meant {
                        let what = format!("{} of {} runs {name} with {mark:?}", node.name, node.group);
                        self.trace.fail("meant", what);
                    }
                    seen.started_ms.insert((pod, container), now);
                }
                Deed::Stopped { pod, name, container } => {
                    if model.restarted.contains(&(index, pod.clone())) {
                        continue;
                    }
                    let Some(started) = seen.started_ms.get(&(pod, container.clone())) else { continue };
                    if *started == now {
                        // It came and went between two looks, and so did what was wished.
                        continue;
                    }
                    // A plan is carried out a moment after it was made, and later on a disk that refuses.
                    let wished = seen.wishes.since_ms(&name);
                    let troubled = seen.troubled_ms.is_some_and(|at| at + UNDER_WAY_MS > wished);
                    let heeded = wished + UNDER_WAY_MS < now;
                    if wished <= started + STARTING_MS && heeded && !troubled {
                        let what = format!("{}: {name}/{container} was stopped and nothing new was wished", node.name);
                        self.trace.fail("restart", what);
                    }
                }
            }
        }
    }

    /// What the hub keeps on its disk for each log is within its bound, and its watch history too.
    pub(crate) fn look_at_hub_disk(&self, hub: &HubLife, disk: &Disk, retention: &Retention) {
        let writer = hub.mind.writer();
        let counted = || -> rusqlite::Result<(Option<(String, i64)>, i64)> {
            let database = disk.open("hub.sqlite")?;
            // Of the writer of this life: what devices gave back of earlier ones goes by age.
            let longest =
                "SELECT channel, count(*) FROM batch WHERE writer = ?1 GROUP BY channel ORDER BY 2 DESC LIMIT 1";
            let longest = database.query_row(longest, [writer.0], |row| Ok((row.get(0)?, row.get(1)?)));
            let longest = longest.map_or_else(
                |error| if error == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(error) },
                |row| Ok(Some(row)),
            )?;
            Ok((longest, database.query_row("SELECT count(*) FROM event", [], |row| row.get(0))?))
        };
        // A disk that fails at present says nothing.
        let Ok((longest, events)) = counted() else { return };
        if let Some((channel, batches)) =
            longest.filter(|(_, batches)| batches.cast_unsigned() > retention.log_records_max)
        {
            self.trace.fail("bounded", format_args!("the hub keeps {batches} batches of a log of {channel}"));
        }
        if usize::try_from(events).is_ok_and(|events| events > retention.events_count_max + EVENTS_OF_A_COMMIT) {
            self.trace.fail("bounded", format_args!("the hub keeps {events} watch events"));
        }
    }

    /// Whether everyone agrees: hub, devices, containers and watchers.
    ///
    /// # Errors
    /// The first disagreement.
    pub(crate) async fn agree(
        &mut self,
        hub: &HubLife,
        nodes: &[Node],
        watchers: &[Arc<Watcher>],
    ) -> Result<(), String> {
        if hub.mind.is_learning() {
            return Err("the hub still learns".to_owned());
        }
        let store = hub.mind.store();
        self.came_back(store)?;
        for node in nodes {
            self.agrees(hub, store, node).await?;
        }
        for watcher in watchers {
            watcher.agrees(&hub.backend).await?;
        }
        Ok(())
    }

    /// What a device held when the hub was put back, and holds still, is at the hub again unless somebody deleted it.
    fn came_back(&self, store: &Store) -> Result<(), String> {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, held) in &self.held {
            for (key, mark) in held {
                let deleted = model.deleted.get(key).is_some_and(|deleted| deleted > mark);
                let now = marked(store, key);
                if !deleted && now < Some(*mark) {
                    return Err(format!(
                        "device {index} held {key} as {mark} when the hub was restored; it is {now:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Where a device and the hub stand, for a report.
    pub(crate) fn tell_positions(&self, hub: &HubLife, node: &Node) {
        for (who, positions) in [
            ("hub knows", hub.mind.acknowledged(&node.name)),
            ("device holds", node.held()),
            ("hub has", Some(hub.mind.heads(&node.name))),
        ] {
            for (channel, logs) in positions.unwrap_or_default() {
                let logs: Vec<String> = logs.iter().map(|(writer, seq)| format!("{writer}:{seq}")).collect();
                self.trace.told(who, &node.name, format_args!("{channel} {}", logs.join(" ")));
            }
        }
    }

    async fn agrees(&self, hub: &HubLife, store: &Store, node: &Node) -> Result<(), String> {
        let name = &node.name;
        let (Some(replica), Some(backend)) = (node.replica(), node.backend()) else {
            return Err(format!("{name} does not run"));
        };
        if hub.mind.acknowledged(name).is_none() {
            return Err(format!("{name} has no session"));
        }
        if replica.unreported() > 0 {
            return Err(format!("{name} has {} things to tell", replica.unreported()));
        }
        let sets = store.list(&kind::DAEMON_SET, None).items;
        let running = node.containers.running();
        let mut wanted = 0;
        let held = holds(store, name);
        for set in sets.iter().filter(|set| selects(set, &node.group) && !held.contains(set.uid())) {
            let mark = mark_of(Some(set)).map(|mark| format!("{}:{mark}", set.name()));
            if !running.values().any(|one| Some(one) == mark.as_ref()) {
                return Err(format!("{name} does not run {mark:?}; it runs {:?}", running.values()));
            }
            wanted += 1;
            let there = backend.read(&set.key()).await.map_err(|error| format!("{name}: {error}"))?;
            if mark_of(Some(&there)) != mark_of(Some(set)) {
                return Err(format!("{name} holds {} as {:?}", set.key(), mark_of(Some(&there))));
            }
        }
        let pods = store.view(|index| {
            index
                .pods_on(name)
                .map(|pod| (pod.uid().to_owned(), pod.text("/status/phase").to_owned()))
                .collect::<BTreeMap<_, _>>()
        });
        let placed = store.view(|index| {
            index.pods_on(name).filter(|pod| pod.controller().is_some_and(|owner| owner.kind == "ReplicaSet")).count()
        });
        if running.len() != wanted + placed || pods.len() != running.len() {
            let what = (running.len(), wanted, placed, pods.len());
            let shown: Vec<&String> = pods.keys().collect();
            let unknown = running.iter().find(|((uid, _), _)| !pods.contains_key(uid));
            return Err(format!(
                "{name}: (running, daemons, placed, pods at the hub) = {what:?}; not shown {unknown:?} of {shown:?}"
            ));
        }
        if let Some((uid, phase)) = pods.iter().find(|(_, phase)| *phase != "Running") {
            return Err(format!("{name}: the hub shows pod {uid} as {phase:?}"));
        }
        for map in store.list(&kind::CONFIG_MAP, Some("default")).items {
            // Only what somebody there uses is told to a device.
            if let Ok(there) = backend.read(&map.key()).await
                && mark_of(Some(&there)) != mark_of(Some(&map))
            {
                return Err(format!("{name} holds {} as {:?}", map.key(), mark_of(Some(&there))));
            }
        }
        let waiting = node
            .disk
            .open("device.db")
            .and_then(|database| database.query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0)));
        if let Ok(waiting) = waiting
            && waiting > 0
        {
            return Err(format!("{name} has nothing to tell and {waiting} reports on its disk"));
        }
        let there = backend.list(&kind::OVERRIDE, None).await.map_err(|error| format!("{name}: {error}"))?;
        let replaced = self.model.lock().unwrap_or_else(PoisonError::into_inner).replaced.contains(name);
        overrides_agree((store, replaced), node, &there.items, &backend_marks(&sets, &*backend).await)
    }
}

/// Another number whenever something has been said of an item, on whatever branch of whichever log.
fn print_of(item: &Item) -> u64 {
    let mix = |sum: u64, value: u64| sum.wrapping_mul(0x0000_0100_0000_01b3) ^ value;
    let of = |sum: u64, version: &Version| {
        let writer = version.writer.0.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
        mix(mix(writer, version.seq), version.incarnation)
    };
    let touched = item.touched.values().fold(1, |sum, seq| mix(sum, *seq));
    match &item.kind {
        ItemKind::Document(document) => of(mix(touched, document.epoch), &document.newest),
        ItemKind::Register(register) => of(touched, &register.version),
        ItemKind::Absent | ItemKind::Removed(_) => touched,
    }
}

/// Whether a device has acknowledged all that the hub has for it.
fn is_told(hub: &HubLife, node: &Node) -> bool {
    let (Some(told), writer) = (hub.mind.acknowledged(&node.name), hub.mind.writer()) else { return false };
    let knows = |channel, seq| told.get(channel).and_then(|logs| logs.get(&writer)).is_some_and(|known| *known >= seq);
    let heads = hub.mind.heads(&node.name);
    heads.iter().all(|(channel, logs)| logs.get(&writer).is_none_or(|seq| knows(channel, *seq)))
}

fn selects(set: &Object, group: &str) -> bool {
    let wanted = set.text("/spec/template/spec/nodeSelector/group");
    wanted.is_empty() || wanted == group
}

fn marked(store: &Store, key: &ObjectKey) -> Option<u64> {
    mark_of(store.read(key).as_deref())
}
