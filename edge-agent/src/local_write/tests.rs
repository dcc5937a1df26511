//! What a technician's writes amount to.

use flotilla_manifests::admission::{DeleteOptions, FieldValidation};
use flotilla_manifests::defaults;
use flotilla_manifests::patch::Patch;
use flotilla_manifests::time::Timestamp;
use serde_json::json;

use super::*;

fn base() -> Object {
    let object = Object::parse(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default", "uid": "w"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "host", "env": [{"name": "COLOUR", "value": "blue"}]}]},
        }},
    }));
    let mut object = object.unwrap();
    defaults::apply(&mut object);
    object
}

fn colour(value: &str) -> Mutation {
    let container = json!({"name": "web", "env": [{"name": "COLOUR", "value": value}]});
    let body = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    Mutation::Patch { part: Part::Main, patch: Patch::StrategicMerge(body) }
}

fn context() -> Context {
    Context {
        now: Timestamp(5_000),
        uid: "fresh".into(),
        name_suffix: "abcde".into(),
        field_validation: FieldValidation::Strict,
    }
}

fn write(
    shown: Option<&Object>,
    base: Option<&Object>,
    records: &[OverrideRecord],
    mutation: &Mutation,
) -> Result<Decision, ApiError> {
    let key = ObjectKey::of(&kind::DAEMON_SET, "default", "web");
    decide(&key, &Subject { shown, base, records }, mutation, &context(), "o1", "technician")
        .map(|(decision, _)| decision)
}

fn created(decision: &Decision) -> OverrideRecord {
    let Decision::Revise { revision, .. } = decision else { panic!("no revision: {decision:?}") };
    revision.created.clone().unwrap()
}

#[test]
fn a_change_becomes_a_dated_record_and_setting_it_back_ends_it() {
    let base = base();
    let record = created(&write(Some(&base), Some(&base), &[], &colour("red")).unwrap());
    assert_eq!((record.id.as_str(), record.author.as_str(), record.time), ("o1", "technician", Timestamp(5_000)));
    assert_eq!(record.operations.len(), 1);
    assert_eq!(record.operations[0].replaced.as_ref().unwrap().value, Some(json!("blue")));

    let shown = overrides::apply(&base, std::slice::from_ref(&record), Timestamp(0)).object;
    let back = write(Some(&shown), Some(&base), &[record], &colour("blue")).unwrap();
    let Decision::Revise { revision, .. } = back else { panic!("{back:?}") };
    assert_eq!((revision.created, revision.ended), (None, vec!["o1".to_owned()]));
}

#[test]
fn a_write_that_changes_nothing_leaves_no_record() {
    let base = base();
    let decision = write(Some(&base), Some(&base), &[], &colour("blue")).unwrap();
    assert!(
        matches!(&decision, Decision::Nothing(outcome) if matches!(**outcome, Outcome::Unchanged(_))),
        "{decision:?}"
    );
}

#[test]
fn deleting_a_workload_holds_it_and_applying_it_again_lifts_the_hold() {
    let base = base();
    let held = created(&write(Some(&base), Some(&base), &[], &Mutation::Delete(DeleteOptions::default())).unwrap());
    let hidden = overrides::apply(&base, std::slice::from_ref(&held), Timestamp(0)).object;
    assert_eq!(hidden.annotation(HOLD_ANNOTATION), Some("true"));

    let mut body = base.clone();
    body.metadata_mut().remove("uid");
    let again = write(None, Some(&base), &[held], &Mutation::Create { body }).unwrap();
    let Decision::Revise { revision, outcome, .. } = again else { panic!("{again:?}") };
    assert_eq!((revision.created, revision.ended), (None, vec!["o1".to_owned()]));
    assert!(matches!(*outcome, Outcome::Created(object) if object.uid() == "w"));
}

#[test]
fn what_the_device_does_not_know_cannot_be_made_here() {
    let mut body = base();
    body.metadata_mut().remove("uid");
    let error = write(None, None, &[], &Mutation::Create { body }).unwrap_err();
    assert_eq!(error.reason, Reason::Forbidden);
    assert!(error.message.contains("new objects come from the hub"), "{error}");
    assert_eq!(write(None, None, &[], &colour("red")).unwrap_err().reason, Reason::NotFound);
}

#[test]
fn an_invalid_change_is_refused_with_its_path() {
    let base = base();
    let body = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": ""}]}}}});
    let patch = Mutation::Patch { part: Part::Main, patch: Patch::StrategicMerge(body) };
    let error = write(Some(&base), Some(&base), &[], &patch).unwrap_err();
    assert_eq!(error.reason, Reason::Invalid);
    assert!(error.message.contains("spec.template.spec.containers[0].image"), "{error}");
}

