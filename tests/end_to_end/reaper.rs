//! Story h with real containers: a hundred random deaths of hub, agents, shims, containers and whole devices. Afterwards exactly
//! what is desired runs, and nothing is left of what ran before.
//!
//! `FLOTILLA_TEST_SEED` repeats the choices of a run; the moments are those of the machine.
#![allow(clippy::print_stdout, reason = "the seed and what was done, for whoever has to repeat a failure")]

use std::collections::BTreeMap;

use flotilla_tests::fleet::{Containers, Fleet, Road, is_ready};
use flotilla_tests::{process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::BINARY;
use crate::kill::Dice;
use crate::story::{self, env, pod_pids};

const ROUNDS: u32 = 10;
const KILLS_PER_ROUND: u32 = 10;
const NODES: [&str; 2] = ["n1", "n2"];
/// One of the DaemonSet, two of the Deployment.
const PODS_PER_NODE: usize = 3;

const WORKLOADS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {motd: "hello"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {key: "swordfish"}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: watch}
spec:
  updateStrategy: {rollingUpdate: {maxUnavailable: 2}}
  selector: {matchLabels: {app: watch}}
  template:
    metadata: {labels: {app: watch, of: reaper}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: host
        # Without its volumes it would end, and never be ready.
        command: [/bin/sh, -c, 'cat /settings/motd /keys/key && touch /scratch/x && while :; do sleep 1; done']
        env: [{name: ROUND, value: "0"}]
        resources: {limits: {memory: 64Mi}}
        volumeMounts:
        - {name: scratch, mountPath: /scratch}
        - {name: settings, mountPath: /settings}
        - {name: keys, mountPath: /keys}
      volumes:
      - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
      - {name: settings, configMap: {name: settings}}
      - {name: keys, secret: {secretName: keys}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 4
  strategy: {rollingUpdate: {maxUnavailable: 2, maxSurge: 0}}
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop, of: reaper}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: host
        command: [/bin/sh, -c, 'while :; do sleep 1; done']
        env: [{name: ROUND, value: "0"}]
"#;

/// Who dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Hub,
    Agent,
    Shim,
    Container,
    /// A reboot: everything of the device at once, mounts and cgroups with it.
    Device,
    /// Agent, shims and containers, but mounts and cgroups stay: an out-of-memory killer gone wild.
    Processes,
}

#[test]
fn a_hundred_deaths_leave_exactly_what_is_desired() {
    if !story::ready_to_run() || !story::containers_are_here() {
        return;
    }
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Oci, NODES.len());
    fleet.apply(WORKLOADS);
    as_desired(&fleet, 0);
    for round in 1..=ROUNDS {
        for _ in 0..KILLS_PER_ROUND {
            strike(&mut fleet, &mut dice);
        }
        // New definitions also end the back-off of containers that were killed again and again.
        let kubectl = fleet.kubectl();
        kubectl.run(&format!("set env ds/watch deploy/shop ROUND={round}"));
        as_desired(&fleet, round);
        println!("round {round}: as desired");
    }
    fleet.kubectl().run("delete ds/watch deploy/shop cm/settings secret/keys");
    for node in NODES {
        wait::until(&format!("nothing is left on {node}"), || {
            let left = fleet.leftovers(node);
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

fn strike(fleet: &mut Fleet, dice: &mut Dice) {
    use Victim::{Agent, Container, Device, Hub, Processes, Shim};
    let victims = [Hub, Agent, Agent, Shim, Shim, Container, Container, Device, Processes];
    let victim = victims[usize::try_from(dice.below(9)).unwrap()];
    let node = NODES[usize::try_from(dice.below(2)).unwrap()];
    let choice = usize::try_from(dice.below(1 << 20)).unwrap();
    println!("{victim:?} of {node}");
    match victim {
        Hub => {
            fleet.kill_hub();
            fleet.start_hub();
        }
        Agent => fleet.kill_agent(node),
        Device => fleet.reboot(node),
        Processes => fleet.power_cut(node),
        Shim => kill_one(&shims(fleet, node), choice),
        Container => kill_one(&pod_pids(fleet, node), choice),
    }
    if matches!(victim, Agent | Device | Processes) {
        fleet.start_agent(node, &[]);
    }
}

/// One of them, if any is there at this moment.
fn kill_one(pids: &[i32], choice: usize) {
    if let Some(pid) = pids.get(choice % pids.len().max(1)) {
        // It may have ended by itself in between: a restart is under way all the time.
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
}

fn shims(fleet: &Fleet, node: &str) -> Vec<i32> {
    let mark = format!("shim --dir {}", fleet.agent_folder(node).join("pods").display());
    process::table().iter().filter(|row| row.command.contains(&mark)).map(|row| row.pid).collect()
}

/// Every Pod of this round runs, at the hub and in truth, and there is nothing beside them.
fn as_desired(fleet: &Fleet, round: u32) {
    let kubectl = fleet.kubectl();
    let wanted = round.to_string();
    let per_node = wait::until(&format!("all pods of round {round}"), || {
        let list = kubectl.json("get pods -l of=reaper")?;
        let pods = list["items"].as_array().unwrap();
        let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
        for pod in pods {
            *per_node.entry(pod["spec"]["nodeName"].as_str().unwrap_or("nowhere").to_owned()).or_default() += 1;
        }
        let right = pods.len() == NODES.len() * PODS_PER_NODE
            && pods.iter().all(|pod| is_ready(pod) && env(pod, "ROUND") == wanted);
        if right { Ok(per_node) } else { Err(kubectl.attempt("get pods -o wide")?) }
    });
    for node in NODES {
        let pods = per_node.get(node).copied().unwrap_or(0);
        wait::until(&format!("{pods} shims, containers and folders on {node}"), || {
            let folders = std::fs::read_dir(fleet.agent_folder(node).join("pods")).map_or(0, Iterator::count);
            let found = (shims(fleet, node).len(), pod_pids(fleet, node).len(), folders);
            if found == (pods, pods, pods) { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
}
