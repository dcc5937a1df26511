//! Whatever is written, in whatever order, over restarts and truncations: devices hold what the objects want.

use std::collections::BTreeMap;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use serde_json::{Value, json};

use super::{Bench, Device};
use crate::Retention;
use crate::publish::content::{self, Content};
use crate::publish::{Channel, Publication};

/// A small generator with a seed that a failure prints (Knuth, MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn daemon_set(name: &str, image: u64, site: Option<u64>) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": format!("host:{image}"),
        "envFrom": [{"configMapRef": {"name": format!("map{}", image % 3)}}],
        "ports": [{"containerPort": 80}, {"containerPort": 81}]}]});
    if let Some(site) = site {
        spec["nodeSelector"] = json!({"site": site.to_string()});
    }
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

/// What each channel of a device should hold, straight from the objects.
fn wanted(bench: &Bench, device: &Device) -> BTreeMap<(String, String), Value> {
    bench.store.view(|index| {
        let publication = Publication::full(index);
        let mut wanted = BTreeMap::new();
        for (channel, item) in publication.wanted() {
            let name = channel.to_string();
            let reads = device.channels.keys().any(|own| own.to_string() == name);
            let Some(content) = content::of(index, channel, item).filter(|_| reads) else { continue };
            let id = content.id().to_owned();
            let value = match content {
                Content::Document { object, rollouts, .. } => json!({"object": object, "rollouts": rollouts}),
                Content::Register { value, .. } => value,
                Content::Secret { namespace, name, uid, .. } => {
                    json!({"namespace": namespace, "name": name, "uid": uid})
                }
            };
            wanted.insert((name, id), value);
        }
        wanted
    })
}

fn check(bench: &Bench, device: &Device, seed: u64, step: u64) {
    let mut held = device.holds();
    for value in held.values_mut() {
        if let Some(map) = value.as_object_mut() {
            map.remove("sealed");
        }
    }
    assert_eq!(held, wanted(bench, device), "device {} after step {step} of seed {seed}", device.node);
}

async fn act(bench: &Bench, chance: &mut Chance) {
    let name = format!("ds{}", chance.below(3));
    let set = ObjectKey::of(&kind::DAEMON_SET, "default", name.as_str());
    let map = ObjectKey::of(&kind::CONFIG_MAP, "default", format!("map{}", chance.below(3)));
    let node = ObjectKey::of(&kind::NODE, "", ["a", "b"][usize::try_from(chance.below(2)).unwrap()]);
    let (number, site) = (chance.below(100), chance.below(3));
    // A refusal (it exists, it does not exist) is one of the things that happen.
    let result = match chance.below(9) {
        0 => bench.create(daemon_set(&name, number, (site > 0).then_some(site))).await,
        1 | 2 => {
            let patch = daemon_set(&name, number, (site > 0).then_some(site));
            bench.merge(&set, json!({"spec": {"template": patch["spec"]["template"]}})).await
        }
        3 => bench.delete(&set).await,
        4 => {
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map.name, "namespace": "default"},
                "data": {"x": number.to_string()}});
            bench.create(value).await
        }
        5 => bench.merge(&map, json!({"data": {"x": number.to_string(), "y": null}})).await,
        6 => bench.delete(&map).await,
        7 => bench.merge(&node, json!({"metadata": {"labels": {"site": site.to_string()}}})).await,
        _ => bench.merge(&set, json!({"metadata": {"labels": {"n": number.to_string()}}})).await,
    };
    drop(result);
    if chance.below(5) == 0 {
        // A write that fails after it has done its work leaves nothing, in the channels neither.
        let (key, other) = (set.clone(), map.clone());
        let write = bench.store.write(move |batch| -> Result<(), ApiError> {
            batch.remove(&key)?;
            batch.remove(&other)?;
            batch.remove(&ObjectKey::of(&kind::NODE, "", "a"))?;
            Err(ApiError::of(Reason::BadRequest, "no"))
        });
        assert!(write.await.is_err());
    }
    if chance.below(40) == 0 {
        // So does one whose document no device could take: each value is small, all together are too much.
        let noise = |at: u64| json!({"name": format!("E{at}"), "value": super::epochs::noise(at)});
        let env: Vec<Value> = (0..360).map(noise).collect();
        let spec = json!({"containers": [{"name": "c", "image": "host", "env": env}]});
        match bench.merge(&set, json!({"spec": {"template": {"spec": spec}}})).await {
            Err(error) if error.reason == Reason::RequestEntityTooLarge => {
                assert!(error.message.contains("daemonsets.apps default/ds"));
            }
            Err(error) => assert_eq!(error.reason, Reason::NotFound),
            Ok(_) => panic!("a manifest that no record holds was accepted"),
        }
    }
    if chance.below(4) == 0 {
        // Content that lets a document grow into its next epoch.
        let noise = super::epochs::noise(chance.below(1 << 20));
        drop(bench.merge(&set, json!({"metadata": {"annotations": {"noise": noise}}})).await);
    }
    let uid = bench.store.read(&set).map(|set| set.uid().to_owned());
    if let Some(uid) = uid.filter(|_| chance.below(3) == 0) {
        let grant = (chance.below(2) == 0).then(|| format!("1-{}", chance.below(5) + 1));
        let threshold = chance.below(1000);
        let number = bench.store.read(&set).unwrap().annotation("flotilla.dev/rollout").unwrap().to_owned();
        let write = bench.store.write(move |batch| {
            batch.set_grant(&uid, "a", grant.as_deref())?;
            batch.set_threshold(&uid, &number, Some(threshold))?;
            Ok(())
        });
        write.await.unwrap();
    }
}

