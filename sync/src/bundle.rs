//! Bundles: what a session would carry, as one file on a stick.
//!
//! A bundle goes one way, from a hub to one device (`down`), from a device to its hub (`up`), or from a device that has not joined
//! yet (`join`). It is sealed to its receiver, signed by its maker, and made of sections that are verified one by one: a file that
//! was cut off or damaged gives what of it is whole, and its reader names what is missing. Nothing here decides: records,
//! snapshots and observations go through [`crate::replica::Replica`] as they do in a session, and again has no effect.
//!
//! Owns the format, its keys and its limits. Refuses to open files and databases: bytes come and go through
//! [`tokio::io::AsyncRead`] and [`tokio::io::AsyncWrite`]. Start at [`fn@export`] and [`Incoming::open`]; the format is in
//! `bundle/format.rs`, `bundle/envelope.rs` and `bundle/section.rs`.
//!
//! | part of the file | bytes |
//! |---|---|
//! | magic `FLOTILLA`, version | 8, 1 |
//! | length of the header, header (CBOR, in clear), its digest | 2, n, 16 |
//! | frames: mark, number, length with a bit for the last one, check; sealed section; digest | 16, n, 16 each |
//!
//! The header says installation, receiver, time, a random id and the file key sealed to the receiver (HPKE). Section 0 is signed
//! over the header's digest and a commitment to the file key, which binds every other section to the maker: whoever cannot
//! open the file key cannot make a section that opens.

pub mod courier;
mod envelope;
mod export;
mod format;
mod import;
mod report;
mod section;

use std::fmt;
use std::str::FromStr;

use crate::identity::writer::WriterSubject;
use crate::identity::{InstallationId, NodeName};
use crate::replica::ReplicaError;

pub use envelope::Seal;
pub use export::{Export, JoinExport, export, export_join};
pub use format::{HEADER_BYTES_MAX, Header, SECTION_BYTES_MAX};
pub use import::{Incoming, Inspected, Intake, Joining, Maker, Side, inspect, peek};
pub use report::{LogReport, Missing, Report};
pub use section::{Introduction, OBSERVATIONS_PER_SECTION_MAX};

/// Ending of a bundle's file name.
pub const EXTENSION: &str = "flotilla";
/// Largest bundle that is read, in bytes.
pub const BUNDLE_BYTES_MAX: u64 = 64 << 30;

/// Which way a bundle goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From a hub to a device.
    Down,
    /// From a device to its hub.
    Up,
    /// From a device that has not joined yet.
    Join,
}

/// For whom a bundle is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Receiver {
    /// The installation's hub.
    Hub,
    /// A device.
    Device(NodeName),
}

/// What can go wrong with a bundle as a whole. What is wrong with a part of it is [`Missing`] in its [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Another kind of file.
    #[error("this is no Flotilla bundle")]
    NoBundle,
    /// A newer format.
    #[error("the bundle has version {found}; this program reads version {}: update it", format::VERSION)]
    Version {
        /// The version found.
        found: u8,
    },
    /// The first bytes do not hold together: nothing can be read without them.
    #[error("the beginning of the bundle is damaged ({why}): copy it again, or export it again")]
    Damaged {
        /// What does not hold.
        why: String,
    },
    /// For somebody else.
    #[error("the bundle is for {meant} of installation {installation}; this is {here} of installation {own}")]
    NotForHere {
        /// Whom it is for.
        meant: Receiver,
        /// Of which installation.
        installation: InstallationId,
        /// Who reads it.
        here: Receiver,
        /// Of which installation.
        own: InstallationId,
    },
    /// For this name, and sealed to another key.
    #[error(
        "the bundle is for {meant}, but sealed to a key that {meant} no longer has (it joined anew, or was replaced): export it again"
    )]
    OtherKey {
        /// Whom it is for.
        meant: Receiver,
    },
    /// Not made by whom it must be.
    #[error("the bundle is refused: {why}")]
    Forged {
        /// What does not hold.
        why: String,
    },
    /// More than fits.
    #[error("{what} is larger than a bundle can carry ({max} bytes)")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// How much fits.
        max: usize,
    },
    /// The hub refuses the device, or the device the hub's answer.
    #[error(transparent)]
    Enrol(#[from] crate::enrol::EnrolError),
    /// The source or the target.
    #[error("reading or writing the bundle")]
    Io(#[from] std::io::Error),
    /// The store behind it.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Keys.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// Sealing.
    #[error(transparent)]
    Sealing(#[from] crate::identity::SealingError),
}

impl Receiver {
    /// Who it is, in the words of writer certificates.
    pub fn subject(&self) -> WriterSubject {
        match self {
            Self::Hub => WriterSubject::Hub,
            Self::Device(node) => WriterSubject::Device(node.clone()),
        }
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => formatter.write_str("hub"),
            Self::Device(node) => write!(formatter, "device/{node}"),
        }
    }
}

impl FromStr for Receiver {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("device/") {
            Some(node) => NodeName::parse(node).map(Self::Device).map_err(|_name| "the device's name is not valid"),
            None if text == "hub" => Ok(Self::Hub),
            None => Err("it is neither hub nor device/<node>"),
        }
    }
}

impl TryFrom<String> for Receiver {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Receiver> for String {
    fn from(receiver: Receiver) -> Self {
        receiver.to_string()
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Join => "join",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
