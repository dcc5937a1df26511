use proptest::prelude::*;

use super::*;
use crate::channel::{ChannelName, GENESIS};
use crate::record::Draft;

fn record(writer: u8, seq: u64, draft: Draft) -> Record {
    let channel = ChannelName::parse("fleet/default").unwrap();
    Record { channel, writer: WriterId([writer; 32]), seq, prev: GENESIS, draft }
}

fn id() -> ItemId {
    ItemId::parse("grant/x").unwrap()
}

fn fold(records: &[Record]) -> Item {
    let mut item = None;
    for record in records {
        match Item::apply(item.as_ref(), record, 1).unwrap() {
            Applied::Changed(changed) | Applied::Waiting(changed) => item = Some(changed),
            Applied::Unchanged => {}
        }
    }
    item.unwrap()
}

#[test]
fn a_register_is_no_document() {
    let register = fold(&[record(1, 1, Draft::register(id(), &b"1"[..], "", 0))]);
    let change = record(1, 2, Draft::change(id(), 1, &b"x"[..], "", 0));
    assert!(matches!(Item::apply(Some(&register), &change, 1), Err(ItemError::WrongKind(_))));
}

#[test]
fn waiting_changes_are_bounded() {
    let mut item = None;
    for seq in 1..=WAITING_MAX as u64 + 1 {
        let change = record(1, seq, Draft::change(id(), 1, seq.to_be_bytes().to_vec(), "", 0));
        match Item::apply(item.as_ref(), &change, 1) {
            Ok(Applied::Waiting(waiting)) => item = Some(waiting),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!((seq, error), (WAITING_MAX as u64 + 1, ItemError::TooManyWaiting(id())));
                let item = item.unwrap();
                assert_eq!(Item::decode(&item.encode()).unwrap(), item);
                return;
            }
        }
    }
    panic!("no bound");
}

proptest! {
    #[test]
    fn registers_and_removals_end_the_same_in_any_order(
        records in prop::collection::vec((1u8..4, 1u64..6, any::<bool>()), 1..8).prop_shuffle(),
        seed in any::<u64>(),
    ) {
        // One record per place, as in real logs.
        let mut places = BTreeMap::new();
        for (writer, seq, remove) in records {
            places.entry((writer, seq)).or_insert(remove);
        }
        let make = |((writer, seq), remove): (&(u8, u64), &bool)| {
            let value = vec![*writer, u8::try_from(*seq).unwrap()];
            record(*writer, *seq, if *remove { Draft::remove(id(), "", 0) } else { Draft::register(id(), value, "", 0) })
        };
        let ordered: Vec<Record> = places.iter().map(make).collect();
        let mut shuffled = ordered.clone();
        let len = shuffled.len();
        for at in 0..len {
            let other = usize::try_from(seed.rotate_left(u32::try_from(at).unwrap() * 7) % len as u64).unwrap();
            shuffled.swap(at, other);
        }
        let item = fold(&ordered);
        prop_assert_eq!(&fold(&shuffled), &item);
        prop_assert_eq!(Item::decode(&item.encode()).unwrap(), item);
    }

    #[test]
    fn hostile_states_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Item::decode(&Bytes::from(bytes)).is_err());
    }
}

#[test]
fn of_two_epochs_that_began_apart_the_later_keepers_is_in_force_in_every_order() {
    use crate::document::{Document, Edit, Epoch, Rollouts};
    let id = ItemId::parse("d").unwrap();
    let began = |keeper: u64, seq: u64, text: &str| {
        let object = serde_json::json!({"text": text});
        let edit = Edit { object: &object, rollouts: &Rollouts::new(), author: "", time_ms: 1 };
        let actor = [u8::try_from(seq).unwrap(); 8];
        let saved = Document::create(edit, Epoch { number: 4, keeper }, &|_| None, actor).unwrap().save();
        let writer = WriterId([u8::try_from(keeper).unwrap(); 32]);
        let record = Record {
            channel: ChannelName::parse("fleet/f").unwrap(),
            writer,
            seq,
            prev: GENESIS,
            draft: Draft::snapshot(id.clone(), 4, saved, "", 1),
        };
        let Applied::Changed(item) = Item::apply(None, &record, keeper).unwrap() else { panic!() };
        item
    };
    // The lower hub's record is the later one: it counts for nothing.
    let items = [began(1, 9, "old hub"), began(7, 2, "restored hub"), began(7, 3, "restored hub, forked")];
    let mut ends = std::collections::BTreeSet::new();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut item = Item::default();
        for at in order {
            match Item::adopt(Some(&item), &id, items[at].clone()).unwrap() {
                Applied::Changed(next) | Applied::Waiting(next) => item = next,
                Applied::Unchanged => {}
            }
        }
        let ItemKind::Document(document) = &item.kind else { panic!() };
        let document = Document::load(&document.saved).unwrap();
        ends.insert((document.keeper(), document.object(&crate::blob::no_blobs).unwrap().to_string()));
    }
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!(ends.first().unwrap().0, 7);
}
