//! The one place where topics, their filters and the names of clients are made and read.
//!
//! Below `flotilla/v2/<installation>/`:
//!
//! | topic | who publishes | what |
//! |---|---|---|
//! | `d/<user>/open` | the device | that it wants a stream, to whichever hub hears it |
//! | `d/<user>/up/<hub>` | the device | its stream to the hub that answered |
//! | `d/<user>/down/<hub>` | that hub | its stream to the device |
//! | `d/<user>/gone` | the device, or the broker for it | that its stream is over; all hubs hear it |
//! | `e/<attempt>/...` | the same four | one enrolment attempt, named at random |
//! | `hub/<hub>` | the hub, retained | that it is there; empty: that it went |
//! | `fleet/<digest>` | the hub, retained | how far the fleet's channel goes, signed |
//!
//! `<user>` is the common name in the device's certificate, `system:node:<node>`, and `<attempt>` is the attempt's client
//! identifier: a broker can hold both against the connection, so that one access list serves all devices (`mosquitto`). An attempt's
//! name is a secret of 128 bits: whoever does not know it cannot name its topics.
//!
//! A stream stays with one hub because its topics name the hub; only an opening may go to any.

use std::fmt;

use crate::channel::ChannelName;
use crate::identity::{InstallationId, NodeName, hex, node_of_user, user_of_node};

/// What the identifier of every client of ours begins with.
pub(super) const CLIENT_PREFIX: &str = "flotilla-";
/// Hexadecimal digits in the name of an attempt.
const ATTEMPT_LEN: usize = 32;

/// One process that serves devices. There is one today; streams name it, so that there can be more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubName(String);

impl HubName {
    /// The only one.
    pub(super) fn only() -> Self {
        Self("1".to_owned())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let known = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        known.then(|| Self(text.to_owned()))
    }
}

/// Whose stream it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Party {
    /// A device's sessions.
    Device(NodeName),
    /// An attempt to enrol: 16 random bytes in hexadecimal.
    Enrol(String),
}

/// A topic that a hub hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) party: Party,
    /// Only an opening, or an end, is heard there.
    pub(super) outside_stream: bool,
}

impl Party {
    /// A fresh name for one enrolment attempt.
    pub(super) fn enrolling(random: [u8; 16]) -> Self {
        Self::Enrol(hex(&random))
    }

    /// What its client calls itself. At an attempt the topics repeat it.
    pub(super) fn client_id(&self, installation: &InstallationId) -> String {
        match self {
            Self::Device(node) => format!("{CLIENT_PREFIX}{installation}-{node}"),
            Self::Enrol(attempt) => format!("{CLIENT_PREFIX}{attempt}"),
        }
    }

    /// Where it asks for a stream.
    pub(super) fn open(&self, installation: &InstallationId) -> String {
        format!("{}/{self}/open", root(installation))
    }

    /// Where the end of its stream is said without knowing the hub.
    pub(super) fn gone(&self, installation: &InstallationId) -> String {
        format!("{}/{self}/gone", root(installation))
    }

    /// Its stream to a hub.
    pub(super) fn up(&self, installation: &InstallationId, hub: &HubName) -> String {
        format!("{}/{self}/up/{}", root(installation), hub.0)
    }

    /// A hub's stream to it.
    pub(super) fn down(&self, installation: &InstallationId, hub: &HubName) -> String {
        format!("{}/{self}/down/{}", root(installation), hub.0)
    }

    /// What it subscribes to for the streams of any hub.
    pub(super) fn down_filter(&self, installation: &InstallationId) -> String {
        format!("{}/{self}/down/+", root(installation))
    }

    /// Which hub's stream to this party has this topic.
    pub(super) fn hub_of_down(&self, installation: &InstallationId, topic: &str) -> Option<HubName> {
        let rest = below(installation, topic)?;
        HubName::parse(rest.strip_prefix(&self.to_string())?.strip_prefix("/down/")?)
    }
}

impl Heard {
    /// What a hub named `hub` hears there; `None` for any other topic.
    pub(super) fn of(installation: &InstallationId, hub: &HubName, topic: &str) -> Option<Self> {
        let mut levels = below(installation, topic)?.split('/');
        let party = match (levels.next()?, levels.next()?) {
            ("d", user) => Party::Device(node_of_user(user)?),
            ("e", client) => Party::Enrol(attempt_of(client)?),
            _ => return None,
        };
        let outside_stream = match (levels.next()?, levels.next()) {
            ("open" | "gone", None) => true,
            ("up", Some(name)) if name == hub.0 => false,
            _ => return None,
        };
        levels.next().is_none().then_some(Self { party, outside_stream })
    }
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(node) => write!(formatter, "d/{}", user_of_node(node)),
            Self::Enrol(attempt) => write!(formatter, "e/{CLIENT_PREFIX}{attempt}"),
        }
    }
}

