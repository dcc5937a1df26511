//! The messages that carry a stream through a broker: a fixed header, no parser that could be surprised.
//!
//! `version (1) | kind (1) | session (16)`, then by kind: nothing (open), `offset (8) | consumed (8) | data` (data), `consumed (8)`
//! (acknowledgement), `sent (8)` (probe), `reason (1)` (close). Numbers are big-endian and count bytes of the stream.

use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 18;
/// Most bytes of the stream in one message.
pub(super) const DATA_BYTES_MAX: usize = 8 * 1024;
/// Largest message.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + 16 + DATA_BYTES_MAX;

/// Names one session's stream: chosen at random by the device.
pub(super) type SessionId = [u8; 16];

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) session: SessionId,
    pub(super) body: Body,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// The device wants a session; repeated until the hub acknowledges.
    Open,
    /// Bytes of the stream from `offset` on, with how much the sender has consumed of the other direction.
    Data { offset: u64, consumed: u64, data: Bytes },
    /// How much the sender has consumed.
    Ack { consumed: u64 },
    /// How much the sender has sent: the receiver answers with an acknowledgement, or closes when it misses some of it.
    Probe { sent: u64 },
    /// The stream is over.
    Close { reason: CloseReason },
}

/// Why a stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The sender has finished.
    Done,
    /// The sender does not know this session, or has lost a part of it.
    Reset,
    /// The hub has no room for another handshake.
    Busy,
}

impl Frame {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + 16);
        bytes.put_u8(VERSION);
        bytes.put_u8(match self.body {
            Body::Open => 1,
            Body::Data { .. } => 2,
            Body::Ack { .. } => 3,
            Body::Probe { .. } => 4,
            Body::Close { .. } => 5,
        });
        bytes.put_slice(&self.session);
        match &self.body {
            Body::Open => {}
            Body::Data { offset, consumed, data } => {
                bytes.put_u64(*offset);
                bytes.put_u64(*consumed);
                bytes.put_slice(data);
            }
            Body::Ack { consumed } => bytes.put_u64(*consumed),
            Body::Probe { sent } => bytes.put_u64(*sent),
            Body::Close { reason } => bytes.put_u8(match reason {
                CloseReason::Done => 0,
                CloseReason::Reset => 1,
                CloseReason::Busy => 2,
            }),
        }
        bytes.freeze()
    }

    /// `None` for anything that is not exactly a message of this version: strangers may publish what they like.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        if bytes.len() > FRAME_BYTES_MAX || *bytes.first()? != VERSION {
            return None;
        }
        let kind = *bytes.get(1)?;
        let session = bytes.get(2..HEADER_BYTES)?.try_into().ok()?;
        let rest = bytes.slice(HEADER_BYTES..);
        let body = match (kind, rest.len()) {
            (1, 0) => Body::Open,
            (2, 17..) => Body::Data { offset: number(&rest, 0)?, consumed: number(&rest, 8)?, data: rest.slice(16..) },
            (3, 8) => Body::Ack { consumed: number(&rest, 0)? },
            (4, 8) => Body::Probe { sent: number(&rest, 0)? },
            (5, 1) => Body::Close {
                reason: match rest[0] {
                    0 => CloseReason::Done,
                    1 => CloseReason::Reset,
                    2 => CloseReason::Busy,
                    _ => return None,
                },
            },
            _ => return None,
        };
        Some(Self { session, body })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What a hub says to all: that it came (every stream to it of before is void) or went. The broker keeps the former; the latter takes
/// it away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HubNews {
    Came,
    Went,
}

impl HubNews {
    pub(super) fn encode(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Came => &[VERSION],
            Self::Went => &[],
        })
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [VERSION] => Some(Self::Came),
            [] => Some(Self::Went),
            _ => None,
        }
    }
}
