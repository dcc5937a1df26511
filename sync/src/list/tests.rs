use super::*;
use crate::channel::{ChannelState, GENESIS};
use crate::identity::SigningKey;
use crate::log::LogWriter;
use crate::record::Draft;

fn snapshot() -> (ChannelSnapshot, WriterChain) {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let identity = WriterIdentity::for_hub([2; 32], 1, &root).unwrap();
    let channel = ChannelName::parse("fleet/default").unwrap();
    let mut state = ChannelState::new(channel.clone());
    let mut log = LogWriter::new(identity.clone(), BTreeMap::new());
    let values = ["a", "b"].map(|name| Draft::register(ItemId::parse(name).unwrap(), name.as_bytes(), "", 1));
    state.apply_batch(&log.append(&channel, values.into()).unwrap()).unwrap();
    (state.snapshot(&identity, BTreeMap::new()).unwrap(), identity.chain().clone())
}

#[test]
fn a_list_comes_back_as_it_was() {
    let (snapshot, chain) = snapshot();
    let list = SignedList::decode(snapshot.list.encoded().clone()).unwrap();
    assert_eq!(list, snapshot.list);
    assert_eq!((list.items.len(), list.head.seq), (2, 2));
    assert_ne!(list.covers[&chain.id].hash, GENESIS);
    snapshot.verify(&chain).unwrap();
}

#[test]
fn altered_lists_and_states_are_refused() {
    let (snapshot, chain) = snapshot();
    let encoded = snapshot.list.encoded().clone();
    for at in 0..encoded.len() {
        let mut altered = encoded.to_vec();
        altered[at] ^= 1;
        let verified = SignedList::decode(Bytes::from(altered))
            .and_then(|list| ChannelSnapshot { list, states: snapshot.states.clone() }.verify(&chain));
        assert!(verified.is_err(), "byte {at}");
    }
    let mut swapped = snapshot.clone();
    swapped.states.swap(0, 1);
    assert!(matches!(swapped.verify(&chain), Err(ListError::State { item, .. }) if item == "a"));
    let mut short = snapshot;
    short.states.pop();
    assert!(short.verify(&chain).is_err());
}
