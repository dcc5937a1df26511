//! Real OCI containers below real shims, with crun and with runc: what they see, how they end, and that nothing of them is left.
#![allow(clippy::unwrap_used, reason = "tests")]

mod life;
mod unfit;
#[path = "../wait/mod.rs"]
mod wait;
mod world;

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
use wait::LIMIT;

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
        let printed = || self.log(name, 0).iter().any(|text| text == wanted);
        wait::until(&format!("{wanted:?} of {name}"), printed).await;
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
        if let Some(cgroups) = self.runtime.cgroups() {
            cgroups.remove().ok();
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

fn running(word: &str) -> bool {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().any(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        alive(pid) && line.split(|&byte| byte == 0).any(|argument| argument == word.as_bytes())
    })
}
