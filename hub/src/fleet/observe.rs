//! What devices saw, as rows: Pods appear at their first observation and go when the device confirms their end.
//!
//! A device speaks of its own alone: the node's name comes from its certificate, and a Pod's uid must be one that this node's
//! Pod has.

use std::collections::BTreeSet;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::derive::{self, ATTEMPT_ANNOTATION, NodeRef};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::OverrideRecord;
use flotilla_manifests::rollout::{self, RolloutNumber};
use flotilla_manifests::{admission::OBJECT_BYTES_MAX, label, schema};
use flotilla_sync::channel::{ChannelName, ItemKind};
use flotilla_sync::identity::NodeName;
use flotilla_sync::observation::Observation;
use serde_json::{Value, json};

use crate::learn;
use crate::store::Batch;
use flotilla_sync::planted::{self, Bug};

/// Events of one namespace kept at most; the oldest go first.
const EVENTS_MAX: usize = 2000;

/// Body of a `pod/<uid>` observation.
#[derive(Debug, serde::Deserialize)]
struct PodReport {
    namespace: String,
    name: String,
    uid: String,
    #[serde(default)]
    workload: String,
    #[serde(default)]
    number: Option<RolloutNumber>,
    #[serde(default)]
    attempt: u64,
    status: Value,
}

/// Body of a `pods` observation: all that the device has.
#[derive(Debug, serde::Deserialize)]
struct PodsReport {
    uids: BTreeSet<String>,
}

/// Takes observations of one device; an older one than the newest taken of its subject has no effect. A body that cannot be
/// read is set aside and named in the log.
pub(super) fn observe(batch: &mut Batch<'_>, node: &NodeName, observations: &[Observation]) -> Result<(), ApiError> {
    batch.set_author(&format!("device:{node}"));
    let learning = learn::stored(batch)?.is_some();
    for observation in observations {
        let news = batch.is_news(node.as_str(), &observation.subject, observation.clock, observation.time_ms)?;
        if !news && !planted::is(Bug::OldObservationTaken) {
            continue;
        }
        let body = match observation.body.as_deref().map(serde_json::from_slice::<Value>).transpose() {
            Ok(body) => body,
            Err(error) => {
                tracing::warn!(%node, subject = observation.subject, %error, "an observation cannot be read");
                continue;
            }
        };
        if learning {
            batch.defer(node.as_str(), &observation.subject, observation.body.as_deref())?;
        }
        take(batch, node, &observation.subject, body)?;
    }
    Ok(())
}

/// Reads again what came while the hub was learning.
pub(super) fn replay(batch: &mut Batch<'_>) -> Result<(), ApiError> {
    for (node, subject, body) in batch.take_deferred()? {
        let Ok(node) = NodeName::parse(&node) else { continue };
        let Ok(body) = body.as_deref().map(serde_json::from_slice::<Value>).transpose() else { continue };
        take(batch, &node, &subject, body)?;
    }
    Ok(())
}

fn take(batch: &mut Batch<'_>, node: &NodeName, subject: &str, body: Option<Value>) -> Result<(), ApiError> {
    match (subject.split_once('/'), body) {
        (Some(("pod", uid)), None) => ended(batch, node, uid)?,
        (Some(("pod", uid)), Some(body)) => match serde_json::from_value::<PodReport>(body) {
            Ok(report) if report.uid == uid => pod(batch, node, &report)?,
            Ok(_) => tracing::warn!(%node, subject, "an observation names another pod"),
            Err(error) => tracing::warn!(%node, subject, %error, "an observation cannot be read"),
        },
        (Some(("event", _)), Some(body)) => event(batch, node, body)?,
        (None, Some(body)) if subject == "pods" => match serde_json::from_value(body) {
            Ok(report) => only(batch, node, &report)?,
            Err(error) => tracing::warn!(%node, subject, %error, "an observation cannot be read"),
        },
        (None, Some(status)) if subject == "node" => node_status(batch, node, status)?,
        _ => {}
    }
    Ok(())
}

fn node_status(batch: &mut Batch<'_>, node: &NodeName, status: Value) -> Result<(), ApiError> {
    show_status(batch, node, &ObjectKey::of(&kind::NODE, "", node.as_str()), &status)
}

/// Shows a status in an object's row, unless clients could not read it: one such row fails every list of its kind.
fn show_status(batch: &mut Batch<'_>, node: &NodeName, key: &ObjectKey, status: &Value) -> Result<(), ApiError> {
    let Some(current) = batch.get(key) else { return Ok(()) };
    let mut shown = (*current).clone();
    shown.value_mut()["status"] = status.clone();
    if readable(node, &mut shown) {
        batch.update(key, |object| *object = shown)?;
    }
    Ok(())
}

