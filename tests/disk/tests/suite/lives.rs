//! Deaths, connections beside each other, and copies.

use flotilla_disk::Disk;
use rusqlite::{Connection, ErrorCode};

use crate::history::{self, FILE, Journal};

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    error.sqlite_error_code()
}

#[test]
fn a_killed_process_loses_nothing_it_had_written() {
    for journal in [Journal::Wal, Journal::Rollback] {
        let disk = Disk::new(&format!("killed-{journal:?}"), 1).unwrap();
        for life in 0..20 {
            let mut connection = history::open(&disk, journal).unwrap();
            connection.pragma_update(None, "synchronous", "OFF").unwrap();
            assert_eq!(history::run(&mut connection, life * 3 + 1..=life * 3 + 3), life * 3 + 3);
            disk.kill();
            drop(connection);
            assert_eq!(history::survived(&disk, journal), Ok(life * 3 + 3));
        }
    }
}

#[test]
fn connections_of_the_dead_do_no_harm() {
    for (name, end) in [("dead-kill", Disk::kill as fn(&Disk)), ("dead-power", Disk::power_cut)] {
        for journal in [Journal::Wal, Journal::Rollback] {
            let disk = Disk::new(name, 3).unwrap();
            let mut dead = history::open(&disk, journal).unwrap();
            history::run(&mut dead, 1..=5);
            dead.execute_batch("BEGIN IMMEDIATE; UPDATE step SET last = 1000").unwrap();
            end(&disk);

            let mut alive = history::open(&disk, journal).unwrap();
            history::commit(&mut alive, 6).unwrap();
            assert_eq!(code(&dead.execute_batch("COMMIT").unwrap_err()), Some(ErrorCode::SystemIoFailure));
            let read = dead.query_row("SELECT count(*) FROM part", [], |row| row.get::<_, i64>(0));
            assert!(read.is_err(), "a dead process reads nothing");
            assert!(dead.execute("DELETE FROM part", []).is_err());
            drop(dead);
            history::commit(&mut alive, 7).unwrap();
            drop(alive);
            assert_eq!(history::survived(&disk, journal), Ok(7), "{name} {journal:?}");
        }
    }
}

#[test]
fn a_writer_and_a_reader_share_a_log() {
    let disk = Disk::new("shared", 4).unwrap();
    let mut writer = history::open(&disk, Journal::Wal).unwrap();
    let reader = history::open(&disk, Journal::Wal).unwrap();
    for step in 1..=60 {
        history::commit(&mut writer, step).unwrap();
        assert_eq!(history::last_whole(&reader), Ok(step));
    }
    // A reader keeps the moment at which it began, while the writer goes on.
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(history::last_whole(&reader), Ok(60));
    history::run(&mut writer, 61..=120);
    assert_eq!(history::last_whole(&reader), Ok(60));
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(history::last_whole(&reader), Ok(120));
}

/// Not how the simulation runs, but what the type says: a disk may be used by several threads.
#[test]
fn threads_share_a_disk() {
    const STEPS: i64 = 100;
    let disk = Disk::new("threads", 12).unwrap();
    let mut writer = history::open(&disk, Journal::Wal).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut reader = history::open(&disk, Journal::Wal).unwrap();
            scope.spawn(move || {
                let mut seen = 0;
                while seen < STEPS {
                    let moment = reader.transaction().unwrap();
                    match history::last_whole(&moment) {
                        Ok(next) => {
                            assert!(next >= seen);
                            seen = next;
                        }
                        // Waiting takes no time here, so a reader may give up while the writer holds a lock.
                        Err(wrong) => assert!(wrong.contains("lock"), "{wrong}"),
                    }
                }
            });
        }
        assert_eq!(history::run(&mut writer, 1..=STEPS), STEPS);
    });
}

#[test]
fn one_writes_at_a_time_and_the_other_hears_that_it_is_busy() {
    for journal in [Journal::Wal, Journal::Rollback] {
        let disk = Disk::new(&format!("busy-{journal:?}"), 5).unwrap();
        let mut one = history::open(&disk, journal).unwrap();
        let mut other = history::open(&disk, journal).unwrap();
        one.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(code(&other.execute_batch("BEGIN IMMEDIATE").unwrap_err()), Some(ErrorCode::DatabaseBusy));
        one.execute_batch("COMMIT").unwrap();
        history::commit(&mut other, 1).unwrap();
        history::commit(&mut one, 2).unwrap();
        assert_eq!(history::last_whole(&other), Ok(2));
    }
}

