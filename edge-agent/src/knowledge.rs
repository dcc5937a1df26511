//! From items to meaning: documents to manifests, registers to placements, grants, Secrets, overrides.
//!
//! Owns the item ids of ARCHITECTURE.md as a device reads them, and a cache so that an unchanged document is unpacked once.
//! Refuses to stop at a bad item: it keeps the last good meaning, warns once, and goes on. Start reading at [`Knowledge::read`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_manifests::api_error::Violation;
use flotilla_manifests::object::Object;
use flotilla_manifests::overrides::OverrideRecord;
use flotilla_manifests::{defaults, schema, validate};
use flotilla_sync::blob::Blobs;
use flotilla_sync::channel::{Item, ItemKind};
use flotilla_sync::document::Document;
use flotilla_sync::identity::{SealingKey, open};
use flotilla_sync::recall;
use serde::Deserialize;
use serde_json::Value;

use crate::effective::{Known, Manifest};
use crate::replica::DeviceReplica;

/// Reads a replica's items. One per agent.
#[derive(Debug)]
pub struct Knowledge {
    sealing: SealingKey,
    /// By item id: the content that was read and what it said. Not its version: where a log was forked or a change waited for another,
    /// two contents have one.
    manifests: BTreeMap<String, (Bytes, Option<Arc<Manifest>>)>,
    secrets: BTreeMap<String, (Bytes, Option<Object>)>,
    /// Documents whose newest state says nothing valid, and why.
    refused: BTreeMap<String, String>,
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
    Revert(String, RevertBody),
    Override(Box<OverrideRecord>),
    Manifest(String, Arc<Manifest>, CaughtUp),
    Secret(String, Box<Object>),
}

#[derive(Deserialize)]
struct GrantBody {
    number: flotilla_manifests::rollout::RolloutNumber,
}

/// What the hub says of an override that is to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevertBody {
    /// It ends with what it changes, which the hub has deleted.
    base_deleted: bool,
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
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub known: Known,
    pub reverted: BTreeMap<String, RevertBody>,
    /// Manifests that say nothing valid now, by key or uid, and why: what they said before stays in force.
    pub refused: BTreeMap<String, String>,
}

impl Read {
    /// Whether the hub has ended an override. One that ends with its base stays until this device knows of that: ended before, it would
    /// have the workload begin anew without it, only to be stopped.
    pub fn is_reverted(&self, record: &OverrideRecord) -> bool {
        let base_is_here = || self.known.manifests.contains_key(&record.target.uid);
        self.reverted.get(&record.id).is_some_and(|revert| !revert.base_deleted || !base_is_here())
    }
}

