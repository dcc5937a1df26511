//! A payload said by what differs from the one before it in its log: consecutive changes of a document are much alike.
//!
//! Pure, and nothing that is trusted: the receiver makes the whole payload again, and chain and signature hold over that or it is
//! refused. A difference is a row of steps, each a number of bytes that are new, these bytes, and, unless the end is reached, a place
//! in what is known and how many bytes to copy from there. What is known is the payload before, and the hashes of the changes in it,
//! which the next change of the same document names. Numbers are LEB128; a place is told from where the last copy would have gone on.

use bytes::Bytes;

use super::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::channel::sha256;
use crate::record::cbor::Decoder;
use crate::record::{Draft, RecordKind};

/// Largest payload that is kept to tell the next one by.
pub(crate) const KNOWN_BYTES_MAX: usize = 1024;
/// Largest payload told by a difference: the peer makes no more of one.
const WHOLE_BYTES_MAX: usize = 2 * 1024;
/// A copy shorter than this costs as much as its bytes.
const COPY_BYTES_MIN: usize = 4;
/// Begin of an automerge chunk (its format, "Chunk Container"): magic, checksum, type of chunk.
const CHUNK_MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
const CHUNK_CHECKSUM_BYTES: usize = 4;
const CHUNK_CHANGE: u8 = 1;

/// It is no difference to this payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is no difference to the payload before it")]
pub(crate) struct NoDifference;

/// What tells `payload` to whoever has `before`; `None` when that is no shorter.
pub(crate) fn between(before: &[u8], payload: &[u8]) -> Option<Bytes> {
    if before.len() > KNOWN_BYTES_MAX || payload.len() > WHOLE_BYTES_MAX {
        return None;
    }
    let known = known(before);
    let mut steps = Vec::with_capacity(payload.len());
    let (mut at, mut new_from, mut expected) = (0, 0, 0);
    while at < payload.len() {
        // Bytes that are new mostly stand in the place of others.
        let here = expected + (at - new_from);
        let Some((from, len)) = longest(&known, &payload[at..], here) else {
            at += 1;
            continue;
        };
        number(&mut steps, at - new_from);
        steps.extend_from_slice(&payload[new_from..at]);
        number(&mut steps, place(from, here));
        number(&mut steps, len);
        at += len;
        (new_from, expected) = (at, from + len);
    }
    if new_from < at {
        number(&mut steps, at - new_from);
        steps.extend_from_slice(&payload[new_from..at]);
    }
    (steps.len() < payload.len()).then(|| Bytes::from(steps))
}

/// The payload that a difference tells to whoever has `before`.
///
/// # Errors
/// When it is none, or makes more than [`WHOLE_BYTES_MAX`].
pub(crate) fn whole(before: &[u8], difference: &[u8]) -> Result<Bytes, NoDifference> {
    let known = known(before);
    let mut payload = Vec::new();
    let (mut rest, mut expected) = (difference, 0_usize);
    while !rest.is_empty() {
        let new = read_number(&mut rest)?;
        if new > rest.len() || payload.len() + new > WHOLE_BYTES_MAX {
            return Err(NoDifference);
        }
        let (bytes, after) = rest.split_at(new);
        payload.extend_from_slice(bytes);
        rest = after;
        if rest.is_empty() {
            break;
        }
        let from = from_place(read_number(&mut rest)?, expected + new).ok_or(NoDifference)?;
        let len = read_number(&mut rest)?;
        let copied = from.checked_add(len).and_then(|to| known.get(from..to)).ok_or(NoDifference)?;
        if payload.len() + len > WHOLE_BYTES_MAX {
            return Err(NoDifference);
        }
        payload.extend_from_slice(copied);
        expected = from + len;
    }
    Ok(Bytes::from(payload))
}

/// The payload before, and the hashes of its changes.
fn known(before: &[u8]) -> Vec<u8> {
    let mut known = before.to_vec();
    let mut decoder = Decoder::new(before);
    let Ok(count) = decoder.array(BATCH_RECORDS_MAX) else { return known };
    for _ in 0..count {
        let Ok(draft) = Draft::decode(&mut decoder) else { return known };
        let body = draft.body.inline().filter(|_| draft.kind == RecordKind::Change);
        if let Some(hash) = body.and_then(|body| change_hash(body)) {
            known.extend_from_slice(&hash);
        }
    }
    known
}

/// The hash of an automerge change that stands uncompressed in its chunk: SHA-256 over the chunk from its type on.
fn change_hash(chunk: &[u8]) -> Option<[u8; 32]> {
    let rest = chunk.strip_prefix(&CHUNK_MAGIC)?.get(CHUNK_CHECKSUM_BYTES..)?;
    (rest.first() == Some(&CHUNK_CHANGE)).then(|| sha256(&[rest]))
}

/// The longest run at the begin of `payload` that is known, the one at `here` before others.
fn longest(known: &[u8], payload: &[u8], here: usize) -> Option<(usize, usize)> {
    let run = |from: usize| {
        known.get(from..).map_or(0, |known| known.iter().zip(payload).take_while(|(one, other)| one == other).count())
    };
    let at_hand = run(here);
    if at_hand >= COPY_BYTES_MIN {
        return Some((here, at_hand));
    }
    let begin = payload.get(..COPY_BYTES_MIN)?;
    let found = known.windows(COPY_BYTES_MIN).enumerate().filter(|(_, window)| *window == begin);
    found.map(|(from, _)| (from, run(from))).max_by_key(|(from, len)| (*len, std::cmp::Reverse(*from)))
}

/// Signed distance as a number: 0, -1, 1, -2, ...
fn place(from: usize, expected: usize) -> usize {
    if from >= expected { (from - expected) * 2 } else { (expected - from) * 2 - 1 }
}

fn from_place(place: usize, expected: usize) -> Option<usize> {
    if place.is_multiple_of(2) { expected.checked_add(place / 2) } else { expected.checked_sub(place / 2 + 1) }
}

fn number(into: &mut Vec<u8>, mut number: usize) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0x7f);
        number >>= 7;
        if number == 0 {
            into.push(low);
            return;
        }
        into.push(low | 0x80);
    }
}

/// A number below [`BATCH_BYTES_MAX`].
fn read_number(from: &mut &[u8]) -> Result<usize, NoDifference> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (byte, rest) = from.split_first().ok_or(NoDifference)?;
        *from = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if number <= BATCH_BYTES_MAX { Ok(number) } else { Err(NoDifference) };
        }
    }
    Err(NoDifference)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
