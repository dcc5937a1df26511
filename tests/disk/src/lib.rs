//! A simulated disk below SQLite, for a simulation of many machines in one process.
//!
//! Owns an SQLite VFS in memory and what can happen to a machine's disk: its process dies, its power is cut while writes are on
//! their way, it is full, it fails, it rots, it is copied. Chance comes from the disk's seed and time from [`set_time`], so one
//! seed gives one history. Refuses to touch the real file system, clock or source of randomness. Start at [`Disk`]; what a power
//! cut does to a file is in `file.rs`, to names in `directory.rs`; `vfs.rs` is the only unsafe code.
//!
//! ```
//! let disk = flotilla_disk::Disk::new("device-1", 7)?;
//! let database = disk.open("device.db")?;
//! database.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")?;
//! disk.power_cut();
//! assert!(database.execute("INSERT INTO t VALUES (2)", []).is_err(), "that process is dead");
//! let count: i64 = disk.open("device.db")?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
//! assert_eq!(count, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Why it was written here: `docs/decisions/0026-a-simulated-disk-below-sqlite.md`.

mod chance;
mod directory;
mod disk;
mod file;
mod handle;
mod lock;
mod shm;
mod state;
mod vfs;

pub use disk::{Disk, DiskError};
pub use state::{Counters, Failures};
pub use vfs::{NAME, register, register_as_default, set_seed, set_time};
