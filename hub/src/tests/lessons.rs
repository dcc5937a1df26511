//! Who counts as heard by a hub that learns, and when it goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{Positions, positions_of};
use flotilla_sync::replica::{Reading, Replica};
use serde_json::json;

use super::forks::{as_branch, fleet};
use super::restore::{World, daemon_set, set, text};
use super::{Bench, Device};
use crate::Retention;
use crate::learn;
use crate::store::backup::{self, Part};
use crate::store::settings::Setting;

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

/// Puts a copy of a database in place without a word.
async fn copied(backup: &Path, folder: PathBuf) -> Bench {
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(backup, folder.join("hub.sqlite")).unwrap();
    Bench::open(&folder, Retention::default()).await
}

/// The first device holds one record more than the copy that took the database's place; since then that has `written` these.
async fn forked(written: &[&str]) -> (World, Bench) {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    let backup = world.back_up();
    create(&world.bench, &["late"]).await;
    world.devices[0].pull(&world.bench.door).await;
    let bench = copied(&backup, world.folder.path().join("copy")).await;
    create(&bench, written).await;
    (world, bench)
}

/// A session of the device begins with this; no earlier one has ended.
async fn hello(bench: &Bench, device: &Device, positions: &Positions) {
    let digests = vec![0; positions.values().map(BTreeMap::len).sum()];
    bench.door.stands_at(&device.peer(), positions, &digests).await.unwrap();
    bench.door.acknowledged(&device.peer(), positions.clone()).await.unwrap();
}

/// The devices were last seen long ago.
async fn fall_silent(bench: &Bench) {
    let silent = bench.store.write(|batch| {
        for name in ["a", "b"] {
            let status = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
            batch.update(&ObjectKey::of(&kind::NODE, "", name), |node| node.value_mut()["status"] = status)?;
        }
        Ok(())
    });
    silent.await.unwrap();
}

#[tokio::test]
async fn a_branch_as_long_as_the_hubs_own_is_heard_once_it_has_come() {
    // The old copy writes exactly as much as it has lost.
    let (world, bench) = forked(&["other"]).await;
    let own = bench.door.identity().id();
    let device = &world.devices[0];
    let head = device.channels[&fleet()].heads[&own];
    let here = bench.store.logs().heads(&fleet())[&own];
    assert!(head.seq == here.seq && head.hash != here.hash);
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    device.say_hello(&bench.door).await;
    assert_eq!(heard(&bench, "a").await, Some(false));
    bench.door.ingest(&device.peer(), as_branch(&device.evidence, own)).await.unwrap();
    assert!(matches!(bench.door.branch_came(&device.peer(), &fleet(), &own, head.seq).await.unwrap(), Reading::Later));
    assert_eq!(heard(&bench, "a").await, Some(true));
    world.devices[1].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert_eq!((text(&bench, &set("late")), text(&bench, &set("other"))), ("red".to_owned(), "red".to_owned()));
}

#[tokio::test]
async fn a_longer_branch_is_not_heard_because_another_device_has_passed_its_number() {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    let backup = world.back_up();
    // The database is put back twice: one device holds what came after it the first time, another what was said before that.
    let between = world.folder.path().join("between");
    create(&world.bench, &["one"]).await;
    backup::back_up(&world.folder.path().join("first"), &between, Part::Everything, Timestamp(0), |_, _| {}).unwrap();
    create(&world.bench, &["two", "three", "four", "five"]).await;
    world.devices[1].pull(&world.bench.door).await;
    let first = copied(&backup, world.folder.path().join("copy")).await;
    create(&first, &["late", "later", "latest"]).await;
    world.devices[0].pull(&first.door).await;
    let bench = copied(&between, world.folder.path().join("second")).await;
    let own = bench.door.identity().id();
    let [device, other] = &world.devices[..] else { unreachable!() };
    let seq = device.channels[&fleet()].heads[&own].seq;
    let here = || bench.store.logs().heads(&fleet())[&own].seq;
    let forked_at = here();
    assert!(forked_at < seq);
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    device.say_hello(&bench.door).await;
    bench.door.forked(&device.peer(), &fleet(), &own, forked_at).await.unwrap();
    other.give_back(&bench.door).await;
    assert!(here() >= seq, "by numbers alone the hub would have it");
    assert_eq!(heard(&bench, "a").await, Some(false));
    bench.door.ingest(&device.peer(), as_branch(&device.evidence, own)).await.unwrap();
    assert!(matches!(bench.door.branch_came(&device.peer(), &fleet(), &own, seq).await.unwrap(), Reading::Later));
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on(), "{:?}", bench.door.lessons.current());
    assert_eq!((text(&bench, &set("latest")), text(&bench, &set("five"))), ("red".to_owned(), "red".to_owned()));
}

#[tokio::test]
async fn a_branch_that_an_earlier_session_named_is_not_waited_for() {
    let (world, bench) = forked(&["one", "two"]).await;
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    world.devices[0].say_hello(&bench.door).await;
    assert_eq!(heard(&bench, "a").await, Some(false));
    hello(&bench, &world.devices[0], &Positions::new()).await;
    assert_eq!(heard(&bench, "a").await, Some(true));
}

