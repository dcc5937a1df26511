//! Records: what logs are made of, and their one encoding.
//!
//! On the wire and on disk a record is the deterministic CBOR array `[kind, item, epoch, needs, body, author, time]`. Version,
//! channel, writer, seq and prev are stated once per [`crate::log::Batch`] and covered by the record's hash:
//! `SHA-256("flotilla:record/1" 0x00 || [1, channel, writer, seq, prev] || record)`. An item id that is a UUID is 16 bytes.
//!
//! Start at [`Record`] and [`Draft`].

pub(crate) mod cbor;

use bytes::Bytes;

use crate::channel::{ChannelName, Hash, ITEM_ID_BYTES_MAX, ItemId, WriterId, sha256};
use cbor::{CborError, Decoder, Encoder};

/// Version of record and batch encoding.
pub const RECORD_VERSION: u64 = 1;
/// Largest body of a record, in bytes.
pub const RECORD_BODY_BYTES_MAX: usize = 960 * 1024;
/// Most other documents one record needs.
pub const NEEDS_MAX: usize = 64;
/// Most heads of one needed document.
pub const NEED_HEADS_MAX: usize = 16;
/// Longest author, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 256;

const HASH_DOMAIN: &[u8] = b"flotilla:record/1\0";

/// What a record does to its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A document's whole saved state: its creation, or a new epoch.
    Snapshot,
    /// One automerge change of a document.
    Change,
    /// The new value of a register.
    Register,
    /// The item is gone.
    Remove,
}

/// A document state that must be present before a record takes effect; any later epoch serves too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The document.
    pub item: ItemId,
    /// Its epoch.
    pub epoch: u64,
    /// Its heads.
    pub heads: Vec<Hash>,
}

/// What a record carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing, as in a removal.
    Empty,
    /// The content itself.
    Inline(Bytes),
    /// SHA-256 of content that travels beside the log.
    Hash(Hash),
}

/// One entry of a log, with its place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its audience.
    pub channel: ChannelName,
    /// Whose log.
    pub writer: WriterId,
    /// Its number in that log.
    pub seq: u64,
    /// Hash of the record before it.
    pub prev: Hash,
    /// What it says.
    pub draft: Draft,
}

/// A record without its place: what a caller appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it does.
    pub kind: RecordKind,
    /// To which item.
    pub item: ItemId,
    /// Epoch of the document; 0 for registers.
    pub epoch: u64,
    /// What must be present before.
    pub needs: Vec<Need>,
    /// What it carries.
    pub body: Body,
    /// The person or controller behind it; may be empty.
    pub author: String,
    /// When, by the writer's clock. Milliseconds. An annotation: nothing is ordered by it.
    pub time_ms: u64,
}

/// Why bytes are no record, or a draft cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the encoding of this page.
    #[error("record: {0}")]
    Encoding(#[from] CborError),
    /// A field is over its limit.
    #[error("record of item {item}: {field} is larger than {max}")]
    TooLarge {
        /// Whose record.
        item: String,
        /// Which field.
        field: &'static str,
        /// Its limit.
        max: usize,
    },
}

impl RecordKind {
    fn code(self) -> u64 {
        match self {
            Self::Snapshot => 1,
            Self::Change => 2,
            Self::Register => 3,
            Self::Remove => 4,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        [Self::Snapshot, Self::Change, Self::Register, Self::Remove].into_iter().find(|kind| kind.code() == code)
    }
}

impl Body {
    /// The inline bytes.
    pub fn inline(&self) -> Option<&Bytes> {
        match self {
            Self::Inline(bytes) => Some(bytes),
            Self::Empty | Self::Hash(_) => None,
        }
    }
}

impl Draft {
    /// A document's whole state.
    pub fn snapshot(item: ItemId, epoch: u64, saved: impl Into<Bytes>, author: &str, time_ms: u64) -> Self {
        Self::inline(RecordKind::Snapshot, item, epoch, saved.into(), author, time_ms)
    }

    /// One change of a document.
    pub fn change(item: ItemId, epoch: u64, change: impl Into<Bytes>, author: &str, time_ms: u64) -> Self {
        Self::inline(RecordKind::Change, item, epoch, change.into(), author, time_ms)
    }

    /// A register's new value.
    pub fn register(item: ItemId, value: impl Into<Bytes>, author: &str, time_ms: u64) -> Self {
        Self::inline(RecordKind::Register, item, 0, value.into(), author, time_ms)
    }

    /// The end of an item.
    pub fn remove(item: ItemId, author: &str, time_ms: u64) -> Self {
        let body = Body::Empty;
        Self { kind: RecordKind::Remove, item, epoch: 0, needs: Vec::new(), body, author: author.to_owned(), time_ms }
    }

    /// With documents that must be present before.
    #[must_use]
    pub fn needing(mut self, needs: Vec<Need>) -> Self {
        self.needs = needs;
        self
    }

    fn inline(kind: RecordKind, item: ItemId, epoch: u64, body: Bytes, author: &str, time_ms: u64) -> Self {
        Self { kind, item, epoch, needs: Vec::new(), body: Body::Inline(body), author: author.to_owned(), time_ms }
    }

