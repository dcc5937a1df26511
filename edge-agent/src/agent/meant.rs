//! What this device means to run and show, remembered from pass to pass.
//!
//! Most passes follow from what containers do, and what is known is as it was: unpacking and deriving all of it again would be most of
//! the work. Owns when it must be derived again; refuses to say what follows from it ([`crate::effective`] does). Start reading at
//! [`Agent::understand`].

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_manifests::object::ObjectKey;
use flotilla_manifests::time::Timestamp;
use serde_json::Value;

use super::{Agent, PassError};
use crate::effective::{Effective, Manifest, effective};
use crate::host::Strain;
use crate::knowledge::Read;
use crate::runtime::Runtime;
use crate::store::Damage;

/// Read again after this at the latest, whatever seems to be as it was: a fault in what tells of changes costs ten minutes, not a
/// day. By the clock that nobody sets. From what says the same the same follows: that is not derived again.
const AGAIN_MS: u64 = 10 * 60 * 1000;

/// What a pass is made from besides what runs, as far as it can be told from what the last pass was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ground {
    known: Known,
    images: u64,
    strain: Strain,
    damage: Damage,
}

/// Of the items, and when the hub last greeted this device. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    generation: u64,
    greeted_ms: u64,
}

/// What is known and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    pub(super) read: Arc<Read>,
    pub(super) effective: Arc<Effective>,
    /// What it was derived from; `None`: it has to be derived again.
    of: Option<Known>,
    /// An override ends then, by proven time.
    until: Option<Timestamp>,
    /// When all it was derived from was last read, in milliseconds of this boot.
    since_ms: u64,
}

impl Meant {
    /// Something it was derived from has changed that nothing else tells of: what this device remembers.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }

    /// The hub's manifest behind what is shown under this name, or would be if nothing held it back. A name can have two lives here at
    /// once: the one that a restored hub remembers, and the one that it had given it since.
    pub(super) fn base(&self, key: &ObjectKey) -> Option<&Arc<Manifest>> {
        let shown = self.effective.objects.get(key).map(|object| object.uid());
        let mut named = self.read.known.manifests.values().filter(|manifest| manifest.object.key() == *key);
        named.rfind(|manifest| shown.is_none_or(|uid| manifest.object.uid() == uid))
    }
}

/// What the last completed pass showed and told of pods: the same need not be worked out again.
#[derive(Debug, PartialEq)]
pub(crate) struct Said {
    pub(super) statuses: Arc<BTreeMap<String, Value>>,
    pub(super) events: u64,
    pub(super) sync: &'static str,
    pub(super) node: Arc<Value>,
    pub(super) told_to: (u64, u64),
}

impl<R: Runtime> Agent<R> {
    pub(super) fn ground(&self) -> Ground {
        let known = Known { generation: self.replica.generation(), greeted_ms: self.replica.greeted_at_ms() };
        let (images, strain) = (self.images.current().generation, self.host.strain());
        Ground { known, images, strain, damage: self.damage() }
    }

    /// Whether what is meant is still what follows from this.
    pub(super) fn still_means(&self, ground: &Ground) -> bool {
        let fresh = self.clock.monotonic_ms().saturating_sub(self.state.meant.since_ms) < AGAIN_MS;
        self.state.meant.of == Some(ground.known) && fresh && self.meaning_lasts()
    }

    /// Whether what is meant still follows from what was read then.
    fn meaning_lasts(&self) -> bool {
        let meant = &self.state.meant;
        let lasts = meant.until.is_none_or(|until| until > self.clock.proven());
        meant.of.is_some() && lasts && !self.replica.is_salvaged()
    }

    /// Derives what is meant, if anything it follows from has changed. `true`: it is new.
    pub(super) async fn understand(&mut self, ground: &Ground, now: Timestamp) -> Result<bool, PassError> {
        if self.still_means(ground) {
            return Ok(false);
        }
        let since_ms = self.clock.monotonic_ms();
        let lasts = self.meaning_lasts();
        self.state.meant.forget();
        let read = self.knowledge.read(&self.replica);
        let mut read = self.end_overrides(read, now).await?;
        self.expect_remembered(&mut read.known);
        if lasts && read == *self.state.meant.read {
            // A greeting, records that bring nothing new, or only time has passed.
            self.state.meant.of = Some(ground.known);
            self.state.meant.since_ms = since_ms;
            return Ok(false);
        }
        // By proven time: an override never ends early because a clock runs ahead.
        let mut next = effective(&self.node, &read.known, &self.memory, self.clock.proven());
        let remembered = next.memory != self.memory;
        let forgets = self.memory.loses_to(&next.memory);
        if remembered {
            self.store.set_meta("memory", serde_json::to_vec(&next.memory)?).await?;
            self.memory = next.memory.clone();
        }
        next.share(&self.state.meant.effective);
        let until = read.known.overrides.iter().filter_map(|record| record.expires).min();
        // What was just remembered changes nothing that follows (the tests of `effective` derive everything twice), unless it is all that is
        // known of something. What was forgotten may: a workload that left is met like a new one.
        let settled = !remembered || !forgets && read.known.unreadable.is_empty();
        let of = settled.then_some(ground.known);
        self.state.meant = Meant { read: Arc::new(read), effective: Arc::new(next), of, until, since_ms };
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_manifests::kind;
    use flotilla_manifests::object::Object;

    use super::*;

    #[test]
    fn of_two_lives_of_a_name_the_one_that_is_shown_is_meant() {
        let life = |uid: &str| {
            let mut object = Object::empty(&kind::DAEMON_SET, "default", "web");
            object.metadata_mut().insert("uid".into(), uid.into());
            Arc::new(Manifest { object: Arc::new(object), thresholds: BTreeMap::new(), at_number: BTreeMap::new() })
        };
        let mut read = Read::default();
        read.known.manifests = ["a", "b"].map(|uid| (uid.to_owned(), life(uid))).into();
        let read = Arc::new(read);
        let key = life("a").object.key();
        let base_while = |shown: Option<&str>| {
            let mut effective = Effective::default();
            effective.objects.extend(shown.map(|uid| (key.clone(), Arc::clone(&life(uid).object))));
            let meant = Meant { read: Arc::clone(&read), effective: Arc::new(effective), ..Meant::default() };
            meant.base(&key).map(|manifest| manifest.object.uid().to_owned())
        };
        assert_eq!(base_while(Some("a")).as_deref(), Some("a"));
        assert_eq!(base_while(Some("b")).as_deref(), Some("b"));
        assert_eq!(base_while(None).as_deref(), Some("b"), "as it is shown once it is not held back");
        assert_eq!(base_while(Some("c")), None);
    }
}
