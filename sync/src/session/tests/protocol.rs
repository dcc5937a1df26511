//! One session at its edges: the cost of a change, forgeries, poison, silence, hostile frames.

use proptest::prelude::*;

use super::super::*;
use super::world::*;
use crate::channel::GENESIS;
use crate::document::{Document, DocumentError};
use crate::record::Draft;

#[test]
fn a_one_field_change_costs_at_most_170_bytes_in_a_session_that_goes_on() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    hub.edit(1, 2, 2);
    settle(&mut world, &mut hub, &mut devices);
    let channels = [fleet(), own_channel("a")];
    let root = world.installation.root().public();
    let device = &mut devices[0];
    let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let mut unused = false;
    let mut exchange = |down: &mut Session, up: &mut Session, hub: &mut Store, device: &mut Store| {
        let mut bytes = 0;
        for _ in 0..10 {
            hub.answer(down, 0, &mut unused);
            while let Some(frame) = next_of(down) {
                bytes += frame.len() + 4;
                up.handle_frame(&frame, 0);
            }
            device.answer(up, 0, &mut unused);
            while let Some(frame) = next_of(up) {
                bytes += frame.len() + 4;
                down.handle_frame(&frame, 0);
            }
        }
        bytes
    };
    // The first change of a session introduces names; those after it are the measure.
    hub.edit(1, 1, 41);
    down.handle_local(Local::Heads(hub.heads(Some(&channels))), 0);
    exchange(&mut down, &mut up, &mut hub, device);
    hub.edit(1, 1, 42);
    down.handle_local(Local::Heads(hub.heads(Some(&channels))), 0);
    let bytes = exchange(&mut down, &mut up, &mut hub, device);
    assert_eq!(device.seen(&fleet())[&item(1)]["f1"], 42);
    assert!((100..=170).contains(&bytes), "{bytes} bytes");
}

#[test]
fn only_a_device_that_takes_differences_is_told_by_them() {
    for (versions, expected) in [(vec![1], 0), (vec![1, 2], 2), (vec![1, 2, 3], 2)] {
        let (world, mut hub, mut devices) = trio();
        let channels = [fleet(), own_channel("a")];
        let root = world.installation.root().public();
        let device = &mut devices[0];
        let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
        let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
        let (mut unused, mut differences) = (false, 0);
        for value in 1..=3 {
            hub.edit(1, 1, value);
            down.handle_local(Local::Heads(hub.heads(Some(&channels))), 0);
            for _ in 0..10 {
                hub.answer(&mut down, 0, &mut unused);
                while let Some(frame) = next_of(&mut down) {
                    differences += usize::from(matches!(Frame::decode(&frame), Ok(Frame::Difference { .. })));
                    up.handle_frame(&frame, 0);
                }
                device.answer(&mut up, 0, &mut unused);
                while let Some(frame) = next_of(&mut up) {
                    let frame = match Frame::decode(&frame).unwrap() {
                        Frame::Hello { incarnation, boot, positions, digests, greeting, .. } => {
                            let versions = versions.clone();
                            Frame::Hello { versions, incarnation, boot, positions, digests, greeting }.encode()
                        }
                        _ => frame,
                    };
                    down.handle_frame(&frame, 0);
                }
            }
            assert_eq!(device.seen(&fleet())[&item(1)]["f1"], value);
        }
        assert_eq!(differences, expected, "{versions:?}");
    }
}

