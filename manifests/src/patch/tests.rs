#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{kind, schema};

mod strategic;

#[test]
fn json_merge_does_as_rfc_7386_says() {
    // Appendix A of the RFC.
    let table = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"a": "foo"}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ];
    for (target, patch, expected) in table {
        assert_eq!(json_merge::apply(target.clone(), &patch), expected, "{target} with {patch}");
    }
}

#[test]
fn merge_patches_are_objects() {
    for body in [json!([]), json!("x"), json!(null)] {
        assert!(Patch::JsonMerge(body.clone()).apply_to(json!({}), None).is_err(), "{body}");
        assert!(Patch::StrategicMerge(body).apply_to(json!({}), None).is_err());
    }
}

#[test]
fn json_patch_does_as_rfc_6902_says() {
    let table = [
        (
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux"}]),
            json!({"baz": "qux", "foo": "bar"}),
        ),
        (
            json!({"foo": ["bar", "baz"]}),
            json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
            json!({"foo": ["bar", "qux", "baz"]}),
        ),
        (
            json!({"foo": ["bar"]}),
            json!([{"op": "add", "path": "/foo/-", "value": ["abc"]}]),
            json!({"foo": ["bar", ["abc"]]}),
        ),
        (json!({"foo": [1]}), json!([{"op": "add", "path": "/foo/1", "value": 2}]), json!({"foo": [1, 2]})),
        (json!({"baz": "qux", "foo": "bar"}), json!([{"op": "remove", "path": "/baz"}]), json!({"foo": "bar"})),
        (
            json!({"foo": ["bar", "qux", "baz"]}),
            json!([{"op": "remove", "path": "/foo/1"}]),
            json!({"foo": ["bar", "baz"]}),
        ),
        (json!({"baz": "qux"}), json!([{"op": "replace", "path": "/baz", "value": "boo"}]), json!({"baz": "boo"})),
        (
            json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
            json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
            json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
        ),
        (
            json!({"foo": ["all", "grass", "cows", "eat"]}),
            json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
            json!({"foo": ["all", "cows", "eat", "grass"]}),
        ),
        (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/a"}]), json!({"a": 1})),
        (json!({"a": [1]}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": [1], "b": [1]})),
        (json!({"a": 1}), json!([{"op": "copy", "from": "", "path": "/b"}]), json!({"a": 1, "b": {"a": 1}})),
        (
            json!({"baz": "qux", "n": 1}),
            json!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/n", "value": 1.0}]),
            json!({"baz": "qux", "n": 1}),
        ),
        (
            json!({"/": 9, "~1": 10}),
            json!([{"op": "test", "path": "/~01", "value": 10}, {"op": "test", "path": "/~1", "value": 9}]),
            json!({"/": 9, "~1": 10}),
        ),
        (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": {"b": 2}}]), json!({"b": 2})),
        (
            json!({"a": 1, "b": 2}),
            json!([{"op": "add", "path": "/a", "value": null, "extra": 1}]),
            json!({"a": null, "b": 2}),
        ),
        (json!({}), json!([]), json!({})),
    ];
    for (target, patch, expected) in table {
        assert_eq!(json_patch::apply(target.clone(), &patch).as_ref(), Ok(&expected), "{target} with {patch}");
    }
}

#[test]
fn json_patch_says_what_does_not_fit() {
    let target = json!({"a": {"b": 1}, "l": [1, 2]});
    let table = [
        (json!([{"op": "remove", "path": "/x"}]), "remove operation 0 does not apply: \"/x\": missing value"),
        (json!([{"op": "replace", "path": "/a/x", "value": 1}]), "missing value"),
        (json!([{"op": "add", "path": "/x/y", "value": 1}]), "missing value"),
        (json!([{"op": "add", "path": "/a/b/c", "value": 1}]), "missing value"),
        (json!([{"op": "add", "path": "/l/3", "value": 1}]), "invalid index"),
        (json!([{"op": "add", "path": "/l/01", "value": 1}]), "invalid index"),
        (json!([{"op": "add", "path": "/l/-1", "value": 1}]), "invalid index"),
        (json!([{"op": "remove", "path": "/l/-"}]), "missing value"),
        (json!([{"op": "remove", "path": "/l/99999999999999999999999"}]), "missing value"),
        (json!([{"op": "test", "path": "/a/b", "value": "1"}]), "testing value failed"),
        (json!([{"op": "test", "path": "/x", "value": null}]), "missing value"),
        (json!([{"op": "move", "from": "/a", "path": "/a/b"}]), "into itself"),
        (json!([{"op": "copy", "from": "/x", "path": "/y"}]), "\"/x\": missing value"),
        (json!([{"op": "add", "path": "x", "value": 1}]), "no JSON pointer"),
        (json!([{"op": "add", "path": "/~2", "value": 1}]), "no JSON pointer"),
        (json!([{"op": "add", "path": "/x"}]), "\"value\" is missing"),
        (json!([{"op": "move", "path": "/x"}]), "\"from\" is missing"),
        (json!([{"path": "/x"}]), "\"op\" is missing"),
        (json!([{"op": "increment", "path": "/x"}]), "Unexpected kind: increment"),
        (json!(["x"]), "operation 0: not a JSON object"),
        (json!({"op": "remove", "path": "/a"}), "a list of operations"),
    ];
    for (patch, expected) in table {
        let error = json_patch::apply(target.clone(), &patch).unwrap_err().to_string();
        assert!(error.contains(expected), "{patch}: {error}");
    }
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!({}), |inner, _| json!({"a": inner}))
}

#[test]
fn poison_patches_are_refused() {
    let too_large = |patch: Patch, target: Value| {
        let error = patch.apply_to(target, None).unwrap_err();
        assert!(matches!(error, PatchError::TooLarge(_)), "{error}");
    };
    too_large(Patch::JsonMerge(nested(DEPTH_MAX)), json!({}));
    too_large(Patch::StrategicMerge(nested(DEPTH_MAX)), json!({}));
    too_large(Patch::Json(json!([{"op": "add", "path": "/a", "value": nested(DEPTH_MAX)}])), json!({}));
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "", "value": {}})).collect();
    too_large(Patch::Json(Value::Array(many)), json!({}));
    // Each line adds a level.
    let deeper: Vec<Value> = (0..DEPTH_MAX).map(|_| json!({"op": "copy", "from": "", "path": "/a"})).collect();
    too_large(Patch::Json(Value::Array(deeper)), json!({}));
    // Each line doubles the size.
    let mut wider = vec![json!({"op": "add", "path": "/a", "value": ["x".repeat(1000)]})];
    wider.extend((0..40).flat_map(|_| {
        [
            json!({"op": "copy", "from": "/a", "path": "/b"}),
            json!({"op": "move", "from": "/b", "path": "/a/-"}),
            json!({"op": "copy", "from": "/a/0", "path": "/a/-"}),
        ]
    }));
    too_large(Patch::Json(Value::Array(wider)), json!({}));
    // Each line moves much for little.
    let list = json!({"l": vec![0; 200_000]});
    let shifts: Vec<Value> = (0..9_000).map(|_| json!({"op": "add", "path": "/l/0", "value": 0})).collect();
    too_large(Patch::Json(Value::Array(shifts)), list);
}

