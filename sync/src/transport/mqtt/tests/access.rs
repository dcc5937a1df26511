//! A real mosquitto with the configuration and the lists that are made for it, a hub and a device that live by it, and clients that try
//! everything else: each topic of others, by each way to read and to write, with each credential there is.
//!
//! An auditor, whom a listener of its own allows everything, says and hears what the broker lets through: a broker of 3.1.1 answers
//! "granted" and "done" also to what it then drops.

use std::collections::BTreeSet;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::channel::ChannelName;
use crate::identity::{Credentials, HUB_USER, Installation};
use crate::transport::mqtt::mosquitto::{self, Mosquitto};
use crate::transport::mqtt::{tls, topic};

with_both_versions! {
    nobody_reads_or_writes_what_is_not_its_own
    only_certificates_of_the_installation_open_the_door_for_devices
}

const VICTIM: &str = "edge-2";
const ATTEMPT: [u8; 16] = [0xab; 16];

/// A broker for one installation, with a door for the auditor.
struct Secured {
    site: Site,
    broker: Broker,
    enrol_port: u16,
    auditor_port: u16,
    _folder: tempfile::TempDir,
}

impl Secured {
    fn start(version: Version) -> Option<Self> {
        Self::start_with(version, |text| text)
    }

    /// With the files as this makes them of what they should be.
    fn start_with(version: Version, change: impl Fn(String) -> String) -> Option<Self> {
        if !Broker::is_here() {
            return None;
        }
        let site = Site::at(real_now_ms());
        let folder = tempfile::tempdir().unwrap();
        let id = site.installation.id();
        let (port, enrol_port, auditor_port) = (free_port(), free_port(), free_port());
        let path = folder.path().to_str().unwrap();
        let made = Mosquitto { installation: &id, folder: path, port, enrol_port: Some(enrol_port) };
        let server = site.installation.issue_broker(&["localhost".to_owned()], site.now_ms).unwrap().to_material();
        let authority = site.installation.authority_pem();
        for (name, text) in [
            (mosquitto::KEY_FILE, server.key_pem.clone()),
            (mosquitto::CERTIFICATE_FILE, format!("{}{authority}", server.chain_pem)),
            (mosquitto::AUTHORITY_FILE, authority.clone()),
            (mosquitto::DEVICE_LIST_FILE, change(made.device_list())),
            (mosquitto::STRANGER_LIST_FILE, change(made.stranger_list())),
            ("auditor.acl", "topic readwrite #\ntopic readwrite $SYS/#\n".to_owned()),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut text = change(made.configuration());
        for port in [port, enrol_port] {
            text = text.replace(&format!("listener {port}\n"), &format!("listener {port} 127.0.0.1\n"));
        }
        text.push_str(&format!(
            "listener {auditor_port} 127.0.0.1\nallow_anonymous true\nacl_file {path}/auditor.acl\nsys_interval 1\n"
        ));
        let broker = Broker::configured(port, version, &text);
        Some(Self { site, broker, enrol_port, auditor_port, _folder: folder })
    }

    fn url(&self) -> BrokerUrl {
        let (port, pin) = (self.broker.port, crate::identity::hex(&self.site.installation.pin()));
        let (version, enrol) = (self.broker.version.as_str(), self.enrol_port);
        BrokerUrl::parse(&format!("mqtts://localhost:{port}?version={version}&pin={pin}&enrol={enrol}")).unwrap()
    }

    async fn auditor(&self) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", self.auditor_port)).await.unwrap();
        let mut wire = Wire { stream: Box::new(stream), version: self.broker.version, number: 0 };
        wire.enter("flotilla-auditor", None, None).await.unwrap();
        wire
    }
}

#[allow(clippy::disallowed_methods, reason = "a real broker judges certificates by the real time")]
fn real_now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Somebody who can open a connection.
struct Attacker {
    name: &'static str,
    credentials: Option<Credentials>,
    /// What it calls itself when it does nothing worse.
    client_id: String,
    reads: BTreeSet<String>,
    writes: BTreeSet<String>,
    /// A topic of its own, where the end of what it does is shown.
    reads_end: String,
    writes_end: String,
}

