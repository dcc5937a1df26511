//! From items to meaning: documents to manifests, registers to placements, grants, Secrets, overrides.
//!
//! Owns the item ids of ARCHITECTURE.md as a device reads them, and a cache so that an unchanged document is unpacked once.
//! Refuses to stop at a bad item: it keeps the last good meaning, warns once, and goes on. Start reading at [`Knowledge::read`].

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::object::Object;
use flotilla_manifests::overrides::OverrideRecord;
use flotilla_manifests::schema;
use flotilla_sync::blob::Blobs;
use flotilla_sync::channel::{Item, ItemKind, Version};
use flotilla_sync::document::Document;
use flotilla_sync::identity::{SealingKey, open};
use serde::Deserialize;
use serde_json::Value;

use crate::effective::{Known, Manifest};
use crate::replica::DeviceReplica;

/// Reads a replica's items. One per agent.
#[derive(Debug)]
pub struct Knowledge {
    sealing: SealingKey,
    /// By item id: version read and what it said.
    manifests: BTreeMap<String, (Version, Option<Manifest>)>,
    secrets: BTreeMap<String, (Version, Option<Object>)>,
    /// See [`Known::unreadable`].
    unreadable: BTreeSet<String>,
}

/// Whether a document's newest change is older than the present session with the hub.
type CaughtUp = bool;

/// What one item says.
enum Meaning {
    Placement(flotilla_manifests::derive::Placement),
    Grant(String, flotilla_manifests::rollout::RolloutNumber),
    Eviction(String),
    Revert(String),
    Override(Box<OverrideRecord>),
    Manifest(String, Box<Manifest>, CaughtUp),
    Secret(String, Box<Object>),
}

#[derive(Deserialize)]
struct GrantBody {
    number: flotilla_manifests::rollout::RolloutNumber,
}

#[derive(Deserialize)]
struct SecretBody {
    namespace: String,
    name: String,
    uid: String,
    /// Base64 of the sealed text.
    sealed: String,
}

/// What the replica says, and which overrides the hub has ended.
#[derive(Debug, Default)]
pub struct Read {
    pub known: Known,
    pub reverted: Vec<String>,
}

impl Knowledge {
    pub fn opening_with(sealing: SealingKey) -> Self {
        Self { sealing, manifests: BTreeMap::new(), secrets: BTreeMap::new(), unreadable: BTreeSet::new() }
    }

    /// Everything the replica holds now.
    pub fn read(&mut self, replica: &DeviceReplica) -> Read {
        let session_ms = replica.greeted_at_ms();
        self.unreadable = replica.damaged();
        let mut seen = Vec::new();
        let meanings = replica.items(|_channel, id, item| {
            seen.push(id.as_str().to_owned());
            self.meaning(id.as_str(), item, session_ms, &|hash| replica.blob(hash))
        });
        self.manifests.retain(|id, _| seen.contains(id));
        self.secrets.retain(|id, _| seen.contains(id));
        let mut read = Read::default();
        let known = &mut read.known;
        known.unreadable = std::mem::take(&mut self.unreadable);
        for meaning in meanings {
            match meaning {
                Meaning::Placement(placement) => drop(known.placements.insert(placement.uid.clone(), placement)),
                Meaning::Grant(workload, number) => drop(known.grants.insert(workload, number)),
                Meaning::Eviction(uid) => drop(known.evictions.insert(uid)),
                Meaning::Revert(id) => read.reverted.push(id),
                Meaning::Override(record) => known.overrides.push(*record),
                Meaning::Manifest(uid, manifest, caught_up) => {
                    if caught_up {
                        known.caught_up.insert(uid.clone());
                    }
                    known.manifests.insert(uid, *manifest);
                }
                Meaning::Secret(uid, secret) => drop(known.secrets.insert(uid, *secret)),
            }
        }
        known.overrides.sort_by(|one, other| (one.time, &one.id).cmp(&(other.time, &other.id)));
        read
    }

