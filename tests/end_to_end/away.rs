//! Story d: what happened while a device was away, and the hub forgot its log, is true on its return, and nothing else.

use flotilla_tests::database::log_floor;
use flotilla_tests::fleet::{Containers, Fleet, Road, is_ready};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::wait;
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, env, local_pods, pod_pids};

/// Few enough that every log is truncated within this story.
const RECORDS_MAX: &str = "8";

/// A DaemonSet with a ConfigMap of its own.
fn daemon_set(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}-config}}
data: {{WORD: "of {name}"}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: {name}}}
spec:
  updateStrategy: {{rollingUpdate: {{maxUnavailable: 2}}}}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: host
        command: [/bin/sh, -c, 'echo "$WORD $SIZE"; while :; do sleep 1; done']
        env:
        - name: WORD
          valueFrom: {{configMapKeyRef: {{name: {name}-config, key: WORD}}}}
        - {{name: SIZE, value: small}}
        - {{name: COLOUR, value: blue}}
"#
    )
}

/// Env of `edited`, sealed on its way and at rest.
fn secret(word: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: edited-secret}}\nstringData: {{PASSWORD: {word}}}\n")
}

/// Adds the Secret to a DaemonSet's environment, and to what it prints.
fn with_secret(manifest: &str) -> String {
    let variable =
        "        - name: PASSWORD\n          valueFrom: {secretKeyRef: {name: edited-secret, key: PASSWORD}}\n";
    manifest.replace("echo \"$WORD $SIZE\"", "echo \"$WORD $SIZE $PASSWORD\"") + variable
}

const BARE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: bare, labels: {app: bare}}
spec:
  nodeName: n2
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: host, command: [/bin/sh, -c, 'while :; do sleep 1; done']}
";

#[test]
fn a_device_returns_after_the_hub_forgot_its_log() {
    if story::ready_to_run() {
        returns_after_the_hub_forgot(Containers::Processes);
    }
}

#[test]
fn a_device_with_containers_returns_after_the_hub_forgot_its_log() {
    if story::ready_to_run() && story::containers_are_here() {
        returns_after_the_hub_forgot(Containers::Oci);
    }
}

fn returns_after_the_hub_forgot(containers: Containers) {
    let mut fleet = Fleet::start_with(BINARY, Road::Quic, containers, &["--log-records-max", RECORDS_MAX]);
    for node in ["n1", "n2"] {
        fleet.join(node, &[]);
        fleet.wait_for_node(node, "Ready=True");
    }
    let kubectl = fleet.kubectl();
    let edited = with_secret(&daemon_set("edited"));
    for manifest in [WEB, &daemon_set("gone"), &secret("swordfish"), &edited, BARE] {
        fleet.apply(manifest);
    }
    for (selector, count) in [("app=web", 2), ("app=gone", 2), ("app=edited", 2), ("app=bare", 1)] {
        fleet.running_pods(selector, count);
    }
    let before = pod_on(&kubectl, "web", "n2").unwrap();
    let pids = web_pids(&fleet);
    assert_eq!(pids.len(), 1);

    // Away, but alive: it looks for its hub where there is none.
    fleet.stop_agent("n2");
    fleet.start_agent("n2", &["--hub", "127.0.0.1:1"]);
    let local = fleet.local_kubectl("n2");
    local_pods(&local, 4);
    while_away(&fleet, &kubectl);
    local.run("set env ds/edited COLOUR=red");
    wait::until("the technician's edit runs at the cut-off device", || {
        let pods = local_pods(&local, 4);
        let edited = pods.values().find(|pod| pod["metadata"]["labels"]["app"] == "edited").unwrap();
        if env(edited, "COLOUR") == "red" { Ok(()) } else { Err(edited.to_string()) }
    });
    assert_eq!(web_pids(&fleet), pids);

    // Back. Then once more from its disk alone: what was deleted stays deleted.
    fleet.stop_agent("n2");
    fleet.start_agent("n2", &[]);
    runs_what_it_should(&kubectl, &local);
    assert_eq!(web_pids(&fleet), pids, "the return restarted a healthy pod");
    let after = pod_on(&kubectl, "web", "n2").unwrap();
    same_life(&before, &after);
    fleet.kill_hub();
    fleet.stop_agent("n2");
    fleet.start_agent("n2", &[]);
    let pods = local_pods(&local, 2);
    let web = pods.values().find(|pod| pod["metadata"]["labels"]["app"] == "web").unwrap();
    same_life(&before, web);
    assert_eq!(web_pids(&fleet), pids);
    assert_eq!(pod_pids(&fleet, "n2").len(), 2);
    for node in ["n1", "n2"] {
        for file in ["device.db", "device.db-wal"] {
            let bytes = std::fs::read(fleet.agent_folder(node).join(file)).unwrap_or_default();
            for word in ["swordfish", "opensesame"] {
                let found = bytes.windows(word.len()).any(|window| window == word.as_bytes());
                assert!(!found, "{file} of {node} holds a secret in clear");
            }
        }
    }
}

