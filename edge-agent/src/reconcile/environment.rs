//! A container's environment and argv, resolved as kubelet resolves them. A missing reference is a reason to wait, never a guess.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pod::{ContainerSpec, list, text};
use super::{DesiredPod, DesiredPods, Place};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything a pod's environment may refer to.
pub(super) struct Sources<'a> {
    pub(super) desired: &'a DesiredPods,
    pub(super) pod: &'a DesiredPod,
    pub(super) place: &'a Place,
}

/// Resolves `envFrom`, then `env`, over what the image brings; `Err` reads as kubelet's message for `CreateContainerConfigError`.
pub(super) fn resolve(
    sources: &Sources<'_>,
    container: &ContainerSpec<'_>,
    of_image: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut all = of_image;
    for source in list(container.value, "envFrom") {
        take_all(sources, source, &mut all)?;
    }
    // As in kubelet, `$(NAME)` in a value sees the variables of `env` before it, not those of `envFrom`.
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for variable in list(container.value, "env") {
        let value = match variable.get("valueFrom").filter(|from| from.is_object()) {
            Some(from) => match referred(sources, container, from)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(text(variable, "value"), |name| named.get(name).cloned()),
        };
        named.insert(text(variable, "name").to_owned(), value);
    }
    all.extend(named);
    let hostname = match sources.pod.object.text("/spec/hostname") {
        "" => sources.pod.object.name(),
        hostname => hostname,
    };
    for (name, value) in [("PATH", PATH), ("HOSTNAME", hostname), ("HOME", "/")] {
        all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    // Neither can be handed to a process: the kernel ends a variable at the first and a name at the second.
    match all.iter().find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
        Some((name, _)) => Err(format!("environment variable {name:?} holds a character no process can be given")),
        None => Ok(all),
    }
}

/// Program and arguments with `$(NAME)` expanded from the whole environment.
pub(super) fn argv(
    container: &ContainerSpec<'_>,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<String>, String> {
    let words = container.words("command").into_iter().chain(container.words("args"));
    let argv: Vec<String> = words.map(|word| expand(word, |name| environment.get(name).cloned())).collect();
    match argv.iter().find(|word| word.contains('\0')) {
        Some(_) => Err("an argument holds a NUL character, which no process can be given".into()),
        None if argv.is_empty() => Err("no command specified".into()),
        None => Ok(argv),
    }
}

/// Kubernetes' expansion: `$(NAME)` is replaced when known and left as it is when not, `$$` is one `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

pub(super) fn is_optional(reference: &Value) -> bool {
    reference.get("optional").and_then(Value::as_bool).unwrap_or(false)
}

fn take_all(sources: &Sources<'_>, source: &Value, all: &mut BTreeMap<String, String>) -> Result<(), String> {
    let prefix = text(source, "prefix");
    let namespace = sources.pod.object.namespace();
    if let Some(reference) = source.get("configMapRef") {
        let name = text(reference, "name");
        match sources.desired.config_maps.get(&(namespace.to_owned(), name.to_owned())) {
            Some(data) => all.extend(data.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone()))),
            None if is_optional(reference) => {}
            None => return Err(format!("configmap {name:?} not found")),
        }
    }
    if let Some(reference) = source.get("secretRef") {
        let name = text(reference, "name");
        match sources.desired.secrets.get(&(namespace.to_owned(), name.to_owned())) {
            Some(data) => {
                for (key, value) in data {
                    all.insert(format!("{prefix}{key}"), utf8(value, key, namespace, name)?);
                }
            }
            None if is_optional(reference) => {}
            None => return Err(format!("secret {name:?} not found")),
        }
    }
    Ok(())
}

fn utf8(value: &[u8], key: &str, namespace: &str, name: &str) -> Result<String, String> {
    String::from_utf8(value.to_vec()).map_err(|_| {
        format!("key {key} in Secret {namespace}/{name} is not UTF-8 and cannot be an environment variable")
    })
}

/// `None`: an optional reference to nothing.
fn referred(sources: &Sources<'_>, container: &ContainerSpec<'_>, from: &Value) -> Result<Option<String>, String> {
    let namespace = sources.pod.object.namespace();
    if let Some(reference) = from.get("configMapKeyRef") {
        let (name, key) = (text(reference, "name"), text(reference, "key"));
        let map = sources.desired.config_maps.get(&(namespace.to_owned(), name.to_owned()));
        return match (map, map.and_then(|map| map.get(key))) {
            (_, Some(value)) => Ok(Some(value.clone())),
            _ if is_optional(reference) => Ok(None),
            (None, _) => Err(format!("configmap {name:?} not found")),
            (Some(_), None) => Err(format!("couldn't find key {key} in ConfigMap {namespace}/{name}")),
        };
    }
    if let Some(reference) = from.get("secretKeyRef") {
        let (name, key) = (text(reference, "name"), text(reference, "key"));
        let secret = sources.desired.secrets.get(&(namespace.to_owned(), name.to_owned()));
        return match (secret, secret.and_then(|secret| secret.get(key))) {
            (_, Some(value)) => utf8(value, key, namespace, name).map(Some),
            _ if is_optional(reference) => Ok(None),
            (None, _) => Err(format!("secret {name:?} not found")),
            (Some(_), None) => Err(format!("couldn't find key {key} in Secret {namespace}/{name}")),
        };
    }
    if let Some(reference) = from.get("fieldRef") {
        return field(sources, text(reference, "fieldPath")).map(Some);
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        return resource(container, reference).map(Some);
    }
    Err("valueFrom names no source this agent knows: use configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef"
        .into())
}

pub(super) fn field(sources: &Sources<'_>, path: &str) -> Result<String, String> {
    let object = &sources.pod.object;
    let keyed = |prefix: &str| Some(path.strip_prefix(prefix)?.strip_suffix("']")?.to_owned());
    if let Some(key) = keyed("metadata.labels['") {
        return Ok(object.label(&key).unwrap_or("").to_owned());
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Ok(object.annotation(&key).unwrap_or("").to_owned());
    }
    match path {
        "metadata.name" => Ok(object.name().to_owned()),
        "metadata.namespace" => Ok(object.namespace().to_owned()),
        "metadata.uid" => Ok(object.uid().to_owned()),
        "spec.nodeName" => Ok(sources.place.node_name.clone()),
        "spec.serviceAccountName" => Ok(object.text("/spec/serviceAccountName").to_owned()),
        "status.hostIP" | "status.podIP" | "status.hostIPs" | "status.podIPs" => Ok(sources.place.host_ip.clone()),
        _ => Err(format!("fieldPath {path:?} is not one a container can be given")),
    }
}

/// `limits.cpu` in units of `divisor` (1 by default), rounded up; an absent limit has no honest value here.
pub(super) fn resource(container: &ContainerSpec<'_>, reference: &Value) -> Result<String, String> {
    use flotilla_manifests::quantity::Quantity;
    let path = text(reference, "resource");
    let (list, name) = path.split_once('.').unwrap_or((path, ""));
    let found = container.value.get("resources").and_then(|resources| resources.get(list)?.get(name));
    let value = found.and_then(|value| Quantity::of_json(value).ok());
    let Some(value) = value else {
        return Err(format!(
            "resource {path} is not set on the container, and the process backend has no limits of its own"
        ));
    };
    let divisor = reference.get("divisor").and_then(|value| Quantity::of_json(value).ok()).map_or(0, |one| one.milli());
    // Absent and "0" both mean 1.
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    let milli = value.milli();
    Ok((milli / divisor + i64::from(milli % divisor != 0)).to_string())
}
