//! Which pieces of another branch of a hub's log say anything new, and how much of them can be believed.

use flotilla_sync::channel::{ChannelName, Hash, Head, WriterId, state_digest};
use flotilla_sync::list::VerifiedSnapshot;
use flotilla_sync::log::{Batch as Records, VerifiedBatch};
use rusqlite::params;

use super::super::settings::Setting;
use super::super::{Batch, StoreError};
use super::Line;

/// Pieces of other branches that are remembered to have been taken in, per channel; pruned now and then.
const BRANCHES_KEPT_MAX: usize = 16_384;
const BRANCHES_PRUNED_EVERY: i64 = 64;

impl Batch<'_> {
    /// Where the records of another branch of a log stand, if they were not given before. What is here as it was signed is known: what has
    /// become of it since is what holds.
    pub(crate) fn new_branch(&mut self, verified: &VerifiedBatch) -> Result<Option<Line>, StoreError> {
        let batch = verified.batch();
        let here = self.batch_at(&batch.channel, &batch.writer, batch.first_seq)?;
        if here.is_some_and(|(_, here)| here == batch.encode()) {
            return Ok(None);
        }
        let Some(line) = self.line_at(&batch.channel, &batch.writer, batch.last_seq)? else { return Ok(None) };
        Ok(self.note_branch(&batch.channel, &batch.writer, &verified.head().hash)?.then_some(line))
    }

    /// Where a list of an earlier life stands, if it says anything that is not known here. One that was signed before the log was forked
    /// says nothing: what was withdrawn since, on this branch too, would come back.
    pub(crate) fn new_list(&mut self, verified: &VerifiedSnapshot) -> Result<Option<Line>, StoreError> {
        let list = &verified.snapshot().list;
        if !verified.is_of_branch() {
            if self.device_head(&list.channel, &list.writer)?.seq < list.head.seq {
                return Ok(Some(Line::Kept));
            }
            // The records that follow it in its own log came before it; of the other logs that it speaks for it may say more all the same.
            for (writer, head) in verified.covers() {
                if self.device_head(&list.channel, &writer)?.seq < head.seq {
                    // What those records withdrew leaves no trace once it was taken in.
                    let learning = self.setting(Setting::Learning)?.is_some();
                    return Ok(Some(if learning { Line::Kept } else { Line::Forgotten }));
                }
            }
            return Ok(None);
        }
        if self.has_stood_at(&list.channel, &list.writer, &list.head)? {
            return Ok(None);
        }
        let Some(line) = self.line_at(&list.channel, &list.writer, list.head.seq)? else { return Ok(None) };
        Ok(self.note_branch(&list.channel, &list.writer, &state_digest(list.encoded()))?.then_some(line))
    }

    /// Whether a log ended here once with this record, as far as it is kept.
    fn has_stood_at(&self, channel: &ChannelName, writer: &WriterId, head: &Head) -> Result<bool, StoreError> {
        if self.device_head(channel, writer)? == *head {
            return Ok(true);
        }
        let next = self.batch_at(channel, writer, head.seq.saturating_add(1))?;
        let next = next.and_then(|(_, body)| Records::decode(&body).ok());
        Ok(next.is_some_and(|next| next.prev == head.hash))
    }

    /// What is known of the place in a log where something else was signed than is here. `None` if nothing is, and the hub does not learn:
    /// deletions are remembered for a while only, and any device could claim a fork and give what was deleted long ago.
    fn line_at(&self, channel: &ChannelName, writer: &WriterId, seq: u64) -> Result<Option<Line>, StoreError> {
        let forgotten = "SELECT 1 FROM head WHERE channel = ?1 AND writer = ?2 AND floor >= ?3";
        let place = params![channel.to_string(), writer.0, seq.cast_signed()];
        if !self.transaction.prepare_cached(forgotten)?.exists(place)? {
            return Ok(Some(Line::Branch));
        }
        let learning = self.setting(Setting::Learning)?.is_some();
        Ok(learning.then_some(Line::Forgotten))
    }

    /// Remembers a piece of another branch; `false` if it was known.
    fn note_branch(&mut self, channel: &ChannelName, writer: &WriterId, hash: &Hash) -> Result<bool, StoreError> {
        let name = channel.to_string();
        let added = self
            .transaction
            .prepare_cached("INSERT OR IGNORE INTO branch (channel, writer, hash) VALUES (?1, ?2, ?3)")?
            .execute(params![name, writer.0, hash])?;
        if added > 0 && self.transaction.last_insert_rowid() % BRANCHES_PRUNED_EVERY == 0 {
            self.transaction
                .prepare_cached(
                    "DELETE FROM branch WHERE channel = ?1 AND number <=
                     (SELECT number FROM branch WHERE channel = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                )?
                .execute(params![name, i64::try_from(BRANCHES_KEPT_MAX).unwrap_or(i64::MAX)])?;
        }
        Ok(added > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::api_error::ApiError;

    use super::*;
    use crate::Retention;
    use crate::tests::Bench;

    #[tokio::test]
    async fn the_pieces_of_one_channel_displace_none_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::open(folder.path(), Retention::default()).await;
        let writer = bench.door.identity().id();
        let noted = bench.store.write(move |batch| {
            let [quiet, loud] = ["device/quiet", "device/loud"].map(|name| ChannelName::parse(name).unwrap());
            let piece = |number: usize| {
                let mut hash = Hash::default();
                hash[..8].copy_from_slice(&number.to_be_bytes());
                hash
            };
            batch.note_branch(&quiet, &writer, &piece(0))?;
            for number in 0..BRANCHES_KEPT_MAX + 200 {
                batch.note_branch(&loud, &writer, &piece(number))?;
            }
            let newest = batch.note_branch(&loud, &writer, &piece(BRANCHES_KEPT_MAX + 199))?;
            let oldest = batch.note_branch(&loud, &writer, &piece(0))?;
            Ok::<_, ApiError>((batch.note_branch(&quiet, &writer, &piece(0))?, newest, oldest))
        });
        assert_eq!(
            noted.await.unwrap(),
            (false, false, true),
            "known, known, and forgotten by its own channel's bound"
        );
    }
}
