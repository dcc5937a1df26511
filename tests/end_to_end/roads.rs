//! Roads and their load: from QUIC to MQTT to nothing and back by itself, and large values beside small changes.
#![allow(clippy::disallowed_methods, reason = "a story waits in real time, and tells how long")]

use std::time::{Duration, Instant};

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::relay::Relay;
use flotilla_tests::wait;
use serde_json::{Value, json};

use crate::BINARY;
use crate::story::{self, WEB, by_node, pod_pids};

/// The road the hub shows for the device.
fn road(fleet: &Fleet) -> Result<String, String> {
    let node = fleet.kubectl().json("get node n1")?;
    Ok(node["metadata"]["annotations"]["flotilla.dev/road"].as_str().unwrap_or("none").to_owned())
}

fn wait_for_road(fleet: &Fleet, wanted: &str) {
    wait::until(&format!("the device is in contact by {wanted}"), || {
        let road = road(fleet)?;
        if road.starts_with(wanted) { Ok(()) } else { Err(road) }
    });
}

/// Sets a variable at the hub and waits until the device's pod was made anew with it.
fn change_arrives(fleet: &Fleet, value: &str) {
    fleet.kubectl().run(&format!("set env ds/web COLOUR={value}"));
    wait::until(&format!("the device runs COLOUR={value}"), || {
        story::process_has(fleet, "n1", "COLOUR", value)?;
        let pods = fleet.local_kubectl("n1").json("get pods -A -l app=web")?;
        let told = fleet.kubectl().json("get pods -l app=web")?;
        let restarts = |pods: &Value| pods["items"][0]["status"]["containerStatuses"][0]["restartCount"].clone();
        let here = &pods["items"][0];
        let right = story::env(here, "COLOUR") == value && flotilla_tests::fleet::is_ready(here);
        if right && restarts(&pods) == restarts(&told) { Ok(()) } else { Err(format!("{pods} {told}")) }
    });
}

fn fleet_behind(relay: &mut Option<Relay>, road: Road) -> Fleet {
    let mut fleet = Fleet::start_with(BINARY, road, Containers::Processes, &[]);
    let started = Relay::start(fleet.quic());
    let address = started.address().to_string();
    *relay = Some(started);
    fleet.join("n1", &["--hub", &address]);
    fleet.wait_for_node("n1", "Ready");
    fleet
}

#[test]
fn a_device_takes_the_best_road_there_is_and_no_workload_notices() {
    if !story::ready_to_run() || !story::broker_is_here() {
        return;
    }
    let mut relay = None;
    let mut fleet = fleet_behind(&mut relay, Road::Both);
    let relay = relay.unwrap();
    wait_for_road(&fleet, "quic");
    fleet.kubectl().apply(WEB);
    by_node(&fleet, "app=web", 1);
    change_arrives(&fleet, "green");

    // UDP is blocked without a word, and the device has something to say.
    let before = by_node(&fleet, "app=web", 1);
    let pids = pod_pids(&fleet, "n1");
    relay.block(true);
    let blocked = Instant::now();
    fleet.local_kubectl("n1").run("label daemonset web note=here --overwrite");
    wait_for_road(&fleet, "mqtt");
    flotilla_tests::say(&format!("from QUIC to MQTT after {:.1} s", blocked.elapsed().as_secs_f64()));
    assert!(blocked.elapsed() < Duration::from_secs(60), "{:?}", blocked.elapsed());
    assert_eq!(by_node(&fleet, "app=web", 1), before);
    assert_eq!(pod_pids(&fleet, "n1"), pids, "no workload notices");
    change_arrives(&fleet, "yellow");

    // Nothing is left: the device waits, and a change with it.
    let pids = pod_pids(&fleet, "n1");
    fleet.kill_broker();
    wait_for_road(&fleet, "none");
    fleet.kubectl().run("set env ds/web COLOUR=red");
    assert_eq!(pod_pids(&fleet, "n1"), pids);

    // UDP is back.
    relay.block(false);
    let opened = Instant::now();
    wait_for_road(&fleet, "quic");
    flotilla_tests::say(&format!("from nothing to QUIC after {:.1} s", opened.elapsed().as_secs_f64()));
    change_arrives(&fleet, "red");

    // And once more, with the broker there: the better road is looked for although the worse one serves.
    let pids = pod_pids(&fleet, "n1");
    fleet.start_broker();
    relay.block(true);
    fleet.local_kubectl("n1").run("label daemonset web note=again --overwrite");
    wait_for_road(&fleet, "mqtt");
    relay.block(false);
    let opened = Instant::now();
    wait_for_road(&fleet, "quic");
    flotilla_tests::say(&format!("from MQTT back to QUIC after {:.1} s", opened.elapsed().as_secs_f64()));
    assert_eq!(pod_pids(&fleet, "n1"), pids);
    let node = fleet.kubectl().json("get node n1").unwrap();
    assert_eq!(node["metadata"]["annotations"]["flotilla.dev/sync"], "synced");
}

