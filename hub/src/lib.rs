//! The mind of a fleet: store, admission, publication into channels, controllers, scheduler, fleet door.
//!
//! Owns what a fleet should run and what is known of it. Refuses to know how a device makes it true: that is the agent's.
//! Start reading at [`Hub::start`], then [`store`].
#![forbid(unsafe_code)]

mod admission;
mod api;
mod backend;
pub mod broker;
pub mod bundle;
pub mod clock;
pub mod config;
pub mod controllers;
mod enrol;
pub mod fleet;
mod installation;
mod late;
mod learn;
mod leases;
pub mod mind;
mod mint;
mod node;
mod priority;
mod publish;
pub mod runner;
pub mod scheduler;
mod seed;
pub mod store;
pub mod tokens;

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_rest::authorize::SystemMasters;
use flotilla_rest::kubeconfig::Kubeconfig;
use flotilla_rest::{Front, Limits, server};
use flotilla_sync::bundle::courier;
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::identity::{Credentials, FlooredClock, IdentityError, Installation, TrustTime};
use flotilla_sync::transport::{BrokerUrl, BrokerUrlError, Door, DoorLimits, Gate, ListenError, Listener};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use backend::HubBackend;
pub use config::{ApiName, HubConfig, Retention};
pub use fleet::contact::{Contact, Contacts};
pub use store::Store;

use api::ApiThreads;
use bundle::HubClerk;
use config::DATABASE_FILE;
use fleet::gate::FleetGate;
use installation::{Addresses, InstallationError};
use mind::Mind;

/// Handshakes of devices taken per second; the rest is asked to come back.
const HANDSHAKES_PER_SECOND: u32 = 500;
/// Life of the certificate in `admin.kubeconfig`, which is written anew at each start.
const ADMIN_VALIDITY_MS: u64 = 10 * 365 * 86_400_000;

/// A running hub.
#[derive(Debug)]
pub struct Hub {
    api: SocketAddr,
    quic: SocketAddr,
    store: Store,
    contacts: Contacts,
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// They serve the API.
    threads: ApiThreads,
    /// Held while this hub uses its folder.
    lock: File,
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("cannot use the data folder {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("another hub uses {folder}: its lock hub.lock is held")]
    InUse { folder: PathBuf },
    #[error("cannot listen at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot start the threads of the API")]
    Threads(#[source] std::io::Error),
    #[error("the fleet door cannot open")]
    Door(#[from] ListenError),
    #[error("--mqtt {url:?} is no address of a broker")]
    Mqtt { url: String, source: BrokerUrlError },
    #[error("the hub's keys cannot be used")]
    Keys(#[from] InstallationError),
    #[error("a certificate of the hub cannot be made")]
    Certificate(#[from] IdentityError),
    #[error("the API's TLS cannot be set up: {0}")]
    Tls(String),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("the first write failed")]
    Write(#[from] flotilla_manifests::api_error::ApiError),
}

impl Hub {
    /// Opens the data folder, seeds it, starts the controllers, the fleet door and the API. Ready when it returns:
    /// `DIR/admin.kubeconfig` is written and both doors are open. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the folder, the database or a listener cannot be had.
    pub async fn start(config: HubConfig) -> Result<Self, HubError> {
        let clock = clock::system();
        let (path, lock) = prepare_folder(&config.data_dir)?;
        let store = Store::open(&path, config.retention, Arc::clone(&clock))?;
        let mind = Mind::open(store.clone()).await?;
        let installation = Arc::clone(&mind.installation);

        let reading = Arc::clone(&clock);
        let time: Arc<dyn TrustTime> = FlooredClock::new(move || reading().0, 0);
        let gate = Arc::new(FleetGate::new(HANDSHAKES_PER_SECOND));
        let door = Door::new(&installation, time, Arc::clone(&gate) as Arc<dyn Gate>, DoorLimits::default())?;
        let quic = Listener::quic(config.quic, &door)?;
        let quic_address = quic.local_addr().unwrap_or(config.quic);
        let broker = config
            .mqtt
            .as_deref()
            .map(|url| BrokerUrl::parse(url).map_err(|source| HubError::Mqtt { url: url.to_owned(), source }));
        let mqtt = broker.transpose()?.map(|broker| Listener::mqtt(broker, &door));

        let Addresses { quic: at, mqtt: brokers } =
            Addresses::of(&config.advertise, quic_address, config.mqtt.as_deref());
        let doors = mind.found_at(at, brokers).await?;

        let threads = ApiThreads::start()?;
        let api = threads.listen(config.listen).await?;
        let api_address = api.local_addr().map_err(|source| HubError::Listen { address: config.listen, source })?;
        let served = api_certificate(&installation, &config, api_address, clock().0)?;
        let tls = server::tls_config(std::slice::from_ref(installation.authority()), served.chain, served.key)
            .map_err(|error| HubError::Tls(error.to_string()))?;
        let admin = installation.issue_user("admin", Some("system:masters"), clock().0, ADMIN_VALIDITY_MS)?;
        let kubeconfig = config.data_dir.join("admin.kubeconfig");
        let admin = admin.to_material();
        Kubeconfig {
            cluster: "flotilla",
            user: "admin",
            server: &format!("https://{}", api_name(&config, api_address)),
            authority_pem: &installation.authority_pem(),
            chain_pem: &admin.chain_pem,
            key_pem: &admin.key_pem,
        }
        .write(&kubeconfig)
        .map_err(|source| HubError::Folder { path: kubeconfig, source })?;

        let clerk =
            HubClerk { door: Arc::clone(&mind.door), registrar: Arc::clone(&doors.registrar), controlled: true };
        clerk.remember().await?;
        let courier = courier::listen(&config.data_dir)
            .map_err(|source| HubError::Folder { path: config.data_dir.join(courier::SOCKET_FILE), source })?;

        let (shutdown, stop) = watch::channel(false);
        let backend = mind.backend(&config.retention);
        let front = Front::over(Arc::new(backend), clock, Limits::HUB).authorized_by(SystemMasters);
        let serving = server::serve_tls(api, tls, Arc::new(front), stop.clone());
        let mut tasks = vec![
            threads.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the API's listener failed");
                }
            }),
            tokio::spawn(fleet::serve(quic, doors.reception(), stop.clone())),
            tokio::spawn(gate.measure(stop.clone())),
            tokio::spawn(courier::serve(courier, Arc::new(clerk), stop.clone())),
            tokio::spawn(mind.clone().think(stop.clone())),
        ];
        if let Some(mqtt) = mqtt {
            let reception = doors.reception();
            if let Some(announcer) = mqtt.announcer() {
                let door = Arc::clone(&reception.door);
                tasks.push(tokio::spawn(fleet::announce::announce(door, announcer, stop.clone())));
            }
            tasks.push(tokio::spawn(fleet::serve(mqtt, reception, stop)));
        }
        tracing::info!(api = %api_address, quic = %quic_address, incarnation = store.incarnation(), "the hub is ready");
        Ok(Self {
            api: api_address,
            quic: quic_address,
            store,
            contacts: mind.contacts,
            shutdown,
            tasks,
            threads,
            lock,
        })
    }

    /// Where the Kubernetes API listens; the port is the real one even when 0 was asked for.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where the fleet door listens (UDP).
    pub fn quic(&self) -> SocketAddr {
        self.quic
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn contacts(&self) -> &Contacts {
        &self.contacts
    }

    /// Ends gracefully: no new work, watches end, requests in flight are answered, sessions close, the database closes.
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the hub ended by a fault");
            }
        }
        drop(self.threads);
        let store = self.store;
        // Waits for the writer's thread, off the runtime.
        if tokio::task::spawn_blocking(move || drop(store)).await.is_err() {
            tracing::error!("the store did not close");
        }
        drop(self.lock);
    }
}

