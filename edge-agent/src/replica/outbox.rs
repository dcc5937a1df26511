//! What waits for the hub: observations, Events and ends, each the newest of its subject, and which of them must outlast a restart.
//!
//! Owns the order of what this device has observed, and the bounds of what it keeps while it is away. Start reading at
//! [`DeviceReplica::report`].

use bytes::Bytes;
use flotilla_sync::observation::{Clock as ObservationClock, Observation, Urgency};
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::replica::ReplicaError;
use flotilla_sync::session::Greeting;

use super::{DeviceReplica, State, failed};
use crate::store::OutboxRow;

/// Ends and Events that wait for the hub: rows, and their bytes.
const OUTBOX_ROWS_MAX: usize = 1024;
const OUTBOX_BYTES_MAX: usize = 512 * 1024;

/// Subject, urgency, and JSON or the confirmation of an end.
pub(crate) type Fact = (String, bool, Option<Vec<u8>>);

impl DeviceReplica {
    /// Puts facts into the outbox: subject, urgency, JSON or the confirmation of an end. What can be observed again after a
    /// restart is kept in memory alone, to spare the flash; ends and events are durable.
    pub async fn report(&self, facts: Vec<Fact>) -> Result<(), ReplicaError> {
        if facts.is_empty() {
            return Ok(());
        }
        let rows = self.rows_of(facts);
        let durable: Vec<OutboxRow> = rows.iter().filter(|row| must_last(row)).cloned().collect();
        if !durable.is_empty() {
            self.store.put_outbox(durable).await.map_err(|error| failed("store what it observed", error))?;
        }
        self.put(rows);
        self.bound_outbox().await
    }

    /// A device that is away for years goes on writing down what ends and what happens: of these the oldest Events go first, then
    /// the oldest ends. What is the case now is always told.
    async fn bound_outbox(&self) -> Result<(), ReplicaError> {
        let dropped = {
            let mut state = self.state();
            let dropped = surplus(state.outbox.values().filter(|row| must_last(row)));
            for row in &dropped {
                state.outbox.remove(&row.subject);
            }
            dropped
        };
        if dropped.is_empty() {
            return Ok(());
        }
        let ends = dropped.iter().filter(|row| row.body.is_none()).count();
        tracing::warn!(
            dropped = dropped.len(),
            ends,
            "more waits for the hub than this device keeps; the oldest is dropped"
        );
        let entries = dropped.into_iter().map(|row| (row.subject, row.incarnation, row.boot, row.seq)).collect();
        self.store.remove_outbox(entries).await.map_err(|error| failed("shorten its outbox", error))
    }

    /// Dates facts and gives them their place in this boot's order.
    pub(crate) fn rows_of(&self, facts: Vec<Fact>) -> Vec<OutboxRow> {
        let now = self.clock.now();
        let mut state = self.state();
        let row = |(subject, urgent, body)| {
            state.seq += 1;
            let (incarnation, boot, seq) = (state.incarnation, state.boot, state.seq);
            OutboxRow { subject, incarnation, boot, seq, time_ms: now.0, urgent, body }
        };
        facts.into_iter().map(row).collect()
    }

    /// Puts rows into the outbox that are durable, or need not be.
    pub(crate) fn put(&self, rows: Vec<OutboxRow>) {
        let mut state = self.state();
        for mut row in rows {
            if row.boot < state.boot {
                // A greeting came while it was made durable.
                state.seq += 1;
                (row.boot, row.seq) = (state.boot, state.seq);
            }
            state.outbox.insert(row.subject.clone(), row);
        }
        drop(state);
        self.bump(&self.grown);
    }

    /// Observations the hub has not acknowledged.
    pub fn unreported(&self) -> usize {
        self.state().outbox.len()
    }

