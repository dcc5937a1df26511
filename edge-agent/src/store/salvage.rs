//! A damaged database: what can be read of it goes into a new one, the damaged files are kept beside it.
//!
//! Owns the order that makes this safe against a kill at any moment: the new file is whole and on the disk before anything is
//! renamed, and renaming is taken up where it stopped. Refuses judgement of the rows: whether items, keys and batches are what they
//! should be is seen where they are used. Start at [`mend`].

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_sync::channel::{Applied, Item, ItemId, WriterId};
use flotilla_sync::identity::SigningKey;
use rusqlite::Connection;

use super::pages::{self, Cell, Row, Source, Tree};
use super::{BatchRow, HeadRow, Ingest, ItemRow, Loaded, OutboxRow, migrate};

/// Being written.
const MENDING: &str = "device.db.mending";
/// Whole: takes the place of the damaged one.
const MENDED: &str = "device.db.mended";
/// Damaged files kept for those who can read more of them; the oldest go first.
const DAMAGED_KEPT_MAX: usize = 2;
/// Largest write-ahead log that is read.
const WAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A fact about this device until it has read everything anew: some of what it held may be missing.
pub(crate) const SALVAGED: &str = "salvaged";

/// What was found in a damaged database.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Salvage {
    /// What SQLite said.
    pub why: String,
    /// Where the damaged file is now.
    pub file: String,
    /// Rows that were read, by what they are.
    pub rows: BTreeMap<String, usize>,
    /// Pages and rows that could not be read.
    pub unreadable: usize,
}

/// Builds a new database from what can be read of a damaged one and puts it in its place.
pub(super) fn mend(folder: &Path, why: String) -> Result<Salvage, MendError> {
    let failed = |what: &'static str| move |source| MendError::Io { what, source };
    let (loaded, unreadable) = read(folder).map_err(failed("read the damaged database"))?;
    let mending = folder.join(MENDING);
    remove(&mending).map_err(failed("begin a new database"))?;
    let rows = write(&loaded, &mending)?;
    File::open(&mending).and_then(|file| file.sync_all()).map_err(failed("write a new database"))?;
    std::fs::rename(&mending, folder.join(MENDED)).map_err(failed("write a new database"))?;
    let file = finish(folder).map_err(failed("put the new database in its place"))?;
    Ok(Salvage { why, file: file.unwrap_or_default(), rows, unreadable })
}

