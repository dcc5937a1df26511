//! One device put together from its parts: the same for the agent of a board, which has sockets, shims and a kernel, and for one of a
//! thousand in a simulation, which has none.
//!
//! Owns the order in which the parts come up. Refuses to open anything itself: disk, runtime, host and roads are handed in by
//! [`crate::start`] or by a simulator. Start reading at [`Device::assemble`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flotilla_manifests::derive::NodeRef;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::identity::{FlooredClock, SealingKey, SigningKey};
use tokio::sync::{mpsc, watch};

use crate::agent::{Agent, Inbox, LoopState};
use crate::backend::{LocalBackend, Shared};
use crate::clock::Clock;
use crate::enrolment::{self, Identity};
use crate::executor::Executor;
use crate::host::Host;
use crate::image::ImageStore;
use crate::knowledge::Knowledge;
use crate::probe::ProbeRunner;
use crate::reconcile::History;
use crate::replica::{DeviceReplica, Life, OpenedStream};
use crate::runtime::Runtime;
use crate::store::{Damage, Entry, Loaded, Store, StoreError};
use crate::uplink::Link;
use crate::view::LocalView;
use crate::volume::VolumeStore;

/// Local writes waiting for the loop; a caller that finds it full waits.
const WRITES_LEN_MAX: usize = 32;
/// Resource versions one life of the agent may give out before it reserves more at its next start.
const VERSIONS_PER_LIFE: u64 = 1 << 24;

/// What a device knows when it starts: its database, its clocks, and who it is.
#[derive(Debug)]
pub struct Remembered<'a> {
    pub store: &'a Store,
    pub loaded: &'a Loaded,
    pub clock: &'a Arc<Clock>,
    pub trust: &'a Arc<FlooredClock>,
    /// Which start of this database it is; see [`next_boot`].
    pub boot: u64,
    pub identity: &'a Identity,
}

/// What it has to work with.
#[derive(Debug)]
pub struct Machine<R> {
    /// Everything of this device on the disk beside the database.
    pub folder: PathBuf,
    pub runtime: Arc<R>,
    pub host: Host,
    pub images: Arc<ImageStore>,
    /// Images were imported or removed.
    pub images_changed: watch::Receiver<u64>,
    pub volumes: Arc<VolumeStore>,
    /// Turns true when the agent is to end.
    pub end: watch::Receiver<bool>,
}

/// A device that is ready to run.
#[derive(Debug)]
pub struct Device<R> {
    /// The loop.
    pub agent: Agent<R>,
    /// What its local API serves.
    pub backend: Arc<LocalBackend<R>>,
    /// What its sessions read and write.
    pub replica: Arc<DeviceReplica>,
    /// For the uplink, to say whether there is a session.
    pub link: watch::Sender<Link>,
}

impl<R: Runtime> Device<R> {
    /// Takes up what the disk has and puts the parts together; nothing runs yet.
    ///
    /// # Errors
    /// When the device's own writer in the database is damaged, or the runtime was used before.
    pub async fn assemble(remembered: Remembered<'_>, machine: Machine<R>) -> Result<Self> {
        let Remembered { store, loaded, clock, trust, boot, identity } = remembered;
        let Machine { folder, runtime, host, images, images_changed, volumes, end } = machine;
        let (replica, streams) = take_up(&folder, store, loaded, life(identity, boot)?, clock, trust).await?;
        let shared = Arc::new(Shared::over(view(store, loaded, identity.enrolment.incarnation).await));
        *shared.history() = histories(loaded);
        let (writes, write_queue) = mpsc::channel(WRITES_LEN_MAX);
        let backend = Arc::new(LocalBackend::over(shared.clone(), writes, runtime.clone(), clock.clone()));
        let (link, link_watch) = watch::channel(Link::Down);
        let (executor, done) = Executor::over(runtime.clone(), volumes);
        let (probes, probe_reports) = ProbeRunner::over(runtime.clone(), host.ip.clone());
        let inbox = Inbox {
            items: replica.changed(),
            runtime: runtime.events().context("the runtime's events were taken before")?,
            done,
            probes: probe_reports,
            writes: write_queue,
            streams,
            link: link_watch,
            images: images_changed,
            end,
        };
        let agent = Agent {
            folder,
            node: NodeRef { name: identity.node.to_string(), uid: identity.node_uid.clone() },
            store: store.clone(),
            clock: clock.clone(),
            replica: replica.clone(),
            shared,
            backend: backend.clone(),
            facilities: Arc::new(runtime.facilities().clone()),
            runtime,
            executor,
            probes,
            host,
            images,
            knowledge: Knowledge::opening_with(SealingKey::from_bytes(identity.keys.sealing.to_bytes())),
            memory: remembered_as(loaded, "memory"),
            last_applied: remembered_as(loaded, "last-applied"),
            causes: remembered_as(loaded, "change-cause"),
            inbox,
            state: LoopState::default(),
        };
        Ok(Self { agent, backend, replica, link })
    }
}

