//! The rustls configurations of the fleet door and of devices: TLS 1.3, ring, nothing from the process.
//!
//! A device pins the authority and expects the door's name, whatever address it dialled. It judges the age of the door's
//! certificate by the proven floor of time alone: a clock that reads 1970 or 2050 must not keep a device from its hub. The hub
//! judges devices by its own clock.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use super::authority::pin_of;
use super::certificate::validity_ms;
use super::{Credentials, IdentityError, TrustTime};

/// ALPN of a session: both sides present certificates.
pub const ALPN_SESSION: &[u8] = b"flotilla/1";
/// ALPN of an enrolment: the device has no certificate yet, or an expired one.
pub const ALPN_ENROL: &[u8] = b"flotilla-enrol/1";

/// The fleet door's configuration, for sessions and enrolments: a client may come without a certificate, but one that is presented
/// must verify. The caller refuses sessions without one.
///
/// # Errors
/// When key and chain do not fit, or randomness fails.
pub fn door_server(
    credentials: &Credentials,
    authority: &CertificateDer<'static>,
    time: &Arc<dyn TrustTime>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let key = provider.key_provider.load_private_key(credentials.key.clone_key())?;
    let session = CertifiedKey::new(credentials.chain.clone(), Arc::clone(&key));
    let mut chain = credentials.chain.clone();
    chain.push(authority.clone());
    let chains = Chains { session: Arc::new(session), enrol: Arc::new(CertifiedKey::new(chain, key)) };
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(VerificationTime(Arc::clone(time))))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(chains));
    config.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_ENROL.to_vec()];
    // Tickets that the hub need not remember, however many devices there are.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// A device's configuration for sessions.
///
/// # Errors
/// When key and chain do not fit.
pub fn device_client(
    credentials: &Credentials,
    authority: &CertificateDer<'static>,
    time: &Arc<dyn TrustTime>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = Pinned { pin: pin_of(authority), authority: Some(authority.clone()), time: Arc::clone(time) };
    let mut config = client_builder(verifier, time)?
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_SESSION.to_vec()];
    config.resumption = Resumption::in_memory_sessions(2);
    Ok(Arc::new(config))
}

/// A device's configuration for enrolment: it knows the SHA-256 of the authority's certificate, which the hub presents.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn enrol_client(pin: [u8; 32], time: &Arc<dyn TrustTime>) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = Pinned { pin, authority: None, time: Arc::clone(time) };
    let mut config = client_builder(verifier, time)?.with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn client_builder(
    verifier: Pinned,
    time: &Arc<dyn TrustTime>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, IdentityError> {
    Ok(ClientConfig::builder_with_details(provider(), Arc::new(VerificationTime(Arc::clone(time))))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(roots)
}

/// The authority is presented only to a device that does not have it yet: sessions save the bytes.
#[derive(Debug)]
struct Chains {
    session: Arc<CertifiedKey>,
    enrol: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Chains {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let enrols = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN_ENROL));
        Some(Arc::clone(if enrols { &self.enrol } else { &self.session }))
    }
}

#[derive(Debug)]
struct VerificationTime(Arc<dyn TrustTime>);

impl TimeProvider for VerificationTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now_ms()))
    }
}

/// Verifies a server against one authority, given or recognised by its hash.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    authority: Option<CertificateDer<'static>>,
    time: Arc<dyn TrustTime>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = || others.iter().find(|certificate| pin_of(certificate) == self.pin).cloned();
        let authority = self
            .authority
            .clone()
            .or_else(|| presented().map(CertificateDer::into_owned))
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let (from_ms, to_ms) = validity_ms(leaf)
            .map_err(|_error| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let floor_ms = self.time.floor_ms();
        if floor_ms > to_ms {
            return Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext {
                time: unix_time(floor_ms),
                not_after: unix_time(to_ms),
            }));
        }
        let judged_ms = self.time.now_ms().clamp(from_ms, to_ms.max(from_ms));
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&authority)?), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(leaf, &[], name, ocsp, unix_time(judged_ms))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn unix_time(at_ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_millis(at_ms))
}
