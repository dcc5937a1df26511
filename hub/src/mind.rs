//! A hub without its doors: store, fleet door, registrar and the loops between them, over a database that is handed in.
//!
//! Owns the order in which these come up. Refuses to listen: [`Hub::start`](crate::Hub::start) adds sockets, a simulation adds pipes
//! within its process. Start reading at [`Mind::open`].

use std::sync::Arc;

use flotilla_sync::channel::{Positions, WriterId, positions_of};
use flotilla_sync::enrol::{Enroller, Token};
use flotilla_sync::identity::{Installation, NodeName};
use flotilla_sync::transport::Listener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::backend::HubBackend;
use crate::config::Retention;
use crate::enrol::Registrar;
use crate::fleet::door::FleetDoor;
use crate::fleet::{self, Reception};
use crate::installation::{Addresses, InstallationError};
use crate::store::Store;
use crate::store::settings::Setting;
use crate::store::tokens::StoredToken;
use crate::tokens::TokenRequest;
use crate::{Contacts, HubError, learn, open, runner};

/// Everything of a hub that does not listen.
#[derive(Debug, Clone)]
pub struct Mind {
    pub(crate) store: Store,
    pub(crate) contacts: Contacts,
    pub(crate) installation: Arc<Installation>,
    pub(crate) door: Arc<FleetDoor>,
    pub(crate) boot: u64,
}

/// Where devices find it: the last thing a hub learns of itself at a start.
#[derive(Debug, Clone)]
pub struct Doors {
    mind: Mind,
    pub(crate) registrar: Arc<Registrar>,
}

impl Mind {
    /// Reads keys and seeds of the database, making what is missing. A hub that has lost something begins to learn.
    ///
    /// # Errors
    /// When the database refuses, or what it holds of this hub itself is damaged.
    pub async fn open(store: Store) -> Result<Self, HubError> {
        let opened = open(&store).await?;
        let installation = Arc::new(opened.installation);
        let contacts = Contacts::starting(store.now(), opened.remembered);
        let door = FleetDoor::new(store.clone(), contacts.clone(), Arc::clone(&installation), opened.writer);
        Ok(Self { store, contacts, installation, door: Arc::new(door), boot: opened.boot })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn contacts(&self) -> &Contacts {
        &self.contacts
    }

    /// Whether it says nothing until its devices have given back what its database lacks.
    pub fn is_learning(&self) -> bool {
        self.door.is_learning()
    }

    /// How far the hub's logs are durable at a device, as its session said; `None` without a session.
    pub fn acknowledged(&self, node: &str) -> Option<Positions> {
        self.door.session(node).and_then(|_session| self.door.durable(node))
    }

    /// Under which id it writes.
    pub fn writer(&self) -> WriterId {
        self.door.identity().id()
    }

    /// Where the logs of a device's channels stand here.
    pub fn heads(&self, node: &str) -> Positions {
        let Ok(name) = NodeName::parse(node) else { return Positions::new() };
        positions_of(&self.door.heads_of(&name))
    }

    /// What it serves to people and their tools.
    pub fn backend(&self, retention: &Retention) -> HubBackend {
        HubBackend::new(self.store.clone(), Arc::clone(&self.door), retention.audit_count_max)
    }

    /// Remembers where it is found, and is ready for devices.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn found_at(&self, quic: Vec<String>, mqtt: Vec<String>) -> Result<Doors, HubError> {
        let addresses = Addresses { quic, mqtt };
        let encoded = serde_json::to_vec(&addresses).map_err(InstallationError::from)?;
        self.store.write(move |batch| Ok(batch.set_setting(Setting::Addresses, &encoded)?)).await?;
        let registrar =
            Registrar { store: self.store.clone(), installation: Arc::clone(&self.installation), addresses };
        Ok(Doors { mind: self.clone(), registrar: Arc::new(registrar) })
    }

    /// Runs controllers and scheduler, looks at who does not answer and at what is being learned; until `shutdown`.
    pub async fn think(self, shutdown: watch::Receiver<bool>) {
        let lessons = self.door.lessons.subscribe();
        let mut loops = JoinSet::new();
        loops.spawn(fleet::attention::watch(Arc::clone(&self.door), shutdown.clone()));
        loops.spawn(learn::watch(Arc::clone(&self.door), shutdown.clone()));
        let (store, stop) = (self.store.clone(), shutdown.clone());
        loops.spawn(async move { store.logs().bells().walk(stop).await });
        loops.spawn(control(self.store, self.contacts, lessons, shutdown));
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the hub ended by a fault");
            }
        }
    }
}

impl Doors {
    /// Takes devices of one transport until `shutdown`.
    pub async fn serve(&self, listener: Listener, shutdown: watch::Receiver<bool>) {
        fleet::serve(listener, self.reception(), shutdown).await;
    }

    /// Who may join.
    pub fn enroller(&self) -> Arc<impl Enroller + use<>> {
        Arc::clone(&self.registrar)
    }

    /// Makes a token within this process; see [`crate::tokens::create`].
    ///
    /// # Errors
    /// When no random bytes can be had or the database refuses.
    pub async fn token(&self, request: &TokenRequest) -> Result<Token, HubError> {
        let node = request.node.as_deref().and_then(|name| NodeName::parse(name).ok());
        let Addresses { quic, mqtt } = self.registrar.addresses.clone();
        let installation = &self.mind.installation;
        let expires_ms = self.mind.store.now().0.saturating_add(request.ttl_ms);
        let keys = (installation.pin(), installation.root().public());
        let (token, record) = Token::generate((quic, mqtt), keys, expires_ms, node, request.uses)?;
        let stored = StoredToken { record, fleet: request.fleet.clone() };
        self.mind.store.write(move |batch| Ok(batch.put_token(&stored)?)).await?;
        Ok(token.with_sealing(installation.sealing().public()?))
    }

    pub(crate) fn reception(&self) -> Reception {
        Reception { door: Arc::clone(&self.mind.door), registrar: Arc::clone(&self.registrar), boot: self.mind.boot }
    }
}

/// Runs controllers and scheduler while the hub does not learn.
async fn control(
    store: Store,
    contacts: Contacts,
    mut learning: watch::Receiver<Option<learn::Learning>>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            biased;
            _ended = shutdown.wait_for(|stop| *stop) => return,
            waited = learning.wait_for(Option::is_none) => if waited.is_err() { return },
        }
        let (rest, resting) = watch::channel(false);
        let running = runner::run(store.clone(), contacts.clone(), resting);
        let told = async {
            tokio::select! {
                biased;
                _ended = shutdown.wait_for(|stop| *stop) => {}
                _begun = learning.wait_for(Option::is_some) => {}
            }
            rest.send_replace(true);
        };
        tokio::join!(running, told);
    }
}
