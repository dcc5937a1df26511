//! The outside of a bundle: header and frames, readable without any key. Pure.
//!
//! A reader is fed bytes and finds frames. What does not hold together is skipped to the next mark and counted, so that a bad
//! spot on a stick costs the sections it touches and no others.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{BundleError, Receiver};
use crate::channel::{Hash, sha256};
use crate::identity::InstallationId;
use crate::record::cbor::{CborError, Decoder, Encoder};

pub(super) const VERSION: u8 = 1;
const MAGIC: &[u8; 8] = b"FLOTILLA";
const MARK: &[u8; 4] = b"fl\xf5n";
const HEADER_DOMAIN: &[u8] = b"flotilla:bundle-header/1\0";
/// Largest header, in bytes.
pub const HEADER_BYTES_MAX: usize = 1024;
/// Largest section in clear, in bytes.
pub const SECTION_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;
/// What sealing adds to a section.
const TAG_BYTES: usize = 16;
/// Magic, version, length of the header.
const PREFIX_BYTES: usize = 11;
const DIGEST_BYTES: usize = 16;
pub(super) const FRAME_HEADER_BYTES: usize = 16;
/// Frames whose bytes do not hold, after which the rest of a file is given up: looking for the next one costs time.
const FAILURES_MAX: u32 = 256;
/// Set in the length of the last frame.
const LAST: u32 = 1 << 31;

/// What a bundle says of itself in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Whose it is.
    pub installation: InstallationId,
    /// For whom.
    pub receiver: Receiver,
    /// When it was made, by its maker's clock. Milliseconds.
    pub time_ms: u64,
    /// Random; tells bundles apart.
    pub id: [u8; 16],
    /// The file key, sealed to the receiver.
    pub(super) sealed_key: Vec<u8>,
    /// Digest of all bytes up to the first frame.
    pub(super) digest: Hash,
}

/// One section as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) index: u32,
    pub(super) last: bool,
    /// What the seal covers besides the section.
    pub(super) head: [u8; FRAME_HEADER_BYTES],
    pub(super) sealed: Bytes,
}

/// What a reader finds next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Header(Header),
    Frame(Frame),
    /// So many bytes belong to no whole frame.
    Damaged {
        bytes: u64,
    },
}

/// Finds header and frames in bytes that come piece by piece. Holds at most one frame and one piece.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    buffer: BytesMut,
    begun: bool,
    /// Skipped since the last frame.
    skipped: u64,
    failures: u32,
}

impl Header {
    /// What the seal of the file key covers: all but that key.
    pub(super) fn bare(installation: &InstallationId, receiver: &Receiver, time_ms: u64, id: &[u8; 16]) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.array(4).text(installation.as_str()).text(&receiver.to_string()).uint(time_ms).bytes(id);
        encoder.finish()
    }

    /// The bytes of the file up to the first frame, and the header they hold.
    pub(super) fn encode(bare: &[u8], sealed_key: &[u8]) -> Result<(Vec<u8>, Self), BundleError> {
        let mut body = Encoder::new();
        body.array(2).bytes(bare).bytes(sealed_key);
        let body = body.finish();
        let length = u16::try_from(body.len()).ok().filter(|_| body.len() <= HEADER_BYTES_MAX);
        let length = length.ok_or(BundleError::TooLarge { what: "the header", max: HEADER_BYTES_MAX })?;
        let mut encoded = MAGIC.to_vec();
        encoded.push(VERSION);
        encoded.extend_from_slice(&length.to_be_bytes());
        encoded.extend_from_slice(&body);
        let digest = sha256(&[HEADER_DOMAIN, &encoded]);
        encoded.extend_from_slice(&digest[..DIGEST_BYTES]);
        let header = Self::decode(&body, digest).map_err(|error| BundleError::Damaged { why: error.to_string() })?;
        Ok((encoded, header))
    }

    fn decode(body: &[u8], digest: Hash) -> Result<Self, CborError> {
        let mut outer = Decoder::new(body);
        outer.array_of(2)?;
        let bare = outer.bytes(HEADER_BYTES_MAX)?;
        let sealed_key = outer.bytes(HEADER_BYTES_MAX)?.to_vec();
        outer.end()?;
        let mut decoder = Decoder::new(bare);
        decoder.array_of(4)?;
        let error = decoder.error("it names no installation");
        let installation = InstallationId::parse(decoder.text(64)?).ok_or(error)?;
        let error = decoder.error("it names no receiver");
        let receiver = decoder.text(512)?.parse().map_err(|_why| error)?;
        let time_ms = decoder.uint()?;
        let error = decoder.error("its id is not 16 bytes");
        let id = decoder.bytes(16)?.try_into().map_err(|_length| error)?;
        decoder.end()?;
        Ok(Self { installation, receiver, time_ms, id, sealed_key, digest })
    }
}

/// The bytes of a frame around a sealed section.
pub(super) fn encode_frame(head: &[u8; FRAME_HEADER_BYTES], sealed: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(FRAME_HEADER_BYTES + sealed.len() + DIGEST_BYTES);
    encoded.extend_from_slice(head);
    encoded.extend_from_slice(sealed);
    encoded.extend_from_slice(&sha256(&[head, sealed])[..DIGEST_BYTES]);
    encoded
}

