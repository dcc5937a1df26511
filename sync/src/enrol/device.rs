//! The device's side of enrolment.

use std::collections::BTreeMap;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::wire::{self, Answer, MessageError, Request, Response, SignedRequest};
use super::{EnrolRefusal, TokenProof};
use crate::identity::bytes::Bytes;
use crate::identity::{
    Credentials, CredentialsMaterial, DeviceCertificate, DeviceKeys, IdentityError, NodeName, PublicKey,
    SealingPublicKey, SessionRequest, pin_of,
};
use crate::transport::EnrolStream;

/// The whole exchange must be over by then.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a device says of itself.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// Why it may enrol.
    pub proof: Proof,
    /// Its name.
    pub node: NodeName,
    /// Labels for its Node, at most 64.
    pub labels: BTreeMap<String, String>,
    /// SHA-256 of the authority's certificate that it expects.
    pub pin: [u8; 32],
    /// The root key that it expects.
    pub root: PublicKey,
}

/// A device's reason.
#[derive(Debug, Clone)]
pub enum Proof {
    /// First enrolment.
    Token(TokenProof),
    /// It has been enrolled: the root's certificate over its key, encoded. Also when its session certificate has expired.
    Device(Vec<u8>),
}

/// A device's identity after enrolment.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Session certificate and key.
    pub credentials: Credentials,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// The installation's root key.
    pub root: PublicKey,
    /// The root's certificate over the device's keys.
    pub certificate: DeviceCertificate,
    /// The fleet it belongs to.
    pub fleet: String,
    /// This life of the device's database.
    pub incarnation: u64,
    /// The hub's time at enrolment: a proven floor. Milliseconds.
    pub hub_time_ms: u64,
    /// QUIC addresses of the hub, best first.
    pub quic: Vec<String>,
    /// MQTT brokers of the hub, best first.
    pub mqtt: Vec<String>,
    /// To which this device seals what it sends by stick; `None`: a hub of an earlier version.
    pub hub_sealing: Option<SealingPublicKey>,
}

/// [`Enrolment`] as stored: secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentMaterial {
    /// Session certificate and key.
    pub credentials: CredentialsMaterial,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// The installation's root key.
    pub root: PublicKey,
    /// The root's certificate over the device's keys, encoded.
    pub certificate: Vec<u8>,
    /// The fleet it belongs to.
    pub fleet: String,
    /// This life of the device's database.
    pub incarnation: u64,
    /// The hub's time at enrolment. Milliseconds.
    pub hub_time_ms: u64,
    /// QUIC addresses of the hub, best first.
    pub quic: Vec<String>,
    /// MQTT brokers of the hub, best first.
    pub mqtt: Vec<String>,
    /// See [`Enrolment::hub_sealing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_sealing: Option<SealingPublicKey>,
}

/// Why an enrolment did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The hub said no.
    #[error("the hub refused the enrolment")]
    Refused(#[source] EnrolRefusal),
    /// The connection broke or the hub sent nonsense; the same enrolment may be tried again.
    #[error("enrolment with the hub was interrupted: {0}; it is safe to try again")]
    Interrupted(String),
    /// The hub did not answer in time; the same enrolment may be tried again.
    #[error("the hub did not answer the enrolment within {} s; it is safe to try again", EXCHANGE_TIMEOUT.as_secs())]
    Timeout,
    /// The answer does not hold what it must.
    #[error("the hub's answer is not acceptable: {0}")]
    Answer(String),
    /// The token is of no use for this.
    #[error("{0}")]
    Token(String),
    /// Keys could not be made or read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Enrols over a stream on which the hub has proven itself. `keys` must be stored already; store the result before using it.
///
/// # Errors
/// See [`EnrolError`]; all but a refusal and an unacceptable answer may be tried again with the same token and keys.
pub async fn enrol(
    mut stream: EnrolStream,
    introduction: &Introduction,
    keys: &DeviceKeys,
) -> Result<Enrolment, EnrolError> {
    let session = SessionRequest::generate(&introduction.node)?;
    let signed = signed(introduction, keys, &session, &stream.binding)?;
    let exchange = async {
        wire::write(&mut stream.writer, &signed).await?;
        wire::read::<Answer>(&mut stream.reader).await
    };
    let answer = tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_elapsed| EnrolError::Timeout)??;
    match answer {
        Answer::Enrolled(response) => accepted(*response, session, introduction, keys),
        Answer::Refused(refusal) => Err(EnrolError::Refused(refusal)),
    }
}

