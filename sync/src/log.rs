//! Logs: append-only, hash-chained, signed once per batch.
//!
//! A writer's side is [`LogWriter`], a reader's [`Batch::verify`]. Both are pure. The signature of a batch covers
//! `[1, channel, writer, seq, head]`, the hash at its end, under the domain `log-head/1`; sizes and signature are verified
//! before any body is read by anything else.

pub(crate) mod difference;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::channel::{ChannelName, GENESIS, Hash, Head, WriterId};
use crate::identity::writer::{WriterChain, WriterIdentity};
use crate::planted::{self, Bug};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::record::{Draft, RECORD_VERSION, Record, RecordError, record_hash};

/// Most records of one batch.
pub const BATCH_RECORDS_MAX: usize = 1024;
/// Most bytes of one encoded batch.
pub const BATCH_BYTES_MAX: usize = 1000 * 1024;

const HEAD_DOMAIN: &str = "log-head/1";

/// Consecutive records of one log and the signature over their end. As stored and as sent.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The audience.
    pub channel: ChannelName,
    /// Whose log.
    pub writer: WriterId,
    /// Number of the first record.
    pub first_seq: u64,
    /// Number of the last record.
    pub last_seq: u64,
    /// Hash of the record before the first; [`GENESIS`] if the log begins here.
    pub prev: Hash,
    /// `[records]` and signature, encoded. Shared between the sessions that send it.
    pub payload: Bytes,
    /// The payload as a difference to that of the batch before it, where somebody has worked it out ([`Batch::follows`]). Says nothing
    /// of its own.
    pub difference: Option<Bytes>,
}

impl PartialEq for Batch {
    fn eq(&self, other: &Self) -> bool {
        let place = |batch: &Self| (batch.first_seq, batch.last_seq, batch.prev, batch.writer);
        place(self) == place(other) && self.channel == other.channel && self.payload == other.payload
    }
}

impl Eq for Batch {}

/// A batch whose chain and signature hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBatch {
    batch: Batch,
    records: Vec<Record>,
    head: Head,
    incarnation: u64,
}

/// Why a batch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Not the encoding of this page.
    #[error("batch: {0}")]
    Encoding(#[from] CborError),
    /// One of its records is not.
    #[error("batch: {0}")]
    Record(#[from] RecordError),
    /// A limit is passed.
    #[error("batch of log {writer} in channel {channel}: more than {max} {unit}")]
    TooLarge {
        /// Whose log.
        writer: WriterId,
        /// Where.
        channel: ChannelName,
        /// The limit.
        max: usize,
        /// What is limited.
        unit: &'static str,
    },
    /// The signature does not verify.
    #[error("batch {first_seq} of log {writer} in channel {channel}: the signature does not verify")]
    Forged {
        /// Whose log.
        writer: WriterId,
        /// Where.
        channel: ChannelName,
        /// First record of the batch.
        first_seq: u64,
    },
    /// The writer has no right to write there.
    #[error("log {writer} in channel {channel}: {subject} may not write there")]
    NotPermitted {
        /// Whose log.
        writer: WriterId,
        /// Where.
        channel: ChannelName,
        /// Whom the writer writes for.
        subject: String,
    },
}

/// Where a batch stands relative to what a replica has of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It follows directly.
    Next,
    /// All of it is here.
    Duplicate,
    /// Records between `after` and the batch are missing.
    Gap {
        /// What is here.
        after: u64,
    },
    /// Another record was here at `seq`: the log was forked.
    Fork {
        /// Where.
        seq: u64,
    },
}

/// The writing end of one writer's logs, one per channel.
#[derive(Debug)]
pub struct LogWriter {
    identity: WriterIdentity,
    heads: BTreeMap<ChannelName, Head>,
}

impl LogWriter {
    /// A writer that goes on where its stored heads end. A fresh or restored database takes a fresh identity and no heads.
    pub fn new(identity: WriterIdentity, heads: BTreeMap<ChannelName, Head>) -> Self {
        Self { identity, heads }
    }

    /// The writer's identity.
    pub fn identity(&self) -> &WriterIdentity {
        &self.identity
    }

