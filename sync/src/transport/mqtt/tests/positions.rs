//! What a broker keeps for those who come: how far a fleet's channel goes, and whether a hub is there.

use super::*;
use crate::channel::ChannelName;
use crate::identity::writer::WriterIdentity;
use crate::position::SignedPosition;
use crate::transport::mqtt::topic;

with_both_versions! {
    a_device_that_comes_hears_how_far_its_fleet_is
    a_device_is_told_that_no_hub_is_there
}

fn fleet() -> ChannelName {
    ChannelName::Fleet(node("default"))
}

async fn a_device_that_comes_hears_how_far_its_fleet_is(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let listener = Listener::mqtt(broker.url(), &site.door);
    let announcer = listener.announcer().unwrap();
    let (admits, _token) = Admits::new(&site, Vec::new(), NOW_MS);
    let serving = serve(listener, &site, admits);
    let target = broker.target();
    let identity = WriterIdentity::for_hub([7; 32], 3, site.installation.root()).unwrap();
    let signed = |seq, commit| SignedPosition::sign(&identity, fleet(), seq, commit);
    let topic = topic::position(&site.installation.id(), &fleet());

    let mut listening = broker.listening(&topic).await;
    assert!(announcer.tell(&signed(1, 10)) && announcer.tell(&signed(2, 20)));
    while listening.payload().await != signed(2, 20).encoded() {}
    let connector = site.connector("edge-1").listening_to(node("default"));
    let mut pipe = connect_when_open(&connector, &target).await;
    assert_eq!(connector.position_heard(), Some(signed(2, 20)));
    check_echo(&mut pipe, "edge-1", 1_000).await;

    // Another fleet's device hears nothing of it; a connected one pays for no more of it.
    let other = site.connector("edge-2").listening_to(node("elsewhere"));
    drop(connect_when_open(&other, &target).await);
    assert_eq!(other.position_heard(), None);
    assert!(announcer.tell(&signed(3, 30)));
    while listening.payload().await != signed(3, 30).encoded() {}
    check_bytes(&mut pipe, 1_000).await;
    assert_eq!(connector.position_heard(), Some(signed(2, 20)));

    // A broker, or whoever may write there, shows an old one, another fleet's, a forged one, nonsense: none does harm.
    let stranger = Site::new();
    let forger = WriterIdentity::for_hub([7; 32], 9, stranger.installation.root()).unwrap();
    let planted = [
        (signed(1, 10).encoded().clone(), Some(signed(1, 10))),
        (SignedPosition::sign(&identity, ChannelName::Fleet(node("elsewhere")), 99, 99).encoded().clone(), None),
        (SignedPosition::sign(&forger, fleet(), 99, 99).encoded().clone(), None),
        (Bytes::from(vec![0xff; 9_000]), None),
        (Bytes::from_static(b"nonsense"), None),
    ];
    for (payload, expected) in planted {
        listening.plant(&topic, payload).await;
        let connector = site.connector("edge-3").listening_to(node("default"));
        check_echo(&mut connect_when_open(&connector, &target).await, "edge-3", 1_000).await;
        assert_eq!(connector.position_heard(), expected);
    }

    // The broker forgets; the hub tells it again.
    drop(pipe);
    let broker = broker.restart();
    let mut listening = broker.listening(&topic).await;
    while listening.payload().await != signed(3, 30).encoded() {}
    let connector = site.connector("edge-1").listening_to(node("default"));
    drop(connect_when_open(&connector, &target).await);
    assert_eq!(connector.position_heard(), Some(signed(3, 30)));
    serving.abort();
}

async fn a_device_is_told_that_no_hub_is_there(version: Version) {
    let Some(broker) = Broker::start(version) else { return };
    let site = Site::new();
    let presence = topic::presence(&site.installation.id(), &HubName::only());
    let connector = site.connector("edge-1");
    let error = connector.connect(&broker.target()).await.unwrap_err().to_string();
    assert!(error.contains("no hub is at this broker"), "{error}");

    // What is kept of a hub goes with it, also when it is killed.
    for closes in [true, false] {
        let listener = Listener::mqtt(broker.url(), &site.door);
        let mut listening = broker.listening(&presence).await;
        while listening.payload().await != Bytes::from_static(&[1]) {}
        if closes {
            listener.close().await
        } else {
            drop(listener)
        }
        while !listening.payload().await.is_empty() {}
        let mut later = broker.listening("#").await;
        later.plant("flotilla/end", Bytes::from_static(b"end")).await;
        assert_eq!(later.payload().await, Bytes::from_static(b"end"), "nothing is kept of it");
        later.plant("flotilla/end", Bytes::new()).await;
    }
}

/// Hears one filter.
struct Listening {
    client: AsyncClient,
    events: EventLoop,
    heard: std::collections::VecDeque<Bytes>,
}

impl Broker {
    async fn listening(&self, filter: &str) -> Listening {
        let mut options = MqttOptions::new("listening", "127.0.0.1", self.port);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, events) = AsyncClient::new(options, 64);
        client.subscribe(filter, QoS::AtMostOnce).await.unwrap();
        let mut listening = Listening { client, events, heard: std::collections::VecDeque::new() };
        while !matches!(listening.step().await, Packet::SubAck(_)) {}
        listening
    }
}

impl Listening {
    async fn step(&mut self) -> Packet {
        loop {
            if let Event::Incoming(packet) = self.events.poll().await.unwrap() {
                if let Packet::Publish(message) = &packet {
                    self.heard.push_back(message.payload.clone());
                }
                return packet;
            }
        }
    }

    async fn payload(&mut self) -> Bytes {
        let next = async {
            loop {
                match self.heard.pop_front() {
                    Some(payload) => return payload,
                    None => drop(self.step().await),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), next).await.expect("what is awaited comes")
    }

    async fn plant(&mut self, topic: &str, payload: Bytes) {
        self.client.publish_bytes(topic, QoS::AtLeastOnce, true, payload).await.unwrap();
        while !matches!(self.step().await, Packet::PubAck(_)) {}
    }
}
