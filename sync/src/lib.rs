//! How replicas agree: documents, channels, sessions, transports, identity. See ARCHITECTURE.md.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod enrol;
pub mod identity;
pub mod transport;
