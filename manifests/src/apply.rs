//! Server-side apply: who owns which field, and what an applied configuration makes of an object (KEP-555).
//!
//! Owns `metadata.managedFields`: its form, conflicts between managers, the removal of fields that their only owner no longer applies.
//! Ownership is kept from an object's first server-side apply on, as Kubernetes' own first releases did; what was there before
//! belongs to `before-first-apply`, and what `kubectl apply` had written to `kubectl-client-side-apply`, which kubectl takes over. Refuses to
//! judge the result: that is `admission`'s. Start at [`merge`] and [`track`].

mod fields;
mod walk;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

use serde_json::{Map, Value, json};

use crate::admission::Part;
use crate::api_error::{ApiError, Reason, Violation};
use crate::object::Object;
use crate::schema;
use crate::time::Timestamp;
use fields::FieldSet;

/// Managers that update without applying; beyond that the oldest are put together, as in Kubernetes.
pub const UPDATERS_MAX: usize = 10;
/// Managers that apply; one more is refused.
pub const APPLIERS_MAX: usize = 100;

const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const CLIENT_SIDE_APPLY: &str = "kubectl-client-side-apply";
const ANCIENT: &str = "ancient-changes";
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Fields that nobody owns.
const UNOWNED_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "deletionTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// How an apply is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyOptions {
    /// `fieldManager`
    pub manager: String,
    /// Whether fields of others are taken over.
    pub force: bool,
}

/// One row of `metadata.managedFields`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Managed {
    manager: String,
    applies: bool,
    subresource: String,
    api_version: String,
    /// RFC 3339; empty when a client has left it out.
    time: String,
    fields: FieldSet,
}

impl Managed {
    fn is(&self, other: &Self) -> bool {
        (&self.manager, self.applies, &self.subresource) == (&other.manager, other.applies, &other.subresource)
    }

    /// As Kubernetes names a manager in a conflict.
    fn spoken(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            text.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                text.push_str(&format!(" at {}", self.time));
            }
        }
        text
    }

    fn to_value(&self) -> Value {
        let mut row = json!({
            "manager": self.manager, "operation": if self.applies { "Apply" } else { "Update" },
            "apiVersion": self.api_version, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        for (name, text) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !text.is_empty() {
                row[name] = text.as_str().into();
            }
        }
        row
    }

    fn parse(row: &Value) -> Option<Self> {
        let text = |name: &str| row[name].as_str().unwrap_or("").to_owned();
        let applies = match row["operation"].as_str()? {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            applies,
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: Some(text("time")).filter(|time| Timestamp::parse(time).is_some()).unwrap_or_default(),
            fields: FieldSet::parse(&row["fieldsV1"])?,
        })
    }
}

/// What `metadata.managedFields` of a written body means for a stored object: what a client may rewrite (kubectl does, to take over
/// what its client-side apply owned), and an empty list ends the tracking. Absent or unreadable leaves what is stored.
pub(crate) fn restated(current: &Object, body: &Value) -> Option<Value> {
    let stored = current.at("/metadata/managedFields").filter(|stored| !stored.is_null())?;
    let Some(Value::Array(rows)) = body.pointer("/metadata/managedFields") else { return Some(stored.clone()) };
    let is_empty = rows.iter().all(|row| row.as_object().is_none_or(Map::is_empty));
    if is_empty {
        return None;
    }
    let read: Option<Vec<Managed>> = rows.iter().map(Managed::parse).collect();
    match read {
        Some(rows) if rows.len() <= APPLIERS_MAX + UPDATERS_MAX => Some(rows.iter().map(Managed::to_value).collect()),
        _ => Some(stored.clone()),
    }
}

