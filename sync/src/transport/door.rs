//! What the transports of the fleet door share: certificates, limits, and the gate that paces a storm of devices.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{PeerIdentity, Reader, Writer};
use crate::identity::{
    Credentials, IdentityError, Installation, InstallationId, NodeName, TrustTime, door_server, hex,
};

/// The byte a device begins with: the version of what follows.
const PREFACE: u8 = 1;
/// The hub's answers.
const ACCEPTED: u8 = 0;
const BUSY: u8 = 1;
const REFUSED: u8 = 2;
/// Longest reason that is given or read.
const REASON_BYTES_MAX: usize = 1024;

/// Bounds on those who have not proven themselves, and on those who have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorLimits {
    /// Handshakes that run at one time, over each transport.
    pub handshakes_max: usize,
    /// A handshake takes at most this long.
    pub handshake_ms_max: u64,
    /// Connections of devices, over each transport.
    pub connections_max: usize,
    /// Accepted streams that wait for the hub to take them.
    pub accepted_len_max: usize,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self { handshakes_max: 512, handshake_ms_max: 10_000, connections_max: 50_000, accepted_len_max: 256 }
    }
}

/// The hub asks a device to come back after so many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter(pub u32);

/// The hub's say in who gets in, beside certificates. Called from many tasks; must not block.
pub trait Gate: Send + Sync + fmt::Debug {
    /// Before a handshake, which is the expensive part: refuse here when there are too many. Over QUIC a refusal costs one
    /// packet.
    fn handshake(&self) -> bool;

    /// After it, when the device is known.
    ///
    /// # Errors
    /// When it should come back later.
    fn admit(&self, node: &NodeName) -> Result<(), RetryAfter>;
}

/// A gate that lets everyone in.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn handshake(&self) -> bool {
        true
    }

    fn admit(&self, _node: &NodeName) -> Result<(), RetryAfter> {
        Ok(())
    }
}

/// A token bucket over handshakes: so many per second, with a burst of one second's worth.
#[derive(Debug)]
pub struct AcceptBucket {
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl AcceptBucket {
    /// A full bucket. About 500 per second and core is what handshakes cost.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: f64::from(per_second), state: Mutex::new((f64::from(per_second), now)) }
    }

    /// Takes one token, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, since) = &mut *state;
        *tokens = now.duration_since(*since).as_secs_f64().mul_add(self.per_second, *tokens).min(self.per_second);
        *since = now;
        let taken = *tokens >= 1.0;
        if taken {
            *tokens -= 1.0;
        }
        taken
    }
}

impl Gate for AcceptBucket {
    fn handshake(&self) -> bool {
        self.take(Instant::now())
    }

    fn admit(&self, _node: &NodeName) -> Result<(), RetryAfter> {
        Ok(())
    }
}

/// The fleet door: what every transport needs to let devices in.
pub struct Door {
    tls: Arc<ServerConfig>,
    time: Arc<dyn TrustTime>,
    gate: Arc<dyn Gate>,
    limits: DoorLimits,
    installation: InstallationId,
    reset_secret: [u8; 64],
    at_brokers: Credentials,
    share_group: String,
}

