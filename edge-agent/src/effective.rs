//! From what a device knows to what it shows and runs: the effective state.
//!
//! Owns: which DaemonSets select this Node, which rollout number runs, what overrides change, what a hold stops. Refuses I/O and
//! remembers nothing: what must survive a restart comes in and goes out as [`Memory`]. Start reading at [`effective`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::derive::{self, NodeRef, Placement};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::{self, Notice, OverrideRecord};
use flotilla_manifests::rollout::{self, RolloutNumber};
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::{defaults, kind};

use crate::reconcile::{Deletion, DesiredPod, DesiredPods};
use flotilla_sync::planted::{self, Bug};

/// Annotation a technician's delete puts, by an override, on a workload: nothing of it runs here, and it is not shown.
pub const HOLD_ANNOTATION: &str = "flotilla.dev/hold";

/// A manifest as its document says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub object: Arc<Object>,
    /// Thresholds of the rollout numbers in flight.
    pub thresholds: BTreeMap<RolloutNumber, u64>,
    /// The manifest as it was when each number in flight began, where the document still knows.
    pub at_number: BTreeMap<RolloutNumber, Arc<Object>>,
}

/// Everything a device knows, unpacked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// By object uid.
    pub manifests: BTreeMap<String, Arc<Manifest>>,
    /// By pod uid.
    pub placements: BTreeMap<String, Placement>,
    /// Workload uid -> number this device may move to.
    pub grants: BTreeMap<String, RolloutNumber>,
    /// Documents whose newest change was made before this device's present session: it learned of it by catching up.
    pub caught_up: BTreeSet<String>,
    /// Pod uids the hub wants ended.
    pub evictions: BTreeSet<String>,
    /// Uids of documents and placements that are here and say nothing that can be understood: a damaged row, a poison change.
    /// What runs of them goes on running as it is remembered; they are not taken for deleted.
    pub unreadable: BTreeSet<String>,
    /// Opened Secrets, as objects.
    pub secrets: BTreeMap<String, Object>,
    /// This device's own overrides, oldest first.
    pub overrides: Vec<OverrideRecord>,
}

/// What a device remembers about one workload beyond its documents. Durable.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WorkloadMemory {
    /// What runs: a device never moves back from it by itself.
    pub number: Option<RolloutNumber>,
    /// The manifest at `number`, for when the document has forgotten it.
    pub manifest: Option<Arc<serde_json::Value>>,
}

impl WorkloadMemory {
    fn object(&self) -> Option<Arc<Object>> {
        Object::parse(serde_json::Value::clone(self.manifest.as_deref()?)).ok().map(Arc::new)
    }
}

/// Durable facts of this device's own.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// By workload uid.
    pub workloads: BTreeMap<String, WorkloadMemory>,
    /// Raised when a derived Pod is deleted or evicted: by workload uid for DaemonSets, by pod uid for placements.
    pub attempts: BTreeMap<String, u64>,
}

impl Memory {
    /// Whether a workload that is remembered here is not in `next`: it left, and is met like a new one from then on.
    pub(crate) fn loses_to(&self, next: &Self) -> bool {
        self.workloads.keys().any(|uid| !next.workloads.contains_key(uid))
    }
}

/// What the device shows and runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective {
    /// Everything but Pods' statuses.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub pods: DesiredPods,
    /// By pod uid.
    pub origins: BTreeMap<String, Origin>,
    pub memory: Memory,
    /// Overrides that no longer fit their base, for the override's status.
    pub notices: Vec<Notice>,
    /// Uids of pods that may be wanted, though nothing readable says how: they are left as they are.
    pub left_alone: BTreeSet<String>,
}

/// What a Pod was derived from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Uid of what it was derived from; its own for a bare Pod.
    pub workload: String,
    pub number: Option<RolloutNumber>,
    pub attempt: u64,
    /// The uid the hub knows it by.
    pub subject: String,
    /// By the scheduler, and therefore with a uid that the hub gave.
    pub placed: bool,
}

