//! What containers see, may do and may use.

use super::*;

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
        let late = run("sleep 6545 & sleep 6543", Duration::from_millis(500));
        assert_eq!(device.runtime.exec(&late).await.unwrap(), ExecOutcome::TimedOut);
        wait::until("the end of the late command", || !running("6543") && !running("6545")).await;
        device.runtime.stop_container(&device.uid, "app", 0, LIMIT).await.unwrap();
        assert_eq!(device.exit_of("app").await.code, 4, "its own end of TERM");
        device.remove_and_search().await;
    }
}

/// It forks without end, and its limits leave it hardly a processor to die on.
#[tokio::test]
async fn a_fork_bomb_can_be_stopped() {
    for oci in runtimes() {
        let mut device = Device::boot(oci).await;
        device.sandbox(0).await;
        let script = "trap '' TERM; echo up; (f() { f | f & f; }; f) 2>&- & while :; do :; done";
        let mut bomb = device.shell("bomb", script);
        bomb.resources = Resources { cpu_quota_us: Some(10_000), pids_max: Some(400), ..Resources::default() };
        device.start(&bomb).await;
        device.printed("bomb", "up").await;
        device.runtime.stop_container(&device.uid, "bomb", 0, Duration::from_millis(500)).await.unwrap();
        assert_eq!(device.exit_of("bomb").await.signal, Some(9), "{oci}");
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