    /// Whether every field is within its limit.
    pub(crate) fn check(&self) -> Result<(), RecordError> {
        let too_large = |field, max| Err(RecordError::TooLarge { item: self.item.to_string(), field, max });
        if self.body.inline().is_some_and(|body| body.len() > RECORD_BODY_BYTES_MAX) {
            return too_large("body in bytes", RECORD_BODY_BYTES_MAX);
        }
        if self.author.len() > AUTHOR_BYTES_MAX {
            return too_large("author in bytes", AUTHOR_BYTES_MAX);
        }
        if self.needs.len() > NEEDS_MAX || self.needs.iter().any(|need| need.heads.len() > NEED_HEADS_MAX) {
            return too_large("needs", NEEDS_MAX);
        }
        Ok(())
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        encoder.array(7).uint(self.kind.code());
        encode_item(encoder, &self.item);
        encoder.uint(self.epoch);
        encode_needs(encoder, &self.needs);
        match &self.body {
            Body::Empty => encoder.null(),
            Body::Inline(bytes) => encoder.bytes(bytes),
            Body::Hash(hash) => encoder.array(1).bytes(hash),
        };
        encoder.text(&self.author).uint(self.time_ms);
    }

    pub(crate) fn decode(decoder: &mut Decoder<'_>) -> Result<Self, RecordError> {
        decoder.array_of(7)?;
        let unknown = decoder.error("the kind of the record is unknown: update this program");
        let kind = RecordKind::from_code(decoder.uint()?).ok_or(unknown)?;
        let item = decode_item(decoder)?;
        let epoch = decoder.uint()?;
        let needs = decode_needs(decoder)?;
        let body = if decoder.null() {
            Body::Empty
        } else if decoder.is_array() {
            decoder.array_of(1)?;
            Body::Hash(decoder.hash()?)
        } else {
            Body::Inline(Bytes::copy_from_slice(decoder.bytes(RECORD_BODY_BYTES_MAX)?))
        };
        let author = decoder.text(AUTHOR_BYTES_MAX)?.to_owned();
        let time_ms = decoder.uint()?;
        Ok(Self { kind, item, epoch, needs, body, author, time_ms })
    }
}

/// The hash of a record that stands encoded at this place.
pub(crate) fn record_hash(channel: &ChannelName, writer: &WriterId, seq: u64, prev: &Hash, record: &[u8]) -> Hash {
    let mut place = Encoder::new();
    place.array(5).uint(RECORD_VERSION).text(&channel.to_string()).bytes(&writer.0).uint(seq).bytes(prev);
    sha256(&[HASH_DOMAIN, &place.finish(), record])
}

pub(crate) fn encode_needs(encoder: &mut Encoder, needs: &[Need]) {
    encoder.array(needs.len());
    for need in needs {
        encoder.array(3);
        encode_item(encoder, &need.item);
        encoder.uint(need.epoch).array(need.heads.len());
        for head in &need.heads {
            encoder.bytes(head);
        }
    }
}

pub(crate) fn decode_needs(decoder: &mut Decoder<'_>) -> Result<Vec<Need>, CborError> {
    let mut needs = Vec::new();
    for _ in 0..decoder.array(NEEDS_MAX)? {
        decoder.array_of(3)?;
        let item = decode_item(decoder)?;
        let epoch = decoder.uint()?;
        let heads = decoder.array(NEED_HEADS_MAX)?;
        let heads = (0..heads).map(|_| decoder.hash()).collect::<Result<_, _>>()?;
        needs.push(Need { item, epoch, heads });
    }
    Ok(needs)
}

/// An item id: 16 bytes if it is a UUID in canonical form, its text otherwise.
pub(crate) fn encode_item(encoder: &mut Encoder, item: &ItemId) {
    match uuid_bytes(item.as_str()) {
        Some(uuid) => encoder.bytes(&uuid),
        None => encoder.text(item.as_str()),
    };
}

/// Reads what [`encode_item`] wrote, and nothing else: one id has one encoding.
pub(crate) fn decode_item(decoder: &mut Decoder<'_>) -> Result<ItemId, CborError> {
    let invalid = decoder.error("it is not an item id in its one encoding");
    if decoder.is_text() {
        let text = decoder.text(ITEM_ID_BYTES_MAX)?;
        let item = ItemId::parse(text).map_err(|_name| invalid.clone())?;
        return if uuid_bytes(text).is_none() { Ok(item) } else { Err(invalid) };
    }
    let bytes: [u8; 16] = decoder.bytes(16)?.try_into().map_err(|_length| invalid.clone())?;
    let hex = crate::identity::hex(&bytes);
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    ItemId::parse(&text).map_err(|_name| invalid)
}

fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = 0;
    for (at, byte) in text.bytes().enumerate() {
        let value = match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => continue,
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9') => byte - b'0',
            (_, b'a'..=b'f') => byte - b'a' + 10,
            _ => return None,
        };
        let slot = uuid.get_mut(digits / 2)?;
        *slot = *slot << 4 | value;
        digits += 1;
    }
    (digits == 32 && text.len() == 36).then_some(uuid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
