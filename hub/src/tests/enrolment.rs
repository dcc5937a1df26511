//! Tokens and names.

use flotilla_manifests::api_error::Reason;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_sync::enrol::{EnrolProof, RefusalKind};

use super::{Bench, Device, proof, token};
use crate::Retention;

async fn bench(folder: &std::path::Path) -> Bench {
    Bench::open(folder, Retention::default()).await
}

#[tokio::test]
async fn a_token_admits_as_many_devices_as_it_says_and_answers_a_lost_reply_again() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    let single = token(folder.path(), None, "north", 1);
    let device = Device::new("a");
    let first = bench.enrol(&device, EnrolProof::Token(proof(&single))).await.unwrap();
    let again = bench.enrol(&device, EnrolProof::Token(proof(&single))).await.unwrap();
    assert_eq!((first.node_uid.as_str(), first.incarnation), (again.node_uid.as_str(), again.incarnation));
    assert_eq!(first.incarnation, 2, "the hub's own is the first");
    let refused = bench.enrol(&Device::new("b"), EnrolProof::Token(proof(&single))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Token);
    assert!(bench.store.read(&ObjectKey::of(&kind::NODE, "", "b")).is_none());
    let node = bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap();
    assert_eq!(node.label("flotilla.dev/fleet"), Some("north"));
    assert_eq!(node.label("kubernetes.io/hostname"), Some("a"));
    assert_eq!(node.label("kubernetes.io/arch"), Some("arm64"));
    let later = bench.enrol(&device, EnrolProof::Device { node_uid: first.node_uid.clone() }).await.unwrap();
    assert_eq!(later.node_uid, first.node_uid);
    assert!(later.incarnation > first.incarnation);
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    let single = token(folder.path(), None, "north", 1);
    bench.now.store(single.expires_ms + 1, std::sync::atomic::Ordering::SeqCst);
    let refused = bench.enrol(&Device::new("a"), EnrolProof::Token(proof(&single))).await.unwrap_err();
    assert!(refused.message.contains("expired"), "{}", refused.message);
}

#[tokio::test]
async fn a_name_is_taken_over_only_with_a_token_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    let first = bench.enrolled(folder.path(), "a", "north").await;
    let uid = bench.store.read(&ObjectKey::of(&kind::NODE, "", "a")).unwrap().uid().to_owned();
    let thief = Device::new("a");
    let any = token(folder.path(), None, "north", 5);
    let refused = bench.enrol(&thief, EnrolProof::Token(proof(&any))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Name);
    let by_key = bench.enrol(&thief, EnrolProof::Device { node_uid: uid.clone() }).await.unwrap_err();
    assert_eq!(by_key.kind, RefusalKind::Name);
    let named = token(folder.path(), Some("a"), "north", 1);
    let replaced = bench.enrol(&thief, EnrolProof::Token(proof(&named))).await.unwrap();
    assert_eq!(replaced.node_uid, uid, "a Node's uid survives re-enrolment");
    let old = bench.enrol(&first, EnrolProof::Device { node_uid: uid }).await.unwrap_err();
    assert_eq!(old.kind, RefusalKind::Name);
}

#[tokio::test]
async fn labels_of_reserved_domains_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    let single = token(folder.path(), None, "north", 1);
    let mut request = Device::new("a").request(EnrolProof::Token(proof(&single)));
    request.labels.insert("flotilla.dev/fleet".into(), "south".into());
    let refused = flotilla_sync::enrol::Enroller::enrol(&*bench.registrar, request).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Request);
    assert!(refused.message.contains("flotilla.dev/fleet"), "{}", refused.message);
}

#[tokio::test]
async fn nodes_and_overrides_are_not_for_users_to_make() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    let refused =
        bench.create(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}})).await;
    assert_eq!(refused.unwrap_err().reason, Reason::Forbidden);
    let map =
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "nowhere"}});
    assert_eq!(bench.create(map).await.unwrap_err().reason, Reason::NotFound);
}

#[tokio::test]
async fn the_fleet_of_a_node_is_not_a_users_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(folder.path()).await;
    bench.enrolled(folder.path(), "a", "north").await;
    let key = ObjectKey::of(&kind::NODE, "", "a");
    let labels = |labels: serde_json::Value| serde_json::json!({"metadata": {"labels": labels}});
    for fleet in [serde_json::json!("south"), serde_json::Value::Null] {
        let refused = bench.merge(&key, labels(serde_json::json!({"flotilla.dev/fleet": fleet}))).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Forbidden);
        assert!(refused.message.contains("flotilla token create --node a --fleet"), "{}", refused.message);
    }
    bench.merge(&key, labels(serde_json::json!({"flotilla.dev/fleet": "north", "mine": "x"}))).await.unwrap();
    let node = bench.store.read(&key).unwrap();
    assert_eq!((node.label("flotilla.dev/fleet"), node.label("mine")), (Some("north"), Some("x")));
}

#[tokio::test]
async fn two_hubs_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = || crate::HubConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        quic: "127.0.0.1:0".parse().unwrap(),
        ..crate::HubConfig::at(folder.path())
    };
    let hub = crate::Hub::start(config()).await.unwrap();
    let refused = crate::Hub::start(config()).await.unwrap_err();
    assert!(matches!(refused, crate::HubError::InUse { .. }), "{refused}");
    use std::os::unix::fs::PermissionsExt;
    for name in ["admin.kubeconfig", "hub.sqlite"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    hub.stop().await;
    crate::Hub::start(config()).await.unwrap().stop().await;
}
