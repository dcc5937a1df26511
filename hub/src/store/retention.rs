//! What goes because it is old: log records, audit entries, what is remembered of epochs that documents have left.
//!
//! Size is bounded where things grow ([`super::channels::truncate`], [`super::history`]); age is looked at with a commit from time to
//! time, in pieces, so that no commit waits long for it. Whoever stood before a new floor of a log is served its signed list.

use flotilla_manifests::time::Timestamp;
use flotilla_sync::planted::{self, Bug};
use rusqlite::{Transaction, params};

use super::StoreError;
use crate::config::Retention;

/// Time between two looks.
pub(super) const SWEEP_MS: u64 = 10 * 60 * 1000;
/// Logs shortened, and rows of one table removed, by one look.
const LOGS_MAX: i64 = 1_000;
const ROWS_MAX: i64 = 10_000;

/// Removes what is too old; answers in how many logs.
pub(super) fn sweep(transaction: &Transaction<'_>, retention: &Retention, now: Timestamp) -> Result<usize, StoreError> {
    let before = |age_ms_max: u64| now.0.saturating_sub(age_ms_max).cast_signed();
    let logs = shorten(transaction, before(retention.log_age_ms_max))?;
    if !planted::is(Bug::AuditUncut) {
        transaction
            .prepare_cached(
                "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE time < ?1 ORDER BY id LIMIT ?2)",
            )?
            .execute([before(retention.audit_age_ms_max), ROWS_MAX])?;
    }
    transaction
        .prepare_cached("DELETE FROM past_epoch WHERE time < ?1")?
        .execute([before(retention.log_age_ms_max)])?;
    Ok(logs)
}

fn shorten(transaction: &Transaction<'_>, before: i64) -> Result<usize, StoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT channel, writer, max(last_seq), sum(last_seq - first_seq + 1), sum(length(body)) FROM batch
         WHERE time < ?1 GROUP BY channel, writer LIMIT ?2",
    )?;
    let rows = statement.query_map([before, LOGS_MAX], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, Vec<u8>>(1)?,
            row.get::<_, i64>(2)?,
            row.get::<_, i64>(3)?,
            row.get::<_, i64>(4)?,
        ))
    })?;
    let old: Vec<_> = rows.collect::<Result<_, _>>()?;
    for (channel, writer, floor, records, bytes) in &old {
        transaction
            .prepare_cached("DELETE FROM batch WHERE channel = ?1 AND writer = ?2 AND last_seq <= ?3")?
            .execute(params![channel, writer, floor])?;
        // A clock that was set back leaves a younger batch before an older one: what is left is counted, not computed.
        let (kept_records, kept_bytes): (i64, i64) = transaction
            .prepare_cached(
                "SELECT coalesce(sum(last_seq - first_seq + 1), 0), coalesce(sum(length(body)), 0) FROM batch
                 WHERE channel = ?1 AND writer = ?2",
            )?
            .query_row(params![channel, writer], |row| Ok((row.get(0)?, row.get(1)?)))?;
        transaction
            .prepare_cached(
                "UPDATE head SET floor = max(floor, ?3), records = ?4, bytes = ?5 WHERE channel = ?1 AND writer = ?2",
            )?
            .execute(params![channel, writer, floor, kept_records, kept_bytes])?;
        tracing::debug!(%channel, floor, records, bytes, "old records of a log are dropped");
    }
    Ok(old.len())
}
