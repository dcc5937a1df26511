//! Real OCI containers below real shims, with crun and with runc: what they see, how they end, and that nothing of them is left.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_agent::cgroup::tree::Tree;
use flotilla_agent::runtime::shims::ShimRuntime;
use flotilla_agent::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutcome, ExecRequest, Exit, Mount, Resources, Rootfs,
    Runtime, RuntimeEvent, SandboxConfig, SandboxState, Security,
};
use flotilla_agent::shim::files::{self, ShimFile};
use flotilla_agent::shim::proc_table::{self, Family};
use tokio::sync::mpsc;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// The OCI runtimes of this machine; a test runs with each. Empty (and said) when there is nothing to test with.
fn runtimes() -> Vec<&'static str> {
    let strict = std::env::var_os("FLOTILLA_REQUIRE_ALL").is_some();
    let mut missing = Vec::new();
    if !nix::unistd::Uid::effective().is_root() {
        missing.push("root".to_owned());
    }
    let find =
        |name: &str| ["/usr/bin", "/usr/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(name).exists());
    let found: Vec<&str> = ["crun", "runc"].into_iter().filter(|name| find(name)).collect();
    missing.extend(["crun", "runc", "busybox"].iter().filter(|name| !find(name)).map(|name| (*name).to_owned()));
    assert!(!strict || missing.is_empty(), "missing: {missing:?}");
    if missing.iter().any(|part| part == "root" || part == "busybox") || found.is_empty() {
        skip(&format!("this needs root, busybox and crun or runc; missing: {missing:?}"));
        return Vec::new();
    }
    found
}

/// Past the test runner, which keeps what a passing test prints to itself.
fn skip(reason: &str) {
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {reason}\n")).unwrap();
}