/// What mending could not do.
#[derive(Debug, thiserror::Error)]
pub(super) enum MendError {
    #[error("cannot {what}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("cannot write a new database")]
    Sql(#[from] rusqlite::Error),
}

/// Puts a mended database in the place of the damaged one, if there is one; also where an earlier attempt stopped.
pub(super) fn finish(folder: &Path) -> std::io::Result<Option<String>> {
    let mended = folder.join(MENDED);
    if !mended.exists() {
        return Ok(None);
    }
    let (number, oldest) = numbers(folder)?;
    for old in oldest {
        remove(&damaged(folder, old, ""))?;
        remove(&damaged(folder, old, "-wal"))?;
    }
    // The log of the damaged file must never be read into the new one: it goes first, and what goes first is found again here.
    for ending in ["-wal", ""] {
        let from = folder.join(format!("device.db{ending}"));
        if from.exists() {
            std::fs::rename(&from, damaged(folder, number, ending))?;
        }
    }
    remove(&folder.join("device.db-shm"))?;
    std::fs::rename(&mended, folder.join("device.db"))?;
    File::open(folder)?.sync_all()?;
    Ok(Some(damaged(folder, number, "").display().to_string()))
}

fn damaged(folder: &Path, number: u64, ending: &str) -> PathBuf {
    folder.join(format!("device.db.damaged-{number}{ending}"))
}

/// The next number of a damaged file, and those that have to go for it.
fn numbers(folder: &Path) -> std::io::Result<(u64, Vec<u64>)> {
    let mut known: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("device.db.damaged-"));
        known.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    known.sort_unstable();
    let next = known.last().map_or(1, |last| last + 1);
    let surplus = (known.len() + 1).saturating_sub(DAMAGED_KEPT_MAX);
    known.truncate(surplus);
    Ok((next, known))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(folder: &Path) -> std::io::Result<(Loaded, usize)> {
    let database = File::open(folder.join("device.db"))?;
    let bytes = database.metadata()?.len();
    let wal = match std::fs::metadata(folder.join("device.db-wal")) {
        Ok(found) if found.len() <= WAL_BYTES_MAX => std::fs::read(folder.join("device.db-wal"))?,
        _ => Vec::new(),
    };
    let read = |start: u64, length: usize| {
        let mut bytes = vec![0; length];
        database.read_exact_at(&mut bytes, start).ok().map(|()| bytes)
    };
    let mut found = Found::default();
    let unreadable = pages::carve(&Source { bytes, read: &read }, &wal, &mut |tree, row| found.take(tree, row));
    Ok((found.loaded(), unreadable))
}

/// Rows by key: a file without its header may give an older copy of a row beside the newer.
#[derive(Debug, Default)]
struct Found {
    meta: BTreeMap<String, Vec<u8>>,
    writers: BTreeMap<Vec<u8>, Vec<u8>>,
    heads: BTreeMap<(String, Vec<u8>), (u64, Vec<u8>)>,
    items: BTreeMap<(String, String), Vec<u8>>,
    histories: BTreeMap<String, String>,
    outbox: BTreeMap<String, OutboxRow>,
    batches: BTreeMap<BatchKey, (u64, Vec<u8>)>,
}

/// Channel, writer, first record.
type BatchKey = (String, Vec<u8>, u64);

impl Found {
    /// Which table a row is of, its columns tell.
    fn take(&mut self, tree: Tree, row: Row) {
        use Cell::{Blob, Int, Null, Text};
        let mut row = row.into_iter();
        let mut next = || row.next();
        match (tree, next(), next(), next(), next(), next(), next(), next(), next()) {
            (Tree::Index, Some(Text(name)), Some(Blob(value)), None, ..) => self.fact(name, value),
            (Tree::Index, Some(Blob(id)), Some(Blob(chain)), None, ..) => drop(self.writers.insert(id, chain)),
            (Tree::Index, Some(Text(pod)), Some(Text(value)), None, ..) => drop(self.histories.insert(pod, value)),
            (Tree::Index, Some(Text(channel)), Some(Blob(writer)), Some(Int(seq)), Some(Blob(hash)), None, ..) => {
                let head = self.heads.entry((channel, writer)).or_default();
                *head = (seq.cast_unsigned(), hash).max(std::mem::take(head));
            }
            (Tree::Table, Some(Text(channel)), Some(Text(id)), Some(Blob(bytes)), None, ..) => {
                self.item(channel, id, bytes);
            }
            (
                Tree::Table,
                Some(Text(channel)),
                Some(Blob(writer)),
                Some(Int(first)),
                Some(Int(last)),
                Some(Blob(bytes)),
                None,
                ..,
            ) => {
                self.batches.insert((channel, writer, first.cast_unsigned()), (last.cast_unsigned(), bytes));
            }
            (
                Tree::Index,
                Some(Text(subject)),
                Some(Int(incarnation)),
                Some(Int(boot)),
                Some(Int(seq)),
                Some(Int(time)),
                Some(Int(urgent)),
                Some(body @ (Null | Blob(_))),
                None,
            ) => {
                let observed = OutboxRow {
                    subject: subject.clone(),
                    incarnation: incarnation.cast_unsigned(),
                    boot: boot.cast_unsigned(),
                    seq: seq.cast_unsigned(),
                    time_ms: time.cast_unsigned(),
                    urgent: urgent != 0,
                    body: if let Blob(body) = body { Some(body) } else { None },
                };
                let place = |row: &OutboxRow| (row.incarnation, row.boot, row.seq);
                if self.outbox.get(&subject).is_none_or(|known| place(known) < place(&observed)) {
                    self.outbox.insert(subject, observed);
                }
            }
            _ => {}
        }
    }

