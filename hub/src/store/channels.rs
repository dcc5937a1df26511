//! Writing what publication wants into the logs of the channels, in the transaction of the write that caused it.
//!
//! A job's records are drafts until the whole transaction is about to commit: then each channel's log is appended once, with one
//! signature. What a channel holds is known from the `item` table alone, so a job that is undone leaves nothing to repair here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_manifests::digest;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{ChannelName, Head, ItemId, WriterId};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::identity::{NodeName, seal};
use flotilla_sync::log::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, LogWriter};
use flotilla_sync::record::{Body, Draft, RECORD_BODY_BYTES_MAX};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::{Value, json};

use super::batch::Batch;
use super::documents::Edited;
use super::history::Event;
use super::learned::DELETED;
use super::writer::Moved;
use super::{StoreError, devices};
use crate::mint;
use crate::publish::content::{self, Content};
use crate::publish::{Channel, Item, Publication, Touched};
use flotilla_sync::planted::{self, Bug};

/// Room for what a record adds to its body.
const RECORD_OVERHEAD_BYTES: usize = 1024;

/// A row of the `item` table.
struct Row {
    id: String,
    digest: Vec<u8>,
}

impl Batch<'_> {
    /// Takes this job's events into the channels. Before the hub has its writer, nothing is published.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        let idle = self.events.is_empty() && self.rollouts_touched.workloads.is_empty() && self.resealed.is_empty();
        if self.working.log.is_none() || idle {
            return Ok(());
        }
        let Some(mut publication) = self.working.publication.take() else { return self.publish_all() };
        let mut touched = publication.touch(&self.working.index, &self.events, &self.rollouts_touched);
        for node in &self.resealed {
            publication.secrets_at(node, &mut touched);
        }
        let result = self.publish_places(&publication, touched);
        self.working.publication = Some(publication);
        result
    }

    /// Gives the hub its writer, and makes the channels hold what the objects want.
    pub(crate) fn start_publishing(&mut self, identity: WriterIdentity) -> Result<(), StoreError> {
        self.announce_writer(&identity)?;
        self.working.log = Some(self.log_of(identity)?);
        self.publish_all()
    }

    /// Compares every place with what is wanted there.
    pub(crate) fn publish_everything(&mut self) -> Result<(), StoreError> {
        if self.working.log.is_some() { self.publish_all() } else { Ok(()) }
    }

    fn publish_places(&mut self, publication: &Publication, touched: Touched) -> Result<(), StoreError> {
        let mut edited: BTreeMap<ObjectKey, Option<Edited>> = BTreeMap::new();
        // The template of a number is the document's state at the change that made the number: no template may be skipped,
        // wherever the document is or is not wanted yet.
        let workloads: BTreeSet<ObjectKey> = self.events.iter().filter_map(numbered).collect();
        for key in workloads {
            let document = self.edit_document(&key)?;
            edited.insert(key, document);
        }
        for (channel, item) in touched {
            if let Item::Document(key) = &item
                && !edited.contains_key(key)
            {
                let document = self.edit_document(key)?;
                edited.insert(key.clone(), document);
            }
            let wanted = publication.wants(&channel, &item);
            let content = wanted.then(|| content::of(&self.working.index, &channel, &item)).flatten();
            let document = match &item {
                Item::Document(key) => edited.get(key).and_then(Option::as_ref),
                _ => None,
            };
            self.place(&channel, &item, content, document)?;
        }
        let deleted = self.events.iter().filter(|event| event.change == super::Change::Deleted);
        for uid in deleted.map(|event| event.object.uid().to_owned()).collect::<Vec<_>>() {
            self.tell_deleted(&uid)?;
            self.forget_document(&uid)?;
        }
        Ok(())
    }

    /// Readers of channels that an object's document has left earlier are told of its deletion too.
    fn tell_deleted(&mut self, uid: &str) -> Result<(), StoreError> {
        for channel in self.take_withdrawn(uid)? {
            let mut draft = Draft::remove(item_id(uid)?, &self.author, self.now.0);
            draft.body = Body::Inline(Bytes::from_static(DELETED));
            let seq = self.draft(&channel, draft)?;
            self.bury(&channel, uid, seq)?;
        }
        Ok(())
    }

    /// Level-based: compares everything wanted with everything there, and repairs the difference. An item that cannot be made
    /// is named in the log and left as it is.
    pub(super) fn publish_all(&mut self) -> Result<(), StoreError> {
        let publication = Publication::full(&self.working.index);
        let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
        let mut touched: Touched = Touched::new();
        for (channel, item) in publication.wanted() {
            wanted.insert((channel.to_string(), item.to_string()));
            touched.insert((channel.clone(), item.clone()));
        }
        for place in touched {
            let shown = format!("{} {}", place.0, place.1);
            if let Err(error) = self.publish_places(&publication, Touched::from([place])) {
                tracing::error!(place = shown, %error, "an item cannot be published; its channel keeps the old one");
            }
        }
        let mut statement = self.transaction.prepare("SELECT channel, source, id FROM item")?;
        let rows: Vec<(String, String, String)> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
        for (channel, source, id) in rows {
            if !wanted.contains(&(channel.clone(), source.clone())) {
                self.withdraw(&channel, &source, &id)?;
            }
        }
        self.working.publication = Some(publication);
        Ok(())
    }

    /// Follows a log that was forked (a restored or cloned database wrote on under the same id): all that is wanted is stated
    /// again under a new writer, after everything its predecessor said.
    pub(crate) fn succeed_writer(&mut self, identity: WriterIdentity) -> Result<(), StoreError> {
        self.announce_writer(&identity)?;
        self.working.log = Some(self.log_of(identity)?);
        self.transaction.execute("UPDATE item SET digest = x''", [])?;
        self.publish_all()
    }

    fn place(
        &mut self,
        channel: &Channel,
        item: &Item,
        content: Option<Content>,
        document: Option<&Edited>,
    ) -> Result<(), StoreError> {
        let (name, source) = (channel.to_string(), item.to_string());
        let row = self.item_row(&name, &source)?;
        let Some(content) = content else {
            let Some(row) = row else { return Ok(()) };
            self.say_last(&name, &row, document)?;
            return self.withdraw(&name, &source, &row.id);
        };
        if let Some(old) = row.as_ref().filter(|row| row.id != content.id()) {
            self.withdraw(&name, &source, &old.id)?;
        }
        let row = row.filter(|row| row.id == content.id());
        let id = item_id(content.id())?;
        let (digest, draft, value) = match (content, document) {
            (Content::Document { .. }, Some(edited)) => {
                if row.as_ref().is_some_and(|row| row.digest == edited.digest) {
                    return Ok(());
                }
                let change = edited.change.as_ref().filter(|(before, _)| row.is_some_and(|row| row.digest == *before));
                let draft = match change {
                    Some((_, change)) => Draft::change(id, edited.epoch, change.clone(), &self.author, self.now.0),
                    None => Draft::snapshot(id, edited.epoch, edited.saved.clone(), &self.author, self.now.0),
                };
                (edited.digest.clone(), draft, None)
            }
            (Content::Document { .. }, None) => return Ok(()),
            (Content::Register { value, .. }, _) => {
                let digest = digest::of_value(&value).to_vec();
                if row.is_some_and(|row| row.digest == digest) {
                    return Ok(());
                }
                self.register(id, digest, &value)?
            }
            (Content::Secret { id: secret, uid, namespace, name, plain }, _) => {
                let Channel::Device(node) = channel else { return Ok(()) };
                let Some(device) = devices::read(self.transaction, node)? else { return Ok(()) };
                let mut covered = digest::of_value(&plain).to_vec();
                covered.extend(device.sealing.0);
                if row.is_some_and(|row| row.digest == covered) {
                    return Ok(());
                }
                let sealed = seal(&device.sealing, secret.as_bytes(), plain.to_string().as_bytes())
                    .map_err(|error| StoreError::Publish { what: secret.clone(), why: error.to_string() })?;
                let sealed = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sealed);
                let value = json!({"namespace": namespace, "name": name, "uid": uid, "sealed": sealed});
                self.register(id, covered, &value)?
            }
        };
        self.append(&name, &source, digest, draft, value)
    }

    fn register(
        &self,
        id: ItemId,
        digest: Vec<u8>,
        value: &Value,
    ) -> Result<(Vec<u8>, Draft, Option<Bytes>), StoreError> {
        let value = Bytes::from(value.to_string());
        let draft = Draft::register(id, value.clone(), &self.author, self.now.0);
        Ok((digest, draft, Some(value)))
    }

    /// Adds a record about an item to its channel's drafts, and remembers what the channel holds now.
    fn append(
        &mut self,
        channel: &str,
        source: &str,
        digest: Vec<u8>,
        draft: Draft,
        value: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let id = draft.item.to_string();
        if draft.body.inline().is_some_and(|body| body.len() > RECORD_BODY_BYTES_MAX) {
            let why = format!("it is larger than {RECORD_BODY_BYTES_MAX} bytes");
            return Err(StoreError::TooLarge { what: source.to_owned(), why });
        }
        let seq = self.draft(channel, draft)?;
        if value.is_none() {
            self.note_returned(channel, &id)?;
        }
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO item (channel, source, id, digest, seq, time, value, life)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                channel,
                source,
                id,
                digest,
                seq.cast_signed(),
                self.now.0.cast_signed(),
                value.as_deref(),
                self.working.incarnation.cast_signed()
            ])?;
        Ok(())
    }

    /// The edit because of which a document leaves a channel is said there before: a hub that learns from the channel's readers is to
    /// know it (a DaemonSet whose selector no longer fits anybody would come back otherwise).
    fn say_last(&mut self, channel: &str, row: &Row, document: Option<&Edited>) -> Result<(), StoreError> {
        let Some((edited, (before, change))) = document.and_then(|edited| Some((edited, edited.change.as_ref()?)))
        else {
            return Ok(());
        };
        if row.digest == *before {
            let draft = Draft::change(item_id(&row.id)?, edited.epoch, change.clone(), &self.author, self.now.0);
            self.draft(channel, draft)?;
        }
        Ok(())
    }

    fn withdraw(&mut self, channel: &str, source: &str, id: &str) -> Result<(), StoreError> {
        let mut draft = Draft::remove(item_id(id)?, &self.author, self.now.0);
        // Documents are named by uid: of one that is gone, whoever holds it learns that it was deleted, not only moved.
        let object = self.working.index.by_uid(id);
        let deleted = !id.contains('/') && object.is_none_or(|object| object.deletion_timestamp().is_some());
        if deleted {
            draft.body = Body::Inline(Bytes::from_static(DELETED));
        }
        let seq = self.draft(channel, draft)?;
        if deleted {
            self.bury(channel, id, seq)?;
        } else if !id.contains('/') {
            self.note_withdrawn(channel, id)?;
        }
        self.transaction
            .prepare_cached("DELETE FROM item WHERE channel = ?1 AND source = ?2")?
            .execute(params![channel, source])?;
        Ok(())
    }

    /// Ends what an earlier life of the hub placed on a device and this one knows nothing of, once: the device goes by its channel, and there
    /// nobody else would ever take the placement back.
    pub(crate) fn end_unknown_placement(&mut self, node: &NodeName, uid: &str) -> Result<(), StoreError> {
        let (channel, id) = (ChannelName::Device(node.clone()).to_string(), format!("placement/{uid}"));
        let known = "SELECT 1 FROM item WHERE channel = ?1 AND id = ?2
                     UNION ALL SELECT 1 FROM tombstone WHERE channel = ?1 AND id = ?2";
        let known = self.transaction.prepare_cached(known)?.exists([&channel, &id])?;
        // What devices have given back and nobody has taken in yet may explain it.
        if known || self.working.log.is_none() || self.has_learned()? {
            return Ok(());
        }
        let seq = self.draft(&channel, Draft::remove(item_id(&id)?, &self.author, self.now.0))?;
        self.bury(&channel, &id, seq)
    }

    /// Queues a record for its channel; answers the number it will have.
    fn draft(&mut self, channel: &str, draft: Draft) -> Result<u64, StoreError> {
        let name = channel_name(channel)?;
        let Some(log) = &self.working.log else {
            return Err(StoreError::Publish { what: channel.to_owned(), why: "the hub has no writer yet".into() });
        };
        let waiting = self.working.drafts.get(&name).map_or(0, Vec::len);
        let own = self.drafts.entry(name.clone()).or_default();
        own.push(draft);
        Ok(log.head(&name).seq + (waiting + own.len()) as u64)
    }

    fn item_row(&self, channel: &str, source: &str) -> Result<Option<Row>, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT id, digest FROM item WHERE channel = ?1 AND source = ?2")?;
        let row = statement.query_row([channel, source], |row| Ok(Row { id: row.get(0)?, digest: row.get(1)? }));
        Ok(row.optional()?)
    }
}

