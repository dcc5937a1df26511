//! Who has a session and does not answer.
//!
//! A link can be gone long before its session is: QUIC gives up after 90 s, a broker later still. A device that was sent records
//! and has acknowledged nothing for a while counts as silent, so that no rollout waits for it; its next acknowledgement brings
//! it back into contact. The session itself goes on: a slow link is no reason to start over.
//!
//! Who has acknowledged all there is owes nothing until there is more: in a fleet at rest nobody is looked at but those who came.

use std::sync::Arc;
use std::time::Duration;

use flotilla_manifests::time::Timestamp;
use tokio::sync::watch;

use super::door::FleetDoor;
use crate::Contact;

/// A device that owes an acknowledgement for longer than this counts as silent.
const UNANSWERED_MS_MAX: u64 = 15_000;
/// How often that is looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Every so many looks all sessions are looked at, whatever seems to be as it was.
const ALL_AFTER_LOOKS: u64 = 12;
/// So many sessions are looked at without a pause.
const LOOKED_AT_TOGETHER: usize = 100;

/// What there was when all sessions were last looked at.
#[derive(Debug, Default)]
struct Looked {
    looks: u64,
    growth: Option<u64>,
}

/// Looks at sessions from time to time, until `shutdown`.
pub(crate) async fn watch(door: Arc<FleetDoor>, mut shutdown: watch::Receiver<bool>) {
    let mut looked = Looked::default();
    loop {
        tokio::select! {
            biased;
            _ended = shutdown.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let now = door.store.now();
        for nodes in door.due(&mut looked).chunks(LOOKED_AT_TOGETHER) {
            door.look_for_unanswered(nodes, now);
            // A fleet is large, and others wait for this thread.
            tokio::task::yield_now().await;
        }
    }
}

impl FleetDoor {
    /// The nodes to look at now.
    fn due(&self, looked: &mut Looked) -> Vec<String> {
        // Before anybody is looked at: what grows meanwhile is there at the next look.
        let growth = Some(self.store.logs().growth());
        let grown = std::mem::replace(&mut looked.growth, growth) != growth;
        let (some, all) = (self.owing_or_unlooked(), looked.looks.is_multiple_of(ALL_AFTER_LOOKS));
        looked.looks += 1;
        if grown || all { self.connected() } else { some }
    }

    /// Marks those of these nodes silent that have owed an acknowledgement for too long.
    fn look_for_unanswered(&self, nodes: &[String], now: Timestamp) {
        for node in nodes {
            let Some(since) = self.owing(node, self.is_behind(node).then_some(now)) else { continue };
            let long = now.0.saturating_sub(since.0) >= UNANSWERED_MS_MAX;
            if long && matches!(self.contacts.of(node), Some(Contact::Connected { .. })) {
                tracing::info!(node, since = %since, "a connected device does not answer and counts as silent");
                self.contacts.set(node, Contact::Silent { last: since });
            }
        }
    }

    /// A device has acknowledged something.
    pub(super) fn answered(&self, node: &str) {
        if self.is_owing(node) {
            self.owing(node, None);
            // It may owe more.
            self.look_at_next(node);
        }
        if matches!(self.contacts.of(node), Some(Contact::Silent { .. })) && self.session(node).is_some() {
            tracing::info!(node, "a device answers again");
            self.contacts.set(node, Contact::Connected { since: self.store.now() });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::Ordering;

    use flotilla_sync::channel::positions_of;
    use flotilla_sync::driver;
    use flotilla_sync::replica::Replica as _;
    use serde_json::json;

    use super::*;
    use crate::Retention;
    use crate::tests::Bench;

    #[tokio::test]
    async fn a_device_that_owes_an_answer_is_found_and_one_that_owes_none_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::open(folder.path(), Retention::default()).await;
        let device = bench.enrolled(folder.path(), "a", "default").await;
        let (door, mut looked) = (&bench.door, Looked::default());
        let (handle, _commands) = driver::commands();
        door.opened("a", 1, handle, "memory".to_owned());
        let answers = async || {
            let heads = positions_of(&door.heads_of(&device.node));
            door.acknowledged(&device.peer(), heads).await.unwrap();
        };
        let mut look = |passes_ms: u64| {
            bench.now.fetch_add(passes_ms, Ordering::SeqCst);
            let due = door.due(&mut looked);
            door.look_for_unanswered(&due, bench.store.now());
            (due, matches!(door.contact("a"), Some(Contact::Silent { .. })))
        };
        answers().await;
        let everyone = vec!["a".to_owned()];
        assert_eq!(look(5000), (everyone.clone(), false), "at the first look everyone is looked at");
        assert_eq!(look(5000), (Vec::new(), false), "nothing has grown, and it owes nothing");
        bench
            .create(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "namespace": "default"},
                "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}},
                    "spec": {"runtimeClassName": "process", "containers": [{"name": "c", "image": "host", "command": ["sh"]}]}}}}))
            .await
            .unwrap();
        assert_eq!(look(5000), (everyone.clone(), false));
        assert_eq!(look(5000), (everyone.clone(), false), "it still owes");
        assert_eq!(look(15_000), (everyone.clone(), true));
        answers().await;
        assert_eq!(look(5000), (everyone.clone(), false), "it answered, and might owe more");
        assert_eq!(look(5000), (Vec::new(), false));
        let due: Vec<usize> = (0..ALL_AFTER_LOOKS).map(|_| look(5000).0.len()).collect();
        assert_eq!(due.iter().sum::<usize>(), 1, "now and then everyone is looked at, whatever seems to be: {due:?}");
    }
}
