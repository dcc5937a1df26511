use flotilla_manifests::kind;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::runtime::{ContainerState, ContainerStatus, Exit, SandboxState};

mod device;
mod images;
mod simulated;
mod volumes;

const UID: &str = "0000-uid";

fn place(now: u64) -> Place {
    Place {
        boot_id: "boot-1".into(),
        host_ip: "10.0.0.7".into(),
        node_name: "edge-1".into(),
        facilities: Arc::default(),
        volumes: "/data/volumes".into(),
        now: Timestamp(now),
    }
}

fn pod(spec: Value) -> DesiredPod {
    let kind = kind::find("", "Pod").unwrap();
    let mut object = Object::empty(kind, "default", "web");
    object.metadata_mut().insert("uid".into(), UID.into());
    object.value_mut()["spec"] = spec;
    if object.value()["spec"].get("runtimeClassName").is_none() {
        object.value_mut()["spec"]["runtimeClassName"] = "process".into();
    }
    DesiredPod { object: Arc::new(object), deletion: None }
}

fn container(name: &str) -> Value {
    json!({"name": name, "image": "host", "command": ["sleep", "1"]})
}

fn desired(pod: DesiredPod) -> DesiredPods {
    DesiredPods { pods: BTreeMap::from([(UID.to_owned(), pod)]), ..DesiredPods::default() }
}

fn one(spec: Value) -> DesiredPods {
    desired(pod(spec))
}

fn exit(code: i32, started: u64, finished: u64) -> Exit {
    Exit {
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        started_at: Some(Timestamp(started)),
        finished_at: Some(Timestamp(finished)),
    }
}

/// A device whose runtime does at once what it is told.
#[derive(Debug, Clone, Default)]
struct World {
    observed: Observed,
    history: History,
}

impl World {
    /// Plans and carries out until nothing is left to do; what was done, in short.
    fn settle(&mut self, desired: &DesiredPods, place: &Place) -> (Vec<String>, Plan) {
        let mut done = Vec::new();
        for _ in 0..20 {
            let plan = plan(desired, &self.observed, &self.history, place);
            assert_eq!(plan, super::plan(desired, &self.observed, &self.history, place), "a plan is a function");
            for (uid, changed) in &plan.history {
                match changed {
                    Some(changed) => drop(self.history.insert(uid.clone(), changed.clone())),
                    None => drop(self.history.remove(uid)),
                }
            }
            let steps: Vec<(String, Action)> = plan
                .actions
                .iter()
                .flat_map(|(uid, steps)| steps.iter().map(|step| (uid.clone(), step.clone())))
                .collect();
            if steps.is_empty() && plan.history.is_empty() {
                return (done, plan);
            }
            for (uid, step) in steps {
                done.push(short(&step));
                self.carry_out(&uid, step, place.now);
            }
        }
        panic!("never comes to rest: {done:?}");
    }

