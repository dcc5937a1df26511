use std::sync::Arc;

use flotilla_manifests::admission::{Context, DeleteOptions, FieldValidation, Mutation};
use flotilla_manifests::object::Object;
use flotilla_rest::backend::{DryRun, User, WriteRequest};
use serde_json::{Value, json};

use super::*;
use crate::admission;
use crate::config::Retention;
use crate::controllers::fixture::{deployment, key, parse, ready};
use crate::controllers::{Deletion, Write};
use crate::store::Index;

/// A store with a namespace and two Nodes, with a clock that stands still.
async fn opened() -> (tempfile::TempDir, Store, Contacts) {
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp(1_700_000_000_000);
    let store = Store::open(&folder.path().join("hub.sqlite"), Retention::default(), Arc::new(move || now)).unwrap();
    let contacts = Contacts::starting(now, []);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "spec": {"finalizers": ["kubernetes"]}});
    let node = |name: &str| {
        parse(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
            "status": {"allocatable": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}]}}))
    };
    let objects = [parse(namespace), node("edge-0"), node("edge-1")];
    store
        .write(move |batch| {
            for object in objects {
                batch.create(object)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    for name in ["edge-0", "edge-1"] {
        contacts.set(name, Contact::Connected { since: now });
    }
    (folder, store, contacts)
}

/// A write as the API makes it.
async fn request(store: &Store, key: ObjectKey, mutation: Mutation) {
    let request = WriteRequest {
        key,
        mutation,
        dry_run: DryRun::No,
        field_validation: FieldValidation::Strict,
        user: User { name: "ada".into(), groups: Vec::new() },
        field_manager: None,
    };
    store
        .write(move |batch| {
            let context = Context {
                now: batch.now(),
                uid: crate::mint::uid()?,
                name_suffix: "abcde".into(),
                field_validation: FieldValidation::Strict,
            };
            let decision = admission::decide(batch.index(), batch.incarnation(), &request, &context)?;
            admission::apply(batch, decision)
        })
        .await
        .unwrap();
}

/// Waits, change by change, until the store shows what is expected.
async fn until(store: &Store, what: &str, mut holds: impl FnMut(&Index) -> bool) {
    let mut changes = store.changes();
    let waiting = async {
        loop {
            changes.mark_unchanged();
            if store.view(&mut holds) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    let limit = Duration::from_secs(30);
    assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{what} did not come");
}

fn pods(index: &Index) -> Vec<Arc<Object>> {
    index.list(&kind::POD, Some("shop")).cloned().collect()
}

/// Plays the devices: what is placed becomes ready, what is to end is gone.
async fn devices(store: &Store) {
    let ready = ready(Timestamp(0));
    store
        .write(move |batch| {
            for pod in pods(batch.index()) {
                if pod.deletion_timestamp().is_some() {
                    batch.remove(&pod.key())?;
                } else if !pod.text("/spec/nodeName").is_empty() {
                    let ready = ready.clone();
                    batch.update(&pod.key(), |pod| pod.value_mut()["status"] = ready)?;
                }
            }
            Ok(())
        })
        .await
        .unwrap();
}

fn status_field(index: &Index, field: &str) -> i64 {
    let web = index.get(&key(&kind::DEPLOYMENT, "web"));
    web.and_then(|web| web.status()?.get(field)?.as_i64()).unwrap_or(0)
}

#[tokio::test]
async fn a_deployment_is_placed_updated_and_collected_through_the_store() {
    let (_folder, store, contacts) = opened().await;
    let (stop, shutdown) = watch::channel(false);
    let runner = tokio::spawn(run(store.clone(), contacts.clone(), shutdown));
    let web = key(&kind::DEPLOYMENT, "web");
    request(&store, web.clone(), Mutation::Create { body: deployment(4, "web:1", json!({})) }).await;
    until(&store, "placement", |index| {
        let pods = pods(index);
        pods.len() == 4 && pods.iter().all(|pod| !pod.text("/spec/nodeName").is_empty())
    })
    .await;
    let on_first = store.view(|index| index.pods_on("edge-0").count());
    assert_eq!(on_first, 2);
    devices(&store).await;
    until(&store, "availability", |index| status_field(index, "availableReplicas") == 4).await;
    let number = store.view(|index| pods(index)[0].annotation("flotilla.dev/rollout").map(str::to_owned));
    assert_eq!(number.as_deref(), Some("1-1"));

    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}});
    let patch = flotilla_manifests::patch::Patch::StrategicMerge(patch);
    let part = flotilla_manifests::admission::Part::Main;
    request(&store, web.clone(), Mutation::Patch { part, patch }).await;
    let done = |index: &Index| {
        let pods = pods(index);
        pods.len() == 4 && pods.iter().all(|pod| pod.text("/spec/containers/0/image") == "web:2")
    };
    let mut changes = store.changes();
    while !store.view(done) {
        devices(&store).await;
        tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
    }
    devices(&store).await;
    until(&store, "the update's end", |index| status_field(index, "updatedReplicas") == 4).await;

    request(&store, web, Mutation::Delete(DeleteOptions::default())).await;
    until(&store, "the end of the Pods", |index| pods(index).iter().all(|pod| pod.deletion_timestamp().is_some()))
        .await;
    devices(&store).await;
    until(&store, "the end of everything", |index| {
        index.list(&kind::REPLICA_SET, None).count() == 0 && pods(index).is_empty()
    })
    .await;
    assert!(store.view(|index| index.list(&kind::EVENT, Some("shop")).count()) > 0);
    stop.send(true).unwrap();
    runner.await.unwrap();
}

#[tokio::test]
async fn a_pod_that_found_no_place_is_placed_when_one_comes() {
    let (_folder, store, contacts) = opened().await;
    let (_stop, shutdown) = watch::channel(false);
    tokio::spawn(run(store.clone(), contacts, shutdown));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"nodeSelector": {"site": "north"}, "containers": [{"name": "c", "image": "c:1"}]}});
    let p = key(&kind::POD, "p");
    request(&store, p.clone(), Mutation::Create { body: parse(pod) }).await;
    until(&store, "a reason", |index| {
        let pod = index.get(&p).unwrap();
        pod.text("/status/conditions/0/message").starts_with("0/2 nodes are available")
    })
    .await;
    store
        .write(|batch| {
            batch.update(&key(&kind::NODE, "edge-1"), |node| {
                node.metadata_mut().insert("labels".into(), json!({"site": "north"}));
            })?;
            Ok(())
        })
        .await
        .unwrap();
    until(&store, "a place", |index| index.get(&p).unwrap().text("/spec/nodeName") == "edge-1").await;
}

