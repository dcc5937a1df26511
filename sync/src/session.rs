//! Sessions: the protocol between a hub and a device, sans-io.
//!
//! Owns the order of frames, what is in flight, pace and keep-alive. Refuses sockets, clocks and stores: the driver feeds frames,
//! answers and the time, and carries out what [`Session::poll_event`] asks for. Symmetric but for who paces observations.
//!
//! Start at [`Session::handle_frame`]; frames are in `session/frame.rs`, the pace of observations in `session/pace.rs`.

mod greeting;

pub use greeting::{Greeting, GreetingError};

use crate::identity::{NodeName, PublicKey};

/// What a session must know of its own side.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The installation's root: anchor of all writer chains.
    pub root: PublicKey,
    /// Own node name; `None` at a hub.
    pub node: Option<NodeName>,
    /// Life of the own database.
    pub incarnation: u64,
    /// Boot of this process within that life.
    pub boot: u64,
    /// Spreads coalesced observations and keep-alives: random per session.
    pub seed: u64,
}

/// What a peer said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Life of its database.
    pub incarnation: u64,
    /// Boot of its process.
    pub boot: u64,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// This side closed it.
    Closed,
    /// The peer said goodbye.
    Goodbye(String),
    /// The peer asks to come back later.
    RetryAfter {
        /// When. Milliseconds.
        ms: u64,
    },
    /// The stream broke.
    Broken(String),
    /// Nothing was heard for three keep-alives.
    Silent,
    /// The peer broke the protocol, or showed records that do not hold; it was told.
    Protocol(String),
    /// The store failed; the peer was asked to come back.
    Replica(String),
}
