//! A fleet in memory: controllers, scheduler and make-believe devices in any order, with what has to hold checked after every
//! single write.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::derive::{self, NodeRef};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::{self, RolloutNumber};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::workload::{self, DeploymentSpec};
use serde_json::json;

use super::fixture::{State, daemon_set, deployment, key, parse, ready};
use super::{Deletion, Plan, deployment as deployments, garbage, namespace, node, pods, replica_set};
use crate::scheduler;

struct World {
    state: State,
    /// What devices run in truth, heard or not: Pod uid by device.
    running: BTreeMap<String, BTreeSet<String>>,
    connected: BTreeSet<String>,
    /// The templates that devices of a DaemonSet know, by number.
    templates: BTreeMap<RolloutNumber, Object>,
    random: u64,
    /// Checked after every write: at least this many available of those that are not silent.
    guard: Option<Guard>,
}

#[derive(Clone, Copy)]
struct Guard {
    unavailable_max: i64,
    surge: i64,
}

impl World {
    fn of(nodes: usize, seed: u64) -> Self {
        let mut world = Self {
            state: State::at(1_000_000),
            running: BTreeMap::new(),
            connected: BTreeSet::new(),
            templates: BTreeMap::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            guard: None,
        };
        for index in 0..nodes {
            let name = format!("edge-{index}");
            world.state.node(&name);
            world.connected.insert(name);
        }
        world
    }

    fn chance(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap() % below
    }

    /// Runs everything in a random order until nobody has anything to do.
    fn settle(&mut self) {
        for _ in 0..3000 {
            let mut steps: Vec<Step> = self.steps();
            let mut quiet = true;
            while !steps.is_empty() {
                let chosen = self.chance(steps.len());
                quiet &= !self.run(&steps.swap_remove(chosen));
                self.check();
            }
            self.state.now = Timestamp(self.state.now.0 + 1000);
            if quiet {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.state.events.iter().rev().take(10).collect::<Vec<_>>());
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::Schedule];
        for object in self.state.index.objects() {
            match object.kind().name {
                "Deployment" | "ReplicaSet" | "DaemonSet" | "Namespace" => steps.push(Step::Plan(object.key())),
                "Node" => {
                    steps.push(Step::Plan(object.key()));
                    steps.push(Step::Device(object.name().to_owned()));
                }
                _ => {}
            }
            steps.extend(object.owner_references().into_iter().map(|owner| Step::Owner(owner.uid)));
        }
        steps
    }

    /// Whether anything was written.
    fn run(&mut self, step: &Step) -> bool {
        let view = self.state.view();
        let plan = match step {
            Step::Schedule => scheduler::plan(&view),
            Step::Owner(uid) => garbage::plan_owner(&view, uid),
            Step::Plan(key) => match key.kind.name {
                "Deployment" => deployments::plan(&view, key),
                "ReplicaSet" => replica_set::plan(&view, key),
                "DaemonSet" => self.state.plan_daemon_set(key),
                "Namespace" => namespace::plan(&view, key),
                _ => node::plan(&view, key),
            },
            Step::Device(name) => return self.device(&name.clone()),
        };
        let wrote = !plan.writes.is_empty();
        self.carry_out(plan);
        wrote
    }

    fn carry_out(&mut self, plan: Plan) {
        self.state.carry_out(plan);
    }

    /// One device in contact: starts, readies and ends one Pod at a time.
    fn device(&mut self, name: &str) -> bool {
        if !self.connected.contains(name) {
            return false;
        }
        self.derive(name);
        let pods: Vec<Object> = self.state.index.pods_on(name).map(|pod| (**pod).clone()).collect();
        let present: BTreeSet<String> = pods.iter().map(|pod| pod.uid().to_owned()).collect();
        let running = self.running.entry(name.to_owned()).or_default();
        let before = running.len();
        running.retain(|uid| present.contains(uid));
        let mut changed = running.len() != before;
        for pod in pods {
            let key = pod.key();
            if pod.deletion_timestamp().is_some() {
                self.running.entry(name.to_owned()).or_default().remove(pod.uid());
                self.state.remove(&key);
                return true;
            }
            match pod.text("/status/phase") {
                "Running" if pods::is_ready(&pod) => {}
                "Running" => {
                    let status = ready(self.state.now);
                    self.state.edit(&key, |pod| pod["status"] = status);
                    return true;
                }
                _ => {
                    self.running.entry(name.to_owned()).or_default().insert(pod.uid().to_owned());
                    self.state.edit(&key, |pod| pod["status"] = json!({"phase": "Running"}));
                    changed = true;
                    break;
                }
            }
        }
        changed
    }

