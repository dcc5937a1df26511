//! A backup from earlier, restored under devices that know better.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flotilla_manifests::api_error::Reason;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::rollout;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::Backend;
use flotilla_sync::channel::{ChannelName, GENESIS, Positions, positions_of};
use flotilla_sync::enrol::EnrolProof;
use flotilla_sync::replica::{Input, Reading, Replica};
use serde_json::{Value, json};

use super::{Bench, Device};
use crate::Retention;
use crate::learn;
use crate::store::backup::{self, BackupError, Part};

pub(super) fn daemon_set(name: &str, colour: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "host", "env": [{"name": "COLOUR", "value": colour}]}]}}}})
}

pub(super) fn colour(value: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "host", "env": [{"name": "COLOUR", "value": value}]}]}}}})
}

pub(super) fn set(name: &str) -> ObjectKey {
    ObjectKey::of(&kind::DAEMON_SET, "default", name)
}

pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) bench: Bench,
    pub(super) devices: Vec<Device>,
    retention: Retention,
}

impl World {
    pub(super) async fn new(retention: Retention) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("first");
        std::fs::create_dir(&first).unwrap();
        let bench = Bench::open(&first, retention).await;
        let mut devices = Vec::new();
        for name in ["a", "b"] {
            devices.push(bench.enrolled(&first, name, "north").await);
        }
        Self { folder, bench, devices, retention }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("first")
    }

    pub(super) fn back_up(&self) -> PathBuf {
        let target = self.folder.path().join("backup");
        backup::back_up(&self.data(), &target, Part::Everything, Timestamp(1_700_000_000_000), |_, _| {}).unwrap();
        target
    }

    pub(super) async fn pull(&mut self) {
        for device in &mut self.devices {
            device.pull(&self.bench.door).await;
        }
    }

    /// All devices give the hub what it lacks, and it looks at that.
    pub(super) async fn teach(&self, bench: &Bench) {
        for device in &self.devices {
            device.give_back(&bench.door).await;
        }
        learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    }

    /// The hub is gone; its backup takes its place in another folder.
    pub(super) async fn restored(&self, backup: &Path, name: &str) -> Bench {
        let data = self.folder.path().join(name);
        backup::restore(&data, backup, Timestamp(1_800_000_000_000)).unwrap();
        Bench::open(&data, self.retention).await
    }
}

pub(super) fn text(bench: &Bench, key: &ObjectKey) -> String {
    let object = bench.store.read(key).unwrap();
    object.text("/spec/template/spec/containers/0/env/0/value").to_owned()
}

#[tokio::test]
async fn a_restored_hub_learns_edits_creations_and_deletions_before_it_goes_on() {
    learns_back(Retention::default()).await;
}

#[tokio::test]
async fn what_devices_know_by_a_list_comes_back_too() {
    learns_back(Retention { log_records_max: 2, ..Retention::default() }).await;
}

