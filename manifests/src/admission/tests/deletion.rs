//! Deletion: preconditions, finalizers, propagation, Pods, Namespaces.

use super::*;

fn delete(current: &Object, options: DeleteOptions) -> Result<Admitted, ApiError> {
    write(current, &Mutation::Delete(options))
}

fn plainly() -> DeleteOptions {
    DeleteOptions::default()
}

fn within(seconds: i64) -> DeleteOptions {
    DeleteOptions { grace_period_seconds: Some(seconds), ..plainly() }
}

fn bound_pod() -> Object {
    changed(stored(pod()), &[("/spec/nodeName", json!("n1")), ("/status/phase", json!("Running"))])
}

#[test]
fn what_nothing_holds_goes_at_once() {
    let current = stored(config());
    assert_eq!(removed(delete(&current, plainly())).uid(), current.uid());
    removed(delete(&stored(pod()), plainly()));
    let missing = admit(&current.key(), None, &Mutation::Delete(plainly()), &context());
    refused(missing, Reason::NotFound, "configmaps \"web\" not found");
}

#[test]
fn preconditions_hold() {
    let current = stored(config());
    let uid = |uid: &str| DeleteOptions { uid: Some(uid.into()), ..plainly() };
    let version = |version| DeleteOptions { resource_version: Some(version), ..plainly() };
    refused(delete(&current, uid("other")), Reason::Conflict, "the UID in the precondition (other) does not match");
    refused(delete(&current, version(4)), Reason::Conflict, "the ResourceVersion in the precondition (4)");
    removed(delete(&current, uid(current.uid())));
    removed(delete(&current, version(5)));
}

#[test]
fn finalizers_keep_an_object_until_the_last_is_gone() {
    let mut body = deployment();
    body["metadata"]["finalizers"] = json!(["example.com/a", "example.com/b"]);
    let marked = updated(delete(&stored(body), plainly()));
    assert_eq!(marked.deletion_timestamp(), Some(NOW));
    assert_eq!(marked.at("/metadata/deletionGracePeriodSeconds"), Some(&json!(0)));
    assert_eq!(marked.generation(), 2);
    unchanged(delete(&marked, plainly()));

    refused(
        merge(&marked, Part::Main, json!({"metadata": {"finalizers": ["example.com/a", "example.com/c"]}})),
        Reason::Invalid,
        "no new finalizers can be added if the object is being deleted",
    );
    // A mark cannot be taken back.
    unchanged(merge(&marked, Part::Main, json!({"metadata": {"deletionTimestamp": null}})));
    let one = updated(merge(&marked, Part::Main, json!({"metadata": {"finalizers": ["example.com/b"]}})));
    updated(merge(&one, Part::Status, json!({"status": {"replicas": 1}})));
    let last = Patch::StrategicMerge(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/b"]}}));
    removed(write(&one, &Mutation::Patch { part: Part::Main, patch: last }));
    removed(merge(&one, Part::Main, json!({"metadata": {"finalizers": null}})));
}

#[test]
fn propagation_leaves_the_garbage_collector_its_finalizer() {
    let current = stored(deployment());
    let by = |propagation| DeleteOptions { propagation, ..plainly() };
    let foreground = updated(delete(&current, by(Propagation::Foreground)));
    assert_eq!(foreground.finalizers(), [FOREGROUND]);
    assert!(foreground.deletion_timestamp().is_some());
    let orphan = updated(delete(&current, by(Propagation::Orphan)));
    assert_eq!(orphan.finalizers(), [ORPHAN]);
    assert_eq!(updated(delete(&foreground, by(Propagation::Orphan))).finalizers(), [ORPHAN]);
    unchanged(delete(&foreground, by(Propagation::Foreground)));
    removed(delete(&foreground, by(Propagation::Background)));
}

#[test]
fn a_pod_on_a_node_ends_in_two_steps() {
    let current = bound_pod();
    let marked = updated(delete(&current, plainly()));
    assert_eq!(marked.text("/metadata/deletionTimestamp"), "2026-11-21T08:00:30Z");
    assert_eq!(marked.at("/metadata/deletionGracePeriodSeconds"), Some(&json!(30)));
    assert_eq!(marked.generation(), 2);
    unchanged(delete(&marked, plainly()));
    unchanged(delete(&marked, within(60)));
    let sooner = updated(delete(&marked, within(5)));
    assert_eq!(sooner.text("/metadata/deletionTimestamp"), "2026-11-21T08:00:05Z");
    assert_eq!(sooner.generation(), 2);
    // The node reports the end, then confirms it.
    let ended = updated(merge(&sooner, Part::Status, json!({"status": {"phase": "Failed"}})));
    removed(delete(&ended, within(0)));
    removed(delete(&sooner, within(0)));
}

#[test]
fn the_grace_of_a_pod() {
    let table = [
        (bound_pod(), None, Some(30)),
        (changed(bound_pod(), &[("/spec/terminationGracePeriodSeconds", json!(7))]), None, Some(7)),
        (bound_pod(), Some(3), Some(3)),
        (bound_pod(), Some(-5), Some(1)),
        (bound_pod(), Some(i64::MAX), Some(i64::from(i32::MAX))),
        (bound_pod(), Some(0), None),
        (changed(bound_pod(), &[("/spec/terminationGracePeriodSeconds", json!(0))]), None, None),
        (changed(bound_pod(), &[("/status/phase", json!("Succeeded"))]), Some(9), None),
        (stored(pod()), Some(9), None),
    ];
    for (pod, asked, expected) in table {
        let options = DeleteOptions { grace_period_seconds: asked, ..plainly() };
        let result = delete(&pod, options);
        match expected {
            None => drop(removed(result)),
            Some(seconds) => {
                let marked = updated(result);
                assert_eq!(marked.at("/metadata/deletionGracePeriodSeconds"), Some(&json!(seconds)), "asked {asked:?}");
                assert!(marked.deletion_timestamp().is_some_and(|end| end >= NOW));
            }
        }
    }
}

#[test]
fn a_pod_with_a_finalizer_waits_for_both() {
    let current = changed(bound_pod(), &[("/metadata/finalizers", json!(["example.com/a"]))]);
    let marked = updated(delete(&current, plainly()));
    let freed = updated(merge(&marked, Part::Main, json!({"metadata": {"finalizers": null}})));
    removed(delete(&freed, within(0)));
    let confirmed = updated(delete(&marked, within(0)));
    removed(merge(&confirmed, Part::Main, json!({"metadata": {"finalizers": []}})));
}

#[test]
fn a_namespace_goes_when_it_is_empty() {
    let current = stored(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    // While it lives, its finalizer is not the user's to take.
    unchanged(merge(&current, Part::Main, json!({"spec": {"finalizers": []}})));
    unchanged(merge(&current, Part::Main, json!({"spec": null})));
    let marked = updated(delete(&current, plainly()));
    assert_eq!(marked.text("/status/phase"), "Terminating");
    assert_eq!(marked.deletion_timestamp(), Some(NOW));
    unchanged(delete(&marked, plainly()));
    unchanged(merge(&marked, Part::Main, json!({"spec": null})));
    let finalized = changed(marked.clone(), &[("/spec/finalizers", json!([]))]);
    removed(replace(&marked, Part::Main, finalized.into_value()));
    for name in ["default", "kube-system"] {
        let space = stored(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        refused(delete(&space, plainly()), Reason::Forbidden, "this namespace may not be deleted");
    }
}
