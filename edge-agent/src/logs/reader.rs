//! One attempt's log files, read as one text.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_manifests::time::Timestamp;

use crate::shim::files::rotated_path;
use crate::shim::output::Retention;

/// Read at a time, and so about what a chunk holds.
const READ_BYTES: usize = 64 * 1024;
/// Read at a time when looking for the last lines from the end.
const TAIL_BYTES: u64 = 64 * 1024;
/// A line longer than this is not one a shim wrote: it is passed over.
const LINE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) tail_lines: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) timestamps: bool,
    pub(super) bytes_max: Option<u64>,
}

pub(super) enum Step {
    Chunk(Bytes),
    /// Everything there is now was read.
    End,
    /// As many bytes as were asked for were given.
    Limit,
}

pub(super) struct Reader {
    path: PathBuf,
    /// Oldest first; the last one may still grow, or be rotated away from under its name.
    files: std::collections::VecDeque<File>,
    /// The name means another file by now: read this one to its end once more, then go on with that.
    rotated: bool,
    selection: Selection,
    /// `selection.since` as CRI writes times, cut to microseconds: comparable as text.
    since: Option<String>,
    given_bytes: u64,
    rest: Vec<u8>,
    /// The line before was a part.
    within_line: bool,
}

impl Reader {
    /// A log that does not exist is empty.
    pub(super) fn open(path: &Path, selection: Selection) -> io::Result<Self> {
        let mut files = std::collections::VecDeque::new();
        for candidate in candidates(path) {
            match File::open(candidate) {
                Ok(file) => files.push_back(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Between listing and opening a file may have been rotated: it is then opened under two names.
        let mut seen = std::collections::BTreeSet::new();
        let mut unique = std::collections::VecDeque::new();
        for file in files {
            if seen.insert(file.metadata()?.ino()) {
                unique.push_back(file);
            }
        }
        let since = selection.since.map(|since| since.to_rfc3339_micro().trim_end_matches('Z').to_owned());
        let mut reader = Self {
            path: path.to_owned(),
            files: unique,
            rotated: false,
            selection,
            since,
            given_bytes: 0,
            rest: Vec::new(),
            within_line: false,
        };
        if let Some(lines) = selection.tail_lines {
            reader.seek_to_last(lines)?;
        }
        Ok(reader)
    }

    /// Drops whole files from the front, and moves the first one kept to where the last `lines` lines begin.
    fn seek_to_last(&mut self, lines: u64) -> io::Result<()> {
        let mut wanted = lines;
        for index in (0..self.files.len()).rev() {
            let (offset, found) = last_lines(&mut self.files[index], wanted)?;
            self.files[index].seek(SeekFrom::Start(offset))?;
            wanted -= found;
            if wanted == 0 {
                // What is older is not wanted; with nothing wanted at all the newest file stays, at its end.
                self.files.drain(..index);
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next chunk, if there is one.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        let mut buffer = vec![0_u8; READ_BYTES];
        loop {
            if self.selection.bytes_max.is_some_and(|bytes_max| self.given_bytes >= bytes_max) {
                return Ok(Step::Limit);
            }
            let length = match self.files.front_mut() {
                Some(file) => file.read(&mut buffer)?,
                None => 0,
            };
            if length > 0 {
                self.rest.extend_from_slice(&buffer[..length]);
                let chunk = self.take_lines();
                if !chunk.is_empty() {
                    return Ok(Step::Chunk(chunk));
                }
            } else if !self.go_on()? {
                return Ok(Step::End);
            }
        }
    }

    /// At the end of a file: to the next one, if there is one.
    fn go_on(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            return Ok(true);
        }
        let Some(current) = self.files.front() else {
            match File::open(&self.path) {
                Ok(file) => self.files.push_back(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
            return Ok(true);
        };
        let inode = current.metadata()?.ino();
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.ino() != inode => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        if !self.rotated {
            self.rotated = true;
            return Ok(true);
        }
        self.rotated = false;
        self.files = newer_than(&self.path, inode);
        Ok(!self.files.is_empty())
    }

    /// Turns the complete lines of `rest` into text.
    fn take_lines(&mut self) -> Bytes {
        let mut text = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.rest[begin..].iter().position(|&byte| byte == b'\n') {
            if let Some(line) = Line::parse(&self.rest[begin..begin + length]) {
                let wanted = self.since.as_deref().is_none_or(|since| line.time >= since.as_bytes());
                if wanted {
                    if self.selection.timestamps && !self.within_line {
                        text.extend_from_slice(line.time);
                        text.push(b' ');
                    }
                    text.extend_from_slice(line.content);
                    if !line.partial {
                        text.push(b'\n');
                    }
                }
                self.within_line = line.partial;
            }
            begin += length + 1;
        }
        self.rest.drain(..begin);
        if self.rest.len() > LINE_BYTES_MAX {
            self.rest.clear();
        }
        if let Some(bytes_max) = self.selection.bytes_max {
            let left = bytes_max.saturating_sub(self.given_bytes);
            text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.given_bytes = self.given_bytes.saturating_add(text.len() as u64);
        text.into()
    }
}

/// The names of a log, oldest first.
fn candidates(path: &Path) -> impl Iterator<Item = PathBuf> {
    let rotated = (1..Retention::default().files_max).rev().map(|age| rotated_path(path, age));
    rotated.chain(std::iter::once(path.to_owned()))
}

/// The files written after the one with this inode; all there are when it is gone.
fn newer_than(path: &Path, inode: u64) -> std::collections::VecDeque<File> {
    let mut newer = std::collections::VecDeque::new();
    for file in candidates(path).filter_map(|candidate| File::open(candidate).ok()) {
        match file.metadata() {
            Ok(metadata) if metadata.ino() == inode => newer.clear(),
            _ => newer.push_back(file),
        }
    }
    newer
}

/// Where the last `wanted` lines of a file begin, and how many there are.
fn last_lines(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    if wanted == 0 {
        return Ok((length, 0));
    }
    let (mut end, mut found) = (length, 0);
    let mut block = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(TAIL_BYTES);
        block.clear();
        file.seek(SeekFrom::Start(begin))?;
        io::Read::by_ref(file).take(end - begin).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = begin + index as u64 + 1;
            // The newline at the very end ends the last line, it does not begin one.
            if after < length {
                found += 1;
                if found == wanted {
                    return Ok((after, found));
                }
            }
        }
        end = begin;
    }
    Ok((0, if length > 0 { found + 1 } else { 0 }))
}

/// `2026-11-21T07:30:53.123456789Z stdout F text`
struct Line<'a> {
    time: &'a [u8],
    partial: bool,
    content: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let (time, _stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { time, partial: tag == b"P", content: fields.next().unwrap_or_default() })
    }
}
