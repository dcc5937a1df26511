//! Creation, replacement, patching, status, scale.

use super::*;

fn create(body: Value, context: &Context) -> Result<Admitted, ApiError> {
    let body = object(body);
    let key = created_key(&key(body.kind(), ""), &body, &context.name_suffix);
    admit(&key, None, &Mutation::Create { body }, context)
}

#[test]
fn a_creation_is_given_its_system_fields() {
    let mut body = deployment();
    body["metadata"]["creationTimestamp"] = Value::Null;
    body["metadata"]["uid"] = "mine".into();
    body["metadata"]["generation"] = 7.into();
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    body["metadata"]["selfLink"] = "/x".into();
    body["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    body["metadata"]["labels"] = json!({});
    body["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
    body["status"] = json!({"replicas": 9});
    let strict = Context { field_validation: FieldValidation::Strict, ..context() };
    let Ok(Admitted { outcome: Outcome::Created(object), .. }) = create(body, &strict) else { panic!() };
    assert_eq!(
        object.value()["metadata"],
        json!({
            "name": "web", "namespace": "default", "uid": context().uid, "generation": 1,
            "creationTimestamp": "2026-11-21T08:00:00Z",
        })
    );
    assert_eq!(object.status(), Some(&json!({})));
    assert_eq!(object.at("/spec/replicas"), Some(&json!(1)));
    assert_eq!(object.at("/spec/template/metadata"), Some(&json!({"labels": {"app": "web"}})));
}

#[test]
fn each_kind_starts_with_its_status() {
    assert_eq!(stored(pod()).text("/status/phase"), "Pending");
    let mut body = deployment();
    body["kind"] = "ReplicaSet".into();
    assert_eq!(stored(body.clone()).status(), Some(&json!({"replicas": 0})));
    body["kind"] = "DaemonSet".into();
    assert_eq!(stored(body).at("/status/numberReady"), Some(&json!(0)));
    assert_eq!(stored(config()).status(), None);
    let space = stored(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    assert_eq!(space.text("/status/phase"), "Active");
    assert_eq!(space.at("/spec/finalizers"), Some(&json!(["kubernetes"])));
    let node = stored(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}}),
    );
    assert_eq!(node.text("/status/capacity/cpu"), "2");
    assert_eq!(stored(config()).generation(), 0);
}

#[test]
fn names_are_generated_and_bounded() {
    let mut body = pod();
    body["metadata"] = json!({"generateName": "web-"});
    assert_eq!(stored(body.clone()).name(), "web-x7k2p");
    body["metadata"] = json!({"generateName": "a".repeat(70)});
    assert_eq!(stored(body.clone()).name(), format!("{}x7k2p", "a".repeat(58)));
    body["metadata"] = json!({"name": "own", "generateName": "web-"});
    assert_eq!(stored(body.clone()).name(), "own");
    body["metadata"] = json!({});
    refused(
        create(body, &context()),
        Reason::Invalid,
        "metadata.name: Required value: name or generateName is required",
    );
}

#[test]
fn a_creation_that_cannot_be_is_refused() {
    let there = stored(config());
    let mutation = Mutation::Create { body: object(config()) };
    refused(write(&there, &mutation), Reason::AlreadyExists, "configmaps \"web\" already exists");
    let mut body = config();
    body["metadata"]["resourceVersion"] = "7".into();
    refused(create(body, &context()), Reason::BadRequest, "resourceVersion should not be set");
    let mut body = config();
    body["metadata"]["namespace"] = "other".into();
    refused(create(body, &context()), Reason::BadRequest, "does not match the namespace sent on the request");
    let other = Mutation::Create { body: object(pod()) };
    refused(admit(&key(&kind::CONFIG_MAP, ""), None, &other, &context()), Reason::BadRequest, "another kind");
    let named = Mutation::Create { body: object(config()) };
    refused(
        admit(&key(&kind::CONFIG_MAP, "b"), None, &named, &context()),
        Reason::BadRequest,
        "does not match the name on the URL (b)",
    );
    let mut big = config();
    big["data"]["a"] = "x".repeat(OBJECT_BYTES_MAX).into();
    refused(create(big, &context()), Reason::RequestEntityTooLarge, "larger than");
    let mut deep =
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "revision": 1});
    deep["data"] = (0..200).fold(json!({}), |inner, _| json!({"a": inner}));
    refused(create(deep, &context()), Reason::BadRequest, "nested deeper");
}