    fn carry_out(&mut self, uid: &str, step: Action, now: Timestamp) {
        match step {
            Action::RunSandbox(config) => {
                let sandbox = SandboxStatus {
                    uid: config.uid,
                    namespace: config.namespace,
                    name: config.name,
                    attempt: config.attempt,
                    grace_seconds: config.grace_seconds,
                    state: SandboxState::Ready,
                    isolated: config.isolated,
                    created_at: now,
                    containers: BTreeMap::new(),
                };
                self.observed.sandboxes.insert(uid.to_owned(), sandbox);
            }
            Action::StartContainer(config) => {
                for mount in &config.mounts {
                    let Ok(own) = mount.source.strip_prefix(format!("/data/volumes/{uid}")) else { continue };
                    let own = own.to_str().unwrap();
                    let stands = own.starts_with("sub~") || self.observed.volumes[uid].prepared.contains_key(own);
                    assert!(stands, "started before its volume {own} stands");
                }
                let sandbox = self.observed.sandboxes.get_mut(uid).expect("started without a sandbox");
                assert_eq!(sandbox.state, SandboxState::Ready);
                let running = ContainerState::Running { pid: 1, started_at: now, stopping: false };
                let before = sandbox.containers.insert(
                    config.name,
                    ContainerStatus { attempt: config.attempt, digest: config.digest, state: running },
                );
                if let Some(before) = before {
                    assert!(matches!(before.state, ContainerState::Exited(_)), "started twice");
                    assert!(before.attempt < config.attempt, "an attempt was used twice");
                }
            }
            Action::RunHook { container, .. } => {
                assert!(self.observed.sandboxes[uid].containers.contains_key(&container), "a hook of nobody");
            }
            Action::StopContainer { container, attempt, .. } => {
                let status = self.observed.sandboxes.get_mut(uid).unwrap().containers.get_mut(&container).unwrap();
                assert_eq!(status.attempt, attempt);
                if let ContainerState::Running { stopping, .. } = &mut status.state {
                    *stopping = true;
                }
            }
            Action::StopSandbox => self.lose(uid, None),
            Action::RemoveSandbox => drop(self.observed.sandboxes.remove(uid)),
            Action::PrepareVolumes(step) => {
                self.observed.volume_failures.remove(uid);
                let status = self.observed.volumes.entry(uid.to_owned()).or_default();
                status.prepared.retain(|name, _| step.kept.contains(name));
                status.prepared.extend(step.volumes.into_iter().map(|(name, volume)| (name, volume.digest)));
            }
            Action::RemoveVolumes => {
                let sandbox = self.observed.sandboxes.get(uid);
                assert!(
                    sandbox.is_none_or(|sandbox| sandbox.state == SandboxState::Lost),
                    "removed under a running pod"
                );
                self.observed.volumes.remove(uid);
            }
        }
    }

    /// The shim is gone, and whatever ran in it ended unseen.
    fn lose(&mut self, uid: &str, why: Option<&str>) {
        let Some(sandbox) = self.observed.sandboxes.get_mut(uid) else { return };
        sandbox.state = SandboxState::Lost;
        for status in sandbox.containers.values_mut() {
            if let ContainerState::Running { started_at, .. } = status.state {
                status.state = ContainerState::Exited(Exit::unseen(Some(started_at), why.unwrap_or("lost")));
            }
        }
    }

    fn ends(&mut self, name: &str, code: i32, now: u64) {
        let status = self.observed.sandboxes.get_mut(UID).unwrap().containers.get_mut(name).unwrap();
        let ContainerState::Running { started_at, .. } = status.state else { panic!("{name} does not run") };
        status.state = ContainerState::Exited(exit(code, started_at.0, now));
    }

    fn probes(&mut self, name: &str, status: ProbeStatus) {
        let sandbox = &self.observed.sandboxes[UID];
        let key = ProbeKey {
            pod_uid: UID.into(),
            container: name.into(),
            sandbox_attempt: sandbox.attempt,
            attempt: sandbox.containers[name].attempt,
        };
        self.observed.probes.insert(key, status);
    }
}

fn short(step: &Action) -> String {
    match step {
        Action::RunSandbox(config) => format!("sandbox {}", config.attempt),
        Action::StartContainer(config) => format!("start {} {}", config.name, config.attempt),
        Action::StopContainer { container, attempt, grace_ms, .. } => {
            format!("stop {container} {attempt} {grace_ms}ms")
        }
        Action::StopSandbox => "stop sandbox".into(),
        Action::RemoveSandbox => "remove sandbox".into(),
        Action::PrepareVolumes(step) => {
            let mut names: Vec<&str> = step.volumes.keys().map(String::as_str).collect();
            names.extend(step.sub_paths.iter().map(|sub_path| sub_path.name.as_str()));
            format!("volumes {}", names.join(" "))
        }
        Action::RemoveVolumes => "remove volumes".into(),
        Action::RunHook { container, attempt, .. } => format!("postStart {container} {attempt}"),
    }
}

