//! Authenticated, ordered byte streams between devices and the hub's fleet door, over QUIC, MQTT or memory.
//!
//! Owns sockets, TLS inside or beneath the transport, keep-alive and the bounds on strangers. Refuses to know what the bytes
//! mean: a [`Pipe`] is all that a session sees. Start at [`Listener`] (hub) and [`Connector`] (device).
//!
//! Both ends agree on one byte each before a session's own bytes: the device says its version, the hub says that it accepts, or
//! when to come back. Only then does the device know that its certificate was accepted, since TLS 1.3 tells a client nothing.

mod door;
mod ear;
mod memory;
mod mqtt;
mod quic;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod fixture;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

pub use door::{AcceptBucket, Door, DoorLimits, Gate, OpenGate, RetryAfter};
pub use memory::{MemoryDoor, MemoryFault};
pub use mqtt::{BrokerUrl, BrokerUrlError, mosquitto};
pub use quic::SharedSocket;

use crate::channel::ChannelName;
use crate::identity::{
    Credentials, IdentityError, InstallationId, NodeName, PublicKey, TrustTime, device_client, enrol_client,
};
use crate::position::SignedPosition;
use ear::Ear;

/// How long a connection attempt may take, name resolution to acceptance.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The reading half of a stream.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half of a stream.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// An authenticated, ordered byte stream. It ends when both halves are dropped; what must arrive is followed by `shutdown` on the
/// writer and reading until the end.
pub struct Pipe {
    /// Bytes from the peer.
    pub reader: Reader,
    /// Bytes to the peer; flush what must leave.
    pub writer: Writer,
    /// Who the peer has proven to be.
    pub peer: PeerIdentity,
    /// What carries it.
    pub transport: Transport,
    /// The peer's address as text, for people.
    pub remote: String,
    /// At a device over QUIC: true while what was sent has had no answer for seconds, so that another road is worth trying. The
    /// pipe lives on: a gap in the air is no reason to begin anew.
    pub stalled: Option<watch::Receiver<bool>>,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerIdentity {
    /// The installation's hub.
    Hub,
    /// A device with a valid session certificate.
    Device {
        /// Its name.
        node: NodeName,
    },
}

/// The kinds of transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC (RFC 9000) with mutual TLS.
    Quic,
    /// MQTT with mutual TLS inside.
    Mqtt,
    /// Within one process.
    Memory,
}

/// A stream on which the hub has proven itself and the device has not: enrolment alone.
pub struct EnrolStream {
    /// Bytes from the peer.
    pub reader: Reader,
    /// Bytes to the peer.
    pub writer: Writer,
    /// A value that belongs to this TLS connection alone (RFC 5705 exporter), the same at both ends.
    pub binding: [u8; 32],
    /// What carries it.
    pub transport: Transport,
    /// The peer's address as text, for people.
    pub remote: String,
}

/// What comes to the fleet door.
#[derive(Debug)]
pub enum Incoming {
    /// A device with a session certificate.
    Session(Pipe),
    /// A device that wants one: hand it to [`crate::enrol::serve`].
    Enrol(EnrolStream),
}

/// One listening transport of the fleet door. Handshakes run beside each other within [`DoorLimits`]; what comes out of
/// [`Listener::accept`] has passed them.
#[derive(Debug)]
pub struct Listener {
    incoming: mpsc::Receiver<Incoming>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Quic(quic::Listening),
    Mqtt(mqtt::Listening),
    Memory,
}

/// Keeps signed positions at a broker for devices that come.
#[derive(Debug, Clone)]
pub struct Announcer(mqtt::Announcer);

impl Announcer {
    /// Tells this position, now and whenever the broker has been lost. Never blocks; too many fleets are not told (`false`).
    pub fn tell(&self, position: &SignedPosition) -> bool {
        self.0.tell(position)
    }
}

/// Where a device finds the fleet door.
#[derive(Debug, Clone)]
pub enum Target {
    /// `host:port`.
    Quic(String),
    /// A broker.
    Mqtt(BrokerUrl),
    /// A door within the process.
    Memory(MemoryDoor),
}

