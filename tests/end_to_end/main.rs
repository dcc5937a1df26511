//! The walk of one manifest with real parts: real kubectl, real sockets, real processes, a real mosquitto.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod apps;
mod away;
mod bad_input;
mod broker;
mod damage;
mod demo;
mod history;
mod kill;
mod kubectl;
mod reaper;
mod restore;
mod roads;
mod rogue;
mod rollout;
mod stick;
mod story;
mod technician;
mod versions;
mod volumes;
mod walk;

/// The binary cargo built for these tests.
const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");
