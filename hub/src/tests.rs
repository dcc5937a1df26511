//! The hub's parts together, with devices that are channel states folded in memory.

mod convergence;
mod enrolment;
mod reports;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_manifests::admission::{DeleteOptions, FieldValidation, Mutation};
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::{Backend, DryRun, User, WriteRequest, Written};
use flotilla_sync::channel::{ChannelName, ChannelState, Head, ItemId, ItemKind};
use flotilla_sync::document::Document;
use flotilla_sync::enrol::{EnrolProof, EnrolRefusal, EnrolRequest, EnrolResponse, Enroller, Token, TokenProof};
use flotilla_sync::identity::{DeviceKeys, Installation, NodeName, SessionRequest};
use flotilla_sync::replica::{Reading, Replica};
use flotilla_sync::transport::PeerIdentity;
use serde_json::{Value, json};

use crate::backend::HubBackend;
use crate::config::DATABASE_FILE;
use crate::enrol::Registrar;
use crate::fleet::door::FleetDoor;
use crate::installation::Addresses;
use crate::store::Store;
use crate::{Contacts, Retention};

/// A hub without sockets and controllers, on a clock of its own.
pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) door: Arc<FleetDoor>,
    pub(crate) backend: HubBackend,
    pub(crate) registrar: Registrar,
    pub(crate) installation: Arc<Installation>,
    pub(crate) now: Arc<AtomicU64>,
}

impl Bench {
    pub(crate) async fn open(folder: &Path, retention: Retention) -> Self {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        let reading = Arc::clone(&now);
        let clock: crate::clock::Clock = Arc::new(move || Timestamp(reading.load(Ordering::SeqCst)));
        let store = Store::open(&folder.join(DATABASE_FILE), retention, clock).unwrap();
        let opened = crate::open(&store).await.unwrap();
        let installation = Arc::new(opened.installation);
        let contacts = Contacts::starting(store.now(), opened.remembered);
        let door = Arc::new(FleetDoor::new(store.clone(), contacts, Arc::clone(&installation), opened.writer));
        let backend = HubBackend::new(store.clone(), Arc::clone(&door), 1000);
        let addresses = Addresses { quic: vec!["127.0.0.1:1".into()], mqtt: Vec::new() };
        crate::remember_addresses(&store, &addresses).await.unwrap();
        let registrar = Registrar { store: store.clone(), installation: Arc::clone(&installation), addresses };
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
}

impl Device {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            node: NodeName::parse(name).unwrap(),
            keys: DeviceKeys::generate().unwrap(),
            channels: BTreeMap::new(),
            snapshots: 0,
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
        self.channels.retain(|channel, _| heads.contains_key(channel));
        for (channel, logs) in heads {
            let state = self.channels.entry(channel.clone()).or_insert_with(|| ChannelState::new(channel.clone()));
            for (writer, head) in logs {
                let chain = door.writer(&writer).await.unwrap().unwrap();
                loop {
                    let after = state.heads.get(&writer).map_or(0, |head| head.seq);
                    if after >= head.seq {
                        break;
                    }
                    match door.read(&channel, &writer, after, 64 * 1024).await.unwrap() {
                        Reading::Batches(batches) => {
                            assert!(!batches.is_empty(), "{channel}: nothing after {after}, head {}", head.seq);
                            for batch in batches {
                                let folded = state.apply_batch(&batch.verify(&chain).unwrap()).unwrap();
                                assert_eq!(folded.set_aside, []);
                            }
                        }
                        Reading::Snapshot(snapshot) => {
                            self.snapshots += 1;
                            let folded = state.apply_snapshot(&snapshot.verify(&chain).unwrap());
                            assert_eq!(folded.set_aside, []);
                        }
                        Reading::NotKept => {
                            state.heads.insert(writer, Head { seq: head.seq, hash: head.hash });
                        }
                    }
                }
            }
        }
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
            Some(json!({"object": document.object(&flotilla_sync::blob::no_blobs).unwrap(), "rollouts": document.rollouts()}))
        }
        ItemKind::Register(register) => Some(serde_json::from_slice(&register.value).unwrap()),
        ItemKind::Absent | ItemKind::Removed(_) => None,
    }
}

pub(crate) fn proof(token: &Token) -> TokenProof {
    token.proof()
}
