//! Real shims and real processes: exits, signals, logs, stops, adoption, and what is left when a shim is killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod wait;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_agent::runtime::shims::ShimRuntime;
use flotilla_agent::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutcome, ExecRequest, Exit, Mount, Resources, Runtime,
    RuntimeEvent, SandboxConfig, SandboxState, Security,
};
use flotilla_agent::shim::files::{self, ShimFile};
use flotilla_agent::shim::proc_table::{self, Family};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wait::LIMIT;

/// A device's folder and its pods; whatever still runs when it goes is killed.
struct Device {
    folder: tempfile::TempDir,
    runtime: ShimRuntime,
    events: mpsc::Receiver<RuntimeEvent>,
    uid: String,
}

impl Device {
    async fn boot() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Unique on this machine: leftovers are found by it.
        let uid = format!("test-{}", folder.path().file_name().unwrap().to_str().unwrap().replace(['.', '_'], "x"));
        let (runtime, events) = open(folder.path()).await;
        Self { folder, runtime, events, uid }
    }

    /// The agent dies and comes back: nothing of the runtime's memory survives, the shims do.
    async fn restart_agent(&mut self) {
        (self.runtime, self.events) = open(self.folder.path()).await;
    }

    async fn sandbox(&self, attempt: u32) {
        self.runtime.run_sandbox(&sandbox(&self.uid, attempt)).await.unwrap();
    }

    async fn start(&self, container: &ContainerConfig) {
        self.runtime.start_container(&self.uid, container).await.unwrap();
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("pods").join(&self.uid)
    }

    fn shim_file(&self) -> ShimFile {
        files::read_state(&self.dir()).unwrap()
    }

    async fn container(&self, name: &str) -> ContainerStatus {
        self.runtime.list().await.unwrap()[&self.uid].containers[name].clone()
    }

    /// Waits for events until the condition holds.
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
        waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
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

    fn log(&self, name: &str, attempt: u32) -> Vec<(String, String, String)> {
        log_lines(&self.runtime.log_path(&self.uid, name, attempt))
    }

    /// Waits until the container has printed a line.
    async fn printed(&self, name: &str, wanted: &str) {
        let printed = || self.log(name, 0).iter().any(|(_, _, text)| text == wanted);
        wait::until(&format!("{wanted:?} of {name}"), printed).await;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(state) = files::read_state(&self.dir())
            && proc_table::runs(state.shim)
        {
            kill(state.shim.pid);
        }
        proc_table::kill_family(&Family { mark_prefix: &format!("{}/", self.uid), group: None, parent: None });
        if let Some(cgroups) = self.runtime.cgroups() {
            cgroups.remove().ok();
        }
    }
}

async fn open(folder: &Path) -> (ShimRuntime, mpsc::Receiver<RuntimeEvent>) {
    let runtime = ShimRuntime::open(folder, Path::new(env!("CARGO_BIN_EXE_flotilla-agent"))).await.unwrap();
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
        isolated: false,
        hostname: String::new(),
        host_lines: Vec::new(),
        host_pid: false,
        host_ipc: false,
    }
}

fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        attempt: 0,
        digest: "1:test".into(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([
            ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
            ("COLOUR".into(), "green".into()),
        ]),
        working_dir: "/".into(),
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        mounts: Vec::new(),
        root: None,
        stop_signal: None,
        resources: Resources::default(),
        security: Security::default(),
    }
}

/// Stream, tag and text of every line; each must be in CRI's format.
fn log_lines(path: &Path) -> Vec<(String, String, String)> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            assert!(fields[0].len() == 30 && fields[0].ends_with('Z'), "{line:?} is dated otherwise than CRI");
            (fields[1].to_owned(), fields[2].to_owned(), fields.get(3).unwrap_or(&"").to_string())
        })
        .collect()
}

/// A process that is nobody's, at the head of a group of its own, as containers are.
fn stranger(seconds: &str) -> std::process::Child {
    use std::os::unix::process::CommandExt as _;
    std::process::Command::new("sleep").arg(seconds).process_group(0).spawn().unwrap()
}

fn alive(pid: i32) -> bool {
    proc_table::stat(pid).is_some_and(|stat| stat.state != 'Z')
}

