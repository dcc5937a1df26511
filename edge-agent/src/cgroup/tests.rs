use std::fs;
use std::path::{Path, PathBuf};

use super::tree::{Tree, weight};
use super::*;
use crate::runtime::Resources;

const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
";
const OWN_V1: &str = "9:name=systemd:/\n4:memory:/process_api/57\n1:cpu,cpuacct:/\n";

fn names(layout: &Layout) -> Vec<(String, Vec<String>)> {
    let Layout::V1 { hierarchies, .. } = layout else { panic!("not version 1: {layout:?}") };
    hierarchies.iter().map(|one| (one.mount.display().to_string(), one.controllers.clone())).collect()
}

#[test]
fn version_1_alone() {
    let layout = Layout::of(V1, OWN_V1);
    let expected = [
        ("/sys/fs/cgroup/cpu,cpuacct", vec!["cpu", "cpuacct"]),
        ("/sys/fs/cgroup/memory", vec!["memory"]),
        ("/sys/fs/cgroup/systemd", vec!["name=systemd"]),
    ];
    let expected: Vec<(String, Vec<String>)> =
        expected.into_iter().map(|(at, names)| (at.into(), names.into_iter().map(str::to_owned).collect())).collect();
    assert_eq!(names(&layout), expected);
    assert_eq!(layout.hidden(), Vec::<PathBuf>::new());
}

#[test]
fn both_versions_are_version_1_with_something_to_hide() {
    let text = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let layout = Layout::of(&text, &format!("{OWN_V1}0::/\n"));
    assert_eq!(layout.hidden(), [PathBuf::from("/sys/fs/cgroup/unified")]);
    assert_eq!(names(&layout).len(), 3);
}

