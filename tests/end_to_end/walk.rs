//! Stories a to f: apply, lose the hub, lose the agent, lose the device, meet again, edit on both sides; over QUIC and MQTT.

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, by_node, env, local_pods, pod_pids};

#[test]
fn a_manifest_goes_there_and_back_over_quic() {
    if story::ready_to_run() {
        there_and_back(Road::Quic, Containers::Processes);
    }
}

#[test]
fn a_manifest_goes_there_and_back_over_mqtt() {
    if story::ready_to_run() && story::broker_is_here() {
        there_and_back(Road::Mqtt, Containers::Processes);
    }
}

#[test]
fn a_manifest_goes_there_and_back_with_containers() {
    if story::ready_to_run() && story::containers_are_here() {
        there_and_back(Road::Quic, Containers::Oci);
    }
}

#[test]
fn a_manifest_goes_there_and_back_with_containers_over_mqtt() {
    if story::ready_to_run() && story::broker_is_here() && story::containers_are_here() {
        there_and_back(Road::Mqtt, Containers::Oci);
    }
}

/// A device whose link is gone before its session is holds up nobody's rollout for long.
#[test]
fn a_device_that_does_not_answer_blocks_no_rollout() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, 2);
    let kubectl = fleet.kubectl();
    kubectl.apply(WEB);
    by_node(&fleet, "app=web", 2);
    let stopped = Pid::from_raw(fleet.agent("n1").pid());
    kill(stopped, Signal::SIGSTOP).unwrap();
    // Whose turn is first differs from number to number.
    for version in ["one", "two", "three"] {
        kubectl.run(&format!("set env ds/web VERSION={version}"));
        wait::until("the device that answers runs the new version", || {
            let all = kubectl.json("get pods -l app=web")?;
            let pods = all["items"].as_array().unwrap();
            let there = pods.iter().any(|pod| pod["spec"]["nodeName"] == "n2" && env(pod, "VERSION") == version);
            if there { Ok(()) } else { Err(all.to_string()) }
        });
    }
    kill(stopped, Signal::SIGCONT).unwrap();
    wait::until("the other follows when it answers again", || {
        let all = kubectl.json("get pods -l app=web")?;
        let right = |pod: &Value| env(pod, "VERSION") == "three" && flotilla_tests::fleet::is_ready(pod);
        let pods = all["items"].as_array().unwrap();
        if pods.len() == 2 && pods.iter().all(right) { Ok(()) } else { Err(all.to_string()) }
    });
}

fn there_and_back(road: Road, containers: Containers) {
    let mut fleet = Fleet::with_agents(BINARY, road, containers, 3);
    applied(&fleet);
    if road == Road::Mqtt {
        broker_restart(&mut fleet);
    }
    hub_gone(&mut fleet);
    agent_gone(&mut fleet);
    both_sides_edit(&mut fleet);
    nothing_is_left(&mut fleet);
}

/// Story a: all Running, and get, logs and describe tell the truth.
fn applied(fleet: &Fleet) {
    let kubectl = fleet.kubectl();
    fleet.apply(WEB);
    let pods = by_node(fleet, "app=web", 3);
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    wait::until("the DaemonSet counts three", || {
        let table = kubectl.attempt("get ds,pods -o wide")?;
        let counted =
            table.lines().any(|line| line.starts_with("daemonset.apps/web") && line.matches(" 3 ").count() == 5);
        if counted { Ok(()) } else { Err(table) }
    });
    let labelled = kubectl.run("get nodes -l kubernetes.io/os=linux,kubernetes.io/arch -o name");
    assert_eq!(labelled.lines().count(), 3, "{labelled}");
    let (name, _, _) = &pods["n2"];
    wait::until("the greeting is in the log", || {
        let log = kubectl.attempt(&format!("logs {name}"))?;
        if log == "hello from the hub blue\n" { Ok(()) } else { Err(log) }
    });
    let described = kubectl.run(&format!("describe pod {name}"));
    assert!(described.contains("Node:") && described.contains("n2"), "{described}");
    assert!(described.contains("State:          Running"), "{described}");
    kubectl.run("rollout status ds/web --timeout=120s");
}

/// Story f's extra: the broker goes and comes back; nothing restarts and edits arrive again.
fn broker_restart(fleet: &mut Fleet) {
    let before = pod_pids(fleet, "n1");
    fleet.kill_broker();
    fleet.start_broker();
    fleet.kubectl().run("label node n1 story=broker");
    let local = fleet.local_kubectl("n1");
    wait::until("the label arrives after the broker's restart", || {
        let node = local.json("get node n1")?;
        if node["metadata"]["labels"]["story"] == "broker" { Ok(()) } else { Err(node["metadata"].to_string()) }
    });
    assert_eq!(pod_pids(fleet, "n1"), before, "a broker restart touched a workload");
}

