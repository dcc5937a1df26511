//! X.509 certificates: their subjects, requests and PEM forms.
//!
//! A device's session certificate has exactly the subject `CN=system:node:<name>, O=system:nodes`; [`Subject::parse`] is the one
//! place that reads it.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::{IdentityError, NodeName, NodeNameError};

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
/// The name by which a broker knows the hub. No node has it, see [`user_of_node`].
pub const HUB_USER: &str = "system:hub:1";
/// Largest certificate or certificate request that is looked at.
const DER_BYTES_MAX: usize = 8 * 1024;

/// What can be wrong with a certificate or a certificate request.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not DER, not X.509, or too large.
    #[error("{what} does not parse: {why}")]
    Malformed {
        /// Certificate or request.
        what: &'static str,
        /// What the parser said.
        why: String,
    },
    /// The request is not signed by the key it names.
    #[error("certificate request: proof of possession fails, the request is not signed by its own key")]
    NoProof,
    /// The subject is not that of a node.
    #[error("certificate subject {subject:?} is not \"CN=system:node:<name>, O=system:nodes\"")]
    Subject {
        /// The subject found.
        subject: String,
    },
    /// The subject's node name does not parse.
    #[error("certificate subject")]
    Name(#[from] NodeNameError),
    /// Made out to another node.
    #[error("certificate names node {found}, expected {expected}")]
    OtherNode {
        /// The name in it.
        found: NodeName,
        /// The name it should have.
        expected: NodeName,
    },
    /// Outside its validity.
    #[error(
        "certificate of node {node} expired at {not_after_ms} ms, it is {now_ms} ms now: renew it by enrolling again with the device key"
    )]
    Expired {
        /// Whose.
        node: NodeName,
        /// End of validity.
        not_after_ms: u64,
        /// The time of the check.
        now_ms: u64,
    },
    /// No certificate was presented.
    #[error("the peer presented no certificate")]
    Absent,
    /// Signing failed.
    #[error("cannot sign a certificate: {0}")]
    Signing(#[from] rcgen::Error),
}

/// Whom a client certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A device.
    Node(NodeName),
    /// A user, as Kubernetes reads client certificates: the common name and the organizations as groups.
    User {
        /// Common name.
        name: String,
        /// Organizations.
        groups: Vec<String>,
    },
}

/// A certificate chain with its private key.
pub struct Credentials {
    /// Leaf first; the authority itself is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

/// [`Credentials`] as PEM texts: the key is secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsMaterial {
    /// Certificates, leaf first.
    pub chain_pem: String,
    /// Private key.
    pub key_pem: String,
}

/// A fresh key with the request to certify it as a node's session key.
pub struct SessionRequest {
    /// DER of the PKCS#10 request.
    pub csr: Vec<u8>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// [`SessionRequest`] as stored: the key is secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequestMaterial {
    /// DER of the PKCS#10 request.
    pub csr: Vec<u8>,
    /// PKCS#8 of its key.
    pub key: Vec<u8>,
}

impl Subject {
    /// Reads the subject of a certificate.
    ///
    /// # Errors
    /// When the certificate does not parse; when the subject claims to be a node in any part and is not exactly one.
    pub fn parse(certificate: &[u8]) -> Result<Self, CertificateError> {
        Self::of_name(parsed(certificate)?.subject())
    }

    fn of_name(subject: &X509Name<'_>) -> Result<Self, CertificateError> {
        let refused = || CertificateError::Subject { subject: subject.to_string().chars().take(200).collect() };
        let mut names = Vec::new();
        let mut groups = Vec::new();
        for attribute in subject.iter_attributes() {
            let text = attribute.as_str().map_err(|_error| refused())?;
            if *attribute.attr_type() == x509_parser::oid_registry::OID_X509_COMMON_NAME {
                names.push(text);
            } else if *attribute.attr_type() == x509_parser::oid_registry::OID_X509_ORGANIZATION_NAME {
                groups.push(text);
            } else {
                return Err(refused());
            }
        }
        let [name] = names[..] else { return Err(refused()) };
        match name.strip_prefix(NODE_PREFIX) {
            Some(node) if groups == [NODES_GROUP] => Ok(Self::Node(NodeName::parse(node)?)),
            None if !groups.contains(&NODES_GROUP) => {
                Ok(Self::User { name: name.to_owned(), groups: groups.into_iter().map(str::to_owned).collect() })
            }
            Some(_) | None => Err(refused()),
        }
    }
}

