//! What a device hears at a broker about its fleet's channel while it connects.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::channel::ChannelName;
use crate::identity::PublicKey;
use crate::position::{POSITION_BYTES_MAX, SignedPosition};

/// Positions looked at, each two signatures: a broker that shouts is not heard any more.
const LOOKED_AT_MAX: u32 = 64;

/// Keeps the newest that holds.
#[derive(Debug)]
pub(super) struct Ear {
    channel: ChannelName,
    root: PublicKey,
    heard: Mutex<(u32, Option<SignedPosition>)>,
}

impl Ear {
    pub(super) fn new(channel: ChannelName, root: PublicKey) -> Self {
        Self { channel, root, heard: Mutex::default() }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.channel
    }

    pub(super) fn hear(&self, payload: &Bytes) {
        let mut state = self.state();
        let (looked_at, newest) = &mut *state;
        if *looked_at >= LOOKED_AT_MAX || payload.len() > POSITION_BYTES_MAX {
            return;
        }
        *looked_at += 1;
        match SignedPosition::verify(payload, &self.root, &self.channel) {
            Ok(found) if newest.as_ref().is_none_or(|known| found.is_newer_than(known)) => *newest = Some(found),
            Ok(_older) => {}
            Err(error) => tracing::debug!(%error, "a broker told what no hub has signed"),
        }
    }

    pub(super) fn heard(&self) -> Option<SignedPosition> {
        self.state().1.clone()
    }

    fn state(&self) -> MutexGuard<'_, (u32, Option<SignedPosition>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
