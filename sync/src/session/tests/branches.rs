//! Two branches of one log of a hub's: given from the beginning, answered with a list, and then one again.

use std::collections::BTreeMap;

use super::super::*;
use super::convergence::branch;
use super::world::*;
use crate::channel::ItemId;
use crate::record::Draft;
use crate::replica::{Input, Reading};

/// A hub, and a device that holds another branch of its log: the hub has removed an item that both knew, and the device one that only it
/// ever saw.
fn apart() -> (World, Store, Store) {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    hub.edit(2, 1, 1);
    settle(&mut world, &mut hub, &mut devices);
    let mut copy = branch(&hub);
    for value in 1..=4 {
        hub.edit(3, 1, value);
    }
    settle(&mut world, &mut hub, &mut devices);
    copy.edit(4, 1, 1);
    copy.append(&fleet(), vec![Draft::remove(item(1), "", 0)]);
    copy.channels.get_mut(&fleet()).unwrap().items.retain(|_, item| item.is_live());
    (world, copy, devices.swap_remove(0))
}

fn head_of(store: &Store, writer: &WriterId) -> Head {
    store.channels[&fleet()].heads[writer]
}

#[test]
fn a_branch_that_was_given_whole_is_settled_by_a_list() {
    let (mut world, mut hub, mut device) = apart();
    let forked = hub.writer.lock().unwrap().identity().id();
    assert!(head_of(&device, &forked).seq > head_of(&hub, &forked).seq);
    hub.settles = true;
    // The hub finds the fork, takes in what the device has, and states all of it under another writer.
    meet(&mut world, &mut hub, &mut device, 1000);
    assert!(hub.seen(&fleet()).contains_key(&item(3)), "what only the device's branch said");
    hub.channels.get_mut(&fleet()).unwrap().items.retain(|_, item| item.is_live());
    meet(&mut world, &mut hub, &mut device, 1000);
    assert_eq!(device.seen(&fleet()), hub.seen(&fleet()), "what was on both branches is deleted too");
    assert_eq!(head_of(&device, &forked), head_of(&hub, &forked), "and nothing is forked any more");
    let bytes: usize = meet(&mut world, &mut hub, &mut device, 1000).iter().sum();
    assert!(bytes < 1500, "{bytes} bytes though there is nothing to say");
}

/// The hub's end of a session in which the device has said hello.
fn greeted(world: &World, hub: &Store, device: &Store) -> Session {
    let root = world.installation.root().public();
    let mut session = Session::new(config(root, None), hub.heads(Some(&[fleet(), own_channel("a")])), None, 0);
    let hello = Session::new(config(root, Some("a")), device.heads(None), None, 0).poll_frame().unwrap();
    session.handle_frame(&hello, 0);
    session
}

#[test]
fn what_comes_without_its_beginning_is_no_whole_branch() {
    let (world, hub, device) = apart();
    let forked = hub.writer.lock().unwrap().identity().id();
    let mut session = greeted(&world, &hub, &device);
    let chain = Bytes::copy_from_slice(device.chains[&forked].encode());
    session.handle_frame(&Frame::Writer { index: 0, chain }.encode(), 0);
    session.handle_frame(&Frame::Channel { index: 0, name: fleet() }.encode(), 0);
    let log = &device.logs[&(fleet(), forked)];
    let mut give = |batches: &[crate::log::Batch]| {
        for batch in batches {
            let start = Some((batch.first_seq, batch.prev));
            let frame = Frame::Batch { channel: 0, writer: 0, start, payload: batch.payload.clone() };
            session.handle_frame(&frame.encode(), 0);
        }
        session.handle_local(Local::Ingested, 0);
        let events: Vec<Event> = std::iter::from_fn(|| session.poll_event()).collect();
        let came = events.iter().any(|event| matches!(event, Event::BranchCame { .. }));
        let taken = events.iter().filter(|event| matches!(event, Event::Ingest(Input::Branch(_)))).count();
        let acked = std::iter::from_fn(|| session.poll_frame())
            .any(|frame| matches!(Frame::decode(&frame), Ok(Frame::Ack { .. })));
        (taken, acked, came)
    };
    let (common, rest) = log.split_at(2);
    // The first of these is the evidence of the fork; those behind it were on their way already.
    assert_eq!(give(&rest[1..]), (rest.len() - 2, false, false));
    assert_eq!(give(&common[..1]), (1, true, false));
    assert_eq!(give(&rest[1..]), (rest.len() - 1, false, false), "one is missing");
    assert_eq!(give(&log[1..]), (log.len() - 1, true, true));
    assert_eq!(give(&log[1..]), (log.len() - 1, true, false), "what comes again has been answered");
    let grant = ItemId::parse("grant/x").unwrap();
    assert!(!device.seen(&fleet()).contains_key(&grant));
}

