//! Events: what happened to an object, counted when it happens again.

use flotilla_manifests::derive;
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use super::{Plan, View, Write};

/// Events not seen again for this long are forgotten, as in Kubernetes.
const AGE_MS_MAX: u64 = 60 * 60 * 1000;
/// Events kept; beyond that the oldest go first.
const COUNT_MAX: usize = 10_000;
/// Time between two looks at old Events.
const SWEEP_MS: u64 = 60_000;
/// Events forgotten at once, and when to go on: a fleet that returns leaves many, and others want to write meanwhile.
const FORGOTTEN_MAX: usize = 500;
const GOES_ON_MS: u64 = 250;
/// Longest message kept (Kubernetes' limit).
const MESSAGE_BYTES_MAX: usize = 1024;

/// Something worth telling about an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    pub about: Reference,
    pub severity: Severity,
    /// One CamelCase word: `FailedScheduling`.
    pub reason: &'static str,
    pub message: String,
    /// Who tells: `deployment-controller`.
    pub source: &'static str,
}

/// `v1.ObjectReference`, what of it an Event needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub api_version: String,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

impl Reference {
    pub fn to(object: &Object) -> Self {
        Self {
            api_version: object.kind().api_version(),
            kind: object.kind().name,
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
        }
    }
}

impl Note {
    pub fn normal(about: &Object, source: &'static str, reason: &'static str, message: String) -> Self {
        Self { about: Reference::to(about), severity: Severity::Normal, reason, message, source }
    }

    pub fn warning(about: &Object, source: &'static str, reason: &'static str, message: String) -> Self {
        Self { about: Reference::to(about), severity: Severity::Warning, reason, message, source }
    }

    /// Where the Event lives; those about cluster-scoped objects live in `default`.
    pub fn namespace(&self) -> &str {
        if self.about.namespace.is_empty() { "default" } else { &self.about.namespace }
    }

    /// The same for the same thing happening to the same object.
    pub fn name(&self) -> String {
        let same = json!([self.about.uid, self.severity_text(), self.reason, self.message, self.source]);
        let uuid = derive::uuid_v8(&flotilla_manifests::digest::of_value(&same));
        let hash: String = uuid.chars().filter(|one| *one != '-').take(16).collect();
        let start = derive::prefix(&self.about.name, 253 - 17).trim_end_matches(['-', '.']);
        format!("{start}.{hash}")
    }

    /// The Event to store in the place of `existing`.
    pub fn event(&self, existing: Option<&Object>, now: Timestamp) -> Object {
        if let Some(existing) = existing {
            let mut event = existing.clone();
            let count = event.at("/count").and_then(Value::as_i64).unwrap_or(1);
            event.value_mut()["count"] = count.saturating_add(1).into();
            event.value_mut()["lastTimestamp"] = now.to_rfc3339().into();
            return event;
        }
        let mut event = Object::empty(&kind::EVENT, self.namespace(), &self.name());
        let fields = json!({
            "involvedObject": {
                "apiVersion": self.about.api_version, "kind": self.about.kind, "namespace": self.about.namespace,
                "name": self.about.name, "uid": self.about.uid,
            },
            "type": self.severity_text(), "reason": self.reason, "message": derive::prefix(&self.message, MESSAGE_BYTES_MAX), "count": 1,
            "firstTimestamp": now.to_rfc3339(), "lastTimestamp": now.to_rfc3339(),
            "source": {"component": self.source}, "reportingComponent": self.source, "reportingInstance": "",
        });
        if let (Value::Object(event), Value::Object(fields)) = (event.value_mut(), fields) {
            event.extend(fields);
        }
        event
    }

    fn severity_text(&self) -> &'static str {
        match self.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Forgets Events that are old, and the oldest of too many.
pub fn sweep(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut seen: Vec<(Timestamp, &Object)> = view
        .index
        .list(&kind::EVENT, None)
        .map(|event| {
            let last = Timestamp::parse(event.text("/lastTimestamp"));
            let last = last.or_else(|| Timestamp::parse(event.text("/eventTime")));
            (last.or_else(|| event.creation_timestamp()).unwrap_or_default(), event.as_ref())
        })
        .collect();
    seen.sort_by_cached_key(|(last, event)| (*last, event.resource_version()));
    let surplus = seen.len().saturating_sub(COUNT_MAX);
    for (index, (last, event)) in seen.into_iter().enumerate() {
        if index < surplus || last.0.saturating_add(AGE_MS_MAX) <= view.now.0 {
            if plan.writes.len() == FORGOTTEN_MAX {
                plan.wake(Timestamp(view.now.0.saturating_add(GOES_ON_MS)));
                break;
            }
            plan.writes.push(Write::Remove { key: event.key(), uid: event.uid().to_owned() });
        }
    }
    plan.wake(Timestamp(view.now.0.saturating_add(SWEEP_MS)));
    plan
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::controllers::fixture::State;

    #[test]
    fn the_same_thing_is_counted_and_another_is_another() {
        let mut pod = Object::empty(&kind::POD, "shop", "web-1");
        pod.metadata_mut().insert("uid".into(), "u1".into());
        let note = Note::warning(&pod, "scheduler", "FailedScheduling", "0/0 nodes are available".into());
        let first = note.event(None, Timestamp(1000));
        assert_eq!((first.namespace(), first.at("/count")), ("shop", Some(&json!(1))));
        assert_eq!(first.name(), note.name());
        let second = note.event(Some(&first), Timestamp(9000));
        assert_eq!(second.name(), first.name());
        assert_eq!(second.at("/count"), Some(&json!(2)));
        assert_eq!(second.text("/firstTimestamp"), "1970-01-01T00:00:01Z");
        assert_eq!(second.text("/lastTimestamp"), "1970-01-01T00:00:09Z");
        let other = Note { message: "0/1 nodes are available".into(), ..note.clone() };
        assert_ne!(other.name(), note.name());
    }

    #[test]
    fn many_old_ones_are_forgotten_in_pieces() {
        let mut state = State::at(AGE_MS_MAX * 2);
        for number in 0..FORGOTTEN_MAX + 7 {
            let mut event = Object::empty(&kind::EVENT, "default", &format!("old-{number:04}"));
            event.value_mut()["lastTimestamp"] = Timestamp(1000).to_rfc3339().into();
            state.put(event);
        }
        let mut forgotten = Vec::new();
        for (expected, goes_on_after) in [(FORGOTTEN_MAX, GOES_ON_MS), (7, SWEEP_MS)] {
            let plan = sweep(&state.view());
            assert_eq!(plan.writes.len(), expected);
            assert_eq!(plan.wake_at, Some(Timestamp(state.now.0 + goes_on_after)));
            forgotten.extend(plan.writes.clone());
            state.carry_out(plan);
        }
        forgotten.dedup();
        assert_eq!(forgotten.len(), FORGOTTEN_MAX + 7);
    }

    #[test]
    fn long_names_and_messages_are_cut() {
        let node = Object::empty(&kind::NODE, "", &"n".repeat(253));
        let note = Note::normal(&node, "node-controller", "NodeReady", "ü".repeat(2000));
        let event = note.event(None, Timestamp(0));
        assert!(event.name().len() <= 253);
        assert_eq!(event.namespace(), "default");
        assert!(event.text("/message").len() <= MESSAGE_BYTES_MAX);
    }
}
