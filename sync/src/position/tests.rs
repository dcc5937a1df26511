use super::*;
use crate::identity::{DeviceKeys, Installation, NodeName};

fn channel(name: &str) -> ChannelName {
    ChannelName::Fleet(NodeName::parse(name).unwrap())
}

#[test]
fn a_position_says_what_a_hub_signed_and_nothing_else() {
    let installation = Installation::create(1_893_456_000_000).unwrap();
    let root = installation.root().public();
    let hub = WriterIdentity::for_hub([7; 32], 3, installation.root()).unwrap();
    let signed = SignedPosition::sign(&hub, channel("ships"), 12, 40);
    let read = |encoded: &Bytes| SignedPosition::verify(encoded, &root, &channel("ships"));
    assert_eq!(read(signed.encoded()).unwrap(), signed);
    assert!(signed.encoded().len() < 400, "{} bytes stand at the broker", signed.encoded().len());

    // One bit anywhere, a byte more or less.
    for at in 0..signed.encoded().len() {
        let mut damaged = signed.encoded().to_vec();
        damaged[at] ^= 1;
        assert!(read(&damaged.into()).is_err(), "byte {at}");
        assert!(read(&signed.encoded().slice(..at)).is_err(), "cut at {at}");
    }
    assert!(read(&Bytes::from([signed.encoded(), &b"\0"[..]].concat())).is_err());
    // Another fleet's, another installation's, a device's.
    let other = SignedPosition::sign(&hub, channel("trains"), 12, 40);
    assert!(matches!(read(other.encoded()), Err(PositionError::OtherChannel { .. })));
    let stranger = Installation::create(1_893_456_000_000).unwrap();
    let forged = WriterIdentity::for_hub([7; 32], 3, stranger.root()).unwrap();
    let forged = SignedPosition::sign(&forged, channel("ships"), 99, 99);
    assert!(matches!(read(forged.encoded()), Err(PositionError::Forged(_))));
    let keys = DeviceKeys::generate().unwrap();
    let node = NodeName::parse("n1").unwrap();
    let certificate =
        installation.certify_device(&node, "uid", keys.signing.public(), keys.sealing.public().unwrap(), 0).unwrap();
    let device = WriterIdentity::for_device([9; 32], 3, &keys.signing, &certificate).unwrap();
    let forged = SignedPosition::sign(&device, channel("ships"), 99, 99);
    assert!(matches!(read(forged.encoded()), Err(PositionError::Forged(_))));
}

#[test]
fn a_later_life_of_the_hub_is_newer_whatever_its_commits() {
    let installation = Installation::create(1_893_456_000_000).unwrap();
    let signed = |incarnation, commit| {
        let hub = WriterIdentity::for_hub([7; 32], incarnation, installation.root()).unwrap();
        SignedPosition::sign(&hub, channel("ships"), 1, commit)
    };
    assert!(signed(3, 2).is_newer_than(&signed(3, 1)) && !signed(3, 1).is_newer_than(&signed(3, 1)));
    assert!(signed(4, 0).is_newer_than(&signed(3, 9)));
}
