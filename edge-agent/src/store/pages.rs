//! Reads rows out of a damaged SQLite file, page by page and without SQLite.
//!
//! Follows the file format as SQLite documents it (<https://www.sqlite.org/fileformat2.html>): every page that is a leaf of a table,
//! or a page of an index, gives its rows, whatever became of the rest of the tree; committed pages of the write-ahead log stand
//! over those of the file; free pages give nothing. Refuses meaning: which table a row is of, its columns must tell. Pure.
//! Start at [`carve`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What SQLite writes by default, and this agent with it: used where the header does not say.
const PAGE_BYTES: usize = 4096;
const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Largest row that is read, in bytes.
const ROW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most columns that are read.
const COLUMNS_MAX: usize = 32;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// The columns of one row.
pub(super) type Row = Vec<Cell>;

/// Where a row was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// A table with a rowid.
    Table,
    /// A table without one, or an index.
    Index,
}

/// The file: how many bytes it has, and the bytes at a place if all of them are there.
pub(super) struct Source<'a> {
    pub(super) bytes: u64,
    pub(super) read: &'a dyn Fn(u64, usize) -> Option<Vec<u8>>,
}

/// Reads a file with its write-ahead log; both may be cut off, overwritten or empty. Every row that is found goes to `each`.
/// Answers how many pages and cells could not be read.
pub(super) fn carve(file: &Source<'_>, wal: &[u8], each: &mut dyn FnMut(Tree, Row)) -> usize {
    let page_bytes = page_size(&(file.read)(0, 32).unwrap_or_default(), wal);
    let pages = Pages { file, page_bytes, newer: committed(wal, page_bytes) };
    let free = pages.free_pages();
    let mut unreadable = 0;
    let of_file = usize::try_from(file.bytes).unwrap_or(usize::MAX).div_ceil(page_bytes);
    let last = pages.newer.keys().next_back().copied().unwrap_or(0).max(of_file);
    for number in (1..=last).filter(|number| !free.contains(number)) {
        match pages.page(number) {
            Some(page) => unreadable += pages.read(number, &page, each),
            // The last page was cut off.
            None => unreadable += 1,
        }
    }
    unreadable
}

/// Pages are numbered from 1.
struct Pages<'a> {
    file: &'a Source<'a>,
    page_bytes: usize,
    /// From the write-ahead log.
    newer: BTreeMap<usize, &'a [u8]>,
}

impl<'a> Pages<'a> {
    fn page(&self, number: usize) -> Option<Cow<'a, [u8]>> {
        if let Some(page) = self.newer.get(&number) {
            return Some(Cow::Borrowed(page));
        }
        let start = number.checked_sub(1)? as u64 * self.page_bytes as u64;
        (self.file.read)(start, self.page_bytes).map(Cow::Owned)
    }

    fn free_pages(&self) -> BTreeSet<usize> {
        let mut free = BTreeSet::new();
        let Some(first) = self.page(1).filter(|page| page.starts_with(MAGIC)) else { return free };
        let mut trunk = word(&first, 32).unwrap_or(0);
        while trunk != 0 && free.insert(trunk) {
            let Some(page) = self.page(trunk) else { break };
            let leaves = word(&page, 4).unwrap_or(0).min(self.page_bytes / 4);
            free.extend((0..leaves).filter_map(|leaf| word(&page, 8 + 4 * leaf)));
            trunk = word(&page, 0).unwrap_or(0);
        }
        free
    }

    /// Gives the rows of one page; answers how much of it cannot be read.
    fn read(&self, number: usize, page: &[u8], each: &mut dyn FnMut(Tree, Row)) -> usize {
        let start = if number == 1 { HEADER_BYTES } else { 0 };
        // Leaf of a table, leaf of an index, inner page of an index. Anything else has no rows: an inner page of a table, the
        // overflow of a row.
        let (cells_at, left_child, tree) = match page.get(start) {
            Some(0x0d) => (start + 8, 0, Tree::Table),
            Some(0x0a) => (start + 8, 0, Tree::Index),
            Some(0x02) => (start + 12, 4, Tree::Index),
            _ => return usize::from(page.iter().all(|byte| *byte == 0)),
        };
        let count = half(page, start + 3).unwrap_or(0);
        if cells_at + 2 * count > page.len() {
            return 1;
        }
        let mut unreadable = 0;
        for cell in 0..count {
            let at = half(page, cells_at + 2 * cell).filter(|at| *at >= cells_at + 2 * count);
            match at.and_then(|at| self.row(page, at + left_child, tree)) {
                // Page 1 holds the schema.
                Some(_) if number == 1 => {}
                Some(row) => each(tree, row),
                None => unreadable += 1,
            }
        }
        unreadable
    }

    /// The row of a cell that begins at `at`.
    fn row(&self, page: &[u8], at: usize, tree: Tree) -> Option<Row> {
        let (length, mut at) = varint(page, at)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= ROW_BYTES_MAX)?;
        if tree == Tree::Table {
            (_, at) = varint(page, at)?;
        }
        let here = local(length, self.page_bytes, tree);
        let mut payload = page.get(at..at + here)?.to_vec();
        let mut overflow = if here < length { word(page, at + here)? } else { 0 };
        while payload.len() < length {
            let page = self.page(overflow)?;
            let more = (length - payload.len()).min(self.page_bytes - 4);
            payload.extend_from_slice(page.get(4..4 + more)?);
            overflow = word(&page, 0)?;
        }
        record(&payload)
    }
}

