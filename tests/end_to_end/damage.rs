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
