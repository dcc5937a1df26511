//! The sections of a stream: read, opened, in order.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::super::envelope::FileKey;
use super::super::format::{Found, FrameReader, Header};
use super::super::section::Section;
use super::super::{BUNDLE_BYTES_MAX, BundleError, Missing, Report};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// The sections of a stream, in order.
pub(super) struct Sections<S> {
    source: S,
    frames: FrameReader,
    pub(super) key: Option<FileKey>,
    pub(super) report: Report,
    /// Number of the next section.
    pub(super) expected: u32,
    /// Something before the section given last is missing.
    pub(super) hole: bool,
    /// Something was missing.
    torn: bool,
    ended: bool,
    last_seen: bool,
    buffer: Box<[u8]>,
}

impl<S: AsyncRead + Unpin> Sections<S> {
    pub(super) fn of(source: S) -> Self {
        Self {
            source,
            frames: FrameReader::default(),
            key: None,
            report: Report::default(),
            expected: 0,
            hole: false,
            torn: false,
            ended: false,
            last_seen: false,
            buffer: vec![0; READ_BYTES].into(),
        }
    }

    pub(super) fn about(&mut self, header: &Header) {
        let bytes = self.report.bytes;
        let report = Report::of(&header.installation, &header.receiver, header.time_ms, &header.id);
        self.report = Report { bytes, ..report };
    }

    pub(super) async fn header(&mut self) -> Result<Header, BundleError> {
        match self.found().await? {
            Some(Found::Header(header)) => Ok(header),
            _ => Err(BundleError::NoBundle),
        }
    }

    /// The next section that is whole; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Section>, BundleError> {
        loop {
            match self.found().await? {
                None => {
                    self.close();
                    return Ok(None);
                }
                Some(Found::Header(_)) => {}
                Some(Found::Damaged { bytes }) => self.damaged(bytes),
                Some(Found::Frame(frame)) => {
                    let bytes = frame.sealed.len() as u64;
                    if frame.index < self.expected {
                        // Again, or in another place than its own.
                        self.damaged(bytes);
                        continue;
                    }
                    let opened = match &self.key {
                        Some(key) => key.section(&frame).map(Bytes::from),
                        None => Some(Bytes::new()),
                    };
                    let Some(opened) = opened else {
                        self.damaged(bytes);
                        continue;
                    };
                    let jumped = frame.index != self.expected;
                    self.hole |= jumped;
                    self.torn |= jumped;
                    self.expected = frame.index.saturating_add(1);
                    self.report.sections += 1;
                    self.last_seen |= frame.last;
                    if self.key.is_none() {
                        continue;
                    }
                    match Section::decode(&opened) {
                        Ok(section) => return Ok(Some(section)),
                        Err(error) => self.report.set_aside(vec![format!("section {}: {error}", frame.index)]),
                    }
                }
            }
        }
    }

    pub(super) async fn drain(&mut self) -> Result<(), BundleError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    fn damaged(&mut self, bytes: u64) {
        self.hole = true;
        self.torn = true;
        self.report.miss(Missing::Damaged { bytes, after_section: u64::from(self.expected) });
    }

    fn close(&mut self) {
        let sections = self.report.sections;
        if !self.last_seen {
            self.report.miss(Missing::End { sections });
        }
        self.report.whole = self.last_seen && !self.torn;
    }

    async fn found(&mut self) -> Result<Option<Found>, BundleError> {
        loop {
            if let Some(found) = self.frames.next(self.ended)? {
                return Ok(Some(found));
            }
            if self.ended {
                return Ok(None);
            }
            let read = self.source.read(&mut self.buffer).await?;
            self.report.bytes += read as u64;
            if self.report.bytes > BUNDLE_BYTES_MAX {
                return Err(BundleError::TooLarge { what: "the bundle", max: usize::MAX });
            }
            self.ended = read == 0;
            self.frames.push(&self.buffer[..read]);
        }
    }
}

impl<S> std::fmt::Debug for Sections<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sections").field("expected", &self.expected).finish_non_exhaustive()
    }
}
