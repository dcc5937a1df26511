//! Many sessions: lists, forks, backups, and any interleaving of edits, cuts, clones and truncations.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use super::world::*;
use crate::channel::{ChannelState, ItemId};
use crate::log::LogWriter;
use crate::record::Draft;

#[test]
fn a_returner_behind_the_floor_gets_the_list_and_absence_deletes() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    hub.edit(2, 1, 1);
    devices[0].append(&own_channel("a"), vec![Draft::register(ItemId::parse("override/x").unwrap(), &b"1"[..], "", 0)]);
    settle(&mut world, &mut hub, &mut devices);
    hub.append(&fleet(), vec![Draft::remove(item(1), "", 0)]);
    hub.append(&own_channel("a"), vec![Draft::register(ItemId::parse("grant/x").unwrap(), &b"1"[..], "", 0)]);
    hub.edit(3, 1, 9);
    hub.truncate();
    hub.channels.get_mut(&fleet()).unwrap().items.retain(|_, item| item.is_live());
    hub.edit(3, 2, 9);
    settle(&mut world, &mut hub, &mut devices);
    for device in &devices {
        assert_eq!(device.seen(&fleet()), hub.seen(&fleet()));
        assert!(!device.seen(&fleet()).contains_key(&item(1)));
    }
    assert_eq!(devices[0].seen(&own_channel("a")).len(), 2, "the device's own override is not the hub's to delete");
    assert_eq!(devices[0].seen(&own_channel("a")), hub.seen(&own_channel("a")));
}

#[test]
fn a_restored_hub_gets_its_records_back() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    let backup = hub.clone();
    hub.edit(1, 1, 2);
    hub.edit(4, 1, 1);
    settle(&mut world, &mut hub, &mut devices);
    let lost = hub.seen(&fleet());
    let mut hub = backup;
    hub.incarnation = 2;
    let identity = world.identity(None, 2);
    hub.chains.insert(identity.id(), identity.chain().clone());
    hub.writer = std::sync::Arc::new(std::sync::Mutex::new(LogWriter::new(identity, BTreeMap::new())));
    settle(&mut world, &mut hub, &mut devices);
    assert_eq!(hub.seen(&fleet()), lost);
}

/// What may happen between the hub and its devices.
#[derive(Debug, Clone)]
enum Step {
    Edit { item: u8, field: u8, value: i64 },
    Remove { item: u8 },
    Register { value: u8 },
    Override { device: usize, value: u8 },
    Observe { device: usize, subject: u8 },
    Meet { device: usize, exchanges: usize },
    Truncate,
    CloneHub,
    CloneDevice { device: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..3, 0u8..3, any::<i64>()).prop_map(|(item, field, value)| Step::Edit { item, field, value }),
        1 => (0u8..3).prop_map(|item| Step::Remove { item }),
        2 => any::<u8>().prop_map(|value| Step::Register { value }),
        2 => (0usize..2, any::<u8>()).prop_map(|(device, value)| Step::Override { device, value }),
        2 => (0usize..2, 0u8..3).prop_map(|(device, subject)| Step::Observe { device, subject }),
        6 => (0usize..2, 1usize..6).prop_map(|(device, exchanges)| Step::Meet { device, exchanges }),
        1 => Just(Step::Truncate),
        1 => Just(Step::CloneHub),
        1 => (0usize..2).prop_map(|device| Step::CloneDevice { device }),
    ]
}

