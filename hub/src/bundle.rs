//! Bundles at the hub: what is carried to devices that no network reaches, and what comes back.
//!
//! Owns who may ask (the socket in the hub's folder), what the hub remembers of carried bundles, and the grants that travel with
//! them. Refuses merging and formats: those are [`flotilla_sync::bundle`]'s, over the same [`FleetDoor`] that serves sessions. Start at
//! [`HubClerk`].

mod offline;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::label::Selector;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::{derive, rollout};
use flotilla_sync::blob::BlobRef;
use flotilla_sync::bundle::courier::{Clerk, Failure, Selection, Wish};
use flotilla_sync::bundle::{
    self, Direction, Export, Incoming, Intake, Introduction, Joining, Receiver, Report, Seal, Side,
};
use flotilla_sync::channel::{ChannelName, Positions, positions_of};
use flotilla_sync::enrol::{self, EnrolProof, EnrolRequest, Enroller as _};
use flotilla_sync::identity::NodeName;
use flotilla_sync::identity::writer::WriterSubject;
use flotilla_sync::observation::Clock;
use flotilla_sync::replica::Replica as _;
use flotilla_sync::transport::PeerIdentity;
use tokio::io::{AsyncRead, DuplexStream};

use crate::enrol::Registrar;
use crate::fleet::door::FleetDoor;
use crate::node;
use crate::publish::fleet_of;
use crate::store::Batch;
use crate::store::devices::Device;
use crate::store::sticks::{Stick, StoredJoin};

pub use offline::StoppedHub;

/// How long an export waits for the controllers.
const SETTLE: Duration = Duration::from_secs(2);

/// While the hub does not know yet what it should say.
const LEARNING: &str = "the hub was restored from a backup and learns from its devices what the backup lacks: import their \
     bundles, exported there with --full, or say `flotilla hub resume`; then export";

/// The hub's end of `flotilla bundle`.
#[derive(Debug, Clone)]
pub(crate) struct HubClerk {
    pub(crate) door: Arc<FleetDoor>,
    pub(crate) registrar: Arc<Registrar>,
    /// Whether controllers run beside it.
    pub(crate) controlled: bool,
}

/// What an export is made from, read in one transaction.
struct Prepared {
    device: Device,
    stick: Stick,
    acknowledged: Vec<(String, Clock)>,
    granted: usize,
}

impl HubClerk {
    /// Shows, as far as bundles have told, how far devices are: after a start of the hub nobody else says it.
    pub(crate) async fn remember(&self) -> Result<(), ApiError> {
        let sticks = self.registrar.store.write(|batch| Ok(batch.sticks()?)).await?;
        for (node, stick) in sticks {
            if stick.clock.is_some() && !stick.by_session && self.door.session(&node).is_none() {
                self.door.remember(&node, stick.positions());
            }
        }
        Ok(())
    }

