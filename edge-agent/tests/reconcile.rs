//! The whole loop of a device's pods with real processes: plan, persist, carry out, observe, and again.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flotilla_agent::executor::{Done, Executor};
use flotilla_agent::logs;
use flotilla_agent::probe::{ProbeReport, ProbeRunner};
use flotilla_agent::reconcile::{Deletion, DesiredPod, DesiredPods, History, Observed, Place, Plan, plan};
use flotilla_agent::runtime::shims::ShimRuntime;
use flotilla_agent::runtime::{Runtime, RuntimeEvent};
use flotilla_agent::shim::files;
use flotilla_agent::shim::proc_table::{self, Family};
use flotilla_agent::volume::VolumeStore;
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::LogRequest;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(20);

struct Device {
    folder: tempfile::TempDir,
    uid: String,
    desired: DesiredPods,
    history: History,
    runtime: Arc<ShimRuntime>,
    executor: Executor<ShimRuntime>,
    probes: ProbeRunner<ShimRuntime>,
    events: mpsc::Receiver<RuntimeEvent>,
    done: mpsc::Receiver<Done>,
    reports: mpsc::Receiver<ProbeReport>,
}

impl Device {
    async fn boot() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uid = format!("loop-{}", folder.path().file_name().unwrap().to_str().unwrap().replace(['.', '_'], "x"));
        let exe = Path::new(env!("CARGO_BIN_EXE_flotilla-agent"));
        let runtime = Arc::new(ShimRuntime::open(folder.path(), exe).await.unwrap());
        let events = runtime.events().unwrap();
        let volumes = Arc::new(VolumeStore::open(folder.path(), &proc_table::boot_id()).unwrap());
        let (executor, done) = Executor::over(runtime.clone(), volumes);
        let (probes, reports) = ProbeRunner::over(runtime.clone(), "127.0.0.1".into());
        let (desired, history) = (DesiredPods::default(), History::new());
        Self { folder, uid, desired, history, runtime, executor, probes, events, done, reports }
    }

    fn want(&mut self, mut spec: Value) {
        spec["runtimeClassName"] = "process".into();
        let mut object = Object::empty(kind::find("", "Pod").unwrap(), "default", "web");
        object.metadata_mut().insert("uid".into(), self.uid.clone().into());
        object.value_mut()["spec"] = spec.clone();
        let pod = DesiredPod { object: Arc::new(object), deletion: None };
        self.desired.pods.insert(self.uid.clone(), pod);
    }

    async fn turn(&mut self) -> Plan {
        let observed = Observed {
            sandboxes: self.runtime.list().await.unwrap(),
            busy: self.executor.busy().clone(),
            failures: self.executor.failures().clone(),
            probes: self.probes.statuses().clone(),
            volumes: self.executor.volumes().statuses(),
            volume_failures: self.executor.volume_failures().clone(),
            images: Arc::default(),
        };
        let place = Place {
            boot_id: proc_table::boot_id(),
            host_ip: "127.0.0.1".into(),
            node_name: "edge-1".into(),
            facilities: Arc::new(self.runtime.facilities().clone()),
            volumes: self.executor.volumes().root().to_owned(),
            now: now(),
        };
        let plan = plan(&self.desired, &observed, &self.history, &place);
        for (uid, changed) in &plan.history {
            match changed {
                Some(changed) => drop(self.history.insert(uid.clone(), changed.clone())),
                None => drop(self.history.remove(uid)),
            }
        }
        self.executor.carry_out(plan.actions.clone());
        self.probes.keep(&plan.probes);
        plan
    }

    /// Goes round until the plan is as wanted.
    async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Plan) -> bool) -> Plan {
        let mut last = Value::Null;
        let reached = tokio::time::timeout(LIMIT, async {
            loop {
                let plan = self.turn().await;
                if wanted(&plan) {
                    return plan;
                }
                last = plan.statuses.get(&self.uid).cloned().unwrap_or_default();
                let left = plan.wake_at.map_or(LIMIT, |at| Duration::from_millis(at.0.saturating_sub(now().0)));
                tokio::select! {
                    event = self.events.recv() => drop(event.unwrap()),
                    done = self.done.recv() => self.executor.finished(done.unwrap(), now()),
                    report = self.reports.recv() => self.probes.record(report.unwrap()),
                    () = tokio::time::sleep(left) => {}
                }
            }
        });
        let reached = reached.await;
        reached.unwrap_or_else(|_| panic!("never came: {what}; last: {last:#}"))
    }

    fn first<'a>(&self, plan: &'a Plan) -> &'a Value {
        &plan.statuses[&self.uid]["containerStatuses"][0]
    }

    fn is_ready(&self, plan: &Plan) -> bool {
        self.first(plan)["ready"] == true
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(state) = files::read_state(&self.folder.path().join("pods").join(&self.uid))
            && proc_table::runs(state.shim)
        {
            let shim = nix::unistd::Pid::from_raw(state.shim.pid);
            nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).ok();
        }
        proc_table::kill_family(&Family { mark_prefix: &format!("{}/", self.uid), group: None, parent: None });
        if let Some(cgroups) = self.runtime.cgroups() {
            cgroups.remove().ok();
        }
    }
}

