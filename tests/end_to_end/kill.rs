//! Story h: `kill -9` of hub and agents at random moments while kubectl writes. What was acknowledged is there afterwards, no
//! database is damaged, everyone converges, nothing is left running beside what should run.
//!
//! `FLOTILLA_TEST_SEED` repeats the choices of a run; the moments are those of the machine.
#![allow(clippy::print_stdout, reason = "the seed and what was done, for whoever has to repeat a failure")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use flotilla_tests::database::integrity;
use flotilla_tests::fleet::{Fleet, Road, is_ready};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::{process, wait};
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, env, pod_pids};

/// The longest between the last return and the next kill.
const MOMENT_MS_MAX: u64 = 700;

const COUNTER: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: ledger}
data: {first: "yes"}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: counter}
spec:
  updateStrategy: {rollingUpdate: {maxUnavailable: 2}}
  selector: {matchLabels: {app: counter}}
  template:
    metadata: {labels: {app: counter}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: host
        command: [/bin/sh, -c, 'echo "$COUNT" MARK; while :; do sleep 1; done']
        env:
        - {name: COUNT, value: "0"}
        - name: FIRST
          valueFrom: {configMapKeyRef: {name: ledger, key: first}}
"#;

/// SplitMix64: choices that a seed repeats.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn seeded() -> Self {
        let given = std::env::var("FLOTILLA_TEST_SEED").ok();
        let seed = match given {
            Some(text) => text.parse().expect("FLOTILLA_TEST_SEED is a number"),
            None => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        };
        println!("FLOTILLA_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What the writer knows.
#[derive(Default)]
struct Ledger {
    /// Entries the hub said yes to.
    acknowledged: BTreeMap<String, String>,
    /// The last count the hub said yes to.
    count: u32,
    /// The last value that the device n1 said yes to, of a change of its own.
    local: u32,
    refused: u32,
}

impl Ledger {
    fn with(mut self, other: Self) -> Self {
        self.acknowledged.extend(other.acknowledged);
        let (count, local) = (self.count.max(other.count), self.local.max(other.local));
        Self { count, local, refused: self.refused + other.refused, ..self }
    }
}

/// How far the writers are, and whether they are to stop.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    acknowledged: AtomicU32,
    local: AtomicU32,
}

impl Progress {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Writes until told to stop: entries of a ConfigMap; the first writer now and then the count that every device runs.
fn write(writer: u32, kubectl: &Kubectl, progress: &Progress) -> Ledger {
    let mut ledger = Ledger::default();
    for number in (1_u32..).take_while(|_| progress.goes_on()) {
        let (key, value) = (format!("entry-{writer}-{number}"), format!("value-{number}"));
        let counts = writer == 0 && number % 4 == 0;
        let line = if counts {
            format!("set env ds/counter COUNT={number}")
        } else {
            format!("patch cm ledger --type=merge -p {{\"data\":{{\"{key}\":\"{value}\"}}}}")
        };
        match kubectl.attempt(&line) {
            Ok(_) if counts => ledger.count = number,
            Ok(_) => {
                ledger.acknowledged.insert(key, value);
                progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => ledger.refused += 1,
        }
    }
    ledger
}

/// Writes at the device itself, as a technician there would.
fn write_at_device(local: &Kubectl, progress: &Progress) -> Ledger {
    let mut ledger = Ledger::default();
    for number in (1_u32..).take_while(|_| progress.goes_on()) {
        match local.attempt(&format!("set env ds/counter LOCAL={number}")) {
            Ok(_) => {
                ledger.local = number;
                progress.local.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => ledger.refused += 1,
        }
    }
    ledger
}

#[test]
fn nothing_acknowledged_is_lost_by_killing() {
    if story::ready_to_run() {
        kill_while_writing(Road::Quic, 20);
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_killing_the_broker_too() {
    if story::ready_to_run() && story::broker_is_here() {
        kill_while_writing(Road::Mqtt, 10);
    }
}

fn kill_while_writing(road: Road, kills: u32) {
    let mut dice = Dice::seeded();
    // Logs so short that devices come back behind their floor: killing a catch-up by snapshot is part of it.
    let mut fleet = Fleet::start(BINARY, road, &["--log-records-max", "16"]);
    for node in ["n1", "n2"] {
        fleet.join(node, &[]);
        fleet.wait_for_node(node, "Ready=True");
    }
    let kubectl = fleet.kubectl();
    // The folder's name in the shells' command lines tells them from those of other tests.
    kubectl.apply(&COUNTER.replace("MARK", &fleet.folder().to_string_lossy()));
    fleet.running_pods("app=counter", 2);

    let progress = Progress::default();
    let ledger = std::thread::scope(|scope| {
        let (kubectl, progress) = (&kubectl, &progress);
        let local = fleet.local_kubectl("n1");
        let mut writers: Vec<_> = (0..3).map(|writer| scope.spawn(move || write(writer, kubectl, progress))).collect();
        writers.push(scope.spawn(move || write_at_device(&local, progress)));
        // Ends the writers also when a step of this thread fails.
        let ended = Ending(&progress.stop);
        for number in 0..kills {
            let before = progress.acknowledged.load(Ordering::Relaxed);
            wait::until_true("more writes are acknowledged", || {
                progress.acknowledged.load(Ordering::Relaxed) >= before + 2
            });
            kill_somebody(&mut fleet, &mut dice, road, number);
        }
        wait::until_true("the device takes writes too", || progress.local.load(Ordering::Relaxed) >= 3);
        drop(ended);
        writers.into_iter().map(|writer| writer.join().unwrap()).fold(Ledger::default(), Ledger::with)
    });
    let Ledger { acknowledged, count, local, refused } = &ledger;
    println!("{} entries acknowledged, {refused} writes refused, count {count}, local {local}", acknowledged.len());
    nothing_is_lost(&kubectl, &ledger);
    let n1 = fleet.local_kubectl("n1");
    let kept = wait::until("n1 answers after its last death", || n1.json("get ds counter"));
    let local: u32 = env(&kept["spec"]["template"], "LOCAL").parse().unwrap();
    assert!(local >= ledger.local, "the device acknowledged {} and has {local}", ledger.local);
    all_converge(&fleet, &kubectl, &local.to_string());
    nothing_leaks(&fleet);

    for node in ["n1", "n2"] {
        fleet.kill_agent(node);
    }
    fleet.kill_hub();
    let databases = [fleet.hub_folder().join("hub.sqlite"), fleet.agent_folder("n1").join("device.db")];
    for path in databases.into_iter().chain([fleet.agent_folder("n2").join("device.db")]) {
        assert_eq!(integrity(&path), "ok", "{}", path.display());
    }
}

/// Sets its flag when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills hub, agents or both at some moment, and starts them again at once.
fn kill_somebody(fleet: &mut Fleet, dice: &mut Dice, road: Road, number: u32) {
    std::thread::park_timeout(Duration::from_millis(dice.below(MOMENT_MS_MAX)));
    if road == Road::Mqtt && dice.below(3) == 0 {
        println!("kill {number}: the broker");
        fleet.kill_broker();
        return fleet.start_broker();
    }
    let choice = dice.below(7);
    let agents: &[&str] = match choice {
        0 | 1 => &[],
        2 => &["n1"],
        3 | 6 => &["n2"],
        _ => &["n1", "n2"],
    };
    let hub = matches!(choice, 0 | 1 | 5);
    let power = choice == 6;
    println!("kill {number}: hub {hub}, agents {agents:?}{}", if power { ", with shims and pods" } else { "" });
    if hub {
        fleet.kill_hub();
    }
    for node in agents {
        if power {
            fleet.power_cut(node);
        } else {
            fleet.kill_agent(node);
        }
    }
    for node in agents {
        fleet.start_agent(node, &[]);
    }
    if hub {
        fleet.start_hub();
    }
}

fn nothing_is_lost(kubectl: &Kubectl, ledger: &Ledger) {
    let there = kubectl.json("get cm ledger").unwrap();
    let lost: Vec<_> = ledger.acknowledged.iter().filter(|(key, value)| there["data"][key] != ***value).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let set = kubectl.json("get ds counter").unwrap();
    let count: u32 = env_of_template(&set).parse().unwrap();
    assert!(count >= ledger.count, "count {} was acknowledged, {count} is there", ledger.count);
    for line in ["get all -A", "get cm,secrets,sa,nodes,ns,events,controllerrevisions,runtimeclasses,overrides -A"] {
        kubectl.run(line);
    }
}

fn env_of_template(set: &Value) -> &str {
    env(&set["spec"]["template"], "COUNT")
}

/// One more write reaches everyone, and every side shows the same; what was changed at n1 is there alone.
fn all_converge(fleet: &Fleet, kubectl: &Kubectl, local: &str) {
    kubectl.run("set env ds/counter COUNT=1000000");
    let right = |list: &Value, count: usize| {
        let pods = list["items"].as_array().unwrap();
        let own = |pod: &Value| if pod["spec"]["nodeName"] == "n1" { local.to_owned() } else { String::new() };
        let one = |pod: &Value| env(pod, "COUNT") == "1000000" && env(pod, "LOCAL") == own(pod);
        pods.len() == count && pods.iter().all(|pod| is_ready(pod) && one(pod))
    };
    wait::until("both devices run the last count, at the hub", || {
        let list = kubectl.json("get pods -A")?;
        if right(&list, 2) { Ok(()) } else { Err(list.to_string()) }
    });
    kubectl.run("rollout status ds/counter --timeout=120s");
    let ledger = kubectl.json("get cm ledger").unwrap();
    for node in ["n1", "n2"] {
        let local = fleet.local_kubectl(node);
        wait::until(&format!("{node} shows the same"), || {
            let list = local.json("get pods -A")?;
            let config = local.json("get cm ledger")?;
            let same = config["data"] == ledger["data"] && right(&list, 1);
            if same { Ok(()) } else { Err(format!("{list} {config}")) }
        });
    }
}

/// One shim and one shell on each device, and one folder of a pod.
fn nothing_leaks(fleet: &Fleet) {
    for node in ["n1", "n2"] {
        let folder = fleet.agent_folder(node).join("pods");
        wait::until(&format!("one pod of {node} and nothing beside it"), || {
            let table = process::table();
            let name = folder.to_string_lossy();
            let shims = table.iter().filter(|row| row.command.contains(&*name)).count();
            let pods = pod_pids(fleet, node).len();
            let folders = std::fs::read_dir(&folder).map_or(0, Iterator::count);
            let said = format!("{shims} shims, {pods} shells, {folders} folders");
            if (shims, pods, folders) == (1, 1, 1) { Ok(()) } else { Err(said) }
        });
    }
    let mark = format!("echo \"$COUNT\" {}", fleet.folder().display());
    // What a shell is about to start bears its name for a moment; a shell without a shim stays.
    wait::until("two shells, none of them without a shim", || {
        let shells: Vec<_> = process::table().into_iter().filter(|row| row.command.contains(&mark)).collect();
        if shells.len() == 2 { Ok(()) } else { Err(format!("{shells:?}")) }
    });
}
