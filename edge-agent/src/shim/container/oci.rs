//! A container made by an OCI runtime.
//!
//! One process makes it: the stage mounts the image's layers in a mount namespace of its own and becomes `crun run --detach`. The
//! container's namespace is a copy, so the mount lives exactly as long as the container, and the host never sees it. The
//! container's first process becomes this shim's child when the runtime ends (the shim is a subreaper): its exit is ours to see, and
//! signals are sent to it directly. What the runtime keeps is a folder and a cgroup, which are removed as folders and as a cgroup, so
//! that no verb but `run` and `exec` is needed, not even when the runtime is gone from the device.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::wait::WaitStatus;

use super::{Container, Launch, Launched, Pod, identify, pipe, spawn_unmasked, start_error, taken};
use crate::runtime::oci::{Surroundings, capabilities, config as bundle_config};
use crate::runtime::{ContainerConfig, Rootfs};
use crate::shim::files::{self, OciSetup};
use crate::shim::proc_table::MARK;
use crate::stage::{Namespace, Overlay, Spec};

/// From starting the OCI runtime to its end; below the agent's patience with an answer.
const LAUNCH_MS_MAX: u64 = 20_000;
/// What the runtime may have to say.
const MESSAGE_CHARS_MAX: usize = 1000;
/// Files of `/etc` that every container of the pod sees.
pub(super) const ETC: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

impl Container {
    /// Writes the bundle and starts the OCI runtime; [`Container::launched`] follows when that has ended.
    pub(super) fn launch(&mut self, pod: &Pod<'_>, config: &ContainerConfig) -> Result<(), String> {
        let setup = pod.setup.oci.as_ref().ok_or("the sandbox was made without an OCI runtime")?;
        let root = config.root.as_ref().ok_or("the container has no root")?;
        let id = files::container_id(&config.name, config.attempt);
        let dir = files::root_path(pod.dir, &config.name, config.attempt);
        let state = files::oci_state_path(pod.dir);
        self.leavings.folders = vec![dir.clone(), state.join(&id)];
        self.leavings.cgroup = pod.setup.cgroups.as_ref().map(|pod| pod.child(&id));
        let launched = self.begin(pod, config, setup, root, &id, &dir, &state);
        if launched.is_err() {
            drop(fs::remove_dir_all(&dir));
        }
        launched
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call site: the four paths and names are made there, to be removed there"
    )]
    fn begin(
        &mut self,
        pod: &Pod<'_>,
        config: &ContainerConfig,
        setup: &OciSetup,
        root: &Rootfs,
        id: &str,
        dir: &Path,
        state: &Path,
    ) -> Result<(), String> {
        make_bundle(dir, root).map_err(|error| format!("could not prepare {}: {error}", dir.display()))?;
        write_config(pod, config, dir, self.leavings.cgroup.as_ref().map(|cgroup| cgroup.path.as_str()))?;
        let launch_files = LaunchFiles::below(dir);
        let spec = Spec {
            namespace: Namespace::Mount,
            hidden: setup.hidden.clone(),
            covered: setup.covered.clone(),
            overlay: Some(Overlay {
                dir: dir.to_owned(),
                layers: root.lower_dirs.len(),
                memory_bytes_max: setup.memory_bytes_max,
            }),
            program: setup.program.clone(),
            argv: words(setup, self.leavings.cgroup.is_some(), state, &launch_files, dir, id),
            complaint: Some(launch_files.complaint.clone()),
            ..Spec::default()
        };
        let (out, out_end) = pipe()?;
        let (err, err_end) = pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.args(spec.words()?).env_clear().process_group(0);
        // Whatever is left of a failed launch is found by it.
        command.env(MARK, format!("{}/{}/{}", pod.sandbox.uid, config.name, config.attempt));
        command.stdin(Stdio::null()).stdout(out_end).stderr(err_end);
        let pid = spawn_unmasked(&mut command).map_err(|error| format!("could not start the stage: {error}"))?;
        self.pipes = [Some(out), Some(err)];
        self.launch = Some(Launch {
            pid,
            give_up_at: crate::shim::instant() + Duration::from_millis(LAUNCH_MS_MAX),
            given_up: false,
            pid_file: launch_files.pid,
            complaint: launch_files.complaint,
            log: launch_files.log,
        });
        Ok(())
    }

    /// The OCI runtime has ended: the container runs, or has failed to.
    pub(in crate::shim) fn launched(&mut self, status: WaitStatus) -> Launched {
        let Some(launch) = self.launch.take() else { return Launched::Failed("it was not being launched".into()) };
        let outcome = outcome(&launch, status);
        match &outcome {
            Launched::Runs(process) => {
                self.record.process = Some(*process);
                self.record.started_at = crate::shim::clock();
                if self.record.stopping {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), self.stop_signal).ok();
                }
            }
            // What is in the pipes is the runtime's: it is told as the message.
            Launched::Ended(_) | Launched::Failed(_) => self.pipes = [None, None],
        }
        outcome
    }
}

