//! What devices report, as rows.

use bytes::Bytes;
use flotilla_manifests::derive::{NodeRef, daemon_pod_name, daemon_pod_uid};
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::rollout;
use flotilla_sync::channel::{ChannelName, ItemId};
use flotilla_sync::observation::{Clock, Observation};
use flotilla_sync::replica::Replica;
use serde_json::{Value, json};

use super::{Bench, Device};
use crate::Retention;

fn observation(subject: &str, seq: u64, body: Option<Value>) -> Observation {
    Observation {
        subject: subject.into(),
        clock: Clock { incarnation: 2, boot: 1, seq },
        time_ms: 1_700_000_000_000,
        body: body.map(|body| Bytes::from(body.to_string())),
    }
}

struct Reported {
    folder: tempfile::TempDir,
    bench: Bench,
    device: Device,
    set: ObjectKey,
}

impl Reported {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::open(folder.path(), Retention::default()).await;
        let device = bench.enrolled(folder.path(), "a", "north").await;
        let value = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "host", "env": [{"name": "COLOUR", "value": "red"}]}]}}}});
        bench.create(value).await.unwrap();
        Self { folder, bench, device, set: ObjectKey::of(&kind::DAEMON_SET, "default", "web") }
    }

    fn pod_key(&self) -> ObjectKey {
        ObjectKey::of(&kind::POD, "default", daemon_pod_name("web", "a"))
    }

    /// Uid and body of this device's pod at the DaemonSet's present number.
    fn pod(&self, attempt: u64, phase: &str) -> (String, Value) {
        let set = self.bench.store.read(&self.set).unwrap();
        let node = self.bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
        let number = rollout::number_of(&set).unwrap();
        let uid = daemon_pod_uid(set.uid(), &NodeRef::of(&node).uid, number, attempt);
        let body = json!({"namespace": "default", "name": daemon_pod_name("web", "a"), "uid": uid, "workload": set.uid(),
            "number": number.to_string(), "attempt": attempt, "status": {"phase": phase}});
        (uid, body)
    }

    async fn observe(&self, observations: Vec<Observation>) {
        self.bench.door.observe(&self.device.peer(), observations).await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_pod_lives_from_its_first_report_to_its_confirmed_end() {
    let mut world = Reported::new().await;
    let (uid, body) = world.pod(0, "Running");
    let subject = format!("pod/{uid}");
    world.observe(vec![observation(&subject, 5, Some(body))]).await;
    let pod = world.bench.store.read(&world.pod_key()).unwrap();
    assert_eq!(pod.text("/status/phase"), "Running");
    assert_eq!(pod.text("/spec/nodeName"), "a");
    assert_eq!(pod.controller().unwrap().kind, "DaemonSet");
    // An older report has no effect, whenever it comes.
    let (_, old) = world.pod(0, "Pending");
    world.observe(vec![observation(&subject, 4, Some(old))]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().text("/status/phase"), "Running");

    // Deleting it at the hub asks the device; the row waits for the answer.
    world.bench.delete(&world.pod_key()).await.unwrap();
    world.device.pull(&world.bench.door).await;
    assert_eq!(world.device.item("device/a", &format!("evict/{uid}")), Some(json!({"uid": uid})));
    assert!(world.bench.store.read(&world.pod_key()).unwrap().deletion_timestamp().is_some());
    world.observe(vec![observation(&subject, 6, None)]).await;
    assert!(world.bench.store.read(&world.pod_key()).is_none());
    world.device.pull(&world.bench.door).await;
    assert_eq!(world.device.item("device/a", &format!("evict/{uid}")), None);
    // A late report of what has ended does not bring it back.
    let (_, late) = world.pod(0, "Running");
    world.observe(vec![observation(&subject, 5, Some(late))]).await;
    assert!(world.bench.store.read(&world.pod_key()).is_none());
}

/// A restored hub shows a pod whose end only its earlier life was told.
#[tokio::test]
async fn what_a_device_does_not_list_has_ended() {
    let world = Reported::new().await;
    let (uid, body) = world.pod(0, "Running");
    let all = |seq: u64, uids: &[&str]| vec![observation("pods", seq, Some(json!({"uids": uids})))];
    world.observe(vec![observation(&format!("pod/{uid}"), 5, Some(body.clone()))]).await;
    world.observe(all(6, &[&uid, "another"])).await;
    assert!(world.bench.store.read(&world.pod_key()).is_some());
    world.observe(all(7, &["another"])).await;
    assert!(world.bench.store.read(&world.pod_key()).is_none());
    // One that began after the list was made stands.
    world.observe(vec![observation(&format!("pod/{uid}"), 9, Some(body))]).await;
    world.observe(all(8, &[])).await;
    assert!(world.bench.store.read(&world.pod_key()).is_some());
}

/// Found by the simulation: a restored hub that nobody could teach a placement let its Pod run on for ever, unseen.
#[tokio::test]
async fn what_the_hub_never_placed_is_ended_once() {
    let mut world = Reported::new().await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app", "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "app"}}, "template": {"metadata": {"labels": {"app": "app"}},
            "spec": {"containers": [{"name": "c", "image": "host"}]}}}});
    world.bench.create(deployment).await.unwrap();
    let deployment = world.bench.store.read(&ObjectKey::of(&kind::DEPLOYMENT, "default", "app")).unwrap();
    let uid = "3b0d0f44-6d0c-4c0e-8b0e-0a8c6b8f4a11";
    let report = |seq| {
        let body = json!({"namespace": "default", "name": "app-x", "uid": uid, "workload": deployment.uid(), "number": "1-1",
            "attempt": 0, "status": {"phase": "Running"}});
        observation(&format!("pod/{uid}"), seq, Some(body))
    };
    world.device.pull(&world.bench.door).await;
    world.observe(vec![report(1)]).await;
    world.device.pull(&world.bench.door).await;
    let own = ChannelName::Device(world.device.node.clone());
    let placement = ItemId::parse(&format!("placement/{uid}")).unwrap();
    let ended = world.device.channels[&own].items[&placement].clone();
    assert!(ended.removed().is_some(), "{ended:?}");
    let heads = world.device.channels[&own].heads.clone();
    world.observe(vec![report(2)]).await;
    world.device.pull(&world.bench.door).await;
    assert_eq!(world.device.channels[&own].heads, heads, "it has been said");
}

