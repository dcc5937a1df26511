use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frame::{Body, CloseReason, Frame};
use super::packet::{Keep, Publish, Version};
use super::topic::{Filter, Heard, HubName, Party};
use super::url::Trust;
use super::*;
use crate::enrol::{Introduction, Proof, enrol};
use crate::identity::{DeviceKeys, InstallationId};
use crate::transport::fixture::{
    Admits, DAY_MS, NOW_MS, Site, check_bytes, check_echo, connect_when_open, labels, node, serve,
};
use crate::transport::{ConnectError, Incoming, Listener, Pipe, Target};

const MOSQUITTO: &str = "/usr/sbin/mosquitto";
const DEVICES: usize = 60;

/// Each of these with both versions of the protocol.
macro_rules! with_both_versions {
    ($($test:ident)*) => {
        mod version_3_1_1 {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Version::V311).await;
            })*
        }
        mod version_5 {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Version::V5).await;
            })*
        }
    };
}

with_both_versions! {
    pipes_carry_bytes_through_a_broker_and_its_restart
    a_listener_waits_for_its_broker_and_a_device_for_the_hub
    ends_of_hub_and_device_are_noticed_at_once
    duplicates_do_nothing_and_a_gap_restarts_the_session
    hostile_messages_leave_others_alone
    nobody_gets_in_with_anothers_certificate
    a_device_enrols_through_a_broker
    many_devices_share_one_broker
}

mod access;
mod hubs;
mod positions;

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A real broker, killed when dropped.
struct Broker {
    child: Child,
    port: u16,
    version: Version,
    _config: tempfile::NamedTempFile,
}

impl Broker {
    /// `None`, said aloud, when there is no mosquitto here.
    fn start(version: Version) -> Option<Self> {
        Self::is_here().then(|| Self::start_on(free_port(), version))
    }

