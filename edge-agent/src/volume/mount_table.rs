//! The kernel's list of this process's mounts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::{VolumeError, at};

const TABLE: &str = "/proc/self/mountinfo";

/// Mount points at or below a path, in the order they were mounted.
pub(super) fn below(path: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let text = fs::read(TABLE).map_err(at("read", Path::new(TABLE)))?;
    let points = text.split(|byte| *byte == b'\n').filter_map(mount_point);
    Ok(points.filter(|point| point.starts_with(path)).collect())
}

pub(super) fn is_mounted(path: &Path) -> Result<bool, VolumeError> {
    Ok(below(path)?.iter().any(|point| point == path))
}

/// The fifth field of a line (proc_pid_mountinfo(5)); space, tab, newline and backslash stand there as `\` and three octal digits.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_its_escapes() {
        let line = br"36 35 98:0 /mnt1 /mnt\040two/a\134b rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/mnt two/a\\b")));
        assert_eq!(mount_point(br"36 35 98:0 / /plain\04 rw"), Some(PathBuf::from("/plain\\04")));
        assert_eq!(mount_point(b"36 35"), None);
    }
}
