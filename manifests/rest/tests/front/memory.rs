//! A backend in memory: enough of a store for the front to be driven by real clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use flotilla_manifests::admission::{self, Context, Mutation, Outcome};
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::Backend;
use flotilla_rest::backend::{DryRun, Listing, LogRequest, WatchEvent, WriteRequest, Written};
use flotilla_rest::page::rewound;
use tokio::sync::mpsc;

/// Where versions begin: a client must not assume that they start at 1.
const FIRST_VERSION: u64 = 3 << 40;

pub(crate) struct Memory {
    state: Mutex<State>,
    now: fn() -> Timestamp,
}

struct State {
    version: u64,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    history: Vec<(u64, ObjectKey, WatchEvent)>,
    watchers: Vec<Watcher>,
    uids: u64,
}

struct Watcher {
    kind: KindRef,
    namespace: Option<String>,
    events: mpsc::Sender<WatchEvent>,
}

impl Memory {
    pub(crate) fn started(now: fn() -> Timestamp) -> Self {
        let state = State {
            version: FIRST_VERSION,
            objects: BTreeMap::new(),
            history: Vec::new(),
            watchers: Vec::new(),
            uids: 0,
        };
        let memory = Self { state: Mutex::new(state), now };
        for name in ["default", "kube-system"] {
            let mut namespace = Object::empty(&kind::NAMESPACE, "", name);
            namespace.value_mut()["status"] = serde_json::json!({"phase": "Active"});
            memory.create(namespace);
        }
        memory
    }

    /// Creates as somebody without a client would.
    pub(crate) fn create(&self, body: Object) {
        let key = body.key();
        self.decide(&key, &Mutation::Create { body }, DryRun::No, Default::default()).unwrap();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn decide(
        &self,
        key: &ObjectKey,
        mutation: &Mutation,
        dry_run: DryRun,
        field_validation: admission::FieldValidation,
    ) -> Result<Written, ApiError> {
        let mut state = self.lock();
        state.uids += 1;
        let suffix = format!("{:05}", state.uids % 100_000);
        let context = Context {
            now: (self.now)(),
            uid: format!("00000000-0000-4000-8000-{:012x}", state.uids),
            name_suffix: suffix.clone(),
            field_validation,
        };
        let key = match mutation {
            Mutation::Create { body } => admission::created_key(key, body, &suffix),
            _ => key.clone(),
        };
        let current = state.objects.get(&key).cloned();
        let admitted = admission::admit(&key, current.as_deref(), mutation, &context)?;
        let mut outcome = admitted.outcome;
        if dry_run == DryRun::No {
            state.store(key, current, &mut outcome);
        }
        Ok(Written { outcome, warnings: admitted.warnings })
    }
}

impl State {
    fn store(&mut self, key: ObjectKey, current: Option<Arc<Object>>, outcome: &mut Outcome) {
        let version = self.version + 1;
        let event = match outcome {
            Outcome::Unchanged(_) => return,
            Outcome::Created(object) => {
                object.set_resource_version(version);
                WatchEvent::Added(Arc::new(object.clone()))
            }
            Outcome::Updated(object) => {
                object.set_resource_version(version);
                WatchEvent::Modified { previous: current.unwrap(), object: Arc::new(object.clone()) }
            }
            Outcome::Removed(object) => {
                object.set_resource_version(version);
                WatchEvent::Deleted(Arc::new(object.clone()))
            }
        };
        match &event {
            WatchEvent::Deleted(_) => self.objects.remove(&key),
            WatchEvent::Added(object) | WatchEvent::Modified { object, .. } => {
                self.objects.insert(key.clone(), Arc::clone(object))
            }
            WatchEvent::Progress(_) | WatchEvent::Expired => unreachable!("only changes are stored"),
        };
        self.version = version;
        self.watchers.retain(|watcher| {
            let concerned = watcher.kind == key.kind
                && watcher.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace);
            !concerned || watcher.events.try_send(event.clone()).is_ok()
        });
        self.history.push((version, key, event));
    }
}

impl Backend for Memory {
    fn kinds(&self) -> &[KindRef] {
        kind::ALL
    }

    async fn read(&self, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.lock().objects.get(key).cloned().ok_or_else(|| ApiError::not_found(key))
    }

    async fn list(&self, kind: KindRef, namespace: Option<&str>) -> Result<Listing, ApiError> {
        let state = self.lock();
        let wanted = |key: &ObjectKey| key.kind == kind && namespace.is_none_or(|namespace| namespace == key.namespace);
        let items = state.objects.iter().filter(|(key, _)| wanted(key)).map(|(_, object)| Arc::clone(object));
        Ok(Listing { resource_version: state.version, items: items.collect() })
    }

    async fn list_at(&self, kind: KindRef, namespace: Option<&str>, version: u64) -> Result<Listing, ApiError> {
        let present = self.list(kind, namespace).await?;
        let state = self.lock();
        if version < FIRST_VERSION {
            return Err(ApiError::of(Reason::Expired, "it is not kept any more"));
        }
        let undone = state.history.iter().rev().filter(|(at, key, _)| {
            *at > version && key.kind == kind && namespace.is_none_or(|namespace| namespace == key.namespace)
        });
        let before = |event: &WatchEvent| match event {
            WatchEvent::Modified { previous, .. } => Some(Arc::clone(previous)),
            WatchEvent::Deleted(last) => Some(Arc::clone(last)),
            _ => None,
        };
        let undone = undone.map(|(_, key, event)| (key.clone(), before(event)));
        Ok(Listing { resource_version: version, items: rewound(present.items, undone) })
    }

    async fn watch(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, ApiError> {
        let mut state = self.lock();
        if from < FIRST_VERSION {
            let message = format!("too old resource version: {from} ({FIRST_VERSION})");
            return Err(ApiError::of(Reason::Expired, message));
        }
        let (events, receiver) = mpsc::channel(1024);
        for (version, key, event) in &state.history {
            let wanted = key.kind == kind && namespace.is_none_or(|namespace| namespace == key.namespace);
            if wanted && *version > from {
                events.try_send(event.clone()).unwrap();
            }
        }
        state.watchers.push(Watcher { kind, namespace: namespace.map(str::to_owned), events });
        Ok(receiver)
    }

    async fn write(&self, request: WriteRequest) -> Result<Written, ApiError> {
        let mut written = self.decide(&request.key, &request.mutation, request.dry_run, request.field_validation)?;
        if request.key.name == "warned" {
            written.warnings.push("accepted here, not yet synced".to_owned());
        }
        Ok(written)
    }

    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        self.read(&ObjectKey::of(&kind::POD, request.namespace.clone(), request.pod.clone())).await?;
        let life = if request.previous { "previous" } else { "present" };
        let lines: Vec<String> = (1..=9).map(|number| format!("{life} line {number}\n")).collect();
        let tail = request.tail_lines.map_or(lines.len(), |lines| usize::try_from(lines).unwrap());
        let skipped = lines.len().saturating_sub(tail);
        let (sender, receiver) = mpsc::channel(16);
        for line in lines.into_iter().skip(skipped) {
            sender.try_send(Bytes::from(line)).unwrap();
        }
        if request.follow {
            sender.try_send(Bytes::from_static(b"followed\n")).unwrap();
            if request.container == "endless" {
                tokio::spawn(async move { sender.closed().await });
            }
        }
        Ok(receiver)
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
