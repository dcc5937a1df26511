//! Layers as they travel: tar, tar+gzip, tar+zstd; told apart by their first bytes, so that a wrong media type does no harm.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What a zstd frame may keep in memory: `zstd -19` uses 8 MiB.
const WINDOW_BYTES_MAX: u64 = 32 * 1024 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// The plain tar of a layer.
pub(in crate::image) fn plain<'a>(layer: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut layer = BufReader::with_capacity(BUFFER_BYTES, layer);
    // A tar's first bytes are the name of its first entry.
    let start = layer.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(MultiGzDecoder::new(layer)))
    } else if is_zstd(start) {
        Ok(Box::new(Zstd { source: layer, decoder: FrameDecoder::new() }))
    } else {
        Ok(Box::new(layer))
    }
}

fn is_zstd(start: &[u8]) -> bool {
    let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable
}

/// All zstd frames of a stream, one after the other (RFC 8878); skippable ones are skipped.
struct Zstd<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if !self.decoder.is_finished() {
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, blocks).map_err(invalid)?;
            } else if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            } else {
                self.next_frame()?;
            }
        }
    }
}

impl<R: Read> Zstd<R> {
    fn next_frame(&mut self) -> io::Result<()> {
        self.decoder.set_max_window_size(WINDOW_BYTES_MAX);
        match self.decoder.reset(&mut self.source) {
            Ok(()) => Ok(()),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle: it is not whole"));
                }
                Ok(())
            }
            Err(error) => Err(invalid(error)),
        }
    }
}

fn invalid(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
