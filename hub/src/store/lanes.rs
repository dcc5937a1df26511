//! The two queues before the writer: one of people and their tools, one of the fleet and the controllers.
//!
//! Owns whose turn it is. Whoever waits at the API waits for one job of the fleet and one commit, however much the fleet writes; and
//! the fleet goes on, if in smaller commits, however much people write.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::writer::Job;

/// Writes waiting in each lane; beyond that, callers wait.
pub(super) const QUEUE_LEN_MAX: usize = 1024;
/// Jobs in one transaction at most: bounds the time the first of them waits, and whoever comes to the API in the middle of its commit.
/// Larger ones are hardly quicker: by then it is the jobs that take the time, not the disk.
pub(super) const BATCH_JOBS_MAX: usize = 64;
/// Jobs of the fleet in a transaction after the first of the people's, if so many wait: bounds the time that one waits, and is the
/// fleet's share however many people write.
const FLEET_BESIDE_PEOPLE_MAX: usize = 16;

type Boxed = Box<dyn Job>;

/// Where jobs come in.
pub(super) struct Entrances {
    pub(super) people: mpsc::Sender<Boxed>,
    pub(super) fleet: mpsc::Sender<Boxed>,
}

/// Where the writer takes them out.
pub(super) struct Lanes {
    people: mpsc::Receiver<Boxed>,
    fleet: mpsc::Receiver<Boxed>,
    /// Jobs of the fleet taken out to share a transaction, and left when it was closed early.
    taken: VecDeque<Boxed>,
}

/// The jobs of one transaction.
pub(super) struct Turn<'a> {
    lanes: &'a mut Lanes,
    first: Option<Boxed>,
    run: Vec<Boxed>,
    fleet_left: usize,
}

pub(super) fn open() -> (Entrances, Lanes) {
    let (people, of_people) = mpsc::channel(QUEUE_LEN_MAX);
    let (fleet, of_fleet) = mpsc::channel(QUEUE_LEN_MAX);
    (Entrances { people, fleet }, Lanes { people: of_people, fleet: of_fleet, taken: VecDeque::new() })
}

impl Entrances {
    /// Jobs that wait.
    pub(super) fn queued(&self) -> usize {
        [&self.people, &self.fleet].into_iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

impl Lanes {
    /// The next transaction's jobs, once there is one; `None` when nobody can bring any.
    pub(super) async fn turn(&mut self) -> Option<Turn<'_>> {
        let first = if self.taken.is_empty() {
            tokio::select! {
                biased;
                Some(job) = self.people.recv() => Some(job),
                Some(job) = self.fleet.recv() => {
                    self.taken.push_back(job);
                    None
                }
                else => return None,
            }
        } else {
            None
        };
        while self.taken.len() < BATCH_JOBS_MAX {
            let Ok(job) = self.fleet.try_recv() else { break };
            self.taken.push_back(job);
        }
        let fleet_left = if first.is_some() { FLEET_BESIDE_PEOPLE_MAX } else { BATCH_JOBS_MAX };
        Some(Turn { lanes: self, first, run: Vec::new(), fleet_left })
    }
}

impl Turn<'_> {
    /// The job that is to run now; `None` when the transaction is to be closed.
    pub(super) fn next(&mut self) -> Option<&mut Boxed> {
        if self.run.len() >= BATCH_JOBS_MAX {
            return None;
        }
        // The fleet's share is kept for it: people who never pause would fill every transaction.
        let room = BATCH_JOBS_MAX - self.run.len();
        let share = self.lanes.taken.len().min(self.fleet_left).min(FLEET_BESIDE_PEOPLE_MAX);
        let person = if room > share { self.first.take().or_else(|| self.lanes.people.try_recv().ok()) } else { None };
        let job = match person {
            Some(job) => {
                self.fleet_left = self.fleet_left.min(FLEET_BESIDE_PEOPLE_MAX);
                job
            }
            None => {
                self.fleet_left = self.fleet_left.checked_sub(1)?;
                self.lanes.taken.pop_front()?
            }
        };
        self.run.push(job);
        self.run.last_mut()
    }

    /// Jobs that have run.
    pub(super) fn len(&self) -> usize {
        self.run.len()
    }

