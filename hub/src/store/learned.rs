//! What devices gave back of the logs of this hub's earlier lives: verified records and lists, folded per channel and item.
//!
//! Kept apart from what the hub says itself until it is adopted as a whole ([`crate::learn`]). A removal does not forget the
//! content before it: an object that left a channel is not an object that was deleted.

mod branches;

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_sync::channel::{Applied, ChannelName, GENESIS, Head, Item, ItemId, ItemKind, Version, WriterId};
use flotilla_sync::list::VerifiedSnapshot;
use flotilla_sync::log::VerifiedBatch;
use flotilla_sync::record::{Draft, Record, RecordKind};
use rusqlite::{Connection, OptionalExtension, params};

use super::life;
use super::writer::Moved;
use super::{Batch, StoreError};

/// Body of a removal that says: the object was deleted.
pub(crate) const DELETED: &[u8] = b"deleted";

/// Deleted objects remembered of a channel; pruned now and then.
const TOMBSTONES_MAX: i64 = 1024;
const TOMBSTONES_PRUNED_EVERY: u64 = 64;

/// One item of one channel, as the devices know it from an earlier life of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Learned {
    pub(crate) channel: String,
    pub(crate) id: String,
    pub(crate) fate: Fate,
    /// The record that removed it; 0 while it stands.
    pub(crate) removed_seq: u64,
    /// The newest content, if any is known: of something withdrawn, what it was last.
    pub(crate) item: Option<Item>,
    /// Some of it was said on another branch of a log: no log that other readers have says it.
    pub(crate) branched: bool,
}

/// Where records of an earlier life stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// They follow what is kept, and are kept for others to read.
    Kept,
    /// On another branch of the log.
    Branch,
    /// Before what was taken in here, perhaps on another branch: nobody can tell any more. What was withdrawn since may be among it, and
    /// unlike documents registers leave no trace by which that would be known.
    Forgotten,
}

/// Whether an item is still in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Live,
    /// It left the channel; that its object lives on is certain (the removal said nothing of a deletion) or not (a list that does
    /// not name it says no more).
    Withdrawn {
        certain: bool,
    },
    /// Its object was deleted.
    Deleted,
}

/// Node, subject and body of an observation.
pub(crate) type Deferred = (String, String, Option<Vec<u8>>);

/// A row of the table.
#[derive(Debug, Default)]
struct Row {
    state: Option<Item>,
    removed: Option<Item>,
    deleted: bool,
    listed: bool,
    branched: bool,
}

