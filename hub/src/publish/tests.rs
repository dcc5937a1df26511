use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use super::content::{self, Content};
use super::{Channel, Item, Publication, RolloutsTouched};
use crate::store::{Change, Event, Index};

/// An index, a publication kept up to date by events, and the versions they carry.
#[derive(Default)]
struct World {
    index: Index,
    publication: Publication,
    version: u64,
}

impl World {
    /// Puts or removes an object; answers the places touched.
    fn set(&mut self, key: &ObjectKey, object: Option<Object>) -> Vec<String> {
        self.version += 1;
        let previous = self.index.get(key).cloned();
        let object = object.map(Arc::new);
        let change = match (&previous, &object) {
            (None, _) => Change::Added,
            (_, None) => Change::Deleted,
            _ => Change::Modified,
        };
        let shown = object.clone().or_else(|| previous.clone()).unwrap();
        self.index.set(key, object);
        let event = Event {
            version: self.version,
            change,
            key: key.clone(),
            object: shown,
            previous,
            time: Timestamp(0),
            bytes: 0,
        };
        let touched = self.publication.touch(&self.index, &[event], &RolloutsTouched::default());
        self.check_against_full();
        touched.iter().map(|(channel, item)| self.shown(channel, item)).collect()
    }

    fn put(&mut self, value: Value) -> Vec<String> {
        let object = Object::parse(value).unwrap();
        self.set(&object.key(), Some(object))
    }

    fn shown(&self, channel: &Channel, item: &Item) -> String {
        let wanted = self.publication.wants(channel, item);
        let content = wanted.then(|| content::of(&self.index, channel, item)).flatten();
        match content {
            Some(content) => format!("{channel} {}", content.id()),
            None => format!("{channel} -"),
        }
    }

    /// Every place, with its content.
    fn places(&self) -> Vec<String> {
        let mut places: Vec<String> = self
            .publication
            .wanted()
            .filter(|(channel, item)| content::of(&self.index, channel, item).is_some())
            .map(|(channel, item)| self.shown(channel, item))
            .collect();
        places.sort();
        places
    }

    /// Level-based: from nothing gives the same.
    fn check_against_full(&self) {
        let full = Publication::full(&self.index);
        let mut one: Vec<_> = full.wanted().collect();
        let mut other: Vec<_> = self.publication.wanted().collect();
        one.sort();
        other.sort();
        assert_eq!(one, other);
    }
}

fn node(name: &str, fleet: &str, labels: Value) -> Value {
    let mut labels = labels;
    labels["flotilla.dev/fleet"] = fleet.into();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("node-{name}"), "labels": labels}, "spec": {}})
}

fn daemon_set(name: &str, selector: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"nodeSelector": selector, "containers": [{"name": "c", "image": "host",
                "envFrom": [{"configMapRef": {"name": "settings"}}]}]}}}})
}

fn config_map(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "uid": format!("cm-{name}")},
        "data": {"text": text}})
}

#[test]
fn a_daemon_set_goes_with_its_config_map_to_every_fleet_it_could_select() {
    let mut world = World::default();
    world.put(node("a", "north", json!({"disk": "ssd"})));
    world.put(node("b", "south", json!({})));
    world.put(daemon_set("web", json!({"disk": "ssd"})));
    assert_eq!(world.places(), ["device/a node-a", "device/b node-b", "fleet/north web"]);
    // A ConfigMap that comes later is sent to who waits for it.
    assert_eq!(world.put(config_map("settings", "one")), ["fleet/north cm-settings"]);
    assert_eq!(world.put(config_map("other", "one")), Vec::<String>::new());
    // A label brings another fleet in; nothing is said again in the first.
    let touched = world.put(node("b", "south", json!({"disk": "ssd"})));
    assert_eq!(touched, ["fleet/south cm-settings", "fleet/south web", "device/b node-b"]);
    // Taken away, it leaves.
    let touched = world.put(node("b", "south", json!({})));
    assert_eq!(touched, ["fleet/south -", "fleet/south -", "device/b node-b"]);
}

#[test]
fn the_last_node_of_a_fleet_takes_the_manifest_with_it() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    world.put(node("b", "north", json!({})));
    world.put(daemon_set("web", json!(null)));
    world.set(&ObjectKey::of(&kind::NODE, "", "a"), None);
    assert_eq!(world.places(), ["device/b node-b", "fleet/north web"]);
    world.set(&ObjectKey::of(&kind::NODE, "", "b"), None);
    assert_eq!(world.places(), Vec::<String>::new());
}

