//! The device's side: one connection to the broker per stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{self, Client, Connection, JoinError, Joining};
use super::frame::{Body, CloseReason, Frame, HubNews, SessionId};
use super::link::{Link, LinkIo};
use super::packet::{Keep, Message, Publish};
use super::stream::Role;
use super::topic::{self, Filter, HubName, Party};
use super::{BrokerUrl, EXPORTER_LABEL};
use crate::identity::{Credentials, InstallationId, NodeName, random_bytes};
use crate::transport::door::{self, GreetingError};
use crate::transport::ear::Ear;
use crate::transport::{ConnectError, EnrolStream, PeerIdentity, Pipe, Reader, Transport, Writer};

/// The hub may not be subscribed yet: ask again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// So often; the whole attempt has a limit too, and this one has the better reason to tell.
const OPENS_MAX: usize = 12;
/// Messages on their way to the broker.
const QUEUE_LEN: usize = 32;

/// What is known of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// It has not answered; whether any hub said that it is there.
    Asking { present: bool },
    /// This one serves the stream.
    Opened(HubName),
}

/// Who opens a stream, as the broker is to know.
struct Caller<'a> {
    broker: BrokerUrl,
    installation: &'a InstallationId,
    party: Party,
    own: Option<&'a Credentials>,
    ear: Option<&'a Arc<Ear>>,
}

/// Opens a session's pipe.
pub(in crate::transport) async fn connect(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    node: &NodeName,
    own: &Credentials,
    ear: Option<&Arc<Ear>>,
) -> Result<Pipe, ConnectError> {
    let party = Party::Device(node.clone());
    let opened = open(tls, &Caller { broker: broker.clone(), installation, party, own: Some(own), ear }).await?;
    Ok(Pipe {
        reader: opened.reader,
        writer: opened.writer,
        peer: PeerIdentity::Hub,
        transport: Transport::Mqtt,
        remote: broker.to_string(),
        stalled: None,
    })
}

/// Opens an enrolment's stream.
pub(in crate::transport) async fn connect_enrol(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
) -> Result<EnrolStream, ConnectError> {
    let random = random_bytes::<16>().map_err(|error| unreachable(broker, &error))?;
    // An expired certificate would keep the device out where it is to be renewed: none is shown.
    let (broker, party) = (broker.for_strangers(), Party::enrolling(random));
    let opened = open(tls, &Caller { broker: broker.clone(), installation, party, own: None, ear: None }).await?;
    Ok(EnrolStream {
        reader: opened.reader,
        writer: opened.writer,
        binding: opened.binding,
        transport: Transport::Mqtt,
        remote: broker.to_string(),
    })
}

struct Opened {
    reader: Reader,
    writer: Writer,
    binding: [u8; 32],
}

async fn open(tls: &Arc<ClientConfig>, caller: &Caller<'_>) -> Result<Opened, ConnectError> {
    let Caller { broker, installation, party, .. } = caller;
    let failed = |why: &dyn std::fmt::Display| unreachable(broker, why);
    let session = random_bytes::<16>().map_err(|error| failed(&error))?;
    let (client, connection) = join(caller, session).await?;
    tracing::debug!(%broker, version = connection.version().as_str(), "joined the broker");

    let link = Link::new(session, Role::Device);
    let io = link.io();
    let (advance, mut stage) = watch::channel(Stage::Asking { present: false });
    let carrier = Carrier {
        client: client.clone(),
        link: Arc::clone(&link),
        session,
        installation: (*installation).clone(),
        party: party.clone(),
        ear: caller.ear.cloned(),
        stage: advance,
    };
    tokio::spawn(carrier.run(connection));

    ask(caller, &client, &link, session, &mut stage).await?;
    if let Some(ear) = caller.ear {
        // Enough was heard: a change costs a connected device its bytes once.
        let filter = Filter::plain(topic::position(installation, ear.channel()));
        client.unsubscribe(filter).await.map_err(|_gone| ended(broker, &link))?;
    }

    let name = ServerName::try_from(installation.door_name()).map_err(|error| failed(&error))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, io)
        .await
        .map_err(|error| tls_error(broker, &link, &error))?;
    let binding = binding(&stream).map_err(|error| failed(&error))?;
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer): (Reader, Writer) = (Box::new(reader), Box::new(writer));
    match door::greet_hub(&mut reader, &mut writer).await {
        Ok(()) => Ok(Opened { reader, writer, binding }),
        Err(GreetingError::Busy(retry_after)) => {
            Err(ConnectError::Busy { target: broker.to_string(), retry_after_ms: Some(retry_after.0.into()) })
        }
        Err(GreetingError::Refused(why)) => Err(ConnectError::Refused { target: broker.to_string(), why }),
        Err(GreetingError::Io(error)) => Err(tls_error(broker, &link, &error)),
        Err(error) => Err(failed(&error)),
    }
}

/// Asks for a stream until a hub has answered.
async fn ask(
    caller: &Caller<'_>,
    client: &Client,
    link: &Link,
    session: SessionId,
    stage: &mut watch::Receiver<Stage>,
) -> Result<(), ConnectError> {
    let broker = &caller.broker;
    let (topic, open) = (caller.party.open(caller.installation), Frame { session, body: Body::Open }.encode());
    for _attempt in 0..OPENS_MAX {
        client.publish(topic.clone(), open.clone()).await.map_err(|_gone| ended(broker, link))?;
        let opened = stage.wait_for(|stage| matches!(stage, Stage::Opened(_)));
        if let Ok(answer) = tokio::time::timeout(OPEN_AGAIN, opened).await {
            return answer.map(drop).map_err(|_closed| ended(broker, link));
        }
    }
    let why = match *stage.borrow() {
        Stage::Asking { present: false } => "no hub is at this broker",
        _ => "the hub is at this broker and does not answer",
    };
    Err(unreachable(broker, &why))
}

