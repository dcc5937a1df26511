//! What holds whatever is written.

use proptest::prelude::*;

use super::*;
use crate::validate;

/// JSON whose fields are often those of a Deployment.
fn any_body() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "name",
        "image",
        "labels",
        "annotations",
        "finalizers",
        "selector",
        "matchLabels",
        "app",
        "replicas",
        "strategy",
        "type",
        "rollingUpdate",
        "env",
        "ports",
        "containerPort",
        "resources",
        "limits",
        "cpu",
        "$patch",
        "uid",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..100).prop_map(Value::from),
        prop::sample::select(vec!["web", "app", "", "RollingUpdate", "replace", "delete", "25%", "1Gi", "é ü"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..5).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

/// A patch that reaches into one place of the object.
fn any_patch() -> impl Strategy<Value = Value> {
    let places: Vec<&[&str]> = vec![
        &[],
        &["metadata"],
        &["metadata", "labels"],
        &["metadata", "annotations"],
        &["spec"],
        &["spec", "replicas"],
        &["spec", "strategy"],
        &["spec", "template", "spec"],
        &["spec", "template", "spec", "containers"],
        &["status"],
    ];
    (prop::sample::select(places), any_body())
        .prop_map(|(place, body)| place.iter().rev().fold(body, |inner, field| json!({*field: inner})))
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let part = prop::sample::select(vec![Part::Main, Part::Status, Part::Scale]);
    (part, any_patch(), 0..4).prop_map(|(part, value, way)| match way {
        0 => Mutation::Patch { part, patch: Patch::JsonMerge(value) },
        1 => Mutation::Patch { part, patch: Patch::StrategicMerge(value) },
        2 => Mutation::Patch {
            part,
            patch: Patch::Json(json!([{"op": "add", "path": "/spec/template", "value": value}])),
        },
        _ => {
            let mut body = deployment();
            if let (Some(map), Value::Object(fields)) = (body.as_object_mut(), value) {
                map.extend(fields);
            }
            Mutation::Replace { part, body }
        }
    })
}

proptest! {
    #[test]
    fn whatever_is_admitted_is_whole(mutation in any_mutation(), going in any::<bool>()) {
        let mut current = stored(deployment());
        if going {
            current.metadata_mut().insert("finalizers".into(), json!(["example.com/a"]));
            current = updated(write(&current, &Mutation::Delete(DeleteOptions::default())));
        }
        let object = match write(&current, &mutation) {
            Ok(Admitted { outcome: Outcome::Updated(object) | Outcome::Unchanged(object) | Outcome::Removed(object), .. }) => object,
            Ok(Admitted { outcome: Outcome::Created(_), .. }) => panic!("nothing was to be created"),
            Err(error) => {
                prop_assert!(!error.message.is_empty());
                return Ok(());
            }
        };
        for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "resourceVersion"] {
            let pointer = format!("/metadata/{field}");
            prop_assert_eq!(object.at(&pointer), current.at(&pointer));
        }
        prop_assert_eq!(validate::object(&object), vec![]);
        let spec_changed = object.spec() != current.spec();
        prop_assert_eq!(object.generation() - current.generation(), i64::from(spec_changed));
        // Writing what is stored changes nothing, whichever part it is written to.
        if object.deletion_timestamp().is_none() {
            unchanged(replace(&object, Part::Main, object.value().clone()));
            unchanged(replace(&object, Part::Status, object.value().clone()));
        }
    }

    #[test]
    fn whatever_is_created_is_whole(extra in any_patch()) {
        let mut body = deployment();
        if let (Some(map), Value::Object(fields)) = (body.as_object_mut(), extra) {
            map.extend(fields);
        }
        let Ok(body) = Object::parse(body) else { return Ok(()) };
        let key = created_key(&key(&kind::DEPLOYMENT, ""), &body, "x7k2p");
        if let Ok(Admitted { outcome: Outcome::Created(object), .. }) = admit(&key, None, &Mutation::Create { body }, &context()) {
            prop_assert_eq!(object.key(), key);
            prop_assert_eq!(object.uid(), context().uid);
            prop_assert_eq!(validate::object(&object), vec![]);
            unchanged(replace(&object, Part::Main, object.value().clone()));
        }
    }
}
