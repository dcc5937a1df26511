//! `flotilla demo`: the promise, shown. A hub and three devices on loopback; one is cut off, hurt, and edited on both sides.
//!
//! Every step waits until what it announces is observed through the public API and fails otherwise. Nothing is left behind:
//! not a process, not a file. Start reading at [`run`].

mod api;
mod relay;
mod stage;

use std::io::{BufRead as _, Write as _};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use stage::{Device, Stage};

/// `flotilla demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Run unattended, clean up at the end, and exit 0 only if every step was observed
    #[arg(long)]
    yes: bool,
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const WEB: &str = "/apis/apps/v1/namespaces/default/daemonsets/web";
const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) fn run(arguments: &DemoArguments) -> Result<()> {
    let mut stage = Stage::build()?;
    let names = ["pump-1", "pump-2", "pump-3"];
    stage.step("start three devices and let them join", |stage| {
        for name in names {
            stage.add_device(name)?;
        }
        stage.until("all three are Ready", |stage| {
            let nodes = stage.hub.get("/api/v1/nodes")?;
            let ready = items(&nodes).filter(|node| is_ready_node(node)).count();
            Ok((ready == 3).then_some(()).ok_or(format!("{ready} of 3 Ready")))
        })
    })?;
    stage.step("apply a DaemonSet and its ConfigMap at the hub", |stage| {
        stage.hub.post(CONFIG_MAPS, &config_map())?;
        stage.hub.post(DAEMON_SETS, &daemon_set())?;
        stage.until("it runs on all three", |stage| running(stage, |_node, _pod| true))
    })?;
    stage.show_pods()?;
    stage.step("cut pump-3 off: every packet between it and the hub is dropped", |stage| {
        stage.device("pump-3")?.relay.set_cut(true);
        Ok(())
    })?;
    stage.step("kill its workload; with no hub in reach, the device starts it again", |stage| {
        let device = stage.device("pump-3")?;
        let restarts = restarts(device)?;
        device.kill_workload()?;
        stage.until("it runs again", |stage| {
            let now = self::restarts(stage.device("pump-3")?)?;
            Ok((now == restarts + 1).then_some(()).ok_or(format!("{now} restarts")))
        })
    })?;
    stage.step("edit at the hub (SIZE=large) and at the cut-off device (COLOUR=red)", |stage| {
        stage.hub.patch(WEB, &set_env("SIZE", "large"))?;
        stage.device("pump-3")?.api.patch(WEB, &set_env("COLOUR", "red"))?;
        stage.until("each side runs its own edit", |stage| {
            let there =
                items(&stage.device("pump-3")?.api.get(PODS)?).any(|pod| env(pod, "COLOUR") == "red" && ready(pod));
            let here = items(&stage.hub.get(PODS)?).filter(|pod| env(pod, "SIZE") == "large" && ready(pod)).count();
            Ok((there && here == 2).then_some(()).ok_or(format!("{here} of 2 at the hub, device: {there}")))
        })
    })?;
    stage.show_pods()?;
    stage.step("reconnect: both sides learn what the other did", |stage| {
        stage.device("pump-3")?.relay.set_cut(false);
        stage.until("SIZE=large everywhere, COLOUR=red on pump-3 alone", |stage| {
            running(stage, |node, pod| {
                env(pod, "SIZE") == "large" && env(pod, "COLOUR") == if node == "pump-3" { "red" } else { "blue" }
            })
        })
    })?;
    stage.show_pods()?;
    stage.step("who changed what, where and when, at the hub", |stage| {
        stage.until("the override is listed", |stage| {
            let list = stage.hub.get("/apis/flotilla.dev/v1alpha1/overrides")?;
            let count = items(&list).count();
            Ok((count == 1).then_some(()).ok_or(format!("{count} overrides")))
        })
    })?;
    stage.show_overrides()?;
    if !arguments.yes {
        stage.say(&format!(
            "\nGo on with kubectl:\n  export KUBECONFIG={}\n  kubectl get nodes,ds,pods -o wide\n  kubectl get overrides -A\nAt the device:\n  kubectl --kubeconfig {} get pods\n\nPress Enter to end the demo and remove all of it.",
            stage.hub_kubeconfig().display(),
            stage.device("pump-3")?.kubeconfig().display(),
        ))?;
        std::io::stdout().flush()?;
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    stage.tear_down()
}

/// Whether one ready Pod of each device satisfies `right`.
fn running(stage: &Stage, right: impl Fn(&str, &Value) -> bool) -> Result<Result<(), String>> {
    let pods = stage.hub.get(PODS)?;
    let good =
        items(&pods).filter(|pod| ready(pod) && right(pod["spec"]["nodeName"].as_str().unwrap_or(""), pod)).count();
    Ok(if good == 3 { Ok(()) } else { Err(format!("{good} of 3")) })
}

fn restarts(device: &Device) -> Result<i64> {
    let pods = device.api.get(PODS)?;
    let pod =
        items(&pods).find(|pod| ready(pod)).map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].clone());
    Ok(pod.and_then(|count| count.as_i64()).unwrap_or(-1))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn ready(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && containers.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["ready"] == true))
}

fn is_ready_node(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn env<'a>(pod: &'a Value, name: &str) -> &'a str {
    let list = pod["spec"]["containers"][0]["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().find(|one| one["name"] == name).and_then(|one| one["value"].as_str()).unwrap_or("")
}

fn set_env(name: &str, value: &str) -> Value {
    let container = json!({"name": "web", "env": [{"name": name, "value": value}]});
    json!({"spec": {"template": {"spec": {"containers": [container]}}}})
}

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web-config"}, "data": {"GREETING": "hello from the hub"}})
}

fn daemon_set() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "updateStrategy": {"rollingUpdate": {"maxUnavailable": 3}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"runtimeClassName": "process", "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "web", "image": "host",
                "command": ["/bin/sh", "-c", "echo \"$GREETING, $COLOUR\"; while :; do sleep 1; done"],
                "env": [
                    {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "web-config", "key": "GREETING"}}},
                    {"name": "COLOUR", "value": "blue"},
                ],
            }]},
        }},
    })
}
