//! Volumes on a real file system. What mounts needs root and is skipped, with a line, where that is missing.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::reconcile::volume::VolumeFile;

const UID: &str = "00000000-0000-4000-8000-000000000001";
const BOOT: &str = "0f1e2d3c-4b5a-6978";

/// A store in a folder of its own; nothing of it stays mounted, also when a test fails.
struct Bench {
    folder: tempfile::TempDir,
    store: VolumeStore,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for place in mount_table::below(&self.store.root).unwrap_or_default().iter().rev() {
            umount2(place, MntFlags::MNT_DETACH).ok();
        }
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = VolumeStore::open(folder.path(), BOOT).unwrap();
        Self { folder, store }
    }

    /// The next agent, in this boot or another.
    fn restart(&mut self, boot: &str) {
        self.store = VolumeStore::open(self.folder.path(), boot).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.root().join(UID).join(name)
    }

    fn prepare(&self, volumes: Vec<(&str, Volume)>) -> Result<(), VolumeError> {
        self.store.prepare(UID, &plan(volumes, Vec::new()))
    }

    fn sub_path(&self, root: SubPathRoot, path: &str) -> Result<PathBuf, VolumeError> {
        let sub_path = SubPath { name: "sub~web~0".into(), root, path: path.into() };
        let kept: BTreeSet<String> = names(&self.store.root().join(UID)).unwrap_or_default().into_iter().collect();
        self.store.prepare(UID, &VolumePlan { volumes: BTreeMap::new(), sub_paths: vec![sub_path], kept })?;
        Ok(self.path("sub~web~0"))
    }

    fn mounts(&self) -> Vec<PathBuf> {
        mount_table::below(self.store.root()).unwrap()
    }
}

fn plan(volumes: Vec<(&str, Volume)>, sub_paths: Vec<SubPath>) -> VolumePlan {
    let volumes: BTreeMap<String, Volume> = volumes.into_iter().map(|(name, one)| (name.to_owned(), one)).collect();
    VolumePlan { kept: volumes.keys().cloned().collect(), volumes, sub_paths }
}

fn file(content: &str) -> VolumeFile {
    VolumeFile { mode: 0o640, content: content.into() }
}

fn files(digest: &str, files: &[(&str, &str)], medium: FilesMedium) -> Volume {
    let files = files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect();
    Volume { digest: digest.into(), group: None, content: VolumeContent::Files { files, medium } }
}

fn on_disk(digest: &str, of: &[(&str, &str)]) -> Volume {
    files(digest, of, FilesMedium::Disk)
}

fn empty_dir(group: Option<u32>) -> Volume {
    Volume { digest: "empty".into(), group, content: VolumeContent::Empty }
}

fn host(path: &Path, kind: HostPathKind) -> Volume {
    Volume { digest: "host".into(), group: None, content: VolumeContent::Host { path: path.to_owned(), kind } }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn skipped(why: &str) {
    assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "needed here but missing: {why}");
    io::Write::write_fmt(&mut io::stderr(), format_args!("SKIPPED: {why}\n")).unwrap();
}

/// Whether this test may mount; says so if not.
fn may_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let may = tmpfs(folder.path(), "mode=700").unwrap() == Mounted::Yes;
    if may {
        umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
    } else {
        skipped("mounting is not allowed here");
    }
    may
}

#[test]
fn files_are_shown_through_links_and_replaced_as_a_whole() {
    let bench = Bench::new();
    bench.prepare(vec![("files~c", on_disk("aa", &[("one", "1"), ("deep/er/two", "2")]))]).unwrap();
    let volume = bench.path("files~c");
    assert_eq!(fs::read_to_string(volume.join("one")).unwrap(), "1");
    assert_eq!(fs::read_to_string(volume.join("deep/er/two")).unwrap(), "2");
    assert_eq!(fs::read_link(volume.join("deep")).unwrap(), Path::new("..data/deep"));
    assert_eq!((mode(&volume.join("..data/one")), mode(&volume)), (0o640, 0o755), "the file and the volume");
    assert_eq!(mode(bench.store.root()), 0o700);

    bench.prepare(vec![("files~c", on_disk("bb", &[("one", "new"), ("three", "3")]))]).unwrap();
    assert_eq!(fs::read_to_string(volume.join("one")).unwrap(), "new");
    let left = names(&volume).unwrap();
    assert_eq!(left, ["..0f1e2d3c4b5a-bb", "..data", "one", "three"]);
    assert_eq!(bench.store.statuses()[UID].prepared["files~c"], "bb");
}

