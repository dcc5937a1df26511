//! What is to be planned again, each task once, at the earliest time asked for; and back-off after failures. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;

/// What is planned after a rest gathers for no longer than this.
const GATHERS_AFTER_REST_MS: u64 = 20;
/// Tasks that rest; of more every change is planned soon.
const RESTING_MAX: usize = 1024;
const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 60_000;

/// A plan that took this long is dear; quicker ones rest no time.
const DEAR_MS_MIN: u64 = 10;
/// A dear plan rests so many times as long as it took: nine leave nine tenths of a processor to the fleet. No longer than this.
const REST_FACTOR: u64 = 9;
const REST_MS_MAX: u64 = 5_000;

/// One thing that can be planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Watch anew and plan everything.
    Everything,
    /// See who came into contact and who went.
    Contacts,
    Deployment(ObjectKey),
    ReplicaSet(ObjectKey),
    /// Place the Pods that wait.
    Schedule,
    DaemonSet(ObjectKey),
    Node(String),
    Namespace(String),
    /// Collect what an owner with this uid leaves.
    Owner(String),
    /// See whether an object with this uid still has an owner.
    Dependent(String),
    /// Forget old Events.
    Events,
}

impl Task {
    /// The user under whose name a task's writes stand in the audit log.
    pub fn user(&self) -> String {
        let name = match self {
            Self::Everything | Self::Contacts => "runner",
            Self::Deployment(_) => "deployment-controller",
            Self::ReplicaSet(_) => "replicaset-controller",
            Self::Schedule => "scheduler",
            Self::DaemonSet(_) => "daemon-set-controller",
            Self::Node(_) => "node-controller",
            Self::Namespace(_) => "namespace-controller",
            Self::Owner(_) | Self::Dependent(_) => "generic-garbage-collector",
            Self::Events => "event-controller",
        };
        format!("system:controller:{name}")
    }
}

/// A set of tasks ordered by when they are due.
#[derive(Debug, Default)]
pub struct Queue {
    due: BTreeSet<(Timestamp, Task)>,
    at: BTreeMap<Task, Timestamp>,
    /// When tasks that gather are left alone after they were due, unless somebody wishes something of them.
    gathering: BTreeMap<Task, Rest>,
    failures: BTreeMap<Task, u32>,
    /// Tasks whose last plan was dear, and are left alone whoever asks.
    resting: BTreeMap<Task, Rest>,
}

/// A span of time. What a clock that was set back finds to begin later is none, or a rest of a second would last for a year.
#[derive(Debug, Clone, Copy)]
struct Rest {
    from: Timestamp,
    until: Timestamp,
}

impl Rest {
    /// The earliest time from `at` on.
    fn after(&self, at: Timestamp) -> Timestamp {
        if self.from <= at { at.max(self.until) } else { at }
    }

    fn is_on(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }
}

impl Queue {
    /// Asks for a task at `at`; one that is asked for already keeps its earlier time. One that rests comes after that.
    pub fn add(&mut self, task: Task, at: Timestamp) {
        let at = self.resting.get(&task).map_or(at, |rest| rest.after(at));
        if let Some(present) = self.at.get(&task).copied() {
            if present <= at {
                return;
            }
            self.due.remove(&(present, task.clone()));
        }
        self.at.insert(task.clone(), at);
        self.due.insert((at, task));
    }

    /// Asks for tasks, each with the milliseconds for which it gathers: one that was not taken out for so long is due soon, another once
    /// it was not. So the first of many reports is heeded at once, and all of them together make few plans.
    pub fn add_all(&mut self, tasks: impl IntoIterator<Item = (Task, u64)>, now: Timestamp) {
        self.gathering.retain(|_, rest| rest.is_on(now));
        for (task, gathers_ms) in tasks {
            let soon = Timestamp(now.0.saturating_add(gathers_ms.min(GATHERS_AFTER_REST_MS)));
            if gathers_ms == 0 {
                self.add(task, soon);
                continue;
            }
            let at = self.gathering.get(&task).map_or(soon, |rest| rest.after(soon));
            // One that waits for its time alone is asked for anew.
            let anew = self.at.get(&task).is_none_or(|present| *present > at);
            if anew && self.gathering.len() < RESTING_MAX {
                let until = Timestamp(at.0.saturating_add(gathers_ms));
                self.gathering.insert(task.clone(), Rest { from: now, until });
            }
            self.add(task, at);
        }
    }

