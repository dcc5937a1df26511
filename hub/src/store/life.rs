//! Lives of the database: a restored or copied database begins a new one, under an incarnation and a writer never used before.
//!
//! Resource versions of a new life are above all of the earlier ones; watches from before start anew (410). Until the devices have
//! taught it what it lacks, nothing is published.

use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::WriterId;
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::log::LogWriter;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::load::SEQ_BITS;
use super::{Batch, StoreError, documents, logs, schema};
use crate::mint;

/// First moment of the calendar of lives: 2026-01-01T00:00:00Z.
const CALENDAR_START_MS: u64 = 1_767_225_600_000;
/// One slot of the calendar: 2^18 of them are 63 years.
const SLOT_MS: u64 = 128 * 60_000;
/// Lives of one slot, told apart by chance.
const SLOT_LIVES: u64 = 32;
/// Incarnations fit into the upper part of a resource version.
pub(crate) const INCARNATION_MAX: u64 = (1 << 23) - 1;

/// An incarnation for a new life, above `known`, and another one than that of any other restored copy: by the calendar, and
/// within a slot by chance (and by the devices' word where chance fails: they show the newest life they have seen).
pub(crate) fn fresh_incarnation(known: u64, now: Timestamp, chance: u64) -> u64 {
    let slot = now.0.saturating_sub(CALENDAR_START_MS) / SLOT_MS;
    let drawn = slot.saturating_mul(SLOT_LIVES).saturating_add(chance % SLOT_LIVES);
    drawn.max(known + 1 + chance % SLOT_LIVES).min(INCARNATION_MAX)
}

/// Resource versions of a life are not below this one.
pub(crate) fn first_version(incarnation: u64) -> u64 {
    incarnation << SEQ_BITS
}

/// Life and writer of an item; of one from before lives were counted, the first that is known.
pub(super) fn writer_of(connection: &Connection, life: u64) -> Result<(u64, WriterId), StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT incarnation, writer FROM life ORDER BY incarnation = ?1 DESC, incarnation LIMIT 1")?;
    let row = statement
        .query_row([life.cast_signed()], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), WriterId(row.get(1)?))))
        .optional()?;
    Ok(row.unwrap_or((0, WriterId([0; 32]))))
}

pub(super) fn put_life(connection: &Connection, incarnation: u64, writer: &WriterId) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO life (incarnation, writer) VALUES (?1, ?2)")?
        .execute(params![incarnation.cast_signed(), writer.0])?;
    Ok(())
}

/// Notes in a database at rest, or within a job, that a new life begins. Answers its incarnation and first version.
pub(super) fn begin(transaction: &Transaction<'_>, above: u64, now: Timestamp) -> Result<(u64, u64), StoreError> {
    let known = schema::meta(transaction, "incarnations_issued")?.unwrap_or(0).cast_unsigned();
    let own = schema::meta(transaction, "incarnation")?.unwrap_or(0).cast_unsigned();
    let chance = u64::from_be_bytes(mint::bytes::<8>().map_err(|_| StoreError::NoRandomness)?);
    let incarnation = fresh_incarnation(known.max(own).max(above), now, chance);
    let version = first_version(incarnation);
    for (name, value) in
        [("incarnation", incarnation), ("incarnations_issued", incarnation), ("version", version), ("restored", 1)]
    {
        schema::set_meta(transaction, name, value.cast_signed())?;
    }
    transaction.execute("DELETE FROM event", [])?;
    Ok((incarnation, version))
}

/// Epoch, digest of its content, saved state.
pub(crate) type StoredDocument = (u64, Vec<u8>, Vec<u8>);

