//! Reading the channels' logs: heads, newest batches and lists from memory, the rest from a connection that only reads.

mod bells;
mod branches;
mod tail;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, GENESIS, Head, ItemId, WriterId, state_digest};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::list::{ChannelSnapshot, ListEntry, SignedList};
use flotilla_sync::log::Batch;
use flotilla_sync::observation::Clock;
use flotilla_sync::record::{Draft, Record};
use flotilla_sync::replica::Reading;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::damage::DamagedRow;
use super::writer::Moved;
use super::{StoreError, schema};

use bells::Bells;
use tail::{Rest, Tails};

/// Signed lists of fleets kept for the next reader that is behind, and their bytes.
const SNAPSHOTS_KEPT_MAX: usize = 8;
/// A reader that lacks more records than this reads the list instead, if that is shorter. Each record costs a device an edit of a
/// document; a list costs it one signature and one state per item.
const LIST_FROM_RECORDS: u64 = 32;
/// Or, of a log that memory has whole, beyond so many bytes: a burst of small changes needs no list.
const LIST_FROM_BYTES: usize = 16 * 1024;

/// What a list adds to an item's id and state.
const LISTED_ITEM_BYTES: i64 = 64;
/// Batches remembered as verified.
const VERIFIED_MAX: usize = 64;
/// Deleted objects that a list names, the newest.
const TOMBSTONES_LISTED_MAX: i64 = 256;

type LogHeads = BTreeMap<ChannelName, BTreeMap<WriterId, Head>>;

/// The logs as sessions read them.
pub(crate) struct Logs {
    heads: RwLock<LogHeads>,
    /// How often any of them grew.
    growth: AtomicU64,
    reader: Mutex<Connection>,
    /// Rung when a log of interest grew.
    bells: Bells,
    snapshots: Mutex<Vec<(ChannelName, Head, ChannelSnapshot)>>,
    tails: RwLock<Tails>,
    /// Batches read lately, which are what was signed.
    verified: Mutex<VecDeque<Batch>>,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Logs").finish_non_exhaustive()
    }
}