/// Joins the broker as this party.
async fn join(caller: &Caller<'_>, session: SessionId) -> Result<(Client, Connection), ConnectError> {
    let Caller { broker, installation, party, own, ear } = caller;
    let mut filters = vec![Filter::plain(party.down_filter(installation))];
    if matches!(party, Party::Device(_)) {
        filters.push(Filter::plain(topic::presence_filter(installation)));
    }
    filters.extend(ear.map(|ear| Filter::plain(topic::position(installation, ear.channel()))));
    let close = Frame { session, body: Body::Close { reason: CloseReason::Reset } }.encode();
    let joining = Joining {
        broker,
        client_id: party.client_id(installation),
        own: *own,
        will: Publish { topic: party.gone(installation), payload: close, keep: Keep::No },
        news: None,
        filters,
        queue_len: QUEUE_LEN,
    };
    client::join(&joining).await.map_err(|error| match error {
        // As the hub would say it: the device enrols again, without a certificate.
        JoinError::CertificateExpired => ConnectError::Refused { target: broker.to_string(), why: error.to_string() },
        other => unreachable(broker, &other),
    })
}

/// The connection to the broker, for as long as the stream lives.
struct Carrier {
    client: Client,
    link: Arc<Link>,
    session: SessionId,
    installation: InstallationId,
    party: Party,
    ear: Option<Arc<Ear>>,
    stage: watch::Sender<Stage>,
}

impl Carrier {
    async fn run(self, mut connection: Connection) {
        let pump = self.link.pump(&self.client, || self.up());
        tokio::pin!(pump);
        let mut pumping = true;
        loop {
            tokio::select! {
                () = &mut pump, if pumping => {
                    pumping = false;
                    if self.client.leave().await.is_err() {
                        return;
                    }
                }
                heard = connection.next() => match heard {
                    Ok(Some(message)) => self.message(&message),
                    Ok(None) => return,
                    Err(error) => {
                        self.link.end(&format!("the connection to the broker is gone: {error}"));
                        return;
                    }
                }
            }
        }
    }

    /// Where to the hub; before one has answered there is only an end to tell.
    fn up(&self) -> String {
        match &*self.stage.borrow() {
            Stage::Opened(hub) => self.party.up(&self.installation, hub),
            Stage::Asking { .. } => self.party.gone(&self.installation),
        }
    }

    fn message(&self, message: &Message) {
        if let Some(hub) = self.party.hub_of_down(&self.installation, &message.topic) {
            self.frame(hub, &message.payload);
        } else if let Some(hub) = topic::hub_of_presence(&self.installation, &message.topic) {
            self.news(&hub, message);
        } else if let Some(ear) = &self.ear {
            ear.hear(&message.payload);
        }
    }

    /// A frame of a hub's stream. Two hubs may have heard the opening; the first to answer has it.
    fn frame(&self, hub: HubName, payload: &Bytes) {
        let ours = match &*self.stage.borrow() {
            Stage::Opened(known) => *known == hub,
            Stage::Asking { .. } => true,
        };
        let Some(frame) = Frame::decode(payload).filter(|frame| ours && frame.session == self.session) else { return };
        self.link.handle(frame.body);
        self.stage.send_if_modified(|stage| {
            let opens = matches!(stage, Stage::Asking { .. });
            if opens {
                *stage = Stage::Opened(hub);
            }
            opens
        });
    }

    fn news(&self, hub: &HubName, message: &Message) {
        let Some(news) = HubNews::decode(&message.payload) else { return };
        let serves = matches!(&*self.stage.borrow(), Stage::Opened(known) if known == hub);
        match news {
            // What the broker kept tells how it is, not that it has become so.
            HubNews::Came if serves && !message.retain => self.link.end("the hub has started anew"),
            HubNews::Went if serves => self.link.end("the hub has left the broker"),
            _ => {
                self.stage.send_if_modified(|stage| {
                    if let Stage::Asking { present } = stage {
                        *present = news == HubNews::Came;
                    }
                    false
                });
            }
        }
    }
}

fn binding(stream: &TlsStream<LinkIo>) -> Result<[u8; 32], rustls::Error> {
    stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(b""))
}

fn unreachable(broker: &BrokerUrl, why: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Unreachable { target: broker.to_string(), why: why.to_string() }
}

fn ended(broker: &BrokerUrl, link: &Link) -> ConnectError {
    match link.ended() {
        Some(end) if end.closed == Some(CloseReason::Busy) => {
            ConnectError::Busy { target: broker.to_string(), retry_after_ms: None }
        }
        Some(end) => unreachable(broker, &end.why),
        None => unreachable(broker, &"the connection to the broker ended"),
    }
}

/// What a failure of TLS means to the device.
fn tls_error(broker: &BrokerUrl, link: &Link, error: &io::Error) -> ConnectError {
    let target = broker.to_string();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => ConnectError::NotTheHub { target, why: why.to_string() },
        Some(rustls::Error::AlertReceived(alert)) if about_our_certificate(*alert) => {
            ConnectError::Refused { target, why: format!("{alert:?}") }
        }
        Some(other) => unreachable(broker, other),
        None => match link.ended() {
            Some(_) => ended(broker, link),
            None => unreachable(broker, error),
        },
    }
}

fn about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateRequired
    )
}
