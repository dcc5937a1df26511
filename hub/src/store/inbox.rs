//! What devices wrote and saw: the tables behind the fleet door's ingestion.

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, Head, Item, ItemId, Version, WriterId};
use flotilla_sync::identity::NodeName;
use flotilla_sync::identity::writer::{WriterChain, WriterSubject};
use flotilla_sync::log::VerifiedBatch;
use flotilla_sync::observation::Clock;
use rusqlite::{OptionalExtension, Row, params};

use super::writer::Moved;
use super::{Batch, StoreError};

/// Subjects whose newest clock is remembered, per device; the longest unheard are forgotten first.
const SUBJECTS_MAX: u64 = 4096;
/// So many more may be there until the oldest of them go together.
const SUBJECTS_BEYOND_MAX: u64 = 256;
/// Writers of one device that are known, each with its log; the oldest are forgotten.
const WRITERS_KEPT_MAX: i64 = 256;
/// Forgotten in one go: a database from before this bound may have many.
const WRITERS_FORGOTTEN_MAX: i64 = 64;
/// Removed items remembered of a device's own channel.
const REMOVED_ITEMS_MAX: usize = 256;
/// Records kept of each writer of a device, halved when there are more.
const DEVICE_RECORDS_MAX: u64 = 256;
const DEVICE_LOG_BYTES_MAX: u64 = 256 * 1024;

