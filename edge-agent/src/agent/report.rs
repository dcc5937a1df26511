//! What the device shows at its own API and tells the hub.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::{self, CAUSE_ANNOTATION};
use flotilla_manifests::rollout::RolloutNumber;
use flotilla_manifests::time::Timestamp;
use serde_json::{Value, json};

use super::meant::{Ground, Said};
use super::shown::Added;
use super::{Agent, PassError, local};
use crate::effective::Origin;
use crate::events::Subject;
use crate::knowledge::Read;
use crate::local_write::LAST_APPLIED_ANNOTATION;
use crate::reconcile::{Notice, Observed};
use crate::replica::Fact;
use crate::runtime::Runtime;
use crate::store::Damage;
use crate::uplink::Link;

/// Invalid manifests named in a condition.
const REFUSED_SHOWN_MAX: usize = 8;

/// Subject of the list of all pods of this device, which is told to each life of the hub once.
const PODS: &str = "pods";

/// What was put into the outbox last, by subject: only changes are put there again.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    told: BTreeMap<String, Told>,
    /// By namespace and name of pods, the subject that spoke last: to the hub that one is the pod of this name.
    last: BTreeMap<(String, String), String>,
    /// The life of the hub that was told, and how often somebody else had spoken under this device's name until then.
    told_to: (u64, u64),
    /// The Node's status, and what it was made from.
    node_status: Option<(Ground, Arc<Value>)>,
}

/// What is to be told of one pod.
#[derive(Debug)]
struct PodFact<'a> {
    subject: String,
    pod: &'a Object,
    origin: &'a Origin,
    status: &'a Value,
}

impl PodFact<'_> {
    /// The later one takes the place of the earlier one.
    fn place(&self) -> Place {
        (self.origin.number, self.origin.attempt)
    }
}

/// Number and attempt of a pod; none of the node.
type Place = (Option<RolloutNumber>, u64);

/// What was told of a subject, which says who it is.
#[derive(Debug)]
struct Told {
    place: Place,
    status: Arc<Value>,
    transition: Value,
}

impl Reports {
    /// A pod's end is told: whatever takes its uid later is news.
    pub(super) fn ended(&mut self, uid: &str) {
        self.told.remove(&format!("pod/{uid}"));
    }
}

impl<R: Runtime> Agent<R> {
    /// Brings the local API's view up to date.
    pub(super) fn show(&mut self, read: &Read, said: &Said) {
        let objects = &self.state.meant.effective.objects;
        let counts = local::count_pods(objects, &said.statuses);
        let node_key = ObjectKey::of(&kind::NODE, "", self.node.name.as_str());
        let renewed = std::mem::take(&mut self.state.renewed);
        let mut view = self.shared.view();
        let mut showing = self.state.shown.begin(&view);
        for (key, object) in objects {
            let uid = object.uid();
            let mut added = Added::default();
            if key.kind == &kind::POD {
                let taken_up = self.shared.history().get(uid).and_then(|history| history.started_at);
                added.status = said.statuses.get(uid).map(Cow::Borrowed);
                added.created = taken_up.filter(|_| object.creation_timestamp().is_none());
            } else if *key == node_key {
                added.status = Some(Cow::Borrowed(&*said.node));
                added.annotations.push(("flotilla.dev/sync", said.sync.into()));
            } else {
                let count = counts.get(uid).copied().unwrap_or_default();
                added.status = local::status(object, count).map(Cow::Owned);
            }
            let texts = [(LAST_APPLIED_ANNOTATION, &self.last_applied), (CAUSE_ANNOTATION, &self.causes)];
            let texts = texts.into_iter().filter_map(|(name, of)| Some((name, of.get(uid)?.as_str().into())));
            added.annotations.extend(texts);
            showing.put(key.clone(), object, added);
        }
        for event in self.state.events.objects() {
            showing.put(event.key(), event, Added::default());
        }
        let mut objects = showing.end();
        for record in &read.known.overrides {
            let mut object = overrides::object_of(record, &self.node.name);
            object.metadata_mut().insert("uid".into(), record.id.clone().into());
            objects.insert(object.key(), Arc::new(object));
        }
        local::add_namespaces(&mut objects, |key| view.object(key));
        let changes = view.replace(objects, &renewed);
        drop(view);
        if !changes.is_empty() {
            self.shared.announce();
        }
    }

