//! What a store keeps as rows is what a channel holds in memory.

use std::collections::BTreeSet;

use super::*;
use crate::identity::SigningKey;
use crate::log::LogWriter;
use crate::record::Draft;

fn channel() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

fn writer() -> LogWriter {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    LogWriter::new(WriterIdentity::for_hub([9; 32], 1, &root).unwrap(), BTreeMap::new())
}

fn grant(number: usize) -> ItemId {
    ItemId::parse(&format!("grant/{number}")).unwrap()
}

/// As a store does it: the row of every changed item is what memory holds of it.
fn keep(rows: &mut BTreeMap<ItemId, Item>, state: &ChannelState, folded: &Folded) {
    for id in &folded.changed {
        match state.items.get(id) {
            Some(item) => drop(rows.insert(id.clone(), item.clone())),
            None => drop(rows.remove(id)),
        }
    }
}

#[test]
fn forgotten_tombstones_leave_no_rows() {
    let (mut log, mut state, mut rows) = (writer(), ChannelState::new(channel()), BTreeMap::new());
    for from in (0..TOMBSTONES_MAX + 300).step_by(100) {
        let made = (from..from + 100).map(|number| Draft::register(grant(number), &b"1"[..], "", 0));
        let gone = (from..from + 100).map(|number| Draft::remove(grant(number), "", 0));
        let batch = log.append(&channel(), made.chain(gone).collect()).unwrap();
        let folded = state.apply_batch(&batch).unwrap();
        keep(&mut rows, &state, &folded);
    }
    assert_eq!(state.items.len(), TOMBSTONES_MAX);
    assert_eq!(rows, state.items);
}

#[test]
fn a_change_that_waits_is_kept() {
    let (mut log, mut state, mut rows) = (writer(), ChannelState::new(channel()), BTreeMap::new());
    let id = ItemId::parse("0c8a9e70-3a4b-4b53-8d5e-27c0de6d2b11").unwrap();
    let batch = log.append(&channel(), vec![Draft::change(id, 1, &b"of an epoch to come"[..], "", 0)]).unwrap();
    let folded = state.apply_batch(&batch).unwrap();
    assert_eq!(folded.set_aside, []);
    keep(&mut rows, &state, &folded);
    assert_eq!((rows.len(), &rows), (1, &state.items));
}

/// Found by the simulation: a reader that held another branch of an earlier writer's log ignored the present writer's lists whole, and
/// heard nothing of its channel any more once that log was cut off.
#[test]
fn a_list_of_another_branch_tells_what_it_names_and_deletes_nothing() {
    let mut log = writer();
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let earlier = WriterIdentity::for_hub([8; 32], 1, &root).unwrap();
    let mut branch = LogWriter::new(earlier.clone(), BTreeMap::new());
    let mut reader = ChannelState::new(channel());
    let only_there = branch.append(&channel(), vec![Draft::register(grant(1), &b"1"[..], "", 0)]).unwrap();
    reader.apply_batch(&only_there).unwrap();
    let here = reader.heads[&earlier.id()];

    let mut present = ChannelState::new(channel());
    let named = log.append(&channel(), vec![Draft::register(grant(2), &b"2"[..], "", 0)]).unwrap();
    present.apply_batch(&named).unwrap();
    let covers = BTreeMap::from([(earlier.id(), Head { seq: 9, hash: [9; 32] })]);
    let list = present.snapshot(log.identity(), covers).unwrap().verify(log.identity().chain()).unwrap();
    let mut spared = reader.clone();
    spared.apply_snapshot(&list.clone().sparing(BTreeSet::from([earlier.id()])));
    assert!(spared.items[&grant(1)].is_live() && spared.items[&grant(2)].is_live());
    assert_eq!(spared.heads[&earlier.id()], here, "its own branch is where it was");
    assert_eq!(spared.heads[&log.identity().id()].seq, 1);

    reader.apply_snapshot(&list);
    assert!(!reader.items.contains_key(&grant(1)), "without another branch, absence deletes");
}

/// Found by the simulation: a device whose card was put back listed its log for the hub, and what it had written anew of an item that its
/// earlier writer knew was in no list and in no batch.
#[test]
fn a_list_has_all_that_its_writer_said_also_of_what_others_spoke_of() {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let mut earlier = LogWriter::new(WriterIdentity::for_hub([8; 32], 1, &root).unwrap(), BTreeMap::new());
    let mut log = writer();
    let (mut state, mut reader) = (ChannelState::new(channel()), ChannelState::new(channel()));
    let first = [Draft::register(grant(1), &b"1"[..], "", 0), Draft::register(grant(2), &b"1"[..], "", 0)];
    let first = earlier.append(&channel(), first.to_vec()).unwrap();
    log.start_at(&channel(), first.head().seq);
    let second = log.append(&channel(), vec![Draft::register(grant(1), &b"2"[..], "", 0)]).unwrap();
    for batch in [&first, &second] {
        state.apply_batch(batch).unwrap();
    }
    reader.apply_batch(&first).unwrap();
    let list = state.snapshot(log.identity(), BTreeMap::new()).unwrap().verify(log.identity().chain()).unwrap();
    assert_eq!(list.snapshot().list.items.len(), 1, "what it has said nothing of is another's to list");
    reader.apply_snapshot(&list);
    assert_eq!(live(&reader), live(&state));
}

