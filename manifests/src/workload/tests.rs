use serde_json::json;

use super::*;
use crate::quantity::Quantity;

#[test]
fn views_take_what_is_there_and_forgive_the_rest() {
    let spec: PodSpec = view(Some(&json!({
        "containers": [{"name": "web", "image": "web:1", "env": null, "resources": {"limits": {"cpu": 1}}, "novelty": {}}],
        "nodeSelector": null, "tolerations": [{"operator": "Exists"}], "hostPID": true,
    })));
    assert_eq!(spec.containers[0].resources.limits["cpu"], "1");
    assert!(spec.host_pid && spec.node_selector.is_empty());
    assert_eq!(spec.grace_seconds(), GRACE_SECONDS_DEFAULT);
    assert_eq!(view::<PodSpec>(Some(&json!("no object"))), PodSpec::default());
    assert_eq!(view::<PodSpec>(None), PodSpec::default());
}

#[test]
fn surge_and_unavailable_are_rounded_as_kubernetes_does() {
    let cases = [
        (json!({"replicas": 6}), (2, 1)),
        (json!({"replicas": 1}), (1, 0)),
        (json!({"replicas": 4, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "30%"}}}), (0, 1)),
        (json!({"replicas": 2, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}}}), (0, 1)),
        (json!({"replicas": 3, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 9}}}), (0, 3)),
        (json!({"replicas": 3, "strategy": {"type": "Recreate"}}), (0, 3)),
    ];
    for (spec, expected) in cases {
        assert_eq!(view::<DeploymentSpec>(Some(&spec)).surge_and_unavailable(), expected, "{spec}");
    }
    let set: DaemonSetSpec = view(Some(&json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}}})));
    assert_eq!((set.max_unavailable(25), set.max_unavailable(0)), (3, 1));
}

#[test]
fn selectors_match_labels() {
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let cases = [
        (json!({}), true),
        (json!({"matchLabels": {"app": "web"}}), true),
        (json!({"matchLabels": {"app": "api"}}), false),
        (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}), true),
        (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
        (json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}), true),
        (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), true),
        (json!({"matchExpressions": [{"key": "app", "operator": "Near", "values": ["web"]}]}), false),
    ];
    for (selector, expected) in cases {
        assert_eq!(view::<LabelSelector>(Some(&selector)).matches(&labels), expected, "{selector}");
    }
}

#[test]
fn a_pod_requests_its_containers_or_its_greatest_start() {
    let spec = |value: Value| {
        let whole = resources::pod_requests(&view::<PodSpec>(Some(&value)));
        assert_eq!(whole, resources::pod_requests_in(Some(&value)));
        whole
    };
    let cpu = |value| spec(value).get("cpu").copied().map(Quantity::milli);
    let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    assert_eq!(cpu(json!({"containers": [container("100m"), container("200m")]})), Some(300));
    assert_eq!(cpu(json!({"containers": [container("100m")], "initContainers": [container("1")]})), Some(1000));
    assert_eq!(cpu(json!({"containers": [container("100m")], "initContainers": [sidecar("50m")]})), Some(150));
    let started_late = json!({"containers": [container("100m")], "initContainers": [sidecar("50m"), container("1")]});
    assert_eq!(cpu(started_late), Some(1050));
    assert_eq!(cpu(json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]})), Some(2000));
    assert_eq!(cpu(json!({"containers": [container("1")], "overhead": {"cpu": "10m"}})), Some(1010));
    assert_eq!(cpu(json!({"containers": [{"name": "c"}]})), None);
}

#[test]
fn tolerations_follow_kubernetes() {
    let taint = Taint { key: "k".into(), value: "v".into(), effect: "NoSchedule".into(), time_added: None };
    let cases = [
        (json!({"operator": "Exists"}), true),
        (json!({"key": "k", "operator": "Exists"}), true),
        (json!({"key": "k", "value": "v"}), true),
        (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
        (json!({"key": "k", "value": "v", "effect": "NoExecute"}), false),
        (json!({"key": "k", "value": "w"}), false),
        (json!({"key": "j", "operator": "Exists"}), false),
        (json!({"value": "v"}), false),
    ];
    for (toleration, expected) in cases {
        assert_eq!(placing::tolerates(&view(Some(&toleration)), &taint), expected, "{toleration}");
    }
}

#[test]
fn only_a_named_toleration_with_seconds_permits_replacement() {
    let seconds = |tolerations| placing::replaced_after_seconds(&view(Some(&json!({"tolerations": tolerations}))));
    let unreachable = placing::TAINT_UNREACHABLE;
    assert_eq!(seconds(json!([])), None);
    assert_eq!(seconds(json!([{"operator": "Exists", "tolerationSeconds": 5}])), None);
    assert_eq!(seconds(json!([{"key": unreachable, "operator": "Exists"}])), None);
    assert_eq!(seconds(json!([{"key": unreachable, "operator": "Exists", "tolerationSeconds": 300}])), Some(300));
}
