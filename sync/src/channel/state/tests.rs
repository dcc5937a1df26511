//! What a store keeps as rows is what a channel holds in memory.

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
