//! What end-to-end tests and benches stand on: real processes in temporary folders, real kubectl, waiting for conditions.
//!
//! Owns start, kill and clean-up of everything a test started, also when it fails. Start reading at [`fleet`].
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may stop at the first surprise, and says why it skips"
)]

pub mod database;
pub mod fleet;
pub mod images;
pub mod kubectl;
pub mod leftovers;
pub mod mqtt;
pub mod port;
pub mod process;
pub mod relay;
pub mod wait;

/// Prints `SKIPPED: reason`, or fails where every part must be there (`FLOTILLA_REQUIRE_ALL=1`, as CI sets it).
pub fn skip(reason: &str) {
    assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "needed here but missing: {reason}");
    // Not eprintln: the test runner keeps that to itself when a test passes.
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {reason}\n")).unwrap();
}

/// Prints a measurement beside the test's name.
pub fn say(line: &str) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("MEASURED: {line}\n")).unwrap();
}

/// Where a program lies, looking also where Debian keeps daemons.
pub fn process_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.exists())
}
