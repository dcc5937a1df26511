//! What a pod's volumes shall hold, and where its containers see them.
//!
//! Owns the resolution of volume sources to content, digests and modes, and of volume mounts to bind mounts. Refuses I/O: what it
//! decides is carried out by [`crate::volume`]. Start reading at [`Volumes::of`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use flotilla_manifests::quantity::Quantity;
use serde_json::Value;

use super::environment::{self, Sources};
use super::pod::{ContainerSpec, PodSpec, list, text};
use crate::runtime::Mount;

mod files;

/// What the volumes of one pod are to be brought to: a step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// By directory name; those that are there already as wanted are left out.
    pub volumes: BTreeMap<String, Volume>,
    /// Made anew for each start of a container.
    pub sub_paths: Vec<SubPath>,
    /// Directory names that stay; every other one of this pod is removed.
    pub kept: BTreeSet<String>,
}

/// One volume as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Names what is wanted, content included: letters, digits and `-`.
    pub digest: String,
    /// `fsGroup`: group of what is made in it.
    pub group: Option<u32>,
    pub content: VolumeContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeContent {
    /// `emptyDir` on the disk.
    Empty,
    /// `emptyDir` with medium Memory; without a size, the kernel's default (half of the memory) bounds it.
    Memory { size_bytes_max: Option<u64> },
    /// `hostPath`: nothing of ours, only looked at.
    Host { path: PathBuf, kind: HostPathKind },
    /// `configMap`, `secret`, `projected`, `downwardAPI`: replaced as a whole, by relative path.
    Files { files: BTreeMap<String, VolumeFile>, medium: FilesMedium },
}

/// Where files of the agent's making may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FilesMedium {
    Disk,
    /// Something of it is secret: never on flash.
    Memory,
}

/// `hostPath.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathKind {
    /// Anything; a directory is made where there is nothing, as container runtimes do.
    Unchecked,
    Directory,
    DirectoryOrCreate,
    File,
    FileOrCreate,
    Socket,
    CharDevice,
    BlockDevice,
}

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeFile {
    pub mode: u32,
    pub content: Vec<u8>,
}

impl fmt::Debug for VolumeFile {
    /// Without the content: that may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes, mode {:o}", self.content.len(), self.mode)
    }
}

/// A part of a volume that a container mounts: found without leaving the volume, whatever containers put there, and shown to
/// the runtime under the directory name `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPath {
    pub name: String,
    pub root: SubPathRoot,
    /// Relative.
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubPathRoot {
    /// A volume of files, by directory name: what is not there is missing.
    Files(String),
    /// A volume of the pod's own, by directory name: a directory is made where there is nothing.
    Directory(String),
    /// The same, on the host.
    Host(PathBuf),
}

/// What stands of a pod's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumesStatus {
    /// Digest by directory name, of those known to be as some plan wanted them in this boot.
    pub prepared: BTreeMap<String, String>,
    /// Directory names of what belongs in memory and is on the disk, because this agent may not mount.
    pub on_disk: BTreeSet<String>,
}

/// The volumes of one pod that a container mounts, resolved.
pub(super) struct Volumes<'a> {
    by_name: BTreeMap<&'a str, Resolved<'a>>,
    group: Option<u32>,
}

struct Resolved<'a> {
    directory: String,
    /// `Err`: why it cannot be made now, and what to do.
    wanted: Result<Wanted<'a>, String>,
}

struct Wanted<'a> {
    digest: String,
    source: Source<'a>,
}

