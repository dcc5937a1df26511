//! What one hub is told at its start, and its bounds.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The database's name in the data folder.
pub(crate) const DATABASE_FILE: &str = "hub.sqlite";

/// Settings of one hub.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Holds the database, the installation's keys and `admin.kubeconfig`. Created with mode 0700.
    pub data_dir: PathBuf,
    /// The Kubernetes API over TLS.
    pub listen: SocketAddr,
    /// The fleet door over QUIC (UDP).
    pub quic: SocketAddr,
    /// `HOST:PORT` addresses under which devices reach the QUIC door, written into tokens. Empty: the bound address.
    pub advertise: Vec<String>,
    /// `mqtt://host:port` of a broker at which the fleet door listens too.
    pub mqtt: Option<String>,
    pub retention: Retention,
}

impl HubConfig {
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 6443)),
            quic: SocketAddr::from(([0, 0, 0, 0], 6444)),
            advertise: Vec::new(),
            mqtt: None,
            retention: Retention::default(),
        }
    }
}

/// How much history is kept. Whoever reads from further back starts anew from a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Watch events kept; an older watch is answered 410.
    pub events_count_max: usize,
    /// Their size in memory, as JSON.
    pub events_bytes_max: usize,
    pub events_age_ms_max: u64,
    /// Records kept in one channel's log; a device further behind is caught up by a signed list.
    pub log_records_max: u64,
    pub log_bytes_max: u64,
    /// Rows of the audit table.
    pub audit_count_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events_count_max: 20_000,
            events_bytes_max: 64 << 20,
            events_age_ms_max: 60 * 60 * 1000,
            log_records_max: 5_000,
            log_bytes_max: 16 << 20,
            audit_count_max: 100_000,
        }
    }
}
