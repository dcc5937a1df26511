//! The one that changes the database: it drains the queue into one transaction, commits once, then answers all.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{ChannelName, Head, WriterId};
use flotilla_sync::log::{Batch as LogBatch, LogWriter};
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::record::Draft;
use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot;

use super::batch::{Batch, Undo};
use super::history::Event;
use super::index::Index;
use super::lanes::{Lanes, Turn};
use super::{Shared, StoreError, channels, logs, retention, schema};
use crate::config::Retention;
use crate::publish::Publication;

/// What the writer alone holds: the state as of the newest job, committed or not.
#[derive(Debug)]
pub(crate) struct Working {
    pub(super) index: Index,
    pub(super) incarnation: u64,
    /// The newest resource version given out.
    pub(super) version: u64,
    /// Workloads whose thresholds or grants changed since the last commit.
    pub(super) rollouts_touched: BTreeSet<String>,
    /// What belongs in which channel; `None` before the hub has its writer.
    pub(super) publication: Option<Publication>,
    pub(super) log: Option<LogWriter>,
    /// Records of the jobs so far in this transaction.
    pub(super) drafts: BTreeMap<ChannelName, Vec<Draft>>,
    /// The database began a new life since the last commit.
    pub(super) reborn: bool,
    /// When old things were last looked for.
    pub(super) swept: Timestamp,
    /// Automerge actor of this run.
    pub(super) actor: [u8; 8],
}

impl Working {
    pub(super) fn starting(index: Index, incarnation: u64, version: u64) -> Result<Self, StoreError> {
        Ok(Self {
            index,
            incarnation,
            version,
            rollouts_touched: BTreeSet::new(),
            publication: None,
            log: None,
            drafts: BTreeMap::new(),
            swept: Timestamp(0),
            reborn: false,
            actor: channels::fresh_actor()?,
        })
    }
}

/// Where a log stands now.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) channel: ChannelName,
    pub(crate) writer: WriterId,
    /// `None`: it is forgotten.
    pub(crate) head: Option<Head>,
    /// What was added, where sessions are to find it in memory: it follows what was there.
    pub(crate) batch: Option<LogBatch>,
}

