//! The fleet door: the hub's end of all sessions.
//!
//! Owns accepting devices from the transports, running sync's driver for each, and turning what devices report into rows.
//! Refuses decisions about workloads: those are the controllers'. Start reading at [`contact`].

pub mod contact;
