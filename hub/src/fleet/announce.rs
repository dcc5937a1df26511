//! Tells through a broker how far the channel of each fleet goes, for devices that come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_sync::channel::{ChannelName, WriterId};
use flotilla_sync::position::SignedPosition;
use flotilla_sync::transport::Announcer;
use tokio::sync::watch;

use super::door::FleetDoor;

/// Changes of so long are told together: it is for those who come, not for those who are here.
const PERIOD: Duration = Duration::from_secs(5);

/// Tells what is new, until `shutdown`.
pub(crate) async fn announce(door: Arc<FleetDoor>, announcer: Announcer, mut shutdown: watch::Receiver<bool>) {
    let mut told = BTreeMap::new();
    let mut grown = door.store.logs().bell("");
    loop {
        grown.mark_unchanged();
        // A hub that has lost something would tell less than it once signed.
        if !door.lessons.is_on() {
            tell_new(&door, &announcer, &mut told);
        }
        let next = async {
            tokio::time::sleep(PERIOD).await;
            if !door.lessons.is_on() {
                // Never fails: the store holds the sender.
                grown.changed().await.unwrap_or_default();
            }
        };
        tokio::select! {
            () = next => {}
            _ended = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

fn tell_new(door: &FleetDoor, announcer: &Announcer, told: &mut BTreeMap<ChannelName, (WriterId, u64)>) {
    let identity = door.identity();
    for (channel, seq) in door.store.logs().fleets(&identity.id()) {
        if told.get(&channel) == Some(&(identity.id(), seq)) {
            continue;
        }
        let position = SignedPosition::sign(&identity, channel.clone(), seq, door.store.version());
        if announcer.tell(&position) {
            told.insert(channel, (identity.id(), seq));
        }
    }
}