/// One write waiting for its turn.
pub(super) trait Job: Send {
    /// Does the work inside its savepoint; `false` means: undo it.
    fn run(&mut self, batch: &mut Batch<'_>) -> bool;
    /// Replaces the result: the work was undone for another reason than its own.
    fn fail(&mut self, error: ApiError);
    /// Tells the caller; called once, after the commit.
    fn answer(self: Box<Self>);
}

/// A closure as a [`Job`].
pub(super) struct Call<T, F> {
    work: Option<F>,
    result: Option<Result<T, ApiError>>,
    answer: oneshot::Sender<Result<T, ApiError>>,
}

impl<T, F> Call<T, F>
where
    T: Send,
    F: FnOnce(&mut Batch<'_>) -> Result<T, ApiError> + Send,
{
    pub(super) fn of(work: F) -> (Self, oneshot::Receiver<Result<T, ApiError>>) {
        let (answer, receiver) = oneshot::channel();
        (Self { work: Some(work), result: None, answer }, receiver)
    }
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnOnce(&mut Batch<'_>) -> Result<T, ApiError> + Send,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> bool {
        let Some(work) = self.work.take() else { return false };
        let result = work(batch);
        let fine = result.is_ok();
        self.result = Some(result);
        fine
    }

    fn fail(&mut self, error: ApiError) {
        self.result = Some(Err(error));
    }

    fn answer(self: Box<Self>) {
        let lost = || Err(ApiError::of(Reason::InternalError, "the write was dropped before it ran"));
        // A caller that went away needs no answer; its write stands.
        drop(self.answer.send(self.result.unwrap_or_else(lost)));
    }
}

/// Whoever drains the queue: one for each open database.
pub(super) struct Writer {
    connection: Connection,
    working: Working,
    shared: Arc<Shared>,
    retention: Retention,
}

impl Writer {
    pub(super) fn over(ready: super::Ready, retention: Retention) -> Self {
        let super::Ready { connection, working, shared } = ready;
        Self { connection, working, shared, retention }
    }

    /// Commits what waits, in one transaction, then answers all; `false` when nobody can bring anything any more.
    pub(super) async fn commit(&mut self, lanes: &mut Lanes) -> bool {
        let Some(mut turn) = lanes.turn().await else { return false };
        let moved = commit(&mut self.connection, &mut self.working, &self.shared, &self.retention, &mut turn);
        turn.answer();
        // Each device has a bell: whoever was answered does not wait for twenty thousand.
        self.shared.logs.ring(&moved);
        true
    }
}

/// Answers which logs are longer now: whoever reads them finds it, and is to be told.
fn commit(
    connection: &mut Connection,
    working: &mut Working,
    shared: &Shared,
    retention: &Retention,
    turn: &mut Turn<'_>,
) -> Vec<Moved> {
    let now = (shared.clock)();
    let (version_before, incarnation_before) = (working.version, working.incarnation);
    let mut undo = Vec::new();
    let mut pace = Pace { began: now, ..Pace::default() };
    let moved = match attempt(connection, working, shared, retention, turn, &mut pace, &mut undo) {
        Ok(done) => {
            pace.durable = (shared.clock)();
            if done.swept {
                shared.logs.forget_newest();
            }
            if let Some(publication) = &mut working.publication {
                publication.settle();
            }
            shared.publish(done.events, &done.moved, working, retention, now);
            pace.tell_if_slow((shared.clock)(), turn.len());
            done.moved
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), jobs = turn.len(), "a commit failed; its writes were undone");
            roll_back(working, undo, version_before);
            working.incarnation = incarnation_before;
            working.reborn = false;
            working.drafts.clear();
            if let Err(error) = reload_log(connection, working) {
                tracing::error!(error = %Chain(&error), "the logs cannot be read; nothing is published until a restart");
                working.log = None;
            }
            let answer = ApiError::from(error);
            if !planted::is(Bug::FailedCommitAnswered) {
                turn.all_mut().for_each(|job| job.fail(answer.clone()));
            }
            Vec::new()
        }
    };
    working.rollouts_touched.clear();
    working.reborn = false;
    moved
}

/// Whoever waits for a commit for longer than this wants to know what it was.
const SLOW_MS: u64 = 1000;

/// When the parts of one commit were done, by the wall clock: for people who look for what holds the hub up.
#[derive(Debug, Default)]
struct Pace {
    began: Timestamp,
    /// The writes were made, the logs not yet sealed.
    made: Timestamp,
    /// All of it was handed to the disk.
    written: Timestamp,
    durable: Timestamp,
    /// The longest of the writes. Milliseconds.
    longest_ms: u64,
}

impl Pace {
    fn tell_if_slow(&self, now: Timestamp, writes: usize) {
        let between = |from: Timestamp, to: Timestamp| to.0.saturating_sub(from.0);
        let all_ms = between(self.began, now);
        if all_ms >= SLOW_MS {
            tracing::warn!(
                all_ms,
                writes,
                writes_ms = between(self.began, self.made),
                longest_write_ms = self.longest_ms,
                logs_ms = between(self.made, self.written),
                disk_ms = between(self.written, self.durable),
                readers_ms = between(self.durable, now),
                "a commit took long; whoever wrote meanwhile waited for it"
            );
        }
    }
}

/// What a transaction did.
struct Done {
    events: Vec<Event>,
    moved: Vec<Moved>,
    /// Records went because they are old.
    swept: bool,
}