#[tokio::test]
async fn exit_codes_signals_and_output_are_recorded() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("fails", "echo to stdout; echo to stderr >&2; printf unfinished; exit 7")).await;
    device.start(&shell("dies", "kill -9 $$")).await;
    device.start(&shell("works", "true")).await;
    let exit = device.exit_of("fails").await;
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (7, None, "Error"));
    assert!(exit.started_at.unwrap() <= exit.finished_at.unwrap());
    let exit = device.exit_of("dies").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert_eq!(device.exit_of("works").await.reason, "Completed");
    let mut lines = device.log("fails", 0);
    lines.sort();
    let line = |stream: &str, text: &str| (stream.to_owned(), "F".to_owned(), text.to_owned());
    assert_eq!(lines, [line("stderr", "to stderr"), line("stdout", "to stdout"), line("stdout", "unfinished")]);
    assert_eq!(files::read_exit(&device.dir(), "fails", 0).unwrap().code, 7);
}

#[tokio::test]
async fn a_command_that_is_not_there_is_an_exit_and_says_so() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    let cases = [
        ("a", vec!["no-such-program"], "/", "exec: \"no-such-program\": executable file not found in $PATH"),
        ("b", vec!["/no/such/program"], "/", "exec: \"/no/such/program\": stat /no/such/program"),
        ("c", vec!["/etc"], "/", "exec: \"/etc\""),
        ("d", vec!["true"], "/no/such/folder", "chdir to cwd (\"/no/such/folder\") failed"),
    ];
    for (name, argv, working_dir, message) in cases {
        let mut config = shell(name, "");
        config.argv = argv.into_iter().map(str::to_owned).collect();
        config.working_dir = working_dir.into();
        device.start(&config).await;
        let exit = device.exit_of(name).await;
        assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"));
        assert!(exit.message.contains(message), "{}", exit.message);
    }
}

#[tokio::test]
async fn a_container_inherits_nothing_but_what_it_was_given() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    // Looked at by the container's first process itself: a shell holds pipes and masks of its own.
    for (name, argv) in [
        ("fds", vec!["ls", "/proc/self/fd"]),
        ("mask", vec!["grep", "SigBlk", "/proc/self/status"]),
        ("env", vec!["env"]),
    ] {
        let mut config = shell(name, "");
        config.argv = argv.into_iter().map(str::to_owned).collect();
        device.start(&config).await;
        device.exit_of(name).await;
    }
    let printed = |name: &str| device.log(name, 0).into_iter().map(|(_, _, text)| text).collect::<Vec<String>>();
    // 3 is the listing's own.
    assert_eq!(printed("fds"), ["0", "1", "2", "3"], "descriptors leaked into the container");
    assert_eq!(printed("mask"), ["SigBlk:\t0000000000000000"], "the shim's signal mask leaked");
    let mut variables = printed("env");
    variables.sort();
    let mark = format!("FLOTILLA_CONTAINER={}/env/0", device.uid);
    let expected = ["COLOUR=green", mark.as_str(), "PATH=/usr/local/bin:/usr/bin:/bin"];
    assert_eq!(variables, expected, "the agent's environment leaked");
}

#[tokio::test]
async fn long_lines_are_cut_and_a_stop_comes_in_time() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("long", "head -c 40000 /dev/zero | tr '\\0' x; echo; trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")).await;
    device.printed("long", "up").await;
    let parts: Vec<(String, usize)> =
        device.log("long", 0).iter().take(3).map(|(_, tag, text)| (tag.clone(), text.len())).collect();
    assert_eq!(parts, [("P".into(), 16384), ("P".into(), 16384), ("F".into(), 40000 - 2 * 16384)]);
    device.runtime.stop_container(&device.uid, "long", 0, LIMIT).await.unwrap();
    assert_eq!(device.exit_of("long").await.code, 3);
    assert_eq!(device.log("long", 0).last().unwrap().2, "bye");
}

#[tokio::test]
async fn who_ignores_term_is_killed_after_the_grace() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done")).await;
    device.printed("stubborn", "up").await;
    device.runtime.stop_container(&device.uid, "stubborn", 0, Duration::from_secs(2)).await.unwrap();
    let ContainerState::Running { stopping, .. } = device.container("stubborn").await.state else {
        panic!("killed before its grace was over");
    };
    assert!(stopping);
    assert_eq!(device.exit_of("stubborn").await.code, 137);
}

