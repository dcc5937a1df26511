//! An old copy of the hub's database that wrote on: two branches of one log, and devices that hold either.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::rollout::{self, NUMBER_ANNOTATION};
use flotilla_sync::channel::{ChannelName, GENESIS, Head, WriterId, positions_of};
use flotilla_sync::replica::{Input, Reading, Replica};
use serde_json::json;

use super::Bench;
use super::restore::{World, daemon_set, fleet_of, set, text};
use crate::Retention;
use crate::learn;
use crate::learn::adopt::SECRET_ANNOTATION;
use crate::store::backup;
use crate::store::settings::Setting;

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
    let branch = as_branch(&world.devices[0].evidence, bench.door.identity().id());
    (world, bench, branch)
}

/// What a device gives of its branch of a log, as the hub's session hands it on.
pub(super) fn as_branch(evidence: &[Input], forked: WriterId) -> Vec<Input> {
    let given = evidence.iter().map(|input| match input {
        Input::Batch(batch) => Input::Branch(batch.clone()),
        Input::Snapshot(list) => Input::Snapshot(list.clone().sparing(BTreeSet::from([forked]))),
        other => other.clone(),
    });
    given.collect()
}

/// The list of a channel as it is now.
pub(super) fn list_of(bench: &Bench, channel: &ChannelName) -> Input {
    let identity = bench.door.identity();
    let Reading::Snapshot(list) = bench.store.logs().list(&identity, channel).unwrap() else { panic!("no list") };
    Input::Snapshot(list.verify(identity.chain()).unwrap())
}

fn secret() -> ObjectKey {
    ObjectKey::of(&kind::SECRET, "default", "key")
}

async fn create_secret(bench: &Bench, password: &str) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"},
        "data": {"password": password}});
    bench.create(secret).await.unwrap();
}

/// A DaemonSet whose Pods need the Secret.
async fn create_needing_secret(bench: &Bench, name: &str) {
    let mut needing = daemon_set(name, "red");
    needing["spec"]["template"]["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "key"}}]);
    bench.create(needing).await.unwrap();
}

/// A Pod of a ReplicaSet, placed on device a.
pub(super) async fn place_pod(bench: &Bench) -> ObjectKey {
    let template =
        json!({"metadata": {"labels": {"app": "app"}}, "spec": {"containers": [{"name": "c", "image": "host"}]}});
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "app", "namespace": "default"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "app"}}, "template": template}});
    bench.create(set).await.unwrap();
    let set = bench.store.read(&ObjectKey::of(&kind::REPLICA_SET, "default", "app")).unwrap();
    let number = rollout::number_of(&set).unwrap().to_string();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app-x", "namespace": "default",
            "labels": {"app": "app"}, "annotations": {NUMBER_ANNOTATION: number}, "ownerReferences": [{"apiVersion": "apps/v1",
            "kind": "ReplicaSet", "name": "app", "uid": set.uid(), "controller": true}]},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "host"}]}});
    bench.create(pod).await.unwrap();
    ObjectKey::of(&kind::POD, "default", "app-x")
}

pub(super) fn fleet() -> ChannelName {
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
        learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
        bench.door.lessons.heard_of("a")
    };
    let apart = bench.door.stands_at(&device, &positions_of(&heads), &digests).await.unwrap();
    assert_eq!(apart, [(fleet(), own, seq)]);
    bench.door.acknowledged(&device, positions_of(&heads)).await.unwrap();
    assert_eq!(heard().await, Some(false));
    bench.door.ingest(&device, branch).await.unwrap();
    // What another device has given of that log, which is on the hub's own branch, says nothing of this device's.
    let another = world.devices[1].peer();
    world.devices[1].say_hello(&bench.door).await;
    assert!(matches!(bench.door.branch_came(&another, &fleet(), &own, seq).await.unwrap(), Reading::Later));
    assert_eq!(heard().await, Some(false));
    assert!(matches!(bench.door.branch_came(&device, &fleet(), &own, seq).await.unwrap(), Reading::Later));
    assert_eq!(heard().await, None, "both are heard, and the hub goes on");
    assert_eq!(text(&bench, &set("late")), "green");
}

