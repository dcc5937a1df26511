//! The driver: the one loop between a pipe, a session and a replica.
//!
//! Owns framing (4-byte big-endian length), time and waiting. Persists before it sends. Start at [`run`].

mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::blob::BlobStored;
use crate::planted::{self, Bug};
use crate::replica::{Reading, Replica, ReplicaError};
use crate::session::{Event, Local, Session, SessionConfig, SessionEnd};
use crate::stream::{
    INCOMING_LEN_MAX, STREAM_CREDIT_BYTES, STREAM_REQUEST_BYTES_MAX, Stream, StreamEvent, StreamId, StreamIds,
};
use crate::transport::{PeerIdentity, Pipe};
use wire::{Input, Wire};

/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most commands of the application that wait.
const COMMANDS_LEN_MAX: usize = 64;
/// Most inputs of one commit.
const INPUTS_MAX: usize = 256;
/// How long a goodbye may take to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// When a peer is to come back after the store failed. Milliseconds.
const REPLICA_RETRY_MS: u64 = 5000;

/// The application's hold on a running session. Clones share the session. A channel has room for 32 messages from its first on: they
/// are boxed, for the sake of the sessions that never get any.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    commands: mpsc::Sender<Box<Command>>,
}

/// The session's end of its handles. Given to [`run`].
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Box<Command>>,
    sender: mpsc::Sender<Box<Command>>,
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
    /// Ends the session.
    Close { reason: String, retry_after_ms: Option<u64> },
}

/// The session is over, or it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The session is over, or is at its limit of open streams.
    #[error("the session has ended or has too many open streams")]
    Ended,
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
        self.commands
            .send(Box::new(Command::StreamOpen { request, answer }))
            .await
            .map_err(|_ended| CommandError::Ended)?;
        opened.await.map_err(|_ended| CommandError::Ended)
    }

    /// Says goodbye; with a time to come back if the hub is busy.
    pub async fn close(&self, reason: &str, retry_after_ms: Option<u64>) {
        let close = Command::Close { reason: reason.to_owned(), retry_after_ms };
        // A session that has ended is closed.
        self.commands.send(Box::new(close)).await.unwrap_or_default();
    }
}

/// The goodbye of a hub whose database does not know the device (it joined after the backup that was restored): it enrols again with
/// its key, and is let in once the operator has made a token for its name.
pub const ENROL_AGAIN: &str = "the hub does not know this device: it must enrol again";

/// The goodbye of a hub to which the same device has come anew: by another road, or it is another board with a copy of its card.
pub const REPLACED: &str = "a newer session of this device has begun";

/// Ends a session before it begins: a goodbye in the place of a hello, so that the device takes nothing from it.
pub async fn refuse(pipe: Pipe, reason: &str) {
    let mut wire = Wire::new(pipe);
    wire.say_goodbye(reason);
    tokio::time::timeout(GOODBYE_TIMEOUT, wire.finish()).await.unwrap_or_default();
}

/// Runs a session to its end. Dropping the future breaks the session without a goodbye.
pub async fn run<R: Replica>(pipe: Pipe, config: SessionConfig, replica: Arc<R>, commands: Commands) -> SessionEnd {
    let started = Instant::now();
    let mut grown = replica.grown(&pipe.peer);
    grown.mark_unchanged();
    let peer = pipe.peer.clone();
    let (own, greeting) = match (replica.heads(&peer).await, replica.greeting().await) {
        (Ok(own), Ok(greeting)) => (own, greeting),
        (Err(error), _) | (_, Err(error)) => return SessionEnd::Replica(chain_of(&error)),
    };
    let first_stream = if config.node.is_none() { 2 } else { 1 };
    let session = Session::new(config, own, greeting.as_ref(), 0);
    let answers = Answers {
        session,
        replica,
        peer,
        streams: BTreeMap::new(),
        stream_ids: StreamIds::new(first_stream),
        commands: commands.sender,
        started,
    };
    let mut wire = Wire::new(pipe);
    let end = drive(answers, &mut wire, commands.receiver, grown).await;
    debug!(end = ?end, "session ended");
    end
}