impl Batch<'_> {
    /// Begins a new life in a running hub whose database proved to be an old copy: nothing is published until
    /// [`Batch::start_publishing`].
    pub(crate) fn begin_life(&mut self, above: u64) -> Result<u64, StoreError> {
        let (incarnation, version) = begin(self.transaction, above, self.now)?;
        self.working.incarnation = incarnation;
        self.working.version = version;
        self.working.reborn = true;
        self.working.publication = None;
        self.working.log = None;
        Ok(incarnation)
    }

    /// Makes the hub's writer known; nothing is published under it yet.
    pub(crate) fn announce_writer(&mut self, identity: &WriterIdentity) -> Result<(), StoreError> {
        self.put_writer(identity.chain())?;
        put_life(self.transaction, identity.chain().incarnation, &identity.id())
    }

    /// A writer of another life, of which this database learns: what it stated stands under its own name, or a list of a life
    /// before it would speak for it.
    pub(crate) fn know_life(&mut self, incarnation: u64, writer: &WriterId) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO life (incarnation, writer) VALUES (?1, ?2)")?
            .execute(params![incarnation.cast_signed(), writer.0])?;
        Ok(())
    }

    /// A log that goes on after everything the hub's earlier lives said.
    pub(super) fn log_of(&self, identity: WriterIdentity) -> Result<LogWriter, StoreError> {
        let own = identity.id();
        let mut log = LogWriter::new(identity, logs::heads_of(self.transaction, &own)?);
        for (channel, seq) in logs::hub_ends(self.transaction)? {
            log.start_at(&channel, seq);
        }
        Ok(log)
    }

    /// A number for a new life of a device's database: above those it has observed under, which a restored hub did not give.
    pub(crate) fn device_life(&mut self, node: &str) -> Result<u64, StoreError> {
        let issued = self.next_number("incarnations_issued")?;
        let mut statement =
            self.transaction.prepare_cached("SELECT max(incarnation) FROM observation WHERE node = ?1")?;
        let seen: Option<i64> = statement.query_row([node], |row| row.get(0))?;
        Ok(issued.max(seen.unwrap_or(0).cast_unsigned().saturating_add(1).min(INCARNATION_MAX)))
    }

    /// A document as devices hold it takes the place of the hub's.
    pub(crate) fn put_learned_document(
        &mut self,
        uid: &str,
        epoch: u64,
        digest: &[u8],
        state: &[u8],
    ) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO document (uid, epoch, digest, state) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![uid, epoch.cast_signed(), digest, state])?;
        Ok(())
    }

    /// The saved document of an object: epoch, digest of its content, state.
    pub(crate) fn document(&self, uid: &str) -> Result<Option<StoredDocument>, StoreError> {
        let stored = documents::stored_document(self.transaction, uid)?;
        Ok(stored.map(|stored| (stored.epoch, stored.digest, stored.state)))
    }

    /// States what a channel holds of an item, as devices know it.
    pub(crate) fn put_standing(&mut self, standing: &Standing<'_>) -> Result<(), StoreError> {
        self.drop_standing(standing.channel, standing.id)?;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO item (channel, source, id, digest, seq, time, value, life)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                standing.channel,
                standing.source,
                standing.id,
                standing.digest,
                standing.seq.cast_signed(),
                standing.time_ms.cast_signed(),
                standing.value,
                standing.life.cast_signed()
            ])?;
        Ok(())
    }

    /// The stated value of a register.
    pub(crate) fn standing_value(&self, channel: &str, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT value FROM item WHERE channel = ?1 AND id = ?2")?;
        Ok(statement.query_row(params![channel, id], |row| row.get(0)).optional()?.flatten())
    }

    /// Whether an item was stated in a life, in any channel.
    pub(crate) fn is_stated_since(&self, id: &str, life: u64) -> Result<bool, StoreError> {
        let mut statement =
            self.transaction.prepare_cached("SELECT 1 FROM item WHERE id = ?1 AND life = ?2 AND life > 0")?;
        Ok(statement.exists(params![id, life.cast_signed()])?)
    }

    /// An item is to be stated anew wherever it stands.
    pub(crate) fn state_again(&mut self, id: &str) -> Result<(), StoreError> {
        self.transaction.prepare_cached("UPDATE item SET digest = x'' WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// What a channel holds of an item is to be stated anew, or its end if nobody wants it there; `false` if it holds nothing of it.
    pub(crate) fn state_anew(&mut self, channel: &str, id: &str) -> Result<bool, StoreError> {
        let updated = self
            .transaction
            .prepare_cached("UPDATE item SET digest = x'' WHERE channel = ?1 AND id = ?2")?
            .execute(params![channel, id])?;
        Ok(updated > 0)
    }

    pub(crate) fn drop_standing(&mut self, channel: &str, id: &str) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached("DELETE FROM item WHERE channel = ?1 AND id = ?2")?
            .execute(params![channel, id])?;
        Ok(())
    }
}

/// One row of what channels hold.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) channel: &'a str,
    pub(crate) source: &'a str,
    pub(crate) id: &'a str,
    pub(crate) digest: &'a [u8],
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    /// Of a register.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) life: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lives_go_up_and_two_copies_of_one_backup_differ() {
        let now = Timestamp(CALENDAR_START_MS + 400 * SLOT_MS);
        let one = fresh_incarnation(7, now, 3);
        let other = fresh_incarnation(7, now, 4);
        assert_ne!(one, other);
        assert!(one > 7 && fresh_incarnation(one, now, 0) > one);
        assert!(fresh_incarnation(7, Timestamp(now.0 + SLOT_MS), 0) > one.max(other));
        // A clock from before the calendar, and one from after its end.
        assert!(fresh_incarnation(7, Timestamp(0), 9) > 7);
        assert_eq!(fresh_incarnation(7, Timestamp(u64::MAX / 2), 9), INCARNATION_MAX);
    }
}
