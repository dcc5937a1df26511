//! `flotilla agent image import | list | remove`: they work on the device's folder, beside a running agent or without one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::facts::Images;
use super::import::{self, Imported};
use super::store::{ImageStore, InUse};
use super::unpack::Bounds;
use super::{ImageError, Reference, poke};

/// `flotilla agent image ...`
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Bring images from an OCI image layout (a folder, or a tar of one) onto this device; pods that wait for them start by themselves
    Import(ImportArguments),
    /// List the images on this device
    List(ListArguments),
    /// Remove an image, and the layers nothing else uses
    Remove(RemoveArguments),
}

#[derive(Debug, Clone, Args)]
pub struct ImportArguments {
    /// The agent's folder
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The layout: `skopeo copy docker://nginx oci:DIR:nginx`, `docker buildx build -o type=oci,dest=FILE`, `umoci`
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// What the image is called here, as manifests name it; default: what the layout calls it
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct ListArguments {
    /// The agent's folder
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Args)]
pub struct RemoveArguments {
    /// The agent's folder
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The image, as manifests name it, or its digest
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Remove it although pods use it: what runs keeps its files, and does not start again without it
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Carries one command out; what it has to say goes to standard output.
///
/// # Errors
/// What went wrong, and what to do.
pub fn run(command: &ImageCommand, now_ms: u64) -> anyhow::Result<()> {
    let text = match command {
        ImageCommand::Import(arguments) => {
            // A device may be given its images before its first start.
            let store = ImageStore::open(&arguments.data)?;
            let imported = import::import(&store, &arguments.path, arguments.name.as_deref(), &Bounds::DEVICE, now_ms)?;
            poke::poke(&arguments.data);
            imported.iter().map(told).collect()
        }
        ImageCommand::List(arguments) => {
            let store = open(&arguments.data)?;
            let (images, in_use) = (store.current(), store.in_use());
            match arguments.output {
                Output::Table => table(&images, &in_use, now_ms),
                Output::Json => format!("{:#}\n", list(&images, &in_use)),
            }
        }
        ImageCommand::Remove(arguments) => {
            let removed = remove(&open(&arguments.data)?, &arguments.reference, arguments.force)?;
            poke::poke(&arguments.data);
            format!("removed {removed}\n")
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A folder that is not there is a slip of the keyboard, not a new device.
fn open(data: &Path) -> Result<ImageStore, ImageError> {
    std::fs::metadata(data).map_err(super::error::at("open the agent's folder", data))?;
    ImageStore::open(data)
}

/// Takes a name away, or with a digest the image with all its names. Returns what was removed.
///
/// # Errors
/// When there is no such image, or a pod uses it and `force` is not given.
pub fn remove(store: &ImageStore, text: &str, force: bool) -> Result<String, ImageError> {
    let digest = super::reference::is_digest(text).then(|| text.to_owned());
    let reference = if digest.is_some() { None } else { Some(Reference::parse(text)?) };
    let digest = digest.or_else(|| reference.as_ref()?.digest().map(str::to_owned));
    let shown = reference.as_ref().map_or_else(|| text.to_owned(), ToString::to_string);
    let lock = store.import_lock()?;
    store.change(|index, in_use| {
        let missing = || ImageError::NoSuchImage { reference: shown.clone() };
        let named = reference.as_ref().and_then(|reference| index.names.get(&reference.to_string()).cloned());
        let found = digest.clone().filter(|digest| index.images.contains_key(digest)).or(named).ok_or_else(missing)?;
        let going: Vec<String> = match &digest {
            Some(_) => index.names.iter().filter(|(_, named)| **named == found).map(|(name, _)| name.clone()).collect(),
            None => vec![shown.clone()],
        };
        let keeps_a_name = index.names.iter().any(|(name, named)| *named == found && !going.contains(name));
        if let Some(users) = in_use.images.get(&found).filter(|_| !keeps_a_name && !force) {
            let users = users.pods.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(ImageError::InUse { reference: shown.clone(), users });
        }
        index.names.retain(|name, _| !going.contains(name));
        // Without a name it stays as long as a pod uses it.
        if !keeps_a_name && !in_use.images.contains_key(&found) {
            index.images.remove(&found);
        }
        Ok(())
    })?;
    store.collect_locked()?;
    drop(lock);
    Ok(shown)
}

fn told(image: &Imported) -> String {
    let Imported { reference, digest, layers, unpacked, size_bytes } = image;
    let size = size(*size_bytes);
    format!("imported {reference} ({digest}, {size}, {layers} layers, {unpacked} of them new)\n")
}

/// Names of each image; one without a name is shown as kubectl shows nothing.
fn rows(images: &Images) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> =
        images.names.iter().map(|(name, digest)| (name.clone(), digest.clone())).collect();
    let nameless = images.by_digest.keys().filter(|digest| images.names_of(digest).next().is_none());
    rows.extend(nameless.map(|digest| ("<none>".to_owned(), digest.clone())));
    rows
}

fn table(images: &Images, in_use: &InUse, now_ms: u64) -> String {
    let mut lines = vec![["NAME".to_owned(), "DIGEST".into(), "SIZE".into(), "AGE".into(), "PODS".into()]];
    for (name, digest) in rows(images) {
        let facts = images.by_digest.get(&digest);
        let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
        let age = facts.map(|facts| age(now_ms.saturating_sub(facts.imported_at_ms)));
        let pods = in_use.images.get(&digest).map_or(0, |users| users.pods.len());
        lines.push([
            name,
            short,
            facts.map_or_else(|| "<damaged>".into(), |facts| size(facts.size_bytes)),
            age.unwrap_or_else(|| "<unknown>".into()),
            pods.to_string(),
        ]);
    }
    if lines.len() == 1 {
        return "No images found.\n".into();
    }
    let widths: Vec<usize> =
        (0..5).map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn list(images: &Images, in_use: &InUse) -> Value {
    let mut names: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for digest in images.by_digest.keys() {
        names.insert(digest, images.names_of(digest).collect());
    }
    let item = |(digest, names): (&String, Vec<&String>)| {
        let facts = &images.by_digest[digest];
        let pods: Vec<&String> = in_use.images.get(digest).into_iter().flat_map(|users| &users.pods).collect();
        json!({
            "names": names, "digest": digest, "configDigest": facts.config_digest, "sizeBytes": facts.size_bytes,
            "layers": facts.lower_dirs.len(), "entrypoint": facts.entrypoint, "cmd": facts.cmd,
            "user": facts.user.text, "exposedPorts": facts.exposed_ports, "pods": pods,
        })
    };
    json!({"items": names.into_iter().map(item).collect::<Vec<_>>()})
}

/// As kubectl writes ages.
fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!(
            (size(0), size(1023), size(1536), size(5 << 30)),
            ("0 B".into(), "1023 B".into(), "1.5 KiB".into(), "5.0 GiB".into())
        );
        assert_eq!(
            (age(0), age(119_999), age(7_200_000), age(172_800_000)),
            ("0s".into(), "119s".into(), "2h".into(), "2d".into())
        );
    }
}