enum Source<'a> {
    Empty,
    Memory { size_bytes_max: Option<u64> },
    Host { path: &'a str, kind: HostPathKind },
    Files { files: files::Files<'a>, medium: FilesMedium },
}

impl<'a> Volumes<'a> {
    /// Resolves every volume that a container of the pod mounts; the others cost nothing, as with kubelet.
    pub(super) fn of(sources: &Sources<'a>, spec: &PodSpec<'a>) -> Self {
        let mounted: BTreeSet<&str> = spec
            .containers
            .iter()
            .flat_map(|container| list(container.value, "volumeMounts").map(|mount| text(mount, "name")))
            .collect();
        let group = id(spec.value, "fsGroup");
        let volumes = list(spec.value, "volumes").filter(|volume| mounted.contains(text(volume, "name")));
        let by_name = volumes.map(|volume| (text(volume, "name"), resolve(sources, spec, volume, group))).collect();
        Self { by_name, group }
    }

    /// What keeps containers from starting: by volume name, those that cannot be made and are not there from before.
    pub(super) fn missing(&self, status: &VolumesStatus) -> Vec<String> {
        let faults = self.by_name.iter().filter_map(|(name, volume)| {
            let why = volume.wanted.as_ref().err()?;
            (!status.prepared.contains_key(&volume.directory)).then(|| set_up_failed(name, why))
        });
        faults.collect()
    }

    /// Faults that stop nobody: what was there before goes on being used.
    pub(super) fn outdated(&self, status: &VolumesStatus) -> Vec<String> {
        let faults = self.by_name.iter().filter_map(|(name, volume)| {
            let why = volume.wanted.as_ref().err()?;
            status.prepared.contains_key(&volume.directory).then(|| set_up_failed(name, why))
        });
        faults.collect()
    }

    /// Names of volumes in memory that stand on the disk.
    pub(super) fn on_disk(&self, status: &VolumesStatus) -> Vec<&'a str> {
        let volumes = self.by_name.iter().filter(|(_, volume)| status.on_disk.contains(&volume.directory));
        volumes.map(|(name, _)| *name).collect()
    }

    /// Whether a container can go on: every volume stands, if perhaps with older content.
    pub(super) fn stand(&self, status: &VolumesStatus) -> bool {
        self.by_name.values().all(|volume| status.prepared.contains_key(&volume.directory))
    }

    /// Whether one is a path of the host, which is looked at before each start.
    pub(super) fn looks_at_host(&self) -> bool {
        let host = |volume: &Resolved<'_>| matches!(volume.wanted, Ok(Wanted { source: Source::Host { .. }, .. }));
        self.by_name.values().any(host)
    }

    /// What has to be done before these containers start, or for what runs when none does; `None` when everything is as wanted.
    pub(super) fn step(
        &self,
        status: &VolumesStatus,
        starts: bool,
        sub_paths: Vec<SubPath>,
        others: Others,
    ) -> Option<VolumePlan> {
        let looked_at_again = |wanted: &Wanted<'_>| starts && matches!(wanted.source, Source::Host { .. });
        let volumes: BTreeMap<String, Volume> = self
            .by_name
            .values()
            .filter_map(|volume| Some((volume, volume.wanted.as_ref().ok()?)))
            .filter(|(volume, wanted)| {
                status.prepared.get(&volume.directory) != Some(&wanted.digest) || looked_at_again(wanted)
            })
            .map(|(volume, wanted)| (volume.directory.clone(), wanted.to_volume(self.group)))
            .collect();
        let mut kept: BTreeSet<String> = self.by_name.values().map(|volume| volume.directory.clone()).collect();
        let superfluous = status.prepared.keys().any(|directory| !kept.contains(directory));
        let clear = superfluous && others == Others::Remove;
        if others == Others::Keep {
            kept.extend(status.prepared.keys().cloned());
        }
        (!volumes.is_empty() || !sub_paths.is_empty() || clear).then_some(VolumePlan { volumes, sub_paths, kept })
    }

    /// The mounts of one container, and what has to be made for those of parts of volumes. `Err` reads as kubelet's message for
    /// `CreateContainerConfigError`.
    pub(super) fn mounts(
        &self,
        pod_directory: &Path,
        container: &ContainerSpec<'_>,
        env: &BTreeMap<String, String>,
    ) -> Result<(Vec<Mount>, Vec<SubPath>), String> {
        let (mut mounts, mut sub_paths) = (Vec::new(), Vec::new());
        for (index, mount) in list(container.value, "volumeMounts").enumerate() {
            let name = text(mount, "name");
            let volume = self.by_name.get(name).ok_or_else(|| format!("volume {name:?} is not one of the pod's"))?;
            let mut source = match &volume.wanted {
                Ok(Wanted { source: Source::Host { path, .. }, .. }) => PathBuf::from(path),
                _ => pod_directory.join(&volume.directory),
            };
            if let Some(path) = sub_path(mount, env)? {
                let own = format!("sub~{}~{index}", container.name);
                let root = match &volume.wanted {
                    Ok(Wanted { source: Source::Host { path, .. }, .. }) => SubPathRoot::Host(PathBuf::from(path)),
                    Ok(Wanted { source: Source::Empty | Source::Memory { .. }, .. }) => {
                        SubPathRoot::Directory(volume.directory.clone())
                    }
                    _ => SubPathRoot::Files(volume.directory.clone()),
                };
                source = pod_directory.join(&own);
                sub_paths.push(SubPath { name: own, root, path });
            }
            let is_files = volume.directory.starts_with(FILES) || volume.directory.starts_with(SECRET);
            let read_only = is_files || mount.get("readOnly").and_then(Value::as_bool).unwrap_or(false);
            mounts.push(Mount { source, destination: destination(mount)?, read_only });
        }
        mounts.sort_by(|one, other| one.destination.cmp(&other.destination));
        Ok((mounts, sub_paths))
    }
}