impl Logs {
    pub(super) fn open(path: &Path, vfs: Option<&str>, connection: &Connection) -> Result<Self, StoreError> {
        let mut heads = LogHeads::new();
        let mut statement = connection.prepare("SELECT channel, writer, seq, hash FROM head")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Ok(channel) = ChannelName::parse(&row.get::<_, String>(0)?) else { continue };
            let head = Head { seq: row.get::<_, i64>(2)?.cast_unsigned(), hash: row.get(3)? };
            heads.entry(channel).or_default().insert(WriterId(row.get(1)?), head);
        }
        let reader = schema::connect(path, vfs).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        schema::configure(&reader)?;
        Ok(Self {
            heads: RwLock::new(heads),
            growth: AtomicU64::new(0),
            reader: Mutex::new(reader),
            bells: Bells::default(),
            snapshots: Mutex::default(),
            tails: RwLock::default(),
            verified: Mutex::default(),
        })
    }

    /// Where the logs of a channel stand; empty when nothing was written yet.
    pub(crate) fn heads(&self, channel: &ChannelName) -> BTreeMap<WriterId, Head> {
        self.heads.read().unwrap_or_else(PoisonError::into_inner).get(channel).cloned().unwrap_or_default()
    }

    /// Another number whenever any log is longer than before.
    pub(crate) fn growth(&self) -> u64 {
        self.growth.load(Ordering::Acquire)
    }

    /// How far this writer's log goes in the channel of each fleet.
    pub(crate) fn fleets(&self, writer: &WriterId) -> BTreeMap<ChannelName, u64> {
        let heads = self.heads.read().unwrap_or_else(PoisonError::into_inner);
        let fleets = heads.iter().filter(|(channel, _)| matches!(channel, ChannelName::Fleet(_)));
        fleets.filter_map(|(channel, logs)| Some((channel.clone(), logs.get(writer)?.seq))).collect()
    }

    /// Rings when a log that may concern this node grew; those of fleets concern all.
    pub(crate) fn bell(&self, node: &str) -> watch::Receiver<u64> {
        self.bells.of(node)
    }

    /// Who tells large fleets, in turns.
    pub(crate) fn bells(&self) -> &Bells {
        &self.bells
    }

    /// What is longer now can be read: before anybody is told, see [`Self::ring`].
    pub(super) fn moved(&self, moved: &[Moved]) {
        if moved.is_empty() {
            return;
        }
        // Worked out before the lock that all who read wait for.
        let told = self.told_by_difference(moved);
        let mut tails = self.tails.write().unwrap_or_else(PoisonError::into_inner);
        for (log, batch) in moved.iter().zip(told) {
            match batch {
                Some(batch) => tails.grew(batch),
                None => tails.forget(&(log.channel.clone(), log.writer)),
            }
        }
        drop(tails);
        let mut heads = self.heads.write().unwrap_or_else(PoisonError::into_inner);
        for log in moved {
            let logs = heads.entry(log.channel.clone()).or_default();
            match log.head {
                Some(head) => logs.insert(log.writer, head),
                None => logs.remove(&log.writer),
            };
        }
        self.growth.fetch_add(1, Ordering::Release);
    }

    /// The batches that were added, each with how it differs from the one before it.
    fn told_by_difference(&self, moved: &[Moved]) -> Vec<Option<Batch>> {
        let mut newest: BTreeMap<(&ChannelName, &WriterId), Batch> = BTreeMap::new();
        let mut told = Vec::with_capacity(moved.len());
        for log in moved {
            let Some(mut batch) = log.batch.clone() else {
                told.push(None);
                continue;
            };
            // A device's own channel has one reader.
            if matches!(batch.channel, ChannelName::Fleet(_)) {
                let key = (&log.channel, &log.writer);
                let known = || self.tails.read().unwrap_or_else(PoisonError::into_inner).newest(key.0, key.1);
                if let Some(before) = newest.get(&key).cloned().or_else(known) {
                    batch.follows(&before);
                }
                newest.insert(key, batch.clone());
            }
            told.push(Some(batch));
        }
        told
    }

    /// Tells the sessions of what has grown.
    pub(super) fn ring(&self, moved: &[Moved]) {
        let shared = moved.iter().any(|log| matches!(log.channel, ChannelName::Fleet(_)));
        if shared && self.bells.ring_fleet() {
            return;
        }
        for log in moved {
            if let ChannelName::Device(node) = &log.channel {
                self.bells.ring(node.as_str());
            }
        }
    }

    /// Records have gone because they are old, and that is committed: memory keeps none that the disk does not.
    pub(super) fn forget_newest(&self) {
        self.tails.write().unwrap_or_else(PoisonError::into_inner).forget_all();
    }

    /// What the hub's own log of a channel has after a position, where memory knows it all. Never waits for the disk.
    pub(crate) fn at_hand(
        &self,
        identity: &WriterIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Option<Reading> {
        if *writer != identity.id() {
            return None;
        }
        let head = self.heads.read().unwrap_or_else(PoisonError::into_inner).get(channel)?.get(writer)?.seq;
        let far = head.saturating_sub(after) > LIST_FROM_RECORDS;
        let listed = if far { self.list_at_hand(channel, writer, head, after) } else { None };
        let tails = self.tails.read().unwrap_or_else(PoisonError::into_inner);
        if far {
            let log_bytes = tails.bytes_after(channel, writer, head, after);
            match listed {
                Some((at, snapshot)) if log_bytes.is_none_or(|bytes| snapshot_bytes(&snapshot) < bytes) => {
                    let goes_on = tails.after(channel, writer, head, at.seq, 1) != Rest::Elsewhere;
                    return goes_on.then_some(Reading::Snapshot(snapshot));
                }
                // A list may be shorter: whoever reads the disk decides, and makes one.
                None if log_bytes.is_none_or(|bytes| bytes > LIST_FROM_BYTES) => return None,
                _ => {}
            }
        }
        match tails.after(channel, writer, head, after, bytes_max) {
            Rest::Batches(batches) => Some(Reading::Batches(batches)),
            Rest::Elsewhere => None,
        }
    }

    /// A signed list that is not much older than the head. One that is being kept this moment is not waited for.
    fn list_at_hand(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        head: u64,
        after: u64,
    ) -> Option<(Head, ChannelSnapshot)> {
        let kept = self.snapshots.try_lock().ok()?;
        let (_, at, snapshot) = kept.iter().find(|(name, _, kept)| name == channel && kept.list.writer == *writer)?;
        (at.seq > after && head.saturating_sub(at.seq) <= LIST_FROM_RECORDS).then(|| (*at, snapshot.clone()))
    }

    /// What the hub's own log of a channel has after a position. Blocks on the disk.
    pub(crate) fn read(
        &self,
        identity: &WriterIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Reading, StoreError> {
        let mut reader = self.reader();
        // What is read here may be swept away meanwhile.
        let life = self.tails.read().unwrap_or_else(PoisonError::into_inner).life();
        // One moment for all that follows.
        let transaction = reader.transaction()?;
        let Some((floor, head)) = floor_and_head(&transaction, channel, writer)? else {
            return Ok(Reading::Batches(Vec::new()));
        };
        let own = *writer == identity.id();
        // A list would claim to know what is learned and not taken in yet.
        let pending = super::learned::is_pending(&transaction, channel)?;
        let listed = own && !pending && is_longer_than_its_list(&transaction, channel, writer, head.seq, after)?;
        let hub = is_hub(&transaction, writer)?;
        if listed || (after < floor && (hub || !is_whole(&transaction, channel, writer, floor)?)) {
            if !hub {
                return Ok(Reading::NotKept);
            }
            if pending {
                return Ok(Reading::Later);
            }
            // Whatever an earlier writer of this hub said is in the present one's list.
            let head = if own { head } else { own_head(&transaction, identity, channel)? };
            return Ok(Reading::Snapshot(self.snapshot(&transaction, identity, channel, head)?));
        }
        // A reader that stands within a batch has another branch of the log, and learns so from that batch.
        let mut statement = transaction.prepare_cached(
            "SELECT body, last_seq FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq > ?3 ORDER BY first_seq",
        )?;
        let mut rows = statement.query(params![channel.to_string(), writer.0, after.cast_signed()])?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let body = Bytes::from(row.get::<_, Vec<u8>>(0)?);
            bytes += body.len();
            if !batches.is_empty() && bytes > bytes_max {
                break;
            }
            let last_seq = row.get::<_, i64>(1)?.cast_unsigned();
            let batch = self.whole(identity, channel, &body).ok_or_else(|| {
                StoreError::Row(DamagedRow::Batch { channel: channel.clone(), writer: *writer, last_seq })
            })?;
            batches.push(batch);
        }
        if own && batches.last().is_some_and(|last| last.last_seq == head.seq) {
            tail::tell_by_difference(&mut batches);
            self.tails.write().unwrap_or_else(PoisonError::into_inner).learn(life, &batches);
        }
        Ok(Reading::Batches(batches))
    }

    /// A stored batch, if it is what was signed. Verified once and remembered for the next sessions, which mostly read the same.
    fn whole(&self, identity: &WriterIdentity, channel: &ChannelName, body: &Bytes) -> Option<Batch> {
        let batch = Batch::decode(body).ok().filter(|batch| batch.channel == *channel)?;
        if batch.writer != identity.id() {
            return Some(batch);
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.contains(&batch) {
            return Some(batch);
        }
        batch.clone().verify(identity.chain()).ok()?;
        if verified.len() == VERIFIED_MAX {
            verified.pop_front();
        }
        verified.push_back(batch.clone());
        Some(batch)
    }

    /// The newest observation taken of a device.
    pub(crate) fn newest_observation(&self, node: &str) -> Result<Option<Clock>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached(
            "SELECT incarnation, boot, seq FROM observation WHERE node = ?1
             ORDER BY incarnation DESC, boot DESC, seq DESC LIMIT 1",
        )?;
        Ok(statement.query_row([node], super::inbox::clock_of).optional()?)
    }

    /// The stored certificate chain of a writer.
    pub(crate) fn writer(&self, writer: &WriterId) -> Result<Option<Vec<u8>>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached("SELECT chain FROM writer WHERE id = ?1")?;
        Ok(statement.query_row([writer.0], |row| row.get(0)).optional()?)
    }

    /// Whether what devices gave back names large values that are not here yet.
    pub(crate) fn lacks_learned_blobs(&self) -> Result<bool, StoreError> {
        super::learned::lacks_blobs(&self.reader())
    }

    /// Whether a writer is a hub's; `None` for one that is not known.
    pub(crate) fn is_hub_writer(&self, writer: &WriterId) -> Result<Option<bool>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached("SELECT hub FROM writer WHERE id = ?1")?;
        Ok(statement.query_row([writer.0], |row| row.get(0)).optional()?)
    }

    /// The signed list of a channel with its states; made once per head.
    fn snapshot(
        &self,
        connection: &Connection,
        identity: &WriterIdentity,
        channel: &ChannelName,
        head: Head,
    ) -> Result<ChannelSnapshot, StoreError> {
        let covers = earlier_writers(connection, identity, channel)?;
        // Not held while a list is made: whoever makes one holds the connection, and the next one finds it here.
        let kept = || self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |(name, at, kept): &&(ChannelName, Head, ChannelSnapshot)| {
            name == channel && *at == head && kept.list.writer == identity.id() && kept.list.covers == covers
        };
        if let Some((_, _, snapshot)) = kept().iter().find(is_it) {
            return Ok(snapshot.clone());
        }
        let refused = |why: String| StoreError::Publish { what: format!("the list of {channel}"), why };
        let mut entries = Vec::new();
        let mut states = Vec::new();
        for (record, epoch) in standing(connection, identity, channel, head.seq)? {
            let applied = flotilla_sync::channel::Item::apply(None, &record, identity.chain().incarnation);
            let Ok(flotilla_sync::channel::Applied::Changed(item)) = applied else {
                // Left out, it would be deleted at devices.
                return Err(damaged(channel, record.draft.item.as_str()));
            };
            let state = item.encode();
            entries.push(ListEntry { item: record.draft.item, epoch, digest: state_digest(&state) });
            states.push(state);
        }
        for record in buried(connection, identity, channel, head.seq)? {
            let removed = flotilla_sync::channel::Item::apply(None, &record, identity.chain().incarnation);
            let Ok(flotilla_sync::channel::Applied::Changed(item)) = removed else { continue };
            if entries.iter().any(|entry| entry.item == record.draft.item) {
                continue;
            }
            let state = item.encode();
            entries.push(ListEntry { item: record.draft.item, epoch: 0, digest: state_digest(&state) });
            states.push(state);
        }
        let list =
            SignedList::sign(identity, channel, head, entries, covers).map_err(|error| refused(error.to_string()))?;
        let snapshot = ChannelSnapshot { list, states };
        if matches!(channel, ChannelName::Device(_)) {
            // Nobody else reads it.
            return Ok(snapshot);
        }
        let mut kept = kept();
        kept.retain(|(name, _, _)| name != channel);
        if kept.len() == SNAPSHOTS_KEPT_MAX {
            kept.remove(0);
        }
        kept.push((channel.clone(), head, snapshot.clone()));
        Ok(snapshot)
    }

    pub(super) fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot_bytes(snapshot: &ChannelSnapshot) -> usize {
    snapshot.list.encoded().len() + snapshot.states.iter().map(Bytes::len).sum::<usize>()
}

