//! Taking in what was learned, as a whole and in one transaction: objects as the devices hold them, and the channels' tables so that
//! nothing is stated again that devices have.
//!
//! What no device holds stays as the database has it. A deletion is believed when a removal says so, or when a complete list lacks
//! what the hub would put there. Secrets cannot come back: they are sealed to their devices. Start at [`adopt`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::derive::Placement;
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::{digest, rollout};
use flotilla_sync::channel::{Applied, ChannelName, DocumentItem, GENESIS, Item, ItemId, ItemKind, Version, WriterId};
use flotilla_sync::document::{Document, Rollouts};
use flotilla_sync::record::{Draft, Record};
use serde_json::{Value, json};

use super::{Report, merge};
use crate::admission::{default_account, set_label};
use crate::controllers::events::Note;
use crate::late;
use crate::publish::content::{self, Content};
use crate::publish::{Channel, Publication};
use crate::store::Batch;
use crate::store::learned::{Fate, Learned};
use crate::store::life::Standing;
use crate::store::settings::Setting;

/// Annotation of a Secret whose content at the hub is not the newest: it says so until the Secret is written again.
pub(crate) const SECRET_ANNOTATION: &str = "flotilla.dev/older-than-devices";
/// Names kept per list of a report.
const NAMED_MAX: usize = 1000;
const SOURCE: &str = "flotilla-hub";

/// Takes in all that was learned. What cannot be taken in is named in the report and left as the hub has it.
///
/// # Errors
/// When the database fails.
pub(crate) fn adopt(batch: &mut Batch<'_>) -> Result<Report, ApiError> {
    let learned = batch.learned()?;
    let mut report = Report { at_ms: batch.now().0, ..Report::default() };
    let mut documents: BTreeMap<&str, Vec<&Learned>> = BTreeMap::new();
    for one in learned.iter().filter(|one| is_document(&one.id)) {
        documents.entry(&one.id).or_default().push(one);
    }
    let mut workloads = BTreeSet::new();
    for (uid, places) in &documents {
        document(batch, uid, places, &mut report)?;
        workloads.insert((*uid).to_owned());
    }
    for one in &learned {
        register(batch, one, &learned, &mut workloads, &mut report)?;
    }
    sizes(batch, &workloads)?;
    uncertain(batch, &documents, &mut report)?;
    stand(batch, &learned, &mut report)?;
    batch.forget_learned()?;
    Ok(report)
}

/// Tells people: an Event, and the report for `flotilla hub check`.
pub(crate) fn tell(batch: &mut Batch<'_>, report: &Report) -> Result<(), ApiError> {
    let encoded = serde_json::to_vec(report)
        .map_err(|source| crate::store::StoreError::Damaged { what: "the report", source })?;
    batch.set_setting(Setting::Learned, &encoded)?;
    let Some(namespace) = batch.get(&ObjectKey::of(&kind::NAMESPACE, "", "default")) else { return Ok(()) };
    let message = format!(
        "learned from devices: {} changed, {} created, {} deleted, {} Secrets older than devices hold, {} not taken in, {} devices not heard",
        report.changed.len(),
        report.created.len(),
        report.deleted.len(),
        report.secrets.len(),
        report.failed.len(),
        report.unheard.len()
    );
    let note = Note::normal(&namespace, SOURCE, "LearnedFromDevices", message);
    let event = note.event(None, batch.now());
    if batch.get(&event.key()).is_none() {
        batch.create(event)?;
    }
    Ok(())
}

