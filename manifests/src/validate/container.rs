//! Containers: names, images, ports, mounts, probes, resources.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::place::{At, Faults};
use super::{environment, pod, text};
use crate::label::syntax;
use crate::quantity::Quantity;

const ID_MAX: i64 = 2_147_483_647;
const STANDARD_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Which of a Pod's lists a container stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    /// Runs to its end before the main ones.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Ephemeral,
}

/// Every container of a Pod's spec. `volumes` are the names of its volumes.
pub(super) fn all(spec: &At<'_>, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let containers = spec.field("containers");
    if containers.items().next().is_none() {
        faults.required(&containers, "");
    }
    let host_network = spec.field("hostNetwork").is_true();
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for item in spec.field(list).items() {
            let role = match list {
                "containers" => Role::Main,
                "ephemeralContainers" => Role::Ephemeral,
                _ if item.field("restartPolicy").text() == "Always" => Role::Sidecar,
                _ => Role::Init,
            };
            one(&item, role, volumes, faults);
            let name = item.field("name");
            if name.is_said() && !names.insert(name.text().to_owned()) {
                faults.duplicate(&name, name.value);
            }
            ports(&item.field("ports"), host_network, &mut host_ports, faults);
        }
    }
}

fn one(container: &At<'_>, role: Role, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    faults.required_syntax(&container.field("name"), syntax::dns_label);
    let image = container.field("image");
    if !image.is_said() {
        faults.required(&image, "");
    } else if image.text().trim() != image.text() {
        faults.invalid(&image, "must not have leading or trailing whitespace");
    }
    faults.one_of(&container.field("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    faults.one_of(&container.field("terminationMessagePolicy"), &["FallbackToLogsOnError", "File"]);
    environment::variables(container, faults);
    mounts(container, volumes, faults);
    devices(container, volumes, faults);
    resources(&container.field("resources"), faults);
    security(&container.field("securityContext"), faults);
    lifecycle(container, role, faults);
    let restart = container.field("restartPolicy");
    match role {
        Role::Ephemeral if restart.is_said() => faults.forbidden(&restart, "cannot be set for an Ephemeral Container"),
        _ => faults.one_of(&restart, &["Always", "Never", "OnFailure"]),
    }
}

fn ports(ports: &At<'_>, host_network: bool, host_ports: &mut BTreeSet<(String, String, i64)>, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for port in ports.items() {
        let name = port.field("name");
        faults.syntax(&name, text::port_name);
        if name.is_said() && !names.insert(name.text().to_owned()) {
            faults.duplicate(&name, name.value);
        }
        let number = port.field("containerPort");
        match number.number() {
            None | Some(0) => faults.required(&number, ""),
            Some(_) => faults.within(&number, 1, 65_535),
        }
        let protocol = port.field("protocol");
        faults.one_of(&protocol, &["SCTP", "TCP", "UDP"]);
        faults.syntax(&port.field("hostIP"), text::ip_address);
        let host = port.field("hostPort");
        let Some(host_number) = host.number().filter(|number| *number != 0) else { continue };
        faults.within(&host, 1, 65_535);
        if host_network && number.number() != Some(host_number) {
            faults.invalid(&host, "must match `containerPort` when `hostNetwork` is true");
        }
        let place = (port.field("hostIP").text().to_owned(), protocol.text().to_owned(), host_number);
        if !host_ports.insert(place) {
            faults.duplicate(&host, &Value::from(format!("{}/{}", protocol.text(), host_number)));
        }
    }
}

fn mounts(container: &At<'_>, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let privileged = container.value.pointer("/securityContext/privileged").and_then(Value::as_bool).unwrap_or(false);
    let devices = container.value["volumeDevices"].as_array().map_or(&[][..], Vec::as_slice);
    let of_devices = |field: &str, said: &At<'_>| said.is_said() && devices.iter().any(|one| &one[field] == said.value);
    let mut paths = BTreeSet::new();
    for mount in container.field("volumeMounts").items() {
        let name = mount.field("name");
        if !name.is_said() {
            faults.required(&name, "");
        } else if !volumes.contains(name.text()) {
            faults.not_found(&name);
        }
        let path = mount.field("mountPath");
        if !path.is_said() {
            faults.required(&path, "");
        } else if !paths.insert(path.text().to_owned()) {
            faults.invalid(&path, "must be unique");
        }
        if of_devices("name", &name) {
            faults.invalid(&name, "must not already exist in volumeDevices");
        }
        if of_devices("devicePath", &path) {
            faults.invalid(&path, "must not already exist as a path in volumeDevices");
        }
        let (sub_path, expression) = (mount.field("subPath"), mount.field("subPathExpr"));
        faults.syntax(&sub_path, text::relative_path);
        faults.syntax(&expression, text::relative_path);
        if sub_path.is_said() && expression.is_said() {
            faults.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
        }
        let propagation = mount.field("mountPropagation");
        faults.one_of(&propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation.text() == "Bidirectional" && !privileged {
            faults
                .forbidden(&propagation, "Bidirectional mount propagation is available only to privileged containers");
        }
        recursive_read_only(&mount, faults);
    }
}

fn recursive_read_only(mount: &At<'_>, faults: &mut Faults) {
    let recursive = mount.field("recursiveReadOnly");
    faults.one_of(&recursive, &["Disabled", "Enabled", "IfPossible"]);
    if !matches!(recursive.text(), "Enabled" | "IfPossible") {
        return;
    }
    if !mount.field("readOnly").is_true() {
        faults.forbidden(&recursive, "may only be specified when readOnly is true");
    }
    if !matches!(mount.field("mountPropagation").text(), "" | "None") {
        faults.forbidden(&recursive, "may only be specified when mountPropagation is None or not specified");
    }
}

/// Block devices: only claims have them, and a path or a name means one thing.
fn devices(container: &At<'_>, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in container.field("volumeDevices").items() {
        let name = device.field("name");
        if !name.is_said() {
            faults.required(&name, "");
        } else if !volumes.contains(name.text()) {
            faults.not_found(&name);
        } else if !names.insert(name.text().to_owned()) {
            faults.invalid(&name, "must be unique");
        }
        let path = device.field("devicePath");
        if !path.is_said() {
            faults.required(&path, "");
        } else if !paths.insert(path.text().to_owned()) {
            faults.invalid(&path, "must be unique");
        }
        faults.syntax(&path, |text| match text::no_step_back(text) {
            Ok(()) => Ok(()),
            Err(_) => Err("can not contain backsteps ('..')"),
        });
    }
}

/// Amounts are quantities of known resources and not below zero; a request is within its limit.
fn resources(resources: &At<'_>, faults: &mut Faults) {
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    let limited = amounts(&limits, faults);
    let requested = amounts(&requests, faults);
    for (name, request) in requests.entries() {
        let Some(asked) = requested.get(name) else { continue };
        match limited.get(name) {
            Some(limit) if asked > limit => {
                faults.invalid(&request, &format!("must be less than or equal to {name} limit of {limit}"));
            }
            Some(limit) if !is_divisible(name) && asked != limit => {
                faults.invalid(&request, &format!("must be equal to {name} limit of {limit}"));
            }
            None if !is_divisible(name) => {
                faults.required(&limits, "Limit must be set for non overcommitable resources")
            }
            _ => {}
        }
    }
}

/// Checks a list of amounts; gives those that can be read.
pub(super) fn amounts(list: &At<'_>, faults: &mut Faults) -> BTreeMap<String, Quantity> {
    let mut read = BTreeMap::new();
    for (name, amount) in list.entries() {
        if !name.contains('/') && !is_divisible(name) && !name.starts_with("hugepages-") {
            faults.invalid_as(&amount, &Value::from(name), "must be a standard resource for containers");
        } else if let Err(why) = syntax::qualified_name(name) {
            faults.invalid_as(&amount, &Value::from(name), why);
        }
        let Ok(quantity) = Quantity::of_json(amount.value) else { continue };
        if quantity.is_negative() {
            faults.invalid(&amount, "must be greater than or equal to 0");
        } else if !is_divisible(name) && !quantity.is_whole() {
            faults.invalid(&amount, "must be an integer");
        }
        read.insert(name.to_owned(), quantity);
    }
    read
}

/// Resources a node may promise more of than it has; all others (devices, huge pages) are whole and promised once.
fn is_divisible(name: &str) -> bool {
    STANDARD_RESOURCES.contains(&name)
}

fn security(context: &At<'_>, faults: &mut Faults) {
    for name in ["runAsUser", "runAsGroup"] {
        faults.within(&context.field(name), 0, ID_MAX);
    }
    pod::seccomp(&context.field("seccompProfile"), faults);
    let escalation = context.field("allowPrivilegeEscalation");
    if escalation.value == &Value::Bool(false) {
        if context.field("privileged").is_true() {
            faults.invalid(context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if context.field("capabilities").field("add").items().any(|item| item.text() == "CAP_SYS_ADMIN") {
            faults.invalid(
                context,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    faults.one_of(&context.field("procMount"), &["Default", "Unmasked"]);
}

fn lifecycle(container: &At<'_>, role: Role, faults: &mut Faults) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        let at = container.field(name);
        match role {
            Role::Init if at.is_said() => {
                faults.forbidden(&at, "may not be set for init containers without restartPolicy=Always");
            }
            Role::Ephemeral if at.is_said() => faults.forbidden(&at, "cannot be set for an Ephemeral Container"),
            _ => {}
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(&container.field(name), name, container, faults);
    }
    for name in ["postStart", "preStop"] {
        let lifecycle = container.field("lifecycle");
        let hook = lifecycle.field(name);
        if hook.is_said() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], container, faults);
        }
    }
}

fn probe(probe: &At<'_>, name: &str, container: &At<'_>, faults: &mut Faults) {
    if !probe.is_said() {
        return;
    }
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], container, faults);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        faults.not_negative(&probe.field(field));
    }
    let success = probe.field("successThreshold");
    if name != "readinessProbe" && success.number().is_some_and(|count| count != 1) {
        faults.invalid(&success, "must be 1");
    }
    let grace = probe.field("terminationGracePeriodSeconds");
    if name == "readinessProbe" && grace.is_said() {
        faults.invalid(&grace, "must not be set for readinessProbes");
    } else if grace.number().is_some_and(|seconds| seconds <= 0) {
        faults.invalid(&grace, "must be greater than 0");
    }
}

