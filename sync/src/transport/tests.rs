use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::fixture::{Admits, DAY_MS, NOW_MS, Site, at, check_echo, node, serve};
use super::*;
use crate::identity::FlooredClock;

/// A served QUIC door.
fn quic_site(site: &Site) -> (Target, tokio::task::JoinHandle<()>) {
    let listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &site.door).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (admits, _token) = Admits::new(site, Vec::new(), NOW_MS);
    (Target::Quic(address), serve(listener, site, admits))
}

#[tokio::test]
async fn memory_pipes_carry_bytes_and_faults() {
    let site = Site::new();
    let (listener, door) = Listener::memory();
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    let target = Target::Memory(door.clone());
    let mut pipe = connector.connect(&target).await.unwrap();
    assert_eq!((&pipe.peer, pipe.transport), (&PeerIdentity::Hub, Transport::Memory));
    check_echo(&mut pipe, "edge-1", 300_000).await;
    door.set_fault(Some(MemoryFault::Busy(7_000)));
    assert_eq!(connector.connect(&target).await.unwrap_err().retry_after_ms(), Some(7_000));
    door.set_fault(Some(MemoryFault::Unreachable));
    assert!(matches!(connector.connect(&target).await, Err(ConnectError::Unreachable { .. })));
    door.set_fault(None);
    connector.connect(&target).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn quic_pipes_carry_bytes_both_ways_and_resume() {
    let site = Site::new();
    let (target, serving) = quic_site(&site);
    let connector = site.connector("edge-1");
    for _ in 0..3 {
        let mut pipe = connector.connect(&target).await.unwrap();
        assert_eq!((&pipe.peer, pipe.transport), (&PeerIdentity::Hub, Transport::Quic));
        check_echo(&mut pipe, "edge-1", 2_000_000).await;
    }
    serving.abort();
}

/// Counts how often a certificate of the hub is judged.
#[derive(Debug, Default)]
struct Judged(std::sync::atomic::AtomicUsize);

impl TrustTime for Judged {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }

    fn floor_ms(&self) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        NOW_MS
    }
}

#[tokio::test]
async fn a_device_that_comes_back_resumes_and_is_known_for_who_it_is() {
    let site = Site::new();
    let (target, serving) = quic_site(&site);
    let judged = Arc::new(Judged::default());
    let time: Arc<dyn TrustTime> = judged.clone();
    let (root, authority) = (site.installation.root().public(), site.installation.authority());
    let connector =
        Connector::new(&site.credentials("edge-1", NOW_MS), authority, &root, node("edge-1"), &time).unwrap();
    for _ in 0..3 {
        let mut pipe = connector.connect(&target).await.unwrap();
        check_echo(&mut pipe, "edge-1", 1_000).await;
    }
    let handshakes = judged.0.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(handshakes, 1, "only the first of three connections shows certificates");
    serving.abort();
}

#[tokio::test]
async fn devices_that_share_a_socket_are_told_apart() {
    let site = Site::new();
    let (target, serving) = quic_site(&site);
    let Target::Quic(address) = &target else { panic!("quic") };
    let socket = SharedSocket::towards(address.parse().unwrap()).unwrap();
    let mut pipes = Vec::new();
    for name in ["edge-1", "edge-2", "edge-3"] {
        pipes.push((name, site.connector(name).through(socket.clone()).connect(&target).await.unwrap()));
    }
    for (name, pipe) in &mut pipes {
        check_echo(pipe, name, 100_000).await;
    }
    serving.abort();
}

#[tokio::test]
async fn a_quic_hub_that_stops_says_so() {
    let site = Site::new();
    let mut listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &site.door).unwrap();
    let target = Target::Quic(listener.local_addr().unwrap().to_string());
    let connector = site.connector("edge-1");
    let (pipe, incoming) = tokio::join!(connector.connect(&target), listener.accept());
    assert!(matches!(incoming, Some(Incoming::Session(_))));
    let mut pipe = pipe.unwrap();
    listener.close().await;
    assert!(pipe.reader.read_u8().await.unwrap_err().to_string().contains("connection lost"));
}

