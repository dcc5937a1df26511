use serde_json::json;

use super::*;

fn base() -> Object {
    let mut set = Object::empty(&kind::DAEMON_SET, "shop", "web");
    set.metadata_mut().insert("uid".into(), "ds-uid".into());
    set.metadata_mut().insert("labels".into(), json!({"app.kubernetes.io/name": "web"}));
    set.metadata_mut().insert("resourceVersion".into(), "7".into());
    set.value_mut()["spec"] = json!({"template": {"spec": {"containers": [
        {"name": "web", "image": "web:1", "args": ["-v"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
         "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]},
        {"name": "sidecar", "image": "side:1"}]}}});
    set.value_mut()["status"] = json!({"numberReady": 3});
    set
}

/// The container named `web` changed by `edit`.
fn edited(object: &Object, edit: impl FnOnce(&mut Value)) -> Object {
    let mut object = object.clone();
    edit(&mut object.value_mut()["spec"]["template"]["spec"]["containers"][0]);
    object
}

fn by(id: &str, time: u64) -> Authorship {
    Authorship { id: id.into(), author: format!("user-{id}"), reason: "r".into(), time: Timestamp(time), expires: None }
}

fn texts(operations: &[Operation]) -> Vec<String> {
    operations
        .iter()
        .map(|one| match &one.value {
            Some(value) => format!("{:?} {} = {value}", one.op, one.path),
            None => format!("{:?} {}", one.op, one.path),
        })
        .collect()
}

const WEB: &str = "spec.template.spec.containers[name=web]";

#[test]
fn paths_have_one_text() {
    for text in [
        "spec.template.spec.containers[name=web].env[name=A].value",
        "metadata.labels[\"app.kubernetes.io/name\"]",
        "spec.ports[containerPort=80,protocol=TCP]",
        "spec.containers[name=\"we]b\\\"\"].image",
    ] {
        let path: Path = text.parse().unwrap();
        assert_eq!(path.to_string(), text);
    }
    for text in ["", ".", "a.", "a..b", "a[", "a[b", "a[b=", "a[b=c", "a[\"b\"", "a b", "a[b=c]d", &"a".repeat(5000)] {
        assert!(text.parse::<Path>().is_err(), "{text}");
    }
}

#[test]
fn a_difference_is_told_by_merge_key() {
    let cases: Vec<(&str, Object, Vec<String>)> = vec![
        (
            "one field of one item",
            edited(&base(), |web| web["env"][0]["value"] = "9".into()),
            vec![format!("Set {WEB}.env[name=A].value = \"9\"")],
        ),
        (
            "an item more, an item less",
            edited(&base(), |web| web["env"] = json!([{"name": "B", "value": "2"}, {"name": "C", "value": "3"}])),
            vec![
                format!("Remove {WEB}.env[name=A]"),
                format!("Set {WEB}.env[name=C] = {{\"name\":\"C\",\"value\":\"3\"}}"),
            ],
        ),
        (
            "order is no difference",
            edited(&base(), |web| web["env"] = json!([{"name": "B", "value": "2"}, {"name": "A", "value": "1"}])),
            vec![],
        ),
        (
            "a list without keys is one value",
            edited(&base(), |web| web["args"] = json!(["-v", "-x"])),
            vec![format!("Set {WEB}.args = [\"-v\",\"-x\"]")],
        ),
        (
            "all keys of an item count",
            edited(&base(), |web| web["ports"][1]["hostPort"] = 8080.into()),
            vec![format!("Set {WEB}.ports[containerPort=80,protocol=UDP].hostPort = 8080")],
        ),
        (
            "items with the same key are one value",
            edited(&base(), |web| web["env"] = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])),
            vec![format!("Set {WEB}.env = [{{\"name\":\"A\",\"value\":\"1\"}},{{\"name\":\"A\",\"value\":\"2\"}}]")],
        ),
        (
            "a field that goes",
            edited(&base(), |web| {
                web.as_object_mut().unwrap().remove("args");
            }),
            vec![format!("Remove {WEB}.args")],
        ),
    ];
    for (name, wanted, expected) in cases {
        assert_eq!(texts(&between(&base(), &wanted)), expected, "{name}");
    }
}

#[test]
fn what_servers_keep_is_no_difference() {
    let mut wanted = base();
    wanted.value_mut()["status"] = json!({"numberReady": 0});
    wanted.metadata_mut().insert("resourceVersion".into(), "99".into());
    wanted.metadata_mut().insert("generation".into(), 4.into());
    wanted.set_annotation("kubectl.kubernetes.io/last-applied-configuration", "{}");
    assert_eq!(between(&base(), &wanted), []);
    wanted.metadata_mut().insert("labels".into(), json!({"app.kubernetes.io/name": "shop"}));
    assert_eq!(texts(&between(&base(), &wanted)), ["Set metadata.labels[\"app.kubernetes.io/name\"] = \"shop\""]);
}

