//! Leases of Nodes, as Kubernetes' tools look for them: made from session state when they are asked for, never stored.
//!
//! A heartbeat that is written would be a write per device; here a session that is open is the heartbeat. Refuses all other
//! Leases: those are ordinary objects, with exact compare-and-swap at this hub. Pure. Start at [`of_node`].

use flotilla_manifests::derive::uuid_v8;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::{digest, kind};
use serde_json::json;

use crate::controllers::SILENCE_MS_MAX;
use crate::fleet::contact::Contact;

/// The namespace of the Leases of Nodes.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";

/// The Lease of one Node. Its version is the Node's: it never makes an event of its own.
pub(crate) fn of_node(node: &Object, contact: Option<Contact>, now: Timestamp) -> Object {
    let mut lease = Object::empty(&kind::LEASE, NODE_LEASES, node.name());
    let uid = uuid_v8(&digest::of_parts("flotilla/node-lease/1", &[node.uid().as_bytes()]));
    let metadata = lease.metadata_mut();
    metadata.insert("uid".into(), uid.into());
    if let Some(created) = node.creation_timestamp() {
        metadata.insert("creationTimestamp".into(), created.to_rfc3339().into());
    }
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": node.name(), "uid": node.uid()}]);
    metadata.insert("ownerReferences".into(), owner);
    lease.set_resource_version(node.resource_version());
    let renewed = match contact {
        Some(Contact::Connected { .. }) => Some(now),
        Some(Contact::Silent { last }) => Some(last),
        None => None,
    };
    let mut spec = json!({"holderIdentity": node.name(), "leaseDurationSeconds": SILENCE_MS_MAX / 1000});
    if let Some(renewed) = renewed {
        spec["renewTime"] = renewed.to_rfc3339_micro().into();
    }
    lease.value_mut()["spec"] = spec;
    lease
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_the_heartbeat() {
        let mut node = Object::empty(&kind::NODE, "", "n1");
        node.metadata_mut().insert("uid".into(), "n".into());
        node.set_resource_version(7);
        let renewed = |contact: Option<Contact>| {
            let lease = of_node(&node, contact, Timestamp(60_000));
            assert_eq!((lease.resource_version(), lease.text("/spec/holderIdentity")), (7, "n1"));
            assert!(flotilla_manifests::validate::object(&lease).is_empty());
            lease.text("/spec/renewTime").to_owned()
        };
        assert_eq!(renewed(Some(Contact::Connected { since: Timestamp(0) })), "1970-01-01T00:01:00.000000Z");
        assert_eq!(renewed(Some(Contact::Silent { last: Timestamp(5_000) })), "1970-01-01T00:00:05.000000Z");
        assert_eq!(renewed(None), "");
    }
}
