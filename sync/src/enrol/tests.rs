use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::identity::{DeviceCertificate, DeviceKeys, SealingKey, SigningKey, open};
use crate::transport::fixture::{Admits, NOW_MS, Site, labels, node, serve as serve_site};
use crate::transport::{EnrolStream, Listener, Target, Transport};

fn introduction(site: &Site, token: &Token, name: &str) -> Introduction {
    Introduction {
        proof: Proof::Token(token.proof()),
        node: node(name),
        labels: labels(),
        pin: site.installation.pin(),
        root: site.installation.root().public(),
    }
}

#[test]
fn tokens_survive_their_text() {
    let site = Site::new();
    let (_, mut token) = Admits::new(&site, vec!["hub.example:7443".to_owned()], NOW_MS + 1_000);
    assert_eq!(Token::parse(&format!("  {}\n", token.encode())).unwrap(), token);
    token.node = Some(node("edge-1"));
    assert_eq!(Token::parse(&token.encode()).unwrap(), token);
    assert!(token.encode().starts_with("flt1."));
    assert_eq!(token.installation(), site.installation.id());
}

#[test]
fn texts_that_are_no_token_say_why() {
    let (_, token) = Admits::new(&Site::new(), vec!["hub:7443".to_owned()], NOW_MS);
    let text = token.encode();
    let message = |text: &str| Token::parse(text).unwrap_err().to_string();
    assert!(message("").contains("begins with \"flt1.\""));
    assert!(message("K10abc::server:1").contains("begins with"));
    assert!(message("flt2.AAAA").contains("newer version (flt2)"));
    assert!(message("flt1.").contains("damaged"));
    assert!(message("flt1.not base64!").contains("damaged"));
    assert!(message(&format!("flt1.{}", "A".repeat(5_000))).contains("5005 bytes long"));
    for length in 5..text.len() {
        assert!(Token::parse(&text[..length]).is_err(), "cut to {length} bytes");
    }
    let mut none = token.clone();
    (none.quic, none.mqtt) = (Vec::new(), Vec::new());
    assert!(message(&none.encode()).contains("no address"));
    let nested = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(vec![0x81; 3_000]);
    assert!(message(&format!("flt1.{nested}")).contains("damaged"), "deep nesting");
}

