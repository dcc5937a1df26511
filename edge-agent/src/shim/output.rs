//! A container's output as a CRI log file (kubernetes/design-proposals: kubelet-cri-logging): `TIME stdout|stderr F|P LINE`.
//!
//! Never blocks the container: what cannot be written (a full disk) is counted and dropped. Bounded: a line is cut into parts of
//! 16 KiB (tag `P`, the last one `F`), a file is rotated at a size, and the oldest is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::files::rotated_path;

/// A longer line is written in parts, as containerd does.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// How much output is kept of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub file_bytes_max: u64,
    /// Files, the one being written included.
    pub files_max: u32,
}

impl Default for Retention {
    /// Kubelet's containerLogMaxSize and containerLogMaxFiles.
    fn default() -> Self {
        Self { file_bytes_max: 10 * 1024 * 1024, files_max: 5 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one attempt.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    retention: Retention,
    file: Option<File>,
    size_bytes: u64,
    /// The unfinished lines of stdout and stderr.
    rest: [Vec<u8>; 2],
    lost_bytes: u64,
}

impl LogFile {
    /// Opens (or goes on with) a log; a file that cannot be opened is tried again at each write.
    pub fn open(path: &Path, retention: Retention) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            retention,
            file: None,
            size_bytes: 0,
            rest: [Vec::new(), Vec::new()],
            lost_bytes: 0,
        };
        drop(log.reopen());
        log
    }

    /// Bytes that could not be written.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Takes output in, stamped with `time` (RFC 3339 with nanoseconds).
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8], time: &str) {
        let mut rest = std::mem::take(&mut self.rest[stream as usize]);
        let mut lines = Vec::with_capacity(bytes.len() + 128);
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - rest.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                rest.extend_from_slice(&window[..end]);
                push_line(&mut lines, time, stream, 'F', &rest);
                rest.clear();
                bytes = &bytes[end + 1..];
            } else {
                rest.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                // A full buffer is a part only when its line goes on; a newline right behind it makes it the last one.
                if rest.len() == LINE_BYTES_MAX && bytes.first() != Some(&b'\n') {
                    push_line(&mut lines, time, stream, 'P', &rest);
                    rest.clear();
                } else if rest.len() == LINE_BYTES_MAX {
                    push_line(&mut lines, time, stream, 'F', &rest);
                    rest.clear();
                    bytes = &bytes[1..];
                }
            }
        }
        self.rest[stream as usize] = rest;
        self.append(&lines);
    }

    /// Writes what is left of a line that the container did not finish.
    pub fn finish(&mut self, stream: Stream, time: &str) {
        let rest = std::mem::take(&mut self.rest[stream as usize]);
        if !rest.is_empty() {
            let mut line = Vec::with_capacity(rest.len() + 64);
            push_line(&mut line, time, stream, 'F', &rest);
            self.append(&line);
        }
    }

    fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let length = lines.len() as u64;
        if self.size_bytes > 0 && self.size_bytes.saturating_add(length) > self.retention.file_bytes_max {
            drop(self.rotate());
        }
        let written = match self.file.as_mut() {
            Some(file) => file.write_all(lines),
            None => self.reopen().and_then(|file| file.write_all(lines)),
        };
        match written {
            Ok(()) => self.size_bytes = self.size_bytes.saturating_add(length),
            Err(_) => self.lost_bytes = self.lost_bytes.saturating_add(length),
        }
    }

    /// `log` -> `log.1` -> `log.2` ...; the oldest goes. When renaming fails the file is emptied: the bound holds.
    fn rotate(&mut self) -> io::Result<()> {
        for age in (1..self.retention.files_max.saturating_sub(1)).rev() {
            drop(fs::rename(rotated_path(&self.path, age), rotated_path(&self.path, age + 1)));
        }
        if self.retention.files_max < 2 || fs::rename(&self.path, rotated_path(&self.path, 1)).is_err() {
            drop(fs::remove_file(&self.path));
        }
        self.reopen().map(|_| ())
    }

    fn reopen(&mut self) -> io::Result<&mut File> {
        self.file = None;
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size_bytes = file.metadata()?.len();
        Ok(self.file.insert(file))
    }
}

fn push_line(lines: &mut Vec<u8>, time: &str, stream: Stream, tag: char, text: &[u8]) {
    lines.extend_from_slice(time.as_bytes());
    lines.push(b' ');
    lines.extend_from_slice(stream.name().as_bytes());
    lines.push(b' ');
    lines.push(tag as u8);
    lines.push(b' ');
    lines.extend_from_slice(text);
    lines.push(b'\n');
}
