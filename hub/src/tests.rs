//! The hub's parts together, with devices that are channel states folded in memory.

mod convergence;
mod damage;
mod enrolment;
pub(crate) mod epochs;
mod forks;
mod leases;
mod lessons;
mod lives;
mod pages;
mod reports;
mod restore;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_manifests::admission::{DeleteOptions, FieldValidation, Mutation};
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::{Backend, DryRun, User, WriteRequest, Written};
use flotilla_sync::channel::{ChannelName, ChannelState, Head, Heads, ItemId, ItemKind, WriterId, positions_of};
use flotilla_sync::document::Document;
use flotilla_sync::enrol::{EnrolProof, EnrolRefusal, EnrolRequest, EnrolResponse, Enroller, Token, TokenProof};
use flotilla_sync::identity::{DeviceKeys, Installation, NodeName, SessionRequest};
use flotilla_sync::replica::{Input, Reading, Replica};
use flotilla_sync::session::Greeting;
use flotilla_sync::transport::PeerIdentity;
use serde_json::{Value, json};

use crate::Retention;
use crate::backend::HubBackend;
use crate::config::DATABASE_FILE;
use crate::enrol::Registrar;
use crate::fleet::door::FleetDoor;
use crate::store::Store;

/// A hub without sockets and controllers, on a clock of its own.
pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) door: Arc<FleetDoor>,
    pub(crate) backend: HubBackend,
    pub(crate) registrar: Arc<Registrar>,
    pub(crate) installation: Arc<Installation>,
    pub(crate) now: Arc<AtomicU64>,
}

impl Bench {
    pub(crate) async fn open(folder: &Path, retention: Retention) -> Self {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        let reading = Arc::clone(&now);
        let clock: crate::clock::Clock = Arc::new(move || Timestamp(reading.load(Ordering::SeqCst)));
        let store = Store::open(&folder.join(DATABASE_FILE), retention, clock).unwrap();
        let mind = crate::mind::Mind::open(store.clone()).await.unwrap();
        let (door, installation) = (Arc::clone(&mind.door), Arc::clone(&mind.installation));
        let backend = HubBackend::new(store.clone(), Arc::clone(&door), 1000);
        let doors = mind.found_at(vec!["127.0.0.1:1".into()], Vec::new()).await.unwrap();
        let registrar = Arc::clone(&doors.registrar);
        Self { store, door, backend, registrar, installation, now }
    }

    pub(crate) async fn write(&self, key: ObjectKey, mutation: Mutation) -> Result<Written, ApiError> {
        let request = WriteRequest {
            key,
            mutation,
            dry_run: DryRun::No,
            field_validation: FieldValidation::Strict,
            user: User { name: "admin".into(), groups: vec!["system:masters".into()] },
            field_manager: None,
        };
        self.backend.write(request).await
    }

    pub(crate) async fn create(&self, value: Value) -> Result<Written, ApiError> {
        let body = Object::parse(value).unwrap();
        self.write(body.key(), Mutation::Create { body }).await
    }

    pub(crate) async fn merge(&self, key: &ObjectKey, patch: Value) -> Result<Written, ApiError> {
        let patch = flotilla_manifests::patch::Patch::JsonMerge(patch);
        self.write(key.clone(), Mutation::Patch { part: flotilla_manifests::admission::Part::Main, patch }).await
    }

    pub(crate) async fn delete(&self, key: &ObjectKey) -> Result<Written, ApiError> {
        self.write(key.clone(), Mutation::Delete(DeleteOptions::default())).await
    }

    pub(crate) async fn enrol(&self, device: &Device, proof: EnrolProof) -> Result<EnrolResponse, EnrolRefusal> {
        self.registrar.enrol(device.request(proof)).await
    }

    /// Enrols a device with a token of its own.
    pub(crate) async fn enrolled(&self, folder: &Path, name: &str, fleet: &str) -> Device {
        let device = Device::new(name);
        let token = token(folder, None, fleet, 1);
        self.enrol(&device, EnrolProof::Token(token.proof())).await.unwrap();
        device
    }
}

/// A session of a device begins.
pub(crate) async fn welcome(bench: &Bench, node: &str) {
    assert_eq!(crate::fleet::welcome(&bench.door, node).await, crate::fleet::Welcome::Known);
}

/// A token as the command line makes it, beside the running hub.
pub(crate) fn token(folder: &Path, node: Option<&str>, fleet: &str, uses: u32) -> Token {
    let request =
        crate::tokens::TokenRequest { node: node.map(str::to_owned), fleet: fleet.into(), ttl_ms: 3_600_000, uses };
    Token::parse(&crate::tokens::create(folder, &request).unwrap()).unwrap()
}

/// A device: keys, and its channels folded from what the hub hands out.
pub(crate) struct Device {
    pub(crate) node: NodeName,
    pub(crate) keys: DeviceKeys,
    pub(crate) channels: BTreeMap<ChannelName, ChannelState>,
    pub(crate) snapshots: usize,
    /// What hubs signed, as it came.
    pub(crate) evidence: Vec<Input>,
    pub(crate) greeting: Option<Greeting>,
}

