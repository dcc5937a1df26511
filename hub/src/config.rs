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
    /// Where people reach the API: named by `admin.kubeconfig` and by the certificate. `None`: the bound address.
    pub advertise_api: Option<ApiName>,
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
            advertise_api: None,
            mqtt: None,
            retention: Retention::default(),
        }
    }
}

/// `HOST` or `HOST:PORT`: a DNS name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiName {
    /// Without brackets, as a certificate names it.
    host: String,
    port: Option<u16>,
}

impl ApiName {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// `HOST:PORT` for a URL.
    pub(crate) fn authority(&self, port: u16) -> String {
        let port = self.port.unwrap_or(port);
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }
}

impl std::str::FromStr for ApiName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither HOST nor HOST:PORT (an IPv6 address stands in brackets)");
        let (host, rest) = match text.strip_prefix('[') {
            Some(inside) => {
                let (host, rest) = inside.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (host, rest)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
                if host.is_empty() || !plain {
                    return Err(bad());
                }
                (host, rest)
            }
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(bad()),
            Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// How much history is kept. Whoever reads from further back starts anew from a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Watch events kept; an older watch is answered 410.
    pub events_count_max: usize,
    /// What they take in memory, about.
    pub events_bytes_max: usize,
    pub events_age_ms_max: u64,
    /// Records kept in one channel's log; a device further behind is caught up by a signed list.
    pub log_records_max: u64,
    pub log_bytes_max: u64,
    pub log_age_ms_max: u64,
    /// Rows of the audit table.
    pub audit_count_max: u64,
    pub audit_age_ms_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events_count_max: 20_000,
            events_bytes_max: 256 << 20,
            events_age_ms_max: 60 * 60 * 1000,
            log_records_max: 5_000,
            log_bytes_max: 16 << 20,
            log_age_ms_max: 30 * 24 * 60 * 60 * 1000,
            audit_count_max: 100_000,
            audit_age_ms_max: 90 * 24 * 60 * 60 * 1000,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_api() {
        let authority = |text: &str| text.parse::<ApiName>().map(|name| name.authority(6443)).ok();
        assert_eq!(authority("hub.example.org").unwrap(), "hub.example.org:6443");
        assert_eq!(authority("10.0.0.1:443").unwrap(), "10.0.0.1:443");
        assert_eq!(authority("[fd00::1]").unwrap(), "[fd00::1]:6443");
        assert_eq!(authority("[fd00::1]:443").unwrap(), "[fd00::1]:443");
        for bad in
            ["", ":6443", "hub:", "hub:0", "hub:x", "hub:70000", "https://hub", "fd00::1", "[fd00::1", "[hub]", "a b"]
        {
            assert_eq!(authority(bad), None, "{bad:?}");
        }
    }
}