    /// Takes out at most `count_max` tasks that are due, the earliest first.
    pub fn pop_due(&mut self, now: Timestamp, count_max: usize) -> Vec<Task> {
        self.resting.retain(|_, rest| rest.is_on(now));
        let mut tasks = Vec::new();
        while tasks.len() < count_max {
            match self.due.first() {
                Some((at, _)) if *at <= now => {}
                _ => break,
            }
            if let Some((_, task)) = self.due.pop_first() {
                self.at.remove(&task);
                tasks.push(task);
            }
        }
        tasks
    }

    pub fn next_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A task was planned, from `began` to `now`: what is asked for again at each of ten thousand reports does not take the processor
    /// from those who report.
    pub fn planned(&mut self, task: &Task, began: Timestamp, now: Timestamp) {
        let took_ms = now.0.saturating_sub(began.0);
        if took_ms >= DEAR_MS_MIN {
            let rest_ms = took_ms.saturating_mul(REST_FACTOR).min(REST_MS_MAX);
            self.resting.insert(task.clone(), Rest { from: now, until: Timestamp(now.0.saturating_add(rest_ms)) });
        } else {
            self.resting.remove(task);
        }
    }

    /// A task's plan was carried out.
    pub fn succeeded(&mut self, task: &Task) {
        self.failures.remove(task);
    }

