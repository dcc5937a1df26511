//! Speed of the walk of one manifest, with real processes and real sockets: `cargo bench -p flotilla --bench walk`.
//!
//! Measures and never judges: no figure fails it, only a walk that does not arrive. About four minutes, after the build.
//! It starts hub and agents through the harness of the end-to-end tests, prints a table, and writes
//! `target/bench/walk.json`. What the figures mean stands in `docs/benchmarks.md`. Start reading at [`main`].
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a bench reads clocks, stops at the first surprise, and counts little"
)]

mod api;
mod commits;
mod containers;
mod device;
mod latency;
mod relay;
mod report;

use std::path::Path;

use flotilla_tests::fleet::{Fleet, Road};

/// The binary cargo built for this bench.
const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");
const DEVICES: usize = 3;

fn main() {
    let mut report = report::Report::default();
    say(&format!("apply -> Running: a hub and {DEVICES} devices on loopback, QUIC ..."));
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    for number in 1..=DEVICES {
        fleet.join(&format!("n{number}"), &[]);
    }
    latency::measure(&mut fleet, DEVICES, &mut report);
    drop(fleet);
    say("one device: memory, wire, start without a hub ...");
    device::measure(BINARY, &mut report);
    say("containers: beside a bare crun, and a reboot without a hub ...");
    containers::measure(BINARY, &mut report);
    let folder = Path::new(BINARY).ancestors().nth(2).unwrap().join("bench");
    report.write(&folder, "walk.json");
    say(&format!("written: {}", folder.join("walk.json").display()));
}

#[expect(clippy::print_stdout, reason = "a bench is run to be read")]
fn say(line: &str) {
    println!("{line}");
}