impl Batch<'_> {
    /// Knows a writer from now on. An honest device has a new one when its database was lost or put back.
    ///
    /// A device's certificate for a key does not show that it has the key: a hub's takes its place. Answers whether it is known now as
    /// what it says it is.
    pub(crate) fn put_writer(&mut self, chain: &WriterChain) -> Result<bool, StoreError> {
        match (&chain.subject, self.is_hub_writer(&chain.id)?) {
            (WriterSubject::Hub, Some(true)) => {}
            (WriterSubject::Device(_), Some(true)) => return Ok(false),
            (WriterSubject::Hub, Some(false)) => {
                self.forget_writer(chain.id)?;
                self.insert_writer(chain)?;
            }
            (_, None) => self.insert_writer(chain)?,
            (WriterSubject::Device(node), Some(false)) => match self.device_of_writer(&chain.id)? {
                Some(known) => return Ok(known == node.as_str()),
                // Its row was damaged: it is counted again.
                None => self.count_writer(node, chain.id)?,
            },
        }
        Ok(true)
    }

    fn insert_writer(&mut self, chain: &WriterChain) -> Result<(), StoreError> {
        let hub = chain.subject == WriterSubject::Hub;
        self.transaction
            .prepare_cached("INSERT INTO writer (id, hub, chain) VALUES (?1, ?2, ?3)")?
            .execute(params![chain.id.0, hub, chain.encode()])?;
        if let WriterSubject::Device(node) = &chain.subject {
            self.count_writer(node, chain.id)?;
        }
        Ok(())
    }

    fn count_writer(&mut self, node: &NodeName, writer: WriterId) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT INTO device_writer (node, writer) VALUES (?1, ?2)")?
            .execute(params![node.as_str(), writer.0])?;
        self.forget_writers(node)
    }

    fn device_of_writer(&self, writer: &WriterId) -> Result<Option<String>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT node FROM device_writer WHERE writer = ?1")?;
        Ok(statement.query_row([writer.0], |row| row.get(0)).optional()?)
    }

    /// Of very many writers of a device the oldest go. What they said is in the items.
    fn forget_writers(&mut self, node: &NodeName) -> Result<(), StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT writer FROM device_writer WHERE node = ?1 ORDER BY number DESC LIMIT ?2 OFFSET ?3",
        )?;
        let bounds = params![node.as_str(), WRITERS_FORGOTTEN_MAX, WRITERS_KEPT_MAX];
        let rows = statement.query_map(bounds, |row| Ok(WriterId(row.get(0)?)))?;
        for writer in rows.collect::<Result<Vec<_>, _>>()? {
            self.forget_writer(writer)?;
        }
        Ok(())
    }

    /// Forgets a device's writer with what is kept of its log.
    fn forget_writer(&mut self, writer: WriterId) -> Result<(), StoreError> {
        let node = self.device_of_writer(&writer)?;
        self.transaction.prepare_cached("DELETE FROM device_writer WHERE writer = ?1")?.execute([writer.0])?;
        self.transaction.prepare_cached("DELETE FROM writer WHERE id = ?1")?.execute([writer.0])?;
        let Some(Ok(node)) = node.as_deref().map(NodeName::parse) else { return Ok(()) };
        let channel = ChannelName::Device(node);
        for table in ["head", "batch"] {
            self.transaction
                .prepare_cached(&format!("DELETE FROM {table} WHERE channel = ?1 AND writer = ?2"))?
                .execute(params![channel.to_string(), writer.0])?;
        }
        self.moved.push(Moved { channel, writer, head: None, batch: None });
        Ok(())
    }

    /// Where a device's log stands here.
    pub(crate) fn device_head(&self, channel: &ChannelName, writer: &WriterId) -> Result<Head, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT seq, hash FROM head WHERE channel = ?1 AND writer = ?2")?;
        let head = statement
            .query_row(params![channel.to_string(), writer.0], |row| {
                Ok(Head { seq: row.get::<_, i64>(0)?.cast_unsigned(), hash: row.get(1)? })
            })
            .optional()?;
        Ok(head.unwrap_or(Head::START))
    }

    /// The batch of a log that begins with this record, if it is kept, after its writer's certificate.
    pub(crate) fn batch_at(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        first_seq: u64,
    ) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT writer.chain, batch.body FROM batch JOIN writer ON writer.id = batch.writer
             WHERE batch.channel = ?1 AND batch.writer = ?2 AND batch.first_seq = ?3",
        )?;
        let found = statement
            .query_row(params![channel.to_string(), writer.0, first_seq.cast_signed()], |row| {
                Ok((Bytes::from(row.get::<_, Vec<u8>>(0)?), Bytes::from(row.get::<_, Vec<u8>>(1)?)))
            })
            .optional()?;
        Ok(found)
    }

    /// Stands at a head that a device's list named; what was kept of the log before it goes.
    pub(crate) fn put_device_head(
        &mut self,
        channel: &ChannelName,
        writer: WriterId,
        head: Head,
    ) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO head (channel, writer, seq, hash, floor, records, bytes) VALUES (?1, ?2, ?3, ?4, ?3, 0, 0)
                 ON CONFLICT DO UPDATE SET seq = excluded.seq, hash = excluded.hash, floor = excluded.floor, records = 0, bytes = 0",
            )?
            .execute(params![channel.to_string(), writer.0, head.seq.cast_signed(), head.hash])?;
        self.transaction
            .prepare_cached("DELETE FROM batch WHERE channel = ?1 AND writer = ?2")?
            .execute(params![channel.to_string(), writer.0])?;
        self.moved.push(Moved { channel: channel.clone(), writer, head: Some(head), batch: None });
        Ok(())
    }

    /// Keeps a batch of a device's log as the device signed it, up to a bound: a device that comes back with an older copy of its
    /// database, or as one of two clones, reads here what it lacks.
    pub(crate) fn put_device_batch(&mut self, verified: &VerifiedBatch) -> Result<(), StoreError> {
        let batch = verified.batch();
        let head = verified.head();
        let count = verified.records().len() as u64;
        super::channels::store_batch(self.transaction, batch, head, count, self.now)?;
        let moved = [batch.channel.clone()];
        super::channels::truncate(self.transaction, &batch.writer, &moved, DEVICE_RECORDS_MAX, DEVICE_LOG_BYTES_MAX)?;
        self.moved.push(Moved { channel: batch.channel.clone(), writer: batch.writer, head: Some(head), batch: None });
        Ok(())
    }

    /// An item of a device's own; one that cannot be read any more counts as absent.
    pub(crate) fn device_item(&self, channel: &ChannelName, id: &ItemId) -> Result<Option<Item>, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT state FROM device_item WHERE channel = ?1 AND id = ?2")?;
        let state: Option<Vec<u8>> =
            statement.query_row(params![channel.to_string(), id.as_str()], |row| row.get(0)).optional()?;
        Ok(state.and_then(|state| {
            Item::decode(&Bytes::from(state))
                .inspect_err(
                    |error| tracing::error!(%channel, item = %id, %error, "a stored item is damaged; it is set aside"),
                )
                .ok()
        }))
    }

    pub(crate) fn put_device_item(
        &mut self,
        channel: &ChannelName,
        id: &ItemId,
        item: &Item,
    ) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO device_item (channel, id, state) VALUES (?1, ?2, ?3)")?
            .execute(params![channel.to_string(), id.as_str(), &item.encode()[..]])?;
        Ok(())
    }

    pub(crate) fn device_items(&self, channel: &ChannelName) -> Result<Vec<(ItemId, Item)>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT id, state FROM device_item WHERE channel = ?1")?;
        let rows = statement
            .query_map([channel.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut items = Vec::new();
        for row in rows {
            let (id, state) = row?;
            if let (Ok(id), Ok(item)) = (ItemId::parse(&id), Item::decode(&Bytes::from(state))) {
                items.push((id, item));
            }
        }
        Ok(items)
    }

    /// How many items of a device's own are kept, and their bytes.
    pub(crate) fn device_items_size(&self, channel: &ChannelName) -> Result<(usize, usize), StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT count(*), coalesce(sum(length(id) + length(state)), 0) FROM device_item WHERE channel = ?1",
        )?;
        let size =
            statement.query_row([channel.to_string()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let number = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok((number(size.0), number(size.1)))
    }

    /// Forgets the oldest of a device's removed items when there are too many. A removed item only has to outlast older records of
    /// other branches of the device's log, which are rare and young.
    pub(crate) fn prune_removed_items(&mut self, channel: &ChannelName) -> Result<(), StoreError> {
        let mut removed: Vec<(Version, ItemId)> =
            self.device_items(channel)?.into_iter().filter_map(|(id, item)| Some((item.removed()?, id))).collect();
        removed.sort();
        let surplus = removed.len().saturating_sub(REMOVED_ITEMS_MAX);
        for (_, id) in removed.into_iter().take(surplus) {
            self.transaction
                .prepare_cached("DELETE FROM device_item WHERE channel = ?1 AND id = ?2")?
                .execute(params![channel.to_string(), id.as_str()])?;
        }
        Ok(())
    }

    /// The clock of the observation last taken of a subject.
    pub(crate) fn observation_clock(&self, node: &str, subject: &str) -> Result<Option<Clock>, StoreError> {
        let mut statement = self
            .transaction
            .prepare_cached("SELECT incarnation, boot, seq FROM observation WHERE node = ?1 AND subject = ?2")?;
        Ok(statement.query_row([node, subject], clock_of).optional()?)
    }

    /// Whether an observation is newer than the one last taken of its subject; remembers it if so.
    pub(crate) fn is_news(
        &mut self,
        node: &str,
        subject: &str,
        clock: Clock,
        time_ms: u64,
    ) -> Result<bool, StoreError> {
        let known = self.observation_clock(node, subject)?;
        if known.is_some_and(|known| known >= clock) {
            return Ok(false);
        }
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO observation (node, subject, incarnation, boot, seq, time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                node,
                subject,
                clock.incarnation.cast_signed(),
                clock.boot.cast_signed(),
                clock.seq.cast_signed(),
                time_ms.cast_signed()
            ])?;
        let count = |batch: &Self| -> Result<u64, StoreError> {
            let mut counted = batch.transaction.prepare_cached("SELECT count(*) FROM observation WHERE node = ?1")?;
            Ok(counted.query_row([node], |row| row.get::<_, i64>(0))?.unsigned_abs())
        };
        if known.is_none() && count(self)? > SUBJECTS_MAX + SUBJECTS_BEYOND_MAX {
            self.transaction
                .prepare_cached(
                    "DELETE FROM observation WHERE node = ?1 AND subject NOT IN (SELECT subject FROM observation
                     WHERE node = ?1 ORDER BY incarnation DESC, boot DESC, seq DESC LIMIT ?2)",
                )?
                .execute(params![node, SUBJECTS_MAX.cast_signed()])?;
        }
        Ok(true)
    }

    /// The manifest a workload's number was made from, as its document knows it.
    pub(crate) fn object_at_number(&self, uid: &str, number: &str) -> Result<Option<serde_json::Value>, StoreError> {
        let Some(stored) = super::documents::stored_document(self.transaction, uid)? else { return Ok(None) };
        let found = flotilla_sync::document::Document::load(&stored.state)
            .and_then(|document| document.object_at_number(number, &|hash| self.blob(hash)));
        found.map_err(|error| StoreError::Publish { what: format!("document {uid}"), why: error.to_string() })
    }

    /// Adds to the audit trail; beyond its bound the oldest go.
    pub(crate) fn audit(&mut self, entry: &AuditEntry<'_>, count_max: u64) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO audit (time, user, field_manager, verb, api_group, kind, namespace, name, result)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                self.now.0.cast_signed(),
                entry.user,
                entry.field_manager,
                entry.verb,
                entry.key.kind.group,
                entry.key.kind.name,
                entry.key.namespace,
                entry.key.name,
                entry.result
            ])?;
        let id = self.transaction.last_insert_rowid();
        if id % 256 == 0 {
            self.transaction
                .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
                .execute([id.saturating_sub(count_max.cast_signed())])?;
        }
        Ok(())
    }
}

/// One write, for the audit trail.
#[derive(Debug)]
pub(crate) struct AuditEntry<'a> {
    pub(crate) user: &'a str,
    pub(crate) field_manager: Option<&'a str>,
    pub(crate) verb: &'static str,
    pub(crate) key: &'a flotilla_manifests::object::ObjectKey,
    pub(crate) result: &'a str,
}

/// The first three columns.
pub(super) fn clock_of(row: &Row<'_>) -> rusqlite::Result<Clock> {
    Ok(Clock {
        incarnation: row.get::<_, i64>(0)?.cast_unsigned(),
        boot: row.get::<_, i64>(1)?.cast_unsigned(),
        seq: row.get::<_, i64>(2)?.cast_unsigned(),
    })
}
