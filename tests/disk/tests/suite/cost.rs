//! What a simulated disk costs in time and memory.

use flotilla_disk::Disk;

fn say(line: &str) {
    // Not eprintln: the test runner keeps that to itself when a test passes.
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("MEASURED: {line}\n")).unwrap();
}

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
    say(&format!("{COMMITS} commits of a 200-byte row: {each:.1} us each; {counters:?}"));
    // What takes time, as a count: a frame and its header for each commit, and now and then the pages written back.
    assert!(counters.writes <= 4 * u64::from(COMMITS), "{counters:?}");
    assert!(counters.bytes_written <= 16 * 1024 * u64::from(COMMITS), "{counters:?}");
}

/// A disk costs little beside the bytes of its files; what an open connection costs is SQLite's.
#[test]
fn a_thousand_disks_fit_into_little_memory() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    let before = resident_kib();
    let disks: Vec<Disk> = (0..1000)
        .map(|number| {
            let disk = Disk::new(&format!("many-{number}"), number).unwrap();
            let connection = disk.open("t.db").unwrap();
            connection
                .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(20000))")
                .unwrap();
            disk
        })
        .collect();
    let held: u64 = disks.iter().map(bytes).sum();
    let closed = resident_kib() - before;
    let open: Vec<_> = disks.iter().map(|disk| disk.open("t.db").unwrap()).collect();
    for connection in &open {
        assert_eq!(connection.query_row("SELECT length(a) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 20_000);
    }
    say(&format!(
        "1000 disks with {} KiB in files take {closed} KiB; with a connection each {} KiB",
        held / 1024,
        resident_kib() - before
    ));
    // Beside other tests, so only against what would be out of all proportion.
    assert!(closed < 200_000, "{closed} KiB for 1000 disks");
}

fn bytes(disk: &Disk) -> u64 {
    disk.files().iter().map(|file| disk.read(file).unwrap().len() as u64).sum()
}
