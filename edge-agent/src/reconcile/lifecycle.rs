//! The life of each pod, decided: from its sandbox over init containers, sidecars and containers to its end.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::time::Timestamp;

use super::environment::{self, Sources};
use super::pod::{ContainerSpec, PodSpec, Role};
use super::restart::restarts;
use super::{
    Action, DesiredPod, DesiredPods, Failure, History, Notice, Observed, Place, Plan, PodHistory, ProbeKey,
    ProbeStatus, ProbeTarget, Severity, image, limits, status,
};
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, Exit, SandboxConfig, SandboxState, SandboxStatus,
};

mod device;
mod hooks;
mod volumes;

use volumes::PodVolumes;

/// After a failed step of a pod: 1 s, doubling to 60 s.
const FAILURE_MS: u64 = 1_000;
const FAILURE_MS_MAX: u64 = 60_000;

pub(super) fn plan(desired: &DesiredPods, observed: &Observed, history: &History, place: &Place) -> Plan {
    let mut plan = Plan::default();
    for (uid, pod) in &desired.pods {
        let mut planner = Planner::of(desired, observed, history, place, uid, pod);
        planner.decide();
        planner.report(&mut plan, history.get(uid));
    }
    for (uid, sandbox) in observed.sandboxes.iter().filter(|(uid, _)| !desired.pods.contains_key(*uid)) {
        if observed.busy.contains(uid) {
            continue;
        }
        if let Some(wait) = failure_wait(observed, uid, place.now) {
            wake(&mut plan.wake_at, wait);
            continue;
        }
        let mut steps = withdraw(sandbox);
        if steps == [Action::RemoveSandbox] && observed.volumes.contains_key(uid) {
            steps.push(Action::RemoveVolumes);
        }
        if !steps.is_empty() {
            plan.actions.insert(uid.clone(), steps);
        }
    }
    let left = |uid: &String| !desired.pods.contains_key(uid) && !observed.sandboxes.contains_key(uid);
    for uid in observed.volumes.keys().filter(|uid| left(uid) && !observed.busy.contains(*uid)) {
        match failure_wait(observed, uid, place.now) {
            Some(wait) => wake(&mut plan.wake_at, wait),
            None => drop(plan.actions.insert(uid.clone(), vec![Action::RemoveVolumes])),
        }
    }
    let alive = |uid: &String| observed.sandboxes.contains_key(uid) || observed.busy.contains(uid);
    for (uid, known) in history.iter().filter(|(uid, _)| alive(uid)) {
        let known = plan.history.get(uid).and_then(Option::as_ref).unwrap_or(known);
        for container in known.containers.values() {
            image::note_use(&mut plan.images, &container.image_digest, &known.namespace, &known.name);
        }
    }
    for uid in history.keys() {
        if left(uid) && !observed.volumes.contains_key(uid) && !observed.busy.contains(uid) {
            plan.ended.insert(uid.clone());
            plan.history.insert(uid.clone(), None);
        }
    }
    plan
}

/// Ends a pod nobody knows the manifest of any more.
fn withdraw(sandbox: &SandboxStatus) -> Vec<Action> {
    let grace_ms = u64::from(sandbox.grace_seconds) * 1000;
    if running(sandbox).next().is_none() {
        return vec![Action::RemoveSandbox];
    }
    let stops = running(sandbox).filter(|(_, _, stopping)| !stopping);
    stops.map(|(name, status, _)| stop(name, status.attempt, grace_ms, "the pod is no longer wanted here")).collect()
}

/// Containers that run: name, status, and whether they are being stopped.
fn running(sandbox: &SandboxStatus) -> impl Iterator<Item = (&String, &ContainerStatus, bool)> {
    sandbox.containers.iter().filter_map(|(name, status)| match status.state {
        ContainerState::Running { stopping, .. } => Some((name, status, stopping)),
        ContainerState::Exited(_) => None,
    })
}

fn stop(container: &str, attempt: u32, grace_ms: u64, why: &str) -> Action {
    Action::StopContainer { container: container.to_owned(), attempt, grace_ms, why: why.to_owned(), hook: None }
}