#[tokio::test]
async fn a_quic_device_that_leaves_ends_its_pipe_at_the_hub() {
    let site = Site::new();
    let mut listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &site.door).unwrap();
    let target = Target::Quic(listener.local_addr().unwrap().to_string());
    let connector = site.connector("edge-1");
    let (pipe, incoming) = tokio::join!(connector.connect(&target), listener.accept());
    let Some(Incoming::Session(mut theirs)) = incoming else { panic!("no session") };
    assert_eq!(theirs.peer, PeerIdentity::Device { node: node("edge-1") });
    drop(pipe.unwrap());
    let mut rest = Vec::new();
    // The end or an error: not silence.
    tokio::time::timeout(Duration::from_secs(60), theirs.reader.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap_or_default();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_apart() {
    let site = Site::new();
    let other = Site::new();
    let (target, serving) = quic_site(&site);

    let wrong_hub = other.connector("edge-1").connect(&target).await.unwrap_err();
    assert!(matches!(wrong_hub, ConnectError::NotTheHub { .. }), "{wrong_hub}");

    let root = site.installation.root().public();
    let authority = site.installation.authority();
    let with = |credentials: &Credentials, name: &str| {
        Connector::new(credentials, authority, &root, node(name), &at(NOW_MS)).unwrap()
    };
    let foreign = with(&other.credentials("edge-1", NOW_MS), "edge-1").connect(&target).await.unwrap_err();
    assert!(matches!(foreign, ConnectError::Refused { .. }), "{foreign}");

    let expired = site.credentials("edge-1", NOW_MS - 40 * DAY_MS);
    let expired = with(&expired, "edge-1").connect(&target).await.unwrap_err();
    assert!(matches!(expired, ConnectError::Refused { .. }), "{expired}");

    let user = site.installation.issue_user("admin", Some("system:masters"), NOW_MS, DAY_MS).unwrap();
    let user = with(&user, "edge-1").connect(&target).await.unwrap_err();
    assert!(matches!(&user, ConnectError::Refused { why, .. } if why.contains("system:node")), "{user}");

    let wrong_pin = EnrolConnector::new([7; 32], &root, &at(NOW_MS)).unwrap();
    let wrong_pin = wrong_pin.connect(&target).await.unwrap_err();
    assert!(matches!(wrong_pin, ConnectError::NotTheHub { .. }), "{wrong_pin}");

    // A server of the same authority that is not the fleet door: the API's certificate.
    let api = site.installation.issue_server(&["127.0.0.1".to_owned()], NOW_MS).unwrap();
    let impostor = Door::with_credentials(&site.installation, &api, at(NOW_MS)).unwrap();
    let listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &impostor).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let impostor = site.connector("edge-1").connect(&Target::Quic(address)).await.unwrap_err();
    assert!(matches!(impostor, ConnectError::NotTheHub { .. }), "{impostor}");
    serving.abort();
}

#[tokio::test]
async fn a_wrong_clock_does_not_lock_a_device_out_but_the_floor_holds() {
    let site = Site::new();
    let (target, serving) = quic_site(&site);
    let root = site.installation.root().public();
    let credentials = site.credentials("edge-1", NOW_MS);
    let connect = async |clock_ms: u64, floor_ms: u64| {
        let time: Arc<dyn TrustTime> = FlooredClock::new(move || clock_ms, floor_ms);
        let connector =
            Connector::new(&credentials, site.installation.authority(), &root, node("edge-1"), &time).unwrap();
        connector.connect(&target).await
    };
    connect(0, 0).await.unwrap();
    connect(0, NOW_MS - 400 * DAY_MS).await.unwrap();
    connect(NOW_MS * 2, NOW_MS).await.unwrap();
    let expired = connect(0, NOW_MS + 4_000 * DAY_MS).await.unwrap_err();
    assert!(matches!(expired, ConnectError::NotTheHub { .. }), "{expired}");
    serving.abort();
}

#[derive(Debug)]
struct Pacing {
    handshakes: bool,
    admit: Result<(), RetryAfter>,
}

impl Gate for Pacing {
    fn handshake(&self) -> bool {
        self.handshakes
    }

    fn admit(&self, _node: &NodeName) -> Result<(), RetryAfter> {
        self.admit
    }
}

#[tokio::test]
async fn a_busy_hub_tells_devices_when_to_come_back() {
    let site = Site::new();
    for (gate, expected) in [
        (Pacing { handshakes: false, admit: Ok(()) }, None),
        (Pacing { handshakes: true, admit: Err(RetryAfter(12_345)) }, Some(12_345)),
    ] {
        let door = Door::new(&site.installation, at(NOW_MS), Arc::new(gate), DoorLimits::default()).unwrap();
        let listener = Listener::quic("127.0.0.1:0".parse().unwrap(), &door).unwrap();
        let target = Target::Quic(listener.local_addr().unwrap().to_string());
        let error = site.connector("edge-1").connect(&target).await.unwrap_err();
        assert!(matches!(error, ConnectError::Busy { .. }), "{error}");
        assert_eq!(error.retry_after_ms(), expected);
    }
}

#[test]
fn a_bucket_gives_its_rate() {
    let start = Instant::now();
    let bucket = AcceptBucket::new(10, start);
    let taken = |at_ms: u64| (0..20).filter(|_| bucket.take(start + Duration::from_millis(at_ms))).count();
    assert_eq!([taken(0), taken(0), taken(500), taken(60_000)], [10, 0, 5, 10]);
}

#[tokio::test]
async fn targets_without_a_hub_are_named() {
    let connector = Site::new().connector("edge-1");
    let resolve = connector.connect(&Target::Quic("no port".to_owned())).await.unwrap_err();
    assert!(matches!(&resolve, ConnectError::Resolve { .. }), "{resolve}");
    assert!(resolve.to_string().contains("quic no port"));
    let broker = BrokerUrl::parse("mqtt://127.0.0.1:1").unwrap();
    let refused = connector.connect(&Target::Mqtt(broker)).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Unreachable { .. }), "{refused}");
    assert!(refused.to_string().contains("mqtt://127.0.0.1:1"));
}
