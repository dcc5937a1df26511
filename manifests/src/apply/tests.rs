//! Server-side apply as a client sees it, through admission.

use proptest::prelude::*;

use super::*;
use crate::admission::{self, Context, FieldValidation, Mutation, Outcome};
use crate::kind;
use crate::object::ObjectKey;
use crate::patch::Patch;

fn context(now: u64) -> Context {
    Context {
        now: Timestamp(now),
        uid: "u".into(),
        name_suffix: "abcde".into(),
        field_validation: FieldValidation::Strict,
    }
}

fn write(current: Option<&Object>, mutation: &Mutation, now: u64) -> Result<Outcome, ApiError> {
    let key = match (current, mutation) {
        (Some(current), _) => current.key(),
        (None, Mutation::Create { body }) => body.key(),
        (None, Mutation::Apply { body, .. }) => Object::parse(body.clone()).unwrap().key(),
        _ => unreachable!("there is nothing to write to"),
    };
    admission::admit(&key, current, mutation, &context(now)).map(|admitted| admitted.outcome)
}

fn object_of(outcome: Outcome) -> Object {
    match outcome {
        Outcome::Created(object) | Outcome::Updated(object) | Outcome::Unchanged(object) => object,
        Outcome::Removed(object) => panic!("{object:?} was removed"),
    }
}

fn applying(manager: &str, force: bool, body: Value) -> Mutation {
    Mutation::Apply { part: Part::Main, body, options: ApplyOptions { manager: manager.to_owned(), force } }
}

fn apply(current: Option<&Object>, manager: &str, body: Value) -> Result<Object, ApiError> {
    write(current, &applying(manager, false, body), 1_000).map(object_of)
}

fn config(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s", "namespace": "default"}, "data": data})
}

/// A manager's fields, as paths.
fn fields_of(object: &Object, manager: &str) -> Vec<String> {
    let managers = managers_of(object).unwrap_or_default();
    managers.iter().filter(|one| one.manager == manager).flat_map(|one| one.fields.paths()).collect()
}

/// The sample measured at a real kube-apiserver.
#[test]
fn two_managers_of_one_config_map() {
    let first = apply(None, "alice", config(json!({"a": "1", "b": "2"}))).unwrap();
    assert_eq!(fields_of(&first, "alice"), [".data.a", ".data.b"]);
    assert_eq!(first.at("/metadata/managedFields/0/fieldsV1").unwrap(), &json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let error = apply(Some(&first), "bob", config(json!({"a": "9", "c": "3"}))).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"alice\": .data.a");
    let causes = &error.to_status()["details"]["causes"];
    let expected =
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"alice\"", "field": ".data.a"}]);
    assert_eq!(causes, &expected);
    let forced = applying("bob", true, config(json!({"a": "9", "c": "3"})));
    let forced = object_of(write(Some(&first), &forced, 2_000).unwrap());
    assert_eq!((fields_of(&forced, "alice"), fields_of(&forced, "bob").len()), (vec![".data.b".to_owned()], 2));
    let left = apply(Some(&forced), "alice", config(json!({}))).unwrap();
    assert_eq!(left.value()["data"], json!({"a": "9", "c": "3"}), "b had no other owner");
    assert_eq!(fields_of(&left, "alice"), [".data"], "an empty map is said, too");
    // The same value is shared, not fought for; one owner may leave it.
    let shared = apply(Some(&left), "alice", config(json!({"a": "9"}))).unwrap();
    let left = apply(Some(&shared), "bob", config(json!({}))).unwrap();
    assert_eq!(left.value()["data"], json!({"a": "9"}));
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn web(containers: Value) -> Value {
    deployment(json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}},
    }))
}