/// The request, signed by the device's key together with what it is bound to.
pub(super) fn signed(
    introduction: &Introduction,
    keys: &DeviceKeys,
    session: &SessionRequest,
    binding: &[u8; 32],
) -> Result<SignedRequest, EnrolError> {
    let request = Request {
        v: wire::VERSION,
        proof: match &introduction.proof {
            Proof::Token(token) => wire::Proof::Token { id: token.id.clone(), secret: Bytes(token.secret.to_vec()) },
            Proof::Device(certificate) => wire::Proof::Device { certificate: Bytes(certificate.clone()) },
        },
        node: introduction.node.clone(),
        labels: introduction.labels.clone(),
        csr: Bytes(session.csr.clone()),
        device_key: Bytes(keys.signing.public().0.to_vec()),
        sealing: Bytes(keys.sealing.public()?.0.to_vec()),
    };
    let request = wire::encode(&request)?;
    let signature = keys.signing.sign(wire::REQUEST_DOMAIN, &wire::bound(binding, &request));
    Ok(SignedRequest { request: Bytes(request), signature: Bytes(signature.to_vec()) })
}

pub(super) fn accepted(
    response: Response,
    session: SessionRequest,
    introduction: &Introduction,
    keys: &DeviceKeys,
) -> Result<Enrolment, EnrolError> {
    let unacceptable = |why: &str| EnrolError::Answer(why.to_owned());
    if response.v != wire::VERSION {
        return Err(unacceptable(&format!("version {} is unknown: update this program", response.v)));
    }
    let authority = CertificateDer::from(response.authority.0);
    if pin_of(&authority) != introduction.pin {
        return Err(unacceptable("its authority is not the one pinned"));
    }
    if response.root.0 != introduction.root.0 {
        return Err(unacceptable("its root key is not the one pinned"));
    }
    let certificate = DeviceCertificate::verify(&response.device_certificate.0, &introduction.root)?;
    if certificate.node != introduction.node
        || certificate.key != keys.signing.public()
        || certificate.sealing != keys.sealing.public()?
        || certificate.node_uid != response.node_uid
    {
        return Err(unacceptable("its device certificate is not about this device"));
    }
    let chain = response.chain.into_iter().map(|der| CertificateDer::from(der.0)).collect();
    Ok(Enrolment {
        credentials: session.certified(chain, &introduction.node)?,
        authority,
        root: introduction.root,
        certificate,
        fleet: response.fleet,
        incarnation: response.incarnation,
        hub_time_ms: response.hub_time_ms,
        quic: response.quic,
        mqtt: response.mqtt,
        hub_sealing: response.hub_sealing.and_then(|key| key.array()).map(SealingPublicKey),
    })
}

impl Enrolment {
    /// What to store.
    pub fn to_material(&self) -> EnrolmentMaterial {
        EnrolmentMaterial {
            credentials: self.credentials.to_material(),
            authority: self.authority.to_vec(),
            root: self.root,
            certificate: self.certificate.encode(),
            fleet: self.fleet.clone(),
            incarnation: self.incarnation,
            hub_time_ms: self.hub_time_ms,
            quic: self.quic.clone(),
            mqtt: self.mqtt.clone(),
            hub_sealing: self.hub_sealing,
        }
    }

    /// Reads what was stored.
    ///
    /// # Errors
    /// When a part is damaged.
    pub fn from_material(material: &EnrolmentMaterial) -> Result<Self, IdentityError> {
        Ok(Self {
            credentials: Credentials::from_material(&material.credentials)?,
            authority: CertificateDer::from(material.authority.clone()),
            root: material.root,
            certificate: DeviceCertificate::verify(&material.certificate, &material.root)?,
            fleet: material.fleet.clone(),
            incarnation: material.incarnation,
            hub_time_ms: material.hub_time_ms,
            quic: material.quic.clone(),
            mqtt: material.mqtt.clone(),
            hub_sealing: material.hub_sealing,
        })
    }

    /// The introduction for the next enrolment, by the device key instead of a token.
    pub fn introduction(&self, labels: BTreeMap<String, String>) -> Introduction {
        Introduction {
            proof: Proof::Device(self.certificate.encode()),
            node: self.certificate.node.clone(),
            labels,
            pin: pin_of(&self.authority),
            root: self.root,
        }
    }
}

impl From<MessageError> for EnrolError {
    fn from(error: MessageError) -> Self {
        Self::Interrupted(match error {
            MessageError::Io(source) => source.to_string(),
            other => other.to_string(),
        })
    }
}