#[test]
fn a_token_record_admits_whom_it_should() {
    let (admits, token) = Admits::new(&Site::new(), vec!["hub:1".to_owned()], NOW_MS);
    let record = admits.record.lock().unwrap().clone();
    let key = |seed: u8| SigningKey::from_seed([seed; 32]).unwrap().public();
    let used = TokenRecord { used_by: vec![(node("edge-1"), key(1))], ..record.clone() };
    let restricted = TokenRecord { node: Some(node("edge-1")), ..record.clone() };
    let twice = TokenRecord { uses_max: 2, ..used.clone() };
    let wrong = TokenProof { secret: [9; 32], ..token.proof() };
    let hour_ms = 3_600_000;

    type Case<'a> = (&'a str, Option<&'a TokenRecord>, TokenProof, u64, &'a str, u8, Result<TokenUse, &'a str>);
    let cases: Vec<Case<'_>> = vec![
        ("first use", Some(&record), token.proof(), NOW_MS, "edge-1", 1, Ok(TokenUse::First)),
        ("unknown", None, token.proof(), NOW_MS, "edge-1", 1, Err("unknown to this hub")),
        ("wrong secret", Some(&record), wrong.clone(), NOW_MS, "edge-1", 1, Err("secret is wrong")),
        ("wrong secret of an expired one", Some(&record), wrong, NOW_MS * 2, "edge-1", 1, Err("secret is wrong")),
        ("expired", Some(&record), token.proof(), NOW_MS + 5_000, "edge-1", 1, Err("expired 5 s ago")),
        (
            "another node",
            Some(&restricted),
            token.proof(),
            NOW_MS,
            "edge-2",
            1,
            Err("admits only node edge-1, not edge-2"),
        ),
        ("its node", Some(&restricted), token.proof(), NOW_MS, "edge-1", 1, Ok(TokenUse::First)),
        ("used up", Some(&used), token.proof(), NOW_MS, "edge-2", 2, Err("used by 1 of 1 devices")),
        ("used up, same name", Some(&used), token.proof(), NOW_MS, "edge-1", 2, Err("used by 1 of 1 devices")),
        ("answer lost", Some(&used), token.proof(), NOW_MS, "edge-1", 1, Ok(TokenUse::Again)),
        ("answer lost at the end", Some(&used), token.proof(), NOW_MS + hour_ms, "edge-1", 1, Ok(TokenUse::Again)),
        ("too late even so", Some(&used), token.proof(), NOW_MS + hour_ms + 1, "edge-1", 1, Err("expired 3600 s ago")),
        ("second use of two", Some(&twice), token.proof(), NOW_MS, "edge-2", 2, Ok(TokenUse::First)),
    ];
    for (case, record, proof, now_ms, name, seed, expected) in cases {
        let found = TokenRecord::check(record, &proof, now_ms, &node(name), &key(seed));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{case}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{case}: {error}"),
            (found, expected) => panic!("{case}: {found:?}, expected {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_device_enrols_over_memory_and_again_when_the_answer_was_lost() {
    let site = Site::new();
    let (admits, token) = Admits::new(&site, vec!["hub:1".to_owned()], NOW_MS);
    let (listener, door) = Listener::memory();
    let serving = serve_site(listener, &site, Arc::clone(&admits));
    let target = Target::Memory(door);
    let keys = DeviceKeys::generate().unwrap();
    let connector = site.enrol_connector();
    let introduction = introduction(&site, &token, "edge-1");
    for attempt in 1..=2 {
        let stream = connector.connect(&target).await.unwrap();
        let enrolment = enrol(stream, &introduction, &keys).await.unwrap();
        assert_eq!(enrolment.certificate.node, node("edge-1"));
        assert_eq!((enrolment.incarnation, enrolment.hub_time_ms), (7, NOW_MS));
        assert_eq!(admits.decisions.load(Ordering::Relaxed), attempt);
    }
    assert_eq!(admits.record.lock().unwrap().used_by.len(), 1);

    let stranger = DeviceKeys::generate().unwrap();
    let stream = connector.connect(&target).await.unwrap();
    let error = enrol(stream, &introduction, &stranger).await.unwrap_err();
    let EnrolError::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!(refusal.kind, RefusalKind::Token);
    assert!(refusal.message.contains("has been used by 1 of 1 devices"), "{}", refusal.message);
    serving.abort();
}

#[tokio::test]
async fn a_device_enrols_again_by_its_key_after_its_certificate_expired() {
    let site = Site::new();
    let (admits, token) = Admits::new(&site, vec!["hub:1".to_owned()], NOW_MS);
    let (listener, door) = Listener::memory();
    let serving = serve_site(listener, &site, admits);
    let target = Target::Memory(door);
    let connector = site.enrol_connector();
    let keys = DeviceKeys::generate().unwrap();
    let first = introduction(&site, &token, "edge-1");
    let enrolment = enrol(connector.connect(&target).await.unwrap(), &first, &keys).await.unwrap();
    let enrolment = Enrolment::from_material(&enrolment.to_material()).unwrap();

    let again = enrolment.introduction(labels());
    let renewed = enrol(connector.connect(&target).await.unwrap(), &again, &keys).await.unwrap();
    assert_ne!(renewed.credentials.chain, enrolment.credentials.chain);

    // Another key cannot use the certificate, and the key cannot take another name.
    let thief = DeviceKeys::generate().unwrap();
    let error = enrol(connector.connect(&target).await.unwrap(), &again, &thief).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(refusal) if refusal.message.contains("names another node or key")));
    let renamed = Introduction { node: node("edge-2"), ..again };
    let error = enrol(connector.connect(&target).await.unwrap(), &renamed, &keys).await.unwrap_err();
    assert!(matches!(&error, EnrolError::Refused(refusal) if refusal.message.contains("names another node or key")));
    serving.abort();
}

#[tokio::test]
async fn hostile_requests_get_an_answer_and_no_decision() {
    let site = Site::new();
    let (admits, token) = Admits::new(&site, vec!["hub:1".to_owned()], NOW_MS);
    let root = site.installation.root().public();
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("too large", u32::MAX.to_be_bytes().to_vec()),
        ("no CBOR", [&4_u32.to_be_bytes()[..], b"\xff\xff\xff\xff"].concat()),
        ("deep nesting", [&4000_u32.to_be_bytes()[..], &[0x81; 4000]].concat()),
    ];
    for (case, bytes) in hostile {
        let (stream, mut theirs) = streams();
        theirs.write_all(&bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        let error = serve(stream, &root, &*admits).await.unwrap_err().to_string();
        assert!(error.contains("not valid"), "{case}: {error}");
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("not valid"), "{case}");
    }
    let (stream, theirs) = streams();
    drop(theirs);
    assert!(matches!(serve(stream, &root, &*admits).await, Err(ServeError::Interrupted { .. })));

    // A request that was made for another connection.
    let (mut stream, theirs) = streams();
    stream.binding = [1; 32];
    let (reader, writer) = tokio::io::split(theirs);
    let device = EnrolStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        binding: [2; 32],
        transport: Transport::Memory,
        remote: String::new(),
    };
    let keys = DeviceKeys::generate().unwrap();
    let introduction = introduction(&site, &token, "edge-1");
    let (served, enrolled) = tokio::join!(serve(stream, &root, &*admits), enrol(device, &introduction, &keys));
    assert!(served.unwrap_err().to_string().contains("not signed by its device key for this connection"));
    assert!(matches!(enrolled, Err(EnrolError::Refused(_))));
    assert_eq!(admits.decisions.load(Ordering::Relaxed), 0);
}

