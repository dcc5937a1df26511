//! Properties of the plan in a simulated runtime: whatever happens, nothing is started twice, counts never go back, and once
//! nothing happens any more everything comes to rest where it should.

use super::*;
use crate::runtime::Facilities;

#[derive(Debug, Clone, Copy)]
enum Happening {
    Ends(usize, i32),
    ShimDies,
    Reboot,
    PowerCutLosesDisk,
    AgentForgetsProbes,
    LosesHistory,
    Edit(u8),
    Wait(u64),
    ProbeFails(usize),
    /// The ConfigMap says this; nothing: it is gone.
    Content(Option<u8>),
    VolumesFail,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..3_usize, 0..3_i32).prop_map(|(index, code)| Happening::Ends(index, code)),
        1 => Just(Happening::ShimDies),
        1 => Just(Happening::Reboot),
        1 => Just(Happening::PowerCutLosesDisk),
        1 => Just(Happening::AgentForgetsProbes),
        1 => Just(Happening::LosesHistory),
        2 => (0..3_u8).prop_map(Happening::Edit),
        3 => (0..400_000_u64).prop_map(Happening::Wait),
        1 => (0..3_usize).prop_map(Happening::ProbeFails),
        2 => proptest::option::of(0..3_u8).prop_map(Happening::Content),
        1 => Just(Happening::VolumesFail),
    ]
}