    /// How this device stands with the hub, in a word.
    pub(super) fn sync(&self) -> &'static str {
        match *self.inbox.link.borrow() {
            Link::Down => "offline",
            Link::Up if self.replica.unreported() > 0 => "waiting",
            Link::Up => "synced",
        }
    }

    /// Takes in what the newest plan tells of pods.
    pub(super) fn note(&mut self, notices: &BTreeMap<String, BTreeSet<Notice>>) {
        let effective = &self.state.meant.effective;
        let subject = |uid: &str| {
            let (pod, origin) = (effective.pods.pods.get(uid)?, effective.origins.get(uid)?);
            Some(Subject { pod: &pod.object, uid_at_hub: &origin.subject })
        };
        self.state.events.take_in(&self.node.name, notices, subject, self.clock.now());
    }

    /// Puts what changed into the outbox: transitions marked urgent, ends durable.
    pub(super) async fn report(
        &mut self,
        read: &Read,
        observed: &Observed,
        said: &Said,
        anew: bool,
    ) -> Result<(), PassError> {
        let (statuses, told_to) = (&said.statuses, said.told_to);
        let to_another = told_to != self.state.reports.told_to;
        if to_another {
            // Another board with a copy of this card may have told it something else since, too.
            // Restored from a backup, it may know nothing of what its earlier life acknowledged.
            self.state.reports.told.clear();
            self.state.confirmed.clear();
            self.state.reports.told_to = told_to;
        }
        let mut facts = if anew { self.pod_facts(statuses)? } else { Vec::new() };
        let lives = |uid: &String| {
            statuses.contains_key(uid)
                || observed.sandboxes.contains_key(uid)
                || observed.volumes.contains_key(uid)
                || self.shared.history().contains_key(uid)
        };
        let confirmable = read.known.evictions.iter().filter(|uid| !self.state.confirmed.contains(*uid) && !lives(uid));
        let gone: Vec<String> = confirmable.cloned().collect();
        self.state.confirmed.retain(|uid| read.known.evictions.contains(uid));
        if to_another {
            // Behind all that is told of them: a hub that was restored may show pods whose end only its earlier life was told.
            let body = serde_json::to_vec(&json!({"uids": self.pods_there(statuses, observed)}))?;
            facts.push((PODS.to_owned(), true, Some(body)));
        }
        for uid in &gone {
            self.state.reports.ended(uid);
            facts.push((format!("pod/{uid}"), true, None));
            self.state.confirmed.insert(uid.clone());
        }
        let node = &said.node;
        let known = self.state.reports.told.get("node");
        if known.is_none_or(|told| told.status != *node) {
            let transition = conditions(node);
            let urgent = known.is_none_or(|told| told.transition != transition);
            facts.push(("node".to_owned(), urgent, Some(serde_json::to_vec(&**node)?)));
            let told = Told { place: Place::default(), status: Arc::clone(node), transition };
            self.state.reports.told.insert("node".to_owned(), told);
        }
        let now = self.clock.now();
        let mut told = Vec::new();
        for (name, subject, body) in self.state.events.untold(now) {
            facts.push((subject, true, Some(serde_json::to_vec(&body)?)));
            told.push(name);
        }
        let subjects: Vec<String> = facts.iter().map(|(subject, ..)| subject.clone()).collect();
        if let Err(error) = self.replica.report(facts).await {
            // Nothing of it is in the outbox: the next pass tells it again.
            self.state.reports.told.retain(|subject, _| !subjects.contains(subject));
            self.state.confirmed.retain(|uid| !gone.contains(uid));
            if to_another {
                self.state.reports.told_to = (0, 0);
            }
            return Err(error.into());
        }
        self.state.events.told(&told, now);
        Ok(())
    }

    /// Every pod of which anything is here, as the hub knows it.
    fn pods_there(&self, statuses: &BTreeMap<String, Value>, observed: &Observed) -> BTreeSet<String> {
        let origins = &self.state.meant.effective.origins;
        let at_hub = |uid: &String| origins.get(uid).map_or_else(|| uid.clone(), |origin| origin.subject.clone());
        let mut there: BTreeSet<String> = statuses.keys().chain(observed.sandboxes.keys()).map(at_hub).collect();
        there.extend(self.shared.history().keys().map(at_hub));
        there
    }

    /// What changed of the pods. Two of one name stand side by side while one takes the other's place: the later number speaks last, and
    /// speaks again when the earlier one does, because to the hub the newest word says which of them there is. So does whoever is left when
    /// the one that spoke last has gone.
    fn pod_facts(&mut self, statuses: &BTreeMap<String, Value>) -> Result<Vec<Fact>, PassError> {
        let effective = &self.state.meant.effective;
        let mut by_name: BTreeMap<(&str, &str), Vec<PodFact<'_>>> = BTreeMap::new();
        for (uid, status) in statuses {
            let Some((origin, pod)) = effective.origins.get(uid).zip(effective.pods.pods.get(uid)) else { continue };
            let pod = &*pod.object;
            let fact = PodFact { subject: format!("pod/{}", origin.subject), pod, origin, status };
            by_name.entry((pod.namespace(), pod.name())).or_default().push(fact);
        }
        let mut facts = Vec::new();
        let Reports { told, last, .. } = &mut self.state.reports;
        let spoke_last = std::mem::take(last);
        for ((namespace, name), mut pods) in by_name {
            pods.sort_by_key(PodFact::place);
            let Some(speaker) = pods.last().map(|fact| fact.subject.clone()) else { continue };
            let name = (namespace.to_owned(), name.to_owned());
            let another_spoke = spoke_last.get(&name).is_some_and(|spoke| *spoke != speaker);
            let (mut earlier_spoke, mut earlier_urgent) = (false, false);
            for fact in pods {
                let known = told.get(&fact.subject);
                let unchanged = known.is_some_and(|told| told.place == fact.place() && *told.status == *fact.status);
                let left = another_spoke && fact.subject == speaker;
                if unchanged && !earlier_spoke && !left {
                    continue;
                }
                earlier_spoke = true;
                // The repetition leaves with what it answers: in between, the hub would show the earlier one.
                let transition = transition(fact.status);
                let urgent = earlier_urgent || left || known.is_none_or(|told| told.transition != transition);
                earlier_urgent = urgent;
                facts.push((fact.subject.clone(), urgent, Some(serde_json::to_vec(&body(&fact))?)));
                let now = Told { place: fact.place(), status: Arc::new(fact.status.clone()), transition };
                told.insert(fact.subject, now);
            }
            last.insert(name, speaker);
        }
        Ok(facts)
    }

    /// What this pass shows and tells.
    pub(super) fn saying(&mut self, ground: &Ground, statuses: BTreeMap<String, Value>) -> Said {
        Said {
            statuses: Arc::new(statuses),
            events: self.state.events.generation(),
            sync: self.sync(),
            node: self.node_status(ground),
            told_to: (self.replica.hub_life(), self.replica.replaced()),
        }
    }

    /// The Node's status, dated when it last changed: heartbeats alone are the session's business and make no new one.
    fn node_status(&mut self, ground: &Ground) -> Arc<Value> {
        let previous = self.state.reports.node_status.take();
        if let Some((of, status)) = previous.as_ref().filter(|(of, _)| of == ground) {
            let status = status.clone();
            self.state.reports.node_status = Some((of.clone(), status.clone()));
            return status;
        }
        let previous = previous.map(|(_, status)| status);
        let known = previous.as_deref();
        let (pressure, now) = (self.host.pressure(), self.clock.now());
        let status = self.host.node_status(&self.node.name, &self.facilities, &pressure, known, now);
        let status = with_damage(status, &self.damage());
        let mut status = with_refused(status, &self.state.meant.read.refused, known, now);
        with_missing(&mut status, self.replica.missing_large_values(), known, now);
        status["images"] = super::images::shown(&self.images.current());
        let same = known.is_some_and(|known| without_heartbeats(known.clone()) == without_heartbeats(status.clone()));
        let status = previous.filter(|_| same).unwrap_or_else(|| Arc::new(status));
        self.state.reports.node_status = Some((ground.clone(), status.clone()));
        status
    }
}