/// Leaves a volume as a crash would.
type Leave = fn(&Path);

#[test]
fn what_a_crash_left_is_brought_to_its_end() {
    let leave: [(&str, Leave); 6] = [
        ("an unfinished content", |volume| {
            fs::create_dir(volume.join("..0f1e2d3c4b5a-bb")).unwrap();
            fs::write(volume.join("..0f1e2d3c4b5a-bb/one"), "ha").unwrap();
        }),
        ("a link that was not swapped", |volume| symlink("..0f1e2d3c4b5a-bb", volume.join("..data_tmp")).unwrap()),
        ("a swapped link, and no links for readers", |volume| {
            let content = volume.join("..0f1e2d3c4b5a-bb");
            fs::create_dir(&content).unwrap();
            fs::write(content.join("one"), "new").unwrap();
            fs::write(content.join("three"), "3").unwrap();
            fs::remove_file(volume.join("..data")).unwrap();
            symlink("..0f1e2d3c4b5a-bb", volume.join("..data")).unwrap();
        }),
        ("links of keys that are gone", |volume| symlink("..data/gone", volume.join("gone")).unwrap()),
        ("a link to nothing", |volume| {
            fs::remove_dir_all(volume.join("..0f1e2d3c4b5a-aa")).unwrap();
        }),
        ("a directory in the place of a link", |volume| {
            fs::remove_file(volume.join("one")).unwrap();
            fs::create_dir(volume.join("one")).unwrap();
        }),
    ];
    for (what, leave) in leave {
        let mut bench = Bench::new();
        bench.prepare(vec![("files~c", on_disk("aa", &[("one", "1"), ("two", "2")]))]).unwrap();
        leave(&bench.path("files~c"));
        bench.restart(BOOT);
        bench.prepare(vec![("files~c", on_disk("bb", &[("one", "new"), ("three", "3")]))]).unwrap();
        let volume = bench.path("files~c");
        assert_eq!(names(&volume).unwrap(), ["..0f1e2d3c4b5a-bb", "..data", "one", "three"], "{what}");
        assert_eq!(fs::read_to_string(volume.join("one")).unwrap(), "new", "{what}");
    }
}

#[test]
fn content_of_another_boot_is_written_again() {
    let mut bench = Bench::new();
    bench.prepare(vec![("files~c", on_disk("aa", &[("one", "1")]))]).unwrap();
    bench.restart(BOOT);
    assert_eq!(bench.store.statuses()[UID].prepared["files~c"], "aa", "an agent restart finds what stands");
    // A power cut: the names are there, the bytes are not.
    fs::write(fs::canonicalize(bench.path("files~c/one")).unwrap(), "").unwrap();
    bench.restart("another-boot");
    assert_eq!(bench.store.statuses()[UID].prepared.len(), 0);
    bench.prepare(vec![("files~c", on_disk("aa", &[("one", "1")]))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("files~c/one")).unwrap(), "1");
    assert_eq!(names(&bench.path("files~c")).unwrap(), ["..anotherboot-aa", "..data", "one"]);
}

#[test]
fn a_reader_never_sees_a_mix() {
    const UPDATES: u32 = 1000;
    let bench = Bench::new();
    let write = |number: u32| {
        let text = number.to_string();
        bench.prepare(vec![("files~c", on_disk(&format!("{number:08x}"), &[("one", &text), ("two", &text)]))]).unwrap();
    };
    write(0);
    let volume = bench.path("files~c");
    let done = AtomicBool::new(false);
    let pairs_read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut pairs_read = 0_u32;
            while !done.load(Ordering::Acquire) {
                // Both through the same directory, as a program does that opens `..data` once.
                let Ok(now) = fs::canonicalize(volume.join("..data")) else { continue };
                if let (Ok(one), Ok(two)) = (fs::read_to_string(now.join("one")), fs::read_to_string(now.join("two"))) {
                    assert_eq!(one, two);
                    assert!(!one.is_empty());
                    pairs_read += 1;
                }
            }
            pairs_read
        });
        (1..=UPDATES).for_each(write);
        done.store(true, Ordering::Release);
        reader.join().unwrap()
    });
    assert!(pairs_read > 10, "read only {pairs_read} pairs");
    assert_eq!(fs::read_to_string(volume.join("two")).unwrap(), UPDATES.to_string());
}