fn spec(policy: &str, edit: u8) -> Value {
    let mut main = container("a");
    main["env"] = json!([{"name": "EDIT", "value": edit.to_string()}]);
    main["livenessProbe"] = json!({"tcpSocket": {"port": 1}});
    main["volumeMounts"] =
        json!([{"name": "c", "mountPath": "/c"}, {"name": "c", "mountPath": "/one", "subPath": "n"}]);
    let mut other = container("b");
    other["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
    json!({
        "restartPolicy": policy, "initContainers": [container("first")], "containers": [main, other],
        "volumes": [{"name": "c", "configMap": {"name": "settings"}}, {"name": "e", "emptyDir": {}}],
    })
}

fn wanted(policy: &str, edit: u8, content: Option<u8>) -> DesiredPods {
    let mut desired = one(spec(policy, edit));
    if let Some(content) = content {
        let data = BTreeMap::from([("n".to_owned(), content.to_string())]);
        desired.config_maps.insert(("default".to_owned(), "settings".to_owned()), data);
    }
    desired
}

/// A device whose processes can have mounts.
fn mounting(now: u64) -> Place {
    let facilities = Facilities { process_mounts: Ok(()), ..Facilities::default() };
    Place { facilities: Arc::new(facilities), ..place(now) }
}

/// Ends what is being stopped, as the shim would within the grace.
fn finish_stops(world: &mut World, now: u64) -> bool {
    let mut any = false;
    for status in world.observed.sandboxes.values_mut().flat_map(|sandbox| sandbox.containers.values_mut()) {
        if let ContainerState::Running { started_at, stopping: true, .. } = status.state {
            status.state = ContainerState::Exited(exit(143, started_at.0, now));
            any = true;
        }
    }
    any
}

fn finish_init(world: &mut World, now: u64) -> bool {
    let first = world.observed.sandboxes.get_mut(UID).and_then(|sandbox| sandbox.containers.get_mut("first"));
    match first {
        Some(status) => match status.state {
            ContainerState::Running { started_at, .. } => {
                status.state = ContainerState::Exited(exit(0, started_at.0, now));
                true
            }
            ContainerState::Exited(_) => false,
        },
        None => false,
    }
}

/// What is wished for in a simulation, beside the policy.
#[derive(Debug, Clone, Copy)]
struct Wish {
    edit: u8,
    content: Option<u8>,
}

fn apply(world: &mut World, what: Happening, wish: &mut Wish, place: &mut Place) {
    let now = place.now.0;
    let names = ["first", "a", "b"];
    match what {
        Happening::Ends(index, code) => {
            let sandbox = world.observed.sandboxes.get_mut(UID);
            if let Some(status) = sandbox.and_then(|sandbox| sandbox.containers.get_mut(names[index]))
                && let ContainerState::Running { started_at, .. } = status.state
            {
                status.state = ContainerState::Exited(exit(code, started_at.0, now));
            }
        }
        Happening::ShimDies => world.lose(UID, None),
        Happening::Reboot => {
            world.lose(UID, Some("went down"));
            world.observed.volumes.values_mut().for_each(|status| status.prepared.clear());
            place.boot_id.push('x');
        }
        Happening::PowerCutLosesDisk => {
            world.observed.sandboxes.clear();
            world.observed.volumes.clear();
            place.boot_id.push('x');
        }
        Happening::AgentForgetsProbes => world.observed.probes.clear(),
        // Only together with nothing else: the runtime's own records carry on.
        Happening::LosesHistory => {
            if world.observed.sandboxes.contains_key(UID) {
                world.history.clear();
            }
        }
        Happening::Edit(to) => wish.edit = to,
        Happening::Content(to) => wish.content = to,
        Happening::VolumesFail => {
            let failure = Failure { message: "no space".into(), at: place.now, count: 2 };
            world.observed.volume_failures.insert(UID.into(), failure);
        }
        Happening::Wait(ms) => place.now.0 += ms,
        Happening::ProbeFails(index) => {
            let runs =
                world.observed.sandboxes.get(UID).is_some_and(|sandbox| sandbox.containers.contains_key(names[index]));
            if runs && index == 1 {
                world.probes(names[index], ProbeStatus { started: true, ready: None, failed: Some("died".into()) });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn it_comes_to_rest_and_counts_only_upwards(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        happenings in proptest::collection::vec(happening(), 0..30),
    ) {
        let (mut world, mut now) = (World::default(), mounting(1_000_000));
        let mut wish = Wish { edit: 0, content: Some(0) };
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let mut forgot = false;
        for what in happenings {
            forgot |= matches!(what, Happening::LosesHistory);
            apply(&mut world, what, &mut wish, &mut now);
            // `settle` itself checks that nothing is started twice and no attempt is used again in one sandbox.
            let (_, plan) = world.settle(&wanted(policy, wish.edit, wish.content), &now);
            for field in ["initContainerStatuses", "containerStatuses"] {
                for status in plan.statuses[UID][field].as_array().unwrap() {
                    let count = status["restartCount"].as_u64().unwrap();
                    let known = counts.entry(status["name"].to_string()).or_insert(0);
                    prop_assert!(forgot || count >= *known, "{} went from {known} to {count}", status["name"]);
                    *known = count;
                }
            }
        }
        // Quiet: time passes, stops end, init containers succeed, what is missing comes. Back-off is over within 300 s.
        let desired = wanted(policy, wish.edit, Some(7));
        for _ in 0..40 {
            world.observed.probes.clear();
            now.now.0 += 301_000;
            world.settle(&desired, &now);
            let stopped = finish_stops(&mut world, now.now.0);
            if !finish_init(&mut world, now.now.0) && !stopped {
                break;
            }
        }
        let (done, plan) = world.settle(&desired, &now);
        prop_assert!(done.is_empty());
        let phase = plan.statuses[UID]["phase"].as_str().unwrap();
        prop_assert!(plan.wake_at.is_none(), "still waiting in {phase}");
        match policy {
            "Always" => prop_assert_eq!(phase, "Running"),
            _ => prop_assert!(["Running", "Succeeded", "Failed"].contains(&phase), "{}", phase),
        }
        // And it can always be ended.
        let nothing = DesiredPods::default();
        for _ in 0..5 {
            world.settle(&nothing, &now);
            finish_stops(&mut world, now.now.0);
        }
        let (_, plan) = world.settle(&nothing, &now);
        prop_assert!(world.observed.sandboxes.is_empty() && world.history.is_empty() && plan.actions.is_empty());
        prop_assert!(world.observed.volumes.is_empty(), "volumes are left");
    }
}
