//! Runs the controllers and the scheduler: something changed -> what is to be planned again -> plan -> write.
//!
//! Owns the work queue and its delays, and the one loop. Refuses decisions: those are the plans'. Plans are made from the
//! committed state and written with compare-and-swap; one that is refused is made anew. Start at [`run`]; [`trigger`] says what
//! follows from a change, [`queue`] when.

mod carry_out;
pub mod queue;
pub mod trigger;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::WatchEvent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::controllers::daemon_set::Readings;
use crate::controllers::{self, Plan, View};
use crate::fleet::contact::{Contact, Contacts};
use crate::scheduler;
use crate::store::Store;
use queue::{Queue, Task};

/// Plans made before they are written.
const PLANS_MAX: usize = 64;
/// Longest sleep: a plan is never older than this, whatever was missed.
const SLEEP_MS_MAX: u64 = 60_000;
/// A write that met a newer object is planned again after this.
const CONFLICT_DELAY_MS: u64 = 5;

/// What the loop wakes for.
enum Wake {
    Changed(WatchEvent),
    Contact,
    Due,
    Shutdown,
}

/// Runs until `shutdown` says true or its sender is gone.
pub async fn run(store: Store, contacts: Contacts, shutdown: watch::Receiver<bool>) {
    let mut runner = Runner::starting(store, contacts);
    let mut shutdown = shutdown;
    let mut contact_changes = runner.contacts.changes();
    runner.watch_all();
    loop {
        let wake = runner.select(&mut contact_changes, &mut shutdown).await;
        match wake {
            Wake::Changed(event) => runner.changed(&event),
            Wake::Contact => runner.contact_changes(),
            Wake::Due => {}
            Wake::Shutdown => break,
        }
        while let Ok(event) = runner.events.try_recv() {
            runner.changed(&event);
        }
        runner.work().await;
    }
}

struct Runner {
    store: Store,
    contacts: Contacts,
    /// Contacts as last compared.
    known: Arc<BTreeMap<String, Contact>>,
    queue: Queue,
    events: mpsc::Receiver<WatchEvent>,
    /// Of each DaemonSet, since its last plan.
    readings: BTreeMap<ObjectKey, Readings>,
}

impl Runner {
    fn starting(store: Store, contacts: Contacts) -> Self {
        // Replaced by the first watch.
        let (_unused, events) = mpsc::channel(1);
        let known = Arc::new(contacts.all());
        Self { store, contacts, known, queue: Queue::default(), events, readings: BTreeMap::new() }
    }

    /// Watches from now on and plans everything once.
    fn watch_all(&mut self) {
        let from = self.store.version();
        // Nothing is planned by Events, nor by the Leases that leaders renew all the time. One watch for all: in the order of the commits.
        let planned_by = |key: &ObjectKey| key.kind != &kind::EVENT && key.kind != &kind::LEASE;
        match self.store.watch_where(planned_by, from) {
            Ok(events) => self.events = events,
            Err(error) => {
                // The history is shorter than the time since `from` was read: the next pass tries again.
                tracing::warn!(%error, "the controllers' watch did not start");
                self.queue.add(Task::Everything, Timestamp(self.store.now().0 + 1000));
            }
        }
        // Whose DaemonSet went meanwhile is not told.
        self.readings.clear();
        let now = self.store.now();
        let tasks = self.store.view(trigger::everything);
        self.queue.add_all(tasks, now);
    }

    async fn select(&mut self, contacts: &mut watch::Receiver<()>, shutdown: &mut watch::Receiver<bool>) -> Wake {
        if *shutdown.borrow() {
            return Wake::Shutdown;
        }
        let now = self.store.now();
        let due = self.queue.next_at().unwrap_or(Timestamp(u64::MAX));
        let sleep = Duration::from_millis(due.0.saturating_sub(now.0).min(SLEEP_MS_MAX));
        tokio::select! {
            biased;
            _ = shutdown.changed() => Wake::Shutdown,
            changed = contacts.changed() => if changed.is_ok() { Wake::Contact } else { Wake::Shutdown },
            () = tokio::time::sleep(sleep) => Wake::Due,
            // One that has ended fell behind or did not start, and is begun anew when that is due.
            Some(event) = self.events.recv() => Wake::Changed(event),
        }
    }

    fn changed(&mut self, event: &WatchEvent) {
        let now = self.store.now();
        if matches!(event, WatchEvent::Expired) {
            tracing::info!("the controllers fell behind and start anew");
            self.queue.add(Task::Everything, now);
            return;
        }
        if let WatchEvent::Deleted(object) = event {
            self.readings.remove(&object.key());
        }
        let tasks = self.store.view(|index| trigger::by_change(index, event));
        self.queue.add_all(tasks, now);
    }

    /// In a large fleet many come or go together.
    fn contact_changes(&mut self) {
        let gathers_ms = trigger::gathering_of(u64::try_from(self.known.len()).unwrap_or(u64::MAX));
        self.queue.add_all([(Task::Contacts, gathers_ms)], self.store.now());
    }

