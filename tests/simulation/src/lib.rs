//! A hub and its devices in one thread on virtual time: the real store, admission, controllers, scheduler, fleet door, sessions, agents
//! and uplinks, over simulated disks, lines, clocks and containers. A run is one seed; the same seed is the same run, bit for bit.
//!
//! Start reading at [`run`], then `world.rs`, `oracle.rs`, `schedule.rs`. `docs/testing.md` says how to run nights of it.
#![forbid(unsafe_code)]

mod device;
mod dice;
mod growth;
mod hub;
mod lives;
mod model;
mod network;
mod oracle;
mod people;
mod runtime;
mod schedule;
mod shorten;
mod stories;
mod trace;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_sync::{chance, planted};

pub use flotilla_hub::Retention;
pub use flotilla_sync::planted::Bug;
pub use growth::{Size, Told};
pub use lives::{Calendar, draw_life};
pub use network::{Cut, Weather};
pub use schedule::{Faults, Step, What, draw, retention};
pub use shorten::shorten;
pub use trace::Failure;

use dice::Dice;
use trace::Trace;
use world::World;

/// After faults have ended everyone must agree within this virtual time.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(15 * 60);

/// One run.
#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    pub devices: usize,
    /// Virtual time with faults. Milliseconds.
    pub length_ms: u64,
    /// A mistake to plant.
    pub bug: Option<Bug>,
    pub retention: Retention,
    /// How often the oracles look while nothing is scheduled.
    pub look_every: Duration,
    /// Prints what happens as it happens.
    pub aloud: bool,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of everything that happened, in order.
    pub hash: u64,
    pub events: u64,
    /// Virtual time that passed. Milliseconds.
    pub virtual_ms: u64,
    pub failure: Option<Failure>,
    /// The last events, for people.
    pub lines: Vec<String>,
    /// What was measured of everything that can grow, if the steps asked for it.
    pub growth: BTreeMap<String, Vec<Size>>,
}

/// Runs one world to its end.
pub fn run(setup: &Setup) -> Outcome {
    let (_, steps) = draw(setup.seed, setup.devices, setup.length_ms);
    run_steps(setup, &steps)
}

/// Runs one world with these steps in the place of those of its seed.
pub fn run_steps(setup: &Setup, steps: &[Step]) -> Outcome {
    let setup = setup.clone();
    let steps = steps.to_vec();
    // A thread of its own: what product code keeps for each thread begins anew.
    let thread =
        std::thread::Builder::new().name(format!("seed {}", setup.seed)).spawn(move || run_here(&setup, &steps));
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => panicked(panic.downcast_ref::<String>().map_or("", String::as_str)),
        Err(error) => panicked(&error.to_string()),
    }
}

fn panicked(why: &str) -> Outcome {
    let failure = Failure { oracle: "panic", what: format!("a part panicked: {why}"), at_ms: 0 };
    Outcome { hash: 0, events: 0, virtual_ms: 0, failure: Some(failure), lines: Vec::new(), growth: BTreeMap::new() }
}

fn run_here(setup: &Setup, steps: &[Step]) -> Outcome {
    planted::plant(setup.bug);
    let mut dice = Dice::new(setup.seed).apart("chance");
    let _simulated = chance::simulate(Box::new(move |bytes| dice.fill(bytes)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return panicked(&error.to_string()),
    };
    let outcome = runtime.block_on(live(setup, steps));
    planted::plant(None);
    outcome
}

async fn live(setup: &Setup, steps: &[Step]) -> Outcome {
    let trace = Trace::starting(setup.aloud);
    if let Err(error) = flotilla_disk::register().and_then(|()| flotilla_disk::set_seed(setup.seed)) {
        return panicked(&error.to_string());
    }
    let mut passed = 0;
    let mut growth = BTreeMap::new();
    match World::begin(setup, trace.clone()).await {
        Err(error) => trace.fail("begin", format_args!("{error:#}")),
        Ok(mut world) => {
            world.follow(steps, setup.length_ms).await;
            growth = world.growth.series();
            if let Err(why) = world.growth.judge() {
                trace.fail("bounded", why);
            }
            if trace.failure().is_none() {
                world.heal().await;
                if let Err(why) = world.settle(SETTLES_WITHIN).await {
                    trace.fail("converge", why);
                } else if let Err(why) = world.goes_on(SETTLES_WITHIN).await {
                    trace.fail("goes on", why);
                }
            }
            passed = world.passed_ms();
            world.end().await;
        }
    }
    let (hash, events) = trace.sum();
    Outcome { hash, events, virtual_ms: passed, failure: trace.failure(), lines: trace.lines(), growth }
}
