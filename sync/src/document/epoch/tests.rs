//! What a new epoch keeps, and how late changes find their place.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::blob::no_blobs;

fn shape(path: &[&str]) -> Option<&'static [&'static str]> {
    match path {
        [.., "containers"] => Some(&["name"]),
        [.., "env"] => Some(&["name"]),
        _ => None,
    }
}

fn edit<'a>(object: &'a Value, rollouts: &'a Rollouts) -> Edit<'a> {
    Edit { object, rollouts, author: "admin", time_ms: 1_700_000_000_000 }
}

fn by<'a>(author: &'a str, object: &'a Value, rollouts: &'a Rollouts) -> Edit<'a> {
    Edit { author, ..edit(object, rollouts) }
}

fn numbers(all: &[(&str, u64)]) -> Rollouts {
    all.iter().map(|(number, threshold)| ((*number).to_owned(), *threshold)).collect()
}

fn manifest(image: &str, replicas: u64) -> Value {
    json!({"metadata": {"name": "a", "labels": {"app": "a"}}, "spec": {"replicas": replicas, "template": {"spec": {"containers": [
        {"name": "one", "image": image, "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
        {"name": "two", "image": "busybox", "env": []}]}}}})
}

fn object(document: &Document) -> Value {
    document.object(&no_blobs).unwrap()
}

#[test]
fn numbers_in_flight_keep_their_templates_over_epochs() {
    let mut document = Document::create(
        edit(&manifest("a:1", 1), &numbers(&[("1-9", 5)])),
        Epoch { number: 1, keeper: 3 },
        &shape,
        [1; 8],
    )
    .unwrap();
    let both = numbers(&[("1-9", 5), ("1-10", 0)]);
    document.edit(edit(&manifest("a:2", 1), &both), &shape).unwrap().unwrap();
    document.edit(edit(&manifest("a:2", 7), &both), &shape).unwrap().unwrap();
    for epoch in 2..6 {
        let heads = document.heads();
        let all = numbers(&[("1-9", 5), ("1-10", 8), ("1-11", 0)]);
        document = document.succeed(edit(&manifest("a:3", epoch), &all), 3, &shape, [2; 8]).unwrap();
        document = Document::load(&document.save()).unwrap();
        assert_eq!((document.epoch(), document.keeper()), (epoch, 3));
        assert!(document.changes_len() <= 4, "one change for each number and one for what is there now");
        assert_eq!(document.follows(), heads);
        assert_eq!(document.rollouts(), all);
        assert_eq!(object(&document), manifest("a:3", epoch));
        let at = |number| document.object_at_number(number, &no_blobs).unwrap();
        assert_eq!(at("1-9"), Some(manifest("a:1", 1)), "epoch {epoch}");
        assert_eq!(at("1-10"), Some(manifest("a:2", 1)), "epoch {epoch}");
        assert_eq!(at("1-11"), Some(manifest("a:3", 2)), "the template is of the moment its number was made");
        assert_eq!(at("1-8"), None);
    }
    let one = numbers(&[("1-11", 1)]);
    let document = document.succeed(edit(&manifest("a:3", 9), &one), 4, &shape, [2; 8]).unwrap();
    assert_eq!(document.rollouts(), one, "numbers that are over are not carried");
}

#[test]
fn a_late_change_is_an_edit_of_its_author_on_the_new_epoch() {
    let none = Rollouts::new();
    let mut old = Document::create(edit(&manifest("a:1", 1), &none), 1, &shape, [1; 8]).unwrap();
    let mut elsewhere = Document::load(&old.save()).unwrap().with_actor([9; 8]);
    // Here the epoch is cut after an edit of its own ...
    old.edit(edit(&manifest("a:2", 1), &none), &shape).unwrap().unwrap();
    let cut = old.heads();
    let mut new = old.succeed(edit(&manifest("a:2", 1), &none), 1, &shape, [2; 8]).unwrap();
    // ... while another hub, which did not know, scaled, relabelled, and changed the environment.
    let mut theirs = manifest("a:1", 5);
    theirs["metadata"]["labels"]["tier"] = json!("front");
    theirs["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "C", "value": "3"}, {"name": "A", "value": "1"}]);
    let change = elsewhere.edit(by("operator:bob", &theirs, &none), &shape).unwrap().unwrap();
    old.apply(&change).unwrap();
    let late = old.late_changes(&cut).unwrap();
    assert_eq!(late.len(), 1);
    assert_eq!((late[0].author.as_str(), late[0].time_ms), ("operator:bob", 1_700_000_000_000));
    let fields = late[0].fields();
    assert!(fields.contains(&"spec.replicas".to_owned()), "{fields:?}");
    assert_eq!(new.replay(&late[0]).unwrap(), Vec::<String>::new());
    let mut expected = manifest("a:2", 5);
    expected["metadata"]["labels"]["tier"] = json!("front");
    expected["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "C", "value": "3"}, {"name": "A", "value": "1"}]);
    assert_eq!(object(&new), expected);
    // The same once more changes nothing.
    assert_eq!(new.replay(&late[0]).unwrap(), Vec::<String>::new());
    assert_eq!(object(&new), expected);
}

#[test]
fn a_field_without_a_place_is_named() {
    let none = Rollouts::new();
    let mut old = Document::create(edit(&manifest("a:1", 1), &none), 1, &shape, [1; 8]).unwrap();
    let cut = old.heads();
    let mut without = manifest("a:1", 1);
    without["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().remove(1);
    let mut new = old.succeed(edit(&without, &none), 1, &shape, [2; 8]).unwrap();
    let mut theirs = manifest("a:1", 1);
    theirs["spec"]["template"]["spec"]["containers"][1]["image"] = json!("other");
    old.edit(by("bob", &theirs, &none), &shape).unwrap().unwrap();
    let late = old.late_changes(&cut).unwrap();
    assert_eq!(new.replay(&late[0]).unwrap(), [r#"spec.template.spec.containers.["two"].image"#]);
    assert_eq!(object(&new), without);
}

#[test]
fn items_keep_the_order_a_late_change_gave_them() {
    let none = Rollouts::new();
    let mut old = Document::create(edit(&manifest("a:1", 1), &none), 1, &shape, [1; 8]).unwrap();
    let cut = old.heads();
    let mut new = old.succeed(edit(&manifest("a:2", 1), &none), 1, &shape, [2; 8]).unwrap();
    let mut theirs = manifest("a:1", 1);
    theirs["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().reverse();
    old.edit(by("bob", &theirs, &none), &shape).unwrap().unwrap();
    let late = old.late_changes(&cut).unwrap();
    new.replay(&late[0]).unwrap();
    let mut expected = manifest("a:2", 1);
    expected["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().reverse();
    assert_eq!(object(&new), expected);
}

fn arbitrary() -> impl Strategy<Value = Value> {
    let env = proptest::sample::subsequence(vec!["A", "B", "C", "D"], 0..=4).prop_shuffle();
    let containers = proptest::sample::subsequence(vec!["one", "two", "three"], 0..=3).prop_shuffle();
    (env, containers, 0..4_u64, proptest::option::of("[a-c]")).prop_map(|(env, containers, replicas, label)| {
        let env: Vec<Value> = env.iter().map(|name| json!({"name": name, "value": replicas.to_string()})).collect();
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name, "env": env})).collect();
        json!({"metadata": {"labels": {"l": label}}, "spec": {"replicas": replicas, "containers": containers}})
    })
}

proptest! {
    /// Replayed where nothing else happened, late changes lead to what their writer saw; as many as there were, in order.
    #[test]
    fn replay_alone_gives_what_the_writer_had(states in proptest::collection::vec(arbitrary(), 2..8)) {
        let none = Rollouts::new();
        let mut old = Document::create(edit(&states[0], &none), 1, &shape, [1; 8]).unwrap();
        let cut = old.heads();
        let mut new = old.succeed(edit(&states[0], &none), 1, &shape, [2; 8]).unwrap();
        for state in &states[1..] {
            old.edit(edit(state, &none), &shape).unwrap();
        }
        for late in old.late_changes(&cut).unwrap() {
            prop_assert_eq!(new.replay(&late).unwrap(), Vec::<String>::new());
        }
        prop_assert_eq!(object(&new), object(&old));
    }

    /// Wherever it lands, a late change does no harm.
    #[test]
    fn replay_never_fails(base in arbitrary(), here in arbitrary(), there in arbitrary()) {
        let none = Rollouts::new();
        let mut old = Document::create(edit(&base, &none), 1, &shape, [1; 8]).unwrap();
        let cut = old.heads();
        let mut new = old.succeed(edit(&here, &none), 1, &shape, [2; 8]).unwrap();
        old.edit(edit(&there, &none), &shape).unwrap();
        for late in old.late_changes(&cut).unwrap() {
            new.replay(&late).unwrap();
        }
        let saved = new.save();
        prop_assert_eq!(object(&Document::load(&saved).unwrap()), object(&new));
    }
}