#[test]
fn a_difference_to_what_was_not_taken_is_asked_for_and_a_wrong_one_ends_the_session() {
    let (world, mut hub, mut devices) = trio();
    let channels = [fleet(), own_channel("a")];
    let root = world.installation.root().public();
    let device = &mut devices[0];
    let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let mut unused = false;
    let mut exchange = |up: &mut Session, hub: &mut Store, device: &mut Store, lost: bool| {
        down.handle_local(Local::Heads(hub.heads(Some(&channels))), 0);
        let mut wants = 0;
        for _ in 0..10 {
            hub.answer(&mut down, 0, &mut unused);
            while let Some(frame) = next_of(&mut down) {
                if !(lost && matches!(Frame::decode(&frame), Ok(Frame::Batch { .. } | Frame::Difference { .. }))) {
                    up.handle_frame(&frame, 0);
                }
            }
            device.answer(up, 0, &mut unused);
            while let Some(frame) = next_of(up) {
                wants += usize::from(matches!(Frame::decode(&frame), Ok(Frame::Want { .. })));
                down.handle_frame(&frame, 0);
            }
        }
        wants
    };
    // As when the device was not subscribed for a moment.
    hub.edit(1, 1, 1);
    assert_eq!(exchange(&mut up, &mut hub, device, true), 0);
    hub.edit(1, 1, 2);
    assert_eq!(exchange(&mut up, &mut hub, device, false), 1, "what it does not follow is asked for, once");
    assert_eq!(device.seen(&fleet())[&item(1)]["f1"], 2);
    let wrong = Frame::Difference { channel: 0, writer: 0, difference: Bytes::from_static(&[3, 1, 2, 3]) };
    up.handle_frame(&wrong.encode(), 0);
    assert!(matches!(up.end(), Some(SessionEnd::Protocol(_))), "{:?}", up.end());
    // A hub is told nothing by differences.
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let hello = Session::new(config(root, Some("a")), device.heads(None), None, 0).poll_frame().unwrap();
    down.handle_frame(&hello, 0);
    down.handle_frame(&wrong.encode(), 0);
    assert!(matches!(down.end(), Some(SessionEnd::Protocol(_))), "{:?}", down.end());
}

#[test]
fn forged_and_foreign_records_end_the_session_with_a_reason() {
    let (mut world, hub, devices) = trio();
    let root = world.installation.root().public();
    let mut thief = devices[0].clone();
    thief.append(&own_channel("b"), vec![Draft::remove(item(1), "", 0)]);
    thief.append(&fleet(), vec![Draft::remove(item(1), "", 0)]);
    for (index, (channel, expected)) in
        [(own_channel("b"), "not this device's"), (fleet(), "may not write")].into_iter().enumerate()
    {
        let mut session = Session::new(config(root, None), hub.heads(Some(&[fleet(), own_channel("a")])), None, 0);
        let positions = Positions::new();
        let hello =
            Frame::Hello { versions: vec![1], incarnation: 1, boot: 1, positions, digests: Vec::new(), greeting: None };
        let identity = thief.writer.lock().unwrap().identity().clone();
        let batch = thief.logs[&(channel.clone(), identity.id())][0].clone();
        let chain = Bytes::copy_from_slice(identity.chain().encode());
        let frames = [
            hello,
            Frame::Writer { index: 0, chain },
            Frame::Channel { index: index as u64, name: channel },
            Frame::Batch { channel: index as u64, writer: 0, start: Some((1, GENESIS)), payload: batch.payload },
        ];
        for frame in frames {
            session.handle_frame(&frame.encode(), 0);
        }
        let Some(SessionEnd::Protocol(reason)) = session.end() else { panic!("{:?}", session.end()) };
        assert!(reason.contains(expected), "{reason}");
        let goodbye = session.poll_frame().unwrap();
        assert!(matches!(Frame::decode(&goodbye).unwrap(), Frame::Goodbye { .. }));
    }
    let mut stranger = World::new(&["a"]);
    let foreign = stranger.identity(None, 1);
    let mut session = Session::new(config(world.installation.root().public(), Some("a")), Heads::new(), None, 0);
    let hello = Frame::Hello {
        versions: vec![1],
        incarnation: 1,
        boot: 1,
        positions: Positions::new(),
        digests: Vec::new(),
        greeting: None,
    };
    session.handle_frame(&hello.encode(), 0);
    let chain = Bytes::copy_from_slice(foreign.chain().encode());
    session.handle_frame(&Frame::Writer { index: 0, chain }.encode(), 0);
    assert!(matches!(session.end(), Some(SessionEnd::Protocol(_))));
    world.next_seed += 1;
}

