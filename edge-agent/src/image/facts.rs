//! What is known of the images on this device. Pure values: a plan resolves a container's image here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::reference::Reference;

/// One image, ready to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFacts {
    /// `sha256:...` of the image's manifest.
    pub digest: String,
    /// `sha256:...` of its configuration: Docker's image ID.
    pub config_digest: String,
    /// Unpacked layers as absolute folders, the top one first, as overlayfs' `lowerdir` wants them. Never empty.
    #[serde(skip)]
    pub lower_dirs: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// In the image's order; of two with one name the last counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Empty: `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    pub user: ImageUser,
    /// `SIGQUIT`, `3`; absent: TERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// By uid, from the image's own `/etc/passwd` and `/etc/group`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<u32, Account>,
    /// Bytes of the blobs it came as.
    pub size_bytes: u64,
    /// Milliseconds since 1970.
    pub imported_at_ms: u64,
}

/// Who the image's configuration says it runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageUser {
    /// As the image has it: empty, `nginx`, `101`, `101:101`, `nginx:adm`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// `None`: the image has no such user or group, and no container can be started as it.
    pub uid: Option<u32>,
    /// Given in `text`, else the user's own group.
    pub gid: Option<u32>,
}

/// One line of the image's `/etc/passwd`, with the further groups of `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Account {
    pub name: String,
    pub gid: u32,
    pub home: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
}

/// All images on this device at one generation of the store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Images {
    /// Raised by every import and removal.
    pub generation: u64,
    /// Normalised reference -> manifest digest.
    pub names: BTreeMap<String, String>,
    /// Manifest digest -> image, with those that lost their name and are still used.
    pub by_digest: BTreeMap<String, Arc<ImageFacts>>,
    /// Further digests an image is known by (of the index it was chosen from) -> manifest digest.
    pub aliases: BTreeMap<String, String>,
}

impl Images {
    /// The image a manifest's `image` means, if it is on this device and whole.
    pub fn resolve(&self, image: &str) -> Option<&Arc<ImageFacts>> {
        let reference = Reference::parse(image).ok()?;
        let digest = match reference.digest() {
            Some(digest) => self.aliases.get(digest).map_or(digest, String::as_str),
            None => self.names.get(&reference.to_string())?,
        };
        self.by_digest.get(digest)
    }

    /// `docker.io/library/nginx@sha256:...`: `imageID` of a container status.
    pub fn image_id(image: &str, digest: &str) -> String {
        match Reference::parse(image) {
            Ok(reference) => format!("{}@{digest}", reference.repository()),
            Err(_) => digest.to_owned(),
        }
    }

    /// Every name of each image, by manifest digest.
    pub fn names_of(&self, digest: &str) -> impl Iterator<Item = &String> {
        self.names.iter().filter(move |(_, named)| *named == digest).map(|(name, _)| name)
    }
}

impl ImageFacts {
    /// Group, further groups and home of a user id in this image.
    pub fn account(&self, uid: u32) -> Option<&Account> {
        self.accounts.get(&uid)
    }
}
