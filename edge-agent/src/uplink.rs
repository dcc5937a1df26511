//! The way to the hub: tries the known roads, runs a session on the best that works, and comes back after it ends.
//!
//! Owns reconnecting, the change to another road and the renewal of the session certificate. Refuses to matter: nothing that runs on the device waits for it.
//! Start reading at [`Uplink::run`].

use std::sync::Arc;
use std::time::Duration;

use flotilla_sync::backoff::{Backoff, HEAD_START_MS, Preference, Road, Roads, wait_without_news_ms};
use flotilla_sync::chance;
use flotilla_sync::driver;
use flotilla_sync::identity::{FlooredClock, IdentityError, NodeName, TrustTime};
use flotilla_sync::replica::Replica as _;
use flotilla_sync::session::{SessionConfig, SessionEnd};
use flotilla_sync::transport::{ConnectError, Connector, PeerIdentity, Pipe, Target};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::{RunArguments, Transport};
use crate::clock::Clock;
use crate::enrolment::{self, Identity};
use crate::replica::DeviceReplica;
use crate::store::Store;

/// While nothing is heard and no other road works, how long until all are tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether there is a session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Up,
    Down,
}

/// Where the roads to the hub are written down.
#[derive(Debug)]
pub enum Known {
    /// The hub said it when this device joined, unless the command line says otherwise.
    OfHub(Box<RunArguments>),
    /// Others: those of a simulation or of a generator of load, direct ones first.
    Given(Vec<Target>),
}

