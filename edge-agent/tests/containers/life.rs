//! From start to end, through the death of everybody involved.

use super::*;

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
            wait::until("the end of the cgroup", || cgroup.remove().is_ok()).await;
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
async fn what_a_container_wrote_goes_without_holding_anybody_up() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let script = "i=0; while [ $i -lt 600 ]; do echo x > /f$i; i=$((i+1)); done; echo done";
        device.start(&device.shell("writes", script)).await;
        assert_eq!(device.exit_of("writes").await.code, 0);
        let root = files::root_path(&device.dir(), "writes", 0);
        wait::until("the removal of what the container wrote", || !root.exists()).await;
        device.remove_and_search().await;
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
        // One process in the end: a shell that waits for another would be two.
        let config = device.shell("app", "echo up; exec sleep 6537");
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
        // While the shell becomes what it runs, it has no environment by which it could be known.
        let sleeps = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"));
        let has_become = timeout(LIMIT, async {
            while !marked(&device.uid).iter().any(sleeps) {
                tokio::task::yield_now().await;
            }
        });
        has_become.await.unwrap();
        assert_eq!(marked(&device.uid).iter().filter(|&&pid| alive(pid)).count(), 1, "{oci}: it was made twice");
        device.remove_and_search().await;
    }
}