#[tokio::test]
async fn the_later_number_or_attempt_stands_whichever_report_comes_first() {
    let world = Reported::new().await;
    let (old, old_body) = world.pod(0, "Running");
    world
        .bench
        .merge(&world.set, json!({"spec": {"template": {"metadata": {"annotations": {"x": "y"}}}}}))
        .await
        .unwrap();
    let (fresh, fresh_body) = world.pod(0, "Running");
    assert_ne!(old, fresh);
    world.observe(vec![observation(&format!("pod/{fresh}"), 9, Some(fresh_body))]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().uid(), fresh);
    world.observe(vec![observation(&format!("pod/{old}"), 3, Some(old_body))]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().uid(), fresh);
    world.observe(vec![observation(&format!("pod/{old}"), 4, None)]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().uid(), fresh);
}

/// Found by the simulation: a device whose card was replaced by an old copy runs an older number again. While the later Pod stood, the
/// hub took the device for updated and never let it move on.
#[tokio::test]
async fn a_device_that_runs_an_older_number_again_is_believed() {
    let world = Reported::new().await;
    let (old, old_body) = world.pod(0, "Running");
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"x": "y"}}}}});
    world.bench.merge(&world.set, patch).await.unwrap();
    let (fresh, fresh_body) = world.pod(0, "Running");
    world.observe(vec![observation(&format!("pod/{fresh}"), 9, Some(fresh_body))]).await;
    world.observe(vec![observation(&format!("pod/{old}"), 10, Some(old_body.clone()))]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().uid(), old);

    // Also when its template is no longer known: then nothing is shown, which is the truth as far as it is known.
    let (fresh, fresh_body) = world.pod(0, "Running");
    world.observe(vec![observation(&format!("pod/{fresh}"), 11, Some(fresh_body))]).await;
    let mut forgotten = old_body;
    forgotten["number"] = "1-999".into();
    forgotten["uid"] = "7d9b4f0e-2f6c-8a3e-9b1d-3f6e5d4c2b1a".into();
    world.observe(vec![observation("pod/7d9b4f0e-2f6c-8a3e-9b1d-3f6e5d4c2b1a", 12, Some(forgotten))]).await;
    assert!(world.bench.store.read(&world.pod_key()).is_none());
}

