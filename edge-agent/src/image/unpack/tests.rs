//! Layers that mean harm, layers that are broken, and what a good layer becomes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

const BOUNDS: Bounds = Bounds { entries_len_max: 100, unpacked_bytes_max: 1 << 20, reserve_bytes: 0 };

/// A tar in the making; nothing is checked, names may be anything.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn put(self, kind: EntryType, name: &[u8], target: &[u8], content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        self.raw(header.as_bytes()).raw(content).padded()
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn padded(mut self) -> Self {
        let whole = self.0.len().next_multiple_of(512);
        self.0.resize(whole, 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.put(EntryType::Regular, name.as_bytes(), b"", content.as_bytes())
    }

    fn folder(self, name: &str) -> Self {
        self.put(EntryType::Directory, name.as_bytes(), b"", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.put(EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.put(EntryType::Link, name.as_bytes(), target.as_bytes(), b"")
    }

    fn pax(self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        let mut text = format!("{length} {key}=").into_bytes();
        text.extend_from_slice(value);
        text.push(b'\n');
        self.put(EntryType::XHeader, b"pax", b"", &text)
    }

    fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "needed here but missing: root");
        drop(writeln!(io::stderr(), "SKIPPED: layers are unpacked by root"));
    }
    root
}

/// Unpacks beside a canary; returns the folder that holds both.
fn unpacked(layer: &[u8]) -> (tempfile::TempDir, PathBuf, Result<(), Fault>) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "sings").unwrap();
    let folder = outside.path().join("layer");
    fs::create_dir(&folder).unwrap();
    let outcome = plain(layer)
        .map_err(|error| Fault { entry: None, why: error.to_string(), available_bytes: None })
        .and_then(|layer| unpack(layer, &folder, &BOUNDS));
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "sings");
    let mut beside: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["canary", "layer"], "something was written outside");
    (outside, folder, outcome)
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn layers_that_lead_outside_are_refused_by_name() {
    if !root() {
        return;
    }
    let canary = |name: &str| Tar::default().file(name, "croaks");
    let device = |name: &str| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Char);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_path(name).unwrap();
        header.set_cksum();
        Tar::default().raw(header.as_bytes())
    };
    let deep = "d/".repeat(1000) + "f";
    let long = "n".repeat(300);
    let table: Vec<(Tar, &str, &str)> = vec![
        (canary("../canary"), "../canary", "leads out with .."),
        (canary("a/../../canary"), "a/../../canary", "leads out with .."),
        (canary("/../canary"), "/../canary", "leads out with .."),
        (Tar::default().symlink("up", "..").file("up/canary", "croaks"), "up/canary", "goes through up"),
        (Tar::default().symlink("etc", "/etc").file("etc/canary", "croaks"), "etc/canary", "goes through etc"),
        (Tar::default().folder("a").symlink("a/b", "../..").folder("a/b/c"), "a/b/c", "goes through a/b"),
        (Tar::default().file("f", "").file("f/g", ""), "f/g", "goes through f"),
        (Tar::default().symlink("up", "..").file("up/.wh.canary", ""), "up/.wh.canary", "goes through up"),
        (Tar::default().symlink("up", "..").file("up/.wh..wh..opq", ""), "up/.wh..wh..opq", "goes through up"),
        (Tar::default().file(".wh...", ""), ".wh...", "hides nothing"),
        (Tar::default().file(".wh.", ""), ".wh.", "hides nothing"),
        (Tar::default().link("l", "../canary"), "l", "leads out with .."),
        (Tar::default().link("l", "/etc/passwd"), "l", "not in this layer"),
        (Tar::default().link("l", "missing"), "l", "not in this layer"),
        (Tar::default().symlink("up", "..").link("l", "up/canary"), "l", "not in this layer"),
        (Tar::default().folder("d").link("l", "d"), "l", "is no file"),
        (device("dev"), "dev", "device 0:0"),
        (Tar::default().pax("path", deep.as_bytes()).file("x", ""), &deep[..300], "folders deep"),
        (Tar::default().pax("path", "p/".repeat(3000).as_bytes()).file("x", ""), "", "more than 4096"),
        (Tar::default().pax("path", long.as_bytes()).file("x", ""), &long, "more than 255"),
        (Tar::default().pax("path", b"a\0b").file("x", ""), "a\0b", "NUL"),
        (Tar::default().pax("path", b"").file("x", ""), "", "has no name"),
        (Tar::default().symlink("s", ""), "s", "target is no path"),
    ];
    for (tar, entry, why) in table {
        let (_outside, _folder, outcome) = unpacked(&tar.end());
        let fault = outcome.expect_err(entry);
        assert!(fault.why.contains(why), "{entry}: {fault:?}");
        assert!(fault.entry.as_deref().is_some_and(|named| named.starts_with(entry)), "{entry}: {fault:?}");
        let told = fault.of_layer("sha256:abc", Path::new("/"), &BOUNDS).to_string();
        assert!(told.contains("layer sha256:abc, entry "), "{told}");
    }
}

