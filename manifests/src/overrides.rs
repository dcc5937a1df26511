//! A technician's changes, kept apart from the manifest they change.
//!
//! Owns the override record (DESIGN sections 2 and 5), how one is made from what was there and what is wanted ([`revise`]),
//! and what effect records have on a base ([`apply`]). Refuses to judge the result: the caller validates it, decides about
//! expiry against a time it trusts, and stores the records. Start at [`OverrideRecord`].

mod diff;
mod path;
mod tree;

pub use diff::between;
pub use path::{Path, PathError, Step};

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api_error::{ApiError, Reason};
use crate::digest;
use crate::kind::{self, KindRef};
use crate::object::Object;
use crate::schema;
use crate::time::Timestamp;

/// Why somebody changes something, in words: the reason of the records their changes make, and never a change itself.
pub const CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";
/// Most operations in one record; a change that needs more is refused.
pub const OPERATIONS_MAX: usize = 256;
/// Longest replaced value kept in clear beside its digest.
pub const REPLACED_VALUE_BYTES_MAX: usize = 1024;

/// One atomic change by one person on one device, on top of one object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverrideRecord {
    /// Unique on the device; a DNS label.
    pub id: String,
    pub target: Target,
    pub operations: Vec<Operation>,
    pub author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    pub time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// The object a record changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    pub api_version: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Target {
    pub fn of(object: &Object) -> Self {
        Self {
            api_version: object.kind().api_version(),
            kind: object.kind().name.to_owned(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
        }
    }

    pub fn kind(&self) -> Option<KindRef> {
        kind::find(self.api_version.split_once('/').map_or("", |(group, _)| group), &self.kind)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub op: Verb,
    pub path: Path,
    /// Of a `Set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What the base had there when the record was made; nothing there when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Set,
    Remove,
}

/// A value of the base that an operation stands in front of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replaced {
    /// [`digest::text_of_value`]
    pub digest: String,
    /// The value, when it is at most [`REPLACED_VALUE_BYTES_MAX`] long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

impl Replaced {
    fn of(value: &Value) -> Self {
        let small = value.to_string().len() <= REPLACED_VALUE_BYTES_MAX;
        Self { digest: digest::text_of_value(value), value: small.then(|| value.clone()) }
    }
}

/// What to know about a record that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub id: String,
    pub path: Path,
    pub matter: Matter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matter {
    /// The record holds, but the base has another value there now than the one it was written against.
    BaseChanged,
    /// The place is gone from the base: no operation of this record took effect.
    Unplaceable,
}

/// A base with its records applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    pub object: Object,
    pub notices: Vec<Notice>,
}

/// The records not expired at `now`. When a clock is not trusted, `now` is its floor: never early.
pub fn live(records: &[OverrideRecord], now: Timestamp) -> Vec<OverrideRecord> {
    records.iter().filter(|record| record.expires.is_none_or(|expires| now < expires)).cloned().collect()
}

/// Applies the records that target `base` (by uid) and have not expired, oldest first, each wholly or not at all.
pub fn apply(base: &Object, records: &[OverrideRecord], now: Timestamp) -> Effective {
    let mut mine: Vec<&OverrideRecord> = records
        .iter()
        .filter(|record| !record.target.uid.is_empty() && record.target.uid == base.uid())
        .filter(|record| record.expires.is_none_or(|expires| now < expires))
        .collect();
    mine.sort_by(|one, other| (one.time, &one.id).cmp(&(other.time, &other.id)));
    let mut effective = Effective { object: base.clone(), notices: Vec::new() };
    for record in mine {
        apply_record(base, record, &mut effective);
    }
    effective
}

/// The object that [`apply`] makes of `base`, without a copy where no record targets it: most objects have none.
pub fn applied<'a>(base: Cow<'a, Object>, records: &[OverrideRecord], now: Timestamp) -> Cow<'a, Object> {
    if records.iter().any(|record| record.target.uid == base.uid()) {
        Cow::Owned(apply(&base, records, now).object)
    } else {
        base
    }
}

/// Who makes a change, and what the caller minted for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorship {
    pub id: String,
    pub author: String,
    pub reason: String,
    pub time: Timestamp,
    pub expires: Option<Timestamp>,
}

/// What a change makes of the records on one object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Revision {
    /// The change itself; absent when it only takes back.
    pub created: Option<OverrideRecord>,
    /// Earlier records that lost some operations: superseded, or set back to the base.
    pub rewritten: Vec<OverrideRecord>,
    /// Ids of earlier records with no operation left.
    pub ended: Vec<String>,
}

