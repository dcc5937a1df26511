//! The cases of Kubernetes' "Strategic Merge Patch" and what kubectl really sends.

use super::*;

fn merged(kind: kind::KindRef, target: &Value, patch: &Value) -> Result<Value, PatchError> {
    Patch::StrategicMerge(patch.clone()).apply_to(target.clone(), Some(schema::of(kind)))
}

#[track_caller]
fn check_pod_spec(target: Value, patch: Value, expected: Value) {
    let result = merged(&kind::POD, &json!({"spec": target}), &json!({"spec": patch.clone()}));
    assert_eq!(result, Ok(json!({"spec": expected})), "{patch}");
}

#[track_caller]
fn check_pod_spec_error(target: Value, patch: Value, expected: &str) {
    let error = merged(&kind::POD, &json!({"spec": target}), &json!({"spec": patch.clone()})).unwrap_err().to_string();
    assert!(error.contains(expected), "{patch}: {error}");
}

#[test]
fn maps_merge_and_nulls_delete() {
    let target = json!({"nodeSelector": {"a": "1", "b": "2"}, "hostname": "x"});
    check_pod_spec(
        target.clone(),
        json!({"nodeSelector": {"a": "9", "c": "3"}}),
        json!({"nodeSelector": {"a": "9", "b": "2", "c": "3"}, "hostname": "x"}),
    );
    check_pod_spec(
        target.clone(),
        json!({"nodeSelector": {"a": null}, "hostname": null, "gone": null}),
        json!({"nodeSelector": {"b": "2"}}),
    );
    check_pod_spec(
        target.clone(),
        json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
        json!({"nodeSelector": {"c": "3"}, "hostname": "x"}),
    );
    check_pod_spec(
        target.clone(),
        json!({"nodeSelector": {"$patch": "delete"}}),
        json!({"nodeSelector": {}, "hostname": "x"}),
    );
    check_pod_spec(
        target.clone(),
        json!({"nodeSelector": {"$patch": "merge", "c": "3"}}),
        json!({"nodeSelector": {"a": "1", "b": "2", "c": "3"}, "hostname": "x"}),
    );
    check_pod_spec_error(
        target,
        json!({"nodeSelector": {"$patch": "burn"}}),
        "spec.nodeSelector: unknown patch type: burn",
    );
    check_pod_spec(
        json!({}),
        json!({"securityContext": {"runAsUser": 1, "fsGroup": null}}),
        json!({"securityContext": {"runAsUser": 1}}),
    );
}

#[test]
fn lists_with_a_merge_key_merge() {
    let target = json!({"containers": [{"name": "a", "image": "a:1", "tty": true}, {"name": "b", "image": "b:1"}]});
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "a", "image": "a:2", "tty": null}]}),
        json!({"containers": [{"name": "a", "image": "a:2"}, {"name": "b", "image": "b:1"}]}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "c", "image": "c:1"}]}),
        json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:1", "tty": true}, {"name": "b", "image": "b:1"}]}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "b:1"}]}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"$patch": "delete", "name": "zz"}, {"name": "a", "image": "a:3"}]}),
        json!({"containers": [{"name": "a", "image": "a:3", "tty": true}, {"name": "b", "image": "b:1"}]}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "n", "image": "n:1"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "n", "image": "n:1"}]}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "a", "$patch": "replace", "image": "a:9"}]}),
        json!({"containers": []}),
    );
    check_pod_spec(
        target.clone(),
        json!({"containers": [{"name": "b", "env": [{"name": "X", "value": "1"}, {"name": "Y", "$patch": "delete"}]}]}),
        json!({"containers": [{"name": "a", "image": "a:1", "tty": true}, {"name": "b", "image": "b:1", "env": [{"name": "X", "value": "1"}]}]}),
    );
    check_pod_spec_error(
        target.clone(),
        json!({"containers": [{"image": "x"}]}),
        "spec.containers: map: [image] does not contain declared merge key: name",
    );
    check_pod_spec_error(
        target.clone(),
        json!({"containers": [{"$patch": "delete"}]}),
        "does not contain declared merge key: name",
    );
    check_pod_spec_error(
        target.clone(),
        json!({"containers": ["a"]}),
        "spec.containers: list element types are not identical",
    );
    check_pod_spec_error(
        target.clone(),
        json!({"containers": [{"name": "a", "$patch": "burn"}]}),
        "unknown patch type: burn",
    );
    check_pod_spec_error(
        json!({"containers": [{"name": "a", "env": [{"name": "X"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"value": "1"}]}]}),
        "spec.containers[name=a].env: map: [value] does not contain declared merge key: name",
    );
}

#[test]
fn ports_merge_by_their_number() {
    let target = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 443}]}]});
    check_pod_spec(
        target,
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 443, "name": "tls"}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 443, "name": "tls"}]}]}),
    );
}