fn wake(wake_at: &mut Option<Timestamp>, at: Timestamp) {
    *wake_at = Some(wake_at.map_or(at, |earlier| earlier.min(at)));
}

/// When a pod whose last step failed may be tried again, if that is not now.
fn failure_wait(observed: &Observed, uid: &str, now: Timestamp) -> Option<Timestamp> {
    failure_wait_of(observed.failures.get(uid)?, now)
}

fn failure_wait_of(failure: &Failure, now: Timestamp) -> Option<Timestamp> {
    let doublings = failure.count.saturating_sub(1).min(16);
    let wait_ms = FAILURE_MS.saturating_mul(1 << doublings).min(FAILURE_MS_MAX);
    let at = Timestamp(failure.at.0.saturating_add(wait_ms));
    // A clock that was set back waits for nothing.
    (now >= failure.at && now < at).then_some(at)
}

/// Why a container does not run: kubelet's `waiting`.
pub(super) type Waiting = (String, String);

/// One pod's decision in the making.
pub(super) struct Planner<'a> {
    desired: &'a DesiredPods,
    observed: &'a Observed,
    pub(super) place: &'a Place,
    pub(super) uid: &'a str,
    pub(super) pod: &'a DesiredPod,
    pub(super) spec: PodSpec<'a>,
    pub(super) sandbox: Option<&'a SandboxStatus>,
    pub(super) history: PodHistory,
    pub(super) waiting: BTreeMap<String, Waiting>,
    /// Init containers of this sandbox are through.
    pub(super) initialized: bool,
    actions: Vec<Action>,
    volumes: PodVolumes<'a>,
    probes: BTreeMap<ProbeKey, ProbeTarget>,
    notices: BTreeSet<Notice>,
    /// Limits of the manifest that nobody keeps.
    pub(super) unlimited: Vec<String>,
    wake_at: Option<Timestamp>,
    ended: bool,
}

impl<'a> Planner<'a> {
    fn of(
        desired: &'a DesiredPods,
        observed: &'a Observed,
        history: &History,
        place: &'a Place,
        uid: &'a str,
        pod: &'a DesiredPod,
    ) -> Self {
        let mut history = history.get(uid).cloned().unwrap_or_default();
        history.namespace = pod.object.namespace().to_owned();
        history.name = pod.object.name().to_owned();
        Self {
            desired,
            observed,
            place,
            uid,
            pod,
            spec: PodSpec::of(pod),
            sandbox: observed.sandboxes.get(uid),
            history,
            waiting: BTreeMap::new(),
            initialized: false,
            actions: Vec::new(),
            volumes: PodVolumes::default(),
            probes: BTreeMap::new(),
            notices: BTreeSet::new(),
            unlimited: Vec::new(),
            wake_at: None,
            ended: false,
        }
    }

    fn decide(&mut self) {
        self.take_in();
        self.take_in_probes();
        if let Some(deletion) = self.pod.deletion {
            self.end(deletion.grace_seconds.unwrap_or(self.spec.grace_seconds));
        } else if let Some(refusal) = self.refusal() {
            self.refuse(&refusal);
        } else if !self.fits() && self.sandbox.is_some_and(|sandbox| running(sandbox).next().is_some()) {
            self.stop_in_order(self.spec.grace_seconds, "the pod's runtimeClassName changed");
        } else if self.history.terminal_phase.is_some() {
            self.initialized = true;
            self.close();
        } else {
            self.history.started_at.get_or_insert(self.place.now);
            self.run();
        }
        self.add_hooks();
        if self.observed.busy.contains(self.uid) {
            self.actions.clear();
        } else if let Some(wait) = failure_wait(self.observed, self.uid, self.place.now) {
            self.actions.clear();
            wake(&mut self.wake_at, wait);
        }
    }

