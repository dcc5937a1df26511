//! The one place where topics are made and read.
//!
//! | topic | who publishes | what |
//! |---|---|---|
//! | `flotilla/v1/<installation>/d/<node>/up` | the device | its stream to the hub |
//! | `flotilla/v1/<installation>/d/<node>/down` | the hub | the hub's stream to it |
//! | `flotilla/v1/<installation>/e/<attempt>/up`, `.../down` | as above | one enrolment attempt, named at random |
//! | `flotilla/v1/<installation>/hub` | the hub | that it came or went |
//!
//! A broker's access list for a device whose user name is its node name (mosquitto):
//! `pattern write flotilla/v1/+/d/%u/up`, `pattern read flotilla/v1/+/d/%u/down`, `pattern read flotilla/v1/+/hub`.

use std::fmt;

use crate::identity::{InstallationId, NodeName, hex};

/// A party's pair of topics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Party {
    /// A device's sessions.
    Device(NodeName),
    /// An attempt to enrol: 16 random bytes in hexadecimal.
    Enrol(String),
}

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Device to hub.
    Up,
    /// Hub to device.
    Down,
}

impl Party {
    /// A fresh name for one enrolment attempt.
    pub(super) fn enrolling(random: [u8; 16]) -> Self {
        Self::Enrol(hex(&random))
    }

    /// Its topic in one direction.
    pub(super) fn topic(&self, installation: &InstallationId, direction: Direction) -> String {
        let direction = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        format!("{}/{self}/{direction}", root(installation))
    }

    /// The party whose `up` topic this is; `None` for any other topic.
    pub(super) fn of_up_topic(installation: &InstallationId, topic: &str) -> Option<Self> {
        let rest = topic.strip_prefix(&root(installation))?.strip_prefix('/')?;
        let mut levels = rest.split('/');
        let party = match (levels.next()?, levels.next()?) {
            ("d", node) => Self::Device(NodeName::parse(node).ok()?),
            ("e", attempt)
                if attempt.len() == 32
                    && attempt.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) =>
            {
                Self::Enrol(attempt.to_owned())
            }
            _ => return None,
        };
        (levels.next() == Some("up") && levels.next().is_none()).then_some(party)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(node) => write!(formatter, "d/{node}"),
            Self::Enrol(attempt) => write!(formatter, "e/{attempt}"),
        }
    }
}

/// What the hub subscribes to.
pub(super) fn up_filters(installation: &InstallationId) -> [String; 2] {
    let root = root(installation);
    [format!("{root}/d/+/up"), format!("{root}/e/+/up")]
}

/// Where the hub says that it came or went.
pub(super) fn hub(installation: &InstallationId) -> String {
    format!("{}/hub", root(installation))
}

fn root(installation: &InstallationId) -> String {
    format!("flotilla/v1/{installation}")
}
