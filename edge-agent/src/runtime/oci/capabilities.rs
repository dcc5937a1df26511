//! Capabilities of a container (capabilities(7)).

use crate::runtime::Security;

/// By number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// containerd's.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Names in the bounding set of a process, from the text of its `/proc/<pid>/status`.
pub fn bounding(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    ALL.into_iter().enumerate().filter(|(number, _)| bits & (1 << number) != 0).map(|(_, name)| name).collect()
}

/// What a container gets: the default, what is added, without what is dropped, of what we have ourselves. As in kubelet's runtimes
/// `add` comes before `drop` when one of them is `ALL`, and a name that is added stays.
pub fn of(security: &Security, own: &[&'static str]) -> Vec<&'static str> {
    let names = |list: &[String], name: &str| list.iter().any(|one| one == name);
    let (added, dropped) = (&security.added_capabilities, &security.dropped_capabilities);
    let granted = |name: &str| {
        if security.privileged || names(added, name) {
            return true;
        }
        if names(dropped, name) {
            return false;
        }
        names(added, "ALL") || (DEFAULT.contains(&name) && !names(dropped, "ALL"))
    };
    own.iter().copied().filter(|name| granted(name)).collect()
}
