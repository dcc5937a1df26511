//! Who has a session and does not answer.
//!
//! A link can be gone long before its session is: QUIC gives up after 90 s, a broker later still. A device that was sent records
//! and has acknowledged nothing for a while counts as silent, so that no rollout waits for it; its next acknowledgement brings
//! it back into contact. The session itself goes on: a slow link is no reason to start over.

use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use tokio::sync::watch;

use super::door::{FleetDoor, SyncState};
use crate::Contact;

/// A device that owes an acknowledgement for longer than this counts as silent.
const UNANSWERED_MS_MAX: u64 = 15_000;
/// How often that is looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// So many sessions are looked at without a pause.
const LOOKED_AT_TOGETHER: usize = 100;

/// Looks at all sessions from time to time, until `shutdown`.
pub(crate) async fn watch(door: Arc<FleetDoor>, mut shutdown: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ended = shutdown.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let now = door.store.now();
        for nodes in door.connected().chunks(LOOKED_AT_TOGETHER) {
            door.look_for_unanswered(nodes, now);
            // A fleet is large, and others wait for this thread.
            tokio::task::yield_now().await;
        }
    }
}

impl FleetDoor {
    /// Marks those of these nodes silent that have owed an acknowledgement for too long.
    fn look_for_unanswered(&self, nodes: &[String], now: Timestamp) {
        for node in nodes {
            let behind = matches!(self.sync_state(node), Some(SyncState::Behind(_)));
            let Some(since) = self.owing(node, behind.then_some(now)) else { continue };
            let long = now.0.saturating_sub(since.0) >= UNANSWERED_MS_MAX;
            if long && matches!(self.contacts.of(node), Some(Contact::Connected { .. })) {
                tracing::info!(node, since = %since, "a connected device does not answer and counts as silent");
                self.contacts.set(node, Contact::Silent { last: since });
            }
        }
    }

    /// A device has acknowledged something.
    pub(super) fn answered(&self, node: &str) {
        self.owing(node, None);
        if matches!(self.contacts.of(node), Some(Contact::Silent { .. })) && self.session(node).is_some() {
            tracing::info!(node, "a device answers again");
            self.contacts.set(node, Contact::Connected { since: self.store.now() });
        }
    }
}
