//! Runs probes: one task per container that has any.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::machine::{Check, Machine, Probe};
use crate::reconcile::{ProbeKey, ProbeStatus, ProbeTarget};
use crate::runtime::{ExecOutcome, ExecRequest, Runtime};

/// Reports waiting for the agent's loop; a probe that finds it full waits.
const REPORTS_LEN_MAX: usize = 256;
/// Read of an answer to an HTTP probe: the status line.
const ANSWER_BYTES_MAX: usize = 1024;
/// Of a probe's output in a status.
const SHOWN_CHARS_MAX: usize = 200;

/// A container's probes say something new; goes to [`ProbeRunner::record`] and asks for a new plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub key: ProbeKey,
    pub status: ProbeStatus,
}

/// The probes that run, and their newest word.
#[derive(Debug)]
pub struct ProbeRunner<R> {
    runtime: Arc<R>,
    host_ip: String,
    reports: mpsc::Sender<ProbeReport>,
    running: BTreeMap<ProbeKey, (ProbeTarget, AbortHandle)>,
    statuses: BTreeMap<ProbeKey, ProbeStatus>,
}

impl<R: Runtime> ProbeRunner<R> {
    /// The receiver belongs in the agent's loop.
    pub fn over(runtime: Arc<R>, host_ip: String) -> (Self, mpsc::Receiver<ProbeReport>) {
        let (reports, receiver) = mpsc::channel(REPORTS_LEN_MAX);
        (Self { runtime, host_ip, reports, running: BTreeMap::new(), statuses: BTreeMap::new() }, receiver)
    }

    /// Runs exactly the probes of [`Plan::probes`](crate::reconcile::Plan). A changed target starts its probes anew, except for
    /// what only records their progress.
    pub fn keep(&mut self, wanted: &BTreeMap<ProbeKey, ProbeTarget>) {
        self.running.retain(|key, (target, task)| {
            let same = wanted.get(key).is_some_and(|want| same_checks(want, target));
            if !same {
                task.abort();
            }
            same
        });
        self.statuses.retain(|key, _| wanted.contains_key(key));
        for (key, target) in wanted {
            if !self.running.contains_key(key) {
                let watch = Watch {
                    runtime: self.runtime.clone(),
                    host_ip: self.host_ip.clone(),
                    reports: self.reports.clone(),
                    key: key.clone(),
                    target: target.clone(),
                    status: ProbeStatus { started: target.started, ..ProbeStatus::default() },
                    origin: Instant::now(),
                };
                let task = tokio::spawn(watch.run()).abort_handle();
                self.running.insert(key.clone(), (target.clone(), task));
            }
        }
    }

    /// Takes a report in; one about probes that no longer run is dropped.
    pub fn record(&mut self, report: ProbeReport) {
        if self.running.contains_key(&report.key) {
            self.statuses.insert(report.key, report.status);
        }
    }

    /// For [`Observed::probes`](crate::reconcile::Observed).
    pub fn statuses(&self) -> &BTreeMap<ProbeKey, ProbeStatus> {
        &self.statuses
    }
}

impl<R> Drop for ProbeRunner<R> {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

fn same_checks(one: &ProbeTarget, other: &ProbeTarget) -> bool {
    one.container == other.container && one.env == other.env && one.working_dir == other.working_dir
}

/// The probes of one container.
struct Watch<R> {
    runtime: Arc<R>,
    host_ip: String,
    reports: mpsc::Sender<ProbeReport>,
    key: ProbeKey,
    target: ProbeTarget,
    status: ProbeStatus,
    origin: Instant,
}

impl<R: Runtime> Watch<R> {
    async fn run(mut self) {
        let machine = |field: &str| Probe::of(&self.target.container, field).map(|probe| Machine::starting(probe, 0));
        let (startup, mut liveness, mut readiness) =
            (machine("startupProbe"), machine("livenessProbe"), machine("readinessProbe"));
        if let Some(startup) = startup.filter(|_| !self.status.started) {
            if !self.start_up(startup).await {
                return;
            }
            let now_ms = self.now_ms();
            for held in [&mut liveness, &mut readiness].into_iter().flatten() {
                held.hold_until(now_ms);
            }
        }
        self.status.started = true;
        loop {
            let due = [&liveness, &readiness].into_iter().flatten().map(Machine::due_ms).min();
            let Some(due) = due else { return };
            sleep_until(self.origin + Duration::from_millis(due)).await;
            if let Some(machine) = liveness.as_mut().filter(|machine| machine.due_ms() <= due) {
                let outcome = self.check(machine.probe()).await;
                if machine.record(outcome.is_ok(), self.now_ms())
                    && let Err(why) = outcome
                {
                    self.status.failed = Some(format!("failed liveness probe ({why})"));
                    return self.tell().await;
                }
            }
            if let Some(machine) = readiness.as_mut().filter(|machine| machine.due_ms() <= due) {
                let outcome = self.check(machine.probe()).await;
                if machine.record(outcome.is_ok(), self.now_ms()) {
                    self.status.ready = machine.verdict();
                    self.tell().await;
                }
            }
        }
    }

