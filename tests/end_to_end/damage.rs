//! A worn card: what a device stored is damaged. Nothing that runs stops for it, and all of it comes again from the hub.

use flotilla_tests::fleet::{Fleet, Road};
use flotilla_tests::{database, wait};

use crate::BINARY;
use crate::story::{self, WEB, by_node, deployment, env, local_pods, pod_pids};

#[test]
fn damaged_rows_stop_nothing_and_come_again() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    fleet.join("n1", &[]);
    let kubectl = fleet.kubectl();
    kubectl.run("wait --for=condition=Ready node/n1 --timeout=60s");
    kubectl.apply(WEB);
    kubectl.apply(&deployment(1, "1"));
    fleet.running_pods("app=web", 1);
    fleet.running_pods("app=shop", 1);
    let local = fleet.local_kubectl("n1");
    local.run("set env ds/web MINE=kept");
    wait::until("the technician's edit runs", || {
        let (_, pod) = fleet.running_pods("app=web", 1).pop_first().unwrap();
        if env(&pod, "MINE") == "kept" { Ok(()) } else { Err(pod.to_string()) }
    });
    let pods = local_pods(&local, 2);
    let pids = pod_pids(&fleet, "n1");
    assert_eq!(pids.len(), 2);

    // Without a hub the running pods are all that is left of what was read.
    fleet.kill_agent("n1");
    assert!(database::damage_items(&fleet.agent_folder("n1")) >= 5);
    fleet.start_agent("n1", &["--hub", "127.0.0.1:1"]);
    local_pods(&local, 1);
    local.run("get pods");
    assert_eq!(pod_pids(&fleet, "n1"), pids, "the DaemonSet's pod is remembered, the placed one is left alone");

    // With one, all of it is there again, and news arrive.
    fleet.stop_agent("n1");
    fleet.start_agent("n1", &[]);
    let again = local_pods(&local, 2);
    assert_eq!(again.keys().collect::<Vec<_>>(), pods.keys().collect::<Vec<_>>());
    assert_eq!(pod_pids(&fleet, "n1"), pids);
    assert!(local.run("get overrides -A").contains("MINE"), "the device's own log restores its overrides");
    kubectl.run("set env ds/web COLOUR=red");
    wait::until("an edit arrives", || {
        let (_, pod) = fleet.running_pods("app=web", 1).pop_first().unwrap();
        if env(&pod, "COLOUR") == "red" && env(&pod, "MINE") == "kept" { Ok(()) } else { Err(pod.to_string()) }
    });
    let restarts = by_node(&fleet, "app=shop", 1);
    assert_eq!(restarts["n1"].1, 0);

    // And once more from its own disk, which is whole again.
    fleet.kill_hub();
    fleet.power_cut("n1");
    fleet.start_agent("n1", &[]);
    local_pods(&local, 2);
}

#[test]
fn a_device_from_an_older_copy_of_its_card_learns_what_it_had_said() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    fleet.join("n1", &[]);
    let kubectl = fleet.kubectl();
    kubectl.run("wait --for=condition=Ready node/n1 --timeout=60s");
    kubectl.apply(WEB);
    fleet.running_pods("app=web", 1);
    let local = fleet.local_kubectl("n1");
    local.run("set env ds/web FIRST=1");
    runs_with(&fleet, &[("FIRST", "1")]);
    fleet.stop_agent("n1");
    let (card, copy) = (fleet.agent_folder("n1").join("device.db"), fleet.folder().join("copy.db"));
    database::copy(&card, &copy);
    // Several boots and a change later ...
    for _ in 0..3 {
        fleet.start_agent("n1", &[]);
        local_pods(&local, 1);
        fleet.stop_agent("n1");
    }
    fleet.start_agent("n1", &[]);
    local_pods(&local, 1);
    local.run("set env ds/web SECOND=2");
    runs_with(&fleet, &[("FIRST", "1"), ("SECOND", "2")]);
    fleet.stop_agent("n1");

    // ... the old card is put in. What the hub heard from it holds again, and what it says now counts.
    database::copy(&copy, &card);
    fleet.start_agent("n1", &[]);
    runs_with(&fleet, &[("FIRST", "1"), ("SECOND", "2")]);
    wait::until("the device holds both overrides", || {
        let all = local.run("get overrides -A");
        if all.contains("FIRST") && all.contains("SECOND") { Ok(()) } else { Err(all) }
    });
    local.run("set env ds/web THIRD=3");
    runs_with(&fleet, &[("FIRST", "1"), ("SECOND", "2"), ("THIRD", "3")]);
    let all = kubectl.run("get overrides -A --no-headers");
    assert_eq!(all.lines().count(), 3, "{all}");
}

/// Waits until the hub shows the one web Pod running with these variables, as the device says it.
fn runs_with(fleet: &Fleet, expected: &[(&str, &str)]) {
    wait::until(&format!("web runs with {expected:?}"), || {
        let pod = fleet.running_pods("app=web", 1).pop_first().unwrap().1;
        let local = local_pods(&fleet.local_kubectl("n1"), 1).pop_first().unwrap().1;
        let holds = expected.iter().all(|(name, value)| env(&pod, name) == *value && env(&local, name) == *value);
        let told = pod["status"]["containerStatuses"][0]["restartCount"]
            == local["status"]["containerStatuses"][0]["restartCount"];
        if holds && told { Ok(()) } else { Err(format!("hub {pod} device {local}")) }
    });
}