fn state(plan: &Plan, index: usize) -> &Value {
    &plan.statuses[UID]["containerStatuses"][index]
}

fn truth(plan: &Plan, kind: &str) -> String {
    let conditions = plan.statuses[UID]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap()["status"].as_str().unwrap().to_owned()
}

#[test]
fn a_new_pod_runs_and_says_so() {
    let mut world = World::default();
    let desired = one(json!({"containers": [container("a"), container("b")]}));
    let (done, plan) = world.settle(&desired, &place(1_000));
    assert_eq!(done, ["sandbox 0", "start a 0", "start b 0"]);
    let status = &plan.statuses[UID];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["startTime"], "1970-01-01T00:00:01Z");
    assert_eq!(status["podIP"], "10.0.0.7");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(state(&plan, 0)["state"]["running"]["startedAt"], "1970-01-01T00:00:01Z");
    assert_eq!(state(&plan, 0)["containerID"], "process://0000-uid/a/0");
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(truth(&plan, kind), "True", "{kind}");
    }
    assert_eq!((plan.wake_at, plan.ended.len()), (None, 0));
}

#[test]
fn back_off_begins_at_once_and_doubles_and_a_good_run_ends_it() {
    let mut world = World::default();
    let desired = one(json!({"containers": [container("a")]}));
    world.settle(&desired, &place(0));
    let mut now = 1_000;
    for (attempt, wait) in
        [(1, 0), (2, 10_000), (3, 20_000), (4, 40_000), (5, 80_000), (6, 160_000), (7, 300_000), (8, 300_000)]
    {
        world.ends("a", 1, now);
        if wait > 0 {
            let (done, plan) = world.settle(&desired, &place(now + wait - 1));
            assert_eq!(done, [""; 0]);
            assert_eq!(plan.wake_at, Some(Timestamp(now + wait)));
            let told = state(&plan, 0);
            assert_eq!(told["state"]["waiting"]["reason"], "CrashLoopBackOff");
            assert_eq!(told["lastState"]["terminated"]["exitCode"], 1);
            assert_eq!(told["restartCount"], attempt - 1);
            assert_eq!(plan.statuses[UID]["phase"], "Running");
            assert_eq!(truth(&plan, "Ready"), "False");
        }
        now += wait;
        let (done, plan) = world.settle(&desired, &place(now));
        assert_eq!(done, [format!("start a {attempt}")]);
        assert_eq!(state(&plan, 0)["restartCount"], attempt);
        now += 1_000;
    }
    // Ten minutes of running: the next end is followed by a start at once.
    now += 600_000;
    world.ends("a", 1, now);
    assert_eq!(world.settle(&desired, &place(now)).0, ["start a 9"]);
    // A clock that was set back years does not make it wait for years.
    world.ends("a", 1, now + 1_000);
    assert_eq!(world.settle(&desired, &place(5)).0, ["start a 10"]);
}

#[test]
fn restart_policies() {
    let cases = [
        ("Always", 0, "start a 1", "Running"),
        ("Always", 3, "start a 1", "Running"),
        ("OnFailure", 3, "start a 1", "Running"),
        ("OnFailure", 0, "stop sandbox", "Succeeded"),
        ("Never", 0, "stop sandbox", "Succeeded"),
        ("Never", 3, "stop sandbox", "Failed"),
    ];
    for (policy, code, expected, phase) in cases {
        let mut world = World::default();
        let desired = one(json!({"restartPolicy": policy, "containers": [container("a")]}));
        world.settle(&desired, &place(0));
        world.ends("a", code, 5_000);
        let (done, plan) = world.settle(&desired, &place(5_000));
        assert_eq!(done, [expected], "{policy} {code}");
        assert_eq!(plan.statuses[UID]["phase"], phase, "{policy} {code}");
        if phase != "Running" {
            assert_eq!(state(&plan, 0)["state"]["terminated"]["exitCode"], code);
            // The end is final, also after a reboot.
            let rebooted = Place { boot_id: "boot-2".into(), ..place(9_000) };
            let (done, plan) = world.settle(&desired, &rebooted);
            assert_eq!(done, [""; 0]);
            assert_eq!(plan.statuses[UID]["phase"], phase);
        }
    }
}

