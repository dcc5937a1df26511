//! The composition root of the agent: every task and channel on one page.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::authorize::SystemMasters;
use flotilla_rest::kubeconfig::Kubeconfig;
use flotilla_rest::{Front, Limits, server};
use flotilla_sync::bundle::courier;
use flotilla_sync::enrol::Enrolment;
use flotilla_sync::identity::{Credentials, FlooredClock, TrustTime};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::args::RunArguments;
use crate::backend::LocalBackend;
use crate::bundle::{DeviceClerk, Joining};
use crate::clock::Clock;
use crate::device::{Device, Machine, Remembered, count_boot, next_boot};
use crate::enrolment::{self, Identity};
use crate::host::Host;
use crate::image::{ImageStore, poke};
use crate::runtime::shims::ShimRuntime;
use crate::store::{Loaded, Store, reserve};
use crate::uplink::{Known, Uplink};
use crate::volume::VolumeStore;

/// How long saying goodbye to the hub may take.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);

/// Runs the agent until SIGTERM or Ctrl-C.
///
/// # Errors
/// When the folder is in use, the database is damaged, the device cannot join, or the local API cannot listen.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let folder = prepare(&arguments.data)?;
    let lock = lock(&folder)?;
    let (end, ended) = watch::channel(false);
    let Some(opened) = open(&folder, &arguments, &ended).await? else { return Ok(()) };
    let Opened { store, loaded, clock, trust, boot, identity, clerk } = opened;
    let executable = std::env::current_exe().context("finding the running program")?;
    let runtime = Arc::new(ShimRuntime::open_with(&folder, &executable, arguments.oci_runtime.as_deref()).await?);
    let host = Host::read(&folder);
    let images = images(&folder);
    let machine = Machine {
        folder: folder.clone(),
        runtime,
        images_changed: poke::listen(&images),
        images,
        volumes: Arc::new(VolumeStore::open(&folder, &host.boot_id)?),
        host,
        end: ended.clone(),
    };
    let remembered =
        Remembered { store: &store, loaded: &loaded, clock: &clock, trust: &trust, boot, identity: &identity };
    let Device { agent, backend, replica, link } = Device::assemble(remembered, machine).await?;
    clerk.is_ready(&replica, &identity, &loaded);
    let serving = serve(&folder, &store, &loaded, &arguments, &identity, &backend, &clock, &ended).await?;
    let (leave, left) = watch::channel(false);
    let uplink = Uplink {
        identity,
        roads: Known::OfHub(Box::new(arguments.clone())),
        store: store.clone(),
        replica,
        clock,
        time: trust.clone(),
        trust,
        boot,
        link,
        leave: left,
    };
    let uplink = if arguments.offline { None } else { Some(tokio::spawn(uplink.run())) };
    drop(tokio::spawn(async move {
        if crate::until_told_to_end().await.is_ok() {
            end.send_replace(true);
        }
    }));
    let agent = agent.run().await;
    leave_well(agent, arguments.drain, &leave, uplink, serving).await?;
    drop(lock);
    Ok(())
}

/// The end of the agent: of its pods too if they are to be drained, then of the session, then of the local API.
async fn leave_well(
    mut agent: Agent<ShimRuntime>,
    drain: bool,
    leave: &watch::Sender<bool>,
    uplink: Option<JoinHandle<()>>,
    serving: Vec<JoinHandle<std::io::Result<()>>>,
) -> Result<()> {
    if drain {
        agent.drain().await;
    }
    leave.send_replace(true);
    if let Some(uplink) = uplink
        && tokio::time::timeout(GOODBYE, uplink).await.is_err()
    {
        tracing::warn!("the hub did not take the goodbye; it learns by silence that this agent stopped");
    }
    for task in serving {
        task.await.context("the local API")??;
    }
    Ok(())
}

