//! Waiting for a condition, with a limit and a description of what never came.

use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Far above what is expected: this is no measurement. An idle device may
/// take 30 s to notice that its hub was killed and came back, and 30 s more until it is let into a rollout it missed.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Asks `probe` until it answers; fails with `what` and the last complaint after [`LIMIT`].
#[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > LIMIT => panic!("never came: {what}; last seen: {last}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, mut probe: impl FnMut() -> bool) {
    until(what, || if probe() { Ok(()) } else { Err("false".to_owned()) });
}