#[tokio::test]
async fn a_pod_of_an_older_number_is_shown_with_its_own_template() {
    let world = Reported::new().await;
    let (old, old_body) = world.pod(0, "Running");
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "other"}]}}}});
    world.bench.merge(&world.set, patch).await.unwrap();
    world.observe(vec![observation(&format!("pod/{old}"), 3, Some(old_body))]).await;
    let pod = world.bench.store.read(&world.pod_key()).unwrap();
    assert_eq!(pod.text("/spec/containers/0/image"), "host");
}

#[tokio::test]
async fn a_device_speaks_of_its_own_pods_alone() {
    let world = Reported::new().await;
    let (uid, body) = world.pod(0, "Running");
    let other = world.bench.enrolled(world.folder.path(), "b", "north").await;
    let peer = other.peer();
    world.bench.door.observe(&peer, vec![observation(&format!("pod/{uid}"), 1, Some(body.clone()))]).await.unwrap();
    assert!(world.bench.store.read(&world.pod_key()).is_none());
    world.observe(vec![observation(&format!("pod/{uid}"), 1, Some(body.clone()))]).await;
    let mut forged = body;
    forged["status"]["phase"] = "Failed".into();
    let reports = vec![
        observation(&format!("pod/{uid}"), 2, Some(forged)),
        observation(&format!("pod/{uid}"), 3, None),
        observation("node", 4, Some(json!({"phase": "x"}))),
        observation("nonsense", 5, Some(json!([1]))),
        Observation { body: Some(Bytes::from_static(b"\xff{")), ..observation("pod/x", 6, None) },
    ];
    world.bench.door.observe(&peer, reports).await.unwrap();
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().text("/status/phase"), "Running");
    let node = world.bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
    assert_eq!(node.text("/status/phase"), "");
}

mod overrides {
    use std::collections::BTreeMap;

    use flotilla_manifests::overrides::{OverrideRecord, Target, between};
    use flotilla_manifests::time::Timestamp;
    use flotilla_sync::channel::{ChannelName, ItemId};
    use flotilla_sync::identity::DeviceCertificate;
    use flotilla_sync::identity::writer::WriterIdentity;
    use flotilla_sync::log::LogWriter;
    use flotilla_sync::record::Draft;
    use flotilla_sync::replica::{Input, Replica};
    use serde_json::json;

    use super::{Reported, observation};
    use flotilla_manifests::kind;
    use flotilla_manifests::object::ObjectKey;

    fn log_of(world: &Reported) -> LogWriter {
        log_by(world, [7; 32])
    }

    /// The log of another life of the device's database.
    pub(super) fn log_by(world: &Reported, secret: [u8; 32]) -> LogWriter {
        let node = world.bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
        let keys = &world.device.keys;
        let certificate: DeviceCertificate = world
            .bench
            .installation
            .certify_device(&world.device.node, node.uid(), keys.signing.public(), keys.sealing.public().unwrap(), 1)
            .unwrap();
        let identity = WriterIdentity::for_device(secret, 2, &keys.signing, &certificate).unwrap();
        LogWriter::new(identity, BTreeMap::new())
    }

    #[tokio::test]
    async fn removed_overrides_are_forgotten_in_the_end() {
        let world = Reported::new().await;
        let mut log = log_of(&world);
        let channel = ChannelName::Device(world.device.node.clone());
        let peer = world.device.peer();
        let mut inputs = vec![Input::Writer(log.identity().chain().clone())];
        for number in 0..300 {
            let id = ItemId::parse(&format!("override/o{number}")).unwrap();
            let drafts = vec![Draft::register(id.clone(), b"{}".to_vec(), "technician", 5), Draft::remove(id, "", 6)];
            inputs.push(Input::Batch(log.append(&channel, drafts).unwrap()));
        }
        world.bench.door.ingest(&peer, inputs.clone()).await.unwrap();
        let items = world.bench.store.write(move |batch| Ok(batch.device_items(&channel)?)).await.unwrap();
        let left: Vec<&str> = items.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(left.len(), 256);
        assert!(left.contains(&"override/o299") && !left.contains(&"override/o43"), "the oldest go first");
        assert_eq!(world.bench.door.ingest(&peer, inputs).await.unwrap().applied, 0, "said again, nothing comes back");
    }

