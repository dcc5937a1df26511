//! The device's own Kubernetes API: reads from the local view, writes as commands to the agent's loop.
//!
//! Owns watching and log reading for local callers. Refuses decisions about writes: [`crate::local_write`] has them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::Backend;
use flotilla_rest::backend::{Listing, LogRequest, WatchEvent, WriteRequest, Written};
use flotilla_rest::page::rewound;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::logs;
use crate::reconcile::History;
use crate::runtime::Runtime;
use crate::view::{Change, LocalView};

/// What this API serves. Other kinds live at the hub alone.
static KINDS: &[KindRef] = &[
    &kind::NAMESPACE,
    &kind::NODE,
    &kind::POD,
    &kind::CONFIG_MAP,
    &kind::SECRET,
    &kind::EVENT,
    &kind::DAEMON_SET,
    &kind::DEPLOYMENT,
    &kind::REPLICA_SET,
    &kind::LEASE,
    &kind::OVERRIDE,
];

/// Changes a watcher may lag behind before it is told to list again.
const WATCH_LEN_MAX: usize = 256;

/// A write that waits for the loop's answer.
#[derive(Debug)]
pub struct WriteCommand {
    pub request: WriteRequest,
    pub reply: oneshot::Sender<Result<Written, ApiError>>,
}

/// State shared between the loop, which alone changes it, and the API, which reads.
#[derive(Debug)]
pub struct Shared {
    view: Mutex<LocalView>,
    history: Mutex<History>,
    version: watch::Sender<u64>,
}

impl Shared {
    pub fn over(view: LocalView) -> Self {
        let version = view.version();
        Self { view: Mutex::new(view), history: Mutex::new(History::new()), version: watch::Sender::new(version) }
    }

    pub fn view(&self) -> MutexGuard<'_, LocalView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pod histories, for `logs --previous`.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watchers.
    pub fn announce(&self) {
        let version = self.view().version();
        self.version.send_replace(version);
    }
}

/// Implements [`Backend`] for one device.
#[derive(Debug)]
pub struct LocalBackend<R> {
    shared: Arc<Shared>,
    commands: mpsc::Sender<WriteCommand>,
    runtime: Arc<R>,
    clock: Arc<Clock>,
}

impl<R: Runtime> LocalBackend<R> {
    pub fn over(shared: Arc<Shared>, commands: mpsc::Sender<WriteCommand>, runtime: Arc<R>, clock: Arc<Clock>) -> Self {
        Self { shared, commands, runtime, clock }
    }

    /// The log of a Pod's container, for local callers and for the hub's streams.
    pub fn read_log(&self, request: &LogRequest) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        let key = ObjectKey::of(&kind::POD, request.namespace.as_str(), request.pod.as_str());
        let pod = self.shared.view().object(&key).ok_or_else(|| ApiError::not_found(&key))?;
        let history = self.shared.history().get(pod.uid()).cloned();
        let target = logs::choose(&pod, history.as_ref(), request)?;
        Ok(logs::stream(self.runtime.clone(), target, request, self.clock.now()))
    }
}

impl<R: Runtime> Backend for LocalBackend<R> {
    fn kinds(&self) -> &[KindRef] {
        KINDS
    }

    async fn read(&self, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.shared.view().object(key).ok_or_else(|| ApiError::not_found(key))
    }

    async fn list(&self, kind: KindRef, namespace: Option<&str>) -> Result<Listing, ApiError> {
        let view = self.shared.view();
        Ok(Listing { resource_version: view.version(), items: view.list(kind, namespace) })
    }

    async fn list_at(&self, kind: KindRef, namespace: Option<&str>, version: u64) -> Result<Listing, ApiError> {
        let view = self.shared.view();
        let Some(changes) = view.since(version) else {
            let message = format!("The provided resource version is not kept any more: {version}");
            return Err(ApiError::of(Reason::Expired, message));
        };
        let mine = |change: &&Arc<Change>| {
            change.kind == kind && namespace.is_none_or(|namespace| change.namespace == namespace)
        };
        let undone = changes.iter().rev().filter(mine).map(|change| (change.key(), change.previous.clone()));
        Ok(Listing { resource_version: version, items: rewound(view.list(kind, namespace), undone) })
    }

    async fn watch(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, ApiError> {
        let version = self.shared.version.subscribe();
        if self.shared.view().since(from).is_none() {
            return Err(ApiError::of(Reason::Expired, format!("too old resource version: {from}")));
        }
        let (sender, receiver) = mpsc::channel(WATCH_LEN_MAX);
        let follower =
            Follower { shared: self.shared.clone(), kind, namespace: namespace.map(str::to_owned), at: from };
        drop(tokio::spawn(follower.run(version, sender)));
        Ok(receiver)
    }

    async fn write(&self, request: WriteRequest) -> Result<Written, ApiError> {
        let (reply, answer) = oneshot::channel();
        let ended = || ApiError::of(Reason::ServiceUnavailable, "the agent is ending; workloads go on running");
        self.commands.send(WriteCommand { request, reply }).await.map_err(|_closed| ended())?;
        answer.await.map_err(|_closed| ended())?
    }

    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        self.read_log(&request)
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// One watcher's place in the history.
struct Follower {
    shared: Arc<Shared>,
    kind: KindRef,
    namespace: Option<String>,
    at: u64,
}

impl Follower {
    async fn run(mut self, mut version: watch::Receiver<u64>, sender: mpsc::Sender<WatchEvent>) {
        loop {
            version.mark_unchanged();
            for event in self.next() {
                let expired = matches!(event, WatchEvent::Expired);
                match sender.try_send(event) {
                    Ok(()) if !expired => {}
                    Ok(()) => return,
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        // The watcher does not read; it will list again. It learns so as soon as it reads one event.
                        drop(sender.send(WatchEvent::Expired).await);
                        return;
                    }
                }
            }
            tokio::select! {
                biased;
                changed = version.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }

    fn next(&mut self) -> Vec<WatchEvent> {
        let view = self.shared.view();
        let Some(changes) = view.since(self.at) else { return vec![WatchEvent::Expired] };
        self.at = view.version();
        drop(view);
        let mine = |change: &Arc<Change>| {
            change.kind == self.kind && self.namespace.as_ref().is_none_or(|name| *name == change.namespace)
        };
        changes.iter().filter(|change| mine(change)).filter_map(event_of).collect()
    }
}

fn event_of(change: &Arc<Change>) -> Option<WatchEvent> {
    match (change.previous.clone(), change.current.clone()) {
        (None, Some(object)) => Some(WatchEvent::Added(object)),
        (Some(previous), Some(object)) => Some(WatchEvent::Modified { previous, object }),
        (Some(last), None) => {
            // A deletion carries the version it happened at.
            let mut last = (*last).clone();
            last.set_resource_version(change.version);
            Some(WatchEvent::Deleted(Arc::new(last)))
        }
        (None, None) => None,
    }
}
