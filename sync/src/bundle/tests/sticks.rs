//! What sticks bring about: whole, lost, old, again, after a gap, after a long time.

use proptest::prelude::*;

use super::memory::{World, fleet, own, positions};
use crate::blob::BlobRef;
use crate::bundle::Missing;
use crate::channel::sha256;

#[test]
fn both_ways_and_again() {
    let world = World::new();
    world.hub.set(&fleet(), "a", b"1");
    world.hub.set(&own(), "grant/x", b"1");
    world.device.set(&own(), "override/o", b"2");
    world.device.see("pod/p", 1);
    let down = world.down(false);
    let report = world.take_down(&down).unwrap();
    assert_eq!((report.records, report.records_new, report.whole), (2, 2, true), "{report:?}");
    assert_eq!(report.missing, []);
    assert_eq!(world.device.shown(&fleet())["a"], b"1");

    let up = world.up();
    let report = world.take_up(&up).unwrap();
    assert_eq!((report.records_new, report.observations), (1, 1), "{report:?}");
    assert_eq!(world.hub.shown(&own())["override/o"], b"2");
    assert!(world.hub.state().observed.contains_key("pod/p"));
    assert!(!world.device.state().outbox.is_empty(), "it waits until the hub has said that it has it");

    // Each once more: nothing happens. Then the acknowledgement.
    assert_eq!(world.take_down(&down).unwrap().records_new, 0);
    assert_eq!(world.take_up(&up).unwrap().records_new, 0);
    let report = world.take_down(&world.down(false)).unwrap();
    assert_eq!((report.records, report.acknowledgements), (0, 1));
    assert!(world.device.state().outbox.is_empty());
}

#[test]
fn a_lost_bundle_is_named_and_the_next_word_heals_it() {
    let world = World::new();
    world.hub.set(&fleet(), "a", b"1");
    world.settle();
    world.hub.set(&fleet(), "a", b"2");
    let lost = world.down(false);
    drop(lost);
    // The hub was told, by a session say, of what the device then lost again.
    let told = positions(&world.hub);
    world.hub.state().acknowledged = told;
    world.hub.set(&fleet(), "a", b"3");
    let report = world.take_down(&world.down(false)).unwrap();
    let Some(Missing::Records { channel, after: 1, before: 3, .. }) = report.missing.first() else {
        panic!("{:?}", report.missing)
    };
    assert_eq!(channel, "fleet/default");
    assert_eq!(world.device.shown(&fleet())["a"], b"1");
    world.take_up(&world.up()).unwrap();
    assert_eq!(world.take_down(&world.down(false)).unwrap().missing, []);
    assert_eq!(world.device.shown(&fleet())["a"], b"3");
}

#[test]
fn an_old_bundle_undoes_nothing() {
    let world = World::new();
    world.hub.set(&fleet(), "a", b"1");
    world.hub.set(&fleet(), "gone", b"1");
    world.settle();
    world.hub.truncate();
    let old_list = world.down(true);
    let old_up = world.up();
    world.hub.set(&fleet(), "a", b"2");
    world.hub.remove(&fleet(), "gone");
    world.device.set(&own(), "override/o", b"2");
    world.hub.truncate();
    // A list that does not name it: the device keeps no tombstone of its own.
    world.take_down(&world.down(true)).unwrap();
    world.take_up(&world.up()).unwrap();
    let acknowledged = world.hub.state().acknowledged.clone();
    let report = world.take_down(&old_list).unwrap();
    assert_eq!((report.snapshots, report.snapshots_new), (1, 0), "{report:?}");
    assert!(report.notes[0].contains("nothing is undone"));
    let shown = world.device.shown(&fleet());
    assert_eq!(shown["a"], b"2");
    assert!(!shown.contains_key("gone"));
    let report = world.take_up(&old_up).unwrap();
    assert!(report.notes[0].contains("later bundle"));
    assert_eq!(world.hub.state().acknowledged, acknowledged, "an old bundle took back what a newer one said");
}

#[test]
fn a_large_value_comes_in_pieces_and_goes_on_after_a_cut() {
    let world = World::new();
    let content: Vec<u8> = (0..1_300_000_u32).flat_map(u32::to_be_bytes).take(1_300_000).collect();
    let name = BlobRef { hash: sha256(&[&content]), len: content.len() as u64 };
    world.hub.state().blobs.insert(name.hash, content.clone());
    world.device.state().wanted.insert(name.hash, name);
    let down = world.down(false);
    let report = world.take_down(&down[..down.len() / 2]).unwrap();
    assert_eq!((report.blobs, report.whole), (0, false));
    assert!(report.missing.contains(&Missing::Blobs { count: 1 }), "{:?}", report.missing);
    let part = world.device.state().pieces[&name.hash].len();
    assert!(part > 0);
    let report = world.take_down(&down).unwrap();
    assert_eq!((report.blobs, report.missing.len()), (1, 0));
    assert_eq!(world.device.state().blobs[&name.hash], content);
}

