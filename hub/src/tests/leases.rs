//! Leases: two candidates for one office, as client-go elects a leader, and the Leases of Nodes.

use flotilla_manifests::admission::Part;
use flotilla_manifests::api_error::Reason;
use flotilla_manifests::kind;

use super::*;

/// One candidate in the manner of client-go's `LeaderElector`: reads, decides by the holder and the time, writes with the
/// version it has read.
struct Candidate {
    name: &'static str,
    /// What was seen last, and when it was first seen so.
    observed: Option<(Object, u64)>,
}

const LEASE_MS: u64 = 15_000;

impl Candidate {
    fn of(name: &'static str) -> Self {
        Self { name, observed: None }
    }

    fn record(&self, transitions: i64, now: u64) -> Value {
        let time = Timestamp(now).to_rfc3339_micro();
        json!({"holderIdentity": self.name, "leaseDurationSeconds": LEASE_MS / 1000, "acquireTime": time, "renewTime": time,
            "leaseTransitions": transitions})
    }

    /// What it would write; `None` while another holds the office.
    async fn wish(&mut self, bench: &Bench, key: &ObjectKey) -> Option<Mutation> {
        let now = bench.now.load(Ordering::SeqCst);
        let Ok(found) = bench.backend.read(key).await else {
            let mut body = Object::empty(&kind::LEASE, "default", "office");
            body.value_mut()["spec"] = self.record(0, now);
            return Some(Mutation::Create { body });
        };
        if self.observed.as_ref().is_none_or(|(seen, _)| seen.spec() != found.spec()) {
            self.observed = Some(((*found).clone(), now));
        }
        let since = self.observed.as_ref().map_or(now, |(_, since)| *since);
        let holder = found.text("/spec/holderIdentity");
        if holder != self.name && since + LEASE_MS > now {
            return None;
        }
        let transitions = found.at("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0);
        let mut body = (*found).clone();
        body.value_mut()["spec"] = self.record(transitions + i64::from(holder != self.name), now);
        Some(Mutation::Replace { part: Part::Main, body: body.into_value() })
    }
}

#[tokio::test]
async fn two_candidates_never_lead_together() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    let key = ObjectKey::of(&kind::LEASE, "default", "office");
    let (mut one, mut two) = (Candidate::of("one"), Candidate::of("two"));

    // Both see no lease: one creates it, the other is told so.
    let (first, second) = (one.wish(&bench, &key).await.unwrap(), two.wish(&bench, &key).await.unwrap());
    bench.write(key.clone(), first).await.unwrap();
    assert_eq!(bench.write(key.clone(), second).await.unwrap_err().reason, Reason::AlreadyExists);
    assert!(two.wish(&bench, &key).await.is_none(), "the first holds it");

    // The first falls silent; both take the expired lease at the same moment: one of them wins.
    bench.now.fetch_add(LEASE_MS, Ordering::SeqCst);
    let (renewal, takeover) = (one.wish(&bench, &key).await.unwrap(), two.wish(&bench, &key).await.unwrap());
    bench.write(key.clone(), takeover).await.unwrap();
    let lost = bench.write(key.clone(), renewal).await.unwrap_err();
    assert_eq!(lost.reason, Reason::Conflict);
    assert!(lost.message.contains("the object has been modified"), "{lost}");
    let lease = bench.backend.read(&key).await.unwrap();
    assert_eq!((lease.text("/spec/holderIdentity"), lease.at("/spec/leaseTransitions")), ("two", Some(&json!(1))));
    assert!(one.wish(&bench, &key).await.is_none());
    let renewal = two.wish(&bench, &key).await.unwrap();
    bench.write(key.clone(), renewal).await.unwrap();
}

#[tokio::test]
async fn nodes_have_leases_that_nobody_writes() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::open(folder.path(), Retention::default()).await;
    bench.enrolled(folder.path(), "n1", "default").await;
    let key = ObjectKey::of(&kind::LEASE, "kube-node-lease", "n1");
    let lease = bench.backend.read(&key).await.unwrap();
    assert_eq!(lease.text("/spec/holderIdentity"), "n1");
    let all = bench.backend.list(&kind::LEASE, None).await.unwrap();
    assert_eq!(all.items.len(), 1);
    assert!(bench.backend.list(&kind::LEASE, Some("default")).await.unwrap().items.is_empty());
    let missing = ObjectKey::of(&kind::LEASE, "kube-node-lease", "n2");
    assert_eq!(bench.backend.read(&missing).await.unwrap_err().reason, Reason::NotFound);
    let refused = bench.delete(&key).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
    let refused = bench
        .create(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "n3", "namespace": "kube-node-lease"}}))
        .await
        .unwrap_err();
    assert!(refused.message.contains("session"), "{refused}");
}
