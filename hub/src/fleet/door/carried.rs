//! What bundles tell of devices that have no session.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::{Head, Heads, Positions, positions_of};
use flotilla_sync::identity::NodeName;
use flotilla_sync::replica::ReplicaError;

use super::FleetDoor;
use crate::Contact;

impl FleetDoor {
    /// How far a device is, as its newest bundle said; a session says it better.
    pub(crate) fn remember(&self, node: &str, positions: Positions) {
        let logs = positions
            .into_iter()
            .flat_map(|(channel, logs)| logs.into_iter().map(move |(writer, seq)| ((channel.clone(), writer), seq)));
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        durable.entry(node.to_owned()).or_insert_with(|| logs.collect());
    }

    /// While the hub learns: a bundle of the device was taken in as a whole. What it says of where the device stands counts as a hello does.
    pub(crate) async fn introduced(&self, node: &NodeName, heads: &Heads) -> Result<(), ReplicaError> {
        if !self.lessons.is_on() {
            return Ok(());
        }
        let positions = positions_of(heads);
        let digests: Vec<u64> = heads.values().flat_map(BTreeMap::values).map(Head::digest).collect();
        let branches = self.branches_of(&positions, &digests).await?;
        self.lessons.introduced(node.as_str(), &self.of_hubs(node, positions), branches);
        Ok(())
    }

    /// What a device is known to hold.
    pub(crate) fn durable(&self, node: &str) -> Option<Positions> {
        let durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        let mut positions = Positions::new();
        for ((channel, writer), seq) in durable.get(node)?.iter() {
            positions.entry(channel.clone()).or_default().insert(*writer, *seq);
        }
        Some(positions)
    }

    /// Whether this hub knows less than its devices, and says nothing until it has learned.
    pub(crate) fn is_learning(&self) -> bool {
        self.lessons.is_on()
    }

    /// A device without a session was alive at this time.
    pub(crate) fn seen(&self, node: &str, at: Timestamp) {
        if self.session(node).is_none() {
            self.contacts.set(node, Contact::Silent { last: at });
        }
    }
}
