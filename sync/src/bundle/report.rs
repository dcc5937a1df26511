//! What an export carried or an import took: for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Direction, Receiver};
use crate::channel::{ChannelName, WriterId};
use crate::identity::InstallationId;

/// Lines of a report that name something missing or set aside; beyond it they are counted.
pub(super) const LINES_MAX: usize = 64;

/// The outcome of one export or import. Fields are only ever added: programs read it as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Which way the bundle goes; `None` when it could not be opened.
    pub direction: Option<Direction>,
    pub installation: String,
    /// Who made it.
    pub from: String,
    /// For whom it is.
    pub to: String,
    /// When it was made. Milliseconds since 1970.
    pub time_ms: u64,
    /// Tells bundles apart.
    pub id: String,
    pub bytes: u64,
    pub sections: u64,
    /// Records of logs in it.
    pub records: u64,
    /// Those that were not here yet.
    pub records_new: u64,
    /// Whole channels in it.
    pub snapshots: u64,
    /// Those that were not here yet.
    pub snapshots_new: u64,
    pub blobs: u64,
    pub observations: u64,
    /// Observations the hub says it has.
    pub acknowledgements: u64,
    /// The device joins, or its answer is in it.
    pub enrolment: bool,
    pub logs: Vec<LogReport>,
    pub missing: Vec<Missing>,
    /// Records that could not be understood: what and why.
    pub set_aside: Vec<String>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// The end of the file was reached and all before it was whole.
    pub whole: bool,
}

/// One log in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogReport {
    pub channel: String,
    /// The first bytes of the writer's id.
    pub writer: String,
    /// Position before.
    pub from: u64,
    /// Position after.
    pub to: u64,
}

/// Something that should be here and is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "what")]
pub enum Missing {
    /// The file ends before its end.
    #[serde(rename_all = "camelCase")]
    End {
        /// Whole sections read.
        sections: u64,
    },
    /// Bytes that belong to no whole section.
    #[serde(rename_all = "camelCase")]
    Damaged {
        /// How many.
        bytes: u64,
        /// The section after which they stand.
        after_section: u64,
    },
    /// Records between what is here and what the bundle brought: another bundle was lost on the way.
    #[serde(rename_all = "camelCase")]
    Records {
        channel: String,
        writer: String,
        /// The last one here.
        after: u64,
        /// The next one that is known of.
        before: u64,
    },
    /// The bundle was to bring a log further than it did.
    #[serde(rename_all = "camelCase")]
    Behind {
        channel: String,
        writer: String,
        /// Where it stands.
        at: u64,
        /// Where it was to stand.
        meant: u64,
    },
    /// A channel's snapshot that is not whole.
    #[serde(rename_all = "camelCase")]
    Snapshot { channel: String },
    /// The maker of these records is unknown: the section with its certificate is missing.
    #[serde(rename_all = "camelCase")]
    Writer { channel: String, writer: String },
    /// Observations that were announced and are not here.
    #[serde(rename_all = "camelCase")]
    Observations { count: u64 },
    /// Blobs that were announced and are not whole.
    #[serde(rename_all = "camelCase")]
    Blobs { count: u64 },
}

impl Report {
    pub(super) fn of(installation: &InstallationId, to: &Receiver, time_ms: u64, id: &[u8; 16]) -> Self {
        Self {
            installation: installation.to_string(),
            to: to.to_string(),
            time_ms,
            id: crate::identity::hex(id),
            ..Self::default()
        }
    }

    /// The line of a log, made at its first mention.
    pub(super) fn log(&mut self, channel: &ChannelName, writer: &WriterId, from: u64) -> &mut LogReport {
        let (channel, writer) = (channel.to_string(), writer.to_string());
        let found = self.logs.iter().position(|log| log.channel == channel && log.writer == writer);
        let at = found.unwrap_or_else(|| {
            self.logs.push(LogReport { channel, writer, from, to: from });
            self.logs.len() - 1
        });
        &mut self.logs[at]
    }

    pub(super) fn miss(&mut self, missing: Missing) {
        if self.missing.len() < LINES_MAX && !self.missing.contains(&missing) {
            self.missing.push(missing);
        }
    }

    pub(super) fn set_aside(&mut self, lines: Vec<String>) {
        let room = LINES_MAX.saturating_sub(self.set_aside.len());
        self.set_aside.extend(lines.into_iter().take(room));
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End { sections } => {
                write!(
                    formatter,
                    "the file was cut off after {sections} whole sections: copy it again and import it again"
                )
            }
            Self::Damaged { bytes, after_section } => {
                write!(
                    formatter,
                    "{bytes} bytes after section {after_section} are damaged: copy it again and import it again"
                )
            }
            Self::Records { channel, writer, after, before } => write!(
                formatter,
                "{channel}: records {} to {} of log {writer} are missing, a bundle was lost on the way: carry one up, \
                 then export anew",
                after + 1,
                before.saturating_sub(1)
            ),
            Self::Behind { channel, writer, at, meant } => {
                write!(formatter, "{channel}: log {writer} stands at {at}, the bundle was to bring it to {meant}")
            }
            Self::Snapshot { channel } => write!(formatter, "{channel}: its snapshot is not whole"),
            Self::Writer { channel, writer } => {
                write!(formatter, "{channel}: the certificate of log {writer} is missing, its records were not taken")
            }
            Self::Observations { count } => write!(formatter, "{count} observations are missing"),
            Self::Blobs { count } => write!(formatter, "{count} large values (blobs) are missing"),
        }
    }
}