    /// Runs the startup probe to its verdict; false when it failed, or nobody listens any more.
    async fn start_up(&mut self, mut machine: Machine) -> bool {
        loop {
            sleep_until(self.origin + Duration::from_millis(machine.due_ms())).await;
            let outcome = self.check(machine.probe()).await;
            if machine.record(outcome.is_ok(), self.now_ms()) {
                match outcome {
                    Ok(()) => self.status.started = true,
                    Err(why) => self.status.failed = Some(format!("failed startup probe ({why})")),
                }
                self.tell().await;
                return self.status.started;
            }
        }
    }

    async fn tell(&self) {
        // Nobody listens when the agent ends.
        drop(self.reports.send(ProbeReport { key: self.key.clone(), status: self.status.clone() }).await);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `Err` says why the probe failed.
    async fn check(&self, probe: &Probe) -> Result<(), String> {
        let asked = Asked {
            pod_uid: &self.key.pod_uid,
            container: &self.key.container,
            host_ip: &self.host_ip,
            env: &self.target.env,
            working_dir: &self.target.working_dir,
        };
        ask(&*self.runtime, &probe.check, &asked, Duration::from_millis(probe.timeout_ms)).await
    }
}

/// The container that is asked something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) pod_uid: &'a str,
    pub(crate) container: &'a str,
    pub(crate) host_ip: &'a str,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) working_dir: &'a str,
}

/// Asks a container, as a probe or a hook does. `Err` says what went wrong.
pub(crate) async fn ask<R: Runtime>(
    runtime: &R,
    check: &Check,
    asked: &Asked<'_>,
    limit: Duration,
) -> Result<(), String> {
    let late = || format!("no answer within {} ms", limit.as_millis());
    let host = |named: &Option<String>| named.clone().unwrap_or_else(|| asked.host_ip.to_owned());
    match check {
        Check::Exec(argv) => {
            let request = ExecRequest {
                pod_uid: asked.pod_uid.to_owned(),
                container: asked.container.to_owned(),
                argv: argv.clone(),
                env: asked.env.clone(),
                working_dir: asked.working_dir.to_owned(),
                timeout: limit,
            };
            match runtime.exec(&request).await {
                Ok(ExecOutcome::Exited { code: 0, .. }) => Ok(()),
                Ok(ExecOutcome::Exited { code, output }) => Err(format!("exit code {code}: {}", shown(&output))),
                Ok(ExecOutcome::TimedOut) => Err(late()),
                Err(error) => Err(error.to_string()),
            }
        }
        Check::Tcp { host: named, port } => {
            let connected = timeout(limit, TcpStream::connect((host(named), *port))).await;
            connected.map_err(|_| late())?.map(drop).map_err(|error| format!("tcp port {port}: {error}"))
        }
        Check::Http { host: named, port, path, headers } => {
            timeout(limit, http(&host(named), *port, path, headers)).await.map_err(|_| late())?
        }
        Check::Unusable(why) => Err(why.clone()),
    }
}

fn shown(output: &str) -> String {
    output.trim().chars().take(SHOWN_CHARS_MAX).collect()
}

/// GET, HTTP/1.1, one connection: 200 to 399 is a success, as for kubelet.
async fn http(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let broken = |error: std::io::Error| format!("http port {port}: {error}");
    let mut stream = TcpStream::connect((host, port)).await.map_err(broken)?;
    let mut head = format!("GET {path} HTTP/1.1\r\n");
    let given = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    for (name, value) in [("Host", format!("{host}:{port}")), ("User-Agent", "kube-probe/1.33".to_owned())] {
        if !given(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    let mut bounded = stream.take(ANSWER_BYTES_MAX as u64);
    while !answer.contains(&b'\n') {
        match bounded.read_buf(&mut answer).await.map_err(broken)? {
            0 => break,
            _ => continue,
        }
    }
    match status_code(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("http port {port}: the answer is not HTTP")),
    }
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|&byte| byte == b'\r' || byte == b'\n').next()?).ok()?;
    line.strip_prefix("HTTP/")?.split_ascii_whitespace().nth(1)?.parse().ok()
}