#[test]
fn names_that_lead_out_of_a_volume_are_refused() {
    let bench = Bench::new();
    for path in ["../x", "a/../../x", "a//b", "."] {
        let fault = bench.prepare(vec![("files~c", on_disk("aa", &[(path, "1")]))]).unwrap_err();
        assert!(matches!(fault, VolumeError::BadName { .. }), "{path}: {fault}");
    }
    assert!(bench.prepare(vec![("../x", empty_dir(None))]).is_err());
    assert!(bench.store.remove("../x").is_err() && bench.store.remove("").is_err());
    assert!(!bench.store.root().join("x").exists() && !bench.path("x").exists());
}

#[test]
fn an_empty_directory_outlives_agents_and_ends_with_its_pod() {
    let mut bench = Bench::new();
    let group = nix::unistd::getgid().as_raw();
    bench.prepare(vec![("empty~e", empty_dir(Some(group)))]).unwrap();
    assert_eq!(mode(&bench.path("empty~e")), 0o2777);
    assert_eq!(fs::metadata(bench.path("empty~e")).unwrap().gid(), group);
    fs::write(bench.path("empty~e/kept"), "x").unwrap();
    fs::set_permissions(bench.path("empty~e"), fs::Permissions::from_mode(0o770)).unwrap();
    bench.restart("another-boot");
    bench.prepare(vec![("empty~e", empty_dir(Some(group)))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("empty~e/kept")).unwrap(), "x");
    assert_eq!(mode(&bench.path("empty~e")), 0o770, "what its container made of it stays");
    bench.store.remove(UID).unwrap();
    assert_eq!(names(bench.store.root()).unwrap(), Vec::<String>::new());
    bench.store.remove(UID).unwrap();
}

#[test]
fn what_no_plan_keeps_is_removed() {
    let bench = Bench::new();
    bench.prepare(vec![("empty~e", empty_dir(None)), ("files~c", on_disk("aa", &[("a", "1")]))]).unwrap();
    fs::create_dir(bench.path("new~empty~x")).unwrap();
    bench.prepare(vec![("files~c", on_disk("aa", &[("a", "1")]))]).unwrap();
    assert_eq!(names(&bench.store.root().join(UID)).unwrap(), ["files~c"]);
    assert_eq!(bench.store.statuses()[UID].prepared.keys().collect::<Vec<_>>(), ["files~c"]);
}

#[test]
fn host_paths_are_what_they_are_said_to_be() {
    use HostPathKind as Kind;
    let bench = Bench::new();
    let place = bench.folder.path().join("host");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("file"), "x").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap();
    let cases = [
        ("", Kind::Unchecked, None),
        ("made/here", Kind::Unchecked, None),
        ("made/here", Kind::Directory, None),
        ("created", Kind::DirectoryOrCreate, None),
        ("created", Kind::File, Some("is not a file")),
        ("file", Kind::File, None),
        ("file", Kind::Directory, Some("is not a directory")),
        ("file", Kind::DirectoryOrCreate, Some("is not a directory")),
        ("file/below", Kind::Directory, Some("is not a directory: nothing is there")),
        ("new", Kind::File, Some("is not a file: nothing is there")),
        ("new", Kind::FileOrCreate, None),
        ("new", Kind::File, None),
        ("no/parent", Kind::FileOrCreate, Some("could not create")),
        ("socket", Kind::Socket, None),
        ("file", Kind::Socket, Some("is not a socket file")),
        ("file", Kind::CharDevice, Some("is not a character device")),
        ("file", Kind::BlockDevice, Some("is not a block device")),
        ("/dev/null", Kind::CharDevice, None),
    ];
    for (path, kind, expected) in cases {
        let outcome = bench.prepare(vec![("host~h", host(&place.join(path), kind))]);
        match (outcome, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{path} {kind:?}: {error}"),
            (outcome, _) => panic!("{path} {kind:?}: {outcome:?}"),
        }
    }
    bench.store.remove(UID).unwrap();
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "x", "what is the host's stays");
}