impl Attacker {
    /// A device with a valid certificate.
    fn device(site: &Site) -> Self {
        let (id, hub) = (site.installation.id(), HubName::only());
        let own = Party::Device(node("edge-1"));
        let fleet = topic::position(&id, &ChannelName::Fleet(node("default")));
        Self {
            name: "a device",
            credentials: Some(site.credentials("edge-1", site.now_ms)),
            client_id: own.client_id(&id),
            reads: [own.down(&id, &hub), topic::presence(&id, &hub), fleet].into(),
            writes: [own.open(&id), own.up(&id, &hub), own.gone(&id)].into(),
            reads_end: own.down(&id, &hub),
            writes_end: own.gone(&id),
        }
    }

    /// A person with a certificate for the API.
    fn user(site: &Site) -> Self {
        let (id, hub) = (site.installation.id(), HubName::only());
        let fleet = topic::position(&id, &ChannelName::Fleet(node("default")));
        let admin = site.installation.issue_user("admin", Some("system:masters"), site.now_ms, DAY_MS).unwrap();
        Self {
            name: "an administrator",
            credentials: Some(admin),
            client_id: "flotilla-admin".to_owned(),
            reads: [topic::presence(&id, &hub), fleet].into(),
            writes: BTreeSet::new(),
            reads_end: format!("flotilla/v2/{id}/d/admin/down/1"),
            writes_end: format!("flotilla/v2/{id}/d/admin/gone"),
        }
    }

    /// Somebody without a certificate, in an attempt to enrol of its own.
    fn stranger(site: &Site) -> Self {
        let (id, hub) = (site.installation.id(), HubName::only());
        let own = Party::enrolling([0xcd; 16]);
        Self {
            name: "a stranger",
            credentials: None,
            client_id: own.client_id(&id),
            reads: [own.down(&id, &hub)].into(),
            writes: [own.open(&id), own.up(&id, &hub), own.gone(&id)].into(),
            reads_end: own.down(&id, &hub),
            writes_end: own.gone(&id),
        }
    }

    async fn dial(&self, secured: &Secured) -> TlsStream<TcpStream> {
        let port = if self.credentials.is_some() { secured.broker.port } else { secured.enrol_port };
        dial(&secured.site.installation, port, self.credentials.as_ref()).await.unwrap()
    }

    /// Enters under this name; `None` when the broker does not let it.
    async fn enter(&self, secured: &Secured, client_id: &str, user: Option<&str>, will: Option<&str>) -> Option<Wire> {
        let stream = Box::new(self.dial(secured).await);
        let mut wire = Wire { stream, version: secured.broker.version, number: 0 };
        let payload = format!("will of {}", self.name);
        wire.enter(client_id, user, will.map(|topic| (topic, payload.as_str()))).await.ok().map(|()| wire)
    }
}

async fn dial(
    installation: &Installation,
    port: u16,
    own: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tls::connect(stream, "localhost", &Trust::Pin(installation.pin()), own).await
}

trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// A client that says what nobody of ours says.
struct Wire {
    stream: Box<dyn Duplex>,
    version: Version,
    number: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    topic: String,
    payload: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

impl Wire {
    /// No properties, where the version has them.
    fn properties(&self) -> &'static [u8] {
        if self.version == Version::V5 { &[0] } else { &[] }
    }

    async fn enter(&mut self, client_id: &str, user: Option<&str>, will: Option<(&str, &str)>) -> Result<(), String> {
        let level = if self.version == Version::V5 { 5 } else { 4 };
        // Clean; a will with QoS 0 that is kept; a user without a password.
        let flags = 2 | if will.is_some() { 0x24 } else { 0 } | if user.is_some() { 0x80 } else { 0 };
        let mut body = [&text("MQTT")[..], &[level, flags, 0, 0], self.properties(), &text(client_id)].concat();
        if let Some((topic, payload)) = will {
            body.extend([self.properties(), &text(topic), &text(payload)].concat());
        }
        body.extend(user.map(text).unwrap_or_default());
        self.send(0x10, &body).await?;
        let (kind, answer) = self.packet().await?;
        if (kind, answer[1]) == (0x20, 0) { Ok(()) } else { Err(format!("{kind:#x} {answer:?}")) }
    }

