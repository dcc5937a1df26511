//! A device's replica that notes when what the hub sent came, and when it was durable: the clock of this bench.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_agent::replica::DeviceReplica;
use flotilla_sync::blob::{BlobRef, BlobStored, BlobWant};
use flotilla_sync::channel::{ChannelName, Hash, Heads, Positions, WriterId, positions_of};
use flotilla_sync::identity::writer::WriterChain;
use flotilla_sync::observation::{Clock, Observation, Urgency};
use flotilla_sync::replica::{Ingested, Input, Reading, Replica, ReplicaError};
use flotilla_sync::session::{Greeting, PeerHello};
use flotilla_sync::stream::Stream;
use flotilla_sync::transport::PeerIdentity;
use tokio::sync::watch;

use super::crowd::{Crowd, now_us};

pub(crate) struct Watched {
    pub(crate) inner: DeviceReplica,
    pub(crate) crowd: Arc<Crowd>,
    index: usize,
}

impl Watched {
    pub(crate) fn over(inner: DeviceReplica, (crowd, index): (Arc<Crowd>, usize)) -> Self {
        Self { inner, crowd, index }
    }

    pub(crate) fn disconnected(&self) {
        self.crowd.connected(self.index, false);
    }
}

/// Newest record of the fleet's channel, and of the device's own, among what came.
fn newest(inputs: &[Input]) -> (u64, u64) {
    let (mut fleet, mut device) = (0, 0);
    for input in inputs {
        let (channel, seq) = match input {
            Input::Batch(verified) | Input::Branch(verified) => (&verified.batch().channel, verified.batch().last_seq),
            Input::Snapshot(verified) => (&verified.snapshot().list.channel, verified.snapshot().list.head.seq),
            Input::Writer(_) => continue,
        };
        match channel {
            ChannelName::Fleet(_) => fleet = fleet.max(seq),
            ChannelName::Device(_) => device = device.max(seq),
        }
    }
    (fleet, device)
}

/// The same of positions.
fn newest_of(positions: &Positions) -> (u64, u64) {
    let at = |is_fleet: bool| {
        let channels = positions.iter().filter(|(name, _)| matches!(name, ChannelName::Fleet(_)) == is_fleet);
        channels.flat_map(|(_, logs)| logs.values().copied()).max().unwrap_or(0)
    };
    (at(true), at(false))
}

impl Replica for Watched {
    async fn ingest(&self, peer: &PeerIdentity, inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        let came_us = now_us();
        let (fleet, device) = newest(&inputs);
        for input in &inputs {
            match input {
                Input::Batch(_) => self.crowd.count("batches"),
                Input::Snapshot(_) => self.crowd.count("snapshots"),
                Input::Writer(_) | Input::Branch(_) => {}
            }
        }
        let ingested = self.inner.ingest(peer, inputs).await?;
        self.crowd.stands_at(self.index, (fleet, device), came_us, now_us());
        Ok(ingested)
    }

    async fn subscribed(&self, peer: &PeerIdentity, channels: Positions) -> Result<(), ReplicaError> {
        let wanted = newest_of(&channels);
        self.inner.subscribed(peer, channels).await?;
        // What an earlier run left on the device's disk.
        let held = newest_of(&positions_of(&self.inner.heads(peer).await?));
        self.crowd.holds(self.index, held);
        self.crowd.wants(self.index, wanted, now_us());
        Ok(())
    }

    fn established(&self, peer: &PeerIdentity, hello: &PeerHello) {
        self.crowd.connected(self.index, true);
        self.inner.established(peer, hello);
    }

    async fn heads(&self, peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        self.inner.heads(peer).await
    }

    async fn read(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Reading, ReplicaError> {
        self.inner.read(channel, writer, after, bytes_max).await
    }

    async fn writer(&self, writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        self.inner.writer(writer).await
    }

    async fn acknowledged(&self, peer: &PeerIdentity, positions: Positions) -> Result<(), ReplicaError> {
        self.inner.acknowledged(peer, positions).await
    }

    async fn greeted(&self, peer: &PeerIdentity, greeting: Greeting) -> Result<(), ReplicaError> {
        self.inner.greeted(peer, greeting).await
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        self.inner.greeting().await
    }

    async fn forked(
        &self,
        peer: &PeerIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        seq: u64,
    ) -> Result<(), ReplicaError> {
        self.inner.forked(peer, channel, writer, seq).await
    }

    async fn observe(&self, peer: &PeerIdentity, observations: Vec<Observation>) -> Result<(), ReplicaError> {
        self.inner.observe(peer, observations).await
    }

    async fn heard(&self, peer: &PeerIdentity, clock: Clock) -> Result<(), ReplicaError> {
        self.inner.heard(peer, clock).await
    }

    async fn outbox(&self, urgency: Urgency, limit: usize) -> Result<Vec<Observation>, ReplicaError> {
        self.inner.outbox(urgency, limit).await
    }

    async fn outbox_acknowledged(&self, entries: Vec<(String, Clock)>) -> Result<(), ReplicaError> {
        self.inner.outbox_acknowledged(entries).await?;
        self.crowd.count("acknowledged reports");
        Ok(())
    }

    fn grown(&self, peer: &PeerIdentity) -> watch::Receiver<u64> {
        self.inner.grown(peer)
    }

    fn open_stream(&self, peer: &PeerIdentity, request: Bytes, stream: Stream) {
        self.inner.open_stream(peer, request, stream);
    }

    async fn read_blob(
        &self,
        peer: &PeerIdentity,
        hash: &Hash,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, ReplicaError> {
        self.inner.read_blob(peer, hash, offset, len).await
    }

    async fn missing_blobs(&self, peer: &PeerIdentity, limit: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        self.inner.missing_blobs(peer, limit).await
    }

    async fn named_blobs(&self, peer: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        self.inner.named_blobs(peer).await
    }

    async fn store_blob(
        &self,
        peer: &PeerIdentity,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<BlobStored, ReplicaError> {
        self.inner.store_blob(peer, name, offset, bytes).await
    }
}