/// The node a verified chain names, if its leaf is a node's session certificate and valid at `now_ms`.
///
/// The chain itself has been verified by rustls, in this connection or in the one that is being resumed; validity is judged
/// again here because a resumption skips it.
///
/// # Errors
/// No certificate, a subject that is not a node's, or a certificate that has expired.
pub fn peer_node(chain: Option<&[CertificateDer<'_>]>, now_ms: u64) -> Result<NodeName, CertificateError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(CertificateError::Absent)?;
    let certificate = parsed(leaf)?;
    let node = match Subject::of_name(certificate.subject())? {
        Subject::Node(node) => node,
        Subject::User { .. } => {
            return Err(CertificateError::Subject { subject: certificate.subject().to_string() });
        }
    };
    let not_after_ms = milliseconds(certificate.validity().not_after.timestamp());
    if now_ms > not_after_ms {
        return Err(CertificateError::Expired { node, not_after_ms, now_ms });
    }
    Ok(node)
}

/// First and last moment of a certificate's validity, in milliseconds.
///
/// # Errors
/// When it does not parse.
pub(crate) fn validity_ms(certificate: &[u8]) -> Result<(u64, u64), CertificateError> {
    let certificate = parsed(certificate)?;
    let validity = certificate.validity();
    Ok((milliseconds(validity.not_before.timestamp()), milliseconds(validity.not_after.timestamp())))
}

/// Reads a request and verifies its proof of possession and its subject.
///
/// # Errors
/// Too large, malformed, not signed by its own key, or with a subject other than `node`'s.
pub(crate) fn verified_request(
    csr: &[u8],
    node: &NodeName,
) -> Result<CertificateSigningRequestParams, CertificateError> {
    const WHAT: &str = "certificate request";
    if csr.len() > DER_BYTES_MAX {
        return Err(malformed(WHAT, &format!("{} bytes are more than {DER_BYTES_MAX}", csr.len())));
    }
    let (rest, request) = x509_parser::certification_request::X509CertificationRequest::from_der(csr)
        .map_err(|error| malformed(WHAT, &error))?;
    if !rest.is_empty() {
        return Err(malformed(WHAT, &"bytes after its end"));
    }
    match Subject::of_name(&request.certification_request_info.subject)? {
        Subject::Node(found) if found == *node => {}
        Subject::Node(found) => return Err(CertificateError::OtherNode { found, expected: node.clone() }),
        Subject::User { .. } => {
            let subject = request.certification_request_info.subject.to_string();
            return Err(CertificateError::Subject { subject });
        }
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => CertificateError::NoProof,
        other => malformed(WHAT, &other),
    })
}

impl SessionRequest {
    /// Makes a P-256 key and the request to certify it for `node`.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn generate(node: &NodeName) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Signing)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = node_subject(node);
        let csr = params.serialize_request(&key).map_err(CertificateError::Signing)?;
        Ok(Self { csr: csr.der().to_vec(), key: PrivatePkcs8KeyDer::from(key.serialize_der()) })
    }

    /// What to store while the answer is on its way: secret.
    pub fn to_material(&self) -> SessionRequestMaterial {
        SessionRequestMaterial { csr: self.csr.clone(), key: self.key.secret_pkcs8_der().to_vec() }
    }

    /// Reads what was stored.
    pub fn from_material(material: &SessionRequestMaterial) -> Self {
        Self { csr: material.csr.clone(), key: PrivatePkcs8KeyDer::from(material.key.clone()) }
    }

    /// The key together with the chain the hub answered with. Checks that the leaf certifies this key for `node`.
    ///
    /// # Errors
    /// No leaf, another node's, or another key's.
    pub fn certified(self, chain: Vec<CertificateDer<'static>>, node: &NodeName) -> Result<Credentials, IdentityError> {
        let leaf = chain.first().ok_or(CertificateError::Absent)?;
        let certificate = parsed(leaf)?;
        match Subject::of_name(certificate.subject())? {
            Subject::Node(found) if found == *node => {}
            Subject::Node(found) => {
                return Err(CertificateError::OtherNode { found, expected: node.clone() }.into());
            }
            Subject::User { .. } => {
                return Err(CertificateError::Subject { subject: certificate.subject().to_string() }.into());
            }
        }
        let key = KeyPair::try_from(&self.key).map_err(CertificateError::Signing)?;
        if certificate.public_key().subject_public_key.data != rcgen::PublicKeyData::der_bytes(&key) {
            return Err(malformed("certificate", &"it certifies another key than the one requested").into());
        }
        Ok(Credentials { chain, key: PrivateKeyDer::Pkcs8(self.key) })
    }
}

