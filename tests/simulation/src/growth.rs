//! What there is of everything that can grow, month by month, and whether it still grows when it should long have stopped.
//!
//! Counts every table of the hub's and of each device's database as the database itself lists them, so that a table that is new is
//! counted without anybody thinking of it; and what stands in no table of its own: the changes that documents carry with them, what
//! waits for the hub. The watch history in memory always holds the same events as the table `event`.
//! Start at [`Growth::judge`].

use std::collections::BTreeMap;
use std::fmt;

use flotilla_disk::Disk;
use flotilla_sync::document::Document;
use rusqlite::Connection;

use crate::device::Node;
use crate::trace::Trace;

/// So much more than in its middle third may something be in the last third of a world, in percent of the middle third, and beyond
/// that so many rows and bytes: a world is not the same every month.
const SLACK_PERCENT: u64 = 15;
const SLACK_ROWS: u64 = 8;
const SLACK_BYTES: u64 = 16 << 10;
/// With fewer measurements nothing can be said.
const MEASURED_MIN: usize = 6;

/// What goes on growing up to a bound of its own, which a fleet reaches after years or never.
const MAY_GROW: &[MayGrow] = &[
    MayGrow {
        owner: Owner::Hub,
        what: "observation",
        rows_max: |devices| devices * (4_096 + 256),
        reason: "which report of a Pod was the newest is remembered after its end, for copies that come late; 4,096 of a device",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "tombstone",
        rows_max: |devices| (devices + 1) * (1_024 + 64),
        reason: "deleted objects are named for hubs that are restored from an old backup; 1,024 of a channel",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "device_item",
        rows_max: |devices| devices * 2_048,
        reason: "ended overrides are remembered; 256 of a device, among at most 2,048 items",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "writer",
        // Fewer than may be, or a leak of lives were not seen here.
        rows_max: |devices| 64 + devices * 64,
        reason: "one row for each life of the hub's database, for ever (docs/limits.md), and of a device's; 256 of a device",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "device_writer",
        rows_max: |devices| devices * 64,
        reason: "one row for each life of a device's database; 256 of a device",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "head",
        rows_max: |devices| 64 * (devices + 1) + devices * 64,
        reason: "one row for each log of each of these writers",
    },
    MayGrow {
        owner: Owner::Hub,
        what: "(longest)",
        rows_max: |_| 1_000 + 64,
        reason: "a document begins anew after 1,000 changes",
    },
    MayGrow {
        owner: Owner::Device,
        what: "item",
        rows_max: |_| 2 * (4_096 + 256),
        reason: "removals are remembered, to be given back to a hub that is restored; 4,096 of a channel",
    },
    MayGrow {
        owner: Owner::Device,
        what: "evidence",
        rows_max: |_| 2 * 6_000,
        reason: "the hub's records are kept as proof until a signed list takes their place; 6,000 of a log",
    },
];

/// What is on a disk follows what its tables hold, each of which is judged by itself: so many times as much as they ever held together
/// (indexes, pages half full), and the log before the database, which is written back after 4 MiB.
const DISK_FACTOR: u64 = 3;
const DISK_BYTES: u64 = 5 << 20;

/// Bytes of a row of what may grow, on average, at most.
const ROW_BYTES_MAX: u64 = 4 << 10;

/// What all files of a machine are called, behind its name.
const DISK: &str = " (disk)";

/// One table that grows for a reason, up to a bound of its own.
#[derive(Debug)]
struct MayGrow {
    owner: Owner,
    /// As a series is called without its owner.
    what: &'static str,
    /// For a world of so many devices.
    rows_max: fn(u64) -> u64,
    /// Told when the bound is passed.
    reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Hub,
    Device,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub rows: u64,
    pub bytes: u64,
}

/// What was measured in one world. A series is called by owner and table: `hub event`, `n0 item`.
#[derive(Debug)]
pub(crate) struct Growth {
    trace: Trace,
    devices: u64,
    measured: usize,
    series: BTreeMap<String, Vec<Size>>,
}

impl Growth {
    pub(crate) fn new(trace: Trace, devices: usize) -> Self {
        Self { trace, devices: devices as u64, measured: 0, series: BTreeMap::new() }
    }

