//! One light device: the real identity, store, replica, connector and backoff of an agent, without its loop and containers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flotilla_agent::args::{RunArguments, Transport};
use flotilla_agent::clock::{Clock, monotonic_ms};
use flotilla_agent::effective::{Memory, effective};
use flotilla_agent::enrolment::Identity;
use flotilla_agent::knowledge::Knowledge;
use flotilla_agent::replica::{DeviceReplica, Life};
use flotilla_agent::store::{Elsewhere, Store};
use flotilla_manifests::derive::NodeRef;
use flotilla_manifests::kind;
use flotilla_manifests::object::ObjectKey;
use flotilla_sync::backoff::Backoff;
use flotilla_sync::driver;
use flotilla_sync::identity::{FlooredClock, SealingKey, SigningKey, TrustTime};
use flotilla_sync::session::{SessionConfig, SessionEnd};
use flotilla_sync::transport::{Connector, SharedSocket, Target};
use serde_json::{Value, json};

use super::crowd::Crowd;
use super::watched::Watched;

/// The ConfigMap whose values are edited.
pub(crate) const CONFIG_MAP: &str = "tuning";

/// One device with its session's material.
pub(crate) struct Device {
    pub(crate) replica: Arc<Watched>,
    config: SessionConfig,
    connector: Connector,
    /// A connector that remembers no session.
    anew: Box<dyn Fn() -> Connector + Send + Sync>,
    node: NodeRef,
    sealing: [u8; 32],
    clock: Arc<Clock>,
}