#[tokio::test]
async fn devices_hold_what_the_objects_want() {
    let mut snapshots = 0;
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        // Small logs: a device that stays away for some steps finds them truncated.
        let retention = Retention { log_records_max: 6, ..Retention::default() };
        let mut bench = Bench::open(folder.path(), retention).await;
        let mut near = bench.enrolled(folder.path(), "a", "north").await;
        let mut far = bench.enrolled(folder.path(), "b", "south").await;
        let mut chance = Chance(seed * 7919 + 1);
        let mut late = Device { keys: far.keys, ..Device::new("b") };
        far.keys = flotilla_sync::identity::DeviceKeys::generate().unwrap();
        for step in 0..60 {
            act(&bench, &mut chance).await;
            near.pull(&bench.door).await;
            check(&bench, &near, seed, step);
            if chance.below(20) == 0 {
                far.pull(&bench.door).await;
                check(&bench, &far, seed, step);
            }
            if chance.below(25) == 0 {
                // With the clock back where it was.
                drop(bench);
                bench = Bench::open(folder.path(), retention).await;
            }
            if chance.below(20) == 0 {
                bench.now.fetch_add(31 * 24 * 60 * 60 * 1000, std::sync::atomic::Ordering::SeqCst);
            }
        }
        far.pull(&bench.door).await;
        check(&bench, &far, seed, 60);
        late.pull(&bench.door).await;
        check(&bench, &late, seed, 60);
        snapshots += far.snapshots + late.snapshots;
    }
    assert!(snapshots > 12, "devices that were away found lists instead of logs {snapshots} times only");
}