#[tokio::test]
async fn grandchildren_end_with_their_container_and_neighbours_stay() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("neighbour", "echo up; exec sleep 600")).await;
    // One in the process group, one that left it and lost its parents.
    let script = "sleep 601 & echo $!; setsid sh -c 'sleep 602 & echo $!'; echo up; exec sleep 603";
    device.start(&shell("forks", script)).await;
    device.printed("forks", "up").await;
    let pids: Vec<i32> = device.log("forks", 0).iter().filter_map(|(_, _, text)| text.parse().ok()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|&pid| alive(pid)));
    device.runtime.stop_container(&device.uid, "forks", 0, LIMIT).await.unwrap();
    assert_eq!(device.exit_of("forks").await.code, 143);
    assert!(!pids.iter().any(|&pid| alive(pid)), "a grandchild outlived its container");
    assert!(matches!(device.container("neighbour").await.state, ContainerState::Running { .. }));
}

#[tokio::test]
async fn an_agent_that_dies_leaves_its_pods_and_adopts_them() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    let fifo = device.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    device.start(&shell("app", &format!("echo up; read line < {}; echo got $line; exit 5", fifo.display()))).await;
    device.printed("app", "up").await;
    let before = device.container("app").await;
    device.restart_agent().await;
    assert_eq!(device.container("app").await, before, "adopted as it was: same pid, same start");
    // What happens after the adoption is heard of.
    fs::write(&fifo, "word\n").unwrap();
    assert_eq!(device.exit_of("app").await.code, 5);
    assert_eq!(device.log("app", 0).last().unwrap().2, "got word");
    // And what happened while nobody was there, too.
    device.restart_agent().await;
    assert_eq!(device.exit_of("app").await.code, 5);
}

#[tokio::test]
async fn a_killed_shim_is_noticed_and_its_processes_are_ended_before_the_next() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("app", "setsid sleep 600 & echo $!; echo up; exec sleep 601")).await;
    device.printed("app", "up").await;
    let orphan: i32 = device.log("app", 0)[0].2.parse().unwrap();
    let ContainerState::Running { pid, .. } = device.container("app").await.state else { panic!("does not run") };
    kill(device.shim_file().shim.pid);
    device.until("the loss of the sandbox", |_, state| state == SandboxState::Lost).await;
    let exit = device.exit_of("app").await;
    assert_eq!((exit.code, exit.reason.as_str(), exit.finished_at), (255, "Unknown", None));
    assert!(alive(pid) && alive(orphan), "nobody has ended them yet");
    device.sandbox(1).await;
    assert!(!alive(pid) && !alive(orphan), "two lives of one pod at the same time");
    let mut again = shell("app", "exit 0");
    again.attempt = 1;
    device.start(&again).await;
    assert_eq!(device.exit_of("app").await.code, 0);
}

#[tokio::test]
async fn a_pid_that_belongs_to_someone_else_by_now_is_left_alone() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("app", "exec sleep 600")).await;
    let mut bystander = stranger("603");
    let mut state = device.shim_file();
    kill(state.shim.pid);
    device.until("the loss of the sandbox", |_, state| state == SandboxState::Lost).await;
    // As if the container's pid had been given to the bystander meanwhile.
    let process = state.containers.get_mut("app").unwrap().process.as_mut().unwrap();
    kill(process.pid);
    *process = proc_table::identify(i32::try_from(bystander.id()).unwrap()).unwrap();
    process.start_ticks -= 1;
    fs::write(files::state_path(&device.dir()), serde_json::to_vec(&state).unwrap()).unwrap();
    device.restart_agent().await;
    device.sandbox(1).await;
    assert!(bystander.try_wait().unwrap().is_none(), "a stranger was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_reboot_leaves_records_and_no_processes() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("done", "exit 4")).await;
    device.start(&shell("app", "exec sleep 600")).await;
    device.exit_of("done").await;
    let mut state = device.shim_file();
    kill(state.shim.pid);
    device.until("the loss of the sandbox", |_, state| state == SandboxState::Lost).await;
    proc_table::kill_family(&Family { mark_prefix: &format!("{}/", device.uid), group: None, parent: None });
    state.boot = "00000000-0000-0000-0000-000000000000".into();
    // This boot has given pid and start time of the container to somebody else.
    let mut bystander = stranger("604");
    state.containers.get_mut("app").unwrap().process = proc_table::identify(i32::try_from(bystander.id()).unwrap());
    fs::write(files::state_path(&device.dir()), serde_json::to_vec(&state).unwrap()).unwrap();
    device.restart_agent().await;
    let listed = device.runtime.list().await.unwrap();
    assert_eq!(listed[&device.uid].state, SandboxState::Lost);
    assert_eq!(device.exit_of("done").await.code, 4);
    let exit = device.exit_of("app").await;
    assert!(exit.message.contains("the device went down"), "{exit:?}");
    device.sandbox(1).await;
    let spared = bystander.try_wait().unwrap().is_none();
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(spared, "a stranger was killed");
}

