//! What a device's hello says of the hub's own logs.

use std::collections::BTreeMap;

use flotilla_sync::channel::{ChannelName, Positions};
use flotilla_sync::identity::NodeName;
use flotilla_sync::replica::ReplicaError;

use super::FleetDoor;
use crate::learn::LogKey;
use crate::store::logs::Logs;

impl FleetDoor {
    /// Logs of hubs that go no further at a device than here, and are on another branch; with how far they go there.
    pub(super) async fn branches_of(
        &self,
        positions: &Positions,
        digests: &[u64],
    ) -> Result<BTreeMap<LogKey, u64>, ReplicaError> {
        let logs = self.store.logs();
        let (mut shorter, mut branches) = (Vec::new(), BTreeMap::new());
        let all = positions.iter().flat_map(|(channel, logs)| logs.iter().map(move |log| (channel, log)));
        for ((channel, (writer, seq)), digest) in all.zip(digests) {
            let heads = logs.heads(channel);
            let Some(here) = heads.get(writer).filter(|here| *seq <= here.seq && self.is_hub_writer(writer)) else {
                continue;
            };
            let log = (channel.clone(), *writer);
            if *seq < here.seq {
                shorter.push((log, *seq, *digest));
            } else if *digest != here.digest() {
                branches.insert(log, *seq);
            }
        }
        if shorter.is_empty() {
            return Ok(branches);
        }
        let (known, unknown) = logs.branches_at_hand(shorter);
        branches.extend(known);
        if !unknown.is_empty() {
            let asked = move |logs: &Logs| logs.branches_among(&unknown);
            branches.extend(self.ask_disk("compare the logs of a device", asked).await?);
        }
        Ok(branches)
    }

    /// Without the device's own log in its own channel, which is its own affair.
    pub(super) fn of_hubs(&self, node: &NodeName, mut positions: Positions) -> Positions {
        if let Some(logs) = positions.get_mut(&ChannelName::Device(node.clone())) {
            logs.retain(|writer, _| self.is_hub_writer(writer));
        }
        positions
    }
}