impl Device {
    /// Opens the device in `folder`; one that has not joined yet joins with `token` first, as an agent does.
    pub(crate) async fn open(
        folder: &Path,
        name: &str,
        token: Option<String>,
        place: (Arc<Crowd>, usize),
        socket: Option<SharedSocket>,
    ) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let (store, loaded) = Store::open_here(folder, Elsewhere::default()).map_err(|error| chain(&error))?;
        let stored = loaded.meta.get("boot").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let boot = stored.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
        store.set_meta("boot", boot.to_string().into_bytes()).await.map_err(|error| chain(&error))?;
        let clock = Arc::new(Clock::default());
        let reading = Arc::clone(&clock);
        let trust = FlooredClock::new(move || reading.now().0, 0);
        let time: Arc<dyn TrustTime> = trust.clone();
        let arguments = arguments(folder, name, token);
        let identity = Identity::open(&store, &loaded, &arguments, &time)
            .await
            .map_err(|error| format!("{name}: {}", chain(&error)))?;
        let enrolment = &identity.enrolment;
        let life = Life {
            node: identity.node.clone(),
            root: enrolment.root,
            writer: identity.writer.clone(),
            signing: SigningKey::from_seed(identity.keys.signing.seed()).map_err(|error| error.to_string())?,
            certificate: enrolment.certificate.clone(),
            incarnation: enrolment.incarnation,
            boot,
        };
        let node = NodeRef { name: identity.node.to_string(), uid: identity.node_uid.clone() };
        let (credentials, authority) = (enrolment.credentials.clone(), enrolment.authority.clone());
        let (root, name) = (enrolment.root, identity.node.clone());
        let anew = move || {
            let made = Connector::new(&credentials, &authority, &root, name.clone(), &time).unwrap();
            socket.iter().fold(made, |made, socket| made.through(socket.clone()))
        };
        let connector = anew();
        let config = SessionConfig {
            root: enrolment.root,
            node: Some(identity.node.clone()),
            incarnation: enrolment.incarnation,
            boot,
            seed: random(),
        };
        let (replica, _streams) = DeviceReplica::take_up(store, &loaded, life, Arc::clone(&clock), trust)
            .map_err(|error| error.to_string())?;
        let sealing = identity.keys.sealing.to_bytes();
        let replica = Arc::new(Watched::over(replica, place));
        Ok(Self { replica, config, connector, anew: Box::new(anew), node, sealing, clock })
    }

    /// Connects, serves the session, comes back: until the task is aborted, which breaks the session off as a cut does.
    pub(crate) async fn live(self: Arc<Self>, target: Target, after: Duration) {
        tokio::time::sleep(after).await;
        let mut backoff = Backoff::new();
        loop {
            let mut busy = false;
            let dialling = self.replica.crowd.dialling.acquire().await.unwrap();
            let connected = self.connector.connect(&target).await;
            drop(dialling);
            let retry_after_ms = match connected {
                Ok(pipe) => {
                    backoff.connected(monotonic_ms());
                    self.replica.crowd.count("connections");
                    let (_handle, commands) = driver::commands();
                    let mut config = self.config.clone();
                    config.seed = random();
                    match driver::run(pipe, config, Arc::clone(&self.replica), commands).await {
                        SessionEnd::RetryAfter { ms } => Some(ms),
                        end => {
                            self.replica.crowd.trouble("session", &format!("{end:?}"));
                            None
                        }
                    }
                }
                Err(error) => {
                    self.replica.crowd.trouble("connect", &error.to_string());
                    busy = error.is_busy() && error.retry_after_ms().is_none();
                    error.retry_after_ms()
                }
            };
            self.replica.disconnected();
            let wait_ms = if busy {
                backoff.busy_wait_ms(monotonic_ms(), random())
            } else {
                backoff.wait_ms(monotonic_ms(), random(), retry_after_ms)
            };
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// Opens a pipe to the hub and lets it go, as often as the hub is too busy for it. `fresh`: as a device that was never here.
    pub(crate) async fn shake_hands(&self, target: &Target, fresh: bool) {
        let connector = if fresh { (self.anew)() } else { self.connector.clone() };
        while let Err(error) = connector.connect(target).await {
            self.replica.crowd.trouble("connect", &error.to_string());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the device would run, by the agent's own code; told to the hub as running.
    pub(crate) async fn report(&self) -> Result<usize, String> {
        let read = Knowledge::opening_with(SealingKey::from_bytes(self.sealing)).read(&self.replica.inner);
        let wanted = effective(&self.node, &read.known, &Memory::default(), self.clock.proven());
        let now = self.clock.now().to_rfc3339();
        let mut facts = vec![("node".to_owned(), true, Some(node_status(&now).to_string().into_bytes()))];
        for (uid, pod) in &wanted.pods.pods {
            let Some(origin) = wanted.origins.get(uid) else { continue };
            let body = json!({
                "namespace": pod.object.namespace(), "name": pod.object.name(), "uid": origin.subject,
                "workload": origin.workload, "number": origin.number, "attempt": origin.attempt,
                "status": pod_status(&now),
            });
            facts.push((format!("pod/{}", origin.subject), true, Some(body.to_string().into_bytes())));
        }
        let pods = facts.len() - 1;
        self.replica.inner.report(facts).await.map_err(|error| chain(&error))?;
        Ok(pods)
    }

    /// The edited value as this device understands it.
    pub(crate) fn value(&self) -> Option<String> {
        let read = Knowledge::opening_with(SealingKey::from_bytes(self.sealing)).read(&self.replica.inner);
        let key = ObjectKey::of(&kind::CONFIG_MAP, "default", CONFIG_MAP);
        let found = read.known.manifests.values().find(|manifest| manifest.object.key() == key)?;
        found.object.at("/data/value").and_then(Value::as_str).map(str::to_owned)
    }
}

fn arguments(folder: &Path, name: &str, token: Option<String>) -> RunArguments {
    RunArguments {
        data: folder.to_owned(),
        name: Some(name.to_owned()),
        join: token,
        labels: BTreeMap::new(),
        transport: Transport::Quic,
        hub: Vec::new(),
        broker: Vec::new(),
        listen: None,
        oci_runtime: None,
        offline: false,
        drain: false,
    }
}

fn node_status(now: &str) -> Value {
    json!({
        "capacity": {"cpu": "4", "memory": "2Gi", "pods": "110"},
        "allocatable": {"cpu": "4", "memory": "2Gi", "pods": "110"},
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux", "kernelVersion": "6.1", "osImage": "Debian 12",
            "kubeletVersion": "v1.33.0", "containerRuntimeVersion": "crun://1.8", "bootID": "b", "machineID": "m",
            "systemUUID": "s", "kubeProxyVersion": ""},
        "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "the agent runs",
            "lastTransitionTime": now, "lastHeartbeatTime": now}],
    })
}

fn pod_status(now: &str) -> Value {
    json!({
        "phase": "Running", "startTime": now, "hostIP": "10.0.0.1", "podIP": "10.1.0.2",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [{"name": "main", "image": "busybox", "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": {"running": {"startedAt": now}}}],
    })
}

fn random() -> u64 {
    u64::from_le_bytes(flotilla_sync::chance::bytes().unwrap())
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    flotilla_agent::enrolment::chain(error)
}
