//! Bundles of a device whose agent does not run: the same over its database, while its lock is held.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::bundle::courier;
use tokio::net::UnixStream;

use crate::device;
use crate::enrolment::Identity;
use crate::replica::DeviceReplica;
use crate::start::{self, Found};

/// Whether an agent has ever run in this folder.
pub(super) fn is_device(folder: &Path) -> bool {
    folder.join("device.db").exists()
}

/// Serves one command over a device's database.
///
/// # Errors
/// When an agent runs there, or the database cannot be had.
pub(super) async fn converse(folder: &Path, stream: UnixStream) -> Result<()> {
    let folder = start::prepare(folder)?;
    let _lock = start::lock(&folder)?;
    let mut found = Found::open(&folder).await?;
    let clerk = found.clerk.clone();
    if found.has_joined() {
        found.become_ready().await?;
        courier::converse(stream, &*clerk).await;
        return Ok(());
    }
    let becoming = async {
        // Only the hub's answer makes this a device.
        let Some(enrolment) = clerk.joined().await else { return Ok(()) };
        found.join(&enrolment)?;
        found.become_ready().await?;
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        () = courier::converse(stream, &*clerk) => Ok(()),
        failed = becoming => failed,
    }
}

impl Found {
    /// The replica, without anything that runs.
    pub(super) async fn become_ready(&self) -> Result<()> {
        let identity = Identity::of_joined(&self.store, &self.loaded).await?;
        let life = device::life(&identity, self.boot)?;
        let (clock, trust) = (self.clock.clone(), self.trust.clone());
        clock.raise(Timestamp(identity.enrolment.hub_time_ms));
        let (replica, _streams) = DeviceReplica::take_up(self.store.clone(), &self.loaded, life, clock, trust)?;
        self.clerk.is_ready(&Arc::new(replica), &identity, &self.loaded);
        Ok(())
    }
}
