//! Between the command that holds the stick and the process that owns the database: one Unix socket, one request per connection.
//!
//! The command reads and writes the file, with the rights of whoever runs it; the running hub or agent has the keys and is the
//! only writer of its database. The socket lies in a folder that its owner alone may enter. When nothing runs, the command is both
//! ends, over a socket pair.
//!
//! A message is `kind (1) | length (4, big endian) | bytes`: `J` for JSON, `D` for a piece of the bundle, `E` for its end. Start at
//! [`Clerk`] and [`serve`] for the owner's end, at [`Courier`] for the command's.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::{BundleError, Report};

/// Name of the socket in the folder of a hub or an agent.
pub const SOCKET_FILE: &str = "bundle.sock";
const PIECE_BYTES: usize = 64 * 1024;
const PIPE_BYTES: usize = 256 * 1024;
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bundles that are written or read at once.
const CONVERSATIONS_MAX: usize = 4;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase")]
pub enum Request {
    /// At a hub: names of the devices that a selection means.
    Nodes(Selection),
    /// A bundle.
    Export(Wish),
    /// To take one.
    Import,
}

/// Which devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Label selector over Nodes.
    pub selector: Option<String>,
    /// Of this fleet.
    pub fleet: Option<String>,
}

/// Which bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// At a hub: for which device.
    pub node: Option<String>,
    /// All there is, whatever the receiver has.
    pub full: bool,
    /// At a device that has not joined: token, name, labels.
    pub join: Option<JoinWish>,
}

/// How a device that has not joined wants to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinWish {
    /// The token's text.
    pub token: String,
    /// The name asked for; `None`: the token's, or the host's.
    pub name: Option<String>,
    /// Labels for the Node.
    pub labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Nodes(Vec<String>),
    Done(Box<Report>),
    Failed(Failure),
}

/// Why it did not happen; told to whoever stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure; decides the command's exit code.
    pub kind: FailureKind,
    /// What happened to what, and what to do.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// The bundle is for somebody else.
    NotForHere,
    /// It is no bundle, of a newer version, forged, or its beginning is damaged.
    Unreadable,
    /// The hub refuses the device.
    Refused,
    /// Anything else: the store, the disk.
    Other,
}

/// Who owns the database.
pub trait Clerk: Send + Sync + 'static {
    /// Names of devices. A device knows none.
    fn nodes(&self, selection: Selection) -> impl Future<Output = Result<Vec<String>, Failure>> + Send;

    /// Writes a bundle into `target`.
    fn export(&self, wish: Wish, target: &mut DuplexStream) -> impl Future<Output = Result<Report, Failure>> + Send;

    /// Takes the bundle that `source` gives.
    fn import(&self, source: DuplexStream) -> impl Future<Output = Result<Report, Failure>> + Send;
}

/// The command's end of a conversation.
#[derive(Debug)]
pub struct Courier {
    stream: UnixStream,
}

/// Why the command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// The owner said no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The file.
    #[error("reading or writing the bundle's file")]
    File(#[source] io::Error),
    /// The conversation broke.
    #[error("the hub or agent broke off: {0}")]
    Broken(String),
}

impl Courier {
    /// Over a connected socket.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Asks a hub which devices a selection means.
    ///
    /// # Errors
    /// See [`CourierError`].
    pub async fn nodes(mut self, selection: Selection) -> Result<Vec<String>, CourierError> {
        self.ask(&Request::Nodes(selection)).await?;
        match self.answer(&mut tokio::io::sink(), &mut |_| {}).await? {
            Answer::Nodes(nodes) => Ok(nodes),
            Answer::Failed(failure) => Err(failure.into()),
            Answer::Done(_) => Err(CourierError::Broken("it answered something else".to_owned())),
        }
    }

