use super::*;

fn sizes(replicas: i64, surge: i64, unavailable: i64) -> Sizes {
    Sizes { replicas, surge, unavailable, recreate: false }
}

/// A set whose Pods are all there; `available` of them are.
fn set(wished: i64, available: i64) -> Set {
    Set { wished, active: wished, available, ..Set::default() }
}

fn silent(wished: i64, silent: i64, available: i64) -> Set {
    Set { silent, ..set(wished, available) }
}

#[test]
fn one_step_of_an_update() {
    let cases: Vec<(&str, Sizes, Vec<Set>, Vec<i64>)> = vec![
        ("steady", sizes(3, 1, 0), vec![set(0, 0), set(3, 3)], vec![0, 3]),
        ("the first of the new ones is an extra", sizes(3, 1, 0), vec![set(3, 3), set(0, 0)], vec![3, 1]),
        ("nothing goes before the extra is available", sizes(3, 1, 0), vec![set(3, 3), set(1, 0)], vec![3, 1]),
        ("then one goes", sizes(3, 1, 0), vec![set(3, 3), set(1, 1)], vec![2, 1]),
        (
            "its place is free only when it is gone",
            sizes(3, 1, 0),
            vec![Set { wished: 2, active: 3, available: 3, ..Set::default() }, set(1, 1)],
            vec![2, 1],
        ),
        ("without an extra, one goes first", sizes(3, 0, 1), vec![set(3, 3), set(0, 0)], vec![2, 0]),
        ("and not a second", sizes(3, 0, 1), vec![set(2, 2), set(0, 0)], vec![2, 1]),
        ("what is not available anyway goes at once", sizes(3, 0, 1), vec![set(3, 1), set(0, 0)], vec![2, 0]),
        (
            "all old ones broken: the update is not held up by them",
            sizes(3, 1, 1),
            vec![set(3, 0), set(1, 0)],
            vec![2, 1],
        ),
        ("a broken update stops", sizes(10, 3, 2), vec![set(8, 8), set(5, 0)], vec![8, 5]),
        ("two old sets, the older first", sizes(4, 0, 1), vec![set(2, 2), set(2, 2), set(0, 0)], vec![1, 2, 0]),
        ("silent old Pods keep their slots", sizes(6, 0, 1), vec![silent(2, 2, 0), set(4, 4)], vec![2, 4]),
        ("and leave the others their freedom", sizes(6, 0, 1), vec![silent(6, 2, 4), set(0, 0)], vec![5, 0]),
        (
            "Pods told to end on a silent device keep their slots too",
            sizes(3, 1, 0),
            vec![Set { held: 1, ..set(0, 0) }, set(2, 2)],
            vec![0, 2],
        ),
        (
            "a smaller Deployment gives up silent slots it no longer has",
            sizes(1, 0, 1),
            vec![silent(2, 2, 0), set(0, 0)],
            vec![1, 0],
        ),
    ];
    for (name, sizes, sets, expected) in cases {
        let newest = sets.len() - 1;
        assert_eq!(step(&sizes, &sets, newest), expected, "{name}");
    }
}

#[test]
fn recreate_waits_until_the_old_ones_are_gone() {
    let sizes = Sizes { replicas: 3, surge: 0, unavailable: 3, recreate: true };
    let ending = Set { ending: 2, ..set(0, 0) };
    for (name, sets, expected) in [
        ("all old ones go", vec![set(3, 3), set(0, 0)], vec![0, 0]),
        ("they are there still", vec![Set { wished: 0, active: 3, ..Set::default() }, set(0, 0)], vec![0, 0]),
        ("they are ending still", vec![ending, set(0, 0)], vec![0, 0]),
        ("they are gone", vec![set(0, 0), set(0, 0)], vec![0, 3]),
        ("but for a silent one", vec![silent(1, 1, 0), set(0, 0)], vec![1, 2]),
    ] {
        assert_eq!(step(&sizes, &sets, 1), expected, "{name}");
    }
    assert_eq!(first_size(&sizes, &[set(1, 1)]), 0);
    assert_eq!(first_size(&sizes, &[set(0, 0)]), 3);
}

#[test]
fn scaling_is_shared_in_proportion() {
    let sized = |wished: i64, max: i64| Set { annotated_max: Some(max), ..set(wished, wished) };
    type Case = (&'static str, Sizes, Vec<Set>, Option<usize>, Vec<i64>);
    let cases: Vec<Case> = vec![
        ("one set takes it all", sizes(7, 1, 0), vec![set(0, 0), set(3, 3)], Some(1), vec![0, 7]),
        ("no set has a size", sizes(4, 1, 0), vec![set(0, 0), set(0, 0)], Some(1), vec![0, 4]),
        // Kubernetes' own example: 10 with 3 extra, 8 and 5, scaled to 15: 18 in all, 11 and 7.
        ("growing", sizes(15, 3, 2), vec![sized(8, 13), sized(5, 13)], Some(1), vec![11, 7]),
        ("shrinking", sizes(5, 3, 2), vec![sized(8, 13), sized(5, 13)], Some(1), vec![5, 3]),
        ("to nothing", sizes(0, 3, 2), vec![sized(8, 13), sized(5, 13)], Some(1), vec![0, 0]),
    ];
    for (name, sizes, sets, newest, expected) in cases {
        assert_eq!(proportional(&sizes, &sets, newest), expected, "{name}");
    }
}

/// Every state of two sets of up to four Pods, with some of them silent: no step breaks a bound.
#[test]
fn no_step_breaks_a_bound() {
    let mut seen = 0;
    for (replicas, surge, unavailable) in [(1, 1, 0), (2, 0, 1), (3, 1, 0), (3, 1, 1), (4, 2, 2)] {
        let sizes = sizes(replicas, surge, unavailable);
        for old in every_set(4) {
            for new in every_set(4) {
                let sets = [old, new];
                let next = step(&sizes, &sets, 1);
                let lasting = |set: &Set, wished: i64| set.available.min((wished - set.silent).max(0));
                let silent = old.silent + new.silent + old.held + new.held;
                let least = (replicas - silent - unavailable).max(0);
                let before = lasting(&old, old.wished) + lasting(&new, new.wished.min(replicas));
                let after = lasting(&old, next[0]) + lasting(&new, next[1]);
                assert!(after >= least.min(before), "{sizes:?} {sets:?} -> {next:?}: {after} of {least} available");
                let extent = |set: &Set, wished: i64| wished.max(set.active) + set.held;
                let grown = next[1] > new.wished;
                let total = extent(&old, next[0].max(old.wished)) + extent(&new, next[1]);
                assert!(!grown || total <= replicas + surge, "{sizes:?} {sets:?} -> {next:?}: {total} Pods");
                assert!(next[0] <= old.wished, "an old set grew: {sizes:?} {sets:?} -> {next:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 10_000);
}

fn every_set(most: i64) -> Vec<Set> {
    let mut sets = Vec::new();
    for wished in 0..=most {
        for active in 0..=most {
            for silent in 0..=active.min(2) {
                for available in 0..=(active - silent) {
                    for held in 0..=1 {
                        sets.push(Set { wished, active, silent, held, available, ..Set::default() });
                    }
                }
            }
        }
    }
    sets
}
