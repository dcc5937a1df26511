//! The simulated hub: a disk, and a mind that comes and goes.

use std::sync::Arc;

use anyhow::Result;
use flotilla_disk::Disk;
use flotilla_hub::mind::{Doors, Mind};
use flotilla_hub::{HubBackend, Retention, Store};
use flotilla_manifests::time::Timestamp;
use flotilla_sync::transport::{Listener, MemoryDoor};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::trace::Trace;

const DATABASE: &str = "hub.sqlite";

/// The hub as the world sees it.
#[derive(Debug)]
pub(crate) struct SimHub {
    pub(crate) disk: Disk,
    pub(crate) retention: Retention,
    trace: Trace,
    life: Option<HubLife>,
}

/// While it runs.
#[derive(Debug)]
pub(crate) struct HubLife {
    tasks: JoinSet<()>,
    pub(crate) mind: Mind,
    pub(crate) doors: Doors,
    pub(crate) backend: Arc<HubBackend>,
    pub(crate) door: MemoryDoor,
    _shutdown: watch::Sender<bool>,
}

impl SimHub {
    pub(crate) fn new(disk: Disk, trace: Trace, retention: Retention) -> Self {
        Self { disk, retention, trace, life: None }
    }

    pub(crate) fn life(&self) -> Option<&HubLife> {
        self.life.as_ref()
    }

    /// Starts from what is on the disk.
    ///
    /// # Errors
    /// When the disk refuses: it is tried again later.
    pub(crate) async fn start(&mut self) -> Result<()> {
        let truth = self.trace.clone();
        let clock: flotilla_hub::clock::Clock = Arc::new(move || Timestamp(truth.true_ms()));
        let vfs = flotilla_disk::NAME.to_str()?;
        let store = Store::open_here(&self.disk.path(DATABASE), vfs, self.retention, clock)?;
        let mind = Mind::open(store).await?;
        let doors = mind.found_at(vec!["simulated:1".to_owned()], Vec::new()).await?;
        let backend = Arc::new(mind.backend(&self.retention));
        let (listener, door) = Listener::memory();
        let (shutdown, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let serving = doors.clone();
        let stops = stop.clone();
        tasks.spawn(async move { serving.serve(listener, stops).await });
        tasks.spawn(mind.clone().think(stop));
        self.life = Some(HubLife { tasks, mind, doors, backend, door, _shutdown: shutdown });
        Ok(())
    }

    /// Every task is gone when this returns.
    pub(crate) async fn stop_tasks(&mut self) {
        if let Some(mut life) = self.life.take() {
            life.tasks.shutdown().await;
        }
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.disk.kill();
        self.stop_tasks().await;
    }

    pub(crate) async fn power_cut(&mut self) {
        self.disk.power_cut();
        self.stop_tasks().await;
    }

    /// Another disk; only while nothing runs.
    pub(crate) fn put_disk(&mut self, disk: Disk) {
        self.disk = disk;
    }
}