    #[tokio::test]
    async fn many_overrides_of_one_device_hold_nobody_up() {
        let world = Reported::new().await;
        let (uid, body) = world.pod(0, "Running");
        world.observe(vec![observation(&format!("pod/{uid}"), 1, Some(body))]).await;
        let base = world.bench.store.read(&world.set).unwrap();
        let draft = |number: u32| {
            let mut changed = (*base).clone();
            changed.value_mut()["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] =
                format!("c{number}").into();
            let record = OverrideRecord {
                id: format!("o{number}"),
                target: Target::of(&base),
                operations: between(&base, &changed),
                author: "technician".into(),
                reason: String::new(),
                time: Timestamp(1_700_000_000_000 + u64::from(number)),
                expires: None,
            };
            let id = ItemId::parse(&format!("override/o{number}")).unwrap();
            Draft::register(id, serde_json::to_vec(&record).unwrap(), "technician", 5)
        };
        let mut log = log_of(&world);
        let channel = ChannelName::Device(world.device.node.clone());
        let batch = log.append(&channel, (0..1000).map(draft).collect()).unwrap();
        let inputs = vec![Input::Writer(log.identity().chain().clone()), Input::Batch(batch)];
        let version = world.bench.store.version();
        assert_eq!(world.bench.door.ingest(&world.device.peer(), inputs).await.unwrap().applied, 1000);
        let pod = world.bench.store.read(&world.pod_key()).unwrap();
        assert_eq!(pod.text("/spec/containers/0/env/0/value"), "c999");
        assert_eq!(world.bench.store.version() - version, 1001, "each is shown once, and the Pod follows once");
    }

    #[tokio::test]
    async fn a_device_fills_no_more_than_its_share_of_the_hub() {
        let world = Reported::new().await;
        let mut log = log_of(&world);
        let channel = ChannelName::Device(world.device.node.clone());
        let peer = world.device.peer();
        let id = |number: u32| ItemId::parse(&format!("other/o{number}")).unwrap();
        let mut inputs = vec![Input::Writer(log.identity().chain().clone())];
        for start in (0..2100).step_by(700) {
            let drafts =
                (start..start + 700).map(|number| Draft::register(id(number), b"{}".to_vec(), "x", 5)).collect();
            inputs.push(Input::Batch(log.append(&channel, drafts).unwrap()));
        }
        let ingested = world.bench.door.ingest(&peer, inputs).await.unwrap();
        assert_eq!((ingested.applied, ingested.set_aside.len()), (2048, 52), "{:?}", ingested.set_aside.first());
        // What is there can be changed and removed.
        let drafts = vec![Draft::register(id(7), b"[]".to_vec(), "x", 6), Draft::remove(id(8), "x", 6)];
        let batch = log.append(&channel, drafts).unwrap();
        assert_eq!(world.bench.door.ingest(&peer, vec![Input::Batch(batch)]).await.unwrap().applied, 2);
    }

    #[tokio::test]
    async fn an_override_is_shown_reverted_and_ends_with_its_base() {
        let mut world = Reported::new().await;
        let (uid, body) = world.pod(0, "Running");
        world.observe(vec![observation(&format!("pod/{uid}"), 1, Some(body))]).await;
        let base = world.bench.store.read(&world.set).unwrap();
        let mut changed = (*base).clone();
        changed.value_mut()["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "blue".into();
        let record = OverrideRecord {
            id: "6c1f".into(),
            target: Target::of(&base),
            operations: between(&base, &changed),
            author: "technician".into(),
            reason: "site visit".into(),
            time: Timestamp(1_700_000_000_000),
            expires: None,
        };
        let mut log = log_of(&world);
        let channel = ChannelName::Device(world.device.node.clone());
        let id = ItemId::parse("override/6c1f").unwrap();
        let draft = Draft::register(id.clone(), serde_json::to_vec(&record).unwrap(), "technician", 5);
        let batch = log.append(&channel, vec![draft]).unwrap();
        let inputs = vec![Input::Writer(log.identity().chain().clone()), Input::Batch(batch)];
        let peer = world.device.peer();
        assert_eq!(world.bench.door.ingest(&peer, inputs.clone()).await.unwrap().applied, 1);
        assert_eq!(world.bench.door.ingest(&peer, inputs).await.unwrap().applied, 0, "again: no effect");
        let shown = ObjectKey::of(&kind::OVERRIDE, "default", "a.6c1f");
        assert_eq!(world.bench.store.read(&shown).unwrap().text("/spec/author"), "technician");
        let pod = world.bench.store.read(&world.pod_key()).unwrap();
        assert_eq!(pod.text("/spec/containers/0/env/0/value"), "blue");

        // Deleting it asks the device; the device's removal ends it.
        world.bench.delete(&shown).await.unwrap();
        world.device.pull(&world.bench.door).await;
        assert_eq!(world.device.item("device/a", "revert/6c1f"), Some(json!({})));
        let removal = log.append(&channel, vec![Draft::remove(id.clone(), "", 6)]).unwrap();
        world.bench.door.ingest(&peer, vec![Input::Batch(removal)]).await.unwrap();
        assert!(world.bench.store.read(&shown).is_none());
        let pod = world.bench.store.read(&world.pod_key()).unwrap();
        assert_eq!(pod.text("/spec/containers/0/env/0/value"), "red");
        world.device.pull(&world.bench.door).await;
        assert_eq!(world.device.item("device/a", "revert/6c1f"), None);

        // Once more, and the base goes.
        let draft = Draft::register(id, serde_json::to_vec(&record).unwrap(), "technician", 7);
        let again = log.append(&channel, vec![draft]).unwrap();
        world.bench.door.ingest(&peer, vec![Input::Batch(again)]).await.unwrap();
        world.bench.delete(&world.set).await.unwrap();
        world.device.pull(&world.bench.door).await;
        assert_eq!(world.device.item("device/a", "revert/6c1f"), Some(json!({"baseDeleted": true})));
    }
}

#[tokio::test]
async fn a_connected_device_is_shown_with_how_far_it_is() {
    use flotilla_rest::backend::Backend;
    use flotilla_sync::channel::positions_of;
    let world = Reported::new().await;
    let key = ObjectKey::of(&kind::NODE, "", "a");
    let shown = world.bench.backend.read(&key).await.unwrap();
    assert_eq!(shown.annotation("flotilla.dev/sync"), None, "not in contact: unknown");
    let peer = world.device.peer();
    world.bench.door.acknowledged(&peer, std::collections::BTreeMap::new()).await.unwrap();
    let shown = world.bench.backend.read(&key).await.unwrap();
    assert!(shown.annotation("flotilla.dev/sync").unwrap().starts_with("behind "));
    let heads = world.bench.door.heads(&peer).await.unwrap();
    world.bench.door.acknowledged(&peer, positions_of(&heads)).await.unwrap();
    let listed = world.bench.backend.list(&kind::NODE, None).await.unwrap().items.remove(0);
    assert_eq!(listed.annotation("flotilla.dev/sync"), None, "what a page leaves out is not looked at");
    let shown = world.bench.backend.shown(listed);
    assert_eq!(shown.annotation("flotilla.dev/sync"), Some("synced")); // Written back as it was shown, it is not stored.
    let edited = flotilla_manifests::admission::Mutation::Replace {
        part: flotilla_manifests::admission::Part::Main,
        body: shown.value().clone(),
    };
    world.bench.write(key.clone(), edited).await.unwrap();
    assert_eq!(world.bench.store.read(&key).unwrap().annotation("flotilla.dev/sync"), None);
}

#[tokio::test]
async fn a_report_that_clients_could_not_read_is_not_shown() {
    let world = Reported::new().await;
    let (uid, body) = world.pod(0, "Running");
    world.observe(vec![observation(&format!("pod/{uid}"), 1, Some(body.clone()))]).await;
    let mut poison = body;
    poison["status"] = json!({"phase": "Failed", "containerStatuses": "none"});
    let node = json!({"conditions": [{"type": 5}], "capacity": {"cpu": "4"}});
    let fine = json!({"capacity": {"cpu": "4"}, "nonsense": 1});
    world.observe(vec![observation(&format!("pod/{uid}"), 2, Some(poison)), observation("node", 2, Some(fine))]).await;
    world.observe(vec![observation("node", 3, Some(node))]).await;
    assert_eq!(world.bench.store.read(&world.pod_key()).unwrap().text("/status/phase"), "Running");
    let node = world.bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
    assert_eq!(node.status(), Some(&json!({"capacity": {"cpu": "4"}})));
}

#[tokio::test]
async fn an_event_is_a_devices_own_and_takes_nobodys_place() {
    let world = Reported::new().await;
    let other = world.bench.enrolled(world.folder.path(), "b", "north").await.peer();
    let set = world.bench.store.read(&world.set).unwrap();
    let event = |uid: &str, reason: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "reason": reason, "source": {"host": "b"},
            "metadata": {"namespace": "default", "name": "e1", "uid": uid, "finalizers": ["x.io/y"]}})
    };
    world.observe(vec![observation("event/1", 1, Some(event(set.uid(), "Started")))]).await;
    let forged = vec![observation("event/1", 1, Some(event("z", "Forged")))];
    world.bench.door.observe(&other, forged).await.unwrap();
    let stored = world.bench.store.read(&ObjectKey::of(&kind::EVENT, "default", "e1")).unwrap();
    assert_eq!((stored.text("/reason"), stored.text("/source/host")), ("Started", "a"));
    assert_eq!(stored.finalizers(), Vec::<String>::new());
    let by_uid = world.bench.store.view(|index| index.by_uid(set.uid()).map(|found| found.key()));
    assert_eq!(by_uid, Some(world.set.clone()), "the uid still names the DaemonSet");
}