#[test]
fn status_touches_nothing() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    world.put(daemon_set("web", json!(null)));
    let mut changed = daemon_set("web", json!(null));
    changed["status"] = json!({"numberReady": 1});
    assert_eq!(world.put(changed), Vec::<String>::new());
    let mut changed = node("a", "north", json!({}));
    changed["status"] = json!({"conditions": []});
    assert_eq!(world.put(changed), Vec::<String>::new());
}

fn deployment(world: &mut World) {
    world.put(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api", "namespace": "default", "uid": "dep"},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "key"}}]}]}}}}));
    world.put(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "api-1", "namespace": "default", "uid": "rs",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "uid": "dep", "controller": true}]}}));
}

fn placed(node: &str, going: bool) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api-1-x", "namespace": "default", "uid": "pod",
        "annotations": {"flotilla.dev/rollout": "1-7"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-1", "uid": "rs", "controller": true}]},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]}});
    if going {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    pod
}

#[test]
fn a_bound_pod_brings_placement_workload_and_secret_and_leaves_by_an_eviction() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    deployment(&mut world);
    world.put(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default", "uid": "sec"}, "data": {}}));
    assert_eq!(world.put(placed("", false)), Vec::<String>::new());
    world.put(placed("a", false));
    assert_eq!(world.places(), ["device/a dep", "device/a node-a", "device/a placement/pod", "device/a secret/sec"]);
    let place = (Channel::Device("a".into()), Item::Placement(ObjectKey::of(&kind::POD, "default", "api-1-x")));
    let Some(Content::Register { value, .. }) = content::of(&world.index, &place.0, &place.1) else {
        panic!("no register")
    };
    assert_eq!(value["workload"], "dep");
    assert_eq!(value["number"], "1-7");
    world.put(placed("a", true));
    assert_eq!(world.places(), ["device/a evict/pod", "device/a node-a"]);
    world.set(&ObjectKey::of(&kind::POD, "default", "api-1-x"), None);
    assert_eq!(world.places(), ["device/a node-a"]);
}

#[test]
fn a_daemon_pod_leaves_by_an_eviction_unless_its_set_goes_too() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    world.put(daemon_set("web", json!({})));
    let mut pod = placed("a", false);
    pod["metadata"]["ownerReferences"][0] =
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "web", "uid": "web", "controller": true});
    world.put(pod.clone());
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    world.put(pod.clone());
    assert!(world.places().contains(&"device/a evict/pod".to_owned()), "{:?}", world.places());
    // Its set is deleted in the foreground, or is gone: the device learns of that.
    let mut set = daemon_set("web", json!({}));
    set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for set in [Some(set), None] {
        world.set(&ObjectKey::of(&kind::POD, "default", "api-1-x"), None);
        match set {
            Some(set) => drop(world.put(set)),
            None => drop(world.set(&ObjectKey::of(&kind::DAEMON_SET, "default", "web"), None)),
        }
        world.put(pod.clone());
        assert!(!world.places().contains(&"device/a evict/pod".to_owned()), "{:?}", world.places());
    }
}

#[test]
fn what_volumes_refer_to_travels_and_nothing_else_does() {
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default", "uid": format!("sec-{name}")}, "data": {}});
    let volumes = json!([
        {"name": "a", "configMap": {"name": "files"}},
        {"name": "b", "secret": {"secretName": "key"}},
        {"name": "c", "projected": {"sources": [
            {"configMap": {"name": "shared", "items": [{"key": "k", "path": "p"}]}}, {"secret": {"name": "token", "optional": true}},
        ]}},
        {"name": "d", "hostPath": {"path": "/"}},
    ]);
    let mut world = World::default();
    world.put(node("a", "north", json!({"disk": "ssd"})));
    world.put(node("b", "north", json!({})));
    for name in ["files", "shared", "other"] {
        world.put(config_map(name, "one"));
    }
    for name in ["key", "token", "other"] {
        world.put(secret(name));
    }
    let mut set = daemon_set("web", json!({"disk": "ssd"}));
    set["spec"]["template"]["spec"]["volumes"] = volumes.clone();
    world.put(set);
    let nodes = ["device/a node-a", "device/b node-b"];
    let with = |more: &[&str]| {
        let mut all: Vec<String> = nodes.iter().chain(more).map(|place| (*place).to_owned()).collect();
        all.sort();
        all
    };
    let of_set = [
        "device/a secret/sec-key",
        "device/a secret/sec-token",
        "fleet/north cm-files",
        "fleet/north cm-shared",
        "fleet/north web",
    ];
    assert_eq!(world.places(), with(&of_set), "the Secrets go only to the device that is selected");
    // Changed content is looked at again where it stands.
    assert_eq!(world.put(config_map("files", "two")), ["fleet/north cm-files"]);
    // A bare Pod brings the same to its device alone.
    world.set(&ObjectKey::of(&kind::DAEMON_SET, "default", "web"), None);
    assert_eq!(world.places(), with(&[]));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "pod-p"},
        "spec": {"nodeName": "b", "containers": [{"name": "c"}], "volumes": volumes}});
    world.put(pod);
    let of_pod = [
        "device/b cm-files",
        "device/b cm-shared",
        "device/b pod-p",
        "device/b secret/sec-key",
        "device/b secret/sec-token",
    ];
    assert_eq!(world.places(), with(&of_pod));
    world.set(&ObjectKey::of(&kind::POD, "default", "p"), None);
    assert_eq!(world.places(), with(&[]));
}