impl Door {
    /// A door with a fresh server certificate of the installation.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn new(
        installation: &Installation,
        time: Arc<dyn TrustTime>,
        gate: Arc<dyn Gate>,
        limits: DoorLimits,
    ) -> Result<Arc<Self>, IdentityError> {
        let credentials = installation.issue_door(time.now_ms())?;
        let tls = door_server(&credentials, installation.authority(), &time)?;
        Self::assemble(installation, tls, time, gate, limits)
    }

    fn assemble(
        installation: &Installation,
        tls: Arc<ServerConfig>,
        time: Arc<dyn TrustTime>,
        gate: Arc<dyn Gate>,
        limits: DoorLimits,
    ) -> Result<Arc<Self>, IdentityError> {
        Ok(Arc::new(Self {
            reset_secret: reset_secret(installation),
            at_brokers: installation.issue_hub_user(time.now_ms())?,
            share_group: hex(&installation.root().sign("mqtt-share-group/1", b"")[..16]),
            installation: installation.id(),
            tls,
            time,
            gate,
            limits,
        }))
    }

    /// A door that presents another certificate than its own.
    #[cfg(test)]
    pub(super) fn with_credentials(
        installation: &Installation,
        credentials: &Credentials,
        time: Arc<dyn TrustTime>,
    ) -> Result<Arc<Self>, IdentityError> {
        let tls = door_server(credentials, installation.authority(), &time)?;
        Self::assemble(installation, tls, time, Arc::new(OpenGate), DoorLimits::default())
    }

    pub(super) fn tls(&self) -> &Arc<ServerConfig> {
        &self.tls
    }

    pub(super) fn limits(&self) -> &DoorLimits {
        &self.limits
    }

    pub(super) fn gate(&self) -> &dyn Gate {
        &*self.gate
    }

    pub(super) fn installation(&self) -> &InstallationId {
        &self.installation
    }

    /// A secret that outlives this process: with it a hub that was killed tells devices at their next packet that it no longer
    /// knows their connections (RFC 9000, 10.3), instead of leaving them to find out by silence.
    pub(super) fn reset_secret(&self) -> &[u8; 64] {
        &self.reset_secret
    }

    /// How the hub shows itself to a broker that asks for a certificate.
    pub(super) fn at_brokers(&self) -> &Credentials {
        &self.at_brokers
    }

    /// The group in which hubs of this installation share what a broker may hand to any of them. A secret, made like
    /// [`Self::reset_secret`]: a device that knew it could join, and take away what is meant for a hub.
    pub(super) fn share_group(&self) -> &str {
        &self.share_group
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.time.now_ms()
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.handshake_ms_max)
    }
}

/// Ed25519 signatures are deterministic (RFC 8032), and this one is never shown to anyone: a secret of the installation.
fn reset_secret(installation: &Installation) -> [u8; 64] {
    installation.root().sign("quic-reset-secret/1", b"")
}

impl fmt::Debug for Door {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Door").field("installation", &self.installation).finish_non_exhaustive()
    }
}

/// How the first bytes of a stream went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("the stream ended: {0}")]
    Io(#[from] std::io::Error),
    #[error("the device speaks version {0}, this hub version {PREFACE}: update the older one")]
    Preface(u8),
    #[error("the hub is busy")]
    Busy(RetryAfter),
    #[error("{0}")]
    Refused(String),
    #[error("the hub answered {0}, which this version does not know: update this device")]
    Answer(u8),
}

/// The hub's half of the first bytes.
pub(super) async fn greet_device(
    reader: &mut Reader,
    writer: &mut Writer,
    gate: &dyn Gate,
    peer: Option<&PeerIdentity>,
) -> Result<(), GreetingError> {
    let preface = reader.read_u8().await?;
    if preface != PREFACE {
        return Err(GreetingError::Preface(preface));
    }
    if let Some(PeerIdentity::Device { node }) = peer
        && let Err(retry_after) = gate.admit(node)
    {
        let [a, b, c, d] = retry_after.0.to_be_bytes();
        last_words(reader, writer, &[BUSY, a, b, c, d]).await?;
        return Err(GreetingError::Busy(retry_after));
    }
    writer.write_all(&[ACCEPTED]).await?;
    writer.flush().await?;
    Ok(())
}

/// Tells a device why its certificate does not let it in.
pub(super) async fn refuse(reader: &mut Reader, writer: &mut Writer, reason: &str) -> Result<(), GreetingError> {
    let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
    let length = u16::try_from(reason.len()).unwrap_or(0).to_be_bytes();
    last_words(reader, writer, &[&[REFUSED], &length[..], reason].concat()).await
}

async fn last_words(reader: &mut Reader, writer: &mut Writer, words: &[u8]) -> Result<(), GreetingError> {
    writer.write_all(words).await?;
    writer.shutdown().await?;
    // The device closes once it has read this; the handshake's timeout is over us.
    while reader.read(&mut [0; 16]).await.is_ok_and(|length| length > 0) {}
    Ok(())
}

/// The device's half.
pub(super) async fn greet_hub(reader: &mut Reader, writer: &mut Writer) -> Result<(), GreetingError> {
    writer.write_all(&[PREFACE]).await?;
    writer.flush().await?;
    match reader.read_u8().await? {
        ACCEPTED => Ok(()),
        BUSY => Err(GreetingError::Busy(RetryAfter(reader.read_u32().await?))),
        REFUSED => {
            let mut reason = vec![0; usize::from(reader.read_u16().await?).min(REASON_BYTES_MAX)];
            reader.read_exact(&mut reason).await?;
            Err(GreetingError::Refused(String::from_utf8_lossy(&reason).into_owned()))
        }
        other => Err(GreetingError::Answer(other)),
    }
}