async fn learns_back(retention: Retention) {
    let mut world = World::new(retention).await;
    for name in ["web", "gone", "stays"] {
        world.bench.create(daemon_set(name, "red")).await.unwrap();
    }
    world.pull().await;
    let backup = world.back_up();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.bench.delete(&set("gone")).await.unwrap();
    world.bench.create(daemon_set("fresh", "blue")).await.unwrap();
    // A second device that lacks some of it changes nothing; the first one that reads through a list does.
    world.devices[0].pull(&world.bench.door).await;
    world.bench.merge(&set("web"), colour("blue")).await.unwrap();
    world.devices[0].pull(&world.bench.door).await;
    let before = world.bench.store.read(&set("web")).unwrap();
    let fresh = world.bench.store.read(&set("fresh")).unwrap();
    let version = world.bench.store.version();

    let bench = world.restored(&backup, "second").await;
    assert!(bench.store.version() > version, "versions go up");
    assert_eq!(text(&bench, &set("web")), "red");
    let refused = bench.merge(&set("web"), colour("white")).await.unwrap_err();
    assert_eq!((refused.reason, refused.retry_after_seconds), (Reason::ServiceUnavailable, Some(1)));
    assert!(refused.message.contains("0 of 2 heard") && refused.message.contains("hub resume"), "{}", refused.message);
    assert!(bench.backend.ready().await.is_err());

    world.devices[0].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(bench.door.lessons.is_on(), "one of two devices was heard");
    world.devices[1].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    bench.backend.ready().await.unwrap();

    let web = bench.store.read(&set("web")).unwrap();
    assert_eq!(text(&bench, &set("web")), "blue");
    assert_eq!(rollout::number_of(&web), rollout::number_of(&before));
    assert_eq!((web.uid(), web.annotations()), (before.uid(), before.annotations()));
    assert!(bench.store.read(&set("gone")).is_none(), "what was deleted stays deleted");
    assert_eq!(bench.store.read(&set("fresh")).unwrap().uid(), fresh.uid());
    assert_eq!(text(&bench, &set("stays")), "red");

    // Nothing is rolled back at a device, and what is written now arrives, at a new device as at the old ones.
    let held = world.devices[0].holds();
    world.devices[0].pull(&bench.door).await;
    assert_eq!(world.devices[0].holds(), held);
    bench.merge(&set("web"), colour("white")).await.unwrap();
    bench.delete(&set("stays")).await.unwrap();
    let mut late = bench.enrolled(&world.folder.path().join("second"), "c", "north").await;
    late.pull(&bench.door).await;
    for device in &mut world.devices {
        device.pull(&bench.door).await;
        assert_eq!(fleet_of(device), fleet_of(&late));
        assert!(fleet_of(device).iter().any(|value| value.to_string().contains("white")));
        assert!(!fleet_of(device).iter().any(|value| value["object"]["metadata"]["name"] == "stays"));
    }
}

pub(super) fn fleet_of(device: &Device) -> Vec<Value> {
    let held = device.holds().into_iter().filter(|((channel, _), _)| channel.starts_with("fleet/"));
    held.map(|(_, value)| value).collect()
}

#[tokio::test]
async fn an_operator_goes_on_without_a_device_and_learns_from_it_later() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.bench.create(daemon_set("gone", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.devices[0].pull(&world.bench.door).await;
    world.bench.delete(&set("gone")).await.unwrap();
    world.bench.create(daemon_set("fresh", "blue")).await.unwrap();
    world.devices[1].pull(&world.bench.door).await;

    let bench = world.restored(&backup, "second").await;
    world.devices[0].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(bench.door.lessons.is_on());
    assert!(backup::resume(&world.folder.path().join("second")).unwrap());
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    assert_eq!(text(&bench, &set("web")), "green");
    assert!(bench.store.read(&set("gone")).is_some() && bench.store.read(&set("fresh")).is_none());
    // It is edited here meanwhile.
    bench.merge(&set("web"), json!({"metadata": {"labels": {"later": "yes"}}})).await.unwrap();

    world.devices[1].give_back(&bench.door).await;
    assert!(bench.store.read(&set("gone")).is_none(), "a deletion is believed late");
    assert_eq!(text(&bench, &set("fresh")), "blue");
    assert_eq!(bench.store.read(&set("web")).unwrap().label("later"), Some("yes"));
    world.pull_from(&bench).await;
    assert_eq!(fleet_of(&world.devices[0]), fleet_of(&world.devices[1]));
}

impl World {
    async fn pull_from(&mut self, bench: &Bench) {
        for device in &mut self.devices {
            device.pull(&bench.door).await;
        }
    }
}

#[tokio::test]
async fn two_copies_of_one_backup_are_two_lives_and_the_second_learns_of_the_first() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    let first = world.restored(&backup, "second").await;
    let second = world.restored(&backup, "third").await;
    assert_ne!(first.door.identity().id(), second.door.identity().id());
    world.teach(&first).await;
    first.merge(&set("web"), colour("green")).await.unwrap();
    world.pull_from(&first).await;
    let shown = first.store.incarnation();
    drop(first);

    world.teach(&second).await;
    assert!(!second.door.lessons.is_on());
    assert_ne!(second.store.incarnation(), shown);
    assert_eq!(text(&second, &set("web")), "green");
    second.merge(&set("web"), colour("blue")).await.unwrap();
    world.pull_from(&second).await;
    for device in &world.devices {
        assert!(fleet_of(device).iter().any(|value| value.to_string().contains("blue")), "{:?}", fleet_of(device));
    }
}