impl Effective {
    /// Holds what is as it was before only once: whoever looks for changes need not look into it.
    pub(crate) fn share(&mut self, before: &Self) {
        for (uid, pod) in &mut self.pods.pods {
            let Some(known) = before.pods.pods.get(uid).filter(|known| known.object == pod.object) else { continue };
            let made = std::mem::replace(&mut pod.object, Arc::clone(&known.object));
            if let Some(object) = self.objects.get_mut(&made.key()).filter(|object| Arc::ptr_eq(object, &made)) {
                *object = Arc::clone(&known.object);
            }
        }
    }
}

/// The effective state of the device `node`, whose Node manifest is among the known ones once it has synced.
pub fn effective(node: &NodeRef, known: &Known, memory: &Memory, now: Timestamp) -> Effective {
    let mut result = Effective::default();
    let live = overrides::live(&known.overrides, now);
    let node_object = show_node(node, known, &live, &mut result);
    let recalled = recalled(node, known, memory, &mut result);
    for (uid, manifest) in known.manifests.iter().chain(&recalled) {
        match manifest.object.kind().name {
            "Node" => {}
            "DaemonSet" => daemon_set(uid, manifest, node, &node_object, &live, (known, memory), &mut result),
            "Deployment" | "ReplicaSet" => placed(uid, manifest, node, &live, (known, memory), &mut result),
            "Pod" => bare_pod(uid, manifest, &live, known, &mut result),
            "ConfigMap" => config_map(manifest, &live, &mut result),
            _ => show(overridden(&manifest.object, &live, &mut result), &mut result),
        }
    }
    for secret in known.secrets.values() {
        let data = secret.at("/data").and_then(serde_json::Value::as_object);
        let opened =
            data.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), decoded(text.as_str()?)?)));
        result.pods.secrets.insert((secret.namespace().into(), secret.name().into()), opened.collect());
        show(Arc::new(secret.clone()), &mut result);
    }
    result
}

/// Workloads whose documents cannot be read, as they are remembered.
fn recalled(node: &NodeRef, known: &Known, memory: &Memory, result: &mut Effective) -> BTreeMap<String, Arc<Manifest>> {
    let mut manifests = BTreeMap::new();
    for uid in &known.unreadable {
        let placed = known.placements.values().find(|placement| placement.workload == *uid);
        let remembered = memory.workloads.get(uid).or_else(|| memory.workloads.get(&placed?.uid));
        let object = remembered.and_then(WorkloadMemory::object);
        match object.filter(|object| object.uid() == uid) {
            Some(object) => {
                let manifest = Manifest { object, thresholds: BTreeMap::new(), at_number: BTreeMap::new() };
                manifests.insert(uid.clone(), Arc::new(manifest));
            }
            None => leave_alone(uid, node, memory, result),
        }
    }
    manifests
}

/// A bare Pod, or one of a placement, of which only the uid is known.
fn leave_alone(uid: &str, node: &NodeRef, memory: &Memory, result: &mut Effective) {
    result.left_alone.insert(uid.to_owned());
    let attempt = memory.attempts.get(uid).copied().unwrap_or(0);
    keep_attempt(uid, attempt, result);
    if let Some(workload) = memory.workloads.get(uid) {
        result.memory.workloads.insert(uid.to_owned(), workload.clone());
        let local = workload.number.map(|number| derive::daemon_pod_uid(uid, &node.uid, number, attempt));
        result.left_alone.extend(local);
    }
}

fn show_node(node: &NodeRef, known: &Known, live: &[OverrideRecord], result: &mut Effective) -> Arc<Object> {
    let own = known.manifests.get(&node.uid).map(|manifest| manifest.object.clone());
    let object = own.unwrap_or_else(|| {
        let mut unsynced = Object::empty(&kind::NODE, "", &node.name);
        unsynced.metadata_mut().insert("uid".into(), node.uid.clone().into());
        Arc::new(unsynced)
    });
    let object = overridden(&object, live, result);
    show(object.clone(), result);
    object
}