impl Batch<'_> {
    /// Folds records of an earlier life in, whether they follow what is here or are of another branch.
    pub(crate) fn learn(
        &mut self,
        verified: &VerifiedBatch,
        line: Line,
        set_aside: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let channel = &verified.batch().channel;
        for record in verified.records() {
            let id = &record.draft.item;
            if line == Line::Forgotten && id.as_str().contains('/') {
                continue;
            }
            let mut row = self.learned_row(channel, id)?;
            if row.deleted && line != Line::Kept {
                // For good: another branch brings nothing of it back.
                continue;
            }
            match row.fold(record, verified.incarnation()) {
                Ok(true) => {
                    row.branched |= line != Line::Kept;
                    self.put_learned(channel, id, &row)?;
                }
                Ok(false) => {}
                Err(why) => set_aside.push(why),
            }
        }
        Ok(())
    }

    /// Folds a list of an earlier life in: what it names, and what it covers and does not name. Of the list of a branch documents alone are
    /// taken: which of the registers that it names were withdrawn since, here or there, it does not say.
    pub(crate) fn learn_list(
        &mut self,
        verified: &VerifiedSnapshot,
        line: Line,
        set_aside: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let snapshot = verified.snapshot();
        let (list, channel) = (&snapshot.list, &snapshot.list.channel);
        let branched = line != Line::Kept;
        for (entry, state) in list.items.iter().zip(&snapshot.states) {
            if branched && entry.item.as_str().contains('/') {
                continue;
            }
            let mut row = self.learned_row(channel, &entry.item)?;
            row.branched |= branched;
            match Item::decode(state).map_err(|error| error.to_string()).and_then(|state| row.adopt(&entry.item, state))
            {
                Ok(()) => self.put_learned(channel, &entry.item, &row)?,
                Err(why) => set_aside.push(why),
            }
        }
        let covers = verified.covers();
        let named: BTreeSet<&str> = list.items.iter().map(|entry| entry.item.as_str()).collect();
        for id in self.known_in(channel)? {
            let Ok(id) = ItemId::parse(&id) else { continue };
            if named.contains(id.as_str()) {
                continue;
            }
            let mut row = self.learned_row(channel, &id)?;
            let covered = row.state.as_ref().is_some_and(|item| item.is_covered(&covers));
            if row.removed.is_none() && covered {
                row.removed = removal(channel, list.writer, list.head.seq, &id, verified.incarnation());
                row.listed = true;
                row.branched |= branched;
                self.put_learned(channel, &id, &row)?;
            }
        }
        for (writer, head) in &covers {
            if self.device_head(channel, writer)?.seq < head.seq && !self.is_present_writer(writer)? {
                self.put_hub_head(channel, *writer, *head)?;
            }
        }
        Ok(())
    }

    /// Takes what a channel holds of an item for learned: its object is to be made again from it. `false` if it cannot be read.
    pub(super) fn learn_own(&mut self, channel: &ChannelName, id: &ItemId) -> Result<bool, StoreError> {
        let Some(state) = self.own_item(channel, id)? else { return Ok(false) };
        self.put_learned(channel, id, &Row { state: Some(state), ..Row::default() })?;
        Ok(true)
    }

    /// Everything learned, in order.
    pub(crate) fn learned(&self) -> Result<Vec<Learned>, StoreError> {
        let mut statement = self.transaction.prepare(
            "SELECT channel, id, state, removed, deleted, listed, branched FROM learned ORDER BY channel, id",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, read(row, 2)?)))?;
        let mut learned = Vec::new();
        for row in rows {
            let (channel, id, row): (String, String, Row) = row?;
            let fate = match (&row.removed, row.deleted, row.listed) {
                (None, ..) => Fate::Live,
                (Some(_), true, _) => Fate::Deleted,
                (Some(_), false, listed) => Fate::Withdrawn { certain: !listed },
            };
            let removed_seq = row.removed.as_ref().and_then(Item::removed).map_or(0, |version| version.seq);
            let (item, branched) = (row.state, row.branched);
            learned.push(Learned { channel, id, fate, removed_seq, item, branched });
        }
        Ok(learned)
    }

    pub(crate) fn has_learned(&self) -> Result<bool, StoreError> {
        Ok(self.transaction.prepare_cached("SELECT 1 FROM learned LIMIT 1")?.exists([])?)
    }

    pub(crate) fn lacks_learned_blobs(&self) -> Result<bool, StoreError> {
        lacks_blobs(self.transaction)
    }

    pub(crate) fn forget_learned(&mut self) -> Result<(), StoreError> {
        let mut statement =
            self.transaction.prepare("SELECT DISTINCT uid FROM blob_reference WHERE uid LIKE 'learned %'")?;
        let holders: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for holder in holders {
            self.put_document_blobs(&holder, &[], &[])?;
        }
        self.tell_learned()?;
        self.transaction.execute("DELETE FROM learned", [])?;
        Ok(())
    }

    /// Whoever was told to come back for a list is woken.
    fn tell_learned(&mut self) -> Result<(), StoreError> {
        let mut statement = self.transaction.prepare(
            "SELECT channel, writer, seq, hash FROM head WHERE channel IN (SELECT DISTINCT channel FROM learned)",
        )?;
        let rows = statement.query_map([], |row| {
            let head = Head { seq: row.get::<_, i64>(2)?.cast_unsigned(), hash: row.get(3)? };
            Ok((row.get::<_, String>(0)?, WriterId(row.get(1)?), head))
        })?;
        for row in rows {
            let (channel, writer, head) = row?;
            let Ok(channel) = ChannelName::parse(&channel) else { continue };
            self.moved.push(Moved { channel, writer, head: Some(head), batch: None });
        }
        Ok(())
    }

    /// Keeps an observation that came while the hub learns: what it speaks of may not be known yet.
    pub(crate) fn defer(&mut self, node: &str, subject: &str, body: Option<&[u8]>) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO deferred (node, subject, body) VALUES (?1, ?2, ?3)")?
            .execute(params![node, subject, body])?;
        Ok(())
    }

    /// Takes what was deferred: node, subject, body.
    pub(crate) fn take_deferred(&mut self) -> Result<Vec<Deferred>, StoreError> {
        let mut statement = self.transaction.prepare("SELECT node, subject, body FROM deferred")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let deferred = rows.collect::<Result<_, _>>()?;
        self.transaction.execute("DELETE FROM deferred", [])?;
        Ok(deferred)
    }

    /// Whether this is the writer the hub writes under now.
    pub(crate) fn is_present_writer(&self, writer: &WriterId) -> Result<bool, StoreError> {
        Ok(life::writer_of(self.transaction, self.incarnation())? == (self.incarnation(), *writer))
    }

    /// Stands at a head that a list of an earlier life named: records before it are not passed on.
    fn put_hub_head(&mut self, channel: &ChannelName, writer: WriterId, head: Head) -> Result<(), StoreError> {
        self.put_device_head(channel, writer, head)
    }

    /// Keeps a batch of an earlier life, for devices that lack it.
    pub(crate) fn keep_hub_batch(&mut self, verified: &VerifiedBatch) -> Result<(), StoreError> {
        let batch = verified.batch();
        let count = verified.records().len() as u64;
        super::channels::store_batch(self.transaction, batch, verified.head(), count, self.now)?;
        self.moved.push(Moved {
            channel: batch.channel.clone(),
            writer: batch.writer,
            head: Some(verified.head()),
            batch: None,
        });
        Ok(())
    }

    /// Remembers that a channel's object was deleted, for its lists.
    pub(crate) fn bury(&mut self, channel: &str, id: &str, seq: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO tombstone (channel, id, seq, time) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![channel, id, seq.cast_signed(), self.now.0.cast_signed()])?;
        if seq.is_multiple_of(TOMBSTONES_PRUNED_EVERY) {
            self.transaction
                .prepare_cached(
                    "DELETE FROM tombstone WHERE channel = ?1 AND id NOT IN
                     (SELECT id FROM tombstone WHERE channel = ?1 ORDER BY seq DESC LIMIT ?2)",
                )?
                .execute(params![channel, TOMBSTONES_MAX])?;
        }
        Ok(())
    }

    /// Notes that a document left a channel while its object lives on.
    pub(crate) fn note_withdrawn(&mut self, channel: &str, id: &str) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO withdrawn (id, channel) VALUES (?1, ?2)")?
            .execute([id, channel])?;
        Ok(())
    }

    /// A document is in a channel again.
    pub(super) fn note_returned(&mut self, channel: &str, id: &str) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("DELETE FROM withdrawn WHERE id = ?1 AND channel = ?2")?
            .execute([id, channel])?;
        Ok(())
    }

    /// Channels that a document has left; forgets them.
    pub(super) fn take_withdrawn(&mut self, id: &str) -> Result<Vec<String>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT channel FROM withdrawn WHERE id = ?1")?;
        let channels: Vec<String> = statement.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if !channels.is_empty() {
            self.transaction.prepare_cached("DELETE FROM withdrawn WHERE id = ?1")?.execute([id])?;
        }
        Ok(channels)
    }

    /// Whether a writer is a hub's; `None` for one that is not known.
    pub(crate) fn is_hub_writer(&self, writer: &WriterId) -> Result<Option<bool>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT hub FROM writer WHERE id = ?1")?;
        Ok(statement.query_row([writer.0], |row| row.get(0)).optional()?)
    }

    /// Ids that a channel held, as far as is known here.
    fn known_in(&self, channel: &ChannelName) -> Result<BTreeSet<String>, StoreError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT id FROM item WHERE channel = ?1 UNION SELECT id FROM learned WHERE channel = ?1")?;
        let rows = statement.query_map([channel.to_string()], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What is learned of an item so far; at first what the hub's own tables say of it.
    fn learned_row(&self, channel: &ChannelName, id: &ItemId) -> Result<Row, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT state, removed, deleted, listed, branched FROM learned WHERE channel = ?1 AND id = ?2",
        )?;
        let known = statement.query_row(params![channel.to_string(), id.as_str()], |row| read(row, 0)).optional()?;
        match known {
            Some(row) => Ok(row),
            None => {
                let state = self.own_item(channel, id)?;
                let removed = if state.is_none() { self.buried(channel, id)? } else { None };
                Ok(Row { state, deleted: removed.is_some(), removed, ..Row::default() })
            }
        }
    }

    /// The removal of an object that is known to be deleted.
    fn buried(&self, channel: &ChannelName, id: &ItemId) -> Result<Option<Item>, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT seq FROM tombstone WHERE channel = ?1 AND id = ?2")?;
        let seq: Option<i64> = statement.query_row([&channel.to_string(), id.as_str()], |row| row.get(0)).optional()?;
        let Some(seq) = seq else { return Ok(None) };
        // Objects are deleted for good: whoever said it last, nothing said before or since brings this uid back.
        let (_, writer) = life::writer_of(self.transaction, self.incarnation())?;
        Ok(removal(channel, writer, seq.cast_unsigned(), id, u64::MAX >> 1))
    }

    /// An item as the hub's own tables have it, dated by the log that said it.
    fn own_item(&self, channel: &ChannelName, id: &ItemId) -> Result<Option<Item>, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT item.seq, item.time, item.value, document.epoch, document.state, item.life
             FROM item LEFT JOIN document ON document.uid = item.id WHERE item.channel = ?1 AND item.id = ?2",
        )?;
        type Stored = (i64, i64, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>, i64);
        let row: Option<Stored> = statement
            .query_row(params![channel.to_string(), id.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            })
            .optional()?;
        let Some((seq, time, value, epoch, state, life)) = row else { return Ok(None) };
        let time = time.cast_unsigned();
        let draft = match (value, epoch, state) {
            (Some(value), ..) => Draft::register(id.clone(), value, "", time),
            (None, Some(epoch), Some(state)) => Draft::snapshot(id.clone(), epoch.cast_unsigned(), state, "", time),
            _ => return Ok(None),
        };
        let (incarnation, writer) = life::writer_of(self.transaction, life.cast_unsigned())?;
        let record = Record { channel: channel.clone(), writer, seq: seq.cast_unsigned(), prev: GENESIS, draft };
        Ok(match Item::apply(None, &record, incarnation) {
            Ok(Applied::Changed(item) | Applied::Waiting(item)) => Some(item),
            Ok(Applied::Unchanged) => None,
            Err(error) => {
                tracing::error!(%channel, item = %id, %error, "a stored item is damaged; what devices hold of it counts");
                None
            }
        })
    }

    fn put_learned(&mut self, channel: &ChannelName, id: &ItemId, row: &Row) -> Result<(), StoreError> {
        if let Some(ItemKind::Document(document)) = row.state.as_ref().map(|item| &item.kind)
            && !document.blobs.is_empty()
        {
            self.put_document_blobs(&blob_holder(channel, id), &[], &document.blobs)?;
        }
        let encoded = |item: &Option<Item>| item.as_ref().map(|item| item.encode().to_vec());
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO learned (channel, id, state, removed, deleted, listed, branched)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                channel.to_string(),
                id.as_str(),
                encoded(&row.state),
                encoded(&row.removed),
                row.deleted,
                row.listed,
                row.branched
            ])?;
        Ok(())
    }
}