/// What a list says of the logs before its own is learned though records that follow it came first.
#[tokio::test]
async fn a_list_that_comes_behind_the_records_after_it_is_learned_from() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.bench.create(daemon_set("gone", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.bench.create(daemon_set("fresh", "blue")).await.unwrap();
    world.bench.delete(&set("gone")).await.unwrap();
    world.pull().await;
    let first = world.restored(&backup, "second").await;
    let channel = ChannelName::parse("fleet/north").unwrap();
    world.teach(&first).await;
    let list = super::forks::list_of(&first, &channel);
    let Input::Snapshot(listed) = &list else { unreachable!() };
    assert_eq!(listed.snapshot().list.head.hash, GENESIS, "nothing was said before it");
    first.merge(&set("web"), colour("blue")).await.unwrap();
    for device in &mut world.devices {
        // Of what was said before the list, the list is all that is kept.
        device.evidence.clear();
        device.channels.get_mut(&channel).unwrap().apply_snapshot(listed);
        device.pull(&first.door).await;
        device.evidence.push(list.clone());
    }
    drop(first);

    let second = world.restored(&backup, "third").await;
    world.teach(&second).await;
    assert!(!second.door.lessons.is_on(), "{:?}", second.door.lessons.current());
    assert_eq!((text(&second, &set("web")), text(&second, &set("fresh"))), ("blue".to_owned(), "blue".to_owned()));
    assert!(second.store.read(&set("gone")).is_none());
}

#[tokio::test]
async fn an_old_copy_put_in_place_is_found_out_by_its_devices() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    // As an operator copies a database at rest.
    let backup = world.back_up();
    std::fs::copy(&backup, copy.join("hub.sqlite")).unwrap();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.pull().await;

    let bench = Bench::open(&copy, Retention::default()).await;
    assert!(!bench.door.lessons.is_on(), "nobody has told it yet");
    let before = (bench.store.incarnation(), bench.door.identity().id());
    world.devices[0].give_back(&bench.door).await;
    assert!(bench.door.lessons.is_on());
    assert!(bench.store.incarnation() > before.0);
    assert_ne!(bench.door.identity().id(), before.1);
    world.devices[1].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    assert_eq!(text(&bench, &set("web")), "green");
    bench.merge(&set("web"), colour("blue")).await.unwrap();
    world.pull_from(&bench).await;
    assert!(fleet_of(&world.devices[0]).iter().any(|value| value.to_string().contains("blue")));
}

#[tokio::test]
async fn one_device_cannot_make_the_hub_pause_by_naming_numbers() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let door = &world.bench.door;
    let before = (world.bench.store.incarnation(), door.identity().id());
    let mut claimed = positions_of(&door.heads(&world.devices[0].peer()).await.unwrap());
    claimed.values_mut().for_each(|logs| logs.values_mut().for_each(|seq| *seq = u64::MAX));
    door.acknowledged(&world.devices[0].peer(), claimed).await.unwrap();
    // What the hub itself signed, said again, is no news.
    door.ingest(&world.devices[0].peer(), world.devices[0].evidence.clone()).await.unwrap();
    assert!(!door.lessons.is_on());
    assert_eq!((world.bench.store.incarnation(), door.identity().id()), before);
    world.bench.merge(&set("web"), colour("green")).await.unwrap();

    // A claimed fork is heeded now and then: everybody reads all again after it.
    let channel = ChannelName::parse("fleet/north").unwrap();
    let own = door.identity().id();
    door.forked(&world.devices[0].peer(), &channel, &own, 1).await.unwrap();
    let next = door.identity().id();
    assert_ne!(next, own);
    door.forked(&world.devices[0].peer(), &channel, &next, 1).await.unwrap_err();
    door.forked(&world.devices[0].peer(), &channel, &own, 1).await.unwrap();
    assert_eq!(door.identity().id(), next);
    world.bench.now.fetch_add(60 * 60 * 1000, std::sync::atomic::Ordering::SeqCst);
    door.forked(&world.devices[0].peer(), &channel, &next, 1).await.unwrap();
    assert_ne!(door.identity().id(), next);
}