#[test]
fn init_containers_go_one_by_one_and_sidecars_stay() {
    let mut sidecar = container("proxy");
    sidecar["restartPolicy"] = "Always".into();
    let mut world = World::default();
    let desired =
        one(json!({"initContainers": [container("one"), sidecar, container("two")], "containers": [container("a")]}));
    let (done, plan) = world.settle(&desired, &place(0));
    assert_eq!(done, ["sandbox 0", "start one 0"]);
    assert_eq!(plan.statuses[UID]["phase"], "Pending");
    assert_eq!(state(&plan, 0)["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(truth(&plan, "Initialized"), "False");
    world.ends("one", 1, 1_000);
    assert_eq!(world.settle(&desired, &place(1_000)).0, ["start one 1"], "a failed one is tried again");
    world.ends("one", 0, 2_000);
    assert_eq!(world.settle(&desired, &place(2_000)).0, ["start proxy 0", "start two 0"]);
    world.ends("two", 0, 3_000);
    let (done, plan) = world.settle(&desired, &place(3_000));
    assert_eq!(done, ["start a 0"]);
    assert_eq!(plan.statuses[UID]["phase"], "Running");
    assert_eq!(truth(&plan, "Ready"), "True");
    world.ends("proxy", 0, 4_000);
    assert_eq!(world.settle(&desired, &place(4_000)).0, ["start proxy 1"]);
    // Lost with its shim: all of it again, in order.
    world.lose(UID, None);
    assert_eq!(world.settle(&desired, &place(9_000)).0, ["sandbox 1", "start one 2"]);
    world.ends("one", 0, 9_500);
    assert_eq!(world.settle(&desired, &place(9_500)).0, ["start proxy 2", "start two 1"]);
    world.ends("two", 0, 9_600);
    assert_eq!(world.settle(&desired, &place(9_600)).0, ["start a 1"]);
}

#[test]
fn a_failed_init_container_of_a_pod_that_never_restarts_is_its_end() {
    let mut world = World::default();
    let desired =
        one(json!({"restartPolicy": "Never", "initContainers": [container("one")], "containers": [container("a")]}));
    world.settle(&desired, &place(0));
    world.ends("one", 2, 1_000);
    let (done, plan) = world.settle(&desired, &place(1_000));
    assert_eq!(done, ["stop sandbox"]);
    assert_eq!(plan.statuses[UID]["phase"], "Failed");
}

#[test]
fn adoption_restarts_nothing_and_a_lost_history_is_rebuilt() {
    let mut world = World::default();
    let desired = one(json!({"containers": [container("a")]}));
    world.settle(&desired, &place(0));
    world.ends("a", 1, 500);
    world.settle(&desired, &place(500));
    let (done, plan) = world.settle(&desired, &place(50_000));
    assert_eq!((done.len(), state(&plan, 0)["restartCount"].clone()), (0, json!(1)));
    world.history.clear();
    let (done, plan) = world.settle(&desired, &place(60_000));
    assert_eq!((done.len(), state(&plan, 0)["restartCount"].clone()), (0, json!(1)));
}

#[test]
fn a_reboot_restarts_everything_once_and_counts_it() {
    for disk_survives in [true, false] {
        let mut world = World::default();
        let desired = one(json!({"containers": [container("a")]}));
        world.settle(&desired, &place(0));
        if disk_survives {
            world.lose(UID, Some("the device went down while the container ran"));
        } else {
            world.observed.sandboxes.clear();
        }
        let rebooted = Place { boot_id: "boot-2".into(), ..place(3_000) };
        let (done, plan) = world.settle(&desired, &rebooted);
        assert_eq!(done, ["sandbox 1", "start a 1"]);
        let told = state(&plan, 0);
        assert_eq!(told["restartCount"], 1);
        assert_eq!(told["lastState"]["terminated"]["reason"], "Unknown");
        assert_eq!(told["lastState"]["terminated"]["finishedAt"], Value::Null);
    }
}

#[test]
fn a_start_that_never_happened_is_not_counted() {
    let mut world = World::default();
    let desired = one(json!({"containers": [container("a")]}));
    // The history was made durable, then the agent was killed.
    let plan = plan(&desired, &world.observed, &world.history, &place(0));
    world.history.insert(UID.into(), plan.history[UID].clone().unwrap());
    let (done, plan) = world.settle(&desired, &place(10));
    assert_eq!(done, ["sandbox 0", "start a 0"]);
    assert_eq!(state(&plan, 0)["restartCount"], 0);
}

#[test]
fn a_changed_container_is_replaced_alone_whatever_the_policy() {
    for policy in ["Always", "Never"] {
        let mut world = World::default();
        let before = one(json!({"restartPolicy": policy, "containers": [container("a"), container("b")]}));
        world.settle(&before, &place(0));
        let mut changed = container("a");
        changed["env"] = json!([{"name": "MODE", "value": "night"}]);
        let spec = json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 5, "containers": [changed, container("b")]});
        let after = one(spec);
        assert_eq!(world.settle(&after, &place(1_000)).0, ["stop a 0 5000ms"]);
        world.ends("a", 143, 1_500);
        let (done, plan) = world.settle(&after, &place(1_500));
        assert_eq!(done, ["start a 1"], "at once, and counted");
        assert_eq!(plan.statuses[UID]["phase"], "Running");
    }
}

