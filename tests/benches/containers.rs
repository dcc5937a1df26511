//! Real containers: from the apply to Running beside a bare `crun run` of the same image, and a whole device back after a reboot.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::{process_path, wait};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::api::Server;
use crate::device::{all_ready, connected, workload};
use crate::latency::Bench;
use crate::report::{Report, percentile};
use crate::say;

const SAMPLES: usize = 30;
const PODS: usize = 20;

/// Measures, where there is crun and root; says so where not.
pub(crate) fn measure(binary: &str, report: &mut Report) {
    let Some(crun) = process_path("crun").filter(|_| geteuid().is_root() && process_path("busybox").is_some()) else {
        say("SKIPPED: containers need root, crun and busybox-static");
        return;
    };
    beside_bare(binary, &crun, report);
    reboot(binary, report);
}

/// The same command of the same files, by the agent and by crun alone, in turn.
fn beside_bare(binary: &str, crun: &Path, report: &mut Report) {
    let mut fleet = Fleet::start_with(binary, Road::Quic, Containers::Oci, &[]);
    fleet.join("n1", &[]);
    let bare = Bare::prepare(crun, fleet.folder());
    let mut bench = Bench::of(&fleet, 1, Containers::Oci);
    bench.one();
    bare.run_ms();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        ours.push(bench.one());
        theirs.push(bare.run_ms());
    }
    report.spread("container: apply -> Running, DaemonSet on one device", &ours, "ms", Some(100.0));
    report.spread("bare `crun run` of the same -> first output", &theirs, "ms", None);
    let ratio = percentile(&ours, 50.0) / percentile(&theirs, 50.0);
    report.add("  apply -> Running, in bare `crun run`s", ratio, "x");
}

/// A bundle that crun runs without us.
struct Bare {
    crun: PathBuf,
    bundle: PathBuf,
    state: PathBuf,
}

impl Bare {
    fn prepare(crun: &Path, folder: &Path) -> Self {
        let bundle = folder.join("bare");
        let bin = bundle.join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        let busybox = process_path("busybox").unwrap();
        std::fs::copy(busybox, bin.join("busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", bin.join("sh")).unwrap();
        assert!(Command::new(crun).arg("spec").current_dir(&bundle).status().unwrap().success());
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", "echo up"]);
        // As the agent's containers: the network of the machine.
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
        std::fs::write(&path, config.to_string()).unwrap();
        Self { crun: crun.to_owned(), bundle, state: folder.join("bare-state") }
    }

    /// Milliseconds from the start of crun to the container's first line. crun wants one kind of control groups only: where both
    /// are mounted, it gets a mount namespace in which the second is hidden, as the agent's containers do.
    fn run_ms(&self) -> f64 {
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let begun = Instant::now();
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(&self.crun)
            .args(["--cgroup-manager=cgroupfs", "--root"])
            .arg(&self.state)
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg("bare")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let took = begun.elapsed();
        assert_eq!(line, "up\n", "the bare container said something else");
        assert!(child.wait().unwrap().success());
        took.as_secs_f64() * 1000.0
    }
}

/// A device with 20 containers, without a hub: everything of it ends, and the agent starts.
fn reboot(binary: &str, report: &mut Report) {
    let mut fleet = Fleet::start_with(binary, Road::Quic, Containers::Oci, &[]);
    fleet.join("n1", &[]);
    let mut api = Server::of(&fleet.hub_folder().join("admin.kubeconfig")).unwrap().connect().unwrap();
    let body = workload("Deployment", "idle", Containers::Oci);
    api.request("POST", "/apis/apps/v1/namespaces/default/deployments", "application/json", Some(&body));
    wait::until("20 running containers", || all_ready(&api.get("/api/v1/namespaces/default/pods"), PODS));
    fleet.kill_hub();
    fleet.reboot("n1");
    let begun = Instant::now();
    fleet.start_agent("n1", &[]);
    let kubeconfig = fleet.agent_folder("n1").join("local.kubeconfig");
    let mut local = wait::until("the device's own API", || connected(&kubeconfig));
    wait::until("all containers run again", || all_ready(&local.get("/api/v1/pods"), PODS));
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    report.add_with_aim("agent start -> 20 containers Running again, no hub", took, "ms", 1000.0);
}
