//! The hub's side: one connection to the broker, all devices over it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::announce::{Announcements, Announcer};
use super::client::{self, Client, Connection, JoinError, Joining};
use super::frame::{Body, CloseReason, Frame, HubNews, SessionId};
use super::link::{Link, LinkIo};
use super::packet::{Keep, Message, Publish};
use super::stream::Role;
use super::topic::{self, Heard, HubName, Party};
use super::{BrokerUrl, EXPORTER_LABEL};
use crate::backoff::Backoff;
use crate::identity::{ALPN_ENROL, ALPN_SESSION, peer_node, random_bytes};
use crate::transport::door;
use crate::transport::{Door, EnrolStream, Incoming, PeerIdentity, Pipe, Reader, Transport, Writer};

/// Messages on their way to the broker; pumps wait when it is full.
const QUEUE_LEN: usize = 256;
/// Handshakes of one party at one time: the newest win.
const STRANGERS_PER_PARTY_MAX: usize = 2;
/// Of the handshakes, one in so many may be of those who have no certificate: whoever can reach the broker can make them.
const ENROLLING_SHARE: usize = 4;
/// How long a hub that stops tries to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// A hub's presence at a broker.
#[derive(Debug)]
pub(in crate::transport) struct Listening {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    broker: BrokerUrl,
    hub: HubName,
    announcements: Arc<Announcements>,
    door: Arc<Door>,
    sender: mpsc::Sender<Incoming>,
    connected: AtomicBool,
    stopping: AtomicBool,
    stop: Notify,
    client: Mutex<Option<Client>>,
}

/// Begins to serve devices through `broker`.
pub(in crate::transport) fn listen(broker: BrokerUrl, door: &Arc<Door>, sender: mpsc::Sender<Incoming>) -> Listening {
    listen_as(HubName::only(), broker, door, sender)
}

/// The same as one of several hubs.
pub(super) fn listen_as(
    hub: HubName,
    broker: BrokerUrl,
    door: &Arc<Door>,
    sender: mpsc::Sender<Incoming>,
) -> Listening {
    let shared = Arc::new(Shared {
        broker,
        hub,
        announcements: Arc::default(),
        door: Arc::clone(door),
        sender,
        connected: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        stop: Notify::new(),
        client: Mutex::new(None),
    });
    let task = tokio::spawn(run(Arc::clone(&shared)));
    Listening { shared, task }
}

impl Listening {
    pub(in crate::transport) fn announcer(&self) -> Announcer {
        Announcer::of(&self.shared.announcements)
    }