    /// Observations count from the hub's own time on: whatever a newer state of this database has told, before it was
    /// replaced by an older copy, is older. What waits in the outbox is dated anew, in its order.
    pub(super) async fn outrank_copies(&self, greeting: &Greeting) -> Result<(), ReplicaError> {
        let durable: Vec<OutboxRow> = {
            let mut state = self.state();
            let boot = greeting.time_ms;
            if boot <= state.boot {
                return Ok(());
            }
            state.boot = boot;
            let mut rows: Vec<OutboxRow> = std::mem::take(&mut state.outbox).into_values().collect();
            rows.sort_by_key(|row| (row.incarnation, row.boot, row.seq));
            for row in &mut rows {
                state.seq += 1;
                (row.boot, row.seq) = (boot, state.seq);
            }
            let durable = rows.iter().filter(|row| must_last(row)).cloned().collect();
            state.outbox = rows.into_iter().map(|row| (row.subject.clone(), row)).collect();
            durable
        };
        if durable.is_empty() {
            return Ok(());
        }
        self.store.put_outbox(durable).await.map_err(|error| failed("store what it observed", error))
    }

    /// The oldest that wait, in their order.
    pub(super) fn waiting(&self, urgency: Urgency, limit: usize) -> Vec<Observation> {
        let mut state = self.state();
        let mut waiting: Vec<&OutboxRow> =
            state.outbox.values().filter(|row| urgency == Urgency::All || row.urgent).collect();
        waiting.sort_by_key(|row| (row.incarnation, row.boot, row.seq));
        let sent: Vec<Observation> = waiting.into_iter().take(limit).map(observation_of).collect();
        if planted::is(Bug::ReportForgottenUnanswered) {
            sent.iter().for_each(|one| drop(state.outbox.remove(&one.subject)));
        }
        sent
    }

    /// Forgets what the hub has acknowledged, unless something newer of its subject waits.
    pub(super) async fn let_go(&self, entries: Vec<(String, ObservationClock)>) -> Result<(), ReplicaError> {
        let same = |state: &State, (subject, clock): &(String, ObservationClock)| {
            state.outbox.get(subject).filter(|row| clock_of(row) == *clock).is_some()
        };
        let durable: Vec<_> = {
            let state = self.state();
            let taken = entries.iter().filter(|entry| same(&state, entry));
            let lasting = taken.filter(|(subject, _)| state.outbox.get(subject).is_some_and(must_last));
            lasting.map(|(subject, clock)| (subject.clone(), clock.incarnation, clock.boot, clock.seq)).collect()
        };
        // From the disk first: what it does not let go of is told again, and goes then.
        if !(durable.is_empty() || planted::is(Bug::OutboxUncleared)) {
            self.store.remove_outbox(durable).await.map_err(|error| failed("clear its outbox", error))?;
        }
        let mut state = self.state();
        state.heard.acknowledged();
        for entry in &entries {
            if same(&state, entry) {
                state.outbox.remove(&entry.0);
            }
        }
        Ok(())
    }
}

/// Which rows have to go so that the others are within bounds, a tenth below them.
fn surplus<'a>(rows: impl Iterator<Item = &'a OutboxRow>) -> Vec<OutboxRow> {
    let size = |row: &OutboxRow| row.subject.len() + row.body.as_ref().map_or(0, Vec::len);
    let mut rows: Vec<&OutboxRow> = rows.collect();
    let mut bytes: usize = rows.iter().map(|row| size(row)).sum();
    if rows.len() <= OUTBOX_ROWS_MAX && bytes <= OUTBOX_BYTES_MAX {
        return Vec::new();
    }
    // Ends have no body: they sort behind Events.
    rows.sort_by_key(|row| (row.body.is_none(), row.incarnation, row.boot, row.seq));
    let mut left = rows.len();
    let mut dropped = Vec::new();
    for row in rows {
        if left <= OUTBOX_ROWS_MAX / 10 * 9 && bytes <= OUTBOX_BYTES_MAX / 10 * 9 {
            break;
        }
        (left, bytes) = (left - 1, bytes - size(row));
        dropped.push(row.clone());
    }
    dropped
}

/// Whether a restart could not observe this again.
fn must_last(row: &OutboxRow) -> bool {
    row.body.is_none() || row.subject.starts_with("event/")
}

fn clock_of(row: &OutboxRow) -> ObservationClock {
    ObservationClock { incarnation: row.incarnation, boot: row.boot, seq: row.seq }
}

fn observation_of(row: &OutboxRow) -> Observation {
    Observation {
        subject: row.subject.clone(),
        clock: clock_of(row),
        time_ms: row.time_ms,
        body: row.body.clone().map(Bytes::from),
    }
}

#[cfg(test)]
mod tests;