    /// Writes down what the runtime knows and history does not: exits, and attempts a lost history never heard of.
    fn take_in(&mut self) {
        for (name, container) in self.sandbox.into_iter().flat_map(|sandbox| &sandbox.containers) {
            let known = self.history.containers.entry(name.clone()).or_default();
            if known.attempt.is_none_or(|attempt| attempt < container.attempt) {
                known.attempt = Some(container.attempt);
                known.digest.clone_from(&container.digest);
                known.boot.clone_from(&self.place.boot_id);
                known.sandbox_attempt = self.sandbox.map_or(0, |sandbox| sandbox.attempt);
            }
            if let ContainerState::Exited(exit) = &container.state
                && known.attempt == Some(container.attempt)
                && known.last_exit_attempt != Some(container.attempt)
            {
                known.record_exit(container.attempt, exit.clone());
            }
        }
        if let Some(sandbox) = self.sandbox
            && self.history.sandbox_attempt.is_none_or(|attempt| attempt < sandbox.attempt)
        {
            self.history.sandbox_attempt = Some(sandbox.attempt);
            self.history.sandbox_boot.clone_from(&self.place.boot_id);
        }
        // Asked for in an earlier boot and never seen to end: the device went down with it.
        for known in self.history.containers.values_mut().filter(|known| known.boot != self.place.boot_id) {
            if let Some(attempt) = known.attempt.filter(|&attempt| known.last_exit_attempt != Some(attempt)) {
                known.record_exit(attempt, Exit::unseen(None, "the device went down while the container ran"));
            }
        }
    }

    /// Tells of something that holds now.
    pub(super) fn note(&mut self, severity: Severity, reason: &str, message: &str) {
        self.notices.insert(Notice { severity, reason: reason.to_owned(), message: message.to_owned() });
    }

    fn sandbox_is_ready(&self) -> bool {
        self.sandbox.is_some_and(|sandbox| sandbox.state == SandboxState::Ready) && self.fits()
    }

    /// The sandbox that containers are started in: the ready one, or the one that is about to be made.
    fn sandbox_attempt(&self) -> u32 {
        let newest = self.history.sandbox_attempt;
        match self.sandbox {
            Some(sandbox) if self.sandbox_is_ready() => sandbox.attempt,
            Some(sandbox) => {
                newest.map_or(sandbox.attempt, |newest| newest.max(sandbox.attempt + 1)).max(sandbox.attempt + 1)
            }
            None if self.history.sandbox_boot == self.place.boot_id => newest.unwrap_or(0),
            None => newest.map_or(0, |newest| newest + 1),
        }
    }

