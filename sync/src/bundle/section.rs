//! The inside of a bundle: what a section says, in deterministic CBOR. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Direction;
use super::format::SECTION_BYTES_MAX;
use crate::blob::{BlobRef, BlobWant};
use crate::channel::{CHANNEL_NAME_BYTES_MAX, CHANNELS_MAX, ChannelName, Head, Heads, WRITERS_MAX, WriterId};
use crate::identity::SealingPublicKey;
use crate::identity::writer::CHAIN_BYTES_MAX;
use crate::list::LIST_BYTES_MAX;
use crate::log::BATCH_BYTES_MAX;
use crate::observation::{BODY_BYTES_MAX, Clock, Observation, SUBJECT_BYTES_MAX};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::session::GREETING_BYTES_MAX;

/// Most observations, or acknowledgements of some, in one section.
pub const OBSERVATIONS_PER_SECTION_MAX: usize = 1024;
/// Most blobs a device says it lacks; what is beyond waits for the next bundle.
pub(super) const WANTS_MAX: usize = 1024;
/// Largest piece of a state or a blob in one section, in bytes.
pub(super) const PIECE_BYTES: usize = 512 * 1024;
/// Largest message of an enrolment.
const ENROLMENT_BYTES_MAX: usize = 64 * 1024;
const VERSION: u64 = 1;

/// What the maker of a bundle says of itself and of what the bundle is to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Which way it goes.
    pub direction: Direction,
    /// When in the maker's life it was made: of two bundles of one maker the one with the later clock is newer. A hub says
    /// its incarnation and commit.
    pub clock: Clock,
    /// The maker's channels and where their logs stood. Down: what the device reads. Up: how far the device has read, and where its
    /// own log stands.
    pub heads: Heads,
    /// Down: a fresh greeting of the hub. Up: the newest that the device knows.
    pub greeting: Option<Bytes>,
    /// Down: to which the device seals its answers.
    pub hub_sealing: Option<SealingPublicKey>,
    /// Observations that follow.
    pub observations: u64,
    /// Blobs that follow.
    pub blobs: u64,
    /// Up: blobs that the device's items name and that it lacks.
    pub wants: Vec<BlobWant>,
}

/// One verified part of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Section {
    /// The first one: an encoded [`Introduction`], with the maker's chain and its signature.
    Opening { introduction: Bytes, chain: Bytes, signature: Bytes },
    /// A request to join; also the first one.
    Join { request: Bytes },
    /// The hub's answer to a request to join.
    Enrolled { answer: Bytes },
    /// A writer's chain.
    Writer { chain: Bytes },
    /// A batch, encoded.
    Batch { batch: Bytes },
    /// A signed list; the states follow in pieces.
    List { list: Bytes },
    /// A piece of a state.
    State { ends: bool, piece: Bytes },
    /// What the device saw.
    Observations { observations: Vec<Observation> },
    /// What the hub has of it.
    Acknowledged { entries: Vec<(String, Clock)> },
    /// A piece of a blob.
    Blob { name: BlobRef, offset: u64, piece: Bytes },
    /// Nothing follows.
    End,
}

impl Introduction {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        let direction = match self.direction {
            Direction::Down => 1,
            Direction::Up => 2,
            Direction::Join => 3,
        };
        encoder.array(11).uint(VERSION).uint(direction);
        encoder.uint(self.clock.incarnation).uint(self.clock.boot).uint(self.clock.seq);
        encode_heads(&mut encoder, &self.heads);
        optional(&mut encoder, self.greeting.as_deref());
        optional(&mut encoder, self.hub_sealing.as_ref().map(|key| &key.0[..]));
        encoder.uint(self.observations).uint(self.blobs).array(self.wants.len());
        for want in &self.wants {
            encoder.array(3).bytes(&want.name.hash).uint(want.name.len).uint(want.offset);
        }
        encoder.finish()
    }

    pub(super) fn decode(encoded: &Bytes) -> Result<Self, CborError> {
        let mut d = Decoder::new(encoded);
        d.array_of(11)?;
        let error = d.error("the version is unknown: update this program");
        if d.uint()? != VERSION {
            return Err(error);
        }
        let error = d.error("it goes neither up nor down");
        let direction = match d.uint()? {
            1 => Direction::Down,
            2 => Direction::Up,
            _ => return Err(error),
        };
        let clock = Clock { incarnation: d.uint()?, boot: d.uint()?, seq: d.uint()? };
        let heads = decode_heads(&mut d)?;
        let greeting = optional_bytes(&mut d, encoded, GREETING_BYTES_MAX)?;
        let hub_sealing = if d.null() { None } else { Some(SealingPublicKey(d.hash()?)) };
        let (observations, blobs) = (d.uint()?, d.uint()?);
        let count = d.array(WANTS_MAX)?;
        let want = |_| {
            d.array_of(3)?;
            Ok(BlobWant { name: BlobRef { hash: d.hash()?, len: d.uint()? }, offset: d.uint()? })
        };
        let wants = (0..count).map(want).collect::<Result<_, CborError>>()?;
        d.end()?;
        Ok(Self { direction, clock, heads, greeting, hub_sealing, observations, blobs, wants })
    }
}

