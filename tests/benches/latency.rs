//! From the apply to Running: the API request leaves, and the watch event that shows the Pods Running at the hub comes.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flotilla_tests::fleet::{Containers, Fleet, is_ready};
use serde_json::{Value, json};

use crate::api::{Connection, Event, Server};
use crate::commits::{self, Probe, Trace};
use crate::report::{Report, percentile};

/// How long one apply may take before the bench gives up.
const APPLY_MAX: Duration = Duration::from_secs(30);
const SAMPLES: usize = 30;
const TRACED: usize = 12;

/// What is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workload {
    /// One Pod on the first device.
    OneDevice,
    /// One replica, wherever the scheduler puts it.
    Deployment,
    /// One Pod on each device.
    AllDevices,
}

/// Milliseconds from the request's first byte.
#[derive(Debug, Clone, Copy)]
struct Sample {
    answered: f64,
    running: f64,
    /// Seconds since the epoch, to lay traces beside it.
    from: f64,
    /// What one durable commit took right after it.
    commit: f64,
}

/// One bench run's connections.
pub(crate) struct Bench {
    connection: Connection,
    pods: Receiver<Event>,
    devices: usize,
    containers: Containers,
    number: usize,
    probe: Probe,
}

/// Measures applies to the devices of `fleet`, and the share of durable commits in them.
pub(crate) fn measure(fleet: &mut Fleet, devices: usize, report: &mut Report) {
    let mut bench = Bench::of(fleet, devices, Containers::Processes);
    for workload in [Workload::OneDevice, Workload::Deployment, Workload::AllDevices] {
        bench.sample(workload);
    }
    let one = bench.samples(Workload::OneDevice);
    let deployment = bench.samples(Workload::Deployment);
    let all = bench.samples(Workload::AllDevices);
    // One commit beside each apply, so that both meet the same disk and the same load.
    let baseline: Vec<f64> = [&one, &deployment, &all].into_iter().flatten().map(|sample| sample.commit).collect();
    report.spread("one durable commit of 4 KiB (fdatasync)", &baseline, "ms", None);
    let commit = percentile(&baseline, 50.0);
    let running = |samples: &[Sample]| samples.iter().map(|sample| sample.running).collect::<Vec<_>>();
    let answered: Vec<f64> = one.iter().chain(&deployment).map(|sample| sample.answered).collect();
    let both: Vec<f64> = running(&one).into_iter().chain(running(&deployment)).collect();
    report.spread("apply -> answered", &answered, "ms", None);
    report.spread("apply -> Running, DaemonSet on one device", &running(&one), "ms", None);
    report.spread("apply -> Running, Deployment of one replica", &running(&deployment), "ms", None);
    report.spread("apply -> Running, both", &both, "ms", Some(100.0));
    report.spread(&format!("apply -> Running on {devices} devices, DaemonSet"), &running(&all), "ms", None);

    for (workload, plain) in [(Workload::OneDevice, running(&one)), (Workload::Deployment, running(&deployment))] {
        bench.share(fleet, workload, commit, percentile(&plain, 50.0), report);
    }
}

impl Bench {
    pub(crate) fn of(fleet: &Fleet, devices: usize, containers: Containers) -> Self {
        let server = Server::of(&fleet.hub_folder().join("admin.kubeconfig")).unwrap();
        let pods = server.watch("/api/v1/namespaces/default/pods");
        let probe = Probe::beside(fleet.folder());
        Self { connection: server.connect().unwrap(), pods, devices, containers, number: 0, probe }
    }

    /// Milliseconds from the apply of one Pod on the first device to Running.
    pub(crate) fn one(&mut self) -> f64 {
        self.sample(Workload::OneDevice).running
    }

    fn samples(&mut self, workload: Workload) -> Vec<Sample> {
        (0..SAMPLES).map(|_| self.sample(workload)).collect()
    }

    /// Applies a fresh workload, waits until all its Pods are Running at the hub, and removes it again.
    fn sample(&mut self, workload: Workload) -> Sample {
        self.number += 1;
        let name = format!("walk-{}", self.number);
        let (path, body) = manifest(workload, &name, self.containers);
        let wanted = if workload == Workload::AllDevices { self.devices } else { 1 };
        let from = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let answer = self.connection.request("POST", path, "application/json", Some(&body));
        let mut running: Vec<String> = Vec::new();
        let mut seen = answer.sent;
        while running.len() < wanted {
            let event = self.next(&name, answer.sent);
            let uid = event.object["metadata"]["uid"].as_str().unwrap().to_owned();
            if event.kind != "DELETED" && is_ready(&event.object) && !running.contains(&uid) {
                running.push(uid);
                seen = event.seen;
            }
        }
        let gone = Instant::now();
        self.connection.request("DELETE", &format!("{path}/{name}"), "", None);
        let mut left = wanted;
        while left > 0 {
            left -= usize::from(self.next(&name, gone).kind == "DELETED");
        }
        commits::pause();
        let ms = |until: Instant| (until - answer.sent).as_secs_f64() * 1000.0;
        Sample { answered: ms(answer.answered), running: ms(seen), from, commit: self.probe.commit_ms() }
    }