#[test]
fn layers_that_ask_for_too_much_are_refused() {
    if !root() {
        return;
    }
    let many = (0..101).fold(Tar::default(), |tar, index| tar.file(&format!("f{index}"), ""));
    let big = vec![0_u8; (1 << 20) + 1];
    let too_big = Tar::default().put(EntryType::Regular, b"big", b"", &big);
    let mut claims = Header::new_gnu();
    claims.set_size(u64::MAX / 2);
    claims.set_path("claims").unwrap();
    claims.set_cksum();
    let mut endless_name = Header::new_gnu();
    endless_name.set_entry_type(EntryType::GNULongName);
    endless_name.set_size(1 << 40);
    endless_name.set_cksum();
    let chain = (0..9).fold(Tar::default(), |tar, _| tar.pax("comment", b"x"));
    let tail = Tar::default().file("f", "").raw(&[0; 1024]).raw(&vec![0; 17 << 20]);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (many.end(), "more than 100 entries"),
        (gzip(&too_big.end()), "larger than 1048576"),
        (Tar::default().raw(claims.as_bytes()).0, "larger than 1048576"),
        (Tar::default().raw(endless_name.as_bytes()).0, "more than 1048576"),
        (chain.file("f", "").end(), "more than 8 headers"),
        (gzip(&tail.0), "follow the archive's end"),
    ];
    for (layer, why) in table {
        let (_outside, _folder, outcome) = unpacked(&layer);
        let fault = outcome.expect_err(why);
        assert!(fault.why.contains(why), "{why}: {fault:?}");
    }
}

#[test]
fn broken_layers_say_so() {
    if !root() {
        return;
    }
    let good = Tar::default().folder("d").file("d/f", "content").end();
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    let cut_gzip = gzip(&good);
    let cut_zstd = zstd(&good);
    let mut wide_window = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8];
    wide_window.extend([0; 16]);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (good[..700].to_vec(), "ends"),
        (good[..1030].to_vec(), "ends"),
        (flipped, "checksum"),
        (cut_gzip[..cut_gzip.len() / 2].to_vec(), ""),
        (cut_gzip[..cut_gzip.len() - 4].to_vec(), ""),
        (cut_zstd[..cut_zstd.len() / 2].to_vec(), ""),
        (wide_window, ""),
        (Tar::default().put(EntryType::new(b'Z'), b"f", b"", b"").end(), "unknown type"),
        (Tar::default().put(EntryType::XHeader, b"f", b"", b"nonsense").end(), "malformed"),
        (Tar::default().put(EntryType::XGlobalHeader, b"f", b"", b"13 path=/etc\n").end(), "for all entries"),
        (Tar::default().pax("GNU.sparse.major", b"1").file("f", "").end(), "--sparse"),
    ];
    for (layer, why) in table {
        let (_outside, _folder, outcome) = unpacked(&layer);
        let fault = outcome.expect_err(why);
        assert!(fault.why.contains(why), "{why}: {fault:?}");
    }
}

