//! Named blobs of the hub: keys, addresses.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Batch, StoreError};

/// Names of the `setting` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// `InstallationMaterial` as JSON.
    Installation,
    /// The hub's writer: 32 bytes of seed and its chain.
    Writer,
    /// `Addresses` as JSON: what tokens carry.
    Addresses,
    /// `learn::Learning` as JSON, while the hub learns from its devices.
    Learning,
    /// `learn::Report` as JSON: what was learned last.
    Learned,
    /// The operator said to go on.
    Resume,
}

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::Installation => "installation",
            Self::Writer => "writer",
            Self::Addresses => "addresses",
            Self::Learning => "learning",
            Self::Learned => "learned",
            Self::Resume => "resume",
        }
    }
}

pub(super) fn read(connection: &Connection, setting: Setting) -> Result<Option<Vec<u8>>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT value FROM setting WHERE name = ?1")?;
    Ok(statement.query_row([setting.name()], |row| row.get(0)).optional()?)
}

impl Batch<'_> {
    pub(crate) fn setting(&self, setting: Setting) -> Result<Option<Vec<u8>>, StoreError> {
        read(self.transaction, setting)
    }

    pub(crate) fn remove_setting(&mut self, setting: Setting) -> Result<(), StoreError> {
        remove(self.transaction, setting)
    }

    pub(crate) fn set_setting(&mut self, setting: Setting, value: &[u8]) -> Result<(), StoreError> {
        put(self.transaction, setting, value)
    }
}

pub(super) fn put(connection: &Connection, setting: Setting, value: &[u8]) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO setting (name, value) VALUES (?1, ?2)")?
        .execute(params![setting.name(), value])?;
    Ok(())
}

pub(super) fn remove(connection: &Connection, setting: Setting) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM setting WHERE name = ?1")?.execute([setting.name()])?;
    Ok(())
}