    fn is_here() -> bool {
        if !std::path::Path::new(MOSQUITTO).exists() {
            assert!(std::env::var("FLOTILLA_REQUIRE_ALL").as_deref() != Ok("1"), "{MOSQUITTO} is required and absent");
            #[allow(clippy::print_stderr, reason = "a skipped test says so")]
            {
                // Not eprintln: the test runner keeps that to itself when a test passes.
                Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!("SKIPPED: {MOSQUITTO} is absent; MQTT was not tested against a broker\n"),
                )
                .unwrap();
            }
            return false;
        }
        true
    }

    fn start_on(port: u16, version: Version) -> Self {
        Self::start_with(port, version, "allow_anonymous true\n")
    }

    /// On a listener with settings of its own.
    fn start_with(port: u16, version: Version, settings: &str) -> Self {
        let listener = format!("listener {port} 127.0.0.1\n{settings}message_size_limit 65536\n");
        Self::configured(port, version, &listener)
    }

    fn configured(port: u16, version: Version, text: &str) -> Self {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        writeln!(config, "{text}user root\nlog_dest stderr\nconnection_messages false").unwrap();
        let mut child = Command::new(MOSQUITTO)
            .arg("-c")
            .arg(config.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = log.lines();
        let said = lines.by_ref().map_while(Result::ok).find(|line| line.contains("running"));
        assert!(said.is_some(), "mosquitto did not start on port {port}");
        // Its log must go on being read.
        std::thread::spawn(move || lines.count());
        Self { child, port, version, _config: config }
    }

    fn url(&self) -> BrokerUrl {
        BrokerUrl::parse(&format!("mqtt://127.0.0.1:{}?version={}", self.port, self.version.as_str())).unwrap()
    }

    fn target(&self) -> Target {
        Target::Mqtt(self.url())
    }

    fn restart(mut self) -> Self {
        let (port, version) = (self.port, self.version);
        self.stop();
        Self::start_on(port, version)
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A stranger who hears everything and may say anything.
    async fn stranger(&self, filter: &str) -> Stranger {
        let mut options = MqttOptions::new("stranger", "127.0.0.1", self.port);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, 64);
        client.subscribe(filter, QoS::AtMostOnce).await.unwrap();
        while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
        Stranger { client, events }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have been stopped already.
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

struct Stranger {
    client: AsyncClient,
    events: EventLoop,
}

impl Stranger {
    async fn hear(&mut self) -> (String, Frame) {
        loop {
            if let Event::Incoming(Packet::Publish(message)) = self.events.poll().await.unwrap()
                && let Some(frame) = Frame::decode(&message.payload)
            {
                return (message.topic, frame);
            }
        }
    }

    async fn say(&mut self, topic: &str, payload: Bytes) {
        self.client.publish_bytes(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        while !matches!(self.events.poll().await.unwrap(), Event::Incoming(Packet::PubAck(_))) {}
    }
}

async fn assert_ends(pipe: &mut Pipe, within_s: u64) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(within_s), pipe.reader.read_to_end(&mut rest)).await;
    // By an error or an end: what counts is that it does not hang.
    end.expect("the pipe hangs").unwrap_or_default();
}

async fn pipes_carry_bytes_through_a_broker_and_its_restart(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let (one, two) = (site.connector("edge-1"), site.connector("edge-2"));
    let target = broker.target();
    let mut first = connect_when_open(&one, &target).await;
    let mut second = connect_when_open(&two, &target).await;
    check_echo(&mut first, "edge-1", 1_000_000).await;
    check_echo(&mut second, "edge-2", 10).await;

    // In the middle of a transfer that would not end by itself.
    let Pipe { mut reader, mut writer, .. } = first;
    let writing = tokio::spawn(async move { while writer.write_all(&[7; 10_000]).await.is_ok() {} });
    let mut passed = vec![0; 500_000];
    reader.read_exact(&mut passed).await.unwrap();
    assert!(passed.iter().all(|byte| *byte == 7));
    let broker = broker.restart();
    tokio::time::timeout(Duration::from_secs(10), writing).await.expect("the writer hangs").unwrap();
    while reader.read(&mut passed).await.is_ok_and(|length| length > 0) {}
    assert_ends(&mut second, 10).await;
    let mut first = connect_when_open(&one, &target).await;
    check_echo(&mut first, "edge-1", 200_000).await;
    drop(broker);
    serving.abort();
}

async fn a_listener_waits_for_its_broker_and_a_device_for_the_hub(version: Version) {
    let Some(mut broker) = Broker::start(version) else { return };
    broker.stop();
    let site = Site::new();
    let target = broker.target();
    let listener = Listener::mqtt(broker.url(), &site.door);
    assert!(!listener.is_connected());
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    assert!(matches!(connector.connect(&target).await, Err(ConnectError::Unreachable { .. })));
    let _broker = Broker::start_on(broker.port, version);
    check_echo(&mut connect_when_open(&connector, &target).await, "edge-1", 10).await;
    serving.abort();
}

async fn ends_of_hub_and_device_are_noticed_at_once(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let mut listener = Listener::mqtt(broker.url(), &site.door);
    let connector = site.connector("edge-1");
    let target = broker.target();
    let accept = async |listener: &mut Listener| match listener.accept().await {
        Some(Incoming::Session(pipe)) => pipe,
        other => panic!("{other:?}"),
    };

    let (pipe, mut theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    drop(pipe);
    assert_ends(&mut theirs, 5).await;

    // The same device anew: the hub's older pipe is over although its device never said so.
    let (first, mut theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    let twin = site.connector("edge-1");
    let (mut second, mut newer) = tokio::join!(connect_when_open(&twin, &target), accept(&mut listener));
    assert_ends(&mut theirs, 5).await;
    drop(first);

    newer.writer.write_all(b"last words").await.unwrap();
    newer.writer.shutdown().await.unwrap();
    drop(newer);
    let mut heard = Vec::new();
    second.reader.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");

    let (mut pipe, _theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    listener.close().await;
    assert_ends(&mut pipe, 5).await;

    // A hub that dies says nothing; the broker says it instead.
    let mut listener = Listener::mqtt(broker.url(), &site.door);
    let (mut pipe, theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    drop(listener);
    assert_ends(&mut pipe, 5).await;
    drop(theirs);
}

async fn duplicates_do_nothing_and_a_gap_restarts_the_session(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    let target = broker.target();
    let up = Party::Device(node("edge-1")).up(&site.installation.id(), &HubName::only());
    let mut stranger = broker.stranger(&up).await;
    let mut pipe = connect_when_open(&connector, &target).await;
    check_echo(&mut pipe, "edge-1", 1_000).await;

    // Everything said so far is said again. The stranger hears itself as well.
    let (mut replayed, mut end) = (0, 0);
    let session = loop {
        let (topic, frame) = stranger.hear().await;
        let Body::Data { offset, data, .. } = &frame.body else { continue };
        if *offset < end {
            continue;
        }
        end = offset + data.len() as u64;
        stranger.client.publish_bytes(topic, QoS::AtMostOnce, false, frame.encode()).await.unwrap();
        replayed += 1;
        if end > 1_500 {
            break frame.session;
        }
    };
    // The last of them has come back from the broker, so that all have reached the hub's side of it.
    while !matches!(stranger.hear().await.1.body, Body::Data { offset, ref data, .. } if offset + data.len() as u64 == end)
    {
    }
    assert!(replayed > 1);
    check_bytes(&mut pipe, 1_000).await;

    let gap = Body::Data { offset: end + 100_000, consumed: 0, data: Bytes::from_static(b"forged") };
    stranger.say(&up, Frame { session, body: gap }.encode()).await;
    assert_ends(&mut pipe, 5).await;
    check_echo(&mut connect_when_open(&connector, &target).await, "edge-1", 1_000).await;
    serving.abort();
}

async fn hostile_messages_leave_others_alone(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    let target = broker.target();
    let mut pipe = connect_when_open(&connector, &target).await;
    check_echo(&mut pipe, "edge-1", 10).await;

    let installation = site.installation.id();
    let (party, hub) = (Party::Device(node("edge-9")), HubName::only());
    let mut stranger = broker.stranger(&party.down(&installation, &hub)).await;
    let (up, opening) = (party.up(&installation, &hub), party.open(&installation));
    for payload in [&b""[..], b"\x01", b"nonsense", &[1; 18], &[0xff; 60_000]] {
        stranger.say(&up, Bytes::copy_from_slice(payload)).await;
    }
    for topic in ["d/../open", "d/system:node:EDGE/open", "e/short/open", "d/system:node:edge-9/up/1/more", "x"] {
        stranger.say(&format!("flotilla/v2/{installation}/{topic}"), Bytes::from_static(b"x")).await;
    }
    // Data out of nothing is answered with a reset.
    let data = Body::Data { offset: 0, consumed: 0, data: Bytes::from_static(b"x") };
    let sent = Frame { session: [9; 16], body: data };
    stranger.client.publish_bytes(&up, QoS::AtMostOnce, false, sent.encode()).await.unwrap();
    let (_, answer) = stranger.hear().await;
    assert_eq!(answer, Frame { session: [9; 16], body: Body::Close { reason: CloseReason::Reset } });

    // Many openings by one party leave it two; an opening followed by what is no TLS is thrown out.
    for number in 0..20_u8 {
        let open = Frame { session: [number; 16], body: Body::Open };
        stranger.client.publish_bytes(&opening, QoS::AtMostOnce, false, open.encode()).await.unwrap();
    }
    let mut thrown_out = 0;
    while thrown_out < 18 {
        thrown_out += usize::from(matches!(stranger.hear().await.1.body, Body::Close { .. }));
    }
    let garbage = Body::Data { offset: 0, consumed: 0, data: Bytes::from_static(&[0xff; 4_000]) };
    let sent = Frame { session: [19; 16], body: garbage };
    stranger.client.publish_bytes(&up, QoS::AtMostOnce, false, sent.encode()).await.unwrap();
    loop {
        let (_, frame) = stranger.hear().await;
        if frame.session == [19; 16] && matches!(frame.body, Body::Close { .. }) {
            break;
        }
    }
    check_bytes(&mut pipe, 100_000).await;
    serving.abort();
}

async fn nobody_gets_in_with_anothers_certificate(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let target = broker.target();
    drop(connect_when_open(&site.connector("edge-1"), &target).await);

    let thief = site.connector_with("edge-2", &site.credentials("edge-1", NOW_MS));
    let error = thief.connect(&target).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused { why, .. } if why.contains("names node edge-1, the topic edge-2")),
        "{error}"
    );
    let expired = site.connector_with("edge-1", &site.credentials("edge-1", NOW_MS - 40 * DAY_MS));
    let error = expired.connect(&target).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    serving.abort();
}

async fn a_device_enrols_through_a_broker(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let target = broker.target();
    drop(connect_when_open(&site.connector("edge-9"), &target).await);
    let introduction = Introduction {
        proof: Proof::Token(token.proof()),
        node: node("edge-1"),
        labels: labels(),
        pin: site.installation.pin(),
        root: site.installation.root().public(),
    };
    let keys = DeviceKeys::generate().unwrap();
    let stream = site.enrol_connector().connect(&target).await.unwrap();
    let enrolment = enrol(stream, &introduction, &keys).await.unwrap();
    let mut pipe = site.connector_with("edge-1", &enrolment.credentials).connect(&target).await.unwrap();
    check_echo(&mut pipe, "edge-1", 1_000).await;
    serving.abort();
}

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

async fn many_devices_share_one_broker(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let target = broker.target();
    let mut devices = tokio::task::JoinSet::new();
    for number in 0..DEVICES {
        let name = format!("edge-{number}");
        let (connector, target) = (site.connector(&name), target.clone());
        devices.spawn(async move {
            let mut pipe = connect_when_open(&connector, &target).await;
            check_echo(&mut pipe, &name, 100_000).await;
        });
    }
    while let Some(ended) = devices.join_next().await {
        ended.unwrap();
    }
    serving.abort();
}

/// A broker of old in front of a new one: it does not let version 5 in, and says so, or nothing at all.
async fn old_broker(behind: u16, says: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 9];
                client.read_exact(&mut head).await.unwrap();
                if head.contains(&5) {
                    client.write_all(says).await.unwrap();
                    return;
                }
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                server.write_all(&head).await.unwrap();
                // Until one of them goes.
                tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop).unwrap_or_default();
            });
        }
    });
    port
}