fn take_step(world: &mut World, hub: &mut Store, devices: &mut [Store], clones: &mut Vec<Store>, step: &Step, at: u64) {
    match *step {
        Step::Edit { item, field, value } => hub.edit(item, field, value),
        // A removal in one branch of a cloned hub's log, and the same item stated again by the other's new writer: the newer wins, but
        // edits that only one side saw before the removal may stay with that side until the item's next snapshot.
        Step::Remove { .. } if clones.iter().any(|clone| clone.node.is_none()) => {}
        Step::Remove { item: name } => hub.append(&fleet(), vec![Draft::remove(item(name), "", 0)]),
        Step::Register { value } => {
            let id = ItemId::parse("grant/x").unwrap();
            hub.append(&own_channel("a"), vec![Draft::register(id, vec![value], "", 0)]);
        }
        Step::Override { device, value } => {
            let channel = own_channel(devices[device].node.as_deref().unwrap());
            let id = ItemId::parse(&format!("override/{}", value % 3)).unwrap();
            devices[device].append(&channel, vec![Draft::register(id, vec![value], "", 0)]);
        }
        Step::Observe { device, subject } => {
            let subject = format!("pod/{subject}-{device}");
            devices[device].outbox.insert(subject.clone(), observation(&subject, at));
        }
        Step::Meet { device, exchanges } => {
            meet(world, hub, &mut devices[device], exchanges);
        }
        // A branch can be given back as far as somebody keeps its signed records: not what came as a list with states.
        Step::Truncate if clones.iter().any(|clone| clone.node.is_none()) => {}
        Step::Truncate => hub.truncate(),
        Step::CloneHub if !hub.floors.is_empty() || clones.iter().any(|clone| clone.node.is_none()) => {}
        // A clone writes with the same key: two branches of one log.
        Step::CloneHub => clones.push(branch(hub)),
        Step::CloneDevice { device } => clones.push(branch(&devices[device])),
    }
}

pub(super) fn branch(store: &Store) -> Store {
    let writer = store.writer.lock().unwrap();
    let own = writer.identity().id();
    let at = |(name, state): (&ChannelName, &ChannelState)| Some((name.clone(), *state.heads.get(&own)?));
    let heads = store.channels.iter().filter_map(at).collect();
    let writer = std::sync::Arc::new(std::sync::Mutex::new(LogWriter::new(writer.identity().clone(), heads)));
    Store { writer, ..store.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_interleaving_converges(steps in prop::collection::vec(step(), 1..40)) {
        let (mut world, mut hub, mut devices) = trio();
        let mut clones = Vec::new();
        let mut overrides = BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            take_step(&mut world, &mut hub, &mut devices, &mut clones, step, at as u64 + 1);
            if let Step::Override { device, value } = step {
                overrides.insert((*device, value % 3));
            }
        }
        // A cloned device comes to the hub with its branch; a cloned hub's branch comes by the devices.
        for (at, mut clone) in clones.into_iter().enumerate() {
            if clone.node.is_some() {
                let channel = own_channel(clone.node.as_deref().unwrap());
                let id = ItemId::parse(&format!("override/clone-{at}")).unwrap();
                clone.append(&channel, vec![Draft::register(id, vec![1], "", 0)]);
                for _ in 0..3 {
                    meet(&mut world, &mut hub, &mut clone, 1000);
                }
                let id = ItemId::parse(&format!("override/clone-{at}")).unwrap();
                let kept = hub.seen(&channel).contains_key(&id);
                prop_assert!(kept, "{}", id);
            } else {
                clone.edit(7, 1, 7);
                settle(&mut world, &mut clone, &mut devices);
                prop_assert!(devices[0].seen(&fleet()).contains_key(&item(7)));
            }
        }
        hub.edit(8, 1, 8);
        settle(&mut world, &mut hub, &mut devices);
        for (index, device) in devices.iter().enumerate() {
            let own = own_channel(device.node.as_deref().unwrap());
            prop_assert_eq!(device.seen(&fleet()), hub.seen(&fleet()));
            prop_assert_eq!(device.seen(&own), hub.seen(&own));
            prop_assert!(device.outbox.is_empty());
            for (of, value) in &overrides {
                if *of == index {
                    let id = ItemId::parse(&format!("override/{value}")).unwrap();
                    prop_assert!(hub.seen(&own).contains_key(&id), "override {} of {}", id, own);
                }
            }
        }
    }
}
