//! Lists as they stood at an earlier version.

use flotilla_manifests::api_error::Reason;
use flotilla_manifests::kind;

use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::of(&kind::CONFIG_MAP, "default", name)
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"n": "0"}})
}

#[tokio::test]
async fn a_list_at_a_version_is_what_was_listed_then() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    for name in ["a", "b", "c"] {
        bench.create(map(name)).await.unwrap();
    }
    let then = bench.backend.list(&kind::CONFIG_MAP, None).await.unwrap();
    bench.merge(&key("a"), json!({"data": {"n": "1"}})).await.unwrap();
    bench.merge(&key("a"), json!({"data": {"n": "2"}})).await.unwrap();
    bench.delete(&key("b")).await.unwrap();
    bench.create(map("b")).await.unwrap();
    bench.create(map("bb")).await.unwrap();
    bench.delete(&key("c")).await.unwrap();
    let version = then.resource_version;
    let check = |seen: &flotilla_rest::backend::Listing| {
        assert_eq!((seen.resource_version, &seen.items), (version, &then.items));
    };
    check(&bench.backend.list_at(&kind::CONFIG_MAP, Some("default"), version).await.unwrap());
    let newest = bench.backend.list(&kind::CONFIG_MAP, None).await.unwrap();
    let again = bench.backend.list_at(&kind::CONFIG_MAP, None, newest.resource_version).await.unwrap();
    assert_eq!(again.items, newest.items);
    let early = bench.backend.list_at(&kind::CONFIG_MAP, None, 1).await.unwrap_err();
    assert_eq!(early.reason, Reason::Expired);
    let late = bench.backend.list_at(&kind::CONFIG_MAP, None, newest.resource_version + 1).await.unwrap_err();
    assert_eq!(late.reason, Reason::Expired, "another server's version");
}

#[tokio::test]
async fn history_that_is_cut_ends_the_pages() {
    let folder = tempfile::tempdir().unwrap();
    let retention = Retention { events_count_max: 3, ..Retention::default() };
    let bench = Bench::open(folder.path(), retention).await;
    bench.create(map("a")).await.unwrap();
    let then = bench.backend.list(&kind::CONFIG_MAP, None).await.unwrap();
    for number in 1..6 {
        bench.merge(&key("a"), json!({"data": {"n": number.to_string()}})).await.unwrap();
    }
    let gone = bench.backend.list_at(&kind::CONFIG_MAP, None, then.resource_version).await.unwrap_err();
    assert_eq!(gone.reason, Reason::Expired, "{gone}");
}
