//! What a technician can do at one device, with kubectl and no hub, and what operators see of it afterwards.

use flotilla_tests::fleet::{Containers, Fleet, Road, is_ready};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::wait;
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB, env, local_pods, pod_pids};

#[test]
fn a_technician_changes_one_device() {
    if story::ready_to_run() {
        changes_one_device(Containers::Processes);
    }
}

#[test]
fn a_technician_changes_one_device_with_containers() {
    if story::ready_to_run() && story::containers_are_here() {
        changes_one_device(Containers::Oci);
    }
}

fn changes_one_device(containers: Containers) {
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, containers, 2);
    let kubectl = fleet.kubectl();
    fleet.apply(WEB);
    fleet.running_pods("app=web", 2);
    let other = pod_pids(&fleet, "n2");
    let local = fleet.local_kubectl("n1");

    fleet.stop_hub();
    deleting_a_pod_restarts_it(&fleet, &local);
    deleting_a_workload_holds_it(&fleet, &local);
    what_is_the_hubs(&local);
    local.run("annotate ds/web kubernetes.io/change-cause=too_dark");
    local.run("set env ds/web COLOUR=white");
    local_shows(&local, "COLOUR", "white");

    fleet.start_hub();
    operators_see_and_revert(&fleet, &kubectl, &local);
    assert_eq!(pod_pids(&fleet, "n2"), other, "the other device was touched");
    the_end_of_the_base(&fleet, &kubectl, &local);
}

fn local_shows(local: &Kubectl, name: &str, value: &str) {
    wait::until(&format!("{name}={value} at the device"), || {
        let pods = local.json("get pods")?;
        let right = |pod: &Value| is_ready(pod) && env(pod, name) == value;
        if pods["items"].as_array().unwrap().iter().any(right) { Ok(()) } else { Err(pods.to_string()) }
    });
}

fn deleting_a_pod_restarts_it(fleet: &Fleet, local: &Kubectl) {
    let before = local_pods(local, 1);
    let (name, pod) = before.iter().next().unwrap();
    let pids = pod_pids(fleet, "n1");
    local.run(&format!("delete pod {name} --wait=false"));
    wait::until("another pod in its place", || {
        let pods = local_pods(local, 1);
        let uid = &pods.values().next().unwrap()["metadata"]["uid"];
        if *uid == pod["metadata"]["uid"] { Err(uid.to_string()) } else { Ok(()) }
    });
    wait::until("another process", || {
        let now = pod_pids(fleet, "n1");
        if now.len() == 1 && now != pids { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn deleting_a_workload_holds_it(fleet: &Fleet, local: &Kubectl) {
    local.run("delete ds/web");
    wait::until("the held workload ends", || {
        let rows = local.attempt("get ds,pods -o name")?;
        let pids = pod_pids(fleet, "n1");
        if rows.is_empty() && pids.is_empty() { Ok(()) } else { Err(format!("{rows} {pids:?}")) }
    });
    let applied = local.apply(&fleet.manifest(&WEB[WEB.rfind("---").unwrap()..]));
    assert!(applied.contains("daemonset.apps/web"), "{applied}");
    local_pods(local, 1);
    assert_eq!(pod_pids(fleet, "n1").len(), 1);
}

/// New objects, other devices and facts are not a technician's.
fn what_is_the_hubs(local: &Kubectl) {
    let refused = local.feed("create", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}\n").unwrap_err();
    assert!(refused.contains("Forbidden") && refused.contains("come from the hub"), "{refused}");
    let refused = local.feed("apply", &story::deployment(2, "1")).unwrap_err();
    assert!(refused.contains("Forbidden") && refused.contains("come from the hub"), "{refused}");
    assert_eq!(local.run("get nodes -o name"), "node/n1\n");
    let name = local_pods(local, 1).into_keys().next().unwrap();
    let status = "{\"status\":{\"phase\":\"Failed\"}}";
    let refused = local.attempt(&format!("patch pod {name} --subresource=status --type=merge -p {status}"));
    assert!(refused.unwrap_err().contains("observes"));
    let unknown = local.attempt("set env ds/other A=b").unwrap_err();
    assert!(unknown.contains("NotFound"), "{unknown}");
}

fn operators_see_and_revert(fleet: &Fleet, kubectl: &Kubectl, local: &Kubectl) {
    let list = wait::until("the override at the hub", || {
        let list = kubectl.json("get overrides -A")?;
        let text = list.to_string();
        if text.contains("COLOUR") && text.contains("white") { Ok(list) } else { Err(text) }
    });
    let text = list.to_string();
    assert!(text.contains("technician"), "who did it is missing: {text}");
    assert!(text.contains("blue"), "what it replaced is missing: {text}");
    let described = kubectl.run("describe overrides -A");
    assert!(described.contains("n1") && described.contains("COLOUR"), "{described}");
    wait::until("the effective pod at the hub", || {
        let pods = kubectl.json("get pods -l app=web")?;
        let colours: Vec<(&str, &str)> = pods["items"].as_array().unwrap().iter().map(colour).collect();
        let right = colours.contains(&("n1", "white")) && colours.contains(&("n2", "blue")) && colours.len() == 2;
        if right { Ok(()) } else { Err(format!("{colours:?}")) }
    });
    let names = kubectl.run("get overrides -o name");
    for name in names.lines() {
        kubectl.run(&format!("delete {name}"));
    }
    local_shows(local, "COLOUR", "blue");
    wait::until("no override is left", || {
        let rows = kubectl.attempt("get overrides -A -o name")? + &local.attempt("get overrides -A -o name")?;
        if rows.is_empty() { Ok(()) } else { Err(rows) }
    });
    fleet.running_pods("app=web", 2);
}

fn colour(pod: &Value) -> (&str, &str) {
    (pod["spec"]["nodeName"].as_str().unwrap(), env(pod, "COLOUR"))
}

/// An override does not outlive what it changes, and does not come back with its namesake.
fn the_end_of_the_base(fleet: &Fleet, kubectl: &Kubectl, local: &Kubectl) {
    local.run("set env ds/web COLOUR=green");
    wait::until("the override at the hub", || {
        let rows = kubectl.attempt("get overrides -A -o name")?;
        if rows.is_empty() { Err(rows) } else { Ok(()) }
    });
    kubectl.run("delete ds/web");
    wait::until("nothing of it is left anywhere", || {
        let rows = kubectl.attempt("get overrides,ds,pods -A -o name")?
            + &local.attempt("get overrides,ds,pods -A -o name")?;
        let pids = [pod_pids(fleet, "n1"), pod_pids(fleet, "n2")];
        if rows.is_empty() && pids.iter().all(Vec::is_empty) { Ok(()) } else { Err(format!("{rows} {pids:?}")) }
    });
    fleet.apply(WEB);
    let pods = fleet.running_pods("app=web", 2);
    assert!(pods.values().all(|pod| env(pod, "COLOUR") == "blue"), "{pods:?}");
}