    /// Asks for a bundle, which goes into `target`. `progress` hears how many bytes did.
    ///
    /// # Errors
    /// See [`CourierError`]; what is in `target` is then worth nothing.
    pub async fn export(
        mut self,
        wish: Wish,
        target: &mut (impl AsyncWrite + Unpin),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report, CourierError> {
        self.ask(&Request::Export(wish)).await?;
        self.done(target, progress).await
    }

    /// Hands over a bundle. `progress` hears how many bytes went.
    ///
    /// # Errors
    /// See [`CourierError`].
    pub async fn import(
        mut self,
        source: &mut (impl AsyncRead + Unpin),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report, CourierError> {
        self.ask(&Request::Import).await?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut total = 0;
        loop {
            let read = source.read(&mut piece).await.map_err(CourierError::File)?;
            let sent = match read {
                0 => send(&mut self.stream, b'E', &[]).await,
                read => send(&mut self.stream, b'D', &piece[..read]).await,
            };
            total += read as u64;
            progress(total);
            // Whoever hangs up early has said why.
            if read == 0 || sent.is_err() {
                break;
            }
        }
        self.done(&mut tokio::io::sink(), &mut |_| {}).await
    }

    async fn ask(&mut self, request: &Request) -> Result<(), CourierError> {
        let encoded = serde_json::to_vec(request).map_err(|error| CourierError::Broken(error.to_string()))?;
        send(&mut self.stream, b'J', &encoded).await.map_err(|error| CourierError::Broken(error.to_string()))
    }

    async fn done(
        &mut self,
        target: &mut (impl AsyncWrite + Unpin),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report, CourierError> {
        match self.answer(target, progress).await? {
            Answer::Done(report) => Ok(*report),
            Answer::Failed(failure) => Err(failure.into()),
            Answer::Nodes(_) => Err(CourierError::Broken("it answered something else".to_owned())),
        }
    }

    async fn answer(
        &mut self,
        target: &mut (impl AsyncWrite + Unpin),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Answer, CourierError> {
        let mut total = 0;
        loop {
            let received = receive(&mut self.stream).await;
            match received.map_err(|error| CourierError::Broken(error.to_string()))? {
                (b'D', piece) => {
                    target.write_all(&piece).await.map_err(CourierError::File)?;
                    total += piece.len() as u64;
                    progress(total);
                }
                (b'J', json) => {
                    return serde_json::from_slice(&json).map_err(|error| CourierError::Broken(error.to_string()));
                }
                _ => {}
            }
        }
    }
}

/// Listens in a folder, for its owner alone. A socket that a process left behind is replaced: the caller holds the folder's lock.
///
/// # Errors
/// The file system.
pub fn listen(folder: &Path) -> io::Result<UnixListener> {
    let path = folder.join(SOCKET_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_folder, near) = near(folder)?;
    let listener = UnixListener::bind(near)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to whoever listens in a folder.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` say that nobody does.
pub async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let (_folder, near) = near(folder)?;
    UnixStream::connect(near).await
}

/// The socket's path by way of the open folder: an address holds 108 bytes, the path of a folder may be longer.
fn near(folder: &Path) -> io::Result<(File, String)> {
    let folder = File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", folder.as_raw_fd());
    Ok((folder, path))
}

/// Serves commands until `shutdown`; conversations that are open then are broken off.
pub async fn serve<C: Clerk>(listener: UnixListener, clerk: Arc<C>, mut shutdown: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONVERSATIONS_MAX));
    let mut open = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _address)| (place, stream))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _stop = shutdown.wait_for(|stop| *stop) => break,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((place, stream)) => {
                let clerk = Arc::clone(&clerk);
                open.spawn(async move {
                    converse(stream, &*clerk).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a command could not be heard");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    open.shutdown().await;
}

/// One conversation.
pub async fn converse<C: Clerk>(mut stream: UnixStream, clerk: &C) {
    if let Err(error) = answer(&mut stream, clerk).await {
        tracing::debug!(%error, "a command broke off");
    }
}

async fn answer<C: Clerk>(stream: &mut UnixStream, clerk: &C) -> io::Result<()> {
    let (_kind, asked) = receive(stream).await?;
    let request: Request = serde_json::from_slice(&asked)?;
    let (mut reader, mut writer) = stream.split();
    let answer = match request {
        Request::Nodes(selection) => match clerk.nodes(selection).await {
            Ok(nodes) => Answer::Nodes(nodes),
            Err(failure) => Answer::Failed(failure),
        },
        Request::Export(wish) => {
            let (mut inner, mut outer) = tokio::io::duplex(PIPE_BYTES);
            let exporting = async move { clerk.export(wish, &mut inner).await };
            let pumping = async {
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    match outer.read(&mut piece).await? {
                        0 => return Ok::<(), io::Error>(()),
                        read => send(&mut writer, b'D', &piece[..read]).await?,
                    }
                }
            };
            let (exported, pumped) = tokio::join!(exporting, pumping);
            pumped?;
            done(exported)
        }
        Request::Import => {
            let (inner, mut outer) = tokio::io::duplex(PIPE_BYTES);
            let pumping = async move {
                // To its end even when nobody reads any more: the command must be able to read the answer.
                let mut heard = true;
                loop {
                    match receive(&mut reader).await? {
                        (b'D', piece) => heard = heard && outer.write_all(&piece).await.is_ok(),
                        _ => return Ok::<(), io::Error>(()),
                    }
                }
            };
            let (imported, pumped) = tokio::join!(clerk.import(inner), pumping);
            pumped?;
            done(imported)
        }
    };
    send(&mut writer, b'J', &serde_json::to_vec(&answer)?).await
}

fn done(outcome: Result<Report, Failure>) -> Answer {
    match outcome {
        Ok(report) => Answer::Done(Box::new(report)),
        Err(failure) => Answer::Failed(failure),
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&length.to_be_bytes());
    writer.write_all(&head).await?;
    writer.write_all(bytes).await?;
    writer.flush().await
}

async fn receive(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    reader.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("a message is larger than allowed"))?;
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    Ok((head[0], bytes))
}

impl Failure {
    /// A failure of the kind that is none of the others.
    pub fn other(message: impl fmt::Display) -> Self {
        Self { kind: FailureKind::Other, message: message.to_string() }
    }

    /// The device is refused, or refuses.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self { kind: FailureKind::Refused, message: message.to_string() }
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Self {
        let kind = match &error {
            BundleError::NotForHere { .. } | BundleError::OtherKey { .. } => FailureKind::NotForHere,
            BundleError::NoBundle
            | BundleError::Version { .. }
            | BundleError::Damaged { .. }
            | BundleError::Forged { .. } => FailureKind::Unreadable,
            BundleError::Enrol(_) => FailureKind::Refused,
            _ => FailureKind::Other,
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            message = format!("{message}: {inner}");
            source = inner.source();
        }
        Self { kind, message }
    }
}