#[test]
fn the_status_and_hub_only_kinds_cannot_be_written() {
    let base = base();
    let status = Mutation::Patch { part: Part::Status, patch: Patch::JsonMerge(json!({"status": {}})) };
    assert_eq!(write(Some(&base), Some(&base), &[], &status).unwrap_err().reason, Reason::MethodNotAllowed);
    let node = Object::empty(&kind::NODE, "", "n1");
    let label =
        Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(json!({"metadata": {"labels": {"a": "b"}}})) };
    let subject = Subject { shown: Some(&node), base: Some(&node), records: &[] };
    let error = decide(&node.key(), &subject, &label, &context(), "o1", "technician").unwrap_err();
    assert!(error.message.contains("change it at the hub"), "{error}");
    assert_eq!(error.reason, Reason::Forbidden);
}

#[test]
fn what_apply_leaves_behind_is_kept_here_and_never_in_an_override() {
    let mut base = base();
    base.set_annotation("flotilla.dev/rollout", "1-1");
    let body = json!({"metadata": {"annotations": {LAST_APPLIED_ANNOTATION: "{}"}}});
    let patch = Mutation::Patch { part: Part::Main, patch: Patch::StrategicMerge(body) };
    let decision = write(Some(&base), Some(&base), &[], &patch).unwrap();
    let Decision::Revise { revision, kept, .. } = decision else { panic!("{decision:?}") };
    assert_eq!((*revision, kept.last_applied.as_deref()), (Revision::default(), Some("{}")));

    let mut again = base.clone();
    again.metadata_mut().remove("uid");
    again.metadata_mut().remove("annotations");
    again.set_annotation(LAST_APPLIED_ANNOTATION, "{}");
    let decision = write(None, Some(&base), &[], &Mutation::Create { body: again }).unwrap();
    let Decision::Revise { revision, .. } = decision else { panic!("{decision:?}") };
    assert_eq!(*revision, Revision::default());
}

#[test]
fn deleting_a_derived_pod_restarts_it() {
    let node = flotilla_manifests::derive::NodeRef { name: "n1".into(), uid: "node".into() };
    let pod = flotilla_manifests::derive::daemon_pod(&base(), &node, "1-1".parse().unwrap(), 0, &[]);
    let subject = Subject { shown: Some(&pod), base: Some(&pod), records: &[] };
    let decision =
        decide(&pod.key(), &subject, &Mutation::Delete(DeleteOptions::default()), &context(), "o1", "me").unwrap().0;
    assert!(matches!(decision, Decision::Restart { .. }), "{decision:?}");
}

#[test]
fn a_deployment_scales_here_to_nothing_or_back_and_to_no_other_number() {
    let mut base = base();
    base.value_mut()["kind"] = json!("Deployment");
    let mut base = Object::parse(base.into_value()).unwrap();
    base.value_mut()["spec"]["replicas"] = json!(3);
    defaults::apply(&mut base);
    let scale = |to: i64| {
        let patch = Mutation::Patch { part: Part::Scale, patch: Patch::JsonMerge(json!({"spec": {"replicas": to}})) };
        let key = ObjectKey::of(&kind::DEPLOYMENT, "default", "web");
        let subject = Subject { shown: Some(&base), base: Some(&base), records: &[] };
        decide(&key, &subject, &patch, &context(), "o1", "technician").map(|(decision, _)| decision)
    };
    assert!(matches!(scale(0).unwrap(), Decision::Revise { .. }));
    assert!(matches!(scale(3).unwrap(), Decision::Nothing(_)));
    let error = scale(5).unwrap_err();
    assert_eq!(error.reason, Reason::Forbidden);
    assert!(error.message.contains("0") && error.message.contains("back to 3"), "{error}");
}

fn annotated(text: &str) -> Mutation {
    let body = json!({"metadata": {"annotations": {"flotilla.dev/override-expires": text}}});
    Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(body) }
}

#[test]
fn a_change_may_say_when_it_ends() {
    let base = base();
    let mut body = json!({"metadata": {"annotations": {"flotilla.dev/override-expires": "2h"}}});
    body["spec"] = json!({"template": {"spec": {"containers": [{"name": "web", "image": "other"}]}}});
    let both = Mutation::Patch { part: Part::Main, patch: Patch::StrategicMerge(body) };
    let record = created(&write(Some(&base), Some(&base), &[], &both).unwrap());
    assert_eq!(record.expires, Some(Timestamp(5_000 + 7_200_000)));
    assert_eq!(record.operations.len(), 1, "the annotation is no part of the change: {record:?}");

    // Said afterwards, it is meant for the changes that stand.
    let shown = overrides::apply(&base, std::slice::from_ref(&record), Timestamp(0)).object;
    let longer = write(Some(&shown), Some(&base), std::slice::from_ref(&record), &annotated("never")).unwrap();
    let Decision::Revise { revision, .. } = longer else { panic!("{longer:?}") };
    assert_eq!(revision.rewritten, [OverrideRecord { expires: None, ..record }]);
    let refused = write(Some(&base), Some(&base), &[], &annotated("soon")).unwrap_err();
    assert!(
        refused.message.contains("flotilla.dev/override-expires") && refused.message.contains("1d12h"),
        "{refused}"
    );
    let mut said = base.clone();
    said.set_annotation("flotilla.dev/override-expires", "1h");
    let record = created(&write(Some(&said), Some(&said), &[], &colour("red")).unwrap());
    assert_eq!((record.expires, record.operations.len()), (None, 1), "the manifest's own annotation says nothing here");
    let nothing = write(Some(&base), Some(&base), &[], &annotated("2h")).unwrap();
    assert!(matches!(nothing, Decision::Nothing(_)), "{nothing:?}");
}