#[test]
fn a_part_of_a_volume_is_found_without_leaving_it() {
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "no").unwrap();
    bench.prepare(vec![("empty~e", empty_dir(None))]).unwrap();
    let volume = bench.path("empty~e");
    fs::create_dir_all(volume.join("real/inner")).unwrap();
    fs::write(volume.join("real/inner/file"), "yes").unwrap();
    symlink("real/inner", volume.join("short")).unwrap();
    symlink("../../real", volume.join("real/inner/round")).unwrap();
    symlink(&outside, volume.join("absolute")).unwrap();
    symlink("../../../outside", volume.join("relative")).unwrap();
    symlink("loop", volume.join("loop")).unwrap();
    let own = || SubPathRoot::Directory("empty~e".into());
    for good in ["real/inner/file", "short/file", "short/round/inner/file", "./real//inner/file"] {
        let place = bench.sub_path(own(), good).unwrap();
        assert_eq!(fs::read_to_string(place).unwrap(), "yes", "{good}");
    }
    for (bad, why) in [
        ("absolute/secret", "leads out of the volume"),
        ("relative/secret", "leads out of the volume"),
        ("real/../../..", "leads out of the volume"),
        ("loop", "too many symbolic links"),
        ("real/inner/file/below", "leads through a file"),
    ] {
        let error = bench.sub_path(own(), bad).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
    let made = bench.sub_path(own(), "new/deep").unwrap();
    fs::write(made.join("x"), "through").unwrap();
    assert_eq!(fs::read_to_string(volume.join("new/deep/x")).unwrap(), "through");
    assert_eq!(mode(&volume.join("new/deep")), 0o777, "as the volume it is in");
    bench.store.remove(UID).unwrap();
    assert_eq!((bench.mounts(), outside.join("secret").exists()), (Vec::new(), true));
}

