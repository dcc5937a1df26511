//! The simulated disk as what SQLite takes where no VFS is named; alone in its binary because that holds for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use flotilla_disk::Disk;
use rusqlite::Connection;

#[test]
fn a_database_that_is_opened_by_its_path_alone_lies_on_its_disk() {
    flotilla_disk::register_as_default().unwrap();
    let disk = Disk::new("machine", 1).unwrap();
    let connection = Connection::open(disk.path("state/t.db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(disk.files(), ["state/t.db", "state/t.db-wal"]);
    disk.power_cut();
    assert!(connection.execute("INSERT INTO t VALUES (2)", []).is_err());
    let count =
        Connection::open(disk.path("state/t.db")).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0));
    assert_eq!(count, Ok(1));
    assert!(Connection::open(std::env::temp_dir().join("t.db")).is_err(), "the real disk is out of reach");
    // What lies on no disk at all works as ever, large sorts in files without a name included.
    let memory = Connection::open_in_memory().unwrap();
    let sorted = "PRAGMA temp_store=FILE; PRAGMA cache_size=10;
        CREATE TEMP TABLE big AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i, randomblob(100) AS b FROM n;
        CREATE INDEX temp.big_b ON big (b);";
    memory.execute_batch(sorted).unwrap();
    assert_eq!(memory.query_row("SELECT count(DISTINCT b) FROM big", [], |row| row.get(0)), Ok(20_000));
}
