//! The way to the hub: tries the known roads, runs a session on the best that works, and comes back after it ends.
//!
//! Owns reconnecting and the renewal of the session certificate. Refuses to matter: nothing that runs on the device waits for it.
//! Start reading at [`Uplink::run`].

use std::sync::Arc;
use std::time::Duration;

use flotilla_sync::backoff::{Backoff, Preference, Road, Roads, Step};
use flotilla_sync::driver;
use flotilla_sync::identity::{FlooredClock, TrustTime};
use flotilla_sync::session::{SessionConfig, SessionEnd};
use flotilla_sync::transport::{ConnectError, Connector, Target};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;

use crate::args::{RunArguments, Transport};
use crate::clock::{Clock, monotonic_ms};
use crate::enrolment::{self, Identity};
use crate::replica::DeviceReplica;
use crate::store::Store;

/// Whether there is a session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Up,
    Down,
}

/// Everything the uplink needs; see [`run`](Self::run).
#[derive(Debug)]
pub struct Uplink {
    pub identity: Identity,
    pub arguments: RunArguments,
    pub store: Store,
    pub replica: Arc<DeviceReplica>,
    pub clock: Arc<Clock>,
    pub time: Arc<dyn TrustTime>,
    pub trust: Arc<FlooredClock>,
    pub boot: u64,
    pub link: watch::Sender<Link>,
    /// Turns true when the agent ends: the session says goodbye and [`run`](Self::run) returns.
    pub leave: watch::Receiver<bool>,
}

/// How an attempt or a session ended, as far as the next one cares.
struct Ended {
    retry_after_ms: Option<u64>,
    refused: bool,
    /// There was a session: the next attempt waits its turn, so that the devices of a hub that stops do not come all at once.
    served: bool,
}