impl Section {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        let e = &mut encoder;
        match self {
            Self::Opening { introduction, chain, signature } => {
                e.array(4).uint(0).bytes(introduction).bytes(chain).bytes(signature)
            }
            Self::Join { request } => e.array(2).uint(1).bytes(request),
            Self::Enrolled { answer } => e.array(2).uint(2).bytes(answer),
            Self::Writer { chain } => e.array(2).uint(3).bytes(chain),
            Self::Batch { batch } => e.array(2).uint(4).bytes(batch),
            Self::List { list } => e.array(2).uint(5).bytes(list),
            Self::State { ends, piece } => e.array(3).uint(6).uint(u64::from(*ends)).bytes(piece),
            Self::Observations { observations } => {
                e.array(2).uint(7).array(observations.len());
                for observation in observations {
                    e.array(6).text(&observation.subject);
                    encode_clock(e, observation.clock).uint(observation.time_ms);
                    optional(e, observation.body.as_deref());
                }
                e
            }
            Self::Acknowledged { entries } => {
                e.array(2).uint(8).array(entries.len());
                for (subject, clock) in entries {
                    e.array(4).text(subject);
                    encode_clock(e, *clock);
                }
                e
            }
            Self::Blob { name, offset, piece } => {
                e.array(5).uint(9).bytes(&name.hash).uint(name.len).uint(*offset).bytes(piece)
            }
            Self::End => e.array(1).uint(10),
        };
        encoder.finish()
    }

    pub(super) fn decode(encoded: &Bytes) -> Result<Self, CborError> {
        let mut decoder = Decoder::new(encoded);
        let d = &mut decoder;
        let start = d.clone();
        let len = d.array(5)?;
        let section = match (d.uint()?, len) {
            (0, 4) => Self::Opening {
                introduction: encoded.slice_ref(d.bytes(SECTION_BYTES_MAX)?),
                chain: encoded.slice_ref(d.bytes(CHAIN_BYTES_MAX)?),
                signature: encoded.slice_ref(d.bytes(64)?),
            },
            (1, 2) => Self::Join { request: encoded.slice_ref(d.bytes(ENROLMENT_BYTES_MAX)?) },
            (2, 2) => Self::Enrolled { answer: encoded.slice_ref(d.bytes(ENROLMENT_BYTES_MAX)?) },
            (3, 2) => Self::Writer { chain: encoded.slice_ref(d.bytes(CHAIN_BYTES_MAX)?) },
            (4, 2) => Self::Batch { batch: encoded.slice_ref(d.bytes(BATCH_BYTES_MAX + 1024)?) },
            (5, 2) => Self::List { list: encoded.slice_ref(d.bytes(LIST_BYTES_MAX)?) },
            (6, 3) => Self::State { ends: d.uint()? == 1, piece: encoded.slice_ref(d.bytes(PIECE_BYTES)?) },
            (7, 2) => {
                let count = d.array(OBSERVATIONS_PER_SECTION_MAX)?;
                let observations = (0..count).map(|_| decode_observation(d, encoded)).collect::<Result<_, _>>()?;
                Self::Observations { observations }
            }
            (8, 2) => {
                let count = d.array(OBSERVATIONS_PER_SECTION_MAX)?;
                let entry = |_| {
                    d.array_of(4)?;
                    let subject = d.text(SUBJECT_BYTES_MAX)?.to_owned();
                    Ok((subject, Clock { incarnation: d.uint()?, boot: d.uint()?, seq: d.uint()? }))
                };
                Self::Acknowledged { entries: (0..count).map(entry).collect::<Result<_, CborError>>()? }
            }
            (9, 5) => Self::Blob {
                name: BlobRef { hash: d.hash()?, len: d.uint()? },
                offset: d.uint()?,
                piece: encoded.slice_ref(d.bytes(PIECE_BYTES)?),
            },
            (10, 1) => Self::End,
            _ => return Err(start.error("it is no section of this version")),
        };
        d.end()?;
        Ok(section)
    }
}

fn encode_clock(encoder: &mut Encoder, clock: Clock) -> &mut Encoder {
    encoder.uint(clock.incarnation).uint(clock.boot).uint(clock.seq)
}

fn decode_observation(d: &mut Decoder<'_>, encoded: &Bytes) -> Result<Observation, CborError> {
    d.array_of(6)?;
    Ok(Observation {
        subject: d.text(SUBJECT_BYTES_MAX)?.to_owned(),
        clock: Clock { incarnation: d.uint()?, boot: d.uint()?, seq: d.uint()? },
        time_ms: d.uint()?,
        body: optional_bytes(d, encoded, BODY_BYTES_MAX)?,
    })
}

fn encode_heads(encoder: &mut Encoder, heads: &Heads) {
    encoder.array(heads.len());
    for (channel, logs) in heads {
        encoder.array(2).text(&channel.to_string()).array(logs.len());
        for (writer, head) in logs {
            encoder.array(3).bytes(&writer.0).uint(head.seq).bytes(&head.hash);
        }
    }
}

fn decode_heads(d: &mut Decoder<'_>) -> Result<Heads, CborError> {
    let mut heads = Heads::new();
    for _ in 0..d.array(CHANNELS_MAX)? {
        d.array_of(2)?;
        let error = d.error("it is no channel name");
        let channel = ChannelName::parse(d.text(CHANNEL_NAME_BYTES_MAX)?).map_err(|_name| error)?;
        let mut logs = BTreeMap::new();
        for _ in 0..d.array(WRITERS_MAX)? {
            d.array_of(3)?;
            logs.insert(WriterId(d.hash()?), Head { seq: d.uint()?, hash: d.hash()? });
        }
        heads.insert(channel, logs);
    }
    Ok(heads)
}

fn optional(encoder: &mut Encoder, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => encoder.bytes(bytes),
        None => encoder.null(),
    };
}

fn optional_bytes(d: &mut Decoder<'_>, encoded: &Bytes, bytes_max: usize) -> Result<Option<Bytes>, CborError> {
    if d.null() { Ok(None) } else { Ok(Some(encoded.slice_ref(d.bytes(bytes_max)?))) }
}