/// A pod as the hub knows it.
fn body(fact: &PodFact<'_>) -> Value {
    let PodFact { pod, origin, status, .. } = fact;
    json!({
        "namespace": pod.namespace(), "name": pod.name(), "uid": origin.subject, "workload": origin.workload,
        "number": origin.number, "attempt": origin.attempt, "status": status,
    })
}

/// Adds a condition that tells of damage on the disk, as long as nobody has cleared it.
fn with_damage(mut status: Value, damage: &Damage) -> Value {
    let Some(message) = damage.message() else { return status };
    let since = Timestamp(damage.since_ms()).to_rfc3339();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.push(json!({
            "type": "StorageDamaged", "status": "True", "reason": "RowsUnreadable", "message": message,
            "lastTransitionTime": since, "lastHeartbeatTime": since,
        }));
    }
    status
}

/// Says whether the large values that objects name are here, once any was not.
fn with_missing(status: &mut Value, missing: usize, previous: Option<&Value>, now: Timestamp) {
    const TYPE: &str = "ObjectsComplete";
    let known = previous.and_then(|status| status["conditions"].as_array()?.iter().find(|one| one["type"] == TYPE));
    if missing == 0 && known.is_none() {
        return;
    }
    let (value, reason, message) = if missing == 0 {
        ("True", "AllPresent", "every large value that an object names is on this device".to_owned())
    } else {
        let message =
            format!("{missing} large values are on their way; until they are here, what was in force before stays");
        ("False", "LargeValuesMissing", message)
    };
    let now = now.to_rfc3339();
    let same = known.filter(|known| known["status"] == value);
    let since = same.and_then(|known| known["lastTransitionTime"].as_str()).unwrap_or(&now).to_owned();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.push(json!({
            "type": TYPE, "status": value, "reason": reason, "message": message,
            "lastTransitionTime": since, "lastHeartbeatTime": now,
        }));
    }
}

