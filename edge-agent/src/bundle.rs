//! Bundles at a device: how it joins, is updated and reports without any network.
//!
//! Owns the device's end of `flotilla bundle`, before and after it has joined. Refuses merging and formats: those are
//! [`flotilla_sync::bundle`]'s, over the same replica that serves sessions. Start at [`DeviceClerk`]; the first steps of a device that
//! has not joined are in `bundle/joining.rs`, the command line in `bundle/command.rs`.

pub mod command;
mod joining;
mod offline;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_sync::bundle::courier::{Clerk, Failure, Selection, Wish};
use flotilla_sync::bundle::{self, Direction, Export, Incoming, Intake, Receiver, Report, Seal, Side};
use flotilla_sync::enrol::Enrolment;
use flotilla_sync::identity::{InstallationId, SealingKey, SealingPublicKey};
use flotilla_sync::replica::Replica as _;
use flotilla_sync::transport::PeerIdentity;
use tokio::io::{AsyncRead, DuplexStream};
use tokio::sync::watch;

use crate::args::RunArguments;
use crate::clock::Clock;
use crate::enrolment::Identity;
use crate::replica::DeviceReplica;
use crate::store::{Loaded, Store};

pub(crate) use joining::Joining;

/// Name in the table of facts: to which this device seals its bundles, learned from one of the hub's.
const HUB_SEALING: &str = "hub-sealing";

/// The device's end of `flotilla bundle`. Serves from before the device has joined.
#[derive(Debug)]
pub(crate) struct DeviceClerk {
    store: Store,
    clock: Arc<Clock>,
    joining: Joining,
    /// The hub's answer, once a bundle brought it and it is durable.
    joined: watch::Sender<Option<Arc<Enrolment>>>,
    ready: watch::Sender<Option<Arc<Ready>>>,
}

/// A device that has joined.
#[derive(Debug)]
pub(crate) struct Ready {
    replica: Arc<DeviceReplica>,
    side: Side,
    installation: InstallationId,
    hub_sealing: Mutex<Option<SealingPublicKey>>,
    store: Store,
    clock: Arc<Clock>,
}

impl DeviceClerk {
    pub(crate) fn new(store: Store, clock: Arc<Clock>, joining: Joining) -> Arc<Self> {
        Arc::new(Self { store, clock, joining, joined: watch::Sender::new(None), ready: watch::Sender::new(None) })
    }

    /// Returns once the hub's answer to this device's request is durable.
    pub(crate) async fn joined(&self) -> Option<Arc<Enrolment>> {
        let mut joined = self.joined.subscribe();
        joined.wait_for(Option::is_some).await.ok()?;
        self.joined.borrow().clone()
    }

    /// The device has its identity and its replica: from now on bundles are served from them.
    pub(crate) fn is_ready(&self, replica: &Arc<DeviceReplica>, identity: &Identity, loaded: &Loaded) {
        let learned = loaded.meta.get(HUB_SEALING).and_then(|bytes| bytes.as_slice().try_into().ok());
        let ready = Ready {
            replica: replica.clone(),
            side: Side {
                root: identity.enrolment.root,
                receiver: Receiver::Device(identity.node.clone()),
                key: SealingKey::from_bytes(identity.keys.sealing.to_bytes()),
            },
            installation: InstallationId::of(&identity.enrolment.root),
            hub_sealing: Mutex::new(learned.map(SealingPublicKey).or(identity.enrolment.hub_sealing)),
            store: self.store.clone(),
            clock: self.clock.clone(),
        };
        self.ready.send_replace(Some(Arc::new(ready)));
    }