    /// What a device does with DaemonSets: the newest number it may run, one Pod, the old one ended first.
    fn derive(&mut self, name: &str) {
        let node = self.state.get(&ObjectKey::of(&kind::NODE, "", name)).clone();
        let sets: Vec<Object> = self.state.index.list(&kind::DAEMON_SET, None).map(|set| (**set).clone()).collect();
        for set in sets {
            let number = rollout::number_of(&set).unwrap();
            self.templates.insert(number, set.clone());
            let rollouts = self.state.index.rollout(set.uid());
            let granted = rollouts.grants.get(name).and_then(|text| text.parse().ok());
            let admitted = rollouts.thresholds.iter().filter_map(|(text, threshold)| {
                let number: RolloutNumber = text.parse().unwrap();
                rollout::admitted(node.uid(), number, *threshold).then_some(number)
            });
            let Some(newest) = admitted.chain(granted).max() else { continue };
            let mine: Vec<Object> = self
                .state
                .index
                .pods_on(name)
                .filter(|pod| pod.controller().is_some_and(|owner| owner.uid == set.uid()))
                .map(|pod| (**pod).clone())
                .collect();
            if mine.iter().any(|pod| rollout::number_of(pod).unwrap() >= newest) || !derive::selects(&set, &node) {
                continue;
            }
            for old in mine {
                self.running.entry(name.to_owned()).or_default().remove(old.uid());
                self.state.remove(&old.key());
            }
            let template = self.templates.get(&newest).unwrap();
            let pod = derive::daemon_pod(template, &NodeRef::of(&node), newest, 0, &[]);
            self.state.put(pod);
            return;
        }
    }

    fn disconnect(&mut self, name: &str) {
        self.connected.remove(name);
        self.state.silence(name);
    }

    fn reconnect(&mut self, name: &str) {
        self.connected.insert(name.to_owned());
        self.state.hear(name);
    }

    /// What has to hold after every write.
    fn check(&self) {
        let Some(guard) = self.guard else { return };
        let view = self.state.view();
        for deployment in self.state.index.list(&kind::DEPLOYMENT, None) {
            let spec: DeploymentSpec = workload::view(deployment.spec());
            let sets = self.state.index.owned_by(deployment.uid()).filter(|set| set.kind() == &kind::REPLICA_SET);
            let (mut available, mut silent, mut active) = (0, 0, 0);
            for set in sets {
                let census = pods::census(&view, set, 0);
                available += census.available_count;
                silent += census.silent_count + census.held_count;
                active += census.active_count() + census.held_count;
            }
            let least = spec.replicas() - silent - guard.unavailable_max;
            assert!(available >= least, "{available} available, at least {least} wanted: {:?}", self.summary());
            assert!(active <= spec.replicas() + guard.surge, "{active} Pods: {:?}", self.summary());
        }
    }

    fn summary(&self) -> Vec<String> {
        self.state
            .index
            .list(&kind::POD, None)
            .map(|pod| {
                let ready = if pods::is_ready(pod) { "ready" } else { "" };
                let ending = if pod.deletion_timestamp().is_some() { "ending" } else { "" };
                format!("{}@{} {ready}{ending}", pod.name(), pod.text("/spec/nodeName"))
            })
            .collect()
    }

    /// Images of the Pods that are there, by device.
    fn images(&self) -> BTreeMap<String, Vec<String>> {
        let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in self.state.index.list(&kind::POD, None) {
            let image = pod.text("/spec/containers/0/image").to_owned();
            images.entry(pod.text("/spec/nodeName").to_owned()).or_default().push(image);
        }
        for list in images.values_mut() {
            list.sort();
        }
        images
    }

    fn web(&self) -> &Object {
        self.state.get(&key(&kind::DEPLOYMENT, "web"))
    }
}