impl Credentials {
    /// Both as PEM.
    pub fn to_material(&self) -> CredentialsMaterial {
        CredentialsMaterial {
            chain_pem: self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
            key_pem: pem("PRIVATE KEY", self.key.secret_der()),
        }
    }

    /// Reads PEM.
    ///
    /// # Errors
    /// When either text is not what it should be.
    pub fn from_material(material: &CredentialsMaterial) -> Result<Self, IdentityError> {
        let damaged = |field, why: &dyn std::fmt::Display| IdentityError::Damaged { field, why: why.to_string() };
        let chain = CertificateDer::pem_slice_iter(material.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged("certificate chain", &error))?;
        if chain.is_empty() {
            return Err(damaged("certificate chain", &"it holds no certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(material.key_pem.as_bytes())
            .map_err(|error| damaged("private key", &error))?;
        Ok(Self { chain, key })
    }

    /// From when on the leaf should be renewed: two thirds into its validity. Milliseconds.
    ///
    /// # Errors
    /// When the leaf does not parse.
    pub fn renew_after_ms(&self) -> Result<u64, CertificateError> {
        let (from, to) = self.validity_ms()?;
        Ok(from + to.saturating_sub(from) / 3 * 2)
    }

    /// First and last moment of the leaf's validity. Milliseconds.
    ///
    /// # Errors
    /// When the leaf does not parse.
    pub fn validity_ms(&self) -> Result<(u64, u64), CertificateError> {
        validity_ms(self.chain.first().ok_or(CertificateError::Absent)?)
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CredentialsMaterial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CredentialsMaterial").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SessionRequestMaterial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SessionRequestMaterial").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SessionRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SessionRequest").field("csr_bytes", &self.csr.len()).finish_non_exhaustive()
    }
}

/// The name of a device as a user: the common name of its session certificate.
pub(crate) fn user_of_node(node: &NodeName) -> String {
    format!("{NODE_PREFIX}{node}")
}

/// The device that is this user.
pub(crate) fn node_of_user(user: &str) -> Option<NodeName> {
    NodeName::parse(user.strip_prefix(NODE_PREFIX)?).ok()
}

/// The subject of a node's session certificate.
pub(crate) fn node_subject(node: &NodeName) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, NODES_GROUP);
    subject.push(DnType::CommonName, user_of_node(node));
    subject
}

/// PEM text (RFC 7468) of some DER.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str(&format!("\n-----END {label}-----\n"));
    pem
}

fn parsed(certificate: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if certificate.len() > DER_BYTES_MAX {
        return Err(malformed("certificate", &format!("{} bytes are more than {DER_BYTES_MAX}", certificate.len())));
    }
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(malformed("certificate", &"bytes after its end")),
        Err(error) => Err(malformed("certificate", &error)),
    }
}

fn malformed(what: &'static str, why: &dyn std::fmt::Display) -> CertificateError {
    CertificateError::Malformed { what, why: why.to_string() }
}

fn milliseconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

/// The subject public key of a certificate, as its bit string's bytes.
pub(crate) fn public_key_bytes(certificate: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parsed(certificate)?.public_key().subject_public_key.data.to_vec())
}
