use flotilla_sync::channel::{Applied, GENESIS, WriterId};
use flotilla_sync::document::{Document, Edit, Rollouts};
use flotilla_sync::record::{Draft, Record};
use serde_json::json;

use super::*;
use crate::store::{BlobRow, Store};

fn channel() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

fn id() -> ItemId {
    ItemId::parse("0f8fad5b-d9cb-469f-a165-708677289500").unwrap()
}

/// The item of a ConfigMap in its `seq`th epoch, and what of it is large.
fn item(seq: u64, text: &str) -> (Item, Vec<flotilla_sync::blob::Blob>) {
    let object = json!({"kind": "ConfigMap", "data": {"text": text}});
    let none = Rollouts::new();
    let edit = Edit { object: &object, rollouts: &none, author: "", time_ms: 0 };
    let mut document = Document::create(edit, seq, &|_path| None, [1; 8]).unwrap();
    let draft = Draft::snapshot(id(), seq, document.save(), "", 0);
    let record = Record { channel: channel(), writer: WriterId([1; 32]), seq, prev: GENESIS, draft };
    match Item::apply(None, &record, 1).unwrap() {
        Applied::Changed(item) => (item, document.take_large()),
        other => panic!("{other:?}"),
    }
}

fn holding(item: Option<Item>) -> BTreeMap<ChannelName, ChannelState> {
    let mut state = ChannelState::new(channel());
    state.items.extend(item.map(|item| (id(), item)));
    BTreeMap::from([(channel(), state)])
}

fn step(beside: &mut Beside, before: Option<&Item>, after: Option<&Item>) -> BesideRows {
    let (before, after) = (holding(before.cloned()), holding(after.cloned()));
    let plan = beside.plan(&before, &after.iter().collect());
    let rows = plan.rows();
    beside.take(plan);
    assert_eq!(beside.plan(&after, &after.iter().collect()), Plan::default(), "level-based: once is enough");
    rows
}

fn arrive(beside: &mut Beside, blob: &flotilla_sync::blob::Blob) {
    beside.parts.insert(blob.name.hash, Part { len: blob.name.len, offset: blob.name.len, whole: true });
}

#[test]
fn the_older_item_is_in_force_until_the_newer_is_whole() {
    let mut beside = Beside::default();
    let (small, none) = item(1, "small");
    assert!(none.is_empty());
    let (large, contents) = item(2, &"x".repeat(5000));
    let (larger, more) = item(3, &"y".repeat(6000));

    assert!(step(&mut beside, None, Some(&small)).is_empty());
    let rows = step(&mut beside, Some(&small), Some(&large));
    assert_eq!(rows.held.len(), 1, "what was in force is durable with what replaces it");
    assert_eq!(beside.in_force(&channel(), &id(), &large), Some(&small));
    assert_eq!(beside.missing(&holding(Some(large.clone())))[0].name, contents[0].name);

    // A third, before the second is whole: what is in force is still the first.
    assert!(step(&mut beside, Some(&large), Some(&larger)).is_empty());
    assert_eq!(beside.in_force(&channel(), &id(), &larger), Some(&small));

    arrive(&mut beside, &more[0]);
    let rows = step(&mut beside, Some(&larger), Some(&larger));
    assert!(rows.held.len() == 1 && rows.held[0].bytes.is_empty(), "the first is let go");
    assert_eq!(beside.in_force(&channel(), &id(), &larger), Some(&larger));
    assert!(beside.missing(&holding(Some(larger.clone()))).is_empty());

    // Small again: the content that nothing names goes.
    let rows = step(&mut beside, Some(&larger), Some(&small));
    assert_eq!(rows.forgotten, [more[0].name.hash]);
}

#[test]
fn a_new_item_shows_only_when_it_is_whole_and_one_that_goes_takes_all_with_it() {
    let mut beside = Beside::default();
    let (large, contents) = item(1, &"x".repeat(5000));
    assert!(step(&mut beside, None, Some(&large)).is_empty());
    assert_eq!(beside.in_force(&channel(), &id(), &large), None);
    assert_eq!(beside.never_whole(&holding(Some(large.clone()))), [id().as_str()], "it is not taken for deleted");
    arrive(&mut beside, &contents[0]);
    assert_eq!(beside.in_force(&channel(), &id(), &large), Some(&large));
    assert!(beside.never_whole(&holding(Some(large.clone()))).is_empty());
    let (larger, _) = item(2, &"y".repeat(6000));
    assert_eq!(step(&mut beside, Some(&large), Some(&larger)).held.len(), 1);
    let rows = step(&mut beside, Some(&larger), None);
    assert!(rows.held[0].bytes.is_empty());
    assert_eq!(rows.forgotten, [contents[0].name.hash]);
}

#[tokio::test]
async fn pieces_survive_a_restart_and_a_damaged_blob_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let content = [vec![1; 3000], vec![2; 3000]].concat();
    let name = flotilla_sync::blob::Blob::of(content.clone().into()).name;
    let (store, _) = Store::open(folder.path()).unwrap();
    assert_eq!(store.put_blob_piece(name, 0, content[..3000].to_vec()).await.unwrap(), BlobStored::Partly);
    drop(store);
    let (store, loaded) = Store::open(folder.path()).unwrap();
    let partly = BlobRow { hash: name.hash, len: 6000, offset: 3000, whole: false };
    assert_eq!(loaded.blobs, [partly]);
    assert_eq!(store.put_blob_piece(name, 3000, vec![9; 3000]).await.unwrap(), BlobStored::Damaged);
    assert!(store.blob(&name.hash).unwrap().is_empty());
    for at in [0, 3000] {
        store.put_blob_piece(name, at as u64, content[at..at + 3000].to_vec()).await.unwrap();
    }
    assert_eq!(store.blob(&name.hash).unwrap(), content);
    drop(store);
    assert!(Store::open(folder.path()).unwrap().1.blobs[0].whole);
}
