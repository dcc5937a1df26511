//! Devices and OCI runtimes that lack something.

use super::*;

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
    // Killed while it works: no end of the container, and nothing it began goes on.
    make("sleep 6536 & kill -9 $$");
    let error = device.runtime.start_container(&device.uid, &device.shell("killed", "true")).await.unwrap_err();
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert!(!running("6536"), "what the runtime had begun goes on");
    // Hanging: the pod's end ends it too, children included.
    make("sleep 6539 & sleep 6538");
    let (uid, config) = (device.uid.clone(), device.shell("hangs", "true"));
    let start = device.runtime.start_container(&uid, &config);
    let stop = async {
        wait::until("the hanging runtime", || running("6539")).await;
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
        // What has just ended lets go of its files a moment later.
        wait::until("the unmount", || nix::mount::umount(at("merged").as_str()).is_ok()).await;
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