/// What the database says of this hub itself.
struct Opened {
    installation: Installation,
    writer: WriterIdentity,
    remembered: Vec<(String, flotilla_manifests::time::Timestamp)>,
    boot: u64,
}

/// Keys, seeds and publication, in one transaction.
async fn open(store: &Store) -> Result<Opened, HubError> {
    let opened = store.write(|batch| {
        batch.set_author("hub");
        let (installation, writer) = match installation::open(batch) {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(HubError::from(error))),
        };
        // A hub that has lost something says nothing until its devices have taught it.
        match learn::stored(batch)? {
            None => {
                learn::take_missing(batch)?;
                batch.start_publishing(writer.clone())?;
            }
            Some(_) => batch.announce_writer(&writer)?,
        }
        seed::seed(batch)?;
        let remembered = batch.devices()?.into_iter().map(|device| (device.node, device.last_contact)).collect();
        let boot = batch.next_number("boots")?;
        Ok(Ok(Opened { installation, writer, remembered, boot }))
    });
    opened.await?
}

/// Makes the data folder and the database file, for their owner alone, and takes the folder's lock.
fn prepare_folder(folder: &Path) -> Result<(PathBuf, File), HubError> {
    let failed = |source| HubError::Folder { path: folder.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock = File::options().create(true).append(true).open(folder.join("hub.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(HubError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let path = folder.join(DATABASE_FILE);
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((path, lock))
}

/// Where people reach the API, as `admin.kubeconfig` names it.
fn api_name(config: &HubConfig, bound: SocketAddr) -> String {
    config.advertise_api.as_ref().map_or_else(|| reachable(bound).to_string(), |name| name.authority(bound.port()))
}

/// The API's certificate, for every name under which this machine may be called.
fn api_certificate(
    installation: &Installation,
    config: &HubConfig,
    bound: SocketAddr,
    now_ms: u64,
) -> Result<Credentials, IdentityError> {
    let hosts = config.advertise.iter().filter_map(|address| address.rsplit_once(':').map(|(host, _)| host.to_owned()));
    let own = [bound.ip().to_string(), reachable(bound).ip().to_string(), installation::own_address().to_string()];
    let fixed = ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default.svc"].map(str::to_owned);
    let api = config.advertise_api.as_ref().map(|name| name.host().to_owned());
    let mut names: Vec<String> = fixed.into_iter().chain(own).chain(hosts).chain(api).collect();
    names.sort();
    names.dedup();
    installation.issue_server(&names, now_ms)
}

/// The address for a client on this machine.
fn reachable(bound: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], bound.port())) } else { bound }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
