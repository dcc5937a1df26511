//! `flotilla bundle ...`: the end that holds the stick.
//!
//! Owns files, the table at the end and the exit code. Refuses keys and databases: those are on the other side of the socket,
//! see [`flotilla_sync::bundle::courier`]. The hub's side is an argument, for the slim binary has none. Start at [`run`].
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done, nothing is missing |
//! | 1 | it could not be done: the disk, the database, a wrong argument's value |
//! | 2 | the command line cannot be understood |
//! | 3 | done as far as the file goes: something is missing, the report says what |
//! | 4 | the bundle is for somebody else |
//! | 5 | this is no bundle, or one that cannot be read or trusted |
//! | 6 | the hub refuses the device, or the device the hub's answer |

mod output;

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use flotilla_sync::bundle::courier::{
    self, Courier, CourierError, Failure, FailureKind, JoinWish, SOCKET_FILE, Selection, Wish,
};
use flotilla_sync::bundle::{self, BundleError, EXTENSION, Report};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::offline;
use crate::args::{Labels, parse_labels};
use output::Outcome;

/// Bundles in one folder that are looked at.
const FILES_MAX: usize = 100_000;

/// `flotilla bundle ...`
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Write what the other side lacks into a file: at a hub for devices, at a device for its hub
    Export(ExportArguments),
    /// Take files in; again, or an old one after a newer one, does no harm
    Import(ImportArguments),
    /// Say what can be said of a file without any key
    Inspect(InspectArguments),
}

/// `flotilla bundle export`
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The hub's or the device's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// At a hub: the device it is for
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all", "selector", "fleet"])]
    node: Option<String>,
    /// At a hub: every device; PATH is a folder then, with one file each
    #[arg(long)]
    all: bool,
    /// At a hub: the devices whose labels match; PATH is a folder
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// At a hub: the devices of a fleet; PATH is a folder
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
    /// Everything, whatever the other side is known to have
    #[arg(long)]
    full: bool,
    /// At a device that has not joined: the token, from `flotilla token create`; needed once
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,
    /// At a device that has not joined: its name; default: the host name
    #[arg(long, requires = "join")]
    name: Option<String>,
    /// At a device that has not joined: labels of its Node
    #[arg(long, value_name = "K=V,...", value_parser = parse_labels, default_value = "")]
    labels: Labels,
    /// How to report
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The file to write
    path: PathBuf,
}

/// `flotilla bundle import`
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The hub's or the device's folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How to report
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Files, or folders of which every bundle for this side is taken, the oldest first
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// `flotilla bundle inspect`
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// How to report
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The file
    path: PathBuf,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

type Conversing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What the program knows of hubs.
#[derive(Debug, Clone, Copy)]
pub struct HubSide {
    /// Whether a folder is a hub's.
    pub is_at: fn(&Path) -> bool,
    /// Serves one command over the database of a hub that does not run.
    pub converse: fn(PathBuf, UnixStream) -> Conversing,
}

