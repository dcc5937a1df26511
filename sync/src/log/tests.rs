use super::*;
use crate::channel::ItemId;
use crate::identity::{NodeName, SigningKey};
use crate::record::Body;

fn writer(root: &SigningKey) -> LogWriter {
    LogWriter::new(WriterIdentity::for_hub([9; 32], 1, root).unwrap(), BTreeMap::new())
}

fn channel() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

fn drafts(values: &[&'static str]) -> Vec<Draft> {
    let register = |value: &&'static str| Draft::register(ItemId::parse("grant/x").unwrap(), value.as_bytes(), "", 5);
    values.iter().map(register).collect()
}

#[test]
fn what_is_written_verifies_and_chains() {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let mut writer = writer(&root);
    let first = writer.append(&channel(), drafts(&["1", "2"])).unwrap();
    let second = writer.append(&channel(), drafts(&["3"])).unwrap();
    assert_eq!((second.batch().first_seq, second.batch().prev), (3, first.head().hash));
    for batch in [&first, &second] {
        let stored = Batch::decode(&Bytes::from(batch.batch().encode())).unwrap();
        assert_eq!(stored.verify(writer.identity().chain()).unwrap(), *batch);
    }
    assert_eq!(first.place(None), Placement::Next);
    assert_eq!(second.place(None), Placement::Gap { after: 0 });
    assert_eq!(second.place(Some(first.head())), Placement::Next);
    assert_eq!(first.place(Some(second.head())), Placement::Duplicate);
    let fork = Head { seq: 2, hash: [3; 32] };
    assert_eq!(second.place(Some(fork)), Placement::Fork { seq: 2 });
    assert_eq!(first.place(Some(fork)), Placement::Fork { seq: 2 });
}

#[test]
fn any_flipped_bit_is_refused() {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let mut writer = writer(&root);
    writer.append(&channel(), drafts(&["0"])).unwrap();
    let batch = writer.append(&channel(), drafts(&["1", "2"])).unwrap();
    let encoded = batch.batch().encode();
    for at in 0..encoded.len() {
        let mut altered = encoded.clone();
        altered[at] ^= 1;
        let verified = Batch::decode(&Bytes::from(altered)).and_then(|batch| batch.verify(writer.identity().chain()));
        assert!(verified.is_err(), "byte {at}");
    }
}

#[test]
fn a_device_writes_in_its_own_channel_only() {
    let installation = crate::identity::Installation::create(1_700_000_000_000).unwrap();
    let keys = crate::identity::DeviceKeys::generate().unwrap();
    let node = NodeName::parse("cam-1").unwrap();
    let certificate =
        installation.certify_device(&node, "uid", keys.signing.public(), keys.sealing.public().unwrap(), 1).unwrap();
    let identity = WriterIdentity::for_device([5; 32], 4, &keys.signing, &certificate).unwrap();
    let root = installation.root().public();
    let chain = WriterChain::verify(identity.chain().encode(), &root).unwrap();
    assert_eq!((&chain, chain.incarnation), (identity.chain(), 4));
    assert!(WriterChain::verify(identity.chain().encode(), &SigningKey::from_seed([3; 32]).unwrap().public()).is_err());
    for at in 0..chain.encode().len() {
        let mut altered = chain.encode().to_vec();
        altered[at] ^= 0x10;
        // The outer form of a device certificate has some play; what it says has none.
        let says = WriterChain::verify(&altered, &root).ok().map(|chain| (chain.id, chain.subject, chain.incarnation));
        assert!(says.is_none_or(|says| says == (chain.id, chain.subject.clone(), 4)), "byte {at}");
    }
    let mut writer = LogWriter::new(identity, BTreeMap::new());
    let own = writer.append(&ChannelName::parse("device/cam-1").unwrap(), drafts(&["1"])).unwrap();
    own.batch().clone().verify(&chain).unwrap();
    for other in ["device/cam-2", "fleet/default"] {
        let foreign = writer.append(&ChannelName::parse(other).unwrap(), drafts(&["1"])).unwrap();
        let refused = foreign.batch().clone().verify(&chain).unwrap_err();
        assert!(refused.to_string().contains("device/cam-1 may not write there"), "{refused}");
    }
}

#[test]
fn limits_are_errors_and_nothing_is_appended() {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let mut writer = writer(&root);
    let item = ItemId::parse("x").unwrap();
    let large = Draft::register(item, vec![0; crate::record::RECORD_BODY_BYTES_MAX + 1], "", 0);
    assert!(matches!(large.body, Body::Inline(_)));
    assert!(writer.append(&channel(), vec![large]).is_err());
    assert!(writer.append(&channel(), Vec::new()).is_err());
    assert_eq!(writer.head(&channel()), Head::START);
    writer.start_at(&channel(), 41);
    assert_eq!(writer.append(&channel(), drafts(&["1"])).unwrap().batch().first_seq, 42);
}