#[tokio::test]
async fn a_list_that_was_put_off_is_asked_for_when_the_hub_has_learned() {
    let (world, bench, branch) = forked().await;
    let (device, own) = (world.devices[0].peer(), bench.door.identity().id());
    let seq = world.devices[0].channels[&fleet()].heads[&own].seq;
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    // Nothing that it gives is new: no log grows when the hub has learned.
    bench.door.ingest(&device, branch.into_iter().take(1).collect()).await.unwrap();
    let mut bell = bench.door.grown(&device);
    assert!(matches!(bench.door.branch_came(&device, &fleet(), &own, seq).await.unwrap(), Reading::Later));
    bell.mark_unchanged();
    assert!(backup::resume(&world.folder.path().join("copy")).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(bell.has_changed().unwrap());
    assert!(matches!(bench.door.branch_came(&device, &fleet(), &own, seq).await.unwrap(), Reading::Snapshot(_)));
}

#[tokio::test]
async fn a_branch_that_comes_late_is_taken_in_once_and_told_to_those_who_hold_the_other() {
    let (mut world, bench, branch) = forked().await;
    let device = world.devices[0].peer();
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    assert!(backup::resume(&world.folder.path().join("copy")).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
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
    world.teach(&bench).await;
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

#[tokio::test]
async fn a_list_from_before_the_fork_brings_back_nothing_that_was_withdrawn_since() {
    withdrawn_before_the_fork(Retention::default()).await;
}

#[tokio::test]
async fn a_list_from_before_all_that_is_kept_brings_back_no_registers() {
    withdrawn_before_the_fork(Retention { log_records_max: 2, ..Retention::default() }).await;
}

/// A device's proof begins with a list that names a Secret and a placement; both were withdrawn before the log was forked.
async fn withdrawn_before_the_fork(retention: Retention) {
    let mut world = World::new(retention).await;
    create_secret(&world.bench, "b2xk").await;
    create_needing_secret(&world.bench, "web").await;
    let pod = place_pod(&world.bench).await;
    let channel = ChannelName::Device(world.devices[0].node.clone());
    let list = list_of(&world.bench, &channel);
    let Input::Snapshot(listed) = &list else { unreachable!() };
    for sort in ["secret/", "placement/"] {
        assert!(listed.snapshot().list.items.iter().any(|entry| entry.item.as_str().starts_with(sort)), "{sort}");
    }
    world.pull().await;
    world.devices[0].evidence.push(list);
    world.bench.delete(&secret()).await.unwrap();
    let gone = pod.clone();
    world.bench.store.write(move |batch| Ok(batch.remove(&gone).map(drop)?)).await.unwrap();
    world.pull().await;
    create_secret(&world.bench, "bmV3").await;
    world.pull().await;
    let newer = world.bench.store.read(&secret()).unwrap().uid().to_owned();

    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(world.back_up(), copy.join("hub.sqlite")).unwrap();
    world.bench.create(daemon_set("late", "green")).await.unwrap();
    world.pull().await;
    let bench = Bench::open(&copy, retention).await;
    bench.create(daemon_set("one", "blue")).await.unwrap();
    let branch = as_branch(&world.devices[0].evidence, bench.door.identity().id());
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    bench.door.ingest(&world.devices[0].peer(), branch).await.unwrap();
    assert!(backup::resume(&copy).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    assert_eq!(text(&bench, &set("late")), "green", "what only the branch said is learned");
    let kept = bench.store.read(&secret()).unwrap();
    assert_eq!((kept.uid(), kept.text("/data/password")), (newer.as_str(), "bmV3"));
    assert!(kept.annotation(SECRET_ANNOTATION).is_none());
    assert!(bench.store.read(&pod).is_none());
}

#[tokio::test]
async fn what_was_made_anew_under_the_same_name_outlives_a_late_branch() {
    let (mut world, bench, _) = forked().await;
    // Only the first device heard of these.
    create_secret(&world.bench, "b2xk").await;
    create_needing_secret(&world.bench, "needing").await;
    let lost = place_pod(&world.bench).await;
    world.devices[0].pull(&world.bench.door).await;
    let branch = as_branch(&world.devices[0].evidence, bench.door.identity().id());
    learn::begin(&bench.door, "a", bench.store.incarnation()).await.unwrap();
    assert!(backup::resume(&world.folder.path().join("copy")).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    bench.create(daemon_set("late", "white")).await.unwrap();
    create_secret(&bench, "bmV3").await;
    place_pod(&bench).await;
    let keys = [set("late"), secret(), lost];
    let uids = || keys.each_ref().map(|key| bench.store.read(key).unwrap().uid().to_owned());
    let made = uids();
    bench.door.ingest(&world.devices[0].peer(), branch).await.unwrap();
    assert_eq!(uids(), made);
    assert_eq!(text(&bench, &set("late")), "white");
    assert_eq!(bench.store.read(&secret()).unwrap().text("/data/password"), "bmV3");
    assert!(bench.store.read(&set("needing")).is_some(), "the rest of the branch is taken in");
    let told = bench.store.setting(Setting::Learned).unwrap().unwrap();
    let told: learn::Report = serde_json::from_slice(&told).unwrap();
    for key in &keys {
        assert!(told.failed.iter().any(|line| line.starts_with(&key.to_string())), "{key}: {told:?}");
    }
    // Nobody is told of the older one.
    world.devices[1].pull(&bench.door).await;
    let late = fleet_of(&world.devices[1]).into_iter().filter(|value| value["object"]["metadata"]["name"] == "late");
    assert!(late.map(|value| value["object"]["metadata"]["uid"].clone()).eq([json!(made[0])]));
}

/// Its tombstone is pruned by then, and the records of it are no longer kept.
#[tokio::test]
async fn a_claimed_fork_brings_back_nothing_that_was_deleted_long_ago() {
    let mut world = World::new(Retention { log_records_max: 2, ..Retention::default() }).await;
    world.bench.create(daemon_set("gone", "red")).await.unwrap();
    world.pull().await;
    world.devices[0].evidence.push(list_of(&world.bench, &fleet()));
    world.bench.delete(&set("gone")).await.unwrap();
    for name in ["one", "two", "three"] {
        world.bench.create(daemon_set(name, "blue")).await.unwrap();
    }
    let many = world.bench.store.write(|batch| {
        (1..=64 * 32).try_for_each(|seq| batch.bury("fleet/north", &format!("uid-{seq}"), 1000 + seq))?;
        Ok::<_, ApiError>(())
    });
    many.await.unwrap();
    let bench = &world.bench;
    let own = bench.door.identity().id();
    let device = world.devices[0].peer();
    bench.door.forked(&device, &fleet(), &own, 1).await.unwrap();
    assert_ne!(bench.door.identity().id(), own);
    bench.door.ingest(&device, as_branch(&world.devices[0].evidence, own)).await.unwrap();
    assert!(!bench.door.lessons.is_on() && bench.store.read(&set("gone")).is_none());
}