#[test]
fn leases_and_evictions_are_the_hubs() {
    let key = ObjectKey::of(&kind::LEASE, "default", "office");
    let body = Object::empty(&kind::LEASE, "default", "office");
    let nobody = Subject { shown: None, base: None, records: &[] };
    let refused = decide(&key, &nobody, &Mutation::Create { body }, &context(), "o1", "me").unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
    assert!(refused.message.contains("cut off") && refused.message.contains("hub's API"), "{refused}");
    let pod = ObjectKey::of(&kind::POD, "default", "web");
    let refused =
        decide(&pod, &nobody, &Mutation::Evict(DeleteOptions::default()), &context(), "o1", "me").unwrap_err();
    assert!(refused.message.contains("only the hub can place it elsewhere"), "{refused}");
}

#[test]
fn a_cause_is_the_reason_of_later_changes_and_no_change_itself() {
    let mut base = base();
    base.set_annotation(CAUSE_ANNOTATION, "the operator's");
    let annotate = |text: &str| {
        let body = json!({"metadata": {"annotations": {CAUSE_ANNOTATION: text}}});
        Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(body) }
    };
    let decision = write(Some(&base), Some(&base), &[], &annotate("too dark")).unwrap();
    let Decision::Revise { revision, kept, .. } = decision else { panic!("{decision:?}") };
    assert_eq!((*revision, kept.cause.as_deref()), (Revision::default(), Some("too dark")));
    let mut shown = base.clone();
    shown.set_annotation(CAUSE_ANNOTATION, "too dark");
    assert!(matches!(write(Some(&shown), Some(&base), &[], &annotate("too dark")), Ok(Decision::Nothing(_))));
    let record = created(&write(Some(&shown), Some(&base), &[], &colour("white")).unwrap());
    assert_eq!((record.reason.as_str(), record.operations.len()), ("too dark", 1));
    let record = created(&write(Some(&base), Some(&base), &[], &colour("white")).unwrap());
    assert_eq!(record.reason, "", "the operator's cause is not the technician's");
}

fn applied(force: bool, colour: &str) -> Mutation {
    let container = json!({"name": "web", "env": [{"name": "COLOUR", "value": colour}]});
    let body = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [container]}}}});
    let options = ApplyOptions { manager: "kubectl".into(), force };
    Mutation::Apply { part: Part::Main, body, options }
}

/// Who owns the manifest's fields at the hub does not matter here; another person's override does.
#[test]
fn server_side_apply_meets_overrides_of_others() {
    let base = base();
    let record = created(&write(Some(&base), Some(&base), &[], &applied(false, "red")).unwrap());
    assert_eq!((record.operations.len(), record.author.as_str()), (1, "technician"));
    let shown = overrides::apply(&base, std::slice::from_ref(&record), Timestamp(0)).object;
    assert_eq!(shown.at("/metadata/managedFields"), None);
    let own = write(Some(&shown), Some(&base), std::slice::from_ref(&record), &applied(false, "green")).unwrap();
    assert_eq!(created(&own).operations[0].value, Some(json!("green")), "one's own override is no conflict");

    let theirs = [OverrideRecord { author: "ann".into(), ..record }];
    let refused = write(Some(&shown), Some(&base), &theirs, &applied(false, "green")).unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict);
    assert!(refused.message.contains("conflict with the override o1 of \"ann\""), "{refused}");
    assert_eq!(refused.causes[0].reason, "FieldManagerConflict");
    created(&write(Some(&shown), Some(&base), &theirs, &applied(true, "green")).unwrap());
    let same = write(Some(&shown), Some(&base), &theirs, &applied(false, "red")).unwrap();
    assert!(matches!(same, Decision::Nothing(_)), "{same:?}");
    let unknown = write(None, None, &[], &applied(false, "red")).unwrap_err();
    assert!(unknown.message.contains("new objects come from the hub"), "{unknown}");
}