enum Step {
    Plan(ObjectKey),
    Schedule,
    Owner(String),
    Device(String),
}

fn of_nodes(world: &World, wanted: &[(&str, usize, &str)]) {
    let expected: BTreeMap<String, Vec<String>> =
        wanted.iter().map(|(node, count, image)| ((*node).to_owned(), vec![(*image).to_owned(); *count])).collect();
    assert_eq!(world.images(), expected);
}

fn rolled(surge: i64, unavailable: i64) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn a_deployment_spreads_rolls_and_goes_back_within_its_bounds() {
    for seed in 0..20 {
        for (surge, unavailable) in [(0, 1), (1, 0), (2, 1), (0, 3), (6, 6)] {
            let mut world = World::of(3, seed);
            world.state.apply(deployment(6, "web:1", rolled(surge, unavailable)));
            world.settle();
            of_nodes(&world, &[("edge-0", 2, "web:1"), ("edge-1", 2, "web:1"), ("edge-2", 2, "web:1")]);
            assert_eq!(world.web().annotation(deployments::REVISION_ANNOTATION), Some("1"));

            world.guard = Some(Guard { unavailable_max: unavailable, surge });
            world.state.apply(deployment(6, "web:2", rolled(surge, unavailable)));
            world.settle();
            assert_eq!(world.images().values().flatten().filter(|image| *image == "web:2").count(), 6);
            assert_eq!(world.state.index.list(&kind::POD, None).count(), 6);
            assert_eq!(world.web().annotation(deployments::REVISION_ANNOTATION), Some("2"));

            // An undo takes the first ReplicaSet up again, as the third revision.
            world.state.apply(deployment(6, "web:1", rolled(surge, unavailable)));
            world.settle();
            assert_eq!(world.images().values().flatten().filter(|image| *image == "web:1").count(), 6);
            assert_eq!(world.web().annotation(deployments::REVISION_ANNOTATION), Some("3"));
            assert_eq!(world.state.index.list(&kind::REPLICA_SET, None).count(), 2);
            let status = world.web().status().unwrap();
            for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
                assert_eq!(status[field], json!(6), "{field}");
            }
            assert_eq!(status["observedGeneration"], json!(world.web().generation()));
            let numbers = world.state.index.rollout(world.web().uid()).thresholds;
            assert_eq!(numbers.into_keys().collect::<Vec<_>>(), ["1-3"], "numbers without Pods are forgotten");
        }
    }
}

#[test]
fn a_silent_device_neither_blocks_a_rollout_nor_has_its_pods_run_twice() {
    for seed in 0..20 {
        for (surge, unavailable) in [(0, 1), (1, 0), (2, 2)] {
            let mut world = World::of(3, seed);
            world.state.apply(deployment(6, "web:1", rolled(surge, unavailable)));
            world.settle();
            world.guard = Some(Guard { unavailable_max: unavailable, surge });
            world.disconnect("edge-1");
            world.settle();
            assert_eq!(world.state.index.list(&kind::POD, None).count(), 6, "nothing is replaced");
            let node = world.state.get(&key(&kind::NODE, "edge-1"));
            assert_eq!(node.text("/status/conditions/0/status"), "Unknown");
            assert_eq!(node.text("/spec/taints/0/effect"), "NoSchedule");

            world.state.apply(deployment(6, "web:2", rolled(surge, unavailable)));
            world.settle();
            of_nodes(&world, &[("edge-0", 2, "web:2"), ("edge-1", 2, "web:1"), ("edge-2", 2, "web:2")]);
            let status = world.web().status().unwrap();
            assert_eq!((&status["updatedReplicas"], &status["availableReplicas"]), (&json!(4), &json!(4)));

            world.reconnect("edge-1");
            world.settle();
            assert_eq!(world.images().values().flatten().filter(|image| *image == "web:2").count(), 6);
            assert_eq!(world.running.values().map(BTreeSet::len).sum::<usize>(), 6);
            let node = world.state.get(&key(&kind::NODE, "edge-1"));
            assert_eq!(node.text("/status/conditions/0/status"), "True");
            assert_eq!(node.at("/spec/taints"), None);
        }
    }
}