#[test]
fn entries_of_a_free_map_are_wishes_of_their_own() {
    let mut wanted = base();
    wanted.set_annotation("site", "north");
    wanted.set_annotation("b", "2");
    assert_eq!(
        texts(&between(&base(), &wanted)),
        ["Set metadata.annotations.b = \"2\"", "Set metadata.annotations.site = \"north\""]
    );
    // What the operator adds later stands beside it.
    let record = revise(&base(), &[], &wanted, by("1", 1)).unwrap().created.unwrap();
    let mut moved = base();
    moved.set_annotation("by-the-hub", "1");
    let effective = apply(&moved, std::slice::from_ref(&record), Timestamp(9));
    assert_eq!((effective.notices.len(), effective.object.annotations().len()), (0, 3));
    // And back again, to a base without any.
    let revision = revise(&base(), &[record], &base(), by("2", 2)).unwrap();
    assert_eq!((revision.created, revision.ended), (None, vec!["1".to_owned()]));
    let mut bare = base();
    bare.metadata_mut().remove("labels");
    assert_eq!(texts(&between(&base(), &bare)), ["Remove metadata.labels[\"app.kubernetes.io/name\"]"]);
}

#[test]
fn why_something_changes_is_no_change() {
    let mut wanted = base();
    wanted.set_annotation(CAUSE_ANNOTATION, "too dark");
    assert_eq!(between(&base(), &wanted), []);
    assert_eq!(revise(&base(), &[], &wanted, by("1", 1)).unwrap(), Revision::default());
}

#[test]
fn every_difference_applied_gives_what_was_wanted() {
    let edits: Vec<fn(&mut Value)> = vec![
        |web| web["env"][0]["value"] = "9".into(),
        |web| {
            web["env"] =
                json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}])
        },
        |web| web["resources"] = json!({"limits": {"cpu": "1"}}),
        |web| web["ports"] = json!([]),
        |web| *web = json!({"name": "web", "image": "other"}),
        |web| web["name"] = "renamed".into(),
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let wanted = edited(&base(), edit);
        let revision = revise(&base(), &[], &wanted, by("1", 1)).unwrap();
        let record = revision.created.unwrap();
        let text = serde_json::to_string(&record).unwrap();
        let record: OverrideRecord = serde_json::from_str(&text).unwrap();
        let effective = apply(&base(), &[record], Timestamp(5));
        assert_eq!(effective.notices, [], "edit {index}");
        assert_eq!(between(&wanted, &effective.object), [], "edit {index}");
        assert_eq!(effective.object.status(), base().status());
    }
}

#[test]
fn a_field_set_back_ends_the_operation_and_leaves_the_others() {
    let first = revise(&base(), &[], &edited(&base(), |web| web["image"] = "web:2".into()), by("1", 1)).unwrap();
    let first = first.created.unwrap();
    let effective = apply(&base(), std::slice::from_ref(&first), Timestamp(9)).object;
    let both = edited(&effective, |web| {
        web["env"][0]["value"] = "9".into();
        web["args"] = json!([]);
    });
    let second = revise(&base(), std::slice::from_ref(&first), &both, by("2", 2)).unwrap();
    assert_eq!((second.rewritten.len(), second.ended.len()), (0, 0));
    let second = second.created.unwrap();
    assert_eq!(second.author, "user-2");
    assert_eq!(second.operations.len(), 2);

    let records = [first.clone(), second.clone()];
    let half_back = edited(&both, |web| web["args"] = json!(["-v"]));
    let revision = revise(&base(), &records, &half_back, by("3", 3)).unwrap();
    assert_eq!((&revision.created, revision.ended.len()), (&None, 0));
    assert_eq!(texts(&revision.rewritten[0].operations), [format!("Set {WEB}.env[name=A].value = \"9\"")]);
    assert_eq!(revision.rewritten[0].author, "user-2");

    let revision = revise(&base(), &records, &base(), by("4", 4)).unwrap();
    assert_eq!(revision, Revision { ended: vec!["1".into(), "2".into()], ..Revision::default() });
}

