//! Deterministic CBOR (RFC 8949, 4.2): the part of it that the wire needs.
//!
//! Arrays, byte and text strings, unsigned integers and null; definite lengths, shortest integers. The decoder rejects
//! everything else, so that a value has exactly one encoding, checks lengths before it allocates (it borrows), and cannot panic.

use crate::channel::Hash;

const UINT: u8 = 0 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const NULL: u8 = 0xf6;

/// Why bytes are not the deterministic CBOR that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {why}")]
pub struct CborError {
    /// Offset of the item.
    pub at: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Appends items to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    buffer: Vec<u8>,
}

/// Reads items from a buffer.
#[derive(Debug, Clone)]
pub(crate) struct Decoder<'a> {
    buffer: &'a [u8],
    at: usize,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.buffer
    }

    pub(crate) fn uint(&mut self, value: u64) -> &mut Self {
        self.head(UINT, value)
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.head(BYTES, value.len() as u64);
        self.buffer.extend_from_slice(value);
        self
    }

    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.head(TEXT, value.len() as u64);
        self.buffer.extend_from_slice(value.as_bytes());
        self
    }

    /// Starts an array of `len` items.
    pub(crate) fn array(&mut self, len: usize) -> &mut Self {
        self.head(ARRAY, len as u64)
    }

    pub(crate) fn null(&mut self) -> &mut Self {
        self.buffer.push(NULL);
        self
    }

    /// Appends items that are encoded already.
    pub(crate) fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(encoded);
        self
    }

    #[allow(clippy::cast_possible_truncation, reason = "each arm's range fits its width")]
    fn head(&mut self, major: u8, value: u64) -> &mut Self {
        match value {
            0..=23 => self.buffer.push(major | value as u8),
            24..=0xff => self.buffer.extend_from_slice(&[major | 24, value as u8]),
            0x100..=0xffff => {
                self.buffer.push(major | 25);
                self.buffer.extend_from_slice(&(value as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.buffer.push(major | 26);
                self.buffer.extend_from_slice(&(value as u32).to_be_bytes());
            }
            _ => {
                self.buffer.push(major | 27);
                self.buffer.extend_from_slice(&value.to_be_bytes());
            }
        }
        self
    }
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(buffer: &'a [u8]) -> Self {
        Self { buffer, at: 0 }
    }

    /// Offset of the next item.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The bytes from `start` to the next item.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        self.buffer.get(start..self.at).unwrap_or_default()
    }

    /// An error about the item that starts at the current offset.
    pub(crate) fn error(&self, why: &'static str) -> CborError {
        CborError { at: self.at, why }
    }

    pub(crate) fn uint(&mut self) -> Result<u64, CborError> {
        self.head(UINT, "an unsigned integer was expected")
    }

    /// A byte string of at most `bytes_max`.
    pub(crate) fn bytes(&mut self, bytes_max: usize) -> Result<&'a [u8], CborError> {
        let start = self.clone();
        let len = self.head(BYTES, "a byte string was expected")?;
        self.slice(len, bytes_max).map_err(|why| start.error(why))
    }

    /// A text string of at most `bytes_max` bytes.
    pub(crate) fn text(&mut self, bytes_max: usize) -> Result<&'a str, CborError> {
        let start = self.clone();
        let len = self.head(TEXT, "a text string was expected")?;
        let bytes = self.slice(len, bytes_max).map_err(|why| start.error(why))?;
        std::str::from_utf8(bytes).map_err(|_invalid| start.error("the text is not UTF-8"))
    }

    /// A byte string of exactly 32 bytes.
    pub(crate) fn hash(&mut self) -> Result<Hash, CborError> {
        let start = self.clone();
        self.bytes(32)?.try_into().map_err(|_length| start.error("32 bytes were expected"))
    }

    /// The start of an array of at most `len_max` items.
    pub(crate) fn array(&mut self, len_max: usize) -> Result<usize, CborError> {
        let start = self.clone();
        let len = self.head(ARRAY, "an array was expected")?;
        let len = usize::try_from(len).ok().filter(|len| *len <= len_max);
        len.ok_or_else(|| start.error("the array is longer than allowed"))
    }

    /// The start of an array of exactly `len` items.
    pub(crate) fn array_of(&mut self, len: usize) -> Result<(), CborError> {
        let start = self.clone();
        if self.array(len)? == len { Ok(()) } else { Err(start.error("the array has another length than expected")) }
    }

    /// Whether the next item is null; if so it is read.
    pub(crate) fn null(&mut self) -> bool {
        let is_null = self.buffer.get(self.at) == Some(&NULL);
        self.at += usize::from(is_null);
        is_null
    }

    /// Whether the next item is a text string. Reads nothing.
    pub(crate) fn is_text(&self) -> bool {
        self.buffer.get(self.at).is_some_and(|byte| byte & 0xe0 == TEXT)
    }

    /// Whether the next item is an array. Reads nothing.
    pub(crate) fn is_array(&self) -> bool {
        self.buffer.get(self.at).is_some_and(|byte| byte & 0xe0 == ARRAY)
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), CborError> {
        if self.at == self.buffer.len() { Ok(()) } else { Err(self.error("nothing was expected here")) }
    }

    fn head(&mut self, major: u8, why: &'static str) -> Result<u64, CborError> {
        let first = *self.buffer.get(self.at).ok_or_else(|| self.error("the data ends too early"))?;
        if first & 0xe0 != major {
            return Err(self.error(why));
        }
        let (width, smallest) = match first & 0x1f {
            short @ 0..=23 => {
                self.at += 1;
                return Ok(u64::from(short));
            }
            24 => (1, 24),
            25 => (2, 0x100),
            26 => (4, 0x1_0000),
            27 => (8, 0x1_0000_0000),
            _ => return Err(self.error("indefinite lengths are not allowed")),
        };
        let bytes =
            self.buffer.get(self.at + 1..self.at + 1 + width).ok_or_else(|| self.error("the data ends too early"))?;
        let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if value < smallest {
            return Err(self.error("the integer is not in its shortest form"));
        }
        self.at += 1 + width;
        Ok(value)
    }

    fn slice(&mut self, len: u64, bytes_max: usize) -> Result<&'a [u8], &'static str> {
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes_max).ok_or("it is longer than allowed")?;
        let end = self.at.checked_add(len).ok_or("it is longer than allowed")?;
        let bytes = self.buffer.get(self.at..end).ok_or("the data ends too early")?;
        self.at = end;
        Ok(bytes)
    }
}
