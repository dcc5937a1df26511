//! One simulated device: a disk, containers, a clock that may be wrong, and an agent that comes and goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use anyhow::Result;

use flotilla_agent::backend::LocalBackend;
use flotilla_agent::clock::{Clock, Hands};
use flotilla_agent::device::{Device, Machine, Remembered, count_boot, next_boot};
use flotilla_agent::enrolment::Identity;
use flotilla_agent::host::{Host, Pressure, Source};
use flotilla_agent::image::ImageStore;
use flotilla_agent::replica::DeviceReplica;
use flotilla_agent::store::{Elsewhere, Loaded, Store};
use flotilla_agent::uplink::{Known, Uplink};
use flotilla_agent::volume::VolumeStore;
use flotilla_disk::Disk;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::Positions;
use flotilla_sync::enrol::{Enroller, Introduction, Proof, Token, enrol, serve};
use flotilla_sync::identity::{DeviceKeys, FlooredClock, NodeName, TrustTime};
use flotilla_sync::transport::{EnrolStream, MemoryDoor, Target, Transport};
use tokio::io::{DuplexStream, duplex, split};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::runtime::{Containers, SimRuntime};
use crate::trace::Trace;

/// The stored enrolment is brought to this length: signatures of certificates have no fixed one, and nothing on a disk may depend on
/// that. Bytes.
const ENROLMENT_BYTES: usize = 16 * 1024;
/// Where no file is: what is not the database's is not on this device.
const NOWHERE: &str = "/nonexistent/flotilla-simulation";

/// A device as the world sees it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Label `group`: which DaemonSets select it.
    pub(crate) group: String,
    pub(crate) disk: Disk,
    pub(crate) containers: Containers,
    /// Its disk fails or is full at present.
    pub(crate) in_trouble: bool,
    trace: Trace,
    dialled: MemoryDoor,
    hands: Arc<Wrong>,
    boots: u64,
    life: Option<Life>,
}

/// How a device's clock differs from the truth.
#[derive(Debug)]
struct Wrong {
    /// Milliseconds.
    offset: AtomicI64,
    /// Millionths of the time that passes.
    drift: AtomicI64,
    /// It began in 1970.
    lost: AtomicBool,
}

#[derive(Debug)]
struct Life {
    tasks: JoinSet<()>,
    backend: Arc<LocalBackend<SimRuntime>>,
    replica: Arc<DeviceReplica>,
    _end: watch::Sender<bool>,
    _leave: watch::Sender<bool>,
}

