use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::blob::no_blobs;

fn shape(path: &[&str]) -> Option<&'static [&'static str]> {
    match path {
        [.., "containers"] => Some(&["name"]),
        [.., "ports"] => Some(&["containerPort", "protocol"]),
        [.., "env"] => Some(&["name"]),
        _ => None,
    }
}

fn create(object: &Value, rollouts: &[(&str, u64)]) -> Document {
    let rollouts = numbers(rollouts);
    Document::create(edit(object, &rollouts), 1, &shape, [1; 8]).unwrap()
}

fn numbers(rollouts: &[(&str, u64)]) -> Rollouts {
    rollouts.iter().map(|(number, threshold)| ((*number).to_owned(), *threshold)).collect()
}

fn edit<'a>(object: &'a Value, rollouts: &'a Rollouts) -> Edit<'a> {
    Edit { object, rollouts, author: "admin", time_ms: 1_700_000_000_000 }
}

fn manifest(image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a", "labels": {"": "x", "\u{1}": "y"}},
        "spec": {"template": {"spec": {"containers": [
            {"name": "one", "image": image, "args": ["a", {"b": [1, -1, 1.5, u64::MAX, null]}], "env": [],
             "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]},
            {"name": "two", "image": "busybox", "ports": [{"containerPort": 1}, {"containerPort": 2}]}]}}}})
}

#[test]
fn a_manifest_comes_back_as_it_was_and_a_scalar_edit_is_small() {
    let mut document = create(&manifest("a:1"), &[("1-1", 5)]);
    assert_eq!(document.object(&no_blobs).unwrap(), manifest("a:1"));
    let rollouts = numbers(&[("1-1", 5)]);
    assert_eq!(document.edit(edit(&manifest("a:1"), &rollouts), &shape).unwrap(), None);
    let before = Document::load(&document.save()).unwrap();
    let change = document.edit(edit(&manifest("a:2"), &rollouts), &shape).unwrap().unwrap();
    assert!(change.len() <= 165, "{} bytes", change.len());
    let mut other = before;
    assert_eq!(other.apply(&change).unwrap(), DocumentApplied::Changed);
    assert_eq!(other.apply(&change).unwrap(), DocumentApplied::Duplicate);
    assert_eq!(other.object(&no_blobs).unwrap(), manifest("a:2"));
    assert_eq!(other.heads(), document.heads());
    assert_eq!((other.epoch(), other.changes_len()), (1, 2));
}

#[test]
fn numbers_remember_their_template() {
    let mut document = create(&manifest("a:1"), &[("1-1", 5)]);
    document.edit(edit(&manifest("a:2"), &numbers(&[("1-1", 5), ("1-2", 0)])), &shape).unwrap().unwrap();
    document.edit(edit(&manifest("a:2"), &numbers(&[("1-1", 5), ("1-2", u64::MAX)])), &shape).unwrap().unwrap();
    let mut document = Document::load(&document.save()).unwrap();
    assert_eq!(document.rollouts(), numbers(&[("1-1", 5), ("1-2", u64::MAX)]));
    assert_eq!(document.object_at_number("1-1", &no_blobs).unwrap(), Some(manifest("a:1")));
    assert_eq!(document.object_at_number("1-2", &no_blobs).unwrap(), Some(manifest("a:2")));
    assert_eq!(document.object_at_number("1-3", &no_blobs).unwrap(), None);
    document.edit(edit(&manifest("a:2"), &numbers(&[("1-2", 9)])), &shape).unwrap().unwrap();
    assert_eq!(document.rollouts(), numbers(&[("1-2", 9)]));
}

