//! The installation: an Ed25519 root (the trust anchor of records) and an X.509 authority (the trust anchor of connections).
//!
//! The authority is ECDSA P-256: every TLS client of the last decade verifies it, kubectl and FIPS builds included.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::certificate::{self, CertificateError, pem};
use super::keys::{hex, random_bytes};
use super::{
    Credentials, DeviceCertificate, IdentityError, NodeName, PublicKey, SealingKey, SealingPublicKey, SigningKey,
};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The authority must outlive its devices: 30 years.
const AUTHORITY_DAYS: u64 = 30 * 365;
/// Server certificates are reissued at each start of the hub; a hub that nobody restarts must not lock its devices out. Their key lies
/// beside the authority's own, so that a shorter life would protect nothing.
const SERVER_DAYS: u64 = 10 * 365;
/// Session certificates are short; renewed after two thirds.
const SESSION_DAYS: u64 = 30;
/// What the names of fleet doors end with.
const DOOR_DOMAIN: &str = ".hub.flotilla.internal";
/// Certificates are valid from an hour before their issue, for clocks that run a little behind.
const BACKDATE_MS: u64 = 60 * 60 * 1000;
/// 9999-12-31T23:59:59Z: a certificate without an end (RFC 5280, 4.1.2.5).
const NO_END_MS: u64 = 253_402_300_799_000;

/// The keys of one installation, held by its hub.
pub struct Installation {
    root: SigningKey,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    authority_key: PrivatePkcs8KeyDer<'static>,
}

/// [`Installation`] as stored: secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallationMaterial {
    /// Seed of the root key.
    pub root_seed: [u8; 32],
    /// The authority's certificate.
    pub authority_pem: String,
    /// The authority's key.
    pub authority_key_pem: String,
}

/// A short name of an installation: 16 hexadecimal digits of the hash of its root key. Safe in a topic and a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstallationId(String);

impl InstallationId {
    /// The name of the installation with this root.
    pub fn of(root: &PublicKey) -> Self {
        Self(hex(&digest(&SHA256, &root.0).as_ref()[..8]))
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 16 && digits).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host name in the certificate of this installation's fleet door. Devices check this name and not the address they
    /// dialled: hubs move, and a broker has no name of the hub.
    pub fn door_name(&self) -> String {
        format!("{}{DOOR_DOMAIN}", self.0)
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Installation {
    /// Makes root and authority: once, at the first start of the first hub.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn create(now_ms: u64) -> Result<Self, IdentityError> {
        Self::created(params(now_ms, AUTHORITY_DAYS * DAY_MS)?)
    }

    /// Makes an authority whose certificates hold at any time: that of a device's own API. The device may believe that it is 1970 or
    /// 2099, the technician's computer knows better, and neither may lock the other out. Use it with the `timeless` methods.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn create_timeless() -> Result<Self, IdentityError> {
        Self::created(params(0, NO_END_MS)?)
    }