#[tokio::test]
async fn what_cannot_be_read_is_set_aside_and_removal_leaves_nothing() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("app", "exec sleep 600")).await;
    let broken = device.folder.path().join("pods").join("broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("shim.json"), b"{\"format\": 1, ").unwrap();
    device.restart_agent().await;
    assert!(matches!(device.container("app").await.state, ContainerState::Running { .. }));
    assert!(!device.runtime.list().await.unwrap().contains_key("broken"));
    let shim = device.shim_file().shim;
    device.runtime.remove_sandbox(&device.uid).await.unwrap();
    assert!(!proc_table::runs(shim) && !device.dir().exists());
    assert!(device.runtime.list().await.unwrap().is_empty());
    // Asked again, and of a name that would lead elsewhere.
    device.runtime.remove_sandbox(&device.uid).await.unwrap();
    assert!(device.runtime.remove_sandbox("../..").await.unwrap_err().to_string().contains("cannot name"));
}

#[tokio::test]
async fn a_stopped_sandbox_keeps_its_logs() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("job", "echo result; exit 0")).await;
    device.exit_of("job").await;
    device.runtime.stop_sandbox(&device.uid).await.unwrap();
    let listed = device.runtime.list().await.unwrap();
    assert_eq!(listed[&device.uid].state, SandboxState::Lost);
    assert_eq!(device.exit_of("job").await.code, 0);
    assert_eq!(device.log("job", 0)[0].2, "result");
}

#[tokio::test]
async fn much_output_is_rotated_and_never_blocks() {
    let mut device = Device::boot().await;
    device.sandbox(0).await;
    // About 64 MiB of log: more than five files of 10 MiB.
    device
        .start(&shell("loud", "yes 0123456789abcdef0123456789abcdef0123456789abcdef | head -n 700000; echo end"))
        .await;
    assert_eq!(device.exit_of("loud").await.code, 0);
    let log = device.runtime.log_path(&device.uid, "loud", 0);
    let sizes: Vec<u64> =
        (1..=5).map(|age| fs::metadata(files::rotated_path(&log, age)).map_or(0, |file| file.len())).collect();
    assert!(sizes[..4].iter().all(|&size| size > 9 << 20 && size <= 10 << 20), "{sizes:?}");
    assert_eq!(sizes[4], 0, "more files than are kept");
    assert_eq!(device.log("loud", 0).last().unwrap().2, "end");
}

#[tokio::test]
async fn commands_beside_a_container_have_a_deadline() {
    let device = Device::boot().await;
    let run = |script: &str, timeout: Duration| {
        let config = shell("x", script);
        ExecRequest {
            pod_uid: device.uid.clone(),
            container: "x".into(),
            argv: config.argv,
            env: config.env,
            working_dir: "/".into(),
            timeout,
        }
    };
    let outcome = device.runtime.exec(&run("echo $COLOUR; exit 3", LIMIT)).await.unwrap();
    assert_eq!(outcome, ExecOutcome::Exited { code: 3, output: "green\n".into() });
    let outcome = device.runtime.exec(&run("sleep 600", Duration::from_millis(50))).await.unwrap();
    assert_eq!(outcome, ExecOutcome::TimedOut);
}

#[tokio::test]
async fn a_shim_is_small() {
    let device = Device::boot().await;
    device.sandbox(0).await;
    device.start(&shell("app", "exec sleep 600")).await;
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", device.shim_file().shim.pid)).unwrap();
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Dirty file pages are the linker's, not yet written back; what the shim itself needs is anonymous. Debug builds have large
    // relocated tables in it.
    assert!(kib("Anonymous:") < 2048, "{rollup}");
}

fn mount(source: &Path, destination: &Path, read_only: bool) -> Mount {
    Mount { source: source.to_owned(), destination: destination.to_str().unwrap().into(), read_only }
}

