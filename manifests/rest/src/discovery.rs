//! What is served here, in the words of discovery: the plain lists and the aggregated form (KEP-3352). Pure.
//!
//! Owns `/api`, `/apis` and what lies right below; lists the backend's kinds and nothing else. Start at [`document`].

use std::collections::BTreeMap;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind::{KindRef, Scope};
use serde_json::{Value, json};

use crate::negotiate::DiscoveryForm;
use crate::review;
use crate::route::{Discovery, no_such_path};

const OBJECT_VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Reviews are created and never stored.
fn verbs_of(kind: KindRef) -> &'static [&'static str] {
    if review::KINDS.contains(kind) { &["create"] } else { &OBJECT_VERBS }
}

/// The document a discovery path names.
///
/// # Errors
/// 404 for a group or version without a served kind.
pub fn document(path: &Discovery, form: DiscoveryForm, kinds: &[KindRef]) -> Result<Value, ApiError> {
    match (path, form) {
        (Discovery::Core, DiscoveryForm::Plain) => Ok(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        (Discovery::Core, form) => Ok(aggregated(form, kinds, |group| group.is_empty())),
        (Discovery::Groups, DiscoveryForm::Plain) => {
            let groups: Vec<Value> = groups(kinds)
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, rows)| group(name, rows))
                .collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        (Discovery::Groups, form) => Ok(aggregated(form, kinds, |group| !group.is_empty())),
        (Discovery::Group(name), _) => {
            let groups = groups(kinds);
            let rows = groups.get(name.as_str()).filter(|_| !name.is_empty()).ok_or_else(no_such_path)?;
            let mut document = group(name, rows);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            Ok(document)
        }
        (Discovery::Resources { group, version }, _) => resources(group, version, kinds),
    }
}

/// Group name to version to kinds.
type Groups = BTreeMap<&'static str, BTreeMap<&'static str, Vec<KindRef>>>;

fn groups(kinds: &[KindRef]) -> Groups {
    let mut groups = Groups::new();
    for kind in kinds.iter().copied().chain(&review::KINDS) {
        groups.entry(kind.group).or_default().entry(kind.version).or_default().push(kind);
    }
    groups
}

fn group(name: &str, versions: &BTreeMap<&'static str, Vec<KindRef>>) -> Value {
    let rows: Vec<Value> = versions
        .keys()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": rows, "preferredVersion": rows.last()})
}

/// `APIResourceList`.
fn resources(group: &str, version: &str, kinds: &[KindRef]) -> Result<Value, ApiError> {
    let mut rows = Vec::new();
    let all = kinds.iter().copied().chain(&review::KINDS);
    for kind in all.filter(|kind| (kind.group, kind.version) == (group, version)) {
        let namespaced = kind.scope == Scope::Namespaced;
        let mut row = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": namespaced,
            "kind": kind.name, "verbs": verbs_of(kind),
        });
        if !kind.short_names.is_empty() {
            row["shortNames"] = kind.short_names.into();
        }
        if !kind.categories.is_empty() {
            row["categories"] = kind.categories.into();
        }
        rows.push(row);
        for subresource in kind.subresources {
            let name = format!("{}/{subresource}", kind.plural);
            let (answer, verbs) = subresource_of(kind, subresource);
            let mut row =
                json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": answer.2, "verbs": verbs});
            if matches!(*subresource, "scale" | "eviction") {
                row["group"] = answer.0.into();
                row["version"] = answer.1.into();
            }
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Err(no_such_path());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows}))
}

/// Group, version and kind of what a subresource answers, and its verbs.
fn subresource_of(
    kind: KindRef,
    subresource: &str,
) -> ((&'static str, &'static str, &'static str), &'static [&'static str]) {
    match subresource {
        "scale" => (("autoscaling", "v1", "Scale"), &["get", "patch", "update"]),
        "log" => ((kind.group, kind.version, kind.name), &["get"]),
        "eviction" => (("policy", "v1", "Eviction"), &["create"]),
        _ => ((kind.group, kind.version, kind.name), &["get", "patch", "update"]),
    }
}

fn aggregated(form: DiscoveryForm, kinds: &[KindRef], wanted: impl Fn(&str) -> bool) -> Value {
    let version = if form == DiscoveryForm::AggregatedV2Beta1 { "v2beta1" } else { "v2" };
    let mut items = Vec::new();
    for (name, versions) in groups(kinds).into_iter().filter(|(name, _)| wanted(name)) {
        let mut rows = Vec::new();
        for (version, kinds) in versions {
            let resources: Vec<Value> = kinds.into_iter().map(aggregated_resource).collect();
            rows.push(json!({"version": version, "freshness": "Current", "resources": resources}));
        }
        items.push(json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": rows}));
    }
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(kind: KindRef) -> Value {
    let scope = if kind.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" };
    let mut row = json!({
        "resource": kind.plural, "singularResource": kind.singular, "scope": scope, "verbs": verbs_of(kind),
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.name},
    });
    if !kind.short_names.is_empty() {
        row["shortNames"] = kind.short_names.into();
    }
    if !kind.categories.is_empty() {
        row["categories"] = kind.categories.into();
    }
    if !kind.subresources.is_empty() {
        let rows = kind.subresources.iter().map(|name| {
            let ((group, version, kind), verbs) = subresource_of(kind, name);
            json!({
                "subresource": name, "verbs": verbs,
                "responseKind": {"group": group, "version": version, "kind": kind},
            })
        });
        row["subresources"] = rows.collect();
    }
    row
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;

    use super::*;

    const SERVED: &[KindRef] = &[&kind::POD, &kind::NODE, &kind::DEPLOYMENT];

    #[test]
    fn only_what_is_served_is_listed() {
        let plain = document(&Discovery::Groups, DiscoveryForm::Plain, SERVED).unwrap();
        let names: Vec<&str> =
            plain["groups"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["apps", "authentication.k8s.io", "authorization.k8s.io"]);
        assert_eq!(plain["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
        let path = Discovery::Resources { group: String::new(), version: "v1".into() };
        let core = document(&path, DiscoveryForm::Plain, SERVED).unwrap();
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["pods", "pods/status", "pods/log", "pods/eviction", "nodes", "nodes/status"]);
        for (group, version) in [("batch", "v1"), ("apps", "v1beta1"), ("", "v2")] {
            let path = Discovery::Resources { group: group.into(), version: version.into() };
            assert_eq!(document(&path, DiscoveryForm::Plain, SERVED).unwrap_err().reason.code(), 404);
        }
        assert!(document(&Discovery::Group("batch".into()), DiscoveryForm::Plain, SERVED).is_err());
    }

    #[test]
    fn aggregated_discovery_holds_scale_and_categories() {
        let groups = document(&Discovery::Groups, DiscoveryForm::AggregatedV2, SERVED).unwrap();
        assert_eq!(groups["apiVersion"], "apidiscovery.k8s.io/v2");
        let deployment = &groups["items"][0]["versions"][0]["resources"][0];
        assert_eq!(deployment["resource"], "deployments");
        assert_eq!(deployment["categories"], json!(["all"]));
        let scale = &deployment["subresources"][0];
        assert_eq!(scale["responseKind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
        let core = document(&Discovery::Core, DiscoveryForm::AggregatedV2Beta1, SERVED).unwrap();
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        assert_eq!(core["items"][0]["versions"][0]["resources"][0]["resource"], "pods");
    }
}
