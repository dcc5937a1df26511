//! Frames: deterministic CBOR arrays, the first item of which names the kind.
//!
//! Kinds 19 and 20 were used once and stay free. Channels and writers are introduced once per session and named by small numbers of the introducer's afterwards. A batch
//! that follows the one before it leaves out its first number and `prev`, which its hashes cover all the same.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::GREETING_BYTES_MAX;
use crate::blob::BLOB_PIECE_BYTES_MAX;
use crate::channel::{CHANNEL_NAME_BYTES_MAX, CHANNELS_MAX, ChannelName, Hash, Positions, WRITERS_MAX, WriterId};
use crate::driver::FRAME_BYTES_MAX;
use crate::identity::writer::CHAIN_BYTES_MAX;
use crate::list::LIST_BYTES_MAX;
use crate::log::BATCH_BYTES_MAX;
use crate::observation::{BODY_BYTES_MAX, Clock, OBSERVATIONS_MAX, Observation, SUBJECT_BYTES_MAX};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::stream::{STREAM_DATA_BYTES_MAX, STREAM_REASON_BYTES_MAX, STREAM_REQUEST_BYTES_MAX, StreamId};

/// Most logs acknowledged in one frame.
pub(super) const ACKS_MAX: usize = 256;
/// Largest piece of a state in one frame, in bytes.
pub(super) const STATE_PIECE_BYTES_MAX: usize = 256 * 1024;
/// What is sent of one: a change that comes meanwhile waits for no more.
pub(super) const STATE_PIECE_BYTES: usize = 16 * 1024;
/// Longest reason, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1024;

/// One message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Hello {
        versions: Vec<u64>,
        incarnation: u64,
        boot: u64,
        positions: Positions,
        digests: Vec<u64>,
        greeting: Option<Bytes>,
    },
    Channels {
        positions: Positions,
    },
    Channel {
        index: u64,
        name: ChannelName,
    },
    Writer {
        index: u64,
        chain: Bytes,
    },
    Batch {
        channel: u64,
        writer: u64,
        start: Option<(u64, Hash)>,
        payload: Bytes,
    },
    Ack {
        logs: Vec<(u64, u64, u64)>,
    },
    Want {
        channel: ChannelName,
        writer: WriterId,
        after: u64,
    },
    Snapshot {
        writer: u64,
        list: Bytes,
    },
    State {
        ends: bool,
        piece: Bytes,
    },
    Forked {
        channel: ChannelName,
        writer: WriterId,
        seq: u64,
    },
    Observations {
        number: u64,
        observations: Vec<Observation>,
    },
    ObservationsAck {
        number: u64,
    },
    Ping,
    Pong,
    Goodbye {
        reason: String,
        retry_after_ms: Option<u64>,
    },
    StreamOpen {
        id: StreamId,
        request: Bytes,
    },
    StreamData {
        id: StreamId,
        bytes: Bytes,
    },
    StreamCredit {
        id: StreamId,
        bytes: u64,
    },
    StreamClose {
        id: StreamId,
        reason: Option<String>,
    },
    WantBlob {
        hash: Hash,
        offset: u64,
        len: u64,
    },
    BlobPiece {
        hash: Hash,
        offset: u64,
        bytes: Bytes,
    },
    NoBlob {
        hash: Hash,
    },
    /// A batch that follows the one before it, told by what differs from its payload. From version 2 of the protocol on.
    Difference {
        channel: u64,
        writer: u64,
        difference: Bytes,
    },
    /// The newest observation that the hub has of this device. From version 3 of the protocol on.
    Heard {
        clock: Clock,
    },
}