/// One entry of every kind and trick that an image may use.
fn good_layer() -> Vec<u8> {
    let setuid = {
        let mut header = Header::new_gnu();
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_size(2);
        header.set_mtime(99);
        header.set_path("bin/su").unwrap();
        header.set_cksum();
        Tar::default().raw(header.as_bytes()).raw(b"su").padded().0
    };
    Tar::default()
        .folder("./")
        .raw(&setuid)
        .file("/absolute", "lands inside")
        .symlink("link", "/etc/passwd")
        .link("hard", "bin/su")
        .file("twice", "first")
        .file("twice", "second")
        .folder("becomes")
        .file("becomes/x", "")
        .file("becomes", "a file")
        .symlink("replaced", "..")
        .folder("replaced")
        .file("replaced/in", "inside")
        .file(".wh.gone", "")
        .file(".wh.never-there", "")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.reborn", "")
        .folder("reborn")
        .folder("kept")
        .file("kept/x", "")
        .file(".wh.kept", "")
        .file(".wh..wh.plnk", "")
        .put(EntryType::Fifo, b"pipe", b"", b"")
        .pax("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .file("ping", "p")
        .pax("SCHILY.xattr.security.selinux", b"of another machine")
        .file("labelled", "")
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .folder("leads")
        .pax("SCHILY.xattr.user.overlay.opaque", b"y")
        .folder("leads2")
        .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .folder("leads3")
        .pax("mtime", b"1234567890.500000000")
        .file("dated", "")
        .put(EntryType::Directory, b"old/", b"", b"")
        .end()
}

#[test]
fn a_good_layer_becomes_what_overlayfs_wants() {
    if !root() {
        return;
    }
    let tar = good_layer();
    for layer in [tar.clone(), gzip(&tar), zstd(&tar), [gzip(&tar[..1024]), gzip(&tar[1024..])].concat()] {
        let (_outside, folder, outcome) = unpacked(&layer);
        outcome.unwrap();
        let facts = |name: &str| fs::symlink_metadata(folder.join(name)).unwrap();
        let su = facts("bin/su");
        assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime(), su.nlink()), (0o4755, 7, 8, 99, 2));
        assert_eq!(facts("hard").ino(), su.ino());
        assert_eq!(fs::read_to_string(folder.join("absolute")).unwrap(), "lands inside");
        assert_eq!(fs::read_link(folder.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_to_string(folder.join("twice")).unwrap(), "second");
        assert_eq!(fs::read_to_string(folder.join("becomes")).unwrap(), "a file");
        assert_eq!(fs::read_to_string(folder.join("replaced/in")).unwrap(), "inside");
        for whiteout in ["gone", "never-there"] {
            assert!(facts(whiteout).file_type().is_char_device() && facts(whiteout).rdev() == 0, "{whiteout}");
        }
        let is_opaque = |name: &str| attribute(&folder.join(name), OPAQUE) == Some(b"y".to_vec());
        assert!(is_opaque("opaque") && is_opaque("reborn") && is_opaque("kept") && !is_opaque("replaced"));
        assert!(folder.join("kept/x").exists(), "what the layer itself brings is not hidden");
        assert!(!folder.join(".wh..wh.plnk").exists());
        for (name, key) in
            [("leads", "trusted.overlay.redirect"), ("leads2", "user.overlay.opaque"), ("leads3", OPAQUE)]
        {
            assert_eq!(
                attribute(&folder.join(name), key),
                None,
                "overlayfs is told nothing by a layer but its whiteouts"
            );
        }
        assert!(facts("pipe").file_type().is_fifo());
        assert!(attribute(&folder.join("ping"), "security.capability").is_some_and(|value| value.len() == 20));
        assert_eq!((facts("dated").mtime(), facts("dated").mtime_nsec()), (1_234_567_890, 500_000_000));
        assert!(facts("old").is_dir() && facts("old").mtime() == 1_000_000);
        assert_eq!(facts("opaque").permissions().mode() & 0o7777, 0o755);
    }
}