/// One object, as all channels together know it.
fn document(batch: &mut Batch<'_>, uid: &str, places: &[&Learned], report: &mut Report) -> Result<(), ApiError> {
    let present = batch.index().by_uid(uid).cloned();
    let live = places.iter().any(|one| one.fate == Fate::Live);
    let lives_on = places.iter().any(|one| one.fate == Fate::Withdrawn { certain: true });
    match &present {
        Some(object) if places.iter().any(|one| one.fate == Fate::Deleted) => {
            return if kept_in_this_life(batch, uid)? { Ok(()) } else { delete(batch, object, report) };
        }
        // A bare Pod is where its document is; one that is told to end is gone when its device says so.
        Some(pod) if pod.kind() == &kind::POD && !live => {
            return if pod.deletion_timestamp().is_some() { Ok(()) } else { delete(batch, pod, report) };
        }
        // It was deleted, or nobody knows.
        None if places.iter().any(|one| one.fate == Fate::Deleted) || !(live || lives_on) => return Ok(()),
        _ => {}
    }
    let (joined, held, rollouts) = match read(batch, uid, places) {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(()),
        Err(why) => {
            note(&mut report.failed, format!("document {uid}: {why}"));
            return Ok(());
        }
    };
    if present.is_none() && (!live && held.kind() == &kind::POD || is_taken(batch, &held.key(), report)?) {
        return Ok(());
    }
    let covered = digest::of_value(&json!({"object": held.value(), "rollout": rollouts})).to_vec();
    let own = if kept_in_this_life(batch, uid)? { batch.document(uid)? } else { None };
    batch.put_learned_document(uid, joined.epoch, &covered, &joined.saved)?;
    batch.put_document_blobs(uid, &[], &joined.blobs)?;
    put_object(batch, present, held, report)?;
    let standing = batch.index().rollout(uid).thresholds;
    for number in standing.keys().filter(|number| !rollouts.contains_key(*number)) {
        batch.set_threshold(uid, number, None)?;
    }
    for (number, threshold) in &rollouts {
        batch.set_threshold(uid, number, Some(*threshold))?;
    }
    // What was written to an epoch that the newest has left, here or elsewhere.
    let items: Vec<&Item> = places.iter().filter_map(|one| one.item.as_ref()).collect();
    let mut others = late::strangers(&items, joined.epoch);
    others.extend(own.iter().map(|(epoch, _, state)| late::OtherState { epoch: *epoch, saved: state }));
    let replayed = late::replay(batch, uid, &joined.saved, &others)?;
    replayed.changes.into_iter().for_each(|line| note(&mut report.changed, line));
    replayed.unclear.into_iter().for_each(|line| note(&mut report.failed, line));
    Ok(())
}

/// The newest content of a document, and what it says.
fn read(batch: &Batch<'_>, uid: &str, places: &[&Learned]) -> Result<Option<(DocumentItem, Object, Rollouts)>, String> {
    let Some(joined) = joined(batch, uid, places)? else { return Ok(None) };
    let document = Document::load(&joined.saved).map_err(|error| error.to_string())?;
    let value = document.object(&|hash| batch.blob(hash)).map_err(|error| error.to_string())?;
    let held = Object::parse(value).map_err(|error| error.to_string())?;
    if held.uid() == uid { Ok(Some((joined, held, document.rollouts()))) } else { Err("it names another uid".into()) }
}

/// The newest content of a document: the hub's own and that of every channel, joined.
fn joined(batch: &Batch<'_>, uid: &str, places: &[&Learned]) -> Result<Option<DocumentItem>, String> {
    let id = ItemId::parse(uid).map_err(|error| error.to_string())?;
    let own = batch.document(uid).map_err(|error| error.to_string())?;
    let mut joined = own.and_then(|(epoch, _, state)| {
        let draft = Draft::snapshot(id.clone(), epoch, state, "", 0);
        let channel = ChannelName::parse(&places.first()?.channel).ok()?;
        let record = Record { channel, writer: WriterId([0; 32]), seq: 0, prev: GENESIS, draft };
        match Item::apply(None, &record, 0) {
            Ok(Applied::Changed(item)) => Some(item),
            // A damaged row: what devices hold takes its place.
            _ => None,
        }
    });
    for item in places.iter().filter_map(|one| one.item.as_ref()) {
        match Item::adopt(joined.as_ref(), &id, item.clone()).map_err(|error| error.to_string())? {
            Applied::Changed(item) | Applied::Waiting(item) => joined = Some(item),
            Applied::Unchanged => {}
        }
    }
    Ok(match joined.map(|item| item.kind) {
        Some(ItemKind::Document(document)) => Some(document),
        _ => None,
    })
}