/// Deletions and edits, and more records than the logs keep.
fn while_away(fleet: &Fleet, kubectl: &Kubectl) {
    kubectl.run("delete ds/gone cm/gone-config pod/bare --wait=false");
    kubectl.apply(&secret("opensesame"));
    kubectl.run("set env ds/edited SIZE=large");
    for number in 0..12 {
        kubectl.run(&format!("patch cm edited-config --type=merge -p {{\"data\":{{\"NOTE\":\"{number}\"}}}}"));
        kubectl.run(&format!("label node n2 visit={number} --overwrite"));
    }
    for channel in ["fleet/default", "device/n2"] {
        assert!(log_floor(&fleet.hub_folder(), channel) > 0, "the hub still has all of {channel}");
    }
    wait::until("the device that stayed runs the edit", || {
        let pod = pod_on(kubectl, "edited", "n1")?;
        if env(&pod, "SIZE") == "large" && is_ready(&pod) { Ok(()) } else { Err(pod.to_string()) }
    });
}

/// Both sides show the two DaemonSets that are left, the edited one with both edits, and nothing of the others.
fn runs_what_it_should(kubectl: &Kubectl, local: &Kubectl) {
    wait::until("the hub shows what is left, with both edits", || {
        let list = kubectl.json("get pods")?;
        let edited = pod_on(kubectl, "edited", "n2")?;
        let both = env(&edited, "SIZE") == "large" && env(&edited, "COLOUR") == "red" && is_ready(&edited);
        if list["items"].as_array().unwrap().len() == 4 && both { Ok(()) } else { Err(list.to_string()) }
    });
    let pods = local_pods(local, 2);
    let apps: Vec<&str> = pods.values().map(|pod| pod["metadata"]["labels"]["app"].as_str().unwrap()).collect();
    assert_eq!(apps, ["edited", "web"]);
    let rows = local.run("get ds,cm -o name");
    assert!(!rows.contains("gone"), "{rows}");
    wait::until("the edited pod has the new secret", || {
        let log = local.attempt("logs -l app=edited")?;
        if log == "of edited large opensesame\n" { Ok(()) } else { Err(log) }
    });
    let config = local.json("get cm edited-config").unwrap();
    assert_eq!(config["data"]["NOTE"], "11");
    let node = local.json("get node n2").unwrap();
    assert_eq!(node["metadata"]["labels"]["visit"], "11");
}

/// The same container as before, and its times as they were.
fn same_life(before: &Value, after: &Value) {
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["startTime"], before["status"]["startTime"]);
    let (was, is) = (&before["status"]["containerStatuses"][0], &after["status"]["containerStatuses"][0]);
    assert_eq!(is["restartCount"], 0);
    assert!(was["state"]["running"]["startedAt"].is_string(), "{was}");
    assert_eq!(is["state"]["running"]["startedAt"], was["state"]["running"]["startedAt"]);
    assert_eq!(is["containerID"], was["containerID"]);
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|one| one["type"] == "Ready").map(|one| one["lastTransitionTime"].clone())
    };
    assert_eq!(ready(after), ready(before), "a pod that never changed has a new transition time");
}

fn pod_on(kubectl: &Kubectl, app: &str, node: &str) -> Result<Value, String> {
    let list = kubectl.json(&format!("get pods -l app={app}"))?;
    let found = list["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == node).cloned();
    found.ok_or_else(|| format!("no pod of {app} on {node}: {list}"))
}

/// The processes at n2 that print the greeting of `web`.
fn web_pids(fleet: &Fleet) -> Vec<i32> {
    let all = pod_pids(fleet, "n2");
    let table = flotilla_tests::process::table();
    let web = table.iter().filter(|row| all.contains(&row.pid) && row.command.contains("$GREETING"));
    web.map(|row| row.pid).collect()
}
