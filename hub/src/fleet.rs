//! The fleet door: the hub's end of all sessions.
//!
//! Owns accepting devices from the transports, running sync's driver for each, and turning what devices report into rows.
//! Refuses decisions about workloads: those are the controllers'. Start reading at [`serve`], then [`door`].

pub(crate) mod announce;
pub(crate) mod attention;
pub mod contact;
pub(crate) mod door;
pub(crate) mod gate;
mod ingest;
pub(crate) mod logs;
mod observe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_sync::driver;
use flotilla_sync::enrol;
use flotilla_sync::session::SessionConfig;
use flotilla_sync::transport::{Incoming, Listener, PeerIdentity, Pipe};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::enrol::Registrar;
use crate::{mint, node};
use door::FleetDoor;

/// Enrolments served at one time, over each transport.
const ENROLMENTS_MAX: usize = 64;

/// Sessions have so long to say goodbye and to note the time of the last contact.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Numbers the sessions of this run.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Reads observations again that came while the hub was learning.
pub(crate) fn replay_deferred(
    batch: &mut crate::store::Batch<'_>,
) -> Result<(), flotilla_manifests::api_error::ApiError> {
    observe::replay(batch)
}

/// What one transport's loop needs.
#[derive(Debug, Clone)]
pub(crate) struct Reception {
    pub(crate) door: Arc<FleetDoor>,
    pub(crate) registrar: Arc<Registrar>,
    /// Which start of this hub's database it is.
    pub(crate) boot: u64,
}

/// Accepts devices of one transport until `shutdown`; then every session is told goodbye and ended.
pub(crate) async fn serve(mut listener: Listener, reception: Reception, mut shutdown: watch::Receiver<bool>) {
    let mut sessions = JoinSet::new();
    let mut enrolments = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => None,
            incoming = listener.accept() => incoming,
        };
        match incoming {
            Some(Incoming::Session(pipe)) => {
                sessions.spawn(session(pipe, reception.clone()));
            }
            Some(Incoming::Enrol(stream)) if enrolments.len() < ENROLMENTS_MAX => {
                let registrar = Arc::clone(&reception.registrar);
                enrolments.spawn(async move {
                    let root = registrar.installation.root().public();
                    if let Err(error) = enrol::serve(stream, &root, &*registrar).await {
                        tracing::warn!(%error, "an enrolment failed");
                    }
                });
            }
            // Too many at once: the stream is dropped, the device comes back.
            Some(Incoming::Enrol(_)) => {}
            None => break,
        }
        while sessions.try_join_next().is_some() {}
        while enrolments.try_join_next().is_some() {}
    }
    for handle in reception.door.sessions_open() {
        handle.close("the hub stops", None).await;
    }
    let ended = tokio::time::timeout(GOODBYE_TIMEOUT, async { while sessions.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::debug!(left = sessions.len(), "sessions did not end in time and are broken off");
    }
    listener.close().await;
    sessions.shutdown().await;
    enrolments.shutdown().await;
}

/// One session, from its acceptance to its end.
async fn session(pipe: Pipe, reception: Reception) {
    let PeerIdentity::Device { node } = pipe.peer.clone() else { return };
    let Reception { door, boot, .. } = reception;
    let name = node.to_string();
    // In a place of its own: the task of a session is there for as long as its device is in contact.
    match Box::pin(welcome(&door, &name)).await {
        Welcome::Known => {}
        Welcome::Unknown => return driver::refuse(pipe, driver::ENROL_AGAIN).await,
        Welcome::Failed => return,
    }
    let Ok(seed) = mint::bytes::<8>() else { return };
    let config = SessionConfig {
        root: door.installation.root().public(),
        node: None,
        incarnation: door.store.incarnation(),
        boot,
        seed: u64::from_be_bytes(seed),
    };
    let (handle, commands) = driver::commands();
    let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let (transport, remote) = (pipe.transport, pipe.remote.clone());
    if let Some(earlier) = door.opened(&name, number, handle, format!("{transport} {remote}")) {
        earlier.close(driver::REPLACED, None).await;
    }
    tracing::info!(node = name, %transport, remote, "a device is in contact");
    let end = driver::run(pipe, config, Arc::clone(&door), commands).await;
    tracing::info!(node = name, ?end, "a session ended");
    let held = door.durable(&name);
    if door.closed(&name, number) {
        let at = door.store.now();
        let noted = name.clone();
        let write = door.store.write(move |batch| {
            if let Some(held) = held {
                // The next way to this device may be a stick.
                batch.note_positions(&noted, &held)?;
            }
            Ok(batch.set_last_contact(&noted, at)?)
        });
        if let Err(error) = write.await {
            tracing::warn!(node = name, %error, "the time of the last contact was not stored");
        }
    }
}

/// Whether a device with a valid certificate is still enrolled; its Node is made again if someone deleted it.
pub(crate) async fn welcome(door: &FleetDoor, name: &str) -> Welcome {
    // Nothing takes a device out of the database while a hub runs: a fleet that returns need not ask the one writer.
    if door.contact(name).is_some() && door.has_node(name) {
        return Welcome::Known;
    }
    let node = name.to_owned();
    let write = door.store.write(move |batch| {
        let Some(device) = batch.device(&node)? else { return Ok(false) };
        let key = flotilla_manifests::object::ObjectKey::of(&flotilla_manifests::kind::NODE, "", node.as_str());
        if batch.get(&key).is_none() {
            node::ensure(batch, &device, &BTreeMap::new())?;
        }
        Ok(true)
    });
    match write.await {
        Ok(true) => Welcome::Known,
        Ok(false) => {
            tracing::warn!(
                node = name,
                "a device that this hub does not know was turned away; `flotilla token create --node NAME --fleet FLEET` takes back one \
                 that joined after the backup that was restored"
            );
            Welcome::Unknown
        }
        Err(error) => {
            tracing::error!(node = name, %error, "a session was refused: the store failed");
            Welcome::Failed
        }
    }
}

/// Whether a device's session may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Welcome {
    Known,
    Unknown,
    Failed,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_sync::identity::NodeName;
    use flotilla_sync::transport::Transport;

    use super::*;
    use crate::Retention;
    use crate::tests::Bench;

    #[tokio::test]
    async fn the_task_of_a_device_in_contact_is_small() {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::open(folder.path(), Retention::default()).await;
        let (near, _far) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(near);
        let pipe = Pipe {
            reader: Box::new(reader),
            writer: Box::new(writer),
            peer: PeerIdentity::Device { node: NodeName::parse("a").unwrap() },
            transport: Transport::Memory,
            remote: "memory".to_owned(),
            stalled: None,
        };
        let reception = Reception { door: bench.door, registrar: bench.registrar, boot: 1 };
        let bytes = size_of_val(&session(pipe, reception));
        assert!(bytes <= 8 * 1024, "there is one of {bytes} bytes for each device");
    }
}
