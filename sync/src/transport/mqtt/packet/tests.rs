use proptest::prelude::*;

use super::*;

fn message(topic: &str, payload: &'static [u8], keep: Keep) -> Publish {
    Publish { topic: topic.to_owned(), payload: Bytes::from_static(payload), keep }
}

fn decoded(version: Version, bytes: &[u8]) -> Result<Option<Packet>, Malformed> {
    decode(version, &mut BytesMut::from(bytes), 1 << 16)
}

/// Bytes of the specifications' own examples and of mosquitto.
#[test]
fn packets_are_those_of_the_specification() {
    let mut out = BytesMut::new();
    let mut connect = Connect {
        version: Version::V311,
        client_id: "a",
        keep_alive_s: 120,
        login: Some(("u", "p")),
        will: &message("w", b"x", Keep::No),
        packet_bytes_max: 16_384,
    };
    connect.encode(&mut out).unwrap();
    assert_eq!(&out[..], b"\x10\x19\0\x04MQTT\x04\xc6\0\x78\0\x01a\0\x01w\0\x01x\0\x01u\0\x01p");
    out.clear();
    connect.version = Version::V5;
    connect.login = None;
    connect.encode(&mut out).unwrap();
    let properties = b"\x0a\x11\0\0\0\0\x27\0\0\x40\0";
    let expected = [&b"\x10\x1f\0\x04MQTT\x05\x06\0\x78"[..], properties, b"\0\x01a\0\0\x01w\0\x01x"].concat();
    assert_eq!(&out[..], &expected[..]);
    out.clear();
    subscribe(Version::V5, &["t".to_owned()], &mut out).unwrap();
    assert_eq!(&out[..], b"\x82\x07\0\x01\0\0\x01t\0");
    out.clear();
    let hi = message("t", b"hi", Keep::No);
    publish(Version::V311, hi.clone(), None, 60, &mut out).unwrap();
    publish(Version::V5, hi.clone(), Some((1, Alias::New)), 60, &mut out).unwrap();
    publish(Version::V5, hi, Some((1, Alias::Known)), 60, &mut out).unwrap();
    let with = b"\x30\x0e\0\x01t\x08\x02\0\0\0\x3c\x23\0\x01hi";
    let without = b"\x30\x0d\0\0\x08\x02\0\0\0\x3c\x23\0\x01hi";
    assert_eq!(&out[..], &[&b"\x30\x05\0\x01thi"[..], with, without].concat()[..]);
    out.clear();
    // What is kept does not expire; an empty message takes it away.
    publish(Version::V5, message("t", b"hi", Keep::Retained), None, 60, &mut out).unwrap();
    publish(Version::V311, message("t", b"", Keep::Retained), None, 60, &mut out).unwrap();
    assert_eq!(&out[..], b"\x31\x06\0\x01t\0hi\x31\x03\0\x01t");
    out.clear();
    unsubscribe(Version::V5, "t".to_owned(), &mut out).unwrap();
    unsubscribe(Version::V311, "t".to_owned(), &mut out).unwrap();
    assert_eq!(&out[..], b"\xa2\x06\0\x01\0\0\x01t\xa2\x05\0\x01\0\x01t");
    out.clear();
    connect.version = Version::V311;
    let kept = message("w", b"", Keep::Retained);
    connect.will = &kept;
    connect.encode(&mut out).unwrap();
    assert_eq!(out[9] & 0b0010_0100, 0b0010_0100, "the will is kept too");
}

#[test]
fn answers_are_read_in_both_versions() {
    let accepted = decoded(Version::V5, b"\x20\x0b\0\0\x08\x22\0\x0a\x13\0\x1e\x24\x01").unwrap();
    let expected = ConnAck { aliases_max: 10, keep_alive_s: Some(30), shares: true, ..ConnAck::default() };
    assert_eq!(accepted, Some(Packet::ConnAck(expected)));
    let Some(Packet::ConnAck(alone)) = decoded(Version::V5, b"\x20\x05\0\0\x02\x2a\0").unwrap() else { panic!() };
    assert!(!alone.shares && alone.refused.is_none());
    for (version, bytes) in [(Version::V5, &b"\x20\x02\0\x01"[..]), (Version::V311, b"\x20\x02\0\x01")] {
        let Some(Packet::ConnAck(other)) = decoded(version, bytes).unwrap() else { panic!("{bytes:?}") };
        assert!(other.is_other_version && other.refused.is_some(), "{other:?}");
    }
    let Some(Packet::ConnAck(refused)) = decoded(Version::V5, b"\x20\x08\0\x87\x05\x1f\0\x02no").unwrap() else {
        panic!()
    };
    assert_eq!(refused.refused.as_deref(), Some("not authorized (no)"));
    assert!(!refused.is_other_version);
    let granted = |version, bytes: &[u8]| match decoded(version, bytes).unwrap() {
        Some(Packet::SubAck { refused }) => refused.is_none(),
        other => panic!("{other:?}"),
    };
    assert!(!granted(Version::V311, b"\x90\x04\0\x01\0\x80") && granted(Version::V5, b"\x90\x04\0\x01\0\0"));
    assert!(!granted(Version::V5, b"\x90\x04\0\x01\0\x87"));
    let message = Message { topic: "t".to_owned(), payload: Bytes::from_static(b"hi"), retain: true };
    assert_eq!(decoded(Version::V5, b"\x31\x06\0\x01t\0hi").unwrap(), Some(Packet::Message(message.clone())));
    assert_eq!(decoded(Version::V311, b"\x31\x05\0\x01thi").unwrap(), Some(Packet::Message(message)));
    let taken = Packet::Disconnect { why: "session taken over: two devices with one identity?".to_owned() };
    assert_eq!(decoded(Version::V5, b"\xe0\x01\x8e").unwrap(), Some(taken));
    assert!(decoded(Version::V5, b"\x33\x08\0\x01t\0\x01\0hi").is_err(), "a quality nobody asked for");
    assert!(decoded(Version::V5, b"\x30\xff\xff\xff\x7f").is_err(), "larger than allowed, before it is kept");
    assert!(decoded(Version::V5, b"\x30\xff\xff\xff\xff\x01").is_err());
    // Acknowledgements of what was never sent are passed over.
    assert_eq!(decoded(Version::V5, b"\x40\x02\0\x01\xd0\0").unwrap(), Some(Packet::PingResp));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn hostile_bytes_never_panic_and_a_cut_packet_waits(bytes in prop::collection::vec(any::<u8>(), 0..80), old in any::<bool>()) {
        let version = if old { Version::V311 } else { Version::V5 };
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decode(version, &mut buffer, 64) {}
        // And well framed, so that all of it is looked at.
        for kind in [0x20, 0x30, 0x31, 0x40, 0x82, 0x90, 0xd0, 0xe0, 0xf0] {
            let mut framed = BytesMut::from(&[kind, u8::try_from(bytes.len()).unwrap()][..]);
            framed.extend_from_slice(&bytes);
            decode(version, &mut framed, 100).map(drop).unwrap_or_default();
        }
        let mut whole = BytesMut::new();
        let sent = Publish { topic: "topic".to_owned(), payload: Bytes::from(bytes.clone()), keep: Keep::No };
        publish(version, sent, None, 60, &mut whole).unwrap();
        for length in 0..whole.len() {
            prop_assert_eq!(decoded(version, &whole[..length]), Ok(None));
        }
        prop_assert!(matches!(decoded(version, &whole), Ok(Some(Packet::Message(message))) if message.payload == bytes));
    }
}