fn path_of(name: &str) -> PathBuf {
    ["/usr/bin", "/usr/sbin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .unwrap()
}

/// A device's folder and its pods. When it goes, nothing may be left of it on the machine.
struct Device {
    folder: tempfile::TempDir,
    runtime: ShimRuntime,
    events: mpsc::Receiver<RuntimeEvent>,
    uid: String,
    oci: &'static str,
}

impl Device {
    async fn boot(oci: &'static str) -> Self {
        Self::boot_in(tempfile::tempdir().unwrap(), oci).await
    }

    async fn boot_in(folder: tempfile::TempDir, oci: &'static str) -> Self {
        let uid = format!("oci-{}", folder.path().file_name().unwrap().to_str().unwrap().replace(['.', '_'], "x"));
        make_layer(&folder.path().join("layer"));
        fs::create_dir(folder.path().join("over")).unwrap();
        fs::write(folder.path().join("over/marker"), "upper layer\n").unwrap();
        let (runtime, events) = open(folder.path(), oci).await;
        Self { folder, runtime, events, uid, oci }
    }

    async fn restart_agent(&mut self) {
        (self.runtime, self.events) = open(self.folder.path(), self.oci).await;
    }

    async fn sandbox(&self, attempt: u32) {
        self.runtime.run_sandbox(&sandbox(&self.uid, attempt)).await.unwrap();
    }

    async fn start(&self, container: &ContainerConfig) {
        self.runtime.start_container(&self.uid, container).await.unwrap();
    }

    /// A shell in a container of this device's image.
    fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            attempt: 0,
            digest: "1:test".into(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("PATH".into(), "/bin".into()), ("COLOUR".into(), "green".into())]),
            working_dir: "/".into(),
            run_as_user: None,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            mounts: Vec::new(),
            root: Some(Rootfs {
                image: "test".into(),
                image_digest: String::new(),
                lower_dirs: vec![self.folder.path().join("over"), self.folder.path().join("layer")],
                read_only: false,
            }),
            stop_signal: None,
            resources: Resources::default(),
            security: Security::default(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("pods").join(&self.uid)
    }

    fn shim_file(&self) -> ShimFile {
        files::read_state(&self.dir()).unwrap()
    }

    fn cgroup(&self) -> Option<Tree> {
        self.shim_file().setup.cgroups
    }

    async fn container(&self, name: &str) -> ContainerStatus {
        self.runtime.list().await.unwrap()[&self.uid].containers[name].clone()
    }

    async fn pid(&self, name: &str) -> i32 {
        match self.container(name).await.state {
            ContainerState::Running { pid, .. } => pid,
            ContainerState::Exited(exit) => panic!("{name} does not run: {exit:?}"),
        }
    }

    async fn until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&BTreeMap<String, ContainerStatus>, SandboxState) -> bool,
    ) {
        let waited = timeout(LIMIT, async {
            loop {
                if let Some(sandbox) = self.runtime.list().await.unwrap().get(&self.uid)
                    && holds(&sandbox.containers, sandbox.state)
                {
                    return;
                }
                self.events.recv().await.unwrap();
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{}: never came: {what}", self.oci));
    }

    async fn exit_of(&mut self, name: &str) -> Exit {
        let mut exit = None;
        self.until(&format!("the exit of {name}"), |containers, _| {
            exit = containers.get(name).and_then(|status| match &status.state {
                ContainerState::Exited(exit) => Some(exit.clone()),
                ContainerState::Running { .. } => None,
            });
            exit.is_some()
        })
        .await;
        exit.unwrap()
    }

    /// Stream and text of every line.
    fn log(&self, name: &str, attempt: u32) -> Vec<String> {
        let text = fs::read_to_string(self.runtime.log_path(&self.uid, name, attempt)).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned()).collect()
    }

    async fn printed(&self, name: &str, wanted: &str) {
        let waited = timeout(LIMIT, async {
            while !self.log(name, 0).iter().any(|text| text == wanted) {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{name} never printed {wanted:?}: {:?}", self.log(name, 0)));
    }

    /// Removes the pod and looks everywhere for something of it.
    async fn remove_and_search(&mut self) {
        let cgroup = self.cgroup();
        let shim = self.shim_file().shim;
        self.runtime.remove_sandbox(&self.uid).await.unwrap();
        assert!(!self.dir().exists());
        assert!(!proc_table::runs(shim));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.folder.path().to_str().unwrap();
        assert!(!mounts.contains(own), "a mount is left: {mounts}");
        assert!(!cgroup.is_some_and(|cgroup| cgroup.exists()), "a cgroup is left");
        assert_eq!(marked(&self.uid), Vec::<i32>::new(), "processes are left");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(state) = files::read_state(&self.dir()) {
            if proc_table::runs(state.shim) {
                kill(state.shim.pid);
            }
            proc_table::kill_family(&Family { mark_prefix: &format!("{}/", self.uid), group: None, parent: None });
            flotilla_agent::shim::litter::remove_all(&self.dir(), Some(&state));
        }
    }
}

/// Processes that carry the mark of a pod.
fn marked(uid: &str) -> Vec<i32> {
    let prefix = format!("{}={uid}/", proc_table::MARK);
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|&byte| byte == 0).any(|variable| variable.starts_with(prefix.as_bytes()))
    })
    .collect()
}

async fn open(folder: &Path, oci: &str) -> (ShimRuntime, mpsc::Receiver<RuntimeEvent>) {
    let exe = Path::new(env!("CARGO_BIN_EXE_flotilla-agent"));
    let runtime = ShimRuntime::open_with(folder, exe, Some(&path_of(oci))).await.unwrap();
    let events = runtime.events().unwrap();
    (runtime, events)
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn sandbox(uid: &str, attempt: u32) -> SandboxConfig {
    SandboxConfig {
        uid: uid.into(),
        namespace: "default".into(),
        name: "web".into(),
        attempt,
        grace_seconds: 30,
        isolated: true,
        hostname: "web-0".into(),
        host_lines: vec!["10.1.2.3\tweb-0".into()],
        host_pid: false,
        host_ipc: false,
    }
}

/// An image of one program.
fn make_layer(layer: &Path) {
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(layer.join(folder)).unwrap();
    }
    fs::copy(path_of("busybox"), layer.join("bin/busybox")).unwrap();
    for name in [
        "sh", "sleep", "cat", "echo", "id", "ls", "hostname", "touch", "head", "tail", "grep", "test", "wc", "dd",
        "mount", "env", "kill", "true",
    ] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name)).unwrap();
    }
    fs::write(layer.join("marker"), "lower layer\n").unwrap();
    fs::write(layer.join("bin/noexec"), "no program\n").unwrap();
}

