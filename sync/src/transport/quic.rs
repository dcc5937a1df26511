//! QUIC (quinn): one connection per device, one bidirectional stream as the pipe.
//!
//! Tuned for tens of thousands of idle connections: small windows, one stream, keep-alive by the device alone and rare.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, TransportErrorCode, VarInt};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::door::{self, Door, GreetingError};
use super::{ConnectError, EnrolStream, Incoming, ListenError, PeerIdentity, Pipe, Reader, Transport, Writer};
use crate::identity::{ALPN_ENROL, ALPN_SESSION, InstallationId, peer_node};

/// A device says that it lives at least this often. Together with the answer it costs about
/// 240 bytes a minute; most address translators keep a UDP flow that long.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A peer that has said nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(90);
/// How often a device looks whether its packets are answered, and how often while they are not.
const LOOK: Duration = Duration::from_secs(3);
const LOOK_CLOSELY: Duration = Duration::from_secs(1);
/// So many packets without any answer are more than acknowledgements that need none.
const UNANSWERED_MIN: u64 = 2;
/// For so long: then another road is worth trying.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// Bytes in flight on the stream, each way.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Wished socket buffers of a door: a burst of ten thousand devices must not fall out of them. The system may give less.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// Names of connections that share a device's socket.
const SHARED_ID_BYTES: usize = 3;
/// Label of the value that binds an enrolment to its connection (RFC 5705).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-flotilla-enrol";
/// How long a listener that ends waits for connections to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Application close codes.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);
const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);

/// A listening endpoint.
#[derive(Debug)]
pub(super) struct Listening {
    endpoint: Endpoint,
    accepting: JoinHandle<()>,
}

/// Binds and begins to accept.
pub(super) fn listen(
    address: SocketAddr,
    door: &Arc<Door>,
    sender: mpsc::Sender<Incoming>,
) -> Result<Listening, ListenError> {
    let crypto =
        QuicServerConfig::try_from(Arc::clone(door.tls())).map_err(|error| ListenError::Tls(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(None)));
    config.max_incoming(door.limits().handshakes_max);
    config.incoming_buffer_size(16 * 1024);
    let bind = |source| ListenError::Bind { address, source };
    let socket = socket(address, SOCKET_BUFFER_BYTES).map_err(bind)?;
    let endpoint =
        Endpoint::new(endpoint_config(door.reset_secret()), Some(config), socket, Arc::new(quinn::TokioRuntime))
            .map_err(bind)?;
    let accepting = tokio::spawn(accept_all(endpoint.clone(), Arc::clone(door), sender));
    Ok(Listening { endpoint, accepting })
}

impl Listening {
    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    pub(super) async fn close(&self) {
        self.endpoint.close(CLOSE_DONE, b"the hub stops");
        // The peers are told at once; what is waited for is that their last packets find somebody, for three probe timeouts: minutes
        // behind a fleet that answers slowly.
        if tokio::time::timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await.is_err() {
            tracing::debug!(connections = self.endpoint.open_connections(), "connections were still draining");
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
        self.endpoint.set_server_config(None);
    }
}

async fn accept_all(endpoint: Endpoint, door: Arc<Door>, sender: mpsc::Sender<Incoming>) {
    let handshakes = Arc::new(Semaphore::new(door.limits().handshakes_max));
    while let Some(incoming) = endpoint.accept().await {
        let full = endpoint.open_connections() >= door.limits().connections_max;
        if full || !door.gate().handshake() {
            tracing::debug!(remote = %incoming.remote_address(), full, "refused a QUIC handshake");
            incoming.refuse();
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (door, sender) = (Arc::clone(&door), sender.clone());
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match tokio::time::timeout(door.handshake_timeout(), arrive(incoming, &door)).await {
                Ok(Ok(arrival)) => {
                    drop(permit);
                    // The listener may be gone: then so is this arrival.
                    sender.send(arrival).await.unwrap_or_default();
                }
                Ok(Err(reason)) => tracing::info!(%remote, reason, "a QUIC handshake failed"),
                Err(_elapsed) => tracing::info!(%remote, reason = "it took too long", "a QUIC handshake failed"),
            }
        });
    }
}

