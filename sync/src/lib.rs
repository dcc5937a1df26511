//! How replicas agree: documents, channels, sessions, transports, identity. See ARCHITECTURE.md.
//!
//! Owns everything between two stores. Refuses to know what a manifest means: list shapes are an argument. Start at
//! [`replica::Replica`] to stand a store beneath sessions, at [`document::Document`] for the CRDT, at [`log::LogWriter`] and
//! [`channel::Item`] for what is written and how it takes effect, and at [`driver::run`] for a running session.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod blob;
pub mod bundle;
pub mod chance;
pub mod channel;
pub mod document;
pub mod driver;
pub mod enrol;
pub mod few;
pub mod identity;
pub mod list;
pub mod log;
pub mod observation;
pub mod planted;
pub mod position;
pub mod recall;
pub mod record;
pub mod replica;
pub mod session;
pub mod stream;
pub mod transport;