fn add_c(web: &mut Value, value: &str) {
    web["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "C", "value": value}]);
}

#[test]
fn a_later_change_of_the_same_place_takes_the_earlier_ones_part() {
    let wanted = edited(&base(), |web| add_c(web, "3"));
    let first = revise(&base(), &[], &wanted, by("1", 1)).unwrap().created.unwrap();
    // Inside what the first record added: the new record takes the whole item over, so that none builds on another.
    let wanted = edited(&base(), |web| add_c(web, "4"));
    let revision = revise(&base(), std::slice::from_ref(&first), &wanted, by("2", 2)).unwrap();
    assert_eq!(revision.ended, ["1"]);
    let created = revision.created.unwrap();
    assert_eq!(texts(&created.operations), [format!("Set {WEB}.env[name=C] = {{\"name\":\"C\",\"value\":\"4\"}}")]);
    assert_eq!(between(&wanted, &apply(&base(), &[created], Timestamp(9)).object), []);
}

#[test]
fn a_base_that_moves_on_is_told_and_the_override_stands() {
    let wanted = edited(&base(), |web| web["env"][0]["value"] = "9".into());
    let record = revise(&base(), &[], &wanted, by("1", 1)).unwrap().created.unwrap();
    assert_eq!(record.operations[0].replaced.as_ref().unwrap().value, Some(json!("1")));

    let moved = edited(&base(), |web| web["env"][0]["value"] = "5".into());
    let effective = apply(&moved, std::slice::from_ref(&record), Timestamp(9));
    assert_eq!(effective.notices[0].matter, Matter::BaseChanged);
    assert_eq!(effective.object.text("/spec/template/spec/containers/0/env/0/value"), "9");

    // The base says the same by now: nothing to tell.
    assert_eq!(apply(&wanted, std::slice::from_ref(&record), Timestamp(9)).notices, []);

    let mut gone = base();
    gone.value_mut()["spec"]["template"]["spec"]["containers"] = json!([{"name": "sidecar", "image": "side:1"}]);
    let effective = apply(&gone, std::slice::from_ref(&record), Timestamp(9));
    assert_eq!(effective.notices[0].matter, Matter::Unplaceable);
    assert_eq!(effective.object, gone);
}

#[test]
fn a_record_takes_effect_wholly_or_not_at_all() {
    let set =
        |path: &str| Operation { op: Verb::Set, path: path.parse().unwrap(), value: Some(json!("x")), replaced: None };
    let record = OverrideRecord {
        id: "1".into(),
        target: Target::of(&base()),
        operations: vec![set(&format!("{WEB}.image")), set("spec.template.spec.containers[name=gone].image")],
        author: "ada".into(),
        reason: String::new(),
        time: Timestamp(1),
        expires: None,
    };
    assert_eq!(apply(&base(), &[record], Timestamp(9)).object, base());
}

#[test]
fn records_expire_and_later_ones_win() {
    let record = |id: &str, time: u64, image: &str, expires: Option<u64>| {
        let wanted = edited(&base(), |web| web["image"] = image.into());
        let created = revise(&base(), &[], &wanted, by(id, time)).unwrap().created.unwrap();
        OverrideRecord { expires: expires.map(Timestamp), ..created }
    };
    let records = [record("b", 20, "late", Some(100)), record("a", 10, "early", None)];
    let image = |now: u64| {
        apply(&base(), &records, Timestamp(now)).object.text("/spec/template/spec/containers/0/image").to_owned()
    };
    assert_eq!((image(99), image(100)), ("late".into(), "early".into()));
    assert_eq!(live(&records, Timestamp(100)), [records[1].clone()]);
}

#[test]
fn secrets_and_what_is_no_devices_business_are_refused() {
    for kind in [&kind::SECRET, &kind::NODE, &kind::NAMESPACE] {
        let object = Object::empty(kind, "shop", "x");
        let error = revise(&object, &[], &object, by("1", 1)).unwrap_err();
        assert_eq!(error.reason, Reason::Invalid);
        assert_eq!(error.key.unwrap().kind, kind);
    }
}

#[test]
fn a_change_of_too_many_places_is_refused() {
    let env: Vec<Value> =
        (0..=OPERATIONS_MAX).map(|index| json!({"name": format!("V{index}"), "value": "x"})).collect();
    let wanted = edited(&base(), |web| web["env"].as_array_mut().unwrap().extend(env));
    assert!(revise(&base(), &[], &wanted, by("1", 1)).unwrap_err().message.contains("257 places"));
}

#[test]
fn long_replaced_values_keep_their_digest_only() {
    let long = edited(&base(), |web| web["image"] = "x".repeat(2000).into());
    let record = revise(&long, &[], &base(), by("1", 1)).unwrap().created.unwrap();
    let replaced = record.operations[0].replaced.as_ref().unwrap();
    assert!(replaced.value.is_none());
    assert!(replaced.digest.starts_with("sha256:"));
}

#[test]
fn the_object_to_show_says_who_when_and_what() {
    let wanted = edited(&base(), |web| web["image"] = "web:2".into());
    let mut record = revise(&base(), &[], &wanted, by("1", 1_000)).unwrap().created.unwrap();
    record.expires = Some(Timestamp(9_000));
    let object = object_of(&record, "edge-1");
    assert_eq!((object.namespace(), object.name()), ("shop", "edge-1.1"));
    assert_eq!(object.text("/spec/author"), "user-1");
    assert_eq!(object.text("/spec/time"), "1970-01-01T00:00:01Z");
    assert_eq!(object.text("/spec/expires"), "1970-01-01T00:00:09Z");
    assert_eq!(object.text("/spec/operations/0/op"), "set");
    assert_eq!(object.text("/spec/operations/0/replaced/value"), "web:1");
    assert_eq!(schema::unknown_fields(&object), Vec::<String>::new());
    assert_eq!(schema::type_errors(&object), []);
}
