use super::*;

const NUMBER: RolloutNumber = RolloutNumber { incarnation: 1, counter: 2 };

/// Their names stay until the tests end.
fn devices(count: usize, change: impl Fn(usize, &mut Device<'_>)) -> Vec<Device<'static>> {
    (0..count)
        .map(|index| {
            let mut device = Device {
                node: format!("edge-{index:04}").leak(),
                uid: format!("uid-{index}").leak(),
                available: true,
                updated: false,
                vacant: false,
                ending: false,
                returned: false,
            };
            change(index, &mut device);
            device
        })
        .collect()
}

fn state(threshold: u64, grants: &[&str]) -> RolloutState {
    RolloutState {
        thresholds: BTreeMap::from([(NUMBER.to_string(), threshold)]),
        grants: grants.iter().map(|node| ((*node).to_owned(), NUMBER.to_string())).collect(),
    }
}

fn situation<'a>(devices: &'a [Device<'a>], state: &'a RolloutState, unavailable_max: usize) -> Situation<'a> {
    Situation {
        number: NUMBER,
        devices,
        state,
        fleet_count: devices.len(),
        unavailable_max,
        on_delete: false,
        now: Timestamp(1_000_000),
        stepped: Some(Timestamp(999_000)),
    }
}

fn let_in(devices: &[Device<'_>], threshold: u64, step: &Step) -> Vec<String> {
    let reached = step.threshold.unwrap_or(threshold);
    devices
        .iter()
        .filter(|device| {
            rollout::admitted(device.uid, NUMBER, reached) || matches!(step.grants.get(device.node), Some(Some(_)))
        })
        .map(|device| device.node.to_owned())
        .collect()
}

#[test]
fn a_step_lets_in_as_many_as_may_be_unavailable() {
    for (count, max) in [(10, 1), (10, 3), (100, 10), (7, 6)] {
        let devices = devices(count, |_, _| {});
        let step = step(&situation(&devices, &state(0, &[]), max));
        assert_eq!(let_in(&devices, 0, &step).len(), max, "{count} {max}");
        assert!(step.grants.is_empty(), "one shared threshold");
        // The same again while they are on their way: nothing more.
        let reached = step.threshold.unwrap();
        let again = super::step(&situation(&devices, &state(reached, &[]), max));
        assert_eq!((again.threshold, again.grants.len()), (None, 0));
        assert!(!again.finished);
    }
}

#[test]
fn the_last_step_lets_in_everyone_and_those_to_come() {
    let devices = devices(3, |_, _| {});
    for max in [3, 50] {
        let step = step(&situation(&devices, &state(0, &[]), max));
        assert_eq!(step.threshold, Some(THRESHOLD_ALL));
    }
}

#[test]
fn small_steps_in_a_large_fleet_go_out_by_name() {
    let devices = devices(1000, |_, _| {});
    let step = step(&situation(&devices, &state(0, &[]), 1));
    assert_eq!((step.threshold, step.grants.len()), (None, 1));
    let granted: Vec<&str> = step.grants.keys().map(String::as_str).collect();
    let again = super::step(&situation(&devices, &state(0, &granted), 1));
    assert_eq!(again, Step::default());
    let step = super::step(&situation(&devices, &state(0, &[]), 10));
    assert!(step.threshold.is_some() && step.grants.is_empty());
}

#[test]
fn what_is_broken_moves_for_nothing_and_a_failed_update_stops() {
    let broken = devices(10, |index, device| device.available = index != 4);
    let step = step(&situation(&broken, &state(0, &[]), 1));
    assert_eq!(let_in(&broken, 0, &step), ["edge-0004"]);

    let failed = devices(10, |index, device| {
        device.updated = index == 4;
        device.available = index != 4;
    });
    let turn = rollout::turn("uid-4", NUMBER) + 1;
    let step = super::step(&situation(&failed, &state(turn, &["edge-0004"]), 1));
    assert_eq!((step.threshold, step.grants.values().flatten().count()), (None, 0));
}

#[test]
fn an_update_ends_with_its_grants_taken_back() {
    let done = devices(3, |_, device| device.updated = true);
    let step = step(&situation(&done, &state(THRESHOLD_ALL, &["edge-0001"]), 1));
    assert!(step.finished);
    assert_eq!(step.grants, BTreeMap::from([("edge-0001".to_owned(), None)]));
    assert_eq!(step.threshold, None);
    // By names alone: in the end the threshold says it for all.
    let step = super::step(&situation(&done, &state(0, &["edge-0001"]), 1));
    assert_eq!(step.threshold, Some(THRESHOLD_ALL));
}

#[test]
fn those_who_return_are_let_in_a_few_at_a_time() {
    let returned = devices(50, |index, device| {
        device.updated = index < 10;
        device.returned = index >= 10;
    });
    let step = step(&situation(&returned, &state(THRESHOLD_ALL, &[]), 3));
    assert_eq!(step.grants.len(), 3);
    let granted: Vec<&str> = step.grants.keys().map(String::as_str).collect();
    let again = super::step(&situation(&returned, &state(THRESHOLD_ALL, &granted), 3));
    assert_eq!(again.grants, BTreeMap::new());
    // Those that run nothing interrupt nothing.
    let vacant = devices(5, |_, device| {
        device.returned = true;
        device.available = false;
        device.vacant = true;
    });
    assert_eq!(super::step(&situation(&vacant, &state(THRESHOLD_ALL, &[]), 1)).grants.len(), 5);
}

#[test]
fn who_heard_the_threshold_live_needs_no_grant_unless_it_missed_it() {
    let fresh = devices(5, |_, device| {
        device.available = false;
        device.vacant = true;
    });
    let state = state(THRESHOLD_ALL, &[]);
    let step = step(&situation(&fresh, &state, 1));
    assert_eq!(step.grants.len(), 0);
    assert_eq!(step.wake_at, Some(Timestamp(999_000 + MISSED_MS)));
    let later = Situation { now: Timestamp(999_000 + MISSED_MS), ..situation(&fresh, &state, 1) };
    assert_eq!(super::step(&later).grants.len(), 5);
}

#[test]
fn on_delete_moves_only_what_is_deleted_or_new() {
    let devices = devices(4, |index, device| {
        device.ending = index == 1;
        device.vacant = index == 2;
        device.available = index != 1 && index != 2;
    });
    let state = state(0, &[]);
    let step = step(&Situation { on_delete: true, ..situation(&devices, &state, 4) });
    assert_eq!(step.threshold, None);
    assert_eq!(step.grants.keys().collect::<Vec<_>>(), ["edge-0001", "edge-0002"]);
}
