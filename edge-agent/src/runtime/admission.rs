//! Which pods can run on this device, and what to do about the rest. Pure.

use serde_json::Value;

use super::Facilities;
use super::facilities::{OCI, PROCESS};
use crate::reconcile::Refusal;

/// Said of a device that has no OCI runtime.
pub const NOT_ISOLATED: &str = "no OCI runtime was found: containers run as plain processes of this machine, with its file \
                                system and network; install crun (or runc) to run images";

/// Whether a pod with this spec is made of OCI containers; otherwise of processes of the host.
pub fn isolated(spec: &Value) -> bool {
    class(spec) != PROCESS
}

fn class(spec: &Value) -> &str {
    spec.get("runtimeClassName").and_then(Value::as_str).unwrap_or("")
}

/// The reason of a refusal that lies in the device, not in the manifest: it starts nothing, and stops nothing that runs.
pub const NO_HANDLER: &str = "RuntimeHandlerNotFound";

/// Why a pod with this spec cannot run on a device with these facilities, and what to do about it.
pub fn refusal(spec: &Value, facilities: &Facilities) -> Option<Refusal> {
    if let Some(refused) = no_handler(class(spec), facilities) {
        return Some(refused);
    }
    let all = ["initContainers", "containers"];
    let containers = all.iter().filter_map(|field| spec.get(field)?.as_array()).flatten();
    for container in containers {
        let name = container.get("name").and_then(Value::as_str).unwrap_or("");
        let own =
            if isolated(spec) { image_missing(name, container) } else { not_of_the_host(name, container, facilities) };
        if let Some(refused) = own.or_else(|| unsupported(name, container)) {
            return Some(refused);
        }
    }
    None
}

fn no_handler(class: &str, facilities: &Facilities) -> Option<Refusal> {
    let named = if class.is_empty() { "no runtimeClassName".to_owned() } else { format!("runtimeClassName {class:?}") };
    match &facilities.oci {
        _ if class == PROCESS => None,
        Err(why) => refuse(
            NO_HANDLER,
            format!(
                "the pod has {named}, and this device runs only \"process\" ({why}): install crun on the device, or set \
                 spec.runtimeClassName to process (and image to host) if the command may run without isolation"
            ),
        ),
        Ok(oci) if class.is_empty() || class == OCI || class == oci.name => None,
        Ok(oci) => {
            let known = format!("\"process\", \"{OCI}\" and {:?}", oci.name);
            refuse(NO_HANDLER, format!("the pod has {named}, and this device knows {known}: use one of these or none"))
        }
    }
}

/// An OCI container needs an image to stand on.
fn image_missing(name: &str, container: &Value) -> Option<Refusal> {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    if !matches!(image, "host" | "host:latest") {
        return None;
    }
    refuse(
        "ErrImageNeverPull",
        format!(
            "container {name:?} has image {image:?}, which only runtimeClassName process has: set spec.runtimeClassName to \
             process, or name an image"
        ),
    )
}

/// What a process of the host can be.
fn not_of_the_host(name: &str, container: &Value, facilities: &Facilities) -> Option<Refusal> {
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
    let mounts = container.get("volumeMounts").and_then(Value::as_array).filter(|mounts| !mounts.is_empty());
    let mount = mounts.and_then(|mounts| mounts.first())?;
    let why = facilities.process_mounts.as_ref().err()?;
    let volume = mount.get("name").and_then(Value::as_str).unwrap_or("");
    refuse(
        "FailedMount",
        format!(
            "container {name:?} mounts volume {volume:?}, and processes cannot have mounts of their own here ({why}): run the \
             agent as root, pass configuration through env or envFrom, or use paths of the host"
        ),
    )
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
        let https = value.and_then(|value| value.pointer("/httpGet/scheme")).and_then(Value::as_str) == Some("HTTPS");
        if https || value.is_some_and(|value| value.get("tcpSocket").is_some_and(Value::is_object)) {
            let kind = if https { "httpGet with scheme HTTPS" } else { "tcpSocket" };
            let message = format!("container {name:?} has a {hook} hook of kind {kind}: use exec, httpGet or sleep");
            return refuse("UnsupportedLifecycleHook", message);
        }
    }
    None
}

fn refuse(reason: &str, message: String) -> Option<Refusal> {
    Some(Refusal { reason: reason.into(), message })
}