impl Uplink {
    /// Runs until it is told to leave.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let targets = self.targets();
            let quic_len = targets.iter().filter(|target| matches!(target, Target::Quic(_))).count();
            let mut roads = Roads::new(self.preference(), quic_len, targets.len() - quic_len);
            if roads.is_empty() {
                tracing::error!("the hub has no address for the transport asked for; this device stays offline");
                return told(&mut self.leave).await;
            }
            let mut retry_after_ms = None;
            while let Step::Try(road) = roads.step() {
                let target = target_of(&targets, road, quic_len);
                let ended = self.attempt(&target, road, &mut roads, &mut backoff).await;
                retry_after_ms = ended.retry_after_ms.or(retry_after_ms);
                if *self.leave.borrow() {
                    return;
                }
                if ended.refused {
                    self.renew(&target).await;
                }
                if ended.served {
                    break;
                }
            }
            let wait_ms = backoff.wait_ms(monotonic_ms(), random(), retry_after_ms);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = told(&mut self.leave) => return,
            }
        }
    }

    /// One connection attempt, and the session if it works.
    async fn attempt(&mut self, target: &Target, road: Road, roads: &mut Roads, backoff: &mut Backoff) -> Ended {
        // By proven time: a clock that runs ahead must not renew at every attempt. A certificate that is over all the same is refused,
        // and then renewed.
        if self.identity.renew_at() <= self.clock.proven() {
            self.renew(target).await;
        }
        let enrolment = &self.identity.enrolment;
        let node = self.identity.node.clone();
        let connector =
            Connector::new(&enrolment.credentials, &enrolment.authority, &enrolment.root, node.clone(), &self.time);
        let connector = match connector {
            Ok(connector) => connector,
            Err(error) => {
                tracing::error!(error = %enrolment::chain(&error), "the session certificate cannot be used");
                return Ended { retry_after_ms: None, refused: true, served: false };
            }
        };
        let connected = tokio::select! {
            connected = connector.connect(target) => connected,
            () = told(&mut self.leave) => return Ended { retry_after_ms: None, refused: false, served: true },
        };
        let pipe = match connected {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::debug!(%target, error = %enrolment::chain(&error), "no connection to the hub");
                let refused = matches!(error, ConnectError::Refused { .. });
                return Ended { retry_after_ms: error.retry_after_ms(), refused, served: false };
            }
        };
        tracing::info!(%target, transport = %pipe.transport, "connected to the hub");
        backoff.connected(monotonic_ms());
        roads.connected(road, monotonic_ms(), random());
        let config = SessionConfig {
            root: enrolment.root,
            node: Some(node),
            incarnation: enrolment.incarnation,
            boot: self.boot,
            seed: random(),
        };
        let (handle, commands) = driver::commands();
        let better = self.watch_for_better(&connector, roads, target);
        self.link.send_replace(Link::Up);
        let session = driver::run(pipe, config, self.replica.clone(), commands);
        let mut leave = self.leave.clone();
        tokio::pin!(session);
        let end = tokio::select! {
            end = &mut session => end,
            () = better => {
                handle.close("the device connects anew", None).await;
                session.await
            }
            () = told(&mut leave) => {
                handle.close("the agent stops; pods go on", None).await;
                session.await
            }
        };
        self.link.send_replace(Link::Down);
        roads.disconnected();
        tracing::info!(%target, reason = ?end, "the session with the hub ended; workloads go on");
        let retry_after_ms = match end {
            SessionEnd::RetryAfter { ms } => Some(ms),
            _ => None,
        };
        Ended { retry_after_ms, refused: false, served: true }
    }

    /// Returns once a better road than the present one has been seen to work, or the certificate wants renewal; on the best
    /// road with a young certificate, never.
    fn watch_for_better(
        &self,
        connector: &Connector,
        roads: &mut Roads,
        present: &Target,
    ) -> impl Future<Output = ()> + use<> {
        let on_mqtt = matches!(present, Target::Mqtt(_));
        let quic: Vec<Target> = self.targets().into_iter().filter(|target| matches!(target, Target::Quic(_))).collect();
        let at_ms = roads.better_at_ms();
        let renew_in_ms = self.identity.renew_at().0.saturating_sub(self.clock.proven().0).max(60_000);
        let connector = connector.clone();
        async move {
            let renewal = tokio::time::sleep(Duration::from_millis(renew_in_ms));
            let probing = async {
                let Some(mut wait_ms) = at_ms.map(|at| at.saturating_sub(monotonic_ms())).filter(|_| on_mqtt) else {
                    return std::future::pending().await;
                };
                loop {
                    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                    for target in &quic {
                        if connector.connect(target).await.is_ok() {
                            return;
                        }
                    }
                    wait_ms = 60_000 + random() % 30_000;
                }
            };
            tokio::select! {
                () = renewal => {}
                () = probing => {}
            }
        }
    }

    async fn renew(&mut self, target: &Target) {
        match self.identity.renew(&self.store, target, &self.time).await {
            Ok(()) => {
                self.trust.raise(self.identity.enrolment.hub_time_ms);
                tracing::info!("the session certificate was renewed");
            }
            Err(error) => {
                tracing::warn!(error = %enrolment::chain(&error), "the session certificate could not be renewed; workloads go on");
            }
        }
    }

    fn targets(&self) -> Vec<Target> {
        let enrolment = &self.identity.enrolment;
        enrolment::targets(self.arguments.transport, &enrolment.quic, &enrolment.mqtt, &self.arguments.hub)
    }

    fn preference(&self) -> Preference {
        match self.arguments.transport {
            Transport::Auto => Preference::Auto,
            Transport::Quic => Preference::Quic,
            Transport::Mqtt => Preference::Mqtt,
        }
    }
}

/// Returns once the agent ends, or whoever would say so is gone.
async fn told(leave: &mut watch::Receiver<bool>) {
    drop(leave.wait_for(|leave| *leave).await);
}

fn target_of(targets: &[Target], road: Road, quic_len: usize) -> Target {
    match road {
        Road::Quic(index) => targets[index].clone(),
        Road::Mqtt(index) => targets[quic_len + index].clone(),
    }
}

/// Uniform over all of `u64`; a failing source costs spread, nothing else.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_unspecified) => monotonic_ms(),
    }
}