    fn compare_contacts(&mut self) {
        let now = self.store.now();
        let present = self.contacts.all();
        let moved: Vec<&str> = present
            .iter()
            .filter(|(node, contact)| self.known.get(*node) != Some(*contact))
            .map(|(node, _)| node.as_str())
            .collect();
        let tasks = self.store.view(|index| {
            let mut tasks = BTreeMap::new();
            for node in &moved {
                tasks.extend(trigger::by_contact(index, node));
            }
            tasks
        });
        self.queue.add_all(tasks, now);
        self.known = Arc::new(present);
    }

    /// Plans what is due, and writes the plans; until nothing is due.
    async fn work(&mut self) {
        loop {
            let now = self.store.now();
            let mut due = self.queue.pop_due(now, PLANS_MAX);
            if due.is_empty() {
                return;
            }
            if due.contains(&Task::Everything) {
                self.watch_all();
            }
            if due.contains(&Task::Contacts) {
                self.compare_contacts();
            }
            due.retain(|task| !matches!(task, Task::Everything | Task::Contacts));
            let mut plans = Vec::with_capacity(due.len());
            for task in due {
                let began = self.store.now();
                let planned = self.plan(&task, now).await;
                self.queue.planned(&task, began, self.store.now());
                match planned {
                    Ok(plan) => plans.push((task, plan)),
                    Err(fault) => {
                        let again = self.queue.failed(&task, now);
                        tracing::error!(?task, %fault, %again, "a plan ended by a fault of this program");
                    }
                }
            }
            self.write(plans, now).await;
        }
    }

    /// A plan over all Nodes is made from what it looks at, taken out at once, and beside the sessions: commits, and all who read after
    /// them, would wait for it.
    async fn plan(&mut self, task: &Task, now: Timestamp) -> Result<Plan, tokio::task::JoinError> {
        let (contacts, started) = (Arc::clone(&self.known), self.contacts.started());
        let Task::DaemonSet(key) = task else {
            return Ok(self.store.view(|index| plan(&View { index, contacts: &contacts, started, now }, task)));
        };
        let around = self.store.view(|index| index.around(key));
        let mut readings = self.readings.remove(key).unwrap_or_default();
        let planning = move || {
            let view = View { index: &around, contacts: &contacts, started, now };
            let plan = controllers::daemon_set::plan(&view, &mut readings);
            (plan, around.workload.map(|_| readings))
        };
        let (plan, readings) = self.store.aside(planning).await?;
        self.readings.extend(readings.map(|readings| (key.clone(), readings)));
        Ok(plan)
    }

    /// Writes plans side by side, so that they share commits.
    async fn write(&mut self, plans: Vec<(Task, Plan)>, now: Timestamp) {
        let mut writing = JoinSet::new();
        for (task, plan) in plans {
            if let Some(at) = plan.wake_at {
                self.queue.add(task.clone(), at.max(Timestamp(now.0 + 1)));
            }
            if plan.writes.is_empty() {
                self.queue.succeeded(&task);
                continue;
            }
            let store = self.store.clone();
            writing.spawn(async move {
                let mut result = Ok(());
                for writes in carry_out::in_pieces(plan.writes) {
                    let user = task.user();
                    result = store.write(move |batch| carry_out::carry_out(batch, writes, &user)).await;
                    if result.is_err() {
                        break;
                    }
                }
                (task, result)
            });
        }
        while let Some(joined) = writing.join_next().await {
            match joined {
                Ok((task, Ok(()))) => self.queue.succeeded(&task),
                Ok((task, Err(error))) => self.refused(task, &error, now),
                Err(error) => tracing::error!(%error, "a controller's write ended by a fault"),
            }
        }
    }

    fn refused(&mut self, task: Task, error: &ApiError, now: Timestamp) {
        if matches!(error.reason, Reason::Conflict | Reason::NotFound) {
            tracing::debug!(?task, %error, "a plan met a newer state");
            self.queue.add(task, Timestamp(now.0 + CONFLICT_DELAY_MS));
            return;
        }
        let again = self.queue.failed(&task, now);
        tracing::warn!(?task, %error, %again, "a plan was refused");
    }
}

/// The plan of one task.
fn plan(view: &View<'_>, task: &Task) -> Plan {
    match task {
        Task::Deployment(key) => controllers::deployment::plan(view, key),
        Task::ReplicaSet(key) => controllers::replica_set::plan(view, key),
        Task::Node(name) => controllers::node::plan(view, &ObjectKey::of(&kind::NODE, "", name.as_str())),
        Task::Namespace(name) => {
            controllers::namespace::plan(view, &ObjectKey::of(&kind::NAMESPACE, "", name.as_str()))
        }
        Task::Owner(uid) => controllers::garbage::plan_owner(view, uid),
        Task::Dependent(uid) => controllers::garbage::plan_dependent(view, uid),
        Task::Schedule => scheduler::plan(view),
        Task::Events => controllers::events::sweep(view),
        Task::DaemonSet(key) => {
            let View { index, contacts, started, now } = *view;
            let around = View { index: &index.around(key), contacts, started, now };
            controllers::daemon_set::plan(&around, &mut Readings::default())
        }
        Task::Everything | Task::Contacts => Plan::default(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
