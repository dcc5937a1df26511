//! Who counts as heard by a hub that learns, and when it goes on.

use std::collections::BTreeMap;

use flotilla_sync::channel::{Positions, positions_of};
use flotilla_sync::replica::{Reading, Replica};

use super::forks::fleet;
use super::restore::{World, daemon_set};
use super::{Bench, Device};
use crate::Retention;
use crate::learn;

async fn create(bench: &Bench, names: &[&str]) {
    for name in names {
        bench.create(daemon_set(name, "red")).await.unwrap();
    }
}

/// Looks once; whether a device counts as heard, if it is waited for.
async fn heard(bench: &Bench, node: &str) -> Option<bool> {
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    bench.door.lessons.heard_of(node)
}

/// A session of the device begins with this; no earlier one has ended.
async fn hello(bench: &Bench, device: &Device, positions: &Positions) {
    let digests = vec![0; positions.values().map(BTreeMap::len).sum()];
    bench.door.stands_at(&device.peer(), positions, &digests).await.unwrap();
    bench.door.acknowledged(&device.peer(), positions.clone()).await.unwrap();
}

#[tokio::test]
async fn an_acknowledgement_alone_makes_no_device_heard() {
    let world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    learn::begin(&world.bench.door, "a", world.bench.store.incarnation()).await.unwrap();
    // Of a session that began before.
    let stands = positions_of(&world.bench.door.heads(&world.devices[0].peer()).await.unwrap());
    world.bench.door.acknowledged(&world.devices[0].peer(), stands).await.unwrap();
    assert_eq!(heard(&world.bench, "a").await, Some(false));
}

#[tokio::test]
async fn what_devices_said_in_one_lesson_says_nothing_in_the_next() {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    for _ in 0..2 {
        learn::begin(&world.bench.door, "a", world.bench.store.incarnation()).await.unwrap();
        assert_eq!(heard(&world.bench, "a").await, Some(false));
        for device in &world.devices {
            device.say_hello(&world.bench.door).await;
        }
        learn::look(&world.bench.door, &mut learn::Looked::default()).await.unwrap();
        assert!(!world.bench.door.lessons.is_on());
    }
}

#[tokio::test]
async fn a_hello_takes_the_place_of_what_an_earlier_session_said() {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    let bench = &world.bench;
    let (device, own) = (&world.devices[0], bench.door.identity().id());
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    let says = |seq| Positions::from([(fleet(), BTreeMap::from([(own, seq)]))]);
    hello(bench, device, &says(99)).await;
    assert!(matches!(bench.door.branch_came(&device.peer(), &fleet(), &own, 99).await.unwrap(), Reading::Later));
    hello(bench, device, &says(99)).await;
    assert_eq!(heard(bench, "a").await, Some(false), "it has given nothing in this session");
    hello(bench, device, &Positions::new()).await;
    assert_eq!(heard(bench, "a").await, Some(true), "it says no longer that it has more");
}

#[tokio::test]
async fn a_bundle_counts_once_it_was_taken_in() {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    let backup = world.back_up();
    create(&world.bench, &["late"]).await;
    world.pull().await;
    let bench = world.restored(&backup, "second").await;
    let device = &world.devices[0];
    let heads = device.channels.iter().map(|(name, state)| (name.clone(), state.heads.clone())).collect();
    bench.door.introduced(&device.node, &heads).await.unwrap();
    assert_eq!(heard(&bench, "a").await, Some(false), "its records were not in it");
    bench.door.ingest(&device.peer(), device.evidence.clone()).await.unwrap();
    bench.door.introduced(&device.node, &heads).await.unwrap();
    assert_eq!(heard(&bench, "a").await, Some(true));
}
