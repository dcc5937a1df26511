//! A device that has not joined and may never see a network: its request, until the answer comes.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use flotilla_manifests::time::Timestamp;
use flotilla_sync::bundle::courier::{Failure, JoinWish};
use flotilla_sync::bundle::{self, JoinExport, Receiver, Report, Side};
use flotilla_sync::enrol::{Enrolment, JoinMaterial, Token};
use flotilla_sync::identity::{DeviceKeys, NodeName, SealingKey};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::args::RunArguments;
use crate::enrolment;
use crate::store::{Ingest, Loaded, Store};

/// Name in the table of facts.
const JOIN: &str = "join";
/// Where `flotilla agent run --offline` puts the request.
const REQUEST_FILE: &str = "join.flotilla";

/// The device's keys, and what waits for an answer. Both are durable before a request leaves.
#[derive(Debug)]
pub(crate) struct Joining {
    keys: DeviceKeys,
    waiting: Mutex<Option<JoinMaterial>>,
}

impl Joining {
    /// Reads what is stored, and makes the device's keys if there are none yet.
    pub(crate) async fn open(store: &Store, loaded: &mut Loaded) -> Result<Self> {
        let keys = enrolment::open_keys(store, loaded).await?;
        // Whoever reads what was loaded later must find the same keys.
        loaded.meta.insert("keys".to_owned(), serde_json::to_vec(&keys.to_material())?);
        let waiting = enrolment::stored::<JoinMaterial>(loaded, JOIN)?;
        Ok(Self { keys, waiting: Mutex::new(waiting) })
    }

    /// Whether a request waits for its answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting().is_some()
    }

    /// Makes the request that the command line asks for, unless it was made before, and writes it into the folder.
    pub(crate) async fn request(
        &self,
        store: &Store,
        arguments: &RunArguments,
        folder: &Path,
        now: Timestamp,
    ) -> Result<()> {
        let wish = arguments.join.as_ref().map(|token| JoinWish {
            token: token.clone(),
            name: arguments.name.clone(),
            labels: enrolment::labels_of(&arguments.labels),
        });
        let path = folder.join(REQUEST_FILE);
        let half = folder.join(format!("{REQUEST_FILE}.tmp"));
        let mut bytes = Vec::new();
        self.export(store, wish.as_ref(), now, &mut bytes).await?;
        let mut file = tokio::fs::File::create(&half).await.with_context(|| format!("creating {}", half.display()))?;
        file.write_all(&bytes).await?;
        file.sync_all().await?;
        tokio::fs::rename(&half, &path).await.with_context(|| format!("naming {}", path.display()))?;
        tracing::info!(
            request = %path.display(),
            "this device has not joined: carry its request to the hub (`flotilla bundle import`), and import here what the hub \
             exports for it"
        );
        Ok(())
    }

    /// Writes the request.
    pub(crate) async fn export(
        &self,
        store: &Store,
        wish: Option<&JoinWish>,
        now: Timestamp,
        target: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Report, Failure> {
        if let Some(wish) = wish {
            self.prepare(store, wish).await?;
        }
        let Some(join) = self.waiting() else { return Err(no_token()) };
        let export = JoinExport { join: &join, keys: &self.keys, time_ms: now.0 };
        Ok(bundle::export_join(&export, target).await?)
    }

    /// Who this is to a bundle before it has joined.
    pub(crate) fn side(&self) -> Result<Side, Failure> {
        let join = self.waiting().ok_or_else(no_token)?;
        let token = join.token().map_err(Failure::other)?;
        let key = SealingKey::from_bytes(self.keys.sealing.to_bytes());
        Ok(Side { root: token.root, receiver: Receiver::Device(join.node), key })
    }

    pub(crate) fn accept(&self, answer: &[u8]) -> Result<Enrolment, Failure> {
        let join = self.waiting().ok_or_else(no_token)?;
        join.accept(answer, &self.keys).map_err(|error| Failure::refused(enrolment::chain(&error)))
    }

    /// Makes the answer durable; the request, and the token in it, have served.
    pub(super) async fn keep(&self, store: &Store, enrolment: &Enrolment) -> Result<(), Failure> {
        let material = serde_json::to_vec(&enrolment.to_material()).map_err(Failure::other)?;
        let rows = Ingest { meta: vec![("enrolment", material)], meta_ended: vec![JOIN], ..Ingest::default() };
        store.ingest(rows).await.map_err(|error| Failure::other(enrolment::chain(&error)))
    }

    /// Takes the request out of the folder.
    pub(crate) fn has_served(folder: &Path) {
        if let Err(error) = std::fs::remove_file(folder.join(REQUEST_FILE)) {
            tracing::debug!(%error, "the request to join is not in the folder any more");
        }
    }

    /// A request with another token or name takes the place of one that waits.
    async fn prepare(&self, store: &Store, wish: &JoinWish) -> Result<(), Failure> {
        let token = Token::parse(&wish.token).map_err(|error| Failure::other(format!("--join: {error}")))?;
        let name = enrolment::name_of(wish.name.as_deref(), &token);
        let node = NodeName::parse(&name).map_err(|_name| {
            Failure::other(format!(
                "{name:?} cannot be a node's name: lower case letters, digits, '-' and '.'; set --name"
            ))
        })?;
        if self.waiting().is_some_and(|known| known.token_text() == token.encode() && known.node == node) {
            return Ok(());
        }
        let join = JoinMaterial::prepare(&token, node, wish.labels.clone()).map_err(Failure::other)?;
        join.receiver().map_err(|error| Failure::refused(error.to_string()))?;
        enrolment::put(store, JOIN, &join).await.map_err(Failure::other)?;
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(join);
        Ok(())
    }

    fn waiting(&self) -> Option<JoinMaterial> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn no_token() -> Failure {
    Failure::refused(
        "this device has not joined and has no token: make one at the hub (`flotilla token create --ttl 7d`) and give it with \
         --join TOKEN",
    )
}