impl Knowledge {
    pub fn opening_with(sealing: SealingKey) -> Self {
        Self {
            sealing,
            manifests: BTreeMap::new(),
            secrets: BTreeMap::new(),
            refused: BTreeMap::new(),
            unreadable: BTreeSet::new(),
        }
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
        self.refused.retain(|id, _| seen.contains(id));
        let shown = |(id, why): (&String, &String)| {
            let known = self.manifests.get(id).and_then(|(_, manifest)| manifest.as_ref());
            (known.map_or_else(|| id.clone(), |manifest| manifest.object.key().to_string()), why.clone())
        };
        let mut read = Read { refused: self.refused.iter().map(shown).collect(), ..Read::default() };
        let known = &mut read.known;
        known.unreadable = std::mem::take(&mut self.unreadable);
        for meaning in meanings {
            match meaning {
                Meaning::Placement(placement) => drop(known.placements.insert(placement.uid.clone(), placement)),
                Meaning::Grant(workload, number) => drop(known.grants.insert(workload, number)),
                Meaning::Eviction(uid) => drop(known.evictions.insert(uid)),
                Meaning::Revert(id, body) => drop(read.reverted.insert(id, body)),
                Meaning::Override(record) => known.overrides.push(*record),
                Meaning::Manifest(uid, manifest, caught_up) => {
                    if caught_up {
                        known.caught_up.insert(uid.clone());
                    }
                    known.manifests.insert(uid, manifest);
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
                let cached = self.manifests.get(id).filter(|(saved, _)| *saved == document.saved);
                let manifest = match cached {
                    Some((_, manifest)) => manifest.clone(),
                    None => {
                        let last_good = self.manifests.get(id).and_then(|(_, manifest)| manifest.clone());
                        let unpacked = || unpack(&document.saved, blobs).map(Arc::new);
                        let unpacked = if document.blobs.is_empty() {
                            recall::or("manifest", &[&document.saved], unpacked)
                        } else {
                            unpacked()
                        };
                        let manifest = match unpacked {
                            Ok(manifest) => {
                                self.refused.remove(id);
                                Some(manifest)
                            }
                            Err(why) => {
                                warn(id, &why);
                                self.refused.insert(id.to_owned(), why);
                                last_good
                            }
                        };
                        self.manifests.insert(id.to_owned(), (document.saved.clone(), manifest.clone()));
                        manifest
                    }
                };
                if manifest.is_none() {
                    self.unreadable.insert(id.to_owned());
                }
                let caught_up = document.time_ms < session_ms;
                Some(Meaning::Manifest(id.to_owned(), manifest?, caught_up))
            }
            ItemKind::Register(register) => {
                let read = self.register(id, &register.value);
                if let (Err(_), Some(("placement", uid))) = (&read, id.split_once('/')) {
                    self.unreadable.insert(uid.to_owned());
                }
                read.map_err(|why| warn(id, &why)).ok().flatten()
            }
            ItemKind::Absent | ItemKind::Removed(_) => None,
        }
    }

    fn register(&mut self, id: &str, value: &Bytes) -> Result<Option<Meaning>, String> {
        let Some((kind, name)) = id.split_once('/') else { return Err("an unknown kind of register".to_owned()) };
        let parsed = match kind {
            "placement" => Meaning::Placement(json(value)?),
            "grant" => Meaning::Grant(name.to_owned(), json::<GrantBody>(value)?.number),
            "evict" => Meaning::Eviction(name.to_owned()),
            "revert" => Meaning::Revert(name.to_owned(), json(value)?),
            "override" => Meaning::Override(Box::new(json(value)?)),
            "secret" => {
                let cached = self.secrets.get(id).filter(|(known, _)| known == value);
                let secret = match cached {
                    Some((_, secret)) => secret.clone(),
                    None => {
                        let opened = self.unseal(id, value).map_err(|why| warn(id, &why)).ok();
                        self.secrets.insert(id.to_owned(), (value.clone(), opened.clone()));
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
    let mut document = Document::load(saved).map_err(|error| error.to_string())?;
    // What one writer said, its hub has validated. Where two wrote at once, the merge may say what neither did.
    let merged = document.heads().len() > 1 || !document.conflicts().is_empty();
    let parse = |value: Value| {
        let object = Object::parse(value).map_err(|error| error.to_string())?;
        let faults = if merged { invalid(&object) } else { schema::type_errors(&object) };
        match faults.first() {
            None => Ok(object),
            Some(fault) => Err(format!("{}: {}", fault.field, fault.message)),
        }
    };
    let object = parse(document.object(blobs).map_err(|error| error.to_string())?)?;
    let mut manifest = Manifest { object: Arc::new(object), thresholds: BTreeMap::new(), at_number: BTreeMap::new() };
    for (text, threshold) in document.rollouts() {
        let Ok(number) = text.parse() else { continue };
        manifest.thresholds.insert(number, threshold);
        if let Some(value) = document.object_at_number(&text, blobs).map_err(|error| error.to_string())? {
            manifest.at_number.insert(number, Arc::new(parse(value)?));
        }
    }
    Ok(manifest)
}

/// By all rules, as the API would check it.
fn invalid(object: &Object) -> Vec<Violation> {
    let mut whole = object.clone();
    defaults::apply(&mut whole);
    validate::object(&whole)
}

fn json<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn warn(id: &str, why: &str) {
    tracing::warn!(object = %id, reason = %why, "an item cannot be understood; what it said before stays in force");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_sync::blob::no_blobs;
    use flotilla_sync::channel::{Applied, ChannelName, GENESIS, ItemId, WriterId};
    use flotilla_sync::document::{Edit, Rollouts};
    use flotilla_sync::record::{Draft, Record};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_override_that_ends_with_its_base_stays_until_that_is_gone() {
        let base = Object::parse(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "map", "namespace": "default", "uid": "u"}}))
        .unwrap();
        let record = OverrideRecord {
            id: "6c1f".into(),
            target: flotilla_manifests::overrides::Target::of(&base),
            operations: Vec::new(),
            author: "technician".into(),
            reason: String::new(),
            time: flotilla_manifests::time::Timestamp(1),
            expires: None,
        };
        let manifest = Manifest { object: Arc::new(base), thresholds: BTreeMap::new(), at_number: BTreeMap::new() };
        let mut read = Read::default();
        read.known.manifests.insert("u".into(), Arc::new(manifest));
        assert!(!read.is_reverted(&record));
        let body = |text: &str| json::<RevertBody>(&Bytes::copy_from_slice(text.as_bytes())).unwrap();
        read.reverted.insert(record.id.clone(), body("{}"));
        assert!(read.is_reverted(&record));
        read.reverted.insert(record.id.clone(), body(r#"{"baseDeleted": true}"#));
        assert!(!read.is_reverted(&record), "the base is still here");
        read.known.manifests.clear();
        assert!(read.is_reverted(&record));
    }

    /// As when the other branch of a forked log comes in: the newest record stays the same.
    #[test]
    fn a_document_is_read_again_when_its_content_changes_under_the_same_version() {
        let id = ItemId::parse("0f8fad5b-d9cb-469f-a165-708677289500").unwrap();
        let item = |text: &str| {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": text},
                "metadata": {"name": "map", "namespace": "default", "uid": id.as_str()}});
            let edit = Edit { object: &object, rollouts: &Rollouts::new(), author: "", time_ms: 0 };
            let saved = Document::create(edit, 1, &|_| None, [1; 8]).unwrap().save();
            let channel = ChannelName::parse("fleet/default").unwrap();
            let draft = Draft::snapshot(id.clone(), 1, saved, "", 0);
            let record = Record { channel, writer: WriterId([1; 32]), seq: 7, prev: GENESIS, draft };
            match Item::apply(None, &record, 1).unwrap() {
                Applied::Changed(item) => item,
                other => panic!("{other:?}"),
            }
        };
        let mut knowledge = Knowledge::opening_with(SealingKey::generate().unwrap());
        let mut text = |item: &Item| match knowledge.meaning(id.as_str(), item, 0, &no_blobs) {
            Some(Meaning::Manifest(_, manifest, _)) => manifest.object.text("/data/text").to_owned(),
            _ => panic!("no manifest"),
        };
        assert_eq!([text(&item("one")), text(&item("other")), text(&item("other"))], ["one", "other", "other"]);
    }

    #[test]
    fn a_merge_that_no_writer_meant_is_refused() {
        let shape = |path: &[&str]| schema::list_keys(&flotilla_manifests::kind::POD, path);
        let pod = |ports: Value| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "u"},
                "spec": {"containers": [{"name": "c", "image": "a", "ports": ports}]}})
        };
        let edit = |document: &mut Document, value: &Value| {
            let edit = Edit { object: value, rollouts: &Rollouts::new(), author: "", time_ms: 1 };
            document.edit(edit, &shape).unwrap().unwrap()
        };
        let first = pod(json!([]));
        let edit_first = Edit { object: &first, rollouts: &Rollouts::new(), author: "", time_ms: 1 };
        let mut one = Document::create(edit_first, 1, &shape, [1; 8]).unwrap();
        let mut other = Document::load(&one.save()).unwrap().with_actor([2; 8]);
        // Each names a port of its own `web`: valid alone, not together.
        edit(&mut one, &pod(json!([{"name": "web", "containerPort": 80, "protocol": "TCP"}])));
        assert!(unpack(&one.save(), &no_blobs).is_ok());
        let change = edit(&mut other, &pod(json!([{"name": "web", "containerPort": 81, "protocol": "TCP"}])));
        assert!(unpack(&other.save(), &no_blobs).is_ok());
        one.apply(&change).unwrap();
        let ports = one.object(&no_blobs).unwrap()["spec"]["containers"][0]["ports"].clone();
        assert!(!ports.as_array().unwrap().is_empty());
        let why = unpack(&one.save(), &no_blobs).unwrap_err();
        assert!(why.contains("spec.containers[0].ports"), "{why}");
        // An edit that knows of both settles it.
        edit(&mut one, &pod(json!([{"name": "web", "containerPort": 80, "protocol": "TCP"}])));
        unpack(&one.save(), &no_blobs).unwrap();
    }
}
