//! Which pieces of another branch of a hub's log say anything new, and how much of them can be believed.

use flotilla_sync::channel::{ChannelName, Hash, Head, WriterId, state_digest};
use flotilla_sync::list::VerifiedSnapshot;
use flotilla_sync::log::{Batch as Records, VerifiedBatch};
use rusqlite::{OptionalExtension, params};

use super::super::settings::Setting;
use super::super::{Batch, StoreError};
use super::Line;

/// Pieces of other branches that are remembered to have been taken in.
const BRANCHES_KEPT_MAX: i64 = 16_384;

impl Batch<'_> {
    /// Where the records of another branch of a log stand, if they were not given before. What is here as it was signed is known: what has
    /// become of it since is what holds.
    pub(crate) fn new_branch(&mut self, verified: &VerifiedBatch) -> Result<Option<Line>, StoreError> {
        let batch = verified.batch();
        let (channel, place) = (batch.channel.to_string(), batch.last_seq.cast_signed());
        let here =
            "SELECT body FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq >= ?3 ORDER BY first_seq LIMIT 1";
        let here: Option<Vec<u8>> = self
            .transaction
            .prepare_cached(here)?
            .query_row(params![channel, batch.writer.0, place], |row| row.get(0))
            .optional()?;
        if here.is_some_and(|here| here == batch.encode()) {
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
            let here = self.device_head(&list.channel, &list.writer)?;
            return Ok((here.seq < list.head.seq).then_some(Line::Kept));
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
        let added = self
            .transaction
            .prepare_cached("INSERT OR IGNORE INTO branch (channel, writer, hash) VALUES (?1, ?2, ?3)")?
            .execute(params![channel.to_string(), writer.0, hash])?;
        self.transaction
            .prepare_cached("DELETE FROM branch WHERE number <= (SELECT max(number) FROM branch) - ?1")?
            .execute([BRANCHES_KEPT_MAX])?;
        Ok(added > 0)
    }
}
