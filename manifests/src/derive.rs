//! From a workload, a number and an attempt to the Pod: the same function at the hub and at a device.
//!
//! Owns names and uids of derived Pods, what a Pod inherits from its template, and whether a DaemonSet selects a Node.
//! Refuses to choose: number, attempt and the live overrides are arguments. Start at [`daemon_pod`] and [`placed_pod`].

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::digest;
use crate::kind;
use crate::object::Object;
use crate::overrides::{self, OverrideRecord};
use crate::rollout::{self, RolloutNumber};
use crate::time::Timestamp;
use crate::workload::placing::{self, DAEMON_TOLERATIONS};
use crate::workload::{NodeSpec, PodSpec, Toleration, view};

/// Annotation of a derived Pod: which attempt at it this is (0 is not written).
pub const ATTEMPT_ANNOTATION: &str = "flotilla.dev/attempt";

/// Longest name a derived Pod gets, so that it is a host name (RFC 1123) as well.
const NAME_BYTES_MAX: usize = 63;

/// The Node a Pod is made for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRef {
    pub name: String,
    /// Survives re-enrolment.
    pub uid: String,
}

impl NodeRef {
    pub fn of(node: &Object) -> Self {
        Self { name: node.name().to_owned(), uid: node.uid().to_owned() }
    }
}

/// Value of the register `placement/<pod uid>`: this device runs this Pod of that workload at that number.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Placement {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Uid of the document whose template the Pod is made from.
    pub workload: String,
    pub number: RolloutNumber,
}

/// Whether a DaemonSet's Pod belongs on a Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// One that is not there is to be made.
    pub should_run: bool,
    /// One that is there may stay: a taint `NoSchedule` keeps new Pods away and evicts none.
    pub may_stay: bool,
}

/// The name of a DaemonSet's Pod on a Node: the same for every number and attempt, and no other DaemonSet's or Node's.
pub fn daemon_pod_name(daemon_set: &str, node: &str) -> String {
    let hash = digest::of_parts("flotilla/pod-name/1", &[daemon_set.as_bytes(), node.as_bytes()]);
    let readable = format!("{daemon_set}-{node}").replace('.', "-");
    if readable.len() + 6 <= NAME_BYTES_MAX {
        return format!("{readable}-{}", digest::safe_text(&hash, 5));
    }
    // Fewer letters tell apart; a longer hash does.
    let start = prefix(&readable, NAME_BYTES_MAX - 11).trim_end_matches('-');
    format!("{start}-{}", digest::safe_text(&hash, 10))
}

/// The uid of a DaemonSet's Pod: a version 8 UUID (RFC 9562) from owner, Node, number and attempt.
pub fn daemon_pod_uid(owner_uid: &str, node_uid: &str, number: RolloutNumber, attempt: u64) -> String {
    let number = number.to_string();
    let parts = [owner_uid.as_bytes(), node_uid.as_bytes(), number.as_bytes(), &attempt.to_be_bytes()];
    uuid_v8(&digest::of_parts("flotilla/pod-uid/1", &parts))
}

/// The Pod of a DaemonSet on a Node. `daemon_set` is its manifest *at* `number`; `live` are overrides already chosen by
/// expiry ([`overrides::live`]), of which those that target the DaemonSet, or this very Pod, take effect.
pub fn daemon_pod(
    daemon_set: &Object,
    node: &NodeRef,
    number: RolloutNumber,
    attempt: u64,
    live: &[OverrideRecord],
) -> Object {
    let effective = overrides::applied(Cow::Borrowed(daemon_set), live, Timestamp::default());
    let name = daemon_pod_name(daemon_set.name(), &node.name);
    let uid = daemon_pod_uid(daemon_set.uid(), &node.uid, number, attempt);
    let mut pod = from_template(&effective, &name, &uid);
    let hash = rollout::hash_of(daemon_set);
    set_label(&mut pod, "controller-revision-hash", &hash);
    set_label(&mut pod, "pod-template-generation", &number.counter.to_string());
    bind(&mut pod, &node.name, number, attempt);
    add_tolerations(&mut pod);
    overrides::applied(Cow::Owned(pod), live, Timestamp::default()).into_owned()
}

/// The Pod of a placement, on the device it names. `workload` is the Deployment's or ReplicaSet's manifest *at* the
/// placement's number. The Pod keeps the uid the hub gave it; attempts tell its lives on the device apart.
pub fn placed_pod(
    workload: &Object,
    placement: &Placement,
    node_name: &str,
    attempt: u64,
    live: &[OverrideRecord],
) -> Object {
    let effective = overrides::applied(Cow::Borrowed(workload), live, Timestamp::default());
    let mut pod = from_template(&effective, &placement.name, &placement.uid);
    if let Some(hash) = replica_set_hash(workload, &placement.name) {
        set_label(&mut pod, "pod-template-hash", hash);
    }
    bind(&mut pod, node_name, placement.number, attempt);
    overrides::applied(Cow::Owned(pod), live, Timestamp::default()).into_owned()
}

