//! The driver: the one loop between a pipe, a session and a replica.
//!
//! Owns framing (4-byte big-endian length), time and waiting. Persists before it sends. Start at [`run`].

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::replica::Replica;
use crate::session::{SessionConfig, SessionEnd};
use crate::stream::{Stream, StreamId};
use crate::transport::Pipe;

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most commands of the application that wait.
const COMMANDS_LEN_MAX: usize = 64;

/// The application's hold on a running session. Clones share the session.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    commands: mpsc::Sender<Command>,
}

/// The session's end of its handles. Given to [`run`].
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
}

/// What the application asks of a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// Opens a stream.
    StreamOpen { request: Bytes, answer: oneshot::Sender<Stream> },
    /// Sends on a stream; the credit was taken.
    StreamData { id: StreamId, bytes: Bytes },
    /// The application consumed this much.
    StreamGrant { id: StreamId, bytes: u32 },
    /// Ends a stream.
    StreamClose { id: StreamId, reason: Option<String> },
    /// Asks the hub for a new session certificate.
    Renew { request: Bytes, answer: oneshot::Sender<Result<Bytes, String>> },
    /// Ends the session.
    Close { reason: String, retry_after_ms: Option<u64> },
}

/// The session is over, or it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The session is over, or is at its limit of open streams.
    #[error("the session has ended or has too many open streams")]
    Ended,
    /// The hub's answer.
    #[error("the hub refuses to renew the certificate: {0}")]
    Refused(String),
}

/// A handle and the end to give to [`run`].
pub fn commands() -> (SessionHandle, Commands) {
    let (sender, receiver) = mpsc::channel(COMMANDS_LEN_MAX);
    (SessionHandle { commands: sender.clone() }, Commands { receiver, sender })
}

impl SessionHandle {
    /// Opens a stream to the peer's [`Replica::open_stream`].
    ///
    /// # Errors
    /// When the session is over or has too many open streams.
    pub async fn open_stream(&self, request: Bytes) -> Result<Stream, CommandError> {
        let (answer, opened) = oneshot::channel();
        self.commands.send(Command::StreamOpen { request, answer }).await.map_err(|_ended| CommandError::Ended)?;
        opened.await.map_err(|_ended| CommandError::Ended)
    }

    /// Device: asks the hub for a new session certificate; request and answer are opaque here.
    ///
    /// # Errors
    /// When the session is over or the hub refuses.
    pub async fn renew(&self, request: Bytes) -> Result<Bytes, CommandError> {
        let (answer, renewed) = oneshot::channel();
        self.commands.send(Command::Renew { request, answer }).await.map_err(|_ended| CommandError::Ended)?;
        renewed.await.map_err(|_ended| CommandError::Ended)?.map_err(CommandError::Refused)
    }

    /// Says goodbye; with a time to come back if the hub is busy.
    pub async fn close(&self, reason: &str, retry_after_ms: Option<u64>) {
        let close = Command::Close { reason: reason.to_owned(), retry_after_ms };
        // A session that has ended is closed.
        self.commands.send(close).await.unwrap_or_default();
    }
}

/// Runs a session to its end. Dropping the future breaks the session without a goodbye.
pub async fn run<R: Replica>(pipe: Pipe, config: SessionConfig, replica: Arc<R>, commands: Commands) -> SessionEnd {
    unimplemented!()
}