/// How much of a payload stands in its page, by the format's section 1.6.
fn local(length: usize, usable: usize, tree: Tree) -> usize {
    let most = if tree == Tree::Table { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
    if length <= most {
        return length;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let even = least + (length - least) % (usable - 4);
    if even <= most { even } else { least }
}

fn record(payload: &[u8]) -> Option<Row> {
    let (header, mut at) = varint(payload, 0)?;
    let header = usize::try_from(header).ok().filter(|header| *header <= payload.len())?;
    let mut body = header;
    let mut row = Row::new();
    while at < header {
        let (kind, next) = varint(payload, at)?;
        at = next;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((kind - 12) / 2).ok()?,
        };
        let bytes = payload.get(body..body.checked_add(length)?)?;
        body += length;
        row.push(match kind {
            0 => Cell::Null,
            8 => Cell::Int(0),
            9 => Cell::Int(1),
            1..=6 => Cell::Int(integer(bytes)),
            7 => Cell::Real(f64::from_be_bytes(bytes.try_into().ok()?)),
            _ if kind % 2 == 0 => Cell::Blob(bytes.to_vec()),
            _ => Cell::Text(String::from_utf8(bytes.to_vec()).ok()?),
        });
        if row.len() > COLUMNS_MAX {
            return None;
        }
    }
    (!row.is_empty()).then_some(row)
}

/// Big-endian, two's complement.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|first| first & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(sign, |value, byte| value << 8 | i64::from(*byte))
}

/// The value, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for step in 0..9 {
        let byte = *bytes.get(at + step)?;
        if step == 8 {
            return Some((value << 8 | u64::from(byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + step + 1));
        }
    }
    None
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

fn page_size(database: &[u8], wal: &[u8]) -> usize {
    let of_file = database.starts_with(MAGIC).then(|| half(database, 16)).flatten();
    let of_wal = is_wal(wal).then(|| word(wal, 8)).flatten();
    let said = of_file.map(|size| if size == 1 { 65_536 } else { size }).or(of_wal);
    said.filter(|size| size.is_power_of_two() && (512..=65_536).contains(size)).unwrap_or(PAGE_BYTES)
}

fn is_wal(wal: &[u8]) -> bool {
    word(wal, 0).is_some_and(|magic| magic & !1 == 0x377f_0682)
}

/// The newest committed content of each page in a write-ahead log: frames of its present salt whose running checksum holds, up to
/// the last that ends a transaction.
fn committed(wal: &[u8], page_bytes: usize) -> BTreeMap<usize, &[u8]> {
    let (mut pages, mut transaction) = (BTreeMap::new(), BTreeMap::new());
    if !is_wal(wal) || word(wal, 8) != Some(page_bytes) || wal.len() < WAL_HEADER_BYTES {
        return pages;
    }
    let big = wal[3] & 1 == 1;
    let mut sum = checksum(&wal[..24], big, (0, 0));
    if (word(wal, 24), word(wal, 28)) != (Some(sum.0 as usize), Some(sum.1 as usize)) {
        return pages;
    }
    for frame in wal[WAL_HEADER_BYTES..].chunks_exact(FRAME_HEADER_BYTES + page_bytes) {
        let (header, page) = frame.split_at(FRAME_HEADER_BYTES);
        sum = checksum(page, big, checksum(&header[..8], big, sum));
        let whole = (word(header, 16), word(header, 20)) == (Some(sum.0 as usize), Some(sum.1 as usize));
        if header[8..16] != wal[16..24] || !whole {
            break;
        }
        transaction.insert(word(header, 0).unwrap_or(0), page);
        if word(header, 4) != Some(0) {
            pages.append(&mut transaction);
        }
    }
    pages
}

fn checksum(bytes: &[u8], big: bool, (mut one, mut two): (u32, u32)) -> (u32, u32) {
    let read = |chunk: &[u8]| {
        let four = [chunk[0], chunk[1], chunk[2], chunk[3]];
        if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for pair in bytes.chunks_exact(8) {
        one = one.wrapping_add(read(&pair[..4])).wrapping_add(two);
        two = two.wrapping_add(read(&pair[4..])).wrapping_add(one);
    }
    (one, two)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
