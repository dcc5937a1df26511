//! A tar stream, entry by entry, as far as image layers use it: ustar, PAX and GNU headers.
//!
//! Owns the bounds: nothing in a header makes this read more into memory than [`EXTENSION_BYTES_MAX`]. Refuses what it does not
//! know. Start reading at [`Archive::next`].

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// One PAX header, long name or long link.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// Pieces of one sparse file.
const SPARSE_LEN_MAX: usize = 65_536;
/// Headers before one entry that only extend it.
const EXTENSIONS_LEN_MAX: usize = 8;

/// Where a tar comes from.
pub(in crate::image) trait Source: Read + Sized {
    /// Passes over this many bytes; answers how many there were.
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.by_ref().take(bytes), &mut io::sink())
    }
}

/// Reads a tar.
#[derive(Debug)]
pub(in crate::image) struct Archive<R> {
    source: R,
    /// Content of the entry at hand that was not read yet, and what fills its last block.
    content_bytes: u64,
    padding_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Folder,
    Fifo,
    CharacterDevice,
    BlockDevice,
}

/// One entry. Nothing in it was checked beyond its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Entry {
    pub(in crate::image) path: Vec<u8>,
    /// Of a symbolic or hard link.
    pub(in crate::image) target: Vec<u8>,
    pub(in crate::image) kind: Kind,
    pub(in crate::image) mode: u32,
    pub(in crate::image) uid: u32,
    pub(in crate::image) gid: u32,
    pub(in crate::image) mtime_seconds: i64,
    pub(in crate::image) mtime_nanoseconds: u32,
    /// Of a file once it is written out.
    pub(in crate::image) size_bytes: u64,
    pub(in crate::image) device: (u32, u32),
    pub(in crate::image) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of the parts that are in the archive; `None`: all of it.
    pub(in crate::image) sparse: Option<Vec<(u64, u64)>>,
}

