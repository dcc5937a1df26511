//! History is bounded, and nobody notices: documents begun anew, logs cut off by size and age.

use std::sync::atomic::Ordering;

use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::rollout;
use flotilla_sync::channel::{ChannelName, ItemId, ItemKind};
use flotilla_sync::document::{Document, Edit, Epoch};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{Bench, Device};
use crate::Retention;
use crate::config::DATABASE_FILE;

fn daemon_set(image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn key() -> ObjectKey {
    ObjectKey::of(&kind::DAEMON_SET, "default", "web")
}

/// Text that does not compress, another one each round.
pub(crate) fn noise(round: u64) -> String {
    let mut state = round.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'#' + u8::try_from((state >> 40) % 90).unwrap())
    };
    (0..4000).map(|_| next()).collect()
}

async fn annotate(bench: &Bench, round: u64) {
    let notes = json!({"one": noise(round), "two": noise(round + (1 << 32))});
    bench.merge(&key(), json!({"metadata": {"annotations": notes}})).await.unwrap();
}

async fn stored(bench: &Bench, uid: &str) -> (u64, Vec<u8>) {
    let uid = uid.to_owned();
    bench
        .store
        .write(move |batch| Ok(batch.document(&uid)?.map(|(epoch, _, state)| (epoch, state)).unwrap()))
        .await
        .unwrap()
}

fn held(device: &Device, uid: &str) -> (u64, usize, Value) {
    let fleet = ChannelName::parse("fleet/north").unwrap();
    let item = &device.channels[&fleet].items[&ItemId::parse(uid).unwrap()];
    let ItemKind::Document(document) = &item.kind else { panic!("no document") };
    let object = Document::load(&document.saved).unwrap().object(&|_| None).unwrap();
    (document.epoch, document.saved.len(), object)
}

fn rows(folder: &std::path::Path, query: &str) -> i64 {
    let connection = Connection::open(folder.join(DATABASE_FILE)).unwrap();
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_device_that_was_away_for_a_hundred_epochs_comes_back_in_one_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let retention = Retention { log_records_max: 64, ..Retention::default() };
    let bench = Bench::open(folder.path(), retention).await;
    let mut near = bench.enrolled(folder.path(), "near", "north").await;
    let mut away = bench.enrolled(folder.path(), "away", "north").await;
    bench.create(daemon_set("a:1")).await.unwrap();
    let object = bench.store.read(&key()).unwrap();
    let (uid, first) = (object.uid().to_owned(), rollout::number_of(&object).unwrap());
    for device in [&mut near, &mut away] {
        device.pull(&bench.door).await;
        assert_eq!(held(device, &uid).0, 1);
    }
    // A rollout is under way all the time: both templates stay known.
    bench
        .merge(&key(), json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:2"}]}}}}))
        .await
        .unwrap();
    let second = rollout::number_of(&bench.store.read(&key()).unwrap()).unwrap();
    assert!(second > first);
    let mut round = 0;
    while stored(&bench, &uid).await.0 <= 100 {
        round += 1;
        annotate(&bench, round).await;
        if round % 7 == 0 {
            near.pull(&bench.door).await;
        }
        assert!(round < 2000, "the document does not begin anew");
    }
    near.pull(&bench.door).await;
    assert_eq!(away.snapshots, 0);
    away.pull(&bench.door).await;
    assert_eq!(away.snapshots, 1, "one list with its states brings it up to date");
    let (epoch, bytes, object) = held(&away, &uid);
    assert_eq!((epoch, bytes, object.clone()), held(&near, &uid));
    assert!(epoch > 100 && bytes < 64 * 1024, "epoch {epoch}, {bytes} bytes");
    for (number, image) in [(first, "a:1"), (second, "a:2")] {
        let found = bench.store.write({
            let uid = uid.clone();
            move |batch| Ok(batch.object_at_number(&uid, &number.to_string())?)
        });
        let template = found.await.unwrap().expect("the number is in flight");
        assert_eq!(template["spec"]["template"]["spec"]["containers"][0]["image"], image);
    }
    // What is left of all that at the hub is bounded.
    assert!(rows(folder.path(), "SELECT count(*) FROM past_epoch") <= 64);
    assert!(rows(folder.path(), "SELECT count(*) FROM past_epoch WHERE state IS NOT NULL") <= 2);
    assert!(rows(folder.path(), "SELECT sum(records) FROM head WHERE channel = 'fleet/north'") <= 64);
    bench.delete(&key()).await.unwrap();
    assert_eq!(rows(folder.path(), "SELECT count(*) FROM past_epoch"), 0);
}

#[tokio::test]
async fn many_small_edits_begin_a_document_anew_and_its_log_stays_short() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut device = bench.enrolled(folder.path(), "a", "north").await;
    bench.create(daemon_set("a:1")).await.unwrap();
    let uid = bench.store.read(&key()).unwrap().uid().to_owned();
    let edit = |number: u64| {
        bench
            .store
            .write(move |batch| Ok(batch.update(&key(), |object| object.set_annotation("n", &number.to_string()))?))
    };
    for number in 0..1100 {
        edit(number).await.unwrap();
    }
    assert_eq!(stored(&bench, &uid).await.0, 2);
    device.pull(&bench.door).await;
    let (epoch, bytes, object) = held(&device, &uid);
    assert_eq!((epoch, &object["metadata"]["annotations"]["n"]), (2, &json!("1099")));
    assert!(bytes < 8 * 1024, "{bytes} bytes");
}

