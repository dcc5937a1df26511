//! The recent events of the commit log, in memory: what every watch reads from.
//!
//! Bounded by count, bytes and age; what is dropped here is dropped from the `event` table with the next commit, so both
//! always hold the same events. Plain data: no lock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use flotilla_manifests::kind::KindRef;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::WatchEvent;

use crate::config::Retention;
use flotilla_sync::planted::{self, Bug};

/// What happened to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    pub(super) fn code(self) -> i64 {
        match self {
            Self::Added => 0,
            Self::Modified => 1,
            Self::Deleted => 2,
        }
    }

    pub(super) fn from_code(code: i64) -> Option<Self> {
        [Self::Added, Self::Modified, Self::Deleted].into_iter().find(|change| change.code() == code)
    }
}

/// One event of the commit log.
#[derive(Debug, Clone)]
pub struct Event {
    pub version: u64,
    pub change: Change,
    pub key: ObjectKey,
    /// What the object is now; for a deletion what it was last, at this version.
    pub object: Arc<Object>,
    /// What it was before; `None` for `Added`.
    pub previous: Option<Arc<Object>>,
    pub time: Timestamp,
    /// What it takes in memory, about; for the bound.
    pub bytes: usize,
}

impl Event {
    pub(crate) fn to_watch(&self) -> WatchEvent {
        match (self.change, &self.previous) {
            (Change::Added, _) => WatchEvent::Added(Arc::clone(&self.object)),
            (Change::Modified, Some(previous)) => {
                WatchEvent::Modified { previous: Arc::clone(previous), object: Arc::clone(&self.object) }
            }
            (Change::Modified, None) => WatchEvent::Added(Arc::clone(&self.object)),
            (Change::Deleted, _) => WatchEvent::Deleted(Arc::clone(&self.object)),
        }
    }
}

/// Memory that an object takes, for each byte of its JSON: measured with a DaemonSet of 1.3 KB (docs/benchmarks.md).
const MEMORY_PER_JSON_BYTE: usize = 14;

/// What an event takes in memory, by the size of the object that it replaced: the objects before and after stand in two events each.
pub(super) fn memory_bytes(json_bytes: usize) -> usize {
    json_bytes * MEMORY_PER_JSON_BYTE + 400
}

/// The window of events still known.
#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// A watch from this version or later can be served.
    floor: u64,
}

/// What a reader at a version gets.
#[derive(Debug)]
pub(crate) enum Read {
    /// Events of what was asked for, and the version up to which was looked.
    Events(Vec<WatchEvent>, u64),
    Expired,
}

impl History {
    pub(crate) fn starting_at(floor: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.bytes;
        self.events.push_back(event);
    }

    /// Drops what the bounds no longer allow.
    pub(crate) fn trim(&mut self, bounds: &Retention, now: Timestamp) {
        let oldest = now.0.saturating_sub(bounds.events_age_ms_max);
        while let Some(first) = self.events.front() {
            let over = self.events.len() > bounds.events_count_max || self.bytes > bounds.events_bytes_max;
            if !over && first.time.0 >= oldest {
                break;
            }
            self.bytes -= first.bytes;
            self.floor = first.version;
            self.events.pop_front();
        }
    }

    /// The events of this kind after `version`, newest first; `None` when they are not all known. `end` is the newest version.
    pub(crate) fn since<'a>(
        &'a self,
        kind: KindRef,
        namespace: Option<&'a str>,
        version: u64,
        end: u64,
    ) -> Option<impl Iterator<Item = &'a Event>> {
        if version < self.floor || version > end {
            return None;
        }
        let start = self.events.partition_point(|event| event.version <= version);
        let mine =
            move |event: &&Event| event.key.kind == kind && namespace.is_none_or(|name| event.key.namespace == name);
        Some(self.events.range(start..).rev().filter(mine))
    }

    /// Up to `count_max` events of wanted objects after `from`; `end` is the newest committed version.
    pub(crate) fn read(&self, wanted: impl Fn(&ObjectKey) -> bool, from: u64, end: u64, count_max: usize) -> Read {
        if from < self.floor {
            return Read::Expired;
        }
        let first = from + u64::from(planted::is(Bug::WatchGap)) - u64::from(planted::is(Bug::WatchRepeats));
        let start = self.events.partition_point(|event| event.version <= first);
        let mut found = Vec::new();
        for event in self.events.range(start..) {
            if wanted(&event.key) {
                found.push(event.to_watch());
                if found.len() == count_max {
                    return Read::Events(found, event.version);
                }
            }
        }
        Read::Events(found, end.max(from))
    }
}
