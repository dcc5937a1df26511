//! `seccompProfile: RuntimeDefault`: system calls that reach the kernel itself, or other containers, are refused.
//!
//! A list of what is refused, not of what is allowed as Docker's is: a new kernel's harmless call works without a new agent, and
//! the calls below are the ones that list exists for. Each is allowed with the capability that makes it harmless to allow.

use serde_json::{Value, json};

/// Calls, and the capability with which they stay allowed; empty: never.
const REFUSED: [(&str, &[&str]); 12] = [
    (
        "",
        &[
            "add_key",
            "keyctl",
            "request_key",
            "userfaultfd",
            "nfsservctl",
            "uselib",
            "ustat",
            "sysfs",
            "_sysctl",
            "vm86",
            "vm86old",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
        ],
    ),
    (
        "SYS_ADMIN",
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    (
        "SYS_MODULE",
        &["create_module", "delete_module", "finit_module", "get_kernel_syms", "init_module", "query_module"],
    ),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["adjtimex", "clock_adjtime", "clock_settime", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["mbind", "migrate_pages", "move_pages", "set_mempolicy"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["bpf", "perf_event_open"]),
];

/// `linux.seccomp` for a container with these capabilities.
pub(super) fn profile(architecture: &str, granted: &[&str]) -> Value {
    let names: Vec<&str> = REFUSED
        .iter()
        .filter(|(capability, _)| !granted.contains(capability))
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1})];
    if !granted.contains(&"SYS_ADMIN") {
        // A user namespace would give it all capabilities back, inside. CLONE_NEWUSER; clone3 hides its flags: "not in this kernel".
        let new_user = json!([{"index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": new_user}));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(architecture), "syscalls": rules})
}

fn architectures(machine: &str) -> Value {
    match machine {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        "arm" => json!(["SCMP_ARCH_ARM"]),
        "riscv64" => json!(["SCMP_ARCH_RISCV64"]),
        // The runtime's own.
        _ => json!([]),
    }
}
