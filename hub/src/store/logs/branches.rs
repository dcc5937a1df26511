//! Logs of which devices hold another branch than this database: which they are, and the list that settles them.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_sync::channel::{ChannelName, Head, WriterId};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::log::Batch;
use flotilla_sync::replica::Reading;
use rusqlite::{OptionalExtension, params};

use super::super::{StoreError, learned};
use super::{Logs, own_head};

impl Logs {
    /// Which of these heads of logs, each with the digest of its hash, are on other branches than what is kept here.
    pub(crate) fn branches_among(
        &self,
        heads: &[((ChannelName, WriterId), u64, u64)],
    ) -> Result<BTreeMap<(ChannelName, WriterId), u64>, StoreError> {
        let reader = self.reader();
        let mut statement = reader.prepare_cached(
            "SELECT body FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq > ?3 ORDER BY first_seq LIMIT 1",
        )?;
        let mut branches = BTreeMap::new();
        for (log, seq, digest) in heads {
            let place = params![log.0.to_string(), log.1.0, seq.cast_signed()];
            let body: Option<Vec<u8>> = statement.query_row(place, |row| row.get(0)).optional()?;
            let next = body.and_then(|body| Batch::decode(&Bytes::from(body)).ok());
            // Logs end where batches end: one that ends within a batch of this one is another.
            let follows = |next: &Batch| {
                let head = Head { seq: *seq, hash: next.prev };
                next.first_seq > seq + 1 || (next.first_seq == seq + 1 && head.digest() == *digest)
            };
            if next.is_some_and(|next| !follows(&next)) {
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