/// Signs and stores what this transaction added to the channels: one batch and one signature per channel.
pub(super) fn seal_logs(
    transaction: &Transaction<'_>,
    log: &mut LogWriter,
    drafts: BTreeMap<ChannelName, Vec<Draft>>,
    now: Timestamp,
) -> Result<Vec<Moved>, StoreError> {
    let mut sealed = Vec::new();
    for (channel, drafts) in drafts {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        for draft in drafts {
            let more = draft.body.inline().map_or(0, Bytes::len) + RECORD_OVERHEAD_BYTES;
            if !chunk.is_empty() && (bytes + more > BATCH_BYTES_MAX || chunk.len() == BATCH_RECORDS_MAX) {
                sealed.push(append(transaction, log, &channel, std::mem::take(&mut chunk), now)?);
                bytes = 0;
            }
            bytes += more;
            chunk.push(draft);
        }
        sealed.push(append(transaction, log, &channel, chunk, now)?);
    }
    Ok(sealed)
}

fn append(
    transaction: &Transaction<'_>,
    log: &mut LogWriter,
    channel: &ChannelName,
    drafts: Vec<Draft>,
    now: Timestamp,
) -> Result<Moved, StoreError> {
    let count = drafts.len() as u64;
    let verified = log
        .append(channel, drafts)
        .map_err(|error| StoreError::Publish { what: channel.to_string(), why: error.to_string() })?;
    let (batch, head) = (verified.batch(), verified.head());
    store_batch(transaction, batch, head, count, now)?;
    Ok(Moved { channel: channel.clone(), writer: batch.writer, head: Some(head), batch: Some(batch.clone()) })
}