const OPAQUE: &str = "trusted.overlay.opaque";

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn a_layer_may_end_with_its_last_byte_and_leave_numbers_out() {
    if !root() {
        return;
    }
    let good = Tar::default().folder("d").file("d/f", "content").end();
    let mut blank = Header::new_gnu();
    blank.set_path("blank").unwrap();
    blank.set_cksum();
    for (layer, name, length) in [
        (good[..1536].to_vec(), "d/f", 7),
        (good[..1031].to_vec(), "d/f", 7),
        (Tar::default().raw(blank.as_bytes()).end(), "blank", 0),
    ] {
        let (_outside, folder, outcome) = unpacked(&layer);
        outcome.unwrap();
        assert_eq!(fs::read(folder.join(name)).unwrap().len(), length);
    }
}

#[test]
fn an_old_sparse_file_has_its_holes() {
    if !root() {
        return;
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("sparse").unwrap();
    header.set_mode(0o600);
    header.set_size(8);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(100_000);
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(4);
    gnu.sparse[1].set_offset(99_996);
    gnu.sparse[1].set_length(4);
    header.set_cksum();
    let (_outside, folder, outcome) = unpacked(&Tar::default().raw(header.as_bytes()).raw(b"headtail").padded().end());
    outcome.unwrap();
    let content = fs::read(folder.join("sparse")).unwrap();
    assert_eq!((content.len(), &content[..4], &content[99_996..]), (100_000, &b"head"[..], &b"tail"[..]));
    assert!(content[4..99_996].iter().all(|byte| *byte == 0));
    let gnu = header.as_gnu_mut().unwrap();
    gnu.sparse[1].set_offset(2);
    header.set_cksum();
    let (_outside, _folder, outcome) = unpacked(&Tar::default().raw(header.as_bytes()).raw(b"headtail").padded().end());
    assert!(outcome.unwrap_err().why.contains("overlap"));
}

/// Names and targets that could lead somewhere.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just(".."),
        Just("."),
        Just(""),
        Just("canary"),
        Just(".wh.a"),
        Just(".wh..wh..opq"),
        Just(".wh.")
    ];
    prop_oneof![
        4 => proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a well-formed tar says, nothing outside its folder is touched (`unpacked` looks), and nothing panics.
    #[test]
    fn no_sequence_of_entries_leads_outside(entries in proptest::collection::vec((0..7_u8, name(), name()), 0..12)) {
        if nix::unistd::geteuid().is_root() {
            let kinds = [b'0', b'1', b'2', b'5', b'6', b'3', b'L'];
            let tar = entries.iter().fold(Tar::default(), |tar, (kind, name, target)| {
                tar.put(EntryType::new(kinds[usize::from(*kind)]), name, target, b"")
            });
            drop(unpacked(&tar.end()));
        }
    }

    /// No bytes make the readers panic or run without end.
    #[test]
    fn no_bytes_are_too_strange(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), start in 0..4_u8) {
        if nix::unistd::geteuid().is_root() {
            let magic: &[u8] = [&b""[..], &[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]][usize::from(start)];
            bytes.splice(0..0, magic.iter().copied());
            drop(unpacked(&bytes));
        }
    }

    /// One wrong byte anywhere in a good layer, plain or compressed, is no panic and leads nowhere.
    #[test]
    fn one_wrong_byte_is_survived(at in any::<prop::sample::Index>(), value in any::<u8>(), form in 0..3_u8) {
        if nix::unistd::geteuid().is_root() {
            let tar = Tar::default().folder("a").file("a/b", "content").symlink("s", "..").link("h", "a/b")
                .pax("path", b"long/name").file("x", "y").end();
            let mut layer = match form { 0 => tar, 1 => gzip(&tar), _ => zstd(&tar) };
            let at = at.index(layer.len());
            layer[at] = value;
            drop(unpacked(&layer));
        }
    }
}