async fn arrive(incoming: quinn::Incoming, door: &Door) -> Result<Incoming, String> {
    let remote = format!("udp {}", incoming.remote_address());
    let connection = incoming.await.map_err(|error| error.to_string())?;
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    let peer = match protocol.as_deref() {
        Some(ALPN_ENROL) => None,
        Some(ALPN_SESSION) => {
            let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
            match peer_node(chain.as_ref().map(|chain| &chain[..]), door.now_ms()) {
                Ok(node) => Some(PeerIdentity::Device { node }),
                Err(error) => {
                    let reason = error.to_string();
                    connection.close(CLOSE_REFUSED, reason.as_bytes());
                    return Err(reason);
                }
            }
        }
        _ => return Err("it offered no known protocol".to_owned()),
    };
    let (writer, reader) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let (mut writer, mut reader): (Writer, Reader) = (Box::new(writer), Box::new(reader));
    door::greet_device(&mut reader, &mut writer, door.gate(), peer.as_ref())
        .await
        .map_err(|error| error.to_string())?;
    Ok(match peer {
        Some(peer) => {
            Incoming::Session(Pipe { reader, writer, peer, transport: Transport::Quic, remote, stalled: None })
        }
        None => {
            let binding = binding(&connection)?;
            Incoming::Enrol(EnrolStream { reader, writer, binding, transport: Transport::Quic, remote })
        }
    })
}

/// One UDP socket for the connections of many devices: a process that stands for a fleet, not for a device, cannot have a socket
/// and a task of it for each.
#[derive(Debug, Clone)]
pub struct SharedSocket {
    endpoint: Endpoint,
}

impl SharedSocket {
    /// Binds a socket of the family of `hub`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn towards(hub: SocketAddr) -> io::Result<Self> {
        let socket = socket(unspecified(hub), SOCKET_BUFFER_BYTES)?;
        Ok(Self { endpoint: dialling(socket, SHARED_ID_BYTES)? })
    }
}

/// Opens a session's pipe.
pub(super) async fn connect(
    address: &str,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    shared: Option<&SharedSocket>,
) -> Result<Pipe, ConnectError> {
    let (connection, reader, writer, remote) = dial(address, tls, installation, shared).await?;
    let (sender, stalled) = watch::channel(false);
    let mut watching = JoinSet::new();
    watching.spawn(watch_path(connection, sender));
    let reader = Box::new(Watched { reader, _watching: watching });
    let (peer, transport) = (PeerIdentity::Hub, Transport::Quic);
    Ok(Pipe { reader, writer, peer, transport, remote, stalled: Some(stalled) })
}

/// A reader whose connection is watched for as long as it lives, and no longer: a watcher holds the connection open.
struct Watched {
    reader: Reader,
    _watching: JoinSet<()>,
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().reader).poll_read(context, buffer)
    }
}

/// Says whether what leaves is answered, as long as anybody listens and the connection lives.
async fn watch_path(connection: quinn::Connection, stalled: watch::Sender<bool>) {
    let (mut heard, mut sent, mut unanswered_since) = (0, 0, None);
    let mut pause = LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stalled.closed() => return,
        }
        if connection.close_reason().is_some() {
            return;
        }
        let stats = connection.stats();
        let (received, left) = (stats.udp_rx.datagrams, stats.udp_tx.datagrams);
        if received != heard {
            (heard, sent, unanswered_since) = (received, left, None);
        } else if left >= sent + UNANSWERED_MIN && unanswered_since.is_none() {
            unanswered_since = Some(Instant::now());
        }
        pause = if unanswered_since.is_some() { LOOK_CLOSELY } else { LOOK };
        let now_stalled = unanswered_since.is_some_and(|since| since.elapsed() >= STALLED_AFTER);
        stalled.send_if_modified(|known| std::mem::replace(known, now_stalled) != now_stalled);
    }
}

/// Opens an enrolment's stream.
pub(super) async fn connect_enrol(
    address: &str,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
) -> Result<EnrolStream, ConnectError> {
    let (connection, reader, writer, remote) = dial(address, tls, installation, None).await?;
    let binding =
        binding(&connection).map_err(|why| ConnectError::Unreachable { target: format!("quic {address}"), why })?;
    Ok(EnrolStream { reader, writer, binding, transport: Transport::Quic, remote })
}

