use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;
use crate::transport::fixture::{DAY_MS, NOW_MS, Site, at, node};

#[test]
fn node_names_are_rfc_1123_subdomains() {
    let longest = format!("{}.b", "a".repeat(251));
    for valid in ["a", "edge-1", "1", "a.b-c.d", longest.as_str()] {
        assert_eq!(NodeName::parse(valid).unwrap().as_str(), valid);
    }
    let too_long = "a".repeat(254);
    for invalid in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", "a+", "#", "ä", "a b", too_long.as_str()] {
        assert!(NodeName::parse(invalid).is_err(), "{invalid:?}");
    }
    assert!(serde_json::from_str::<NodeName>("\"a/b\"").is_err());
}

#[test]
fn signatures_hold_for_one_domain_key_and_body() {
    let key = SigningKey::generate().unwrap();
    let signature = key.sign("record/1", b"body");
    assert_eq!(key.public().verify("record/1", b"body", &signature), Ok(()));
    assert_eq!(key.public().verify("record/2", b"body", &signature), Err(BadSignature));
    assert_eq!(key.public().verify("record/1", b"bodY", &signature), Err(BadSignature));
    assert_eq!(key.public().verify("record/1", b"body", &signature[..63]), Err(BadSignature));
    let other = SigningKey::generate().unwrap();
    assert_eq!(other.public().verify("record/1", b"body", &signature), Err(BadSignature));
    assert_eq!(SigningKey::from_seed(key.seed()).unwrap().public(), key.public());
}

#[test]
fn sealed_texts_open_with_their_key_and_purpose_alone() {
    let key = SealingKey::generate().unwrap();
    let public = key.public().unwrap();
    let sealed = seal(&public, b"secret/uid-1", b"the plaintext").unwrap();
    assert_eq!(open(&SealingKey::from_bytes(key.to_bytes()), b"secret/uid-1", &sealed).unwrap(), b"the plaintext");
    assert!(!sealed.windows(13).any(|window| window == b"the plaintext"));
    assert_eq!(open(&key, b"secret/uid-2", &sealed), Err(SealingError::DoesNotOpen));
    assert_eq!(open(&SealingKey::generate().unwrap(), b"secret/uid-1", &sealed), Err(SealingError::DoesNotOpen));
    for index in 1..sealed.len() {
        let mut altered = sealed.clone();
        altered[index] ^= 1;
        assert!(open(&key, b"secret/uid-1", &altered).is_err(), "byte {index} altered");
    }
    for length in 0..sealed.len() {
        assert!(open(&key, b"secret/uid-1", &sealed[..length]).is_err(), "cut to {length} bytes");
    }
    let mut newer = sealed;
    newer[0] = 9;
    assert_eq!(open(&key, b"secret/uid-1", &newer), Err(SealingError::Version { version: 9 }));
    assert_ne!(seal(&public, b"", b"x").unwrap(), seal(&public, b"", b"x").unwrap());
    let large = vec![0; (2 << 20) + 1];
    assert!(matches!(seal(&public, b"", &large), Err(SealingError::TooLarge { .. })));
}