/// Story b: without a hub pods keep their pids, a killed one comes back, and the device's own API answers.
fn hub_gone(fleet: &mut Fleet) {
    let before: Vec<Vec<i32>> = ["n1", "n2", "n3"].iter().map(|node| pod_pids(fleet, node)).collect();
    assert!(before.iter().all(|pids| pids.len() == 1), "{before:?}");
    fleet.kill_hub();
    kill(Pid::from_raw(before[0][0]), Signal::SIGKILL).unwrap();
    let local = fleet.local_kubectl("n1");
    wait::until("the killed process is restarted without a hub", || {
        let pods = local.json("get pods -A")?;
        let status = &pods["items"][0]["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    let pods = local_pods(&local, 1);
    let name = pods.keys().next().unwrap();
    assert!(local.run("get pods").contains(name.as_str()));
    wait::until("the greeting of the new process is in its log", || {
        let log = local.attempt(&format!("logs {name}"))?;
        if log == "hello from the hub blue\n" { Ok(()) } else { Err(log) }
    });
    assert_eq!(pod_pids(fleet, "n2"), before[1]);
    assert_eq!(pod_pids(fleet, "n3"), before[2]);
}

/// Story c, still without a hub: a killed agent adopts, a rebooted device starts everything again.
fn agent_gone(fleet: &mut Fleet) {
    let before = pod_pids(fleet, "n2");
    fleet.kill_agent("n2");
    assert_eq!(pod_pids(fleet, "n2"), before, "pods died with their agent");
    fleet.start_agent("n2", &[]);
    let local = fleet.local_kubectl("n2");
    let pods = local_pods(&local, 1);
    assert_eq!(pods.values().next().unwrap()["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(pod_pids(fleet, "n2"), before, "adoption restarted a pod");

    fleet.power_cut("n3");
    assert!(pod_pids(fleet, "n3").is_empty());
    fleet.start_agent("n3", &[]);
    let local = fleet.local_kubectl("n3");
    wait::until("the device runs again after a power cut", || {
        let pods = local.json("get pods -A")?;
        let status = &pods["items"][0]["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
}

/// Stories d and e: an edit at the device while the hub is gone, edits at the hub while a device is gone, both everywhere after.
fn both_sides_edit(fleet: &mut Fleet) {
    let untouched = pod_pids(fleet, "n2");
    let local = fleet.local_kubectl("n1");
    local.run("set env ds/web COLOUR=red");
    wait::until("the technician's edit runs", || {
        let pods = local.json("get pods -A")?;
        let pod = &pods["items"][0];
        if env(pod, "COLOUR") == "red" && flotilla_tests::fleet::is_ready(pod) { Ok(()) } else { Err(pod.to_string()) }
    });
    fleet.start_hub();
    let kubectl = fleet.kubectl();
    let overrides = wait::until("the hub shows the override", || {
        let table = kubectl.attempt("get overrides -A")?;
        if table.contains("n1") && table.contains("web") { Ok(table) } else { Err(table) }
    });
    assert!(overrides.contains("COLOUR"), "what it changed is missing:\n{overrides}");
    wait::until("the hub is in contact again", || {
        let all = kubectl.json("get pods -l app=web")?;
        let n1 = all["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == "n1").cloned();
        n1.filter(|pod| env(pod, "COLOUR") == "red").ok_or_else(|| all.to_string())
    });
    assert_eq!(pod_pids(fleet, "n2"), untouched, "the hub's return restarted a pod");

    kubectl.run("set env ds/web SIZE=large");
    wait::until("the hub's edit runs everywhere, and the device's beside it on its own device only", || {
        let all = kubectl.json("get pods -l app=web")?;
        let pods: Vec<Value> = all["items"].as_array().unwrap().clone();
        let right = |pod: &Value| {
            let colour = if pod["spec"]["nodeName"] == "n1" { "red" } else { "blue" };
            env(pod, "SIZE") == "large" && env(pod, "COLOUR") == colour && flotilla_tests::fleet::is_ready(pod)
        };
        if pods.len() == 3 && pods.iter().all(right) { Ok(()) } else { Err(all.to_string()) }
    });
    local.run("set env ds/web COLOUR=blue");
    wait::until("setting it back ends the override", || {
        let list = kubectl.json("get overrides -A")?;
        if list["items"].as_array().unwrap().is_empty() { Ok(()) } else { Err(list.to_string()) }
    });
}

/// What was deleted leaves no process, mount, cgroup or file on any device.
fn nothing_is_left(fleet: &mut Fleet) {
    fleet.kubectl().run("delete ds/web cm/web-config");
    for node in ["n1", "n2", "n3"] {
        wait::until(&format!("nothing of a pod is left on {node}"), || {
            let left = fleet.leftovers(node);
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}