    async fn subscribe(&mut self, filters: impl IntoIterator<Item = String>) -> Result<(), String> {
        let mut body = [&[0, 1], self.properties()].concat();
        for filter in filters {
            body.extend([&text(&filter)[..], &[1]].concat());
        }
        self.send(0x82, &body).await
    }

    async fn publish(&mut self, topic: &str, payload: &str, quality: u8, retain: bool) -> Result<(), String> {
        self.number += 1;
        let number = if quality > 0 { self.number.to_be_bytes().to_vec() } else { Vec::new() };
        let body = [&text(topic)[..], &number, self.properties(), payload.as_bytes()].concat();
        self.send(0x30 | quality << 1 | u8::from(retain), &body).await
    }

    /// All messages up to one that ends it.
    async fn hear_until_end(&mut self) -> Result<Vec<Said>, String> {
        let mut heard = Vec::new();
        loop {
            let (kind, body) = self.packet().await?;
            if kind & 0xf0 != 0x30 {
                continue;
            }
            let said = self.said(kind, &body).await?;
            if said.payload == b"end" {
                return Ok(heard);
            }
            heard.push(said);
        }
    }

    /// All messages up to the answer to a subscription: what is kept may come before it.
    async fn hear_until_subscribed(&mut self) -> Result<Vec<Said>, String> {
        let mut heard = Vec::new();
        loop {
            let (kind, body) = self.packet().await?;
            match kind & 0xf0 {
                0x90 => return Ok(heard),
                0x30 => heard.push(self.said(kind, &body).await?),
                _ => {}
            }
        }
    }

