//! The device's side: one connection to the broker per stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{self, Client, Connection, Joining};
use super::frame::{Body, CloseReason, Frame, HubNews, SessionId};
use super::link::{Link, LinkIo};
use super::packet::Message;
use super::stream::Role;
use super::topic::{self, Direction, Party};
use super::{BrokerUrl, EXPORTER_LABEL};
use crate::identity::{InstallationId, NodeName, random_bytes};
use crate::transport::door::{self, GreetingError};
use crate::transport::{ConnectError, EnrolStream, PeerIdentity, Pipe, Reader, Transport, Writer};

/// The hub may not be subscribed yet: ask again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// Messages on their way to the broker.
const QUEUE_LEN: usize = 32;

/// How far a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Subscribed,
    Opened,
}

/// Opens a session's pipe.
pub(in crate::transport) async fn connect(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    node: &NodeName,
) -> Result<Pipe, ConnectError> {
    let opened = open(broker, tls, installation, Party::Device(node.clone())).await?;
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
    let opened = open(broker, tls, installation, Party::enrolling(random)).await?;
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

async fn open(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    party: Party,
) -> Result<Opened, ConnectError> {
    let failed = |why: &dyn std::fmt::Display| unreachable(broker, why);
    let session = random_bytes::<16>().map_err(|error| failed(&error))?;
    let up = party.topic(installation, Direction::Up);
    let close = Frame { session, body: Body::Close { reason: CloseReason::Reset } };
    let down = party.topic(installation, Direction::Down);
    let hub = topic::hub(installation);
    let joining = Joining {
        broker,
        client_id: format!("flotilla-{installation}-{}", party.to_string().replace('/', "-")),
        will: (up.clone(), close.encode()),
        news: None,
        filters: vec![down, hub.clone()],
        queue_len: QUEUE_LEN,
    };
    let (client, connection) = client::join(&joining).await.map_err(|error| failed(&error))?;
    tracing::debug!(%broker, version = connection.version().as_str(), "joined the broker");

    let link = Link::new(session, Role::Device);
    let io = link.io();
    let (advance, mut stage) = watch::channel(Stage::Subscribed);
    let carrier =
        Carrier { client: client.clone(), link: Arc::clone(&link), session, up: up.clone(), hub, stage: advance };
    tokio::spawn(carrier.run(connection));

    let open = Frame { session, body: Body::Open }.encode();
    loop {
        client.publish(&up, open.clone()).await.map_err(|_gone| ended(broker, &link))?;
        match tokio::time::timeout(OPEN_AGAIN, stage.wait_for(|stage| *stage >= Stage::Opened)).await {
            Ok(opened) => {
                opened.map_err(|_closed| ended(broker, &link))?;
                break;
            }
            Err(_elapsed) => {}
        }
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

/// The connection to the broker, for as long as the stream lives.
struct Carrier {
    client: Client,
    link: Arc<Link>,
    session: SessionId,
    up: String,
    hub: String,
    stage: watch::Sender<Stage>,
}

impl Carrier {
    async fn run(self, mut connection: Connection) {
        let pump = self.link.pump(&self.client, &self.up);
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

    fn message(&self, message: &Message) {
        if message.topic == self.hub {
            let opened = *self.stage.borrow() == Stage::Opened;
            match HubNews::decode(&message.payload) {
                Some(HubNews::Came) if opened => self.link.end("the hub has started anew"),
                Some(HubNews::Went) if opened => self.link.end("the hub has left the broker"),
                _ => {}
            }
        } else if let Some(frame) = Frame::decode(&message.payload).filter(|frame| frame.session == self.session) {
            self.link.handle(frame.body);
            self.stage.send_if_modified(|stage| advance(stage, Stage::Opened));
        }
    }
}

fn advance(stage: &mut Stage, to: Stage) -> bool {
    let advances = *stage < to;
    if advances {
        *stage = to;
    }
    advances
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
