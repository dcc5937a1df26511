//! The encoding of an [`Item`]: `[1, kind, touched, waiting]`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{DocumentItem, Item, ItemError, ItemKind, RegisterItem, Version, WAITING_MAX, Waiting};
use crate::blob::{BLOBS_MAX, BlobRef};
use crate::channel::{WRITERS_MAX, WriterId};
use crate::record::cbor::{CborError, Decoder, Encoder};
use crate::record::{AUTHOR_BYTES_MAX, RECORD_BODY_BYTES_MAX, decode_needs, encode_needs};

const VERSION: u64 = 1;
const ABSENT: u64 = 0;
const DOCUMENT: u64 = 1;
const REGISTER: u64 = 2;
const REMOVED: u64 = 3;

pub(super) fn encode(item: &Item) -> Bytes {
    let mut encoder = Encoder::new();
    encoder.array(4).uint(VERSION);
    match &item.kind {
        ItemKind::Absent => {
            encoder.array(1).uint(ABSENT);
        }
        ItemKind::Document(document) => {
            let len = if document.blobs.is_empty() { 8 } else { 9 };
            encoder.array(len).uint(DOCUMENT).uint(document.epoch).bytes(&document.saved);
            version(&mut encoder, &document.created);
            version(&mut encoder, &document.newest);
            encode_needs(&mut encoder, &document.needs);
            encoder.text(&document.author).uint(document.time_ms);
            if !document.blobs.is_empty() {
                encoder.array(2 * document.blobs.len());
                for blob in &document.blobs {
                    encoder.bytes(&blob.hash).uint(blob.len);
                }
            }
        }
        ItemKind::Register(register) => {
            encoder.array(6).uint(REGISTER).bytes(&register.value);
            version(&mut encoder, &register.version);
            encode_needs(&mut encoder, &register.needs);
            encoder.text(&register.author).uint(register.time_ms);
        }
        ItemKind::Removed(removed) => {
            encoder.array(2).uint(REMOVED);
            version(&mut encoder, removed);
        }
    }
    encoder.array(item.touched.len());
    for (writer, seq) in &item.touched {
        encoder.array(2).bytes(&writer.0).uint(*seq);
    }
    encoder.array(item.waiting.len());
    for waiting in &item.waiting {
        encoder.array(6);
        version(&mut encoder, &waiting.version);
        encoder.uint(waiting.epoch).bytes(&waiting.change);
        encode_needs(&mut encoder, &waiting.needs);
        encoder.text(&waiting.author).uint(waiting.time_ms);
    }
    Bytes::from(encoder.finish())
}

pub(super) fn decode(encoded: &Bytes) -> Result<Item, ItemError> {
    let mut decoder = Decoder::new(encoded);
    decoder.array_of(4)?;
    let unknown = decoder.error("the version is unknown: update this program");
    if decoder.uint()? != VERSION {
        return Err(unknown.into());
    }
    let kind = decode_kind(&mut decoder, encoded)?;
    let mut touched = BTreeMap::new();
    for _ in 0..decoder.array(WRITERS_MAX)? {
        decoder.array_of(2)?;
        touched.insert(WriterId(decoder.hash()?), decoder.uint()?);
    }
    let mut waiting = Vec::new();
    for _ in 0..decoder.array(WAITING_MAX)? {
        decoder.array_of(6)?;
        waiting.push(Waiting {
            version: decode_version(&mut decoder)?,
            epoch: decoder.uint()?,
            change: encoded.slice_ref(decoder.bytes(RECORD_BODY_BYTES_MAX)?),
            needs: decode_needs(&mut decoder)?,
            author: decoder.text(AUTHOR_BYTES_MAX)?.to_owned(),
            time_ms: decoder.uint()?,
        });
    }
    decoder.end()?;
    waiting.sort_unstable();
    Ok(Item { kind, touched, waiting })
}

fn decode_kind(decoder: &mut Decoder<'_>, encoded: &Bytes) -> Result<ItemKind, CborError> {
    let unknown = decoder.error("it is no kind of item: update this program");
    let len = decoder.array(9)?;
    Ok(match (len, decoder.uint()?) {
        (1, ABSENT) => ItemKind::Absent,
        (8 | 9, DOCUMENT) => ItemKind::Document(DocumentItem {
            epoch: decoder.uint()?,
            // A merged document may be larger than any record of it.
            saved: encoded.slice_ref(decoder.bytes(crate::list::STATE_BYTES_MAX)?),
            created: decode_version(decoder)?,
            newest: decode_version(decoder)?,
            needs: decode_needs(decoder)?,
            author: decoder.text(AUTHOR_BYTES_MAX)?.to_owned(),
            time_ms: decoder.uint()?,
            blobs: if len == 9 { decode_blobs(decoder)? } else { Vec::new() },
        }),
        (6, REGISTER) => ItemKind::Register(RegisterItem {
            value: encoded.slice_ref(decoder.bytes(RECORD_BODY_BYTES_MAX)?),
            version: decode_version(decoder)?,
            needs: decode_needs(decoder)?,
            author: decoder.text(AUTHOR_BYTES_MAX)?.to_owned(),
            time_ms: decoder.uint()?,
        }),
        (2, REMOVED) => ItemKind::Removed(decode_version(decoder)?),
        _ => return Err(unknown),
    })
}

fn decode_blobs(decoder: &mut Decoder<'_>) -> Result<Vec<BlobRef>, CborError> {
    let len = decoder.array(4 * BLOBS_MAX)? / 2;
    (0..len).map(|_| Ok(BlobRef { hash: decoder.hash()?, len: decoder.uint()? })).collect()
}

fn version(encoder: &mut Encoder, version: &Version) {
    encoder.array(3).uint(version.incarnation).uint(version.seq).bytes(&version.writer.0);
}

fn decode_version(decoder: &mut Decoder<'_>) -> Result<Version, CborError> {
    decoder.array_of(3)?;
    Ok(Version { incarnation: decoder.uint()?, seq: decoder.uint()?, writer: WriterId(decoder.hash()?) })
}