/// Whether a reader after `after` lacks many records, and more bytes than the channel's states have.
fn is_longer_than_its_list(
    connection: &Connection,
    channel: &ChannelName,
    writer: &WriterId,
    head: u64,
    after: u64,
) -> Result<bool, StoreError> {
    if head.saturating_sub(after) <= LIST_FROM_RECORDS {
        return Ok(false);
    }
    let name = channel.to_string();
    let log: i64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(length(body)), 0) FROM batch WHERE channel = ?1 AND writer = ?2 AND first_seq > ?3",
        )?
        .query_row(params![name, writer.0, after.cast_signed()], |row| row.get(0))?;
    let list: i64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(length(item.id) + ?2 + coalesce(length(item.value), length(document.state), 0)), 0)
             FROM item LEFT JOIN document ON document.uid = item.id WHERE item.channel = ?1",
        )?
        .query_row(params![name, LISTED_ITEM_BYTES], |row| row.get(0))?;
    Ok(list < log)
}

fn damaged(channel: &ChannelName, id: &str) -> StoreError {
    StoreError::Row(DamagedRow::Item { channel: channel.clone(), id: id.to_owned() })
}

/// The records that would make a channel what it is, at the place of the newest record of each item. That may be one of an earlier writer,
/// whose numbers go further than this one's: in the list it stands before `head`, or what is said after the list would not count.
fn standing(
    connection: &Connection,
    identity: &WriterIdentity,
    channel: &ChannelName,
    head: u64,
) -> Result<Vec<(Record, u64)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT item.id, item.seq, item.time, item.value, document.epoch, document.state
         FROM item LEFT JOIN document ON document.uid = item.id WHERE item.channel = ?1 ORDER BY item.id",
    )?;
    let mut rows = statement.query([channel.to_string()])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        let id = ItemId::parse(&text).map_err(|_invalid| damaged(channel, &text))?;
        let time = row.get::<_, i64>(2)?.cast_unsigned();
        let value: Option<Vec<u8>> = row.get(3)?;
        let document: Option<(i64, Vec<u8>)> = match row.get::<_, Option<i64>>(4)? {
            Some(epoch) => Some((epoch, row.get(5)?)),
            None => None,
        };
        let (draft, epoch) = match (value, document) {
            (Some(value), _) => (Draft::register(id, value, "", time), 0),
            (None, Some((epoch, state))) => {
                (Draft::snapshot(id, epoch.cast_unsigned(), state, "", time), epoch.cast_unsigned())
            }
            (None, None) => return Err(damaged(channel, &text)),
        };
        let seq = row.get::<_, i64>(1)?.cast_unsigned().min(head);
        let record = Record { channel: channel.clone(), writer: identity.id(), seq, prev: GENESIS, draft };
        records.push((record, epoch));
    }
    Ok(records)
}