/// What an applied configuration makes of an object. `config` is cleaned of unknown fields and nulls; without `current` it is
/// created.
///
/// # Errors
/// 409 with a cause for each field that another manager owns with another value, unless forced; 422 for a list that repeats a key.
pub(crate) fn merge(
    current: Option<&Object>,
    config: &Object,
    part: Part,
    options: &ApplyOptions,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let schema = Some(schema::of(config.kind()));
    let key = config.key();
    if let Some(path) = walk::repeated(config.value(), schema, "") {
        let message = "Invalid value: items of this list must have its keys, each only once".to_owned();
        let field = path.trim_start_matches('.').to_owned();
        return Err(ApiError::invalid(&key, vec![Violation { reason: "FieldValueInvalid", field, message }]));
    }
    let mut own = Managed {
        manager: options.manager.clone(),
        applies: true,
        subresource: if part == Part::Status { "status".to_owned() } else { String::new() },
        api_version: config.kind().api_version(),
        time: now.to_rfc3339(),
        fields: owned(config.value(), part, schema),
    };
    let Some(current) = current else {
        let mut value = config.value().clone();
        value["metadata"]["managedFields"] = json!([own.to_value()]);
        return Ok(value);
    };
    let mut managers = managers_of(current).unwrap_or_else(|| first_managers(current, now));
    let earlier = managers.iter().position(|manager| manager.is(&own)).map(|index| managers.remove(index));
    if earlier.is_none() && managers.iter().filter(|manager| manager.applies).count() >= APPLIERS_MAX {
        let message = format!("{key} has {APPLIERS_MAX} managers that apply it; no more are kept");
        return Err(ApiError::of(Reason::RequestEntityTooLarge, message).about(&key));
    }
    let mut value = walk::merged(Some(current.value()), &only(config.value(), part), schema);
    let changed = walk::difference(current.value(), &value, schema);
    let mut conflicts: Vec<(String, String)> = Vec::new();
    for manager in &mut managers {
        let taken = manager.fields.intersection(&changed.written);
        if taken.is_empty() {
            continue;
        }
        // kubectl goes on where its own client-side apply has left off.
        let succeeds = options.manager == KUBECTL && manager.manager == CLIENT_SIDE_APPLY && !manager.applies;
        if options.force || succeeds {
            manager.fields = manager.fields.difference(&taken);
        } else {
            let spoken = manager.spoken();
            conflicts.extend(taken.paths().into_iter().map(|path| (spoken.clone(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(&conflicts).about(&key));
    }
    if let Some(earlier) = &earlier {
        let mut kept = own.fields.clone();
        managers.iter().for_each(|manager| kept.union(&manager.fields));
        walk::remove(&mut value, &earlier.fields.difference(&own.fields), &kept, schema, 0);
        if earlier.fields == own.fields {
            own.time.clone_from(&earlier.time);
        }
    }
    if !own.fields.is_empty() {
        managers.push(own);
    }
    write(&mut value, managers);
    Ok(value)
}

/// Notes on a changed object who has written what, if its fields are tracked.
pub fn track(current: &Object, new: &mut Object, manager: &str, part: Part, now: Timestamp) {
    let Some(mut managers) = managers_of(new) else { return };
    let schema = Some(schema::of(new.kind()));
    let mut changed = walk::difference(current.value(), new.value(), schema);
    strip(&mut changed.written);
    strip(&mut changed.removed);
    let mut gone = changed.written.clone();
    gone.union(&changed.removed);
    if gone.is_empty() {
        return;
    }
    let mut own = Managed {
        manager: manager.to_owned(),
        applies: false,
        subresource: match part {
            Part::Main => String::new(),
            Part::Status => "status".to_owned(),
            Part::Scale => "scale".to_owned(),
        },
        api_version: new.kind().api_version(),
        time: now.to_rfc3339(),
        fields: changed.written,
    };
    for other in &mut managers {
        if other.is(&own) {
            own.fields.union(&other.fields.difference(&changed.removed));
        }
        other.fields = other.fields.difference(&gone);
    }
    managers.retain(|other| !other.is(&own));
    managers.push(own);
    write(new.value_mut(), managers);
}

fn managers_of(object: &Object) -> Option<Vec<Managed>> {
    let rows = object.at("/metadata/managedFields")?.as_array()?;
    let rows: Vec<Managed> = rows.iter().filter_map(Managed::parse).collect();
    (!rows.is_empty()).then_some(rows)
}

/// The owners of what is there when an object is first applied.
fn first_managers(current: &Object, now: Timestamp) -> Vec<Managed> {
    let schema = Some(schema::of(current.kind()));
    let mut all = walk::fields_of(current.value(), schema);
    strip(&mut all);
    let row = |manager: &str, fields: FieldSet| Managed {
        manager: manager.to_owned(),
        applies: false,
        subresource: String::new(),
        api_version: current.kind().api_version(),
        time: now.to_rfc3339(),
        fields,
    };
    let applied = current.annotation(LAST_APPLIED).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(applied) = applied else { return vec![row(BEFORE_FIRST_APPLY, all)] };
    let mut by_kubectl = owned(&applied, Part::Main, schema).intersection(&all);
    by_kubectl.insert(&["metadata", "annotations", LAST_APPLIED].map(fields::field));
    let rest = all.difference(&by_kubectl);
    vec![row(BEFORE_FIRST_APPLY, rest), row(CLIENT_SIDE_APPLY, by_kubectl)]
}

/// Of a configuration what its part is about.
fn only(config: &Value, part: Part) -> Value {
    let mut value = config.clone();
    let Some(map) = value.as_object_mut() else { return value };
    match part {
        Part::Status => map.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "status")),
        Part::Main | Part::Scale => {
            map.remove("status");
        }
    }
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !UNOWNED_METADATA.contains(&name.as_str()));
        if metadata.is_empty() {
            map.remove("metadata");
        }
    }
    value
}

