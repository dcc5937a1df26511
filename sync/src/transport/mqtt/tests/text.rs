//! Frames, topics and addresses, as they are written and read back.

use super::*;

#[test]
fn frames_survive_their_bytes_and_nothing_else_is_one() {
    let bodies = [
        Body::Open,
        Body::Data { offset: 1 << 40, consumed: 7, data: Bytes::from_static(b"data") },
        Body::Ack { consumed: u64::MAX },
        Body::Probe { sent: 3 },
        Body::Close { reason: CloseReason::Busy },
    ];
    for body in bodies {
        let frame = Frame { session: [5; 16], body };
        let bytes = frame.encode();
        assert_eq!(Frame::decode(&bytes), Some(frame));
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(Frame::decode(&longer).is_none() || bytes[1] == 2);
        for length in 0..bytes.len() {
            let cut = Frame::decode(&bytes.slice(..length));
            assert!(cut.is_none() || bytes[1] == 2, "cut to {length} bytes");
        }
        let mut newer = bytes.to_vec();
        newer[0] = 2;
        assert_eq!(Frame::decode(&newer.into()), None);
    }
    assert_eq!(Frame::decode(&Bytes::from(vec![1; frame::FRAME_BYTES_MAX + 1])), None);
}

/// Version 1 as it was shipped.
#[test]
fn golden_frame_version_1() {
    let data = Body::Data { offset: 258, consumed: 3, data: Bytes::from_static(b"data") };
    let bytes = Frame { session: [5; 16], body: data }.encode();
    let expected = [&[1, 2][..], &[5; 16], &[0, 0, 0, 0, 0, 0, 1, 2], &[0, 0, 0, 0, 0, 0, 0, 3], b"data"].concat();
    assert_eq!(bytes, expected);
    let probe = Frame { session: [5; 16], body: Body::Probe { sent: 1 } }.encode();
    assert_eq!(probe, [&[1, 4][..], &[5; 16], &[0, 0, 0, 0, 0, 0, 0, 1]].concat());
}

#[test]
fn topics_are_read_back_strictly() {
    let installation = InstallationId::of(&Site::new().installation.root().public());
    let hub = HubName::only();
    let heard = |topic: &str| Heard::of(&installation, &hub, topic);
    for party in [Party::Device(node("edge-1.site")), Party::enrolling([0xab; 16])] {
        let (open, up, gone) = (party.open(&installation), party.up(&installation, &hub), party.gone(&installation));
        for (topic, outside_stream) in [(&open, true), (&up, false), (&gone, true)] {
            assert_eq!(heard(topic), Some(Heard { party: party.clone(), outside_stream }), "{topic}");
            assert_eq!(heard(&format!("{topic}/x")), None);
            assert_eq!(heard(&format!("/{topic}")), None);
        }
        let down = party.down(&installation, &hub);
        assert_eq!(heard(&down), None);
        assert_eq!(party.hub_of_down(&installation, &down), Some(hub.clone()));
        assert_eq!(party.hub_of_down(&installation, &up), None);
        assert_eq!(party.hub_of_down(&installation, &format!("{down}/x")), None);
        assert_eq!(Party::Device(node("edge-2")).hub_of_down(&installation, &down), None);
        // A stream of another hub is not heard.
        assert_eq!(heard(&up.replace("/up/1", "/up/2")), None);
        assert!(party.client_id(&installation).starts_with("flotilla-"));
    }
    for topic in [
        format!("flotilla/v2/{installation}/d/edge-1/open"),
        format!("flotilla/v2/{installation}/d/system:hub:1/open"),
        format!("flotilla/v2/{installation}/e/{}/open", "ab".repeat(16)),
        format!("flotilla/v2/{installation}/e/flotilla-{}/open", "AB".repeat(16)),
        format!("flotilla/v1/{installation}/d/system:node:edge-1/open"),
        "flotilla/v2/other/d/system:node:edge-1/open".to_owned(),
    ] {
        assert_eq!(heard(&topic), None, "{topic}");
    }
}

#[test]
fn broker_addresses_are_parsed_and_hide_their_password() {
    let url = BrokerUrl::parse("mqtt://user:p@ss:word@broker.example:1884/").unwrap();
    assert_eq!((url.host(), url.port(), url.login()), ("broker.example", 1884, Some(("user", "p@ss:word"))));
    assert_eq!(format!("{url} {url:?}"), "mqtt://broker.example:1884 BrokerUrl(mqtt://broker.example:1884)");
    assert_eq!(BrokerUrl::parse("mqtt://[::1]").unwrap().to_string(), "mqtt://[::1]:1883");
    let pinned = BrokerUrl::parse(&format!("mqtts://broker?version=3.1.1&pin={}", "ab:".repeat(31) + "ab")).unwrap();
    assert_eq!((pinned.to_string().as_str(), pinned.version()), ("mqtts://broker:8883", Some(Version::V311)));
    assert_eq!(pinned.trust(), Some(&Trust::Pin([0xab; 32])));
    let file = BrokerUrl::parse("ssl://broker:9/?ca=/etc/broker.pem").unwrap();
    assert_eq!(
        (file.port(), file.version(), file.trust()),
        (9, None, Some(&Trust::File("/etc/broker.pem".to_owned())))
    );
    let split = BrokerUrl::parse("mqtts://broker?ca=/x&enrol=8884").unwrap();
    assert_eq!((split.port(), split.for_strangers().port(), file.for_strangers().port()), (8883, 8884, 9));
    for (text, part) in [
        ("mqtts://broker?enrol=0", "behind enrol is not valid"),
        ("broker:1883", "the scheme is not mqtt"),
        ("mqtt://broker?version=6", "the version is neither 5 nor 3.1.1"),
        ("mqtt://broker?pin=00", "the pin is no SHA-256"),
        ("mqtt://broker?ca=/x", "ca and pin belong to mqtts"),
        ("mqtts://broker?speed=1", "may stand version"),
        ("mqtt://", "host is missing"),
        ("mqtt://host:0", "port is not valid"),
        ("mqtt://host:x", "port is not valid"),
        ("mqtt://[::1", "bracket"),
        ("mqtt://u:secret@ho st", "host is missing or not valid"),
    ] {
        let error = BrokerUrl::parse(text).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{text}: {error}");
    }
}
