use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::channel::ChannelName;
use crate::document::{Document, Edit, Rollouts};
use crate::identity::SigningKey;
use crate::identity::writer::WriterIdentity;
use crate::log::LogWriter;

/// Payloads of a log in which a document is edited one field at a time.
fn edits(count: u64) -> Vec<Bytes> {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let identity = WriterIdentity::for_hub([2; 32], 1, &root).unwrap();
    let mut log = LogWriter::new(identity, BTreeMap::new());
    let channel = ChannelName::parse("fleet/default").unwrap();
    let shape = |_: &[&str]| None;
    let object = |value: u64| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tuning", "namespace": "default"},
            "data": {"value": (100_000 + value).to_string()}})
    };
    let rollouts = Rollouts::new();
    let first = object(0);
    let time_ms = 1_790_000_000_000;
    let first = Edit { object: &first, rollouts: &rollouts, author: "admin", time_ms };
    let mut document = Document::create(first, 1, &shape, [7; 8]).unwrap();
    let id = crate::channel::ItemId::parse("0b9d4aa2-5a34-4f9e-9d0c-1d2f3a4b5c6d").unwrap();
    let mut payload = |number: u64| {
        let wanted = object(number);
        let edit = Edit { object: &wanted, rollouts: &rollouts, author: "admin", time_ms: time_ms + number * 977 };
        let change = document.edit(edit, &shape).unwrap().unwrap();
        let draft = Draft::change(id.clone(), 1, change, "admin", time_ms + number * 977);
        log.append(&channel, vec![draft]).unwrap().batch().payload.clone()
    };
    (1..=count).map(&mut payload).collect()
}

#[test]
fn consecutive_changes_of_a_document_differ_by_little_more_than_their_signature() {
    let payloads = edits(20);
    for pair in payloads.windows(2) {
        let difference = between(&pair[0], &pair[1]).unwrap();
        assert_eq!(whole(&pair[0], &difference).unwrap(), pair[1]);
        assert!(difference.len() <= 125, "{} of {} bytes", difference.len(), pair[1].len());
    }
}

#[test]
fn the_next_change_names_the_hash_of_the_one_before() {
    let payloads = edits(2);
    let hash_at = known(&payloads[0]).len() - 32;
    assert_eq!(hash_at, payloads[0].len(), "the hash of the one change is known");
    let hash = &known(&payloads[0])[hash_at..];
    assert!(payloads[1].windows(32).any(|window| window == hash));
}

#[test]
fn what_is_large_or_unlike_is_sent_as_it_is() {
    let noise: Vec<u8> =
        (0..200_u32).map(|number| u8::try_from(number.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    assert_eq!(between(&[0; 100], &noise), None);
    assert_eq!(between(&vec![0; KNOWN_BYTES_MAX + 1], &[0; 100]), None);
    assert_eq!(between(&[0; 100], &vec![0; WHOLE_BYTES_MAX + 1]), None);
}

#[test]
fn a_difference_that_makes_more_than_allowed_is_refused() {
    // Copies all of the known, over and over.
    let before = vec![5; KNOWN_BYTES_MAX];
    let mut difference = Vec::new();
    for round in 0..WHOLE_BYTES_MAX / KNOWN_BYTES_MAX + 1 {
        number(&mut difference, 0);
        number(&mut difference, place(0, if round == 0 { 0 } else { KNOWN_BYTES_MAX }));
        number(&mut difference, KNOWN_BYTES_MAX);
    }
    assert_eq!(whole(&before, &difference), Err(NoDifference));
    for bad in [&[200, 1][..], &[0x80, 0x80, 0x80, 0], &[0, 1, 4], &[0, 0, 127], &[1], &[0, 0]] {
        assert_eq!(whole(&[1; 8], bad), Err(NoDifference), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn every_payload_comes_back(before in prop::collection::vec(0_u8..4, 0..300), payload in prop::collection::vec(0_u8..4, 0..300)) {
        if let Some(difference) = between(&before, &payload) {
            prop_assert!(difference.len() < payload.len());
            prop_assert_eq!(whole(&before, &difference).unwrap(), Bytes::from(payload));
        }
    }

    #[test]
    fn nothing_that_comes_makes_it_fall(before in prop::collection::vec(any::<u8>(), 0..100), difference in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(payload) = whole(&before, &difference) {
            prop_assert!(payload.len() <= WHOLE_BYTES_MAX);
        }
    }
}