/// Which start of its database this one is.
pub fn next_boot(loaded: &Loaded) -> u64 {
    number(loaded, "boot") + 1
}

/// Counts it; durable when this returns.
///
/// # Errors
/// When the disk refuses.
pub async fn count_boot(store: &Store, boot: u64) -> Result<(), StoreError> {
    store.set_meta("boot", boot.to_string().into_bytes()).await
}

pub(crate) fn life(identity: &Identity, boot: u64) -> Result<Life> {
    Ok(Life {
        node: identity.node.clone(),
        root: identity.enrolment.root,
        writer: identity.writer.clone(),
        signing: SigningKey::from_seed(identity.keys.signing.seed())?,
        certificate: identity.enrolment.certificate.clone(),
        incarnation: identity.enrolment.incarnation,
        boot,
    })
}

/// The device's replica over its store; what was damaged is noted, and its own log made fit to go on.
async fn take_up(
    folder: &Path,
    store: &Store,
    loaded: &Loaded,
    life: Life,
    clock: &Arc<Clock>,
    trust: &Arc<FlooredClock>,
) -> Result<(Arc<DeviceReplica>, mpsc::Receiver<OpenedStream>)> {
    let (replica, streams) = DeviceReplica::take_up(store.clone(), loaded, life, clock.clone(), trust.clone())?;
    note_damage(folder, loaded, &replica, clock.now());
    if let Err(error) = replica.mend_own_log().await {
        // The old writer goes on; what it says twice the hub sees as a fork, and both branches count.
        tracing::error!(error = %enrolment::chain(&error), "this device's own log was not mended");
    }
    Ok((Arc::new(replica), streams))
}

/// Tells people what of the database was damaged.
fn note_damage(folder: &Path, loaded: &Loaded, replica: &DeviceReplica, now: Timestamp) {
    let entry = |what: String, why: String| Entry { time_ms: now.0, what, why, salvage: None };
    let mut found: Vec<Entry> = loaded.set_aside.iter().map(|(what, why)| entry(what.clone(), why.clone())).collect();
    let unreadable = "its stored state is damaged; it is asked of the hub again";
    found.extend(replica.damaged_rows().into_iter().map(|what| entry(what, unreadable.to_owned())));
    if let Some(salvage) = &loaded.salvage {
        let mut database = entry("the database".to_owned(), salvage.why.clone());
        database.salvage = Some(salvage.clone());
        found.push(database);
    }
    if let Err(error) = Damage::note(folder, found) {
        tracing::error!(%error, "what was damaged could not be noted");
    }
}

async fn view(store: &Store, loaded: &Loaded, incarnation: u64) -> LocalView {
    let start = number(loaded, "versions").max(incarnation << 40);
    set_number(store, "versions", start + VERSIONS_PER_LIFE).await;
    LocalView::starting_above(start)
}

fn histories(loaded: &Loaded) -> History {
    let read = |(pod, text): &(String, String)| match serde_json::from_str(text) {
        Ok(history) => Some((pod.clone(), history)),
        Err(error) => {
            tracing::error!(object = %pod, %error, "the stored history of a pod is damaged and was set aside");
            None
        }
    };
    loaded.histories.iter().filter_map(read).collect()
}

/// A fact about this device; a damaged one is begun anew, for without it workloads run all the same.
fn remembered_as<T: Default + serde::de::DeserializeOwned>(loaded: &Loaded, name: &str) -> T {
    let read = loaded.meta.get(name).map(|bytes| serde_json::from_slice(bytes));
    read.transpose()
        .unwrap_or_else(|error| {
            tracing::error!(what = name, %error, "what this device remembered is damaged and was set aside");
            None
        })
        .unwrap_or_default()
}

fn number(loaded: &Loaded, name: &str) -> u64 {
    loaded.meta.get(name).and_then(|bytes| String::from_utf8_lossy(bytes).parse().ok()).unwrap_or(0)
}

/// Stores a counter of this life. A full disk must not keep a device from running what is on it: then the counter repeats, which
/// watchers meet with a new list and the hub with the greeting's time.
async fn set_number(store: &Store, name: &'static str, value: u64) {
    if let Err(error) = store.set_meta(name, value.to_string().into_bytes()).await {
        tracing::error!(counter = name, error = %enrolment::chain(&error), "a counter was not stored; the device starts all the same");
    }
}
