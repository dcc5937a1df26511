//! One request in, one response out: routing, authorisation, negotiation, backend calls, encoding.
//!
//! Owns the protocol's behaviour; refuses sockets (see [`server`](crate::server)) and storage (see
//! [`Backend`]). Start at [`Front::handle`].

use std::fmt;
use std::sync::Arc;

use flotilla_manifests::time::Timestamp;

use crate::authorize::{Authorize, DenyAll};
use crate::backend::Backend;

/// Reads the wall clock; only the shell that builds a [`Front`] has a real one.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Bounds of one front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A larger request body gets 413 before it is read.
    pub body_bytes_max: usize,
    /// Time a client has to send its whole body.
    pub body_read_seconds_max: u64,
    /// Requests being answered at once, watches and followed logs apart; one more gets 429.
    pub requests_in_flight_max: usize,
    /// Watches and followed logs open at once; one more gets 429.
    pub streams_open_max: usize,
    /// Connections open at once; one more waits in the kernel's backlog.
    pub connections_open_max: usize,
    /// Time for the TLS handshake and the first request's header.
    pub header_read_seconds_max: u64,
    /// A client that takes nothing from its socket for so long is cut off.
    pub write_stall_seconds_max: u64,
    /// A watch without `timeoutSeconds` ends after this.
    pub watch_seconds_max: u64,
}

impl Limits {
    /// For a hub.
    pub const HUB: Self = Self {
        body_bytes_max: 3 * 1024 * 1024,
        body_read_seconds_max: 60,
        requests_in_flight_max: 400,
        streams_open_max: 4096,
        connections_open_max: 4096,
        header_read_seconds_max: 10,
        write_stall_seconds_max: 60,
        watch_seconds_max: 3600,
    };
    /// For a device: little memory, few people.
    pub const DEVICE: Self =
        Self { requests_in_flight_max: 16, streams_open_max: 32, connections_open_max: 64, ..Self::HUB };
}

/// The Kubernetes API over one backend. Cheap to share behind an `Arc`.
pub struct Front<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) clock: Clock,
    pub(crate) authorize: Arc<dyn Authorize>,
    pub(crate) limits: Limits,
}

impl<B: Backend> Front<B> {
    /// Denies every request until [`Front::authorized_by`] names an authorizer.
    pub fn over(backend: Arc<B>, clock: Clock, limits: Limits) -> Self {
        Self { backend, clock, authorize: Arc::new(DenyAll), limits }
    }

    pub fn authorized_by(mut self, authorize: impl Authorize) -> Self {
        self.authorize = Arc::new(authorize);
        self
    }
}

impl<B> fmt::Debug for Front<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Front").field("limits", &self.limits).finish_non_exhaustive()
    }
}