#[tokio::test]
async fn records_it_never_wrote_tell_a_hub_that_it_is_an_old_copy() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(world.back_up(), copy.join("hub.sqlite")).unwrap();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.pull().await;

    // The greeting is from before the copy: the session went on without a new one.
    let bench = Bench::open(&copy, Retention::default()).await;
    let evidence = world.devices[0].evidence.clone();
    bench.door.ingest(&world.devices[0].peer(), evidence).await.unwrap();
    assert!(bench.door.lessons.is_on());
    world.teach(&bench).await;
    assert!(!bench.door.lessons.is_on());
    assert_eq!(text(&bench, &set("web")), "green");
}

#[tokio::test]
async fn a_hub_that_said_other_things_in_the_same_place_learns_what_it_said_before() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(world.back_up(), copy.join("hub.sqlite")).unwrap();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.pull().await;

    // The old copy writes on before any device comes: its log is as long as that the devices know, and another.
    let bench = Bench::open(&copy, Retention::default()).await;
    for name in ["one", "two", "three"] {
        bench.create(daemon_set(name, "blue")).await.unwrap();
    }
    let channel = ChannelName::parse("fleet/north").unwrap();
    let own = bench.door.identity().id();
    bench.door.forked(&world.devices[0].peer(), &channel, &own, 2).await.unwrap();
    assert_ne!(bench.door.identity().id(), own);
    assert!(!bench.door.lessons.is_on());
    let branch = world.devices[0].evidence.iter().map(|input| match input {
        Input::Batch(batch) => Input::Branch(batch.clone()),
        other => other.clone(),
    });
    let branch: Vec<Input> = branch.collect();
    bench.door.ingest(&world.devices[0].peer(), branch).await.unwrap();
    assert!(bench.door.lessons.is_on());
    for device in &world.devices {
        device.give_back(&bench.door).await;
        let seq = device.channels[&channel].heads[&own].seq;
        assert!(matches!(bench.door.branch_came(&device.peer(), &channel, &own, seq).await.unwrap(), Reading::Later));
    }
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    assert_eq!(text(&bench, &set("web")), "green");
    assert_eq!(text(&bench, &set("three")), "blue");
}

/// A device that is far behind is served a list while the hub learns: the present writer's, which has no record yet.
#[tokio::test]
async fn a_device_that_took_the_present_writers_list_is_heard() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.pull().await;
    let bench = world.restored(&backup, "second").await;
    let listed = BTreeMap::from([(bench.door.identity().id(), 7)]);
    let listed = Positions::from([(ChannelName::parse("fleet/north").unwrap(), listed)]);
    for device in &world.devices {
        device.give_back(&bench.door).await;
        bench.door.acknowledged(&device.peer(), listed.clone()).await.unwrap();
    }
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
}

/// A list says that all it does not name is gone: nobody may say so who has not taken in yet what was learned.
#[tokio::test]
async fn no_list_is_handed_out_of_a_channel_of_which_something_is_learned() {
    let mut world = World::new(Retention { log_records_max: 2, ..Retention::default() }).await;
    for name in ["web", "two", "three", "four"] {
        world.bench.create(daemon_set(name, "red")).await.unwrap();
    }
    world.pull().await;
    let backup = world.back_up();
    let before = world.bench.door.identity().id();
    world.bench.create(daemon_set("five", "red")).await.unwrap();
    world.pull().await;
    let bench = world.restored(&backup, "second").await;
    let channel = ChannelName::parse("fleet/north").unwrap();
    let read = async || bench.door.read(&channel, &before, 0, 64 * 1024).await.unwrap();
    assert!(matches!(read().await, Reading::Snapshot(_)), "nothing is learned yet");
    world.devices[0].give_back(&bench.door).await;
    assert!(matches!(read().await, Reading::Later));
    world.devices[1].give_back(&bench.door).await;
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    let Reading::Snapshot(snapshot) = read().await else { panic!("no list after all was taken in") };
    let five = bench.store.read(&set("five")).unwrap();
    assert!(snapshot.list.items.iter().any(|entry| entry.item.as_str() == five.uid()));
}

