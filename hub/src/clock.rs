//! The hub's one reading of the wall clock; everything else takes `now` as an argument.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_manifests::time::Timestamp;

pub use flotilla_rest::Clock;

/// The machine's wall clock, in milliseconds.
#[allow(clippy::disallowed_methods, reason = "the one door of the hub to the wall clock")]
pub fn system() -> Clock {
    Arc::new(|| {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    })
}