/// Who writes in a device's channel: its own lives, and no more of them than the hub remembers.
mod writers {
    use std::collections::BTreeMap;

    use flotilla_sync::channel::{ChannelName, Head, ItemId, WriterId};
    use flotilla_sync::identity::NodeName;
    use flotilla_sync::identity::writer::WriterIdentity;
    use flotilla_sync::list::{ChannelSnapshot, SignedList};
    use flotilla_sync::record::Draft;
    use flotilla_sync::replica::{Input, Replica};

    use super::Reported;
    use super::overrides::log_by;

    /// A device that means harm begins anew as often as it likes.
    #[tokio::test]
    async fn of_very_many_writers_of_a_device_the_oldest_are_forgotten() {
        let world = Reported::new().await;
        let (channel, peer) = (ChannelName::Device(world.device.node.clone()), world.device.peer());
        let mut lives = Vec::new();
        for number in 0..260_u32 {
            let mut secret = [1; 32];
            secret[..4].copy_from_slice(&number.to_be_bytes());
            let mut log = log_by(&world, secret);
            let id = ItemId::parse(&format!("override/o{number}")).unwrap();
            let draft = Draft::register(id, b"{}".to_vec(), "technician", 5);
            let batch = log.append(&channel, vec![draft]).unwrap();
            lives.push((log.identity().chain().clone(), Input::Batch(batch)));
        }
        for (chain, batch) in &lives {
            let inputs = vec![Input::Writer(chain.clone()), batch.clone()];
            world.bench.door.ingest(&peer, inputs).await.unwrap();
        }
        let logs = || world.bench.store.logs().heads(&channel);
        let known = || lives.iter().map(|(chain, _)| chain.id).filter(|id| logs().contains_key(id)).collect::<Vec<_>>();
        let (first, last) = (&lives[0], &lives[259]);
        assert_eq!(known().len(), 256);
        assert!(known().contains(&last.0.id) && !known().contains(&first.0.id), "the oldest are forgotten");
        assert!(world.bench.store.logs().writer(&first.0.id).unwrap().is_none());
        let own = channel.clone();
        let items = world.bench.store.write(move |batch| Ok(batch.device_items(&own)?.len())).await.unwrap();
        assert_eq!(items, 260, "what they said is kept");

        // The first comes back in the place of the next.
        world.bench.door.ingest(&peer, vec![Input::Writer(first.0.clone())]).await.unwrap();
        assert_eq!(known().len(), 255, "it has said nothing since");
        let refused = world.bench.door.ingest(&peer, vec![lives[4].1.clone()]).await.unwrap_err();
        assert!(format!("{:?}", refused.source).contains("is not known"), "{refused:?}");
        let again = vec![Input::Writer(lives[4].0.clone()), lives[4].1.clone()];
        assert_eq!(
            world.bench.door.ingest(&peer, again).await.unwrap().applied,
            0,
            "introduced again, it says what is known"
        );
        assert!(known().contains(&lives[4].0.id));
    }

