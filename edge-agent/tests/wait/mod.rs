//! Waiting for what tells nobody that it has happened: a file, a process, a line of a log.

use std::time::Duration;

/// How long anything may take before the test fails. Far above what is expected: this is no measurement.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// How often a condition that cannot be waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `holds`; fails with `what` after [`LIMIT`].
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
}