/// A device's way to sessions. Keep one as long as its certificate: it resumes TLS sessions.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    node: NodeName,
    installation: InstallationId,
    root: PublicKey,
    /// Shown to brokers.
    credentials: Arc<Credentials>,
    ear: Option<Arc<Ear>>,
    socket: Option<SharedSocket>,
}

/// A device's way to an enrolment.
#[derive(Clone)]
pub struct EnrolConnector {
    tls: Arc<ClientConfig>,
    installation: InstallationId,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("{target}: the name cannot be resolved: {why}")]
    Resolve {
        /// What was dialled.
        target: String,
        /// The resolver's word.
        why: String,
    },
    /// No answer, or the way broke.
    #[error("{target}: cannot connect: {why}")]
    Unreachable {
        /// What was dialled.
        target: String,
        /// How it failed.
        why: String,
    },
    /// The peer is not the hub of this installation.
    #[error("{target} is not the hub of this installation: {why}")]
    NotTheHub {
        /// What was dialled.
        target: String,
        /// What its certificate lacks.
        why: String,
    },
    /// The hub does not accept the session certificate: enrol again with the device key.
    #[error("{target}: the hub refuses this device's certificate: {why}; it must be renewed by enrolling again")]
    Refused {
        /// What was dialled.
        target: String,
        /// What the hub said.
        why: String,
    },
    /// The hub is there and asks to come back later.
    #[error("{target}: the hub is busy")]
    Busy {
        /// What was dialled.
        target: String,
        /// When to come back, when it said so. Milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// No answer in time.
    #[error("{target}: no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// What was dialled.
        target: String,
    },
}

/// Why a door cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket.
    #[error("cannot listen on udp {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The TLS configuration does not suit QUIC.
    #[error("TLS configuration of the fleet door: {0}")]
    Tls(String),
}

impl Listener {
    /// Listens for QUIC on a UDP address; port 0 chooses one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn quic(address: SocketAddr, door: &Arc<Door>) -> Result<Self, ListenError> {
        let (sender, incoming) = mpsc::channel(door.limits().accepted_len_max);
        Ok(Self { incoming, inner: Inner::Quic(quic::listen(address, door, sender)?) })
    }

    /// Serves devices through a broker, and comes back to it for as long as this lives whatever happens to it. Must be called
    /// within a tokio runtime.
    pub fn mqtt(broker: BrokerUrl, door: &Arc<Door>) -> Self {
        let (sender, incoming) = mpsc::channel(door.limits().accepted_len_max);
        Self { incoming, inner: Inner::Mqtt(mqtt::listen(broker, door, sender)) }
    }

    /// A door within the process, and what devices dial.
    pub fn memory() -> (Self, MemoryDoor) {
        let (sender, incoming) = mpsc::channel(64);
        (Self { incoming, inner: Inner::Memory }, MemoryDoor::new(sender))
    }

    /// The next arrival; `None` once the listener has ended. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// The UDP address of a QUIC listener.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.inner {
            Inner::Quic(listening) => listening.local_addr(),
            Inner::Mqtt(_) | Inner::Memory => None,
        }
    }

    /// Whether an MQTT listener has its broker now; always true of the others.
    pub fn is_connected(&self) -> bool {
        match &self.inner {
            Inner::Mqtt(listening) => listening.is_connected(),
            Inner::Quic(_) | Inner::Memory => true,
        }
    }

    /// Tells through the broker how far channels of fleets go; `None` for other transports.
    pub fn announcer(&self) -> Option<Announcer> {
        match &self.inner {
            Inner::Mqtt(listening) => Some(Announcer(listening.announcer())),
            Inner::Quic(_) | Inner::Memory => None,
        }
    }

    /// Ends every pipe that came from here, telling the devices at once that the hub stops.
    pub async fn close(self) {
        match self.inner {
            Inner::Quic(listening) => listening.close().await,
            Inner::Mqtt(listening) => listening.close().await,
            Inner::Memory => {}
        }
    }
}