fn streams() -> (EnrolStream, tokio::io::DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(256 * 1024);
    let (reader, writer) = tokio::io::split(ours);
    let stream = EnrolStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        binding: [0; 32],
        transport: Transport::Memory,
        remote: "test".to_owned(),
    };
    (stream, theirs)
}

#[tokio::test]
async fn a_device_enrols_over_quic_and_holds_a_session() {
    let site = Site::new();
    let listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &site.door).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (admits, token) = Admits::new(&site, vec![address.clone()], NOW_MS);
    let serving = serve_site(listener, &site, admits);
    let target = Target::Quic(address);
    let keys = DeviceKeys::generate().unwrap();
    let stream = site.enrol_connector().connect(&target).await.unwrap();
    let enrolment = enrol(stream, &introduction(&site, &token, "edge-1"), &keys).await.unwrap();
    let mut pipe = site.connector_with("edge-1", &enrolment.credentials).connect(&target).await.unwrap();
    crate::transport::fixture::check_echo(&mut pipe, "edge-1", 1_000).await;
    serving.abort();
}

/// Version 1 as it was shipped: these texts must be read for ever.
#[test]
fn golden_version_1() {
    let root = SigningKey::from_seed([3; 32]).unwrap();
    let token = Token {
        quic: vec!["hub.example:7443".to_owned()],
        mqtt: vec!["mqtt://broker.example:1883".to_owned()],
        pin: [1; 32],
        root: root.public(),
        id: "0123456789".to_owned(),
        secret: [2; 32],
        expires_ms: NOW_MS,
        node: Some(node("edge-1")),
        sealing: None,
    };
    assert_eq!(token.encode(), TOKEN_1);
    assert_eq!(Token::parse(TOKEN_1).unwrap(), token);

    let bytes = base64::engine::general_purpose::STANDARD.decode(DEVICE_CERTIFICATE_1).unwrap();
    let certificate = DeviceCertificate::verify(&bytes, &root.public()).unwrap();
    assert_eq!((certificate.node.as_str(), certificate.node_uid.as_str()), ("edge-1", "uid-1"));
    assert_eq!((certificate.key, certificate.issued_ms), (SigningKey::from_seed([4; 32]).unwrap().public(), NOW_MS));

    let sealed = base64::engine::general_purpose::STANDARD.decode(SEALED_1).unwrap();
    assert_eq!(open(&SealingKey::from_bytes([6; 32]), b"secret/uid-1", &sealed).unwrap(), b"plaintext");
}

const TOKEN_1: &str = "flt1.qGFxgXBodWIuZXhhbXBsZTo3NDQzYW2BeBptcXR0Oi8vYnJva2VyLmV4YW1wbGU6MTg4M2FjWCABAQEBAQEBAQEBAQEBAQE\
    BAQEBAQEBAQEBAQEBAQEBAWFyWCDtSSjGKNHCxurpAziQWZVhKVknOlxj-TY2wUYUrIc30WFpajAxMjM0NTY3ODlhc1ggAgICAgI\
    CAgICAgICAgICAgICAgICAgICAgICAgICAgJhZRsAAAG42sW0AGFuZmVkZ2UtMQ";
const DEVICE_CERTIFICATE_1: &str = "glh6pmF2AWRub2RlZmVkZ2UtMWN1aWRldWlkLTFja2V5WCDKk6wXBRhwcdZ7g8f/Dv6BCOjsRTBXXXcmh5Mz29q+fGdzZWFsaW5n\
    WCD1stbmD5R34xDCmC2qpskTbBCKF3fFlH5Ej6N9aBdFV2Zpc3N1ZWQbAAABuNrFtABYQLfHNZv6587DfzqB+DXpbuLJI5fbviTq\
    zRdoz0noxck9XO/3ZIrdm3pAjV7Hh6XD7sm1ByJ6VMisJF7W/mnGWwg=";
const SEALED_1: &str = "AVaPdw8Ah9hIhltPzWA2Y6tOWNvMz4/wSF01/3hGqlw46/cZ/MeZDSne36JOxSGmjAIfdM4ZFoi/zw==";