async fn dial(
    address: &str,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    shared: Option<&SharedSocket>,
) -> Result<(quinn::Connection, Reader, Writer, String), ConnectError> {
    let target = || format!("quic {address}");
    let resolve = |why: String| ConnectError::Resolve { target: target(), why };
    let addresses = tokio::net::lookup_host(address).await.map_err(|error| resolve(error.to_string()))?;
    let mut failure = resolve("it has no address".to_owned());
    // A name may stand for several addresses, of both families.
    for resolved in addresses.take(4) {
        match dial_one(resolved, tls, installation, shared, &target()).await {
            Ok((connection, reader, writer)) => {
                return Ok((connection, reader, writer, format!("udp {resolved}")));
            }
            Err(error @ ConnectError::Unreachable { .. }) => failure = error,
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

async fn dial_one(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    installation: &InstallationId,
    shared: Option<&SharedSocket>,
    target: &str,
) -> Result<(quinn::Connection, Reader, Writer), ConnectError> {
    let unreachable = |why: String| ConnectError::Unreachable { target: target.to_owned(), why };
    let crypto = QuicClientConfig::try_from(Arc::clone(tls)).map_err(|error| unreachable(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(Some(KEEP_ALIVE))));
    // A fresh socket each time: a device's addresses change beneath it.
    let fresh = || {
        let socket = std::net::UdpSocket::bind(unspecified(address));
        // Its one connection needs no name: whatever comes is of it.
        socket.and_then(|socket| dialling(socket, 0)).map_err(|error| unreachable(error.to_string()))
    };
    let endpoint = shared.map_or_else(fresh, |shared| Ok(shared.endpoint.clone()))?;
    let connection = endpoint
        .connect_with(config, address, &installation.door_name())
        .map_err(|error| unreachable(error.to_string()))?
        .await
        .map_err(|error| connection_error(target, &error))?;
    let (writer, reader) = connection.open_bi().await.map_err(|error| connection_error(target, &error))?;
    let (mut writer, mut reader): (Writer, Reader) = (Box::new(writer), Box::new(reader));
    match door::greet_hub(&mut reader, &mut writer).await {
        Ok(()) => Ok((connection, reader, writer)),
        Err(GreetingError::Busy(retry_after)) => {
            Err(ConnectError::Busy { target: target.to_owned(), retry_after_ms: Some(retry_after.0.into()) })
        }
        Err(error) => Err(match connection.close_reason() {
            Some(reason) => connection_error(target, &reason),
            None => unreachable(error.to_string()),
        }),
    }
}

/// An endpoint that only dials. Every packet to it carries the name of its connection, of so many bytes.
fn dialling(socket: std::net::UdpSocket, id_bytes: usize) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(quinn_proto::RandomConnectionIdGenerator::new(id_bytes)));
    Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))
}

/// Any address of the same family, any port.
fn unspecified(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

/// What a failed connection means to the device.
fn connection_error(target: &str, error: &ConnectionError) -> ConnectError {
    let target = target.to_owned();
    // Alerts of TLS travel as 0x100 + alert (RFC 9001, 4.8). Those about the certificate of the peer that hears them:
    // 42 to 46, 48 and 116 of RFC 8446.
    let alert = |code: u64| matches!(code, 0x12a..=0x12e | 0x130 | 0x174);
    match error {
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            ConnectError::Busy { target, retry_after_ms: None }
        }
        ConnectionError::ConnectionClosed(close) if alert(close.error_code.into()) => {
            ConnectError::Refused { target, why: close.to_string() }
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_REFUSED => {
            ConnectError::Refused { target, why: String::from_utf8_lossy(&close.reason).into_owned() }
        }
        ConnectionError::TransportError(error) if alert(error.code.into()) => {
            ConnectError::NotTheHub { target, why: error.to_string() }
        }
        ConnectionError::TimedOut => ConnectError::Timeout { target },
        other => ConnectError::Unreachable { target, why: other.to_string() },
    }
}

fn binding(connection: &quinn::Connection) -> Result<[u8; 32], String> {
    let mut binding = [0; 32];
    connection
        .export_keying_material(&mut binding, EXPORTER_LABEL, b"")
        .map_err(|_error| "the TLS library exports no key".to_owned())?;
    Ok(binding)
}

/// Connection ids and stateless resets that the next process of this hub recognises and can make too.
fn endpoint_config(secret: &[u8; 64]) -> EndpointConfig {
    let (reset_key, id_key) = secret.split_at(32);
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key)));
    let id_key = id_key.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(id_key)));
    // After a restart all devices are to be told at their next packet: at most 1,000 a second.
    config.min_reset_interval(Duration::from_millis(1));
    config
}

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        // With it every connection keeps a buffer of ten datagrams from the first list it sends on; most changes are one datagram.
        .enable_segmentation_offload(false)
        // Looking for larger datagrams costs both sides some 5 kB in each session, more than most sessions carry.
        .mtu_discovery_config(None)
        .keep_alive_interval(keep_alive)
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    transport
}

fn socket(address: SocketAddr, buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families where the system can.
        socket.set_only_v6(false).unwrap_or_default();
    }
    for set in [Socket::set_recv_buffer_size, Socket::set_send_buffer_size] {
        if let Err(error) = set(&socket, buffer_bytes) {
            tracing::debug!(%error, bytes = buffer_bytes, "the system refuses larger socket buffers");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