#[test]
fn lists_with_keys_are_owned_item_by_item() {
    let main = json!({"name": "main", "image": "m:1", "ports": [{"containerPort": 80}],
        "livenessProbe": {"httpGet": {"path": "/", "port": 80}}, "resources": {"limits": {"cpu": "0.5"}}});
    let first = apply(None, "ops", web(json!([main]))).unwrap();
    assert!(fields_of(&first, "ops").contains(
        &".spec.template.spec.containers[name=\"main\"].ports[containerPort=80,protocol=\"TCP\"]".to_owned()
    ));
    let unchanged = write(Some(&first), &applying("ops", false, web(json!([main]))), 9_000).unwrap();
    assert!(matches!(unchanged, Outcome::Unchanged(_)), "{unchanged:?}");

    let side = json!({"name": "side", "image": "s:1"});
    let body = deployment(json!({"template": {"spec": {"containers": [side]}}}));
    let both = apply(Some(&first), "mesh", body).unwrap();
    let names = |object: &Object| {
        let list = object.at("/spec/template/spec/containers").unwrap().as_array().unwrap().clone();
        list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&both), ["main", "side"]);

    // What ops no longer says goes with its defaults; the other's container stays.
    let leaner = json!({"name": "main", "image": "m:2"});
    let after = apply(Some(&both), "ops", web(json!([leaner]))).unwrap();
    let kept = after.at("/spec/template/spec/containers/0").unwrap();
    assert_eq!((&kept["image"], kept.get("livenessProbe"), kept.get("ports")), (&json!("m:2"), None, None));
    assert_eq!(kept["resources"], json!({}));
    assert_eq!(names(&after), ["main", "side"]);
    let gone = apply(Some(&after), "mesh", deployment(json!({}))).unwrap();
    assert_eq!(names(&gone), ["main"]);

    let twice = web(json!([{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]));
    let refused = apply(None, "ops", twice).unwrap_err();
    assert_eq!(refused.reason, Reason::Invalid, "{refused}");
}

#[test]
fn other_writes_take_their_fields_with_them() {
    let first = apply(None, "ops", web(json!([{"name": "main", "image": "m:1"}]))).unwrap();
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "m:9"}]}}}});
    let patch = Mutation::Patch { part: Part::Main, patch: Patch::StrategicMerge(patch) };
    let mut edited = object_of(write(Some(&first), &patch, 2_000).unwrap());
    track(&first, &mut edited, "kubectl-set", Part::Main, Timestamp(2_000));
    let image = ".spec.template.spec.containers[name=\"main\"].image".to_owned();
    assert_eq!(fields_of(&edited, "kubectl-set"), [image.as_str()]);
    assert!(!fields_of(&edited, "ops").contains(&image));
    let error = apply(Some(&edited), "ops", web(json!([{"name": "main", "image": "m:1"}]))).unwrap_err();
    let words = "conflict with \"kubectl-set\" using apps/v1 at 1970-01-01T00:00:02Z: .spec.template.spec.containers[name=\"main\"].image";
    assert_eq!(error.message, format!("Apply failed with 1 conflict: {words}"));
    let untracked =
        object_of(write(None, &Mutation::Create { body: Object::parse(config(json!({}))).unwrap() }, 1).unwrap());
    let mut changed = untracked.clone();
    changed.value_mut()["data"] = json!({"a": "b"});
    track(&untracked, &mut changed, "x", Part::Main, Timestamp(1));
    assert_eq!(changed.at("/metadata/managedFields"), None, "what was never applied costs nothing");
}

#[test]
fn many_updaters_are_put_together() {
    let mut object = apply(None, "ops", config(json!({"a": "1"}))).unwrap();
    for number in 0..15_u64 {
        let before = object.clone();
        object.value_mut()["data"][format!("k{number:02}")] = json!("x");
        track(&before, &mut object, &format!("m{number:02}"), Part::Main, Timestamp(number * 1000 + 5_000));
    }
    let managers = managers_of(&object).unwrap();
    assert_eq!(managers.iter().filter(|manager| !manager.applies).count(), UPDATERS_MAX);
    assert_eq!(fields_of(&object, ANCIENT).len(), 6);
}