impl Node {
    pub(crate) fn new(name: &str, group: &str, disk: Disk, dialled: MemoryDoor, trace: Trace) -> Self {
        let hands =
            Arc::new(Wrong { offset: AtomicI64::new(0), drift: AtomicI64::new(0), lost: AtomicBool::new(false) });
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            containers: Containers::new(name, trace.clone()),
            disk,
            in_trouble: false,
            trace,
            dialled,
            hands,
            boots: 1,
            life: None,
        }
    }

    /// Joins the hub, by the real exchange over a stream of its own; afterwards the disk says who this is.
    ///
    /// # Errors
    /// When the hub refuses or the disk does.
    pub(crate) async fn join(&self, token: &Token, enroller: &impl Enroller) -> Result<()> {
        let (store, _) = self.open()?;
        let keys = DeviceKeys::generate()?;
        store.set_meta("keys", serde_json::to_vec(&keys.to_material())?).await?;
        let introduction = Introduction {
            proof: Proof::Token(token.proof()),
            node: NodeName::parse(&self.name)?,
            labels: BTreeMap::from([("group".to_owned(), self.group.clone())]),
            pin: token.pin,
            root: token.root,
        };
        let (near, far) = duplex(64 * 1024);
        let binding = [7; 32];
        let (joined, served) = tokio::join!(
            enrol(stream(near, binding), &introduction, &keys),
            serve(stream(far, binding), &token.root, enroller),
        );
        served?;
        let mut material = serde_json::to_vec(&joined?.to_material())?;
        material.resize(ENROLMENT_BYTES.max(material.len()), b' ');
        store.set_meta("enrolment", material).await?;
        Ok(())
    }

    fn open(&self) -> Result<(Store, Loaded)> {
        let vfs = flotilla_disk::NAME.to_str()?;
        Ok(Store::open_here(&self.disk.path(""), Elsewhere { vfs: Some(vfs) })?)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    pub(crate) fn replica(&self) -> Option<&Arc<DeviceReplica>> {
        self.life.as_ref().map(|life| &life.replica)
    }

    pub(crate) fn backend(&self) -> Option<Arc<LocalBackend<SimRuntime>>> {
        self.life.as_ref().map(|life| Arc::clone(&life.backend))
    }

    /// What the agent has made durable of each log, as it knows it.
    pub(crate) fn held(&self) -> Option<Positions> {
        self.replica().map(|replica| replica.positions())
    }

    /// Starts the agent from what is on the disk.
    ///
    /// # Errors
    /// When the disk refuses: it is tried again later, as a service manager would.
    pub(crate) async fn start(&mut self) -> Result<()> {
        let (store, loaded) = self.open()?;
        let clock = Arc::new(self.clock());
        let boot = next_boot(&loaded);
        count_boot(&store, boot).await?;
        let reading = clock.clone();
        let trust = FlooredClock::new(move || reading.now().0, 0);
        let identity = Identity::of_joined(&store, &loaded).await?;
        clock.raise(Timestamp(identity.enrolment.hub_time_ms));
        trust.raise(identity.enrolment.hub_time_ms);
        let (end, ended) = watch::channel(false);
        let (leave, left) = watch::channel(false);
        let host = self.host();
        let machine = Machine {
            folder: PathBuf::from(NOWHERE),
            runtime: Arc::new(self.containers.runtime()),
            images: Arc::new(ImageStore::over(PathBuf::from(NOWHERE).as_path())),
            images_changed: watch::channel(0).1,
            volumes: Arc::new(VolumeStore::empty(PathBuf::from(NOWHERE), &host.boot_id)),
            host,
            end: ended,
        };
        let remembered =
            Remembered { store: &store, loaded: &loaded, clock: &clock, trust: &trust, boot, identity: &identity };
        let Device { agent, backend, replica, link } = Device::assemble(remembered, machine).await?;
        let time: Arc<dyn TrustTime> = trust.clone();
        let uplink = Uplink {
            identity,
            roads: Known::Given(vec![Target::Memory(self.dialled.clone())]),
            store,
            replica: replica.clone(),
            clock,
            time,
            trust,
            boot,
            link,
            leave: left,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(agent.run().await) });
        tasks.spawn(uplink.run());
        self.life = Some(Life { tasks, backend, replica, _end: end, _leave: leave });
        Ok(())
    }

    /// Every task of the agent is gone when this returns.
    pub(crate) async fn stop_tasks(&mut self) {
        self.containers.orphan();
        if let Some(mut life) = self.life.take() {
            life.tasks.shutdown().await;
        }
    }

    /// `kill -9` of the agent.
    pub(crate) async fn kill(&mut self) {
        self.disk.kill();
        self.stop_tasks().await;
    }

    /// The whole device loses its power.
    pub(crate) async fn power_cut(&mut self) {
        self.disk.power_cut();
        self.stop_tasks().await;
        self.containers.power_cut();
        self.boots += 1;
    }

    /// The clock is set, or goes wrong by itself.
    pub(crate) fn step_clock(&self, by_ms: i64) {
        self.hands.offset.fetch_add(by_ms, Ordering::Relaxed);
    }

    pub(crate) fn set_drift(&self, millionths: i64) {
        self.hands.drift.store(millionths, Ordering::Relaxed);
    }

    /// The clock has no battery: it says 1970 from the next look on, or the truth again.
    pub(crate) fn lose_clock(&self, lost: bool) {
        self.hands.lost.store(lost, Ordering::Relaxed);
    }

    /// All is well with the clock again.
    pub(crate) fn mend_clock(&self) {
        self.hands.offset.store(0, Ordering::Relaxed);
        self.hands.drift.store(0, Ordering::Relaxed);
        self.lose_clock(false);
    }

    /// Another card in the slot; only while nothing runs.
    pub(crate) fn put_disk(&mut self, disk: Disk) {
        self.disk = disk;
    }

    fn clock(&self) -> Clock {
        let (truth, wrong) = (self.trace.clone(), Arc::clone(&self.hands));
        let wall = move || {
            let passed = truth.now_ms();
            let drift = passed.cast_signed() / 1_000_000 * wrong.drift.load(Ordering::Relaxed);
            let base = if wrong.lost.load(Ordering::Relaxed) { passed } else { truth.true_ms() };
            base.saturating_add_signed(wrong.offset.load(Ordering::Relaxed).saturating_add(drift))
        };
        let monotonic = self.trace.clone();
        Clock::over(Hands { wall_ms: Box::new(wall), monotonic_ms: Box::new(move || monotonic.now_ms()) })
    }

    fn host(&self) -> Host {
        let pressure = Pressure {
            memory_available_bytes: 512 << 20,
            disk_bytes: 8 << 30,
            disk_available_bytes: 4 << 30,
            pids: 100,
            pids_max: 32768,
        };
        Host {
            hostname: self.name.clone(),
            ip: "192.0.2.1".to_owned(),
            boot_id: format!("{:08x}-0000-4000-8000-{:012x}", self.boots, self.boots),
            machine_id: format!("{:032x}", self.boots),
            system_uuid: String::new(),
            kernel_version: "simulated".to_owned(),
            os_image: "simulated".to_owned(),
            architecture: "arm64",
            cpu_milli: 1000,
            memory_bytes: 1 << 30,
            source: Source::Fixed(pressure),
        }
    }
}

fn stream(end: DuplexStream, binding: [u8; 32]) -> EnrolStream {
    let (reader, writer) = split(end);
    EnrolStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        binding,
        transport: Transport::Memory,
        remote: "simulated".to_owned(),
    }
}