fn owned(config: &Value, part: Part, schema: Option<schema::Schema>) -> FieldSet {
    let mut set = walk::fields_of(&only(config, part), schema);
    strip(&mut set);
    set
}

fn strip(set: &mut FieldSet) {
    for name in ["f:apiVersion", "f:kind"] {
        set.remove(&[name]);
    }
    for name in UNOWNED_METADATA {
        set.remove(&["f:metadata", &fields::field(name)]);
    }
}

/// Writes the rows back: appliers first, then by time; empty ones are dropped, too many updaters put together.
fn write(value: &mut Value, mut managers: Vec<Managed>) {
    managers.retain(|manager| !manager.fields.is_empty());
    managers.sort_by(|one, other| {
        (!one.applies, &one.time, &one.manager, &one.subresource).cmp(&(
            !other.applies,
            &other.time,
            &other.manager,
            &other.subresource,
        ))
    });
    let appliers = managers.iter().filter(|manager| manager.applies).count();
    if managers.len() - appliers > UPDATERS_MAX {
        let surplus = managers.len() - appliers - UPDATERS_MAX;
        let mut oldest: Vec<Managed> = managers.drain(appliers..=appliers + surplus).collect();
        let mut ancient = oldest.remove(0);
        oldest.iter().for_each(|manager| ancient.fields.union(&manager.fields));
        ANCIENT.clone_into(&mut ancient.manager);
        ancient.subresource.clear();
        managers.insert(appliers, ancient);
    }
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if managers.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), managers.iter().map(Managed::to_value).collect());
    }
}

/// 409 in Kubernetes' words.
fn conflict(conflicts: &[(String, String)]) -> ApiError {
    let message = match conflicts {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
        _ => {
            let mut lines = Vec::new();
            let mut last = "";
            for (manager, path) in conflicts {
                if manager != last {
                    lines.push(format!("conflicts with {manager}:"));
                    last = manager;
                }
                lines.push(format!("- {path}"));
            }
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        }
    };
    let mut error = ApiError::of(Reason::Conflict, message);
    error.causes = conflicts
        .iter()
        .map(|(manager, path)| Violation {
            reason: "FieldManagerConflict",
            field: path.clone(),
            message: format!("conflict with {manager}"),
        })
        .collect();
    error
}
