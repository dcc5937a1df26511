//! Who may enrol: tokens and device keys against the tables, in one transaction with what follows from it.

use std::sync::Arc;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_sync::enrol::{
    EnrolProof, EnrolRefusal, EnrolRequest, EnrolResponse, Enroller, RefusalKind, TokenProof, TokenRecord, TokenUse,
};
use flotilla_sync::identity::{IdentityError, Installation};

use crate::installation::Addresses;
use crate::store::devices::Device;
use crate::store::{Batch, Store};
use crate::{mint, node};

/// The hub's decision over enrolments.
#[derive(Debug)]
pub(crate) struct Registrar {
    pub(crate) store: Store,
    pub(crate) installation: Arc<Installation>,
    pub(crate) addresses: Addresses,
}

impl Enroller for Registrar {
    async fn enrol(&self, request: EnrolRequest) -> Result<EnrolResponse, EnrolRefusal> {
        node::check_labels(&request.labels).map_err(|why| refusal(RefusalKind::Request, why))?;
        let asked = request.clone();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let decided = self.store.write(move |batch| {
            admit(batch, &asked).map_err(|refusal| {
                let error = ApiError::of(Reason::Forbidden, refusal.message.clone());
                // The enroller below still waits for it.
                drop(tell.send(refusal));
                error
            })
        });
        let device = decided.await.map_err(|error| told.try_recv().unwrap_or_else(|_| busy(&error)))?;
        let response =
            self.respond(&request, &device).map_err(|error| refusal(RefusalKind::Request, error.to_string()))?;
        tracing::info!(node = %request.node, fleet = device.fleet, "a device enrolled");
        Ok(response)
    }
}

impl Registrar {
    /// The answer to an admitted request, made anew each time it is asked for.
    pub(crate) fn respond(&self, request: &EnrolRequest, device: &Device) -> Result<EnrolResponse, IdentityError> {
        let now_ms = self.store.now().0;
        let session = self.installation.issue_session(&request.csr, &request.node, now_ms)?;
        let certificate = self.installation.certify_device(
            &request.node,
            &device.uid,
            request.device_key,
            request.sealing,
            now_ms,
        )?;
        Ok(EnrolResponse {
            chain: vec![session.to_vec()],
            authority: self.installation.authority().to_vec(),
            root: self.installation.root().public(),
            device_certificate: certificate.encode(),
            node_uid: device.uid.clone(),
            fleet: device.fleet.clone(),
            incarnation: device.incarnation,
            hub_time_ms: now_ms,
            quic: self.addresses.quic.clone(),
            mqtt: self.addresses.mqtt.clone(),
            hub_sealing: Some(self.installation.sealing().public()?),
        })
    }
}

fn admit(batch: &mut Batch<'_>, request: &EnrolRequest) -> Result<Device, EnrolRefusal> {
    let known = batch.device(request.node.as_str()).map_err(|error| busy(&error))?;
    match &request.proof {
        EnrolProof::Token(proof) => by_token(batch, request, proof, known),
        EnrolProof::Device { node_uid } => {
            if known.is_none()
                && let Some(device) = taken_back(batch, request, node_uid)?
            {
                return record(batch, request, device, Life::New);
            }
            let known = known.filter(|known| known.uid == *node_uid && known.key == request.device_key);
            let Some(known) = known else {
                let why = format!(
                    "the hub does not know node {} with this key: enrol it with a token (`flotilla token create --node {}`)",
                    request.node, request.node
                );
                return Err(refusal(RefusalKind::Name, why));
            };
            record(batch, request, Device { sealing: request.sealing, ..known }, Life::New)
        }
    }
}

/// A device that joined after the backup this hub was restored from: its certificate says who it is, and a token for its name alone
/// that the operator takes it back, and into which fleet. Its Node keeps its uid, so its Pods go on.
fn taken_back(batch: &mut Batch<'_>, request: &EnrolRequest, node_uid: &str) -> Result<Option<Device>, EnrolRefusal> {
    let token = batch.token_for_node(request.node.as_str()).map_err(|error| busy(&error))?;
    let Some(mut token) = token else { return Ok(None) };
    token.record.used_by.push((request.node.clone(), request.device_key));
    batch.put_token(&token).map_err(|error| busy(&error))?;
    tracing::info!(node = %request.node, fleet = token.fleet, "a device that a restored backup did not know is taken back");
    Ok(Some(Device {
        node: request.node.to_string(),
        uid: node_uid.to_owned(),
        fleet: token.fleet,
        key: request.device_key,
        sealing: request.sealing,
        incarnation: 0,
        last_contact: batch.now(),
    }))
}

fn by_token(
    batch: &mut Batch<'_>,
    request: &EnrolRequest,
    proof: &TokenProof,
    known: Option<Device>,
) -> Result<Device, EnrolRefusal> {
    let now = batch.now();
    let stored = batch.token(&proof.id).map_err(|error| busy(&error))?;
    let record_of_token = stored.as_ref().map(|stored| &stored.record);
    let used = TokenRecord::check(record_of_token, proof, now.0, &request.node, &request.device_key)?;
    let Some(mut token) = stored else { return Err(refusal(RefusalKind::Token, "the token is unknown".into())) };
    let replaces = known.as_ref().is_some_and(|known| known.key != request.device_key);
    if replaces && token.record.node.as_ref() != Some(&request.node) {
        let why = format!(
            "the name {} is another device's: choose another --name, or let this device replace it with a token of \
             `flotilla token create --node {}`",
            request.node, request.node
        );
        return Err(refusal(RefusalKind::Name, why));
    }
    let life = if used == TokenUse::Again && known.is_some() { Life::Same } else { Life::New };
    let uid = match &known {
        Some(known) => known.uid.clone(),
        None => mint::uid().map_err(|error| busy(&error))?,
    };
    let device = Device {
        node: request.node.to_string(),
        uid,
        fleet: token.fleet.clone(),
        key: request.device_key,
        sealing: request.sealing,
        incarnation: known.map_or(0, |known| known.incarnation),
        last_contact: now,
    };
    if used == TokenUse::First {
        token.record.used_by.push((request.node.clone(), request.device_key));
        batch.put_token(&token).map_err(|error| busy(&error))?;
    }
    record(batch, request, device, life)
}

/// Whether this enrolment begins a new life of the device's database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    New,
    /// The answer of a moment ago was lost.
    Same,
}

fn record(
    batch: &mut Batch<'_>,
    request: &EnrolRequest,
    mut device: Device,
    life: Life,
) -> Result<Device, EnrolRefusal> {
    if life == Life::New || device.incarnation == 0 {
        device.incarnation = batch.device_life(&device.node).map_err(|error| busy(&error))?;
    }
    batch.set_author("hub:enrolment");
    batch.put_device(&device).map_err(|error| busy(&error))?;
    node::ensure(batch, &device, &request.labels).map_err(|error: ApiError| busy(&error))?;
    Ok(device)
}

fn refusal(kind: RefusalKind, message: String) -> EnrolRefusal {
    EnrolRefusal { kind, message, retry_after_ms: None }
}

fn busy(error: &dyn std::fmt::Display) -> EnrolRefusal {
    let message = format!("the hub could not record the enrolment ({error}); try again");
    EnrolRefusal { kind: RefusalKind::Busy, message, retry_after_ms: Some(5_000) }
}