    fn meaning(&mut self, id: &str, item: &Item, session_ms: u64, blobs: Blobs<'_>) -> Option<Meaning> {
        match &item.kind {
            ItemKind::Document(document) => {
                let cached = self.manifests.get(id).filter(|(version, _)| *version == document.newest);
                let manifest = match cached {
                    Some((_, manifest)) => manifest.clone(),
                    None => {
                        let last_good = self.manifests.get(id).and_then(|(_, manifest)| manifest.clone());
                        let manifest = unpack(&document.saved, blobs).map_err(|why| warn(id, &why)).ok().or(last_good);
                        self.manifests.insert(id.to_owned(), (document.newest, manifest.clone()));
                        manifest
                    }
                };
                if manifest.is_none() {
                    self.unreadable.insert(id.to_owned());
                }
                let caught_up = document.time_ms < session_ms;
                Some(Meaning::Manifest(id.to_owned(), Box::new(manifest?), caught_up))
            }
            ItemKind::Register(register) => {
                let read = self.register(id, &register.value, register.version);
                if let (Err(_), Some(("placement", uid))) = (&read, id.split_once('/')) {
                    self.unreadable.insert(uid.to_owned());
                }
                read.map_err(|why| warn(id, &why)).ok().flatten()
            }
            ItemKind::Absent | ItemKind::Removed(_) => None,
        }
    }

    fn register(&mut self, id: &str, value: &[u8], version: Version) -> Result<Option<Meaning>, String> {
        let Some((kind, name)) = id.split_once('/') else { return Err("an unknown kind of register".to_owned()) };
        let parsed = match kind {
            "placement" => Meaning::Placement(json(value)?),
            "grant" => Meaning::Grant(name.to_owned(), json::<GrantBody>(value)?.number),
            "evict" => Meaning::Eviction(name.to_owned()),
            "revert" => Meaning::Revert(name.to_owned()),
            "override" => Meaning::Override(Box::new(json(value)?)),
            "secret" => {
                let cached = self.secrets.get(id).filter(|(known, _)| *known == version);
                let secret = match cached {
                    Some((_, secret)) => secret.clone(),
                    None => {
                        let opened = self.unseal(id, value).map_err(|why| warn(id, &why)).ok();
                        self.secrets.insert(id.to_owned(), (version, opened.clone()));
                        opened
                    }
                };
                return Ok(secret.map(|secret| Meaning::Secret(name.to_owned(), Box::new(secret))));
            }
            _ => return Err(format!("registers of kind {kind:?} are not known to this version")),
        };
        Ok(Some(parsed))
    }

    fn unseal(&self, id: &str, value: &[u8]) -> Result<Object, String> {
        use base64::Engine as _;
        let body: SecretBody = json(value)?;
        let sealed =
            base64::engine::general_purpose::STANDARD.decode(body.sealed).map_err(|error| error.to_string())?;
        let clear = open(&self.sealing, id.as_bytes(), &sealed).map_err(|error| error.to_string())?;
        let content: Value = json(&clear)?;
        let mut object = Object::empty(&flotilla_manifests::kind::SECRET, &body.namespace, &body.name);
        object.metadata_mut().insert("uid".into(), body.uid.into());
        for field in ["type", "data"] {
            if let Some(value) = content.get(field) {
                object.value_mut()[field] = value.clone();
            }
        }
        Ok(object)
    }
}

fn unpack(saved: &[u8], blobs: Blobs<'_>) -> Result<Manifest, String> {
    let document = Document::load(saved).map_err(|error| error.to_string())?;
    let parse = |value: Value| {
        let object = Object::parse(value).map_err(|error| error.to_string())?;
        let faults = schema::type_errors(&object);
        match faults.first() {
            None => Ok(object),
            Some(fault) => Err(format!("{}: {}", fault.field, fault.message)),
        }
    };
    let object = parse(document.object(blobs).map_err(|error| error.to_string())?)?;
    let mut manifest = Manifest { object, thresholds: BTreeMap::new(), at_number: BTreeMap::new() };
    for (text, threshold) in document.rollouts() {
        let Ok(number) = text.parse() else { continue };
        manifest.thresholds.insert(number, threshold);
        if let Some(value) = document.object_at_number(&text, blobs).map_err(|error| error.to_string())? {
            manifest.at_number.insert(number, parse(value)?);
        }
    }
    Ok(manifest)
}

fn json<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn warn(id: &str, why: &str) {
    tracing::warn!(object = %id, reason = %why, "an item cannot be understood; what it said before stays in force");
}
