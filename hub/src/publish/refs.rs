//! Which ConfigMaps and Secrets a Pod spec names.

use std::collections::BTreeSet;

use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use serde_json::Value;

/// References of one Pod spec, in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Refs {
    pub(super) config_maps: BTreeSet<ObjectKey>,
    pub(super) secrets: BTreeSet<ObjectKey>,
}

impl Refs {
    pub(super) fn extend(&mut self, more: Self) {
        self.config_maps.extend(more.config_maps);
        self.secrets.extend(more.secrets);
    }
}

/// Of a workload's template.
pub(super) fn of_template(workload: &Object) -> Refs {
    of_spec(workload.namespace(), workload.at("/spec/template/spec"))
}

pub(super) fn of_pod(pod: &Object) -> Refs {
    of_spec(pod.namespace(), pod.spec())
}

fn of_spec(namespace: &str, spec: Option<&Value>) -> Refs {
    let mut refs = Refs::default();
    let Some(spec) = spec else { return refs };
    let mut config_map = |name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|name| !name.is_empty()) {
            refs.config_maps.insert(ObjectKey::of(&kind::CONFIG_MAP, namespace, name));
        }
    };
    for volume in items(spec, "volumes") {
        config_map(volume.pointer("/configMap/name"));
        volume.get("projected").into_iter().flat_map(|all| items(all, "sources")).for_each(|source| {
            config_map(source.pointer("/configMap/name"));
        });
    }
    for container in containers(spec) {
        items(container, "envFrom").for_each(|source| config_map(source.pointer("/configMapRef/name")));
        items(container, "env").for_each(|variable| config_map(variable.pointer("/valueFrom/configMapKeyRef/name")));
    }
    let mut secret = |name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|name| !name.is_empty()) {
            refs.secrets.insert(ObjectKey::of(&kind::SECRET, namespace, name));
        }
    };
    for volume in items(spec, "volumes") {
        secret(volume.pointer("/secret/secretName"));
        volume.get("projected").into_iter().flat_map(|all| items(all, "sources")).for_each(|source| {
            secret(source.pointer("/secret/name"));
        });
    }
    for container in containers(spec) {
        items(container, "envFrom").for_each(|source| secret(source.pointer("/secretRef/name")));
        items(container, "env").for_each(|variable| secret(variable.pointer("/valueFrom/secretKeyRef/name")));
    }
    items(spec, "imagePullSecrets").for_each(|reference| secret(reference.get("name")));
    refs
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|field| items(spec, field))
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}