#[tokio::test]
async fn the_newest_version_that_both_speak_is_chosen() {
    let Some(broker) = Broker::start(Version::V5) else { return };
    let site = Site::new();
    let joined = async |port: u16| {
        let url = BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}")).unwrap();
        let joining = client::Joining {
            broker: &url,
            client_id: "one".to_owned(),
            own: None,
            will: Publish { topic: "gone".to_owned(), payload: Bytes::new(), keep: Keep::No },
            news: None,
            filters: vec![Filter::plain("x".to_owned())],
            queue_len: 1,
        };
        client::join(&joining).await.map(|(_, connection)| connection.version())
    };
    assert_eq!(joined(broker.port).await.unwrap(), Version::V5);
    for says in [&b"\x20\x02\0\x01"[..], b"\x20\x03\0\x84\0", b""] {
        let old = old_broker(broker.port, says).await;
        assert_eq!(joined(old).await.unwrap(), Version::V311, "{says:?}");
        // A device that speaks 3.1.1 and a hub that speaks 5 meet in the middle.
        let listener = Listener::mqtt(broker.url(), &site.door);
        let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
        let serving = serve(listener, &site, admits);
        let target = Target::Mqtt(BrokerUrl::parse(&format!("mqtt://127.0.0.1:{old}")).unwrap());
        check_echo(&mut connect_when_open(&site.connector("edge-1"), &target).await, "edge-1", 10_000).await;
        serving.abort();
    }
    let refusing = old_broker(broker.port, b"\x20\x08\0\x87\x05\x1f\0\x02no").await;
    let error = joined(refusing).await.unwrap_err();
    assert_eq!(error.to_string(), "the broker refuses this client: not authorized (no)");
}