impl Row {
    /// Takes a record in; `false` if it says nothing new.
    fn fold(&mut self, record: &Record, incarnation: u64) -> Result<bool, String> {
        let id = &record.draft.item;
        if record.draft.kind == RecordKind::Remove {
            let deleted = record.draft.body.inline().is_some_and(|body| &body[..] == DELETED);
            let removed = removal(&record.channel, record.writer, record.seq, id, incarnation);
            return Ok(self.remove(removed, deleted));
        }
        match Item::apply(self.state.as_ref(), record, incarnation).map_err(|error| error.to_string())? {
            Applied::Changed(item) | Applied::Waiting(item) => {
                self.state = Some(item);
                self.revive();
                Ok(true)
            }
            Applied::Unchanged => Ok(false),
        }
    }

    /// Joins the state that a list names.
    fn adopt(&mut self, id: &ItemId, state: Item) -> Result<(), String> {
        if state.removed().is_some() {
            self.remove(Some(state), true);
            return Ok(());
        }
        match Item::adopt(self.state.as_ref(), id, state).map_err(|error| error.to_string())? {
            Applied::Changed(item) | Applied::Waiting(item) => self.state = Some(item),
            Applied::Unchanged => {}
        }
        self.revive();
        Ok(())
    }

    /// Takes a removal in if nothing newer is known.
    fn remove(&mut self, removed: Option<Item>, deleted: bool) -> bool {
        let coming = removed.as_ref().and_then(Item::removed);
        let known = self.removed.as_ref().and_then(Item::removed);
        if coming < known || (coming == known && !deleted) || self.made() > coming {
            return false;
        }
        self.removed = removed;
        self.deleted |= deleted;
        self.listed = false;
        true
    }