/// Exactly one way to ask a container something.
fn handler(at: &At<'_>, ways: &[&str], container: &At<'_>, faults: &mut Faults) {
    let mut said = 0;
    for way in ways {
        let action = at.field(way);
        if !action.is_said() {
            continue;
        }
        said += 1;
        if said > 1 {
            faults.forbidden(&action, "may not specify more than 1 handler type");
            continue;
        }
        match *way {
            "exec" => {
                let command = action.field("command");
                if command.items().next().is_none() {
                    faults.required(&command, "");
                }
            }
            "httpGet" => {
                port_reference(&action.field("port"), container, faults);
                faults.one_of(&action.field("scheme"), &["HTTP", "HTTPS"]);
                for header in action.field("httpHeaders").items() {
                    faults.required_syntax(&header.field("name"), text::header_name);
                }
            }
            "tcpSocket" => port_reference(&action.field("port"), container, faults),
            "grpc" => faults.within(&action.field("port"), 1, 65_535),
            "sleep" => faults.not_negative(&action.field("seconds")),
            _ => {}
        }
    }
    if said == 0 {
        faults.required(at, "must specify a handler type");
    }
}

/// A port by number, or by the name of one of the container's ports.
fn port_reference(port: &At<'_>, container: &At<'_>, faults: &mut Faults) {
    match port.value {
        Value::Number(_) => faults.within(port, 1, 65_535),
        Value::String(name) => {
            faults.syntax(port, text::port_name);
            let known = container.field("ports").items().any(|item| item.field("name").text() == name);
            if !known && text::port_name(name).is_ok() {
                faults.invalid(port, "must be the name of a port of the container");
            }
        }
        _ => faults.required(port, ""),
    }
}
