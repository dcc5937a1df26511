//! What two hubs wrote without knowing of each other: nothing of it is silently undone.

use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_sync::document::Edit;
use serde_json::{Value, json};

use super::*;
use crate::Retention;
use crate::tests::Bench;

/// A DaemonSet with annotations.
fn noted(notes: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "m", "namespace": "default", "annotations": notes},
        "spec": {"selector": {"matchLabels": {"app": "m"}}, "template": {"metadata": {"labels": {"app": "m"}},
        "spec": {"containers": [{"name": "c", "image": "a:1"}]}}}})
}

fn key() -> ObjectKey {
    ObjectKey::of(&kind::DAEMON_SET, "default", "m")
}

fn shape(path: &[&str]) -> Option<&'static [&'static str]> {
    flotilla_manifests::schema::list_keys(&kind::DAEMON_SET, path)
}

/// The document of that DaemonSet, and of the epoch before with an edit that its hub never saw.
async fn cut_and_edited(bench: &Bench, edit: impl FnOnce(&mut Value)) -> (String, Vec<u8>, u64, Vec<u8>) {
    bench.create(noted(json!({"a": "1", "b": "1", "gone": "x"}))).await.unwrap();
    let uid = bench.store.read(&key()).unwrap().uid().to_owned();
    let stored = |uid: String| bench.store.write(move |batch| Ok(batch.document(&uid)?.unwrap()));
    let (epoch, _, before) = stored(uid.clone()).await.unwrap();
    let mut elsewhere = Document::load(&before).unwrap().with_actor([9; 8]);
    let mut object = elsewhere.object(&|_| None).unwrap();
    edit(&mut object);
    let rollouts = elsewhere.rollouts();
    let edit = Edit { object: &object, rollouts: &rollouts, author: "operator:bob", time_ms: 1_700_000_000_000 };
    elsewhere.edit(edit, &shape).unwrap().unwrap();
    // Here the document grows until its hub begins the next epoch.
    let mut round = 0_u64;
    loop {
        round += 1;
        let noise = crate::tests::epochs::noise(round);
        bench
            .merge(&key(), json!({"metadata": {"annotations": {"noise": noise, "b": round.to_string()}}}))
            .await
            .unwrap();
        if stored(uid.clone()).await.unwrap().0 > epoch {
            break;
        }
        assert!(round < 200, "no new epoch");
    }
    bench.merge(&key(), json!({"metadata": {"annotations": {"noise": null, "gone": null}}})).await.unwrap();
    let (now, _, saved) = stored(uid.clone()).await.unwrap();
    assert_eq!(now, epoch + 1);
    (uid, saved, epoch, elsewhere.save())
}

async fn take_in(bench: &Bench, uid: &str, saved: &[u8], epoch: u64, late: &[u8]) -> Replayed {
    let (uid, saved, late) = (uid.to_owned(), saved.to_vec(), late.to_vec());
    let taken = bench.store.write(move |batch| replay(batch, &uid, &saved, &[OtherState { epoch, saved: &late }]));
    taken.await.unwrap()
}

fn events(bench: &Bench) -> Vec<(String, String)> {
    let listed = bench.store.list(&kind::EVENT, Some("default")).items;
    let late = listed.iter().filter(|event| event.text("/reason") == "LateChange");
    late.map(|event| (event.text("/type").to_owned(), event.text("/message").to_owned())).collect()
}

