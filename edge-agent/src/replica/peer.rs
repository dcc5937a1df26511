//! What sessions ask of the device's replica: reading its own log, taking in the hub's, the outbox.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_sync::blob::{BlobRef, BlobStored, BlobWant};
use flotilla_sync::channel::{ChannelName, ChannelState, GENESIS, Hash, Heads, Positions, WriterId};
use flotilla_sync::identity::writer::WriterChain;
use flotilla_sync::log::Batch;
use flotilla_sync::observation::{Clock as ObservationClock, Observation, Urgency};
use flotilla_sync::replica::{Ingested, Input, Reading, Replica, ReplicaError};
use flotilla_sync::session::{Greeting, PeerHello};
use flotilla_sync::stream::Stream;
use flotilla_sync::transport::PeerIdentity;
use tokio::sync::watch;

use super::{DeviceReplica, OpenedStream, failed};

impl Replica for DeviceReplica {
    async fn heads(&self, _peer: &PeerIdentity) -> Result<Heads, ReplicaError> {
        let state = self.state();
        let heads = state.channels.iter().map(|(name, channel)| (name.clone(), channel.heads.clone())).collect();
        Ok(state.evidence.heads(heads))
    }

    async fn read(
        &self,
        channel: &ChannelName,
        writer: &WriterId,
        after: u64,
        bytes_max: usize,
    ) -> Result<Reading, ReplicaError> {
        let own = *channel == self.own_channel && *writer == self.state().log.identity().id();
        if !own {
            return self.read_evidence(channel, writer, after, bytes_max).await;
        }
        let state = self.state();
        let newest = state.log.head(channel).seq;
        if after >= newest {
            return Ok(Reading::Batches(Vec::new()));
        }
        // The log of a writer that followed another begins beyond 1: nothing is missing before it. As records the hub can pass it on, to
        // another board with a copy of this card.
        let follows =
            |batch: &Batch| batch.first_seq == after + 1 || (batch.prev == GENESIS && batch.first_seq > after);
        let Some(start) = state.own_batches.iter().position(follows) else {
            let current = state.channel(channel);
            let snapshot = current
                .snapshot(state.log.identity(), BTreeMap::new())
                .map_err(|error| failed("list its overrides", error))?;
            return Ok(Reading::Snapshot(snapshot));
        };
        let mut size = 0;
        let fits = |batch: &&Batch| {
            let first = size == 0;
            size += batch.payload.len();
            first || size <= bytes_max
        };
        Ok(Reading::Batches(state.own_batches[start..].iter().take_while(fits).cloned().collect()))
    }

    async fn writer(&self, writer: &WriterId) -> Result<Option<WriterChain>, ReplicaError> {
        let state = self.state();
        let own = state.log.identity();
        Ok(if own.id() == *writer { Some(own.chain().clone()) } else { state.writers.get(writer).cloned() })
    }

    async fn ingest(&self, _peer: &PeerIdentity, inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        self.take_in(inputs).await
    }

    async fn subscribed(&self, _peer: &PeerIdentity, channels: Positions) -> Result<(), ReplicaError> {
        let _gate = self.gate.lock().await;
        if self.is_old_copy(&channels) {
            tracing::warn!(
                "the hub has read further in this device's log than it goes: its database is a clone or an old copy"
            );
            self.take_new_writer().await?;
        }
        {
            let mut state = self.state();
            for name in channels.keys() {
                let empty = ChannelState::new(name.clone());
                state.channels.entry(name.clone()).or_insert(empty);
            }
            state.subscribed = Some(channels.clone());
        }
        // Which channels count follows from it.
        self.bump(&self.changed);
        self.leave().await?;
        self.finish_takeover().await?;
        self.state_what_the_hub_lost(&channels).await?;
        self.ask_for_evidence(&channels).await?;
        self.forget_damaged().await
    }

    fn established(&self, _peer: &PeerIdentity, _hello: &PeerHello) {}

    async fn acknowledged(&self, _peer: &PeerIdentity, _positions: Positions) -> Result<(), ReplicaError> {
        Ok(())
    }

    async fn greeted(&self, _peer: &PeerIdentity, greeting: Greeting) -> Result<(), ReplicaError> {
        self.take_greeting(greeting).await
    }

    async fn greeting(&self) -> Result<Option<Greeting>, ReplicaError> {
        Ok(self.state().greeting.clone())
    }

    async fn forked(
        &self,
        _peer: &PeerIdentity,
        channel: &ChannelName,
        writer: &WriterId,
        seq: u64,
    ) -> Result<(), ReplicaError> {
        tracing::warn!(%channel, %writer, seq, "this device's log was forked: its database was cloned or restored");
        if *channel != self.own_channel || *writer != self.state().log.identity().id() {
            return Ok(());
        }
        let _gate = self.gate.lock().await;
        self.take_new_writer().await
    }

    async fn observe(&self, _peer: &PeerIdentity, _observations: Vec<Observation>) -> Result<(), ReplicaError> {
        Err(failed("take observations", NotForDevices))
    }

    async fn heard(&self, _peer: &PeerIdentity, clock: ObservationClock) -> Result<(), ReplicaError> {
        self.hub_has_heard(clock);
        Ok(())
    }

    async fn outbox(&self, urgency: Urgency, limit: usize) -> Result<Vec<Observation>, ReplicaError> {
        Ok(self.waiting(urgency, limit))
    }

    async fn outbox_acknowledged(&self, entries: Vec<(String, ObservationClock)>) -> Result<(), ReplicaError> {
        self.let_go(entries).await
    }

    fn grown(&self, _peer: &PeerIdentity) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn open_stream(&self, _peer: &PeerIdentity, request: Bytes, stream: Stream) {
        if let Err(full) = self.streams.try_send(OpenedStream { request, stream }) {
            tracing::warn!(reason = %full, "a stream of the hub was refused");
        }
    }

    async fn read_blob(
        &self,
        _peer: &PeerIdentity,
        hash: &Hash,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, ReplicaError> {
        // A hub that was restored from a backup learns back what it lacks.
        Ok(self.range(hash, offset, len))
    }

    async fn missing_blobs(&self, _peer: &PeerIdentity, limit: usize) -> Result<Vec<BlobWant>, ReplicaError> {
        Ok(self.missing(limit))
    }

    async fn named_blobs(&self, _peer: &PeerIdentity) -> Result<Vec<BlobRef>, ReplicaError> {
        Ok(self.whole_blobs())
    }

    async fn store_blob(
        &self,
        _peer: &PeerIdentity,
        name: &BlobRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<BlobStored, ReplicaError> {
        self.take_piece(name, offset, bytes).await
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a device takes no observations")]
struct NotForDevices;