fn alive(pid: i32) -> bool {
    proc_table::stat(pid).is_some_and(|stat| stat.state != 'Z')
}

#[tokio::test]
async fn a_container_has_its_own_world_and_leaves_nothing() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let script = "echo to stderr >&2; cat /marker; hostname; grep -c 10.1.2.3 /etc/hosts; echo $$; echo $COLOUR; \
                      ls /proc/self/fd | wc -l; echo written > /new; cat /new; id -u; grep SigBlk /proc/self/status; exit 7";
        device.start(&device.shell("app", script)).await;
        let exit = device.exit_of("app").await;
        assert_eq!((exit.code, exit.reason.as_str()), (7, "Error"), "{oci}: {:?}", device.log("app", 0));
        let log = device.log("app", 0);
        // One shell, and `ls` with its listing's own descriptor: 0, 1, 2, 3.
        let expected = ["upper layer", "web-0", "1", "1", "green", "4", "written", "0", "SigBlk:\t0000000000000000"];
        let out: Vec<&str> = log.iter().map(String::as_str).filter(|line| *line != "to stderr").collect();
        assert_eq!(out, expected, "{oci}");
        assert!(log.iter().any(|line| line == "to stderr"));
        assert!(!device.folder.path().join("over/new").exists(), "the image was written to");
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn what_cannot_be_executed_is_an_exit_and_says_so() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        for (name, argv) in [("a", "no-such-program"), ("b", "/no/such/program"), ("c", "/bin"), ("d", "/bin/noexec")] {
            let mut config = device.shell(name, "");
            config.argv = vec![argv.into()];
            device.start(&config).await;
            let exit = device.exit_of(name).await;
            assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"), "{oci} {argv}: {exit:?}");
            assert!(exit.message.len() > 40, "{oci} {argv}: {}", exit.message);
            assert_eq!(device.log(name, 0), Vec::<String>::new(), "the runtime's own words are no output");
        }
        // What is wrong with the image is no end of a container: it is an error, and may be tried again.
        let mut config = device.shell("e", "true");
        config.root.as_mut().unwrap().lower_dirs = vec!["/no/such/layer".into()];
        let error = device.runtime.start_container(&device.uid, &config).await.unwrap_err();
        assert!(error.to_string().contains("could not mount the image's 1 layers"), "{error}");
        device.start(&device.shell("e", "true")).await;
        assert_eq!(device.exit_of("e").await.code, 0);
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn limits_are_kept_and_their_end_has_a_name() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        if !device.runtime.facilities().limits.why.is_empty() {
            skip(&format!("limits cannot be kept here: {}", device.runtime.facilities().limits.why));
            return;
        }
        device.sandbox(0).await;
        let mut hungry = device.shell("hungry", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; tail /dev/zero");
        hungry.resources.memory_bytes_max = Some(32 << 20);
        device.start(&hungry).await;
        let exit = device.exit_of("hungry").await;
        assert_eq!(
            (exit.code, exit.reason.as_str()),
            (137, "OOMKilled"),
            "{oci}: {exit:?} {:?}",
            device.log("hungry", 0)
        );
        let mut forks = device.shell("forks", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all");
        forks.resources.pids_max = Some(20);
        device.start(&forks).await;
        assert_ne!(device.exit_of("forks").await.code, 0, "{oci}: forty processes were more than twenty");
        assert!(device.log("forks", 0).iter().any(|line| line.contains("fork")), "{:?}", device.log("forks", 0));
        let mut slow =
            device.shell("slow", "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; cat /proc/self/cgroup >/dev/null");
        slow.resources = Resources { cpu_quota_us: Some(20_000), cpu_shares: Some(204), ..Resources::default() };
        device.start(&slow).await;
        let cgroup = device.cgroup().unwrap().child("slow-0");
        let quota = fs::read_to_string(cpu_file(&cgroup)).unwrap();
        assert!(quota.trim() == "20000" || quota.trim() == "20000 100000", "{oci}: {quota}");
        assert_eq!(device.exit_of("slow").await.code, 0);
        device.remove_and_search().await;
    }
}