#[test]
fn grants_and_thresholds_follow_the_rollout_rows() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    world.put(daemon_set("web", json!(null)));
    let mut state = world.index.rollout("web");
    state.grants.insert("a".into(), "1-2".into());
    state.thresholds.insert("1-2".into(), u64::MAX);
    world.index.set_rollout("web", state);
    let touch = |world: &mut World| {
        let rollouts = RolloutsTouched {
            workloads: BTreeSet::from(["web".to_owned()]),
            grants: BTreeSet::from([("web".to_owned(), "a".to_owned())]),
        };
        let touched = world.publication.touch(&world.index, &[], &rollouts);
        world.check_against_full();
        touched.iter().map(|(channel, item)| world.shown(channel, item)).collect::<Vec<_>>()
    };
    assert_eq!(touch(&mut world), ["fleet/north web", "device/a grant/web"]);
    world.index.set_grant("web", "a", Some("1-3"));
    assert_eq!(touch(&mut world), ["fleet/north web", "device/a grant/web"], "the same place says another number");
    world.index.set_grant("web", "a", None);
    assert_eq!(touch(&mut world), ["fleet/north web", "device/a -"]);
    let document = Item::Document(ObjectKey::of(&kind::DAEMON_SET, "default", "web"));
    let Some(Content::Document { rollouts, .. }) =
        content::of(&world.index, &Channel::Fleet("north".into()), &document)
    else {
        panic!("no document")
    };
    assert_eq!(rollouts["1-2"], u64::MAX);
}

#[test]
fn a_manifest_part_holds_no_status_and_no_bookkeeping() {
    let mut world = World::default();
    let mut value = node("a", "north", json!({}));
    value["metadata"]["annotations"] = json!({"flotilla.dev/last-seen": "x", "mine": "y"});
    value["metadata"]["resourceVersion"] = "5".into();
    value["spec"]["taints"] =
        json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, {"key": "k", "effect": "NoSchedule"}]);
    value["status"] = json!({"phase": "x"});
    world.put(value);
    let item = Item::Document(ObjectKey::of(&kind::NODE, "", "a"));
    let Some(Content::Document { object, .. }) = content::of(&world.index, &Channel::Device("a".into()), &item) else {
        panic!("no document")
    };
    let expected = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "a", "uid": "node-a", "labels": {"flotilla.dev/fleet": "north"}, "annotations": {"mine": "y"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    assert_eq!(object, expected);
}

#[test]
fn a_deleted_override_asks_its_device_to_revert() {
    let mut world = World::default();
    world.put(node("a", "north", json!({})));
    let mut value = json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "Override",
        "metadata": {"name": "a.x1", "namespace": "default", "uid": "o"}, "spec": {"nodeName": "a"}});
    assert_eq!(world.put(value.clone()), Vec::<String>::new());
    value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(world.put(value), ["device/a revert/x1"]);
}

#[test]
fn a_silence_and_its_end_touch_no_channel() {
    let node = |taints: Value, seen: &str, label: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "uid": "n", "labels": {"site": label},
            "annotations": {"flotilla.dev/last-seen": seen}}, "spec": {"podCIDR": "10.1.0.0/24", "taints": taints}})
    };
    let silent =
        json!({"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule", "timeAdded": "1970-01-01T00:00:01Z"});
    let own = json!({"key": "dedicated", "effect": "NoSchedule"});
    let mut world = World::default();
    assert_eq!(world.put(node(json!([]), "1", "x")), ["device/a n"]);
    assert_eq!(world.put(node(json!([silent]), "1", "x")), [] as [&str; 0], "it fell silent");
    assert_eq!(world.put(node(json!([silent]), "2", "x")), [] as [&str; 0], "it was heard later than that");
    assert_eq!(world.put(node(json!([silent, own]), "2", "x")), ["device/a n"], "an operator's taint");
    assert_eq!(world.put(node(json!([own]), "2", "x")), [] as [&str; 0], "it is back");
    assert_eq!(world.put(node(json!([own]), "2", "y")), ["device/a n"]);
}