#[test]
fn a_device_that_goes_in_the_middle_of_a_rollout_keeps_every_bound() {
    for seed in 0..60 {
        let mut world = World::of(3, seed);
        world.state.apply(deployment(6, "web:1", rolled(1, 1)));
        world.settle();
        world.state.apply(deployment(6, "web:2", rolled(1, 1)));
        world.guard = Some(Guard { unavailable_max: 1, surge: 1 });
        for _ in 0..world.chance(60) {
            let steps = world.steps();
            let chosen = world.chance(steps.len());
            world.run(&steps[chosen]);
            world.check();
        }
        // Its Pods were told to end or not, run or not. What is known is that nothing is known; the promise of availability
        // does not span the loss itself.
        world.guard = None;
        world.disconnect("edge-2");
        world.settle();
        world.guard = Some(Guard { unavailable_max: 1, surge: 2 });
        world.reconnect("edge-2");
        world.settle();
        assert_eq!(world.images().values().flatten().filter(|image| *image == "web:2").count(), 6, "seed {seed}");
        assert_eq!(world.running.values().map(BTreeSet::len).sum::<usize>(), 6);
    }
}

#[test]
fn the_operators_word_or_the_pods_own_leave_replaces_what_is_silent() {
    let mut world = World::of(2, 1);
    world.state.apply(deployment(2, "web:1", rolled(1, 0)));
    world.settle();
    world.disconnect("edge-0");
    world.settle();
    of_nodes(&world, &[("edge-0", 1, "web:1"), ("edge-1", 1, "web:1")]);
    world.state.edit(&key(&kind::NODE, "edge-0"), |node| {
        node["spec"]["taints"]
            .as_array_mut()
            .unwrap()
            .push(json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}));
    });
    world.settle();
    of_nodes(&world, &[("edge-1", 2, "web:1")]);

    let mut world = World::of(2, 2);
    let mut tolerant = deployment(2, "web:1", rolled(1, 0));
    tolerant.value_mut()["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 300}]);
    world.state.apply(tolerant);
    world.settle();
    world.disconnect("edge-0");
    world.settle();
    of_nodes(&world, &[("edge-0", 1, "web:1"), ("edge-1", 1, "web:1")]);
    world.state.now = Timestamp(world.state.now.0 + 301_000);
    world.settle();
    // Withdrawn there, replaced here; the device stops it when it is back.
    of_nodes(&world, &[("edge-0", 1, "web:1"), ("edge-1", 2, "web:1")]);
    world.reconnect("edge-0");
    world.settle();
    assert_eq!(world.running.values().map(BTreeSet::len).sum::<usize>(), 2);
    assert!(world.running["edge-0"].is_empty());
}

#[test]
fn a_pod_deleted_on_a_silent_device_is_not_replaced_until_the_device_says_so() {
    let mut world = World::of(2, 3);
    world.state.apply(deployment(2, "web:1", rolled(1, 0)));
    world.settle();
    world.disconnect("edge-0");
    let pod = world.state.index.pods_on("edge-0").next().unwrap().clone();
    world.state.delete(&Deletion::of(&pod));
    world.settle();
    of_nodes(&world, &[("edge-0", 1, "web:1"), ("edge-1", 1, "web:1")]);
    world.reconnect("edge-0");
    world.settle();
    assert_eq!(world.running.values().map(BTreeSet::len).sum::<usize>(), 2);
    assert!(world.state.index.by_uid(pod.uid()).is_none());
}

#[test]
fn scaling_pausing_recreating_and_deleting_a_deployment() {
    let mut world = World::of(3, 4);
    world.state.apply(deployment(3, "web:1", json!({"type": "Recreate"})));
    world.settle();
    world.state.apply(deployment(5, "web:1", json!({"type": "Recreate"})));
    world.settle();
    assert_eq!(world.state.index.list(&kind::POD, None).count(), 5);
    let mut paused = deployment(5, "web:2", json!({"type": "Recreate"}));
    paused.value_mut()["spec"]["paused"] = true.into();
    world.state.apply(paused);
    world.settle();
    assert!(world.images().values().flatten().all(|image| image == "web:1"));
    // With Recreate both templates are never there together.
    world.state.apply(deployment(5, "web:2", json!({"type": "Recreate"})));
    world.settle();
    assert_eq!(world.images().values().flatten().filter(|image| *image == "web:2").count(), 5);
    world.state.apply(deployment(0, "web:2", json!({"type": "Recreate"})));
    world.settle();
    assert_eq!(world.state.index.list(&kind::POD, None).count(), 0);
    world.state.apply(deployment(2, "web:2", json!({"type": "Recreate"})));
    world.settle();
    world.state.delete(&Deletion::of(&world.web().clone()));
    world.settle();
    for kind in [&kind::DEPLOYMENT, &kind::REPLICA_SET, &kind::POD] {
        assert_eq!(world.state.index.list(kind, None).count(), 0, "{}", kind.name);
    }
}

