use serde_json::json;

use super::super::fixture::{State, key, parse};
use super::*;

fn going() -> State {
    let mut state = State::at(10_000_000);
    state.edit(&key(&kind::NAMESPACE, "shop"), |namespace| {
        namespace["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    state
}

fn run(state: &mut State) -> Vec<String> {
    let plan = plan(&state.view(), &key(&kind::NAMESPACE, "shop"));
    let told = plan
        .writes
        .iter()
        .map(|write| match write {
            Write::Delete(deletion) => format!("delete {}", deletion.key),
            Write::Remove { key, .. } => format!("remove {key}"),
            Write::Replace(object) => format!("replace {}", object.key()),
            other => format!("{other:?}"),
        })
        // Its own conditions have a test of their own.
        .filter(|told| told != "replace namespaces shop")
        .collect();
    state.carry_out(plan);
    told
}

fn put(state: &mut State, kind: &str, name: &str, spec: serde_json::Value) {
    let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    state.put(parse(
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}),
    ));
}

#[test]
fn an_open_namespace_is_left_alone_and_an_empty_one_goes() {
    let mut open = State::at(10_000_000);
    assert_eq!(run(&mut open), Vec::<String>::new());
    assert_eq!(run(&mut going()), ["remove namespaces shop"]);
}

#[test]
fn workloads_go_before_what_they_make() {
    let mut state = going();
    put(&mut state, "ConfigMap", "c", json!({}));
    put(&mut state, "Deployment", "web", json!({}));
    assert_eq!(run(&mut state), ["delete deployments.apps shop/web"]);
    assert_eq!(run(&mut state), ["delete configmaps shop/c"]);
    assert_eq!(run(&mut state), ["remove namespaces shop"]);
}

#[test]
fn a_pod_is_waited_for_while_its_device_can_say_that_it_ended() {
    let mut state = going();
    state.node("edge-0");
    state.node("edge-1");
    put(&mut state, "Pod", "heard", json!({"nodeName": "edge-0"}));
    put(&mut state, "Pod", "unheard", json!({"nodeName": "edge-1"}));
    state.silence("edge-1");
    let told = run(&mut state);
    assert_eq!(told, ["delete pods shop/heard", "remove pods shop/unheard", "replace nodes edge-1"]);
    let node = state.get(&key(&kind::NODE, "edge-1"));
    let left = condition::find(node.status().unwrap(), LEFT_RUNNING).unwrap();
    assert_eq!(left["message"], json!("of namespace shop, which is gone: unheard"));
    assert_eq!(run(&mut state), Vec::<String>::new());
    state.remove(&key(&kind::POD, "heard"));
    assert_eq!(run(&mut state), ["remove namespaces shop"]);
}

#[test]
fn a_namespace_that_is_going_says_what_holds_it() {
    let mut state = going();
    put(&mut state, "ConfigMap", "c", json!({}));
    put(&mut state, "Deployment", "web", json!({}));
    state.edit(&key(&kind::CONFIG_MAP, "c"), |map| map["metadata"]["finalizers"] = json!(["example.org/hold"]));
    run(&mut state);
    let condition = |state: &State, name: &str| {
        let namespace = state.get(&key(&kind::NAMESPACE, "shop"));
        let found = condition::find(namespace.status().unwrap(), name).unwrap().clone();
        (found["status"].clone(), found["message"].clone())
    };
    let remaining =
        "Some resources are remaining: configmaps. has 1 resource instances, deployments.apps has 1 resource instances";
    assert_eq!(condition(&state, "NamespaceContentRemaining"), (json!("True"), json!(remaining)));
    let held = "Some content in the namespace has finalizers remaining: example.org/hold in 1 resource instances";
    assert_eq!(condition(&state, "NamespaceFinalizersRemaining"), (json!("True"), json!(held)));
    assert_eq!(condition(&state, "NamespaceDeletionContentFailure").0, json!("False"));
}
