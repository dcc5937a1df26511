//! Enrolment without a link: the same request and answer, carried in bundles.
//!
//! There is no connection to bind the request to; it is bound to the bundle it travels in. Request and session key are kept by
//! the device until the answer comes, however many sticks that takes. Start at [`JoinMaterial::prepare`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::device::{accepted, signed};
use super::wire::{self, MESSAGE_BYTES_MAX, Response, SignedRequest};
use super::{
    EnrolError, EnrolRefusal, EnrolRequest, EnrolResponse, Enrolment, Introduction, Proof, Token, TokenParseError, hub,
};
use crate::identity::{
    DeviceKeys, IdentityError, InstallationId, NodeName, PublicKey, SealingPublicKey, SessionRequest,
    SessionRequestMaterial,
};

/// A request to join that waits for its answer, as stored: secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinMaterial {
    token: String,
    /// The name asked for.
    pub node: NodeName,
    labels: BTreeMap<String, String>,
    session: SessionRequestMaterial,
}

impl JoinMaterial {
    /// Makes a session key and what a request needs. Store it, and the device's keys, before the first request leaves.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn prepare(token: &Token, node: NodeName, labels: BTreeMap<String, String>) -> Result<Self, IdentityError> {
        let session = SessionRequest::generate(&node)?.to_material();
        Ok(Self { token: token.encode(), node, labels, session })
    }

    /// The token's text.
    pub fn token_text(&self) -> &str {
        &self.token
    }

    /// The token it was made with.
    ///
    /// # Errors
    /// When what was stored is damaged.
    pub fn token(&self) -> Result<Token, TokenParseError> {
        Token::parse(&self.token)
    }

    /// The hub's sealing key and the installation, as the token says them.
    ///
    /// # Errors
    /// A damaged token, or one of a hub that cannot be joined by stick.
    pub fn receiver(&self) -> Result<(InstallationId, SealingPublicKey), EnrolError> {
        let token = self.token().map_err(|error| EnrolError::Token(error.to_string()))?;
        let key = token.sealing.ok_or_else(|| {
            EnrolError::Token(
                "the token is of an earlier version and cannot be used by stick; make a new one".to_owned(),
            )
        })?;
        Ok((token.installation(), key))
    }

    /// The signed request, encoded, for the bundle that `binding` names.
    ///
    /// # Errors
    /// A damaged token.
    pub fn request(&self, keys: &DeviceKeys, binding: &[u8; 32]) -> Result<Vec<u8>, EnrolError> {
        let session = SessionRequest::from_material(&self.session);
        let signed = signed(&self.introduction()?, keys, &session, binding)?;
        Ok(wire::encode(&signed)?)
    }

    /// Takes the hub's answer: verifies that it is about this device and comes from the installation that the token names.
    ///
    /// # Errors
    /// What does not hold.
    pub fn accept(&self, answer: &[u8], keys: &DeviceKeys) -> Result<Enrolment, EnrolError> {
        let response: Response = wire::decode(answer)?;
        let session = SessionRequest::from_material(&self.session);
        accepted(response, session, &self.introduction()?, keys)
    }

    fn introduction(&self) -> Result<Introduction, EnrolError> {
        let token = self.token().map_err(|error| EnrolError::Token(error.to_string()))?;
        Ok(Introduction {
            proof: Proof::Token(token.proof()),
            node: self.node.clone(),
            labels: self.labels.clone(),
            pin: token.pin,
            root: token.root,
        })
    }
}

/// Hub: reads and verifies a request that came in the bundle `binding` names, all but the token.
///
/// # Errors
/// What to tell whoever brought it.
pub fn request_of(encoded: &[u8], binding: &[u8; 32], root: &PublicKey) -> Result<EnrolRequest, EnrolRefusal> {
    if encoded.len() > MESSAGE_BYTES_MAX as usize {
        return Err(hub::refused_request(&format!("{} bytes are more than {MESSAGE_BYTES_MAX}", encoded.len())));
    }
    let signed: SignedRequest = wire::decode(encoded).map_err(|error| hub::refused_request(&error))?;
    hub::verify(&signed, binding, root)
}

/// Hub: the answer, encoded.
///
/// # Errors
/// When it does not encode, which its types exclude.
pub fn answer_of(response: EnrolResponse) -> Result<Vec<u8>, EnrolError> {
    Ok(wire::encode(&hub::to_wire(response))?)
}