    /// Measures everything once. A disk that refuses at present is measured as it was the last time.
    pub(crate) fn measure(&mut self, hub: &Disk, nodes: &[Node]) {
        let mut sizes = BTreeMap::new();
        self.measure_database("hub", hub, "hub.sqlite", &mut sizes);
        for node in nodes {
            self.measure_database(&node.name, &node.disk, "device.db", &mut sizes);
            let waiting = node.replica().map_or(0, |replica| replica.unreported());
            sizes.insert(format!("{} (untold)", node.name), Size { rows: waiting as u64, bytes: 0 });
        }
        for (name, size) in sizes {
            let series = self.series.entry(name).or_default();
            // A table that came later was empty before.
            series.resize(self.measured, Size::default());
            series.push(size);
        }
        self.measured += 1;
        for series in self.series.values_mut().filter(|series| series.len() < self.measured) {
            series.push(series.last().copied().unwrap_or_default());
        }
        self.trace.event("measured", "world", &[self.measured as u64]);
    }

    fn measure_database(&self, owner: &str, disk: &Disk, file: &str, sizes: &mut BTreeMap<String, Size>) {
        let measured = disk.open(file).and_then(|database| tables(&database));
        match measured {
            Ok(tables) => sizes.extend(tables.into_iter().map(|(table, size)| (format!("{owner} {table}"), size))),
            Err(error) => self.trace.told("not measured", owner, error),
        }
        let files = disk.files();
        let bytes = files.iter().filter_map(|file| disk.read(file)).map(|file| file.len() as u64).sum();
        sizes.insert(format!("{owner}{DISK}"), Size { rows: files.len() as u64, bytes });
    }

    /// What goes on growing: each with its measurements.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let growing: Vec<String> = self
            .series
            .iter()
            .filter_map(|(name, series)| {
                let why = match name.strip_suffix(DISK) {
                    Some(owner) => overflows(series, &self.held_by(owner)),
                    None => grows(name, series, self.devices),
                };
                Some(format!("{name} {}: {}", why?, Told(series)))
            })
            .collect();
        if growing.is_empty() { Ok(()) } else { Err(growing.join("; ")) }
    }

    /// Bytes in all tables of one database, at each measurement.
    fn held_by(&self, owner: &str) -> Vec<u64> {
        let mut held = vec![0; self.measured];
        let is_table =
            |name: &str| name.strip_prefix(owner).is_some_and(|what| what.starts_with(' ') && !what.ends_with(')'));
        for series in self.series.iter().filter(|(name, _)| is_table(name)).map(|(_, series)| series) {
            held.iter_mut().zip(series).for_each(|(held, size)| *held += size.bytes);
        }
        held
    }

    /// Every series, for people.
    pub(crate) fn series(&self) -> BTreeMap<String, Vec<Size>> {
        self.series.clone()
    }
}

