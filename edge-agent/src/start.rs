//! The composition root of the agent: every task and channel on one page.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flotilla_manifests::derive::NodeRef;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::authorize::SystemMasters;
use flotilla_rest::kubeconfig::Kubeconfig;
use flotilla_rest::{Front, Limits, server};
use flotilla_sync::bundle::courier;
use flotilla_sync::enrol::Enrolment;
use flotilla_sync::identity::{Credentials, FlooredClock, SealingKey, SigningKey, TrustTime};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::agent::{Agent, Inbox, LoopState};
use crate::args::RunArguments;
use crate::backend::{LocalBackend, Shared};
use crate::bundle::{DeviceClerk, Joining};
use crate::clock::Clock;
use crate::enrolment::{self, Identity};
use crate::executor::Executor;
use crate::host::Host;
use crate::image::{ImageStore, poke};
use crate::knowledge::Knowledge;
use crate::probe::ProbeRunner;
use crate::reconcile::History;
use crate::replica::{DeviceReplica, Life, OpenedStream};
use crate::runtime::Runtime as _;
use crate::runtime::shims::ShimRuntime;
use crate::store::{Damage, Entry, Loaded, Store, reserve};
use crate::uplink::{Link, Uplink};
use crate::view::LocalView;
use crate::volume::VolumeStore;

/// Local writes waiting for the loop; a caller that finds it full waits.
const WRITES_LEN_MAX: usize = 32;
/// Resource versions one life of the agent may give out before it reserves more at its next start.
const VERSIONS_PER_LIFE: u64 = 1 << 24;

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
    let life = life(&identity, boot)?;
    let (replica, streams) = take_up(&folder, &store, &loaded, life, &clock, &trust).await?;
    clerk.is_ready(&replica, &identity, &loaded);
    let executable = std::env::current_exe().context("finding the running program")?;
    let runtime = Arc::new(ShimRuntime::open_with(&folder, &executable, arguments.oci_runtime.as_deref()).await?);
    let shared = Arc::new(Shared::over(view(&store, &loaded, identity.enrolment.incarnation).await));
    *shared.history() = histories(&loaded);
    let (writes, write_queue) = mpsc::channel(WRITES_LEN_MAX);
    let backend = Arc::new(LocalBackend::over(shared.clone(), writes, runtime.clone(), clock.clone()));
    let serving = serve(&folder, &store, &loaded, &arguments, &identity, &backend, &clock, &ended).await?;

    let (link, link_watch) = watch::channel(Link::Down);
    let (leave, left) = watch::channel(false);
    let node = NodeRef { name: identity.node.to_string(), uid: identity.node_uid.clone() };
    let host = Host::read(&folder);
    let volumes = Arc::new(VolumeStore::open(&folder, &host.boot_id)?);
    let (executor, done) = Executor::over(runtime.clone(), volumes);
    let (probes, probe_reports) = ProbeRunner::over(runtime.clone(), host.ip.clone());
    let images = images(&folder);
    let inbox = Inbox {
        items: replica.changed(),
        runtime: runtime.events().context("the runtime's events were taken before")?,
        done,
        probes: probe_reports,
        writes: write_queue,
        streams,
        link: link_watch,
        images: poke::listen(&images),
        end: ended,
    };
    let agent = Agent {
        folder: folder.clone(),
        node,
        store: store.clone(),
        clock: clock.clone(),
        replica: replica.clone(),
        shared,
        backend,
        facilities: Arc::new(runtime.facilities().clone()),
        runtime,
        executor,
        probes,
        host,
        images,
        knowledge: Knowledge::opening_with(SealingKey::from_bytes(identity.keys.sealing.to_bytes())),
        memory: remembered(&loaded, "memory"),
        last_applied: remembered(&loaded, "last-applied"),
        causes: remembered(&loaded, "change-cause"),
        inbox,
        state: LoopState::default(),
    };
    let uplink = Uplink {
        identity,
        arguments: arguments.clone(),
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
    mut agent: Agent,
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
        let boot = number(&loaded, "boot") + 1;
        if store.set_meta("boot", boot.to_string().into_bytes()).await.is_err() {
            reserve::give_up(folder);
            set_number(&store, "boot", boot).await;
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
fn remembered<T: Default + serde::de::DeserializeOwned>(loaded: &Loaded, name: &str) -> T {
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
