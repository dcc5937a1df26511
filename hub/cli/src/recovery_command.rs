//! `flotilla hub backup`, `restore`, `resume`, `check`: what an operator needs on the day the hub's disk is gone.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flotilla_hub::store::backup::{self, Contents, Part};

use crate::hub_command::say;

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// The hub's folder; the hub may run
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    data: Option<PathBuf>,
    /// Verify this backup instead of making one
    #[arg(long, conflicts_with_all = ["data", "keys_only"])]
    check: bool,
    /// Only the installation's keys and the names of its devices: a hub restored from it learns the rest from them
    #[arg(long)]
    keys_only: bool,
    /// The backup: one file, which must not exist yet. It holds the installation's keys: keep it as you keep them
    path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// Folder for the hub; it must hold no hub
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The backup
    path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct FolderArguments {
    /// The hub's folder; the hub may run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

pub(crate) fn backup(arguments: &BackupArguments) -> Result<()> {
    if arguments.check {
        let contents = backup::check(&arguments.path).context("the backup does not verify")?;
        return say(&format!("whole: {}", shown(&contents)));
    }
    let Some(data) = &arguments.data else { bail!("--data is missing") };
    let part = if arguments.keys_only { Part::Keys } else { Part::Everything };
    let told = |written: u64, total: u64| {
        // Progress is for a person who watches; nobody is told twice that it cannot be shown.
        say(&format!("copying: {} KiB of about {} KiB", written / 1024, total / 1024)).unwrap_or_default();
    };
    let contents = backup::back_up(data, &arguments.path, part, flotilla_hub::clock::system()(), told)
        .context("no backup was made")?;
    backup::check(&arguments.path).context("the backup was written but does not verify")?;
    say(&format!("backed up to {}: {}", arguments.path.display(), shown(&contents)))
}

pub(crate) fn restore(arguments: &RestoreArguments) -> Result<()> {
    let restored = backup::restore(&arguments.data, &arguments.path, flotilla_hub::clock::system()())
        .context("the backup was not restored")?;
    say(&format!("restored to {}: {}", arguments.data.display(), shown(&restored.contents)))?;
    say(&format!(
        "the hub begins a new life ({}); once it runs it refuses writes until it has heard {} devices: {}",
        restored.incarnation,
        restored.expected.len(),
        if restored.expected.is_empty() { "-".to_owned() } else { restored.expected.join(", ") }
    ))?;
    say("`flotilla hub resume` goes on without devices that are gone for good")
}

pub(crate) fn resume(arguments: &FolderArguments) -> Result<()> {
    if backup::resume(&arguments.data).context("the hub cannot be told")? {
        say("the hub goes on with what it has heard; devices that come later are still listened to")
    } else {
        say("the hub waits for nothing from its devices: there is nothing to go on from")
    }
}

pub(crate) fn check(arguments: &FolderArguments) -> Result<()> {
    let found = flotilla_hub::store::check::check(&arguments.data).context("the hub's database cannot be looked at")?;
    for line in &found.facts {
        say(line)?;
    }
    for damage in &found.damages {
        say(&format!("damaged: {damage}"))?;
    }
    if found.damages.is_empty() {
        return say("no damage found");
    }
    bail!("{} damages found; docs/operators.md, \"Damage\", says what to do", found.damages.len())
}

fn shown(contents: &Contents) -> String {
    let rows: u64 = contents.tables.iter().map(|(_, rows)| rows).sum();
    let some = ["object", "document", "device", "batch"];
    let tables: Vec<String> = contents
        .tables
        .iter()
        .filter(|(name, _)| some.contains(&name.as_str()))
        .map(|(name, rows)| format!("{name} {rows}"))
        .collect();
    format!(
        "made {}, incarnation {}, version {}, {} KiB, {rows} rows in {} tables ({})",
        contents.at,
        contents.incarnation,
        contents.version,
        contents.bytes / 1024,
        contents.tables.len(),
        tables.join(", ")
    )
}
