use serde_json::{Map, Value, json};

use super::*;
use crate::kind;

fn object(value: Value) -> Object {
    Object::parse(value).unwrap()
}

fn deployment(spec: Value) -> Object {
    object(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec}),
    )
}

#[test]
fn every_kind_has_its_schema_and_its_list() {
    for kind in kind::ALL {
        let schema = named(kind.schema).unwrap_or_else(|| panic!("no schema {}", kind.schema));
        assert_eq!(schema.node_type(), Type::Object);
        for field in ["apiVersion", "kind", "metadata"] {
            assert!(schema.field(field).is_some(), "{kind} has no {field}");
        }
        let list = named(&format!("{}List", kind.schema)).unwrap();
        let items = list.field("items").and_then(Schema::items).unwrap();
        assert_eq!(items.reference_name(), Some(kind.schema));
    }
}

#[test]
fn every_field_of_every_kind_is_typed() {
    let opaque = ["data", "fieldsV1", "value", "object", "raw"];
    for name in names() {
        let Some(schema) = named(name) else { panic!("{name} is listed and not found") };
        for field in schema.fields() {
            let is_any = field.schema.node_type() == Type::Any;
            assert!(!is_any || opaque.contains(&field.name), "{name}.{} has no type", field.name);
            if matches!(field.schema.node_type(), Type::Array | Type::Map) {
                assert!(field.schema.items().is_some(), "{name}.{} has no items", field.name);
            }
        }
    }
}

#[test]
fn special_types_are_known() {
    for (kind, path, expected) in [
        (&kind::DEPLOYMENT, "spec.replicas", Type::Int32),
        (&kind::DEPLOYMENT, "spec.strategy.rollingUpdate.maxSurge", Type::IntOrString),
        (&kind::POD, "spec.containers.*.resources.limits.*", Type::Quantity),
        (&kind::POD, "spec.containers.*.livenessProbe.httpGet.port", Type::IntOrString),
        (&kind::POD, "spec.volumes.*.emptyDir.sizeLimit", Type::Quantity),
        (&kind::POD, "spec.activeDeadlineSeconds", Type::Int64),
        (&kind::POD, "metadata.creationTimestamp", Type::Time),
        (&kind::POD, "metadata.labels", Type::Map),
        (&kind::EVENT, "eventTime", Type::MicroTime),
        (&kind::SECRET, "data.*", Type::Bytes),
        (&kind::CONFIG_MAP, "binaryData.*", Type::Bytes),
        (&kind::CONTROLLER_REVISION, "data", Type::Any),
        (&kind::OVERRIDE, "spec.operations.*.value", Type::Any),
        (&kind::NODE, "spec.unschedulable", Type::Boolean),
    ] {
        let found = path.split('.').try_fold(of(kind), Schema::step).map(Schema::node_type);
        assert_eq!(found, Some(expected), "{kind} {path}");
    }
}

#[test]
fn list_keys_are_those_of_the_schema() {
    let template = |rest: &[&'static str]| [&["spec", "template", "spec"], rest].concat();
    let check = |kind, path: &[&str], expected: Option<&[&str]>| {
        assert_eq!(list_keys(kind, path), expected, "{kind} {path:?}");
    };
    check(&kind::DEPLOYMENT, &template(&["containers"]), Some(&["name"]));
    check(&kind::DEPLOYMENT, &template(&["containers", "*", "ports"]), Some(&["containerPort", "protocol"]));
    check(&kind::DEPLOYMENT, &template(&["containers", "*", "env"]), Some(&["name"]));
    check(&kind::DEPLOYMENT, &template(&["topologySpreadConstraints"]), Some(&["topologyKey", "whenUnsatisfiable"]));
    check(&kind::DEPLOYMENT, &template(&["tolerations"]), None);
    check(&kind::DEPLOYMENT, &template(&["containers", "*", "args"]), None);
    check(&kind::DEPLOYMENT, &template(&["containers", "*", "image"]), None);
    check(&kind::DEPLOYMENT, &template(&["nothing"]), None);
    check(&kind::POD, &["metadata", "ownerReferences"], Some(&["uid"]));
    check(&kind::POD, &["metadata", "finalizers"], None);
    check(&kind::POD, &[], None);
}

#[test]
fn list_keys_are_fields_of_their_items() {
    for name in names() {
        for field in named(name).unwrap().fields() {
            let ListType::Map(keys) = field.schema.list_type() else { continue };
            let items = field.schema.items().unwrap();
            for key in keys {
                assert!(items.field(key).is_some(), "{name}.{}: no field {key}", field.name);
            }
        }
    }
}

#[test]
fn patch_annotations_are_read() {
    let spec = of(&kind::POD).field("spec").unwrap();
    let volumes = spec.field("volumes").unwrap();
    assert_eq!(volumes.patch_merge_key(), Some("name"));
    assert_eq!(volumes.patch_strategy(), PatchStrategy { merge: true, retain_keys: true });
    let finalizers = of(&kind::POD).field("metadata").unwrap().field("finalizers").unwrap();
    assert_eq!(finalizers.patch_strategy(), PatchStrategy { merge: true, retain_keys: false });
    assert_eq!((finalizers.patch_merge_key(), finalizers.list_type()), (None, ListType::Set));
    let strategy = of(&kind::DEPLOYMENT).field("spec").unwrap().field("strategy").unwrap();
    assert_eq!(strategy.patch_strategy(), PatchStrategy { merge: false, retain_keys: true });
    assert_eq!(spec.required().collect::<Vec<_>>(), ["containers"]);
    assert_eq!(spec.field("tolerations").unwrap().list_type(), ListType::Atomic);
}

#[test]
fn unknown_fields_are_named_and_pruned() {
    let mut found = deployment(json!({
        "replica": 3,
        "template": {"metadata": {"labels": {"any": "thing"}}, "spec": {"containers": [{"name": "a"}, {"name": "b", "imagee": "x"}]}},
    }));
    found.metadata_mut().insert("lables".into(), json!({}));
    assert_eq!(
        unknown_fields(&found),
        [
            "unknown field \"metadata.lables\"",
            "unknown field \"spec.replica\"",
            "unknown field \"spec.template.spec.containers[1].imagee\"",
        ]
    );
    let mut wanted = found.clone();
    wanted.metadata_mut().remove("lables");
    wanted.value_mut()["spec"].as_object_mut().unwrap().remove("replica");
    wanted.value_mut()["spec"]["template"]["spec"]["containers"][1].as_object_mut().unwrap().remove("imagee");
    prune(&mut found);
    assert_eq!(found, wanted);
    assert!(unknown_fields(&found).is_empty());
}

#[test]
fn opaque_data_has_no_unknown_fields() {
    let revision = object(json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "a"}, "revision": 1,
        "data": {"spec": {"what": {"ever": null}}},
    }));
    assert!(unknown_fields(&revision).is_empty());
    let mut same = revision.clone();
    prune(&mut same);
    drop_nulls(&mut same);
    assert_eq!(same, revision);
}