    /// Counters: the greater one.
    fn fact(&mut self, name: String, value: Vec<u8>) {
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let older =
            |known: &Vec<u8>| matches!((number(known), number(&value)), (Some(known), Some(value)) if known >= value);
        if !self.meta.get(&name).is_some_and(older) {
            self.meta.insert(name, value);
        }
    }

    /// Two states of one item join, as states of two replicas do.
    fn item(&mut self, channel: String, id: String, bytes: Vec<u8>) {
        let Ok(name) = ItemId::parse(&id) else { return };
        let Ok(state) = Item::decode(&Bytes::from(bytes.clone())) else {
            self.items.entry((channel, id)).or_insert(bytes);
            return;
        };
        let known = self.items.get(&(channel.clone(), id.clone())).map(|known| Bytes::from(known.clone()));
        let known = known.and_then(|known| Item::decode(&known).ok());
        if let Ok(Applied::Changed(item) | Applied::Waiting(item)) = Item::adopt(known.as_ref(), &name, state) {
            self.items.insert((channel, id), item.encode().to_vec());
        } else if known.is_none() {
            self.items.insert((channel, id), bytes);
        }
    }

    /// The device's own writer, if its key is among what was read.
    fn own_writer(&self) -> Option<Vec<u8>> {
        let (seed, _): ([u8; 32], Vec<u8>) = serde_json::from_slice(self.meta.get("writer")?).ok()?;
        let key = SigningKey::from_seed(seed).ok()?;
        Some(WriterId::of(&key.public()).0.to_vec())
    }

    /// Of the logs of others only the effects are here, and of those not all: the logs are read anew. Their heads go, and rows that
    /// only look like batches of this device's own.
    fn loaded(mut self) -> Loaded {
        let own = self.own_writer();
        self.heads.retain(|(_, writer), _| own.as_ref() == Some(writer));
        self.batches.retain(|(_, writer, _), _| own.as_ref() == Some(writer));
        let head = |((channel, writer), (seq, hash))| HeadRow { channel, writer, seq, hash };
        let batch = |((channel, writer, first), (last, bytes))| BatchRow { channel, writer, first, last, bytes };
        Loaded {
            meta: self.meta,
            writers: self.writers.into_iter().collect(),
            heads: self.heads.into_iter().map(head).collect(),
            items: self.items.into_iter().map(|((channel, id), bytes)| ItemRow { channel, id, bytes }).collect(),
            histories: self.histories.into_iter().collect(),
            outbox: self.outbox.into_values().collect(),
            batches: self.batches.into_iter().map(batch).collect(),
            ..Loaded::default()
        }
    }
}

/// Writes rows into a new database; answers how many of each.
fn write(loaded: &Loaded, path: &Path) -> Result<BTreeMap<String, usize>, MendError> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL; PRAGMA cache_size=-256;")?;
    migrate(&mut connection, path).map_err(|error| MendError::Io {
        what: "write a new database",
        source: std::io::Error::other(error.to_string()),
    })?;
    let transaction = connection.transaction()?;
    let mut meta = loaded.meta.clone();
    meta.insert(SALVAGED.to_owned(), b"1".to_vec());
    for (name, value) in &meta {
        transaction.execute("INSERT INTO meta VALUES (?1, ?2)", rusqlite::params![name, value])?;
    }
    for (pod, value) in &loaded.histories {
        transaction.execute("INSERT INTO history VALUES (?1, ?2)", [pod, value])?;
    }
    loaded.outbox.iter().try_for_each(|row| row.write(&transaction))?;
    let rows = Ingest {
        writers: loaded.writers.clone(),
        heads: loaded.heads.clone(),
        items: loaded.items.clone(),
        batches: loaded.batches.clone(),
        ..Ingest::default()
    };
    rows.write(&transaction)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    let counts = [
        ("facts", loaded.meta.len()),
        ("items", loaded.items.len()),
        ("batches", loaded.batches.len()),
        ("pod histories", loaded.histories.len()),
        ("observations", loaded.outbox.len()),
    ];
    Ok(counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect())
}