/// What becomes of directories that no volume of the manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Containers of the manifest before may still use them.
    Keep,
    Remove,
}

const FILES: &str = "files~";
const SECRET: &str = "secret~";

impl Wanted<'_> {
    fn to_volume(&self, group: Option<u32>) -> Volume {
        let content = match &self.source {
            Source::Empty => VolumeContent::Empty,
            Source::Memory { size_bytes_max } => VolumeContent::Memory { size_bytes_max: *size_bytes_max },
            Source::Host { path, kind } => VolumeContent::Host { path: PathBuf::from(path), kind: *kind },
            Source::Files { files, medium } => {
                let owned = |(path, (mode, content)): (&String, &(u32, Cow<'_, [u8]>))| {
                    (path.clone(), VolumeFile { mode: *mode, content: content.to_vec() })
                };
                VolumeContent::Files { files: files.iter().map(owned).collect(), medium: *medium }
            }
        };
        Volume { digest: self.digest.clone(), group, content }
    }
}

/// Groups of a pod's processes beside their own.
pub(super) fn supplemental_groups(spec: &Value) -> Vec<u32> {
    let context = spec.get("securityContext").unwrap_or(&Value::Null);
    let more = list(context, "supplementalGroups").filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
    let mut groups: Vec<u32> = more.collect();
    groups.extend(id(spec, "fsGroup").filter(|group| !groups.contains(group)));
    groups
}

/// What of a container's volumes makes it another container: where they are mounted and what they are, not what they hold.
pub(super) fn form(spec: &Value, container: &Value) -> Option<Value> {
    let mounts: Vec<Value> = list(container, "volumeMounts")
        .map(|mount| {
            let name = text(mount, "name");
            let volume = list(spec, "volumes").find(|volume| text(volume, "name") == name).unwrap_or(&Value::Null);
            let read_only = mount.get("readOnly").and_then(Value::as_bool).unwrap_or(false);
            let sub_path = [text(mount, "subPath"), text(mount, "subPathExpr")];
            serde_json::json!([name, text(mount, "mountPath"), sub_path, read_only, kind_of(volume)])
        })
        .collect();
    (!mounts.is_empty()).then(|| Value::from(mounts))
}

fn kind_of(volume: &Value) -> Vec<String> {
    let Some((kind, source)) = source_of(volume) else { return Vec::new() };
    match kind {
        "emptyDir" => vec![kind.to_owned(), text(source, "medium").to_owned()],
        "hostPath" => vec![kind.to_owned(), text(source, "path").to_owned()],
        // Sources of files may change into each other while a container runs, unless one is secret and the other is not.
        _ if medium_of(volume) == FilesMedium::Memory => vec!["secret".to_owned()],
        _ => vec!["files".to_owned()],
    }
}

fn source_of(volume: &Value) -> Option<(&str, &Value)> {
    let fields = volume.as_object()?.iter();
    let mut said = fields.filter(|(name, source)| *name != "name" && !source.is_null());
    said.next().map(|(name, source)| (name.as_str(), source))
}

fn medium_of(volume: &Value) -> FilesMedium {
    let projected = volume.get("projected").unwrap_or(&Value::Null);
    let secret = volume.get("secret").is_some_and(Value::is_object)
        || list(projected, "sources").any(|source| source.get("secret").is_some_and(Value::is_object));
    if secret { FilesMedium::Memory } else { FilesMedium::Disk }
}

fn id(spec: &Value, field: &str) -> Option<u32> {
    let value = spec.get("securityContext")?.get(field)?.as_u64()?;
    u32::try_from(value).ok()
}