#[test]
fn wrong_types_name_path_expected_and_found() {
    let wrong = deployment(json!({
        "replicas": "three", "minReadySeconds": 3_000_000_000_i64, "paused": "yes", "selector": [],
        "strategy": {"rollingUpdate": {"maxSurge": true}},
        "template": {"metadata": {"creationTimestamp": "yesterday", "labels": {"version": 1.5}}, "spec": {"containers": {"name": "a"}}},
    }));
    let found: Vec<String> =
        type_errors(&wrong).iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
    assert_eq!(
        found,
        [
            "spec.minReadySeconds: Invalid value: 3000000000: must be a whole number of 32 bits",
            "spec.paused: Invalid value: \"yes\": must be of type boolean, found string",
            "spec.replicas: Invalid value: \"three\": must be of type integer, found string",
            "spec.selector: Invalid value: [...]: must be of type object, found array",
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: true: must be of type integer or string, found boolean",
            "spec.template.metadata.creationTimestamp: Invalid value: \"yesterday\": must be a time in RFC 3339, such as 2026-11-21T07:30:53Z",
            "spec.template.metadata.labels[version]: Invalid value: 1.5: must be of type string, found number; quote it",
            "spec.template.spec.containers: Invalid value: {...}: must be of type array, found object",
        ]
    );
}

#[test]
fn nulls_are_absent_fields_and_zero_entries() {
    let mut found = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null, "labels": {"a": null}},
        "spec": {"containers": [{"name": "a", "args": [null, "x"], "env": null}, null]}, "status": null,
    }));
    drop_nulls(&mut found);
    assert_eq!(
        found.into_value(),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"a": ""}},
            "spec": {"containers": [{"name": "a", "args": ["", "x"]}, {}]},
        })
    );
}

#[test]
fn openapi_components_refer_only_to_each_other() {
    for (group, version) in [("", "v1"), ("apps", "v1"), ("node.k8s.io", "v1"), ("flotilla.dev", "v1alpha1")] {
        let components = components_for(group, version);
        assert!(components.contains_key("io.k8s.apimachinery.pkg.apis.meta.v1.Status"));
        for (name, schema) in &components {
            assert!(schema.is_object(), "{name} is no schema");
            let text = schema.to_string();
            assert!(!text.contains("#/definitions/"), "{name}");
            for part in text.split("#/components/schemas/").skip(1) {
                let reference = part.split('"').next().unwrap();
                assert!(components.contains_key(reference), "{name} refers to {reference}");
            }
        }
    }
    assert!(components_for("apps", "v1").contains_key("io.k8s.api.autoscaling.v1.Scale"));
    assert!(components_for("nothing", "v1").is_empty());
    assert_eq!(openapi_component(kind::POD.schema).unwrap()["type"], "object");
}

#[test]
fn the_table_stays_small_in_memory() {
    // 1,500 fields of 24 bytes; a change of the layout that doubles it should be a decision.
    assert!(size_of::<table::Field>() <= 24, "{}", size_of::<table::Field>());
    assert!(size_of::<Schema>() <= 8);
}

#[test]
fn findings_are_bounded() {
    let many: Map<String, Value> = (0..1000).map(|index| (format!("field{index}"), json!(1))).collect();
    assert_eq!(unknown_fields(&deployment(Value::Object(many))).len(), 200);
    let long = unknown_fields(&deployment(json!({"é".repeat(100_000): 1})));
    assert!(long[0].len() < 1100 && long[0].ends_with("...\""), "{}", long[0].len());
    let wrong = deployment(json!({"template": {"spec": {"containers": vec![json!(1); 1000]}}}));
    assert_eq!(type_errors(&wrong).len(), 200);
}