/// A Pod made from a workload's template and owned by it, bound to no Node: what ReplicaSets create.
pub fn from_template(workload: &Object, name: &str, uid: &str) -> Object {
    let template = workload.at("/spec/template").cloned().unwrap_or_default();
    let mut pod = Object::empty(&kind::POD, workload.namespace(), name);
    let metadata = pod.metadata_mut();
    if !uid.is_empty() {
        metadata.insert("uid".into(), uid.into());
    }
    for field in ["labels", "annotations"] {
        let inherited = template.pointer(&format!("/metadata/{field}")).filter(|value| value.is_object());
        if let Some(inherited) = inherited {
            metadata.insert(field.into(), inherited.clone());
        }
    }
    metadata.insert(
        "ownerReferences".into(),
        json!([{
            "apiVersion": workload.kind().api_version(), "kind": workload.kind().name, "name": workload.name(),
            "uid": workload.uid(), "controller": true, "blockOwnerDeletion": true,
        }]),
    );
    let spec = template.get("spec").filter(|spec| spec.is_object()).cloned().unwrap_or_else(|| json!({}));
    pod.value_mut()["spec"] = spec;
    pod
}

/// Whether a DaemonSet's Pod should be made on this Node.
pub fn selects(daemon_set: &Object, node: &Object) -> bool {
    selection(daemon_set, node).should_run
}

/// [`DaemonPlacing::selection`] for one Node.
pub fn selection(daemon_set: &Object, node: &Object) -> Selection {
    DaemonPlacing::of(daemon_set).selection(node)
}

/// Where a DaemonSet's Pods belong, read once for many Nodes.
#[derive(Debug, Clone)]
pub struct DaemonPlacing {
    /// What of it says where; with the tolerations that every DaemonSet has.
    spec: PodSpec,
}

impl DaemonPlacing {
    pub fn of(daemon_set: &Object) -> Self {
        // No container is read for it: this is asked for each DaemonSet whenever a Node changes.
        let template = daemon_set.at("/spec/template/spec");
        let field = |name: &str| template.and_then(|spec| spec.get(name));
        let mut spec = PodSpec {
            node_name: view(field("nodeName")),
            node_selector: view(field("nodeSelector")),
            affinity: view(field("affinity")),
            tolerations: view(field("tolerations")),
            host_network: view(field("hostNetwork")),
            ..PodSpec::default()
        };
        spec.tolerations.extend(DAEMON_TOLERATIONS.iter().map(placing::toleration));
        if spec.host_network {
            spec.tolerations.push(placing::toleration(&("node.kubernetes.io/network-unavailable", "NoSchedule")));
        }
        Self { spec }
    }

    /// nodeName, nodeSelector, required Node affinity, and taints against tolerations, those every DaemonSet has included;
    /// cordoned Nodes are not spared (as in Kubernetes).
    pub fn selection(&self, node: &Object) -> Selection {
        let named = self.spec.node_name.is_empty() || self.spec.node_name == node.name();
        if !named || placing::unmatched(&self.spec, node).is_some() {
            return Selection { should_run: false, may_stay: false };
        }
        if node.at("/spec/taints").is_none() {
            return Selection { should_run: true, may_stay: true };
        }
        let taints = view::<NodeSpec>(node.spec()).taints;
        let refused = |effects: &[&str]| placing::untolerated(&self.spec.tolerations, &taints, effects).is_some();
        Selection { should_run: !refused(&["NoSchedule", "NoExecute"]), may_stay: !refused(&["NoExecute"]) }
    }
}

/// The longest start of a text that has at most so many bytes and ends between characters.
pub fn prefix(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A version 8 UUID (RFC 9562, 5.8) from the first sixteen bytes of a digest.
pub fn uuid_v8(digest: &[u8; 32]) -> String {
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        digest::push_hex(&mut text, byte);
    }
    text
}

/// `5d89bdfd4b` of Pod `web-5d89bdfd4b-x7k2p` of Deployment `web`: shipped in the name, never computed again.
fn replica_set_hash<'a>(workload: &Object, pod_name: &'a str) -> Option<&'a str> {
    if workload.kind() != &kind::DEPLOYMENT {
        return None;
    }
    let rest = pod_name.strip_prefix(workload.name())?.strip_prefix('-')?;
    rest.rsplit_once('-').map(|(hash, _)| hash).filter(|hash| !hash.is_empty())
}

fn bind(pod: &mut Object, node_name: &str, number: RolloutNumber, attempt: u64) {
    pod.set_annotation(rollout::NUMBER_ANNOTATION, &number.to_string());
    if attempt > 0 {
        pod.set_annotation(ATTEMPT_ANNOTATION, &attempt.to_string());
    }
    if let Some(spec) = pod.value_mut()["spec"].as_object_mut() {
        spec.insert("nodeName".into(), node_name.into());
        let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("");
        if account.is_empty() {
            spec.insert("serviceAccountName".into(), "default".into());
        }
    }
}

fn set_label(pod: &mut Object, name: &str, text: &str) {
    let labels = pod.metadata_mut().entry("labels").or_insert_with(|| Value::Object(Map::new()));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(name.to_owned(), text.into());
    }
}

fn add_tolerations(pod: &mut Object) {
    let host_network = pod.at("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    let present: Vec<Toleration> = view(pod.at("/spec/tolerations"));
    let network = host_network.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    let wanted = DAEMON_TOLERATIONS.iter().copied().chain(network).map(|pair| placing::toleration(&pair));
    let missing: Vec<Value> = wanted
        .filter(|wanted| !present.contains(wanted))
        .filter_map(|toleration| serde_json::to_value(toleration).ok())
        .collect();
    let Some(spec) = pod.value_mut()["spec"].as_object_mut() else { return };
    match spec.entry("tolerations").or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(missing),
        other => *other = Value::Array(missing),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
