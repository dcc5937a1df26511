//! An old copy of the hub's database that wrote on: two branches of one log, and devices that hold either.

use std::collections::BTreeMap;

use flotilla_sync::channel::{ChannelName, GENESIS, Head, positions_of};
use flotilla_sync::replica::{Input, Reading, Replica};

use super::Bench;
use super::restore::{World, daemon_set, fleet_of, set, text};
use crate::Retention;
use crate::learn;
use crate::store::backup;

/// Two devices hold what a hub said before an old copy of its database took its place and wrote on under the same writer.
async fn forked() -> (World, Bench, Vec<Input>) {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(world.back_up(), copy.join("hub.sqlite")).unwrap();
    world.bench.create(daemon_set("late", "green")).await.unwrap();
    world.devices[0].pull(&world.bench.door).await;
    let bench = Bench::open(&copy, Retention::default()).await;
    for name in ["one", "two", "three"] {
        bench.create(daemon_set(name, "blue")).await.unwrap();
    }
    // One that holds the copy's branch.
    world.devices[1].pull(&bench.door).await;
    let branch = world.devices[0].evidence.iter().map(|input| match input {
        Input::Batch(batch) => Input::Branch(batch.clone()),
        other => other.clone(),
    });
    let branch = branch.collect();
    (world, bench, branch)
}

fn fleet() -> ChannelName {
    ChannelName::parse("fleet/north").unwrap()
}

#[tokio::test]
async fn a_device_on_another_branch_is_heard_once_it_has_given_all_of_it() {
    let (world, bench, branch) = forked().await;
    let device = world.devices[0].peer();
    let heads = BTreeMap::from([(fleet(), world.devices[0].channels[&fleet()].heads.clone())]);
    let digests: Vec<u64> = heads.values().flat_map(BTreeMap::values).map(Head::digest).collect();
    let own = bench.door.identity().id();
    let seq = heads[&fleet()][&own].seq;
    assert!(seq < bench.store.logs().heads(&fleet())[&own].seq, "by numbers alone the hub would have it");
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    let heard = async || {
        learn::look(&bench.door).await.unwrap();
        bench.door.lessons.heard_of("a")
    };
    let apart = bench.door.stands_at(&device, &positions_of(&heads), &digests).await.unwrap();
    assert_eq!(apart, [(fleet(), own, seq)]);
    bench.door.acknowledged(&device, positions_of(&heads)).await.unwrap();
    assert_eq!(heard().await, Some(false));
    bench.door.ingest(&device, branch).await.unwrap();
    assert!(matches!(bench.door.branch_came(&device, &fleet(), &own, seq).await.unwrap(), Reading::Later));
    assert_eq!(heard().await, Some(true));
}

#[tokio::test]
async fn a_branch_that_comes_late_is_taken_in_once_and_told_to_those_who_hold_the_other() {
    let (mut world, bench, branch) = forked().await;
    let device = world.devices[0].peer();
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    assert!(backup::resume(&world.folder.path().join("copy")).unwrap());
    learn::look(&bench.door).await.unwrap();
    assert!(!bench.door.lessons.is_on() && bench.store.read(&set("late")).is_none());
    bench.door.ingest(&device, branch.clone()).await.unwrap();
    assert_eq!(text(&bench, &set("late")), "green");
    assert_eq!(text(&bench, &set("three")), "blue", "what the hub has said since holds");
    world.devices[1].pull(&bench.door).await;
    assert!(fleet_of(&world.devices[1]).iter().any(|value| value["object"]["metadata"]["name"] == "late"));
    // It is deleted, and the same branch comes again, by another device that has it.
    bench.delete(&set("late")).await.unwrap();
    bench.door.ingest(&device, branch).await.unwrap();
    assert!(bench.store.read(&set("late")).is_none());
}

#[tokio::test]
async fn a_list_of_a_writer_that_has_said_nothing_yet_proves_nothing() {
    let mut world = World::new(Retention { log_records_max: 2, ..Retention::default() }).await;
    for name in ["web", "two", "three", "four"] {
        world.bench.create(daemon_set(name, "red")).await.unwrap();
    }
    world.pull().await;
    let before = world.bench.door.identity().id();
    let bench = world.restored(&world.back_up(), "second").await;
    for device in &world.devices {
        device.give_back(&bench.door).await;
    }
    learn::look(&bench.door).await.unwrap();
    let life = bench.store.incarnation();
    let Reading::Snapshot(list) = bench.door.read(&fleet(), &before, 0, 64 * 1024).await.unwrap() else {
        panic!("no list of a log that is not kept")
    };
    assert_eq!(list.list.head.hash, GENESIS);
    let list = list.verify(bench.door.identity().chain()).unwrap();
    bench.door.ingest(&world.devices[0].peer(), vec![Input::Snapshot(list)]).await.unwrap();
    assert!(!bench.door.lessons.is_on(), "the hub's own word");
    assert_eq!(bench.store.incarnation(), life);
}
