//! A worn card: what a device stored is damaged. Nothing that runs stops for it, and all of it comes again from the hub.

use flotilla_tests::database::Damage;
use flotilla_tests::fleet::{Fleet, Road};
use flotilla_tests::{database, skip, wait};

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
    fleet.wait_for_node("n1", "Ready=True");
    kubectl.apply(WEB);
    kubectl.apply(&deployment(1, "1"));
    fleet.running_pods("app=web", 1);
    fleet.running_pods("app=shop", 1);
    let local = fleet.local_kubectl("n1");
    local.run("set env ds/web MINE=kept");
    wait::until("the technician's edit runs", || {
        story::process_has(&fleet, "n1", "MINE", "kept")?;
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
    fleet.wait_for_node("n1", "Ready=True");
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

#[test]
fn a_damaged_database_stops_no_pod_and_is_mended() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    fleet.join("n1", &[]);
    let kubectl = fleet.kubectl();
    fleet.wait_for_node("n1", "Ready=True");
    kubectl.apply(WEB);
    kubectl.apply(&deployment(1, "1"));
    fleet.running_pods("app=web", 1);
    fleet.running_pods("app=shop", 1);
    let local = fleet.local_kubectl("n1");
    local.run("set env ds/web MINE=kept");
    web_says(&fleet, "kept");
    local_pods(&local, 2);
    let pids = pod_pids(&fleet, "n1");
    assert_eq!(pids.len(), 2);
    let folder = fleet.agent_folder("n1");
    for (round, how) in [Damage::Header, Damage::Half, Damage::Zeroed, Damage::Emptied].into_iter().enumerate() {
        // Without a hub: what runs goes on, and the device says what happened.
        fleet.kill_agent("n1");
        database::damage(&folder, how);
        fleet.start_agent("n1", &["--hub", "127.0.0.1:1"]);
        wait::until("the device names the damage", || {
            let node = fleet.local_kubectl("n1").json("get node n1")?;
            if condition(&node, "StorageDamaged") { Ok(()) } else { Err(node.to_string()) }
        });
        assert_eq!(pod_pids(&fleet, "n1"), pids, "{how:?}");
        // And again, from what was mended.
        fleet.kill_agent("n1");
        assert_eq!(database::integrity(&folder.join("device.db")), "ok");
        fleet.start_agent("n1", &["--hub", "127.0.0.1:1"]);
        wait::until_true("the local API answers", || fleet.local_kubectl("n1").attempt("get nodes").is_ok());
        assert_eq!(pod_pids(&fleet, "n1"), pids, "{how:?}, a second start");

        // With the hub: everything is there again, and news arrive.
        fleet.stop_agent("n1");
        fleet.start_agent("n1", &[]);
        let value = format!("after-{round}");
        kubectl.run(&format!("patch cm web-config --type=merge -p {{\"data\":{{\"NOTE\":\"{value}\"}}}}"));
        let local = fleet.local_kubectl("n1");
        wait::until("news arrive", || {
            let map = local.json("get cm web-config")?;
            if map["data"]["NOTE"] == value.as_str() { Ok(()) } else { Err(map.to_string()) }
        });
        wait::until("the device's own override is there", || {
            let all = local.attempt("get overrides -A")?;
            if all.contains("MINE") { Ok(()) } else { Err(all) }
        });
        local_pods(&local, 2);
        assert_eq!(pod_pids(&fleet, "n1"), pids, "{how:?}: no pod was restarted");
        wait::until("the hub names the damage", || {
            let node = kubectl.json("get node n1")?;
            if condition(&node, "StorageDamaged") { Ok(()) } else { Err(node.to_string()) }
        });
    }
    assert_eq!(kubectl.run("get overrides -A --no-headers").lines().count(), 1);
    let said = fleet.run(&["agent", "damage", "--data", &folder.to_string_lossy(), "--clear"]).unwrap();
    assert!(said.contains("the database") && said.contains("removed"), "{said}");
    local_pods(&fleet.local_kubectl("n1"), 2);
    wait::until("the condition is over", || {
        let node = kubectl.json("get node n1")?;
        if condition(&node, "StorageDamaged") { Err(node.to_string()) } else { Ok(()) }
    });
    // A write here counts at the hub, under whatever writer.
    fleet.local_kubectl("n1").run("set env ds/web MINE=changed");
    web_says(&fleet, "changed");
}

/// Waits until hub and device show the web Pod running with the technician's value.
fn web_says(fleet: &Fleet, value: &str) {
    wait::until(&format!("web runs with MINE={value}"), || {
        story::process_has(fleet, "n1", "MINE", value)?;
        let pod = fleet.running_pods("app=web", 1).pop_first().unwrap().1;
        let local = local_pods(&fleet.local_kubectl("n1"), 2);
        let here = local.values().any(|pod| env(pod, "MINE") == value);
        if here && env(&pod, "MINE") == value { Ok(()) } else { Err(format!("hub {pod} device {local:?}")) }
    });
}

/// A card of one MiB: the device joins, runs its pods, says no to what has no room, and goes on when there is some.
#[test]
fn a_full_disk_stops_no_pod() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    let folder = fleet.agent_folder("n1");
    std::fs::create_dir(&folder).unwrap();
    let none = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), &folder, Some("tmpfs"), none, Some("size=1m")).is_err() {
        return skip("nothing can be mounted here");
    }
    let mounted = Mounted(folder.clone());
    fleet.join("n1", &[]);
    let kubectl = fleet.kubectl();
    fleet.wait_for_node("n1", "Ready=True");
    kubectl.apply(WEB);
    fleet.running_pods("app=web", 1);
    let local = fleet.local_kubectl("n1");
    local_pods(&local, 1);
    let pids = pod_pids(&fleet, "n1");
    fill(&folder, "filler");

    // Full while it runs, and full at a start.
    for round in 0..2 {
        let refused = local.attempt("set env ds/web MINE=refused").unwrap_err();
        assert!(refused.contains("disk is full"), "{refused}");
        assert_eq!(pod_pids(&fleet, "n1"), pids, "round {round}");
        fleet.kill_agent("n1");
        fill(&folder, &format!("filler-{round}"));
        fleet.start_agent("n1", &[]);
        local_pods(&local, 1);
        assert_eq!(pod_pids(&fleet, "n1"), pids, "round {round}");
    }
    // Room again.
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("filler") {
            std::fs::remove_file(path).unwrap();
        }
    }
    wait::until("a write is taken", || local.attempt("set env ds/web MINE=kept"));
    runs_with(&fleet, &[("MINE", "kept")]);
    assert_eq!(database::integrity(&folder.join("device.db")), "ok");
    drop(fleet);
    drop(mounted);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// Leaves not a byte.
fn fill(folder: &std::path::Path, name: &str) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(folder.join(name)).unwrap();
    for size in [4096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

fn condition(node: &serde_json::Value, kind: &str) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == kind && one["status"] == "True")
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
