//! Signed lists: a writer's complete list of the live items of a channel, for readers behind the retention floor of its log.
//!
//! Absence is deletion, but only of items whose newest change the list `covers`. The states of the items travel beside the list
//! and are verified by the digests in it. Start at [`SignedList::sign`] and [`ChannelSnapshot::verify`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::channel::{
    CHANNEL_ITEMS_MAX, CHANNEL_NAME_BYTES_MAX, ChannelName, Hash, Head, ItemId, WRITERS_MAX, WriterId, state_digest,
};
use crate::identity::writer::{WriterChain, WriterIdentity};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::record::{decode_item, encode_item};

/// Largest encoded list, in bytes.
pub const LIST_BYTES_MAX: usize = 900 * 1024;
/// Largest encoded state of one item, in bytes.
pub const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest channel snapshot a reader takes, in bytes over all states.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;

const DOMAIN: &str = "channel-list/1";
const VERSION: u64 = 1;

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// The live item.
    pub item: ItemId,
    /// Its epoch; 0 for registers.
    pub epoch: u64,
    /// [`state_digest`] of its encoded state.
    pub digest: Hash,
}

/// A writer's signed, complete list of the live items of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedList {
    /// The audience.
    pub channel: ChannelName,
    /// Whose list.
    pub writer: WriterId,
    /// Where the writer's log stood.
    pub head: Head,
    /// All live items that the covered logs made.
    pub items: Vec<ListEntry>,
    /// The logs whose effects up to these heads are contained, the writer's own included.
    pub covers: BTreeMap<WriterId, Head>,
    encoded: Bytes,
}

/// A list with the states it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelSnapshot {
    /// The list.
    pub list: SignedList,
    /// Encoded [`crate::channel::Item`]s, in the order of the list.
    pub states: Vec<Bytes>,
}

/// A snapshot whose signature and digests hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSnapshot {
    snapshot: ChannelSnapshot,
    incarnation: u64,
    /// See [`Self::sparing`].
    spared: BTreeSet<WriterId>,
    /// See [`Self::settling`].
    settled: BTreeSet<WriterId>,
}

/// Why a list or its states are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not the encoding of this page.
    #[error("signed list: {0}")]
    Encoding(#[from] CborError),
    /// A limit is passed.
    #[error("signed list of channel {channel}: more than {max} {unit}")]
    TooLarge {
        /// Where.
        channel: ChannelName,
        /// The limit.
        max: usize,
        /// What is limited.
        unit: &'static str,
    },
    /// The signature does not verify, or the writer may not write there.
    #[error("signed list of log {writer} in channel {channel}: not signed by a writer who may write there")]
    Forged {
        /// Whose list.
        writer: WriterId,
        /// Where.
        channel: ChannelName,
    },
    /// A state is missing or is not the one in the list.
    #[error("snapshot of channel {channel}: the state of item {item} is not the one in the signed list")]
    State {
        /// Where.
        channel: ChannelName,
        /// Whose state.
        item: String,
    },
}

impl SignedList {
    /// Signs a list of `items` with their encoded states. `head`: where the writer's log stands; it joins `covers`.
    ///
    /// # Errors
    /// More than [`CHANNEL_ITEMS_MAX`] items or [`LIST_BYTES_MAX`].
    pub fn sign(
        identity: &WriterIdentity,
        channel: &ChannelName,
        head: Head,
        items: Vec<ListEntry>,
        mut covers: BTreeMap<WriterId, Head>,
    ) -> Result<Self, ListError> {
        let too_large = |max, unit| ListError::TooLarge { channel: channel.clone(), max, unit };
        if items.len() > CHANNEL_ITEMS_MAX {
            return Err(too_large(CHANNEL_ITEMS_MAX, "items"));
        }
        let writer = identity.id();
        covers.insert(writer, head);
        let mut body = Encoder::new();
        body.array(7).uint(VERSION).text(&channel.to_string()).bytes(&writer.0).uint(head.seq).bytes(&head.hash);
        body.array(items.len());
        for entry in &items {
            body.array(3);
            encode_item(&mut body, &entry.item);
            body.uint(entry.epoch).bytes(&entry.digest);
        }
        body.array(covers.len());
        for (writer, head) in &covers {
            body.array(3).bytes(&writer.0).uint(head.seq).bytes(&head.hash);
        }
        let body = body.finish();
        let mut encoder = Encoder::new();
        encoder.array(2).bytes(&body).bytes(&identity.sign(DOMAIN, &body));
        let encoded = Bytes::from(encoder.finish());
        if encoded.len() > LIST_BYTES_MAX {
            return Err(too_large(LIST_BYTES_MAX, "bytes"));
        }
        Ok(Self { channel: channel.clone(), writer, head, items, covers, encoded })
    }