#[tokio::test]
async fn a_plan_is_carried_out_wholly_or_not_at_all_and_only_on_what_it_saw() {
    let (_folder, store, _contacts) = opened().await;
    let node = (*store.read(&key(&kind::NODE, "edge-0")).unwrap()).clone();
    let mut stale = node.clone();
    stale.set_resource_version(1);
    stale.value_mut()["spec"]["unschedulable"] = true.into();
    let map = parse(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}));
    let writes = vec![Write::Create(map.clone()), Write::Replace(stale)];
    let error = store.write(move |batch| carry_out::carry_out(batch, writes, "test")).await.unwrap_err();
    assert_eq!(error.reason, Reason::Conflict);
    assert!(store.read(&map.key()).is_none(), "nothing of a refused plan stays");

    let another = Deletion { uid: "another".into(), ..Deletion::of(&node) };
    let gone = Deletion::of(&map);
    let removal = Write::Remove { key: node.key(), uid: "another".into() };
    let writes = vec![Write::Delete(another), Write::Delete(gone), removal];
    store.write(move |batch| carry_out::carry_out(batch, writes, "test")).await.unwrap();
    assert_eq!(store.read(&node.key()).map(|stored| (*stored).clone()), Some(node.clone()));

    let mut changed = node;
    changed.value_mut()["spec"]["unschedulable"] = true.into();
    let key = changed.key();
    let before = changed.generation();
    store.write(move |batch| carry_out::carry_out(batch, vec![Write::Replace(changed)], "test")).await.unwrap();
    let stored = store.read(&key).unwrap();
    assert_eq!((stored.at("/spec/unschedulable"), stored.generation()), (Some(&Value::Bool(true)), before + 1));
}
