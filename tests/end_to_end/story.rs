//! Manifests and questions that several stories share.

use std::collections::BTreeMap;

use flotilla_tests::fleet::{Fleet, is_ready};
use flotilla_tests::kubectl::{Kubectl, binaries};
use flotilla_tests::{process_path, skip, wait};
use serde_json::Value;

/// A DaemonSet of one process that prints its greeting from a ConfigMap, over and over.
pub(crate) const WEB: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: web-config}
data: {GREETING: "hello from the hub"}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: host
        command: [/bin/sh, -c, 'echo "$GREETING $COLOUR"; while :; do sleep 1; done']
        env:
        - name: GREETING
          valueFrom: {configMapKeyRef: {name: web-config, key: GREETING}}
        - {name: COLOUR, value: blue}
"#;

/// A Deployment of `replicas` sleepers.
pub(crate) fn deployment(replicas: u32, version: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop}}
spec:
  replicas: {replicas}
  strategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 1, maxSurge: 1}}}}
  selector: {{matchLabels: {{app: shop}}}}
  template:
    metadata: {{labels: {{app: shop}}}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: shop
        image: host
        command: [/bin/sh, -c, 'echo "version $VERSION"; while :; do sleep 1; done']
        env: [{{name: VERSION, value: "{version}"}}]
"#
    )
}

/// Whether the parts every story needs are here.
pub(crate) fn ready_to_run() -> bool {
    if binaries().is_empty() {
        skip("no kubectl on the PATH");
        return false;
    }
    true
}

pub(crate) fn broker_is_here() -> bool {
    if process_path("mosquitto").is_none() {
        skip("no mosquitto (Debian: apt-get install mosquitto)");
        return false;
    }
    true
}

/// Whether real containers can be run: a runtime, root, and the shell that the image is made of.
pub(crate) fn containers_are_here() -> bool {
    let root = nix::unistd::geteuid().is_root();
    for (here, what) in [
        (process_path("crun").or_else(|| process_path("runc")).is_some(), "crun or runc"),
        (process_path("busybox").is_some(), "busybox-static"),
        (root, "root"),
    ] {
        if !here {
            skip(&format!("no {what}, which containers need"));
            return false;
        }
    }
    true
}

/// Node name -> (pod name, restart count, uid) of the running pods with this selector.
pub(crate) fn by_node(fleet: &Fleet, selector: &str, count: usize) -> BTreeMap<String, (String, i64, String)> {
    let pods = fleet.running_pods(selector, count);
    let row = |(name, pod): (String, Value)| {
        let node = pod["spec"]["nodeName"].as_str().unwrap().to_owned();
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap();
        (node, (name, restarts, pod["metadata"]["uid"].as_str().unwrap().to_owned()))
    };
    pods.into_iter().map(row).collect()
}

/// The process ids of the sleeping shells below one agent's folder: what a healthy workload must keep.
pub(crate) fn pod_pids(fleet: &Fleet, node: &str) -> Vec<i32> {
    let table = flotilla_tests::process::table();
    let folder = fleet.agent_folder(node).join("pods").to_string_lossy().into_owned();
    let shims: Vec<i32> = table.iter().filter(|row| row.command.contains(&folder)).map(|row| row.pid).collect();
    let mut pids: Vec<i32> = table.iter().filter(|row| shims.contains(&row.parent)).map(|row| row.pid).collect();
    pids.sort_unstable();
    pids
}

/// Whether a container's process at this device has this variable. A Pod says what it is to be before its process is another.
pub(crate) fn process_has(fleet: &Fleet, node: &str, name: &str, value: &str) -> Result<(), String> {
    let set = format!("{name}={value}");
    let pids = pod_pids(fleet, node);
    let has = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == set.as_bytes())
    };
    if pids.iter().any(has) { Ok(()) } else { Err(format!("no process of {pids:?} has {set}")) }
}

/// Waits until a device's own API shows `count` ready pods, and returns them by name.
pub(crate) fn local_pods(kubectl: &Kubectl, count: usize) -> BTreeMap<String, Value> {
    wait::until(&format!("{count} ready pods at the device"), || {
        let list = kubectl.json("get pods -A")?;
        let ready = list["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod));
        let pods: BTreeMap<String, Value> =
            ready.map(|pod| (pod["metadata"]["name"].as_str().unwrap().to_owned(), pod.clone())).collect();
        if pods.len() == count { Ok(pods) } else { Err(list.to_string()) }
    })
}

/// The value of an environment variable of the first container of a Pod.
pub(crate) fn env<'a>(pod: &'a Value, name: &str) -> &'a str {
    let list = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    list.iter().find(|item| item["name"] == name).and_then(|item| item["value"].as_str()).unwrap_or("")
}
