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
mod text;
mod versions;

/// What has not ended by then never will.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Below those that Linux hands out by itself: nobody is given one while its broker is down.
fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(10_000);
    loop {
        let port = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
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

async fn assert_ends(pipe: &mut Pipe) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(HANGS_AFTER, pipe.reader.read_to_end(&mut rest)).await;
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
    tokio::time::timeout(HANGS_AFTER, writing).await.expect("the writer hangs").unwrap();
    while reader.read(&mut passed).await.is_ok_and(|length| length > 0) {}
    assert_ends(&mut second).await;
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
    assert_ends(&mut theirs).await;

    // The same device anew: the hub's older pipe is over although its device never said so.
    let (first, mut theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    let twin = site.connector("edge-1");
    let (mut second, mut newer) = tokio::join!(connect_when_open(&twin, &target), accept(&mut listener));
    assert_ends(&mut theirs).await;
    drop(first);

    newer.writer.write_all(b"last words").await.unwrap();
    newer.writer.shutdown().await.unwrap();
    drop(newer);
    let mut heard = Vec::new();
    second.reader.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");

    let (mut pipe, _theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    listener.close().await;
    assert_ends(&mut pipe).await;

    // A hub that dies says nothing; the broker says it instead.
    let mut listener = Listener::mqtt(broker.url(), &site.door);
    let (mut pipe, theirs) = tokio::join!(connect_when_open(&connector, &target), accept(&mut listener));
    drop(listener);
    assert_ends(&mut pipe).await;
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
    assert_ends(&mut pipe).await;
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