/// Not every broker says it: mosquitto 2.0 just closes.
#[tokio::test]
async fn a_broker_of_version_5_says_why_it_ends_a_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = BrokerUrl::parse(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
    let serving = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(b"\x20\x03\0\0\0\x90\x04\0\x01\0\0\xe0\x01\x8e").await.unwrap();
        // Until the client has gone.
        client.read_to_end(&mut Vec::new()).await.unwrap_or_default();
    });
    let joining = client::Joining {
        broker: &url,
        client_id: "one".to_owned(),
        own: None,
        will: Publish { topic: "gone".to_owned(), payload: Bytes::new(), keep: Keep::No },
        news: None,
        filters: vec![Filter::plain("x".to_owned())],
        queue_len: 1,
    };
    let (_client, mut connection) = client::join(&joining).await.unwrap();
    let error = connection.next().await.unwrap_err().to_string();
    assert!(error.contains("two devices with one identity?"), "{error}");
    drop(connection);
    serving.await.unwrap();
}

#[tokio::test]
async fn brokers_are_reached_with_tls_and_a_login() {
    if !Broker::is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let authority = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    std::fs::write(path("leaf.pem"), leaf.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let made = Command::new("mosquitto_passwd").args(["-b", "-c", &path("logins"), "user", "secret"]).status();
    let (login, settings) = match made {
        Ok(status) if status.success() => ("user:secret@", format!("password_file {}\n", path("logins"))),
        _ => ("", "allow_anonymous true\n".to_owned()),
    };
    let settings = format!("{settings}certfile {}\nkeyfile {}\n", path("leaf.pem"), path("key.pem"));
    let port = free_port();
    let _broker = Broker::start_with(port, Version::V5, &settings);
    let pin = crate::identity::hex(&crate::identity::pin_of(leaf.der()));
    let url = |rest: &str| BrokerUrl::parse(&format!("mqtts://{login}localhost:{port}{rest}")).unwrap();

    let site = Site::new();
    let listener = Listener::mqtt(url(&format!("?ca={}", path("ca.pem"))), &site.door);
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let connector = site.connector("edge-1");
    let target = Target::Mqtt(url(&format!("?version=3.1.1&pin={pin}")));
    check_echo(&mut connect_when_open(&connector, &target).await, "edge-1", 200_000).await;
    for (rest, part) in [
        (format!("?pin={}", "00".repeat(32)), "no TLS connection to the broker"),
        (format!("?ca={}", path("absent.pem")), "cannot read the authorities"),
        (format!("?ca={}", path("key.pem")), "no certificate of an authority"),
    ] {
        let error = connector.connect(&Target::Mqtt(url(&rest))).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    if !login.is_empty() {
        let wrong = format!("mqtts://user:wrong@localhost:{port}?pin={pin}");
        let error = connector.connect(&Target::Mqtt(BrokerUrl::parse(&wrong).unwrap())).await.unwrap_err().to_string();
        assert!(error.contains("the broker refuses this client") && !error.contains("wrong@"), "{error}");
    }
    serving.abort();
}