#[derive(Debug, Clone)]
enum Step {
    Hub {
        item: u8,
        value: u8,
    },
    HubOwn {
        item: u8,
        value: u8,
    },
    Remove {
        item: u8,
    },
    Override {
        item: u8,
        value: u8,
    },
    See {
        subject: u8,
        value: u8,
    },
    Truncate,
    Down {
        full: bool,
        fate: Fate,
    },
    Up {
        fate: Fate,
    },
    /// A stick found again.
    Again {
        which: prop::sample::Index,
    },
}

/// What becomes of a stick on its way.
#[derive(Debug, Clone)]
enum Fate {
    Arrives,
    Lost,
    Cut {
        at: prop::sample::Index,
    },
    Damaged {
        at: prop::sample::Index,
        bit: u8,
    },
    /// Two stretches change places.
    Mixed {
        at: prop::sample::Index,
    },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => any::<prop::sample::Index>().prop_map(|at| Fate::Cut { at }),
        2 => (any::<prop::sample::Index>(), 0u8..8).prop_map(|(at, bit)| Fate::Damaged { at, bit }),
        1 => any::<prop::sample::Index>().prop_map(|at| Fate::Mixed { at }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4, any::<u8>()).prop_map(|(item, value)| Step::Hub { item, value }),
        2 => (0u8..4, any::<u8>()).prop_map(|(item, value)| Step::HubOwn { item, value }),
        1 => (0u8..4).prop_map(|item| Step::Remove { item }),
        2 => (0u8..4, any::<u8>()).prop_map(|(item, value)| Step::Override { item, value }),
        2 => (0u8..4, any::<u8>()).prop_map(|(subject, value)| Step::See { subject, value }),
        1 => Just(Step::Truncate),
        4 => (any::<bool>(), fate()).prop_map(|(full, fate)| Step::Down { full, fate }),
        4 => fate().prop_map(|fate| Step::Up { fate }),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Again { which }),
    ]
}

fn travel(bytes: &[u8], fate: &Fate) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    match fate {
        Fate::Arrives => {}
        Fate::Lost => return None,
        Fate::Cut { at } => bytes.truncate(at.index(bytes.len())),
        Fate::Damaged { at, bit } => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Fate::Mixed { at } => {
            let at = at.index(bytes.len());
            bytes.rotate_left(at);
            let back = bytes.len() - at;
            bytes[..back].rotate_left(back / 2);
        }
    }
    Some(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_to_sticks_both_sides_agree_in_the_end(steps in prop::collection::vec(step(), 1..40)) {
        let world = World::new();
        let mut sticks: Vec<(bool, Vec<u8>)> = Vec::new();
        let mut overrides = std::collections::BTreeMap::new();
        let mut seen = std::collections::BTreeMap::new();
        for step in &steps {
            match step {
                Step::Hub { item, value } => world.hub.set(&fleet(), &format!("item/{item}"), &[*value]),
                Step::HubOwn { item, value } => world.hub.set(&own(), &format!("grant/{item}"), &[*value]),
                Step::Remove { item } => world.hub.remove(&fleet(), &format!("item/{item}")),
                Step::Override { item, value } => {
                    world.device.set(&own(), &format!("override/{item}"), &[*value]);
                    overrides.insert(format!("override/{item}"), vec![*value]);
                }
                Step::See { subject, value } => {
                    world.device.see(&format!("pod/{subject}"), *value);
                    seen.insert(format!("pod/{subject}"), vec![*value]);
                }
                Step::Truncate => world.hub.truncate(),
                Step::Down { full, fate } => {
                    let bytes = world.down(*full);
                    if let Some(bytes) = travel(&bytes, fate) {
                        // Refused whole, or taken as far as it is.
                        drop(world.take_down(&bytes));
                        sticks.push((true, bytes));
                    }
                }
                Step::Up { fate } => {
                    let bytes = world.up();
                    if let Some(bytes) = travel(&bytes, fate) {
                        drop(world.take_up(&bytes));
                        sticks.push((false, bytes));
                    }
                }
                Step::Again { which } if !sticks.is_empty() => {
                    let (down, bytes) = &sticks[which.index(sticks.len())];
                    drop(if *down { world.take_down(bytes) } else { world.take_up(bytes) });
                }
                Step::Again { .. } => {}
            }
            // Nothing is here that its writer has not written, and nothing acknowledged is lost.
            let waiting = world.device.state().outbox.clone();
            for (subject, value) in &seen {
                let at_hub = world.hub.state().observed.get(subject).and_then(|one| one.body.clone());
                let kept = waiting.contains_key(subject) || at_hub.is_some_and(|body| body == value[..]);
                prop_assert!(kept, "{subject} is in no place any more");
            }
            for (id, value) in &overrides {
                prop_assert_eq!(&world.device.shown(&own())[id], value);
            }
        }
        world.settle();
        prop_assert_eq!(world.hub.shown(&fleet()), world.device.shown(&fleet()));
        prop_assert_eq!(world.hub.shown(&own()), world.device.shown(&own()));
        for (id, value) in &overrides {
            prop_assert_eq!(&world.hub.shown(&own())[id], value);
        }
        prop_assert!(world.device.state().outbox.is_empty());
        prop_assert_eq!(world.hub.state().forks + world.device.state().forks, 0);
    }
}
