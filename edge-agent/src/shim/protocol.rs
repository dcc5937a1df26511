//! What agent and shim say to each other over `shim.sock`: one JSON value a line, a request and its answer.
//!
//! Agents of later versions talk to shims of earlier ones: requests and fields are only added, and a shim answers one it does
//! not know with an error.

use serde::{Deserialize, Serialize};

use super::files::ShimFile;
use crate::runtime::ContainerConfig;

/// A line longer than this ends the connection.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Request {
    Start {
        container: Box<ContainerConfig>,
    },
    Stop {
        container: String,
        attempt: u32,
        grace_ms: u64,
    },
    Status,
    /// Answered with the state now and again after every change, until the connection ends.
    Watch,
    /// Kills what runs and ends the shim.
    Shutdown,
}

impl Request {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Status => "status",
            Self::Watch => "watch",
            Self::Shutdown => "shutdown",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Why the request was refused; absent when it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ShimFile>,
}
