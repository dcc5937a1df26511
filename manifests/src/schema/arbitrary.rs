//! Random objects that fit their schema, mostly: what properties are tested with.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{Schema, Type, named, of};
use crate::kind::KindRef;

/// Any value that fits a schema, of few choices, so that defaults meet both what is there and what is not.
pub(crate) fn any_value(schema: Schema, depth: u32) -> BoxedStrategy<Value> {
    let leaf = match schema.node_type() {
        Type::String => {
            prop_oneof![Just(json!("")), Just(json!("RollingUpdate")), Just(json!("nginx:latest")), Just(json!("x"))]
                .boxed()
        }
        Type::Int32 | Type::Int64 | Type::Number => (0..3).prop_map(Value::from).boxed(),
        Type::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        Type::IntOrString => prop_oneof![Just(json!(0)), Just(json!("25%"))].boxed(),
        Type::Quantity => prop_oneof![
            Just(json!("0")),
            Just(json!("1500m")),
            Just(json!(2)),
            Just(json!("0.1Gi")),
            Just(json!("bad"))
        ]
        .boxed(),
        Type::Time | Type::MicroTime => Just(json!("2026-11-21T07:30:53Z")).boxed(),
        Type::Bytes => Just(json!("YQ==")).boxed(),
        Type::Any => Just(json!({"a": null})).boxed(),
        Type::Object | Type::Array | Type::Map if depth == 0 => Just(json!(null)).boxed(),
        Type::Array => {
            let items = schema.items().map_or(Just(json!(1)).boxed(), |items| any_value(items, depth - 1));
            proptest::collection::vec(items, 0..3).prop_map(Value::Array).boxed()
        }
        Type::Map => {
            let values = schema.items().map_or(Just(json!(1)).boxed(), |values| any_value(values, depth - 1));
            let entries =
                proptest::collection::btree_map(prop_oneof![Just("cpu"), Just("memory"), Just("a")], values, 0..3);
            entries
                .prop_map(|map| {
                    map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
                })
                .boxed()
        }
        Type::Object => {
            let fields: Vec<_> = schema.fields().collect();
            let fields = fields.into_iter().map(|field| {
                let likely = if field.required { 0.9 } else { 0.3 };
                let value = proptest::option::weighted(likely, any_value(field.schema, depth - 1));
                value.prop_map(move |value| value.map(|value| (field.name.to_owned(), value)))
            });
            fields
                .collect::<Vec<_>>()
                .prop_map(|fields| fields.into_iter().flatten().collect::<Map<_, _>>().into())
                .boxed()
        }
    };
    // Now and then what does not fit.
    prop_oneof![30 => leaf, 1 => Just(json!("odd")), 1 => Just(json!({}))].boxed()
}

/// The whole depth a workload's defaults reach, of the parts they touch.
pub(crate) fn any_object(kind: KindRef) -> BoxedStrategy<Value> {
    let pod = || {
        let spec = named("io.k8s.api.core.v1.PodSpec").unwrap();
        let parts = [
            "containers",
            "initContainers",
            "volumes",
            "restartPolicy",
            "serviceAccount",
            "serviceAccountName",
            "hostNetwork",
        ];
        let parts = parts.map(|name| (name, any_value(spec.field(name).unwrap(), 5)));
        let parts = parts.map(|(name, value)| {
            proptest::option::weighted(0.7, value).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
        });
        Vec::from(parts).prop_map(|parts| Value::Object(parts.into_iter().flatten().collect())).boxed()
    };
    let api_version = kind.api_version();
    let rest = any_value(of(kind), 3);
    (rest, pod())
        .prop_map(move |(mut value, pod)| {
            if !value.is_object() {
                value = json!({});
            }
            value["apiVersion"] = api_version.clone().into();
            value["kind"] = kind.name.into();
            if !value["metadata"].is_object() {
                value["metadata"] = json!({"name": "a"});
            }
            match kind.name {
                "Pod" => value["spec"] = pod,
                "Deployment" | "ReplicaSet" | "DaemonSet" if value["spec"].is_object() => {
                    value["spec"]["template"] = json!({"spec": pod});
                }
                _ => {}
            }
            value
        })
        .boxed()
}