/// A filter that is subscribed to; `group` names the members that share its messages where the broker can have them shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    filter: String,
    group: Option<String>,
}

impl Filter {
    /// Every subscriber gets every message.
    pub(super) fn plain(filter: String) -> Self {
        Self { filter, group: None }
    }

    /// As it is said to a broker (MQTT 5, 4.8.2).
    pub(super) fn said(&self, shares: bool) -> String {
        match &self.group {
            Some(group) if shares => format!("$share/{group}/{}", self.filter),
            _ => self.filter.clone(),
        }
    }
}

/// What a hub subscribes to. Openings alone are shared with other hubs; `group` is a secret of the installation, because a broker that
/// lets anybody join the group loses what it hands to him.
pub(super) fn hub_filters(installation: &InstallationId, hub: &HubName, group: &str) -> Vec<Filter> {
    let [open, up, gone] = heard_patterns(installation, &hub.0);
    vec![Filter { filter: open, group: Some(group.to_owned()) }, Filter::plain(up), Filter::plain(gone)]
}

/// The topics of all parties that the hubs matching `hub` hear.
fn heard_patterns(installation: &InstallationId, hub: &str) -> [String; 3] {
    let root = root(installation);
    [format!("{root}/+/+/open"), format!("{root}/+/+/up/{hub}"), format!("{root}/+/+/gone")]
}

/// What a hub's client calls itself.
pub(super) fn hub_client_id(installation: &InstallationId, hub: &HubName) -> String {
    format!("{CLIENT_PREFIX}{installation}-hub-{}", hub.0)
}

/// Where a hub says that it is there.
pub(super) fn presence(installation: &InstallationId, hub: &HubName) -> String {
    format!("{}/hub/{}", root(installation), hub.0)
}

/// Where all hubs do.
pub(super) fn presence_filter(installation: &InstallationId) -> String {
    format!("{}/hub/+", root(installation))
}

/// Whose presence a topic tells.
pub(super) fn hub_of_presence(installation: &InstallationId, topic: &str) -> Option<HubName> {
    HubName::parse(below(installation, topic)?.strip_prefix("hub/")?)
}

/// Where it stands how far a fleet's channel goes. The fleet's name is not shown: all devices of the installation read here.
pub(super) fn position(installation: &InstallationId, channel: &ChannelName) -> String {
    format!("{}/fleet/{}", root(installation), digest_of(installation, channel))
}

/// Access for a certificate or password user, `user`, or for the client itself, `client`, in a broker's own notation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placeholders {
    pub(super) user: &'static str,
    pub(super) client: &'static str,
}

/// What somebody may do at a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) reads: Vec<String>,
    pub(super) writes: Vec<String>,
}

impl Access {
    /// A device with a certificate.
    pub(super) fn of_device(installation: &InstallationId, placeholders: Placeholders) -> Self {
        let root = root(installation);
        let mut access = Self::of_stream(&format!("{root}/d/{}", placeholders.user));
        access.reads.extend([format!("{root}/hub/+"), format!("{root}/fleet/+")]);
        access
    }

    /// Somebody without one: the attempt whose name is its client's.
    pub(super) fn of_stranger(installation: &InstallationId, placeholders: Placeholders) -> Self {
        Self::of_stream(&format!("{}/e/{}", root(installation), placeholders.client))
    }

    /// No wildcard where it writes: a broker keeps a message for each topic that somebody makes up.
    fn of_stream(party: &str) -> Self {
        let up = format!("{party}/up/{}", HubName::only().0);
        Self {
            reads: vec![format!("{party}/down/+")],
            writes: vec![format!("{party}/open"), up, format!("{party}/gone")],
        }
    }

    /// A hub.
    pub(super) fn of_hub(installation: &InstallationId) -> Self {
        let root = root(installation);
        Self {
            reads: heard_patterns(installation, "+").into(),
            writes: vec![format!("{root}/+/+/down/+"), format!("{root}/hub/+"), format!("{root}/fleet/+")],
        }
    }
}

fn attempt_of(client: &str) -> Option<String> {
    let attempt = client.strip_prefix(CLIENT_PREFIX)?;
    let digits = attempt.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (attempt.len() == ATTEMPT_LEN && digits).then(|| attempt.to_owned())
}

fn digest_of(installation: &InstallationId, channel: &ChannelName) -> String {
    let named = format!("{installation}/{channel}");
    hex(&ring::digest::digest(&ring::digest::SHA256, named.as_bytes()).as_ref()[..8])
}

fn below<'a>(installation: &InstallationId, topic: &'a str) -> Option<&'a str> {
    topic.strip_prefix(&root(installation))?.strip_prefix('/')
}

fn root(installation: &InstallationId) -> String {
    format!("flotilla/v2/{installation}")
}
