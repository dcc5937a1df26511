//! A database that learns of lives of the hub which it never lived, one after the other.

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_sync::channel::{ChannelName, GENESIS};
use flotilla_sync::replica::{Input, Replica};
use serde_json::json;

use super::forks::{list_of, place_pod};
use super::restore::{World, colour, daemon_set, set, text};
use crate::store::backup;
use crate::{Retention, learn};

/// A restored hub that has heard one of its two devices and goes on without the other.
async fn resumed(world: &World, from: &std::path::Path, name: &str, heard: usize) -> super::Bench {
    let bench = world.restored(from, name).await;
    world.devices[heard].give_back(&bench.door).await;
    assert!(backup::resume(&world.folder.path().join(name)).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    bench
}

/// The list of the first life says nothing of what the second one made, which the third has learned.
#[tokio::test]
async fn what_another_life_made_outlives_the_list_of_a_device_that_was_away() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let saved = world.back_up();
    for number in 0..8 {
        world.bench.merge(&set("web"), colour(&format!("green{number}"))).await.unwrap();
    }
    let channel = ChannelName::parse("fleet/north").unwrap();
    let list = list_of(&world.bench, &channel);
    // The second device reads all of it and leaves; the first one has seen no more than the backup has.
    let away = world.devices[1].peer();

    let second = resumed(&world, &saved, "second", 0).await;
    second.create(daemon_set("new", "blue")).await.unwrap();
    world.devices[0].pull(&second.door).await;
    drop(second);
    let third = resumed(&world, &saved, "third", 0).await;
    assert_eq!(text(&third, &set("new")), "blue", "learned from the device that has read it");

    let Input::Snapshot(listed) = &list else { unreachable!() };
    assert!(
        listed.snapshot().list.head.seq
            > third.store.logs().heads(&channel).values().map(|head| head.seq).min().unwrap()
    );
    third.door.ingest(&away, vec![list]).await.unwrap();
    assert_eq!(text(&third, &set("new")), "blue", "the list speaks for the life that signed it");
    assert_eq!(text(&third, &set("web")), "green7");
}

/// A placement leaves no trace when it is withdrawn: the list before that, which comes behind it, says nothing of it any more.
#[tokio::test]
async fn what_was_withdrawn_after_a_list_stays_so_when_the_list_comes_last() {
    let mut world = World::new(Retention::default()).await;
    let pod = place_pod(&world.bench).await;
    world.pull().await;
    let saved = world.back_up();
    let workload = ObjectKey::of(&kind::REPLICA_SET, "default", "app");
    world.bench.merge(&workload, json!({"metadata": {"labels": {"later": "yes"}}})).await.unwrap();
    world.pull().await;
    let second = world.restored(&saved, "second").await;
    world.teach(&second).await;
    let channel = ChannelName::Device(world.devices[0].node.clone());
    let list = list_of(&second, &channel);
    let Input::Snapshot(listed) = &list else { unreachable!() };
    assert_eq!(listed.snapshot().list.head.hash, GENESIS, "nothing was said before it");
    let gone = pod.clone();
    second.store.write(move |batch| Ok::<_, ApiError>(batch.remove(&gone).map(drop)?)).await.unwrap();
    let device = &mut world.devices[0];
    device.evidence.clear();
    device.channels.get_mut(&channel).unwrap().apply_snapshot(listed);
    device.pull(&second.door).await;
    drop(second);

    let third = resumed(&world, &saved, "third", 1).await;
    let device = &world.devices[0];
    let in_channel = |input: &Input| match input {
        Input::Batch(batch) => batch.batch().channel == channel,
        Input::Writer(_) => true,
        Input::Branch(_) | Input::Snapshot(_) => false,
    };
    let records: Vec<Input> = device.evidence.iter().filter(|input| in_channel(input)).cloned().collect();
    third.door.ingest(&device.peer(), records).await.unwrap();
    assert!(third.store.read(&pod).is_none(), "its placement was withdrawn");
    third.door.ingest(&device.peer(), vec![list]).await.unwrap();
    assert_eq!(third.store.read(&workload).unwrap().label("later"), Some("yes"), "documents are learned from it");
    assert!(third.store.read(&pod).is_none());
}
