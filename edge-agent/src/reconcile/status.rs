//! PodStatus as kubelet writes it (pkg/kubelet/status, `GenerateContainersReadyCondition` and `getPhase` for the rules).

use flotilla_manifests::quantity::Quantity;
use flotilla_manifests::time::Timestamp;
use serde_json::{Map, Value, json};

use super::lifecycle::Planner;
use super::pod::{ContainerSpec, Role, text};
use crate::image::Images;
use crate::runtime::{ContainerState, Exit, SandboxState};

/// The pod's status now; dates of conditions are kept in its history.
pub(super) fn of(planner: &mut Planner<'_>) -> Value {
    let containers: Vec<Told> = planner.spec.containers.iter().map(|container| told(planner, container)).collect();
    let phase = phase(planner, &containers);
    let conditions = conditions(planner, &containers, &phase);
    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    status.insert("conditions".into(), conditions);
    let ip = &planner.place.host_ip;
    status.insert("hostIP".into(), ip.clone().into());
    status.insert("hostIPs".into(), json!([{"ip": ip}]));
    status.insert("podIP".into(), ip.clone().into());
    status.insert("podIPs".into(), json!([{"ip": ip}]));
    if let Some(started) = planner.history.started_at {
        status.insert("startTime".into(), started.to_rfc3339().into());
    }
    let (main, init): (Vec<Told>, Vec<Told>) = containers.into_iter().partition(|told| told.role == Role::Main);
    if !init.is_empty() {
        status.insert("initContainerStatuses".into(), init.into_iter().map(|told| told.value).collect());
    }
    status.insert("containerStatuses".into(), main.into_iter().map(|told| told.value).collect());
    status.insert("qosClass".into(), quality(planner.spec.value).into());
    Value::Object(status)
}

/// One container's status and what the pod's depends on.
struct Told {
    name: String,
    role: Role,
    value: Value,
    ready: bool,
    runs: bool,
    /// Has ended, and was not replaced by a wait for its next start.
    over: bool,
    ever_ran: bool,
}

fn told(planner: &Planner<'_>, container: &ContainerSpec<'_>) -> Told {
    let known = planner.history.containers.get(container.name);
    let live = planner.live(container.name);
    let waiting = planner.waiting.get(container.name);
    let ended = known.and_then(|known| known.ended());
    let latest = known.and_then(|known| known.last_exit.as_ref().zip(known.last_exit_attempt));
    let runtime = planner.container_scheme();
    let identity = |attempt: u32| format!("{runtime}://{}/{}/{attempt}", planner.uid, container.name);
    let (mut state, mut last, mut running, mut shown_attempt) = (json!({}), None, false, None);
    if let Some((status, started_at)) = live.and_then(|status| match status.state {
        ContainerState::Running { started_at, .. } => Some((status, started_at)),
        ContainerState::Exited(_) => None,
    }) {
        running = true;
        state = json!({"running": {"startedAt": started_at.to_rfc3339()}});
        last = latest.filter(|(_, attempt)| *attempt < status.attempt);
        shown_attempt = Some(status.attempt);
    } else if let Some((reason, message)) = waiting {
        let mut entry = json!({"reason": reason});
        if !message.is_empty() {
            entry["message"] = message.clone().into();
        }
        state = json!({"waiting": entry});
        last = latest;
        shown_attempt = latest.map(|(_, attempt)| attempt);
    } else if let (Some(exit), Some(known)) = (ended, known) {
        let attempt = known.attempt.unwrap_or(0);
        state = json!({"terminated": terminated(exit, &identity(attempt))});
        last = known.previous_exit.as_ref().zip(attempt.checked_sub(1));
        shown_attempt = Some(attempt);
    } else {
        state["waiting"] = json!({"reason": "ContainerCreating"});
    }
    let started = running && planner.started(container);
    let ready = match container.role {
        Role::Init => !running && waiting.is_none() && ended.is_some_and(|exit| exit.code == 0),
        _ if container.has("readinessProbe") => started && known.is_some_and(|known| known.ready),
        _ => started,
    };
    let restarts = shown_attempt.or_else(|| known.and_then(|known| known.last_exit_attempt)).unwrap_or(0);
    let image = text(container.value, "image");
    let last_state =
        last.map_or_else(|| json!({}), |(exit, attempt)| json!({"terminated": terminated(exit, &identity(attempt))}));
    let mut value = json!({
        "name": container.name, "state": state, "lastState": last_state, "ready": ready, "restartCount": restarts,
        "image": image, "imageID": "", "started": started,
    });
    if let Some(attempt) = shown_attempt {
        value["containerID"] = identity(attempt).into();
        let digest = known.map_or("", |known| known.image_digest.as_str());
        let image_id = if digest.is_empty() { image.to_owned() } else { Images::image_id(image, digest) };
        value["imageID"] = image_id.into();
    }
    let over = !running && waiting.is_none() && ended.is_some();
    let ever_ran = running || latest.is_some();
    Told { name: container.name.to_owned(), role: container.role, value, ready, runs: running, over, ever_ran }
}