#[tokio::test]
async fn an_edit_to_an_epoch_that_is_over_counts_and_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let (uid, saved, epoch, late) = cut_and_edited(&bench, |object| {
        object["metadata"]["annotations"]["a"] = json!("2");
        object["metadata"]["annotations"]["c"] = json!("new");
        object["metadata"]["labels"] = json!({"late": "yes"});
    })
    .await;
    let b = bench.store.read(&key()).unwrap().text("/metadata/annotations/b").to_owned();
    let replayed = take_in(&bench, &uid, &saved, epoch, &late).await;
    assert_eq!((replayed.changes.len(), replayed.unclear.len()), (1, 0), "{replayed:?}");
    let object = bench.store.read(&key()).unwrap();
    let mut notes = object.at("/metadata/annotations").unwrap().clone();
    notes.as_object_mut().unwrap().retain(|name, _| name.len() <= 4);
    assert_eq!(notes, json!({"a": "2", "b": b, "c": "new"}), "their edit, and none of ours undone");
    assert_eq!(object.text("/metadata/labels/late"), "yes");
    let told = events(&bench);
    assert_eq!(told.len(), 1);
    assert!(told[0].1.contains("operator:bob") && told[0].1.contains("annotations.a"), "{told:?}");

    // The channels carry it under its author's name, and once more changes nothing.
    let (_, _, saved) = bench
        .store
        .write({
            let uid = uid.clone();
            move |batch| Ok(batch.document(&uid)?.unwrap())
        })
        .await
        .unwrap();
    let version = bench.store.read(&key()).unwrap().resource_version();
    take_in(&bench, &uid, &saved, epoch, &late).await;
    assert_eq!(bench.store.read(&key()).unwrap().resource_version(), version);
}

#[tokio::test]
async fn a_template_edited_in_an_old_epoch_gets_a_number_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let set = |image: &str, note: &str| {
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default", "annotations": {"note": note}},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}})
    };
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    bench.create(set("a:1", "")).await.unwrap();
    let object = bench.store.read(&key).unwrap();
    let (uid, number) = (object.uid().to_owned(), rollout::number_of(&object).unwrap());
    let stored = |uid: String| bench.store.write(move |batch| Ok(batch.document(&uid)?.unwrap()));
    let (_, _, before) = stored(uid.clone()).await.unwrap();
    let mut old = Document::load(&before).unwrap();
    let cut = old.heads();
    let mut elsewhere = Document::load(&before).unwrap().with_actor([9; 8]);
    let mut theirs = elsewhere.object(&|_| None).unwrap();
    theirs["spec"]["template"]["spec"]["containers"][0]["image"] = json!("a:2");
    let rollouts = old.rollouts();
    let edit = Edit { object: &theirs, rollouts: &rollouts, author: "bob", time_ms: 1_700_000_000_000 };
    elsewhere.edit(edit, &shape).unwrap().unwrap();
    let ours = old.object(&|_| None).unwrap();
    let edit = Edit { object: &ours, rollouts: &rollouts, author: "", time_ms: 1 };
    let mut new = old.succeed(edit, 1, &shape, [3; 8]).unwrap();
    assert_eq!(new.follows(), cut);
    let replayed = take_in(&bench, &uid, &new.save(), 1, &elsewhere.save()).await;
    assert_eq!(replayed.changes.len(), 1, "{replayed:?}");
    let object = bench.store.read(&key).unwrap();
    assert_eq!(object.text("/spec/template/spec/containers/0/image"), "a:2");
    let newer = rollout::number_of(&object).unwrap();
    assert!(newer > number, "{newer} after {number}");
    let thresholds = bench.store.view(|index| index.rollout(&uid).thresholds);
    assert!(thresholds.contains_key(&newer.to_string()), "{thresholds:?}");
}

#[tokio::test]
async fn an_old_state_whose_cut_nobody_knows_undoes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let (uid, saved, epoch, late) =
        cut_and_edited(&bench, |object| object["metadata"]["annotations"]["a"] = json!("2")).await;
    let forget = |uid: String| bench.store.write(move |batch| Ok(batch.forget_past_epochs(&uid)?));
    forget(uid.clone()).await.unwrap();
    let before = bench.store.read(&key()).unwrap();
    let replayed = take_in(&bench, &uid, &saved, epoch, &late).await;
    assert_eq!((replayed.changes.len(), replayed.unclear.len()), (0, 1), "{replayed:?}");
    assert_eq!(bench.store.read(&key()).unwrap(), before);
}
