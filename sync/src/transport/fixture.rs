//! What the tests of identity, enrolment and transports share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::{
    ConnectError, Connector, Door, DoorLimits, EnrolConnector, Incoming, Listener, OpenGate, PeerIdentity, Pipe, Target,
};
use crate::enrol::{
    EnrolProof, EnrolRefusal, EnrolRequest, EnrolResponse, Enroller, RefusalKind, Token, TokenRecord, TokenUse,
};
use crate::identity::{Credentials, FlooredClock, Installation, NodeName, SessionRequest, TrustTime};

/// 2030-01-01.
pub(crate) const NOW_MS: u64 = 1_893_456_000_000;
pub(crate) const DAY_MS: u64 = 86_400_000;

pub(crate) fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

pub(crate) fn at(now_ms: u64) -> Arc<dyn TrustTime> {
    FlooredClock::new(move || now_ms, 0)
}

/// An installation with its door, and the listener on the other side of it.
pub(crate) struct Site {
    pub(crate) installation: Arc<Installation>,
    pub(crate) door: Arc<Door>,
    pub(crate) now_ms: u64,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::at(NOW_MS)
    }

    /// One whose clocks show this, for others that have a clock of their own.
    pub(crate) fn at(now_ms: u64) -> Self {
        let installation = Arc::new(Installation::create(now_ms).unwrap());
        let door = Door::new(&installation, at(now_ms), Arc::new(OpenGate), DoorLimits::default()).unwrap();
        Self { installation, door, now_ms }
    }

    pub(crate) fn credentials(&self, name: &str, issued_ms: u64) -> Credentials {
        let request = SessionRequest::generate(&node(name)).unwrap();
        let leaf = self.installation.issue_session(&request.csr, &node(name), issued_ms).unwrap();
        request.certified(vec![leaf], &node(name)).unwrap()
    }

    /// A device `name` that presents these credentials.
    pub(crate) fn connector_with(&self, name: &str, credentials: &Credentials) -> Connector {
        let root = self.installation.root().public();
        Connector::new(credentials, self.installation.authority(), &root, node(name), &at(self.now_ms)).unwrap()
    }

    pub(crate) fn connector(&self, name: &str) -> Connector {
        self.connector_with(name, &self.credentials(name, self.now_ms))
    }

    pub(crate) fn enrol_connector(&self) -> EnrolConnector {
        let root = self.installation.root().public();
        EnrolConnector::new(self.installation.pin(), &root, &at(self.now_ms)).unwrap()
    }
}

/// Serves every session by echo and every enrolment by `enroller`.
pub(crate) fn serve(mut listener: Listener, site: &Site, enroller: Arc<Admits>) -> JoinHandle<()> {
    let root = site.installation.root().public();
    tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            match incoming {
                Incoming::Session(pipe) => {
                    tokio::spawn(echo(pipe));
                }
                Incoming::Enrol(stream) => {
                    let enroller = Arc::clone(&enroller);
                    tokio::spawn(async move { crate::enrol::serve(stream, &root, &*enroller).await });
                }
            }
        }
    })
}

/// Says who came, then returns what it hears.
pub(crate) async fn echo(mut pipe: Pipe) {
    let PeerIdentity::Device { node } = &pipe.peer else { panic!("a hub came to the door") };
    let greeting = format!("{:<32}", node.as_str());
    if pipe.writer.write_all(greeting.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = pipe.reader.read(&mut buffer).await {
        if length == 0 || pipe.writer.write_all(&buffer[..length]).await.is_err() || pipe.writer.flush().await.is_err()
        {
            break;
        }
    }
}

/// Reads the greeting and checks that bytes come back as they went.
pub(crate) async fn check_echo(pipe: &mut Pipe, name: &str, bytes: usize) {
    let mut greeting = [0; 32];
    pipe.reader.read_exact(&mut greeting).await.unwrap();
    assert_eq!(std::str::from_utf8(&greeting).unwrap().trim(), name);
    check_bytes(pipe, bytes).await;
}

pub(crate) async fn check_bytes(pipe: &mut Pipe, bytes: usize) {
    let sent = (0..bytes).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect::<Vec<_>>();
    let mut heard = vec![0; bytes];
    let (reader, writer) = (&mut pipe.reader, &mut pipe.writer);
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
    };
    let read = async { reader.read_exact(&mut heard).await.unwrap() };
    tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(write, read) }).await.unwrap();
    assert!(heard == sent, "bytes came back changed");
}

/// Tries until the way is open: for a broker or hub that is coming up. Every attempt awaits the network.
pub(crate) async fn connect_when_open(connector: &Connector, target: &Target) -> Pipe {
    let attempts = async {
        loop {
            match connector.connect(target).await {
                Ok(pipe) => return pipe,
                Err(ConnectError::Unreachable { .. } | ConnectError::Timeout { .. } | ConnectError::Busy { .. }) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), attempts).await.unwrap()
}

/// An enroller with one token record.
pub(crate) struct Admits {
    pub(crate) installation: Arc<Installation>,
    pub(crate) record: std::sync::Mutex<TokenRecord>,
    pub(crate) decisions: AtomicUsize,
    pub(crate) now_ms: u64,
}

impl Admits {
    pub(crate) fn new(site: &Site, quic: Vec<String>, expires_ms: u64) -> (Arc<Self>, Token) {
        let pins = (site.installation.pin(), site.installation.root().public());
        let mqtt = vec!["mqtt://127.0.0.1:1883".to_owned()];
        let (token, record) = Token::generate((quic, mqtt), pins, expires_ms, None, 1).unwrap();
        let installation = Arc::clone(&site.installation);
        let decisions = AtomicUsize::new(0);
        let now_ms = site.now_ms;
        (Arc::new(Self { installation, record: std::sync::Mutex::new(record), decisions, now_ms }), token)
    }

    fn decide(&self, request: &EnrolRequest) -> Result<EnrolResponse, EnrolRefusal> {
        self.decisions.fetch_add(1, Ordering::Relaxed);
        if let EnrolProof::Token(presented) = &request.proof {
            let mut record = self.record.lock().unwrap();
            let found = TokenRecord::check(Some(&record), presented, self.now_ms, &request.node, &request.device_key)?;
            if found == TokenUse::First {
                record.used_by.push((request.node.clone(), request.device_key));
            }
        }
        let failed = |error: &dyn std::fmt::Display| EnrolRefusal {
            kind: RefusalKind::Busy,
            message: error.to_string(),
            retry_after_ms: None,
        };
        let leaf = self
            .installation
            .issue_session(&request.csr, &request.node, self.now_ms)
            .map_err(|error| failed(&error))?;
        let certificate = self
            .installation
            .certify_device(&request.node, "uid-1", request.device_key, request.sealing, self.now_ms)
            .map_err(|error| failed(&error))?;
        Ok(EnrolResponse {
            chain: vec![leaf.to_vec()],
            authority: self.installation.authority().to_vec(),
            root: self.installation.root().public(),
            device_certificate: certificate.encode(),
            node_uid: "uid-1".to_owned(),
            fleet: "default".to_owned(),
            incarnation: 7,
            hub_time_ms: self.now_ms,
            quic: vec!["hub:7443".to_owned()],
            mqtt: Vec::new(),
            hub_sealing: Some(self.installation.sealing().public().unwrap()),
        })
    }
}

impl Enroller for Admits {
    async fn enrol(&self, request: EnrolRequest) -> Result<EnrolResponse, EnrolRefusal> {
        self.decide(&request)
    }
}

pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("site".to_owned(), "harbour".to_owned())])
}
