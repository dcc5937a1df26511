//! A pod's spec, as far as a plan reads it. Lenient: what admission let through and nothing here understands is left out.

use serde_json::{Value, json};

use super::{DesiredPod, limits, volume};
use crate::runtime::admission;

/// kubelet's terminationGracePeriodSeconds default.
const GRACE_SECONDS: u32 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the others, ends after them (KEP-753).
    Sidecar,
    Main,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ContainerSpec<'a> {
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) value: &'a Value,
}

#[derive(Debug)]
pub(super) struct PodSpec<'a> {
    pub(super) restart_policy: RestartPolicy,
    pub(super) grace_seconds: u32,
    /// Init containers and sidecars in order, then main containers.
    pub(super) containers: Vec<ContainerSpec<'a>>,
    pub(super) value: &'a Value,
}

impl<'a> PodSpec<'a> {
    pub(super) fn of(pod: &'a DesiredPod) -> Self {
        let value = pod.object.spec().unwrap_or(&Value::Null);
        let restart_policy = match text(value, "restartPolicy") {
            "OnFailure" => RestartPolicy::OnFailure,
            "Never" => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        };
        let grace = value.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
        let grace_seconds = grace.map_or(GRACE_SECONDS, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        let init = list(value, "initContainers").map(|container| {
            let sidecar = text(container, "restartPolicy") == "Always";
            (if sidecar { Role::Sidecar } else { Role::Init }, container)
        });
        let main = list(value, "containers").map(|container| (Role::Main, container));
        let containers = init.chain(main).map(|(role, value)| ContainerSpec { name: text(value, "name"), role, value });
        Self { restart_policy, grace_seconds, containers: containers.collect(), value }
    }

    /// Whether its containers are OCI containers.
    pub(super) fn isolated(&self) -> bool {
        admission::isolated(self.value)
    }

    pub(super) fn hostname<'b>(&'b self, pod_name: &'b str) -> &'b str {
        match text(self.value, "hostname") {
            "" => pod_name,
            hostname => hostname,
        }
    }

    /// The pod's own line of `/etc/hosts`, and those of its `hostAliases`.
    pub(super) fn host_lines(&self, ip: &str, pod_name: &str) -> Vec<String> {
        let own = format!("{ip}\t{}", self.hostname(pod_name));
        let aliases = list(self.value, "hostAliases").map(|alias| {
            let names: Vec<&str> = list(alias, "hostnames").filter_map(Value::as_str).collect();
            format!("{}\t{}", text(alias, "ip"), names.join("\t"))
        });
        std::iter::once(own).chain(aliases).collect()
    }

    pub(super) fn flag(&self, field: &str) -> bool {
        self.value.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn main(&self) -> impl Iterator<Item = &ContainerSpec<'a>> {
        self.containers.iter().filter(|container| container.role == Role::Main)
    }
}

impl ContainerSpec<'_> {
    pub(super) fn digest(&self, pod_spec: &Value) -> String {
        container_digest(pod_spec, self.value)
    }

    pub(super) fn has(&self, probe: &str) -> bool {
        self.value.get(probe).is_some_and(Value::is_object)
    }

    pub(super) fn has_probes(&self) -> bool {
        ["startupProbe", "livenessProbe", "readinessProbe"].iter().any(|probe| self.has(probe))
    }

    pub(super) fn words(&self, field: &str) -> Vec<&str> {
        list(self.value, field).filter_map(Value::as_str).collect()
    }

    pub(super) fn working_dir(&self) -> &str {
        match text(self.value, "workingDir") {
            "" => "/",
            folder => folder,
        }
    }
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Names what a running container was made from: a different digest means it has to be replaced.
///
/// Covers exactly what the runtime uses, in a form of its own: a later version that fills in more defaults, or a field
/// that changes nothing here, restarts nobody. Changing the form restarts every container of every device: do not.
pub fn container_digest(pod_spec: &Value, container: &Value) -> String {
    let words = |field: &str| -> Vec<Value> { list(container, field).cloned().collect() };
    let variables: Vec<Value> = list(container, "env").map(variable).collect();
    let sources: Vec<Value> = list(container, "envFrom")
        .map(|source| {
            let (kind, name) = ["configMapRef", "secretRef"]
                .iter()
                .find_map(|kind| source.get(kind).map(|reference| (*kind, text(reference, "name"))))
                .unwrap_or_default();
            json!([kind, name, text(source, "prefix")])
        })
        .collect();
    let identity = json!([security(pod_spec, container, "runAsUser"), security(pod_spec, container, "runAsGroup")]);
    let mut form = json!([
        text(container, "image"),
        words("command"),
        words("args"),
        text(container, "workingDir"),
        variables,
        sources,
        identity,
        text(pod_spec, "hostname"),
    ]);
    // Processes of the host keep the first form: they ran before there was any other.
    if let (true, Some(parts)) = (admission::isolated(pod_spec), form.as_array_mut()) {
        parts.push(limits::digest_form(pod_spec, container));
    }
    if let (Some(mounts), Some(parts)) = (volume::form(pod_spec, container), form.as_array_mut()) {
        parts.push(json!({"mounts": mounts}));
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, form.to_string().as_bytes());
    let mut digest = String::from("1:");
    for byte in &hash.as_ref()[..12] {
        digest.push_str(&format!("{byte:02x}"));
    }
    digest
}

/// The container's own setting, else the pod's.
pub(super) fn security<'a>(pod_spec: &'a Value, container: &'a Value, field: &str) -> Option<&'a Value> {
    let of = |value: &'a Value| value.get("securityContext").and_then(|context| context.get(field));
    of(container).or_else(|| of(pod_spec)).filter(|value| !value.is_null())
}

fn variable(variable: &Value) -> Value {
    let name = text(variable, "name");
    let Some(from) = variable.get("valueFrom") else { return json!([name, text(variable, "value")]) };
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = from.get(kind) {
            return json!([name, kind, text(reference, "name"), text(reference, "key")]);
        }
    }
    if let Some(reference) = from.get("fieldRef") {
        return json!([name, "fieldRef", text(reference, "fieldPath")]);
    }
    json!([name, "other", from])
}
