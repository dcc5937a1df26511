//! Volumes and their mounts.

use serde_json::{Value, json};

use super::{check, container, pod};

#[test]
fn volume_rules() {
    for (spec, expected) in [
        (
            json!({"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (json!({"volumes": [{"name": "a"}, {"name": "a"}]}), "spec.volumes[1].name: Duplicate value: \"a\""),
        (json!({"volumes": [{"name": "a", "secret": {}}]}), "spec.volumes[0].secret.secretName: Required value"),
        (
            json!({"volumes": [{"name": "a", "configMap": {"name": "a", "defaultMode": 512}}]}),
            "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        (
            json!({"volumes": [{"name": "a", "configMap": {"name": "a", "items": [{"key": "k", "path": "../x"}]}}]}),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            json!({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "-1"}}]}),
            "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (
            json!({"volumes": [{"name": "a", "hostPath": {"path": "/a/../b"}}]}),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            json!({"volumes": [{"name": "a", "hostPath": {"path": "/a", "type": "Pipe"}}]}),
            "spec.volumes[0].hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\", ",
        ),
        (
            json!({"volumes": [{"name": "a", "projected": {"sources": [
                {"configMap": {"name": "a", "items": [{"key": "k", "path": "x"}]}},
                {"secret": {"name": "b", "items": [{"key": "l", "path": "x"}]}},
            ]}}]}),
            "spec.volumes[0].projected: Invalid value: \"b\": conflicting duplicate paths",
        ),
        (
            json!({"volumes": [{"name": "a", "projected": {"sources": [
                {"configMap": {"name": "a"}, "secret": {"name": "b"}},
            ]}}]}),
            "spec.volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({"volumes": [{"name": "a", "downwardAPI": {"items": [{"path": "x"}]}}]}),
            "spec.volumes[0].downwardAPI.items[0]: Required value: one of fieldRef and resourceFieldRef is required",
        ),
        (
            json!({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Q"}}]}),
            "spec.volumes[0].emptyDir.sizeLimit: Invalid value: \"1Q\": ",
        ),
        (
            json!({"volumes": [{"name": "a", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 60}},
            ]}}]}),
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
        ),
    ] {
        check(&pod(spec), &[expected]);
    }
}

#[test]
fn what_only_a_device_can_refuse_is_accepted() {
    let volumes = json!([
        {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "b", "nfs": {"server": "s", "path": "/p"}},
        {"name": "c", "csi": {"driver": "d.example"}},
        {"name": "d", "emptyDir": {"medium": "HugePages-2Mi"}},
        {"name": "e", "hostPath": {"path": "relative", "type": ""}},
        {"name": "f", "downwardAPI": {"items": [
            {"path": "x", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "x", "fieldRef": {"fieldPath": "metadata.name"}},
        ]}},
    ]);
    check(&pod(json!({"containers": [{"name": "a", "image": "i"}], "volumes": volumes})), &[]);
}

#[test]
fn mount_rules() {
    let with = |mounts: Value, more: Value| {
        let mut all = json!({"volumeMounts": mounts});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut pod = container(all);
        pod.value_mut()["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]);
        pod
    };
    let mount = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/m"});
        mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with(json!([mount]), json!({}))
    };
    check(&mount(json!({"subPath": "a/b", "readOnly": true, "recursiveReadOnly": "Enabled"})), &[]);
    check(&mount(json!({"mountPropagation": "HostToContainer"})), &[]);
    let place = "spec.containers[0].volumeMounts[0]";
    for (object, expected) in [
        (mount(json!({"name": "x"})), "name: Not found: \"x\""),
        (mount(json!({"subPath": "/a"})), "subPath: Invalid value: \"/a\": must be a relative path"),
        (mount(json!({"subPath": "a/../b"})), "subPath: Invalid value: \"a/../b\": must not contain '..'"),
        (
            mount(json!({"subPath": "a", "subPathExpr": "$(A)"})),
            "subPathExpr: Invalid value: \"$(A)\": subPathExpr and subPath are mutually exclusive",
        ),
        (
            mount(json!({"mountPropagation": "Bidirectional"})),
            "mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
        ),
        (
            mount(json!({"recursiveReadOnly": "Enabled"})),
            "recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
        ),
        (
            with(
                json!([{"name": "v", "mountPath": "/m"}]),
                json!({"volumeDevices": [{"name": "w", "devicePath": "/m"}]}),
            ),
            "mountPath: Invalid value: \"/m\": must not already exist as a path in volumeDevices",
        ),
        (
            with(
                json!([{"name": "v", "mountPath": "/m"}]),
                json!({"volumeDevices": [{"name": "v", "devicePath": "/n"}]}),
            ),
            "name: Invalid value: \"v\": must not already exist in volumeDevices",
        ),
    ] {
        check(&object, &[&format!("{place}.{expected}")]);
    }
    check(
        &with(json!([{"name": "v", "mountPath": "/m"}, {"name": "w", "mountPath": "/m"}]), json!({})),
        &["spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/m\": must be unique"],
    );
}
