//! What a container may use and may do, read from its manifest as kubelet reads it (pkg/kubelet/kuberuntime, `convert` and
//! `cm/helpers_linux.go`), and brought down to what this device has.

use flotilla_manifests::quantity::Quantity;
use serde_json::{Value, json};

use super::pod::{security as field, text};
use crate::runtime::{Facilities, Resources, Security};

/// The least the kernel takes as a quota.
const QUOTA_US_MIN: u64 = 1000;
/// Bounds of a weight in cgroup v1.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

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
    let request = Some(()).filter(|()| facilities.limits.cpu).and_then(|()| amount("requests", "cpu")).map(|request| u64::try_from(request.milli()).unwrap_or(0)).or(cpu.filter(|_| facilities.limits.cpu));
    wish.resources.cpu_shares = request.map(|milli| (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX));
    wish
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
