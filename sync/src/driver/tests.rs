//! The loop over pipes in memory: streams within their credit, frames within their size, ends with their reason.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use super::*;
use crate::blob::{BlobRef, BlobWant};
use crate::channel::{ChannelName, Hash, Heads, Positions, WriterId};
use crate::identity::writer::WriterChain;
use crate::identity::{NodeName, SigningKey};
use crate::observation::{Clock, Observation, Urgency};
use crate::replica::Ingested;
use crate::session::{Greeting, PeerHello};
use crate::transport::Transport;

/// A replica without logs that sends every stream's bytes back.
#[derive(Debug)]
struct Echo {
    grown: watch::Sender<u64>,
}

impl Replica for Echo {
    fn established(&self, _peer: &PeerIdentity, _hello: &PeerHello) {}

    async fn heads(&self, _peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        Ok(Heads::new())
    }

    async fn read(&self, _: &ChannelName, _: &WriterId, _: u64, _: usize) -> Result<Reading, ReplicaError> {
        Ok(Reading::NotKept)
    }

    async fn writer(&self, _writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        Ok(None)
    }

    async fn ingest(&self, _: &PeerIdentity, _: Vec<crate::replica::Input>) -> Result<Ingested, ReplicaError> {
        Ok(Ingested::default())
    }

    async fn subscribed(&self, _: &PeerIdentity, _: Positions) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn acknowledged(&self, _: &PeerIdentity, _: Positions) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn greeted(&self, _: &PeerIdentity, _: Greeting) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        Ok(None)
    }

    async fn forked(&self, _: &PeerIdentity, _: &ChannelName, _: &WriterId, _: u64) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn observe(&self, _: &PeerIdentity, _: Vec<Observation>) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn outbox(&self, _: Urgency, _: usize) -> Result<Vec<Observation>, ReplicaError> {
        let tried = "read the outbox".to_owned();
        if *self.grown.borrow() > 0 { Err(ReplicaError { tried, source: "disk full".into() }) } else { Ok(Vec::new()) }
    }

    async fn outbox_acknowledged(&self, _: Vec<(String, Clock)>) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn grown(&self, _peer: &PeerIdentity) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn open_stream(&self, _peer: &PeerIdentity, _request: Bytes, mut stream: Stream) {
        tokio::spawn(async move {
            while let Ok(Some(bytes)) = stream.receive().await {
                stream.send(bytes).await.unwrap();
            }
        });
    }

    async fn read_blob(&self, _: &PeerIdentity, _: &Hash, _: u64, _: usize) -> Result<Option<Bytes>, ReplicaError> {
        Ok(None)
    }

    async fn missing_blobs(&self, _: &PeerIdentity, _: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn named_blobs(&self, _: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        Ok(Vec::new())
    }

    async fn store_blob(&self, _: &PeerIdentity, _: &BlobRef, _: u64, _: Bytes) -> Result<BlobStored, ReplicaError> {
        Ok(BlobStored::Unwanted)
    }
}

fn config(node: Option<&str>) -> SessionConfig {
    let root = SigningKey::from_seed([1; 32]).unwrap().public();
    let node = node.map(|node| NodeName::parse(node).unwrap());
    SessionConfig { root, node, incarnation: 1, boot: 1, seed: 3 }
}

fn pipe(stream: DuplexStream, peer: PeerIdentity) -> Pipe {
    let (reader, writer) = split(stream);
    let remote = "memory".to_owned();
    Pipe {
        reader: Box::new(reader),
        writer: Box::new(writer),
        peer,
        transport: Transport::Memory,
        remote,
        stalled: None,
    }
}

struct End {
    handle: SessionHandle,
    grown: watch::Sender<u64>,
    running: tokio::task::JoinHandle<SessionEnd>,
}

fn start(stream: DuplexStream, node: Option<&str>) -> End {
    let device = PeerIdentity::Device { node: NodeName::parse("cam-1").unwrap() };
    let peer = if node.is_some() { PeerIdentity::Hub } else { device };
    let (handle, commands) = commands();
    let (grown, _) = watch::channel(0);
    let replica = Arc::new(Echo { grown: grown.clone() });
    let running = tokio::spawn(run(pipe(stream, peer), config(node), replica, commands));
    End { handle, grown, running }
}

fn pair() -> (End, End) {
    let (left, right) = duplex(4096);
    (start(left, None), start(right, Some("cam-1")))
}

#[tokio::test]
async fn streams_carry_more_than_their_credit_beside_each_other() {
    let (hub, device) = pair();
    let one = async |handle: SessionHandle, fill: u8| {
        let mut stream = handle.open_stream(Bytes::from_static(b"log")).await.unwrap();
        let (mut sent, mut received) = (0, 0);
        while sent < 1 << 20 {
            let chunk = Bytes::from(vec![fill; 24 * 1024]);
            sent += chunk.len();
            stream.send(chunk.clone()).await.unwrap();
            let mut back = 0;
            while back < chunk.len() {
                let bytes = stream.receive().await.unwrap().unwrap();
                assert!(bytes.iter().all(|byte| *byte == fill));
                back += bytes.len();
            }
            received += back;
        }
        assert_eq!(sent, received);
        stream.close(None).await;
    };
    tokio::join!(one(hub.handle.clone(), 1), one(hub.handle.clone(), 2), one(device.handle.clone(), 3));
    hub.handle.close("done", None).await;
    assert_eq!(hub.running.await.unwrap(), SessionEnd::Closed);
    assert_eq!(device.running.await.unwrap(), SessionEnd::Goodbye("done".to_owned()));
    assert_eq!(device.handle.open_stream(Bytes::new()).await.err(), Some(CommandError::Ended));
}

#[tokio::test]
async fn a_busy_hub_says_when_to_come_back() {
    let (hub, device) = pair();
    hub.handle.close("busy", Some(1234)).await;
    assert_eq!(device.running.await.unwrap(), SessionEnd::RetryAfter { ms: 1234 });
}

#[tokio::test]
async fn a_failing_store_ends_the_session_and_asks_the_peer_back() {
    let (hub, device) = pair();
    let mut stream = device.handle.open_stream(Bytes::new()).await.unwrap();
    stream.send(Bytes::from_static(b"established")).await.unwrap();
    stream.receive().await.unwrap();
    device.grown.send_replace(1);
    assert_eq!(device.running.await.unwrap(), SessionEnd::Replica("read the outbox: disk full".to_owned()));
    assert_eq!(hub.running.await.unwrap(), SessionEnd::RetryAfter { ms: REPLICA_RETRY_MS });
}

#[tokio::test]
async fn a_frame_beyond_its_limit_ends_the_session_before_it_is_read() {
    let (left, mut right) = duplex(4096);
    let hub = start(left, None);
    right.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let mut said = Vec::new();
    right.shutdown().await.unwrap();
    right.read_to_end(&mut said).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("1048576 are the most"));
    assert!(matches!(hub.running.await.unwrap(), SessionEnd::Protocol(_)));
}
