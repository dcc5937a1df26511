//! A device's first bundles, with a hub that is nothing but its keys.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use flotilla_sync::blob::{BlobRef, BlobStored, BlobWant};
use flotilla_sync::bundle::courier::{self, Courier, CourierError, Failure, FailureKind, JoinWish, Wish};
use flotilla_sync::bundle::{self, Direction, Export, Incoming, Receiver, Report, Seal, Side};
use flotilla_sync::channel::{ChannelName, Hash, Heads, Positions, WriterId};
use flotilla_sync::enrol::{self, EnrolRequest, EnrolResponse, Token};
use flotilla_sync::identity::writer::{WriterChain, WriterIdentity};
use flotilla_sync::identity::{Installation, NodeName};
use flotilla_sync::observation::{Clock, Observation, Urgency};
use flotilla_sync::replica::{Ingested, Input, Reading, Replica, ReplicaError};
use flotilla_sync::session::{Greeting, PeerHello};
use flotilla_sync::stream::Stream;
use flotilla_sync::transport::PeerIdentity;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::bundle::offline;
use crate::start::{self, Found};

/// 2033: later than the clock of the machine that runs this, by a good while.
const SIGNED_MS: u64 = 2_000_000_000_000;

/// A hub without content.
struct Hub {
    installation: Installation,
    writer: WriterIdentity,
}

impl Hub {
    fn new() -> Self {
        let installation = Installation::create(1_700_000_000_000).unwrap();
        let writer = WriterIdentity::for_hub([2; 32], 1, installation.root()).unwrap();
        Self { installation, writer }
    }

    fn token(&self) -> String {
        let pins = (self.installation.pin(), self.installation.root().public());
        let (token, _) = Token::generate((vec!["hub:1".into()], Vec::new()), pins, u64::MAX, None, 1).unwrap();
        token.with_sealing(self.installation.sealing().public().unwrap()).encode()
    }

    fn request(&self, bundle: &[u8], runtime: &tokio::runtime::Runtime) -> EnrolRequest {
        let root = self.installation.root().public();
        let side = Side { root, receiver: Receiver::Hub, key: self.installation.sealing() };
        let Incoming::Join(joining) = runtime.block_on(Incoming::open(bundle, &side)).unwrap() else { panic!() };
        enrol::request_of(&joining.request, &joining.binding, &root).unwrap()
    }

    /// The bundle with the answer to `request`.
    fn down(&self, request: &EnrolRequest, runtime: &tokio::runtime::Runtime) -> Vec<u8> {
        let session = self.installation.issue_session(&request.csr, &request.node, SIGNED_MS).unwrap();
        let keys = (request.device_key, request.sealing);
        let certificate =
            self.installation.certify_device(&request.node, "uid-1", keys.0, keys.1, 1_700_000_000_000).unwrap();
        let response = EnrolResponse {
            chain: vec![session.to_vec()],
            authority: self.installation.authority().to_vec(),
            root: self.installation.root().public(),
            device_certificate: certificate.encode(),
            node_uid: "uid-1".to_owned(),
            fleet: "default".to_owned(),
            incarnation: 7,
            hub_time_ms: 1_700_000_000_000,
            quic: Vec::new(),
            mqtt: Vec::new(),
            hub_sealing: None,
        };
        let export = Export {
            signer: &self.writer,
            seal: Seal {
                installation: self.installation.id(),
                receiver: Receiver::Device(request.node.clone()),
                key: request.sealing,
                time_ms: SIGNED_MS,
            },
            direction: Direction::Down,
            clock: Clock { incarnation: 1, boot: 0, seq: 1 },
            positions: Positions::new(),
            own_log_only: false,
            hub_sealing: Some(self.installation.sealing().public().unwrap()),
            enrolled: Some(Bytes::from(enrol::answer_of(response).unwrap())),
            acknowledged: Vec::new(),
            blobs: Vec::new(),
        };
        let mut bytes = Vec::new();
        runtime.block_on(bundle::export(self, &PeerIdentity::Device { node: node() }, export, &mut bytes)).unwrap();
        bytes
    }
}

fn node() -> NodeName {
    NodeName::parse("pump-1").unwrap()
}

/// One command against a folder where no agent runs.
async fn export(folder: &Path, wish: Wish) -> Result<(Report, Vec<u8>), CourierError> {
    let (near, far) = UnixStream::pair().unwrap();
    let mut bytes = Vec::new();
    let mut quiet = |_| {};
    let exporting = Courier::over(near).export(wish, &mut bytes, &mut quiet);
    let (exported, served) = tokio::join!(exporting, offline::converse(folder, far));
    served.unwrap();
    exported.map(|report| (report, bytes))
}

async fn import(folder: &Path, bytes: &[u8]) -> Result<Report, Failure> {
    let (near, far) = UnixStream::pair().unwrap();
    let mut source = bytes;
    let mut quiet = |_| {};
    let importing = Courier::over(near).import(&mut source, &mut quiet);
    let (imported, served) = tokio::join!(importing, offline::converse(folder, far));
    served.unwrap();
    imported.map_err(|error| match error {
        CourierError::Failed(failure) => failure,
        other => panic!("{other}"),
    })
}

