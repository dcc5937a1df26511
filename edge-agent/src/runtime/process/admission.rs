//! What the process backend can run, and what to do about the rest. Pure.

use serde_json::Value;

use crate::reconcile::Refusal;

/// Said wherever a pod of this backend is shown.
pub const NOT_ISOLATED: &str = "the process backend runs containers as plain processes of this machine: no isolation, \
                                no resource limits, the host's file system and network";

/// Why a pod with this spec cannot run in the process backend, and what to do about it.
pub fn refusal(spec: &Value) -> Option<Refusal> {
    let class = spec.get("runtimeClassName").and_then(Value::as_str).unwrap_or("");
    if class != "process" {
        let named =
            if class.is_empty() { "no runtimeClassName".to_owned() } else { format!("runtimeClassName {class:?}") };
        return refuse(
            "RuntimeHandlerNotFound",
            format!(
                "the pod has {named}, and this device runs only \"process\": set spec.runtimeClassName to process (and image \
                 to host) if the command may run without isolation"
            ),
        );
    }
    let all = ["initContainers", "containers"];
    let containers = all.iter().filter_map(|field| spec.get(field)?.as_array()).flatten();
    for container in containers {
        let name = container.get("name").and_then(Value::as_str).unwrap_or("");
        let image = container.get("image").and_then(Value::as_str).unwrap_or("");
        if !matches!(image, "host" | "host:latest") {
            return refuse(
                "ErrImageNeverPull",
                format!(
                    "container {name:?} has image {image:?}, and runtimeClassName process pulls none: set image to host and give a \
                     command that is installed on the device"
                ),
            );
        }
        let empty = |field: &str| container.get(field).and_then(Value::as_array).is_none_or(Vec::is_empty);
        if empty("command") && empty("args") {
            return refuse(
                "CreateContainerConfigError",
                format!("container {name:?} has no command, and image host brings none: set command"),
            );
        }
        if let Some(refused) = unsupported(name, container) {
            return Some(refused);
        }
        let mounts = container.get("volumeMounts").and_then(Value::as_array).filter(|mounts| !mounts.is_empty());
        if let Some(mount) = mounts.and_then(|mounts| mounts.first()) {
            let volume = mount.get("name").and_then(Value::as_str).unwrap_or("");
            return refuse(
                "FailedMount",
                format!(
                    "container {name:?} mounts volume {volume:?}, and the process backend has no mount namespaces: pass \
                     configuration through env or envFrom, or use paths of the host"
                ),
            );
        }
    }
    None
}

/// What would have to be ignored in silence: better not to run than to run without it.
fn unsupported(name: &str, container: &Value) -> Option<Refusal> {
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let Some(value) = container.get(probe).filter(|value| value.is_object()) else { continue };
        let https = value.pointer("/httpGet/scheme").and_then(Value::as_str).is_some_and(|scheme| scheme == "HTTPS");
        if https || value.get("grpc").is_some_and(|grpc| !grpc.is_null()) {
            let kind = if https { "httpGet with scheme HTTPS" } else { "grpc" };
            let message = format!("container {name:?} has a {probe} of kind {kind}: use exec, httpGet or tcpSocket");
            return refuse("UnsupportedProbe", message);
        }
    }
    for hook in ["postStart", "preStop"] {
        let value =
            container.get("lifecycle").and_then(|lifecycle| lifecycle.get(hook)).filter(|value| value.is_object());
        if value.is_some() {
            let message =
                format!("container {name:?} has a {hook} hook, which the process backend does not run: remove it");
            return refuse("UnsupportedLifecycleHook", message);
        }
    }
    None
}

fn refuse(reason: &str, message: String) -> Option<Refusal> {
    Some(Refusal { reason: reason.into(), message })
}
