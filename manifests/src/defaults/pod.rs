//! Defaults of Pods, of Pod templates, of containers, probes and volumes.

use serde_json::{Map, Value};

use super::{absent, each, inside, made, zero};
use crate::quantity::Quantity;

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
const FILE_MODE: i64 = 0o644;

/// A whole Pod: what a template has, and what only a Pod gets.
pub(super) fn whole(root: &mut Map<String, Value>) {
    let Some(pod_spec) = inside(root, "spec") else { return };
    spec(pod_spec);
    zero(pod_spec, "serviceAccountName", "default");
    service_account(pod_spec);
    let host_network = pod_spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in ["containers", "initContainers"] {
        for container in each(pod_spec, list) {
            if let Some(resources) = inside(container, "resources") {
                requests_from_limits(resources);
            }
            if host_network {
                for port in each(container, "ports") {
                    let number = port.get("containerPort").cloned().unwrap_or(0.into());
                    zero(port, "hostPort", number);
                }
            }
        }
    }
    let class = quality_of_service(pod_spec);
    if let Some(status) = made(root, "status") {
        zero(status, "phase", "Pending");
        zero(status, "qosClass", class);
    }
}

/// The spec of a Pod or of a template.
pub(super) fn spec(spec: &mut Map<String, Value>) {
    zero(spec, "restartPolicy", "Always");
    zero(spec, "dnsPolicy", "ClusterFirst");
    zero(spec, "schedulerName", "default-scheduler");
    absent(spec, "terminationGracePeriodSeconds", 30);
    absent(spec, "enableServiceLinks", true);
    absent(spec, "securityContext", Map::new());
    service_account(spec);
    for list in CONTAINER_LISTS {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; the new one wins, and both are shown.
fn service_account(spec: &mut Map<String, Value>) {
    let named =
        |name: &str| spec.get(name).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())).cloned();
    if let Some(account) = named("serviceAccountName").or_else(|| named("serviceAccount")) {
        spec.insert("serviceAccount".to_owned(), account.clone());
        spec.insert("serviceAccountName".to_owned(), account);
    }
}

fn container(container: &mut Map<String, Value>) {
    zero(container, "terminationMessagePath", "/dev/termination-log");
    zero(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(container.get("image").and_then(Value::as_str).unwrap_or(""));
    zero(container, "imagePullPolicy", policy);
    // Clients that read a template and write it back add it: without it here, an undo would look like a new template.
    absent(container, "resources", Map::new());
    for port in each(container, "ports") {
        zero(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(source) = inside(variable, "valueFrom") {
            field_reference(source);
            if let Some(file) = inside(source, "fileKeyRef") {
                absent(file, "optional", false);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = inside(container, name) {
            zero(probe, "timeoutSeconds", 1);
            zero(probe, "periodSeconds", 10);
            zero(probe, "successThreshold", 1);
            zero(probe, "failureThreshold", 3);
            http_get(probe);
            if let Some(grpc) = inside(probe, "grpc") {
                absent(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = inside(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = inside(lifecycle, name) {
                http_get(handler);
            }
        }
    }
}

/// `Always` for the tag `latest`, said or meant; an image named by digest never changes.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    match (image.contains('@'), last.split_once(':')) {
        (true, _) => "IfNotPresent",
        (false, None | Some((_, "latest"))) => "Always",
        (false, Some(_)) => "IfNotPresent",
    }
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = inside(handler, "httpGet") {
        zero(get, "path", "/");
        zero(get, "scheme", "HTTP");
    }
}

fn field_reference(source: &mut Map<String, Value>) {
    if let Some(field) = inside(source, "fieldRef") {
        zero(field, "apiVersion", "v1");
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = inside(resources, "limits").filter(|limits| !limits.is_empty()).cloned() else { return };
    if let Some(requests) = made(resources, "requests") {
        for (name, limit) in limits {
            absent(requests, &name, limit);
        }
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|name| name == "name") {
        volume.insert("emptyDir".to_owned(), Map::new().into());
    }
    for (name, fill) in VOLUME_SOURCES {
        if let Some(source) = inside(volume, name) {
            fill(source);
        }
    }
}

type Fill = fn(&mut Map<String, Value>);

const VOLUME_SOURCES: &[(&str, Fill)] = &[
    ("configMap", |source| absent(source, "defaultMode", FILE_MODE)),
    ("secret", |source| absent(source, "defaultMode", FILE_MODE)),
    ("downwardAPI", |source| {
        absent(source, "defaultMode", FILE_MODE);
        each(source, "items").for_each(field_reference);
    }),
    ("projected", projected),
    ("hostPath", |source| absent(source, "type", "")),
    ("iscsi", |source| zero(source, "iscsiInterface", "default")),
    ("rbd", |source| {
        zero(source, "pool", "rbd");
        zero(source, "user", "admin");
        zero(source, "keyring", "/etc/ceph/keyring");
    }),
    ("azureDisk", |source| {
        absent(source, "cachingMode", "ReadWrite");
        absent(source, "kind", "Shared");
        absent(source, "fsType", "ext4");
        absent(source, "readOnly", false);
    }),
    ("scaleIO", |source| {
        zero(source, "storageMode", "ThinProvisioned");
        zero(source, "fsType", "xfs");
    }),
    ("image", |source| {
        let policy = pull_policy(source.get("reference").and_then(Value::as_str).unwrap_or(""));
        zero(source, "pullPolicy", policy);
    }),
    ("ephemeral", |source| {
        if let Some(claim) = inside(source, "volumeClaimTemplate").and_then(|template| inside(template, "spec")) {
            absent(claim, "volumeMode", "Filesystem");
        }
    }),
];

fn projected(source: &mut Map<String, Value>) {
    absent(source, "defaultMode", FILE_MODE);
    for part in each(source, "sources") {
        if let Some(token) = inside(part, "serviceAccountToken") {
            absent(token, "expirationSeconds", 3600);
        }
        if let Some(api) = inside(part, "downwardAPI") {
            each(api, "items").for_each(field_reference);
        }
    }
}

/// `status.qosClass` of a Pod, of the cpu and memory of its containers.
fn quality_of_service(spec: &mut Map<String, Value>) -> &'static str {
    let (mut any, mut all_equal, mut count) = (false, true, 0);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            count += 1;
            for resource in ["cpu", "memory"] {
                let amount = |part: &str| {
                    let value = container.get("resources")?.get(part)?.get(resource)?;
                    Quantity::of_json(value).ok().filter(|quantity| !quantity.is_zero())
                };
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                all_equal &= limit.is_some() && request == limit;
            }
        }
    }
    match (any, all_equal && count > 0) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
