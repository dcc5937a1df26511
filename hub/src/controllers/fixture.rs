//! Objects and a state in memory for the tests of plans.

use std::collections::BTreeMap;

use flotilla_manifests::admission::{Context, DeleteOptions, FieldValidation, Mutation, Outcome};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout;
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::{defaults, kind, schema};
use flotilla_rest::backend::{DryRun, User, WriteRequest};
use serde_json::{Value, json};

use super::daemon_set::{self, Readings};
use super::{Plan, View, Write};
use crate::admission;
use crate::fleet::contact::Contact;
use crate::store::{Index, RolloutState};

/// A store without a disk: what plans read and write, with the same admission.
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) contacts: BTreeMap<String, Contact>,
    pub(crate) started: Timestamp,
    pub(crate) now: Timestamp,
    version: u64,
    pub(crate) events: Vec<String>,
    readings: BTreeMap<ObjectKey, Readings>,
}

impl State {
    pub(crate) fn at(now_ms: u64) -> Self {
        let mut state = Self {
            index: Index::default(),
            contacts: BTreeMap::new(),
            started: Timestamp(0),
            now: Timestamp(now_ms),
            version: 0,
            events: Vec::new(),
            readings: BTreeMap::new(),
        };
        state.put(parse(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "spec": {"finalizers": ["kubernetes"]}})));
        state
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { index: &self.index, contacts: &self.contacts, started: self.started, now: self.now }
    }

    /// As it is made in a running hub: with what was read for the plan before.
    pub(crate) fn plan_daemon_set(&mut self, key: &ObjectKey) -> Plan {
        let around = self.index.around(key);
        let view = View { index: &around, contacts: &self.contacts, started: self.started, now: self.now };
        let plan = daemon_set::plan(&view, self.readings.entry(key.clone()).or_default());
        assert_eq!(daemon_set::plan(&view, &mut Readings::default()), plan, "as if nothing had been read before");
        plan
    }

    /// Stores an object as it is, with a uid, a creation time and a new version.
    pub(crate) fn put(&mut self, mut object: Object) -> Object {
        self.version += 1;
        let key = object.key();
        if object.uid().is_empty() {
            let uid = format!("{}-{}-{}", key.kind.singular, key.name, self.version);
            object.metadata_mut().insert("uid".into(), uid.into());
        }
        let created = self.now.to_rfc3339();
        object.metadata_mut().entry("creationTimestamp").or_insert_with(|| created.into());
        object.metadata_mut().entry("generation").or_insert_with(|| 1.into());
        object.set_resource_version(self.version);
        self.index.set(&key, Some(std::sync::Arc::new(object.clone())));
        object
    }

    /// Stores a workload as a user's write would: defaults, rollout number, threshold.
    pub(crate) fn apply(&mut self, mut object: Object) -> Object {
        defaults::apply(&mut object);
        let key = object.key();
        let previous = self.index.get(&key).cloned();
        if let Some(previous) = &previous {
            object.metadata_mut().insert("uid".into(), previous.uid().into());
            object.metadata_mut().insert("generation".into(), (previous.generation() + 1).into());
            for (name, text) in previous.annotations() {
                if object.annotation(&name).is_none() {
                    object.set_annotation(&name, &text);
                }
            }
            if let Some(status) = previous.status() {
                object.value_mut()["status"] = status.clone();
            }
        }
        let number = rollout::stamp(previous.as_deref(), &mut object, 1);
        let stored = self.put(object);
        if let Some(number) = number {
            let daemon_update = previous.is_some() && stored.kind() == &kind::DAEMON_SET;
            let threshold = if daemon_update { 0 } else { rollout::THRESHOLD_ALL };
            self.change_rollout(stored.uid(), |state| {
                state.thresholds.insert(number.to_string(), threshold);
            });
        }
        stored
    }

    pub(crate) fn edit(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        let mut object = (**self.index.get(key).unwrap()).clone();
        change(object.value_mut());
        self.put(object);
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> &Object {
        self.index.get(key).unwrap_or_else(|| panic!("{key} is missing"))
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        self.index.set(key, None);
    }

    /// A ready Node in contact.
    pub(crate) fn node(&mut self, name: &str) -> Object {
        self.contacts.insert(name.to_owned(), Contact::Connected { since: self.now });
        self.put(parse(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"name": name}}, "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
        })))
    }

    /// The device is not heard any more, for long enough to be silent.
    pub(crate) fn silence(&mut self, name: &str) {
        self.contacts.insert(name.to_owned(), Contact::Silent { last: Timestamp(self.now.0.saturating_sub(60_000)) });
    }

    pub(crate) fn hear(&mut self, name: &str) {
        self.contacts.insert(name.to_owned(), Contact::Connected { since: self.now });
    }

    /// Carries a plan out; panics on what the store would refuse.
    pub(crate) fn carry_out(&mut self, plan: Plan) {
        for write in plan.writes {
            match write {
                Write::Create(object) => {
                    assert!(self.index.get(&object.key()).is_none(), "{} exists", object.key());
                    self.put(object);
                }
                Write::Replace(mut object) => {
                    let current = self.get(&object.key());
                    assert_eq!(current.resource_version(), object.resource_version(), "{}", object.key());
                    assert_ne!(*current, object, "a write that changes nothing");
                    assert_eq!(
                        schema::unknown_fields(&object),
                        Vec::<String>::new(),
                        "a user's next write drops these"
                    );
                    if current.spec() != object.spec() {
                        let generation = current.generation() + 1;
                        object.metadata_mut().insert("generation".into(), generation.into());
                    }
                    self.put(object);
                }
                Write::Delete(deletion) => self.delete(&deletion),
                Write::Remove { key, .. } => self.remove(&key),
                Write::Threshold { workload_uid, number, threshold } => {
                    self.change_rollout(&workload_uid, |state| {
                        match threshold {
                            Some(threshold) => state.thresholds.insert(number.to_string(), threshold),
                            None => state.thresholds.remove(&number.to_string()),
                        };
                    });
                }
                Write::Grant { workload_uid, node, number } => self.change_rollout(&workload_uid, |state| {
                    match number {
                        Some(number) => state.grants.insert(node, number.to_string()),
                        None => state.grants.remove(&node),
                    };
                }),
                Write::Event(note) => {
                    self.events.push(format!("{} {}: {}", note.about.name, note.reason, note.message));
                }
            }
        }
    }

    /// Deletes as the API does.
    pub(crate) fn delete(&mut self, deletion: &super::Deletion) {
        let options = DeleteOptions {
            grace_period_seconds: deletion.grace_seconds,
            propagation: deletion.propagation,
            uid: Some(deletion.uid.clone()),
            resource_version: None,
        };
        let request = WriteRequest {
            key: deletion.key.clone(),
            mutation: Mutation::Delete(options),
            dry_run: DryRun::No,
            field_validation: FieldValidation::Ignore,
            user: User { name: "test".into(), groups: Vec::new() },
            field_manager: None,
        };
        let context = Context {
            now: self.now,
            uid: String::new(),
            name_suffix: String::new(),
            field_validation: FieldValidation::Ignore,
        };
        let decision = admission::decide(&self.index, 1, &request, &context).unwrap();
        match decision.written.outcome {
            Outcome::Removed(object) => self.remove(&object.key()),
            Outcome::Updated(object) => {
                self.put(object);
            }
            Outcome::Unchanged(_) => {}
            Outcome::Created(object) => panic!("deletion made {}", object.key()),
        }
    }

    fn change_rollout(&mut self, uid: &str, change: impl FnOnce(&mut RolloutState)) {
        let mut state = self.index.rollout(uid);
        change(&mut state);
        self.index.set_rollout(uid, state);
    }
}

pub(crate) fn parse(value: Value) -> Object {
    Object::parse(value).unwrap()
}

pub(crate) fn key(kind: kind::KindRef, name: &str) -> ObjectKey {
    let namespace = if kind.scope == kind::Scope::Cluster { "" } else { "shop" };
    ObjectKey::of(kind, namespace, name)
}

/// `web`, of an image, with a size and a strategy.
pub(crate) fn deployment(replicas: i64, image: &str, strategy: Value) -> Object {
    parse(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": image}]}}},
    }))
}

/// `agent`, of an image.
pub(crate) fn daemon_set(image: &str, strategy: Value) -> Object {
    parse(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "a", "image": image}]}}},
    }))
}

/// The status of a Pod that is ready since `since`.
pub(crate) fn ready(since: Timestamp) -> Value {
    json!({"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": since.to_rfc3339()}]})
}