fn daemon_set(
    uid: &str,
    manifest: &Manifest,
    node: &NodeRef,
    node_object: &Object,
    live: &[OverrideRecord],
    (known, memory): (&Known, &Memory),
    result: &mut Effective,
) {
    let shown = overridden(&manifest.object, live, result);
    let attempt = memory.attempts.get(uid).copied().unwrap_or(0);
    let remembered = memory.workloads.get(uid);
    let Some((number, at_number)) = chosen(uid, manifest, &node.uid, known, remembered) else {
        return;
    };
    let runs_already = remembered.is_some_and(|workload| workload.number.is_some());
    let belongs = |set: &Object| {
        let selection = derive::selection(set, node_object);
        let may_stay = selection.may_stay || known.unreadable.contains(&node.uid);
        selection.should_run || may_stay && runs_already
    };
    // Where a set belongs is said by its newest template, also to those for whose turn the rest of it waits (as in Kubernetes).
    let selected = belongs(&shown) && belongs(&overridden(&at_number, live, result));
    if !(selected || planted::is(Bug::SelectorIgnored)) {
        return;
    }
    keep_attempt(uid, attempt, result);
    if held(&shown) {
        return;
    }
    show(shown, result);
    remember(uid, number, &at_number, memory, result);
    let attempt = next_attempt(
        uid,
        attempt,
        |attempt| known.evictions.contains(&derive::daemon_pod_uid(uid, &node.uid, number, attempt)),
        result,
    );
    let pod = derive::daemon_pod(&at_number, node, number, attempt, live);
    let subject = pod.uid().to_owned();
    run(pod, Origin { workload: uid.to_owned(), number: Some(number), attempt, subject, placed: false }, None, result);
}

/// Pods of a Deployment or ReplicaSet that the scheduler placed here.
fn placed(
    uid: &str,
    manifest: &Manifest,
    node: &NodeRef,
    live: &[OverrideRecord],
    (known, memory): (&Known, &Memory),
    result: &mut Effective,
) {
    let shown = overridden(&manifest.object, live, result);
    if held(&shown) {
        return;
    }
    let scaled_to_none = live.iter().any(|one| one.target.uid == uid) && shown.at("/spec/replicas") == Some(&0.into());
    show(shown, result);
    for placement in known.placements.values().filter(|placement| placement.workload == uid) {
        let number = placement.number;
        let Some(at_number) = at(manifest, number, memory.workloads.get(&placement.uid)) else { continue };
        remember(&placement.uid, number, &at_number, memory, result);
        let attempt = memory.attempts.get(&placement.uid).copied().unwrap_or(0);
        keep_attempt(&placement.uid, attempt, result);
        if scaled_to_none {
            continue;
        }
        let mut pod = derive::placed_pod(&at_number, placement, &node.name, attempt, live);
        if attempt > 0 {
            // A life of its own on this device; the hub goes on knowing it by the uid it gave.
            let local = derive::daemon_pod_uid(&placement.uid, &node.uid, number, attempt);
            pod.metadata_mut().insert("uid".into(), local.into());
        }
        let subject = placement.uid.clone();
        let deletion = known.evictions.contains(&placement.uid).then_some(Deletion { grace_seconds: None });
        let origin = Origin { workload: uid.to_owned(), number: Some(number), attempt, subject, placed: true };
        run(pod, origin, deletion, result);
    }
}

fn bare_pod(uid: &str, manifest: &Manifest, live: &[OverrideRecord], known: &Known, result: &mut Effective) {
    let pod = overridden(&manifest.object, live, result);
    if held(&pod) {
        return;
    }
    let deletion = known.evictions.contains(uid).then_some(Deletion { grace_seconds: None });
    let origin = Origin { workload: uid.to_owned(), number: None, attempt: 0, subject: uid.to_owned(), placed: false };
    run(Arc::unwrap_or_clone(pod), origin, deletion, result);
}

fn config_map(manifest: &Manifest, live: &[OverrideRecord], result: &mut Effective) {
    let object = overridden(&manifest.object, live, result);
    let data = object.at("/data").and_then(serde_json::Value::as_object);
    let data = data.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())));
    let key: (String, String) = (object.namespace().into(), object.name().into());
    result.pods.config_maps.insert(key.clone(), data.collect());
    let binary = object.at("/binaryData").and_then(serde_json::Value::as_object).into_iter().flatten();
    let binary: BTreeMap<String, Vec<u8>> =
        binary.filter_map(|(name, text)| Some((name.clone(), decoded(text.as_str()?)?))).collect();
    if !binary.is_empty() {
        result.pods.config_map_binaries.insert(key, binary);
    }
    show(object, result);
}

