//! Operators at the hub, technicians at devices, and tools that watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_hub::HubBackend;
use flotilla_manifests::admission::{DeleteOptions, FieldValidation, Mutation, Part};
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::patch::Patch;
use flotilla_rest::Backend;
use flotilla_rest::backend::{DryRun, User, WatchEvent, WriteRequest};
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::model::{MARK, Model};
use crate::trace::Trace;

/// DaemonSets that operators know.
pub(crate) const SETS: u64 = 6;
const MAPS: u64 = 4;
pub(crate) const DEPLOYMENTS: u64 = 2;
/// The DaemonSet whose selector is another one with each write; it may select nobody.
pub(crate) const ROAMING: u64 = 4;
/// Groups of devices that DaemonSets select.
pub(crate) const GROUPS: [&str; 3] = ["g0", "g1", "g2"];

/// What is shared with those who check.
pub(crate) type SharedModel = Arc<Mutex<Model>>;

/// A write and the mark it leaves.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) key: ObjectKey,
    pub(crate) mutation: Mutation,
    pub(crate) mark: Option<u64>,
}

/// What an operator writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Set(u64),
    Map(u64),
    Deployment(u64),
    /// The DaemonSet [`ROAMING`], for the group of this number or, beyond them, for nobody.
    Roaming(u64),
}

/// The choice that writes to `subject`; what else it says is left to `chance`.
pub(crate) fn choice(subject: Subject, chance: u64) -> u64 {
    let (kind, number) = match subject {
        Subject::Set(number) => (0, number),
        Subject::Map(number) => (7, number),
        Subject::Deployment(number) => (10, number),
        Subject::Roaming(_) => (0, ROAMING),
    };
    let chance = match subject {
        Subject::Roaming(group) => (chance & !(3 << 24)) | ((group & 3) << 24),
        _ => chance,
    };
    (chance & !0xff_ff00) | (kind << 8) | (number << 16)
}

/// What an operator does next, by a choice: its bytes say verb, kind and number, the rest is the content.
pub(crate) fn operator(model: &mut Model, choice: u64) -> Wish {
    let (verb, object, number) = (choice & 0xff, (choice >> 8) & 0xff, (choice >> 16) & 0xff);
    let mark = model.fresh_mark();
    match object % 12 {
        0..=6 => daemon_set(model, number % SETS, verb, choice, mark),
        7..=9 => {
            let key = ObjectKey::of(&kind::CONFIG_MAP, "default", format!("map{}", number % MAPS));
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": key.name, "namespace": "default", "annotations": {MARK: mark.to_string()}},
                "data": {"value": mark.to_string(), "rest": noise(choice)}});
            wish(model, key, verb, mark, value)
        }
        _ => {
            let name = format!("web{}", number % DEPLOYMENTS);
            let key = ObjectKey::of(&kind::DEPLOYMENT, "default", name.as_str());
            model.ever.insert(format!("{name}:{mark}"), "any".to_owned());
            let mut value = workload("Deployment", &name, mark);
            value["spec"]["replicas"] = ((choice >> 24) % 4).into();
            wish(model, key, verb, mark, value)
        }
    }
}

fn daemon_set(model: &mut Model, number: u64, verb: u64, choice: u64, mark: u64) -> Wish {
    let name = format!("set{number}");
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", name.as_str());
    let chosen = if number == ROAMING { (choice >> 24) % 4 } else { number };
    let group = usize::try_from(chosen).ok().and_then(|number| GROUPS.get(number)).copied();
    let group = group.or((number == ROAMING).then_some("nobody"));
    model.ever.insert(format!("{name}:{mark}"), group.unwrap_or("any").to_owned());
    let mut value = workload("DaemonSet", &name, mark);
    if let Some(group) = group {
        value["spec"]["template"]["spec"]["nodeSelector"] = json!({"group": group});
    }
    value["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}});
    if number == SETS - 1 {
        value["spec"]["template"]["spec"]["containers"][0]["envFrom"] =
            json!([{"configMapRef": {"name": "map0", "optional": true}}]);
    }
    wish(model, key, verb, mark, value)
}

fn workload(kind: &str, name: &str, mark: u64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "default", "annotations": {MARK: mark.to_string()}},
        "spec": {"selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "runtimeClassName": "process", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "host", "command": ["/bin/sleep", "inf"],
                    "env": [{"name": "MARK", "value": format!("{name}:{mark}")}]}]}}}})
}

/// Up to 4 KB that do not get smaller, so that documents grow into their next epoch.
fn noise(seed: u64) -> String {
    let mut dice = Dice::new(seed);
    let words = dice.below(240);
    (0..words).map(|_| format!("{:016x}", dice.next())).collect()
}

/// Creates what is not there, changes what is, and sometimes deletes it.
fn wish(model: &mut Model, key: ObjectKey, verb: u64, mark: u64, value: Value) -> Wish {
    let there = model.object(&key).sure.is_some();
    if there && verb > 225 {
        model.deleted.insert(key.clone(), mark);
        return Wish { key, mutation: Mutation::Delete(DeleteOptions::default()), mark: None };
    }
    let mutation = if there {
        Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(value) }
    } else {
        match Object::parse(value) {
            Ok(body) => Mutation::Create { body },
            Err(error) => unreachable!("the simulator's own manifest: {error}"),
        }
    };
    Wish { key, mutation, mark: Some(mark) }
}

/// Whether a technician begins a Pod anew instead of changing its workload.
pub(crate) fn restarts(choice: u64) -> bool {
    (200..228).contains(&(choice & 0xff))
}