impl Frame {
    pub(super) fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new();
        let e = &mut encoder;
        match self {
            Self::Hello { versions, incarnation, boot, positions, digests, greeting } => {
                e.array(7).uint(0).array(versions.len());
                for version in versions {
                    e.uint(*version);
                }
                e.uint(*incarnation).uint(*boot);
                encode_positions(e, positions);
                e.array(digests.len());
                for digest in digests {
                    e.uint(*digest);
                }
                optional(e, greeting.as_deref());
            }
            Self::Channels { positions } => {
                e.array(2).uint(1);
                encode_positions(e, positions);
            }
            Self::Channel { index, name } => {
                e.array(3).uint(2).uint(*index).text(&name.to_string());
            }
            Self::Writer { index, chain } => {
                e.array(3).uint(3).uint(*index).bytes(chain);
            }
            Self::Batch { channel, writer, start: None, payload } => {
                e.array(4).uint(4).uint(*channel).uint(*writer).bytes(payload);
            }
            Self::Batch { channel, writer, start: Some((first_seq, prev)), payload } => {
                e.array(6).uint(4).uint(*channel).uint(*writer).bytes(payload).uint(*first_seq).bytes(prev);
            }
            Self::Ack { logs } => {
                e.array(1 + 3 * logs.len()).uint(5);
                for (channel, writer, seq) in logs {
                    e.uint(*channel).uint(*writer).uint(*seq);
                }
            }
            Self::Want { channel, writer, after } => {
                e.array(4).uint(6).text(&channel.to_string()).bytes(&writer.0).uint(*after);
            }
            Self::Snapshot { writer, list } => {
                e.array(3).uint(7).uint(*writer).bytes(list);
            }
            Self::State { ends, piece } => {
                e.array(3).uint(8).uint(u64::from(*ends)).bytes(piece);
            }
            Self::Forked { channel, writer, seq } => {
                e.array(4).uint(9).text(&channel.to_string()).bytes(&writer.0).uint(*seq);
            }
            other => other.encode_rest(e),
        }
        Bytes::from(encoder.finish())
    }

    fn encode_rest(&self, e: &mut Encoder) {
        match self {
            Self::Observations { number, observations } => {
                e.array(3).uint(10).uint(*number).array(observations.len());
                for observation in observations {
                    let Clock { incarnation, boot, seq } = observation.clock;
                    e.array(6)
                        .text(&observation.subject)
                        .uint(incarnation)
                        .uint(boot)
                        .uint(seq)
                        .uint(observation.time_ms);
                    optional(e, observation.body.as_deref());
                }
            }
            Self::ObservationsAck { number } => {
                e.array(2).uint(11).uint(*number);
            }
            Self::Ping => {
                e.array(1).uint(12);
            }
            Self::Pong => {
                e.array(1).uint(13);
            }
            Self::Goodbye { reason, retry_after_ms: None } => {
                e.array(2).uint(14).text(reason);
            }
            Self::Goodbye { reason, retry_after_ms: Some(ms) } => {
                e.array(3).uint(14).text(reason).uint(*ms);
            }
            Self::StreamOpen { id, request } => {
                e.array(3).uint(15).uint(*id).bytes(request);
            }
            Self::StreamData { id, bytes } => {
                e.array(3).uint(16).uint(*id).bytes(bytes);
            }
            Self::StreamCredit { id, bytes } => {
                e.array(3).uint(17).uint(*id).uint(*bytes);
            }
            Self::StreamClose { id, reason: None } => {
                e.array(2).uint(18).uint(*id);
            }
            Self::StreamClose { id, reason: Some(reason) } => {
                e.array(3).uint(18).uint(*id).text(reason);
            }
            Self::WantBlob { hash, offset, len } => {
                e.array(4).uint(21).bytes(hash).uint(*offset).uint(*len);
            }
            Self::BlobPiece { hash, offset, bytes } => {
                e.array(4).uint(22).bytes(hash).uint(*offset).bytes(bytes);
            }
            Self::NoBlob { hash } => {
                e.array(2).uint(23).bytes(hash);
            }
            Self::Difference { channel, writer, difference } => {
                e.array(4).uint(24).uint(*channel).uint(*writer).bytes(difference);
            }
            Self::Heard { clock: Clock { incarnation, boot, seq } } => {
                e.array(4).uint(25).uint(*incarnation).uint(*boot).uint(*seq);
            }
            // The others are encoded by `encode`.
            _ => {}
        }
    }

    pub(super) fn decode(encoded: &Bytes) -> Result<Self, CborError> {
        let mut decoder = Decoder::new(encoded);
        let d = &mut decoder;
        let start = d.clone();
        let len = d.array(1 + 3 * ACKS_MAX)?;
        let kind = d.uint()?;
        let frame = match (kind, len) {
            (0, 7) => {
                let versions = (0..d.array(16)?).map(|_| d.uint()).collect::<Result<_, _>>()?;
                let (incarnation, boot) = (d.uint()?, d.uint()?);
                let positions = decode_positions(d)?;
                let digests = (0..d.array(CHANNELS_MAX * WRITERS_MAX)?).map(|_| d.uint()).collect::<Result<_, _>>()?;
                let greeting = decode_optional(d, encoded, GREETING_BYTES_MAX)?;
                Self::Hello { versions, incarnation, boot, positions, digests, greeting }
            }
            (1, 2) => Self::Channels { positions: decode_positions(d)? },
            (2, 3) => Self::Channel { index: d.uint()?, name: decode_channel(d)? },
            (3, 3) => Self::Writer { index: d.uint()?, chain: encoded.slice_ref(d.bytes(CHAIN_BYTES_MAX)?) },
            (4, 4 | 6) => Self::Batch {
                channel: d.uint()?,
                writer: d.uint()?,
                payload: encoded.slice_ref(d.bytes(BATCH_BYTES_MAX)?),
                start: if len == 6 { Some((d.uint()?, d.hash()?)) } else { None },
            },
            (5, len) if len % 3 == 1 => Self::Ack {
                logs: (0..len / 3).map(|_| Ok((d.uint()?, d.uint()?, d.uint()?))).collect::<Result<_, CborError>>()?,
            },
            (6, 4) => Self::Want { channel: decode_channel(d)?, writer: WriterId(d.hash()?), after: d.uint()? },
            (7, 3) => Self::Snapshot { writer: d.uint()?, list: encoded.slice_ref(d.bytes(LIST_BYTES_MAX)?) },
            (8, 3) => Self::State { ends: d.uint()? == 1, piece: encoded.slice_ref(d.bytes(STATE_PIECE_BYTES_MAX)?) },
            (9, 4) => Self::Forked { channel: decode_channel(d)?, writer: WriterId(d.hash()?), seq: d.uint()? },
            (10..=25, len) => Self::decode_rest(kind, len, d, encoded, &start)?,
            _ => return Err(start.error("it is no frame of this version")),
        };
        d.end()?;
        Ok(frame)
    }

    fn decode_rest(
        kind: u64,
        len: usize,
        d: &mut Decoder<'_>,
        encoded: &Bytes,
        start: &Decoder<'_>,
    ) -> Result<Self, CborError> {
        Ok(match (kind, len) {
            (10, 3) => {
                let number = d.uint()?;
                let count = d.array(OBSERVATIONS_MAX)?;
                let observations = (0..count).map(|_| decode_observation(d, encoded)).collect::<Result<_, _>>()?;
                Self::Observations { number, observations }
            }
            (11, 2) => Self::ObservationsAck { number: d.uint()? },
            (12, 1) => Self::Ping,
            (13, 1) => Self::Pong,
            (14, 2 | 3) => Self::Goodbye {
                reason: d.text(REASON_BYTES_MAX)?.to_owned(),
                retry_after_ms: if len == 3 { Some(d.uint()?) } else { None },
            },
            (15, 3) => {
                Self::StreamOpen { id: d.uint()?, request: encoded.slice_ref(d.bytes(STREAM_REQUEST_BYTES_MAX)?) }
            }
            (16, 3) => Self::StreamData { id: d.uint()?, bytes: encoded.slice_ref(d.bytes(STREAM_DATA_BYTES_MAX)?) },
            (17, 3) => Self::StreamCredit { id: d.uint()?, bytes: d.uint()? },
            (18, 2 | 3) => Self::StreamClose {
                id: d.uint()?,
                reason: if len == 3 { Some(d.text(STREAM_REASON_BYTES_MAX)?.to_owned()) } else { None },
            },
            (21, 4) => Self::WantBlob { hash: d.hash()?, offset: d.uint()?, len: d.uint()? },
            (22, 4) => Self::BlobPiece {
                hash: d.hash()?,
                offset: d.uint()?,
                bytes: encoded.slice_ref(d.bytes(BLOB_PIECE_BYTES_MAX)?),
            },
            (23, 2) => Self::NoBlob { hash: d.hash()? },
            (24, 4) => Self::Difference {
                channel: d.uint()?,
                writer: d.uint()?,
                difference: encoded.slice_ref(d.bytes(BATCH_BYTES_MAX)?),
            },
            (25, 4) => Self::Heard { clock: Clock { incarnation: d.uint()?, boot: d.uint()?, seq: d.uint()? } },
            _ => return Err(start.error("it is no frame of this version")),
        })
    }
}

