//! What bundles tell of devices that have no session.

use std::sync::PoisonError;

use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::Positions;

use super::FleetDoor;
use crate::Contact;

impl FleetDoor {
    /// How far a device is, as its newest bundle said; a session says it better.
    pub(crate) fn remember(&self, node: &str, positions: Positions) {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).entry(node.to_owned()).or_insert(positions);
    }

    /// What a device is known to hold.
    pub(crate) fn durable(&self, node: &str) -> Option<Positions> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
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
