//! What of a device's word about the hub itself is believed: what the hub once signed, and of the rest so much as does no harm.
//!
//! A number that a device names costs it nothing. Were it enough to make the hub pause, or take a new writer, one device could hold
//! up all others.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use flotilla_sync::channel::{ChannelName, GENESIS, Head, WRITERS_MAX, WriterId};
use flotilla_sync::identity::writer::WriterChain;
use flotilla_sync::identity::{NodeName, PublicKey};
use flotilla_sync::log::Batch;
use flotilla_sync::replica::{Input, ReplicaError};

use super::FleetDoor;
use crate::learn;
use crate::store::{self, StoreError};

/// A fork of the hub's own log is taken on a device's word this often: everything is stated again after it.
const FORKS_HEEDED_EVERY_MS: u64 = 60 * 60 * 1000;
/// Logs of one channel that sessions are told of: fewer than a peer reads.
const LOGS_SHOWN_MAX: usize = WRITERS_MAX / 2;

/// It was said again too soon.
#[derive(Debug, thiserror::Error)]
#[error("a fork of the hub's log was heeded less than an hour ago")]
struct TooSoon;

impl FleetDoor {
    /// Records of the hub's present life that its database never held prove it to be an old copy: the hub learns from its devices.
    pub(super) async fn heed_quotes(&self, node: &NodeName, inputs: &[Input]) -> Result<(), ReplicaError> {
        let life = self.store.incarnation();
        let own = |writer: &WriterId, incarnation: u64| incarnation == life && self.is_hub_writer(writer);
        let quoted = |input: &Input| match input {
            Input::Batch(verified) | Input::Branch(verified) => {
                let batch = verified.batch();
                let quote = || Quote::of(&batch.channel, batch.writer, batch.last_seq, Some(batch.clone()));
                own(&batch.writer, verified.incarnation()).then(quote)
            }
            Input::Snapshot(verified) => {
                let list = &verified.snapshot().list;
                let quote = || Quote::of(&list.channel, list.writer, list.head.seq, None);
                // One that was signed before its writer had said anything there stands where the first record was to follow, and quotes none.
                (list.head.hash != GENESIS && own(&list.writer, verified.incarnation())).then(quote)
            }
            Input::Writer(_) => None,
        };
        let quotes: Vec<Quote> = inputs.iter().filter_map(quoted).collect();
        if quotes.is_empty() {
            return Ok(());
        }
        let tried = || "learn from devices".to_owned();
        let root = self.installation.root().public();
        let unknown = self.store.write(move |batch| {
            for quote in &quotes {
                if quote.is_unknown(batch, &root)? {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        if unknown.await.map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })? {
            tracing::error!(%node, "a device holds records of this hub that it does not know: this database is an old copy");
            let begun = learn::begin(self, node.as_str(), life).await;
            begun.map_err(|source| ReplicaError { tried: tried(), source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Lets a fork be heeded now and then. A device that is refused comes back.
    pub(super) fn heed_fork(&self) -> Result<(), ReplicaError> {
        let now = self.store.now();
        let mut heeded = self.fork_heeded.lock().unwrap_or_else(PoisonError::into_inner);
        if heeded.is_some_and(|last| now >= last && now.0 - last.0 < FORKS_HEEDED_EVERY_MS) {
            return Err(ReplicaError { tried: "take a new writer id".to_owned(), source: Box::new(TooSoon) });
        }
        *heeded = Some(now);
        Ok(())
    }
}

/// What a device shows of the hub's own words.
struct Quote {
    channel: ChannelName,
    writer: WriterId,
    last_seq: u64,
    batch: Option<Batch>,
}

impl Quote {
    fn of(channel: &ChannelName, writer: WriterId, last_seq: u64, batch: Option<Batch>) -> Self {
        Self { channel: channel.clone(), writer, last_seq, batch }
    }

    /// Whether it goes on after what the database holds, or the database holds other words in its place.
    fn is_unknown(&self, database: &store::Batch<'_>, root: &PublicKey) -> Result<bool, StoreError> {
        if self.last_seq > database.device_head(&self.channel, &self.writer)?.seq {
            return Ok(true);
        }
        let Some(quoted) = &self.batch else { return Ok(false) };
        let Some((chain, held)) = database.batch_at(&self.channel, &self.writer, quoted.first_seq)? else {
            return Ok(false);
        };
        // A damaged row is no word of the hub's.
        let chain = WriterChain::verify(&chain, root).ok();
        let held = Batch::decode(&held).ok().zip(chain).and_then(|(held, chain)| held.verify(&chain).ok());
        Ok(held.is_some_and(|held| held.batch() != quoted))
    }
}

/// Where the logs of a channel stand, as many as a peer reads. What the oldest said is in the list of the present writer.
pub(super) fn readable(heads: BTreeMap<WriterId, Head>, own: &WriterId) -> BTreeMap<WriterId, Head> {
    if heads.len() <= LOGS_SHOWN_MAX {
        return heads;
    }
    let mut newest: Vec<(WriterId, Head)> = heads.into_iter().collect();
    newest.sort_by_key(|(writer, head)| std::cmp::Reverse((writer == own, head.seq)));
    newest.truncate(LOGS_SHOWN_MAX);
    newest.into_iter().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_channel_of_many_writers_shows_the_present_one_and_the_newest() {
        let writer = |number: u8| WriterId([number; 32]);
        let heads = |count: u8| -> BTreeMap<WriterId, Head> {
            (0..count).map(|number| (writer(number), Head { seq: u64::from(number) + 1, hash: [0; 32] })).collect()
        };
        assert_eq!(readable(heads(128), &writer(0)), heads(128));
        let shown = readable(heads(250), &writer(0));
        assert_eq!(shown.len(), LOGS_SHOWN_MAX);
        assert!(shown.contains_key(&writer(0)) && shown.contains_key(&writer(249)) && !shown.contains_key(&writer(1)));
    }
}