    /// Content that was stated after a removal stands.
    fn revive(&mut self) {
        if self.removed.as_ref().and_then(Item::removed) < self.made() {
            (self.removed, self.deleted, self.listed) = (None, false, false);
        }
    }

    /// When the content was stated as a whole.
    fn made(&self) -> Option<Version> {
        match self.state.as_ref().map(|item| &item.kind) {
            Some(ItemKind::Document(document)) => Some(document.created),
            Some(ItemKind::Register(register)) => Some(register.version),
            _ => None,
        }
    }
}

/// A removed item, as a record of that log makes it.
fn removal(channel: &ChannelName, writer: WriterId, seq: u64, id: &ItemId, incarnation: u64) -> Option<Item> {
    let draft = Draft::remove(id.clone(), "", 0);
    let record = Record { channel: channel.clone(), writer, seq, prev: GENESIS, draft };
    match Item::apply(None, &record, incarnation) {
        Ok(Applied::Changed(item)) => Some(item),
        _ => None,
    }
}

/// A row from its column on; content that cannot be read counts as absent.
fn read(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Row> {
    let item = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| Item::decode(&Bytes::from(bytes)).ok());
    Ok(Row {
        state: item(row.get(column)?),
        removed: item(row.get(column + 1)?),
        deleted: row.get(column + 2)?,
        listed: row.get(column + 3)?,
        branched: row.get(column + 4)?,
    })
}

/// Whether something of a channel is learned and not taken in yet.
pub(super) fn is_pending(connection: &Connection, channel: &ChannelName) -> Result<bool, StoreError> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM learned WHERE channel = ?1 LIMIT 1")?;
    Ok(statement.exists([channel.to_string()])?)
}

/// Whether large values that learned documents name are not here as a whole. Of what was removed since, no device may have them any
/// more, and nobody waits for them.
pub(super) fn lacks_blobs(connection: &Connection) -> Result<bool, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM blob JOIN blob_reference USING (hash)
         JOIN learned ON blob_reference.uid = 'learned ' || learned.channel || ' ' || learned.id
         WHERE blob.whole = 0 AND learned.removed IS NULL LIMIT 1",
    )?;
    Ok(statement.exists([])?)
}

/// Who names the large values of a learned document until it is adopted.
fn blob_holder(channel: &ChannelName, id: &ItemId) -> String {
    format!("learned {channel} {id}")
}