/// Text that does not compress.
fn incompressible(bytes: usize, seed: u64) -> String {
    let mut state = seed | 1;
    let mut text = String::with_capacity(bytes);
    for _ in 0..bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b'!' + u8::try_from(state % 90).unwrap()));
    }
    text
}

const BIG: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: reader}
spec:
  selector: {matchLabels: {app: reader}}
  template:
    metadata: {labels: {app: reader}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: reader
        image: host
        command: [/bin/sh, -c, 'while :; do sleep 1; done']
        env:
        - name: SMALL
          valueFrom: {configMapKeyRef: {name: big, key: small}}
"#;

fn big(text: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"small": "s", "large": text}})
        .to_string()
}

/// The large value as the device holds it in force.
fn held(fleet: &Fleet) -> Result<String, String> {
    let map = fleet.local_kubectl("n1").json("get configmap big")?;
    Ok(map["data"]["large"].as_str().unwrap_or_default().to_owned())
}

fn wait_for_value(fleet: &Fleet, what: &str, value: &str) {
    wait::until(what, || if held(fleet)? == value { Ok(()) } else { Err("another value".to_owned()) });
}

#[test]
fn large_values_come_over_mqtt_too() {
    if !story::ready_to_run() || !story::broker_is_here() {
        return;
    }
    let fleet = Fleet::with_agents(BINARY, Road::Mqtt, Containers::Processes, 1);
    let value = incompressible(1_000_000, 3);
    fleet.kubectl().feed("create", &big(&value)).unwrap();
    fleet.kubectl().apply(BIG);
    wait_for_value(&fleet, "the large value is at the device", &value);
    by_node(&fleet, "app=reader", 1);
}

/// 1 MB over a link of 500 kbit/s, which takes 16 s.
#[test]
fn a_small_change_overtakes_a_large_value() {
    if !story::ready_to_run() {
        return;
    }
    let mut relay = None;
    let mut fleet = fleet_behind(&mut relay, Road::Quic);
    let relay = relay.unwrap();
    let kubectl = fleet.kubectl();
    let (first, second) = (incompressible(1_000_000, 1), incompressible(1_000_000, 2));
    kubectl.feed("create", &big(&first)).unwrap();
    kubectl.apply(BIG);
    kubectl.apply(WEB);
    by_node(&fleet, "app=reader", 1);
    wait_for_value(&fleet, "the large value is at the device", &first);
    by_node(&fleet, "app=web", 1);
    let pids = pod_pids(&fleet, "n1");

    relay.slow_down(62_500);
    let before = relay.down();
    let started = Instant::now();
    kubectl.feed("replace", &big(&second)).unwrap();
    wait::until_true("the large value is on its way", || relay.down() > before + 50_000);
    let sync = |fleet: &Fleet| fleet.kubectl().json("get node n1").unwrap()["metadata"]["annotations"].clone();
    let said = wait::until("the hub shows what the device waits for", || {
        let said = sync(&fleet)["flotilla.dev/sync"].clone();
        if said == "waits for values" || started.elapsed() > Duration::from_secs(15) {
            Ok(said)
        } else {
            Err(said.to_string())
        }
    });
    assert_eq!(said, "waits for values");

    let changed = Instant::now();
    kubectl.run("label daemonset web note=small --overwrite");
    wait::until("the small change is at the device", || {
        let web = fleet.local_kubectl("n1").json("get daemonset web")?;
        if web["metadata"]["labels"]["note"] == "small" { Ok(()) } else { Err(web["metadata"].to_string()) }
    });
    let small = changed.elapsed();
    assert_eq!(held(&fleet).unwrap(), first, "until it is whole, the old one is in force");

    // A power cut of the agent alone, in the middle: what came is not asked for again, and the old value is still in force.
    fleet.kill_agent("n1");
    let address = relay.address().to_string();
    fleet.start_agent("n1", &["--hub", &address]);
    wait_for_value(&fleet, "the old value after a kill", &first);
    wait_for_value(&fleet, "the new large value", &second);
    let (large, bytes) = (started.elapsed(), relay.down() - before);
    flotilla_tests::say(&format!(
        "1 MB over 500 kbit/s: the small change took {:.2} s, the large value {:.1} s and {bytes} bytes with a kill in between",
        small.as_secs_f64(),
        large.as_secs_f64()
    ));
    assert!(small < Duration::from_secs(6), "{small:?}");
    assert!(bytes < 1_400_000, "{bytes}");
    assert_eq!(pod_pids(&fleet, "n1"), pids, "no workload is restarted");
    let documents = flotilla_tests::database::largest_document(&fleet.hub_folder());
    assert!(documents < 4096, "the document holds a digest: {documents} bytes");
    let refused = fleet.local_kubectl("n1").feed("replace", &big(&incompressible(1_000_000, 5))).unwrap_err();
    assert!(refused.contains("at most 960 KiB can be changed at a device"), "{refused}");
    wait::until("all is there, says the hub", || {
        let said = sync(&fleet)["flotilla.dev/sync"].clone();
        if said == "synced" { Ok(()) } else { Err(said.to_string()) }
    });
}