    /// Every job that was to share the transaction, run or not.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Boxed> {
        let Self { lanes, first, run, .. } = self;
        // None of them is left for the next: it met the same disk.
        run.extend(first.take());
        run.extend(lanes.taken.drain(..));
        run.iter_mut()
    }

    /// Tells the callers.
    pub(super) fn answer(self) {
        for job in self.run {
            job.answer();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::api_error::ApiError;

    use super::super::Batch;
    use super::*;

    /// A job that is known by its name.
    struct Named(&'static str, std::sync::mpsc::Sender<&'static str>);

    impl Job for Named {
        fn run(&mut self, _batch: &mut Batch<'_>) -> bool {
            true
        }

        fn fail(&mut self, _error: ApiError) {}

        fn answer(self: Box<Self>) {
            self.1.send(self.0).unwrap();
        }
    }

    /// Takes the jobs of a turn; beside the so-manieth somebody comes to the API.
    async fn run(lanes: &mut Lanes, mut meanwhile: impl FnMut(usize)) -> usize {
        let mut turn = lanes.turn().await.unwrap();
        while turn.next().is_some() {
            meanwhile(turn.len());
        }
        let count = turn.len();
        turn.answer();
        count
    }

    #[tokio::test]
    async fn somebody_at_the_api_waits_for_few_of_the_fleet_and_the_fleet_goes_on() {
        let (entrances, mut lanes) = open();
        let (told, heard) = std::sync::mpsc::channel();
        let fleet = || entrances.fleet.try_send(Box::new(Named("fleet", told.clone()))).map_err(drop).unwrap();
        let person = || entrances.people.try_send(Box::new(Named("person", told.clone()))).map_err(drop).unwrap();
        (0..100).for_each(|_| fleet());
        assert_eq!(entrances.queued(), 100);
        let count = run(&mut lanes, |run| {
            if run == 10 {
                person()
            }
        })
        .await;
        let order: Vec<_> = heard.try_iter().collect();
        assert_eq!(order.iter().position(|name| *name == "person"), Some(10), "it is next");
        assert_eq!(count, 10 + 1 + FLEET_BESIDE_PEOPLE_MAX, "and its commit soon");
        // People who never stop.
        person();
        let mut turns = 0;
        while heard.try_iter().filter(|name| *name == "fleet").count() > 0 || turns == 0 {
            run(&mut lanes, |_| {}).await;
            person();
            turns += 1;
        }
        assert!((5..=7).contains(&turns), "{turns} commits for the 74 that were left");
    }

    #[tokio::test]
    async fn people_who_fill_every_transaction_leave_the_fleet_its_share() {
        let (entrances, mut lanes) = open();
        let (told, heard) = std::sync::mpsc::channel();
        let fleet = || entrances.fleet.try_send(Box::new(Named("fleet", told.clone()))).map_err(drop).unwrap();
        let person = || entrances.people.try_send(Box::new(Named("person", told.clone()))).map_err(drop).unwrap();
        (0..40).for_each(|_| fleet());
        (0..BATCH_JOBS_MAX + 44).for_each(|_| person());
        for left in [40, 40 - FLEET_BESIDE_PEOPLE_MAX, 40 - 2 * FLEET_BESIDE_PEOPLE_MAX, 0] {
            // As many come as are taken.
            let count = run(&mut lanes, |_| person()).await;
            assert_eq!(count, BATCH_JOBS_MAX);
            let fleet_run = heard.try_iter().filter(|name| *name == "fleet").count();
            assert_eq!(fleet_run, left.min(FLEET_BESIDE_PEOPLE_MAX), "of {left} that waited");
        }
    }

    #[tokio::test]
    async fn a_failure_meets_all_that_were_to_share_the_transaction() {
        let (entrances, mut lanes) = open();
        let (told, heard) = std::sync::mpsc::channel();
        for _ in 0..5 {
            entrances.fleet.try_send(Box::new(Named("fleet", told.clone()))).map_err(drop).unwrap();
        }
        let mut turn = lanes.turn().await.unwrap();
        assert!(turn.next().is_some());
        assert_eq!(turn.all_mut().count(), 5);
        turn.answer();
        assert_eq!(heard.try_iter().count(), 5);
        drop(entrances);
        assert!(lanes.turn().await.is_none(), "nobody can bring any more");
    }
}