#[test]
fn all_faults_come_at_once() {
    let mut body = deployment();
    body["spec"]["template"]["spec"]["containers"] = json!([{"name": "A b", "image": ""}, {"image": "x"}]);
    body["spec"]["replicas"] = (-1).into();
    let error = create(body, &context()).unwrap_err();
    assert_eq!(error.reason, Reason::Invalid);
    assert!(error.causes.len() >= 4, "{error}");
    assert!(error.message.starts_with("Deployment.apps \"web\" is invalid: ["), "{error}");
}

#[test]
fn unknown_fields_are_met_as_asked_and_never_stored() {
    let mut body = config();
    body["dta"] = json!({"a": 1});
    let ask = |field_validation| create(body.clone(), &Context { field_validation, ..context() });
    refused(ask(FieldValidation::Strict), Reason::BadRequest, "strict decoding error: unknown field \"dta\"");
    for (validation, expected) in
        [(FieldValidation::Warn, vec!["unknown field \"dta\"".to_owned()]), (FieldValidation::Ignore, vec![])]
    {
        let admitted = ask(validation).unwrap();
        assert_eq!(admitted.warnings, expected);
        let Outcome::Created(object) = admitted.outcome else { panic!() };
        assert_eq!(object.at("/dta"), None);
    }
}

#[test]
fn a_replacement_is_a_compare_and_swap() {
    let current = stored(config());
    let mut body = config();
    body["data"]["a"] = "2".into();
    assert_eq!(updated(replace(&current, Part::Main, body.clone())).text("/data/a"), "2");
    body["metadata"]["resourceVersion"] = "5".into();
    assert_eq!(updated(replace(&current, Part::Main, body.clone())).resource_version(), 5);
    body["metadata"]["resourceVersion"] = "4".into();
    refused(
        replace(&current, Part::Main, body.clone()),
        Reason::Conflict,
        "the object has been modified; please apply your changes to the latest version",
    );
    body["metadata"]["resourceVersion"] = "abc".into();
    refused(replace(&current, Part::Main, body.clone()), Reason::Invalid, "metadata.resourceVersion: Invalid value");
    body["metadata"]["resourceVersion"] = "".into();
    body["metadata"]["uid"] = "other".into();
    refused(replace(&current, Part::Main, body), Reason::Conflict, "Precondition failed: UID in precondition: other");
    let missing = Mutation::Replace { part: Part::Main, body: config() };
    refused(
        admit(&key(&kind::CONFIG_MAP, "web"), None, &missing, &context()),
        Reason::NotFound,
        "configmaps \"web\" not found",
    );
}

#[test]
fn a_body_that_is_not_this_object_is_refused() {
    let current = stored(config());
    refused(replace(&current, Part::Main, json!([])), Reason::BadRequest, "not a JSON object");
    refused(replace(&current, Part::Main, json!({"kind": "ConfigMap"})), Reason::BadRequest, "apiVersion");
    refused(replace(&current, Part::Main, pod()), Reason::BadRequest, "another kind");
    let mut body = config();
    body["metadata"]["name"] = "other".into();
    refused(replace(&current, Part::Main, body), Reason::BadRequest, "the name of the object (other) does not match");
    refused(merge(&current, Part::Main, json!({"kind": "Pod"})), Reason::BadRequest, "another kind");
    refused(
        merge(&current, Part::Main, json!({"metadata": {"name": "b"}})),
        Reason::BadRequest,
        "does not match the name",
    );
    // Names and versions are the URL's and the server's, whatever is taken away.
    unchanged(merge(&current, Part::Main, json!({"metadata": null})));
}

#[test]
fn system_fields_survive_every_body() {
    let current = changed(stored(deployment()), &[("/status", json!({"replicas": 3}))]);
    let mut body = deployment();
    body["metadata"] = json!({"name": "web", "labels": {"a": "b"}, "generation": 99, "creationTimestamp": null});
    body["status"] = json!({"replicas": 0});
    let new = updated(replace(&current, Part::Main, body));
    let expected = changed(current.clone(), &[("/metadata/labels", json!({"a": "b"}))]);
    assert_eq!(new, expected);
}