#[test]
fn what_was_there_before_belongs_to_somebody() {
    let mut body = Object::parse(config(json!({"a": "1", "b": "2"}))).unwrap();
    let plain = object_of(write(None, &Mutation::Create { body: body.clone() }, 1).unwrap());
    let error = apply(Some(&plain), "ops", config(json!({"a": "9"}))).unwrap_err();
    assert!(error.message.contains("\"before-first-apply\" using v1"), "{error}");
    assert_eq!(
        fields_of(&apply(Some(&plain), "ops", config(json!({"a": "1"}))).unwrap(), "before-first-apply").len(),
        2
    );

    // kubectl goes on from its own client-side apply, and takes it over by rewriting the list.
    body.set_annotation(LAST_APPLIED, &config(json!({"a": "1"})).to_string());
    let applied = object_of(write(None, &Mutation::Create { body }, 1).unwrap());
    let moved = apply(Some(&applied), "kubectl", config(json!({"a": "9"}))).unwrap();
    assert_eq!(moved.value()["data"]["a"], "9");
    let mut rows = moved.at("/metadata/managedFields").unwrap().as_array().unwrap().clone();
    rows.retain(|row| row["manager"] != "kubectl-client-side-apply");
    let steps = json!([{"op": "replace", "path": "/metadata/managedFields", "value": rows}]);
    let patch = Mutation::Patch { part: Part::Main, patch: Patch::Json(steps) };
    let taken = object_of(write(Some(&moved), &patch, 3_000).unwrap());
    assert!(fields_of(&taken, "kubectl-client-side-apply").is_empty());
    let reset = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let reset = Mutation::Patch { part: Part::Main, patch: Patch::Json(reset) };
    assert_eq!(object_of(write(Some(&taken), &reset, 3_000).unwrap()).at("/metadata/managedFields"), None);
}

#[test]
fn what_an_apply_may_not_say() {
    let mut managed = config(json!({}));
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(apply(None, "ops", managed).unwrap_err().message, "metadata.managedFields must be nil");
    let first = apply(None, "ops", config(json!({"a": "1"}))).unwrap();
    let mut stale = config(json!({"a": "2"}));
    stale["metadata"]["resourceVersion"] = "77".into();
    assert_eq!(apply(Some(&first), "ops", stale).unwrap_err().reason, Reason::Conflict);
    let mut unknown = config(json!({}));
    unknown["colour"] = "red".into();
    assert_eq!(apply(None, "ops", unknown).unwrap_err().reason, Reason::BadRequest);
    let status = Mutation::Apply {
        part: Part::Status,
        body: json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}}),
        options: ApplyOptions { manager: "ops".into(), force: false },
    };
    let key = ObjectKey::of(&kind::POD, "default", "p");
    assert_eq!(admission::admit(&key, None, &status, &context(1)).unwrap_err().reason, Reason::NotFound);
}

#[test]
fn sets_and_atomic_values() {
    let of = |finalizers: Value, selector: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "finalizers": finalizers},
            "spec": {"nodeSelector": selector, "containers": [{"name": "a", "image": "x"}]}})
    };
    let first = apply(None, "one", of(json!(["a.org/x"]), json!({"k": "v"}))).unwrap();
    let paths = fields_of(&first, "one");
    assert!(paths.contains(&".metadata.finalizers[=\"a.org/x\"]".to_owned()), "{paths:?}");
    assert!(paths.contains(&".spec.nodeSelector".to_owned()), "{paths:?}");
    let both = apply(
        Some(&first),
        "two",
        json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "finalizers": ["b.org/y"]}}),
    )
    .unwrap();
    assert_eq!(both.finalizers(), ["a.org/x", "b.org/y"]);
}