#[test]
fn a_poison_document_is_set_aside_and_the_channel_goes_on() {
    let (mut world, mut hub, mut devices) = trio();
    hub.append(&fleet(), vec![Draft::snapshot(item(9), 1, &b"no document"[..], "", 0)]);
    hub.edit(1, 1, 1);
    hub.append(&fleet(), vec![Draft::change(item(1), 1, &b"no change"[..], "", 0)]);
    hub.edit(1, 1, 2);
    settle(&mut world, &mut hub, &mut devices);
    for store in devices.iter().chain([&hub]) {
        assert_eq!(store.seen(&fleet())[&item(1)]["f1"], 2);
        assert!(store.channels[&fleet()].quarantined.contains_key(&item(9)));
    }
    assert!(matches!(Document::load(b"no document"), Err(DocumentError::Damaged(_))));
}

#[test]
fn silence_ends_a_session_and_a_ping_keeps_it() {
    let (world, hub, _) = trio();
    let root = world.installation.root().public();
    let mut session = Session::new(config(root, None), hub.heads(None), None, 0);
    while session.poll_frame().is_some() {}
    session.handle_timeout(session.poll_timeout());
    assert_eq!(Frame::decode(&session.poll_frame().unwrap()).unwrap(), Frame::Ping);
    assert_eq!(session.poll_timeout(), 2 * KEEPALIVE_MS);
    session.handle_timeout(SILENCE_MS);
    assert_eq!(session.end(), Some(&SessionEnd::Silent));
}

proptest! {
    #[test]
    fn hostile_frames_end_the_session_and_never_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..6)) {
        let (world, hub, _) = trio();
        let mut session = Session::new(config(world.installation.root().public(), None), hub.heads(None), None, 0);
        for frame in frames {
            session.handle_frame(&Bytes::from(frame), 0);
        }
        prop_assert!(session.end().is_some());
    }
}

#[test]
fn a_log_that_a_device_gives_up_is_sent_to_it_again() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    settle(&mut world, &mut hub, &mut devices);
    let channels = [fleet(), own_channel("a")];
    let root = world.installation.root().public();
    let device = &mut devices[0];
    let mut up = Session::new(config(root, Some("a")), device.heads(None), None, 0);
    let mut down = Session::new(config(root, None), hub.heads(Some(&channels)), None, 0);
    let mut unused = false;
    let mut sent = |up: &mut Session, down: &mut Session, hub: &mut Store, device: &mut Store| {
        let mut batches = 0;
        for _ in 0..4 {
            while let Some(frame) = next_of(down) {
                batches += usize::from(matches!(Frame::decode(&frame), Ok(Frame::Batch { .. })));
                up.handle_frame(&frame, 0);
            }
            device.answer(up, 0, &mut unused);
            while let Some(frame) = next_of(up) {
                down.handle_frame(&frame, 0);
            }
            hub.answer(down, 0, &mut unused);
        }
        batches
    };
    assert_eq!(sent(&mut up, &mut down, &mut hub, device), 0, "both hold the same");
    // Its heads as they are say nothing new; without the hub's log they ask for it.
    up.handle_local(Local::Heads(device.heads(None)), 0);
    assert_eq!(sent(&mut up, &mut down, &mut hub, device), 0);
    let mut heads = device.heads(None);
    heads.get_mut(&fleet()).unwrap().clear();
    up.handle_local(Local::Heads(heads), 0);
    let wanted = next_of(&mut up).map(|frame| Frame::decode(&frame).unwrap());
    let Some(Frame::Want { channel, after: 0, .. }) = &wanted else { panic!("{wanted:?}") };
    assert_eq!(*channel, fleet());
    down.handle_frame(&wanted.unwrap().encode(), 0);
    hub.answer(&mut down, 0, &mut unused);
    let again = std::iter::from_fn(|| next_of(&mut down)).map(|frame| Frame::decode(&frame).unwrap());
    assert!(again.into_iter().any(|frame| matches!(frame, Frame::Batch { .. } | Frame::Snapshot { .. })));
}

#[test]
fn a_goodbye_in_the_place_of_a_hello_leaves_nothing_behind() {
    let (world, _hub, devices) = trio();
    let root = world.installation.root().public();
    let mut up = Session::new(config(root, Some("a")), devices[0].heads(None), None, 0);
    up.handle_frame(&goodbye(crate::driver::ENROL_AGAIN), 0);
    assert_eq!(up.end(), Some(&SessionEnd::Goodbye(crate::driver::ENROL_AGAIN.to_owned())));
    assert!(!up.has_events(), "no channel was left");
}