fn attempt(
    connection: &mut Connection,
    working: &mut Working,
    shared: &Shared,
    retention: &Retention,
    turn: &mut Turn<'_>,
    pace: &mut Pace,
    undo: &mut Vec<Undo>,
) -> Result<Done, StoreError> {
    let now = pace.began;
    // It will write: waiting for the lock now is possible, turning a reader into a writer later is not (`token create` beside us).
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut events = Vec::new();
    let mut moved: Vec<Moved> = Vec::new();
    while let Some(job) = turn.next() {
        let job_began = (shared.clock)();
        transaction.execute_batch("SAVEPOINT job")?;
        let version_before = working.version;
        let mut batch = Batch::on(&transaction, working, now);
        let fine = run_job(job.as_mut(), &mut batch);
        let Batch { events: more, undo: back, drafts, moved: heads, .. } = batch;
        if fine {
            moved.extend(heads);
            events.extend(more);
            undo.extend(back);
            for (channel, more) in drafts {
                working.drafts.entry(channel).or_default().extend(more);
            }
        } else {
            if transaction.is_autocommit() {
                // SQLite gave the whole transaction up, as it does when the disk is full or fails.
                roll_back(working, back, version_before);
                return Err(StoreError::GaveUp);
            }
            transaction.execute_batch("ROLLBACK TO job")?;
            roll_back(working, back, version_before);
        }
        transaction.execute_batch("RELEASE job")?;
        pace.longest_ms = pace.longest_ms.max((shared.clock)().0.saturating_sub(job_began.0));
    }
    pace.made = (shared.clock)();
    if let Some(log) = &mut working.log {
        let own = channels::seal_logs(&transaction, log, std::mem::take(&mut working.drafts), now)?;
        let writer = log.identity().id();
        let channels: Vec<ChannelName> = own.iter().map(|log| log.channel.clone()).collect();
        channels::truncate(&transaction, &writer, &channels, retention.log_records_max, retention.log_bytes_max)?;
        moved.extend(own);
    }
    let mut swept = false;
    if now.0.abs_diff(working.swept.0) >= retention::SWEEP_MS {
        swept = retention::sweep(&transaction, retention, now)? > 0;
        working.swept = now;
    }
    if !events.is_empty() {
        trim(&transaction, shared, working.version)?;
    }
    pace.written = (shared.clock)();
    transaction.commit()?;
    Ok(Done { events, moved, swept })
}

/// Runs a job and publishes what it did; whatever fails of it, all of it is undone.
fn run_job(job: &mut dyn Job, batch: &mut Batch<'_>) -> bool {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        if !job.run(batch) {
            return false;
        }
        match batch.publish() {
            Ok(()) => true,
            Err(error) => {
                job.fail(ApiError::from(error));
                false
            }
        }
    }));
    ran.unwrap_or_else(|_| {
        job.fail(ApiError::of(Reason::InternalError, "the write met a fault in the hub; it was undone"));
        false
    })
}

/// The hub's log as the database has it.
fn reload_log(connection: &Connection, working: &mut Working) -> Result<(), StoreError> {
    if let Some(log) = &working.log {
        let heads = logs::heads_of(connection, &log.identity().id())?;
        let mut again = LogWriter::new(log.identity().clone(), heads);
        for (channel, seq) in logs::hub_ends(connection)? {
            again.start_at(&channel, seq);
        }
        working.log = Some(again);
    }
    Ok(())
}

/// Drops from the `event` table what the window in memory has dropped, and remembers the newest version.
fn trim(transaction: &Transaction<'_>, shared: &Shared, version: u64) -> Result<(), StoreError> {
    let floor = shared.history_floor();
    transaction.prepare_cached("DELETE FROM event WHERE version <= ?1")?.execute([floor.cast_signed()])?;
    schema::set_meta(transaction, "version", version.cast_signed())?;
    Ok(())
}

fn roll_back(working: &mut Working, undo: Vec<Undo>, version: u64) {
    if planted::is(Bug::CommitLeftInMemory) {
        return;
    }
    for step in undo.into_iter().rev() {
        match step {
            Undo::Object(key, object) => {
                working.index.set(&key, object);
            }
            Undo::Rollout(workload, state) => {
                working.index.set_rollout(&workload, state);
            }
            Undo::Threshold(workload, number, threshold) => {
                working.index.set_threshold(&workload, &number, threshold);
            }
            Undo::Grant(workload, node, number) => {
                working.index.set_grant(&workload, &node, number.as_deref());
            }
        }
    }
    working.version = version;
    if let Some(publication) = &mut working.publication {
        publication.restore(&working.index);
    }
}

/// An error with its sources, for the log.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(next) = source {
            write!(formatter, ": {next}")?;
            source = next.source();
        }
        Ok(())
    }
}
