//! Which device may run which template: rollout numbers, thresholds, template hashes.
//!
//! Owns the arithmetic that hub and device share (DESIGN section 5, "Rollouts"). A template edit and its number are one
//! change; the hub stamps the number ([`stamp`]) and publishes thresholds; a device asks [`admitted`].

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::digest;
use crate::object::Object;

/// Annotation with the newest rollout number of a workload, or the number a Pod was made from. Set by the hub alone.
pub const NUMBER_ANNOTATION: &str = "flotilla.dev/rollout";

/// Annotation with the [`template_hash`] of a workload. Set by the hub alone, at the write.
pub const HASH_ANNOTATION: &str = "flotilla.dev/template-hash";

/// Annotation of a DaemonSet: how many selected devices are not in contact. Set by the hub alone; no part of the document.
pub const SILENT_ANNOTATION: &str = "flotilla.dev/silent";

/// Every device may run the number, those enrolled later too.
pub const THRESHOLD_ALL: u64 = u64::MAX;

/// Names one template of one workload; greater is newer. Text form `<incarnation>-<counter>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RolloutNumber {
    /// The hub incarnation that gave it.
    pub incarnation: u64,
    pub counter: u64,
}

impl fmt::Display for RolloutNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.incarnation, self.counter)
    }
}

/// A text that is no rollout number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rollout number: expected \"<incarnation>-<counter>\"")]
pub struct RolloutNumberError(String);

impl FromStr for RolloutNumber {
    type Err = RolloutNumberError;

    /// Only the exact text that [`Display`](fmt::Display) writes: no signs, no leading zeros.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (incarnation, counter) = text.split_once('-')?;
            Some(Self { incarnation: incarnation.parse().ok()?, counter: counter.parse().ok()? })
        };
        parse().filter(|number| number.to_string() == text).ok_or_else(|| RolloutNumberError(text.to_owned()))
    }
}

impl serde::Serialize for RolloutNumber {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for RolloutNumber {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(input)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The number in an object's [`NUMBER_ANNOTATION`].
pub fn number_of(object: &Object) -> Option<RolloutNumber> {
    object.annotation(NUMBER_ANNOTATION)?.parse().ok()
}

/// The [`template_hash`] of a workload: the one shipped with it, or, where no hub has stamped it, its own.
pub fn hash_of(workload: &Object) -> String {
    match workload.annotation(HASH_ANNOTATION) {
        Some(hash) => hash.to_owned(),
        None => workload.at("/spec/template").map(template_hash).unwrap_or_default(),
    }
}

/// Whether a shared threshold lets this device run this number; [`THRESHOLD_ALL`] lets all, 0 none.
pub fn admitted(device_uid: &str, number: RolloutNumber, threshold: u64) -> bool {
    threshold == THRESHOLD_ALL || turn(device_uid, number) < threshold
}

/// The threshold that lets in exactly `count` of these devices. All of them and more: [`THRESHOLD_ALL`]. (Should two devices
/// share a hash, which 64 bits make all but impossible, fewer rather than more are let in.)
pub fn threshold_for<S: AsRef<str>>(device_uids: &[S], number: RolloutNumber, count: usize) -> u64 {
    if count >= device_uids.len() {
        return THRESHOLD_ALL;
    }
    let mut turns: Vec<u64> = device_uids.iter().map(|uid| turn(uid.as_ref(), number)).collect();
    *turns.select_nth_unstable(count).1
}

/// Where a device stands in the order in which a number spreads; another one for every number.
pub fn turn(device_uid: &str, number: RolloutNumber) -> u64 {
    let digest = digest::of_parts("flotilla/rollout/1", &[device_uid.as_bytes(), number.to_string().as_bytes()]);
    digest::leading_u64(&digest)
}

/// Names ReplicaSets and ControllerRevisions; ten characters. Computed once, at the hub, and shipped in
/// [`HASH_ANNOTATION`]: another version of this software may default a template otherwise.
pub fn template_hash(template: &Value) -> String {
    digest::safe_text(&digest::of_value(&meaning(template)), 10)
}

/// Fields whose `false` or 0 says no more than their absence.
const ZERO_FIELDS: &[&str] =
    &["hostIPC", "hostNetwork", "hostPID", "hostPort", "initialDelaySeconds", "readOnly", "stdin", "stdinOnce", "tty"];
/// Fields whose `{}` says something.
const EMPTY_FIELDS: &[&str] = &["emptyDir", "labelSelector", "namespaceSelector"];

/// The template without what a client may add or leave out and mean the same: kubectl's `rollout undo` sends a template back
/// as Go's types write it, with `creationTimestamp: null`, with `resources: {}`, without `value: ""`.
fn meaning(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let says_nothing = |name: &str, member: &Value| match member {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(members) => members.is_empty() && !EMPTY_FIELDS.contains(&name),
                Value::Bool(flag) => !flag && ZERO_FIELDS.contains(&name),
                Value::Number(number) => number.as_i64() == Some(0) && ZERO_FIELDS.contains(&name),
            };
            let members = map.iter().map(|(name, member)| (name.clone(), meaning(member)));
            Value::Object(members.filter(|(name, member)| !says_nothing(name, member)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(meaning).collect()),
        scalar => scalar.clone(),
    }
}

/// The hub's stamp on a workload (DaemonSet, Deployment, ReplicaSet) about to be stored: the annotations
/// [`NUMBER_ANNOTATION`] and [`HASH_ANNOTATION`], whatever the writer said there. Returns the new number when the template is
/// new or changed, `None` when the previous one stays. Other kinds are left alone.
pub fn stamp(previous: Option<&Object>, object: &mut Object, hub_incarnation: u64) -> Option<RolloutNumber> {
    if !matches!(object.kind().name, "DaemonSet" | "Deployment" | "ReplicaSet") {
        return None;
    }
    let template = object.at("/spec/template").cloned().unwrap_or_default();
    let before = previous.and_then(|previous| Some((number_of(previous)?, previous)));
    if let Some((number, previous)) = before {
        let same = previous.at("/spec/template").is_some_and(|old| meaning(old) == meaning(&template));
        if same {
            let hash = previous.annotation(HASH_ANNOTATION).map_or_else(|| template_hash(&template), str::to_owned);
            object.set_annotation(NUMBER_ANNOTATION, &number.to_string());
            object.set_annotation(HASH_ANNOTATION, &hash);
            return None;
        }
    }
    let counter = before.map_or(1, |(number, _)| number.counter.saturating_add(1));
    let number = RolloutNumber { incarnation: hub_incarnation, counter };
    object.set_annotation(NUMBER_ANNOTATION, &number.to_string());
    object.set_annotation(HASH_ANNOTATION, &template_hash(&template));
    Some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