fn put_object(
    batch: &mut Batch<'_>,
    present: Option<Arc<Object>>,
    held: Object,
    report: &mut Report,
) -> Result<(), ApiError> {
    let key = held.key();
    if let Some(present) = present {
        let wanted = merge::overlaid(&present, &held);
        let after = batch.update(&key, |object| *object = wanted)?;
        if after.is_some_and(|after| after.resource_version() != present.resource_version()) {
            note(&mut report.changed, key.to_string());
        }
        return Ok(());
    }
    if let Some(other) = batch.get(&key) {
        // One of the same name took its place.
        delete(batch, &other, report)?;
    }
    if key.kind.scope == kind::Scope::Namespaced {
        ensure_namespace(batch, &key.namespace, report)?;
    }
    note(&mut report.created, key.to_string());
    batch.create(held)?;
    Ok(())
}

fn ensure_namespace(batch: &mut Batch<'_>, name: &str, report: &mut Report) -> Result<(), ApiError> {
    let key = ObjectKey::of(&kind::NAMESPACE, "", name);
    if batch.get(&key).is_some() {
        return Ok(());
    }
    let mut namespace = Object::empty(&kind::NAMESPACE, "", name);
    set_label(&mut namespace, "kubernetes.io/metadata.name", name);
    namespace.value_mut()["spec"] = json!({"finalizers": ["kubernetes"]});
    namespace.value_mut()["status"] = json!({"phase": "Active"});
    note(&mut report.created, key.to_string());
    batch.create(namespace)?;
    let account = default_account(name);
    if batch.get(&account.key()).is_none() {
        batch.create(account)?;
    }
    Ok(())
}

fn delete(batch: &mut Batch<'_>, object: &Object, report: &mut Report) -> Result<(), ApiError> {
    batch.remove(&object.key())?;
    batch.forget_rollout(object.uid())?;
    batch.forget_document(object.uid())?;
    note(&mut report.deleted, object.key().to_string());
    Ok(())
}

/// Whether the hub has stated the object since its present life began: then its word is the newer one, and is said again.
fn kept_in_this_life(batch: &mut Batch<'_>, uid: &str) -> Result<bool, ApiError> {
    let kept = batch.is_stated_since(uid, batch.incarnation())?;
    if kept {
        batch.state_again(uid)?;
    }
    Ok(kept)
}

/// Whether another object of this name was made or stated since the hub's present life began. It was acknowledged after what devices held
/// was lost, and stays; what they hold under its name is told and not taken in.
fn is_taken(batch: &Batch<'_>, key: &ObjectKey, report: &mut Report) -> Result<bool, ApiError> {
    let Some(other) = batch.get(key) else { return Ok(false) };
    let life = batch.incarnation();
    // A Secret may stand in no channel; nobody but its author writes it, save for the annotation of one that was lost.
    let mut taken = key.kind == &kind::SECRET
        && other.resource_version() >= crate::store::life::first_version(life)
        && other.annotation(SECRET_ANNOTATION).is_none();
    for id in [other.uid().to_owned(), format!("placement/{}", other.uid()), format!("secret/{}", other.uid())] {
        taken = taken || batch.is_stated_since(&id, life)?;
    }
    if taken {
        note(&mut report.failed, format!("{key}: one of the same name was made here since, and stays"));
    }
    Ok(taken)
}