/// Everything the uplink needs; see [`run`](Self::run).
#[derive(Debug)]
pub struct Uplink {
    pub identity: Identity,
    pub roads: Known,
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

/// A road that works.
struct Reached {
    road: Road,
    target: Target,
    pipe: Pipe,
}

/// Why none did.
#[derive(Default)]
struct Failed {
    retry_after_ms: Option<u64>,
    /// Where the hub refused the certificate.
    refused: Option<Target>,
    /// The hub is there and has no time.
    busy: bool,
    /// A broker has told that the fleet's channel holds nothing that is not here.
    without_news: bool,
}

impl Uplink {
    /// Runs until it is told to leave.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let targets = self.targets();
            let quic_len = direct_len(&targets);
            let mut roads = Roads::new(self.preference(), quic_len, targets.len() - quic_len);
            if roads.order().is_empty() {
                tracing::error!("the hub has no address for the transport asked for; this device stays offline");
                return told(&mut self.leave).await;
            }
            let (mut without_news, mut busy) = (false, false);
            let retry_after_ms = match self.reach(&targets, &roads).await {
                Ok(mut reached) => {
                    // A session that ended for a better road goes on there at once.
                    loop {
                        backoff.connected(self.clock.monotonic_ms());
                        match self.serve(reached, &targets, &mut roads).await {
                            Served::Moved(next) => reached = *next,
                            Served::Ended { retry_after_ms } => break retry_after_ms,
                        }
                    }
                }
                Err(failed) => {
                    if let Some(target) = failed.refused {
                        self.renew(&target).await;
                    }
                    without_news = failed.busy && failed.without_news;
                    busy = failed.busy && failed.retry_after_ms.is_none();
                    failed.retry_after_ms
                }
            };
            if *self.leave.borrow() {
                return;
            }
            let now_ms = self.clock.monotonic_ms();
            let wait_ms = if busy {
                backoff.busy_wait_ms(now_ms, random())
            } else {
                backoff.wait_ms(now_ms, random(), retry_after_ms)
            };
            let wait_ms = if without_news { wait_without_news_ms(wait_ms) } else { wait_ms };
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = told(&mut self.leave) => return,
            }
        }
    }

    /// Opens the best road that works now.
    async fn reach(&mut self, targets: &[Target], roads: &Roads) -> Result<Reached, Failed> {
        // By proven time: a clock that runs ahead must not renew at every attempt. A certificate that is over all the same is refused,
        // and then renewed.
        if self.identity.renew_at() <= self.clock.proven() {
            for target in targets {
                if self.renew(target).await {
                    break;
                }
            }
        }
        let connector = match self.connector() {
            Ok(connector) => connector,
            Err(error) => {
                tracing::error!(error = %enrolment::chain(&error), "the session certificate cannot be used");
                return Err(Failed { refused: targets.first().cloned(), ..Failed::default() });
            }
        };
        let mut reached = tokio::select! {
            biased;
            reached = race(&connector, targets, roads.order()) => reached,
            () = told(&mut self.leave) => Err(Failed::default()),
        };
        if let Err(failed) = &mut reached {
            failed.without_news = self.is_without_news(&connector).await;
        }
        reached
    }

    /// Whether what a broker told of the fleet's channel is all here.
    async fn is_without_news(&self, connector: &Connector) -> bool {
        let Some(told) = connector.position_heard() else { return false };
        let heads = self.replica.heads(&PeerIdentity::Hub).await.unwrap_or_default();
        let own = heads.get(&told.channel).and_then(|logs| logs.get(&told.writer));
        own.is_some_and(|own| own.seq >= told.seq)
    }

    /// The way to sessions, kept as long as its certificate, with a fresh ear for what brokers tell meanwhile.
    fn connector(&mut self) -> Result<Connector, IdentityError> {
        let connector = self.identity.connector(&self.time)?;
        Ok(match NodeName::parse(&self.identity.enrolment.fleet) {
            Ok(fleet) => connector.listening_to(fleet),
            Err(_unusable) => connector,
        })
    }

    /// One session.
    async fn serve(&mut self, reached: Reached, targets: &[Target], roads: &mut Roads) -> Served {
        let Reached { road, target, pipe } = reached;
        tracing::info!(%target, transport = %pipe.transport, "connected to the hub");
        roads.connected(road, self.clock.monotonic_ms(), random());
        let enrolment = &self.identity.enrolment;
        let config = SessionConfig {
            root: enrolment.root,
            node: Some(self.identity.node.clone()),
            incarnation: enrolment.incarnation,
            boot: self.boot,
            seed: random(),
        };
        let (handle, commands) = driver::commands();
        let renew_in_ms = self.identity.renew_at().0.saturating_sub(self.clock.proven().0).max(60_000);
        let connector = self.connector();
        let clock = Arc::clone(&self.clock);
        let stalled = pipe.stalled.clone();
        self.link.send_replace(Link::Up);
        let mut leave = self.leave.clone();
        let session = driver::run(pipe, config, self.replica.clone(), commands);
        let moved = async {
            match &connector {
                Ok(connector) => change_of_road(&clock, connector, targets, roads, stalled).await,
                // The certificate was good enough for this session.
                Err(_unusable) => std::future::pending().await,
            }
        };
        tokio::pin!(session);
        let mut next = None;
        let end = tokio::select! {
            biased;
            end = &mut session => end,
            found = moved => {
                next = Some(found);
                handle.close("the device goes on by another road", None).await;
                session.await
            }
            () = tokio::time::sleep(Duration::from_millis(renew_in_ms)) => {
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
        if matches!(&end, SessionEnd::Goodbye(reason) if reason == driver::ENROL_AGAIN) {
            // The hub was restored from a backup older than this device: the device shows its certificate and key.
            self.renew(&target).await;
        }
        if matches!(&end, SessionEnd::Goodbye(reason) if reason == driver::REPLACED) {
            self.replica.was_replaced();
        }
        match (next, end) {
            (Some(next), _) => Served::Moved(Box::new(next)),
            (None, SessionEnd::RetryAfter { ms }) => Served::Ended { retry_after_ms: Some(ms) },
            (None, _) => Served::Ended { retry_after_ms: None },
        }
    }

    async fn renew(&mut self, target: &Target) -> bool {
        match self.identity.renew(&self.store, target, &self.time).await {
            Ok(()) => {
                self.trust.raise(self.identity.enrolment.hub_time_ms);
                tracing::info!("the session certificate was renewed");
                true
            }
            Err(error) => {
                tracing::warn!(error = %enrolment::chain(&error), "the session certificate could not be renewed; workloads go on");
                false
            }
        }
    }

    fn targets(&self) -> Vec<Target> {
        let enrolment = &self.identity.enrolment;
        match &self.roads {
            Known::OfHub(arguments) => enrolment::targets(arguments, &enrolment.quic, &enrolment.mqtt),
            Known::Given(targets) => targets.clone(),
        }
    }

    fn preference(&self) -> Preference {
        match &self.roads {
            Known::Given(_) => Preference::Auto,
            Known::OfHub(arguments) => match arguments.transport {
                Transport::Auto => Preference::Auto,
                Transport::Quic => Preference::Quic,
                Transport::Mqtt => Preference::Mqtt,
            },
        }
    }
}

/// How a session ended, as far as what follows cares.
enum Served {
    /// It goes on by another road.
    Moved(Box<Reached>),
    /// The next attempt waits its turn, so that the devices of a hub that stops do not come all at once.
    Ended { retry_after_ms: Option<u64> },
}

/// Tries roads, each a while after the one before it, or when that has failed; the first that works is taken.
async fn race(connector: &Connector, targets: &[Target], order: &[Road]) -> Result<Reached, Failed> {
    let mut failed = Failed::default();
    let mut attempts = JoinSet::new();
    let mut waiting = order.iter();
    loop {
        if let Some(road) = waiting.next() {
            let (road, target, connector) = (*road, target_of(targets, *road), connector.clone());
            attempts.spawn(async move {
                let connected = connector.connect(&target).await;
                (road, target, connected)
            });
        }
        let more = waiting.len() > 0;
        let ended = tokio::select! {
            biased;
            ended = attempts.join_next() => ended,
            () = tokio::time::sleep(Duration::from_millis(HEAD_START_MS)), if more => continue,
        };
        match ended {
            Some(Ok((road, target, Ok(pipe)))) => return Ok(Reached { road, target, pipe }),
            Some(Ok((_, target, Err(error)))) => {
                tracing::debug!(%target, error = %enrolment::chain(&error), "no connection to the hub");
                failed.retry_after_ms = error.retry_after_ms().or(failed.retry_after_ms);
                failed.busy |= error.is_busy();
                if matches!(error, ConnectError::Refused { .. }) {
                    failed.refused = Some(target);
                }
            }
            Some(Err(error)) => tracing::error!(%error, "an attempt to connect broke off"),
            None if more => {}
            None => return Err(failed),
        }
    }
}

/// Returns another road once one has been opened: a better one than the present, or any while nothing is heard on the present one.
async fn change_of_road(
    clock: &Clock,
    connector: &Connector,
    targets: &[Target],
    roads: &mut Roads,
    mut stalled: Option<watch::Receiver<bool>>,
) -> Reached {
    loop {
        let better_in_ms = roads.better_at_ms().map(|at| at.saturating_sub(clock.monotonic_ms()));
        let better = async {
            match better_in_ms {
                Some(wait_ms) => tokio::time::sleep(Duration::from_millis(wait_ms)).await,
                None => std::future::pending().await,
            }
        };
        let order = tokio::select! {
            biased;
            () = better => roads.better(clock.monotonic_ms(), random()),
            () = silent(&mut stalled), if roads.order().len() > 1 => roads.others(),
        };
        if order.is_empty() {
            continue;
        }
        let answered = async {
            match stalled.clone().filter(|stalled| *stalled.borrow()) {
                Some(mut stalled) => drop(stalled.wait_for(|stalled| !*stalled).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            raced = race(connector, targets, &order) => match raced {
                Ok(reached) => return reached,
                Err(_failed) => tokio::time::sleep(AGAIN).await,
            },
            () = answered => tracing::debug!("the hub answers again on the present road"),
        }
    }
}

/// Returns while nothing is heard on the present road.
async fn silent(stalled: &mut Option<watch::Receiver<bool>>) {
    if let Some(receiver) = stalled
        && receiver.wait_for(|stalled| *stalled).await.is_ok()
    {
        return;
    }
    // The pipe is gone: the session ends by itself.
    std::future::pending().await
}

/// Returns once the agent ends, or whoever would say so is gone.
async fn told(leave: &mut watch::Receiver<bool>) {
    drop(leave.wait_for(|leave| *leave).await);
}

/// The targets that need no broker stand first.
fn direct_len(targets: &[Target]) -> usize {
    targets.iter().filter(|target| !matches!(target, Target::Mqtt(_))).count()
}

fn target_of(targets: &[Target], road: Road) -> Target {
    let quic_len = direct_len(targets);
    match road {
        Road::Quic(index) => targets[index].clone(),
        Road::Mqtt(index) => targets[quic_len + index].clone(),
    }
}

/// Uniform over all of `u64`; a failing source costs spread, nothing else.
pub(crate) fn random() -> u64 {
    chance::bytes().map_or(u64::MAX / 2, u64::from_le_bytes)
}
