//! The front driven from outside, over real sockets: by stock kubectl of every supported version, and by hand-written HTTP.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod http;
mod kubectl;
mod memory;
mod server;
mod stories;
mod verbs;