/// One register of one device.
fn register(
    batch: &mut Batch<'_>,
    one: &Learned,
    all: &[Learned],
    workloads: &mut BTreeSet<String>,
    report: &mut Report,
) -> Result<(), ApiError> {
    let (Some(node), Some((sort, name))) = (one.channel.strip_prefix("device/"), one.id.split_once('/')) else {
        return Ok(());
    };
    let live = one.fate == Fate::Live;
    let value = match one.item.as_ref().map(|item| &item.kind) {
        Some(ItemKind::Register(register)) => serde_json::from_slice::<Value>(&register.value).ok(),
        _ => None,
    };
    match sort {
        "placement" if live => {
            let Some(placement) = value.and_then(|value| serde_json::from_value::<Placement>(value).ok()) else {
                note(&mut report.failed, format!("{} {}: it cannot be read", one.channel, one.id));
                return Ok(());
            };
            workloads.insert(placement.workload.clone());
            place(batch, node, &placement, report)?;
        }
        "placement" => {
            let elsewhere = all.iter().any(|other| other.id == one.id && other.fate == Fate::Live);
            let ending = format!("evict/{name}");
            let ends = all.iter().any(|other| other.id == ending && other.fate == Fate::Live);
            let row = batch.index().by_uid(name).filter(|pod| pod.text("/spec/nodeName") == node).cloned();
            if let Some(pod) = row.filter(|_| !elsewhere && !ends)
                && !kept_in_this_life(batch, &one.id)?
            {
                workloads.extend(owner_of(batch, &pod));
                delete(batch, &pod, report)?;
            }
        }
        "grant" if batch.index().by_uid(name).is_some() => {
            let number = value.as_ref().and_then(|value| value["number"].as_str()).filter(|_| live);
            batch.set_grant(name, node, number)?;
        }
        "evict" => {
            let Some(pod) = batch.index().by_uid(name).cloned() else { return Ok(()) };
            if live {
                end(batch, &pod.key())?;
            } else if pod.text("/spec/nodeName") == node {
                delete(batch, &pod, report)?;
            }
        }
        "revert" if live => {
            let wanted = format!("{node}.{name}");
            let shown = batch.index().list(&kind::OVERRIDE, None).find(|shown| shown.name() == wanted);
            if let Some(key) = shown.map(|shown| shown.key()) {
                end(batch, &key)?;
            }
        }
        "secret" if live => {
            if let Some(value) = value {
                secret(batch, name, &value, report)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The Deployment or ReplicaSet above a Pod.
fn owner_of(batch: &Batch<'_>, pod: &Object) -> Option<String> {
    content::workload_of(batch.index(), pod).map(|workload| workload.uid().to_owned())
}

fn end(batch: &mut Batch<'_>, key: &ObjectKey) -> Result<(), ApiError> {
    let now = batch.now().to_rfc3339();
    batch.update(key, |object| {
        object.metadata_mut().entry("deletionTimestamp").or_insert_with(|| now.into());
    })?;
    Ok(())
}

/// A Pod that a device was told to run.
fn place(batch: &mut Batch<'_>, node: &str, placement: &Placement, report: &mut Report) -> Result<(), ApiError> {
    if let Some(row) = batch.index().by_uid(&placement.uid).cloned() {
        if row.kind() == &kind::POD && row.text("/spec/nodeName") != node {
            batch.update(&row.key(), |pod| pod.value_mut()["spec"]["nodeName"] = node.into())?;
        }
        return Ok(());
    }
    let failed = |report: &mut Report, why: &str| {
        note(&mut report.failed, format!("Pod {}/{} on {node}: {why}", placement.namespace, placement.name));
    };
    if is_taken(batch, &ObjectKey::of(&kind::POD, &placement.namespace, &placement.name), report)? {
        return Ok(());
    }
    let Some(workload) = batch.index().by_uid(&placement.workload).cloned() else {
        failed(report, "its workload is not known");
        return Ok(());
    };
    let number = placement.number.to_string();
    let at_number = match batch.object_at_number(workload.uid(), &number)?.map(Object::parse) {
        Some(Ok(object)) => object,
        _ if rollout::number_of(&workload) == Some(placement.number) => (*workload).clone(),
        _ => {
            failed(report, "the template of its rollout number is not known");
            return Ok(());
        }
    };
    let set = match merge::set_of(batch.index(), &at_number, placement) {
        Some(merge::SetOf::Present(set)) => set,
        Some(merge::SetOf::Missing(set)) => {
            note(&mut report.created, set.key().to_string());
            (*batch.create(*set)?).clone()
        }
        None => {
            failed(report, "no ReplicaSet fits its name");
            return Ok(());
        }
    };
    let mut pod = merge::placed(&set, placement, node);
    let key = pod.key();
    crate::priority::resolve(batch.index(), &mut pod).or_else(|error| {
        failed(report, &error.message);
        Ok::<_, ApiError>(())
    })?;
    if let Some(other) = batch.get(&key) {
        delete(batch, &other, report)?;
    }
    note(&mut report.created, key.to_string());
    batch.create(pod)?;
    Ok(())
}

/// Sets of Deployments that changed count the Pods there are: their controllers go on from there, not from the backup's sizes.
fn sizes(batch: &mut Batch<'_>, workloads: &BTreeSet<String>) -> Result<(), ApiError> {
    for uid in workloads {
        let index = batch.index();
        let owned = index.owned_by(uid).filter(|set| set.kind() == &kind::REPLICA_SET);
        let sized: Vec<(ObjectKey, i64)> = owned
            .filter_map(|set| {
                let present = merge::present(index, set);
                (set.at("/spec/replicas").and_then(Value::as_i64) != Some(present)).then(|| (set.key(), present))
            })
            .collect();
        for (key, present) in sized {
            batch.update(&key, |set| set.value_mut()["spec"]["replicas"] = present.into())?;
        }
    }
    Ok(())
}

/// A Secret that a device holds. Its content is sealed to the device; what the hub lacks is an empty one of the same uid.
fn secret(batch: &mut Batch<'_>, uid: &str, value: &Value, report: &mut Report) -> Result<(), ApiError> {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let key = ObjectKey::of(&kind::SECRET, text("namespace"), text("name"));
    if batch.index().by_uid(uid).is_some() || is_taken(batch, &key, report)? {
        return Ok(());
    }
    if let Some(other) = batch.get(&key) {
        delete(batch, &other, report)?;
    }
    ensure_namespace(batch, &key.namespace, report)?;
    let mut lost = Object::empty(&kind::SECRET, &key.namespace, &key.name);
    lost.metadata_mut().insert("uid".into(), uid.into());
    lost.value_mut()["type"] = "Opaque".into();
    lost.set_annotation(
        SECRET_ANNOTATION,
        "this hub was restored from an older backup and has no content; apply it again",
    );
    batch.create(lost)?;
    Ok(())
}

/// Deletes what a complete list does not name though, by all that is known now, it would be there. Workloads first: what only they
/// referred to is not missed then.
fn uncertain(
    batch: &mut Batch<'_>,
    documents: &BTreeMap<&str, Vec<&Learned>>,
    report: &mut Report,
) -> Result<(), ApiError> {
    for workloads in [true, false] {
        let wanted = wanted(batch);
        for (uid, places) in documents {
            let absent = places.iter().all(|one| one.fate == Fate::Withdrawn { certain: false });
            let missed = places.iter().any(|one| wanted.contains(&(one.channel.clone(), (*uid).to_owned())));
            let Some(object) = batch.index().by_uid(uid).filter(|_| absent && missed).cloned() else { continue };
            let is_workload = object.kind() != &kind::CONFIG_MAP;
            if is_workload == workloads && !kept_in_this_life(batch, uid)? {
                delete(batch, &object, report)?;
            }
        }
    }
    Ok(())
}

/// Channel and id of everything the hub would put into channels.
fn wanted(batch: &Batch<'_>) -> BTreeSet<(String, String)> {
    let publication = Publication::full(batch.index());
    let mut wanted = BTreeSet::new();
    for (channel, item) in publication.wanted() {
        if let Some(content) = content::of(batch.index(), channel, item) {
            wanted.insert((channel.to_string(), content.id().to_owned()));
        }
    }
    wanted
}

/// Writes down what the channels hold, so that publication states the difference and nothing else.
fn stand(batch: &mut Batch<'_>, learned: &[Learned], report: &mut Report) -> Result<(), ApiError> {
    let publication = Publication::full(batch.index());
    let mut sources: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut secrets: BTreeMap<(String, String), Value> = BTreeMap::new();
    for (channel, item) in publication.wanted() {
        let Some(content) = content::of(batch.index(), channel, item) else { continue };
        let place = (channel.to_string(), content.id().to_owned());
        sources.insert(place.clone(), item.to_string());
        if let (Content::Secret { plain, .. }, Channel::Device(_)) = (content, channel) {
            secrets.insert(place, plain);
        }
    }
    for one in learned {
        // Devices that hold the branch that is kept here have heard of this by no log: the present writer says it.
        let unsaid = one.branched && one.channel.starts_with("fleet/");
        match one.fate {
            Fate::Live => {}
            Fate::Deleted | Fate::Withdrawn { .. } if unsaid && batch.state_anew(&one.channel, &one.id)? => continue,
            Fate::Deleted | Fate::Withdrawn { .. } => {
                batch.drop_standing(&one.channel, &one.id)?;
                // Whoever learns from devices after this hub is to know it too.
                if is_document(&one.id) && batch.index().by_uid(&one.id).is_some() {
                    batch.note_withdrawn(&one.channel, &one.id)?;
                } else if is_document(&one.id) {
                    batch.bury(&one.channel, &one.id, one.removed_seq)?;
                }
                continue;
            }
        }
        let place = (one.channel.clone(), one.id.clone());
        // What nobody wants there any more is withdrawn by the next look at all places.
        let source = sources.get(&place).cloned().unwrap_or_else(|| format!("learned {}", one.id));
        let Some(item) = &one.item else { continue };
        let (digest, version, time_ms, value) = match &item.kind {
            ItemKind::Document(held) => {
                let own =
                    batch.document(&one.id)?.filter(|(epoch, _, state)| *epoch == held.epoch && *state == held.saved);
                (own.map(|(_, digest, _)| digest).unwrap_or_default(), held.newest, held.time_ms, None)
            }
            ItemKind::Register(held) => {
                let digest = match secrets.get(&place) {
                    Some(plain) => match older_secret(batch, one, &held.value, plain, report)? {
                        Some(digest) => digest,
                        None => continue,
                    },
                    None => {
                        let value: Value = serde_json::from_slice(&held.value).unwrap_or_default();
                        digest::of_value(&value).to_vec()
                    }
                };
                (digest, held.version, held.time_ms, Some(&held.value[..]))
            }
            ItemKind::Absent | ItemKind::Removed(_) => continue,
        };
        let Version { incarnation: life, seq, .. } = version;
        let (channel, id) = (one.channel.as_str(), one.id.as_str());
        let source = source.as_str();
        let digest = if unsaid { Vec::new() } else { digest };
        batch.put_standing(&Standing { channel, source, id, digest: &digest, seq, time_ms, value, life })?;
    }
    Ok(())
}

/// What to note of a Secret at a device: as if the hub's content were there, so that an older one does not replace a newer.
/// `None` when the device holds what the hub sealed.
fn older_secret(
    batch: &mut Batch<'_>,
    one: &Learned,
    sealed: &[u8],
    plain: &Value,
    report: &mut Report,
) -> Result<Option<Vec<u8>>, ApiError> {
    if batch.standing_value(&one.channel, &one.id)?.as_deref() == Some(sealed) {
        return Ok(None);
    }
    let node = one.channel.strip_prefix("device/").unwrap_or_default();
    let Some(device) = batch.device(node)? else { return Ok(None) };
    let mut covered = digest::of_value(plain).to_vec();
    covered.extend(device.sealing.0);
    let uid = one.id.strip_prefix("secret/").unwrap_or_default();
    if let Some(key) = batch.index().by_uid(uid).map(|secret| secret.key()) {
        note(&mut report.secrets, format!("{key} (held by {node})"));
        batch.update(&key, |secret| {
            if secret.annotation(SECRET_ANNOTATION).is_none() {
                let why =
                    "devices hold a newer content than this hub, which was restored from a backup; apply it again";
                secret.set_annotation(SECRET_ANNOTATION, why);
            }
        })?;
    }
    Ok(Some(covered))
}

fn is_document(id: &str) -> bool {
    !id.contains('/')
}

fn note(list: &mut Vec<String>, what: String) {
    if list.len() < NAMED_MAX {
        list.push(what);
    }
}