/// Runs `flotilla bundle ...`; answers the exit code.
///
/// # Errors
/// What ends the command before there is anything to report.
pub fn run(command: BundleCommand, hub: Option<HubSide>) -> Result<u8> {
    if std::env::var_os("FLOTILLA_LOG").is_some() {
        // The report says what a person wants to know.
        crate::init_logging();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    runtime.block_on(async {
        match command {
            BundleCommand::Export(arguments) => export(&arguments, hub).await,
            BundleCommand::Import(arguments) => import(&arguments, hub).await,
            BundleCommand::Inspect(arguments) => inspect(&arguments).await,
        }
    })
}

async fn export(arguments: &ExportArguments, hub: Option<HubSide>) -> Result<u8> {
    let many = arguments.all || arguments.selector.is_some() || arguments.fleet.is_some();
    let side = Owner::of(&arguments.data, hub, arguments.join.is_some())?;
    let join = arguments.join.clone().map(|token| JoinWish {
        token,
        name: arguments.name.clone(),
        labels: crate::enrolment::labels_of(&arguments.labels),
    });
    let wish = Wish { node: arguments.node.clone(), full: arguments.full, join };
    let mut outcomes = Vec::new();
    if many {
        std::fs::create_dir_all(&arguments.path).with_context(|| format!("creating {}", arguments.path.display()))?;
        let selection = Selection { selector: arguments.selector.clone(), fleet: arguments.fleet.clone() };
        let (courier, other) = side.connect().await?;
        let nodes = side.answer(courier.nodes(selection).await, other).await?.map_err(anyhow::Error::from)?;
        for node in nodes {
            let path = arguments.path.join(format!("{node}.{EXTENSION}"));
            let wish = Wish { node: Some(node), ..wish.clone() };
            outcomes.push(export_one(&side, wish, path).await?);
        }
    } else {
        outcomes.push(export_one(&side, wish, arguments.path.clone()).await?);
    }
    output::show(&outcomes, arguments.output)
}

async fn export_one(side: &Owner, wish: Wish, path: PathBuf) -> Result<Outcome> {
    let mut name = path.file_name().with_context(|| format!("{} is no file's name", path.display()))?.to_owned();
    name.push(".tmp");
    let half = path.with_file_name(name);
    let mut file = tokio::fs::File::create(&half).await.with_context(|| format!("creating {}", half.display()))?;
    let (courier, other) = side.connect().await?;
    let mut meter = Meter::of("written");
    let exported = courier.export(wish, &mut file, &mut |bytes| meter.show(bytes)).await;
    meter.end();
    let exported = side.answer(exported, other).await;
    let named = async {
        let report = match exported? {
            Ok(report) => report,
            Err(failure) => return Ok(Err(failure)),
        };
        // Only a whole file gets its name: sticks are pulled.
        file.sync_all().await.with_context(|| format!("writing {}", half.display()))?;
        tokio::fs::rename(&half, &path).await.with_context(|| format!("naming {}", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        tokio::fs::File::open(folder).await?.sync_all().await?;
        Ok::<_, anyhow::Error>(Ok(report))
    };
    let named = named.await;
    if !matches!(named, Ok(Ok(_))) {
        drop(tokio::fs::remove_file(&half).await);
    }
    Ok(Outcome { path, result: named? })
}

async fn import(arguments: &ImportArguments, hub: Option<HubSide>) -> Result<u8> {
    let side = Owner::of(&arguments.data, hub, false)?;
    let mut outcomes = Vec::new();
    for path in &arguments.paths {
        if !path.is_dir() {
            outcomes.push(import_one(&side, path.clone()).await?);
            continue;
        }
        let files = bundles_in(path).await?;
        if files.is_empty() {
            bail!("{} holds no file that ends in .{EXTENSION}", path.display());
        }
        let mut others = 0;
        for file in files {
            match import_one(&side, file).await? {
                Outcome { result: Err(Failure { kind: FailureKind::NotForHere, .. }), .. } => others += 1,
                outcome => outcomes.push(outcome),
            }
        }
        if outcomes.is_empty() {
            bail!("none of the {others} bundles in {} is for this side", path.display());
        }
    }
    output::show(&outcomes, arguments.output)
}

async fn import_one(side: &Owner, path: PathBuf) -> Result<Outcome> {
    let mut file = open(&path).await?;
    let (courier, other) = side.connect().await?;
    let mut meter = Meter::of("read");
    let imported = courier.import(&mut file, &mut |bytes| meter.show(bytes)).await;
    meter.end();
    Ok(Outcome { path, result: side.answer(imported, other).await? })
}

async fn inspect(arguments: &InspectArguments) -> Result<u8> {
    let path = &arguments.path;
    let file = open(path).await?;
    let result = match bundle::inspect(file).await {
        Ok(inspected) => Ok(inspected.report),
        Err(error @ BundleError::Io(_)) => return Err(error).with_context(|| format!("reading {}", path.display())),
        Err(error) => Err(Failure::from(error)),
    };
    output::show(&[Outcome { path: path.clone(), result }], arguments.output)
}

/// Opens a bundle. A pipe or a device would be waited for, or read, without end.
async fn open(path: &Path) -> Result<tokio::fs::File> {
    let opening = || format!("opening {}", path.display());
    let metadata = tokio::fs::metadata(path).await.with_context(opening)?;
    anyhow::ensure!(metadata.is_file(), "{} is no regular file: name a bundle, or a folder of bundles", path.display());
    tokio::fs::File::open(path).await.with_context(opening)
}

/// The bundles of a folder, the oldest first.
async fn bundles_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?.take(FILES_MAX) {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == EXTENSION) {
            let file = open(&path).await?;
            // What cannot be read is told of when it is taken.
            let made = bundle::peek(file).await.map_or(0, |header| header.time_ms);
            found.push((made, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Who owns the folder's database.
struct Owner {
    folder: PathBuf,
    hub: Option<HubSide>,
}

impl Owner {
    /// `may_begin`: the folder may be one that does not exist yet.
    fn of(folder: &Path, hub: Option<HubSide>, may_begin: bool) -> Result<Self> {
        let is_hub = hub.is_some_and(|hub| (hub.is_at)(folder));
        if !is_hub && !offline::is_device(folder) && !may_begin {
            bail!(
                "{} is the folder of no {}device",
                folder.display(),
                if hub.is_some() { "hub and of no " } else { "" }
            );
        }
        Ok(Self { folder: folder.to_owned(), hub: hub.filter(|_| is_hub) })
    }

    /// The running hub or agent; when none runs, its database itself.
    async fn connect(&self) -> Result<(Courier, Option<JoinHandle<Result<()>>>)> {
        match courier::connect(&self.folder).await {
            Ok(stream) => return Ok((Courier::over(stream), None)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("connecting to {SOCKET_FILE} in {}", self.folder.display()));
            }
        }
        let (near, far) = UnixStream::pair()?;
        let folder = self.folder.clone();
        let other = match self.hub {
            Some(hub) => tokio::spawn((hub.converse)(folder, far)),
            None => tokio::spawn(async move { offline::converse(&folder, far).await }),
        };
        Ok((Courier::over(near), Some(other)))
    }

    /// The outcome, after the other end has put its database away. Its own failure says more than a conversation that broke.
    async fn answer<T>(
        &self,
        outcome: Result<T, CourierError>,
        other: Option<JoinHandle<Result<()>>>,
    ) -> Result<Result<T, Failure>> {
        if let Some(other) = other {
            other.await.context("the database's side ended by a fault")??;
        }
        match outcome {
            Ok(value) => Ok(Ok(value)),
            Err(CourierError::Failed(failure)) => Ok(Err(failure)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes so far, on a terminal, once a second.
struct Meter {
    what: &'static str,
    shown_ms: u64,
    wrote: bool,
}

impl Meter {
    const PERIOD: Duration = Duration::from_secs(1);

    fn of(what: &'static str) -> Self {
        Self { what, shown_ms: crate::clock::monotonic_ms(), wrote: false }
    }

    fn show(&mut self, bytes: u64) {
        let now = crate::clock::monotonic_ms();
        if u128::from(now.saturating_sub(self.shown_ms)) >= Self::PERIOD.as_millis() && io::stderr().is_terminal() {
            self.shown_ms = now;
            self.wrote = true;
            output::progress(&format!("\r{} {} ...", self.what, output::bytes(bytes)));
        }
    }

    fn end(&self) {
        if self.wrote {
            output::progress("\r\x1b[K");
        }
    }
}

fn code_of(outcomes: &[Outcome]) -> u8 {
    let code = |outcome: &Outcome| match &outcome.result {
        Ok(report) if is_complete(report) => 0,
        Ok(_) => 3,
        Err(Failure { kind, .. }) => match kind {
            FailureKind::NotForHere => 4,
            FailureKind::Unreadable => 5,
            FailureKind::Refused => 6,
            FailureKind::Other => 1,
        },
    };
    outcomes.iter().map(code).max().unwrap_or(0)
}

fn is_complete(report: &Report) -> bool {
    report.whole && report.missing.is_empty()
}
