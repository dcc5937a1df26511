//! Large values: beside live changes, resumed after a cut, refused, and never more than was asked for.

use serde_json::json;

use super::super::blobs::{RANGE_BYTES_MAX, WANTED_MAX};
use super::super::*;
use super::world::*;
use crate::blob::{BLOB_PIECE_BYTES_MAX, Blob, BlobStored, BlobWant};

fn large(fill: u8) -> serde_json::Value {
    // Not compressible: what travels is what it is long.
    let text = (0..100_000_u64).map(|at| crate::channel::sha256(&[&at.to_be_bytes(), &[fill]])[0]);
    json!(text.map(|byte| char::from(b'!' + byte % 90)).collect::<String>())
}

#[test]
fn a_large_value_arrives_beside_changes_and_goes_on_after_a_cut() {
    let (mut world, mut hub, mut devices) = trio();
    hub.set(1, 1, large(1));
    let document = hub.seen(&fleet());
    let mut sent = 0;
    let mut meetings = 0;
    while devices[0].blobs.is_empty() {
        sent += meet(&mut world, &mut hub, &mut devices[0], 3)[0];
        meetings += 1;
        assert!(meetings < 40);
    }
    assert!(meetings > 1, "it was cut");
    assert_eq!(devices[0].seen(&fleet()), document);
    assert!(sent < 100_000 + 40 * 1024, "{sent} bytes: what had come was asked for again");
}

#[test]
fn a_change_does_not_wait_for_a_large_value() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(2, 1, 1);
    settle(&mut world, &mut hub, &mut devices);
    hub.set(1, 1, large(2));
    let channels = [fleet(), own_channel("a")];
    let root = world.installation.root().public();
    let device = &mut devices[0];
    let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let mut unused = false;
    let mut now = 0;
    // Until the first piece has left.
    while device.pieces.is_empty() {
        now += 1;
        hub.answer(&mut down, now, &mut unused);
        if let Some(frame) = next_of(&mut down) {
            up.handle_frame(&frame, now);
        }
        device.answer(&mut up, now, &mut unused);
        while let Some(frame) = next_of(&mut up) {
            down.handle_frame(&frame, now);
        }
    }
    hub.edit(2, 1, 7);
    down.handle_local(Local::Heads(hub.heads(Some(&channels))), now);
    hub.answer(&mut down, now, &mut unused);
    let before = device.pieces.values().map(Vec::len).sum::<usize>();
    while let Some(frame) = down.poll_frame() {
        up.handle_frame(&frame, now);
    }
    device.answer(&mut up, now, &mut unused);
    assert_eq!(device.seen(&fleet())[&item(2)]["f1"], 7, "before any other piece");
    assert_eq!(device.pieces.values().map(Vec::len).sum::<usize>(), before);
    assert!(down.poll_piece().is_some(), "pieces were waiting");
}

#[test]
fn a_slow_link_is_asked_for_less_and_a_fast_one_for_more() {
    let (world, hub, _) = trio();
    let root = world.installation.root().public();
    for (ms, expected) in [(10, RANGE_BYTES_MAX), (3000, 4096)] {
        let mut reader = Session::new(config(root, Some("a")), Heads::new(), None, 0);
        let mut writer = Session::new(config(root, None), hub.heads(Some(&[])), None, 0);
        while let Some(frame) = writer.poll_frame() {
            reader.handle_frame(&frame, 0);
        }
        let blob = Blob::of(vec![7; 2 << 20].into());
        reader.handle_local(Local::MissingBlobs(vec![BlobWant { name: blob.name, offset: 0 }]), 0);
        let (mut now, mut last) = (0, 0);
        for _ in 0..8 {
            let asked = std::iter::from_fn(|| reader.poll_frame()).map(|frame| Frame::decode(&frame).unwrap());
            let ranges = asked.filter_map(|frame| match frame {
                Frame::WantBlob { offset, len, .. } => Some((offset, len)),
                _ => None,
            });
            let [(offset, len)] = ranges.collect::<Vec<_>>()[..] else { panic!("one range at a time") };
            last = usize::try_from(len).unwrap();
            now += ms;
            for start in (offset..offset + len).step_by(BLOB_PIECE_BYTES_MAX) {
                let piece = Frame::BlobPiece {
                    hash: blob.name.hash,
                    offset: start,
                    bytes: vec![7; BLOB_PIECE_BYTES_MAX.min(usize::try_from(offset + len - start).unwrap())].into(),
                };
                reader.handle_frame(&piece.encode(), now);
            }
            assert!(reader.end().is_none(), "{:?}", reader.end());
            reader.handle_local(Local::BlobStored { name: blob.name, stored: BlobStored::Partly }, now);
        }
        assert_eq!(last, expected);
    }
}

