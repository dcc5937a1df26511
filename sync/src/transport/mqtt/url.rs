//! Addresses of brokers.

use std::fmt;

const PORT: u16 = 1883;

/// `mqtt://[user[:password]@]host[:port]`. Shown without the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    host: String,
    port: u16,
    login: Option<(String, String)>,
}

/// Why a text is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("broker address {shown:?}: {why}; it must look like mqtt://host:1883 or mqtt://user:password@host:1883")]
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
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, rest),
        };
        let fail = |why| BrokerUrlError { shown: address.chars().take(80).collect(), why };
        match scheme {
            "mqtt" | "tcp" => {}
            "mqtts" | "ssl" => {
                return Err(fail(
                    "TLS to the broker is not supported; between device and hub the stream is encrypted in any case",
                ));
            }
            _ => return Err(fail("the scheme is not mqtt")),
        }
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
            Some(text) => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| fail("the port is not valid"))?,
            None => PORT,
        };
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (user.to_owned(), password.to_owned())
        });
        Ok(Self { host: host.to_owned(), port, login })
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
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "mqtt://[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "mqtt://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BrokerUrl({self})")
    }
}
