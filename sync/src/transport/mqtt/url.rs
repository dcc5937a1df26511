//! Addresses of brokers.

use std::fmt;

use super::packet::Version;

const PORT: u16 = 1883;
const TLS_PORT: u16 = 8883;

/// `mqtt://[user[:password]@]host[:port][?version=5]`, or `mqtts://...[?ca=FILE|?pin=SHA256]` for TLS to the broker. Shown without
/// the password.
///
/// Without `version` the broker is spoken to in MQTT 5, and in 3.1.1 if it does not understand that. `enrol=PORT` is where it lets in
/// those who have no certificate, if it asks all others for one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    host: String,
    port: u16,
    login: Option<(String, String)>,
    version: Option<Version>,
    trust: Option<Trust>,
    enrol_port: Option<u16>,
}

/// Whom TLS to a broker believes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Trust {
    /// The authorities of the system.
    System,
    /// Those in a file of PEM certificates.
    File(String),
    /// SHA-256 of the broker's certificate, or of its authority's.
    Pin([u8; 32]),
}

/// Why a text is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "broker address {shown:?}: {why}; it must look like mqtt://host:1883, mqtts://host:8883 or mqtt://user:password@host:1883?version=5"
)]
pub struct BrokerUrlError {
    shown: String,
    why: &'static str,
}

impl BrokerUrl {
    /// The one parser.
    ///
    /// # Errors
    /// What is wrong with it; the password is not shown.
    pub fn parse(text: &str) -> Result<Self, BrokerUrlError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (rest, query) = match rest.rsplit_once('?') {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, rest),
        };
        let fail = |why| BrokerUrlError { shown: address.chars().take(80).collect(), why };
        let encrypted = match scheme {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            _ => return Err(fail("the scheme is not mqtt or mqtts")),
        };
        let options = Options::of(query).map_err(fail)?;
        let trust = match (encrypted, options.trust) {
            (true, named) => Some(named.unwrap_or(Trust::System)),
            (false, None) => None,
            (false, Some(_)) => return Err(fail("ca and pin belong to mqtts")),
        };
        let (host, port) = match address.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']').ok_or_else(|| fail("the bracket is not closed"))?;
                (host, after.strip_prefix(':'))
            }
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        if host.is_empty()
            || host.len() > 253
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(fail("the host is missing or not valid"));
        }
        let port = match port {
            Some(text) => port_in(text).ok_or_else(|| fail("the port is not valid"))?,
            None if encrypted => TLS_PORT,
            None => PORT,
        };
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (user.to_owned(), password.to_owned())
        });
        let Options { version, enrol_port, .. } = options;
        Ok(Self { host: host.to_owned(), port, login, version, trust, enrol_port })
    }

    /// The same broker, where it lets in those who have no certificate.
    pub(super) fn for_strangers(&self) -> Self {
        Self { port: self.enrol_port.unwrap_or(self.port), ..self.clone() }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// The version to speak; `None` leaves it to the broker.
    pub(super) fn version(&self) -> Option<Version> {
        self.version
    }

    /// Whom to believe; `None` without TLS.
    pub(super) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }
}

/// What stands behind the question mark.
#[derive(Default)]
struct Options {
    version: Option<Version>,
    trust: Option<Trust>,
    enrol_port: Option<u16>,
}

impl Options {
    fn of(query: &str) -> Result<Self, &'static str> {
        let mut options = Self::default();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("version", "5" | "5.0")) => options.version = Some(Version::V5),
                Some(("version", "3" | "3.1.1" | "4")) => options.version = Some(Version::V311),
                Some(("version", _)) => return Err("the version is neither 5 nor 3.1.1"),
                Some(("ca", file)) if !file.is_empty() && options.trust.is_none() => {
                    options.trust = Some(Trust::File(file.to_owned()));
                }
                Some(("pin", digest)) if options.trust.is_none() => {
                    let pin = digest_in(digest).ok_or("the pin is no SHA-256 in hexadecimal")?;
                    options.trust = Some(Trust::Pin(pin));
                }
                Some(("enrol", port)) => {
                    options.enrol_port = Some(port_in(port).ok_or("the port behind enrol is not valid")?);
                }
                _ => return Err("after the question mark may stand version, enrol, and either ca or pin"),
            }
        }
        Ok(options)
    }
}

fn port_in(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// As `openssl x509 -fingerprint -sha256` shows it, with colons or without.
fn digest_in(text: &str) -> Option<[u8; 32]> {
    let digits: String = text.chars().filter(|letter| *letter != ':').collect();
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.trust.is_some() { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(formatter, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BrokerUrl({self})")
    }
}