fn terminated(exit: &Exit, container_id: &str) -> Value {
    let time = |time: Option<Timestamp>| time.map_or(Value::Null, |time| time.to_rfc3339().into());
    let mut value = json!({
        "exitCode": exit.code, "reason": exit.reason, "startedAt": time(exit.started_at),
        "finishedAt": time(exit.finished_at), "containerID": container_id,
    });
    if let Some(signal) = exit.signal {
        value["signal"] = signal.into();
    }
    if !exit.message.is_empty() {
        value["message"] = exit.message.clone().into();
    }
    value
}

fn phase(planner: &Planner<'_>, containers: &[Told]) -> String {
    if let Some(phase) = &planner.history.terminal_phase {
        return phase.clone();
    }
    let main = || containers.iter().filter(|told| told.role == Role::Main);
    let begun = main().all(|told| told.ever_ran) || main().any(|told| told.runs);
    // A container that has never run keeps the pod Pending, unless others of it run already or everything has ended.
    let never = main().any(|told| !told.ever_ran);
    if !planner.initialized || !begun || never { "Pending" } else { "Running" }.to_owned()
}

fn conditions(planner: &mut Planner<'_>, containers: &[Told], phase: &str) -> Value {
    let terminal = planner.history.terminal_phase.is_some();
    let named = |told: Vec<&Told>| told.iter().map(|told| told.name.as_str()).collect::<Vec<_>>().join(" ");
    let unready: Vec<&Told> = containers.iter().filter(|told| told.role != Role::Init && !told.ready).collect();
    let unfinished: Vec<&Told> = containers
        .iter()
        .filter(|told| match told.role {
            Role::Init => !(told.over && told.ready),
            Role::Sidecar => !told.ready && !told.ever_ran,
            Role::Main => false,
        })
        .collect();
    let not_ready = if phase == "Succeeded" {
        Some(("PodCompleted", String::new()))
    } else if phase == "Failed" {
        Some(("PodFailed", String::new()))
    } else if unready.is_empty() {
        None
    } else {
        Some(("ContainersNotReady", format!("containers with unready status: [{}]", named(unready))))
    };
    let not_initialized = if planner.initialized || terminal {
        None
    } else {
        Some(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", named(unfinished))))
    };
    let sandbox = planner.sandbox.is_some_and(|sandbox| sandbox.state == SandboxState::Ready) && !terminal;
    let unlimited = (!planner.unlimited.is_empty()).then(|| {
        let why = &planner.place.facilities.limits.why;
        ("CgroupsUnavailable", format!("not limited on this device: {}: {why}", planner.unlimited.join(", ")))
    });
    let facts = [
        ("PodReadyToStartContainers", (!sandbox).then(|| ("", String::new()))),
        ("Initialized", not_initialized),
        ("Ready", not_ready.clone()),
        ("ContainersReady", not_ready),
        ("PodScheduled", None),
    ];
    let now = planner.place.now;
    if unlimited.is_none() {
        planner.history.conditions.remove("LimitsEnforced");
    }
    let limits = unlimited.map(|fault| ("LimitsEnforced", Some(fault)));
    let told = facts.into_iter().chain(limits).map(|(kind, fault)| {
        let good = fault.is_none();
        let since = planner.history.conditions.entry(kind.to_owned()).or_insert((good, now));
        if since.0 != good {
            *since = (good, now);
        }
        let mut condition = json!({
            "type": kind, "status": if good { "True" } else { "False" },
            "lastProbeTime": null, "lastTransitionTime": since.1.to_rfc3339(),
        });
        if let Some((reason, message)) = fault {
            if !reason.is_empty() {
                condition["reason"] = reason.into();
            }
            if !message.is_empty() {
                condition["message"] = message.into();
            }
        }
        condition
    });
    told.collect()
}

/// Quality of service (pod-qos): `Guaranteed`, `Burstable`, `BestEffort`.
fn quality(spec: &Value) -> &'static str {
    let all = ["initContainers", "containers"];
    let containers: Vec<&Value> = all.iter().filter_map(|field| spec.get(field)?.as_array()).flatten().collect();
    let amount = |container: &Value, list: &str, resource: &str| {
        let value = container.get("resources")?.get(list)?.get(resource)?;
        Quantity::of_json(value).ok().filter(|amount| !amount.is_zero())
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = amount(container, "limits", resource);
            let request = amount(container, "requests", resource).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
