//! TLS to a broker: what hides who talks, and the login. Between device and hub the stream is encrypted in any case.
//!
//! A broker's certificate is judged by the system's authorities, by a file of them, or by the hash of its own or its authority's
//! certificate in the address. A clock that is behind keeps no device from its broker; one that is ahead may.
//!
//! A broker that asks for a certificate is shown the device's session certificate, or the hub's own one for brokers: the names in them
//! stand in the topics anyway.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::url::Trust;
use crate::identity::{Credentials, pin_of, validity_ms};

/// Where systems keep the authorities they trust.
const SYSTEM_FILES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Encrypts a connection to `host`; `own` is shown to a broker that asks for it.
pub(super) async fn connect(
    stream: TcpStream,
    host: &str,
    trust: &Trust,
    own: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::of(trust, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match own {
        Some(own) => builder
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
            .map_err(|error| format!("the certificate for the broker cannot be used: {error}"))?,
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_name| format!("{host:?} is no name of a server"))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| format!("no TLS connection to the broker: {error}"))
}

/// Whether a broker ended a connection because the certificate it was shown is over. TLS 1.3 says so after the handshake.
pub(super) fn says_expired(error: &io::Error) -> bool {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(alert, Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)))
}

#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    pin: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn of(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let pin = match trust {
            Trust::Pin(pin) => Some(*pin),
            Trust::File(path) => {
                let certificates = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| format!("cannot read the authorities of the broker in {path}: {error}"))?;
                if roots.add_parsable_certificates(certificates).0 == 0 {
                    return Err(format!("there is no certificate of an authority in {path}"));
                }
                None
            }
            Trust::System => {
                let found = SYSTEM_FILES.iter().find_map(|path| CertificateDer::pem_file_iter(path).ok());
                roots.add_parsable_certificates(found.into_iter().flatten().filter_map(Result::ok));
                if roots.is_empty() {
                    return Err("this system has no list of authorities; name one by ?ca=FILE or the broker's \
                                certificate by ?pin=SHA256"
                        .to_owned());
                }
                None
            }
        };
        Ok(Self { roots: Arc::new(roots), pin, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let invalid = rustls::Error::InvalidCertificate;
        let mut roots = Arc::clone(&self.roots);
        if let Some(pin) = self.pin {
            if pin_of(leaf) == pin {
                return Ok(ServerCertVerified::assertion());
            }
            let pinned = others.iter().find(|other| pin_of(other) == pin);
            let mut only = RootCertStore::empty();
            only.add(pinned.ok_or(invalid(CertificateError::UnknownIssuer))?.clone().into_owned())?;
            roots = Arc::new(only);
        }
        let (from_ms, _) = validity_ms(leaf).map_err(|_error| invalid(CertificateError::BadEncoding))?;
        let now = now.max(UnixTime::since_unix_epoch(std::time::Duration::from_millis(from_ms)));
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
