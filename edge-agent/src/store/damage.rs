//! What was damaged on this device's disk, for people: kept in a file of its own until somebody has seen it.
//!
//! Shown as the Node's condition `StorageDamaged` and by `flotilla agent damage`. Bounded: beyond [`ENTRIES_MAX`] only a count grows.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flotilla_manifests::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::Salvage;
use crate::args::DamageArguments;

/// Entries kept in full.
const ENTRIES_MAX: usize = 64;
const FILE: &str = "damage.json";

/// All that was found since somebody last cleared it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Damage {
    pub entries: Vec<Entry>,
    /// Found beyond the bound, and only counted.
    pub more: u64,
}

/// One thing that was damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// When it was found. Milliseconds.
    pub time_ms: u64,
    /// What: `item fleet/default 1b9c...`, `the database`.
    pub what: String,
    pub why: String,
    /// For a whole database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salvage: Option<Salvage>,
}

impl Damage {
    /// What is noted; nothing if nothing ever was. A note that cannot be read is itself damage.
    pub fn read(folder: &Path) -> Self {
        let bytes = match std::fs::read(folder.join(FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::default(),
            other => other.map_err(|error| error.to_string()),
        };
        let read = bytes.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        read.unwrap_or_else(|why| {
            let entry = Entry { what: FILE.to_owned(), why, ..Entry::default() };
            Self { entries: vec![entry], more: 0 }
        })
    }

    /// Adds what was found; what is noted already stays as it is.
    ///
    /// # Errors
    /// When the disk takes nothing.
    pub fn note(folder: &Path, found: Vec<Entry>) -> std::io::Result<()> {
        let mut damage = Self::read(folder);
        let before = damage.clone();
        for entry in found {
            let known = damage.entries.iter().any(|one| (&one.what, &one.why) == (&entry.what, &entry.why));
            if known && entry.salvage.is_none() {
                continue;
            }
            if damage.entries.len() < ENTRIES_MAX { damage.entries.push(entry) } else { damage.more += 1 }
        }
        if damage == before {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&damage).map_err(std::io::Error::other)?;
        let written = folder.join(format!("{FILE}.new"));
        let mut file = std::fs::File::create(&written)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&written, folder.join(FILE))
    }

    /// Forgets what is noted and removes the damaged files that were kept; answers their names.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == FILE || name.starts_with("device.db.damaged-") {
                std::fs::remove_file(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// One sentence for a condition; `None` when there is nothing to say.
    pub fn message(&self) -> Option<String> {
        let newest = self.entries.last()?;
        let count = self.entries.len() as u64 + self.more;
        let newest = match &newest.salvage {
            Some(salvage) => {
                let read: Vec<String> = salvage.rows.iter().map(|(what, count)| format!("{count} {what}")).collect();
                let rows = read.join(", ");
                let Salvage { file, unreadable, .. } = salvage;
                format!(
                    "the database was damaged ({}); read from it: {rows}; unreadable places: {unreadable}; kept as {file}",
                    newest.why
                )
            }
            None => format!("{}: {}", newest.what, newest.why),
        };
        Some(format!("{count} found; the newest: {newest}. `flotilla agent damage` lists and clears this"))
    }

    /// When the newest was found.
    pub fn since_ms(&self) -> u64 {
        self.entries.iter().map(|entry| entry.time_ms).max().unwrap_or(0)
    }
}

/// `flotilla agent damage`.
pub(crate) fn run(arguments: &DamageArguments) -> anyhow::Result<()> {
    let folder = &arguments.data;
    let damage = Damage::read(folder);
    let mut out = std::io::stdout().lock();
    if damage == Damage::default() {
        return Ok(writeln!(out, "no damage is noted in {}", folder.display())?);
    }
    for entry in &damage.entries {
        writeln!(out, "{}  {}: {}", Timestamp(entry.time_ms).to_rfc3339(), entry.what, entry.why)?;
        if let Some(salvage) = &entry.salvage {
            for (what, count) in &salvage.rows {
                writeln!(out, "    read: {count} {what}")?;
            }
            writeln!(out, "    unreadable pages and rows: {}", salvage.unreadable)?;
            writeln!(out, "    the damaged file is kept as {}", salvage.file)?;
        }
    }
    if damage.more > 0 {
        writeln!(out, "and {} more", damage.more)?;
    }
    if arguments.clear {
        let removed = Damage::clear(folder).with_context(|| format!("clearing {}", folder.display()))?;
        for path in removed {
            writeln!(out, "removed {}", path.display())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_said_once_and_cleared() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Damage::read(folder.path()).message(), None);
        let entry =
            |number: u64| Entry { time_ms: number, what: format!("item {number}"), why: "torn".into(), salvage: None };
        Damage::note(folder.path(), (0..70).map(entry).collect()).unwrap();
        Damage::note(folder.path(), vec![entry(3)]).unwrap();
        let damage = Damage::read(folder.path());
        assert_eq!((damage.entries.len(), damage.more), (64, 6));
        assert!(damage.message().unwrap().starts_with("70 found; the newest: item 63: torn"));
        std::fs::write(folder.path().join("device.db.damaged-1"), b"x").unwrap();
        std::fs::write(folder.path().join("device.db"), b"x").unwrap();
        assert_eq!(Damage::clear(folder.path()).unwrap().len(), 2);
        assert_eq!(Damage::read(folder.path()), Damage::default());
        assert!(folder.path().join("device.db").exists());
        std::fs::write(folder.path().join(FILE), b"{").unwrap();
        assert!(Damage::read(folder.path()).message().unwrap().contains("damage.json"));
    }
}