fn now() -> Timestamp {
    Timestamp(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

fn shell(script: &str) -> Value {
    json!({"name": "app", "image": "host", "command": ["sh", "-c", script]})
}

async fn collect(mut chunks: mpsc::Receiver<Bytes>) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_killed_container_runs_again_and_a_deleted_pod_ends() {
    let mut device = Device::boot().await;
    let uid = device.uid.clone();
    device.want(json!({"terminationGracePeriodSeconds": 5, "containers": [shell("echo run; exec sleep 600")]}));
    device.until("the pod is ready", |plan| plan.statuses[&uid]["containerStatuses"][0]["ready"] == true).await;
    let pid = files::read_state(&device.folder.path().join("pods").join(&uid)).unwrap().containers["app"]
        .process
        .unwrap()
        .pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let again = |plan: &Plan| {
        let told = &plan.statuses[&uid]["containerStatuses"][0];
        told["restartCount"] == 1 && told["ready"] == true
    };
    let plan = device.until("it runs again", again).await;
    assert_eq!(device.first(&plan)["lastState"]["terminated"]["exitCode"], 137);
    // A shim that dies takes its pod with it, and the pod comes back.
    let shim = files::read_state(&device.folder.path().join("pods").join(&uid)).unwrap().shim.pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let third = |plan: &Plan| {
        let told = &plan.statuses[&uid]["containerStatuses"][0];
        told["restartCount"] == 2 && told["ready"] == true
    };
    device.until("it runs a third time", third).await;
    device.desired.pods.get_mut(&uid).unwrap().deletion = Some(Deletion { grace_seconds: None });
    device.until("its end", |plan| plan.ended.contains(&uid)).await;
    assert!(device.history.is_empty() && !device.folder.path().join("pods").join(&uid).exists());
}

#[tokio::test]
async fn probes_decide_readiness_and_kill() {
    let mut device = Device::boot().await;
    let uid = device.uid.clone();
    let flag = device.folder.path().join("healthy");
    std::fs::write(&flag, "").unwrap();
    let mut app = shell("exec sleep 600");
    let check = json!({"exec": {"command": ["test", "-e", flag.to_str().unwrap()]}, "periodSeconds": 1, "failureThreshold": 1,
               "timeoutSeconds": 15});
    app["readinessProbe"] = check.clone();
    app["livenessProbe"] = check;
    device.want(json!({"terminationGracePeriodSeconds": 1, "containers": [app]}));
    let ready = |plan: &Plan| plan.statuses[&uid]["containerStatuses"][0]["ready"] == true;
    let plan = device.until("ready", ready).await;
    assert!(device.is_ready(&plan));
    std::fs::remove_file(&flag).unwrap();
    let plan = device.until("restarted", |plan| plan.statuses[&uid]["containerStatuses"][0]["restartCount"] == 1).await;
    assert!(!device.is_ready(&plan));
    std::fs::write(&flag, "").unwrap();
    device.until("ready again", ready).await;
}

#[tokio::test]
async fn logs_are_followed_to_the_end_of_the_container() {
    let mut device = Device::boot().await;
    let uid = device.uid.clone();
    let fifo = device.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("echo one; read line < {}; echo two", fifo.display());
    device.want(json!({"restartPolicy": "Never", "containers": [shell(&script)]}));
    device.until("running", |plan| plan.statuses[&uid]["phase"] == "Running").await;
    let request = LogRequest {
        namespace: "default".into(),
        pod: "web".into(),
        container: String::new(),
        follow: true,
        previous: false,
        timestamps: false,
        tail_lines: None,
        limit_bytes: None,
        since_seconds: None,
        since_time: None,
    };
    let target = logs::choose(&device.desired.pods[&uid].object, device.history.get(&uid), &request).unwrap();
    let mut chunks = logs::stream(device.runtime.clone(), target, &request, now());
    let first = tokio::time::timeout(LIMIT, chunks.recv()).await.unwrap().unwrap();
    assert_eq!(first, "one\n");
    std::fs::write(&fifo, "go\n").unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, collect(chunks)).await.unwrap(), "two\n");
    device.until("its end", |plan| plan.statuses[&uid]["phase"] == "Succeeded").await;
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let mut device = Device::boot().await;
    let uid = device.uid.clone();
    let (begun, ended) = (device.folder.path().join("begun"), device.folder.path().join("ended"));
    let mut app = shell("trap 'exit 0' TERM; while :; do sleep 0.05; done");
    app["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["touch", begun.to_str().unwrap()]}},
        "preStop": {"exec": {"command": ["touch", ended.to_str().unwrap()]}},
    });
    device.want(json!({"terminationGracePeriodSeconds": 20, "containers": [app.clone()]}));
    let ready = |plan: &Plan| plan.statuses[&uid]["containerStatuses"][0]["ready"] == true;
    device.until("ready", ready).await;
    device.until("postStart", |_| begun.exists()).await;
    assert!(!ended.exists());
    device.desired.pods.get_mut(&uid).unwrap().deletion = Some(Deletion { grace_seconds: None });
    device.until("its end", |plan| plan.ended.contains(&uid)).await;
    assert!(ended.exists(), "preStop was never run");
}

#[tokio::test]
async fn a_failed_post_start_ends_the_container() {
    let mut device = Device::boot().await;
    let uid = device.uid.clone();
    let mut app = shell("exec sleep 600");
    app["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo not warm; exit 3"]}}});
    device.want(json!({"terminationGracePeriodSeconds": 1, "containers": [app]}));
    let stopped =
        |plan: &Plan| plan.statuses[&uid]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 143;
    device.until("its end", stopped).await;
    // The hook tells that it failed by a way of its own, perhaps later.
    let told = tokio::time::timeout(LIMIT, async {
        while !device.executor.failures().contains_key(&uid) {
            let done = device.done.recv().await.unwrap();
            device.executor.finished(done, now());
        }
    });
    told.await.expect("the failed hook is told");
    let failure = device.executor.failures().get(&uid).map(|failure| failure.message.clone()).unwrap_or_default();
    assert!(failure.contains("postStart hook of container app failed: exit code 3: not warm"), "{failure}");
}