    /// Reads a message, and acknowledges one that asks for it.
    async fn said(&mut self, kind: u8, body: &[u8]) -> Result<Said, String> {
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
        let mut rest = &body[2 + length..];
        if kind & 0x06 != 0 {
            self.send(0x40, &rest[..2]).await?;
            rest = &rest[2..];
        }
        if self.version == Version::V5 {
            // Fewer than 128 bytes of properties.
            rest = &rest[1 + usize::from(rest[0])..];
        }
        Ok(Said { topic, payload: rest.to_vec() })
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> Result<(), String> {
        let mut packet = vec![kind];
        let mut rest = body.len();
        loop {
            let byte = u8::try_from(rest % 128).unwrap();
            rest /= 128;
            packet.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).await.map_err(|error| error.to_string())?;
        self.stream.flush().await.map_err(|error| error.to_string())
    }

    async fn packet(&mut self) -> Result<(u8, Vec<u8>), String> {
        let read = async {
            let kind = self.stream.read_u8().await?;
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.stream.read_u8().await?;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await?;
            Ok::<_, std::io::Error>((kind, body))
        };
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.map_err(|_elapsed| "nothing came".to_owned())?.map_err(|error| error.to_string())
    }
}

/// Every kind of topic there is, of those that attack, of their victims, of the hub, of others.
fn targets(site: &Site) -> BTreeSet<String> {
    let (id, hub) = (site.installation.id(), HubName::only());
    let parties = [
        Party::Device(node("edge-1")),
        Party::Device(node(VICTIM)),
        Party::enrolling(ATTEMPT),
        Party::enrolling([0xcd; 16]),
    ];
    let mut all = BTreeSet::new();
    for party in parties {
        all.extend([party.open(&id), party.up(&id, &hub), party.down(&id, &hub), party.gone(&id)]);
    }
    all.extend([topic::presence(&id, &hub), topic::position(&id, &ChannelName::Fleet(node("default")))]);
    let others = [
        "flotilla/v2/0123456789abcdef/d/system:node:edge-1/down/1",
        "flotilla/v2/0123456789abcdef/d/system:node:edge-1/up/1",
        "flotilla/v2/0123456789abcdef/hub/1",
        "flotilla",
        "somebody/elses",
        "$SYS/broker/planted",
        "$CONTROL/dynamic-security/v1",
    ];
    all.extend(others.map(str::to_owned));
    let own = format!("flotilla/v2/{id}");
    all.extend(
        ["d", "d/edge-1/open", "e/edge-1/open", "hub", "fleet", "d//open", "hub/1/x", "d/system:node:edge-1/up/2"]
            .map(|rest| format!("{own}/{rest}")),
    );
    all
}

/// Each target, each wildcard, and each of them as a member of a group.
fn filters(site: &Site) -> Vec<String> {
    let id = site.installation.id();
    let wild =
        ["#", "+/#", "+/+/#", "+/+/+/+/+/+/+", "$SYS/#", "$SYS/broker/+", "flotilla/#", "flotilla/v2/+/d/+/down/+"];
    let wild = wild.into_iter().map(str::to_owned);
    let own =
        [format!("flotilla/v2/{id}/+/+/open"), format!("flotilla/v2/{id}/+/+/up/+"), format!("flotilla/v2/{id}/#")];
    let plain: Vec<String> = wild.chain(own).chain(targets(site)).collect();
    let shared: Vec<String> = plain.iter().map(|filter| format!("$share/thieves/{filter}")).collect();
    plain.into_iter().chain(shared).collect()
}

async fn nobody_reads_or_writes_what_is_not_its_own(version: Version) {
    let Some(secured) = Secured::start(version) else { return };
    let site = &secured.site;
    let listener = Listener::mqtt(secured.url(), &site.door);
    let (admits, token) = Admits::new(site, Vec::new(), site.now_ms + DAY_MS);
    let serving = serve(listener, site, admits);
    let target = Target::Mqtt(secured.url());
    let mut pipe = connect_when_open(&site.connector(VICTIM), &target).await;
    check_echo(&mut pipe, VICTIM, 100_000).await;

    for attacker in [Attacker::device(site), Attacker::user(site), Attacker::stranger(site)] {
        reads_its_own_alone(&secured, &attacker).await;
        writes_its_own_alone(&secured, &attacker).await;
        leaves_no_will_elsewhere(&secured, &attacker).await;
        takes_nobodys_place(&secured, &attacker).await;
        // The same stream as before all of it: neither hub nor device were disturbed.
        check_bytes(&mut pipe, 10_000).await;
    }

    // What they are kept from works: somebody joins, and the device that was away for too long is let in again.
    let introduction = Introduction {
        proof: Proof::Token(token.proof()),
        node: node("edge-7"),
        labels: labels(),
        pin: site.installation.pin(),
        root: site.installation.root().public(),
    };
    let keys = DeviceKeys::generate().unwrap();
    let stream = site.enrol_connector().connect(&target).await.unwrap();
    let enrolment = enrol(stream, &introduction, &keys).await.unwrap();
    let mut joined = site.connector_with("edge-7", &enrolment.credentials).connect(&target).await.unwrap();
    check_echo(&mut joined, "edge-7", 100_000).await;
    check_bytes(&mut pipe, 10_000).await;
    serving.abort();
}

/// Subscribes to everything, before and after it is said.
async fn reads_its_own_alone(secured: &Secured, attacker: &Attacker) {
    let site = &secured.site;
    let targets = targets(site);
    let expected: BTreeSet<String> = attacker.reads.intersection(&targets).cloned().collect();
    let mut auditor = secured.auditor().await;
    for (user, retain) in [(None, false), (Some(HUB_USER), true)] {
        let canary = format!("canary of {} {retain}", attacker.name);
        let mut early = attacker.enter(secured, &attacker.client_id, user, None).await.unwrap();
        early.subscribe(filters(site)).await.unwrap();
        early.publish(&attacker.writes_end, "subscribed", 0, false).await.unwrap();
        early.hear_until_subscribed().await.unwrap();
        for target in &targets {
            auditor.publish(target, &canary, 0, retain).await.unwrap();
        }
        auditor.publish(&attacker.reads_end, "end", 0, false).await.unwrap();
        let heard = early.hear_until_end().await.unwrap();
        let heard: BTreeSet<String> =
            heard.into_iter().filter(|said| said.payload == canary.as_bytes()).map(|said| said.topic).collect();
        assert_eq!(heard, expected, "{} hears, retain {retain}", attacker.name);
        drop(early);

        // And what is kept, for one who comes later.
        let mut late = attacker.enter(secured, &attacker.client_id, user, None).await.unwrap();
        late.subscribe(filters(site)).await.unwrap();
        late.publish(&attacker.writes_end, "subscribed", 0, false).await.unwrap();
        let mut heard = late.hear_until_subscribed().await.unwrap();
        auditor.publish(&attacker.reads_end, "end", 0, false).await.unwrap();
        heard.extend(late.hear_until_end().await.unwrap());
        let kept = if retain { expected.clone() } else { BTreeSet::new() };
        let canaries = heard.iter().filter(|said| said.payload == canary.as_bytes()).map(|said| said.topic.clone());
        assert_eq!(canaries.collect::<BTreeSet<_>>(), kept, "{} finds, retain {retain}", attacker.name);
        let system: Vec<_> = heard.iter().filter(|said| said.topic.starts_with('$')).collect();
        assert!(system.is_empty(), "{} reads of the broker: {system:?}", attacker.name);
    }
    // The hub's presence is left as it is: an empty one says that the hub went.
    let presence = topic::presence(&site.installation.id(), &HubName::only());
    for target in targets.iter().filter(|target| **target != presence) {
        auditor.publish(target, "", 0, true).await.unwrap();
    }
}

async fn writes_its_own_alone(secured: &Secured, attacker: &Attacker) {
    let site = &secured.site;
    let targets = targets(site);
    let expected: BTreeSet<String> = attacker.writes.intersection(&targets).cloned().collect();
    let mut auditor = secured.auditor().await;
    auditor.subscribe(["#".to_owned(), "$SYS/#".to_owned(), "$CONTROL/#".to_owned()]).await.unwrap();
    let evil = format!("evil of {}", attacker.name);
    let mut wire = attacker.enter(secured, &attacker.client_id, Some(HUB_USER), None).await.unwrap();
    for (quality, retain) in [(0, false), (0, true), (1, false), (1, true)] {
        for target in &targets {
            wire.publish(target, &evil, quality, retain).await.unwrap();
        }
    }
    wire.publish(&attacker.writes_end, "end", 0, false).await.unwrap();
    let heard = auditor.hear_until_end().await.unwrap();
    let written: BTreeSet<String> =
        heard.into_iter().filter(|said| said.payload == evil.as_bytes()).map(|said| said.topic).collect();
    assert_eq!(written, expected, "{} writes", attacker.name);

    // Nor does anything of it stay.
    let mut later = secured.auditor().await;
    later.subscribe(["#".to_owned(), "$SYS/#".to_owned()]).await.unwrap();
    later.publish(&attacker.writes_end, "end", 0, false).await.unwrap();
    let kept = later.hear_until_end().await.unwrap();
    let kept: BTreeSet<String> =
        kept.into_iter().filter(|said| said.payload == evil.as_bytes()).map(|said| said.topic).collect();
    assert_eq!(kept, expected, "{} leaves behind", attacker.name);
    for target in &kept {
        later.publish(target, "", 0, true).await.unwrap();
    }
}

/// Connects with a will on each topic, and is gone without a word.
async fn leaves_no_will_elsewhere(secured: &Secured, attacker: &Attacker) {
    let site = &secured.site;
    let mut auditor = secured.auditor().await;
    auditor.subscribe(["#".to_owned(), "$SYS/#".to_owned(), "$CONTROL/#".to_owned()]).await.unwrap();
    let targets = targets(site);
    let will = format!("will of {}", attacker.name);
    let mut expected = BTreeSet::new();
    for target in &targets {
        // A broker may refuse the will, or drop it later.
        drop(attacker.enter(secured, &attacker.client_id, None, Some(target)).await);
        if attacker.writes.contains(target) {
            expected.insert(target.clone());
        }
    }
    // The last of them is over once its like is.
    drop(attacker.enter(secured, &attacker.client_id, None, Some(&attacker.writes_end)).await.unwrap());
    let mut left = BTreeSet::new();
    while !left.contains(&attacker.writes_end) {
        auditor.publish("flotilla/end", "end", 0, false).await.unwrap();
        let heard = auditor.hear_until_end().await.unwrap();
        left.extend(heard.into_iter().filter(|said| said.payload == will.as_bytes()).map(|said| said.topic));
    }
    expected.insert(attacker.writes_end.clone());
    assert_eq!(left, expected, "{} leaves wills", attacker.name);
    for target in &left {
        auditor.publish(target, "", 0, true).await.unwrap();
    }
}

/// Connects under the names of others; whether they were disturbed is for the caller to see.
async fn takes_nobodys_place(secured: &Secured, attacker: &Attacker) {
    let id = secured.site.installation.id();
    let victim = Party::Device(node(VICTIM));
    let names = [
        format!("system:node:{VICTIM}"),
        victim.client_id(&id),
        HUB_USER.to_owned(),
        topic::hub_client_id(&id, &HubName::only()),
        VICTIM.to_owned(),
        "flotilla-+".to_owned(),
        "flotilla-#".to_owned(),
        format!("flotilla-{}/up", "ab".repeat(16)),
        String::new(),
    ];
    for name in &names {
        for user in [None, Some(HUB_USER), Some("system:node:edge-2")] {
            let Some(mut wire) = attacker.enter(secured, name, user, None).await else { continue };
            // It is in: as itself, or as nobody. What it says in the other's place is not heard.
            wire.publish(&victim.gone(&id), "evil", 0, false).await.unwrap();
        }
    }
}

async fn only_certificates_of_the_installation_open_the_door_for_devices(version: Version) {
    let Some(secured) = Secured::start(version) else { return };
    let site = &secured.site;
    let listener = Listener::mqtt(secured.url(), &site.door);
    let (admits, _token) = Admits::new(site, Vec::new(), site.now_ms + DAY_MS);
    let serving = serve(listener, site, admits);
    let target = Target::Mqtt(secured.url());
    check_echo(&mut connect_when_open(&site.connector("edge-1"), &target).await, "edge-1", 1_000).await;

    let stranger = Site::at(site.now_ms);
    let server = site.installation.issue_broker(&["localhost".to_owned()], site.now_ms).unwrap();
    let overdue = site.credentials("edge-1", site.now_ms - 40 * DAY_MS);
    let early = site.credentials("edge-1", site.now_ms + 40 * DAY_MS);
    for (what, own) in [
        ("none", None),
        ("of another authority", Some(stranger.credentials("edge-1", site.now_ms))),
        ("another authority's hub", Some(stranger.installation.issue_hub_user(site.now_ms).unwrap())),
        ("a server's", Some(server)),
        ("expired", Some(overdue.clone())),
        ("not yet valid", Some(early)),
    ] {
        let entered = match dial(&site.installation, secured.broker.port, own.as_ref()).await {
            Ok(stream) => {
                let mut wire = Wire { stream: Box::new(stream), version, number: 0 };
                wire.enter("flotilla-x", Some(HUB_USER), None).await
            }
            Err(error) => Err(error),
        };
        assert!(entered.is_err(), "a certificate that is {what} opens the door");
    }

    // A device whose certificate is over is told so, as by the hub itself, and can renew it where strangers are let in.
    let away = site.connector_with("edge-1", &overdue);
    let error = away.connect(&target).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { why, .. } if why.contains("expired")), "{error}");
    drop(site.enrol_connector().connect(&target).await.unwrap());
    serving.abort();
}