async fn drive<R: Replica>(
    mut answers: Answers<R>,
    wire: &mut Wire,
    mut commands: mpsc::Receiver<Box<Command>>,
    mut grown: watch::Receiver<u64>,
) -> SessionEnd {
    // The sender of a store that is gone never changes again.
    let mut watching = true;
    loop {
        // In a place of its own while there is something to do: a session that waits is a small task.
        if answers.session.has_events()
            && let Err(error) = Box::pin(answers.carry_out()).await
        {
            let end = SessionEnd::Replica(chain_of(&error));
            warn!(error = %chain_of(&error), "the store failed, the session ends");
            let reason = "the store failed".to_owned();
            let close = Local::Close { reason, retry_after_ms: Some(REPLICA_RETRY_MS), end };
            answers.tell(close);
        }
        wire.fill(&mut answers.session);
        if let Some(end) = answers.session.end() {
            if wire.is_empty() {
                return end.clone();
            }
            // What is left, the goodbye at most, leaves or is given up.
            let end = end.clone();
            tokio::time::timeout(GOODBYE_TIMEOUT, wire.finish()).await.unwrap_or_default();
            return end;
        }
        if answers.session.has_events() {
            // A snapshot that has left lets its log go on.
            continue;
        }
        let deadline = answers.started + Duration::from_millis(answers.session.poll_timeout());
        let has_room = answers.session.has_room();
        // In this order none starves another: time and what leaves come to an end by themselves, a peer that never pauses does not.
        let woken = tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => Woken::Timeout,
            written = wire.output.write(&mut wire.writer), if !wire.output.is_clean() => Woken::Written(written),
            changed = grown.changed(), if watching => Woken::Grown(changed.is_ok()),
            Some(command) = commands.recv(), if has_room => Woken::Command(command),
            read = wire.input.read(&mut wire.reader) => Woken::Read(read),
        };
        match woken {
            Woken::Read(Ok(0)) => return SessionEnd::Broken("the peer ended the stream".to_owned()),
            Woken::Read(Ok(_)) => {
                if let Err(reason) = answers.receive(&mut wire.input) {
                    let end = SessionEnd::Protocol(reason.clone());
                    answers.tell(Local::Close { reason, retry_after_ms: None, end });
                }
            }
            Woken::Read(Err(error)) | Woken::Written(Err(error)) => return SessionEnd::Broken(error.to_string()),
            Woken::Written(Ok(())) => {}
            Woken::Grown(lives) => {
                watching = lives;
                if let Err(error) = Box::pin(answers.refresh()).await {
                    let end = SessionEnd::Replica(chain_of(&error));
                    answers.tell(Local::Close { reason: "the store failed".to_owned(), retry_after_ms: None, end });
                }
            }
            Woken::Command(command) => answers.command(*command),
            Woken::Timeout => answers.session.handle_timeout(answers.now_ms()),
        }
    }
}

/// What ended a wait.
enum Woken {
    Read(std::io::Result<usize>),
    Written(std::io::Result<()>),
    Grown(bool),
    Command(Box<Command>),
    Timeout,
}

/// A session with everything that answers its events.
struct Answers<R> {
    session: Session,
    replica: Arc<R>,
    peer: PeerIdentity,
    streams: BTreeMap<StreamId, OpenStream>,
    stream_ids: StreamIds,
    commands: mpsc::Sender<Box<Command>>,
    started: Instant,
}

/// The driver's end of a stream.
struct OpenStream {
    incoming: mpsc::Sender<StreamEvent>,
    credit: Arc<Semaphore>,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        // Whoever waits for credit will not get it.
        self.credit.close();
    }
}