/// Where a quota stands.
fn cpu_file(cgroup: &Tree) -> PathBuf {
    use flotilla_agent::cgroup::Layout;
    let below = |mount: &Path| mount.join(cgroup.path.trim_start_matches('/'));
    match &cgroup.layout {
        Layout::V1 { hierarchies, .. } => {
            let cpu = hierarchies.iter().find(|one| one.controllers.iter().any(|name| name == "cpu")).unwrap();
            below(&cpu.mount).join("cpu.cfs_quota_us")
        }
        Layout::V2 { mount, .. } => below(mount).join("cpu.max"),
        Layout::None { why } => panic!("{why}"),
    }
}

#[tokio::test]
async fn volumes_users_and_what_a_container_may_do() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let data = device.folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("in"), "from the host\n").unwrap();
        let mount = |source: &Path, destination: &str, read_only| Mount {
            source: source.to_owned(),
            destination: destination.into(),
            read_only,
        };
        let script = "cat /new/place/in; touch /new/place/no || echo refused; cat /one; echo out > /rw/out; id; \
                      touch /root-file || echo root is read only; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status";
        let mut config = device.shell("app", script);
        config.mounts =
            vec![mount(&data, "/new/place", true), mount(&data.join("in"), "/one", true), mount(&data, "/rw", false)];
        config.root.as_mut().unwrap().read_only = true;
        config.security.dropped_capabilities = vec!["ALL".into()];
        config.security.added_capabilities = vec!["NET_RAW".into()];
        config.security.no_new_privileges = true;
        config.security.seccomp_default = true;
        config.supplemental_groups = vec![2000];
        device.start(&config).await;
        assert_eq!(device.exit_of("app").await.code, 0);
        let log = device.log("app", 0);
        assert_eq!(log[0], "from the host", "{oci}: {log:?}");
        assert_eq!(log.iter().filter(|line| *line == "refused" || *line == "root is read only").count(), 2, "{log:?}");
        assert_eq!(log.iter().filter(|line| *line == "from the host").count(), 2);
        assert!(log.iter().any(|line| line.contains("uid=0") && line.contains("2000")), "{log:?}");
        assert!(log.contains(&"CapEff:\t0000000000002000".into()) && log.contains(&"NoNewPrivs:\t1".into()), "{log:?}");
        assert_eq!(fs::read_to_string(data.join("out")).unwrap(), "out\n");
        let mut other = device.shell(
            "other",
            "id -u; id -g; grep CapEff /proc/self/status; cat /etc/resolv.conf > /dev/null && echo readable",
        );
        (other.run_as_user, other.run_as_group) = (Some(1000), Some(1001));
        device.start(&other).await;
        device.exit_of("other").await;
        assert_eq!(device.log("other", 0), ["1000", "1001", "CapEff:\t0000000000000000", "readable"], "{oci}");
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn commands_run_inside_and_end_at_their_deadline() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        device.start(&device.shell("app", "echo up; trap 'exit 4' TERM; while :; do sleep 0.05; done")).await;
        device.printed("app", "up").await;
        let run = |script: &str, timeout: Duration| ExecRequest {
            pod_uid: device.uid.clone(),
            container: "app".into(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            working_dir: "/".into(),
            timeout,
        };
        let outcome = device.runtime.exec(&run("cat /marker; echo $COLOUR; hostname; exit 3", LIMIT)).await.unwrap();
        assert_eq!(outcome, ExecOutcome::Exited { code: 3, output: "upper layer\ngreen\nweb-0\n".into() }, "{oci}");
        let outcome = device.runtime.exec(&run("sleep 6543", Duration::from_millis(500))).await.unwrap();
        assert_eq!(outcome, ExecOutcome::TimedOut);
        let waited = timeout(LIMIT, async {
            while running("6543") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("the command outlived its deadline");
        device.runtime.stop_container(&device.uid, "app", 0, LIMIT).await.unwrap();
        assert_eq!(device.exit_of("app").await.code, 4, "its own end of TERM");
        device.remove_and_search().await;
    }
}

fn running(word: &str) -> bool {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().any(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        alive(pid) && line.split(|&byte| byte == 0).any(|argument| argument == word.as_bytes())
    })
}