#[test]
fn a_device_joins_by_bundles_and_learns_the_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let hub = Hub::new();
    let join = Some(JoinWish { token: hub.token(), name: Some("pump-1".into()), labels: BTreeMap::new() });

    let nothing = runtime.block_on(export(path, Wish::default())).unwrap_err();
    assert!(matches!(&nothing, CourierError::Failed(failure) if failure.kind == FailureKind::Refused), "{nothing}");
    let (report, bytes) = runtime.block_on(export(path, Wish { join, ..Wish::default() })).unwrap();
    assert!(report.enrolment && report.whole);
    let request = hub.request(&bytes, &runtime);
    assert_eq!(request.node, node());
    // Once more without the token: the same keys and the same session key ask again.
    let (_, again) = runtime.block_on(export(path, Wish::default())).unwrap();
    let again = hub.request(&again, &runtime);
    assert_eq!(
        (again.csr, again.device_key, again.sealing),
        (request.csr.clone(), request.device_key, request.sealing)
    );

    let down = hub.down(&request, &runtime);
    let stranger = Hub::new();
    let refused = runtime.block_on(import(path, &stranger.down(&request, &runtime))).unwrap_err();
    assert_eq!(refused.kind, FailureKind::NotForHere, "{refused}");
    let report = runtime.block_on(import(path, &down)).unwrap();
    assert!(report.enrolment && report.whole && report.missing.is_empty(), "{report:?}");
    // The answer again: the device has joined, and nothing changes.
    runtime.block_on(import(path, &down)).unwrap();

    // A board without a clock battery starts again: what the bundle signed is past, and its own bundles are dated after it.
    let (report, _) = runtime.block_on(export(path, Wish::default())).unwrap();
    assert_eq!(report.from, "device/pump-1");
    assert!(report.time_ms >= SIGNED_MS, "{}", report.time_ms);
    let found = runtime.block_on(Found::open(path)).unwrap();
    assert!(found.has_joined());
    runtime.block_on(found.become_ready()).unwrap();
    assert!(found.clock.proven().0 >= SIGNED_MS);
}

#[test]
fn a_running_agent_keeps_its_database_to_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _lock = start::lock(folder.path()).unwrap();
    let refused = runtime.block_on(async {
        let (_near, far) = UnixStream::pair().unwrap();
        offline::converse(folder.path(), far).await.unwrap_err()
    });
    assert!(format!("{refused:#}").contains("another agent uses"), "{refused:#}");
    // In a folder with a name longer than a socket's address can be, whoever listens is found all the same.
    let deep = folder.path().join("a".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    runtime.block_on(async {
        let listener = courier::listen(&deep).unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), courier::connect(&deep));
        assert!(accepted.is_ok() && connected.is_ok());
    });
}

impl Replica for Hub {
    fn established(&self, _peer: &PeerIdentity, _hello: &PeerHello) {}

    async fn heads(&self, _peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        Ok(Heads::from([(ChannelName::Device(node()), BTreeMap::new())]))
    }

    async fn read(&self, _: &ChannelName, _: &WriterId, _: u64, _: usize) -> Result<Reading, ReplicaError> {
        Ok(Reading::NotKept)
    }

    async fn writer(&self, _writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        Ok(None)
    }

    async fn ingest(&self, _peer: &PeerIdentity, _inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        Ok(Ingested::default())
    }

    async fn subscribed(&self, _peer: &PeerIdentity, _channels: Positions) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn acknowledged(&self, _peer: &PeerIdentity, _positions: Positions) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn greeted(&self, _peer: &PeerIdentity, _greeting: Greeting) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        Ok(Some(Greeting::sign(&self.writer, 1, SIGNED_MS)))
    }

    async fn forked(&self, _: &PeerIdentity, _: &ChannelName, _: &WriterId, _: u64) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn observe(&self, _peer: &PeerIdentity, _observations: Vec<Observation>) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn outbox(&self, _urgency: Urgency, _limit: usize) -> Result<Vec<Observation>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn outbox_acknowledged(&self, _entries: Vec<(String, Clock)>) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn grown(&self, _peer: &PeerIdentity) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn open_stream(&self, _peer: &PeerIdentity, _request: Bytes, _stream: Stream) {}

    async fn read_blob(&self, _: &PeerIdentity, _: &Hash, _: u64, _: usize) -> Result<Option<Bytes>, ReplicaError> {
        Ok(None)
    }

    async fn missing_blobs(&self, _peer: &PeerIdentity, _limit: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn named_blobs(&self, _peer: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn store_blob(&self, _: &PeerIdentity, _: &BlobRef, _: u64, _: Bytes) -> Result<BlobStored, ReplicaError> {
        Ok(BlobStored::Unwanted)
    }
}
