//! The bundle of an OCI container: `config.json` as the OCI runtime specification 1.0 has it. Pure.
//!
//! Owns what a container gets: namespaces, mounts, capabilities, limits; containerd's defaults, so that images behave as they do
//! in Kubernetes. Refuses to know where it runs: that is [`Surroundings`]. Start reading at [`config`].

use std::path::Path;

use serde_json::{Value, json};

use super::{ContainerConfig, Resources, Security};
use crate::shim::proc_table::MARK;

pub mod capabilities;
mod seccomp;

/// What of the device and the pod a container's config depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings<'a> {
    pub pod_uid: &'a str,
    /// The process whose IPC and UTS namespaces are the pod's.
    pub holder: i32,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// From the root of each hierarchy; `None` where cgroups cannot be used.
    pub cgroup: Option<&'a str>,
    pub is_cgroup_v2: bool,
    /// Files of the pod's own, as (file, destination); a volume at the same place wins.
    pub files: &'a [(&'a Path, &'a str)],
    /// Capabilities this process itself may have, without `CAP_`.
    pub own_capabilities: &'a [&'static str],
    /// `uname -m`: names the system calls' architecture.
    pub architecture: &'a str,
}

/// `config.json` of a container whose root directory is `rootfs` beside it. `None` without [`ContainerConfig::root`].
pub fn config(container: &ContainerConfig, around: &Surroundings<'_>) -> Option<Value> {
    let root = container.root.as_ref()?;
    let security = &container.security;
    let mut linux = json!({
        "namespaces": namespaces(around),
        "resources": resources(&container.resources, security, around),
        "maskedPaths": if security.privileged { &[][..] } else { &MASKED[..] },
        "readonlyPaths": if security.privileged { &[][..] } else { &READ_ONLY[..] },
    });
    if let Some(path) = around.cgroup {
        linux["cgroupsPath"] = path.into();
    }
    if security.seccomp_default {
        let granted = capabilities::of(security, around.own_capabilities);
        linux["seccomp"] = seccomp::profile(around.architecture, &granted);
    }
    Some(json!({
        "ociVersion": "1.0.2",
        "process": process(container, around),
        "root": {"path": "rootfs", "readonly": root.read_only},
        "mounts": mounts(container, around),
        "linux": linux,
    }))
}

fn process(container: &ContainerConfig, around: &Surroundings<'_>) -> Value {
    let security = &container.security;
    let granted: Vec<String> =
        capabilities::of(security, around.own_capabilities).into_iter().map(|name| format!("CAP_{name}")).collect();
    let mut env: Vec<String> = container.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.push(format!("{MARK}={}/{}/{}", around.pod_uid, container.name, container.attempt));
    let user = container.run_as_user.unwrap_or(0);
    // As somebody else than root nothing is effective or inherited until a program asks for it, as containerd has it.
    let effective = if user == 0 { granted.clone() } else { Vec::new() };
    json!({
        "terminal": false,
        "user": {
            "uid": user,
            "gid": container.run_as_group.unwrap_or(0),
            "additionalGids": container.supplemental_groups,
        },
        "args": container.argv,
        "env": env,
        "cwd": container.working_dir,
        "noNewPrivileges": security.no_new_privileges,
        "capabilities": {"bounding": granted, "permitted": effective, "effective": effective},
    })
}

/// The pod's own IPC and UTS namespaces are those of the process that starts its containers.
fn namespaces(around: &Surroundings<'_>) -> Value {
    let mut all = vec![json!({"type": "mount"})];
    let held = |kind: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{kind}", around.holder)});
    if !around.host_pid {
        all.push(json!({"type": "pid"}));
    }
    all.push(held("uts"));
    if !around.host_ipc {
        all.push(held("ipc"));
    }
    if around.is_cgroup_v2 {
        all.push(json!({"type": "cgroup"}));
    }
    all.into()
}

fn resources(limits: &Resources, security: &Security, around: &Surroundings<'_>) -> Value {
    let mut value = json!({"devices": devices(security)});
    if around.cgroup.is_none() {
        return value;
    }
    if let Some(bytes) = limits.memory_bytes_max {
        value["memory"] = json!({"limit": bytes});
        if around.is_cgroup_v2 {
            // The end of one process for want of memory is the end of its container, as for kubelet.
            value["unified"] = json!({"memory.oom.group": "1"});
        }
    }
    let mut cpu = json!({});
    if let Some(shares) = limits.cpu_shares {
        cpu["shares"] = shares.into();
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu["quota"] = quota.into();
        cpu["period"] = Resources::CPU_PERIOD_US.into();
    }
    if cpu.as_object().is_some_and(|cpu| !cpu.is_empty()) {
        value["cpu"] = cpu;
    }
    if let Some(pids) = limits.pids_max {
        value["pids"] = json!({"limit": pids});
    }
    value
}

/// What the devices cgroup lets through; the runtimes add the standard nodes themselves.
fn devices(security: &Security) -> Value {
    json!([{"allow": security.privileged, "access": "rwm"}])
}

fn mounts(container: &ContainerConfig, around: &Surroundings<'_>) -> Value {
    let access = |read_only: bool| if read_only { "ro" } else { "rw" };
    let system = access(!container.security.privileged);
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", system]),
    ];
    if around.cgroup.is_some() {
        all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", system]));
    }
    if container.security.privileged {
        all.retain(|one| one["destination"] != "/dev");
        all.insert(1, mount("/dev", "bind", "/dev", &["rbind", "rprivate", "rw"]));
        // They are part of the host's.
        all.retain(|one| !["/dev/pts", "/dev/mqueue", "/dev/shm"].contains(&one["destination"].as_str().unwrap_or("")));
    }
    // A volume in place of a standard mount replaces it: mounted before, it would be hidden.
    let is_volume =
        |place: &str| container.mounts.iter().any(|volume| volume.destination.trim_end_matches('/') == place);
    all.retain(|one| !is_volume(one["destination"].as_str().unwrap_or("")));
    for (file, place) in around.files.iter().filter(|(_, place)| !is_volume(place)) {
        let read_only = access(container.root.as_ref().is_some_and(|root| root.read_only));
        all.push(mount(place, "bind", &file.to_string_lossy(), &["rbind", "rprivate", read_only]));
    }
    for volume in &container.mounts {
        let options = ["rbind", "rprivate", access(volume.read_only)];
        all.push(mount(&volume.destination, "bind", &volume.source.to_string_lossy(), &options));
    }
    all.into()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// What a container shall not see, and not write (containerd's and Docker's defaults).
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
