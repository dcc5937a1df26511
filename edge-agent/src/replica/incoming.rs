//! What the hub's sessions bring: a batch of inputs becomes new copies of the channels it touches, durable first, then visible.
//!
//! Owns that an input is taken whole or not at all, and that the loop learns of it whatever the disk says afterwards. Start reading at
//! [`DeviceReplica::take_in`].

use std::collections::BTreeMap;

use flotilla_sync::channel::{ChannelName, ChannelState, Folded, Head, ItemId, WriterId};
use flotilla_sync::identity::writer::WriterChain;
use flotilla_sync::log::Placement;
use flotilla_sync::planted::{self, Bug};
use flotilla_sync::replica::{Ingested, Input, ReplicaError};

use super::evidence::Evidence;
use super::{DeviceReplica, Misplaced, failed};
use crate::store::{HeadRow, Ingest, ItemRow};

/// What inputs make of this device's state, beside it until it is durable.
struct Incoming<'a> {
    replica: &'a DeviceReplica,
    rows: Ingest,
    channels: BTreeMap<ChannelName, ChannelState>,
    writers: Vec<WriterChain>,
    evidence: Evidence,
    /// Items that the branch of a forked log has changed: what this device says of them is said again.
    branched: Vec<ItemId>,
    result: Ingested,
}

impl DeviceReplica {
    /// Takes in what the hub sent.
    ///
    /// # Errors
    ///
    /// A batch that does not follow what is here, or a disk that does not take it. After a failure of what is tidied behind it the inputs
    /// are in force all the same.
    pub(super) async fn take_in(&self, inputs: Vec<Input>) -> Result<Ingested, ReplicaError> {
        let _gate = self.gate.lock().await;
        let mut incoming = Incoming::begin(self);
        for input in inputs {
            incoming.take(input)?;
        }
        let Incoming { mut rows, channels, writers, evidence, branched, result, .. } = incoming;
        for why in &result.set_aside {
            tracing::warn!(reason = %why, "a record was set aside");
        }
        let plan = {
            let state = self.state();
            let mut after: BTreeMap<_, _> = state.channels.iter().collect();
            after.extend(&channels);
            state.beside.plan(&state.channels, &after)
        };
        rows.beside = plan.rows();
        let greeting = self.state().unsaved_greeting();
        rows.meta.extend(greeting.clone());
        self.store.ingest(rows).await.map_err(|error| failed("store what the hub sent", error))?;
        {
            let mut state = self.state();
            state.beside.take(plan);
            state.greeting_saved(greeting.as_ref());
            state.writers.extend(writers.into_iter().map(|chain| (chain.id, chain)));
            state.channels.extend(channels);
            state.evidence = evidence;
            state.settle_evidence();
        }
        // What is in force has changed, whatever the disk says of the tidying that follows.
        if !planted::is(Bug::ChangeUntold) {
            self.bump(&self.changed);
        }
        self.leave().await?;
        self.forget_damaged().await?;
        self.shorten_evidence().await?;
        if !branched.is_empty() {
            self.state_again(&branched).await?;
        }
        if planted::is(Bug::ChangeUntold) {
            self.bump(&self.changed);
        }
        Ok(result)
    }
}

impl<'a> Incoming<'a> {
    fn begin(replica: &'a DeviceReplica) -> Self {
        Self {
            replica,
            rows: Ingest::default(),
            channels: BTreeMap::new(),
            writers: Vec::new(),
            evidence: replica.state().evidence.clone(),
            branched: Vec::new(),
            result: Ingested::default(),
        }
    }

    fn take(&mut self, input: Input) -> Result<(), ReplicaError> {
        match input {
            Input::Writer(chain) => {
                self.rows.writers.push((chain.id.0.to_vec(), chain.encode().to_vec()));
                self.writers.push(chain);
            }
            Input::Batch(batch) => {
                if self.replica.is_of_hub(&batch.batch().writer, &self.writers) {
                    self.evidence.batch(&batch, &mut self.rows.evidence);
                }
                let name = &batch.batch().channel;
                match self.channel(name).apply_batch(&batch) {
                    Ok(folded) => self.keep(name, &folded, batch.records().len()),
                    Err(Placement::Duplicate) => {}
                    Err(placement) => return Err(failed("take a batch", Misplaced(placement))),
                }
            }
            Input::Branch(batch) => {
                let name = &batch.batch().channel;
                let folded = self.channel(name).apply_branch(&batch);
                self.keep(name, &folded, folded.changed.len());
                self.branched.extend(folded.changed);
            }
            Input::Snapshot(snapshot) => {
                let list = &snapshot.snapshot().list;
                if self.replica.is_of_hub(&list.writer, &self.writers) {
                    self.evidence.list(&snapshot, &mut self.rows.evidence);
                }
                let folded = self.channel(&list.channel).apply_snapshot(&snapshot);
                self.keep(&list.channel, &folded, folded.changed.len());
            }
        }
        Ok(())
    }

    /// The copy of a channel that is worked on.
    fn channel(&mut self, name: &ChannelName) -> &mut ChannelState {
        self.channels.entry(name.clone()).or_insert_with(|| self.replica.state().channel(name))
    }

    fn keep(&mut self, name: &ChannelName, folded: &Folded, applied: usize) {
        self.result.applied += applied;
        self.result.set_aside.extend(folded.set_aside.iter().map(ToString::to_string));
        if let Some(channel) = self.channels.get(name) {
            append_rows(&mut self.rows, channel, &folded.changed);
        }
    }
}

/// Rows of changed items, and every head of their channel.
pub(super) fn rows_of(channel: &ChannelState, changed: &[ItemId]) -> Ingest {
    let mut rows = Ingest::default();
    append_rows(&mut rows, channel, changed);
    rows
}

fn append_rows(rows: &mut Ingest, channel: &ChannelState, changed: &[ItemId]) {
    let name = channel.channel.to_string();
    for id in changed {
        let bytes = channel.items.get(id).map(|item| item.encode().to_vec()).unwrap_or_default();
        rows.items.push(ItemRow { channel: name.clone(), id: id.as_str().to_owned(), bytes });
    }
    let head = |(writer, head): (&WriterId, &Head)| HeadRow {
        channel: name.clone(),
        writer: writer.0.to_vec(),
        seq: head.seq,
        hash: head.hash.to_vec(),
    };
    rows.heads.extend(channel.heads.iter().map(head));
}