/// The images of this device. What interrupted imports left is cleared away beside the start, which waits for nothing.
fn images(folder: &Path) -> Arc<ImageStore> {
    let images = Arc::new(ImageStore::open(folder).unwrap_or_else(|error| {
        tracing::error!(error = %enrolment::chain(&error), "no image can be imported here; what runs without one runs");
        ImageStore::over(folder)
    }));
    let store = images.clone();
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = store.tidy() {
            tracing::warn!(error = %enrolment::chain(&error), "what imports of images left could not be cleared away");
        }
    }));
    images
}

/// What is on the disk, and who this device is.
struct Opened {
    store: Store,
    loaded: Loaded,
    clock: Arc<Clock>,
    trust: Arc<FlooredClock>,
    boot: u64,
    identity: Identity,
    clerk: Arc<DeviceClerk>,
}

/// What is on the disk, whether this device has joined or not.
pub(crate) struct Found {
    pub(crate) store: Store,
    pub(crate) loaded: Loaded,
    pub(crate) clock: Arc<Clock>,
    pub(crate) trust: Arc<FlooredClock>,
    pub(crate) boot: u64,
    pub(crate) clerk: Arc<DeviceClerk>,
}

/// Opens the database and, at the very first start, joins the hub: over a road, or, with `--offline`, by a bundle that somebody
/// carries. `None`: the agent was told to end before one came.
async fn open(folder: &Path, arguments: &RunArguments, ended: &watch::Receiver<bool>) -> Result<Option<Opened>> {
    let mut found = Found::open(folder).await?;
    let courier = courier::listen(folder).with_context(|| format!("listening in {}", folder.display()))?;
    drop(tokio::spawn(courier::serve(courier, found.clerk.clone(), ended.clone())));
    let carried = arguments.offline || (arguments.join.is_none() && found.clerk.is_waiting());
    if !found.has_joined() && carried {
        found.clerk.request(arguments, folder).await?;
        let joined = tokio::select! {
            joined = found.clerk.joined() => joined,
            told = crate::until_told_to_end() => return told.map(|()| None),
        };
        let Some(enrolment) = joined else { return Ok(None) };
        found.join(&enrolment)?;
        Joining::has_served(folder);
    }
    let time: Arc<dyn TrustTime> = found.trust.clone();
    let identity = Identity::open(&found.store, &found.loaded, arguments, &time).await?;
    let Found { store, loaded, clock, trust, boot, clerk } = found;
    clock.raise(Timestamp(identity.enrolment.hub_time_ms));
    trust.raise(identity.enrolment.hub_time_ms);
    enrolment::keep_copy(folder, &identity);
    reserve::keep(folder);
    Ok(Some(Opened { store, loaded, clock, trust, boot, identity, clerk }))
}

impl Found {
    /// Opens the database, and makes the device's keys at the very first start.
    pub(crate) async fn open(folder: &Path) -> Result<Self> {
        keep_private(&folder.join("device.db"))?;
        let (store, mut loaded) = Store::open(folder)?;
        enrolment::recall(folder, &store, &mut loaded).await;
        let clock = Arc::new(Clock::default());
        let boot = next_boot(&loaded);
        if count_boot(&store, boot).await.is_err() {
            reserve::give_up(folder);
            if let Err(error) = count_boot(&store, boot).await {
                tracing::error!(error = %enrolment::chain(&error), "this start was not counted; the device starts all the same");
            }
        }
        let reading = clock.clone();
        let trust = FlooredClock::new(move || reading.now().0, 0);
        let joining = Joining::open(&store, &mut loaded).await?;
        let clerk = DeviceClerk::new(store.clone(), clock.clone(), joining);
        Ok(Self { store, loaded, clock, trust, boot, clerk })
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.loaded.meta.contains_key("enrolment")
    }

    /// A bundle brought the hub's answer, which is durable.
    pub(crate) fn join(&mut self, enrolment: &Enrolment) -> Result<()> {
        self.loaded.meta.insert("enrolment".to_owned(), serde_json::to_vec(&enrolment.to_material())?);
        Ok(())
    }
}