#[tokio::test]
async fn a_fleet_push_is_one_change_and_one_batch_however_many_devices() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    for name in ["a", "b", "c"] {
        bench.enrolled(folder.path(), name, "north").await;
    }
    bench.create(daemon_set("web", 1, None)).await.unwrap();
    let fleet = flotilla_sync::channel::ChannelName::parse("fleet/north").unwrap();
    let seq = |bench: &Bench| bench.store.logs().heads(&fleet).values().map(|head| head.seq).max().unwrap();
    let before = seq(&bench);
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    bench.merge(&key, json!({"metadata": {"labels": {"x": "y"}}})).await.unwrap();
    assert_eq!(seq(&bench), before + 1);
    let writer = bench.door.identity().id();
    let reading = bench.store.logs().read(&bench.door.identity(), &fleet, &writer, before, 1 << 20).unwrap();
    let flotilla_sync::replica::Reading::Batches(batches) = reading else { panic!("a list") };
    assert!(batches[0].payload.len() < 400, "a one-field change costs {} bytes", batches[0].payload.len());
    // Status and the hub's bookkeeping cost nothing.
    let before = seq(&bench);
    bench
        .store
        .write(move |batch| {
            batch.update(&key, |object| object.value_mut()["status"] = json!({"numberReady": 3}))?;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(seq(&bench), before);
}

#[tokio::test]
async fn a_device_that_lacks_a_day_of_changes_reads_one_list_and_the_rest_from_memory() {
    use flotilla_sync::replica::Reading;
    const BYTES_MAX: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut device = bench.enrolled(folder.path(), "a", "north").await;
    bench.create(daemon_set("web", 1, None)).await.unwrap();
    device.pull(&bench.door).await;
    assert_eq!(device.snapshots, 0);
    let fleet = flotilla_sync::channel::ChannelName::parse("fleet/north").unwrap();
    let (identity, logs) = (bench.door.identity(), bench.store.logs());
    let writer = identity.id();
    let head = || logs.heads(&fleet)[&writer].seq;
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    let label = |value: usize| json!({"metadata": {"labels": {"x": value.to_string()}}});
    let before = head();
    for edit in 0..100 {
        bench.merge(&key, label(edit)).await.unwrap();
    }
    assert!(
        logs.at_hand(&identity, &fleet, &writer, before, BYTES_MAX).is_none(),
        "no list is made while nobody needs it"
    );
    device.pull(&bench.door).await;
    assert_eq!(device.snapshots, 1, "a hundred edits of one document are longer than the document");
    check(&bench, &device, 0, 0);
    let listed = head();
    for edit in 100..103 {
        bench.merge(&key, label(edit)).await.unwrap();
    }
    // The next one finds the list that was made, and what came after it.
    let Some(Reading::Snapshot(kept)) = logs.at_hand(&identity, &fleet, &writer, before, BYTES_MAX) else {
        panic!("the list is not kept")
    };
    assert_eq!(kept.list.head.seq, listed);
    let Some(Reading::Batches(rest)) = logs.at_hand(&identity, &fleet, &writer, listed, BYTES_MAX) else {
        panic!("the newest batches are not kept")
    };
    assert_eq!((rest.len(), rest.last().unwrap().last_seq), (3, head()));
    let Reading::Batches(stored) = logs.read(&identity, &fleet, &writer, listed, BYTES_MAX).unwrap() else {
        panic!("a list for three records")
    };
    assert_eq!(stored, rest, "memory and disk say the same");
    device.pull(&bench.door).await;
    assert_eq!(device.snapshots, 1);
    check(&bench, &device, 0, 1);
    // A hub that starts has nothing in memory, and finds it on the disk.
    drop(bench);
    let bench = Bench::open(folder.path(), Retention::default()).await;
    assert!(bench.store.logs().at_hand(&identity, &fleet, &writer, listed, BYTES_MAX).is_none());
    let Reading::Batches(again) = bench.store.logs().read(&identity, &fleet, &writer, listed, BYTES_MAX).unwrap()
    else {
        panic!("a list for three records")
    };
    assert_eq!(again, rest);
    let learned = bench.store.logs().at_hand(&identity, &fleet, &writer, listed, BYTES_MAX);
    assert!(matches!(learned, Some(Reading::Batches(batches)) if batches == rest), "and keeps it for the next");
}

#[tokio::test]
async fn a_forked_log_is_followed_by_a_new_writer_that_says_everything_again() {
    use flotilla_sync::replica::Replica;
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut device = bench.enrolled(folder.path(), "a", "north").await;
    bench.create(daemon_set("web", 1, None)).await.unwrap();
    device.pull(&bench.door).await;
    let old = bench.door.identity().id();
    let channel = flotilla_sync::channel::ChannelName::parse("fleet/north").unwrap();
    bench.door.forked(&device.peer(), &channel, &old, 1).await.unwrap();
    assert_ne!(bench.door.identity().id(), old);
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    bench.delete(&key).await.unwrap();
    bench.create(daemon_set("other", 2, None)).await.unwrap();
    device.pull(&bench.door).await;
    check(&bench, &device, 0, 0);
    let mut fresh = Device::new("a");
    fresh.pull(&bench.door).await;
    check(&bench, &fresh, 0, 1);
    let fresh_writer = bench.door.identity().id();
    drop(bench);
    let bench = Bench::open(folder.path(), Retention::default()).await;
    assert_eq!(bench.door.identity().id(), fresh_writer, "the new writer is remembered");
}

#[tokio::test]
async fn secrets_are_sealed_to_the_device_that_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut device = bench.enrolled(folder.path(), "a", "north").await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"},
        "data": {"password": "aHVudGVyMg=="}});
    bench.create(secret).await.unwrap();
    let mut value = daemon_set("web", 1, None);
    value["spec"]["template"]["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "key"}}]);
    bench.create(value).await.unwrap();
    device.pull(&bench.door).await;
    let (_, register) = device.holds().into_iter().find(|((_, id), _)| id.starts_with("secret/")).unwrap();
    let uid = register["uid"].as_str().unwrap();
    let sealed =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, register["sealed"].as_str().unwrap())
            .unwrap();
    let opened =
        flotilla_sync::identity::open(&device.keys.sealing, format!("secret/{uid}").as_bytes(), &sealed).unwrap();
    let opened: Value = serde_json::from_slice(&opened).unwrap();
    assert_eq!(opened["data"]["password"], "aHVudGVyMg==");
    let shown = Channel::Fleet("north".into()).to_string();
    assert!(device.holds().keys().all(|(channel, id)| *channel != shown || !id.starts_with("secret/")));
}

#[tokio::test]
async fn a_document_that_grew_by_its_history_starts_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let mut near = bench.enrolled(folder.path(), "a", "north").await;
    bench.create(daemon_set("web", 1, None)).await.unwrap();
    let map = ObjectKey::of(&kind::CONFIG_MAP, "default", "map1");
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map1", "namespace": "default"}, "data": {}});
    bench.create(value).await.unwrap();
    for step in 0..12 {
        let noise = |part: u64| super::epochs::noise(step * 8 + part);
        let data = json!({"0": noise(0), "1": noise(1), "2": noise(2), "3": noise(3), "4": noise(4)});
        bench.merge(&map, json!({"data": data})).await.unwrap();
        near.pull(&bench.door).await;
        check(&bench, &near, 3, step);
    }
    let uid = bench.store.read(&map).unwrap().uid().to_owned();
    let fleet = flotilla_sync::channel::ChannelName::parse("fleet/north").unwrap();
    let item = &near.channels[&fleet].items[&flotilla_sync::channel::ItemId::parse(&uid).unwrap()];
    let flotilla_sync::channel::ItemKind::Document(document) = &item.kind else { panic!("no document") };
    assert!(document.epoch > 1, "still in epoch {}", document.epoch);
    assert!(document.saved.len() < 128 * 1024, "{} bytes", document.saved.len());
}