/// Drops what no schema knows; `false`, with a line in the log, when a type is wrong or the whole is too large.
fn readable(node: &NodeName, object: &mut Object) -> bool {
    schema::prune(object);
    schema::drop_nulls(object);
    let faults = schema::type_errors(object);
    let bytes = object.value().to_string().len();
    if faults.is_empty() && bytes <= OBJECT_BYTES_MAX {
        return true;
    }
    let fault =
        faults.first().map_or_else(|| format!("{bytes} bytes"), |fault| format!("{}: {}", fault.field, fault.message));
    tracing::warn!(%node, object = %object.key(), fault, "a device's report is no valid object and is not shown");
    false
}

fn pod(batch: &mut Batch<'_>, node: &NodeName, report: &PodReport) -> Result<(), ApiError> {
    if let Some(row) = batch.index().by_uid(&report.uid).cloned() {
        if row.kind() == &kind::POD && row.text("/spec/nodeName") == node.as_str() {
            show_status(batch, node, &row.key(), &report.status)?;
        }
        return Ok(());
    }
    let Some(number) = report.number else { return Ok(()) };
    let workload = batch.index().by_uid(&report.workload).map(|workload| workload.kind().name);
    if workload != Some(kind::DAEMON_SET.name) && learn::stored(batch)?.is_none() {
        // Only the hub places Pods, and this one has not: it was restored, and what said so is lost.
        return Ok(batch.end_unknown_placement(node, &report.uid)?);
    }
    let key = ObjectKey::of(&kind::POD, report.namespace.as_str(), report.name.as_str());
    let other = batch.get(&key);
    if let Some(other) = &other
        && (other.text("/spec/nodeName") != node.as_str() || stands(batch, node, other, report, number)?)
    {
        return Ok(());
    }
    let Some(mut object) = daemon_pod(batch, node, &report.workload, number, report.attempt)? else {
        // What runs now cannot be shown, its template is long gone; what does not run any more need not be.
        if other.is_some_and(|other| other.controller().is_some_and(|owner| owner.uid == report.workload)) {
            batch.remove(&key)?;
        }
        return Ok(());
    };
    if object.uid() != report.uid || object.name() != report.name || object.namespace() != report.namespace {
        tracing::warn!(%node, pod = report.uid, "a device reports a pod that is not one of this node");
        return Ok(());
    }
    object.value_mut()["status"] = report.status.clone();
    if !readable(node, &mut object) {
        return Ok(());
    }
    if other.is_some() {
        batch.remove(&key)?;
    }
    if let Some(started) = report.status.get("startTime").and_then(Value::as_str) {
        object.metadata_mut().insert("creationTimestamp".into(), started.into());
    }
    batch.create(object)?;
    Ok(())
}

/// Whether the Pod that is shown stands against a report of another number or attempt under its name: the device's newest word does,
/// whichever report came first. A device whose card was replaced by an old copy runs an older number again, and says so later.
fn stands(
    batch: &Batch<'_>,
    node: &NodeName,
    shown: &Object,
    report: &PodReport,
    number: RolloutNumber,
) -> Result<bool, ApiError> {
    let clock_of = |uid: &str| batch.observation_clock(node.as_str(), &format!("pod/{uid}"));
    Ok(match (clock_of(shown.uid())?, clock_of(&report.uid)?) {
        (Some(shown), Some(reported)) => shown > reported,
        // Of one nothing is known any more: the later number is the better guess.
        _ => (rollout::number_of(shown), attempt_of(shown)) > (Some(number), report.attempt),
    })
}

/// The device confirms the end of a Pod.
fn ended(batch: &mut Batch<'_>, node: &NodeName, uid: &str) -> Result<(), ApiError> {
    let Some(row) = batch.index().by_uid(uid).cloned() else { return Ok(()) };
    if row.kind() != &kind::POD || row.text("/spec/nodeName") != node.as_str() {
        return Ok(());
    }
    if row.finalizers().is_empty() {
        batch.remove(&row.key())?;
        return Ok(());
    }
    let now = batch.now().to_rfc3339();
    batch.update(&row.key(), |object| {
        let metadata = object.metadata_mut();
        metadata.entry("deletionTimestamp").or_insert_with(|| now.into());
        metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
    })?;
    Ok(())
}

/// A device has these pods and no others: what else is shown of its DaemonSets has ended, which an earlier life of a restored hub was told.
/// Of placed Pods the hub decides, and whoever deletes one waits for its own confirmation.
fn only(batch: &mut Batch<'_>, node: &NodeName, report: &PodsReport) -> Result<(), ApiError> {
    let said = batch.observation_clock(node.as_str(), "pods")?;
    let others = batch.index().pods_on(node.as_str()).filter(|pod| {
        let daemon = crate::admission::is_daemon_pod(pod) && pod.deletion_timestamp().is_none();
        daemon && !report.uids.contains(pod.uid())
    });
    let others: Vec<String> = others.map(|pod| pod.uid().to_owned()).collect();
    for uid in others {
        // What was told of it since is the newer word.
        if batch.observation_clock(node.as_str(), &format!("pod/{uid}"))? < said {
            ended(batch, node, &uid)?;
        }
    }
    Ok(())
}