fn resolve<'a>(sources: &Sources<'a>, spec: &PodSpec<'a>, volume: &'a Value, group: Option<u32>) -> Resolved<'a> {
    let name = text(volume, "name");
    let owner = group.map_or_else(|| "-".to_owned(), |group| group.to_string());
    let at = |kind: &str, wanted| Resolved { directory: format!("{kind}{name}"), wanted };
    let plain = |digest: String, source| Ok(Wanted { digest, source });
    match source_of(volume) {
        Some(("emptyDir", source)) => match text(source, "medium") {
            "" => at("empty~", plain(format!("empty-{owner}"), Source::Empty)),
            "Memory" => {
                let size_bytes_max = memory_size(spec, source);
                let digest = format!("memory-{owner}-{}", size_bytes_max.unwrap_or(0));
                at("memory~", plain(digest, Source::Memory { size_bytes_max }))
            }
            other => at(
                "empty~",
                Err(format!("emptyDir medium {other:?} is not provided on this device: leave it out or use Memory")),
            ),
        },
        Some(("hostPath", source)) => {
            let (path, kind) = (text(source, "path"), host_path_kind(text(source, "type")));
            at("host~", plain("host".to_owned(), Source::Host { path, kind }))
        }
        Some((kind @ ("configMap" | "secret" | "projected" | "downwardAPI"), source)) => {
            let medium = medium_of(volume);
            let prefix = if medium == FilesMedium::Memory { SECRET } else { FILES };
            let files = files::of(sources, spec, kind, source, group);
            at(
                prefix,
                files.map(|files| Wanted {
                    digest: files::digest(&files, group),
                    source: Source::Files { files, medium },
                }),
            )
        }
        Some((kind, _)) => at(
            "none~",
            Err(format!(
                "volumes of kind {kind} are not provided on this device: use emptyDir, hostPath, configMap, secret, projected or downwardAPI"
            )),
        ),
        None => at("none~", Err("it names no source".to_owned())),
    }
}

/// As kubelet sizes volumes in memory: the volume's limit, or less when the pod's containers may have less.
fn memory_size(spec: &PodSpec<'_>, source: &Value) -> Option<u64> {
    let bytes = |value: Option<&Value>| {
        let quantity = value.and_then(|value| Quantity::of_json(value).ok())?;
        u64::try_from(quantity.milli() / 1000).ok().filter(|bytes| *bytes > 0)
    };
    let limits: Option<Vec<u64>> =
        spec.main().map(|container| bytes(container.value.pointer("/resources/limits/memory"))).collect();
    let pod = limits
        .filter(|limits| !limits.is_empty())
        .map(|limits| limits.iter().fold(0, |sum: u64, one| sum.saturating_add(*one)));
    match (bytes(source.get("sizeLimit")), pod) {
        (Some(own), Some(pod)) => Some(own.min(pod)),
        (own, pod) => own.or(pod),
    }
}

fn host_path_kind(name: &str) -> HostPathKind {
    match name {
        "Directory" => HostPathKind::Directory,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "File" => HostPathKind::File,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "Socket" => HostPathKind::Socket,
        "CharDevice" => HostPathKind::CharDevice,
        "BlockDevice" => HostPathKind::BlockDevice,
        _ => HostPathKind::Unchecked,
    }
}

/// `subPath`, or `subPathExpr` with the container's variables put in.
fn sub_path(mount: &Value, env: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    let (plain, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    let path = if expression.is_empty() {
        plain.to_owned()
    } else {
        let unknown = std::cell::Cell::new(false);
        let path = environment::expand(expression, |name| {
            let value = env.get(name).cloned();
            unknown.set(unknown.get() || value.is_none());
            value
        });
        if unknown.get() {
            return Err(format!("subPathExpr {expression:?} names a variable that the container does not have"));
        }
        path
    };
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(format!("subPath {path:?} must be relative and must not contain '..'"));
    }
    Ok((!path.is_empty()).then_some(path))
}

/// Where a container sees a mount: absolute, without detours. Mount propagation is refused, not ignored.
fn destination(mount: &Value) -> Result<String, String> {
    let path = text(mount, "mountPath");
    let propagation = text(mount, "mountPropagation");
    if !matches!(propagation, "" | "None") {
        return Err(format!(
            "volume mount {path:?} has mountPropagation {propagation}, which this device does not do: leave it out or set None"
        ));
    }
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(format!("mountPath {path:?} must not contain '..'"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() {
        return Err(format!("mountPath {path:?} would hide the container's own file system: mount below it"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn set_up_failed(name: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {name:?}: {why}")
}