/// Removals of deleted objects that the channel held, the newest.
fn buried(
    connection: &Connection,
    identity: &WriterIdentity,
    channel: &ChannelName,
    head: u64,
) -> Result<Vec<Record>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT id, seq, time FROM tombstone WHERE channel = ?1 ORDER BY seq DESC LIMIT ?2")?;
    let rows = statement.query_map(params![channel.to_string(), TOMBSTONES_LISTED_MAX], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    })?;
    let mut records = Vec::new();
    for row in rows {
        let (id, seq, time) = row?;
        let Ok(id) = ItemId::parse(&id) else { continue };
        records.push(Record {
            channel: channel.clone(),
            writer: identity.id(),
            seq: seq.cast_unsigned().min(head),
            prev: GENESIS,
            draft: Draft::remove(id, "", time.cast_unsigned()),
        });
    }
    Ok(records)
}

/// Whether a log is kept from its first record on, wherever that stands: that of a writer who followed another begins beyond 1.
fn is_whole(connection: &Connection, channel: &ChannelName, writer: &WriterId, floor: u64) -> Result<bool, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT body FROM batch WHERE channel = ?1 AND writer = ?2 AND first_seq = ?3")?;
    let first = params![channel.to_string(), writer.0, floor.saturating_add(1).cast_signed()];
    let body: Option<Vec<u8>> = statement.query_row(first, |row| row.get(0)).optional()?;
    let first = body.and_then(|body| Batch::decode(&Bytes::from(body)).ok());
    Ok(first.is_some_and(|first| first.prev == GENESIS))
}