#[test]
fn a_part_of_a_volume_of_files_keeps_what_it_showed() {
    if !may_mount() {
        return;
    }
    let bench = Bench::new();
    let kept: BTreeSet<String> = ["files~c".to_owned()].into();
    let sub_path = SubPath { name: "sub~web~0".into(), root: SubPathRoot::Files("files~c".into()), path: "one".into() };
    let step = |digest: &str, text: &str, sub_paths: Vec<SubPath>| {
        let volumes = BTreeMap::from([("files~c".to_owned(), on_disk(digest, &[("one", text)]))]);
        bench.store.prepare(UID, &VolumePlan { volumes, sub_paths, kept: kept.clone() }).unwrap();
    };
    step("aa", "1", vec![sub_path.clone()]);
    step("bb", "2", Vec::new());
    assert_eq!(fs::read_to_string(bench.path("sub~web~0")).unwrap(), "1", "as in Kubernetes, until the next start");
    step("bb", "2", vec![sub_path]);
    assert_eq!(fs::read_to_string(bench.path("sub~web~0")).unwrap(), "2");
    assert_eq!(bench.mounts().len(), 1);
    let absent = bench.sub_path(SubPathRoot::Files("files~c".into()), "two").unwrap_err();
    assert!(absent.to_string().contains("is not in the volume"), "{absent}");
    bench.store.remove(UID).unwrap();
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

#[test]
fn secrets_stand_in_memory_only() {
    if !may_mount() {
        return;
    }
    let mut bench = Bench::new();
    let secret = |digest: &str, text: &str| files(digest, &[("key", text)], FilesMedium::Memory);
    // An agent that could not mount has left one on the disk.
    fs::create_dir_all(bench.path("secret~s")).unwrap();
    fs::write(bench.path("secret~s/key"), "old").unwrap();
    bench.prepare(vec![("secret~s", secret("aa", "hidden"))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "hidden");
    assert_eq!(bench.mounts(), [bench.path("secret~s")]);
    bench.restart(BOOT);
    assert_eq!(bench.store.statuses()[UID].prepared["secret~s"], "aa");
    bench.prepare(vec![("secret~s", secret("bb", "rotated"))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "rotated");
    assert_eq!(bench.mounts().len(), 1, "mounted once");
    umount2(&bench.path("secret~s"), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(names(&bench.path("secret~s")).unwrap(), Vec::<String>::new(), "nothing of it was ever on the disk");
    // As after a reboot: the memory is gone.
    bench.restart("another-boot");
    bench.prepare(vec![("secret~s", secret("bb", "rotated"))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "rotated");
    bench.store.remove(UID).unwrap();
    assert_eq!((bench.mounts(), names(bench.store.root()).unwrap()), (Vec::new(), Vec::new()));
}

#[test]
fn memory_is_bounded_by_its_size() {
    if !may_mount() {
        return;
    }
    let mut bench = Bench::new();
    let memory = |size_bytes| Volume {
        digest: format!("memory-{size_bytes}"),
        group: Some(4321),
        content: VolumeContent::Memory { size_bytes_max: Some(size_bytes) },
    };
    bench.prepare(vec![("empty~e", empty_dir(None))]).unwrap();
    bench.prepare(vec![("empty~e", empty_dir(Some(4321)))]).unwrap();
    let given = (mode(&bench.path("empty~e")), fs::metadata(bench.path("empty~e")).unwrap().gid());
    assert_eq!(given, (0o777, 4321), "a group that came later");
    bench.prepare(vec![("memory~m", memory(64 * 1024))]).unwrap();
    let path = bench.path("memory~m");
    assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid()), (0o2777, 4321));
    let full = fs::write(path.join("big"), vec![1_u8; 128 * 1024]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    fs::remove_file(path.join("big")).unwrap();
    fs::write(path.join("kept"), vec![1_u8; 60 * 1024]).unwrap();
    bench.restart(BOOT);
    bench.prepare(vec![("memory~m", memory(1024 * 1024))]).unwrap();
    fs::write(path.join("big"), vec![1_u8; 128 * 1024]).unwrap();
    assert_eq!((fs::metadata(path.join("kept")).unwrap().len(), bench.mounts().len()), (60 * 1024, 1));
    let error = bench.prepare(vec![("memory~m", memory(4096))]).unwrap_err();
    assert!(matches!(error, VolumeError::Size { .. }), "{error}");
    bench.store.remove(UID).unwrap();
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

#[test]
fn nothing_below_a_mount_is_deleted() {
    if !may_mount() {
        return;
    }
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("data"), "kept").unwrap();
    bench.prepare(vec![("empty~e", empty_dir(None))]).unwrap();
    // Mounts of somebody else, one upon the other, with a name to be escaped.
    let place = bench.path("empty~e").join("a b\\c");
    fs::create_dir(&place).unwrap();
    for _ in 0..3 {
        mount(Some(&outside), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    assert_eq!(bench.mounts().len(), 3);
    bench.store.remove(UID).unwrap();
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(outside.join("data")).unwrap(), "kept");
    assert!(!bench.store.root().join(UID).exists());
}

/// As an agent that is not root: in a user namespace of its own, where the kernel refuses to mount.
#[test]
fn without_the_right_to_mount_memory_is_a_private_place_on_the_disk() {
    const INNER: &str = "FLOTILLA_TEST_MAY_NOT_MOUNT";
    if std::env::var_os(INNER).is_none() {
        let name = "volume::tests::without_the_right_to_mount_memory_is_a_private_place_on_the_disk";
        let mut again = std::process::Command::new("unshare");
        again.arg("--user").arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
        match again.env(INNER, "1").output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => skipped("no unshare (util-linux)"),
            output => {
                let output = output.unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        return;
    }
    let mut bench = Bench::new();
    let secret = |digest: &str, text: &str| files(digest, &[("key", text)], FilesMedium::Memory);
    let memory = || Volume {
        digest: "memory".into(),
        group: None,
        content: VolumeContent::Memory { size_bytes_max: Some(4096) },
    };
    bench.prepare(vec![("secret~s", secret("aa", "hidden")), ("memory~m", memory())]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "hidden");
    assert_eq!((bench.mounts(), mode(bench.store.root())), (Vec::new(), 0o700));
    let on_disk = |bench: &Bench| bench.store.statuses()[UID].on_disk.iter().cloned().collect::<Vec<_>>();
    assert_eq!(on_disk(&bench), ["memory~m", "secret~s"]);
    bench.restart(BOOT);
    assert_eq!(on_disk(&bench), ["secret~s"], "found again; the other is made again");
    bench.prepare(vec![("secret~s", secret("bb", "rotated")), ("memory~m", memory())]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "rotated");
    assert_eq!(on_disk(&bench), ["memory~m", "secret~s"]);
    fs::write(bench.path("memory~m/x"), "1").unwrap();
    let part = bench.sub_path(SubPathRoot::Directory("memory~m".into()), "x").unwrap();
    assert!(part.symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_to_string(part).unwrap(), "1");
    bench.store.remove(UID).unwrap();
    assert_eq!(names(bench.store.root()).unwrap(), Vec::<String>::new());
}

#[test]
fn what_stands_on_the_disk_and_may_be_in_use_is_not_taken_away() {
    if !may_mount() {
        return;
    }
    let mut bench = Bench::new();
    let secret = |digest: &str, text: &str| files(digest, &[("key", text)], FilesMedium::Memory);
    // As left by an agent of this boot that might not mount.
    fs::create_dir_all(bench.path("secret~s")).unwrap();
    let left = BTreeMap::from([("key".to_owned(), file("old"))]);
    content::replace(&bench.path("secret~s"), &content::directory_name(&bench.store.boot, "aa"), &left, None).unwrap();
    bench.restart(BOOT);
    bench.prepare(vec![("secret~s", secret("bb", "rotated"))]).unwrap();
    assert_eq!(fs::read_to_string(bench.path("secret~s/key")).unwrap(), "rotated");
    assert_eq!((bench.mounts().len(), bench.store.statuses()[UID].on_disk.len()), (0, 1));
    bench.restart("another-boot");
    bench.prepare(vec![("secret~s", secret("bb", "rotated"))]).unwrap();
    assert_eq!((bench.mounts().len(), bench.store.statuses()[UID].on_disk.len()), (1, 0));
}

/// Steps of a life that is cut short: made, changed, shown in part, removed, over and over.
fn live_on(bench: &Bench, round: u32) {
    let text = round.to_string();
    let secret = files(&format!("{round:08x}"), &[("key", &text), ("more/key", &text)], FilesMedium::Memory);
    let config = on_disk(&format!("{round:08x}"), &[("one", &text), ("two", &text)]);
    let sub_path = SubPath { name: "sub~web~0".into(), root: SubPathRoot::Files("files~c".into()), path: "one".into() };
    let volumes = vec![("files~c", config), ("secret~s", secret), ("empty~e", empty_dir(None))];
    bench.store.prepare(UID, &plan(volumes, vec![sub_path])).unwrap();
    if round.is_multiple_of(5) {
        bench.store.remove(UID).unwrap();
    }
}

#[test]
fn a_step_that_was_killed_anywhere_is_done_by_the_next_agent() {
    use std::io::BufRead as _;
    const INNER: &str = "FLOTILLA_TEST_VOLUMES_FOLDER";
    const KILLS: u32 = 40;
    if let Some(folder) = std::env::var_os(INNER) {
        let store = VolumeStore::open(Path::new(&folder), BOOT).unwrap();
        // Not the outer folder: that is the parent's to remove.
        let bench = std::mem::ManuallyDrop::new(Bench { folder: tempfile::tempdir().unwrap(), store });
        for round in 1.. {
            live_on(&bench, round);
            io::Write::write_all(&mut io::stdout(), b"alive\n").unwrap();
        }
    }
    if !may_mount() {
        return;
    }
    let mut bench = Bench::new();
    let name = "volume::tests::a_step_that_was_killed_anywhere_is_done_by_the_next_agent";
    for kill in 0..KILLS {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(INNER, bench.folder.path());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        // At no moment in particular: some steps after a number of rounds that differs.
        let lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let rounds = lines.map_while(Result::ok).filter(|line| line.ends_with("alive"));
        assert_eq!(rounds.take(1 + kill as usize % 7).count(), 1 + kill as usize % 7, "the other life ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        bench.restart(BOOT);
        live_on(&bench, 1001);
        let read = |path: &str| fs::read_to_string(bench.path(path)).unwrap();
        for path in ["files~c/one", "files~c/two", "secret~s/key", "secret~s/more/key", "sub~web~0"] {
            assert_eq!(read(path), "1001", "{path}");
        }
        assert_eq!(names(&bench.path("files~c")).unwrap().len(), 4, "nothing is left of earlier content");
        let expected = [bench.path("secret~s"), bench.path("sub~web~0")];
        let mut mounts = bench.mounts();
        mounts.sort();
        assert_eq!(mounts, expected, "each is mounted once");
    }
    bench.store.remove(UID).unwrap();
    assert_eq!((bench.mounts(), names(bench.store.root()).unwrap()), (Vec::new(), Vec::new()));
}
