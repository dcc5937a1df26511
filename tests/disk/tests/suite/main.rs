//! SQLite on the simulated disk: what holds whatever happens to the machine, and what shows when a planted bug breaks it.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod cost;
mod faults;
mod history;
mod lives;
mod power;