#[test]
fn lists_without_a_merge_strategy_are_replaced() {
    let target =
        json!({"containers": [{"name": "a", "command": ["sh"], "args": ["-c", "x"]}], "tolerations": [{"key": "a"}]});
    check_pod_spec(
        target,
        json!({"containers": [{"name": "a", "args": ["-c"]}], "tolerations": [{"key": "b", "effect": null}]}),
        json!({"containers": [{"name": "a", "command": ["sh"], "args": ["-c"]}], "tolerations": [{"key": "b"}]}),
    );
}

#[test]
fn lists_of_scalars_are_sets() {
    let target = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let check = |patch: Value, expected: Value| {
        let result = merged(&kind::POD, &target, &json!({"metadata": patch}));
        assert_eq!(result, Ok(json!({"metadata": expected})));
    };
    check(json!({"finalizers": ["d", "a"]}), json!({"finalizers": ["d", "a", "b", "c"]}));
    check(json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]}), json!({"finalizers": ["a", "c"]}));
    check(
        json!({"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]}),
        json!({"finalizers": ["c", "a"]}),
    );
    check(json!({"finalizers": null}), json!({}));
    check(json!({"finalizers": null, "$setElementOrder/finalizers": []}), json!({}));
    let error =
        merged(&kind::POD, &target, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "b"}})).unwrap_err();
    assert!(error.to_string().contains("metadata.finalizers"), "{error}");
}

#[test]
fn set_element_order_orders_and_keeps_what_only_the_server_has() {
    let names = |list: &[&str]| -> Value { list.iter().map(|name| json!({"name": name})).collect() };
    type Names = &'static [&'static str];
    let table: [(Names, Names, Names, Names); 7] = [
        // server, patch, order, expected
        (&["a", "b"], &[], &["b", "a"], &["b", "a"]),
        (&["a", "sidecar", "b"], &[], &["a", "b"], &["a", "sidecar", "b"]),
        (&["sidecar", "a", "b"], &[], &["b", "a"], &["sidecar", "b", "a"]),
        (&["a", "b"], &["c"], &["c", "a", "b"], &["c", "a", "b"]),
        (&["a", "s1", "b", "s2"], &["c"], &["c", "b", "a"], &["c", "s1", "b", "a", "s2"]),
        (&["a", "b", "c"], &[], &[], &["a", "b", "c"]),
        (&[], &["x", "y"], &["x", "y"], &["x", "y"]),
    ];
    for (server, patch, order, expected) in table {
        let mut change = json!({"$setElementOrder/containers": names(order)});
        if !patch.is_empty() {
            change["containers"] = names(patch);
        }
        let target = if server.is_empty() { json!({}) } else { json!({"containers": names(server)}) };
        check_pod_spec(target, change, json!({"containers": names(expected)}));
    }
    let target = json!({"containers": names(&["a"])});
    check_pod_spec_error(
        target.clone(),
        json!({"$setElementOrder/containers": names(&["a", "b"]), "containers": names(&["b", "a"])}),
        "spec.containers: the order in the patch's list doesn't match",
    );
    check_pod_spec_error(
        target.clone(),
        json!({"$setElementOrder/containers": [{"image": "x"}]}),
        "does not contain declared merge key: name",
    );
    check_pod_spec_error(
        target.clone(),
        json!({"$setElementOrder/containers": "a"}),
        "spec.containers: `$setElementOrder` is not a list",
    );
    check_pod_spec_error(target, json!({"$setElementOrder/containers": [], "containers": 1}), "is not a list");
}

#[test]
fn retain_keys_clears_a_union() {
    let target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(merged(&kind::DEPLOYMENT, &target, &patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
    let stray = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": {}}}});
    let error = merged(&kind::DEPLOYMENT, &target, &stray).unwrap_err().to_string();
    assert!(error.contains("spec.strategy") && error.contains("rollingUpdate"), "{error}");
    let fresh = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}});
    assert_eq!(
        merged(&kind::DEPLOYMENT, &json!({"spec": {}}), &fresh),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );

    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    check_pod_spec(
        volumes,
        json!({"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}),
        json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
    );
}

#[test]
fn directives_never_become_data() {
    check_pod_spec(
        json!({}),
        json!({
            "$setElementOrder/volumes": [{"name": "v"}],
            "volumes": [{"$retainKeys": ["name"], "name": "v"}, {"$patch": "delete", "name": "w"}],
            "containers": [{"name": "a", "$setElementOrder/env": [{"name": "E"}], "env": [{"name": "E", "$patch": "delete"}, {"name": "F"}]}],
            "$deleteFromPrimitiveList/x": ["y"],
        }),
        json!({"volumes": [{"name": "v"}], "containers": [{"name": "a", "env": [{"name": "F"}]}]}),
    );
    check_pod_spec(json!({"hostname": "x"}), json!({"$patch": "replace", "nodeName": "n"}), json!({"nodeName": "n"}));
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "annotations": {"deployment.kubernetes.io/revision": "3"}},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [
                    {"name": "app", "image": "app:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                    {"name": "log", "image": "log:1"},
                ]},
            },
        },
    })
}