#[test]
fn what_the_backend_does_not_use_changes_no_digest() {
    let spec = json!({"runtimeClassName": "process"});
    let plain = container_digest(&spec, &container("a"));
    let mut defaulted = container("a");
    for (field, value) in [
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("imagePullPolicy", json!("Always")),
        ("resources", json!({})),
        ("readinessProbe", json!({"tcpSocket": {"port": 1}})),
        ("env", json!([])),
    ] {
        defaulted[field] = value;
    }
    assert_eq!(container_digest(&spec, &defaulted), plain);
    // Golden: another value here restarts every container of every device at its next upgrade.
    assert_eq!(plain, "1:e599082bd85b36bf45311715");
    let isolated = json!({});
    assert_eq!(container_digest(&isolated, &defaulted), container_digest(&isolated, &container("a")));
    assert_eq!(container_digest(&isolated, &container("a")), "1:747c2d6b505eb1a3516bbb05");
    let mut other = container("a");
    other["args"] = json!(["2"]);
    assert_ne!(container_digest(&spec, &other), plain);
}

#[test]
fn a_deleted_pod_stops_in_order_and_leaves_nothing() {
    let mut sidecar = container("proxy");
    sidecar["restartPolicy"] = "Always".into();
    let spec = json!({"terminationGracePeriodSeconds": 7, "initContainers": [sidecar], "containers": [container("a")]});
    let mut world = World::default();
    let mut pod = pod(spec);
    world.settle(&desired(pod.clone()), &place(0));
    pod.deletion = Some(Deletion { grace_seconds: None });
    let gone = desired(pod.clone());
    let (done, plan) = world.settle(&gone, &place(1_000));
    assert_eq!(done, ["stop a 0 7000ms"]);
    assert_eq!(plan.statuses[UID]["phase"], "Running", "it still is");
    world.ends("a", 143, 1_100);
    assert_eq!(world.settle(&gone, &place(1_100)).0, ["stop proxy 0 7000ms"]);
    world.ends("proxy", 0, 1_200);
    let (done, plan) = world.settle(&gone, &place(1_200));
    assert_eq!(done, ["remove sandbox"]);
    assert!(plan.ended.contains(UID) && world.history.is_empty() && plan.statuses.is_empty());
    // One that never was is confirmed too.
    assert!(World::default().settle(&gone, &place(0)).1.ended.contains(UID));
}