/// What a writer does next to one of a few items.
#[derive(Debug, Clone)]
enum Step {
    Set(usize, u8),
    Edit(usize, u8),
    Renew(usize),
    Remove(usize),
    /// The reader with this number reads: batch by batch, or, if the log was cut off before it, the list.
    Read(usize),
    /// Everything up to now can no longer be read as records.
    Truncate,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let step = prop_oneof![
        3 => (0..4_usize, any::<u8>()).prop_map(|(item, value)| Step::Set(item, value)),
        4 => (0..3_usize, any::<u8>()).prop_map(|(item, value)| Step::Edit(item, value)),
        1 => (0..3_usize).prop_map(Step::Renew),
        2 => (0..7_usize).prop_map(Step::Remove),
        4 => (0..3_usize).prop_map(Step::Read),
        1 => Just(Step::Truncate),
    ];
    proptest::collection::vec(step, 1..60)
}

fn document_id(number: usize) -> ItemId {
    ItemId::parse(&format!("0c8a9e70-3a4b-4b53-8d5e-27c0de6d2b{number:02}")).unwrap()
}

/// The draft of a step; `None` for one that would say nothing. As at a hub, a document that left the channel comes back as it went
/// on: said whole, in the epoch it is in.
fn draft(
    step: &Step,
    documents: &mut BTreeMap<usize, crate::document::Document>,
    gone: &mut BTreeSet<usize>,
) -> Option<Draft> {
    use crate::document::{Document, Edit, Rollouts};
    let none = Rollouts::new();
    let object = |value: u8| serde_json::json!({"spec": {"value": value}});
    let edit = |object| Edit { object, rollouts: &none, author: "", time_ms: 1 };
    match step {
        Step::Set(item, value) => Some(Draft::register(grant(*item), vec![*value], "", 1)),
        Step::Edit(item, value) => {
            let wanted = object(*value);
            if let Some(document) = documents.get_mut(item) {
                let change = document.edit(edit(&wanted), &|_| None).unwrap();
                if gone.remove(item) {
                    return Some(Draft::snapshot(document_id(*item), document.epoch(), document.save(), "", 1));
                }
                let change = change?;
                return Some(Draft::change(document_id(*item), document.epoch(), change, "", 1));
            }
            let mut document = Document::create(edit(&wanted), 1, &|_| None, [1; 8]).unwrap();
            let saved = document.save();
            documents.insert(*item, document);
            Some(Draft::snapshot(document_id(*item), 1, saved, "", 1))
        }
        Step::Renew(item) => {
            let document = documents.get_mut(item).filter(|_| !gone.contains(item))?;
            let wanted = document.object(&crate::blob::no_blobs).unwrap();
            *document = document.succeed(edit(&wanted), 1, &|_| None, [1; 8]).unwrap();
            Some(Draft::snapshot(document_id(*item), document.epoch(), document.save(), "", 1))
        }
        Step::Remove(item) => {
            gone.insert(*item);
            Some(Draft::remove(if *item < 3 { document_id(*item) } else { grant(*item - 3) }, "", 1))
        }
        Step::Read(_) | Step::Truncate => None,
    }
}

fn live(state: &ChannelState) -> BTreeMap<&ItemId, &crate::channel::ItemKind> {
    state.items.iter().filter(|(_, item)| item.is_live()).map(|(id, item)| (id, &item.kind)).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Whoever reads now and then, over truncations, ends with what one has who read every record.
    #[test]
    fn every_reader_ends_with_the_state_of_one_who_read_everything(steps in steps()) {
        let mut log = writer();
        let chain = log.identity().chain().clone();
        let mut all = ChannelState::new(channel());
        let mut readers = vec![ChannelState::new(channel()); 3];
        let (mut documents, mut gone) = (BTreeMap::new(), BTreeSet::new());
        let (mut batches, mut floor) = (Vec::new(), 0);
        let catch_up = |reader: &mut ChannelState, all: &ChannelState, batches: &[VerifiedBatch], floor: u64, log: &LogWriter| {
            let after = reader.heads.values().map(|head| head.seq).max().unwrap_or(0);
            if after < floor {
                let snapshot = all.snapshot(log.identity(), BTreeMap::new()).unwrap().verify(&chain).unwrap();
                assert_eq!(reader.apply_snapshot(&snapshot).set_aside, []);
            }
            let after = reader.heads.values().map(|head| head.seq).max().unwrap_or(0);
            for batch in batches.iter().filter(|batch| batch.batch().first_seq > after) {
                assert_eq!(reader.apply_batch(batch).unwrap().set_aside, []);
            }
        };
        for step in &steps {
            match step {
                Step::Read(reader) => catch_up(&mut readers[*reader], &all, &batches, floor, &log),
                Step::Truncate => {
                    floor = log.head(&channel()).seq;
                    batches.clear();
                }
                other => {
                    let Some(draft) = draft(other, &mut documents, &mut gone) else { continue };
                    let batch = log.append(&channel(), vec![draft]).unwrap();
                    assert_eq!(all.apply_batch(&batch).unwrap().set_aside, []);
                    batches.push(batch);
                }
            }
        }
        for reader in &mut readers {
            catch_up(reader, &all, &batches, floor, &log);
            proptest::prop_assert_eq!(live(reader), live(&all));
        }
    }
}