    /// Whether a request to join waits for its answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.joining.is_waiting()
    }

    /// See [`Joining::request`].
    pub(crate) async fn request(&self, arguments: &RunArguments, folder: &Path) -> anyhow::Result<()> {
        self.joining.request(&self.store, arguments, folder, self.clock.now()).await
    }

    fn ready(&self) -> Option<Arc<Ready>> {
        self.ready.borrow().clone()
    }

    /// The first bundle of a device that has not joined: its certificate, then its first state.
    async fn join(&self, source: DuplexStream) -> Result<Report, Failure> {
        let side = self.joining.side()?;
        let Incoming::Bundle(mut intake) = Incoming::open(source, &side).await? else { return Err(for_a_hub()) };
        let Some(answer) = intake.enrolled().await? else {
            return Err(Failure::refused(
                "this device has not joined, and the bundle brings no answer to its request: import the request at the hub \
                 (`flotilla bundle export` here writes it), then export there again",
            ));
        };
        let enrolment = self.joining.accept(&answer)?;
        self.joining.keep(&self.store, &enrolment).await?;
        tracing::info!(node = %enrolment.certificate.node, "this device has joined its hub by a bundle");
        self.joined.send_replace(Some(Arc::new(enrolment)));
        let mut ready = self.ready.subscribe();
        let ready = ready.wait_for(Option::is_some).await.ok().and_then(|ready| ready.clone());
        let ready =
            ready.ok_or_else(|| Failure::other("the agent ended before it took the bundle: import it again"))?;
        ready.take(*intake).await
    }
}

impl Clerk for DeviceClerk {
    async fn nodes(&self, _selection: Selection) -> Result<Vec<String>, Failure> {
        Err(Failure::other("this is a device: its bundles are for its hub, leave the selection of devices out"))
    }

    async fn export(&self, wish: Wish, target: &mut DuplexStream) -> Result<Report, Failure> {
        if wish.node.is_some() {
            return Err(Failure::other("this is a device: its bundles are for its hub, leave --node out"));
        }
        match self.ready() {
            Some(ready) => ready.export(wish.full, target).await,
            None => self.joining.export(&self.store, wish.join.as_ref(), self.clock.now(), target).await,
        }
    }

    async fn import(&self, source: DuplexStream) -> Result<Report, Failure> {
        let report = match self.ready() {
            Some(ready) => ready.import(source).await?,
            None => self.join(source).await?,
        };
        tracing::info!(
            bundle = report.id,
            bytes = report.bytes,
            records = report.records_new,
            missing = report.missing.len(),
            "a bundle was imported"
        );
        Ok(report)
    }
}

impl Ready {
    async fn export(&self, full: bool, target: &mut DuplexStream) -> Result<Report, Failure> {
        let hub_sealing = *self.hub_sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let key = hub_sealing.ok_or_else(|| {
            Failure::refused("this device does not know yet how to seal for its hub: import a bundle of the hub first")
        })?;
        // What it holds of the hub's goes along for a hub that lost it.
        let blobs =
            if full { self.replica.named_blobs(&PeerIdentity::Hub).await.map_err(Failure::other)? } else { Vec::new() };
        let export = Export {
            signer: &self.replica.identity(),
            seal: Seal {
                installation: self.installation.clone(),
                receiver: Receiver::Hub,
                key,
                time_ms: self.clock.now().0,
            },
            direction: Direction::Up,
            clock: self.replica.tick(),
            positions: if full { Default::default() } else { self.replica.subscriptions() },
            own_log_only: !full,
            hub_sealing: None,
            enrolled: None,
            acknowledged: Vec::new(),
            blobs,
        };
        let report = bundle::export(&*self.replica, &PeerIdentity::Hub, export, target).await?;
        tracing::info!(
            bundle = report.id,
            bytes = report.bytes,
            observations = report.observations,
            "a bundle was exported"
        );
        Ok(report)
    }

    async fn import(&self, source: DuplexStream) -> Result<Report, Failure> {
        match Incoming::open(source, &self.side).await? {
            Incoming::Join(_) => Err(for_a_hub()),
            Incoming::Bundle(intake) => self.take(*intake).await,
        }
    }

    async fn take<S: AsyncRead + Unpin + Send>(&self, intake: Intake<S>) -> Result<Report, Failure> {
        if let Some(key) = intake.maker().introduction.hub_sealing {
            self.learn(key).await?;
        }
        Ok(intake.take(&*self.replica, &PeerIdentity::Hub, true).await?)
    }

    /// A device that joined before its hub could read bundles learns from one how to seal its own.
    async fn learn(&self, key: SealingPublicKey) -> Result<(), Failure> {
        let known = *self.hub_sealing.lock().unwrap_or_else(PoisonError::into_inner);
        if known != Some(key) {
            self.store.set_meta(HUB_SEALING, key.0.to_vec()).await.map_err(Failure::other)?;
            *self.hub_sealing.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        }
        Ok(())
    }
}

fn for_a_hub() -> Failure {
    Failure::refused("this is a request to join: import it at the hub")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