#[test]
fn version_2_knows_the_agents_own_cgroup() {
    let line = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    let own = |text: &str| match Layout::of(line, text) {
        Layout::V2 { own, mount } => {
            assert_eq!(mount, Path::new("/sys/fs/cgroup"));
            own
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(own("0::/system.slice/flotilla.service\n"), "/system.slice/flotilla.service");
    assert_eq!(own("0::/\n"), "/");
    assert_eq!(own("0::/../elsewhere\n"), "/");
    // In a container without a cgroup namespace a part of the hierarchy is mounted.
    let part = line.replace(" / /sys", " /docker/ab /sys");
    let Layout::V2 { own, .. } = Layout::of(&part, "0::/docker/ab/x\n") else { panic!() };
    assert_eq!(own, "/x");
    // systemd's own hierarchy of version 1 beside version 2 limits nothing.
    let systemd = format!("{line}40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n");
    assert!(matches!(Layout::of(&systemd, "1:name=systemd:/\n0::/\n"), Layout::V2 { .. }));
}

#[test]
fn nothing_mounted_or_nonsense_is_none() {
    for text in ["", "garbage", "1 2 3 - cgroup", "27 1 254:0 / / rw - ext4 /dev/vda rw"] {
        assert!(matches!(Layout::of(text, ""), Layout::None { .. }), "{text}");
    }
    let (tree, limits) = Tree::open(Layout::of("", ""), "x");
    assert!(!limits.memory && limits.why.contains("no cgroup file system"));
    assert!((tree.kill(), tree.remove().is_ok(), tree.exists()) == (0, true, false));
}

#[test]
fn places_with_spaces_and_hidden_mounts() {
    let text = r"32 31 0:29 / /my\040cgroups rw - cgroup cgroup rw,memory
33 31 0:30 / /my\040cgroups rw - cgroup2 cgroup2 rw";
    assert!(matches!(Layout::of(text, "0::/"), Layout::V2 { mount, .. } if mount == Path::new("/my cgroups")));
}

/// A folder that answers like cgroup version 2, as far as files go: each cgroup has the controllers its parent gives.
fn fake_v2(root: &Path, path: &str, controllers: &str) -> PathBuf {
    let folder = root.join(path);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cgroup.controllers"), controllers).unwrap();
    folder
}

#[test]
fn version_2_delegates_downwards_and_writes_its_own_files() {
    let root = tempfile::tempdir().unwrap();
    fake_v2(root.path(), "flotilla/ab", "cpu memory pids\n");
    let layout = Layout::V2 { mount: root.path().to_owned(), own: "/".into() };
    let (tree, limits) = Tree::open(layout, "ab");
    assert!(limits.cpu && limits.memory && limits.pids && limits.why.is_empty(), "{limits:?}");
    assert_eq!(tree.path, "/flotilla/ab");
    let resources = Resources {
        memory_bytes_max: Some(64 << 20),
        cpu_shares: Some(1024),
        cpu_quota_us: Some(20_000),
        pids_max: Some(20),
    };
    let container = tree.child("uid").child("app-0");
    let procs = container.limit(&resources).unwrap();
    let folder = root.path().join("flotilla/ab/uid/app-0");
    assert_eq!(procs, [folder.join("cgroup.procs")]);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(
        (read("memory.max"), read("cpu.max"), read("pids.max")),
        ("67108864".into(), "20000 100000".into(), "20".into())
    );
    assert_eq!(read("cpu.weight"), "39");
    // Each ancestor was asked to pass its controllers on, one by one; the file here keeps the last word.
    assert_eq!(fs::read_to_string(root.path().join("flotilla/ab/uid/cgroup.subtree_control")).unwrap(), "+pids");
    fs::write(folder.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
    assert_eq!(container.oom_kills(), 2);
}

#[test]
fn version_2_without_delegation_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    fake_v2(root.path(), "flotilla/ab", "pids\n");
    fake_v2(root.path(), "own.service/flotilla/ab", "memory\n");
    let layout = Layout::V2 { mount: root.path().to_owned(), own: "/own.service".into() };
    let (tree, limits) = Tree::open(layout, "ab");
    assert_eq!((tree.path.as_str(), limits.pids, limits.memory), ("/flotilla/ab", true, false));
    assert!(
        limits.why.contains("cpu, memory are not delegated") && limits.why.contains("Delegate=yes"),
        "{}",
        limits.why
    );
    // Where the own cgroup has them all, or the one around it, that is taken.
    fake_v2(root.path(), "slice/flotilla/ab", "cpu memory pids\n");
    let layout = Layout::V2 { mount: root.path().to_owned(), own: "/slice/agent".into() };
    assert_eq!(Tree::open(layout, "ab").0.path, "/slice/flotilla/ab");
    fake_v2(root.path(), "own.service/flotilla/ab", "cpu memory pids\n");
    let layout = Layout::V2 { mount: root.path().to_owned(), own: "/own.service".into() };
    assert_eq!(Tree::open(layout, "ab").0.path, "/own.service/flotilla/ab");
}

#[test]
fn version_1_writes_into_the_hierarchy_of_each_controller() {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = |name: &str| Hierarchy { mount: root.path().join(name), controllers: vec![name.to_owned()] };
    for name in ["cpu", "memory"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    let layout = Layout::V1 { hierarchies: vec![hierarchy("cpu"), hierarchy("memory")], unified: None };
    let (tree, limits) = Tree::open(layout, "ab");
    assert!(limits.cpu && limits.memory && !limits.pids && limits.why.contains("pids (not in this kernel)"));
    let container = tree.child("uid");
    let procs = container.limit(&Resources { memory_bytes_max: Some(1 << 20), ..Resources::default() }).unwrap();
    assert_eq!(procs, [root.path().join("memory/flotilla/ab/uid/cgroup.procs")], "only what is limited is joined");
    fs::write(root.path().join("memory/flotilla/ab/uid/memory.oom_control"), "oom_kill_disable 0\noom_kill 1\n")
        .unwrap();
    assert_eq!(container.oom_kills(), 1);
}

#[test]
fn weights_are_those_of_the_oci_runtimes() {
    assert_eq!((weight(2), weight(1024), weight(262_144), weight(0)), (1, 39, 10_000, 1));
}

/// Real cgroups, where they may be written.
#[test]
fn what_is_in_a_cgroup_is_killed_and_the_cgroup_goes() {
    let id = format!("test-{}", std::process::id());
    let (tree, limits) = Tree::open(Layout::read(), &id);
    if !limits.memory {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "cgroups cannot be written: {}", limits.why);
        let why = format_args!("SKIPPED: cgroups cannot be written here: {}\n", limits.why);
        return std::io::Write::write_fmt(&mut std::io::stderr(), why).unwrap();
    }
    let pod = tree.child("uid");
    let procs =
        pod.child("app-0").limit(&Resources { memory_bytes_max: Some(64 << 20), ..Resources::default() }).unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let joined = procs.iter().try_for_each(|file| fs::write(file, child.id().to_string()));
    if joined.is_err() {
        child.kill().unwrap();
    }
    joined.unwrap();
    assert!(pod.remove().is_err(), "somebody is in it");
    assert_eq!(pod.kill(), 1);
    child.wait().unwrap();
    while tree.remove().is_err() {
        std::thread::yield_now();
    }
    assert!(!tree.exists());
}
