use std::io::Write;

use flotilla_disk::Disk;

/// The clock measures the machine here, and decides nothing.
#[allow(clippy::disallowed_methods, reason = "a measurement of real time")]
fn timed(work: impl FnOnce()) -> f64 {
    let started = std::time::Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// `cargo test --release -p flotilla-disk cost -- --nocapture` shows what it costs: see the decision record for a figure.
#[test]
fn a_small_commit_costs_little_and_files_take_their_own_size() {
    const COMMITS: u32 = 5_000;
    let disk = Disk::new("cost", 1).unwrap();
    let connection = disk.open("t.db").unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)",
        )
        .unwrap();
    let row = vec![7_u8; 200];
    let mut statement = connection.prepare("INSERT INTO t (b) VALUES (?1)").unwrap();
    let seconds = timed(|| (0..COMMITS).for_each(|_| assert_eq!(statement.execute([&row]).unwrap(), 1)));
    let counters = disk.counters();
    assert!(counters.syncs >= u64::from(COMMITS), "each commit is synced");
    let each = seconds / f64::from(COMMITS) * 1e6;
    std::io::stderr()
        .write_fmt(format_args!("MEASURED: {COMMITS} commits of a 200-byte row: {each:.1} us each; {counters:?}\n"))
        .unwrap();
    // Not a mark, but what would make a simulation useless: a hundred times as much.
    assert!(each < 2000.0, "{each} us a commit");
}