#[tokio::test]
async fn containers_survive_the_agent_and_are_adopted() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let mut config =
            device.shell("app", "trap 'echo bye; exit 5' QUIT; trap '' TERM; echo up; while :; do sleep 0.05; done");
        config.stop_signal = Some("SIGQUIT".into());
        device.start(&config).await;
        device.printed("app", "up").await;
        let before = device.container("app").await;
        device.restart_agent().await;
        assert_eq!(device.container("app").await, before, "adopted as it was: same pid, same start");
        // Asked again, because the answer was lost: it is done already.
        device.start(&config).await;
        assert_eq!(device.container("app").await, before);
        device.runtime.stop_container(&device.uid, "app", 0, LIMIT).await.unwrap();
        assert_eq!(device.exit_of("app").await.code, 5, "{oci}");
        assert_eq!(device.log("app", 0).last().unwrap(), "bye");
        assert!(!files::root_path(&device.dir(), "app", 0).exists(), "what it wrote is gone with it");
        // The next attempt begins with the image as it is.
        let mut again = device.shell("app", "ls /; echo second");
        again.attempt = 1;
        device.start(&again).await;
        assert_eq!(device.exit_of("app").await.code, 0);
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn a_killed_shim_or_container_leaves_nothing_to_the_next() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        device.start(&device.shell("app", "sleep 6541 & sleep 6542")).await;
        device.start(&device.shell("other", "sleep 6541")).await;
        // Its first process is killed from outside: an end like any other.
        kill(device.pid("other").await);
        let exit = device.exit_of("other").await;
        assert_eq!((exit.code, exit.signal), (137, Some(9)), "{oci}");
        let pid = device.pid("app").await;
        let cgroup = device.cgroup();
        kill(device.shim_file().shim.pid);
        device.until("the loss of the sandbox", |_, state| state == SandboxState::Lost).await;
        assert!(alive(pid), "nobody has ended it yet");
        device.sandbox(1).await;
        assert!(!alive(pid) && !running("6542"), "{oci}: the old container outlived its sandbox");
        assert!(!files::root_path(&device.dir(), "app", 0).exists());
        assert!(!cgroup.as_ref().is_some_and(|cgroup| cgroup.child("app-0").exists()));
        let mut again = device.shell("app", "echo again");
        again.attempt = 1;
        device.start(&again).await;
        assert_eq!(device.exit_of("app").await.code, 0, "{oci}");
        device.remove_and_search().await;
    }
}

/// Everything dies at once, and what is on the disk is from another boot.
#[tokio::test]
async fn after_a_power_cut_the_old_state_is_in_nobodys_way() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        device.start(&device.shell("app", "sleep 6540")).await;
        let (pid, state) = (device.pid("app").await, device.shim_file());
        kill(state.shim.pid);
        kill(pid);
        device.until("the loss of the sandbox", |_, state| state == SandboxState::Lost).await;
        // As after a reboot: no cgroups, another boot id, the OCI runtime's state still there, its pid somebody else's.
        if let Some(cgroup) = device.cgroup() {
            while cgroup.remove().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(
            files::oci_state_path(&device.dir()).join("app-0").exists(),
            "{oci} keeps no state where it was told to"
        );
        let text = serde_json::to_string(&ShimFile { boot: "another".into(), ..state }).unwrap();
        fs::write(files::state_path(&device.dir()), text).unwrap();
        device.restart_agent().await;
        assert_eq!(device.exit_of("app").await.reason, "Unknown");
        device.sandbox(1).await;
        // The same attempt again: its names are those of the dead one.
        device.start(&device.shell("app", "echo up again; exit 0")).await;
        assert_eq!(device.exit_of("app").await.code, 0, "{oci}");
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn many_layers_and_containers_that_end_at_once() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let mut config = device.shell("layers", "cat /layer-0 /layer-119");
        let root = config.root.as_mut().unwrap();
        for index in 0..120 {
            let layer =
                device.folder.path().join(format!("layers-with-a-long-name-that-fills-a-page-of-options/{index}"));
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("layer-{index}")), format!("{index}\n")).unwrap();
            root.lower_dirs.insert(0, layer);
        }
        device.start(&config).await;
        assert_eq!(device.exit_of("layers").await.code, 0, "{oci}: {:?}", device.log("layers", 0));
        assert_eq!(device.log("layers", 0), ["0", "119"]);
        // Several launches at once, each over before its runtime is.
        let quick: Vec<ContainerConfig> =
            (0..6).map(|index| device.shell(&format!("quick-{index}"), "exit 9")).collect();
        let starts = quick.iter().map(|config| device.runtime.start_container(&device.uid, config));
        let mut starts: Vec<_> = starts.map(Box::pin).collect();
        for start in &mut starts {
            start.await.unwrap();
        }
        drop(starts);
        for config in &quick {
            assert_eq!(device.exit_of(&config.name).await.code, 9);
        }
        device.remove_and_search().await;
    }
}