/// Without a log, a reader keeps a writer from committing, and a writer that waits keeps new readers out.
#[test]
fn readers_and_a_writer_without_a_log_exclude_each_other() {
    let disk = Disk::new("exclude", 6).unwrap();
    let mut writer = history::open(&disk, Journal::Rollback).unwrap();
    let reader = history::open(&disk, Journal::Rollback).unwrap();
    let late = history::open(&disk, Journal::Rollback).unwrap();
    writer.busy_timeout(std::time::Duration::ZERO).unwrap();
    late.busy_timeout(std::time::Duration::ZERO).unwrap();
    history::commit(&mut writer, 1).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(history::last_whole(&reader), Ok(1));

    writer.execute_batch("BEGIN IMMEDIATE; UPDATE step SET last = 1").unwrap();
    assert_eq!(history::last_whole(&late), Ok(1), "a writer that has not committed hinders no reader");
    assert_eq!(code(&writer.execute_batch("COMMIT").unwrap_err()), Some(ErrorCode::DatabaseBusy));
    assert!(
        history::last_whole(&late).unwrap_err().contains("locked"),
        "it waits for the reader, so no other comes in"
    );
    reader.execute_batch("COMMIT").unwrap();
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(history::last_whole(&late), Ok(1));
}

#[test]
fn copies_are_independent() {
    let original = Disk::new("original", 8).unwrap();
    let mut first = history::open(&original, Journal::Wal).unwrap();
    history::run(&mut first, 1..=10);
    let copy = original.copy("copy", 2).unwrap();
    let mut second = history::open(&copy, Journal::Wal).unwrap();
    history::run(&mut first, 11..=12);
    history::run(&mut second, 11..=15);
    copy.power_cut();
    assert_eq!(history::last_whole(&first), Ok(12));
    assert_eq!(history::survived(&copy, Journal::Wal), Ok(15));
    assert!(Disk::new("copy", 1).is_err(), "a name is one disk's");
}

#[test]
fn a_name_is_free_again_when_its_disk_is_gone() {
    let disk = Disk::new("again", 1).unwrap();
    let connection = history::open(&disk, Journal::Wal).unwrap();
    drop(disk);
    assert!(Disk::new("again", 2).is_err(), "an open database still lies on it");
    drop(connection);
    assert_eq!(Disk::new("again", 2).unwrap().files(), Vec::<String>::new());
    assert!(Disk::new("", 2).is_err());
    assert!(Disk::new("a/b", 2).is_err());
    assert!(
        Connection::open_with_flags_and_vfs("again/x.db", rusqlite::OpenFlags::default(), "flotilla-disk").is_err()
    );
}

#[test]
fn backups_attached_databases_and_copies_of_sqlite_itself_lie_on_the_same_disk() {
    let disk = Disk::new("several", 9).unwrap();
    let mut connection = history::open(&disk, Journal::Wal).unwrap();
    history::run(&mut connection, 1..=40);

    let mut backup = disk.open("backup.db").unwrap();
    backup.execute_batch("PRAGMA synchronous=EXTRA").unwrap();
    rusqlite::backup::Backup::new(&connection, &mut backup)
        .unwrap()
        .run_to_completion(7, std::time::Duration::ZERO, None)
        .unwrap();
    assert_eq!(history::last_whole(&backup), Ok(40));
    drop(backup);

    connection.execute("VACUUM INTO ?1", [disk.path("vacuumed.db").to_str().unwrap()]).unwrap();
    // SQLite does not sync what it vacuums into: a power cut may leave nothing of it.
    assert_eq!(history::last_whole(&disk.open("vacuumed.db").unwrap()), Ok(40));

    connection.execute("ATTACH ?1 AS other", [disk.path("other.db").to_str().unwrap()]).unwrap();
    connection
        .execute_batch("PRAGMA other.synchronous=EXTRA; CREATE TABLE other.part AS SELECT * FROM part; VACUUM")
        .unwrap();
    disk.power_cut();
    let count = |file| {
        let connection = disk.open(file).unwrap();
        connection.query_row("SELECT count(*) FROM part", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((count(FILE), count("other.db"), count("backup.db")), (120, 120, 120));
}

#[test]
fn a_file_can_be_put_in_the_place_of_another() {
    let disk = Disk::new("restored", 10).unwrap();
    let mut connection = history::open(&disk, Journal::Rollback).unwrap();
    history::run(&mut connection, 1..=10);
    let old = disk.read(FILE).unwrap();
    history::run(&mut connection, 11..=20);
    disk.kill();
    disk.put(FILE, old);
    disk.power_cut();
    assert_eq!(history::survived(&disk, Journal::Rollback), Ok(10));
    disk.remove(FILE);
    assert_eq!(disk.files(), Vec::<String>::new());
}