fn patched_deployment(patch: &Value) -> Value {
    merged(&kind::DEPLOYMENT, &deployment(), patch).unwrap()
}

#[test]
fn kubectl_set_image_and_env() {
    let image = json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "app"}, {"name": "log"}], "containers": [{"image": "app:2", "name": "app"}]}}}});
    let after = patched_deployment(&image);
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "app:2");
    assert_eq!(after["spec"]["template"]["spec"]["containers"][1], json!({"name": "log", "image": "log:1"}));

    let env = json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "app"}, {"name": "log"}], "containers": [
        {"$setElementOrder/env": [{"name": "B"}, {"name": "C"}], "env": [{"name": "C", "value": "3"}, {"$patch": "delete", "name": "A"}], "name": "app"}]}}}});
    let after = patched_deployment(&env);
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["env"],
        json!([{"name": "B", "value": "2"}, {"name": "C", "value": "3"}])
    );
}

#[test]
fn kubectl_rollout_restart_and_apply() {
    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-21T08:00:00Z"}}}}});
    let after = patched_deployment(&restart);
    assert_eq!(
        after["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"],
        "2026-11-21T08:00:00Z"
    );
    assert_eq!(after["spec"]["template"]["metadata"]["labels"]["app"], "web");

    // A container removed from the manifest, another's variable changed; the revision stays.
    let apply = json!({
        "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}\n"}},
        "spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "app"}],
            "containers": [
                {"$setElementOrder/env": [{"name": "A"}, {"name": "B"}], "env": [{"name": "B", "value": "9"}], "name": "app"},
                {"$patch": "delete", "name": "log"},
            ],
        }}},
    });
    let after = patched_deployment(&apply);
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"],
        json!([{"name": "app", "image": "app:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "9"}]}])
    );
    assert_eq!(after["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn kubectl_rollout_undo_replaces_the_template() {
    // Of a Deployment a JSON patch; of a DaemonSet a strategic one with `$patch: replace`.
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "app:0"}]}});
    let json = json!([{"op": "replace", "path": "/spec/template", "value": template}, {"op": "replace", "path": "/metadata/annotations", "value": {}}]);
    let after = Patch::Json(json).apply_to(deployment(), None).unwrap();
    assert_eq!(after["spec"]["template"], template);
    let mut replace = template.clone();
    replace["$patch"] = "replace".into();
    let after = patched_deployment(&json!({"spec": {"template": replace}}));
    assert_eq!(after["spec"]["template"], template);
    assert_eq!(after["spec"]["replicas"], 2);
}

#[test]
fn kubectl_cordon_and_taint() {
    let node = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let cordon = merged(&kind::NODE, &node, &json!({"spec": {"unschedulable": true}}));
    assert_eq!(cordon, Ok(json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "unschedulable": true}})));
    let uncordon =
        merged(&kind::NODE, &json!({"spec": {"unschedulable": true}}), &json!({"spec": {"unschedulable": null}}));
    assert_eq!(uncordon, Ok(json!({"spec": {}})));
    // Taints are atomic.
    let taint = merged(&kind::NODE, &node, &json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}));
    assert_eq!(taint, Ok(json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}})));
    // Conditions merge by type.
    let status = merged(
        &kind::NODE,
        &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]}}),
        &json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "DiskPressure"}], "conditions": [{"type": "Ready", "status": "Unknown"}]}}),
    );
    assert_eq!(
        status,
        Ok(
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "False"}]}})
        )
    );
}

#[test]
fn free_form_data_merges_as_plain_json() {
    let target = json!({"data": {"list": [{"a": 1}], "map": {"x": 1}}});
    let patch = json!({"data": {"list": [{"b": 2}], "map": {"y": 2}}});
    assert_eq!(
        merged(&kind::CONTROLLER_REVISION, &target, &patch),
        Ok(json!({"data": {"list": [{"b": 2}], "map": {"x": 1, "y": 2}}}))
    );
}

#[test]
fn thousands_of_items_merge_in_no_time() {
    let many = |value: &str| -> Value {
        (0..20_000).map(|index| json!({"name": format!("V{index}"), "value": value})).collect()
    };
    let target = json!({"spec": {"containers": [{"name": "a", "env": many("1")}]}});
    let after =
        merged(&kind::POD, &target, &json!({"spec": {"containers": [{"name": "a", "env": many("2")}]}})).unwrap();
    assert_eq!(after["spec"]["containers"][0]["env"], many("2"));
}