#[test]
fn many_blobs_that_the_peer_lacks_hide_none_that_it_has() {
    let (world, hub, _) = trio();
    let root = world.installation.root().public();
    let mut reader = Session::new(config(root, Some("a")), Heads::new(), None, 0);
    let mut writer = Session::new(config(root, None), hub.heads(Some(&[])), None, 0);
    while let Some(frame) = writer.poll_frame() {
        reader.handle_frame(&frame, 0);
    }
    let count = 3 * WANTED_MAX + 7;
    let name = |number: usize| Blob::of(vec![7; 5000 + number].into()).name;
    let missing: Vec<BlobWant> = (0..count).map(|number| BlobWant { name: name(number), offset: 0 }).collect();
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..4 * count {
        while let Some(event) = reader.poll_event() {
            if let Event::NeedMissingBlobs { limit } = event {
                let answer = missing.iter().take(limit).copied().collect();
                reader.handle_local(Local::MissingBlobs(answer), 0);
            }
        }
        while let Some(frame) = reader.poll_frame() {
            if let Frame::WantBlob { hash, .. } = Frame::decode(&frame).unwrap() {
                assert!(asked.insert(hash), "asked for again at once");
                reader.handle_frame(&Frame::NoBlob { hash }.encode(), 0);
            }
        }
    }
    assert_eq!(asked.len(), count);
    assert!(!reader.has_events(), "it asks on and on");
}

#[test]
fn what_the_peer_lacks_is_asked_for_again_later_and_nothing_else_is_taken() {
    let (world, hub, _) = trio();
    let root = world.installation.root().public();
    let mut reader = Session::new(config(root, Some("a")), Heads::new(), None, 0);
    let mut writer = Session::new(config(root, None), hub.heads(Some(&[])), None, 0);
    while let Some(frame) = writer.poll_frame() {
        reader.handle_frame(&frame, 0);
    }
    let want = BlobWant { name: Blob::of(vec![7; 5000].into()).name, offset: 0 };
    let asks = |reader: &mut Session| {
        std::iter::from_fn(|| reader.poll_frame())
            .any(|frame| matches!(Frame::decode(&frame).unwrap(), Frame::WantBlob { .. }))
    };
    reader.handle_local(Local::MissingBlobs(vec![want]), 0);
    assert!(asks(&mut reader));
    reader.handle_frame(&Frame::NoBlob { hash: want.name.hash }.encode(), 10);
    reader.handle_local(Local::MissingBlobs(vec![want]), 20);
    assert!(!asks(&mut reader));
    assert!(reader.poll_timeout() <= 60_010);
    reader.handle_timeout(60_010);
    reader.handle_local(Local::MissingBlobs(vec![want]), 60_020);
    assert!(asks(&mut reader));
    let unasked = Frame::BlobPiece { hash: [9; 32], offset: 0, bytes: vec![1; 10].into() };
    reader.handle_frame(&unasked.encode(), 60_030);
    assert!(matches!(reader.end(), Some(SessionEnd::Protocol(_))));
}

#[test]
fn what_is_live_overtakes_a_snapshot() {
    let (mut world, mut hub, mut devices) = trio();
    for name in 0..50 {
        // A piece each, at least.
        hub.set(name, 1, json!((0..40).map(|at| format!("{name}{at}").repeat(100)).collect::<Vec<_>>()));
    }
    hub.truncate();
    let channels = [fleet(), own_channel("a")];
    let root = world.installation.root().public();
    let device = &mut devices[0];
    let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let mut unused = false;
    while let Some(frame) = up.poll_frame() {
        down.handle_frame(&frame, 0);
    }
    hub.answer(&mut down, 0, &mut unused);
    while let Some(frame) = down.poll_frame() {
        up.handle_frame(&frame, 0);
    }
    up.handle_frame(&down.poll_piece().unwrap(), 0);
    let grant = crate::channel::ItemId::parse("grant/x").unwrap();
    hub.append(&own_channel("a"), vec![crate::record::Draft::register(grant.clone(), &b"1"[..], "", 0)]);
    down.handle_local(Local::Heads(hub.heads(Some(&channels))), 0);
    hub.answer(&mut down, 0, &mut unused);
    while let Some(frame) = down.poll_frame() {
        up.handle_frame(&frame, 0);
    }
    device.answer(&mut up, 0, &mut unused);
    assert!(device.seen(&own_channel("a")).contains_key(&grant));
    assert!(device.seen(&fleet()).is_empty() && down.poll_piece().is_some(), "the snapshot is still on its way");
    settle(&mut world, &mut hub, &mut devices);
    assert_eq!(devices[0].seen(&fleet()), hub.seen(&fleet()));
}