    pub(in crate::transport) fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }

    pub(in crate::transport) async fn close(mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let client = self.shared.client().clone();
        let farewell = async {
            if let Some(client) = client
                && client.send(self.shared.news(HubNews::Went)).await.is_ok()
            {
                // A client that is already gone needs no farewell.
                client.leave().await.unwrap_or_default();
            }
            self.shared.stop.notify_one();
            (&mut self.task).await.unwrap_or_default();
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::debug!(broker = %self.shared.broker, "the broker did not take the farewell in time");
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// What all devices are told, and what those find who come later.
    fn news(&self, news: HubNews) -> Publish {
        let topic = topic::presence(self.door.installation(), &self.hub);
        Publish { topic, payload: news.encode(), keep: Keep::Retained }
    }

    fn client(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("broker", &self.broker)
            .field("connected", &self.connected)
            .finish_non_exhaustive()
    }
}

/// Connects, serves until the broker is lost, and comes back.
async fn run(shared: Arc<Shared>) {
    let started = Instant::now();
    let now_ms = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut backoff = Backoff::new();
    while !shared.stopping.load(Ordering::Relaxed) {
        let error = match Visit::begin(&shared).await {
            Ok((visit, mut connection)) => {
                backoff.connected(now_ms());
                let error = visit.serve(&mut connection).await;
                shared.connected.store(false, Ordering::Relaxed);
                *shared.client() = None;
                visit.table().end_all();
                error
            }
            Err(error) => error.to_string(),
        };
        if shared.stopping.load(Ordering::Relaxed) || shared.sender.is_closed() {
            return;
        }
        let random = random_bytes::<8>().map_or(u64::MAX / 2, u64::from_le_bytes);
        let wait_ms = backoff.wait_ms(now_ms(), random, None);
        tracing::warn!(broker = %shared.broker, error, wait_ms, "the MQTT broker is not reachable");
        tokio::select! {
            () = shared.stop.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One connection to the broker with everything over it.
struct Visit {
    shared: Arc<Shared>,
    client: Client,
    table: Mutex<Table>,
}

impl Visit {
    /// Joins the broker. First the news, then the subscriptions: a stream that a device opens after the news is not void.
    async fn begin(shared: &Arc<Shared>) -> Result<(Arc<Self>, Connection), JoinError> {
        let installation = shared.door.installation();
        let joining = Joining {
            broker: &shared.broker,
            client_id: topic::hub_client_id(installation, &shared.hub),
            own: Some(shared.door.at_brokers()),
            will: shared.news(HubNews::Went),
            news: Some(shared.news(HubNews::Came)),
            filters: topic::hub_filters(installation, &shared.hub, shared.door.share_group()),
            queue_len: QUEUE_LEN,
        };
        let (client, connection) = client::join(&joining).await?;
        *shared.client() = Some(client.clone());
        let visit = Self { shared: Arc::clone(shared), client, table: Mutex::new(Table::default()) };
        Ok((Arc::new(visit), connection))
    }

    /// Serves until the connection ends; says why it did.
    async fn serve(self: &Arc<Self>, connection: &mut Connection) -> String {
        self.shared.connected.store(true, Ordering::Relaxed);
        let (broker, version) = (&self.shared.broker, connection.version().as_str());
        tracing::info!(%broker, version, "serving devices over MQTT");
        let announcing = AbortOnDrop(tokio::spawn(Arc::clone(self).announce()));
        let why = self.hear(connection).await;
        drop(announcing);
        why
    }

    /// Tells the broker what it is to keep, for as long as it is there.
    async fn announce(self: Arc<Self>) {
        let Shared { announcements, door, .. } = &*self.shared;
        announcements.tell_all_again();
        loop {
            let (channel, payload) = announcements.next().await;
            let topic = topic::position(door.installation(), &channel);
            if self.client.send(Publish { topic, payload, keep: Keep::Retained }).await.is_err() {
                return;
            }
        }
    }

    async fn hear(self: &Arc<Self>, connection: &mut Connection) -> String {
        loop {
            match connection.next().await {
                Ok(Some(message)) => self.message(&message),
                Ok(None) => return "the hub stops".to_owned(),
                Err(lost) => return lost.to_string(),
            }
        }
    }

    fn message(self: &Arc<Self>, message: &Message) {
        if message.retain {
            return;
        }
        let Shared { door, hub, .. } = &*self.shared;
        let Some(heard) = Heard::of(door.installation(), hub, &message.topic) else { return };
        let Heard { party, outside_stream } = heard;
        let Some(Frame { session, body }) = Frame::decode(&message.payload) else {
            tracing::debug!(%party, bytes = message.payload.len(), "dropped an MQTT message that is no frame");
            return;
        };
        if outside_stream != matches!(body, Body::Open) && !matches!(body, Body::Close { .. }) {
            return;
        }
        let link = match self.table().sessions.get(&session) {
            Some(entry) if entry.party == party => Some(Arc::clone(&entry.link)),
            Some(_) => return,
            None => None,
        };
        match (link, body) {
            (Some(link), body) => link.handle(body),
            (None, Body::Open) => self.open(party, session),
            (None, Body::Close { .. }) => {}
            (None, _) => self.say_close(&party, session, CloseReason::Reset),
        }
    }

    fn open(self: &Arc<Self>, party: Party, session: SessionId) {
        let limits = self.shared.door.limits();
        let mut table = self.table();
        let full = table.strangers >= limits.handshakes_max
            || table.sessions.len() >= limits.connections_max
            || (matches!(party, Party::Enrol(_)) && table.enrolling >= limits.handshakes_max / ENROLLING_SHARE);
        if full || !self.shared.door.gate().handshake() {
            drop(table);
            self.say_close(&party, session, CloseReason::Busy);
            return;
        }
        let link = Link::new(session, Role::Hub);
        link.handle(Body::Open);
        table.insert(party.clone(), session, Arc::clone(&link));
        drop(table);
        tokio::spawn(Arc::clone(self).welcome(party.clone(), session, Arc::clone(&link)));
        let visit = Arc::clone(self);
        tokio::spawn(async move {
            let topic = party.down(visit.shared.door.installation(), &visit.shared.hub);
            link.pump(&visit.client, || topic.clone()).await;
            visit.table().remove(&party, &session);
            let why = link.ended().map(|end| end.why).unwrap_or_default();
            tracing::debug!(%party, why, "an MQTT stream ended");
        });
    }

    /// The handshake of one stranger.
    async fn welcome(self: Arc<Self>, party: Party, session: SessionId, link: Arc<Link>) {
        let door = &self.shared.door;
        let arrival = tokio::time::timeout(door.handshake_timeout(), self.arrive(&party, &link)).await;
        match arrival {
            Ok(Ok(arrival)) => {
                self.table().establish(&party, &session);
                // The listener may be gone: then so is this arrival.
                self.shared.sender.send(arrival).await.unwrap_or_default();
            }
            Ok(Err(reason)) => tracing::info!(%party, reason, "an MQTT handshake failed"),
            Err(_elapsed) => tracing::info!(%party, reason = "it took too long", "an MQTT handshake failed"),
        }
    }

    async fn arrive(&self, party: &Party, link: &Arc<Link>) -> Result<Incoming, String> {
        let door = &self.shared.door;
        let accept = TlsAcceptor::from(Arc::clone(door.tls())).accept(link.io());
        let stream: tokio_rustls::server::TlsStream<LinkIo> = accept.await.map_err(|error| error.to_string())?;
        let tls = stream.get_ref().1;
        let peer = match (tls.alpn_protocol(), party) {
            (Some(ALPN_SESSION), Party::Device(node)) => {
                match peer_node(tls.peer_certificates(), door.now_ms()).map_err(|error| error.to_string()) {
                    Ok(named) if named == *node => Ok(Some(PeerIdentity::Device { node: named })),
                    Ok(named) => Err(format!("the certificate names node {named}, the topic {node}")),
                    Err(why) => Err(why),
                }
            }
            (Some(ALPN_ENROL), Party::Enrol(_)) => Ok(None),
            _ => Err("protocol and topic do not belong together".to_owned()),
        };
        let binding: [u8; 32] =
            tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(b"")).map_err(|error| error.to_string())?;
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer): (Reader, Writer) = (Box::new(reader), Box::new(writer));
        let remote = format!("{}/{party}", self.shared.broker);
        let peer = match peer {
            Ok(peer) => peer,
            Err(reason) => {
                door::refuse(&mut reader, &mut writer, &reason).await.map_err(|error| error.to_string())?;
                return Err(reason);
            }
        };
        link.trust();
        door::greet_device(&mut reader, &mut writer, door.gate(), peer.as_ref())
            .await
            .map_err(|error| error.to_string())?;
        let transport = Transport::Mqtt;
        Ok(match peer {
            Some(peer) => Incoming::Session(Pipe { reader, writer, peer, transport, remote, stalled: None }),
            None => Incoming::Enrol(EnrolStream { reader, writer, binding, transport, remote }),
        })
    }

    /// Best effort: whoever does not hear it finds out by asking.
    fn say_close(&self, party: &Party, session: SessionId, reason: CloseReason) {
        let topic = party.down(self.shared.door.installation(), &self.shared.hub);
        let frame = Frame { session, body: Body::Close { reason } }.encode();
        if self.client.try_publish(topic, frame).is_err() {
            tracing::debug!(%party, "the queue to the broker is full: a close was not said");
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every stream of one visit.
#[derive(Default)]
struct Table {
    sessions: HashMap<SessionId, Entry>,
    /// Oldest first.
    parties: BTreeMap<Party, Vec<SessionId>>,
    strangers: usize,
    /// Streams of enrolments, proven or not: none of them ever shows a certificate.
    enrolling: usize,
}

struct Entry {
    party: Party,
    link: Arc<Link>,
    stranger: bool,
}

impl Table {
    fn insert(&mut self, party: Party, session: SessionId, link: Arc<Link>) {
        let theirs = self.parties.entry(party.clone()).or_default();
        let strangers = theirs.iter().filter(|id| self.sessions.get(*id).is_some_and(|entry| entry.stranger));
        let strangers = strangers.copied().collect::<Vec<_>>();
        theirs.push(session);
        // One that was ended before may still be on its way out: all but the newest are ended, not the oldest alone.
        let too_many = (strangers.len() + 1).saturating_sub(STRANGERS_PER_PARTY_MAX);
        for entry in strangers.iter().take(too_many).filter_map(|id| self.sessions.get(id)) {
            entry.link.end("a newer attempt took its place");
        }
        self.enrolling += usize::from(matches!(party, Party::Enrol(_)));
        self.sessions.insert(session, Entry { party, link, stranger: true });
        self.strangers += 1;
    }

    /// The party has proven itself on this session: its earlier ones are over.
    fn establish(&mut self, party: &Party, session: &SessionId) {
        if let Some(entry) = self.sessions.get_mut(session).filter(|entry| entry.stranger) {
            entry.stranger = false;
            self.strangers -= 1;
        }
        for other in self.parties.get(party).into_iter().flatten().filter(|other| *other != session) {
            if let Some(entry) = self.sessions.get(other).filter(|entry| !entry.stranger) {
                entry.link.end("the device has connected anew");
            }
        }
    }

    fn remove(&mut self, party: &Party, session: &SessionId) {
        if let Some(entry) = self.sessions.remove(session) {
            self.strangers -= usize::from(entry.stranger);
            self.enrolling -= usize::from(matches!(entry.party, Party::Enrol(_)));
        }
        if let Some(theirs) = self.parties.get_mut(party) {
            theirs.retain(|id| id != session);
            if theirs.is_empty() {
                self.parties.remove(party);
            }
        }
    }

    fn end_all(&self) {
        for entry in self.sessions.values() {
            entry.link.end("the connection to the broker is gone");
        }
    }
}