#[test]
fn a_pod_nobody_wants_is_stopped_with_the_grace_it_came_with() {
    let mut world = World::default();
    world.settle(&one(json!({"terminationGracePeriodSeconds": 2, "containers": [container("a")]})), &place(0));
    let nothing = DesiredPods::default();
    assert_eq!(world.settle(&nothing, &place(1_000)).0, ["stop a 0 2000ms"]);
    world.ends("a", 0, 1_100);
    assert_eq!(world.settle(&nothing, &place(1_100)).0, ["remove sandbox"]);
    assert!(world.history.is_empty());
}

#[test]
fn a_missing_reference_holds_up_its_container_alone() {
    let mut needy = container("a");
    needy["env"] = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "x"}}}]);
    let mut desired = one(json!({"containers": [needy, container("b")]}));
    let mut world = World::default();
    let (done, plan) = world.settle(&desired, &place(0));
    assert_eq!(done, ["sandbox 0", "start b 0"]);
    let waiting = &state(&plan, 0)["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
    assert_eq!(waiting["message"], "configmap \"settings\" not found");
    assert_eq!(plan.statuses[UID]["phase"], "Pending");
    let key = ("default".to_owned(), "settings".to_owned());
    desired.config_maps.insert(key.clone(), BTreeMap::new());
    let (_, plan) = world.settle(&desired, &place(1));
    let message = &state(&plan, 0)["state"]["waiting"]["message"];
    assert_eq!(message, "couldn't find key x in ConfigMap default/settings");
    desired.config_maps.insert(key, BTreeMap::from([("x".into(), "1".into())]));
    assert_eq!(world.settle(&desired, &place(2)).0, ["start a 0"]);
}