    /// Where the log of `channel` stands.
    pub fn head(&self, channel: &ChannelName) -> Head {
        self.heads.get(channel).copied().unwrap_or(Head::START)
    }

    /// A log that has no record yet begins after `seq`. A writer that follows another one (fork, restore) passes the highest seq
    /// of all logs of the channel, so that its registers are newer than its predecessor's. Ignored once the log has records.
    pub fn start_at(&mut self, channel: &ChannelName, seq: u64) {
        let head = self.heads.entry(channel.clone()).or_insert(Head::START);
        if head.hash == GENESIS {
            head.seq = head.seq.max(seq);
        }
    }

    /// Chains and signs records at the end of a log. Nothing is appended when there is an error.
    ///
    /// # Errors
    /// A draft or the batch is over a limit. An empty batch is an error too.
    pub fn append(&mut self, channel: &ChannelName, drafts: Vec<Draft>) -> Result<VerifiedBatch, LogError> {
        let writer = self.identity.id();
        let too_large = |max, unit| LogError::TooLarge { writer, channel: channel.clone(), max, unit };
        if drafts.is_empty() || drafts.len() > BATCH_RECORDS_MAX {
            return Err(too_large(BATCH_RECORDS_MAX, "records, or none"));
        }
        let start = self.head(channel);
        let mut head = start;
        let mut payload = Encoder::new();
        payload.array(drafts.len());
        let mut records = Vec::with_capacity(drafts.len());
        for draft in drafts {
            draft.check()?;
            let mut encoded = Encoder::new();
            draft.encode(&mut encoded);
            let encoded = encoded.finish();
            let prev = head.hash;
            let seq = head.seq + 1;
            head = Head { seq, hash: record_hash(channel, &writer, seq, &prev, &encoded) };
            payload.raw(&encoded);
            records.push(Record { channel: channel.clone(), writer, seq, prev, draft });
        }
        payload.bytes(&self.identity.sign(HEAD_DOMAIN, &signed_head(channel, &writer, &head)));
        let payload = Bytes::from(payload.finish());
        if payload.len() > BATCH_BYTES_MAX {
            return Err(too_large(BATCH_BYTES_MAX, "bytes"));
        }
        self.heads.insert(channel.clone(), head);
        let batch = Batch {
            channel: channel.clone(),
            writer,
            first_seq: start.seq + 1,
            last_seq: head.seq,
            prev: start.hash,
            payload,
            difference: None,
        };
        Ok(VerifiedBatch { batch, records, head, incarnation: self.identity.chain().incarnation })
    }
}

impl Batch {
    /// Reads a stored or received batch. Verifies nothing but its outer encoding.
    ///
    /// # Errors
    /// Too large, or not the encoding of this page.
    pub fn decode(encoded: &Bytes) -> Result<Self, LogError> {
        let mut decoder = Decoder::new(encoded);
        decoder.array_of(7)?;
        let version = decoder.error("the version is unknown: update this program");
        if decoder.uint()? != RECORD_VERSION {
            return Err(version.into());
        }
        let name = decoder.error("it is no channel name");
        let channel =
            ChannelName::parse(decoder.text(crate::channel::CHANNEL_NAME_BYTES_MAX)?).map_err(|_error| name)?;
        let writer = WriterId(decoder.hash()?);
        let first_seq = decoder.uint()?;
        let order = decoder.error("the last record stands before the first");
        let last_seq = decoder.uint()?;
        if last_seq < first_seq || first_seq == 0 {
            return Err(order.into());
        }
        let prev = decoder.hash()?;
        let payload = decoder.bytes(BATCH_BYTES_MAX)?;
        decoder.end()?;
        Ok(Self { channel, writer, first_seq, last_seq, prev, payload: encoded.slice_ref(payload), difference: None })
    }

