//! A fleet under load: `cargo bench -p flotilla --bench fleet -- --devices 1000 --road quic`.
//!
//! One real hub process, and devices that are real but for containers (identity, store, replica, session, backoff), in generator
//! processes of their own. Measures change -> applied, processor and memory of the hub, traffic, the API meanwhile, and the return of
//! all devices at once. Judges nothing. `docs/benchmarks.md` says what the figures mean. Start reading at [`main`].
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a bench reads clocks, stops at the first surprise, and counts little"
)]

#[allow(dead_code, reason = "shared with the other benches")]
mod api;
#[allow(dead_code, reason = "shared with the other benches")]
mod report;

mod fleet {
    pub(crate) mod crowd;
    pub(crate) mod device;
    pub(crate) mod floor;
    pub(crate) mod generator;
    pub(crate) mod generators;
    pub(crate) mod hub;
    pub(crate) mod phases;
    pub(crate) mod probe;
    pub(crate) mod traffic;
    pub(crate) mod watched;
    pub(crate) mod writes;

    /// Devices that one token admits: the hub writes all of them down again at each use.
    pub(crate) const TOKEN_USES: usize = 100;
}

use std::path::{Path, PathBuf};

use fleet::generator::{self, Part};
use fleet::phases::{self, Settings};

/// The binary cargo built for this bench.
const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "generate") {
        return generator::run(&Part::parse(&arguments[1..]));
    }
    let settings = settings(&arguments);
    let mut report = report::Report::default();
    phases::run(BINARY, &settings, &mut report);
    let folder = Path::new(BINARY).ancestors().nth(2).unwrap().join("bench");
    report.write(&folder, "fleet.json");
    say(&format!("written: {}", folder.join("fleet.json").display()));
}

fn settings(arguments: &[String]) -> Settings {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    };
    let number = |name: &str, default: usize| value(name).map_or(default, |text| text.parse().unwrap());
    let devices = number("--devices", 1000);
    Settings {
        devices,
        generators: number("--generators", devices.div_ceil(5000)),
        dialling: number("--dialling", devices),
        road: value("--road").unwrap_or_else(|| "quic".to_owned()),
        folder: value("--folder").map(PathBuf::from),
        memory: value("--memory").map(PathBuf::from),
        changes: number("--changes", 20),
        idle_s: number("--idle", 120),
        phases: value("--phases")
            .unwrap_or_else(|| "change,idle,reconnect,floor,writes".to_owned())
            .split(',')
            .map(str::to_owned)
            .collect(),
    }
}

#[expect(clippy::print_stdout, reason = "a bench is run to be read")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