#[test]
fn environment_and_argv_are_resolved_as_kubelet_does() {
    let mut rich = container("a");
    rich["env"] = json!([
        {"name": "GREETING", "value": "hello $(NAME) $(WHO) $$(WHO)"},
        {"name": "WHO", "value": "world"},
        {"name": "AGAIN", "value": "$(WHO)!"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "B", "value": "own"},
    ]);
    rich["envFrom"] = json!([{"prefix": "P_", "configMapRef": {"name": "c"}}, {"configMapRef": {"name": "c"}}]);
    rich["resources"] = json!({"limits": {"cpu": "1500m"}});
    rich["args"] = json!(["$(AGAIN)", "$(B)$(P_B)", "$(NONE)", "$$(B)", "$(open", "100$"]);
    let mut desired = one(json!({"containers": [rich]}));
    desired.config_maps.insert(("default".into(), "c".into()), BTreeMap::from([("B".into(), "map".into())]));
    let plan = plan(&desired, &Observed::default(), &History::new(), &place(0));
    let Action::StartContainer(config) = &plan.actions[UID][1] else { panic!("{plan:?}") };
    let expected = [
        ("AGAIN", "world!"),
        ("B", "own"),
        ("CPU", "2"),
        ("GREETING", "hello $(NAME) $(WHO) $(WHO)"),
        ("HOME", "/"),
        ("HOSTNAME", "web"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("POD", "web"),
        ("P_B", "map"),
        ("WHO", "world"),
    ];
    let found: Vec<(&str, &str)> = config.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(config.argv, ["sleep", "1", "world!", "ownmap", "$(NONE)", "$(B)", "$(open", "100$"]);
}

#[test]
fn probes_gate_readiness_and_kill() {
    let mut probed = container("a");
    probed["startupProbe"] = json!({"tcpSocket": {"port": 80}});
    probed["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
    let desired = one(json!({"containers": [probed]}));
    let mut world = World::default();
    let (_, plan) = world.settle(&desired, &place(0));
    assert_eq!(
        (truth(&plan, "Ready"), state(&plan, 0)["started"].clone(), plan.probes.len()),
        ("False".into(), json!(false), 1)
    );
    world.probes("a", ProbeStatus { started: true, ready: Some(true), failed: None });
    let (done, plan) = world.settle(&desired, &place(1_000));
    assert_eq!((done.len(), truth(&plan, "Ready")), (0, "True".into()));
    // The agent comes back and its probes have not spoken yet: an adopted container is as ready as it was.
    world.observed.probes.clear();
    let (_, plan) = world.settle(&desired, &place(2_000));
    assert_eq!(truth(&plan, "Ready"), "True");
    assert!(plan.probes.values().all(|target| target.started));
    world.probes("a", ProbeStatus { started: true, ready: Some(false), failed: None });
    let (done, plan) = world.settle(&desired, &place(61_000));
    assert_eq!((done.len(), truth(&plan, "Ready")), (0, "False".into()));
    let ready = plan.statuses[UID]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:01:01Z");
    world.probes(
        "a",
        ProbeStatus { started: true, ready: Some(false), failed: Some("failed liveness probe (x)".into()) },
    );
    assert_eq!(world.settle(&desired, &place(62_000)).0, ["stop a 0 30000ms"]);
    world.ends("a", 143, 62_500);
    let (done, plan) = world.settle(&desired, &place(62_500));
    assert_eq!((done, state(&plan, 0)["ready"].clone()), (vec!["start a 1".to_owned()], json!(false)));
}

#[test]
fn what_cannot_run_here_says_why_and_what_to_do() {
    let spec = json!({"runtimeClassName": "", "containers": [container("a")]});
    let (done, plan) = World::default().settle(&one(spec), &place(0));
    assert!(done.is_empty());
    let waiting = &state(&plan, 0)["state"]["waiting"];
    assert_eq!(waiting["reason"], "RuntimeHandlerNotFound");
    assert!(waiting["message"].as_str().unwrap().contains("spec.runtimeClassName to process"));
    assert_eq!(plan.statuses[UID]["phase"], "Pending");
}

#[test]
fn failures_are_shown_and_tried_again_later_and_busy_pods_are_left_alone() {
    let desired = one(json!({"containers": [container("a")]}));
    let mut world = World::default();
    world
        .observed
        .failures
        .insert(UID.into(), Failure { message: "no space left".into(), at: Timestamp(1_000), count: 2 });
    let (done, plan) = world.settle(&desired, &place(2_000));
    assert!(done.is_empty());
    assert_eq!(plan.wake_at, Some(Timestamp(3_000)));
    assert_eq!(state(&plan, 0)["state"]["waiting"]["message"], "no space left");
    world.observed.busy.insert(UID.into());
    assert!(world.settle(&desired, &place(3_000)).0.is_empty());
    world.observed.busy.clear();
    assert_eq!(world.settle(&desired, &place(3_000)).0, ["sandbox 0", "start a 0"]);
}

#[test]
fn history_of_the_first_version_can_be_read_for_ever() {
    let text = r#"{"namespace":"default","name":"web","startedAt":1000,"sandboxAttempt":0,"sandboxBoot":"b",
        "containers":{"a":{"attempt":2,"boot":"b","sandboxAttempt":0,"digest":"1:x","lastExit":{"code":1,"reason":"Error"},
        "lastExitAttempt":1,"backoffMs":10000,"somethingLater":true}}}"#;
    let history: PodHistory = serde_json::from_str(text).unwrap();
    let known = &history.containers["a"];
    assert_eq!((known.attempt, known.last_exit_attempt, known.backoff_ms), (Some(2), Some(1), 10_000));
}