/// As root in a mount namespace, as anybody else with a user namespace around it.
#[tokio::test]
async fn processes_have_mounts_of_their_own_and_leave_the_hosts_alone() {
    let mut device = Device::boot().await;
    if let Err(why) = &device.runtime.facilities().process_mounts {
        return skip(why);
    }
    device.sandbox(0).await;
    let folder = device.folder.path().to_owned();
    fs::create_dir_all(folder.join("volume")).unwrap();
    fs::create_dir_all(folder.join("there")).unwrap();
    fs::write(folder.join("volume/file"), "in the volume\n").unwrap();
    let (there, made) = (folder.join("there"), folder.join("not/yet/there"));
    let script = format!(
        "cat {0}/file {1}/file {0}/one; touch {0}/no || echo refused; echo out > {1}/out; echo up; trap 'exit 6' TERM; \
         while :; do sleep 0.05; done",
        there.display(),
        made.display()
    );
    let mut config = shell("app", &script);
    config.mounts = vec![mount(&folder.join("volume"), &there, true), mount(&folder.join("volume"), &made, false)];
    fs::write(folder.join("volume/one"), "").unwrap();
    device.start(&config).await;
    device.printed("app", "up").await;
    let texts: Vec<String> = device.log("app", 0).into_iter().map(|(_, _, text)| text).collect();
    assert_eq!(texts.iter().filter(|text| *text == "in the volume").count(), 2, "{texts:?}");
    assert!(texts.contains(&"refused".to_owned()), "{texts:?}");
    assert_eq!(fs::read_to_string(folder.join("volume/out")).unwrap(), "out\n");
    assert!(!there.join("file").exists(), "the host sees the mount");
    // A probe runs where the process does.
    let probe = ExecRequest {
        pod_uid: device.uid.clone(),
        container: "app".into(),
        argv: vec!["cat".into(), there.join("file").to_str().unwrap().into()],
        env: config.env.clone(),
        working_dir: "/".into(),
        timeout: LIMIT,
    };
    let seen = device.runtime.exec(&probe).await.unwrap();
    assert_eq!(seen, ExecOutcome::Exited { code: 0, output: "in the volume\n".into() });
    device.runtime.stop_container(&device.uid, "app", 0, LIMIT).await.unwrap();
    assert_eq!(device.exit_of("app").await.code, 6);
    assert!(!folder.join("not").exists(), "mount points that were made for it are left");
    assert!(there.exists());
    // What cannot be mounted is an end that says so.
    let mut wrong = shell("wrong", "true");
    wrong.mounts = vec![mount(Path::new("/no/such/source"), &there, true)];
    device.start(&wrong).await;
    let exit = device.exit_of("wrong").await;
    assert!(exit.code == 128 && exit.message.contains("/no/such/source"), "{exit:?}");
}

#[tokio::test]
async fn processes_are_limited_and_become_who_they_should_be() {
    let mut device = Device::boot().await;
    let limits = &device.runtime.facilities().limits;
    if !limits.memory || !nix::unistd::Uid::effective().is_root() {
        return skip(&format!("root and cgroups: {}", limits.why));
    }
    device.sandbox(0).await;
    let mut hungry = shell("hungry", "tail /dev/zero");
    hungry.resources.memory_bytes_max = Some(32 << 20);
    device.start(&hungry).await;
    let exit = device.exit_of("hungry").await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    let mut served = shell("served", "exec sleep 600");
    (served.run_as_user, served.run_as_group) = (Some(1234), Some(1235));
    device.start(&served).await;
    let probe = ExecRequest {
        pod_uid: device.uid.clone(),
        container: "served".into(),
        argv: ["sh", "-c", "id -u; id -G"].map(str::to_owned).to_vec(),
        env: served.env.clone(),
        working_dir: "/".into(),
        timeout: LIMIT,
    };
    let seen = device.runtime.exec(&probe).await.unwrap();
    assert_eq!(seen, ExecOutcome::Exited { code: 0, output: "1234\n1235\n".into() }, "a probe is no way to be root");
    let mut other = shell("other", "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status");
    (other.run_as_user, other.run_as_group, other.supplemental_groups) = (Some(1234), Some(1235), vec![1236, 1237]);
    other.security.no_new_privileges = true;
    device.start(&other).await;
    assert_eq!(device.exit_of("other").await.code, 0);
    let texts: Vec<String> = device.log("other", 0).into_iter().map(|(_, _, text)| text).collect();
    assert_eq!(texts, ["1234", "1235", "1235 1236 1237", "NoNewPrivs:\t1"]);
    let mut missing = shell("missing", "true");
    missing.resources.pids_max = Some(5);
    missing.working_dir = "/no/such/folder".into();
    device.start(&missing).await;
    assert_eq!(device.exit_of("missing").await.reason, "StartError");
    let cgroups = device.shim_file().setup.cgroups.unwrap();
    device.runtime.remove_sandbox(&device.uid).await.unwrap();
    assert!(!cgroups.exists(), "cgroups are left");
}

/// Past the test runner, which keeps what a passing test prints to itself.
fn skip(reason: &str) {
    assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "needed here but missing: {reason}");
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {reason}\n")).unwrap();
}
