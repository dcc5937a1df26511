//! The recent events of the commit log, in memory: what every watch reads from.
//!
//! Bounded by count, bytes and age; what is dropped here is dropped from the `event` table with the next commit, so both
//! always hold the same events. The newest are shared with whoever reads along; of the rest their JSON is kept, which is a tenth as
//! large. Plain data: no lock, no I/O.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
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

/// Newest events whose objects are kept as they are: those that watchers read along.
pub(super) const SHARED_MAX: usize = 512;
/// Memory that an object takes, for each byte of its JSON: measured with a DaemonSet of 1.3 KB (docs/benchmarks.md).
const MEMORY_PER_JSON_BYTE: usize = 14;
/// Memory of an event beside its objects.
const EVENT_BYTES: usize = 400;

/// What an event takes in memory, by the size of the object that it replaced: the objects before and after stand in two events each.
pub(super) fn memory_bytes(json_bytes: usize) -> usize {
    json_bytes * MEMORY_PER_JSON_BYTE + EVENT_BYTES
}

/// An object of the past.
#[derive(Debug, Clone)]
pub(crate) enum Kept {
    Shared(Arc<Object>),
    /// Its JSON.
    Packed(Bytes),
}

impl Kept {
    /// The object; `None` when its own JSON cannot be read again, which nothing but a fault of this program explains.
    pub(crate) fn object(&self) -> Option<Arc<Object>> {
        match self {
            Self::Shared(object) => Some(Arc::clone(object)),
            Self::Packed(json) => Object::parse(serde_json::from_slice(json).ok()?).ok().map(Arc::new),
        }
    }

    /// Keeps the JSON alone; answers its bytes.
    fn pack(&mut self) -> usize {
        match self {
            Self::Shared(object) => {
                let json = Bytes::from(super::batch::encode(object));
                let bytes = json.len();
                *self = Self::Packed(json);
                bytes
            }
            Self::Packed(json) => json.len(),
        }
    }
}

/// One event as it is kept. A copy shares what it holds.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) version: u64,
    pub(super) change: Change,
    pub(super) key: ObjectKey,
    pub(super) object: Kept,
    pub(super) previous: Option<Kept>,
    pub(super) time: Timestamp,
    pub(super) bytes: usize,
}

impl From<Event> for Row {
    fn from(event: Event) -> Self {
        let Event { version, change, key, object, previous, time, bytes } = event;
        Self { version, change, key, object: Kept::Shared(object), previous: previous.map(Kept::Shared), time, bytes }
    }
}

impl Row {
    /// `None` when what is packed cannot be read.
    pub(super) fn to_watch(&self) -> Option<WatchEvent> {
        let object = self.object.object()?;
        Some(match (self.change, &self.previous) {
            (Change::Added, _) => WatchEvent::Added(object),
            (Change::Modified, Some(previous)) => WatchEvent::Modified { previous: previous.object()?, object },
            // A modification always knows what it modified; a lone one is shown as what it made.
            (Change::Modified, None) => WatchEvent::Added(object),
            (Change::Deleted, _) => WatchEvent::Deleted(object),
        })
    }

    /// Of its objects the JSON is kept from now on.
    pub(super) fn pack(&mut self) {
        self.bytes = EVENT_BYTES + self.object.pack() + self.previous.as_mut().map_or(0, Kept::pack);
    }
}

/// The window of events still known.
#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Row>,
    /// So many of the oldest are packed.
    packed: usize,
    bytes: usize,
    /// A watch from this version or later can be served.
    floor: u64,
}

/// What a reader at a version gets.
#[derive(Debug)]
pub(super) enum Read {
    /// Events of what was asked for, as they are kept, and the version up to which was looked.
    Events(Vec<Row>, u64),
    Expired,
}

impl History {
    pub(crate) fn starting_at(floor: u64) -> Self {
        Self { events: VecDeque::new(), packed: 0, bytes: 0, floor }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn push(&mut self, event: impl Into<Row>) {
        let row = event.into();
        if self.packed == self.events.len() && matches!(row.object, Kept::Packed(_)) {
            self.packed += 1;
        }
        self.bytes += row.bytes;
        self.events.push_back(row);
    }

    /// The rows whose objects are not to be kept as they are once so many more events have come, packed: that takes long, and is done
    /// before the lock that all readers wait for.
    pub(super) fn aged(&self, coming: usize) -> Vec<Row> {
        let shared_from = (self.events.len() + coming).saturating_sub(SHARED_MAX).min(self.events.len());
        let mut aged: Vec<Row> = self.events.range(self.packed.min(shared_from)..shared_from).cloned().collect();
        aged.iter_mut().for_each(Row::pack);
        aged
    }

    /// Puts what [`aged`](Self::aged) packed into its place.
    pub(super) fn exchange(&mut self, aged: Vec<Row>) {
        for row in aged {
            let Some(place) = self.events.get_mut(self.packed).filter(|place| place.version == row.version) else {
                return;
            };
            self.bytes = self.bytes - place.bytes + row.bytes;
            *place = row;
            self.packed += 1;
        }
    }

    /// Events, and how many of them keep their objects as they are.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let shared =
            |row: &&Row| matches!(row.object, Kept::Shared(_)) || matches!(row.previous, Some(Kept::Shared(_)));
        (self.events.len(), self.events.iter().filter(shared).count())
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
            self.packed = self.packed.saturating_sub(1);
        }
    }

    /// What the objects of this kind that have changed after `version` were then, `None` for those that were not there; nothing when
    /// not all events are known. `end` is the newest version.
    pub(crate) fn before<'a>(
        &'a self,
        kind: KindRef,
        namespace: Option<&'a str>,
        version: u64,
        end: u64,
    ) -> Option<BTreeMap<ObjectKey, Option<Kept>>> {
        if version < self.floor || version > end {
            return None;
        }
        let start = self.events.partition_point(|event| event.version <= version);
        let mine =
            move |event: &&Row| event.key.kind == kind && namespace.is_none_or(|name| event.key.namespace == name);
        let undone = self.events.range(start..).rev().filter(mine);
        Some(undone.map(|event| (event.key.clone(), event.previous.clone())).collect())
    }

    /// Up to `count_max` events of wanted objects after `from`; `end` is the newest committed version.
    pub(super) fn read(&self, wanted: impl Fn(&ObjectKey) -> bool, from: u64, end: u64, count_max: usize) -> Read {
        if from < self.floor {
            return Read::Expired;
        }
        let first = from + u64::from(planted::is(Bug::WatchGap)) - u64::from(planted::is(Bug::WatchRepeats));
        let start = self.events.partition_point(|event| event.version <= first);
        let mut found = Vec::new();
        for event in self.events.range(start..) {
            if wanted(&event.key) {
                found.push(event.clone());
                if found.len() == count_max {
                    return Read::Events(found, event.version);
                }
            }
        }
        Read::Events(found, end.max(from))
    }
}
