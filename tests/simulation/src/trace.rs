//! What happened, in order: hashed whole, remembered as far as a person would read, and the first thing that was wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Lines kept for a report.
const LINES_MAX: usize = 400;
/// When every world begins: 2027-01-15T08:00:00Z. Milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;

/// What breaks a promise, with its oracle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Name of the oracle.
    pub oracle: &'static str,
    pub what: String,
    /// Virtual time since the beginning. Milliseconds.
    pub at_ms: u64,
}

/// How far a world has come, for whoever waits for it on another thread.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    events: AtomicU64,
    virtual_ms: AtomicU64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub events: u64,
    /// Virtual time that has passed. Milliseconds.
    pub virtual_ms: u64,
}

/// The record of one world. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    started: Instant,
    meter: Arc<Meter>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    hash: u64,
    events: u64,
    /// How many of each kind.
    kinds: BTreeMap<&'static str, u64>,
    lines: VecDeque<String>,
    aloud: bool,
    failure: Option<Failure>,
    /// See [`Trace::touched`].
    touched: BTreeSet<String>,
}

impl Meter {
    pub(crate) fn progress(&self) -> Progress {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Progress { events: read(&self.events), virtual_ms: read(&self.virtual_ms) }
    }
}

impl Trace {
    /// Begins at the runtime's present moment.
    pub(crate) fn starting(aloud: bool, meter: Arc<Meter>) -> Self {
        let inner = Inner { hash: 0xcbf2_9ce4_8422_2325, aloud, ..Inner::default() };
        Self { started: Instant::now(), meter, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Virtual milliseconds since the beginning.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The world's true time, which no node need know. Milliseconds since 1970.
    pub(crate) fn true_ms(&self) -> u64 {
        EPOCH_MS + self.now_ms()
    }

    /// Something happened: `numbers` are what tells one such event from another.
    pub(crate) fn event(&self, what: &'static str, node: &str, numbers: &[u64]) {
        let mut inner = self.lock();
        self.mix(&mut inner, what, node, numbers);
        // Another board under a device's name is that device to the oracles.
        let name = node.split('\'').next().unwrap_or(node);
        if !inner.touched.contains(name) {
            inner.touched.insert(name.to_owned());
        }
    }

    /// The same, of what changes nothing that an oracle looks at.
    pub(crate) fn passed(&self, what: &'static str, node: &str, numbers: &[u64]) {
        self.mix(&mut self.lock(), what, node, numbers);
    }

    fn mix(&self, inner: &mut Inner, what: &'static str, node: &str, numbers: &[u64]) {
        let at = self.now_ms();
        inner.events += 1;
        self.meter.events.store(inner.events, Ordering::Relaxed);
        self.meter.virtual_ms.store(at, Ordering::Relaxed);
        *inner.kinds.entry(what).or_default() += 1;
        let mut hash = inner.hash;
        let mut mix = |value: u64| {
            for byte in value.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        mix(at);
        numbers.iter().for_each(|number| mix(*number));
        for byte in what.bytes().chain(node.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        inner.hash = hash;
    }

    /// Nodes of which something happened since the last call: what the oracles have to look at.
    pub(crate) fn touched(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().touched)
    }

    /// An event that a person would want to read in a report.
    pub(crate) fn told(&self, what: &'static str, node: &str, detail: impl fmt::Display) {
        let text = detail.to_string();
        let digest = text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        self.event(what, node, &[digest]);
        let at = self.now_ms();
        let line = format!("{:>12} {node:<8} {what} {text}", clock(at));
        let mut inner = self.lock();
        if inner.aloud {
            tracing::info!(target: "simulation", "{line}");
        }
        if inner.lines.len() == LINES_MAX {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    /// A promise was broken; only the first counts.
    pub(crate) fn fail(&self, oracle: &'static str, what: impl fmt::Display) {
        let at_ms = self.now_ms();
        let mut inner = self.lock();
        if inner.failure.is_none() {
            inner.failure = Some(Failure { oracle, what: what.to_string(), at_ms });
        }
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// The hash of all events so far, and how many.
    pub(crate) fn sum(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.hash, inner.events)
    }

    /// How many events there were of each kind.
    pub(crate) fn kinds(&self) -> BTreeMap<&'static str, u64> {
        self.lock().kinds.clone()
    }

    /// The last lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hours, minutes, seconds and milliseconds since the beginning.
fn clock(ms: u64) -> String {
    format!("{}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}
