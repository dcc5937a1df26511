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
//! | `watch` | the API's: nothing lost, repeated or out of order |
//! | `bounded` | 7 |
//! | `converge` | 4, once faults have ended |

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use flotilla_disk::Disk;
use flotilla_hub::{Retention, Store};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::Backend as _;
use flotilla_sync::channel::Positions;

use crate::device::Node;
use crate::hub::HubLife;
use crate::model::{BORN, Cell, mark_of};
use crate::people::{SharedModel, Watcher};
use crate::runtime::Deed;
use crate::trace::Trace;

/// What may wait at a device for the hub: its bound of rows that last, and a status for each pod and the node.
const OUTBOX_MAX: usize = 1024 + 256;

/// A container is started within this time after what it was started for. Milliseconds.
const STARTING_MS: u64 = 3_000;
/// A new wish is heeded within this time. Milliseconds.
const UNDER_WAY_MS: u64 = 30_000;

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
}

/// What was seen of one device.
#[derive(Debug, Default)]
struct Seen {
    /// How far the hub was told its logs are durable here, the furthest.
    acknowledged: Positions,
    /// All that is wished of it, as one number, and since when it has been that. Milliseconds.
    wishes: u64,
    wished_ms: u64,
    /// When each container was started. Milliseconds.
    started_ms: BTreeMap<(String, String), u64>,
    /// Its disk refused, or it was down, when it was last looked at, and when that was last so. Milliseconds.
    troubled: bool,
    troubled_ms: Option<u64>,
}

impl Oracles {
    pub(crate) fn new(trace: Trace, model: SharedModel, devices: usize) -> Self {
        Self { trace, model, devices: (0..devices).map(|_| Seen::default()).collect(), learning: false }
    }

    /// The hub's disk is an old one now.
    pub(crate) fn hub_restored(&mut self) {
        self.learning = true;
        self.devices.iter_mut().for_each(|seen| seen.acknowledged.clear());
    }

    /// A device's disk is an old one now.
    pub(crate) fn card_changed(&mut self, index: usize) {
        if let Some(seen) = self.devices.get_mut(index) {
            *seen = Seen::default();
        }
    }

    /// A device has read its disk: what it has said to have must be there.
    pub(crate) fn device_started(&mut self, index: usize, node: &Node) {
        let (Some(seen), Some(held)) = (self.devices.get(index), node.held()) else { return };
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
        for index in due {
            let (Some(seen), Some(node)) = (self.devices.get_mut(*index), nodes.get(*index)) else { continue };
            for (channel, logs) in hub.mind.acknowledged(&node.name).unwrap_or_default() {
                let known = seen.acknowledged.entry(channel).or_default();
                for (writer, seq) in logs {
                    let furthest = known.entry(writer).or_insert(0);
                    *furthest = (*furthest).max(seq);
                }
            }
        }
    }

    fn look_at_device(&mut self, index: usize, node: &Node) {
        let now = self.trace.now_ms();
        let Some(seen) = self.devices.get_mut(index) else { return };
        if let Some(wishes) = node.replica().map(|replica| replica.fingerprint())
            && wishes != seen.wishes
        {
            (seen.wishes, seen.wished_ms) = (wishes, now);
        }
        // What began between two looks held until this one.
        let troubled = node.in_trouble || !node.is_up();
        if troubled || std::mem::replace(&mut seen.troubled, troubled) {
            seen.troubled_ms = Some(now);
        }
        seen.troubled = troubled;
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
                    let Some(started) = seen.started_ms.get(&(pod, container.clone())) else { continue };
                    // A plan is carried out a moment after it was made, and later on a disk that refuses.
                    let troubled = seen.troubled_ms.is_some_and(|at| at + UNDER_WAY_MS > seen.wished_ms);
                    let heeded = seen.wished_ms + UNDER_WAY_MS < now;
                    if seen.wished_ms <= started + STARTING_MS && heeded && !troubled {
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
        for node in nodes {
            self.agrees(hub, store, node).await?;
        }
        for watcher in watchers {
            watcher.agrees(&hub.backend).await?;
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
        for set in sets.iter().filter(|set| selects(set, &node.group)) {
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
        self.overrides_agree(store, node, &backend_marks(&sets, &*backend).await)
    }

    /// Every technician's change that was answered is in force, and the hub lists it.
    fn overrides_agree(
        &self,
        store: &Store,
        node: &Node,
        there: &BTreeMap<ObjectKey, Option<u64>>,
    ) -> Result<(), String> {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = store.list(&kind::OVERRIDE, None).items;
        let mine = |object: &&Arc<Object>| object.text("/spec/nodeName") == node.name;
        let known = listed.iter().filter(mine).count();
        let in_force = there.values().filter(|mark| mark.is_some()).count();
        drop(model);
        if known != in_force {
            return Err(format!("{}: {in_force} changes are in force, the hub lists {known}", node.name));
        }
        Ok(())
    }

    /// A technician's answered change is in force. Asks the device's own API.
    pub(crate) async fn look_at_overrides(&self, index: usize, node: &Node) {
        let Some(backend) = node.backend() else { return };
        let cells: Vec<_> = {
            let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            if model.rolled_back.contains(&index) {
                return;
            }
            let of = model.overrides.range((index, least())..);
            of.take_while(|((device, _), _)| *device == index)
                .map(|((_, key), cell)| (key.clone(), cell.clone()))
                .collect()
        };
        for (key, cell) in cells {
            let Ok(object) = backend.read(&key).await else { continue };
            let mark = technician_mark(&object);
            let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            let same = model.overrides.get(&(index, key.clone())) == Some(&cell);
            drop(model);
            if same && !cell.allows(mark) && !cell_ended(&object, &cell) {
                let what = format!("{}: {key} is {mark:?}, answered was {:?}", node.name, cell.sure);
                self.trace.fail("override", what);
            }
        }
    }
}

/// The base was deleted and made again since: that ended the change. Marks count up over all writes, and an object keeps the one it
/// was created with.
fn cell_ended(object: &Object, cell: &Cell) -> bool {
    let born = object.annotation(BORN).and_then(|born| born.parse::<u64>().ok()).unwrap_or(0);
    technician_mark(object).is_none() && cell.sure.is_some_and(|sure| born > sure)
}

fn technician_mark(object: &Object) -> Option<u64> {
    object.annotation("technician")?.parse().ok()
}

async fn backend_marks(
    sets: &[Arc<Object>],
    backend: &impl flotilla_rest::Backend,
) -> BTreeMap<ObjectKey, Option<u64>> {
    let mut marks = BTreeMap::new();
    for set in sets {
        if let Ok(object) = backend.read(&set.key()).await {
            marks.insert(set.key(), technician_mark(&object));
        }
    }
    marks
}

fn selects(set: &Object, group: &str) -> bool {
    let wanted = set.text("/spec/template/spec/nodeSelector/group");
    wanted.is_empty() || wanted == group
}

fn marked(store: &Store, key: &ObjectKey) -> Option<u64> {
    mark_of(store.read(key).as_deref())
}

fn least() -> ObjectKey {
    ObjectKey::of(&kind::CONFIG_MAP, "", "")
}