    #[tokio::test]
    async fn a_device_lists_its_own_log_alone() {
        let world = Reported::new().await;
        let (channel, peer) = (ChannelName::Device(world.device.node.clone()), world.device.peer());
        let mut log = log_by(&world, [2; 32]);
        let drafts = vec![Draft::register(ItemId::parse("override/o").unwrap(), b"{}".to_vec(), "technician", 5)];
        let first = Input::Batch(log.append(&channel, drafts).unwrap());
        world.bench.door.ingest(&peer, vec![Input::Writer(log.identity().chain().clone()), first]).await.unwrap();
        let before = world.bench.store.logs().heads(&channel);

        // What it never had, and what the hub itself has said there.
        let mut covers: BTreeMap<WriterId, Head> =
            (0..200).map(|n| (WriterId([n; 32]), Head { seq: 9, hash: [n; 32] })).collect();
        covers.extend(before.iter().map(|(writer, head)| (*writer, Head { seq: head.seq + 9, hash: [1; 32] })));
        covers.remove(&log.identity().id());
        let list = SignedList::sign(log.identity(), &channel, log.head(&channel), Vec::new(), covers).unwrap();
        let list = ChannelSnapshot { list, states: Vec::new() }.verify(log.identity().chain()).unwrap();
        world.bench.door.ingest(&peer, vec![Input::Snapshot(list)]).await.unwrap();
        assert_eq!(world.bench.store.logs().heads(&channel), before);
    }