    /// Works out how to tell it, once, to all who have `before`, if that is the batch before it in the log.
    pub fn follows(&mut self, before: &Self) {
        if before.last_seq + 1 == self.first_seq && (&before.channel, before.writer) == (&self.channel, self.writer) {
            self.difference = difference::between(&before.payload, &self.payload);
        }
    }

    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.array(7).uint(RECORD_VERSION).text(&self.channel.to_string()).bytes(&self.writer.0);
        encoder.uint(self.first_seq).uint(self.last_seq).bytes(&self.prev).bytes(&self.payload);
        encoder.finish()
    }

    /// Verifies authority, chain and signature, in this order, each before the bodies mean anything.
    ///
    /// # Errors
    /// Whatever does not hold. A batch that was altered anywhere is [`LogError::Forged`].
    pub fn verify(self, chain: &WriterChain) -> Result<VerifiedBatch, LogError> {
        let forged =
            || LogError::Forged { writer: self.writer, channel: self.channel.clone(), first_seq: self.first_seq };
        if chain.id != self.writer {
            return Err(forged());
        }
        if !chain.subject.may_write(&self.channel) {
            let subject = chain.subject.to_string();
            return Err(LogError::NotPermitted { writer: self.writer, channel: self.channel, subject });
        }
        let (drafts, head) = self.chained()?;
        let signed = signed_head(&self.channel, &self.writer, &head.0);
        if !planted::is(Bug::SignatureUnchecked) {
            chain.key.verify(HEAD_DOMAIN, &signed, &head.1).map_err(|_bad| forged())?;
        }
        let records = drafts
            .into_iter()
            .map(|(seq, prev, draft)| Record { channel: self.channel.clone(), writer: self.writer, seq, prev, draft })
            .collect();
        Ok(VerifiedBatch { records, head: head.0, incarnation: chain.incarnation, batch: self })
    }

    /// Reads the records' envelopes and computes the chain to the head. The drafts are unverified until the signature is.
    #[allow(clippy::type_complexity, reason = "two private halves of one verification")]
    fn chained(&self) -> Result<(Vec<(u64, Hash, Draft)>, (Head, Vec<u8>)), LogError> {
        let mut decoder = Decoder::new(&self.payload);
        let count = decoder.array(BATCH_RECORDS_MAX)?;
        let counted = decoder.error("the number of records is not the one announced");
        if count == 0 || self.last_seq - self.first_seq != count as u64 - 1 {
            return Err(counted.into());
        }
        let mut drafts = Vec::with_capacity(count);
        let mut hash = self.prev;
        for seq in self.first_seq..=self.last_seq {
            let start = decoder.position();
            let draft = Draft::decode(&mut decoder)?;
            let prev = hash;
            hash = record_hash(&self.channel, &self.writer, seq, &prev, decoder.since(start));
            drafts.push((seq, prev, draft));
        }
        let signature = decoder.bytes(64)?.to_vec();
        decoder.end()?;
        Ok((drafts, (Head { seq: self.last_seq, hash }, signature)))
    }
}

impl VerifiedBatch {
    /// The batch to store and pass on.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Its records in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Where the log stands after it.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Where it stands relative to a log at `have`.
    pub fn place(&self, have: Option<Head>) -> Placement {
        place(have, self.batch.first_seq, self.batch.last_seq, &self.batch.prev, Some(&self.head.hash))
    }

    /// Incarnation of the writer: orders registers before seq does.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

/// Places a batch `first..=last` with `prev`, ending in `end` if that is known, on a log that stands at `have`.
pub fn place(have: Option<Head>, first_seq: u64, last_seq: u64, prev: &Hash, end: Option<&Hash>) -> Placement {
    let Some(have) = have.filter(|have| *have != Head::START) else {
        return if *prev == GENESIS { Placement::Next } else { Placement::Gap { after: 0 } };
    };
    if first_seq == have.seq + 1 {
        return if *prev == have.hash { Placement::Next } else { Placement::Fork { seq: have.seq } };
    }
    if first_seq > have.seq {
        return Placement::Gap { after: have.seq };
    }
    if last_seq > have.seq || (last_seq == have.seq && end.is_some_and(|end| *end != have.hash)) {
        return Placement::Fork { seq: have.seq };
    }
    Placement::Duplicate
}

fn signed_head(channel: &ChannelName, writer: &WriterId, head: &Head) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.array(5).uint(RECORD_VERSION).text(&channel.to_string()).bytes(&writer.0).uint(head.seq).bytes(&head.hash);
    encoder.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