    /// A task's plan was refused: asks for it again later and later, and says when.
    pub fn failed(&mut self, task: &Task, now: Timestamp) -> Timestamp {
        let failures = self.failures.entry(task.clone()).or_default();
        let delay = BACKOFF_MS_MIN.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MS_MAX);
        *failures = failures.saturating_add(1);
        let at = Timestamp(now.0.saturating_add(delay));
        self.add(task.clone(), at);
        at
    }

    pub fn len(&self) -> usize {
        self.at.len()
    }

    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Task {
        Task::Node(name.to_owned())
    }

    #[test]
    fn a_task_is_there_once_at_its_earliest_time() {
        let mut queue = Queue::default();
        queue.add(node("a"), Timestamp(50));
        queue.add(node("a"), Timestamp(90));
        queue.add(node("b"), Timestamp(20));
        queue.add(node("a"), Timestamp(10));
        assert_eq!((queue.len(), queue.next_at()), (2, Some(Timestamp(10))));
        assert_eq!(queue.pop_due(Timestamp(15), 9), [node("a")]);
        assert_eq!(queue.pop_due(Timestamp(15), 9), []);
        assert_eq!(queue.pop_due(Timestamp(99), 9), [node("b")]);
        assert!(queue.is_empty());
    }

    #[test]
    fn no_more_is_taken_than_asked_for() {
        let mut queue = Queue::default();
        queue.add_all([(node("a"), 0), (node("b"), 0), (node("c"), 5)], Timestamp(1));
        assert_eq!(queue.pop_due(Timestamp(9), 2), [node("a"), node("b")]);
        assert_eq!(queue.next_at(), Some(Timestamp(6)));
    }

    /// When a task is planned of which there is news in each of two thousand milliseconds.
    fn reported_all_the_time(after_plan: impl Fn(&mut Queue, u64)) -> (Queue, Vec<u64>) {
        let (mut queue, mut planned) = (Queue::default(), Vec::new());
        for now in 1000..3000 {
            queue.add_all([(node("a"), 250)], Timestamp(now));
            if !queue.pop_due(Timestamp(now), 9).is_empty() {
                planned.push(now);
                after_plan(&mut queue, now);
            }
        }
        (queue, planned)
    }

    #[test]
    fn the_first_of_many_reports_is_heeded_soon_and_all_of_them_make_few_plans() {
        let (mut queue, planned) = reported_all_the_time(|_, _| {});
        assert_eq!(planned[0], 1000 + GATHERS_AFTER_REST_MS);
        assert!(planned.windows(2).all(|pair| pair[1] - pair[0] == 250), "{planned:?}");
        // What is new of itself is planned at once, and what comes after it gathers on.
        queue.add_all([(node("a"), 0)], Timestamp(3000));
        assert_eq!(queue.pop_due(Timestamp(3000), 9), [node("a")]);
        // After a rest the first is heeded soon again.
        queue.add_all([(node("a"), 250)], Timestamp(9000));
        assert_eq!(queue.next_at(), Some(Timestamp(9000 + GATHERS_AFTER_REST_MS)));
        queue.add_all([(node("b"), 5)], Timestamp(9000));
        assert_eq!(queue.next_at(), Some(Timestamp(9005)));
    }

    #[test]
    fn failures_wait_longer_until_one_success() {
        let mut queue = Queue::default();
        let mut waits = Vec::new();
        for _ in 0..13 {
            waits.push(queue.failed(&node("a"), Timestamp(0)).0);
            assert_eq!(queue.pop_due(Timestamp(u64::MAX), 9), [node("a")]);
        }
        assert_eq!(waits[..4], [50, 100, 200, 400]);
        assert_eq!(waits.last(), Some(&BACKOFF_MS_MAX));
        queue.succeeded(&node("a"));
        assert_eq!(queue.failed(&node("a"), Timestamp(7)), Timestamp(57));
    }

    #[test]
    fn a_dear_plan_rests_and_others_do_not_wait_for_it() {
        let mut queue = Queue::default();
        queue.planned(&node("dear"), Timestamp(1000), Timestamp(1100));
        queue.planned(&node("cheap"), Timestamp(1100), Timestamp(1100 + DEAR_MS_MIN - 1));
        for name in ["dear", "cheap"] {
            queue.add(node(name), Timestamp(1150));
        }
        assert_eq!(queue.pop_due(Timestamp(1150), 9), [node("cheap")]);
        // Asked for earlier, it rests all the same.
        queue.add(node("dear"), Timestamp(1160));
        assert_eq!(queue.next_at(), Some(Timestamp(1100 + 100 * REST_FACTOR)));
        assert_eq!(queue.pop_due(Timestamp(2000), 9), [node("dear")]);
        queue.add(node("dear"), Timestamp(2001));
        assert_eq!(queue.next_at(), Some(Timestamp(2001)), "it has rested");
    }

    #[test]
    fn a_clock_that_is_set_back_ends_every_rest() {
        let (hour, year) = (3_600_000, 365 * 86_400_000);
        let mut queue = Queue::default();
        // Set forward by a year while it planned, and back afterwards.
        queue.planned(&node("dear"), Timestamp(hour), Timestamp(year));
        queue.add(node("dear"), Timestamp(hour + 200));
        assert_eq!(queue.pop_due(Timestamp(hour + 200), 9), [node("dear")]);
        // It gathers, and the clock is set back by an hour.
        queue.add_all([(node("many"), 250)], Timestamp(hour));
        assert_eq!(queue.pop_due(Timestamp(hour + 20), 9), [node("many")]);
        queue.add_all([(node("many"), 250)], Timestamp(1000));
        assert_eq!(queue.next_at(), Some(Timestamp(1000 + GATHERS_AFTER_REST_MS)));
    }

    #[test]
    fn one_that_waits_for_a_time_gathers_all_the_same() {
        // Each plan wants to be woken.
        let (_, planned) = reported_all_the_time(|queue, now| queue.add(node("a"), Timestamp(now + 10_000)));
        assert!(planned.len() > 5 && planned.windows(2).all(|pair| pair[1] - pair[0] == 250), "{planned:?}");
    }
}