/// The newest number this device may run with its manifest; what already runs when nothing newer is allowed. One that runs and
/// learns of its turn by catching up waits for a grant, so that a thousand returners do not restart together.
fn chosen(
    uid: &str,
    manifest: &Manifest,
    device_uid: &str,
    known: &Known,
    remembered: Option<&WorkloadMemory>,
) -> Option<(RolloutNumber, Arc<Object>)> {
    let granted = known.grants.get(uid);
    let returned = known.caught_up.contains(uid) && remembered.is_some_and(|workload| workload.number.is_some());
    let allowed = manifest.thresholds.iter().filter(|(number, threshold)| {
        !returned && rollout::admitted(device_uid, **number, **threshold) || granted == Some(*number)
    });
    let newest = allowed.map(|(number, _)| *number).max();
    let current = remembered.and_then(|workload| workload.number);
    let number = newest.max(current)?;
    match at(manifest, number, remembered) {
        Some(object) => Some((number, object)),
        None => {
            // Neither the document nor this device remembers the template: only the running one could be meant.
            let fallback = current?;
            tracing::warn!(object = uid, %number, "a rollout number has no template in its document");
            at(manifest, fallback, remembered).map(|object| (fallback, object))
        }
    }
}

/// The manifest at a number: from the document, else from memory. What is not template follows the newest manifest.
fn at(manifest: &Manifest, number: RolloutNumber, remembered: Option<&WorkloadMemory>) -> Option<Arc<Object>> {
    if let Some(object) = manifest.at_number.get(&number) {
        return Some(object.clone());
    }
    if rollout::number_of(&manifest.object) == Some(number) {
        return Some(manifest.object.clone());
    }
    let workload = remembered.filter(|workload| workload.number == Some(number))?;
    workload.object()
}

fn remember(uid: &str, number: RolloutNumber, object: &Object, memory: &Memory, result: &mut Effective) {
    let known = memory.workloads.get(uid).and_then(|known| known.manifest.as_ref());
    let manifest = known.filter(|known| ***known == *object.value()).cloned();
    let manifest = manifest.unwrap_or_else(|| Arc::new(object.value().clone()));
    let memory = WorkloadMemory { number: Some(number), manifest: Some(manifest) };
    result.memory.workloads.insert(uid.to_owned(), memory);
}

fn keep_attempt(uid: &str, attempt: u64, result: &mut Effective) {
    if attempt > 0 {
        result.memory.attempts.insert(uid.to_owned(), attempt);
    }
}

/// Steps over every attempt the hub wants ended. The raised attempt is durable before the pod's end is confirmed.
fn next_attempt(uid: &str, mut attempt: u64, ended: impl Fn(u64) -> bool, result: &mut Effective) -> u64 {
    while ended(attempt) {
        attempt += 1;
    }
    keep_attempt(uid, attempt, result);
    attempt
}

fn run(mut pod: Object, origin: Origin, deletion: Option<Deletion>, result: &mut Effective) {
    defaults::apply(&mut pod);
    let uid = pod.uid().to_owned();
    let pod = Arc::new(pod);
    result.objects.insert(pod.key(), Arc::clone(&pod));
    result.origins.insert(uid.clone(), origin);
    result.pods.pods.insert(uid, DesiredPod { object: pod, deletion });
}

fn overridden(base: &Arc<Object>, live: &[OverrideRecord], result: &mut Effective) -> Arc<Object> {
    if live.iter().all(|record| record.target.uid != base.uid()) {
        return base.clone();
    }
    let applied = overrides::apply(base, live, Timestamp::default());
    for notice in applied.notices {
        if !result.notices.contains(&notice) {
            result.notices.push(notice);
        }
    }
    Arc::new(applied.object)
}

fn held(object: &Object) -> bool {
    object.annotation(HOLD_ANNOTATION).is_some()
}

fn show(object: Arc<Object>, result: &mut Effective) {
    result.objects.insert(object.key(), object);
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