#[test]
fn an_installation_survives_its_storage() {
    let site = Site::new();
    let text = serde_json::to_string(&site.installation.to_material()).unwrap();
    let again = Installation::from_material(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(again.pin(), site.installation.pin());
    assert_eq!(again.id(), site.installation.id());
    // What the restored one signs, the first one's anchors accept.
    let request = SessionRequest::generate(&node("edge-1")).unwrap();
    again.issue_session(&request.csr, &node("edge-1"), NOW_MS).unwrap();

    let mut mixed = site.installation.to_material();
    mixed.authority_key_pem = Site::new().installation.to_material().authority_key_pem;
    let error = Installation::from_material(&mixed).unwrap_err().to_string();
    assert!(error.contains("its key is not the one in its certificate"), "{error}");
    mixed.authority_pem = "nonsense".to_owned();
    assert!(Installation::from_material(&mixed).is_err());
}

#[test]
fn session_certificates_name_exactly_their_node_and_last_thirty_days() {
    let site = Site::new();
    let credentials = site.credentials("edge-1", NOW_MS);
    assert_eq!(Subject::parse(&credentials.chain[0]).unwrap(), Subject::Node(node("edge-1")));
    let (from_ms, to_ms) = credentials.validity_ms().unwrap();
    assert_eq!(to_ms, NOW_MS + 30 * DAY_MS);
    assert!(from_ms < NOW_MS);
    let renew_ms = credentials.renew_after_ms().unwrap();
    assert!((NOW_MS + 19 * DAY_MS..NOW_MS + 21 * DAY_MS).contains(&renew_ms));

    assert_eq!(peer_node(Some(&credentials.chain), NOW_MS).unwrap(), node("edge-1"));
    assert!(matches!(peer_node(Some(&credentials.chain), NOW_MS + 31 * DAY_MS), Err(CertificateError::Expired { .. })));
    assert!(matches!(peer_node(None, NOW_MS), Err(CertificateError::Absent)));

    let stored = Credentials::from_material(&credentials.to_material()).unwrap();
    assert_eq!(stored.chain, credentials.chain);
    assert_eq!(stored.key.secret_der(), credentials.key.secret_der());
}

#[test]
fn subjects_that_almost_name_a_node_are_refused() {
    let site = Site::new();
    let user = |name: &str, group: Option<&str>| {
        let credentials = site.installation.issue_user(name, group, NOW_MS, DAY_MS).unwrap();
        Subject::parse(&credentials.chain[0])
    };
    assert_eq!(
        user("admin", Some("system:masters")).unwrap(),
        Subject::User { name: "admin".to_owned(), groups: vec!["system:masters".to_owned()] }
    );
    assert_eq!(user("system:node:edge-1", Some("system:nodes")).unwrap(), Subject::Node(node("edge-1")));
    for (name, group) in [
        ("system:node:edge-1", None),
        ("system:node:edge-1", Some("system:masters")),
        ("admin", Some("system:nodes")),
        ("system:node:", Some("system:nodes")),
        ("system:node:Edge", Some("system:nodes")),
        ("system:node:a/b", Some("system:nodes")),
    ] {
        assert!(user(name, group).is_err(), "{name} in {group:?}");
    }
}

#[test]
fn requests_for_another_node_or_without_proof_are_refused() {
    let site = Site::new();
    let request = SessionRequest::generate(&node("edge-1")).unwrap();
    let refused = |csr: &[u8], name: &str| site.installation.issue_session(csr, &node(name), NOW_MS).unwrap_err();
    let error = refused(&request.csr, "edge-2").to_string();
    assert!(error.contains("names node edge-1, expected edge-2"), "{error}");

    // The last byte belongs to the signature.
    let mut forged = request.csr.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(
        refused(&forged, "edge-1"),
        IdentityError::Certificate(CertificateError::NoProof | CertificateError::Malformed { .. })
    ));
    let mut longer = request.csr.clone();
    longer.push(0);
    refused(&longer, "edge-1");
    refused(&vec![0x30; 9000], "edge-1");
    for length in 0..request.csr.len() {
        refused(&request.csr[..length], "edge-1");
    }

    let theirs = SessionRequest::generate(&node("edge-1")).unwrap();
    let leaf = site.installation.issue_session(&theirs.csr, &node("edge-1"), NOW_MS).unwrap();
    assert!(request.certified(vec![leaf], &node("edge-1")).is_err(), "a certificate over another key");
}

#[test]
fn device_certificates_are_the_roots_word() {
    let site = Site::new();
    let keys = DeviceKeys::generate().unwrap();
    let root = site.installation.root().public();
    let certificate = site
        .installation
        .certify_device(&node("edge-1"), "uid-1", keys.signing.public(), keys.sealing.public().unwrap(), NOW_MS)
        .unwrap();
    let bytes = certificate.encode();
    assert_eq!(DeviceCertificate::verify(&bytes, &root).unwrap(), certificate);
    assert!(DeviceCertificate::verify(&bytes, &Site::new().installation.root().public()).is_err());
    for index in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[index] ^= 1;
        let read = DeviceCertificate::verify(&altered, &root);
        assert!(read.is_err() || read.unwrap() == certificate, "byte {index} altered");
    }
    assert!(DeviceCertificate::verify(&vec![0; 5000], &root).is_err());
    let stored = DeviceKeys::from_material(&keys.to_material()).unwrap();
    assert_eq!(stored.signing.public(), keys.signing.public());
    assert_eq!(stored.sealing.public().unwrap(), keys.sealing.public().unwrap());
}

#[test]
fn a_floored_clock_never_reads_below_its_floor() {
    let clock = FlooredClock::new(|| 1_000, 5_000);
    assert_eq!((clock.now_ms(), clock.floor_ms()), (5_000, 5_000));
    clock.raise(9_000);
    clock.raise(6_000);
    assert_eq!((clock.now_ms(), clock.floor_ms()), (9_000, 9_000));
    let ahead = at(20_000);
    assert_eq!((ahead.now_ms(), ahead.floor_ms()), (20_000, 0));
}

#[test]
fn a_timeless_authority_holds_at_any_time() {
    let authority = Installation::create_timeless().unwrap();
    let server = authority.issue_server_timeless(&["localhost".to_owned()]).unwrap();
    let user = authority.issue_user_timeless("technician", Some("system:masters")).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.authority().clone()).unwrap();
    let roots = std::sync::Arc::new(roots);
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let users = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    for year in [0, 56, 129, 8_000] {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(year * 365 * DAY_MS));
        let verified = servers.verify_server_cert(&server.chain[0], &[], &name, &[], now);
        assert!(verified.is_ok(), "the server in {}: {verified:?}", 1970 + year);
        let verified = users.verify_client_cert(&user.chain[0], &[], now);
        assert!(verified.is_ok(), "the user in {}: {verified:?}", 1970 + year);
    }
}
