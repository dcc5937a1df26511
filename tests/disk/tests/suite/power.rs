//! The power fails, at every point there is.

use flotilla_disk::Disk;

use crate::history::{self, Journal};

const JOURNALS: [Journal; 3] = [Journal::Wal, Journal::Rollback, Journal::RollbackWithoutFolder];

/// One life of a few steps after another, each ended by a power cut; with what went wrong first.
fn lives(name: &str, seed: u64, journal: Journal, prepare: impl Fn(&Disk)) -> Result<(), String> {
    let disk = Disk::new(name, seed).unwrap();
    let mut acknowledged = 0;
    for life in 0..3 {
        let mut connection = history::open(&disk, journal).map_err(|error| error.to_string())?;
        prepare(&disk);
        let steps = 1 + i64::try_from((seed + life) % 7).unwrap();
        acknowledged = history::run(&mut connection, acknowledged + 1..=acknowledged + steps);
        disk.power_cut();
        let survived = history::survived(&disk, journal);
        history::check(acknowledged, survived.clone(), journal)
            .map_err(|wrong| format!("{journal:?}, seed {seed}, life {life}: {wrong}"))?;
        acknowledged = survived?;
    }
    Ok(())
}

#[test]
fn what_was_committed_outlives_a_power_cut() {
    for journal in JOURNALS {
        for seed in 0..1000 {
            lives(&format!("outlives-{journal:?}"), seed, journal, |_| ()).unwrap();
        }
    }
}

/// A cut at every operation of a history; with the log, which is how our databases are kept, each with several ways to tear what
/// was on its way.
#[test]
fn a_cut_at_any_operation_loses_nothing_acknowledged_and_leaves_nothing_by_half() {
    const STEPS: i64 = 50;
    for journal in JOURNALS {
        let seeds = if journal == Journal::Wal { 4 } else { 1 };
        let mut points = 0;
        'points: for operations in 0.. {
            for seed in 0..seeds {
                let disk = Disk::new(&format!("any-{journal:?}"), seed * 7919 + operations).unwrap();
                disk.cut_after(operations);
                let acknowledged =
                    history::open(&disk, journal).map_or(0, |mut connection| history::run(&mut connection, 1..=STEPS));
                if !disk.is_dead() {
                    assert_eq!(acknowledged, STEPS);
                    break 'points;
                }
                assert!(disk.open(history::FILE).is_err(), "nothing opens on a dead disk");
                disk.power_cut();
                let survived = history::survived(&disk, journal);
                if let Err(wrong) = history::check(acknowledged, survived, journal) {
                    panic!("{journal:?}, cut after {operations}, seed {seed}: {wrong}");
                }
                points += 1;
            }
        }
        assert!(points > 500, "{journal:?}: only {points} cuts");
    }
}

#[test]
fn lost_syncs_are_found() {
    for journal in [Journal::Wal, Journal::Rollback] {
        let found = (0..100)
            .filter(|seed| lives(&format!("lost-{journal:?}"), *seed, journal, |disk| disk.lose_syncs(true)).is_err())
            .count();
        assert!(found > 50, "{journal:?}: of 100 seeds {found} show that syncs are lost");
    }
}

/// The cut itself decides, not what begins the next life.
#[test]
fn a_cut_that_was_set_takes_what_was_not_synced() {
    let loses = |seed| {
        let disk = Disk::new("set", seed).unwrap();
        let mut connection = history::open(&disk, Journal::Wal).unwrap();
        history::run(&mut connection, 1..=2);
        connection.pragma_update(None, "synchronous", "OFF").unwrap();
        disk.cut_after(30);
        let acknowledged = history::run(&mut connection, 3..=20);
        assert!(disk.is_dead() && acknowledged < 20);
        disk.kill();
        assert!(!disk.is_dead());
        history::survived(&disk, Journal::Wal).is_ok_and(|last| last < acknowledged)
    };
    let lost = (0..50).filter(|seed| loses(*seed)).count();
    assert!((10..50).contains(&lost), "of 50 seeds {lost} lose what was not synced");
}

/// The reason for a sync of the folder: without it the deletion of a journal is sometimes undone, and so is its transaction.
#[test]
fn a_deletion_without_a_sync_of_the_folder_is_sometimes_taken_back() {
    let strict = |seed| {
        let disk = Disk::new("folder", seed).unwrap();
        let mut connection = history::open(&disk, Journal::RollbackWithoutFolder).unwrap();
        assert_eq!(history::run(&mut connection, 1..=5), 5);
        disk.power_cut();
        history::survived(&disk, Journal::RollbackWithoutFolder).unwrap()
    };
    let last: Vec<i64> = (0..50).map(strict).collect();
    assert!(last.contains(&4) && last.contains(&5), "{last:?}");
}