#[tokio::test]
async fn the_device_that_proved_the_copy_old_is_waited_for_though_it_was_away() {
    let mut world = World::new(Retention::default()).await;
    create(&world.bench, &["web"]).await;
    world.pull().await;
    fall_silent(&world.bench).await;
    let backup = world.back_up();
    create(&world.bench, &["late"]).await;
    world.pull().await;
    let bench = copied(&backup, world.folder.path().join("copy")).await;
    let greeting = world.devices[0].greeting.clone().unwrap();
    bench.door.greeted(&world.devices[0].peer(), greeting).await.unwrap();
    assert_eq!(heard(&bench, "a").await, Some(false));
    world.devices[0].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on(), "{:?}", bench.door.lessons.current());
    assert_eq!(text(&bench, &set("late")), "red");
}

#[tokio::test]
async fn a_device_that_proves_more_while_the_hub_learns_is_waited_for_too() {
    let mut world = World::new(Retention::default()).await;
    world.pull().await;
    let bench = world.restored(&world.back_up(), "second").await;
    hello(&bench, &world.devices[0], &Positions::new()).await;
    assert_eq!(heard(&bench, "a").await, Some(true));
    for node in ["a", "c"] {
        learn::begin(&bench.door, node, bench.store.incarnation()).await.unwrap();
        assert_eq!(heard(&bench, node).await, Some(false), "{node}: it has more to say");
    }
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

#[tokio::test]
async fn a_life_that_begins_while_a_lesson_ends_is_not_ended_with_it() {
    let world = World::new(Retention::default()).await;
    fall_silent(&world.bench).await;
    let bench = world.restored(&world.back_up(), "second").await;
    assert_eq!(bench.door.lessons.current().map(|learning| learning.is_complete()), Some(true), "nobody is waited for");
    let above = bench.store.incarnation();
    let mut looked = learn::Looked::default();
    // The new life is queued ahead of the end.
    let (begun, ended) =
        tokio::join!(biased; learn::begin(&bench.door, "a", above), learn::look(&bench.door, &mut looked));
    begun.unwrap();
    ended.unwrap();
    assert!(bench.store.incarnation() > above);
    assert!(bench.door.lessons.is_on() && bench.store.setting(Setting::Learning).unwrap().is_some());
    hello(&bench, &world.devices[0], &Positions::new()).await;
    learn::look(&bench.door, &mut looked).await.unwrap();
    assert!(!bench.door.lessons.is_on() && bench.store.setting(Setting::Learning).unwrap().is_none());
    create(&bench, &["web"]).await;
    let own = bench.door.identity().id();
    assert!(bench.store.logs().heads(&fleet()).contains_key(&own), "it writes as who it says it is");
}

#[tokio::test]
async fn an_operator_goes_on_without_a_large_value_that_never_comes() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let saved = world.back_up();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large", "namespace": "default"},
        "data": {"text": "x".repeat(10_000)}});
    world.bench.create(map).await.unwrap();
    let mut late = daemon_set("late", "green");
    late["spec"]["template"]["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "large"}}]);
    world.bench.create(late).await.unwrap();
    world.devices[1].pull(&world.bench.door).await;

    let bench = world.restored(&saved, "second").await;
    let folder = world.folder.path().join("second");
    world.devices[0].give_back(&bench.door).await;
    assert!(backup::resume(&folder).unwrap());
    assert_eq!(heard(&bench, "b").await, None, "the hub goes on without it");
    assert!(!backup::resume(&folder).unwrap(), "there is nothing to go on from");
    // It comes, gives its documents, and ends before the value that one of them names.
    world.devices[1].give_back(&bench.door).await;
    learn::go_on_without_values(&bench.door).await.unwrap();
    assert!(bench.store.read(&set("late")).is_none(), "nobody has said so");
    assert!(backup::resume(&folder).unwrap());
    learn::go_on_without_values(&bench.door).await.unwrap();
    assert_eq!(text(&bench, &set("late")), "green");
    let report = bench.store.setting(Setting::Learned).unwrap().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["failed"].as_array().unwrap().len(), 1, "{report}");
    assert!(!backup::resume(&folder).unwrap());
    world.devices[0].pull(&bench.door).await;
    assert!(
        super::restore::fleet_of(&world.devices[0]).iter().any(|value| value["object"]["metadata"]["name"] == "late")
    );
}

#[tokio::test]
async fn no_device_makes_a_hub_speak_that_learns() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    learn::begin(&world.bench.door, "a", world.bench.store.incarnation()).await.unwrap();
    let (own, heads) = (world.bench.door.identity().id(), world.bench.store.logs().heads(&fleet()));
    world.bench.door.forked(&world.devices[0].peer(), &fleet(), &own, 1).await.unwrap();
    assert_eq!(world.bench.door.identity().id(), own);
    assert_eq!(world.bench.store.logs().heads(&fleet()), heads);
}
