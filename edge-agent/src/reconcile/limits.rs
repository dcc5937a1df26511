//! What a container may use and may do, read from its manifest as kubelet reads it (pkg/kubelet/kuberuntime, `convert` and
//! `cm/helpers_linux.go`), and brought down to what this device has.

use flotilla_manifests::quantity::Quantity;
use serde_json::{Value, json};

use super::pod::{security as field, text};
use crate::runtime::{Facilities, Resources, Rootfs, Security};

/// The least the kernel takes as a quota.
const QUOTA_US_MIN: u64 = 1000;
/// Bounds of a weight in cgroup v1.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

/// Processes and threads of one OCI container: one that forks without end must not take the device's last.
const PIDS_LEN_MAX: u32 = 4096;

/// A container's limits on this device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) resources: Resources,
    /// What was asked for beyond what the machine has, for an Event.
    pub(super) clamped: Vec<String>,
    /// Limits that the kernel cannot be asked to keep here: `memory`, `cpu`.
    pub(super) unenforced: Vec<&'static str>,
}

/// `resources` of a container.
pub(super) fn resources(container: &Value, facilities: &Facilities) -> Wish {
    let name = text(container, "name");
    let amount = |list: &str, resource: &str| {
        let value = Quantity::of_json(container.get("resources")?.get(list)?.get(resource)?).ok()?;
        Some(value).filter(|value| !value.is_zero())
    };
    let mut wish = Wish::default();
    if let Some(limit) = amount("limits", "memory") {
        let asked = u64::try_from(limit.units()).unwrap_or(0);
        let bytes = wish.clamp(name, "memory", asked, facilities.memory_bytes);
        wish.resources.memory_bytes_max = wish.enforce("memory", facilities.limits.memory).then_some(bytes);
    }
    let cpu = amount("limits", "cpu").map(|limit| u64::try_from(limit.milli()).unwrap_or(0));
    if let Some(asked) = cpu {
        let milli = wish.clamp(name, "cpu", asked, facilities.cpu_milli);
        let quota = milli.saturating_mul(Resources::CPU_PERIOD_US) / 1000;
        wish.resources.cpu_quota_us = wish.enforce("cpu", facilities.limits.cpu).then_some(quota.max(QUOTA_US_MIN));
    }
    // A weight is no promise: where it cannot be given, nothing is said.
    let request = Some(())
        .filter(|()| facilities.limits.cpu)
        .and_then(|()| amount("requests", "cpu"))
        .map(|request| u64::try_from(request.milli()).unwrap_or(0))
        .or(cpu.filter(|_| facilities.limits.cpu));
    wish.resources.cpu_shares = request.map(|milli| (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX));
    wish
}

/// What a container is started with. A process of the host has no bound that its manifest does not ask for.
pub(super) fn of_start(container: &Value, root: Option<&Rootfs>, facilities: &Facilities) -> Resources {
    let pids_max = root.filter(|_| facilities.limits.pids).map(|_| PIDS_LEN_MAX);
    Resources { pids_max, ..resources(container, facilities).resources }
}

impl Wish {
    fn clamp(&mut self, container: &str, resource: &str, asked: u64, there_is: u64) -> u64 {
        if there_is == 0 || asked <= there_is {
            return asked;
        }
        let shown = |amount: u64| if resource == "cpu" { format!("{amount}m") } else { format!("{amount} bytes") };
        self.clamped.push(format!(
            "container {container} has a {resource} limit of {}, and this device has {}: that is its limit here",
            shown(asked),
            shown(there_is)
        ));
        there_is
    }

    /// Returns whether it can be.
    fn enforce(&mut self, resource: &'static str, possible: bool) -> bool {
        if !possible {
            self.unenforced.push(resource);
        }
        possible
    }
}

/// `securityContext` of a container, its own before the pod's.
pub(super) fn security(pod_spec: &Value, container: &Value) -> Security {
    let own = container.get("securityContext");
    let flag = |name: &str| own.and_then(|own| own.get(name)).and_then(Value::as_bool);
    let names = |list: &str| -> Vec<String> {
        let named = own.and_then(|own| own.get("capabilities")?.get(list)?.as_array());
        let names = named.into_iter().flatten().filter_map(Value::as_str);
        names.map(|name| name.trim_start_matches("CAP_").to_ascii_uppercase()).collect()
    };
    let profile = field(pod_spec, container, "seccompProfile").map_or("", |profile| text(profile, "type"));
    let privileged = flag("privileged").unwrap_or(false);
    Security {
        privileged,
        no_new_privileges: flag("allowPrivilegeEscalation") == Some(false),
        added_capabilities: names("add"),
        dropped_capabilities: names("drop"),
        seccomp_default: profile == "RuntimeDefault" && !privileged,
    }
}

/// `runAsNonRoot`: why the container may not start as this user, if so.
pub(super) fn root_is_refused(pod_spec: &Value, container: &Value, user: u32) -> Option<String> {
    let asked = field(pod_spec, container, "runAsNonRoot").and_then(Value::as_bool).unwrap_or(false);
    (asked && user == 0).then(|| {
        let name = text(container, "name");
        format!("container {name:?} has runAsNonRoot and would run as root: set runAsUser, or use an image with a user")
    })
}