#[tokio::test]
async fn what_a_container_wrote_goes_without_holding_anybody_up() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let script = "i=0; while [ $i -lt 600 ]; do echo x > /f$i; i=$((i+1)); done; echo done";
        device.start(&device.shell("writes", script)).await;
        assert_eq!(device.exit_of("writes").await.code, 0);
        let root = files::root_path(&device.dir(), "writes", 0);
        let waited = timeout(LIMIT, async {
            while root.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("what the container wrote was never removed");
        device.remove_and_search().await;
    }
}

/// An OCI runtime that hangs, dies or lies.
#[tokio::test]
async fn a_runtime_that_fails_is_an_error_that_says_what_happened() {
    use std::os::unix::fs::PermissionsExt as _;
    if runtimes().is_empty() {
        return;
    }
    let mut device = Device::boot(runtimes()[0]).await;
    let script = device.folder.path().join("runtime");
    let make = |body: &str| {
        let text = format!("#!/bin/sh\nif [ \"$1\" = --version ]; then echo fake version 1.0; exit; fi\n{body}\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    };
    make("exit 3");
    let exe = Path::new(env!("CARGO_BIN_EXE_flotilla-agent"));
    device.runtime = ShimRuntime::open_with(device.folder.path(), exe, Some(&script)).await.unwrap();
    device.events = device.runtime.events().unwrap();
    assert_eq!(device.runtime.facilities().version(), "fake://1.0");
    device.sandbox(0).await;
    device.start(&device.shell("silent", "true")).await;
    let exit = device.exit_of("silent").await;
    assert!(exit.code == 128 && exit.message.contains("said nothing"), "{exit:?}");
    make("exit 0");
    let error = device.runtime.start_container(&device.uid, &device.shell("liar", "true")).await.unwrap_err();
    assert!(error.to_string().contains("left no process id"), "{error}");
    // Hanging: the pod's end ends it too, children included.
    make("sleep 6539 & sleep 6538");
    let (uid, config) = (device.uid.clone(), device.shell("hangs", "true"));
    let start = device.runtime.start_container(&uid, &config);
    let stop = async {
        while !running("6539") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!device.runtime.list().await.unwrap()[&uid].containers.contains_key("hangs"), "it is nothing yet");
        device.runtime.stop_sandbox(&uid).await.unwrap();
    };
    let (started, ()) = tokio::join!(start, stop);
    assert!(started.is_err());
    assert!(!running("6538") && !running("6539"), "the runtime outlived the pod");
    device.remove_and_search().await;
}

#[tokio::test]
async fn a_device_without_a_runtime_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let exe = Path::new(env!("CARGO_BIN_EXE_flotilla-agent"));
    let runtime = ShimRuntime::open_with(folder.path(), exe, Some(Path::new("/no/such/crun"))).await.unwrap();
    let why = runtime.facilities().oci.as_ref().unwrap_err();
    assert!(why.contains("/no/such/crun") || why.contains("root"), "{why}");
    assert!(runtime.facilities().version().starts_with("process://"));
    let refused = flotilla_agent::runtime::admission::refusal(&serde_json::json!({}), runtime.facilities()).unwrap();
    assert!(refused.reason == "RuntimeHandlerNotFound" && refused.message.contains(why.as_str()), "{refused:?}");
}

/// A mount namespace of this thread's own; what is started from it inherits it.
fn own_mounts() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

