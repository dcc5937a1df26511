//! Content of volumes of files: ConfigMaps, Secrets, the downward API, and projections of all of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::reconcile::environment::{self, Sources, is_optional};
use crate::reconcile::pod::{PodSpec, list, text};

/// Mode and content by relative path.
pub(super) type Files<'a> = BTreeMap<String, (u32, Cow<'a, [u8]>)>;

const MODE: u32 = 0o644;
/// What `fsGroup` adds to files nobody may write (kubelet's mask for read-only volumes).
const GROUP_READS: u32 = 0o440;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ConfigMap,
    Secret,
}

/// The files of a volume with this source; `Err` says what is missing and what to do.
pub(super) fn of<'a>(
    sources: &Sources<'a>,
    spec: &PodSpec<'a>,
    kind: &str,
    source: &'a Value,
    group: Option<u32>,
) -> Result<Files<'a>, String> {
    let mode = mode(source, "defaultMode").unwrap_or(MODE);
    let mut files = Files::new();
    match kind {
        "configMap" => object(sources, Kind::ConfigMap, text(source, "name"), source, mode, &mut files)?,
        "secret" => object(sources, Kind::Secret, text(source, "secretName"), source, mode, &mut files)?,
        "downwardAPI" => downward(sources, spec, source, mode, &mut files)?,
        _ => {
            for part in list(source, "sources") {
                projection(sources, spec, part, mode, &mut files)?;
            }
        }
    }
    if group.is_some() {
        files.values_mut().for_each(|(mode, _)| *mode |= GROUP_READS);
    }
    check_paths(&files)?;
    Ok(files)
}

/// Names modes, owners and content.
pub(super) fn digest(files: &Files<'_>, group: Option<u32>) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(format!("1 {group:?}").as_bytes());
    for (path, (mode, content)) in files {
        context.update(format!("\n{} {mode} {} ", path.len(), content.len()).as_bytes());
        context.update(path.as_bytes());
        context.update(content);
    }
    context.finish().as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn projection<'a>(
    sources: &Sources<'a>,
    spec: &PodSpec<'a>,
    part: &'a Value,
    mode: u32,
    files: &mut Files<'a>,
) -> Result<(), String> {
    let said = |name: &str| part.get(name).filter(|source| source.is_object());
    if let Some(source) = said("configMap") {
        object(sources, Kind::ConfigMap, text(source, "name"), source, mode, files)
    } else if let Some(source) = said("secret") {
        object(sources, Kind::Secret, text(source, "name"), source, mode, files)
    } else if let Some(source) = said("downwardAPI") {
        downward(sources, spec, source, mode, files)
    } else {
        let kind = part.as_object().and_then(|part| part.keys().next()).map_or("nothing", String::as_str);
        Err(format!("a projection of {kind} is not provided on this device: use configMap, secret or downwardAPI"))
    }
}

fn object<'a>(
    sources: &Sources<'a>,
    kind: Kind,
    name: &str,
    source: &'a Value,
    mode: u32,
    files: &mut Files<'a>,
) -> Result<(), String> {
    let word = if kind == Kind::ConfigMap { "configmap" } else { "secret" };
    let Some(payload) = payload(sources, kind, name) else {
        if is_optional(source) {
            return Ok(());
        }
        let namespace = sources.pod.object.namespace();
        return Err(format!(
            "{word} {name:?} not found: create it in namespace {namespace:?} (or mark it optional); the pod starts by itself \
             once it has reached this device"
        ));
    };
    let mut items = list(source, "items").peekable();
    if items.peek().is_none() {
        files.extend(payload.into_iter().map(|(key, content)| (key.to_owned(), (mode, Cow::Borrowed(content)))));
        return Ok(());
    }
    for item in items {
        let key = text(item, "key");
        match payload.get(key) {
            Some(content) => {
                let mode = self::mode(item, "mode").unwrap_or(mode);
                files.insert(text(item, "path").to_owned(), (mode, Cow::Borrowed(*content)));
            }
            None if is_optional(source) => {}
            None => {
                return Err(format!(
                    "references non-existent key {key:?} of {word} {name:?}: add the key, or take it from items"
                ));
            }
        }
    }
    Ok(())
}