#[tokio::test]
async fn only_the_keeper_or_a_later_hub_begins_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    bench.create(daemon_set("a:1")).await.unwrap();
    let object = bench.store.read(&key()).unwrap();
    let uid = object.uid().to_owned();
    // As a hub of a later life left it.
    let (_, saved) = stored(&bench, &uid).await;
    let document = Document::load(&saved).unwrap();
    let (value, rollouts) = (document.object(&|_| None).unwrap(), document.rollouts());
    assert_eq!(document.keeper(), bench.store.incarnation());
    let shape = |path: &[&str]| flotilla_manifests::schema::list_keys(&kind::DAEMON_SET, path);
    let edit = Edit { object: &value, rollouts: &rollouts, author: "", time_ms: 1 };
    let theirs = Document::create(edit, Epoch { number: 4, keeper: bench.store.incarnation() + 1 }, &shape, [5; 8]);
    let theirs = theirs.unwrap().save();
    let put = |uid: String, state: Vec<u8>| {
        bench.store.write(move |batch| Ok(batch.put_learned_document(&uid, 4, b"x", &state)?))
    };
    put(uid.clone(), theirs).await.unwrap();
    for round in 0..12 {
        annotate(&bench, round).await;
    }
    let (epoch, grown) = stored(&bench, &uid).await;
    assert_eq!(epoch, 4, "it is not this hub's to begin the next");
    assert!(grown.len() > 64 * 1024);
    // One that an earlier hub left is.
    let edit = Edit { object: &value, rollouts: &rollouts, author: "", time_ms: 1 };
    let earlier = Document::create(edit, Epoch { number: 4, keeper: 0 }, &shape, [5; 8]).unwrap().save();
    put(uid.clone(), earlier).await.unwrap();
    for round in 20..32 {
        annotate(&bench, round).await;
    }
    let (epoch, saved) = stored(&bench, &uid).await;
    assert!(epoch > 4, "epoch {epoch}");
    assert_eq!(Document::load(&saved).unwrap().keeper(), bench.store.incarnation());
}

#[tokio::test]
async fn what_is_old_goes_and_who_missed_it_is_served_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut device = bench.enrolled(folder.path(), "a", "north").await;
    let mut late = bench.enrolled(folder.path(), "b", "north").await;
    bench.create(daemon_set("a:1")).await.unwrap();
    device.pull(&bench.door).await;
    let day = 24 * 60 * 60 * 1000;
    bench.now.fetch_add(31 * day, Ordering::SeqCst);
    annotate(&bench, 1).await;
    assert_eq!(rows(folder.path(), "SELECT count(*) FROM batch WHERE channel = 'fleet/north'"), 1, "the newest alone");
    assert!(rows(folder.path(), "SELECT count(*) FROM audit") >= 2, "audit is kept for 90 days");
    for reader in [&mut device, &mut late] {
        reader.pull(&bench.door).await;
    }
    assert_eq!(device.holds(), {
        let mut holds = late.holds();
        holds.retain(|(channel, _), _| channel == "fleet/north");
        let mut own = device.holds();
        own.retain(|(channel, _), _| channel != "fleet/north");
        holds.extend(own);
        holds
    });
    assert!(late.snapshots > 0);
    bench.now.fetch_add(60 * day, Ordering::SeqCst);
    annotate(&bench, 2).await;
    device.pull(&bench.door).await;
    assert!(rows(folder.path(), "SELECT min(time) FROM audit") > 1_700_000_000_000);
}