/// Adds a condition that names manifests whose newest state is not valid; what they said before stays in force.
fn with_refused(
    mut status: Value,
    refused: &BTreeMap<String, String>,
    previous: Option<&Value>,
    now: Timestamp,
) -> Value {
    if refused.is_empty() {
        return status;
    }
    let known = |status: &Value| {
        let found = status["conditions"].as_array()?.iter().find(|one| one["type"] == "ManifestsInvalid")?;
        Some(found["lastTransitionTime"].clone())
    };
    let since = previous.and_then(known).unwrap_or_else(|| now.to_rfc3339().into());
    let named: Vec<String> =
        refused.iter().take(REFUSED_SHOWN_MAX).map(|(what, why)| format!("{what}: {why}")).collect();
    let message = format!("{} stay as they were: {}", refused.len(), named.join("; "));
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.push(json!({
            "type": "ManifestsInvalid", "status": "True", "reason": "InvalidMerge", "message": message,
            "lastTransitionTime": since, "lastHeartbeatTime": now.to_rfc3339(),
        }));
    }
    status
}

/// What of a PodStatus leaves at once when it changes: phase, and per container ready, restarts and the kind of its state.
fn transition(status: &Value) -> Value {
    let containers =
        ["initContainerStatuses", "containerStatuses"].iter().filter_map(|field| status[*field].as_array());
    let facts = containers.flatten().map(|one| {
        let state: Vec<&String> = one["state"].as_object().into_iter().flat_map(|state| state.keys()).collect();
        json!([one["name"], one["ready"], one["restartCount"], state])
    });
    json!([status["phase"], facts.collect::<Vec<_>>()])
}

/// Types and statuses of a NodeStatus' conditions.
fn conditions(status: &Value) -> Value {
    let list = status["conditions"].as_array().into_iter().flatten();
    list.map(|one| json!([one["type"], one["status"]])).collect()
}

fn without_heartbeats(mut status: Value) -> Value {
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
        }
    }
    status
}
