use std::collections::BTreeMap;

use super::*;
use crate::runtime::{Mount, Rootfs};

fn container() -> ContainerConfig {
    ContainerConfig {
        name: "app".into(),
        attempt: 2,
        digest: "1:x".into(),
        argv: vec!["sleep".into(), "1".into()],
        env: BTreeMap::from([("PATH".into(), "/bin".into())]),
        working_dir: "/".into(),
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        mounts: Vec::new(),
        root: Some(Rootfs { lower_dirs: vec!["/l".into()], ..Rootfs::default() }),
        stop_signal: None,
        resources: Resources::default(),
        security: Security::default(),
    }
}

const OWN: [&str; 4] = ["CHOWN", "NET_RAW", "NET_ADMIN", "SYS_ADMIN"];

fn around() -> Surroundings<'static> {
    Surroundings {
        pod_uid: "u",
        holder: 77,
        host_pid: false,
        host_ipc: false,
        cgroup: Some("/flotilla/ab/u/app-2"),
        is_cgroup_v2: false,
        files: &[],
        own_capabilities: &OWN,
        architecture: "x86_64",
    }
}

fn destinations(config: &Value) -> Vec<&str> {
    config["mounts"].as_array().unwrap().iter().map(|one| one["destination"].as_str().unwrap()).collect()
}

fn kinds(config: &Value) -> Vec<&str> {
    config["linux"]["namespaces"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect()
}

#[test]
fn a_plain_container() {
    let config = config(&container(), &around()).unwrap();
    assert_eq!(kinds(&config), ["mount", "pid", "uts", "ipc"]);
    assert_eq!(config["linux"]["namespaces"][3]["path"], "/proc/77/ns/ipc");
    assert_eq!(config["process"]["env"], json!(["PATH=/bin", "FLOTILLA_CONTAINER=u/app/2"]));
    assert_eq!(config["process"]["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_NET_RAW"]), "of what we have");
    assert_eq!(config["linux"]["cgroupsPath"], "/flotilla/ab/u/app-2");
    assert_eq!(config["linux"]["resources"], json!({"devices": [{"allow": false, "access": "rwm"}]}));
    assert!(config["linux"].get("seccomp").is_none(), "nothing is filtered unless asked for, as in Kubernetes");
    assert!(
        config["process"].get("rlimits").is_none(),
        "our own limits are inherited: others might exceed what we may set"
    );
    assert!(super::config(&ContainerConfig { root: None, ..container() }, &around()).is_none());
}

#[test]
fn namespaces_shared_with_the_host_and_version_2() {
    let around = Surroundings { host_pid: true, host_ipc: true, is_cgroup_v2: true, ..around() };
    let mut limited = container();
    limited.resources = Resources {
        memory_bytes_max: Some(1 << 20),
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        pids_max: Some(9),
    };
    let config = config(&limited, &around).unwrap();
    assert_eq!(kinds(&config), ["mount", "uts", "cgroup"]);
    let resources = &config["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 1 << 20}));
    assert_eq!(resources["unified"], json!({"memory.oom.group": "1"}));
    assert_eq!(resources["cpu"], json!({"shares": 512, "quota": 50_000, "period": 100_000}));
    assert_eq!(resources["pids"], json!({"limit": 9}));
    let nowhere = super::config(&limited, &Surroundings { cgroup: None, ..around }).unwrap();
    assert!(nowhere["linux"]["resources"].get("memory").is_none(), "no limit is asked for where none can be kept");
    assert!(!destinations(&nowhere).contains(&"/sys/fs/cgroup"));
}

#[test]
fn volumes_come_after_the_pods_files_and_replace_what_they_cover() {
    let mut with = container();
    let volume = |source: &str, destination: &str, read_only| Mount {
        source: source.into(),
        destination: destination.into(),
        read_only,
    };
    with.mounts =
        vec![volume("/v/hosts", "/etc/hosts", false), volume("/v/shm", "/dev/shm", false), volume("/v/c", "/c", true)];
    let files = [(Path::new("/p/hosts"), "/etc/hosts"), (Path::new("/p/name"), "/etc/hostname")];
    let config = config(&with, &Surroundings { files: &files, ..around() }).unwrap();
    let places = destinations(&config);
    assert_eq!(places[places.len() - 4..], ["/etc/hostname", "/etc/hosts", "/dev/shm", "/c"]);
    assert_eq!(places.iter().filter(|place| **place == "/dev/shm").count(), 1);
    let last = config["mounts"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["source"], &last["options"]), (&json!("/v/c"), &json!(["rbind", "rprivate", "ro"])));
}

#[test]
fn capabilities_users_and_privilege() {
    let of = |added: &[&str], dropped: &[&str], privileged: bool| {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let security = Security {
            added_capabilities: names(added),
            dropped_capabilities: names(dropped),
            privileged,
            ..Security::default()
        };
        capabilities::of(&security, &OWN)
    };
    assert_eq!(of(&["NET_ADMIN"], &[], false), ["CHOWN", "NET_RAW", "NET_ADMIN"]);
    assert_eq!(of(&["NET_ADMIN"], &["ALL"], false), ["NET_ADMIN"]);
    assert_eq!(of(&["ALL"], &["SYS_ADMIN"], false), ["CHOWN", "NET_RAW", "NET_ADMIN"]);
    assert_eq!(of(&[], &[], true), OWN);
    assert_eq!(of(&["SYS_RESOURCE"], &[], false), ["CHOWN", "NET_RAW"], "we do not have it ourselves");
    assert_eq!(capabilities::bounding("Name:\tx\nCapBnd:\t000001fffeffffff\n").len(), 40);
    let mut other = container();
    other.run_as_user = Some(1000);
    other.security.no_new_privileges = true;
    let process = &config(&other, &around()).unwrap()["process"];
    assert_eq!((&process["capabilities"]["effective"], &process["noNewPrivileges"]), (&json!([]), &json!(true)));
    other.security.privileged = true;
    let config = config(&other, &around()).unwrap();
    assert_eq!(config["linux"]["maskedPaths"], json!([]));
    assert_eq!(config["linux"]["resources"]["devices"][0]["allow"], true);
    assert!(!destinations(&config).contains(&"/dev/shm"), "it is part of the host's /dev");
}

#[test]
fn seccomp_refuses_what_no_capability_allows() {
    let mut filtered = container();
    filtered.security.seccomp_default = true;
    let names = |container: &ContainerConfig| {
        let config = config(container, &around()).unwrap();
        config["linux"]["seccomp"]["syscalls"][0]["names"].to_string()
    };
    let refused = names(&filtered);
    assert!(refused.contains("\"mount\"") && refused.contains("\"keyctl\"") && !refused.contains("\"read\""));
    filtered.security.added_capabilities = vec!["SYS_ADMIN".into()];
    assert!(!names(&filtered).contains("\"mount\"") && names(&filtered).contains("\"keyctl\""));
}