#[tokio::test]
async fn a_backup_is_whole_or_refused() {
    let world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    let backup = world.back_up();
    let contents = backup::check(&backup).unwrap();
    assert!(contents.tables.iter().any(|(name, rows)| name == "object" && *rows > 5));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&backup).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    // Never over another file, never into a folder with a hub.
    let again = backup::back_up(&world.data(), &backup, Part::Everything, Timestamp(0), |_, _| {});
    assert!(matches!(again, Err(BackupError::Exists { .. })));
    assert!(backup::restore(&world.data(), &backup, Timestamp(0)).is_err());
    assert!(!world.folder.path().join("backup.partial").exists());

    let whole = std::fs::read(&backup).unwrap();
    let bad = world.folder.path().join("bad");
    for (what, bytes) in [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("no database", vec![7; 4096]),
        ("an altered row", altered(&whole)),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        assert!(backup::check(&bad).is_err(), "{what}");
        assert!(backup::restore(&world.folder.path().join("none"), &bad, Timestamp(0)).is_err(), "{what}");
        assert!(!world.folder.path().join("none/hub.sqlite").exists(), "{what}");
    }
}

/// One byte of one row is another.
fn altered(whole: &[u8]) -> Vec<u8> {
    let needle = b"COLOUR";
    let at = whole.windows(needle.len()).position(|window| window == needle).unwrap();
    let mut altered = whole.to_vec();
    altered[at] = b'D';
    altered
}

#[tokio::test]
async fn the_keys_alone_bring_an_empty_hub_back_that_learns_everything() {
    let mut world = World::new(Retention::default()).await;
    let keys = world.folder.path().join("keys");
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    backup::back_up(&world.data(), &keys, Part::Keys, Timestamp(1_700_000_000_000), |_, _| {}).unwrap();
    world.bench.merge(&set("web"), colour("green")).await.unwrap();
    world.pull().await;
    let uid = world.bench.store.read(&set("web")).unwrap().uid().to_owned();

    let bench = world.restored(&keys, "second").await;
    assert!(bench.store.read(&set("web")).is_none());
    for device in &world.devices {
        super::welcome(&bench, device.node.as_str()).await;
        device.give_back(&bench.door).await;
    }
    learn::look(&bench.door, &mut learn::Looked::default()).await.unwrap();
    assert!(!bench.door.lessons.is_on());
    assert_eq!(bench.store.read(&set("web")).unwrap().uid(), uid);
    assert_eq!(text(&bench, &set("web")), "green");
    let node = bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
    assert_eq!(node.label("flotilla.dev/fleet"), Some("north"));
}

#[tokio::test]
async fn a_device_that_joined_after_the_backup_is_taken_back_by_a_token_for_its_name() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    let backup = world.back_up();
    let mut late = world.bench.enrolled(&world.data(), "late", "north").await;
    world.pull().await;
    late.pull(&world.bench.door).await;
    let node = ObjectKey::of(&kind::NODE, "", "late");
    let uid = world.bench.store.read(&node).unwrap().uid().to_owned();

    let bench = world.restored(&backup, "second").await;
    world.teach(&bench).await;
    assert_eq!(crate::fleet::welcome(&bench.door, "late").await, crate::fleet::Welcome::Unknown);
    let proof = || EnrolProof::Device { node_uid: uid.clone() };
    let refused = bench.enrol(&late, proof()).await.unwrap_err();
    assert!(refused.message.contains("token create --node late"), "{}", refused.message);
    super::token(&world.folder.path().join("second"), Some("late"), "north", 1);
    let response = bench.enrol(&late, proof()).await.unwrap();
    assert_eq!((response.node_uid.as_str(), response.fleet.as_str()), (uid.as_str(), "north"));
    let held = late.holds();
    late.give_back(&bench.door).await;
    late.pull(&bench.door).await;
    assert_eq!(late.holds(), held, "nothing changes at the device");
    assert_eq!(bench.store.read(&node).unwrap().uid(), uid);
}