impl<R: Replica> Answers<R> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tell(&mut self, local: Local) {
        let now_ms = self.now_ms();
        self.session.handle_local(local, now_ms);
    }

    /// Hands whole frames to the session.
    fn receive(&mut self, input: &mut Input) -> Result<(), String> {
        while let Some(frame) = input.next_frame()? {
            let now_ms = self.now_ms();
            self.session.handle_frame(&frame, now_ms);
        }
        Ok(())
    }

    /// Logs, channels or the outbox grew.
    async fn refresh(&mut self) -> Result<(), ReplicaError> {
        let heads = self.replica.heads(&self.peer).await?;
        self.tell(Local::Heads(heads));
        self.tell(Local::OutboxGrew);
        Ok(())
    }

    /// Carries out what the session asks for until it asks for nothing. Inputs in a row are one commit.
    async fn carry_out(&mut self) -> Result<(), ReplicaError> {
        let mut inputs = Vec::new();
        loop {
            match self.session.poll_event() {
                Some(Event::Ingest(input)) => {
                    inputs.push(input);
                    if inputs.len() < INPUTS_MAX {
                        continue;
                    }
                    self.ingest(&mut inputs).await?;
                }
                event => {
                    self.ingest(&mut inputs).await?;
                    match event {
                        Some(event) => self.answer(event).await?,
                        None if inputs.is_empty() => return Ok(()),
                        None => {}
                    }
                }
            }
        }
    }

    async fn ingest(&mut self, inputs: &mut Vec<crate::replica::Input>) -> Result<(), ReplicaError> {
        if inputs.is_empty() {
            return Ok(());
        }
        let ingested = match self.replica.ingest(&self.peer, std::mem::take(inputs)).await {
            Err(_) if planted::is(Bug::AcknowledgedBeforeDurable) => crate::replica::Ingested::default(),
            ingested => ingested?,
        };
        for set_aside in &ingested.set_aside {
            warn!(peer = ?self.peer, reason = %set_aside, "a record was set aside");
        }
        self.tell(Local::Ingested);
        Ok(())
    }

    async fn answer(&mut self, event: Event) -> Result<(), ReplicaError> {
        let peer = self.peer.clone();
        match event {
            Event::Established(hello) => self.replica.established(&peer, &hello),
            Event::Greeted(greeting) => self.replica.greeted(&peer, greeting).await?,
            Event::Subscribed(positions) => self.replica.subscribed(&peer, positions).await?,
            Event::Acknowledged(positions) => self.replica.acknowledged(&peer, positions).await?,
            Event::NeedRecords { channel, writer, after, bytes_max, with_chain } => {
                let reading = self.replica.read(&channel, &writer, after, bytes_max).await?;
                let chain = match &reading {
                    Reading::Snapshot(snapshot) => self.replica.writer(&snapshot.list.writer).await?,
                    Reading::Batches(_) if with_chain => self.replica.writer(&writer).await?,
                    Reading::Batches(_) | Reading::NotKept | Reading::Later => None,
                };
                self.tell(Local::Records { channel, writer, reading, chain });
            }
            Event::Ingest(input) => self.ingest(&mut vec![input]).await?,
            Event::Forked { channel, writer, seq } => self.replica.forked(&peer, &channel, &writer, seq).await?,
            Event::ForkFound { channel, writer, seq } => {
                warn!(peer = ?peer, channel = %channel, writer = %writer, seq, "a log of the peer is forked, it was told");
            }
            Event::NeedOutbox { urgency, limit } => {
                let observations = self.replica.outbox(urgency, limit).await?;
                self.tell(Local::Outbox { observations, limit });
            }
            Event::Observe { number, observations } => {
                let observed = self.replica.observe(&peer, observations).await;
                if !planted::is(Bug::ReportAnsweredUncommitted) {
                    observed?;
                }
                self.tell(Local::Observed { number });
            }
            Event::Heard(clock) => self.replica.heard(&peer, clock).await?,
            Event::OutboxAcknowledged(entries) => self.replica.outbox_acknowledged(entries).await?,
            Event::NeedMissingBlobs { limit } => {
                let missing = self.replica.missing_blobs(&peer, limit).await?;
                self.tell(Local::MissingBlobs(missing));
            }
            Event::StoreBlob { name, offset, bytes } => {
                let stored = self.replica.store_blob(&peer, &name, offset, bytes).await?;
                if stored == BlobStored::Damaged {
                    warn!(peer = ?peer, blob = %name, "a blob of the peer is damaged and was thrown away");
                }
                self.tell(Local::BlobStored { name, stored });
            }
            Event::ReadBlob { hash, offset, len } => {
                let bytes = self.replica.read_blob(&peer, &hash, offset, len).await?;
                self.tell(Local::BlobRead { hash, offset, bytes });
            }
            Event::StreamOpened { id, request } => {
                let stream = self.stream(id);
                self.replica.open_stream(&peer, request, stream);
            }
            Event::StreamData { id, bytes } => self.deliver(id, StreamEvent::Data(bytes)),
            Event::StreamCredit { id, bytes } => {
                if let Some(stream) = self.streams.get(&id) {
                    let room = (STREAM_CREDIT_BYTES as usize).saturating_sub(stream.credit.available_permits());
                    stream.credit.add_permits(room.min(bytes as usize));
                }
            }
            Event::StreamClosed { id, reason } => {
                self.deliver(id, StreamEvent::Closed(reason));
                self.streams.remove(&id);
            }
            asked @ (Event::StandsAt { .. } | Event::BranchCame { .. } | Event::NeedHeard) => {
                let local = self.ask_hub(asked).await?;
                self.tell(local);
            }
        }
        Ok(())
    }

    /// What only a hub is asked.
    async fn ask_hub(&self, asked: Event) -> Result<Local, ReplicaError> {
        match asked {
            Event::StandsAt { positions, digests } => {
                Ok(Local::Branches(self.replica.stands_at(&self.peer, &positions, &digests).await?))
            }
            Event::BranchCame { channel, writer, seq } => {
                let reading = self.replica.branch_came(&self.peer, &channel, &writer, seq).await?;
                let chain = match &reading {
                    Reading::Snapshot(snapshot) => self.replica.writer(&snapshot.list.writer).await?,
                    Reading::Batches(_) | Reading::NotKept | Reading::Later => None,
                };
                Ok(Local::List { channel, writer, seq, reading, chain })
            }
            _ => Ok(Local::Heard(self.replica.newest_observation(&self.peer).await?)),
        }
    }

    fn stream(&mut self, id: StreamId) -> Stream {
        let (incoming, receiver) = mpsc::channel(INCOMING_LEN_MAX);
        let credit = Arc::new(Semaphore::new(STREAM_CREDIT_BYTES as usize));
        self.streams.insert(id, OpenStream { incoming, credit: Arc::clone(&credit) });
        Stream::new(id, self.commands.clone(), receiver, credit)
    }

    /// Hands an event to a stream's reader. The credit bounds its queue: it is full only if nobody reads any more.
    fn deliver(&mut self, id: StreamId, event: StreamEvent) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.incoming.try_send(event).is_err() {
            self.streams.remove(&id);
            self.tell(Local::StreamClose { id, reason: None });
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::StreamOpen { request, answer } => {
                if request.len() > STREAM_REQUEST_BYTES_MAX {
                    return;
                }
                let id = self.stream_ids.next();
                let stream = self.stream(id);
                self.tell(Local::StreamOpen { id, request });
                // Whoever asked may have given up; dropping the stream closes it.
                answer.send(stream).map_err(drop).unwrap_or_default();
            }
            Command::StreamData { id, bytes } => self.tell(Local::StreamData { id, bytes }),
            Command::StreamGrant { id, bytes } => self.tell(Local::StreamGrant { id, bytes }),
            Command::StreamClose { id, reason } => {
                self.streams.remove(&id);
                self.tell(Local::StreamClose { id, reason });
            }
            Command::Close { reason, retry_after_ms } => {
                self.tell(Local::Close { reason, retry_after_ms, end: SessionEnd::Closed });
            }
        }
    }
}

/// The error and its sources in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
