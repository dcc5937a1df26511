//! Technicians' changes: in force at their device, and at the hub as they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use flotilla_hub::Store;
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::Backend as _;

use super::{Oracles, UNDER_WAY_MS, is_told, selects};
use crate::device::Node;
use crate::hub::HubLife;
use crate::model::{Cell, Model};
use crate::people::ROAMING;

impl Oracles {
    /// A technician's answered change is in force. Asks the device's own API.
    pub(crate) async fn look_at_overrides(&mut self, index: usize, node: &Node, hub: Option<&HubLife>) {
        let (Some(backend), Some(seen)) = (node.backend(), self.devices.get_mut(index)) else { return };
        let now = self.trace.now_ms();
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
            let object = backend.read(&key).await.ok();
            let mark = object.as_deref().and_then(technician_mark);
            let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            let same = model.overrides.get(&(index, key.clone())) == Some(&cell);
            let ended = match &object {
                Some(object) => cell_ended(&model, index, object),
                None => {
                    let base = model.bases.get(&(index, key.clone()));
                    let left = may_leave(&model, &key) || is_gone(hub, &key, base);
                    base_ended(&model, index, &key, &cell) || left && !is_base_due(hub, node, &key, base)
                }
            };
            if object.is_some() || ended {
                seen.hidden_ms.remove(&key);
            } else if *seen.hidden_ms.entry(key.clone()).or_insert(now) + UNDER_WAY_MS > now {
                // An agent that has just begun shows nothing yet.
                continue;
            }
            drop(model);
            if same && !cell.allows(mark) && !ended {
                let what = format!("{}: {key} is {mark:?}, answered was {:?}", node.name, cell.sure);
                self.trace.fail("override", what);
            }
        }
    }
}

/// The base was deleted and made again since: that ended the change.
fn cell_ended(model: &Model, device: usize, object: &Object) -> bool {
    let of = model.bases.get(&(device, object.key()));
    technician_mark(object).is_none() && of.is_some_and(|base| *base != object.uid())
}

/// The object is not shown at the device: somebody stopped it there or asked for its deletion since.
fn base_ended(model: &Model, device: usize, key: &ObjectKey, cell: &Cell) -> bool {
    model.deleted.get(key).copied() > cell.sure || model.held.contains(&(device, key.clone()))
}

/// The object may have left the device with its selector, or with what a hub that was restored no longer knew.
fn may_leave(model: &Model, key: &ObjectKey) -> bool {
    model.restored || key.name == format!("set{ROAMING}")
}

/// That life of the object is not at the hub any more, or nobody can tell.
fn is_gone(hub: Option<&HubLife>, key: &ObjectKey, base: Option<&String>) -> bool {
    hub.is_none_or(|hub| hub.mind.store().read(key).is_none_or(|object| base.is_none_or(|uid| uid != object.uid())))
}

/// The hub has that life of the object, means it for this device and has told it so: then it is here whatever was before.
fn is_base_due(hub: Option<&HubLife>, node: &Node, key: &ObjectKey, base: Option<&String>) -> bool {
    if is_gone(hub, key, base) {
        return false;
    }
    let Some(hub) = hub.filter(|hub| !hub.mind.is_learning()) else { return false };
    let set = hub.mind.store().read(key);
    set.is_some_and(|set| set.deletion_timestamp().is_none() && selects(&set, &node.group)) && is_told(hub, node)
}

/// The hub lists the changes that are in force at a device, as they are there.
pub(super) fn overrides_agree(
    (store, replaced): (&Store, bool),
    node: &Node,
    there: &[Arc<Object>],
    in_force: &BTreeMap<ObjectKey, Option<u64>>,
) -> Result<(), String> {
    let name = &node.name;
    let told = |all: &[Arc<Object>]| -> BTreeMap<String, String> {
        let mine = all.iter().filter(|object| object.text("/spec/nodeName") == *name);
        mine.map(|object| (object.name().to_owned(), object.value()["spec"]["operations"].to_string())).collect()
    };
    let (mut known, there) = (told(&store.list(&kind::OVERRIDE, None).items), told(there));
    if replaced {
        known.retain(|id, _| there.contains_key(id));
    }
    if known != there {
        return Err(format!("{name}: its changes are {there:?}, the hub lists {known:?}"));
    }
    for (key, mark) in in_force {
        let Some(mark) = mark else { continue };
        if !there.values().any(|operations| operations.contains(&format!("\"{mark}\""))) {
            return Err(format!("{name}: {mark} is in force at {key} and no change says so"));
        }
    }
    Ok(())
}

/// Uids of what a technician stopped at a device, as the hub knows it.
pub(super) fn holds(store: &Store, node: &str) -> BTreeSet<String> {
    let listed = store.list(&kind::OVERRIDE, None).items;
    let here = listed.iter().filter(|one| one.text("/spec/nodeName") == node);
    let holds = here.filter(|one| one.value()["spec"]["operations"].to_string().contains("flotilla.dev/hold"));
    holds.map(|one| one.text("/spec/target/uid").to_owned()).collect()
}

fn technician_mark(object: &Object) -> Option<u64> {
    object.annotation("technician")?.parse().ok()
}

pub(super) async fn backend_marks(
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

fn least() -> ObjectKey {
    ObjectKey::of(&kind::CONFIG_MAP, "", "")
}