#[test]
fn a_write_that_changes_nothing_is_said_so() {
    let current = stored(deployment());
    unchanged(replace(&current, Part::Main, deployment()));
    unchanged(replace(&current, Part::Main, current.value().clone()));
    unchanged(merge(&current, Part::Main, json!({})));
    unchanged(merge(
        &current,
        Part::Main,
        json!({"spec": {"replicas": 1}, "metadata": {"annotations": {"x": null}, "labels": {}}}),
    ));
    unchanged(merge(&current, Part::Main, json!({"status": {"replicas": 1}})));
    unchanged(merge(&current, Part::Status, json!({"spec": {"replicas": 8}})));
    unchanged(merge(&current, Part::Scale, json!({"spec": {"replicas": 1}})));
}

#[test]
fn generation_counts_specs() {
    let current = stored(deployment());
    let generation = |patch: Value| updated(merge(&current, Part::Main, patch)).generation();
    assert_eq!(generation(json!({"metadata": {"labels": {"a": "b"}}})), 1);
    assert_eq!(generation(json!({"spec": {"replicas": 4}})), 2);
    assert_eq!(updated(merge(&current, Part::Status, json!({"status": {"replicas": 4}}))).generation(), 1);
    assert_eq!(updated(merge(&stored(config()), Part::Main, json!({"data": {"b": "2"}}))).generation(), 0);
}

#[test]
fn later_defaults_change_nothing_by_themselves() {
    // As an earlier version stored it, without this version's defaults.
    let mut current = stored(deployment());
    current.value_mut()["spec"].as_object_mut().unwrap().remove("revisionHistoryLimit");
    let labelled = updated(merge(&current, Part::Main, json!({"metadata": {"labels": {"a": "b"}}})));
    assert_eq!(labelled.spec(), current.spec());
    assert_eq!(labelled.generation(), 1);
    let scaled = updated(merge(&current, Part::Main, json!({"spec": {"replicas": 2}})));
    assert_eq!(scaled.at("/spec/revisionHistoryLimit"), Some(&json!(10)));
}

#[test]
fn faults_that_are_stored_already_do_not_block() {
    let current = changed(stored(deployment()), &[("/spec/minReadySeconds", json!(-1))]);
    updated(merge(&current, Part::Main, json!({"metadata": {"labels": {"a": "b"}}})));
    updated(merge(&current, Part::Status, json!({"status": {"replicas": 1}})));
    refused(merge(&current, Part::Main, json!({"spec": {"replicas": -1}})), Reason::Invalid, "spec.replicas");
}