    /// Reads a list. Verifies nothing but its encoding; [`ChannelSnapshot::verify`] does.
    ///
    /// # Errors
    /// Not the encoding of this page.
    pub fn decode(encoded: Bytes) -> Result<Self, ListError> {
        let mut outer = Decoder::new(&encoded);
        outer.array_of(2)?;
        let body = outer.bytes(LIST_BYTES_MAX)?;
        outer.bytes(64)?;
        outer.end()?;
        let mut decoder = Decoder::new(body);
        decoder.array_of(7)?;
        let version = decoder.error("the version is unknown: update this program");
        if decoder.uint()? != VERSION {
            return Err(version.into());
        }
        let name = decoder.error("it is no channel name");
        let channel = ChannelName::parse(decoder.text(CHANNEL_NAME_BYTES_MAX)?).map_err(|_error| name)?;
        let writer = WriterId(decoder.hash()?);
        let head = Head { seq: decoder.uint()?, hash: decoder.hash()? };
        let mut items = Vec::new();
        for _ in 0..decoder.array(CHANNEL_ITEMS_MAX)? {
            decoder.array_of(3)?;
            items.push(ListEntry { item: decode_item(&mut decoder)?, epoch: decoder.uint()?, digest: decoder.hash()? });
        }
        let mut covers = BTreeMap::new();
        for _ in 0..decoder.array(WRITERS_MAX)? {
            decoder.array_of(3)?;
            covers.insert(WriterId(decoder.hash()?), Head { seq: decoder.uint()?, hash: decoder.hash()? });
        }
        decoder.end()?;
        Ok(Self { channel, writer, head, items, covers, encoded })
    }

    /// The bytes to store and send.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    fn verify(&self, chain: &WriterChain) -> Result<(), ListError> {
        let forged = || ListError::Forged { writer: self.writer, channel: self.channel.clone() };
        if chain.id != self.writer || !chain.subject.may_write(&self.channel) {
            return Err(forged());
        }
        let mut outer = Decoder::new(&self.encoded);
        outer.array_of(2)?;
        let body = outer.bytes(LIST_BYTES_MAX)?;
        chain.key.verify(DOMAIN, body, outer.bytes(64)?).map_err(|_bad| forged())
    }
}

impl ChannelSnapshot {
    /// Verifies the list's signature and authority, and every state against its digest.
    ///
    /// # Errors
    /// Whatever does not hold.
    pub fn verify(self, chain: &WriterChain) -> Result<VerifiedSnapshot, ListError> {
        self.list.verify(chain)?;
        let channel = &self.list.channel;
        if self.states.len() != self.list.items.len() {
            return Err(ListError::State { channel: channel.clone(), item: "(count)".to_owned() });
        }
        for (entry, state) in self.list.items.iter().zip(&self.states) {
            if state.len() > STATE_BYTES_MAX {
                return Err(ListError::TooLarge {
                    channel: channel.clone(),
                    max: STATE_BYTES_MAX,
                    unit: "bytes of a state",
                });
            }
            if state_digest(state) != entry.digest {
                return Err(ListError::State { channel: channel.clone(), item: entry.item.to_string() });
            }
        }
        let incarnation = chain.incarnation;
        Ok(VerifiedSnapshot { snapshot: self, incarnation, spared: BTreeSet::new(), settled: BTreeSet::new() })
    }
}

impl VerifiedSnapshot {
    /// The list and its states.
    pub fn snapshot(&self) -> &ChannelSnapshot {
        &self.snapshot
    }

    /// Incarnation of the writer.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Of the logs of these writers the reader holds another branch than the list's writer knew: what the list does not name may be on
    /// that branch, and is no deletion. Heads of those logs stay where they are.
    #[must_use]
    pub fn sparing(mut self, writers: BTreeSet<WriterId>) -> Self {
        self.spared = writers;
        self
    }

    /// Whether it is the list of another branch of its own writer's log than the reader knows.
    pub fn is_of_branch(&self) -> bool {
        self.spared.contains(&self.snapshot.list.writer)
    }

    /// Of the logs of these writers the reader held another branch, and the list's writer has taken in all of it: whatever the reader has
    /// of them is in the list or is over, and they stand where the list says, though that may be before where they stood here.
    #[must_use]
    pub fn settling(mut self, writers: BTreeSet<WriterId>) -> Self {
        self.settled = writers;
        self
    }

    /// See [`Self::settling`].
    pub fn settled(&self) -> &BTreeSet<WriterId> {
        &self.settled
    }

    /// Up to where the list speaks for each log: [`Self::covers`], and of what is settled for all.
    pub fn reach(&self) -> BTreeMap<WriterId, Head> {
        let mut reach = self.covers();
        for (_, head) in reach.iter_mut().filter(|(writer, _)| self.settled.contains(*writer)) {
            head.seq = u64::MAX;
        }
        reach
    }

    /// Where the logs stand that the list speaks of, without those it is spared.
    pub fn covers(&self) -> BTreeMap<WriterId, Head> {
        let covers = self.snapshot.list.covers.iter();
        covers.filter(|(writer, _)| !self.spared.contains(*writer)).map(|(writer, head)| (*writer, *head)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
