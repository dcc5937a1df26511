//! Framing: a 4-byte big-endian length before each frame. Everything here is cancel-safe.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::FRAME_BYTES_MAX;
use crate::session::Session;
use crate::transport::{Pipe, Reader, Writer};

/// Frames are gathered up to this much before a write.
const OUTPUT_BYTES: usize = 64 * 1024;
/// Room offered to a read in the middle of a frame, and to the first of a frame: an idle session holds that much.
const INPUT_BYTES: usize = 16 * 1024;
const FIRST_INPUT_BYTES: usize = 512;
/// An idle session gives larger buffers back.
const IDLE_BYTES: usize = 512;

pub(super) struct Wire {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) input: Input,
    pub(super) output: Output,
}

/// Bytes that came and are no whole frame yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    buffer: BytesMut,
}

/// Bytes that wait to leave.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: BytesMut,
    unflushed: bool,
}

impl Wire {
    pub(super) fn new(pipe: Pipe) -> Self {
        Self { reader: pipe.reader, writer: pipe.writer, input: Input::default(), output: Output::default() }
    }

    /// Takes frames from the session while there is room, and a piece of something large when there is nothing else.
    pub(super) fn fill(&mut self, session: &mut Session) {
        while self.output.buffer.len() < OUTPUT_BYTES {
            let Some(frame) = session.poll_frame() else { break };
            self.output.push(&frame);
        }
        if self.output.buffer.is_empty()
            && let Some(piece) = session.poll_piece()
        {
            self.output.push(&piece);
        }
    }

    pub(super) fn say_goodbye(&mut self, reason: &str) {
        self.output.push(&crate::session::goodbye(reason));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.output.is_clean()
    }

    /// Sends what is left and ends the stream in order.
    pub(super) async fn finish(&mut self) {
        let sent = async {
            while !self.output.is_clean() {
                self.output.write(&mut self.writer).await?;
            }
            self.writer.shutdown().await?;
            // The peer reads the goodbye and ends its half: only then may both be dropped.
            let mut rest = [0; 1024];
            while self.reader.read(&mut rest).await? > 0 {}
            std::io::Result::Ok(())
        };
        // The session has ended; what does not arrive is lost with it.
        sent.await.unwrap_or_default();
    }
}

impl Input {
    /// Reads once; 0 at the end of the stream.
    pub(super) async fn read(&mut self, reader: &mut Reader) -> std::io::Result<usize> {
        self.buffer.reserve(if self.buffer.is_empty() { FIRST_INPUT_BYTES } else { INPUT_BYTES });
        reader.read_buf(&mut self.buffer).await
    }

    /// The next whole frame. Its size is checked before anything is kept for it.
    pub(super) fn next_frame(&mut self) -> Result<Option<Bytes>, String> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a frame of {length} bytes; {FRAME_BYTES_MAX} are the most"));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let frame = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }
}

impl Output {
    fn push(&mut self, frame: &[u8]) {
        self.buffer.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        self.buffer.extend_from_slice(frame);
    }

    pub(super) fn is_clean(&self) -> bool {
        self.buffer.is_empty() && !self.unflushed
    }

    /// Writes once, or flushes once everything is written.
    pub(super) async fn write(&mut self, writer: &mut Writer) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            writer.flush().await?;
            self.unflushed = false;
            return Ok(());
        }
        let written = writer.write(&self.buffer).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        self.buffer.advance(written);
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }
}