fn is_hub(connection: &Connection, writer: &WriterId) -> Result<bool, StoreError> {
    let mut statement = connection.prepare_cached("SELECT hub FROM writer WHERE id = ?1")?;
    Ok(statement.query_row([writer.0], |row| row.get(0)).optional()?.unwrap_or(false))
}

/// Where the present writer's log of a channel stands; of one without a record, where its first will follow.
fn own_head(connection: &Connection, identity: &WriterIdentity, channel: &ChannelName) -> Result<Head, StoreError> {
    if let Some((_, head)) = floor_and_head(connection, channel, &identity.id())? {
        return Ok(head);
    }
    let seq = hub_ends(connection)?.get(channel).copied().unwrap_or(0);
    Ok(Head { seq, hash: GENESIS })
}

/// The highest record of any hub's log, by channel.
pub(super) fn hub_ends(connection: &Connection) -> Result<BTreeMap<ChannelName, u64>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT head.channel, max(head.seq) FROM head JOIN writer ON writer.id = head.writer WHERE writer.hub GROUP BY head.channel",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut ends = BTreeMap::new();
    for row in rows {
        let (channel, seq) = row?;
        if let Ok(channel) = ChannelName::parse(&channel) {
            ends.insert(channel, seq.cast_unsigned());
        }
    }
    Ok(ends)
}

