//! What a hub has a broker keep: how far the channels of fleets go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::channel::ChannelName;
use crate::position::SignedPosition;

/// Fleets whose channel's position is kept at the broker.
const ANNOUNCED_LEN_MAX: usize = 1_024;

/// The newest position of each fleet's channel. Told again to a broker that was lost, which may have lost it.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    newest: Mutex<BTreeMap<ChannelName, Bytes>>,
    /// Those that wait to leave.
    untold: Mutex<BTreeSet<ChannelName>>,
    grew: Notify,
}

/// See [`crate::transport::Announcer`].
#[derive(Debug, Clone)]
pub(in crate::transport) struct Announcer(Arc<Announcements>);

impl Announcer {
    pub(super) fn of(announcements: &Arc<Announcements>) -> Self {
        Self(Arc::clone(announcements))
    }

    pub(in crate::transport) fn tell(&self, position: &SignedPosition) -> bool {
        let mut newest = lock(&self.0.newest);
        if newest.len() >= ANNOUNCED_LEN_MAX && !newest.contains_key(&position.channel) {
            return false;
        }
        newest.insert(position.channel.clone(), position.encoded().clone());
        drop(newest);
        lock(&self.0.untold).insert(position.channel.clone());
        self.0.grew.notify_one();
        true
    }
}

impl Announcements {
    /// The broker may have lost all of it.
    pub(super) fn tell_all_again(&self) {
        let all = lock(&self.newest).keys().cloned().collect::<Vec<_>>();
        lock(&self.untold).extend(all);
        self.grew.notify_one();
    }

    /// Waits for the next one to tell.
    pub(super) async fn next(&self) -> (ChannelName, Bytes) {
        loop {
            let first = lock(&self.untold).pop_first();
            let found = first.and_then(|channel| {
                let payload = lock(&self.newest).get(&channel)?.clone();
                Some((channel, payload))
            });
            match found {
                Some(found) => return found,
                None => self.grew.notified().await,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
