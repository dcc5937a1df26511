//! A document whose history was thrown away many times while a device was gone: it comes back to the newest state in one list, and what
//! its technician changed meanwhile stands on top.

use flotilla_sync::channel::{Item, ItemKind};
use flotilla_tests::database::{device_item, hub_history, log_floor};
use flotilla_tests::fleet::{Fleet, Road};
use flotilla_tests::wait;

use crate::BINARY;
use crate::story::{self, WEB, env, local_pods, pod_pids};

const EPOCHS: i64 = 12;

/// Text that does not compress.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                [usize::try_from((state >> 40) % 62).unwrap()],
        )
    };
    (0..4000).map(|_| next()).collect()
}

#[test]
fn a_device_that_was_away_for_many_epochs_comes_back_in_one_list() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Quic, &["--log-records-max", "8"]);
    fleet.join("n1", &[]);
    fleet.wait_for_node("n1", "Ready=True");
    let kubectl = fleet.kubectl();
    kubectl.apply(WEB);
    fleet.running_pods("app=web", 1);
    let uid = kubectl.json("get ds web").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    fleet.stop_agent("n1");
    fleet.start_agent("n1", &["--hub", "127.0.0.1:1"]);
    let local = fleet.local_kubectl("n1");
    local_pods(&local, 1);
    let before = pod_pids(&fleet, "n1");
    local.run("set env ds/web COLOUR=red");
    // The Pod says what it is to be at once, and is it when its process is another.
    let pids = wait::until("the technician's edit runs", || {
        let pods = local_pods(&local, 1);
        let red = env(pods.values().next().unwrap(), "COLOUR") == "red";
        let pids = pod_pids(&fleet, "n1");
        if red && pids.len() == 1 && pids != before { Ok(pids) } else { Err(format!("{pids:?} {pods:?}")) }
    });

    let hub = fleet.hub_folder();
    let mut round = 0;
    while hub_history(&hub, &uid).epoch <= EPOCHS {
        round += 1;
        let (one, two) = (noise(round), noise(round + 1_000_000));
        kubectl.run(&format!("annotate ds/web --overwrite one={one} two={two} round={round}"));
        assert!(round < 200, "the document does not begin anew");
    }
    assert!(log_floor(&hub, "fleet/default") > 0, "the hub still has the log");
    let kept = hub_history(&hub, &uid);
    assert!(kept.state.len() < 64 * 1024, "{} bytes", kept.state.len());

    fleet.stop_agent("n1");
    fleet.start_agent("n1", &[]);
    wait::until("the device is where the hub is", || {
        let shown = local.json("get ds web")?;
        let there = &shown["metadata"]["annotations"]["round"];
        if there.as_str() == Some(&*round.to_string()) { Ok(()) } else { Err(format!("round {there} of {round}")) }
    });
    let item = device_item(&fleet.agent_folder("n1"), &uid).unwrap();
    let ItemKind::Document(document) = Item::decode(&item.into()).unwrap().kind else { panic!("no document") };
    assert_eq!(document.epoch, kept.epoch.cast_unsigned());
    wait::until("the hub shows the override, and the Pod as it runs", || {
        let all = kubectl.attempt("get overrides -A --no-headers")?;
        let pod = fleet.running_pods("app=web", 1).pop_first().unwrap().1;
        if all.lines().count() == 1 && env(&pod, "COLOUR") == "red" { Ok(()) } else { Err(format!("{all} {pod}")) }
    });
    local_pods(&local, 1);
    assert_eq!(pod_pids(&fleet, "n1"), pids, "the return restarted the pod");
    kubectl.run("rollout status ds/web --timeout=120s");
}