fn event(batch: &mut Batch<'_>, node: &NodeName, body: Value) -> Result<(), ApiError> {
    let Some(object) = own_event(node, body) else {
        tracing::warn!(%node, "a device's event cannot be read");
        return Ok(());
    };
    let namespace = ObjectKey::of(&kind::NAMESPACE, "", object.namespace());
    if batch.get(&namespace).is_none() {
        return Ok(());
    }
    let key = object.key();
    if let Some(current) = batch.get(&key) {
        if current.text("/source/host") != node.as_str() {
            tracing::warn!(%node, event = %key, "a device reports an event under the name of another's");
            return Ok(());
        }
        batch.update(&key, |current| {
            let kept = current.value()["metadata"].clone();
            *current.value_mut() = object.into_value();
            current.value_mut()["metadata"] = kept;
        })?;
        return Ok(());
    }
    if batch.index().events_count(&key.namespace) >= EVENTS_MAX
        && let Some(oldest) = batch.index().event_oldest(&key.namespace)
    {
        batch.remove(&oldest)?;
    }
    batch.create(object)?;
    Ok(())
}

/// The event with a name, a namespace and its content from the device; who saw it and all other metadata are the hub's to say
/// (a uid, say, must not name another's object).
fn own_event(node: &NodeName, body: Value) -> Option<Object> {
    let stated = Object::parse(body).ok().filter(|object| object.kind() == &kind::EVENT)?;
    let (namespace, name) = (stated.namespace().to_owned(), stated.name().to_owned());
    label::syntax::dns_subdomain(&name).ok()?;
    let mut value = stated.into_value();
    value["metadata"] = json!({"namespace": namespace, "name": name});
    if !value["source"].is_object() {
        value["source"] = json!({});
    }
    value["source"]["host"] = node.as_str().into();
    let mut object = Object::parse(value).ok()?;
    readable(node, &mut object).then_some(object)
}

/// Derives the Pods of DaemonSets on this node anew: its overrides are others now.
pub(super) fn refresh_specs(batch: &mut Batch<'_>, node: &NodeName) -> Result<(), ApiError> {
    let pods: Vec<_> =
        batch.index().pods_on(node.as_str()).filter(|pod| crate::admission::is_daemon_pod(pod)).cloned().collect();
    for pod in pods {
        let (Some(owner), Some(number)) = (pod.controller(), rollout::number_of(&pod)) else { continue };
        let Some(fresh) = daemon_pod(batch, node, &owner.uid, number, attempt_of(&pod))? else { continue };
        batch.update(&pod.key(), |object| object.value_mut()["spec"] = fresh.value()["spec"].clone())?;
    }
    Ok(())
}

/// The Pod that this node makes of a DaemonSet; `None` when the hub does not know that template (any more).
fn daemon_pod(
    batch: &Batch<'_>,
    node: &NodeName,
    workload: &str,
    number: RolloutNumber,
    attempt: u64,
) -> Result<Option<Object>, ApiError> {
    let Some(current) = batch.index().by_uid(workload).filter(|object| object.kind() == &kind::DAEMON_SET) else {
        return Ok(None);
    };
    let template = if rollout::number_of(current) == Some(number) {
        (**current).clone()
    } else {
        let found = batch.object_at_number(workload, &number.to_string())?;
        match found.map(Object::parse) {
            Some(Ok(object)) => object,
            _ => return Ok(None),
        }
    };
    let key = ObjectKey::of(&kind::NODE, "", node.as_str());
    let Some(row) = batch.index().get(&key) else { return Ok(None) };
    let live = overrides_of(batch, node)?;
    Ok(Some(derive::daemon_pod(&template, &NodeRef::of(row), number, attempt, &live)))
}

/// What stands in the device's log. Whether one has expired is the device's to say: it removes it then.
fn overrides_of(batch: &Batch<'_>, node: &NodeName) -> Result<Vec<OverrideRecord>, ApiError> {
    let items = batch.device_items(&ChannelName::Device(node.clone()))?;
    let mut records: Vec<OverrideRecord> = items
        .iter()
        .filter(|(id, _)| id.as_str().starts_with("override/"))
        .filter_map(|(_, item)| match &item.kind {
            ItemKind::Register(register) => serde_json::from_slice(&register.value).ok(),
            _ => None,
        })
        .collect();
    records.sort_by(|one: &OverrideRecord, other| (one.time, &one.id).cmp(&(other.time, &other.id)));
    Ok(records)
}

fn attempt_of(pod: &Object) -> u64 {
    pod.annotation(ATTEMPT_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}