    /// Lets the controllers see what was written last: what follows from `kubectl apply` belongs into the bundle exported after it.
    async fn settle(&self) {
        let store = &self.registrar.store;
        let mut changes = store.changes();
        let settled = async {
            loop {
                changes.mark_unchanged();
                let waiting = store.view(|index| {
                    let kinds = [&kind::DAEMON_SET, &kind::DEPLOYMENT, &kind::REPLICA_SET];
                    kinds.into_iter().any(|kind| index.list(kind, None).any(|object| !is_observed(object)))
                });
                if !waiting || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if self.controlled && tokio::time::timeout(SETTLE, settled).await.is_err() {
            tracing::warn!("a bundle is exported before the controllers have seen every change");
        }
    }

    async fn prepare(&self, node: &NodeName) -> Result<Prepared, Failure> {
        let name = node.to_string();
        let prepared = self.registrar.store.write(move |batch| {
            let Some(device) = batch.device(&name)? else {
                let message = format!(
                    "the hub knows no device {name}: import the request it wrote with `flotilla agent run --offline` first"
                );
                return Err(ApiError::of(Reason::NotFound, message));
            };
            batch.set_author("hub:bundle");
            let granted = grant(batch, &name)?;
            Ok(Prepared { device, stick: batch.stick(&name)?, acknowledged: batch.observed(&name)?, granted })
        });
        prepared.await.map_err(Failure::other)
    }

    /// The answer to a device that asked to join by stick and has not shown yet that it was told.
    fn enrolled(&self, node: &NodeName, prepared: &Prepared) -> Result<Option<Bytes>, Failure> {
        let Some(join) = prepared.stick.join.clone().filter(|join| join.device_key == prepared.device.key) else {
            return Ok(None);
        };
        let request = EnrolRequest {
            proof: EnrolProof::Device { node_uid: prepared.device.uid.clone() },
            node: node.clone(),
            labels: std::collections::BTreeMap::new(),
            csr: join.csr,
            device_key: join.device_key,
            sealing: join.sealing,
        };
        let response = self.registrar.respond(&request, &prepared.device).map_err(Failure::other)?;
        Ok(Some(Bytes::from(enrol::answer_of(response).map_err(Failure::other)?)))
    }

    /// Large values of what the bundle carries, and those the device lacked when it was last heard.
    async fn blobs(&self, node: &NodeName, positions: &Positions, stick: &Stick) -> Result<Vec<BlobRef>, Failure> {
        let writer = self.door.identity().id();
        let channels = self.door.heads(&PeerIdentity::Device { node: node.clone() }).await.map_err(Failure::other)?;
        let told = !stick.by_session && self.door.session(node.as_str()).is_none();
        let after =
            |channel: &ChannelName| positions.get(channel).filter(|_| told).and_then(|logs| logs.get(&writer)).copied();
        let after: Vec<(ChannelName, u64)> =
            channels.into_keys().map(|channel| (channel.clone(), after(&channel).unwrap_or(0))).collect();
        let wanted: Vec<BlobRef> = stick.wants().collect();
        let named = self.registrar.store.write(move |batch| {
            let mut named = wanted;
            for (channel, seq) in &after {
                named.extend(batch.blobs_after(channel, *seq)?);
            }
            named.sort_unstable_by_key(|blob| blob.hash);
            named.dedup();
            Ok(named)
        });
        named.await.map_err(Failure::other)
    }

    async fn join(&self, joining: Joining) -> Result<Report, Failure> {
        let root = self.registrar.installation.root().public();
        let request = enrol::request_of(&joining.request, &joining.binding, &root)
            .map_err(|why| Failure::refused(why.message))?;
        let name = request.node.to_string();
        if let Some(report) = self.joined_already(&joining, &request).await? {
            return Ok(report);
        }
        let join = StoredJoin { csr: request.csr.clone(), device_key: request.device_key, sealing: request.sealing };
        self.registrar.enrol(request).await.map_err(|refusal| Failure::refused(refusal.message))?;
        let (node, kept) = (name.clone(), join);
        let noted = self.registrar.store.write(move |batch| {
            let mut stick = batch.stick(&node)?;
            // The same request again is the same device; another one begins anew.
            if stick.join.as_ref().is_none_or(|known| *known != kept) {
                stick = Stick::default();
            }
            stick.join = Some(kept);
            batch.put_stick(&node, &stick)?;
            Ok(())
        });
        noted.await.map_err(Failure::other)?;
        let mut report = joining.report;
        report.from = Receiver::Device(NodeName::parse(&name).map_err(Failure::other)?).to_string();
        report.notes.push(format!(
            "{name} has joined; carry it its certificate and its work: flotilla bundle export --node {name}"
        ));
        Ok(report)
    }

    /// A request of a device that has shown that it has its answer: an old stick.
    async fn joined_already(&self, joining: &Joining, request: &EnrolRequest) -> Result<Option<Report>, Failure> {
        let (node, key) = (request.node.to_string(), request.device_key);
        let joined = self.registrar.store.write(move |batch| {
            let same = batch.device(&node)?.is_some_and(|device| device.key == key);
            Ok(same && batch.stick(&node)?.clock.is_some())
        });
        let mut report = joining.report.clone();
        report.from = Receiver::Device(request.node.clone()).to_string();
        report.notes.push(format!("{} has joined before: nothing is to be done", request.node));
        Ok(joined.await.map_err(Failure::other)?.then_some(report))
    }

    async fn take<S: AsyncRead + Unpin + Send>(&self, intake: Intake<S>) -> Result<Report, Failure> {
        let maker = intake.maker().clone();
        let WriterSubject::Device(node) = maker.chain.subject.clone() else {
            return Err(Failure::refused("the bundle was made by a hub: import it at its device"));
        };
        let name = node.to_string();
        let key = maker.chain.device_key();
        let (asked, incarnation) = (name.clone(), maker.introduction.clock);
        let known = self.registrar.store.write(move |batch| {
            let Some(device) = batch.device(&asked)?.filter(|device| Some(device.key) == key) else { return Ok(None) };
            if batch.get(&ObjectKey::of(&kind::NODE, "", asked.as_str())).is_none() {
                node::ensure(batch, &device, &std::collections::BTreeMap::new())?;
            }
            let stick = batch.stick(&asked)?;
            Ok(Some((stick.clock.is_none_or(|known| known <= incarnation), device)))
        });
        let Some((newest, device)) = known.await.map_err(Failure::other)? else {
            return Err(Failure::refused(format!(
                "the hub does not know the device that made this as {name}: it was replaced or never joined"
            )));
        };
        let peer = PeerIdentity::Device { node: node.clone() };
        let seen = Timestamp(maker.time_ms.min(self.registrar.store.now().0));
        let report = intake.take(&*self.door, &peer, newest).await?;
        if newest {
            self.door.introduced(&node, &maker.introduction.heads).await.map_err(Failure::other)?;
            self.note(name, &maker.introduction, seen, device.last_contact).await?;
        }
        Ok(report)
    }

    /// Remembers what the newest bundle of a device said, once all of it is durable.
    async fn note(
        &self,
        node: String,
        introduction: &Introduction,
        seen: Timestamp,
        heard: Timestamp,
    ) -> Result<(), Failure> {
        let name = node.clone();
        let stick = Stick::told(Some(introduction.clock), &positions_of(&introduction.heads), &introduction.wants);
        let noted = self.registrar.store.write(move |batch| {
            batch.put_stick(&name, &stick)?;
            if seen > heard {
                batch.set_last_contact(&name, seen)?;
            }
            Ok(())
        });
        noted.await.map_err(Failure::other)?;
        self.door.seen(&node, seen.max(heard));
        Ok(())
    }
}

impl Clerk for HubClerk {
    async fn nodes(&self, selection: Selection) -> Result<Vec<String>, Failure> {
        let selector = match &selection.selector {
            Some(text) => Selector::parse(text).map_err(Failure::other)?,
            None => Selector::everything(),
        };
        let devices = self.registrar.store.write(|batch| Ok(batch.devices()?)).await.map_err(Failure::other)?;
        let nodes = self.registrar.store.view(|index| {
            let chosen = devices.into_iter().filter(|device| {
                let Some(node) = index.get(&ObjectKey::of(&kind::NODE, "", device.node.as_str())) else { return false };
                let of_fleet = selection.fleet.as_deref().is_none_or(|fleet| fleet_of(node) == fleet);
                of_fleet && selector.matches_object(node)
            });
            chosen.map(|device| device.node).collect::<Vec<_>>()
        });
        Ok(nodes)
    }

    async fn export(&self, wish: Wish, target: &mut DuplexStream) -> Result<Report, Failure> {
        let node = wish.node.ok_or_else(|| Failure::other("a hub's bundle is for a device: say which with --node"))?;
        let node = NodeName::parse(&node).map_err(Failure::other)?;
        if self.door.is_learning() {
            return Err(Failure::refused(LEARNING));
        }
        self.settle().await;
        let prepared = self.prepare(&node).await?;
        let enrolled = self.enrolled(&node, &prepared)?;
        let known = wish.full || enrolled.is_some();
        let positions = match self.door.durable(node.as_str()) {
            _ if known => Positions::new(),
            Some(positions) => positions,
            None => prepared.stick.positions(),
        };
        let blobs = self.blobs(&node, &positions, &prepared.stick).await?;
        let store = &self.registrar.store;
        let export = Export {
            signer: &self.door.identity(),
            seal: Seal {
                installation: self.registrar.installation.id(),
                receiver: Receiver::Device(node.clone()),
                key: prepared.device.sealing,
                time_ms: store.now().0,
            },
            direction: Direction::Down,
            clock: Clock { incarnation: store.incarnation(), boot: 0, seq: store.version() },
            positions,
            own_log_only: false,
            hub_sealing: self.registrar.installation.sealing().public().ok(),
            enrolled,
            acknowledged: prepared.acknowledged,
            blobs,
        };
        let peer = PeerIdentity::Device { node: node.clone() };
        let mut report = bundle::export(&*self.door, &peer, export, target).await?;
        if prepared.granted > 0 {
            let note = format!("its turn in {} rollouts goes with it", prepared.granted);
            report.notes.push(note);
        }
        tracing::info!(%node, bundle = report.id, bytes = report.bytes, records = report.records, "a bundle was exported");
        Ok(report)
    }

    async fn import(&self, source: DuplexStream) -> Result<Report, Failure> {
        let side = Side {
            root: self.registrar.installation.root().public(),
            receiver: Receiver::Hub,
            key: self.registrar.installation.sealing(),
        };
        let report = match Incoming::open(source, &side).await? {
            Incoming::Join(joining) => self.join(*joining).await?,
            Incoming::Bundle(intake) => self.take(*intake).await?,
        };
        tracing::info!(
            from = report.from,
            bundle = report.id,
            bytes = report.bytes,
            records = report.records_new,
            missing = report.missing.len(),
            "a bundle was imported"
        );
        Ok(report)
    }
}

/// Whether a workload's controller has seen its newest generation.
fn is_observed(object: &Object) -> bool {
    let number = |pointer| object.at(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    number("/status/observedGeneration") >= number("/metadata/generation")
}

/// The device's turn in every rollout comes with the stick: a silent device is counted in no budget, and one that learns by catching
/// up would wait for a word that only another stick could bring.
fn grant(batch: &mut Batch<'_>, node: &str) -> Result<usize, ApiError> {
    let Some(row) = batch.get(&ObjectKey::of(&kind::NODE, "", node)) else { return Ok(0) };
    let due: Vec<(String, String)> = batch
        .index()
        .list(&kind::DAEMON_SET, None)
        .filter(|set| set.text("/spec/updateStrategy/type") != "OnDelete" && derive::selects(set, &row))
        .filter_map(|set| Some((set.uid().to_owned(), rollout::number_of(set)?)))
        .filter(|(uid, number)| {
            let mut pods = batch.index().pods_on(node);
            // What the hub has not heard of may run an older number all the same.
            let there = pods.any(|pod| {
                pod.controller().is_some_and(|owner| owner.uid == *uid) && rollout::number_of(pod) == Some(*number)
            });
            let granted = batch.index().rollout(uid).grants.get(node).is_some_and(|text| *text == number.to_string());
            !there && !granted
        })
        .map(|(uid, number)| (uid, number.to_string()))
        .collect();
    for (uid, number) in &due {
        batch.set_grant(uid, node, Some(number))?;
    }
    Ok(due.len())
}
