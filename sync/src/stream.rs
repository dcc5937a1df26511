//! Streams: ordered bytes between application and application, multiplexed in a session and limited by credit.
//!
//! A receiver grants credit; a sender without credit waits. Each data frame costs its length plus a fixed overhead, so that the
//! bytes queued and the number of frames queued are both bounded. This file is the application's end; the accounting of both
//! ends is `session/streams.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::driver::Command;

/// Credit of a stream at its opening, in each direction, in bytes.
pub const STREAM_CREDIT_BYTES: u32 = 64 * 1024;
/// What a data frame costs beside its bytes.
pub const STREAM_FRAME_OVERHEAD_BYTES: u32 = 64;
/// Largest data frame, in bytes.
pub const STREAM_DATA_BYTES_MAX: usize = 16 * 1024;
/// Most open streams of one session, counted per opener.
pub const STREAMS_MAX: usize = 64;
/// Largest request that opens a stream, in bytes.
pub const STREAM_REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Longest reason of a close, in bytes.
pub const STREAM_REASON_BYTES_MAX: usize = 1024;

/// More data frames than this cannot be queued within the credit.
pub(crate) const INCOMING_LEN_MAX: usize = (STREAM_CREDIT_BYTES / STREAM_FRAME_OVERHEAD_BYTES) as usize + 2;
/// Consumed bytes are granted again in steps of this size.
const GRANT_BYTES: u32 = STREAM_CREDIT_BYTES / 2;

/// Identity of a stream within its session: even numbers are opened by the hub, odd ones by the device.
pub type StreamId = u64;

/// One end of a stream. Dropping it closes both directions.
#[derive(Debug)]
pub struct Stream {
    incoming: mpsc::Receiver<StreamEvent>,
    sender: StreamSender,
    consumed: u32,
    ended: bool,
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct StreamSender {
    id: StreamId,
    commands: mpsc::Sender<Box<Command>>,
    credit: Arc<Semaphore>,
}

/// What a stream's reader sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// Bytes.
    Data(Bytes),
    /// The peer is done; with a reason if it failed.
    Closed(Option<String>),
}

/// Why a stream gives or takes nothing more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer closed it with this reason.
    #[error("the peer closed the stream: {0}")]
    Peer(String),
    /// The session ended.
    #[error("the session ended before the stream did")]
    SessionEnded,
}

impl Stream {
    pub(crate) fn new(
        id: StreamId,
        commands: mpsc::Sender<Box<Command>>,
        incoming: mpsc::Receiver<StreamEvent>,
        credit: Arc<Semaphore>,
    ) -> Self {
        Self { incoming, sender: StreamSender { id, commands, credit }, consumed: 0, ended: false }
    }

    /// The next bytes; `None` when the peer is done. Cancel-safe.
    ///
    /// # Errors
    /// The peer closed with a reason, or the session ended.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, StreamError> {
        if self.ended {
            return Ok(None);
        }
        if self.consumed >= GRANT_BYTES {
            let grant = Command::StreamGrant { id: self.sender.id, bytes: self.consumed };
            let permit = self.sender.commands.reserve().await.map_err(|_closed| StreamError::SessionEnded)?;
            permit.send(Box::new(grant));
            self.consumed = 0;
        }
        match self.incoming.recv().await {
            Some(StreamEvent::Data(bytes)) => {
                self.consumed += cost_of(bytes.len());
                Ok(Some(bytes))
            }
            Some(StreamEvent::Closed(reason)) => {
                self.ended = true;
                reason.map_or(Ok(None), |reason| Err(StreamError::Peer(reason)))
            }
            None => Err(StreamError::SessionEnded),
        }
    }

    /// Sends bytes, waiting for the peer's credit.
    ///
    /// # Errors
    /// When the stream or the session has ended.
    pub async fn send(&self, bytes: Bytes) -> Result<(), StreamError> {
        self.sender.send(bytes).await
    }

    /// Ends the stream; with a reason if the work failed. What was sent before arrives before.
    pub async fn close(self, reason: Option<String>) {
        self.sender.close(reason).await;
    }
}

impl StreamSender {
    async fn send(&self, mut bytes: Bytes) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(STREAM_DATA_BYTES_MAX));
            let permits = self.credit.acquire_many(cost_of(chunk.len())).await;
            permits.map_err(|_closed| StreamError::SessionEnded)?.forget();
            let data = Command::StreamData { id: self.id, bytes: chunk };
            self.commands.send(Box::new(data)).await.map_err(|_closed| StreamError::SessionEnded)?;
        }
        Ok(())
    }

    async fn close(&self, reason: Option<String>) {
        let close = Command::StreamClose { id: self.id, reason };
        // A session that has ended has closed the stream.
        self.commands.send(Box::new(close)).await.unwrap_or_default();
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        // Closing twice is harmless. If the queue is full, the driver notices the dropped reader with the next data.
        self.commands.try_send(Box::new(Command::StreamClose { id: self.id, reason: None })).unwrap_or_default();
    }
}

/// What a data frame of this length costs.
pub(crate) fn cost_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(STREAM_FRAME_OVERHEAD_BYTES)
}

/// Hands out stream ids of one side.
#[derive(Debug)]
pub(crate) struct StreamIds(AtomicU32);

impl StreamIds {
    pub(crate) fn new(first: u32) -> Self {
        Self(AtomicU32::new(first))
    }

    pub(crate) fn next(&self) -> StreamId {
        u64::from(self.0.fetch_add(2, Ordering::Relaxed))
    }
}