fn outcome(launch: &Launch, status: WaitStatus) -> Launched {
    if launch.given_up {
        return Launched::Failed(format!("the OCI runtime had made nothing after {LAUNCH_MS_MAX} ms, and was killed"));
    }
    if let Some(message) = taken(&launch.complaint) {
        return Launched::Failed(message);
    }
    if let WaitStatus::Signaled(_, signal, _) = status {
        // Killed from outside, or for want of memory: that says nothing about the container.
        return Launched::Failed(format!("the OCI runtime was ended by {signal} while it made the container"));
    }
    if status != WaitStatus::Exited(nix::unistd::Pid::from_raw(launch.pid), 0) {
        let said = fs::read_to_string(&launch.log).unwrap_or_default();
        let message =
            last_error(&said).unwrap_or_else(|| format!("the OCI runtime ended with {status:?} and said nothing"));
        return Launched::Ended(start_error(&message, crate::shim::clock()));
    }
    let pid = fs::read_to_string(&launch.pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match pid.filter(|&pid| pid > 1) {
        Some(pid) => Launched::Runs(identify(pid)),
        None => Launched::Failed(format!("the OCI runtime left no process id in {}", launch.pid_file.display())),
    }
}

/// The message of the last line of a runtime's log, which is JSON.
fn last_error(log: &str) -> Option<String> {
    let message =
        |line: &str| Some(serde_json::from_str::<serde_json::Value>(line).ok()?.get("msg")?.as_str()?.to_owned());
    let text = log.lines().rev().find_map(message)?;
    Some(text.chars().take(MESSAGE_CHARS_MAX).collect())
}

struct LaunchFiles {
    pid: PathBuf,
    log: PathBuf,
    complaint: PathBuf,
}

impl LaunchFiles {
    fn below(dir: &Path) -> Self {
        Self { pid: dir.join("pid"), log: dir.join("log"), complaint: dir.join("complaint") }
    }
}

/// `crun run --detach ...`
fn words(
    setup: &OciSetup,
    has_cgroup: bool,
    state: &Path,
    launch: &LaunchFiles,
    bundle: &Path,
    id: &str,
) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = global_words(setup, has_cgroup, state);
    words.extend(["--log", &path(&launch.log), "--log-format", "json", "run", "--detach"].map(str::to_owned));
    words.extend(["--pid-file", &path(&launch.pid), "--bundle", &path(bundle), id].map(str::to_owned));
    words
}

/// What stands before a runtime's verb.
pub(crate) fn global_words(setup: &OciSetup, has_cgroup: bool, state: &Path) -> Vec<String> {
    let mut words = vec![setup.name.clone(), "--root".to_owned(), state.to_string_lossy().into_owned()];
    if setup.name == "crun" {
        words.push(format!("--cgroup-manager={}", if has_cgroup { "cgroupfs" } else { "disabled" }));
    }
    words
}

/// The folders of an overlay; what was there of an earlier try goes.
fn make_bundle(dir: &Path, root: &Rootfs) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The config holds the environment, so perhaps secrets.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for name in ["upper", "work", "rootfs", "memory"] {
        fs::create_dir(dir.join(name))?;
    }
    // The root directory of the container has the mode of its upper layer.
    fs::set_permissions(dir.join("upper"), fs::Permissions::from_mode(0o755))?;
    for (index, layer) in root.lower_dirs.iter().enumerate() {
        std::os::unix::fs::symlink(layer, dir.join(format!("l{index}")))?;
    }
    Ok(())
}

fn write_config(pod: &Pod<'_>, config: &ContainerConfig, dir: &Path, cgroup: Option<&str>) -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let etc = ETC.map(|name| (files::etc_path(pod.dir, name), format!("/etc/{name}")));
    let etc: Vec<(&Path, &str)> = etc.iter().map(|(file, place)| (file.as_path(), place.as_str())).collect();
    let layout = pod.setup.cgroups.as_ref().map(|tree| &tree.layout);
    let around = Surroundings {
        pod_uid: &pod.sandbox.uid,
        holder: pod.me.pid,
        host_pid: pod.sandbox.host_pid,
        host_ipc: pod.sandbox.host_ipc,
        cgroup,
        is_cgroup_v2: matches!(layout, Some(crate::cgroup::Layout::V2 { .. })),
        files: &etc,
        own_capabilities: &capabilities::bounding(&status),
        architecture: std::env::consts::ARCH,
    };
    let value = bundle_config(config, &around).ok_or("the container has no root")?;
    let path = dir.join("config.json");
    let text = serde_json::to_vec(&value).map_err(|error| error.to_string())?;
    fs::write(&path, &text).map_err(|error| format!("could not write {}: {error}", path.display()))
}