#[tokio::test]
async fn a_workload_switched_off_by_its_selector_stays_off() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"nobody": "here"}}}}});
    world.bench.merge(&set("web"), nowhere).await.unwrap();
    world.pull().await;
    assert_eq!(fleet_of(&world.devices[0]), Vec::<Value>::new());
    let uid = world.bench.store.read(&set("web")).unwrap().uid().to_owned();

    let bench = world.restored(&backup, "second").await;
    world.teach(&bench).await;
    let web = bench.store.read(&set("web")).unwrap();
    assert_eq!((web.uid(), web.text("/spec/template/spec/nodeSelector/nobody")), (uid.as_str(), "here"));
    world.pull_from(&bench).await;
    assert_eq!(fleet_of(&world.devices[0]), Vec::<Value>::new(), "it was switched off");
    // Deleted while no channel has it: a hub that learns later knows that too.
    bench.delete(&set("web")).await.unwrap();
    world.pull_from(&bench).await;
    drop(bench);
    let again = world.restored(&backup, "third").await;
    world.teach(&again).await;
    assert!(!again.door.lessons.is_on());
    assert!(again.store.read(&set("web")).is_none());
}

/// Its last content was said before it left the channel: the backup lacks it, and the devices' proofs do not.
#[tokio::test]
async fn a_workload_made_since_and_switched_off_comes_back_switched_off() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("web", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"nobody": "here"}}}}});
    for name in ["late", "brief"] {
        world.bench.create(daemon_set(name, "blue")).await.unwrap();
        world.pull().await;
        world.bench.merge(&set(name), nowhere.clone()).await.unwrap();
        world.pull().await;
    }
    world.bench.delete(&set("brief")).await.unwrap();
    world.pull().await;
    let before = world.bench.store.read(&set("late")).unwrap();

    let bench = world.restored(&backup, "second").await;
    world.teach(&bench).await;
    assert!(!bench.door.lessons.is_on());
    let late = bench.store.read(&set("late")).unwrap();
    assert_eq!((late.uid(), late.spec()), (before.uid(), before.spec()));
    assert!(bench.store.read(&set("brief")).is_none(), "it was deleted where no channel had it");
    world.pull_from(&bench).await;
    let held = fleet_of(&world.devices[0]);
    assert!(!held.iter().any(|value| value["object"]["metadata"]["name"] == "late"), "{held:?}");
}

#[tokio::test]
async fn an_old_record_said_again_brings_nothing_back() {
    let mut world = World::new(Retention::default()).await;
    world.bench.create(daemon_set("gone", "red")).await.unwrap();
    world.pull().await;
    let backup = world.back_up();
    world.bench.delete(&set("gone")).await.unwrap();
    world.pull().await;
    let bench = world.restored(&backup, "second").await;
    world.teach(&bench).await;
    assert!(bench.store.read(&set("gone")).is_none());
    // A device that says the signed creation again, as a batch, or as a branch of a fork that it claims.
    let said: Vec<Input> = world.devices[0].evidence.clone();
    let branches = said.iter().map(|input| match input {
        Input::Batch(batch) => Input::Branch(batch.clone()),
        other => other.clone(),
    });
    let branches: Vec<Input> = branches.collect();
    bench.door.ingest(&world.devices[0].peer(), said).await.unwrap();
    bench.door.ingest(&world.devices[0].peer(), branches).await.unwrap();
    assert!(bench.store.read(&set("gone")).is_none());
}
