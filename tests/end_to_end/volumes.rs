//! Volumes: what a container sees of ConfigMaps, Secrets, memory and the host, how that changes under its eyes, and that nothing of
//! it is left. With processes and with containers.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::{skip, wait};

use crate::BINARY;
use crate::story::{self, pod_pids};

#[test]
fn volumes_of_processes() {
    if story::ready_to_run() && may_mount() {
        volumes(Containers::Processes);
    }
}

#[test]
fn volumes_with_containers() {
    if story::ready_to_run() && story::containers_are_here() {
        volumes(Containers::Oci);
    }
}

/// Without root, processes have mounts in a user namespace, and what belongs in memory stands on the disk.
fn may_mount() -> bool {
    let may = is_root() || Command::new("unshare").args(["-Um", "true"]).status().is_ok_and(|status| status.success());
    if !may {
        skip("neither root nor user namespaces, which mounts of processes need");
    }
    may
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn volumes(containers: Containers) {
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, containers, 1);
    let base = fleet.folder().join("seen");
    applied(&fleet, &base);
    content_follows_its_sources(&fleet, &base);
    a_missing_source_is_named_and_waited_for(&fleet);
    offline(&mut fleet, &base);
    nothing_is_left(&fleet);
}

fn manifest(base: &Path, host: &Path) -> String {
    let (base, host) = (base.display(), host.display());
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: blue, shape: round}}
binaryData: {{raw: AAEC}}
---
apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{token: first}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: vols}}
spec:
  selector: {{matchLabels: {{app: vols}}}}
  template:
    metadata: {{labels: {{app: vols}}}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: host
        command: [/bin/sh, -c, 'echo start >> {base}/scratch/starts; while :; do sleep 1; done']
        volumeMounts:
        - {{name: config, mountPath: {base}/config}}
        - {{name: config, mountPath: {base}/one.conf, subPath: colour}}
        - {{name: secret, mountPath: {base}/secret}}
        - {{name: maybe, mountPath: {base}/maybe}}
        - {{name: scratch, mountPath: {base}/scratch}}
        - {{name: memory, mountPath: {base}/memory}}
        - {{name: host, mountPath: {base}/host, readOnly: true}}
        - {{name: about, mountPath: {base}/about}}
      volumes:
      - {{name: config, configMap: {{name: settings}}}}
      - {{name: secret, secret: {{secretName: key, defaultMode: 256}}}}
      - {{name: maybe, configMap: {{name: extra, optional: true}}}}
      - {{name: scratch, emptyDir: {{}}}}
      - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}
      - {{name: host, hostPath: {{path: {host}, type: Directory}}}}
      - {{name: about, downwardAPI: {{items: [{{path: app, fieldRef: {{fieldPath: "metadata.labels['app']"}}}}]}}}}
"#
    )
}

