//! A [`Stream`] as something to read from and write to, and the task that moves its messages.
//!
//! Whoever receives from the broker calls [`Link::handle`], which never blocks; the application reads and writes [`LinkIo`]; the pump
//! publishes what is due.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::Client;
use super::frame::{Body, CloseReason, Frame, SessionId};
use super::stream::{Broken, Role, Stream};

/// Bytes that the application may write ahead of the broker.
const OUTBOUND_BYTES_MAX: usize = 32 * 1024;
/// How long the rest of a stream may take to leave once the application has dropped it.
const LINGER: Duration = Duration::from_secs(10);

/// One end of a stream, shared by receiver, application and pump.
#[derive(Debug)]
pub(super) struct Link {
    session: SessionId,
    started: Instant,
    state: Mutex<State>,
    pump: Notify,
}

#[derive(Debug)]
struct State {
    stream: Stream,
    inbound: VecDeque<Bytes>,
    outbound: BytesMut,
    reader: Option<Waker>,
    writer: Option<Waker>,
    dropped_at: Option<Instant>,
    end: Option<End>,
}

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) why: String,
    /// The peer said so itself.
    pub(super) closed: Option<CloseReason>,
}

/// The application's end. Dropping it closes the stream after what was written has left.
#[derive(Debug)]
pub(super) struct LinkIo(Arc<Link>);

impl Link {
    pub(super) fn new(session: SessionId, role: Role) -> Arc<Self> {
        let state = State {
            stream: Stream::new(role, 0),
            inbound: VecDeque::new(),
            outbound: BytesMut::new(),
            reader: None,
            writer: None,
            dropped_at: None,
            end: None,
        };
        Arc::new(Self { session, started: Instant::now(), state: Mutex::new(state), pump: Notify::new() })
    }

    /// The application's end: to be taken once.
    pub(super) fn io(self: &Arc<Self>) -> LinkIo {
        LinkIo(Arc::clone(self))
    }

    /// A message has arrived. Never blocks.
    pub(super) fn handle(&self, body: Body) {
        let now_ms = self.now_ms();
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        match state.stream.handle(body, now_ms) {
            Ok(Some(data)) => {
                // A copy: what was received is a part of a larger buffer, which it would keep.
                state.inbound.push_back(Bytes::copy_from_slice(&data));
                wake(&mut state.reader);
            }
            Ok(None) => {}
            Err(broken) => state.end(End::of(broken)),
        }
        drop(state);
        self.pump.notify_one();
    }

    /// The peer has proven itself.
    pub(super) fn trust(&self) {
        self.state().stream.trust();
    }

    /// Ends the stream from this side.
    pub(super) fn end(&self, why: &str) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end(End { why: why.to_owned(), closed: None });
        }
        drop(state);
        self.pump.notify_one();
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// Publishes what is due on `topic` until the stream ends, and then says so to the peer.
    pub(super) async fn pump(&self, client: &Client, topic: impl Fn() -> String) {
        loop {
            let (due, deadline) = self.due();
            for body in due {
                let closing = matches!(body, Body::Close { .. });
                let frame = Frame { session: self.session, body }.encode();
                if client.publish(topic(), frame).await.is_err() {
                    self.end("the connection to the broker is gone");
                    return;
                }
                if closing {
                    return;
                }
            }
            let Some(deadline) = deadline else { return };
            tokio::select! {
                () = self.pump.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// What to publish now, and when to look again at the latest; never when the stream is over.
    fn due(&self) -> (Vec<Body>, Option<Instant>) {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let mut due = Vec::new();
        while state.end.is_none() && !state.outbound.is_empty() && state.stream.credit() > 0 {
            let length = state.stream.credit().min(state.outbound.len());
            let data = state.outbound.split_to(length).freeze();
            due.push(state.stream.send(data, now_ms));
            wake(&mut state.writer);
        }
        if state.outbound.is_empty() {
            // An idle stream holds no buffer.
            state.outbound = BytesMut::new();
        }
        let lingering = state.dropped_at.is_some_and(|at| !state.outbound.is_empty() && at.elapsed() < LINGER);
        if state.end.is_none() && state.dropped_at.is_some() && !lingering {
            state.end(End { why: "finished".to_owned(), closed: None });
            due.push(Body::Close { reason: CloseReason::Done });
            return (due, None);
        }
        if state.end.is_none() {
            match state.stream.poll(now_ms) {
                Ok(body) => due.extend(body),
                Err(broken) => state.end(End::of(broken)),
            }
        }
        if let Some(end) = &state.end {
            if end.closed.is_none() {
                due.push(Body::Close { reason: CloseReason::Reset });
            }
            return (due, None);
        }
        let timer = self.started + Duration::from_millis(state.stream.timeout_ms());
        (due, Some(state.dropped_at.map_or(timer, |at| timer.min(at + LINGER))))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, end: End) {
        self.end = Some(end);
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

impl End {
    fn of(broken: Broken) -> Self {
        let closed = match broken {
            Broken::Closed(reason) => Some(reason),
            _ => None,
        };
        Self { why: broken.to_string(), closed }
    }

    fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self.why.clone())
    }
}

impl AsyncRead for LinkIo {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if state.inbound.is_empty() {
            return match &state.end {
                Some(End { closed: Some(CloseReason::Done), .. }) => Poll::Ready(Ok(())),
                Some(end) => Poll::Ready(Err(end.error())),
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        }
        let (mut bytes, mut frames) = (0, 0);
        while buffer.remaining() > 0
            && let Some(front) = state.inbound.front_mut()
        {
            let length = front.len().min(buffer.remaining());
            buffer.put_slice(&front[..length]);
            front.advance(length);
            bytes += length as u64;
            if front.is_empty() {
                state.inbound.pop_front();
                frames += 1;
            }
        }
        if state.inbound.is_empty() {
            state.inbound = VecDeque::new();
        }
        state.stream.consume(bytes, frames);
        drop(state);
        self.0.pump.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        if let Some(end) = &state.end {
            return Poll::Ready(Err(end.error()));
        }
        let room = OUTBOUND_BYTES_MAX.saturating_sub(state.outbound.len());
        if room == 0 {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        state.outbound.extend_from_slice(&bytes[..length]);
        drop(state);
        self.0.pump.notify_one();
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The pump sends at once whatever there is room for.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS has said so within the stream.
        Poll::Ready(Ok(()))
    }
}

impl Drop for LinkIo {
    fn drop(&mut self) {
        self.0.state().dropped_at = Some(Instant::now());
        self.0.pump.notify_one();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
