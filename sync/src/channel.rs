//! The nouns of replication: channels, writers, items, positions, and the pure folding of records into items.
//!
//! Owns the names on the wire and their bounds. Refuses I/O: a store keeps [`Item`]s as rows and calls [`Item::apply`] on each.
//! Start at [`ChannelName`], then [`Item`].

mod item;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use crate::identity::{NodeName, PublicKey};

pub use item::{Applied, DocumentItem, Item, ItemError, ItemKind, RegisterItem, Version};
pub use state::{CHANNEL_ITEMS_MAX, ChannelState, Folded, Quarantined, TOMBSTONES_MAX};

/// Longest channel name, in bytes.
pub const CHANNEL_NAME_BYTES_MAX: usize = 300;
/// Longest item id, in bytes.
pub const ITEM_ID_BYTES_MAX: usize = 320;
/// Most channels one replica or session speaks of.
pub const CHANNELS_MAX: usize = 64;
/// Most writers of one channel: each restored database and each repaired fork adds one.
pub const WRITERS_MAX: usize = 256;

/// A SHA-256 hash: of a record, of an item's state.
pub type Hash = [u8; 32];

/// `prev` of the first record of a log.
pub const GENESIS: Hash = [0; 32];

/// An audience: all devices of a fleet, or one device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChannelName {
    /// `fleet/<name>`: read by every device of the fleet, written by hubs.
    Fleet(NodeName),
    /// `device/<node>`: read and written by one device and by hubs.
    Device(NodeName),
}

/// A text that names no channel, or no item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown:?} is not valid: {why}")]
pub struct NameError {
    what: &'static str,
    shown: String,
    why: &'static str,
}

/// Identity of a log's writer: SHA-256 of its public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub [u8; 32]);

/// Name of an item within its channel: 1 to [`ITEM_ID_BYTES_MAX`] bytes of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(String);

/// Where a log stands: number and hash of its newest record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    /// Number of the newest record.
    pub seq: u64,
    /// Hash of the newest record.
    pub hash: Hash,
}

/// How far a replica has read each log.
pub type Positions = BTreeMap<ChannelName, BTreeMap<WriterId, u64>>;
/// How far a replica has read each log, with the hashes it stands at. Channels without any record are present and empty.
pub type Heads = BTreeMap<ChannelName, BTreeMap<WriterId, Head>>;

/// Forgets the hashes.
pub fn positions_of(heads: &Heads) -> Positions {
    let seqs = |logs: &BTreeMap<WriterId, Head>| logs.iter().map(|(writer, head)| (*writer, head.seq)).collect();
    heads.iter().map(|(channel, logs)| (channel.clone(), seqs(logs))).collect()
}

impl ChannelName {
    /// Parses `fleet/<name>` or `device/<node>`; both names follow the rules of node names.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let error = |why| NameError { what: "channel", shown: text.chars().take(80).collect(), why };
        let (kind, name) = text.split_once('/').ok_or_else(|| error("it must be fleet/<name> or device/<node>"))?;
        let name = NodeName::parse(name).map_err(|_name| error("the part after '/' must be an RFC 1123 subdomain"))?;
        match kind {
            "fleet" => Ok(Self::Fleet(name)),
            "device" => Ok(Self::Device(name)),
            _ => Err(error("it must be fleet/<name> or device/<node>")),
        }
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet(name) => write!(formatter, "fleet/{name}"),
            Self::Device(node) => write!(formatter, "device/{node}"),
        }
    }
}

impl FromStr for ChannelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl WriterId {
    /// The id of the writer with this key.
    pub fn of(key: &PublicKey) -> Self {
        Self(sha256(&[&key.0]))
    }
}

impl fmt::Display for WriterId {
    /// The first eight bytes: enough to tell the writers of an installation apart in a log line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&crate::identity::hex(&self.0[..8]))
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WriterId({self})")
    }
}

impl ItemId {
    /// Parses an item id.
    ///
    /// # Errors
    /// When it is empty, too long, or not printable ASCII.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let error = |why| NameError { what: "item id", shown: text.chars().take(80).collect(), why };
        if text.is_empty() || text.len() > ITEM_ID_BYTES_MAX {
            return Err(error("it must have 1 to 320 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(error("it must be printable ASCII without spaces"));
        }
        Ok(Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ItemId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self { seq: 0, hash: GENESIS };

    /// Tells apart the heads two branches of a log stand at. A hint: evidence is a signed batch.
    pub fn digest(&self) -> u64 {
        self.hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Head({}, {})", self.seq, crate::identity::hex(&self.hash[..4]))
    }
}

/// SHA-256 over parts in order.
pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = ring::digest::Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// SHA-256 of an item's encoded state, as lists name it.
pub fn state_digest(state: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, state).as_ref());
    hash
}