/// An overlay cannot be the upper layer of another: what containers write is kept in memory, and bounded.
#[tokio::test]
async fn on_a_file_system_unfit_for_it_the_writable_layer_is_in_memory() {
    use nix::mount::{MsFlags, mount};
    let found = runtimes();
    if !found.is_empty() {
        own_mounts();
    }
    for oci in found {
        let around = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(around.path().join(name)).unwrap();
        }
        let at = |name: &str| around.path().join(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
        mount(Some("overlay"), at("merged").as_str(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        let mut device = Device::boot_in(tempfile::tempdir_in(at("merged")).unwrap(), oci).await;
        device.sandbox(0).await;
        let script = "cat /marker; echo x > /written; cat /written; dd if=/dev/zero of=/big bs=1M count=300 2>&1 | grep -o 'No space left'";
        device.start(&device.shell("app", script)).await;
        assert_eq!(device.exit_of("app").await.code, 0, "{oci}: {:?}", device.log("app", 0));
        assert_eq!(device.log("app", 0), ["upper layer", "x", "No space left"], "{oci}");
        device.remove_and_search().await;
        drop(device);
        nix::mount::umount(at("merged").as_str()).unwrap();
    }
}

/// Seen from a mount namespace in which no cgroup file system is mounted.
#[tokio::test]
async fn without_cgroups_containers_run_without_limits() {
    use nix::mount::{MntFlags, umount2};
    if !runtimes().contains(&"crun") {
        return;
    }
    own_mounts();
    while umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).is_ok() {}
    let mut device = Device::boot("crun").await;
    let limits = &device.runtime.facilities().limits;
    assert!(!limits.memory && limits.why.contains("no cgroup file system"), "{limits:?}");
    device.sandbox(0).await;
    assert_eq!(device.cgroup(), None);
    device.start(&device.shell("app", "echo up; trap 'exit 4' TERM; while :; do sleep 0.05; done")).await;
    device.printed("app", "up").await;
    let request = ExecRequest {
        pod_uid: device.uid.clone(),
        container: "app".into(),
        argv: vec!["cat".into(), "/marker".into()],
        env: BTreeMap::new(),
        working_dir: "/".into(),
        timeout: LIMIT,
    };
    let seen = device.runtime.exec(&request).await.unwrap();
    assert_eq!(seen, ExecOutcome::Exited { code: 0, output: "upper layer\n".into() });
    device.runtime.stop_container(&device.uid, "app", 0, LIMIT).await.unwrap();
    assert_eq!(device.exit_of("app").await.code, 4);
    device.remove_and_search().await;
    // runc cannot, and says so.
    if runtimes().contains(&"runc") {
        let runc = Device::boot("runc").await;
        let why = runc.runtime.facilities().oci.clone().unwrap_err();
        assert!(why.contains("runc cannot work without cgroups"), "{why}");
    }
}

/// The agent dies while a container is being made: the next one waits for the same container.
#[tokio::test]
async fn a_launch_outlives_the_agent_that_asked_for_it() {
    use std::os::unix::fs::PermissionsExt as _;
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        let (script, gate) = (device.folder.path().join("slow"), device.folder.path().join("gate"));
        let real = path_of(oci);
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] || while ! [ -e {} ]; do sleep 0.02; done\nexec {} \"$@\"\n",
            gate.display(),
            real.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let exe = Path::new(env!("CARGO_BIN_EXE_flotilla-agent"));
        device.runtime = ShimRuntime::open_with(device.folder.path(), exe, Some(&script)).await.unwrap();
        device.sandbox(0).await;
        let config = device.shell("app", "echo up; sleep 6537");
        // Asked, and given up: its connection ends with it.
        let asked = timeout(Duration::from_millis(300), device.runtime.start_container(&device.uid, &config));
        assert!(asked.await.is_err(), "it could not be made yet");
        device.restart_agent().await;
        assert!(!device.runtime.list().await.unwrap()[&device.uid].containers.contains_key("app"));
        let (uid, again) = (device.uid.clone(), config.clone());
        let start = device.runtime.start_container(&uid, &again);
        let open = async {
            tokio::task::yield_now().await;
            fs::write(&gate, "").unwrap();
        };
        let (started, ()) = tokio::join!(start, open);
        started.unwrap();
        device.printed("app", "up").await;
        assert_eq!(marked(&device.uid).iter().filter(|&&pid| alive(pid)).count(), 1, "{oci}: it was made twice");
        device.remove_and_search().await;
    }
}