/// Opens the local API on loopback TLS and on a Unix socket, and writes `local.kubeconfig`.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename the same eight things")]
async fn serve(
    folder: &Path,
    store: &Store,
    loaded: &Loaded,
    arguments: &RunArguments,
    identity: &Identity,
    backend: &Arc<LocalBackend<ShimRuntime>>,
    clock: &Arc<Clock>,
    ended: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<std::io::Result<()>>>> {
    let (authority, user) = enrolment::local_authority(store, loaded).await?;
    let listener = listen(store, loaded, arguments.listen).await?;
    let address = listener.local_addr()?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), identity.node.to_string()];
    if !address.ip().is_loopback() && !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    let Credentials { chain, key } = authority.issue_server_timeless(&names)?;
    let tls = server::tls_config(&[authority.authority().clone()], chain, key)?;
    let reading = clock.clone();
    let front =
        Front::over(backend.clone(), Arc::new(move || reading.now()), Limits::DEVICE).authorized_by(SystemMasters);
    let front = Arc::new(front);
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && !address.ip().is_unspecified() { format!("[{host}]") } else { host };
    let path = folder.join("local.kubeconfig");
    let written = Kubeconfig {
        cluster: identity.node.as_str(),
        user: "technician",
        server: &format!("https://{host}:{}", address.port()),
        authority_pem: &authority.authority_pem(),
        chain_pem: &user.chain_pem,
        key_pem: &user.key_pem,
    }
    .write(&path);
    match written {
        // A full disk: the file of last time names the same port and authority.
        Err(error) if path.exists() => tracing::error!(%error, "local.kubeconfig was not written anew"),
        other => other.with_context(|| format!("writing {}", path.display()))?,
    }
    let socket = folder.join("agent.sock");
    if socket.exists() {
        std::fs::remove_file(&socket).with_context(|| format!("removing {}", socket.display()))?;
    }
    let unix = UnixListener::bind(&socket).with_context(|| format!("listening at {}", socket.display()))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(vec![
        tokio::spawn(server::serve_tls(listener, tls, front.clone(), ended.clone())),
        tokio::spawn(server::serve_unix(unix, front, ended.clone())),
    ])
}

/// The address asked for; else the one of last time; else a free loopback port, which is kept.
async fn listen(store: &Store, loaded: &Loaded, asked: Option<SocketAddr>) -> Result<TcpListener> {
    let kept = loaded.meta.get("listen").and_then(|bytes| String::from_utf8_lossy(bytes).parse::<SocketAddr>().ok());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = match (asked, kept) {
        (Some(asked), _) => TcpListener::bind(asked).await.with_context(|| format!("--listen {asked}"))?,
        (None, Some(kept)) => match TcpListener::bind(kept).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(address = %kept, %error, "the local API's port is taken by somebody else; choosing another");
                TcpListener::bind(any).await?
            }
        },
        (None, None) => TcpListener::bind(any).await?,
    };
    let address = listener.local_addr()?;
    if asked.is_none()
        && kept != Some(address)
        && let Err(error) = store.set_meta("listen", address.to_string().into_bytes()).await
    {
        tracing::error!(error = %enrolment::chain(&error), "the local API's port was not stored; it may be another after a restart");
    }
    Ok(listener)
}

pub(crate) fn prepare(folder: &Path) -> Result<std::path::PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    folder.canonicalize().with_context(|| format!("finding {}", folder.display()))
}

/// The file holds keys; SQLite gives its companions the same mode.
fn keep_private(path: &Path) -> Result<()> {
    let file = std::fs::File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))
}

/// One agent per folder.
pub(crate) fn lock(folder: &Path) -> Result<Flock<std::fs::File>> {
    let path = folder.join("agent.lock");
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another agent uses {} (its lock {} is held)", folder.display(), path.display()))
}
