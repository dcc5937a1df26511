//! What a device can and cannot do, in a plan.

use super::*;
use crate::runtime::{Facilities, Limits, OciRuntime};

fn on(facilities: Facilities, now: u64) -> Place {
    Place { facilities: Arc::new(facilities), ..place(now) }
}

fn with_crun() -> Facilities {
    let oci = OciRuntime { name: "crun".into(), version: "1.8.1".into(), path: "/usr/bin/crun".into() };
    let limits = Limits { cpu: true, memory: true, pids: true, why: String::new() };
    Facilities { oci: Ok(oci), limits, cpu_milli: 1000, memory_bytes: 1 << 30, ..Facilities::default() }
}

#[test]
fn handlers_are_found_or_named() {
    let reason = |class: &str, facilities: &Facilities| {
        let spec = json!({"runtimeClassName": class, "containers": [{"name": "a", "image": "busybox"}]});
        crate::runtime::admission::refusal(&spec, facilities).map(|refusal| (refusal.reason, refusal.message))
    };
    for class in ["", "oci", "crun"] {
        assert_eq!(reason(class, &with_crun()), None, "{class}");
        let (reason, message) = reason(class, &Facilities::default()).unwrap();
        assert_eq!(reason, "RuntimeHandlerNotFound");
        assert!(message.contains("install crun") && message.contains("it was not looked for"), "{message}");
    }
    let (_, message) = reason("kata", &with_crun()).unwrap();
    assert!(message.contains("knows \"process\", \"oci\" and \"crun\""), "{message}");
    let host = json!({"containers": [{"name": "a", "image": "host", "command": ["x"]}]});
    let refused = crate::runtime::admission::refusal(&host, &with_crun()).unwrap();
    assert!(refused.message.contains("set spec.runtimeClassName to process"), "{}", refused.message);
    let mounted = json!({"runtimeClassName": "process", "containers": [{"name": "a", "image": "host", "command": ["x"],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]});
    let refused = crate::runtime::admission::refusal(&mounted, &Facilities::default()).unwrap();
    assert_eq!(refused.reason, "FailedMount");
    let root = Facilities { process_mounts: Ok(()), ..Facilities::default() };
    assert_eq!(crate::runtime::admission::refusal(&mounted, &root), None);
}

#[test]
fn limits_that_are_not_kept_are_a_condition_and_clamped_ones_an_event() {
    let mut limited = container("a");
    limited["resources"] = json!({"limits": {"memory": "8Gi", "cpu": "500m"}});
    let desired = one(json!({"containers": [limited]}));
    let (done, plan) = World::default().settle(&desired, &on(with_crun(), 0));
    assert_eq!(done, ["sandbox 0", "start a 0"]);
    let notices: Vec<_> = plan.notices[UID].iter().map(|notice| notice.reason.as_str()).collect();
    assert_eq!(notices, ["LimitClamped"]);
    let condition = |plan: &Plan| {
        let all = plan.statuses[UID]["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["type"] == "LimitsEnforced")
    };
    assert_eq!(condition(&plan), None, "there is nothing to say");
    // The same device without cgroups: it runs all the same, and says so until it has them.
    let none = Facilities { limits: Limits { why: "no cgroups".into(), ..Limits::default() }, ..with_crun() };
    let mut world = World::default();
    let (done, plan) = world.settle(&desired, &on(none, 1_000));
    assert_eq!(done, ["sandbox 0", "start a 0"]);
    let told = condition(&plan).unwrap();
    assert_eq!(
        (told["status"].as_str(), told["lastTransitionTime"].as_str()),
        (Some("False"), Some("1970-01-01T00:00:01Z"))
    );
    assert_eq!(told["message"], "not limited on this device: memory and cpu of container a: no cgroups");
    let (_, plan) = world.settle(&desired, &on(with_crun(), 2_000));
    assert_eq!(condition(&plan), None);
}

#[test]
fn a_runtime_that_goes_ends_nothing_that_runs() {
    let mut world = World::default();
    let spec = json!({"runtimeClassName": "oci", "containers": [{"name": "a", "image": "busybox"}]});
    let desired = one(spec);
    let digest = container_digest(desired.pods[UID].object.spec().unwrap(), &json!({"name": "a", "image": "busybox"}));
    world.carry_out(UID, Action::RunSandbox(sandbox_config(true)), Timestamp(0));
    let running = ContainerState::Running { pid: 1, started_at: Timestamp(0), stopping: false };
    let status = ContainerStatus { attempt: 0, digest, state: running };
    world.observed.sandboxes.get_mut(UID).unwrap().containers.insert("a".into(), status);
    let (done, plan) = world.settle(&desired, &on(Facilities::default(), 1_000));
    assert_eq!(done, Vec::<String>::new());
    assert_eq!((plan.statuses[UID]["phase"].as_str(), truth(&plan, "Ready")), (Some("Running"), "True".into()));
    // Once it has ended, nothing can start it.
    world.ends("a", 1, 2_000);
    let (done, plan) = world.settle(&desired, &on(Facilities::default(), 3_000));
    assert_eq!(done, Vec::<String>::new());
    assert_eq!(state(&plan, 0)["state"]["waiting"]["reason"], "RuntimeHandlerNotFound");
}

#[test]
fn a_pod_of_another_kind_gets_another_sandbox() {
    let mut world = World::default();
    let (done, _) = world.settle(&one(json!({"containers": [container("a")]})), &on(with_crun(), 0));
    assert_eq!(done, ["sandbox 0", "start a 0"]);
    let isolated = one(
        json!({"runtimeClassName": "oci", "terminationGracePeriodSeconds": 5, "containers": [{"name": "a", "image": "busybox"}]}),
    );
    assert_eq!(world.settle(&isolated, &on(with_crun(), 1_000)).0, ["stop a 0 5000ms"]);
    world.ends("a", 143, 2_000);
    // And back, before there was an image: the sandbox is of the right kind again.
    let (done, _) = world.settle(&one(json!({"containers": [container("a")]})), &on(with_crun(), 60_000));
    assert_eq!(done, ["start a 1"]);
    world.carry_out(UID, Action::RunSandbox(sandbox_config(true)), Timestamp(61_000));
    let (done, _) = world.settle(&one(json!({"containers": [container("a")]})), &on(with_crun(), 99_000));
    assert_eq!(done, ["sandbox 1", "start a 1"], "a sandbox of the wrong kind is made anew");
}

fn sandbox_config(isolated: bool) -> SandboxConfig {
    SandboxConfig {
        uid: UID.into(),
        namespace: "default".into(),
        name: "web".into(),
        attempt: 0,
        grace_seconds: 30,
        isolated,
        hostname: "web".into(),
        host_lines: Vec::new(),
        host_pid: false,
        host_ipc: false,
    }
}

#[test]
fn hooks_come_after_starts_and_with_the_first_stop() {
    let mut hooked = container("a");
    hooked["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["warm", "up"]}}, "preStop": {"sleep": {"seconds": 3}}});
    let mut desired = one(json!({"terminationGracePeriodSeconds": 9, "containers": [hooked, container("b")]}));
    let mut world = World::default();
    let (done, _) = world.settle(&desired, &place(0));
    assert_eq!(done, ["sandbox 0", "start a 0", "postStart a 0", "start b 0"]);
    let pod = desired.pods.get_mut(UID).unwrap();
    pod.deletion = Some(Deletion { grace_seconds: None });
    let hooks = |world: &World, desired: &DesiredPods| -> Vec<(String, Option<HookHandler>)> {
        let plan = plan(desired, &world.observed, &world.history, &place(1_000));
        let stops = plan.actions.get(UID).into_iter().flatten().filter_map(|action| match action {
            Action::StopContainer { container, hook, .. } => {
                Some((container.clone(), hook.as_ref().map(|hook| hook.handler.clone())))
            }
            _ => None,
        });
        stops.collect()
    };
    assert_eq!(hooks(&world, &desired), [("a".into(), Some(HookHandler::Sleep { ms: 3_000 })), ("b".into(), None)]);
    // Begun: what is asked then only brings the end forward.
    world.settle(&desired, &place(1_000));
    desired.pods.get_mut(UID).unwrap().deletion = Some(Deletion { grace_seconds: Some(0) });
    assert_eq!(hooks(&world, &desired), [("a".into(), None), ("b".into(), None)]);
    let https = json!({"runtimeClassName": "process", "containers": [{"name": "a", "image": "host", "command": ["x"],
        "lifecycle": {"preStop": {"httpGet": {"port": 1, "scheme": "HTTPS"}}}}]});
    let refused = crate::runtime::admission::refusal(&https, &Facilities::default()).unwrap();
    assert_eq!(refused.reason, "UnsupportedLifecycleHook");
}