impl Device {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            node: NodeName::parse(name).unwrap(),
            keys: DeviceKeys::generate().unwrap(),
            channels: BTreeMap::new(),
            snapshots: 0,
            evidence: Vec::new(),
            greeting: None,
        }
    }

    pub(crate) fn peer(&self) -> PeerIdentity {
        PeerIdentity::Device { node: self.node.clone() }
    }

    pub(crate) fn request(&self, proof: EnrolProof) -> EnrolRequest {
        EnrolRequest {
            proof,
            node: self.node.clone(),
            labels: BTreeMap::from([("kubernetes.io/arch".to_owned(), "arm64".to_owned())]),
            csr: SessionRequest::generate(&self.node).unwrap().csr,
            device_key: self.keys.signing.public(),
            sealing: self.keys.sealing.public().unwrap(),
        }
    }

    /// Reads what is new, verifying everything, as a session does.
    pub(crate) async fn pull(&mut self, door: &FleetDoor) {
        let heads = door.heads(&self.peer()).await.unwrap();
        self.greeting = door.greeting().await.unwrap();
        self.channels.retain(|channel, _| heads.contains_key(channel));
        for (channel, logs) in heads {
            let state = self.channels.entry(channel.clone()).or_insert_with(|| ChannelState::new(channel.clone()));
            for (writer, head) in logs {
                let chain = door.writer(&writer).await.unwrap().unwrap();
                let own = door.writer(&door.identity().id()).await.unwrap().unwrap();
                self.evidence.extend([Input::Writer(chain.clone()), Input::Writer(own.clone())]);
                loop {
                    let after = state.heads.get(&writer).map_or(0, |head| head.seq);
                    if after >= head.seq {
                        break;
                    }
                    match door.read(&channel, &writer, after, 64 * 1024).await.unwrap() {
                        Reading::Batches(batches) => {
                            assert!(!batches.is_empty(), "{channel}: nothing after {after}, head {}", head.seq);
                            for batch in batches {
                                let verified = batch.verify(&chain).unwrap();
                                let folded = state.apply_batch(&verified).unwrap();
                                self.evidence.push(Input::Batch(verified));
                                assert_eq!(folded.set_aside, []);
                            }
                        }
                        Reading::Snapshot(snapshot) => {
                            self.snapshots += 1;
                            // The list of an earlier log is the present writer's.
                            let speaker = if snapshot.list.writer == chain.id { &chain } else { &own };
                            let verified = snapshot.verify(speaker).unwrap();
                            let folded = state.apply_snapshot(&verified);
                            self.evidence.push(Input::Snapshot(verified));
                            assert_eq!(folded.set_aside, []);
                        }
                        Reading::Later => break,
                        Reading::NotKept => {
                            state.heads.insert(writer, Head { seq: head.seq, hash: head.hash });
                        }
                    }
                }
            }
        }
    }

    /// Says where it stands, as a session does at its beginning.
    pub(crate) async fn say_hello(&self, door: &FleetDoor) {
        let heads: Heads = self.channels.iter().map(|(name, state)| (name.clone(), state.heads.clone())).collect();
        let digests: Vec<u64> = heads.values().flat_map(BTreeMap::values).map(Head::digest).collect();
        door.stands_at(&self.peer(), &positions_of(&heads), &digests).await.unwrap();
        door.acknowledged(&self.peer(), positions_of(&heads)).await.unwrap();
    }

    /// Says hello as a session does, and gives the hub what it lacks of the logs of its earlier lives.
    pub(crate) async fn give_back(&self, door: &FleetDoor) {
        let peer = self.peer();
        if let Some(greeting) = &self.greeting {
            door.greeted(&peer, greeting.clone()).await.unwrap();
        }
        self.say_hello(door).await;
        let there = door.heads(&peer).await.unwrap();
        let stands = |channel: &ChannelName, writer: &WriterId| {
            there.get(channel).and_then(|logs| logs.get(writer)).map_or(0, |head| head.seq)
        };
        let own = door.identity().id();
        let lacking = self.evidence.iter().filter(|input| match input {
            Input::Writer(_) => true,
            Input::Batch(batch) | Input::Branch(batch) => {
                let batch = batch.batch();
                batch.writer != own && batch.last_seq > stands(&batch.channel, &batch.writer)
            }
            Input::Snapshot(snapshot) => {
                let list = &snapshot.snapshot().list;
                list.writer != own && list.covers.iter().any(|(writer, head)| head.seq > stands(&list.channel, writer))
            }
        });
        let lacking: Vec<Input> = lacking.cloned().collect();
        let ingested = door.ingest(&peer, lacking).await.unwrap();
        assert!(ingested.set_aside.is_empty(), "{ingested:?}");
    }

    /// Everything live in all channels: item id -> content as JSON.
    pub(crate) fn holds(&self) -> BTreeMap<(String, String), Value> {
        let mut held = BTreeMap::new();
        for (channel, state) in &self.channels {
            for (id, item) in &state.items {
                if let Some(value) = shown(item.kind.clone()) {
                    held.insert((channel.to_string(), id.to_string()), value);
                }
            }
        }
        held
    }

    pub(crate) fn item(&self, channel: &str, id: &str) -> Option<Value> {
        let state = self.channels.get(&ChannelName::parse(channel).unwrap())?;
        shown(state.items.get(&ItemId::parse(id).unwrap())?.kind.clone())
    }
}

fn shown(kind: ItemKind) -> Option<Value> {
    match kind {
        ItemKind::Document(document) => {
            let document = Document::load(&document.saved).unwrap();
            Some(
                json!({"object": document.object(&flotilla_sync::blob::no_blobs).unwrap(), "rollouts": document.rollouts()}),
            )
        }
        ItemKind::Register(register) => Some(serde_json::from_slice(&register.value).unwrap()),
        ItemKind::Absent | ItemKind::Removed(_) => None,
    }
}

pub(crate) fn proof(token: &Token) -> TokenProof {
    token.proof()
}
