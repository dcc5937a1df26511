//! Who is in contact and since when: facts of the sessions, for node health, logs and the rollout's arithmetic.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use flotilla_manifests::time::Timestamp;
use tokio::sync::watch;

/// Where one device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// A session is open, since this time.
    Connected { since: Timestamp },
    /// No session; it was last heard at this time (a device not heard since this hub's start: as the database remembers).
    Silent { last: Timestamp },
}

/// The contact of every enrolled device, by node name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Timestamp,
    table: RwLock<BTreeMap<String, Contact>>,
    changed: watch::Sender<()>,
}

impl Contacts {
    /// `remembered`: the last contact of each enrolled device, from the database.
    pub fn starting(started: Timestamp, remembered: impl IntoIterator<Item = (String, Timestamp)>) -> Self {
        let table = remembered.into_iter().map(|(node, last)| (node, Contact::Silent { last })).collect();
        let (changed, _) = watch::channel(());
        Self { shared: Arc::new(Shared { started, table: RwLock::new(table), changed }) }
    }

    /// When this hub started: silence is counted from the later of this and the last contact.
    pub fn started(&self) -> Timestamp {
        self.shared.started
    }

    pub fn of(&self, node: &str) -> Option<Contact> {
        self.read().get(node).copied()
    }

    pub fn all(&self) -> BTreeMap<String, Contact> {
        self.read().clone()
    }

    /// Since when a node has been silent, for the health rule; `None` while it is in contact.
    pub fn silent_since(&self, node: &str) -> Option<Timestamp> {
        match self.of(node) {
            Some(Contact::Connected { .. }) => None,
            Some(Contact::Silent { last }) => Some(last.max(self.shared.started)),
            None => Some(self.shared.started),
        }
    }

    /// Signals that some device connected or went silent.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    pub(crate) fn set(&self, node: &str, contact: Contact) {
        self.shared.table.write().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), contact);
        self.shared.changed.send_replace(());
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Contact>> {
        self.shared.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}