#[test]
fn immutable_fields_stay() {
    let current = stored(deployment());
    let patch = json!({"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}}});
    refused(merge(&current, Part::Main, patch), Reason::Invalid, "field is immutable");
}

#[test]
fn a_status_write_touches_the_status() {
    let current = stored(pod());
    let body = changed(
        current.clone(),
        &[
            ("/status", json!({"phase": "Running"})),
            ("/spec/containers", json!([])),
            ("/metadata/annotations", json!({"seen": "yes"})),
            ("/metadata/finalizers", json!(["x/y"])),
        ],
    );
    let new = updated(replace(&current, Part::Status, body.into_value()));
    let expected = changed(
        current.clone(),
        &[("/status", json!({"phase": "Running"})), ("/metadata/annotations", json!({"seen": "yes"}))],
    );
    assert_eq!(new, expected);
    refused(merge(&current, Part::Status, json!({"status": {"phase": 7}})), Reason::Invalid, "status.phase");
    refused(merge(&stored(config()), Part::Status, json!({})), Reason::NotFound, "no \"status\" subresource");
    // A label of a Deployment is no part of its status; a body that says nothing of labels takes none away.
    let current = changed(stored(deployment()), &[("/metadata/labels", json!({"a": "b"}))]);
    unchanged(merge(&current, Part::Status, json!({"metadata": {"labels": {"c": "d"}}})));
    let mut body = deployment();
    body["status"] = json!({"replicas": 1});
    assert_eq!(updated(replace(&current, Part::Status, body)).label("a"), Some("b"));
}

#[test]
fn a_scale_moves_replicas_and_nothing_else() {
    let current = changed(stored(deployment()), &[("/status", json!({"replicas": 3}))]);
    let view = scale::of(&current).unwrap();
    assert_eq!(
        view,
        json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {"name": "web", "namespace": "default", "uid": context().uid, "resourceVersion": "5", "creationTimestamp": "2026-11-21T08:00:00Z"},
            "spec": {"replicas": 1}, "status": {"replicas": 3, "selector": "app=web"},
        })
    );
    let new = updated(merge(&current, Part::Scale, json!({"spec": {"replicas": 5}})));
    assert_eq!(new, changed(current.clone(), &[("/spec/replicas", json!(5)), ("/metadata/generation", json!(2))]));
    let mut body = view;
    body["spec"]["replicas"] = 0.into();
    assert_eq!(updated(replace(&current, Part::Scale, body.clone())).at("/spec/replicas"), Some(&json!(0)));
    body["metadata"]["resourceVersion"] = "4".into();
    refused(replace(&current, Part::Scale, body), Reason::Conflict, "the object has been modified");
    for bad in [json!(-1), json!("x"), json!(1.5), json!(1u64 << 40)] {
        refused(
            merge(&current, Part::Scale, json!({"spec": {"replicas": bad}})),
            Reason::Invalid,
            "spec.replicas: Invalid value",
        );
    }
    refused(replace(&current, Part::Scale, deployment()), Reason::BadRequest, "is a Scale");
    refused(merge(&stored(pod()), Part::Scale, json!({})), Reason::NotFound, "no \"scale\" subresource");
    assert_eq!(scale::of(&stored(pod())), None);
}

#[test]
fn patches_of_every_type_are_admitted() {
    let current = stored(deployment());
    let strategic = Patch::StrategicMerge(json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "app"}], "containers": [{"name": "app", "image": "app:2"}]}}}}));
    let json =
        Patch::Json(json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "app:2"}]));
    for patch in [strategic, json] {
        let new = updated(write(&current, &Mutation::Patch { part: Part::Main, patch }));
        assert_eq!(new.text("/spec/template/spec/containers/0/image"), "app:2");
        assert_eq!(new.generation(), 2);
        assert_eq!(new.text("/spec/template/spec/containers/0/imagePullPolicy"), "IfNotPresent");
    }
    let refuse = |patch: Patch, reason, text| {
        refused(write(&current, &Mutation::Patch { part: Part::Main, patch }), reason, text)
    };
    refuse(
        Patch::Json(json!([{"op": "test", "path": "/spec/replicas", "value": 9}])),
        Reason::Invalid,
        "testing value failed",
    );
    refuse(Patch::Json(json!({})), Reason::BadRequest, "list of operations");
    refuse(Patch::JsonMerge(json!("x")), Reason::BadRequest, "JSON object");
    refuse(Patch::StrategicMerge(json!({"spec": {"$patch": "x"}})), Reason::BadRequest, "spec: unknown patch type: x");
    refuse(Patch::JsonMerge(json!({"metadata": {"resourceVersion": "4"}})), Reason::Conflict, "has been modified");
    refuse(Patch::StrategicMerge(json!({"$patch": "delete"})), Reason::BadRequest, "apiVersion");
    let warned = merge(&current, Part::Main, json!({"spec": {"replica": 3}})).unwrap();
    assert_eq!(warned.warnings, ["unknown field \"spec.replica\""]);
    assert_eq!(warned.outcome, Outcome::Unchanged(current.clone()));
    let missing = Mutation::Patch { part: Part::Main, patch: Patch::JsonMerge(json!({})) };
    refused(admit(&current.key(), None, &missing, &context()), Reason::NotFound, "deployments.apps \"web\" not found");
}

#[test]
fn a_patch_that_grows_an_object_without_end_is_refused() {
    let current = stored(config());
    let large = json!({"data": {"b": "x".repeat(OBJECT_BYTES_MAX)}});
    refused(merge(&current, Part::Main, large), Reason::RequestEntityTooLarge, "split it");
}
