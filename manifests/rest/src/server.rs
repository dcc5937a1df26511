//! The listeners: TLS over TCP for people and programs, a Unix socket for root at the machine itself.
//!
//! Owns sockets, handshakes, time limits and graceful shutdown; refuses the protocol, which is [`Front`]'s. Start at
//! [`serve_tls`].

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::backend::Backend;
use crate::front::Front;

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
    unimplemented!("{client_roots:?} {chain:?} {key:?}")
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
    tls: rustls::ServerConfig,
    front: Arc<Front<B>>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    unimplemented!("{listener:?} {tls:?} {front:?} {shutdown:?}")
}

/// The same over a Unix socket, HTTP/1.1 in plain text: a peer whose uid is root is user `local:root` in group
/// `system:masters`; any other is user `local:uid:<uid>` without groups.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_unix<B: Backend>(
    listener: UnixListener,
    front: Arc<Front<B>>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    unimplemented!("{listener:?} {front:?} {shutdown:?}")
}