    /// What the runtime says of a container in the sandbox that counts now.
    pub(super) fn live(&self, name: &str) -> Option<&'a ContainerStatus> {
        self.sandbox.filter(|sandbox| sandbox.state == SandboxState::Ready)?.containers.get(name)
    }

    pub(super) fn probe_status(&self, name: &str) -> Option<&'a ProbeStatus> {
        let (sandbox, container) = (self.sandbox?, self.live(name)?);
        self.observed.probes.get(&probe_key(self.uid, name, sandbox, container))
    }

    /// Whether a running container's startup probe, if it has one, has succeeded.
    pub(super) fn started(&self, container: &ContainerSpec<'_>) -> bool {
        !container.has("startupProbe") || self.history.containers.get(container.name).is_some_and(|known| known.started)
    }

    /// Takes the probes' word in. It outlives the agent: an adopted container is as ready as it was until a probe says otherwise.
    fn take_in_probes(&mut self) {
        for container in self.spec.containers.clone() {
            let Some(said) = self.probe_status(container.name) else { continue };
            if let Some(known) = self.history.containers.get_mut(container.name) {
                known.started |= said.started;
                known.ready = said.ready.unwrap_or(known.ready);
            }
        }
    }

    fn run(&mut self) {
        self.note_limits();
        self.take_up_volumes();
        let containers = self.spec.containers.clone();
        let attempt = self.sandbox_attempt();
        self.initialized = true;
        for container in containers.iter().filter(|container| container.role != Role::Main) {
            let done = self.keep(container, attempt);
            if self.history.terminal_phase.is_some() {
                return self.close();
            }
            if !done {
                self.initialized = false;
                break;
            }
        }
        if !self.initialized {
            for container in &containers {
                if !self.is_live(container) && !self.is_over(container) {
                    let pending = ("PodInitializing".to_owned(), String::new());
                    self.waiting.entry(container.name.to_owned()).or_insert(pending);
                }
            }
        } else {
            for container in containers.iter().filter(|container| container.role == Role::Main) {
                self.keep(container, attempt);
            }
            self.settle();
        }
        self.make_sandbox_first(attempt);
        self.prepare_volumes();
        if let Some(failure) = self.observed.failures.get(self.uid) {
            let reason = if self.sandbox_is_ready() { "RunContainerError" } else { "CreatePodSandboxError" };
            for waiting in self.waiting.values_mut().filter(|waiting| waiting.0 == "ContainerCreating") {
                *waiting = (reason.to_owned(), failure.message.clone());
            }
        }
    }

    /// An init container that has done its work in this sandbox.
    fn is_over(&self, container: &ContainerSpec<'_>) -> bool {
        let known = self.history.containers.get(container.name);
        container.role == Role::Init
            && known.is_some_and(|known| known.ended().is_some_and(|exit| exit.code == 0))
            && known.is_some_and(|known| Some(known.sandbox_attempt) == self.sandbox.map(|sandbox| sandbox.attempt))
    }

    fn is_live(&self, container: &ContainerSpec<'_>) -> bool {
        self.live(container.name).is_some_and(|status| matches!(status.state, ContainerState::Running { .. }))
    }

    /// A start needs a sandbox, which is made in the same plan.
    fn make_sandbox_first(&mut self, attempt: u32) {
        let starts = self.actions.iter().any(|action| matches!(action, Action::StartContainer(_)));
        if !starts || self.sandbox_is_ready() {
            return;
        }
        self.history.sandbox_attempt = Some(attempt);
        self.history.sandbox_boot.clone_from(&self.place.boot_id);
        let config = SandboxConfig {
            uid: self.uid.to_owned(),
            namespace: self.history.namespace.clone(),
            name: self.history.name.clone(),
            attempt,
            grace_seconds: self.spec.grace_seconds,
            isolated: self.spec.isolated(),
            hostname: self.spec.hostname(self.pod.object.name()).to_owned(),
            host_lines: self.spec.host_lines(&self.place.host_ip, self.pod.object.name()),
            host_pid: self.spec.flag("hostPID"),
            host_ipc: self.spec.flag("hostIPC"),
        };
        self.actions.insert(0, Action::RunSandbox(config));
    }

    /// Keeps one container as its role wants it. True when what comes after it may start.
    fn keep(&mut self, container: &ContainerSpec<'a>, sandbox_attempt: u32) -> bool {
        if let Some(ContainerStatus { attempt, digest, state: ContainerState::Running { stopping, .. } }) =
            self.live(container.name)
        {
            if !stopping {
                self.watch_over(container, *attempt, digest);
            }
            return container.role == Role::Sidecar && self.started(container);
        }
        let known = self.history.containers.get(container.name);
        let ended = known.and_then(|known| known.ended().map(|exit| (known.sandbox_attempt, known.replaced, exit)));
        if let Some((ran_in, replaced, exit)) = ended {
            let again = replaced || restarts(self.spec.restart_policy, container.role, exit);
            match container.role {
                Role::Init if exit.code == 0 && ran_in == sandbox_attempt => return true,
                Role::Init if exit.code != 0 && !again => {
                    self.history.terminal_phase = Some("Failed".into());
                    return false;
                }
                Role::Main if !again => return true,
                _ => {}
            }
        }
        self.start(container, sandbox_attempt);
        false
    }

    /// A running container: probes, their verdict, a changed definition.
    fn watch_over(&mut self, container: &ContainerSpec<'a>, attempt: u32, digest: &str) {
        let grace_ms = u64::from(self.spec.grace_seconds) * 1000;
        if container.digest(self.spec.value) != digest {
            if let Some(known) = self.history.containers.get_mut(container.name) {
                known.replaced = true;
            }
            let why = format!("container {} {}", container.name, super::DEFINITION_CHANGED);
            self.actions.push(stop(container.name, attempt, grace_ms, &why));
            return;
        }
        if let Some(why) = self.probe_status(container.name).and_then(|status| status.failed.as_ref()) {
            let why = format!("container {} {why}, will be restarted", container.name);
            self.actions.push(stop(container.name, attempt, grace_ms, &why));
            return;
        }
        if !container.has_probes() {
            return;
        }
        if let (Some(sandbox), Some(status)) = (self.sandbox, self.live(container.name)) {
            let (env, working_dir) = self.surroundings(container);
            let target =
                ProbeTarget { container: container.value.clone(), env, working_dir, started: self.started(container) };
            self.probes.insert(probe_key(self.uid, container.name, sandbox, status), target);
        }
    }

    fn start(&mut self, container: &ContainerSpec<'a>, sandbox_attempt: u32) {
        let digest = container.digest(self.spec.value);
        let known = self.history.containers.get(container.name).cloned().unwrap_or_default();
        let due = known.due(&digest, sandbox_attempt, self.place.now);
        if due > self.place.now {
            wake(&mut self.wake_at, due);
            let message = format!(
                "back-off {}s restarting failed container={} pod={}_{}({})",
                known.backoff_ms / 1000,
                container.name,
                self.history.name,
                self.history.namespace,
                self.uid
            );
            self.waiting.insert(container.name.to_owned(), ("CrashLoopBackOff".into(), message));
            return;
        }
        let attempt = known.next_attempt();
        let config = self.config(container, attempt, &digest).and_then(|config| {
            let wrong = |message| ("CreateContainerConfigError".to_owned(), message);
            self.mounted(container, config).map_err(wrong)
        });
        match config {
            Ok((config, sub_paths)) => {
                if let Some(message) = self.volumes_hold_back(&sub_paths) {
                    self.waiting.insert(container.name.to_owned(), ("ContainerCreating".into(), message));
                    return;
                }
                self.ask_for(sub_paths);
                let known = self.history.containers.entry(container.name.to_owned()).or_default();
                if known.attempt != Some(attempt) || known.boot != self.place.boot_id || known.digest != digest {
                    known.record_start(attempt, &digest, sandbox_attempt, &self.place.boot_id);
                }
                known.sandbox_attempt = sandbox_attempt;
                known.image_digest = config.root.as_ref().map(|root| root.image_digest.clone()).unwrap_or_default();
                self.waiting.insert(container.name.to_owned(), ("ContainerCreating".into(), String::new()));
                self.actions.push(Action::StartContainer(Box::new(config)));
            }
            Err((reason, message)) => {
                if reason != "CreateContainerConfigError" {
                    self.note(Severity::Warning, "Failed", &format!("container {}: {message}", container.name));
                }
                self.waiting.insert(container.name.to_owned(), (reason, message));
            }
        }
    }

    fn config(&self, container: &ContainerSpec<'_>, attempt: u32, digest: &str) -> Result<ContainerConfig, Waiting> {
        let wrong = |message: String| ("CreateContainerConfigError".to_owned(), message);
        let image = image::find(&self.spec, container, &self.observed.images)?;
        let image = image.as_deref();
        let sources = Sources { desired: self.desired, pod: self.pod, place: self.place };
        let user = image::user(self.spec.value, container.value, image).map_err(wrong)?;
        let of_image = image::environment(image, &user);
        let env = environment::resolve(&sources, container, of_image).map_err(wrong)?;
        let root = image.map(|image| image::rootfs(container, image));
        Ok(ContainerConfig {
            name: container.name.to_owned(),
            attempt,
            digest: digest.to_owned(),
            argv: image::argv(container, image, &env).map_err(wrong)?,
            env,
            working_dir: image::working_dir(container, image),
            run_as_user: user.uid,
            run_as_group: user.gid,
            supplemental_groups: user.groups,
            mounts: Vec::new(),
            resources: limits::of_start(container.value, root.as_ref(), &self.place.facilities),
            root,
            stop_signal: image.and_then(|image| image.stop_signal.clone()),
            security: limits::security(self.spec.value, container.value),
        })
    }

    /// The images its containers run from, and would be started from next.
    fn use_images(&self, plan: &mut Plan) {
        if self.history.terminal_phase.is_some() && self.sandbox.is_none() {
            return;
        }
        for container in &self.spec.containers {
            if let Ok(Some(next)) = image::find(&self.spec, container, &self.observed.images) {
                image::note_use(&mut plan.images, &next.digest, &self.history.namespace, &self.history.name);
            }
        }
    }

    /// A pod whose containers have all ended for good has come to its end.
    fn settle(&mut self) {
        let policy = self.spec.restart_policy;
        let mut all_good = true;
        for container in self.spec.main() {
            let known = self.history.containers.get(container.name);
            let ended = known.filter(|known| !known.replaced).and_then(|known| known.ended());
            match ended {
                Some(exit) if !self.is_live(container) && !restarts(policy, Role::Main, exit) => {
                    all_good &= exit.code == 0
                }
                _ => return,
            }
        }
        if self.spec.main().next().is_some() {
            self.history.terminal_phase = Some(if all_good { "Succeeded" } else { "Failed" }.to_owned());
            self.actions.clear();
            self.close();
        }
    }

    /// A pod at its end: sidecars stop, then the sandbox; logs stay.
    fn close(&mut self) {
        if !self.sandbox_is_ready() {
            return self.remove_volumes();
        }
        if self.sandbox.is_some_and(|sandbox| running(sandbox).next().is_some()) {
            self.stop_in_order(self.spec.grace_seconds, "the pod has come to its end");
        } else {
            self.actions.push(Action::StopSandbox);
            self.remove_volumes();
        }
    }

    /// A pod that is deleted: containers, then sidecars, then everything that is left of it.
    fn end(&mut self, grace_seconds: u32) {
        match self.sandbox {
            None if self.has_volumes() => self.remove_volumes(),
            None => self.ended = !self.observed.busy.contains(self.uid),
            Some(sandbox) if running(sandbox).next().is_none() => {
                self.actions.push(Action::RemoveSandbox);
                self.remove_volumes();
            }
            Some(_) => self.stop_in_order(grace_seconds, "the pod is deleted"),
        }
        self.initialized = self.spec.main().any(|container| self.history.containers.contains_key(container.name));
    }

    /// Main containers (and init containers) first, all at once; then sidecars, the last one first (KEP-753).
    fn stop_in_order(&mut self, grace_seconds: u32, why: &str) {
        let Some(sandbox) = self.sandbox else { return };
        let grace_ms = u64::from(grace_seconds) * 1000;
        let sidecar = |name: &str| {
            self.spec.containers.iter().position(|container| container.name == name && container.role == Role::Sidecar)
        };
        let first: Vec<_> = running(sandbox).filter(|(name, ..)| sidecar(name).is_none()).collect();
        let turn = if first.is_empty() {
            running(sandbox).max_by_key(|(name, ..)| sidecar(name)).into_iter().collect()
        } else {
            first
        };
        for (name, status, stopping) in turn {
            // Asked again only to bring the end forward: it is idempotent, and soon over.
            if !stopping || grace_ms == 0 {
                self.actions.push(stop(name, status.attempt, grace_ms, why));
            }
        }
    }

    fn report(mut self, plan: &mut Plan, before: Option<&PodHistory>) {
        if self.ended {
            plan.ended.insert(self.uid.to_owned());
            if before.is_some() {
                plan.history.insert(self.uid.to_owned(), None);
            }
            return;
        }
        plan.statuses.insert(self.uid.to_owned(), status::of(&mut self));
        self.use_images(plan);
        if before != Some(&self.history) {
            plan.history.insert(self.uid.to_owned(), Some(self.history));
        }
        if !self.actions.is_empty() {
            plan.actions.insert(self.uid.to_owned(), self.actions);
        }
        plan.probes.append(&mut self.probes);
        if !self.notices.is_empty() {
            plan.notices.insert(self.uid.to_owned(), self.notices);
        }
        if let Some(at) = self.wake_at {
            wake(&mut plan.wake_at, at);
        }
    }
}

fn probe_key(uid: &str, name: &str, sandbox: &SandboxStatus, container: &ContainerStatus) -> ProbeKey {
    ProbeKey {
        pod_uid: uid.to_owned(),
        container: name.to_owned(),
        sandbox_attempt: sandbox.attempt,
        attempt: container.attempt,
    }
}
