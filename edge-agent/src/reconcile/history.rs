//! What must be remembered of a pod beyond what the runtime knows: restart counts, last exits, back-off, dates of conditions.
//!
//! The store keeps one value per pod uid and makes a changed one durable before the action it belongs to is taken. Fields may
//! only be added, with a default: an agent reads what every earlier version wrote.

use std::collections::BTreeMap;

use flotilla_manifests::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::runtime::Exit;

/// By pod uid.
pub type History = BTreeMap<String, PodHistory>;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodHistory {
    pub namespace: String,
    pub name: String,
    /// When this device first took the pod up: `status.startTime`.
    pub started_at: Option<Timestamp>,
    /// The newest sandbox that was asked for.
    pub sandbox_attempt: Option<u32>,
    /// Boot in which that sandbox was asked for.
    pub sandbox_boot: String,
    /// Containers and init containers by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub containers: BTreeMap<String, ContainerHistory>,
    /// `Succeeded` or `Failed` once the pod has come to its end; it never runs again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal_phase: Option<String>,
    /// Condition type -> (status, since).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, (bool, Timestamp)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerHistory {
    /// The newest attempt that was asked for; also the restart count.
    pub attempt: Option<u32>,
    /// Boot and sandbox in which it was asked for.
    pub boot: String,
    pub sandbox_attempt: u32,
    /// Digest it was started from.
    pub digest: String,
    /// Manifest digest of the image it was started from; empty for a process of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
    /// How `last_exit_attempt` ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit_attempt: Option<u32>,
    /// How the attempt before that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_exit: Option<Exit>,
    /// How long to wait after the last exit before the next start; 0 after a good run.
    pub backoff_ms: u64,
    /// We stopped `last_exit_attempt` ourselves because its definition changed: restart at once.
    pub replaced: bool,
    /// The startup probe of `attempt` has succeeded.
    pub started: bool,
    /// The readiness probe's newest verdict on `attempt`.
    pub ready: bool,
}
