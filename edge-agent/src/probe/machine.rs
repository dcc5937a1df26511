//! When a probe is due and what its results amount to. Pure: milliseconds come from the caller's monotonic clock.

use serde_json::Value;

/// How one probe is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    Exec(Vec<String>),
    Http {
        host: Option<String>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: Option<String>,
        port: u16,
    },
    /// The manifest names nothing that can be run here; the text says why. Always fails.
    Unusable(String),
}

/// One probe of a manifest, with Kubernetes' defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay_ms: u64,
    pub period_ms: u64,
    pub timeout_ms: u64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Probe {
    /// Reads `container[field]`; named ports are looked up in the container. `None` when there is no such probe.
    pub fn of(container: &Value, field: &str) -> Option<Self> {
        let probe = container.get(field).filter(|probe| probe.is_object())?;
        let whole = |name: &str, default: u64, least: u64| {
            probe.get(name).and_then(Value::as_u64).filter(|&value| value >= least).unwrap_or(default)
        };
        let threshold = |name: &str, default: u64| u32::try_from(whole(name, default, 1)).unwrap_or(u32::MAX);
        Some(Self {
            check: Check::of(container, probe),
            initial_delay_ms: whole("initialDelaySeconds", 0, 0).saturating_mul(1000),
            period_ms: whole("periodSeconds", 10, 1).saturating_mul(1000),
            timeout_ms: whole("timeoutSeconds", 1, 1).saturating_mul(1000),
            success_threshold: threshold("successThreshold", 1),
            failure_threshold: threshold("failureThreshold", 3),
        })
    }
}

impl Check {
    /// Reads what a probe or a hook of this container does.
    pub fn of(container: &Value, handler: &Value) -> Self {
        check_of(container, handler)
    }
}

fn check_of(container: &Value, probe: &Value) -> Check {
    let text = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(exec) = probe.get("exec") {
        let argv: Vec<String> = exec
            .get("command")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect();
        return if argv.is_empty() { Check::Unusable("exec.command is empty".into()) } else { Check::Exec(argv) };
    }
    if let Some(http) = probe.get("httpGet") {
        let Some(port) = port_of(container, http.get("port")) else {
            return Check::Unusable(format!(
                "httpGet.port {} names no port of this container",
                shown(http.get("port"))
            ));
        };
        let headers: Vec<(String, String)> = http
            .get("httpHeaders")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|header| Some((text(header, "name")?, text(header, "value").unwrap_or_default())))
            .collect();
        let path = text(http, "path").unwrap_or_else(|| "/".into());
        // They become lines of a request: a line break in one would forge another.
        let spoken = headers.iter().flat_map(|(name, value)| [name, value]).chain([&path]);
        if spoken.into_iter().any(|text| text.contains(char::is_control)) {
            return Check::Unusable("httpGet has a control character in its path or headers".into());
        }
        return Check::Http { host: text(http, "host"), port, path, headers };
    }
    if let Some(tcp) = probe.get("tcpSocket") {
        return match port_of(container, tcp.get("port")) {
            Some(port) => Check::Tcp { host: text(tcp, "host"), port },
            None => {
                Check::Unusable(format!("tcpSocket.port {} names no port of this container", shown(tcp.get("port"))))
            }
        };
    }
    Check::Unusable("this agent runs exec, httpGet and tcpSocket probes only".into())
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "(missing)".to_owned(), ToString::to_string)
}

fn port_of(container: &Value, port: Option<&Value>) -> Option<u16> {
    match port? {
        Value::Number(number) => number.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0),
        Value::String(name) => {
            let ports = container.get("ports")?.as_array()?;
            let found = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(name));
            match found {
                Some(port) => u16::try_from(port.get("containerPort")?.as_u64()?).ok(),
                None => name.parse().ok().filter(|&port| port > 0),
            }
        }
        _ => None,
    }
}

/// One probe's run of successes and failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    probe: Probe,
    next_ms: u64,
    verdict: Option<bool>,
    successes: u32,
    failures: u32,
}

impl Machine {
    /// `started_ms`: when the container started, or was adopted.
    pub fn starting(probe: Probe, started_ms: u64) -> Self {
        let next_ms = started_ms.saturating_add(probe.initial_delay_ms);
        Self { probe, next_ms, verdict: None, successes: 0, failures: 0 }
    }

    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// When the probe is to run next.
    pub fn due_ms(&self) -> u64 {
        self.next_ms
    }

    /// Not before `now_ms`: a probe that was held back (by a startup probe) does not catch up.
    pub fn hold_until(&mut self, now_ms: u64) {
        self.next_ms = self.next_ms.max(now_ms);
    }

    /// `None` until a threshold was reached for the first time.
    pub fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes a result in; true when the verdict changed.
    pub fn record(&mut self, success: bool, now_ms: u64) -> bool {
        self.next_ms = now_ms.max(self.next_ms).saturating_add(self.probe.period_ms);
        if success {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
        }
        let reached = if success {
            self.successes >= self.probe.success_threshold
        } else {
            self.failures >= self.probe.failure_threshold
        };
        if !reached || self.verdict == Some(success) {
            return false;
        }
        self.verdict = Some(success);
        true
    }
}