    #[tokio::test]
    async fn a_key_is_one_writers() {
        let world = Reported::new().await;
        let peer = world.device.peer();
        let own = log_by(&world, [3; 32]).identity().chain().clone();
        let id = own.id;
        let is_hubs = || world.bench.store.logs().is_hub_writer(&id).unwrap();
        world.bench.door.ingest(&peer, vec![Input::Writer(own.clone())]).await.unwrap();
        assert_eq!(is_hubs(), Some(false));
        // A damaged row locks nobody out: the writer is counted again.
        let file = rusqlite::Connection::open(world.folder.path().join(crate::config::DATABASE_FILE)).unwrap();
        assert_eq!(file.execute("DELETE FROM device_writer", []).unwrap(), 1);
        world.bench.door.ingest(&peer, vec![Input::Writer(own.clone())]).await.unwrap();
        let counted: i64 = file.query_row("SELECT count(*) FROM device_writer", [], |row| row.get(0)).unwrap();
        assert_eq!(counted, 1);

        // The device had claimed the key of a hub's life that the backup does not know.
        let hubs = WriterIdentity::for_hub([3; 32], 9, world.bench.installation.root()).unwrap().chain().clone();
        assert_eq!(hubs.id, id);
        world.bench.door.ingest(&peer, vec![Input::Writer(hubs)]).await.unwrap();
        assert_eq!(is_hubs(), Some(true), "the root's word is the truth");
        let refused = world.bench.door.ingest(&peer, vec![Input::Writer(own)]).await.unwrap_err();
        assert!(format!("{:?}", refused.source).contains("is another's"), "{refused:?}");

        let keys = &world.device.keys;
        let other = NodeName::parse("b").unwrap();
        let sealing = keys.sealing.public().unwrap();
        let certificate =
            world.bench.installation.certify_device(&other, "b", keys.signing.public(), sealing, 1).unwrap();
        let strange = WriterIdentity::for_device([4; 32], 2, &keys.signing, &certificate).unwrap();
        let refused = world.bench.door.ingest(&peer, vec![Input::Writer(strange.chain().clone())]).await.unwrap_err();
        assert!(format!("{:?}", refused.source).contains("is another's"), "{refused:?}");
    }
}
