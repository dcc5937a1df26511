//! A hub and its devices in one thread on virtual time: the real store, admission, controllers, scheduler, fleet door, sessions, agents
//! and uplinks, over simulated disks, lines, clocks and containers. A run is one seed; the same seed is the same run, bit for bit.
//!
//! Start reading at [`run`], then `world.rs`, `oracle.rs`, `schedule.rs`. `docs/testing.md` says how to run nights of it.
#![forbid(unsafe_code)]

mod day;
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
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use flotilla_sync::{chance, planted, recall};

pub use flotilla_hub::Retention;
pub use flotilla_sync::planted::Bug;
pub use growth::{Size, Told};
pub use lives::{Calendar, draw_life};
pub use network::{Cut, Weather};
pub use schedule::{Faults, Step, What, draw, look_every, retention};
pub use shorten::shorten;
pub use trace::{Failure, Progress};

use dice::Dice;
use trace::{Meter, Trace};
use world::World;

/// After faults have ended everyone must agree within this virtual time.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(15 * 60);

/// What was worked out of documents and changes and is kept for the next device: some KB each.
const ANSWERS_KEPT: usize = 2048;

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
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
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
    run_steps_telling(setup, steps, Duration::MAX, |_progress| {})
}

/// The same, and tells every so often (real time) how far it has come.
pub fn run_steps_telling(setup: &Setup, steps: &[Step], every: Duration, mut tell: impl FnMut(Progress)) -> Outcome {
    let setup = setup.clone();
    let steps = steps.to_vec();
    let meter = Arc::new(Meter::default());
    let (metered, (ends, ended)) = (Arc::clone(&meter), mpsc::channel::<()>());
    // A thread of its own: what product code keeps for each thread begins anew.
    let thread = std::thread::Builder::new().name(format!("seed {}", setup.seed)).spawn(move || {
        // Dropped when it ends, however it ends.
        let _ends = ends;
        run_here(&setup, &steps, metered)
    });
    while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        tell(meter.progress());
    }
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => panicked(panic.downcast_ref::<String>().map_or("", String::as_str)),
        Err(error) => panicked(&error.to_string()),
    }
}

fn panicked(why: &str) -> Outcome {
    let failure = Failure { oracle: "panic", what: format!("a part panicked: {why}"), at_ms: 0 };
    Outcome {
        hash: 0,
        events: 0,
        kinds: BTreeMap::new(),
        virtual_ms: 0,
        failure: Some(failure),
        lines: Vec::new(),
        growth: BTreeMap::new(),
    }
}

fn run_here(setup: &Setup, steps: &[Step], meter: Arc<Meter>) -> Outcome {
    planted::plant(setup.bug);
    let mut dice = Dice::new(setup.seed).apart("chance");
    let _simulated = chance::simulate(Box::new(move |bytes| dice.fill(bytes)));
    // A thousand devices need not each work out what one change makes of one document: it is a function of both.
    let _kept = recall::keep(ANSWERS_KEPT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return panicked(&error.to_string()),
    };
    let outcome = runtime.block_on(live(setup, steps, meter));
    planted::plant(None);
    outcome
}

async fn live(setup: &Setup, steps: &[Step], meter: Arc<Meter>) -> Outcome {
    let trace = Trace::starting(setup.aloud, meter);
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
    let (kinds, lines) = (trace.kinds(), trace.lines());
    Outcome { hash, events, kinds, virtual_ms: passed, failure: trace.failure(), lines, growth }
}
