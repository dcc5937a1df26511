//! What a device's hello says of the hub's own logs.

use std::collections::BTreeMap;

use flotilla_sync::channel::{ChannelName, Positions};
use flotilla_sync::identity::NodeName;
use flotilla_sync::replica::ReplicaError;

use super::FleetDoor;
use crate::learn::LogKey;
use crate::store::logs::Logs;

impl FleetDoor {
    /// Logs of hubs that are shorter at a device than here, and on another branch; with how far they go there.
    pub(super) async fn branches_of(
        &self,
        positions: &Positions,
        digests: &[u64],
    ) -> Result<BTreeMap<LogKey, u64>, ReplicaError> {
        let logs = self.store.logs();
        let mut shorter = Vec::new();
        let all = positions.iter().flat_map(|(channel, logs)| logs.iter().map(move |log| (channel, log)));
        for ((channel, (writer, seq)), digest) in all.zip(digests) {
            let here = logs.heads(channel).get(writer).map_or(0, |head| head.seq);
            if *seq < here && self.is_hub_writer(writer) {
                shorter.push(((channel.clone(), *writer), *seq, *digest));
            }
        }
        if shorter.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (mut branches, unknown) = logs.branches_at_hand(shorter);
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
