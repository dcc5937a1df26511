//! Checked against files that SQLite itself wrote, whole and damaged.

use proptest::prelude::*;
use rusqlite::{Connection, params};

use super::*;

/// A database with rows of all sizes, some of them only in the write-ahead log, some deleted; answers file and log.
fn written(folder: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let path = folder.join("t.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE plain (name TEXT, number INTEGER, bytes BLOB);
             CREATE TABLE keyed (name TEXT PRIMARY KEY, bytes BLOB) WITHOUT ROWID;",
        )
        .unwrap();
    let put = |from: i64, to: i64| {
        for number in from..to {
            let bytes = vec![u8::try_from(number % 251).unwrap(); usize::try_from(number * 37 % 9000).unwrap()];
            let name = format!("n{number}");
            connection.execute("INSERT INTO plain VALUES (?1, ?2, ?3)", params![name, number - 100, bytes]).unwrap();
            connection.execute("INSERT INTO keyed VALUES (?1, ?2)", params![name, bytes]).unwrap();
        }
    };
    put(0, 200);
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    connection.execute("DELETE FROM plain WHERE number < -60", []).unwrap();
    connection.execute("DELETE FROM keyed WHERE name LIKE 'n1%'", []).unwrap();
    put(200, 260);
    let read = |ending: &str| std::fs::read(folder.join(format!("t.db{ending}"))).unwrap();
    (read(""), read("-wal"))
}

fn expected(folder: &std::path::Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let connection = Connection::open(folder.join("t.db")).unwrap();
    let shown = |table: &str| {
        let mut statement = connection.prepare(&format!("SELECT name, hex(bytes) FROM {table}")).unwrap();
        let rows =
            statement.query_map([], |row| Ok(format!("{}={}", row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    };
    (shown("plain"), shown("keyed"))
}

#[derive(Default)]
struct Carved {
    rows: Vec<Row>,
    index_rows: Vec<Row>,
    unreadable: usize,
}

fn carve(database: &[u8], wal: &[u8]) -> Carved {
    let read = |start: u64, length: usize| {
        let start = usize::try_from(start).unwrap();
        database.get(start..start + length).map(<[u8]>::to_vec)
    };
    let mut carved = Carved::default();
    let source = Source { bytes: database.len() as u64, read: &read };
    carved.unreadable = super::carve(&source, wal, &mut |tree, row| match tree {
        Tree::Table => carved.rows.push(row),
        Tree::Index => carved.index_rows.push(row),
    });
    carved
}

fn shown(rows: &[Row]) -> BTreeSet<String> {
    rows.iter()
        .filter_map(|row| match (row.first(), row.last()) {
            (Some(Cell::Text(name)), Some(Cell::Blob(bytes))) => {
                Some(format!("{name}={}", bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_whole_file_gives_every_row_and_nothing_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let (database, wal) = written(folder.path());
    let carved = carve(&database, &wal);
    assert_eq!(carved.unreadable, 0);
    let (plain, keyed) = expected(folder.path());
    assert_eq!(shown(&carved.rows), plain);
    assert_eq!(shown(&carved.index_rows), keyed);
    assert!(carved.rows.iter().all(|row| matches!(row[1], Cell::Int(number) if (-60..160).contains(&number))));
}

#[test]
fn without_its_header_a_file_gives_every_row_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (mut database, wal) = written(folder.path());
    database[..4096].fill(0xa5);
    let carved = carve(&database, &wal);
    let (plain, keyed) = expected(folder.path());
    assert!(shown(&carved.rows).is_superset(&plain) && shown(&carved.index_rows).is_superset(&keyed));
}

#[test]
fn half_a_file_gives_what_is_in_it_and_counts_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (database, wal) = written(folder.path());
    let carved = carve(&database[..database.len() / 2 + 100], &wal);
    let (plain, _) = expected(folder.path());
    let found = shown(&carved.rows);
    assert!(found.is_subset(&plain) && found.len() > plain.len() / 4 && carved.unreadable > 0, "{}", found.len());
}

#[test]
fn a_transaction_that_was_not_committed_never_was() {
    let folder = tempfile::tempdir().unwrap();
    let (database, wal) = written(folder.path());
    let whole = carve(&database, &wal);
    // The last frame, which ends the last transaction, is torn.
    let torn = carve(&database, &wal[..wal.len() - 2000]);
    assert!(torn.rows.len() == whole.rows.len() - 1 || torn.index_rows.len() == whole.index_rows.len() - 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_make_it_fail(
        noise in proptest::collection::vec((0..1_000_000_usize, any::<u8>()), 0..2000),
        cut in 0..1_000_000_usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (mut database, mut wal) = written(folder.path());
        for (at, byte) in noise {
            let (file, at) = if at % 2 == 0 { (&mut database, at / 2) } else { (&mut wal, at / 2) };
            let at = at % file.len();
            file[at] = byte;
        }
        database.truncate(cut % database.len() + 1);
        carve(&database, &wal);
    }
}