/// The logs of the hub's earlier writers: their effects are in the items, or gone on purpose.
fn earlier_writers(
    connection: &Connection,
    identity: &WriterIdentity,
    channel: &ChannelName,
) -> Result<BTreeMap<WriterId, Head>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT head.writer, head.seq, head.hash FROM head JOIN writer ON writer.id = head.writer
         WHERE head.channel = ?1 AND writer.hub AND head.writer <> ?2",
    )?;
    let rows = statement.query_map(params![channel.to_string(), identity.id().0], |row| {
        Ok((WriterId(row.get(0)?), Head { seq: row.get::<_, i64>(1)?.cast_unsigned(), hash: row.get(2)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn floor_and_head(
    connection: &Connection,
    channel: &ChannelName,
    writer: &WriterId,
) -> Result<Option<(u64, Head)>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT floor, seq, hash FROM head WHERE channel = ?1 AND writer = ?2")?;
    let row = statement.query_row(params![channel.to_string(), writer.0], |row| {
        let head = Head { seq: row.get::<_, i64>(1)?.cast_unsigned(), hash: row.get(2)? };
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), head))
    });
    Ok(row.optional()?)
}

/// Where one writer's logs stand, by channel.
pub(super) fn heads_of(connection: &Connection, writer: &WriterId) -> Result<BTreeMap<ChannelName, Head>, StoreError> {
    let mut statement = connection.prepare("SELECT channel, seq, hash FROM head WHERE writer = ?1")?;
    let mut rows = statement.query([writer.0])?;
    let mut heads = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let Ok(channel) = ChannelName::parse(&row.get::<_, String>(0)?) else { continue };
        heads.insert(channel, Head { seq: row.get::<_, i64>(1)?.cast_unsigned(), hash: row.get(2)? });
    }
    Ok(heads)
}