/// Rows and bytes of what they hold, for each table there is.
fn tables(database: &Connection) -> rusqlite::Result<BTreeMap<String, Size>> {
    let names: Vec<String> = database
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut sizes = BTreeMap::new();
    for name in names {
        let columns: Vec<String> = database
            .prepare("SELECT 'coalesce(length(CAST(\"' || name || '\" AS BLOB)), 0)' FROM pragma_table_info(?1)")?
            .query_map([&name], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let counted = format!("SELECT count(*), coalesce(sum({}), 0) FROM \"{name}\"", columns.join(" + "));
        let (rows, bytes): (i64, i64) = database.query_row(&counted, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        sizes.insert(name, Size { rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() });
    }
    if sizes.contains_key("document") {
        sizes.insert("(longest)".to_owned(), longest_history(database)?);
    }
    Ok(sizes)
}

/// The changes that one document carries with it: of all documents, the one with most.
fn longest_history(database: &Connection) -> rusqlite::Result<Size> {
    let mut statement = database.prepare("SELECT state FROM document")?;
    let states: Vec<Vec<u8>> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut size = Size::default();
    for state in states {
        let changes = Document::load(&state).map_or(0, |mut document| document.changes_len() as u64);
        size = Size { rows: size.rows.max(changes), bytes: size.bytes.max(state.len() as u64) };
    }
    Ok(size)
}

/// How much more is on a disk than what its tables held explains.
fn overflows(disk: &[Size], held: &[u64]) -> Option<String> {
    let mut most = 0;
    disk.iter().zip(held).find_map(|(size, held)| {
        most = most.max(*held);
        let bytes_max = most * DISK_FACTOR + DISK_BYTES;
        (size.bytes > bytes_max).then(|| format!("is beyond {bytes_max} bytes, for tables that held {most} at most"))
    })
}

/// How there is more than there may be: of most things more in the last third than the middle third explains.
fn grows(name: &str, series: &[Size], devices: u64) -> Option<String> {
    let (owner, what) = name.split_once(' ')?;
    let owner = if owner == "hub" { Owner::Hub } else { Owner::Device };
    if let Some(bound) = MAY_GROW.iter().find(|one| one.owner == owner && one.what == what) {
        let rows_max = (bound.rows_max)(devices);
        let over = |size: &Size| size.rows > rows_max || size.bytes > rows_max * ROW_BYTES_MAX;
        return series.iter().any(over).then(|| format!("is beyond {rows_max} rows ({})", bound.reason));
    }
    let third = series.len() / 3;
    if series.len() < MEASURED_MIN {
        return None;
    }
    let (middle, last) = (&series[series.len() - 2 * third..series.len() - third], &series[series.len() - third..]);
    let more = |of: fn(&Size) -> u64, slack: u64| {
        let sum = |of_third: &[Size]| of_third.iter().map(of).sum::<u64>();
        // What came once and stays does not grow: there is more at the end of the last third than at its beginning too.
        let goes_on = last.last().map(of) > last.first().map(of);
        goes_on && sum(last) > sum(middle) + sum(middle) * SLACK_PERCENT / 100 + slack * third as u64
    };
    (more(|size| size.rows, SLACK_ROWS) || more(|size| size.bytes, SLACK_BYTES)).then(|| "grows".to_owned())
}

/// Measurements as people read them: rows and KiB.
#[derive(Debug)]
pub struct Told<'a>(pub &'a [Size]);

impl fmt::Display for Told<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, size) in self.0.iter().enumerate() {
            let between = if number == 0 { "" } else { " " };
            write!(formatter, "{between}{}/{}", size.rows, size.bytes.div_ceil(1024))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told_from_what_comes_and_goes() {
        let series = |rows: fn(u64) -> u64| -> Vec<Size> {
            (0..12).map(|month| Size { rows: rows(month), bytes: 100 * rows(month) }).collect()
        };
        let told = |name: &str, rows: fn(u64) -> u64| grows(name, &series(rows), 2);
        assert_eq!(told("hub audit", |month| 100 + month % 3 * 30), None);
        assert_eq!(told("hub audit", |month| (month * 50).min(200)), None, "full, and then bounded");
        assert_eq!(told("hub audit", |month| if month < 8 { 0 } else { 100 }), None, "it came once, and stays");
        assert_eq!(told("hub audit", |month| month * 30).as_deref(), Some("grows"));
        assert_eq!(told("n0 item", |month| month * 30), None, "up to a bound of its own");
        assert!(told("n0 item", |month| month * 1_000).is_some_and(|why| why.contains("beyond")));
        assert_eq!(told("n0 writer", |month| month * 30).as_deref(), Some("grows"), "the hub's alone may");
    }

    #[test]
    fn a_disk_follows_its_tables() {
        let disk = |mib: &[u64]| mib.iter().map(|mib| Size { rows: 2, bytes: mib << 20 }).collect::<Vec<_>>();
        let held = [1 << 20, 4 << 20, 0];
        assert_eq!(overflows(&disk(&[8, 17, 17]), &held), None, "a file stays as long as it was");
        assert!(overflows(&disk(&[9, 17, 17]), &held).is_some());
        assert!(overflows(&disk(&[8, 17, 18]), &held).is_some_and(|why| why.contains("4194304")));
    }

    #[test]
    fn what_a_database_holds_is_the_sum_of_its_tables() {
        let mut growth = Growth::new(Trace::starting(false, std::sync::Arc::default()), 2);
        growth.measured = 2;
        let of = |bytes: [u64; 2]| bytes.map(|bytes| Size { rows: 1, bytes }).to_vec();
        for (name, bytes) in [
            ("n1 item", [1, 2]),
            ("n1 head", [10, 20]),
            ("n10 item", [7, 7]),
            ("n1 (disk)", [99, 99]),
            ("n1 (untold)", [5, 5]),
        ] {
            growth.series.insert(name.to_owned(), of(bytes));
        }
        assert_eq!(growth.held_by("n1"), [11, 22]);
    }
}