/// The beginning of the frame of a section of `section_bytes` in clear.
pub(super) fn frame_head(
    index: u32,
    section_bytes: usize,
    last: bool,
) -> Result<[u8; FRAME_HEADER_BYTES], BundleError> {
    let too_large = BundleError::TooLarge { what: "a section", max: SECTION_BYTES_MAX };
    let length = u32::try_from(section_bytes + TAG_BYTES).ok().filter(|_| section_bytes <= SECTION_BYTES_MAX);
    let length = length.ok_or(too_large)? | if last { LAST } else { 0 };
    let mut head = [0; FRAME_HEADER_BYTES];
    head[..4].copy_from_slice(MARK);
    head[4..8].copy_from_slice(&index.to_be_bytes());
    head[8..12].copy_from_slice(&length.to_be_bytes());
    let check = sha256(&[&head[..12]]);
    head[12..].copy_from_slice(&check[..4]);
    Ok(head)
}

impl FrameReader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing that is whole; `None` until more bytes come. `ended`: no more will.
    pub(super) fn next(&mut self, ended: bool) -> Result<Option<Found>, BundleError> {
        if !self.begun {
            return self.header(ended);
        }
        loop {
            if self.failures > FAILURES_MAX {
                self.skip(self.buffer.len());
                return Ok(self.take_skipped(ended));
            }
            let Some((index, length, last, head)) = self.head() else {
                if !self.skip_to_mark(ended) {
                    return Ok(self.take_skipped(ended));
                }
                continue;
            };
            let whole = FRAME_HEADER_BYTES + length + DIGEST_BYTES;
            if self.buffer.len() < whole {
                if !ended {
                    return Ok(None);
                }
                // Cut off, or its length swallowed others: what follows may hold frames all the same.
                self.failures += 1;
                self.skip(1);
                continue;
            }
            let body = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length;
            let digest = sha256(&[&head, &self.buffer[body.clone()]]);
            if self.buffer[body.end..whole] != digest[..DIGEST_BYTES] {
                self.failures += 1;
                self.skip(1);
                continue;
            }
            if let Some(damaged) = self.take_skipped(true) {
                return Ok(Some(damaged));
            }
            let mut frame = self.buffer.split_to(whole);
            frame.advance(FRAME_HEADER_BYTES);
            frame.truncate(length);
            return Ok(Some(Found::Frame(Frame { index, last, head, sealed: frame.freeze() })));
        }
    }

    fn header(&mut self, ended: bool) -> Result<Option<Found>, BundleError> {
        let have = self.buffer.len().min(MAGIC.len());
        if self.buffer[..have] != MAGIC[..have] || (ended && have < MAGIC.len()) {
            return Err(BundleError::NoBundle);
        }
        let short = || BundleError::Damaged { why: "the file ends within it".to_owned() };
        if self.buffer.len() < PREFIX_BYTES {
            return if ended { Err(short()) } else { Ok(None) };
        }
        if self.buffer[8] != VERSION {
            return Err(BundleError::Version { found: self.buffer[8] });
        }
        let length = usize::from(u16::from_be_bytes([self.buffer[9], self.buffer[10]]));
        if length > HEADER_BYTES_MAX {
            return Err(BundleError::Damaged { why: format!("its header claims {length} bytes") });
        }
        let whole = PREFIX_BYTES + length + DIGEST_BYTES;
        if self.buffer.len() < whole {
            return if ended { Err(short()) } else { Ok(None) };
        }
        let encoded = self.buffer.split_to(whole);
        let (hashed, check) = encoded.split_at(PREFIX_BYTES + length);
        let digest = sha256(&[HEADER_DOMAIN, hashed]);
        if check != &digest[..DIGEST_BYTES] {
            return Err(BundleError::Damaged { why: "its digest does not hold".to_owned() });
        }
        self.begun = true;
        let header = Header::decode(&hashed[PREFIX_BYTES..], digest);
        let header = header.map_err(|error| BundleError::Damaged { why: format!("header: {error}") })?;
        Ok(Some(Found::Header(header)))
    }

    /// Number, length, whether it is the last, and all of the frame that begins here, if one does.
    fn head(&self) -> Option<(u32, usize, bool, [u8; FRAME_HEADER_BYTES])> {
        let head: [u8; FRAME_HEADER_BYTES] = *self.buffer.first_chunk()?;
        if head[..4] != MARK[..] || sha256(&[&head[..12]])[..4] != head[12..] {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(word(8) & !LAST).ok()?;
        let possible = (TAG_BYTES..=SECTION_BYTES_MAX + TAG_BYTES).contains(&length);
        possible.then_some((word(4), length, word(8) & LAST != 0, head))
    }

    /// Skips to where a frame might begin, behind the first byte if that is known to begin none; `false` when more bytes are needed.
    fn skip_to_mark(&mut self, ended: bool) -> bool {
        let begins = self.buffer.starts_with(MARK);
        if begins && self.buffer.len() < FRAME_HEADER_BYTES && !ended {
            return false;
        }
        let from = usize::from(begins || ended).min(self.buffer.len());
        let found = self.buffer[from..].windows(MARK.len()).position(|bytes| bytes == MARK);
        match found {
            Some(at) => {
                self.skip(from + at);
                ended || self.buffer.len() >= FRAME_HEADER_BYTES
            }
            None => {
                // The beginning of a mark may stand at the end.
                let kept = if ended { 0 } else { self.buffer.len().min(MARK.len() - 1) };
                self.skip(self.buffer.len() - kept);
                false
            }
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.skipped += bytes as u64;
    }

    fn take_skipped(&mut self, take: bool) -> Option<Found> {
        let bytes = if take { std::mem::take(&mut self.skipped) } else { 0 };
        (bytes > 0).then_some(Found::Damaged { bytes })
    }
}