    /// The next event of a Pod of this workload.
    fn next(&self, name: &str, since: Instant) -> Event {
        loop {
            let left = APPLY_MAX.saturating_sub(since.elapsed());
            let event = self.pods.recv_timeout(left).unwrap_or_else(|error| panic!("{name}: {error} within 30 s"));
            if event.object["metadata"]["labels"]["app"] == name {
                return event;
            }
        }
    }

    /// Counts the commits of hub and device between apply and Running, and what share of the time they are.
    fn share(&mut self, fleet: &mut Fleet, workload: Workload, commit: f64, plain: f64, report: &mut Report) {
        let folder = fleet.folder().to_owned();
        let mut pids = vec![fleet.hub().pid()];
        pids.extend((1..=self.devices).map(|number| fleet.agent(&format!("n{number}")).pid()));
        let attach = |(at, pid): (usize, &i32)| Trace::attach(*pid, &folder.join(format!("{workload:?}-{at}.trace")));
        let traces: Vec<Option<Trace>> = pids.iter().enumerate().map(attach).collect();
        if traces.iter().any(Option::is_none) {
            crate::say("SKIPPED: commits are not counted: strace is missing or may not attach");
            traces.into_iter().flatten().for_each(|trace| drop(trace.detach()));
            return;
        }
        let samples: Vec<Sample> = (0..TRACED).map(|_| self.sample(workload)).collect();
        let seen: Vec<Vec<commits::Commit>> = traces.into_iter().flatten().map(Trace::detach).collect();
        let mut all: Vec<commits::Commit> = seen.iter().flatten().copied().collect();
        all.sort_by(|one, other| one.begun.total_cmp(&other.begun));
        let median = |value: &dyn Fn(&Sample) -> f64| percentile(&samples.iter().map(value).collect::<Vec<_>>(), 50.0);
        let until = |sample: &Sample| sample.from + sample.running / 1000.0;
        let count =
            |of: &[commits::Commit], sample: &Sample| commits::begun_within(of, sample.from, until(sample)) as f64;
        let (hub, devices) = seen.split_first().unwrap();
        let devices: Vec<commits::Commit> = devices.iter().flatten().copied().collect();
        let what = if workload == Workload::Deployment { "Deployment" } else { "DaemonSet" };
        let (at_hub, at_device) = (median(&|sample| count(hub, sample)), median(&|sample| count(&devices, sample)));
        report.add(&format!("{what}: commits at the hub, p50 of {TRACED}"), at_hub, "commits");
        report.add(&format!("{what}: commits at devices and shims, p50 of {TRACED}"), at_device, "commits");
        let sum = (at_hub + at_device) * commit;
        report.add(&format!("{what}: commits x fdatasync p50, as if in a row"), sum, "ms");
        report.add(&format!("{what}: that, of apply -> Running p50"), sum / plain * 100.0, "%");
        let traced = |sample: &Sample| commits::covered(&all, sample.from, until(sample)) * 1e5 / sample.running;
        report.add(&format!("{what}: time with a commit under way, traced, p50"), median(&traced), "%");
        report.add(&format!("{what}: apply -> Running p50 under strace"), median(&|sample| sample.running), "ms");
    }
}

fn manifest(workload: Workload, name: &str, containers: Containers) -> (&'static str, Value) {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "busybox", "command": ["/bin/sleep", "3600"]}],
        }},
    });
    if containers == Containers::Processes {
        let pod = &mut spec["template"]["spec"];
        pod["runtimeClassName"] = json!("process");
        pod["containers"][0]["image"] = json!("host");
    }
    let (path, kind) = match workload {
        Workload::Deployment => {
            spec["replicas"] = json!(1);
            ("/apis/apps/v1/namespaces/default/deployments", "Deployment")
        }
        Workload::OneDevice | Workload::AllDevices => ("/apis/apps/v1/namespaces/default/daemonsets", "DaemonSet"),
    };
    if workload == Workload::OneDevice {
        spec["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    }
    (path, json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}))
}
