//! Replays seeds of the simulation: `cargo run --release -p flotilla-tests --bin simulate -- --seed 7 --devices 1000 --hours 24`.
//!
//! Prints a line for each seed with its trace hash; a seed that fails is shortened as far as can be and told. Exit code 1 when any failed.
#![allow(clippy::print_stdout, reason = "it is a command line tool")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use flotilla_simulation::{
    Bug, Calendar, Faults, Outcome, Retention, Setup, Step, Told, draw, draw_life, retention, run_steps, shorten,
};

/// How rarely the oracles look when nothing has been done in a long life for so long.
const LOOK_IN_QUIET_TIMES: Duration = Duration::from_secs(6 * 3600);

/// Runs a hub and its devices in one thread on virtual time.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds from there on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    #[arg(long, default_value_t = 8)]
    devices: usize,
    /// Virtual time with faults.
    #[arg(long, conflicts_with = "minutes")]
    hours: Option<u64>,
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// A long life instead: so many virtual years of working days and quiet ones, in which nothing may grow for ever. It is not
    /// shortened when it fails.
    #[arg(long, conflicts_with_all = ["hours", "minutes"])]
    years: Option<u64>,
    /// A long life of so many months.
    #[arg(long, conflicts_with_all = ["hours", "minutes", "years"])]
    months: Option<u64>,
    /// Plants a mistake, which must be found.
    #[arg(long, value_parser = bug_of)]
    bug: Option<Bug>,
    /// Ends after this many seconds of real time, whatever is left.
    #[arg(long)]
    seconds: Option<u64>,
    /// Real seconds for shortening each failing seed; 0 leaves it as it is.
    #[arg(long, default_value_t = 60)]
    shorten: u64,
    /// Prints what each seed would do, and does nothing of it.
    #[arg(long)]
    draw: bool,
    /// Tells what happens as it happens, and what the programs log (FLOTILLA_LOG).
    #[arg(long)]
    aloud: bool,
}

fn bug_of(name: &str) -> Result<Bug, String> {
    let known = || Bug::ALL.iter().map(|bug| format!("{bug:?}")).collect::<Vec<_>>().join(", ");
    Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name).ok_or_else(|| format!("one of {}", known()))
}

#[allow(clippy::disallowed_methods, reason = "how fast it is can only be told by a real clock")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.aloud {
        flotilla_agent::init_logging();
    }
    let began = Instant::now();
    let mut failed = 0;
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        if arguments.seconds.is_some_and(|limit| began.elapsed() > Duration::from_secs(limit)) {
            break;
        }
        let (faults, steps, setup) = drawn(&arguments, seed);
        if arguments.draw {
            println!("seed {seed} {faults:?}");
            steps.iter().for_each(|step| println!("    {} ms {:?}", step.at_ms, step.what));
            continue;
        }
        let start = Instant::now();
        let outcome = run_steps(&setup, &steps);
        tell(seed, &outcome, start.elapsed());
        outcome.growth.iter().for_each(|(name, series)| println!("    {name}: {}", Told(series)));
        if let Some(failure) = &outcome.failure {
            failed += 1;
            println!("  {faults:?}");
            let short = if faults.is_some() { arguments.shorten } else { 0 };
            explain(&setup, &steps, outcome.clone(), failure.oracle, short);
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What this seed does, and how it is run: a short life dense with faults, or a long one.
fn drawn(arguments: &Arguments, seed: u64) -> (Option<Faults>, Vec<Step>, Setup) {
    let setup = Setup {
        seed,
        devices: arguments.devices,
        length_ms: arguments.hours.map_or(arguments.minutes * 60_000, |hours| hours * 3_600_000),
        bug: arguments.bug,
        retention: retention(seed),
        look_every: Duration::from_secs(1),
        aloud: arguments.aloud,
    };
    let months = arguments.months.map(|months| Calendar { months, ..Calendar::years(1) });
    let Some(calendar) = arguments.years.map(Calendar::years).or(months) else {
        let (faults, steps) = draw(seed, arguments.devices, setup.length_ms);
        return (Some(faults), steps, setup);
    };
    let steps = draw_life(seed, arguments.devices, &calendar);
    let (length_ms, retention) = (calendar.length_ms(), Retention::default());
    (None, steps, Setup { length_ms, retention, look_every: LOOK_IN_QUIET_TIMES, ..setup })
}

fn tell(seed: u64, outcome: &Outcome, took: Duration) {
    let speed = outcome.virtual_ms as f64 / 1000.0 / took.as_secs_f64().max(0.001);
    let verdict = outcome.failure.as_ref().map_or("ok", |failure| failure.oracle);
    println!(
        "seed {seed} hash {:016x} events {} virtual {} s took {:.2} s ({speed:.0} x) {verdict}",
        outcome.hash,
        outcome.events,
        outcome.virtual_ms / 1000,
        took.as_secs_f64()
    );
}

/// Tells the shortest story of a failure.
fn explain(setup: &Setup, steps: &[Step], outcome: Outcome, oracle: &str, seconds: u64) {
    let mut told = outcome;
    if seconds > 0 {
        let short = shorten(setup, steps, oracle, Duration::from_secs(seconds));
        println!("  {} of {} steps are enough:", short.len(), steps.len());
        short.iter().for_each(|step| println!("    {} ms {:?}", step.at_ms, step.what));
        told = run_steps(setup, &short);
    }
    told.lines.iter().for_each(|line| println!("    {line}"));
    if let Some(failure) = &told.failure {
        println!("  {} at {} ms: {}", failure.oracle, failure.at_ms, failure.what);
    }
}
