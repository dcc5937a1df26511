//! A worn disk at the hub: every kind of row damaged, one after the other, under devices that must not notice.

use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_sync::channel::ChannelName;
use rusqlite::Connection;
use serde_json::json;

use super::{Bench, Device};
use crate::Retention;
use crate::config::DATABASE_FILE;
use crate::store::{Store, StoreError, check};

struct World {
    folder: tempfile::TempDir,
    bench: Option<Bench>,
    device: Device,
    retention: Retention,
}

impl World {
    async fn new(retention: Retention) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::open(folder.path(), retention).await;
        let device = bench.enrolled(folder.path(), "a", "north").await;
        let mut world = Self { folder, bench: Some(bench), device, retention };
        for name in ["web", "other"] {
            let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": "host"}]}}}});
            world.bench().create(set).await.unwrap();
        }
        world.pull().await;
        world
    }

    fn bench(&self) -> &Bench {
        self.bench.as_ref().unwrap()
    }

    async fn pull(&mut self) {
        let bench = self.bench.take().unwrap();
        self.device.pull(&bench.door).await;
        self.bench = Some(bench);
    }

    /// Changes the database at rest, and starts the hub again on it.
    async fn damage(&mut self, statement: &str) {
        self.bench = None;
        let changed = Connection::open(self.folder.path().join(DATABASE_FILE)).unwrap().execute(statement, []).unwrap();
        assert!(changed > 0, "{statement}");
        self.bench = Some(Bench::open(self.folder.path(), self.retention).await);
    }

    /// A device that was here, and one that comes new, hold the same; edits arrive.
    async fn goes_on(&mut self, colour: &str) {
        let web = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
        self.bench().merge(&web, json!({"metadata": {"labels": {"colour": colour}}})).await.unwrap();
        self.pull().await;
        let mut fresh = self.bench().enrolled(self.folder.path(), &format!("new-{colour}"), "north").await;
        fresh.pull(&self.bench().door).await;
        let fleet = ChannelName::parse("fleet/north").unwrap();
        let held = |device: &Device| {
            let all = device.holds().into_iter().filter(|((channel, _), _)| *channel == fleet.to_string());
            all.map(|((_, id), value)| (id, value)).collect::<Vec<_>>()
        };
        assert_eq!(held(&self.device), held(&fresh));
        assert_eq!(held(&fresh).len(), 2);
        assert!(held(&fresh).iter().any(|(_, value)| value.to_string().contains(colour)));
    }

    fn damages(&self) -> Vec<String> {
        check::check(self.folder.path()).unwrap().damages
    }
}

#[tokio::test]
async fn a_damaged_document_is_made_again_from_its_object() {
    let mut world = World::new(Retention::default()).await;
    assert_eq!(world.damages(), Vec::<String>::new());
    world.damage("UPDATE document SET state = x'00112233'").await;
    assert!(!world.damages().is_empty(), "it is listed before anybody meets it");
    world.goes_on("red").await;
    assert!(world.damages().iter().any(|line| line.contains("set aside")), "{:?}", world.damages());
}

#[tokio::test]
async fn a_damaged_document_in_a_list_is_made_again_and_not_left_out() {
    let mut world = World::new(Retention { log_records_max: 2, ..Retention::default() }).await;
    for round in 0..4 {
        let other = ObjectKey::of(&kind::DAEMON_SET, "default", "other");
        world.bench().merge(&other, json!({"metadata": {"labels": {"round": round.to_string()}}})).await.unwrap();
    }
    world.damage("UPDATE document SET state = x'00112233'").await;
    let mut fresh = world.bench().enrolled(world.folder.path(), "b", "north").await;
    fresh.pull(&world.bench().door).await;
    assert!(fresh.snapshots > 0);
    assert_eq!(fresh.holds().keys().filter(|(channel, _)| channel == "fleet/north").count(), 2);
    world.goes_on("green").await;
}

#[tokio::test]
async fn a_damaged_log_is_replaced_by_a_list() {
    for damaged in ["x'ff00'", "substr(body, 1, length(body) - 1) || x'ff'"] {
        let mut world = World::new(Retention::default()).await;
        world.damage(&format!("UPDATE batch SET body = CAST({damaged} AS BLOB) WHERE channel = 'fleet/north'")).await;
        world.goes_on("blue").await;
        assert!(world.damages().iter().any(|line| line.contains("batch")), "{:?}", world.damages());
    }
}

#[tokio::test]
async fn a_damaged_object_is_made_again_from_its_document() {
    let mut world = World::new(Retention::default()).await;
    let web = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    let before = world.bench().store.read(&web).unwrap();
    let held = world.device.holds();
    world.damage("UPDATE object SET body = x'7b' WHERE kind = 'DaemonSet' AND name = 'web'").await;
    let after = world.bench().store.read(&web).unwrap();
    assert_eq!((after.uid(), after.spec()), (before.uid(), before.spec()));
    world.pull().await;
    assert_eq!(world.device.holds(), held, "the device was told nothing");
    world.goes_on("white").await;
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named_with_the_way_out() {
    let mut world = World::new(Retention::default()).await;
    world.bench = None;
    let path = world.folder.path().join(DATABASE_FILE);
    let whole = std::fs::read(&path).unwrap();
    let mut zeroed = whole.clone();
    zeroed[4096..].fill(0);
    for (what, bytes) in [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("zeroed", zeroed),
        ("foreign", b"no database at all".repeat(300)),
    ] {
        std::fs::write(&path, bytes).unwrap();
        for ending in ["-wal", "-shm"] {
            drop(std::fs::remove_file(world.folder.path().join(format!("{DATABASE_FILE}{ending}"))));
        }
        let error = Store::open(&path, Retention::default(), crate::clock::system()).unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{what}: {error:?}");
        let said = error.to_string();
        assert!(said.contains(DATABASE_FILE) && said.contains("flotilla hub restore"), "{said}");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else_until_there_is_room() {
    let world = World::new(Retention::default()).await;
    let bench = world.bench();
    // As full as a disk can be made from here: the database may not grow by a page.
    let limit = |pages: &'static str| {
        bench.store.write(move |batch| {
            batch.limit_pages(pages);
            Ok(())
        })
    };
    limit("PRAGMA max_page_count = 1").await.unwrap();
    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large", "namespace": "default"},
        "data": {"text": "x".repeat(600_000)}});
    let refused = bench.create(large.clone()).await.unwrap_err();
    assert_eq!(refused.reason, flotilla_manifests::api_error::Reason::ServiceUnavailable);
    assert!(refused.message.contains("disk is full") && refused.retry_after_seconds.is_some(), "{refused:?}");
    let web = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    assert!(bench.store.read(&web).is_some());
    limit("PRAGMA max_page_count = 1000000").await.unwrap();
    bench.create(large).await.unwrap();
    bench.merge(&web, json!({"metadata": {"labels": {"later": "yes"}}})).await.unwrap();
}
