//! The listeners: TLS over TCP for people and programs, a Unix socket for root at the machine itself.
//!
//! Owns sockets, handshakes, time limits and graceful shutdown; refuses the protocol, which is [`Front`]'s. Start at
//! [`serve_tls`].

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authorize::SYSTEM_MASTERS;
use crate::backend::{Backend, User};
use crate::front::{Front, turned_true};

mod deadlines;
mod identity;

use deadlines::Deadlines;

/// Time for the TLS handshake.
const HANDSHAKE_SECONDS_MAX: u64 = 10;
/// Bytes of one request's header.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// A silent HTTP/2 client is asked this often whether it is still there, and has as long to answer.
const KEEP_ALIVE_SECONDS: u64 = 30;
/// Time that requests in flight have to end after shutdown began.
const SHUTDOWN_SECONDS_MAX: u64 = 10;
/// After a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE_MS: u64 = 100;
/// Failed accepts in a row after which the listener counts as lost.
const ACCEPT_FAILURES_MAX: u32 = 300;

/// A server configuration that asks for a client certificate issued by one of `client_roots` but lets a client without one
/// finish the handshake (it may then ask for `/livez`, `/readyz`, `/healthz` and `/version` only).
///
/// # Errors
/// When certificate and key do not fit together, or a root is not a certificate.
pub fn tls_config(
    client_roots: &[CertificateDer<'_>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for root in client_roots {
        roots.add(root.clone().into_owned())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(format!("the roots of client certificates: {error}")))?;
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
}

/// Serves until `shutdown` turns true (or its sender is gone): then no connection is accepted any more, watches and followed
/// logs end, requests in flight are answered, and the function returns. ALPN is set here.
///
/// A caller's name is its certificate's common name, its groups are the organisations.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_tls<B: Backend>(
    listener: TcpListener,
    mut tls: rustls::ServerConfig,
    front: Arc<Front<B>>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    accept(listener, shutdown.clone(), front.limits().connections_open_max, move |stream: TcpStream| {
        let (acceptor, front, shutdown) = (acceptor.clone(), Arc::clone(&front), shutdown.clone());
        async move {
            // Only latency is lost when the kernel refuses.
            drop(stream.set_nodelay(true));
            match timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let (protocol, user) = parties(&stream);
                    converse(stream, protocol, user, front, shutdown).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        }
    })
    .await
}

/// The same over a Unix socket, HTTP/1.1 in plain text. A peer whose uid is root is user `local:root`; any other is
/// `local:uid:<uid>`. Root, and the uid the server itself runs as (which can read its files anyway), are in group
/// `system:masters`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_unix<B: Backend>(
    listener: UnixListener,
    front: Arc<Front<B>>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let own_uid = UnixStream::pair()?.0.peer_cred()?.uid();
    accept(listener, shutdown.clone(), front.limits().connections_open_max, move |stream: UnixStream| {
        let (front, shutdown) = (Arc::clone(&front), shutdown.clone());
        async move {
            let user = match stream.peer_cred() {
                Ok(credentials) => Some(local_user(credentials.uid(), own_uid)),
                Err(error) => {
                    tracing::warn!(%error, "a local caller could not be identified");
                    None
                }
            };
            converse(stream, Protocol::Http1, user, front, shutdown).await;
        }
    })
    .await
}

fn local_user(uid: u32, own_uid: u32) -> User {
    let name = if uid == 0 { "local:root".to_owned() } else { format!("local:uid:{uid}") };
    let trusted = uid == 0 || uid == own_uid;
    User { name, groups: if trusted { vec![SYSTEM_MASTERS.to_owned()] } else { Vec::new() } }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Which protocol was agreed on, and who the client proved to be.
fn parties(stream: &TlsStream<TcpStream>) -> (Protocol, Option<User>) {
    let (_, session) = stream.get_ref();
    let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    (protocol, certificate.and_then(|certificate| identity::user(certificate)))
}

trait Listener: Send + 'static {
    type Stream: Send;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Accepts within the bound of open connections, until shutdown; then waits for the connections to end.
async fn accept<L, F>(
    listener: L,
    mut shutdown: watch::Receiver<bool>,
    connections_open_max: usize,
    serve: impl Fn(L::Stream) -> F,
) -> io::Result<()>
where
    L: Listener,
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections_open_max));
    let mut connections = JoinSet::new();
    let mut failures = 0;
    let ended = loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|stream| (place, stream))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            Some(_) = connections.join_next() => continue,
            () = turned_true(&mut shutdown) => break Ok(()),
        };
        match accepted {
            Ok((place, stream)) => {
                failures = 0;
                let conversation = serve(stream);
                connections.spawn(async move {
                    conversation.await;
                    drop(place);
                });
            }
            Err(error) if failures < ACCEPT_FAILURES_MAX => {
                failures += 1;
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
            Err(error) => break Err(error),
        }
    };
    drop(listener);
    let drained =
        timeout(Duration::from_secs(SHUTDOWN_SECONDS_MAX), async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(open = connections.len(), "connections did not end in time and are cut");
        connections.shutdown().await;
    }
    ended
}

/// Serves one connection to its end.
async fn converse<S, B>(
    stream: S,
    protocol: Protocol,
    user: Option<User>,
    front: Arc<Front<B>>,
    mut shutdown: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Backend,
{
    let limits = front.limits();
    let header_time = Duration::from_secs(limits.header_read_seconds_max);
    let stream = Deadlines::around(stream, header_time, Duration::from_secs(limits.write_stall_seconds_max));
    let ends = shutdown.clone();
    let user = Arc::new(user);
    let service = service_fn(move |request| {
        let (front, user, ends) = (Arc::clone(&front), Arc::clone(&user), ends.clone());
        async move { Ok::<_, Infallible>(front.handle(request, user.as_ref().as_ref(), &ends).await) }
    });
    let io = TokioIo::new(stream);
    // Both arms: serve; once shutdown begins, finish what is in flight.
    let result = match protocol {
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_time)
                .max_buf_size(HEADER_BYTES_MAX)
                .serve_connection(io, service);
            tokio::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = turned_true(&mut shutdown) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
                .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
                .keep_alive_interval(Duration::from_secs(KEEP_ALIVE_SECONDS))
                .keep_alive_timeout(Duration::from_secs(KEEP_ALIVE_SECONDS))
                .serve_connection(io, service);
            tokio::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = turned_true(&mut shutdown) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
