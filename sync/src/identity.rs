//! Who is who: node names, the installation's root and certificate authority, the keys of devices, the sealing of Secrets, and
//! the rustls configurations made of them.
//!
//! Owns every key and certificate of the protocol. Refuses to keep them: material goes in and out as plain serialisable
//! structs, persistence is the hub's and the agent's. Refuses to read a clock: creation takes the time as an argument and
//! verification asks a [`TrustTime`].
//!
//! Start at [`Installation`] for the hub's side and at [`DeviceKeys`] for the device's.

mod authority;
pub(crate) mod bytes;
mod certificate;
mod device;
mod keys;
mod name;
mod sealing;
mod tls;
mod trust_time;
pub mod writer;

pub(crate) use authority::pin_of;
pub use authority::{Installation, InstallationId, InstallationMaterial};
pub use certificate::{
    CertificateError, Credentials, CredentialsMaterial, HUB_USER, SessionRequest, SessionRequestMaterial, Subject,
    peer_node,
};
pub(crate) use certificate::{node_of_user, user_of_node, validity_ms, verified_request};
pub use device::{DeviceCertificate, DeviceKeys, DeviceKeysMaterial};
pub use keys::{BadSignature, PublicKey, SigningKey};
pub(crate) use keys::{hex, random_bytes};
pub use name::{NodeName, NodeNameError};
pub use sealing::{SealingError, SealingKey, SealingPublicKey, open, seal};
pub use tls::{ALPN_ENROL, ALPN_SESSION, device_client, door_server, enrol_client};
pub use trust_time::{FlooredClock, TrustTime};

/// Anything that can be wrong with key material.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system's source of randomness failed.
    #[error("cannot make a key: the system's random source failed")]
    Random,
    /// Stored material does not parse; the field is named.
    #[error("stored identity: {field} is damaged: {why}")]
    Damaged {
        /// Which part of the material.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A broker was to have a fleet door's name.
    #[error("{name} is a name of fleet doors: a broker that had it could pass for the hub")]
    DoorName {
        /// The name asked for.
        name: String,
    },
    /// A certificate or certificate request.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// rustls refused a configuration.
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