/// A list of a later writer has taken the place of the branch's own records at the device.
#[test]
fn a_branch_that_another_writers_list_speaks_for_has_come_with_it() {
    let (mut world, hub, device) = apart();
    let forked = hub.writer.lock().unwrap().identity().id();
    let (identity, head) = (world.identity(None, 2), head_of(&device, &forked));
    let list = device.channels[&fleet()].snapshot(&identity, BTreeMap::from([(forked, head)])).unwrap();
    let mut session = greeted(&world, &hub, &device);
    session.handle_local(Local::Branches(vec![(fleet(), forked, head.seq)]), 0);
    let chain = Bytes::copy_from_slice(identity.chain().encode());
    session.handle_frame(&Frame::Writer { index: 0, chain }.encode(), 0);
    session.handle_frame(&Frame::Snapshot { writer: 0, list: list.list.encoded().clone() }.encode(), 0);
    for piece in list.states {
        session.handle_frame(&Frame::State { ends: true, piece }.encode(), 0);
    }
    let came = |session: &mut Session| -> Vec<(WriterId, u64)> {
        std::iter::from_fn(|| session.poll_event())
            .filter_map(|event| match event {
                Event::BranchCame { writer, seq, .. } => Some((writer, seq)),
                _ => None,
            })
            .collect()
    };
    assert_eq!(came(&mut session), [], "it is not durable yet");
    session.handle_local(Local::Ingested, 0);
    assert_eq!(came(&mut session), [(forked, head.seq)]);
}

#[test]
fn of_a_channel_one_list_waits_for_a_peer_that_does_not_read() {
    let (world, hub, device) = apart();
    let forked = hub.writer.lock().unwrap().identity().id();
    let mut session = greeted(&world, &hub, &device);
    while session.poll_event().is_some() {}
    for seq in 1..=3 {
        let (reading, chain) = (Reading::Snapshot(hub.list(&fleet())), hub.chains.get(&forked).cloned());
        session.handle_local(Local::List { channel: fleet(), writer: forked, seq, reading, chain }, 0);
    }
    assert!(session.poll_event().is_none(), "no list is asked for while one waits");
    let pieces: Vec<Frame> =
        std::iter::from_fn(|| session.poll_piece()).map(|piece| Frame::decode(&piece).unwrap()).collect();
    assert_eq!(pieces.iter().filter(|piece| matches!(piece, Frame::Snapshot { .. })).count(), 1);
    let asked: Vec<u64> = std::iter::from_fn(|| session.poll_event())
        .filter_map(|event| if let Event::BranchCame { seq, .. } = event { Some(seq) } else { None })
        .collect();
    assert_eq!(asked, [2, 3], "the others come when it has left");
}

#[test]
fn records_that_follow_a_list_leave_after_it() {
    let (mut world, mut hub, mut devices) = trio();
    hub.edit(1, 1, 1);
    settle(&mut world, &mut hub, &mut devices);
    let earlier = hub.writer.lock().unwrap().identity().id();
    // The list of a later writer stands in for what an earlier one said, and more is said after it.
    world.rewrite(&mut hub);
    let list = hub.list(&fleet());
    let later = list.list.writer;
    hub.edit(1, 1, 2);
    assert_ne!(earlier, later);
    // The sender's part is the same at either end.
    let newcomer = world.store(Some("a"), &[fleet(), own_channel("a")]);
    let mut session = greeted(&world, &hub, &newcomer);
    let asked = |session: &mut Session| -> Vec<(WriterId, u64)> {
        std::iter::from_fn(|| session.poll_event())
            .filter_map(|event| match event {
                Event::NeedRecords { channel, writer, after, .. } if channel == fleet() => Some((writer, after)),
                _ => None,
            })
            .collect()
    };
    assert_eq!(asked(&mut session).len(), 2, "both logs are asked for from their beginnings");
    let head = list.list.head.seq;
    for writer in [earlier, later] {
        let (reading, chain) = (Reading::Snapshot(list.clone()), hub.chains.get(&later).cloned());
        session.handle_local(Local::Records { channel: fleet(), writer, reading, chain }, 0);
    }
    assert_eq!(asked(&mut session), [], "nothing overtakes the list");
    while session.poll_piece().is_some() {}
    assert_eq!(asked(&mut session), [(later, head)]);
}

#[test]
fn a_fork_that_is_known_is_not_found_again() {
    let (world, hub, device) = apart();
    let forked = hub.writer.lock().unwrap().identity().id();
    let mut session = greeted(&world, &hub, &device);
    for _ in 0..2 {
        session.handle_local(Local::Branches(vec![(fleet(), forked, 3)]), 0);
    }
    let frames: Vec<Frame> =
        std::iter::from_fn(|| session.poll_frame()).map(|frame| Frame::decode(&frame).unwrap()).collect();
    let told = |wanted: fn(&Frame) -> bool| frames.iter().filter(|frame| wanted(frame)).count();
    // The second would stop the device, which is to send all that it was asked for.
    assert_eq!(told(|frame| matches!(frame, Frame::Forked { .. })), 1);
    assert_eq!(told(|frame| matches!(frame, Frame::Want { .. })), 1);
}

#[test]
fn the_hub_names_what_it_has_heard_to_those_who_understand_it() {
    let frame = Frame::Heard { clock: Clock { incarnation: 2, boot: 300, seq: 7 } };
    let golden = [0x84, 0x18, 25, 2, 0x19, 1, 44, 7];
    assert_eq!(frame.encode()[..], golden);
    assert_eq!(Frame::decode(&frame.encode()).unwrap(), frame);
    for (versions, asked) in [(vec![1, 2], false), (vec![1, 2, 3], true)] {
        let (world, hub, _) = trio();
        let root = world.installation.root().public();
        let mut session = Session::new(config(root, None), hub.heads(Some(&[fleet()])), None, 0);
        let positions = Positions::new();
        let hello = Frame::Hello { versions, incarnation: 1, boot: 1, positions, digests: Vec::new(), greeting: None };
        session.handle_frame(&hello.encode(), 0);
        let events: Vec<Event> = std::iter::from_fn(|| session.poll_event()).collect();
        assert_eq!(events.iter().any(|event| matches!(event, Event::NeedHeard)), asked);
    }
}