/// Stores one batch at the end of its log.
pub(super) fn store_batch(
    transaction: &Connection,
    batch: &flotilla_sync::log::Batch,
    head: Head,
    count: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let encoded = batch.encode();
    let (channel, writer) = (batch.channel.to_string(), batch.writer.0);
    transaction
        .prepare_cached(
            "INSERT INTO batch (channel, writer, first_seq, last_seq, body, time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            channel,
            writer,
            batch.first_seq.cast_signed(),
            batch.last_seq.cast_signed(),
            encoded,
            now.0.cast_signed()
        ])?;
    transaction
        .prepare_cached(
            "INSERT INTO head (channel, writer, seq, hash, floor, records, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET seq = excluded.seq, hash = excluded.hash, records = records + excluded.records,
                 bytes = bytes + excluded.bytes",
        )?
        .execute(params![
            channel,
            writer,
            head.seq.cast_signed(),
            head.hash,
            (batch.first_seq - 1).cast_signed(),
            count.cast_signed(),
            i64::try_from(encoded.len()).unwrap_or(i64::MAX)
        ])?;
    Ok(())
}

/// Truncates logs that grew beyond their bounds: whoever stands before the new floor is served a signed list.
pub(super) fn truncate(
    transaction: &Transaction<'_>,
    writer: &WriterId,
    grown: &[ChannelName],
    records_max: u64,
    bytes_max: u64,
) -> Result<(), StoreError> {
    if planted::is(Bug::LogUncut) {
        return Ok(());
    }
    for channel in grown {
        let name = channel.to_string();
        let (records, bytes): (i64, i64) = transaction
            .prepare_cached("SELECT records, bytes FROM head WHERE channel = ?1 AND writer = ?2")?
            .query_row(params![name, writer.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if records.cast_unsigned() <= records_max && bytes.cast_unsigned() <= bytes_max {
            continue;
        }
        // Down to half of the bounds, so that it does not happen with every commit.
        let (mut kept_records, mut kept_bytes, mut floor) = (0_u64, 0_u64, None);
        let mut statement = transaction.prepare_cached(
            "SELECT first_seq, last_seq, length(body) FROM batch WHERE channel = ?1 AND writer = ?2 ORDER BY first_seq DESC",
        )?;
        let mut rows = statement.query(params![name, writer.0])?;
        while let Some(row) = rows.next()? {
            let (first, last, length): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let more = (last - first + 1).cast_unsigned();
            if kept_records + more > records_max / 2 || kept_bytes + length.cast_unsigned() > bytes_max / 2 {
                floor = Some(last);
                break;
            }
            kept_records += more;
            kept_bytes += length.cast_unsigned();
        }
        drop(rows);
        let Some(floor) = floor else { continue };
        transaction
            .prepare_cached("DELETE FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq <= ?3")?
            .execute(params![name, writer.0, floor])?;
        transaction
            .prepare_cached("UPDATE head SET floor = ?3, records = ?4, bytes = ?5 WHERE channel = ?1 AND writer = ?2")?
            .execute(params![
                name,
                writer.0,
                if planted::is(Bug::FloorForgotten) { 0 } else { floor },
                kept_records.cast_signed(),
                kept_bytes.cast_signed()
            ])?;
    }
    Ok(())
}

/// The workload of an event, where it has numbers of its own.
fn numbered(event: &Event) -> Option<ObjectKey> {
    let kind = event.key.kind;
    let owned = || event.object.controller().is_some();
    let own = kind == &kind::DAEMON_SET || kind == &kind::DEPLOYMENT || (kind == &kind::REPLICA_SET && !owned());
    own.then(|| event.key.clone())
}

fn item_id(text: &str) -> Result<ItemId, StoreError> {
    ItemId::parse(text).map_err(|error| StoreError::Publish { what: text.to_owned(), why: error.to_string() })
}

fn channel_name(text: &str) -> Result<ChannelName, StoreError> {
    ChannelName::parse(text).map_err(|error| StoreError::Publish { what: text.to_owned(), why: error.to_string() })
}

/// A fresh automerge actor for this run of the hub.
pub(super) fn fresh_actor() -> Result<[u8; 8], StoreError> {
    if planted::is(Bug::ActorReused) {
        return Ok([7; 8]);
    }
    mint::bytes::<8>().map_err(|_| StoreError::NoRandomness)
}
