//! A database that learns of lives of the hub which it never lived, one after the other.

use flotilla_sync::channel::ChannelName;
use flotilla_sync::replica::{Input, Replica};

use super::forks::list_of;
use super::restore::{World, colour, daemon_set, set, text};
use crate::store::backup;
use crate::{Retention, learn};

/// A restored hub that goes on without its second device, and the folder it is in.
async fn resumed(world: &World, from: &std::path::Path, name: &str) -> super::Bench {
    let bench = world.restored(from, name).await;
    world.devices[0].give_back(&bench.door).await;
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

    let second = resumed(&world, &saved, "second").await;
    second.create(daemon_set("new", "blue")).await.unwrap();
    world.devices[0].pull(&second.door).await;
    drop(second);
    let third = resumed(&world, &saved, "third").await;
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
