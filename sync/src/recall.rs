//! What was worked out of some bytes, for whoever on this thread asks the same of the same bytes again: for simulations alone.
//!
//! A thousand simulated devices take one change of one document into effect, and each of them works out of the same bytes what the one
//! before it has. Owns a bounded table of such answers, by the whole of what they were worked out of, and only while one who keeps them
//! says so. No program that is shipped has the table: a device would hold what nobody asks it again. Refuses everything that is no
//! function of its bytes alone. Start reading at [`or`].

#[cfg(any(test, feature = "planted-bugs"))]
mod kept;

use bytes::Bytes;

#[cfg(any(test, feature = "planted-bugs"))]
pub use kept::{Keeping, keep};

/// What `work` answers, which must follow from `of` alone; `what` tells one kind of work from another.
#[cfg(any(test, feature = "planted-bugs"))]
pub fn or<T: Clone + 'static>(what: &'static str, of: &[&Bytes], work: impl FnOnce() -> T) -> T {
    kept::or(what, of, work)
}

/// What `work` answers: nothing is kept.
#[cfg(not(any(test, feature = "planted-bugs")))]
pub fn or<T: Clone + 'static>(_what: &'static str, _of: &[&Bytes], work: impl FnOnce() -> T) -> T {
    work()
}