/// What PAX, long-name and long-link headers say about the entry after them.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Source> Archive<R> {
    pub(in crate::image) fn over(source: R) -> Self {
        Self { source, content_bytes: 0, padding_bytes: 0 }
    }

    /// The next entry; `None` at the end. What was not read of the one before is passed over.
    pub(in crate::image) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        for _ in 0..EXTENSIONS_LEN_MAX {
            self.finish_entry()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header.as_old().size, header.entry_size())?;
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => {
                    let text = self.extension(size)?;
                    read_pax(&text, &mut extension)?;
                }
                // Global headers carry comments (git archive); what else they may carry is refused below, entry by entry.
                EntryType::XGlobalHeader => {
                    let text = self.extension(size)?;
                    let mut global = Extension::default();
                    read_pax(&text, &mut global)?;
                    if global.path.is_some() || global.target.is_some() || global.size.is_some() {
                        return Err(bad("a global header names a path, a target or a size for all entries"));
                    }
                }
                EntryType::GNULongName => extension.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extension.target = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, kind, extension).map(Some),
            }
        }
        Err(bad("more than 8 headers extend one entry"))
    }

    pub(in crate::image) fn source(&self) -> &R {
        &self.source
    }

    /// Up to the end of the stream, which may hold anything after the archive's own end.
    pub(in crate::image) fn into_inner(self) -> R {
        self.source
    }

    fn entry(&mut self, header: &Header, kind: EntryType, extension: Extension) -> io::Result<Entry> {
        let kind_here = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Link => Kind::HardLink,
            EntryType::Symlink => Kind::SymbolicLink,
            EntryType::Directory => Kind::Folder,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::CharacterDevice,
            EntryType::Block => Kind::BlockDevice,
            other => return Err(bad(&format!("an entry has the unknown type {:?}", char::from(other.as_byte())))),
        };
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = extension.target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let old = header.as_old();
        let stored = extension.size.map_or_else(|| number(&old.size, header.entry_size()), Ok)?;
        // Only files have content; some writers give links the size of what they point at.
        let content = if kind_here == Kind::File { stored } else { 0 };
        // Old archives mark a folder by its name alone.
        let kind_here = if kind_here == Kind::File && path.ends_with(b"/") { Kind::Folder } else { kind_here };
        let (sparse, size_bytes) = if kind == EntryType::GNUSparse {
            let (parts, size) = self.sparse(header, content)?;
            (Some(parts), size)
        } else {
            (None, content)
        };
        self.content_bytes = content;
        self.padding_bytes = padding(content);
        let id = |extended: Option<u64>, own: io::Result<u64>, what: &str| {
            let id = extended.map_or(own, Ok)?;
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad(&format!("the {what} {id} is none")))
        };
        let mtime = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
        let (mtime_seconds, mtime_nanoseconds) = extension.mtime.unwrap_or((mtime, 0));
        let device = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
        Ok(Entry {
            path,
            target: target.unwrap_or_default(),
            kind: kind_here,
            mode: number(&old.mode, header.mode())? & 0o7777,
            uid: id(extension.uid, number(&old.uid, header.uid()), "owner")?,
            gid: id(extension.gid, number(&old.gid, header.gid()), "group")?,
            mtime_seconds,
            mtime_nanoseconds,
            size_bytes,
            device: (device.0.unwrap_or(0), device.1.unwrap_or(0)),
            attributes: extension.attributes,
            sparse,
        })
    }

    /// The map of an old GNU sparse file: its parts and its whole size.
    fn sparse(&mut self, header: &Header, content: u64) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let Some(gnu) = header.as_gnu() else { return Err(bad("a sparse file has no GNU header")) };
        let size = gnu.real_size()?;
        let mut parts = Vec::new();
        let mut take = |all: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for one in all.iter().filter(|one| !one.is_empty()) {
                parts.push((one.offset()?, one.length()?));
                if parts.len() > SPARSE_LEN_MAX {
                    return Err(bad("a sparse file has more than 65536 parts"));
                }
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = tar::GnuExtSparseHeader::new();
            self.source.read_exact(next.as_mut_bytes()).map_err(|_| truncated())?;
            take(&next.sparse)?;
            more = next.is_extended();
        }
        let mut end = 0_u64;
        let mut stored = 0_u64;
        for (offset, length) in &parts {
            let next = offset.checked_add(*length).filter(|next| *next <= size && *offset >= end);
            end = next.ok_or_else(|| bad("the parts of a sparse file overlap or reach beyond its end"))?;
            stored += length;
        }
        if stored != content {
            return Err(bad("the parts of a sparse file do not add up to what is stored of it"));
        }
        Ok((parts, size))
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum = |range: std::ops::Range<usize>| block[range].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        // The checksum's own field counts as spaces.
        let found = sum(0..148) + sum(156..BLOCK) + 8 * u32::from(b' ');
        if header.cksum()? != found {
            return Err(bad("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(bad(&format!("a header extension has {size} bytes, more than {EXTENSION_BYTES_MAX}")));
        }
        let mut text = Vec::new();
        let read = self.source.by_ref().take(size).read_to_end(&mut text)?;
        if (read as u64) < size {
            return Err(truncated());
        }
        self.source.pass(padding(size))?;
        Ok(text)
    }

    fn finish_entry(&mut self) -> io::Result<()> {
        let (content, padding) = (self.content_bytes, self.padding_bytes);
        (self.content_bytes, self.padding_bytes) = (0, 0);
        if content > 0 && self.source.pass(content)? < content {
            return Err(truncated());
        }
        // The last entry may end without it, and without the archive's own end: so does umoci write them.
        if padding > 0 {
            self.source.pass(padding)?;
        }
        Ok(())
    }
}

impl<R: Source> Read for Archive<R> {
    /// Content of the entry at hand.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content_bytes).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(truncated());
        }
        self.content_bytes -= count as u64;
        Ok(count)
    }
}

/// A header's number; an empty field means 0.
fn number<T: From<u8>>(field: &[u8], parsed: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::from(0)) } else { parsed }
}

fn padding(content: u64) -> u64 {
    (BLOCK as u64 - content % BLOCK as u64) % BLOCK as u64
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}

/// Records of the form `<length> <key>=<value>\n` (POSIX pax). The length counts all of the record; a value may hold anything.
fn read_pax(mut text: &[u8], extension: &mut Extension) -> io::Result<()> {
    let wrong = || bad("a PAX header is malformed");
    while !text.is_empty() && text[0] != 0 {
        let space = text.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = ascii(&text[..space]).ok_or_else(wrong)?;
        if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &text[space + 1..length - 1];
        text = &text[length..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || ascii::<u64>(value).ok_or_else(wrong);
        match key {
            b"path" => extension.path = Some(value.to_vec()),
            b"linkpath" => extension.target = Some(value.to_vec()),
            b"size" => extension.size = Some(number()?),
            b"uid" => extension.uid = Some(number()?),
            b"gid" => extension.gid = Some(number()?),
            b"mtime" => extension.mtime = Some(time(value).ok_or_else(wrong)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(bad("a sparse file is in PAX form, which is not read: pack it again without --sparse"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extension.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn ascii<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `1700000000.123456789`, perhaps negative.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds, digits.parse().ok()?))
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle: it is not whole")
}