#[test]
fn concurrent_edits_merge_and_conflicts_are_shown() {
    let none = Rollouts::new();
    let saved = create(&manifest("a:1"), &[]).save();
    let mut left = Document::load(&saved).unwrap().with_actor([2; 8]);
    let mut right = Document::load(&saved).unwrap().with_actor([3; 8]);
    let mut object = manifest("a:2");
    object["spec"]["x"] = json!(1);
    let first = left.edit(edit(&object, &none), &shape).unwrap().unwrap();
    let mut object = manifest("a:3");
    object["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().remove(1);
    let second = right.edit(Edit { author: "bob", ..edit(&object, &none) }, &shape).unwrap().unwrap();
    assert!(left.conflicts().is_empty());
    left.apply(&second).unwrap();
    right.apply(&first).unwrap();
    assert_eq!(left.object(&no_blobs).unwrap(), right.object(&no_blobs).unwrap());
    let merged = left.object(&no_blobs).unwrap();
    assert_eq!(merged["spec"]["x"], 1);
    assert_eq!(merged["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    let conflicts = left.conflicts();
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    assert_eq!(conflicts[0].path.last().unwrap(), "image");
    assert_eq!(conflicts[0].values[0].value, merged["spec"]["template"]["spec"]["containers"][0]["image"]);
    let mut authors: Vec<_> = conflicts[0].values.iter().map(|value| value.author.as_str()).collect();
    authors.sort_unstable();
    assert_eq!(authors, ["admin", "bob"]);
    assert_eq!(conflicts[0].values[0].time_ms, 1_700_000_000_000);
    let mut object = merged;
    object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("a:4");
    left.edit(edit(&object, &none), &shape).unwrap().unwrap();
    assert!(left.conflicts().is_empty());
}

#[test]
fn a_missing_change_is_named_and_the_same_actor_twice_is_an_error() {
    let none = Rollouts::new();
    let saved = create(&manifest("a:1"), &[]).save();
    let mut one = Document::load(&saved).unwrap().with_actor([2; 8]);
    let first = one.edit(edit(&manifest("a:2"), &none), &shape).unwrap().unwrap();
    let second = one.edit(edit(&manifest("a:3"), &none), &shape).unwrap().unwrap();
    let mut other = Document::load(&saved).unwrap();
    assert!(matches!(other.apply(&second), Err(DocumentError::MissingChanges { missing }) if missing.len() == 1));
    other.apply(&first).unwrap();
    other.apply(&second).unwrap();
    let mut clone = Document::load(&saved).unwrap().with_actor([2; 8]);
    let twin = clone.edit(edit(&manifest("b:9"), &none), &shape).unwrap().unwrap();
    assert!(matches!(other.apply(&twin), Err(DocumentError::Damaged(_))));
}

#[test]
fn what_is_too_deep_or_no_object_is_refused() {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!({ "a": deep });
    }
    let mut list = json!(1);
    for _ in 0..100 {
        list = json!([list]);
    }
    let none = Rollouts::new();
    for object in [deep, json!({ "a": list }), json!([])] {
        assert!(Document::create(edit(&object, &none), 1, &shape, [1; 8]).is_err());
    }
}

fn arbitrary(depth: u32) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON", |value| value.is_finite()).prop_map(Value::from),
        "[\\PC\u{1}\u{2}]{0,6}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "[\\PC\u{0}-\u{5}]{0,3}",
        Just("env".to_owned()),
        Just("ports".to_owned()),
        Just("name".to_owned())
    ];
    let item = prop::collection::btree_map(
        prop_oneof![
            Just("name".to_owned()),
            Just("containerPort".to_owned()),
            Just("protocol".to_owned()),
            Just("x".to_owned())
        ],
        prop_oneof![(0u64..6).prop_map(Value::from), "[ab]{1,2}".prop_map(Value::from)],
        0..4,
    );
    let item = item.prop_map(|map| Value::Object(map.into_iter().collect()));
    leaf.prop_recursive(depth, 40, 5, move |inner| {
        prop_oneof![
            2 => prop::collection::btree_map(key.clone(), inner.clone(), 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::Array),
            3 => prop::collection::vec(item.clone(), 0..5).prop_map(|items| json!({"env": items.clone(), "ports": items})),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-c]", arbitrary(4), 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_object_round_trips_and_edits_into_every_other(versions in prop::collection::vec(object(), 1..4)) {
        let mut document = create(&versions[0], &[]);
        let mut follower = Document::load(&document.save()).unwrap();
        for version in &versions {
            if let Some(change) = document.edit(edit(version, &Rollouts::new()), &shape).unwrap() {
                follower.apply(&change).unwrap();
            }
            prop_assert_eq!(&document.object(&no_blobs).unwrap(), version);
            prop_assert_eq!(&follower.object(&no_blobs).unwrap(), version);
            prop_assert_eq!(&Document::load(&document.save()).unwrap().object(&no_blobs).unwrap(), version);
            prop_assert!(document.edit(edit(version, &Rollouts::new()), &shape).unwrap().is_none());
        }
    }

    #[test]
    fn hostile_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        prop_assert!(Document::load(&bytes).is_err());
        let mut document = create(&manifest("a:1"), &[]);
        prop_assert!(document.apply(&bytes).is_err());
        let mut saved = document.save();
        let at = at.index(saved.len());
        saved[at] ^= 1 << bit;
        if let Ok(document) = Document::load(&saved) {
            // Where damage is not noticed it must be harmless.
            document.object(&no_blobs).unwrap_or_default();
        }
    }
}

#[test]
fn large_values_stay_beside_the_document() {
    let (text, args) = ("x".repeat(1 << 20), vec!["y".repeat(300); 20]);
    let object = json!({"kind": "ConfigMap", "data": {"small": "s", "large": text, "again": text}, "args": args});
    let mut document = Document::create(edit(&object, &numbers(&[("1-1", 5)])), 1, &shape, [1; 8]).unwrap();
    let large = document.take_large();
    assert_eq!(large.len(), 2, "one for each content");
    assert!(document.save().len() < 600, "{} bytes", document.save().len());
    assert_eq!(document.blobs().len(), 2);
    let find = |hash: &Hash| large.iter().find(|blob| blob.name.hash == *hash).map(|blob| blob.content.clone());
    assert!(matches!(document.object(&no_blobs), Err(DocumentError::MissingBlob { .. })));
    assert_eq!(document.object(&find).unwrap(), object);

    let mut next = object.clone();
    next["data"]["large"] = "short".into();
    next["data"]["again"] = "z".repeat(5000).into();
    let both = numbers(&[("1-1", 5), ("1-2", 0)]);
    let change = document.edit(edit(&next, &both), &shape).unwrap().unwrap();
    assert!(change.len() < 400, "{} bytes", change.len());
    let more = document.take_large();
    assert_eq!(document.blobs().len(), 3, "the number in flight keeps its content named");
    let find =
        |hash: &Hash| large.iter().chain(&more).find(|blob| blob.name.hash == *hash).map(|blob| blob.content.clone());
    assert_eq!(document.object(&find).unwrap(), next);
    assert_eq!(document.object_at_number("1-1", &find).unwrap().unwrap(), object);
    document.edit(edit(&next, &numbers(&[("1-2", 9)])), &shape).unwrap().unwrap();
    assert_eq!(document.blobs().len(), 2);
}

#[test]
fn a_value_beyond_the_bound_is_refused() {
    let object = json!({"data": "x".repeat(crate::blob::BLOB_BYTES_MAX + 1)});
    let refused = Document::create(edit(&object, &Rollouts::new()), 1, &shape, [1; 8]).unwrap_err();
    assert_eq!(refused.to_string(), "document: more than 4194304 bytes in one value");
}