impl Connector {
    /// For the device `node` of the installation with this root and authority.
    ///
    /// # Errors
    /// When key and certificate do not fit.
    pub fn new(
        credentials: &Credentials,
        authority: &CertificateDer<'static>,
        root: &PublicKey,
        node: NodeName,
        time: &Arc<dyn TrustTime>,
    ) -> Result<Self, IdentityError> {
        let tls = device_client(credentials, authority, time)?;
        let (installation, credentials) = (InstallationId::of(root), Arc::new(credentials.clone()));
        Ok(Self { tls, node, installation, root: *root, credentials, ear: None, socket: None })
    }

    /// Over a socket that many devices share, instead of a fresh one for each connection.
    #[must_use]
    pub fn through(self, socket: SharedSocket) -> Self {
        Self { socket: Some(socket), ..self }
    }

    /// Also listens for how far this fleet's channel goes, while it connects through a broker.
    #[must_use]
    pub fn listening_to(self, fleet: NodeName) -> Self {
        let ear = Ear::new(ChannelName::Fleet(fleet), self.root);
        Self { ear: Some(Arc::new(ear)), ..self }
    }

    /// The newest position of the fleet's channel that a hub has signed and a broker has told. A broker may keep an old one back, or
    /// show one: that the device is behind it is certain, that it is not is a hint.
    pub fn position_heard(&self) -> Option<SignedPosition> {
        self.ear.as_ref().and_then(|ear| ear.heard())
    }

    /// Opens a session's stream.
    ///
    /// # Errors
    /// See [`ConnectError`]; takes at most 15 seconds.
    pub async fn connect(&self, target: &Target) -> Result<Pipe, ConnectError> {
        let attempt = async {
            match target {
                Target::Quic(address) => {
                    quic::connect(address, &self.tls, &self.installation, self.socket.as_ref()).await
                }
                Target::Mqtt(broker) => {
                    let (own, ear) = (&self.credentials, self.ear.as_ref());
                    mqtt::connect(broker, &self.tls, &self.installation, &self.node, own, ear).await
                }
                Target::Memory(door) => door.connect(&self.node).await,
            }
        };
        timely(target, attempt).await
    }
}

impl EnrolConnector {
    /// For an installation known by the hash of its authority's certificate and its root key.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn new(pin: [u8; 32], root: &PublicKey, time: &Arc<dyn TrustTime>) -> Result<Self, IdentityError> {
        Ok(Self { tls: enrol_client(pin, time)?, installation: InstallationId::of(root) })
    }

    /// Opens a stream for [`crate::enrol::enrol`].
    ///
    /// # Errors
    /// See [`ConnectError`]; takes at most 15 seconds.
    pub async fn connect(&self, target: &Target) -> Result<EnrolStream, ConnectError> {
        let attempt = async {
            match target {
                Target::Quic(address) => quic::connect_enrol(address, &self.tls, &self.installation).await,
                Target::Mqtt(broker) => mqtt::connect_enrol(broker, &self.tls, &self.installation).await,
                Target::Memory(door) => door.connect_enrol().await,
            }
        };
        timely(target, attempt).await
    }
}

async fn timely<T>(target: &Target, attempt: impl Future<Output = Result<T, ConnectError>>) -> Result<T, ConnectError> {
    tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .unwrap_or_else(|_elapsed| Err(ConnectError::Timeout { target: target.to_string() }))
}

impl Transport {
    /// `quic`, `mqtt` or `memory`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Mqtt => "mqtt",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quic(address) => write!(formatter, "quic {address}"),
            Self::Mqtt(broker) => write!(formatter, "{broker}"),
            Self::Memory(_) => formatter.write_str("memory"),
        }
    }
}

impl ConnectError {
    /// When the hub asked to come back, if it did. Milliseconds.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Busy { retry_after_ms, .. } => *retry_after_ms,
            _ => None,
        }
    }

    /// Whether the hub is there and has too much to do.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pipe")
            .field("peer", &self.peer)
            .field("transport", &self.transport)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EnrolStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EnrolStream")
            .field("transport", &self.transport)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").field("node", &self.node).finish_non_exhaustive()
    }
}

impl fmt::Debug for EnrolConnector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EnrolConnector").field("installation", &self.installation).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