/// Cuts a reason to its limit, at a character.
pub(super) fn reason_within(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn optional(encoder: &mut Encoder, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => encoder.bytes(bytes),
        None => encoder.null(),
    };
}

fn decode_optional(d: &mut Decoder<'_>, encoded: &Bytes, bytes_max: usize) -> Result<Option<Bytes>, CborError> {
    if d.null() { Ok(None) } else { Ok(Some(encoded.slice_ref(d.bytes(bytes_max.min(FRAME_BYTES_MAX))?))) }
}

fn decode_observation(d: &mut Decoder<'_>, encoded: &Bytes) -> Result<Observation, CborError> {
    d.array_of(6)?;
    Ok(Observation {
        subject: d.text(SUBJECT_BYTES_MAX)?.to_owned(),
        clock: Clock { incarnation: d.uint()?, boot: d.uint()?, seq: d.uint()? },
        time_ms: d.uint()?,
        body: decode_optional(d, encoded, BODY_BYTES_MAX)?,
    })
}

fn encode_positions(e: &mut Encoder, positions: &Positions) {
    e.array(positions.len());
    for (channel, logs) in positions {
        e.array(2).text(&channel.to_string()).array(logs.len());
        for (writer, seq) in logs {
            e.array(2).bytes(&writer.0).uint(*seq);
        }
    }
}

fn decode_positions(d: &mut Decoder<'_>) -> Result<Positions, CborError> {
    let mut positions = Positions::new();
    for _ in 0..d.array(CHANNELS_MAX)? {
        d.array_of(2)?;
        let channel = decode_channel(d)?;
        let mut logs = BTreeMap::new();
        for _ in 0..d.array(WRITERS_MAX)? {
            d.array_of(2)?;
            logs.insert(WriterId(d.hash()?), d.uint()?);
        }
        positions.insert(channel, logs);
    }
    Ok(positions)
}

fn decode_channel(d: &mut Decoder<'_>) -> Result<ChannelName, CborError> {
    let error = d.error("it is no channel name");
    ChannelName::parse(d.text(CHANNEL_NAME_BYTES_MAX)?).map_err(|_name| error)
}
