use serde_json::json;

use super::*;
use crate::kind;

fn number(text: &str) -> RolloutNumber {
    text.parse().unwrap()
}

#[test]
fn numbers_have_one_text_and_the_order_of_their_parts() {
    for text in ["0-0", "1-5", "18446744073709551615-2"] {
        assert_eq!(number(text).to_string(), text);
    }
    for text in ["", "1", "1-", "-1", "1-+5", "01-5", "1-05", "1-5-6", "a-b", " 1-5"] {
        assert!(text.parse::<RolloutNumber>().is_err(), "{text}");
    }
    assert!(number("1-9") < number("1-10"));
    assert!(number("1-99") < number("2-1"));
    assert_eq!(serde_json::to_value(number("3-4")).unwrap(), json!("3-4"));
    assert_eq!(serde_json::from_value::<RolloutNumber>(json!("3-4")).unwrap(), number("3-4"));
    assert!(serde_json::from_value::<RolloutNumber>(json!("3")).is_err());
}

#[test]
fn a_threshold_lets_in_exactly_as_many_as_meant() {
    let uids: Vec<String> = (0..997).map(|index| format!("device-{index}")).collect();
    let number = number("1-7");
    for count in [0, 1, 2, 10, 500, 996, 997, 2000] {
        let threshold = threshold_for(&uids, number, count);
        let let_in = uids.iter().filter(|uid| admitted(uid, number, threshold)).count();
        assert_eq!(let_in, count.min(uids.len()), "{count}");
    }
    assert_eq!(threshold_for(&uids, number, 997), THRESHOLD_ALL);
    assert!(admitted("a device enrolled later", number, THRESHOLD_ALL));
    assert!(uids.iter().all(|uid| !admitted(uid, number, 0)));
}

#[test]
fn raising_a_threshold_takes_nobody_back_and_each_number_has_its_own_order() {
    let uids: Vec<String> = (0..50).map(|index| format!("device-{index}")).collect();
    let first = |number: RolloutNumber, count: usize| -> Vec<&String> {
        let threshold = threshold_for(&uids, number, count);
        uids.iter().filter(|uid| admitted(uid, number, threshold)).collect()
    };
    let five = first(number("1-1"), 5);
    assert!(five.iter().all(|uid| first(number("1-1"), 20).contains(uid)));
    assert_ne!(five, first(number("1-2"), 5));
}

#[test]
fn the_turn_is_the_one_ever_shipped() {
    assert_eq!(turn("6f1c0d9e-device", number("1-5")), 8653884000701631133);
    assert_eq!(template_hash(&json!({"spec": {"containers": [{"name": "web", "image": "web:1"}]}})), "8gnhxflkjz");
}

#[test]
fn a_template_sent_back_by_kubectl_is_the_same_template() {
    let ours = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"hostNetwork": false, "containers": [
        {"name": "web", "image": "web:1", "args": [], "env": [{"name": "A", "value": ""}], "resources": {}}],
        "volumes": [{"name": "v", "emptyDir": {}}]}});
    let theirs = json!({"metadata": {"creationTimestamp": null, "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "web", "image": "web:1", "env": [{"name": "A"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    assert_eq!(template_hash(&ours), template_hash(&theirs));
    let mut stored = workload(ours.clone());
    stamp(None, &mut stored, 1);
    assert_eq!(stamp(Some(&stored), &mut workload(theirs), 1), None);

    let edit = |pointer: &str, field: &str, value: Value| {
        let mut other = ours.clone();
        other.pointer_mut(pointer).unwrap()[field] = value;
        other
    };
    for other in [
        edit("/spec", "hostNetwork", true.into()),
        edit("/spec", "automountServiceAccountToken", false.into()),
        edit("/spec/containers/0", "securityContext", json!({"runAsUser": 0})),
        edit("/spec/containers/0/env/0", "value", "x".into()),
        edit("/spec", "terminationGracePeriodSeconds", 0.into()),
    ] {
        assert_ne!(template_hash(&ours), template_hash(&other), "{other}");
    }
}

fn workload(template: Value) -> Object {
    let mut object = Object::empty(&kind::DAEMON_SET, "default", "web");
    object.value_mut()["spec"] = json!({"template": template});
    object
}

#[test]
fn a_stamp_follows_the_template_and_nothing_else() {
    let mut first = workload(json!({"spec": {"x": 1}}));
    first.set_annotation(NUMBER_ANNOTATION, "9-9");
    assert_eq!(stamp(None, &mut first, 3), Some(number("3-1")));
    assert_eq!(number_of(&first), Some(number("3-1")));

    let mut relabelled = first.clone();
    relabelled.set_annotation("note", "x");
    relabelled.set_annotation(NUMBER_ANNOTATION, "7-7");
    relabelled.set_annotation(HASH_ANNOTATION, "forged");
    assert_eq!(stamp(Some(&first), &mut relabelled, 3), None);
    assert_eq!(number_of(&relabelled), Some(number("3-1")));
    assert_eq!(relabelled.annotation(HASH_ANNOTATION), first.annotation(HASH_ANNOTATION));

    let mut second = workload(json!({"spec": {"x": 2}}));
    assert_eq!(stamp(Some(&relabelled), &mut second, 3), Some(number("3-2")));
    assert_ne!(hash_of(&second), hash_of(&first));
    // An undo is a new number with an old name; a restored hub goes on in its own incarnation.
    let mut undone = workload(json!({"spec": {"x": 1}}));
    assert_eq!(stamp(Some(&second), &mut undone, 4), Some(number("4-3")));
    assert_eq!(hash_of(&undone), hash_of(&first));
    assert_eq!(stamp(None, &mut Object::empty(&kind::POD, "default", "p"), 1), None);
}
