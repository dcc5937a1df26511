//! What is to be planned again, each task once, at the earliest time asked for; and back-off after failures. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;

const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 60_000;

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
    failures: BTreeMap<Task, u32>,
}

impl Queue {
    /// Asks for a task at `at`; one that is asked for already keeps its earlier time.
    pub fn add(&mut self, task: Task, at: Timestamp) {
        if let Some(present) = self.at.get(&task).copied() {
            if present <= at {
                return;
            }
            self.due.remove(&(present, task.clone()));
        }
        self.at.insert(task.clone(), at);
        self.due.insert((at, task));
    }

    /// Asks for tasks, each after its delay in milliseconds.
    pub fn add_all(&mut self, tasks: impl IntoIterator<Item = (Task, u64)>, now: Timestamp) {
        for (task, delay_ms) in tasks {
            self.add(task, Timestamp(now.0.saturating_add(delay_ms)));
        }
    }

    /// Takes out at most `count_max` tasks that are due, the earliest first.
    pub fn pop_due(&mut self, now: Timestamp, count_max: usize) -> Vec<Task> {
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
}