/// What a technician does at a device to a workload that is there: a note on it, a template of its own, all of that taken back, or no
/// more of it here.
pub(crate) fn technician(model: &mut Model, device: usize, key: ObjectKey, choice: u64) -> Wish {
    let mark = model.fresh_mark();
    if choice & 0xff >= 228 {
        model.held.insert((device, key.clone()));
        return Wish { key, mutation: Mutation::Delete(DeleteOptions::default()), mark: None };
    }
    let note = json!({"technician": mark.to_string()});
    let (patch, mark) = match choice & 0xff {
        0..140 => (json!({"metadata": {"annotations": note}}), Some(mark)),
        140..190 => {
            let template = json!({"metadata": {"annotations": note}});
            (json!({"metadata": {"annotations": note}, "spec": {"template": template}}), Some(mark))
        }
        _ => {
            let none = json!({"technician": null});
            let template = json!({"metadata": {"annotations": none}});
            (json!({"metadata": {"annotations": none}, "spec": {"template": template}}), None)
        }
    };
    Wish { key, mutation: Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(patch) }, mark }
}

/// A technician deletes a Pod at its device: it begins anew there.
pub(crate) fn restart(model: &mut Model, device: usize, pod: &Object) -> Wish {
    model.restarted.insert((device, pod.uid().to_owned()));
    Wish { key: pod.key(), mutation: Mutation::Delete(DeleteOptions::default()), mark: None }
}

pub(crate) fn request(wish: &Wish, user: &str) -> WriteRequest {
    WriteRequest {
        key: wish.key.clone(),
        mutation: wish.mutation.clone(),
        dry_run: DryRun::No,
        field_validation: FieldValidation::Strict,
        user: User { name: user.to_owned(), groups: vec!["system:masters".to_owned()] },
        field_manager: None,
    }
}

/// Whether the server has said that the write did not happen, and never will.
pub(crate) fn is_refusal(error: &ApiError) -> bool {
    !matches!(error.reason, Reason::InternalError | Reason::ServiceUnavailable | Reason::Timeout)
}

/// A tool that lists once and watches from there, over every life of the hub.
#[derive(Debug)]
pub(crate) struct Watcher {
    kind: KindRef,
    trace: Trace,
    state: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    known: BTreeMap<ObjectKey, u64>,
    version: u64,
}

impl Watcher {
    pub(crate) fn new(kind: KindRef, trace: Trace) -> Self {
        Self { kind, trace, state: Mutex::default() }
    }

    /// Watches one life of the hub, from where the last one ended.
    pub(crate) async fn run(self: Arc<Self>, backend: Arc<HubBackend>) {
        loop {
            let from = self.lock().version;
            let watching = if from == 0 { None } else { backend.watch(self.kind, None, from).await.ok() };
            let Some(mut events) = watching else {
                let Ok(list) = backend.list(self.kind, None).await else { return };
                let mut state = self.lock();
                state.known = list.items.iter().map(|one| (one.key(), one.resource_version())).collect();
                state.version = list.resource_version;
                if from == 0 || state.version != from {
                    continue;
                }
                // It will not serve the version that it has just said.
                drop(state);
                self.trace.fail("watch", format_args!("{}: a list's own version {from} is refused", self.kind.name));
                return;
            };
            while let Some(event) = events.recv().await {
                if !self.take(&event) {
                    break;
                }
            }
            if self.lock().version != 0 {
                // The watch ended though nothing had expired: this hub is gone.
                return;
            }
        }
    }

    /// `false`: list anew.
    fn take(&self, event: &WatchEvent) -> bool {
        let mut state = self.lock();
        let (object, expected) = match event {
            WatchEvent::Added(object) => (object, None),
            WatchEvent::Modified { previous, object } => (object, Some(previous.resource_version())),
            WatchEvent::Deleted(object) => {
                if state.known.remove(&object.key()).is_none() {
                    self.trace.fail("watch", format_args!("{} was deleted and had not been there", object.key()));
                }
                self.advance(&mut state, object.resource_version(), &object.key());
                return true;
            }
            WatchEvent::Progress(version) => {
                state.version = state.version.max(*version);
                return true;
            }
            WatchEvent::Expired => {
                state.version = 0;
                return false;
            }
        };
        let key = object.key();
        let known = state.known.insert(key.clone(), object.resource_version());
        if known != expected {
            let what = format!("{key} went from {known:?}, but the event says from {expected:?}");
            self.trace.fail("watch", what);
        }
        self.advance(&mut state, object.resource_version(), &key);
        true
    }

    fn advance(&self, state: &mut Watched, version: u64, key: &ObjectKey) {
        if version <= state.version {
            self.trace.fail("watch", format_args!("{key} at {version} came after {}", state.version));
        }
        state.version = version;
    }

    /// What the watcher believes, at rest: the same as a list.
    pub(crate) async fn agrees(&self, backend: &HubBackend) -> Result<(), String> {
        let list = backend.list(self.kind, None).await.map_err(|error| error.to_string())?;
        let listed: BTreeMap<ObjectKey, u64> =
            list.items.iter().map(|one| (one.key(), one.resource_version())).collect();
        let known = &self.lock().known;
        if *known == listed {
            return Ok(());
        }
        let differs = listed.iter().find(|(key, version)| known.get(*key) != Some(*version));
        Err(format!(
            "a watcher of {} knows {} objects, the list has {}; first: {differs:?}",
            self.kind.name,
            known.len(),
            listed.len()
        ))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