/// What the tests above would miss if they could not fail.
#[tokio::test]
async fn planted_holes_are_found() {
    // Somebody else's stream may be read, or an opening written, by one level too many.
    let by_reading = |text: String| text.replace("d/%u/down/+", "d/+/down/+");
    let by_writing = |text: String| text.replace("d/%u/open", "d/+/open");
    for change in [by_reading as fn(String) -> String, by_writing] {
        let Some(secured) = Secured::start_with(Version::V5, change) else { return };
        let tried = tokio::spawn(async move {
            let attacker = Attacker::device(&secured.site);
            reads_its_own_alone(&secured, &attacker).await;
            writes_its_own_alone(&secured, &attacker).await;
        });
        assert!(tried.await.unwrap_err().is_panic());
    }
    // An identifier is not the certificate's, or a stranger may say any.
    for line in ["use_username_as_clientid true\n", "clientid_prefixes flotilla-\n"] {
        let Some(secured) = Secured::start_with(Version::V5, |text| text.replace(line, "")) else { return };
        let mut listener = Listener::mqtt(secured.url(), &secured.site.door);
        let (connector, target) = (secured.site.connector(VICTIM), Target::Mqtt(secured.url()));
        let accepted = async { listener.accept().await.unwrap() };
        let (mut pipe, _theirs) = tokio::join!(connect_when_open(&connector, &target), accepted);
        for attacker in [Attacker::device(&secured.site), Attacker::stranger(&secured.site)] {
            takes_nobodys_place(&secured, &attacker).await;
        }
        assert_ends(&mut pipe).await;
    }
}