/// Turns "the object is to be `wanted`" into records on top of `base`, given the records in force on it. A field set back to
/// what the base has ends the operations there; other operations stay with their authors. Status and the metadata that
/// servers keep are not compared.
///
/// # Errors
/// 422 when the kind takes no overrides ([`overridable`]) or the change needs more than [`OPERATIONS_MAX`] operations.
pub fn revise(
    base: &Object,
    records: &[OverrideRecord],
    wanted: &Object,
    by: Authorship,
) -> Result<Revision, ApiError> {
    overridable(base.kind()).map_err(|error| error.about(&base.key()))?;
    let mine: Vec<OverrideRecord> = records.iter().filter(|record| record.target.uid == base.uid()).cloned().collect();
    let effective = apply(base, &mine, Timestamp::default()).object;
    let schema = schema::of(base.kind());
    let mut kept: Vec<Vec<Operation>> = mine.iter().map(|record| record.operations.clone()).collect();
    let mut operations: Vec<Operation> = Vec::new();
    for change in between(&effective, wanted) {
        let place = widened(&kept, &change.path);
        for list in &mut kept {
            list.retain(|operation| !operation.path.is_within(&place));
        }
        let wish = tree::get(wanted.value(), &place);
        operations.extend(diff::at(schema, &place, tree::get(base.value(), &place), wish));
    }
    deduplicate(&mut operations);
    if operations.len() > OPERATIONS_MAX {
        let message = format!(
            "{} differs from its base in {} places; an override holds at most {OPERATIONS_MAX}",
            base.key(),
            operations.len()
        );
        return Err(ApiError::of(Reason::Invalid, message).about(&base.key()));
    }
    let mut revision = Revision::default();
    for (record, left) in mine.into_iter().zip(kept) {
        if left.is_empty() {
            revision.ended.push(record.id);
        } else if left.len() != record.operations.len() {
            revision.rewritten.push(OverrideRecord { operations: left, ..record });
        }
    }
    if !operations.is_empty() {
        revision.created = Some(OverrideRecord {
            id: by.id,
            target: Target::of(base),
            operations,
            author: by.author,
            reason: by.reason,
            time: by.time,
            expires: by.expires,
        });
    }
    Ok(revision)
}

/// Whether objects of a kind take overrides.
///
/// # Errors
/// 422: a Secret would have to be written in clear into a record; a Node, Namespace or Event is not desired state of a device.
pub fn overridable(kind: KindRef) -> Result<(), ApiError> {
    match kind.name {
        "DaemonSet" | "Deployment" | "ReplicaSet" | "Pod" | "ConfigMap" => Ok(()),
        "Secret" => Err(ApiError::of(
            Reason::Invalid,
            "a Secret cannot be overridden on a device: its values would stand in the override in clear; change it at the hub",
        )),
        _ => Err(ApiError::of(
            Reason::Invalid,
            format!("{} cannot be overridden on a device; change it at the hub", kind.plural),
        )),
    }
}

/// A record as the object that `kubectl get overrides` shows; named `<node>.<id>`.
pub fn object_of(record: &OverrideRecord, node_name: &str) -> Object {
    let namespace = if record.target.namespace.is_empty() { "default" } else { &record.target.namespace };
    let mut object = Object::empty(&kind::OVERRIDE, namespace, &format!("{node_name}.{}", record.id));
    object.metadata_mut().insert("creationTimestamp".into(), record.time.to_rfc3339().into());
    let mut spec = serde_json::json!({
        "nodeName": node_name, "target": record.target, "operations": record.operations, "author": record.author,
        "reason": record.reason, "time": record.time.to_rfc3339(),
    });
    if let Some(expires) = record.expires {
        spec["expires"] = expires.to_rfc3339().into();
    }
    object.value_mut()["spec"] = spec;
    object
}

/// The place a change is recorded at: that of an earlier operation that covers it, so that no operation builds on another.
fn widened(kept: &[Vec<Operation>], path: &Path) -> Path {
    let covering = kept.iter().flatten().map(|operation| &operation.path).filter(|covering| path.is_within(covering));
    covering.min_by_key(|covering| covering.steps().len()).unwrap_or(path).clone()
}

/// Of operations at or under the same place the widest stays.
fn deduplicate(operations: &mut Vec<Operation>) {
    operations.sort_by(|one, other| one.path.cmp(&other.path));
    operations.dedup_by(|later, earlier| later.path.is_within(&earlier.path));
    let mut seen = BTreeSet::new();
    operations.retain(|operation| seen.insert(operation.path.clone()));
}

fn apply_record(base: &Object, record: &OverrideRecord, effective: &mut Effective) {
    let schema = schema::of(base.kind());
    let mut value = effective.object.value().clone();
    let mut notices = Vec::new();
    for operation in &record.operations {
        let notice = |matter| Notice { id: record.id.clone(), path: operation.path.clone(), matter };
        let present = tree::get(base.value(), &operation.path);
        let known = operation.replaced.as_ref().map(|replaced| replaced.digest.as_str());
        let wish = operation.value.as_ref().filter(|_| operation.op == Verb::Set);
        if present.map(digest::text_of_value).as_deref() != known && present != wish {
            notices.push(notice(Matter::BaseChanged));
        }
        let placed = match (operation.op, &operation.value) {
            (Verb::Set, Some(wish)) => tree::set(&mut value, schema, &operation.path, wish.clone()),
            (Verb::Set, None) => false,
            (Verb::Remove, _) => tree::remove(&mut value, &operation.path),
        };
        if !placed {
            effective.notices.push(notice(Matter::Unplaceable));
            return;
        }
    }
    *effective.object.value_mut() = value;
    effective.notices.extend(notices);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