proptest! {
    /// Applying again changes nothing; two managers keep each what they apply, whatever the other does.
    #[test]
    fn applying_twice_is_applying_once(
        one in proptest::collection::btree_map("[a-e]", "[x-z]", 0..5),
        two in proptest::collection::btree_map("[a-e]", "[x-z]", 0..5),
        three in proptest::collection::btree_map("[a-e]", "[x-z]", 0..5),
    ) {
        let forced = |current: Option<&Object>, manager: &str, data: &std::collections::BTreeMap<String, String>| {
            object_of(write(current, &applying(manager, true, config(json!(data))), 1_000).unwrap())
        };
        let first = forced(None, "one", &one);
        let again = write(Some(&first), &applying("one", false, config(json!(one))), 50_000).unwrap();
        prop_assert!(matches!(again, Outcome::Unchanged(_)), "{:?}", again);
        let second = forced(Some(&first), "two", &two);
        let last = forced(Some(&second), "one", &three);
        let mut expected = two.clone();
        expected.extend(three.clone());
        let data = last.value().get("data").cloned().unwrap_or_else(|| json!({}));
        prop_assert_eq!(data, json!(expected));
    }

    /// Containers of two managers: each has exactly its own, with the other's beside them, in the order of who applied last.
    #[test]
    fn each_manager_has_its_own_items(
        one in proptest::sample::subsequence(vec!["a", "b", "c"], 1..=3).prop_shuffle(),
        two in proptest::sample::subsequence(vec!["x", "y", "z"], 0..=3).prop_shuffle(),
        three in proptest::sample::subsequence(vec!["a", "b", "c", "d"], 1..=4).prop_shuffle(),
    ) {
        let list = |names: &[&str]| names.iter().map(|name| json!({"name": name, "image": "i"})).collect::<Value>();
        let beside = |names: &[&str]| match names {
            [] => deployment(json!({})),
            _ => deployment(json!({"template": {"spec": {"containers": list(names)}}})),
        };
        let first = apply(None, "one", web(list(&one))).unwrap();
        let second = apply(Some(&first), "two", beside(&two)).unwrap();
        let last = apply(Some(&second), "one", web(list(&three))).unwrap();
        let found = last.at("/spec/template/spec/containers").unwrap().as_array().unwrap();
        let names: Vec<&str> = found.iter().map(|one| one["name"].as_str().unwrap()).collect();
        let of = |wanted: &[&str]| names.iter().copied().filter(|name| wanted.contains(name)).collect::<Vec<_>>();
        prop_assert_eq!(of(&three), three.clone());
        prop_assert_eq!(of(&two).len(), two.len());
        prop_assert_eq!(names.len(), two.len() + three.len());
        let again = write(Some(&last), &applying("one", false, web(list(&three))), 9_000).unwrap();
        prop_assert!(matches!(again, Outcome::Unchanged(_)));
    }

    /// Whatever a client writes into the list of managers is read or left, and the next apply goes on.
    #[test]
    fn no_list_of_managers_stops_an_apply(element in "[fkvi.]?:?.{0,8}", below in "[fkv]:.{0,5}", operation in "(Apply|Update|x)") {
        let first = apply(None, "ops", config(json!({"a": "1"}))).unwrap();
        let rows = json!([{"manager": "m", "operation": operation, "fieldsV1": {element: {below: {}}}}]);
        let steps = json!([{"op": "replace", "path": "/metadata/managedFields", "value": rows}]);
        let patch = Mutation::Patch { part: Part::Main, patch: Patch::Json(steps) };
        let written = object_of(write(Some(&first), &patch, 2_000).unwrap());
        let after = write(Some(&written), &applying("ops", true, config(json!({"a": "2"}))), 3_000).unwrap();
        let after = object_of(after);
        prop_assert_eq!(after.text("/data/a"), "2");
    }

    /// What is written as `fieldsV1` is read back.
    #[test]
    fn sets_keep_their_members(paths in proptest::collection::vec(proptest::collection::vec("[a-c.]{1,3}", 1..5), 0..20)) {
        let mut set = FieldSet::default();
        for path in &paths {
            set.insert(&path.iter().map(|name| fields::field(name)).collect::<Vec<_>>());
        }
        prop_assert_eq!(FieldSet::parse(&set.to_value()).unwrap(), set.clone());
        prop_assert!(set.difference(&set).is_empty());
        prop_assert_eq!(set.intersection(&set), set);
    }
}
