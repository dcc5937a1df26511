//! Logs of which devices hold another branch than this database: which they are, and the list that settles them.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, Head, WriterId};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::log::Batch;
use flotilla_sync::replica::Reading;
use rusqlite::{OptionalExtension, params};

use super::super::{StoreError, learned};
use super::{Logs, own_head};

type LogKey = (ChannelName, WriterId);

/// Where a device stands in a log, with the digest of the hash there.
type Place = (LogKey, u64, u64);

/// The last batch that begins at a record or before it: one seek in the primary key, however long the log is. The one that ends behind a
/// record would be looked for from the beginning of the log.
const BEGINS_UP_TO: &str =
    "SELECT body FROM batch WHERE channel = ?1 AND writer = ?2 AND first_seq <= ?3 ORDER BY first_seq DESC LIMIT 1";

impl Logs {
    /// Which of these places are on other branches than what is kept here, as far as memory knows, and those of which it does not.
    pub(crate) fn branches_at_hand(&self, places: Vec<Place>) -> (BTreeMap<LogKey, u64>, Vec<Place>) {
        let tails = self.tails.read().unwrap_or_else(PoisonError::into_inner);
        let (mut branches, mut unknown) = (BTreeMap::new(), Vec::new());
        for (log, seq, digest) in places {
            match tails.holding(&log, seq + 1) {
                Some(next) if follows(next, seq, digest) => {}
                Some(_) => {
                    branches.insert(log, seq);
                }
                None => unknown.push((log, seq, digest)),
            }
        }
        (branches, unknown)
    }

    /// Which of these places are on other branches than what is kept here. Blocks on the disk.
    pub(crate) fn branches_among(&self, places: &[Place]) -> Result<BTreeMap<LogKey, u64>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached(BEGINS_UP_TO)?;
        let mut branches = BTreeMap::new();
        for (log, seq, digest) in places {
            let next_seq = params![log.0.to_string(), log.1.0, (seq + 1).cast_signed()];
            let body: Option<Vec<u8>> = statement.query_row(next_seq, |row| row.get(0)).optional()?;
            let batch = body.and_then(|body| Batch::decode(&Bytes::from(body)).ok());
            // What ends before it stands before a gap, and says nothing of what follows.
            let next = batch.filter(|batch| batch.last_seq > *seq);
            if next.is_some_and(|next| !follows(&next, *seq, *digest)) {
                branches.insert(log.clone(), *seq);
            }
        }
        Ok(branches)
    }

    /// The list of a channel as it is now. Blocks on the disk.
    pub(crate) fn list(&self, identity: &WriterIdentity, channel: &ChannelName) -> Result<Reading, StoreError> {
        let mut reader = self.reader();
        let transaction = reader.transaction()?;
        if learned::is_pending(&transaction, channel)? {
            return Ok(Reading::Later);
        }
        let head = own_head(&transaction, identity, channel)?;
        Ok(Reading::Snapshot(self.snapshot(&transaction, identity, channel, head)?))
    }
}

/// Whether the batch with the record behind `seq` follows a head there. Logs end where batches end: one that ends within a batch of this
/// one is another.
fn follows(next: &Batch, seq: u64, digest: u64) -> bool {
    next.first_seq == seq + 1 && Head { seq, hash: next.prev }.digest() == digest
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use rusqlite::{Connection, StatementStatus};

    use super::*;

    #[test]
    fn where_a_device_stands_is_found_without_a_walk_over_the_log() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../schema/0001.sql")).unwrap();
        let transaction = connection.transaction().unwrap();
        for first_seq in (1..=9_999).step_by(2) {
            transaction
                .execute(
                    "INSERT INTO batch (channel, writer, first_seq, last_seq, body) VALUES ('c', 'w', ?1, ?1 + 1, ?1)",
                    [first_seq],
                )
                .unwrap();
        }
        let mut statement = transaction.prepare(BEGINS_UP_TO).unwrap();
        for (seq, first_seq) in [(1, 1), (2, 1), (4_999, 4_999), (9_999, 9_999), (10_000, 9_999), (10_001, 9_999)] {
            let found: i64 = statement.query_row(params!["c", "w", seq], |row| row.get(0)).unwrap();
            assert_eq!(found, first_seq);
        }
        let steps = statement.reset_status(StatementStatus::VmStep);
        assert!(steps < 500, "{steps} steps for six seeks");
    }
}