/// What of an OCI container's definition is beyond the first form of [`container_digest`](super::pod::container_digest).
pub(super) fn digest_form(pod_spec: &Value, container: &Value) -> Value {
    let security = security(pod_spec, container);
    let read_only = container.get("securityContext").and_then(|own| own.get("readOnlyRootFilesystem"));
    json!([
        security,
        read_only.and_then(Value::as_bool).unwrap_or(false),
        field(pod_spec, container, "runAsNonRoot"),
        container.get("resources").and_then(|resources| resources.get("limits")),
        container.get("resources").and_then(|resources| resources.get("requests")),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::runtime::Limits;

    fn facilities() -> Facilities {
        let limits = Limits { cpu: true, memory: true, pids: true, why: String::new() };
        Facilities { limits, cpu_milli: 2000, memory_bytes: 1 << 30, ..Facilities::default() }
    }

    fn wish(resources: Value, facilities: &Facilities) -> Wish {
        super::resources(&json!({"name": "app", "resources": resources}), facilities)
    }

    #[test]
    fn limits_are_converted_as_kubelet_does() {
        let limited = |memory: Option<u64>, shares: Option<u64>, quota: Option<u64>| Resources {
            memory_bytes_max: memory,
            cpu_shares: shares,
            cpu_quota_us: quota,
            pids_max: None,
        };
        let cases = [
            (json!({}), limited(None, None, None)),
            (json!({"limits": {"memory": "64Mi", "cpu": "500m"}}), limited(Some(64 << 20), Some(512), Some(50_000))),
            (json!({"limits": {"cpu": 1}, "requests": {"cpu": "100m"}}), limited(None, Some(102), Some(100_000))),
            (json!({"requests": {"cpu": "1m", "memory": "1Gi"}}), limited(None, Some(2), None)),
            (json!({"limits": {"cpu": "1m"}}), limited(None, Some(2), Some(1000))),
            (json!({"limits": {"cpu": "0", "memory": 0}}), limited(None, None, None)),
        ];
        for (resources, expected) in cases {
            assert_eq!(wish(resources.clone(), &facilities()).resources, expected, "{resources}");
        }
    }

    #[test]
    fn the_processes_of_a_container_are_bounded() {
        let root = Rootfs { image: "a".into(), image_digest: String::new(), lower_dirs: Vec::new(), read_only: false };
        let bound = |root, facilities: &Facilities| of_start(&json!({"name": "app"}), root, facilities).pids_max;
        assert_eq!(bound(Some(&root), &facilities()), Some(4096));
        assert_eq!(bound(Some(&root), &Facilities::default()), None, "nobody would keep it");
        assert_eq!(bound(None, &facilities()), None);
    }

    #[test]
    fn what_the_machine_does_not_have_is_clamped_and_said() {
        let wish = wish(json!({"limits": {"memory": "8Gi", "cpu": 64}}), &facilities());
        assert_eq!((wish.resources.memory_bytes_max, wish.resources.cpu_quota_us), (Some(1 << 30), Some(200_000)));
        assert_eq!(wish.clamped.len(), 2);
        assert!(wish.clamped[1].contains("cpu limit of 64000m, and this device has 2000m"), "{:?}", wish.clamped);
    }

    #[test]
    fn limits_that_nobody_keeps_are_named_and_not_asked_for() {
        let none = Facilities { limits: Limits { cpu: true, ..Limits::default() }, ..facilities() };
        let some = wish(json!({"limits": {"memory": "64Mi", "cpu": 1}}), &none);
        assert_eq!((some.unenforced.as_slice(), some.resources.memory_bytes_max), (&["memory"][..], None));
        assert!(some.resources.cpu_quota_us.is_some());
        let requests = wish(json!({"requests": {"cpu": 1}}), &Facilities::default());
        assert_eq!(
            (requests.unenforced.len(), requests.resources),
            (0, Resources::default()),
            "a weight is no promise"
        );
    }

    #[test]
    fn the_containers_own_security_comes_before_the_pods() {
        let pod = json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": true}});
        let container = json!({"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
            "capabilities": {"add": ["CAP_NET_ADMIN", "sys_time"], "drop": ["ALL"]}}});
        let told = security(&pod, &container);
        assert!(told.seccomp_default && told.no_new_privileges && !told.privileged);
        assert_eq!(
            (told.added_capabilities, told.dropped_capabilities),
            (vec!["NET_ADMIN".into(), "SYS_TIME".into()], vec!["ALL".into()])
        );
        assert!(root_is_refused(&pod, &container, 0).unwrap().contains("runAsNonRoot"));
        assert_eq!(root_is_refused(&pod, &container, 7), None);
        let privileged = json!({"name": "a", "securityContext": {"privileged": true, "runAsNonRoot": false}});
        assert!(!security(&pod, &privileged).seccomp_default && root_is_refused(&pod, &privileged, 0).is_none());
    }
}
