//! Seeds of the simulation that must hold, every time; that one seed is one run in any process; and that planted mistakes are found.
//! `docs/testing.md` says how to run nights of it.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "tests")]

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_simulation::{Bug, Setup, retention, run};

/// Seeds that hold, and among them those that did not, once: each found a fault.
const SEEDS: &[u64] = &[1, 2, 3, 5, 12, 14, 19, 22];
/// Drawn anew each time.
const RANDOM: u64 = 2;

/// Planted mistakes, each with a seed at which it was found when this was written, and which holds without it; others are tried if it no
/// longer is found there.
const FOUND: &[(Bug, u64)] = &[
    (Bug::LostSync, 1),
    (Bug::FailedCommitAnswered, 3),
    (Bug::CommitLeftInMemory, 7),
    (Bug::OverrideDropped, 1),
    (Bug::ListNotApplied, 2),
    (Bug::RestoreIgnored, 2),
    (Bug::RestartWhileOffline, 1),
    (Bug::SelectorIgnored, 1),
    (Bug::WatchGap, 1),
    (Bug::WatchRepeats, 1),
];
/// Seeds that are tried for one mistake.
const TRIED: u64 = 12;

fn setup(seed: u64, minutes: u64, bug: Option<Bug>) -> Setup {
    Setup {
        seed,
        devices: 4,
        length_ms: minutes * 60_000,
        bug,
        retention: retention(seed),
        look_every: Duration::from_secs(1),
        aloud: false,
    }
}

fn replay(setup: &Setup) -> String {
    format!(
        "cargo run --release -p flotilla-tests --bin simulate -- --seed {} --devices {} --minutes {}",
        setup.seed,
        setup.devices,
        setup.length_ms / 60_000
    )
}

/// Runs all of `setups`, two at a time, and answers what `judge` says of each.
fn side_by_side<T: Sync, R: Send>(setups: &[T], judge: impl Fn(&T) -> Option<R> + Sync) -> Vec<R> {
    let next = Mutex::new(setups.iter());
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(setup) = next.lock().unwrap().next() else { return };
                    if let Some(one) = judge(setup) {
                        found.lock().unwrap().push(one);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn no_promise_is_broken() {
    let random = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let seeds = SEEDS.iter().copied().chain((0..RANDOM).map(|number| random + number));
    let setups: Vec<Setup> = seeds.map(|seed| setup(seed, 20, None)).collect();
    let broken = side_by_side(&setups, |setup| {
        let outcome = run(setup);
        let failure = outcome.failure?;
        outcome.lines.iter().for_each(|line| println!("    {line}"));
        let told = format!("{} at {} ms: {}\n{}", failure.oracle, failure.at_ms, failure.what, replay(setup));
        // A random seed that fails is news, and nobody's fault who did not draw it before: it is told, and waits to be mended.
        println!("{}BROKEN: {told}", if setup.seed >= random { "RANDOM SEED " } else { "" });
        (setup.seed < random).then_some(told)
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_seed_is_the_same_run_in_any_process() {
    let hash = || {
        let arguments = ["--seed", "4", "--devices", "3", "--minutes", "10"];
        let output = Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        text.split_whitespace().skip_while(|word| *word != "hash").nth(1).unwrap().to_owned()
    };
    let first = hash();
    assert_eq!(first, hash());
    let here = run(&Setup { devices: 3, ..setup(4, 10, None) });
    assert_eq!(first, format!("{:016x}", here.hash));
}

/// The simulation can fail: each mistake that was planted is found.
#[test]
fn planted_mistakes_are_found() {
    let missed = side_by_side(FOUND, |(bug, hint)| {
        let mut seeds = std::iter::once(*hint).chain(1..=TRIED);
        let found = seeds.find_map(|seed| Some((seed, run(&setup(seed, 20, Some(*bug))).failure?)));
        match found {
            Some((seed, failure)) => {
                println!("{bug:?} at seed {seed}: {}: {}", failure.oracle, failure.what);
                None
            }
            None => Some(format!("{bug:?}")),
        }
    });
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