#[test]
fn depth_is_counted_from_one_and_bounded() {
    assert_eq!(depth(&json!(1), 1), Some(1));
    assert_eq!(depth(&json!(1), 0), None);
    assert_eq!(depth(&json!({"a": [1]}), 3), Some(3));
    assert_eq!(depth(&json!({"a": [1]}), 2), None);
    // What passes can be read again.
    let deepest = nested(DEPTH_MAX - 1);
    assert!(depth(&deepest, DEPTH_MAX).is_some());
    assert!(serde_json::from_str::<Value>(&deepest.to_string()).is_ok());
}

/// JSON without nulls, as stored objects are.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", any_json(), 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_computed_merge_patch_makes_the_other(before in any_object(), after in any_object()) {
        let patch = json_merge::diff(&before, &after);
        prop_assert_eq!(json_merge::apply(before, &patch), after);
    }

    #[test]
    fn the_patch_between_equals_is_empty(value in any_object()) {
        prop_assert_eq!(json_merge::diff(&value, &value), json!({}));
    }

    #[test]
    fn merging_twice_is_merging_once(before in any_object(), patch in any_object()) {
        let once = json_merge::apply(before, &patch);
        prop_assert_eq!(json_merge::apply(once.clone(), &patch), once);
    }

    #[test]
    fn without_a_schema_strategic_merge_is_json_merge(before in any_object(), patch in any_object()) {
        let strategic = Patch::StrategicMerge(patch.clone()).apply_to(before.clone(), None).unwrap();
        prop_assert_eq!(strategic, json_merge::apply(before, &patch));
    }

    #[test]
    fn no_strategic_patch_panics(before in any_json(), patch in any_json()) {
        let shape = schema::of(&kind::POD);
        drop(Patch::StrategicMerge(json!({"spec": {"containers": patch}})).apply_to(json!({"spec": {"containers": before}}), Some(shape)));
    }

    #[test]
    fn no_json_patch_panics(before in any_json(), path in "(/[a-d0-2-]){0,4}", from in "(/[a-d0-2]){0,4}", value in any_json(),
        op in prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"])) {
        drop(json_patch::apply(before, &json!([{"op": op, "path": path, "from": from, "value": value}])));
    }
}
