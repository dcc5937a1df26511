//! Pods: READY, STATUS and RESTARTS by kubectl's rules.

use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, NONE, age, always, duration, list, text_or_none, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    always("Ready", "Ready containers of all containers"),
    always("Status", "What the pod as a whole is doing"),
    always("Restarts", "How often containers were restarted, and when last"),
    AGE,
    wide("IP", "Address of the pod"),
    wide("Node", "Where it runs"),
    wide("Nominated Node", "Where it may run after preemption"),
    wide("Readiness Gates", "Conditions beyond the containers' readiness that hold"),
];

pub(super) fn cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(then) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, duration(i128::from(now.0) - i128::from(then.0)))
        }
        _ => summary.restarts.to_string(),
    };
    vec![
        pod.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        text_or_none(pod, "/status/podIP"),
        text_or_none(pod, "/spec/nodeName"),
        text_or_none(pod, "/status/nominatedNodeName"),
        readiness_gates(pod).into(),
    ]
}

/// What the first columns say.
#[derive(Debug, Default)]
struct Summary {
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    status: String,
}

/// How far the init containers are.
enum Init {
    Done,
    /// STATUS while they run or fail.
    At(String),
}

impl Summary {
    fn of(pod: &Object) -> Self {
        let phase = pod.text("/status/phase");
        let reason = pod.text("/status/reason");
        let mut summary = Self {
            total: list(pod.value(), "/spec/containers").len() + sidecars(pod).count(),
            status: if reason.is_empty() { phase } else { reason }.to_owned(),
            ..Self::default()
        };
        if list(pod.value(), "/status/conditions")
            .iter()
            .any(|row| text(row, "/type") == "PodScheduled" && text(row, "/reason") == "SchedulingGated")
        {
            "SchedulingGated".clone_into(&mut summary.status);
        }
        // Restarts of init containers count while they run; afterwards only those of sidecars do.
        let mut sidecars_only = Self::default();
        match summary.read_init(pod, &mut sidecars_only) {
            Init::At(status) if !condition_is_true(pod, "Initialized") => summary.status = status,
            _ => {
                summary.restarts = sidecars_only.restarts;
                summary.last_restart = sidecars_only.last_restart;
                summary.read_containers(pod);
            }
        }
        summary.read_deletion(pod, phase, reason);
        summary
    }

    fn read_init(&mut self, pod: &Object, sidecars_only: &mut Self) -> Init {
        let total = list(pod.value(), "/spec/initContainers").len();
        for (index, status) in list(pod.value(), "/status/initContainerStatuses").iter().enumerate() {
            self.add_restarts(status);
            let sidecar = sidecars(pod).any(|name| name == text(status, "/name"));
            if sidecar {
                sidecars_only.add_restarts(status);
            }
            let terminated = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some_and(|ended| number(ended, "/exitCode") == 0) {
                continue;
            }
            if sidecar && flag(status, "/started") {
                self.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            return Init::At(match terminated {
                Some(ended) => format!("Init:{}", ended_reason(ended)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{total}"),
            });
        }
        Init::Done
    }

    fn read_containers(&mut self, pod: &Object) {
        let mut running = false;
        for status in list(pod.value(), "/status/containerStatuses").iter().rev() {
            self.add_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.status);
            } else if let Some(ended) = status.pointer("/state/terminated") {
                self.status = ended_reason(ended);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && running {
            let ready = condition_is_true(pod, "Ready");
            if ready { "Running" } else { "NotReady" }.clone_into(&mut self.status);
        }
    }

    fn read_deletion(&mut self, pod: &Object, phase: &str, reason: &str) {
        if pod.text("/metadata/deletionTimestamp").is_empty() {
            return;
        }
        if reason == "NodeLost" {
            "Unknown".clone_into(&mut self.status);
        } else if phase != "Succeeded" && phase != "Failed" {
            "Terminating".clone_into(&mut self.status);
        }
    }

    fn add_restarts(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let ended = Timestamp::parse(text(status, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(ended);
    }
}

/// Names of the init containers that run beside the others.
fn sidecars(pod: &Object) -> impl Iterator<Item = &str> {
    list(pod.value(), "/spec/initContainers")
        .iter()
        .filter(|container| text(container, "/restartPolicy") == "Always")
        .map(|container| text(container, "/name"))
}

/// `Error`, `OOMKilled`, `Signal:9`, `ExitCode:3`
fn ended_reason(ended: &Value) -> String {
    let reason = text(ended, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match number(ended, "/signal") {
        0 => format!("ExitCode:{}", number(ended, "/exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

fn readiness_gates(pod: &Object) -> String {
    let gates = list(pod.value(), "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let hold = gates.iter().filter(|gate| condition_is_true(pod, text(gate, "/conditionType"))).count();
    format!("{hold}/{}", gates.len())
}

fn condition_is_true(pod: &Object, name: &str) -> bool {
    list(pod.value(), "/status/conditions")
        .iter()
        .any(|row| text(row, "/type") == name && text(row, "/status") == "True")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}