const LATE: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: late}
spec:
  selector: {matchLabels: {app: late}}
  template:
    metadata: {labels: {app: late}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: host
        command: [/bin/sh, -c, 'while :; do sleep 1; done']
        volumeMounts: [{name: config, mountPath: /tmp/flotilla-test-late}]
      volumes: [{name: config, configMap: {name: not-yet}}]
"#;

/// The one container's process.
fn pid(fleet: &Fleet) -> i32 {
    wait::until("the container's process", || match pod_pids(fleet, "n1").as_slice() {
        [pid] => Ok(*pid),
        other => Err(format!("{other:?}")),
    })
}

/// A path as the container sees it.
fn seen(pid: i32, base: &Path, path: &str) -> PathBuf {
    let inside = base.join(path);
    PathBuf::from(format!("/proc/{pid}/root")).join(inside.strip_prefix("/").unwrap())
}

fn read(fleet: &Fleet, base: &Path, path: &str) -> Result<String, String> {
    let path = seen(pid(fleet), base, path);
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

#[track_caller]
fn comes_to_read(fleet: &Fleet, base: &Path, path: &str, expected: &str) {
    wait::until(&format!("{path} reads {expected:?}"), || match read(fleet, base, path)? {
        text if text == expected => Ok(()),
        text => Err(text),
    });
}

/// The file system below a place, and whether it can be written, as the container's mount table says.
fn mounted(fleet: &Fleet, base: &Path, path: &str) -> (String, bool) {
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", pid(fleet))).unwrap();
    let place = base.join(path);
    let line =
        table.lines().rfind(|line| line.split(' ').nth(4) == place.to_str()).unwrap_or_else(|| panic!("{table}"));
    let writable = line.split(' ').nth(5).unwrap().split(',').any(|option| option == "rw");
    let kind = line.split(" - ").nth(1).unwrap().split(' ').next().unwrap();
    (kind.to_owned(), writable)
}

fn applied(fleet: &Fleet, base: &Path) {
    let host = fleet.folder().join("of-the-host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("greeting"), "hello").unwrap();
    fleet.apply(&manifest(base, &host));
    fleet.running_pods("app=vols", 1);
    for (path, expected) in [
        ("config/colour", "blue"),
        ("config/shape", "round"),
        ("config/raw", "\u{0}\u{1}\u{2}"),
        ("one.conf", "blue"),
        ("secret/token", "first"),
        ("host/greeting", "hello"),
        ("about/app", "vols"),
    ] {
        comes_to_read(fleet, base, path, expected);
    }
    comes_to_read(fleet, base, "scratch/starts", "start\n");
    if is_root() {
        assert_eq!(mounted(fleet, base, "secret"), ("tmpfs".to_owned(), false));
        assert_eq!(mounted(fleet, base, "memory"), ("tmpfs".to_owned(), true));
    } else {
        let events = fleet.local_kubectl("n1").run("get events");
        assert!(events.contains("VolumeOnDisk") && events.contains("\"secret\""), "{events}");
    }
    assert!(!mounted(fleet, base, "config").1 && !mounted(fleet, base, "host").1 && mounted(fleet, base, "scratch").1);
    let maybe = std::fs::read_dir(seen(pid(fleet), base, "maybe")).unwrap().flatten();
    assert!(maybe.into_iter().all(|entry| entry.file_name().to_string_lossy().starts_with("..")));
    std::fs::write(seen(pid(fleet), base, "memory/note"), "gone with the power").unwrap();
}

fn content_follows_its_sources(fleet: &Fleet, base: &Path) {
    let kubectl = fleet.kubectl();
    let before = pid(fleet);
    kubectl.run(r#"patch configmap settings --type=merge -p {"data":{"colour":"green","shape":null,"size":"big"}}"#);
    comes_to_read(fleet, base, "config/colour", "green");
    comes_to_read(fleet, base, "config/size", "big");
    assert!(read(fleet, base, "config/shape").is_err(), "a key that is gone");
    assert_eq!(read(fleet, base, "one.conf").unwrap(), "blue", "a part of a volume stays until the next start");
    kubectl.run(r#"patch secret key --type=merge -p {"stringData":{"token":"second"}}"#);
    comes_to_read(fleet, base, "secret/token", "second");
    kubectl.run("create configmap extra --from-literal=more=yes");
    comes_to_read(fleet, base, "maybe/more", "yes");
    assert_eq!(pid(fleet), before, "new content restarts nobody");
    kubectl.run("delete configmap extra");
    wait::until("the optional volume is empty again", || {
        let left = std::fs::read_dir(seen(pid(fleet), base, "maybe")).unwrap().flatten();
        let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
        if names.iter().any(|name| name == "more") { Err(format!("{names:?}")) } else { Ok(()) }
    });
}

fn a_missing_source_is_named_and_waited_for(fleet: &Fleet) {
    let kubectl = fleet.kubectl();
    fleet.apply(LATE);
    wait::until("an event that names what is missing", || {
        let events = kubectl.attempt("get events -o wide")?;
        let told =
            events.lines().any(|line| line.contains("FailedMount") && line.contains("configmap \"not-yet\" not found"));
        if told { Ok(()) } else { Err(events) }
    });
    let local = fleet.local_kubectl("n1");
    wait::until("the device says so too", || {
        let described = local.attempt("describe pods -l app=late")?;
        let told = described.contains("ContainerCreating") && described.contains("FailedMount");
        if told { Ok(()) } else { Err(described) }
    });
    kubectl.run("create configmap not-yet --from-literal=a=1");
    fleet.running_pods("app=late", 1);
    kubectl.run("delete ds/late configmap/not-yet");
    wait::until("one container is left", || match pod_pids(fleet, "n1").as_slice() {
        [_] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    wait::until_true("the mount point on the host is gone", || !Path::new("/tmp/flotilla-test-late").exists());
}

/// Without a hub: a technician's change of a ConfigMap reaches the file, and a power cut takes nothing that it should not.
fn offline(fleet: &mut Fleet, base: &Path) {
    fleet.stop_hub();
    let before = pid(fleet);
    fleet.local_kubectl("n1").run(r#"patch configmap settings --type=merge -p {"data":{"colour":"red"}}"#);
    comes_to_read(fleet, base, "config/colour", "red");
    assert_eq!(pid(fleet), before);

    fleet.kill_agent("n1");
    assert_eq!(read(fleet, base, "secret/token").unwrap(), "second", "what is mounted outlives the agent");
    fleet.start_agent("n1", &[]);
    wait::until("the agent has adopted its pods", || fleet.local_kubectl("n1").attempt("get pods").map(drop));
    assert_eq!(pid(fleet), before);

    fleet.reboot("n1");
    fleet.start_agent("n1", &[]);
    wait::until("the pod runs again", || match pod_pids(fleet, "n1").as_slice() {
        [pid] if *pid != before => Ok(()),
        other => Err(format!("{other:?}")),
    });
    comes_to_read(fleet, base, "scratch/starts", "start\nstart\n");
    comes_to_read(fleet, base, "secret/token", "second");
    comes_to_read(fleet, base, "one.conf", "red");
    if is_root() {
        assert_eq!(mounted(fleet, base, "secret"), ("tmpfs".to_owned(), false));
        assert!(read(fleet, base, "memory/note").is_err(), "memory does not outlive the power");
        let flash = fleet.agent_folder("n1");
        assert_eq!(holding(&flash.join("volumes"), "second"), Vec::<PathBuf>::new(), "a secret on the disk");
    }

    fleet.start_hub();
    let kubectl = fleet.kubectl();
    wait::until("the hub shows the technician's change", || {
        let overrides = kubectl.attempt("get overrides")?;
        if overrides.contains("settings") { Ok(()) } else { Err(overrides) }
    });
}

/// Files on the same file system as `folder` that hold a text.
fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let device = std::fs::metadata(folder).unwrap().dev();
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path()) {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            if metadata.is_dir() {
                open.push(path);
            } else if metadata.is_file() && std::fs::read_to_string(&path).is_ok_and(|held| held.contains(text)) {
                found.push(path);
            }
        }
    }
    found
}

fn nothing_is_left(fleet: &Fleet) {
    fleet.kubectl().run("delete ds/vols");
    wait::until("nothing of the pods is left on the device", || {
        let left = fleet.leftovers("n1");
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
    assert_eq!(std::fs::read_to_string(fleet.folder().join("of-the-host/greeting")).unwrap(), "hello");
}
