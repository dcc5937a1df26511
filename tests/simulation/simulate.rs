//! Replays seeds of the simulation: `cargo run --release -p flotilla-tests --bin simulate -- --seed 7 --devices 1000 --hours 24`.
//!
//! Prints a line for each seed with its trace hash; a seed that fails is shortened as far as can be and told. Exit code 1 when any failed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command line tool")]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use flotilla_simulation::{
    Bug, Calendar, Faults, Outcome, Progress, Retention, Setup, Step, Told, draw, draw_life, look_every, retention,
    run_steps, run_steps_telling, shorten,
};

/// A thousand devices in one process share one heap, which no board does: a quarter of the time went into the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How rarely the oracles look when nothing has been done in a long life for so long.
const LOOK_IN_QUIET_TIMES: Duration = Duration::from_secs(6 * 3600);
/// How often people are told how far a run has come: those who sit there, and those who read a file later.
const TOLD_EVERY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

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
    /// Real seconds for shortening each failing seed; one that takes longer by itself is left as it is, and with 0 each.
    #[arg(long, default_value_t = 60)]
    shorten: u64,
    /// Prints what each seed would do, and does nothing of it.
    #[arg(long)]
    draw: bool,
    /// Prints how many events there were of each kind.
    #[arg(long)]
    kinds: bool,
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
        let [often, seldom] = TOLD_EVERY;
        let every = if std::io::stderr().is_terminal() { often } else { seldom };
        let outcome =
            run_steps_telling(&setup, &steps, every, |progress| tell_progress(seed, progress, start.elapsed()));
        tell(seed, &outcome, start.elapsed());
        if arguments.kinds {
            outcome.kinds.iter().for_each(|(kind, count)| println!("    {count:>9} {kind}"));
        }
        outcome.growth.iter().for_each(|(name, series)| println!("    {name}: {}", Told(series)));
        if let Some(failure) = &outcome.failure {
            failed += 1;
            println!("  {faults:?}");
            // What alone takes longer than all of the shortening may is left as it is.
            let quick = start.elapsed() < Duration::from_secs(arguments.shorten);
            let short = if faults.is_some() && quick { arguments.shorten } else { 0 };
            explain(&setup, &steps, outcome.clone(), failure.oracle, short);
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What this seed does, and how it is run: a short life dense with faults, or a long one.
fn drawn(arguments: &Arguments, seed: u64) -> (Option<Faults>, Vec<Step>, Setup) {
    let length_ms = arguments.hours.map_or(arguments.minutes * 60_000, |hours| hours * 3_600_000);
    let setup = Setup {
        seed,
        devices: arguments.devices,
        length_ms,
        bug: arguments.bug,
        retention: retention(seed),
        look_every: look_every(arguments.devices, length_ms),
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

fn factor(virtual_ms: u64, took: Duration) -> f64 {
    virtual_ms as f64 / 1000.0 / took.as_secs_f64().max(0.001)
}

fn tell_progress(seed: u64, progress: Progress, took: Duration) {
    let Progress { events, virtual_ms } = progress;
    let (seconds, speed) = (virtual_ms / 1000, factor(virtual_ms, took));
    let clock = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    eprintln!("seed {seed}: {clock} virtual after {} s, {events} events, {speed:.0} x", took.as_secs());
}

fn tell(seed: u64, outcome: &Outcome, took: Duration) {
    let speed = factor(outcome.virtual_ms, took);
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