fn payload<'a>(sources: &Sources<'a>, kind: Kind, name: &str) -> Option<BTreeMap<&'a str, &'a [u8]>> {
    let key = (sources.pod.object.namespace().to_owned(), name.to_owned());
    let desired = sources.desired;
    let bytes = |(key, content): (&'a String, &'a Vec<u8>)| (key.as_str(), content.as_slice());
    if kind == Kind::Secret {
        return Some(desired.secrets.get(&key)?.iter().map(bytes).collect());
    }
    let data = desired.config_maps.get(&key)?.iter();
    let binary = desired.config_map_binaries.get(&key).into_iter().flatten();
    Some(data.map(|(key, text)| (key.as_str(), text.as_bytes())).chain(binary.map(bytes)).collect())
}

fn downward<'a>(
    sources: &Sources<'a>,
    spec: &PodSpec<'a>,
    source: &'a Value,
    mode: u32,
    files: &mut Files<'a>,
) -> Result<(), String> {
    for item in list(source, "items") {
        let content = if let Some(reference) = item.get("fieldRef").filter(|reference| reference.is_object()) {
            field(sources, text(reference, "fieldPath"))?
        } else if let Some(reference) = item.get("resourceFieldRef").filter(|reference| reference.is_object()) {
            let name = text(reference, "containerName");
            let container = spec.containers.iter().find(|container| container.name == name);
            let container = container
                .ok_or_else(|| format!("resourceFieldRef names container {name:?}, which the pod does not have"))?;
            environment::resource(container, reference)?
        } else {
            String::new()
        };
        let mode = self::mode(item, "mode").unwrap_or(mode);
        files.insert(text(item, "path").to_owned(), (mode, Cow::Owned(content.into_bytes())));
    }
    Ok(())
}

fn field(sources: &Sources<'_>, path: &str) -> Result<String, String> {
    let object = &sources.pod.object;
    match path {
        "metadata.labels" => Ok(lines(&object.labels())),
        "metadata.annotations" => Ok(lines(&object.annotations())),
        _ => environment::field(sources, path),
    }
}

/// `key="value"` in order, as `fieldpath.FormatMap` writes them.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// Go's `%q`, for the text Kubernetes lets into labels and annotations.
fn quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    for letter in text.chars() {
        match letter {
            '"' => result.push_str("\\\""),
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            '\u{7}' => result.push_str("\\a"),
            '\u{8}' => result.push_str("\\b"),
            '\u{b}' => result.push_str("\\v"),
            '\u{c}' => result.push_str("\\f"),
            letter if (letter as u32) < 0x20 || letter == '\u{7f}' => {
                result.push_str(&format!("\\x{:02x}", letter as u32));
            }
            letter => result.push(letter),
        }
    }
    result.push('"');
    result
}

fn mode(value: &Value, field: &str) -> Option<u32> {
    value.get(field)?.as_u64().and_then(|mode| u32::try_from(mode).ok()).map(|mode| mode & 0o777)
}

/// What is written must stay inside the volume and must not meet the writer's own names.
fn check_paths(files: &Files<'_>) -> Result<(), String> {
    for path in files.keys() {
        let sound = !path.is_empty()
            && !path.starts_with("..")
            && !path.contains('\0')
            && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255);
        if !sound {
            return Err(format!(
                "{path:?} is no file name of a volume: it must be relative and plain, and must not begin with '..'"
            ));
        }
        let inside =
            files.range(format!("{path}/")..).next().is_some_and(|(next, _)| next.starts_with(&format!("{path}/")));
        if inside {
            return Err(format!(
                "{path:?} is both a file and a directory of the volume: give one of them another path"
            ));
        }
    }
    Ok(())
}
