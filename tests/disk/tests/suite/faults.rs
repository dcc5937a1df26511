//! A disk that is full, fails or rots, and what it counts.

use flotilla_disk::{Disk, Failures};
use rusqlite::{Connection, ErrorCode};

use crate::history::{self, FILE, Journal};

fn bytes(disk: &Disk) -> u64 {
    disk.files().iter().map(|file| disk.read(file).unwrap().len() as u64).sum()
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    for journal in [Journal::Wal, Journal::Rollback] {
        let disk = Disk::new(&format!("full-{journal:?}"), 1).unwrap();
        let mut connection = history::open(&disk, journal).unwrap();
        let committed = history::run(&mut connection, 1..=10);
        let room = bytes(&disk) + 20_000;
        disk.set_room(Some(room));
        let filled = history::run(&mut connection, committed + 1..=1000);
        assert!(filled < 1000);
        let error = history::commit(&mut connection, filled + 1).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DiskFull), "{error}");
        assert!(bytes(&disk) <= room);
        assert_eq!(history::last_whole(&connection), Ok(filled));

        disk.set_room(None);
        assert_eq!(history::run(&mut connection, filled + 1..=filled + 20), filled + 20);
        disk.power_cut();
        assert_eq!(history::survived(&disk, journal), Ok(filled + 20));
    }
}

/// A commit that failed may still turn out to be there: SQLite says neither after a failed sync. So each life goes on from what it
/// finds.
#[test]
fn a_failing_disk_loses_nothing_that_was_acknowledged() {
    for journal in [Journal::Wal, Journal::Rollback] {
        let mut failed = 0;
        for seed in 0..200 {
            let disk = Disk::new(&format!("failing-{journal:?}"), seed).unwrap();
            let mut connection = history::open(&disk, journal).unwrap();
            disk.set_failures(match seed % 3 {
                0 => Failures::Every { operations: 11 + seed % 20, reads: false },
                1 => Failures::OneIn { operations: 20, reads: false },
                _ => Failures::OneIn { operations: 20, reads: true },
            });
            let acknowledged = history::run(&mut connection, 1..=30);
            failed += u32::from(acknowledged < 30);
            disk.set_failures(Failures::None);
            disk.power_cut();
            history::check(acknowledged, history::survived(&disk, journal), journal)
                .unwrap_or_else(|wrong| panic!("{journal:?}, seed {seed}: {wrong}"));
        }
        assert!(failed > 150, "{journal:?}: only {failed} of 200 met a failure");
    }
}

/// Everything that can befall a disk, mixed by seed, in lives that each end in their own way and with a reader beside the writer.
#[test]
fn whatever_befalls_a_disk_nothing_acknowledged_is_lost() {
    let mut unfinished = 0;
    for seed in 0..400 {
        let journal = if seed % 4 == 0 { Journal::Rollback } else { Journal::Wal };
        let disk = Disk::new("whatever", seed).unwrap();
        let mut acknowledged = 0;
        for life in 0..4 {
            let mut pick = (seed * 4 + life).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8;
            let mut below = |bound: u64| {
                pick = pick.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(23);
                (pick >> 16) % bound
            };
            disk.set_room((below(4) == 0).then(|| bytes(&disk) + below(60_000)));
            if below(2) == 0 {
                disk.set_failures(Failures::OneIn { operations: 10 + below(200), reads: below(2) == 0 });
            }
            if below(2) == 0 {
                disk.cut_after(below(400));
            }
            let writer = history::open(&disk, journal);
            let reader = history::open(&disk, journal);
            let steps = acknowledged + 1..=acknowledged + 25;
            let end = *steps.end();
            if let Ok(mut writer) = writer {
                acknowledged = history::run(&mut writer, steps);
                if let Some(seen) = reader.ok().and_then(|reader| history::last_whole(&reader).ok()) {
                    assert_eq!(seen, acknowledged, "seed {seed}, life {life}: what the reader sees");
                }
                if below(3) == 0 {
                    drop(writer);
                }
            }
            unfinished += u32::from(acknowledged < end);
            if below(3) == 0 && !disk.is_dead() {
                disk.kill()
            } else {
                disk.power_cut()
            }
            disk.set_failures(Failures::None);
            disk.set_room(None);
            let survived = history::survived(&disk, journal);
            history::check(acknowledged, survived.clone(), journal)
                .unwrap_or_else(|wrong| panic!("seed {seed}, life {life}, {journal:?}: {wrong}"));
            acknowledged = survived.unwrap();
        }
    }
    assert!(unfinished > 400, "of 1600 lives {unfinished} met something");
}

#[test]
fn failures_are_counted_as_asked() {
    let disk = Disk::new("counted", 1).unwrap();
    let connection = disk.open("t.db").unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (a)").unwrap();
    disk.set_failures(Failures::Every { operations: 1, reads: false });
    assert!(connection.execute("INSERT INTO t VALUES (1)", []).is_err());
    let count =
        |connection: &Connection| connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    assert_eq!(count(&disk.open("t.db").unwrap()).unwrap(), 0, "reads were not to fail");
    disk.set_failures(Failures::Every { operations: 1, reads: true });
    assert!(disk.open("t.db").and_then(|connection| count(&connection)).is_err());
    disk.set_failures(Failures::OneIn { operations: 0, reads: true });
    assert_eq!(count(&disk.open("t.db").unwrap()).unwrap(), 0, "none of no operations");
}

#[test]
fn a_flipped_bit_is_one_bit_and_is_noticed() {
    let disk = Disk::new("rotten", 2).unwrap();
    assert_eq!(disk.flip_bit(), None);
    let mut connection = history::open(&disk, Journal::Wal).unwrap();
    history::run(&mut connection, 1..=50);
    drop(connection);
    let whole = disk.read(FILE).unwrap();
    let (file, place) = disk.flip_bit().unwrap();
    assert_eq!(file, FILE);
    let damaged = disk.read(FILE).unwrap();
    assert_eq!((damaged[place] ^ whole[place]).count_ones(), 1);
    assert_eq!(damaged.iter().zip(&whole).filter(|(now, then)| now != then).count(), 1);

    (0..2000).for_each(|_| drop(disk.flip_bit()));
    assert!(history::survived(&disk, Journal::Wal).is_err());
}

#[test]
fn what_wears_flash_is_counted() {
    let disk = Disk::new("wear", 3).unwrap();
    let connection = disk.open("t.db").unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (a)").unwrap();
    let before = disk.counters();
    connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let after = disk.counters();
    assert_eq!(after.syncs - before.syncs, 1, "one sync a commit");
    // One page goes into the log, with a head of 24 bytes.
    assert_eq!((after.writes - before.writes, after.bytes_written - before.bytes_written), (2, 4096 + 24));
}

#[test]
fn databases_see_the_time_that_was_set() {
    let disk = Disk::new("time", 4).unwrap();
    let connection = disk.open("t.db").unwrap();
    flotilla_disk::set_time(1_234_567_890_123);
    let now: String =
        connection.query_row("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')", [], |row| row.get(0)).unwrap();
    assert_eq!(now, "2009-02-13 23:31:30.123");
}
