//! Bundles of a hub that does not run: the same over its database, while its lock is held.

use std::path::Path;
use std::sync::Arc;

use flotilla_sync::bundle::courier;
use tokio::net::UnixStream;

use super::HubClerk;
use crate::config::{DATABASE_FILE, Retention};
use crate::enrol::Registrar;
use crate::fleet::door::FleetDoor;
use crate::installation::Addresses;
use crate::store::Store;
use crate::store::settings::Setting;
use crate::{Contacts, HubError, clock, open, prepare_folder};

/// A hub's database, opened for bundles alone: no API, no sessions, no controllers.
#[derive(Debug)]
pub struct StoppedHub {
    clerk: HubClerk,
    /// Held while it is open.
    _lock: std::fs::File,
}

impl StoppedHub {
    /// Whether a hub has ever run in this folder.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(DATABASE_FILE).exists()
    }

    /// Opens it.
    ///
    /// # Errors
    /// When a hub runs there, or the database cannot be had.
    pub async fn open(folder: &Path) -> Result<Self, HubError> {
        let clock = clock::system();
        let (path, lock) = prepare_folder(folder)?;
        let store = Store::open(&path, Retention::default(), Arc::clone(&clock))?;
        let opened = open(&store).await?;
        let installation = Arc::new(opened.installation);
        let contacts = Contacts::starting(clock(), opened.remembered);
        let stored = store.write(|batch| Ok(batch.setting(Setting::Addresses)?)).await?;
        let addresses = stored.and_then(|stored| serde_json::from_slice::<Addresses>(&stored).ok()).unwrap_or_default();
        let door = Arc::new(FleetDoor::new(store.clone(), contacts, Arc::clone(&installation), opened.writer));
        let registrar = Arc::new(Registrar { store, installation, addresses });
        Ok(Self { clerk: HubClerk { door, registrar, controlled: false }, _lock: lock })
    }

    /// Serves one command.
    pub async fn converse(&self, stream: UnixStream) {
        courier::converse(stream, &self.clerk).await;
    }
}