    fn created(mut params: CertificateParams) -> Result<Self, IdentityError> {
        let root = SigningKey::generate()?;
        let id = InstallationId::of(&root.public());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Signing)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = subject(&format!("flotilla {id}"), None);
        let authority = params.self_signed(&key).map_err(CertificateError::Signing)?.der().clone();
        Self::assemble(root, authority, key)
    }

    /// Reads a stored installation.
    ///
    /// # Errors
    /// When a part is damaged, or the key is not that of the certificate.
    pub fn from_material(material: &InstallationMaterial) -> Result<Self, IdentityError> {
        let damaged = |field, why: &dyn fmt::Display| IdentityError::Damaged { field, why: why.to_string() };
        let authority = CertificateDer::from_pem_slice(material.authority_pem.as_bytes())
            .map_err(|error| damaged("authority certificate", &error))?;
        let key = KeyPair::from_pem(&material.authority_key_pem).map_err(|error| damaged("authority key", &error))?;
        Self::assemble(SigningKey::from_seed(material.root_seed)?, authority, key)
    }

    fn assemble(root: SigningKey, authority: CertificateDer<'static>, key: KeyPair) -> Result<Self, IdentityError> {
        let damaged = |why: &dyn fmt::Display| IdentityError::Damaged { field: "authority", why: why.to_string() };
        let certified = certificate::public_key_bytes(&authority)?;
        if certified != key.der_bytes() {
            return Err(damaged(&"its key is not the one in its certificate"));
        }
        let authority_key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let issuer = Issuer::from_ca_cert_der(&authority, key).map_err(|error| damaged(&error))?;
        Ok(Self { root, authority, issuer, authority_key })
    }

    /// What to store.
    pub fn to_material(&self) -> InstallationMaterial {
        InstallationMaterial {
            root_seed: self.root.seed(),
            authority_pem: self.authority_pem(),
            authority_key_pem: pem("PRIVATE KEY", self.authority_key.secret_pkcs8_der()),
        }
    }

    /// The root: certifies hub writers and devices.
    pub fn root(&self) -> &SigningKey {
        &self.root
    }

    /// The installation's short name.
    pub fn id(&self) -> InstallationId {
        InstallationId::of(&self.root.public())
    }

    /// The key to which devices seal what they send by stick. Made from the root's seed: a hub that was restored from a backup
    /// opens what was sealed to the one before.
    pub fn sealing(&self) -> SealingKey {
        SealingKey::derive("hub-sealing-key/1", &self.root.seed())
    }

    /// The authority's certificate.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// The authority's certificate as PEM, for kubeconfigs.
    pub fn authority_pem(&self) -> String {
        pem("CERTIFICATE", &self.authority)
    }

    /// What a token pins: SHA-256 of the authority's certificate.
    pub fn pin(&self) -> [u8; 32] {
        pin_of(&self.authority)
    }

    /// A server certificate for these host names and addresses (text of an IP address becomes an address).
    ///
    /// # Errors
    /// A name that is no host name.
    pub fn issue_server(&self, names: &[String], now_ms: u64) -> Result<Credentials, IdentityError> {
        self.server(names, params(now_ms, SERVER_DAYS * DAY_MS)?)
    }

    /// [`issue_server`](Self::issue_server) that holds at any time.
    ///
    /// # Errors
    /// A name that is no host name.
    pub fn issue_server_timeless(&self, names: &[String]) -> Result<Credentials, IdentityError> {
        self.server(names, params(0, NO_END_MS)?)
    }

    fn server(&self, names: &[String], mut params: CertificateParams) -> Result<Credentials, IdentityError> {
        params.subject_alt_names =
            CertificateParams::new(names.to_vec()).map_err(CertificateError::Signing)?.subject_alt_names;
        params.distinguished_name = subject("flotilla hub", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// The server certificate of the fleet door, for QUIC and MQTT.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_door(&self, now_ms: u64) -> Result<Credentials, IdentityError> {
        self.issue_server(&[self.id().door_name()], now_ms)
    }

    /// The certificate by which a broker of this installation's devices is known to them and to the hub, under these host names.
    ///
    /// # Errors
    /// A name that is no host name, or that of a fleet door: who has the broker's key must not pass for a hub.
    pub fn issue_broker(&self, names: &[String], now_ms: u64) -> Result<Credentials, IdentityError> {
        if let Some(name) =
            names.iter().find(|name| name.trim_end_matches('.').to_ascii_lowercase().ends_with(DOOR_DOMAIN))
        {
            return Err(IdentityError::DoorName { name: name.clone() });
        }
        self.issue_server(names, now_ms)
    }

    /// The certificate by which the hub is known to a broker.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_hub_user(&self, now_ms: u64) -> Result<Credentials, IdentityError> {
        self.issue_user(certificate::HUB_USER, None, now_ms, SERVER_DAYS * DAY_MS)
    }

    /// A user's client certificate: common name and organization (Kubernetes' user and group). The administrator is
    /// `admin` in `system:masters`.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_user(
        &self,
        name: &str,
        group: Option<&str>,
        now_ms: u64,
        validity_ms: u64,
    ) -> Result<Credentials, IdentityError> {
        self.user(name, group, params(now_ms, validity_ms)?)
    }

    /// [`issue_user`](Self::issue_user) that holds at any time.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_user_timeless(&self, name: &str, group: Option<&str>) -> Result<Credentials, IdentityError> {
        self.user(name, group, params(0, NO_END_MS)?)
    }

    fn user(
        &self,
        name: &str,
        group: Option<&str>,
        mut params: CertificateParams,
    ) -> Result<Credentials, IdentityError> {
        params.distinguished_name = subject(name, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A device's session certificate from its request, whose proof of possession and exact subject are verified. Nothing else
    /// of the request enters the certificate.
    ///
    /// # Errors
    /// A request that does not hold, see [`CertificateError`].
    pub fn issue_session(
        &self,
        csr: &[u8],
        node: &NodeName,
        now_ms: u64,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let request = certificate::verified_request(csr, node)?;
        let mut params = params(now_ms, SESSION_DAYS * DAY_MS)?;
        params.distinguished_name = certificate::node_subject(node);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(CertificateError::Signing)?;
        Ok(signed.der().clone())
    }

    /// The root's statement that these keys are `node`'s.
    ///
    /// # Errors
    /// When encoding fails, which its types exclude.
    pub fn certify_device(
        &self,
        node: &NodeName,
        node_uid: &str,
        key: PublicKey,
        sealing: SealingPublicKey,
        now_ms: u64,
    ) -> Result<DeviceCertificate, IdentityError> {
        DeviceCertificate::issue(&self.root, node, node_uid, key, sealing, now_ms)
    }

    fn issue(&self, params: CertificateParams) -> Result<Credentials, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Signing)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(CertificateError::Signing)?;
        Ok(Credentials {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}

impl fmt::Debug for Installation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Installation").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl fmt::Debug for InstallationMaterial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("InstallationMaterial").field("authority", &self.authority_pem).finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate.
pub(crate) fn pin_of(authority: &CertificateDer<'_>) -> [u8; 32] {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest(&SHA256, authority).as_ref());
    pin
}

fn params(now_ms: u64, validity_ms: u64) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.not_before = moment(now_ms.saturating_sub(BACKDATE_MS))?;
    params.not_after = moment(now_ms.saturating_add(validity_ms))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let mut serial = random_bytes::<16>()?;
    // Positive and of full length (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn moment(at_ms: u64) -> Result<time::OffsetDateTime, IdentityError> {
    i64::try_from(at_ms / 1000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| IdentityError::Damaged { field: "time", why: format!("{at_ms} ms is no date") })
}

fn subject(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    subject
}
