//! The tasks behind streaming answers: one for each watch, one for each log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_manifests::object::Object;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::Clock;
use crate::backend::WatchEvent;
use crate::watch::{Flow, Lines};

/// Time between bookmarks.
const BOOKMARK_SECONDS: u64 = 60;
/// Events are gathered into one chunk up to about this.
const CHUNK_BYTES: usize = 64 * 1024;

/// One open watch.
pub(super) struct Watching {
    pub(super) lines: Lines,
    pub(super) initial: Vec<Arc<Object>>,
    pub(super) marks_initial_end: bool,
    pub(super) bookmarks: bool,
    pub(super) seconds: u64,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Receiver<WatchEvent>,
    pub(super) out: mpsc::Sender<Bytes>,
    pub(super) shutdown: watch::Receiver<bool>,
}

enum Step {
    Events(Flow),
    Bookmark,
    /// Time is over, the client or the backend is gone, or the server shuts down.
    End,
}

impl Watching {
    pub(super) async fn run(mut self) {
        let deadline = sleep(Duration::from_secs(self.seconds));
        tokio::pin!(deadline);
        let started = tokio::select! {
            started = Self::start(&mut self.lines, std::mem::take(&mut self.initial), self.marks_initial_end, &self.clock, &self.out) => started,
            () = &mut deadline => false,
            () = turned_true(&mut self.shutdown) => false,
        };
        if !started {
            return;
        }
        let period = Duration::from_secs(BOOKMARK_SECONDS);
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut chunk = Vec::new();
            let step = tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => Step::Events(self.write(event, &mut chunk)),
                    None => Step::End,
                },
                _ = ticks.tick(), if self.bookmarks => Step::Bookmark,
                () = &mut deadline => Step::End,
                () = self.out.closed() => Step::End,
                () = turned_true(&mut self.shutdown) => Step::End,
            };
            let flow = match step {
                Step::Events(flow) => flow,
                Step::Bookmark => {
                    self.lines.bookmark(&mut chunk);
                    Flow::Continue
                }
                Step::End => return,
            };
            let sent = tokio::select! {
                sent = send(&self.out, chunk) => sent,
                () = &mut deadline => false,
                () = turned_true(&mut self.shutdown) => false,
            };
            if !sent || flow == Flow::End {
                return;
            }
        }
    }

    /// The present state; false when the client has gone.
    async fn start(
        lines: &mut Lines,
        initial: Vec<Arc<Object>>,
        marks_end: bool,
        clock: &Clock,
        out: &mpsc::Sender<Bytes>,
    ) -> bool {
        let mut chunk = Vec::new();
        for object in initial {
            lines.initial(&object, clock(), &mut chunk);
            if chunk.len() >= CHUNK_BYTES && !send(out, std::mem::take(&mut chunk)).await {
                return false;
            }
        }
        if marks_end {
            lines.initial_events_end(&mut chunk);
        }
        send(out, chunk).await
    }

    /// One event and those that wait behind it.
    fn write(&mut self, event: WatchEvent, chunk: &mut Vec<u8>) -> Flow {
        let now = (self.clock)();
        let mut flow = self.lines.event(&event, now, chunk);
        while flow == Flow::Continue && chunk.len() < CHUNK_BYTES {
            match self.events.try_recv() {
                Ok(event) => flow = self.lines.event(&event, now, chunk),
                Err(_) => break,
            }
        }
        flow
    }
}

/// False when the client has gone.
async fn send(out: &mpsc::Sender<Bytes>, chunk: Vec<u8>) -> bool {
    chunk.is_empty() || out.send(chunk.into()).await.is_ok()
}

/// A log, until it ends, the client goes or the server shuts down.
pub(super) async fn forward(
    mut chunks: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Bytes>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            () = out.closed() => None,
            () = turned_true(&mut shutdown) => None,
        };
        let Some(chunk) = chunk else { return };
        let sent = tokio::select! {
            sent = out.send(chunk) => sent.is_ok(),
            () = turned_true(&mut shutdown) => false,
        };
        if !sent {
            return;
        }
    }
}

/// Returns once the value is true, or nobody is left to make it so.
pub(crate) async fn turned_true(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which ends the server too.
    drop(shutdown.wait_for(|ends| *ends).await);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
