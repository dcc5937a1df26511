//! What the hub knows of devices by what was carried to it: one row per device among the settings.

use std::collections::BTreeMap;

use flotilla_sync::blob::{BlobRef, BlobWant};
use flotilla_sync::channel::{ChannelName, Positions, WriterId};
use flotilla_sync::identity::{PublicKey, SealingPublicKey};
use flotilla_sync::observation::Clock;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Batch, StoreError};

/// Before a node's name in the table of settings; no other setting has a slash.
const PREFIX: &str = "stick/";

/// One device, as its bundles say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stick {
    /// It asked to join, and has not shown yet that it has the answer.
    pub(crate) join: Option<StoredJoin>,
    /// Of its newest bundle.
    pub(crate) clock: Option<Clock>,
    /// How far it had read then, and where its own log stood.
    positions: Vec<(String, Vec<(WriterBytes, u64)>)>,
    /// Large values that it lacked then: digest and length.
    wants: Vec<([u8; 32], u64)>,
    /// A session said it, and a session does not say which large values are lacking.
    pub(crate) by_session: bool,
}

type WriterBytes = [u8; 32];

/// What of a request to join the answer is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredJoin {
    pub(crate) csr: Vec<u8>,
    pub(crate) device_key: PublicKey,
    pub(crate) sealing: SealingPublicKey,
}

impl Stick {
    pub(crate) fn positions(&self) -> Positions {
        let logs =
            |logs: &Vec<(WriterBytes, u64)>| logs.iter().map(|(writer, seq)| (WriterId(*writer), *seq)).collect();
        let channel = |(name, read): &(String, Vec<_>)| Some((ChannelName::parse(name).ok()?, logs(read)));
        self.positions.iter().filter_map(channel).collect()
    }

    /// What a device's newest bundle said: it has joined, and is so far.
    pub(crate) fn told(clock: Option<Clock>, positions: &Positions, wants: &[BlobWant]) -> Self {
        let logs = |logs: &BTreeMap<WriterId, u64>| logs.iter().map(|(writer, seq)| (writer.0, *seq)).collect();
        let positions = positions.iter().map(|(channel, read)| (channel.to_string(), logs(read))).collect();
        let wants = wants.iter().map(|want| (want.name.hash, want.name.len)).collect();
        Self { join: None, clock, positions, wants, by_session: false }
    }

    /// Blobs that the device lacked when it last said so.
    pub(crate) fn wants(&self) -> impl Iterator<Item = BlobRef> {
        self.wants.iter().map(|(hash, len)| BlobRef { hash: *hash, len: *len })
    }
}

impl Batch<'_> {
    /// Blobs that documents of a channel name whose newest record comes after `seq`.
    pub(crate) fn blobs_after(&self, channel: &ChannelName, seq: u64) -> Result<Vec<BlobRef>, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT DISTINCT blob.hash, blob.len FROM blob JOIN blob_reference USING (hash)
             JOIN item ON item.id = blob_reference.uid WHERE blob.whole AND item.channel = ?1 AND item.seq > ?2",
        )?;
        let rows = statement.query_map(params![channel.to_string(), seq.cast_signed()], |row| {
            Ok(BlobRef { hash: row.get(0)?, len: row.get::<_, i64>(1)?.cast_unsigned() })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What is known of a device by bundles; nothing when none came.
    pub(crate) fn stick(&self, node: &str) -> Result<Stick, StoreError> {
        let mut statement = self.transaction.prepare_cached("SELECT value FROM setting WHERE name = ?1")?;
        let stored: Option<Vec<u8>> = statement.query_row([format!("{PREFIX}{node}")], |row| row.get(0)).optional()?;
        Ok(stored.map_or_else(Stick::default, |stored| read(node, &stored)))
    }

    pub(crate) fn put_stick(&mut self, node: &str, stick: &Stick) -> Result<(), StoreError> {
        let encoded = serde_json::to_vec(stick)
            .map_err(|source| StoreError::Damaged { what: "what a device's bundles said", source })?;
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO setting (name, value) VALUES (?1, ?2)")?
            .execute(params![format!("{PREFIX}{node}"), encoded])?;
        Ok(())
    }

    /// What a device had read when its session ended. Where it stood by its bundles stays, so that an old one is still known as old.
    pub(crate) fn note_positions(&mut self, node: &str, positions: &Positions) -> Result<(), StoreError> {
        let known = self.stick(node)?;
        let noted = Stick { by_session: true, ..Stick::told(known.clock, positions, &[]) };
        if noted != known { self.put_stick(node, &noted) } else { Ok(()) }
    }

    /// All devices of which bundles came.
    pub(crate) fn sticks(&self) -> Result<Vec<(String, Stick)>, StoreError> {
        let mut statement = self.transaction.prepare("SELECT name, value FROM setting WHERE name GLOB 'stick/*'")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut sticks = Vec::new();
        for row in rows {
            let (name, stored) = row?;
            let node = name.trim_start_matches(PREFIX).to_owned();
            let stick = read(&node, &stored);
            sticks.push((node, stick));
        }
        Ok(sticks)
    }

    /// Subjects of a device with the newest clock taken of each: what its outbox may forget.
    pub(crate) fn observed(&self, node: &str) -> Result<Vec<(String, Clock)>, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT subject, incarnation, boot, seq FROM observation WHERE node = ?1 ORDER BY subject",
        )?;
        let rows = statement.query_map([node], |row| {
            let clock = Clock {
                incarnation: row.get::<_, i64>(1)?.cast_unsigned(),
                boot: row.get::<_, i64>(2)?.cast_unsigned(),
                seq: row.get::<_, i64>(3)?.cast_unsigned(),
            };
            Ok((row.get(0)?, clock))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// A row that cannot be read costs a larger bundle, nothing else.
fn read(node: &str, stored: &[u8]) -> Stick {
    serde_json::from_slice(stored).unwrap_or_else(|error| {
        tracing::error!(node, %error, "what a device's bundles said is damaged; the next bundle for it carries everything");
        Stick::default()
    })
}
