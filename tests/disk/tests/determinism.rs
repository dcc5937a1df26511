//! One seed gives one history, down to the bytes: in this process and in another. It stands alone in its binary because SQLite has
//! one source of random numbers for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::hash::{DefaultHasher, Hasher};
use std::process::Command;

use flotilla_disk::{Disk, Failures};

const CHILD: &str = "FLOTILLA_DISK_CHILD";

/// Two machines that live, fail and die for a while; answers a hash of all that is left.
fn history(seed: u64) -> u64 {
    flotilla_disk::set_seed(seed).unwrap();
    let disks = [Disk::new("one", seed).unwrap(), Disk::new("two", seed ^ 7).unwrap()];
    for life in 0..6 {
        flotilla_disk::set_time(life * 86_400_000);
        for disk in &disks {
            disk.set_failures(Failures::OneIn { operations: 50, reads: false });
            disk.cut_after(60);
            // What fails is part of the history.
            let died = disk.open("t.db").and_then(|connection| {
                connection.execute_batch(
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=5;
                     CREATE TABLE IF NOT EXISTS t (a PRIMARY KEY, b BLOB, at TEXT)",
                )?;
                for _ in 0..20 {
                    connection.execute("INSERT INTO t VALUES (random(), randomblob(300), datetime('now'))", [])?;
                }
                Ok(())
            });
            if died.is_err() || disk.is_dead() {
                disk.power_cut();
            } else {
                disk.kill();
            }
        }
    }
    disks[1].flip_bit();
    let copy = disks[0].copy("copy", 2).unwrap();
    copy.open("t.db").unwrap().execute_batch("CREATE TABLE IF NOT EXISTS another (a)").unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    for disk in disks.iter().chain([&copy]) {
        for file in disk.files() {
            hasher.write(file.as_bytes());
            hasher.write(&disk.read(&file).unwrap());
        }
        hasher.write_u64(disk.counters().bytes_written);
    }
    hasher.finish()
}

#[test]
fn the_same_seed_leaves_the_same_bytes() {
    let hashes: Vec<u64> = (0..20).map(history).collect();
    let line = format!("history {hashes:?}");
    if std::env::var_os(CHILD).is_some() {
        std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).unwrap();
        return;
    }
    assert_eq!((0..20).map(history).collect::<Vec<_>>(), hashes, "in the same process");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["the_same_seed_leaves_the_same_bytes", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&child.stdout).contains(&line), "in another process: {child:?}");

    let mut different = hashes.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), hashes.len(), "other seeds, other histories");
}