#[test]
fn a_daemon_set_moves_within_max_unavailable_and_leaves_silent_devices_apart() {
    for seed in 0..10 {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}});
        let mut world = World::of(9, seed);
        world.state.apply(daemon_set("agent:1", strategy.clone()));
        world.settle();
        assert_eq!(world.images().len(), 9);
        world.disconnect("edge-3");
        world.disconnect("edge-4");
        world.settle();
        world.state.apply(daemon_set("agent:2", strategy.clone()));
        let agent = key(&kind::DAEMON_SET, "agent");
        for _ in 0..2000 {
            let steps = world.steps();
            let chosen = world.chance(steps.len());
            world.run(&steps[chosen]);
            world.state.now = Timestamp(world.state.now.0 + 10);
            let unready =
                world.connected.iter().filter(|name| !world.state.index.pods_on(name).any(|pod| pods::is_ready(pod)));
            assert!(unready.count() <= 2, "seed {seed}: {:?}", world.summary());
        }
        world.settle();
        let images = world.images();
        assert_eq!(images["edge-3"], ["agent:1"]);
        assert_eq!(images.values().flatten().filter(|image| *image == "agent:2").count(), 7);
        let set = world.state.get(&agent);
        let status = set.status().unwrap();
        for field in ["desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady"] {
            assert_eq!(status[field], json!(7), "{field}");
        }
        assert_eq!(set.annotation(rollout::SILENT_ANNOTATION), Some("2"));
        let numbers = world.state.index.rollout(set.uid()).thresholds;
        assert_eq!(numbers.into_keys().collect::<Vec<_>>(), ["1-1", "1-2"], "silent devices still run the first");

        world.reconnect("edge-3");
        world.reconnect("edge-4");
        world.settle();
        assert!(world.images().values().flatten().all(|image| image == "agent:2"));
        let set = world.state.get(&agent);
        let rollouts = world.state.index.rollout(set.uid());
        assert_eq!(rollouts.thresholds.into_keys().collect::<Vec<_>>(), ["1-2"]);
        assert_eq!(rollouts.grants, BTreeMap::new());
        assert_eq!(world.state.index.list(&kind::CONTROLLER_REVISION, None).count(), 2);
    }
}

#[test]
fn a_namespace_ends_with_its_contents_and_waits_for_no_silent_device() {
    let mut world = World::of(2, 5);
    world.state.apply(deployment(4, "web:1", rolled(1, 0)));
    world.state.apply(daemon_set("agent:1", json!({})));
    world
        .state
        .put(parse(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}})));
    world.settle();
    world.disconnect("edge-1");
    world.settle();
    let namespace = world.state.get(&key(&kind::NAMESPACE, "shop")).clone();
    world.state.delete(&Deletion::of(&namespace));
    world.settle();
    assert_eq!(world.state.index.in_namespace("shop").count(), 0);
    assert!(world.state.index.by_uid(namespace.uid()).is_none());
    let node = world.state.get(&key(&kind::NODE, "edge-1"));
    let left = flotilla_manifests::condition::find(node.status().unwrap(), namespace::LEFT_RUNNING).unwrap();
    assert!(left["message"].as_str().unwrap().contains("web-"), "{left}");
    world.reconnect("edge-1");
    world.settle();
    let node = world.state.get(&key(&kind::NODE, "edge-1"));
    assert_eq!(flotilla_manifests::condition::find(node.status().unwrap(), namespace::LEFT_RUNNING), None);
}
