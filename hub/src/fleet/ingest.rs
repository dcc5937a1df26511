//! What a device wrote into its own log: folded into its items, and its overrides shown as objects.

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::{self, OverrideRecord};
use flotilla_sync::channel::{Applied, ChannelName, Item, ItemId, ItemKind};
use flotilla_sync::identity::NodeName;
use flotilla_sync::identity::writer::{WriterChain, WriterSubject};
use flotilla_sync::list::VerifiedSnapshot;
use flotilla_sync::log::{Placement, VerifiedBatch};
use flotilla_sync::record::RecordKind;
use flotilla_sync::replica::{Ingested, Input};

use super::observe;
use crate::learn;
use crate::store::Batch;
use crate::store::learned::Line;

/// Overrides one device may have standing at the hub.
const OVERRIDES_MAX: usize = 1024;
/// Items of one device's own channel kept here, removed ones included, and their bytes.
const ITEMS_MAX: usize = 2048;
const ITEMS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Takes inputs of one device into effect, in order.
pub(super) fn ingest(batch: &mut Batch<'_>, node: &NodeName, inputs: Vec<Input>) -> Result<Ingested, ApiError> {
    let mut ingested = Ingested::default();
    let (mut learned, mut shown) = (false, false);
    batch.set_author(&format!("device:{node}"));
    for input in inputs {
        let writer = match &input {
            Input::Writer(chain) => {
                introduce(batch, node, chain)?;
                continue;
            }
            Input::Batch(verified) | Input::Branch(verified) => verified.batch().writer,
            Input::Snapshot(verified) => verified.snapshot().list.writer,
        };
        match batch.is_hub_writer(&writer)? {
            Some(false) => {}
            // A hub's own words from an earlier life, which its database has lost.
            Some(true) => {
                learned |= take_lesson(batch, node, &input, &mut ingested)?;
                continue;
            }
            None => {
                return Err(ApiError::of(Reason::Conflict, format!("writer {writer} of device {node} is not known")));
            }
        }
        match input {
            Input::Writer(_) => {}
            Input::Batch(verified) => shown |= take_batch(batch, node, &verified, &mut ingested)?,
            Input::Branch(verified) => shown |= take_branch(batch, node, &verified, &mut ingested)?,
            Input::Snapshot(verified) => shown |= take_snapshot(batch, node, &verified, &mut ingested)?,
        }
    }
    if shown {
        // Once for all of them: it looks at every override of the device for each of its Pods.
        observe::refresh_specs(batch, node)?;
    }
    if learned {
        learn::take_late(batch)?;
    }
    Ok(ingested)
}

/// A hub's writer, or one of the device itself.
fn introduce(batch: &mut Batch<'_>, node: &NodeName, chain: &WriterChain) -> Result<(), ApiError> {
    let own = match &chain.subject {
        WriterSubject::Hub => true,
        WriterSubject::Device(of) => of == node,
    };
    if own && batch.put_writer(chain)? {
        return Ok(());
    }
    let message = format!("device {node} introduces writer {}, which is another's", chain.id);
    Err(ApiError::of(Reason::Forbidden, message))
}

/// What an earlier life of the hub said, given back by a device; `false` if it is known. The hub's present writer is nobody's to quote.
fn take_lesson(
    batch: &mut Batch<'_>,
    node: &NodeName,
    input: &Input,
    ingested: &mut Ingested,
) -> Result<bool, ApiError> {
    let (writer, channel, life) = match input {
        Input::Batch(verified) | Input::Branch(verified) => {
            (verified.batch().writer, &verified.batch().channel, verified.incarnation())
        }
        Input::Snapshot(verified) => {
            let list = &verified.snapshot().list;
            (list.writer, &list.channel, verified.incarnation())
        }
        Input::Writer(_) => return Ok(false),
    };
    if batch.is_present_writer(&writer)? {
        tracing::warn!(%node, %channel, %writer, "a device quotes the hub's present writer; it is not taken in");
        return Ok(false);
    }
    batch.know_life(life, &writer)?;
    match input {
        Input::Batch(verified) => match verified.place(Some(batch.device_head(channel, &writer)?)) {
            Placement::Next => {
                batch.learn(verified, Line::Kept, &mut ingested.set_aside)?;
                batch.keep_hub_batch(verified)?;
                ingested.applied += verified.records().len();
            }
            Placement::Duplicate => return Ok(false),
            other => {
                let message =
                    format!("what device {node} gives of log {writer} does not follow what is here: {other:?}");
                return Err(ApiError::of(Reason::Conflict, message));
            }
        },
        // Branches and lists that say nothing new are nobody's to repeat: what was deleted since would come back.
        Input::Branch(verified) => match batch.new_branch(verified)? {
            Some(line) => batch.learn(verified, line, &mut ingested.set_aside)?,
            None => return Ok(false),
        },
        Input::Snapshot(verified) => match batch.new_list(verified)? {
            Some(line) => {
                batch.learn_list(verified, line, &mut ingested.set_aside)?;
                ingested.applied += verified.snapshot().states.len();
            }
            None => return Ok(false),
        },
        Input::Writer(_) => {}
    }
    Ok(true)
}

/// Records of another branch of a forked log take effect and move no head.
fn take_branch(
    batch: &mut Batch<'_>,
    node: &NodeName,
    verified: &VerifiedBatch,
    ingested: &mut Ingested,
) -> Result<bool, ApiError> {
    let channel = &verified.batch().channel;
    if *channel != ChannelName::Device(node.clone()) {
        ingested.set_aside.push(format!("a branch of the forked log {} in {channel}", verified.batch().writer));
        return Ok(false);
    }
    take_records(batch, node, verified, ingested)
}

fn take_batch(
    batch: &mut Batch<'_>,
    node: &NodeName,
    verified: &VerifiedBatch,
    ingested: &mut Ingested,
) -> Result<bool, ApiError> {
    let log = verified.batch();
    let own = ChannelName::Device(node.clone());
    let here = batch.device_head(&log.channel, &log.writer)?;
    if log.channel != own {
        return Err(not_its_own(node, &log.channel));
    }
    match verified.place(Some(here)) {
        Placement::Next => {}
        Placement::Duplicate => return Ok(false),
        other => {
            let message = format!("the log of device {node} does not follow what is here: {other:?}");
            return Err(ApiError::of(Reason::Conflict, message));
        }
    }
    let shown = take_records(batch, node, verified, ingested)?;
    batch.put_device_batch(verified)?;
    Ok(shown)
}

fn take_records(
    batch: &mut Batch<'_>,
    node: &NodeName,
    verified: &VerifiedBatch,
    ingested: &mut Ingested,
) -> Result<bool, ApiError> {
    let own = ChannelName::Device(node.clone());
    let (mut items, mut bytes) = batch.device_items_size(&own)?;
    let mut shown = false;
    for record in verified.records() {
        let id = &record.draft.item;
        let current = batch.device_item(&own, id)?;
        let content = record.draft.body.inline().map_or(0, |body| body.len());
        let (items_then, bytes_then) = (items + usize::from(current.is_none()), bytes + content);
        let ends = current.is_some() && record.draft.kind == RecordKind::Remove;
        if !ends && (items_then > ITEMS_MAX || bytes_then > ITEMS_BYTES_MAX) {
            ingested.set_aside.push(too_much(node, id));
            continue;
        }
        (items, bytes) = (items_then, bytes_then);
        match Item::apply(current.as_ref(), record, verified.incarnation()) {
            Ok(Applied::Changed(item)) => {
                batch.put_device_item(&own, id, &item)?;
                shown |= show(batch, node, id, &item)?;
                ingested.applied += 1;
            }
            Ok(Applied::Waiting(item)) => batch.put_device_item(&own, id, &item)?,
            Ok(Applied::Unchanged) => {}
            Err(error) => {
                tracing::warn!(%node, item = %id, seq = record.seq, %error, "a device's record is set aside");
                ingested.set_aside.push(error.to_string());
            }
        }
    }
    if verified.records().iter().any(|record| record.draft.kind == RecordKind::Remove) {
        batch.prune_removed_items(&own)?;
    }
    Ok(shown)
}

fn take_snapshot(
    batch: &mut Batch<'_>,
    node: &NodeName,
    verified: &VerifiedSnapshot,
    ingested: &mut Ingested,
) -> Result<bool, ApiError> {
    let snapshot = verified.snapshot();
    let own = ChannelName::Device(node.clone());
    if snapshot.list.channel != own {
        return Err(not_its_own(node, &snapshot.list.channel));
    }
    let mut shown = false;
    let (mut items, mut bytes) = batch.device_items_size(&own)?;
    for (entry, state) in snapshot.list.items.iter().zip(&snapshot.states) {
        let current = batch.device_item(&own, &entry.item)?;
        let (items_then, bytes_then) = (items + usize::from(current.is_none()), bytes + state.len());
        if items_then > ITEMS_MAX || bytes_then > ITEMS_BYTES_MAX {
            ingested.set_aside.push(too_much(node, &entry.item));
            continue;
        }
        (items, bytes) = (items_then, bytes_then);
        let adopted = Item::decode(state).and_then(|state| Item::adopt(current.as_ref(), &entry.item, state));
        match adopted {
            Ok(Applied::Changed(item) | Applied::Waiting(item)) => {
                batch.put_device_item(&own, &entry.item, &item)?;
                shown |= show(batch, node, &entry.item, &item)?;
                ingested.applied += 1;
            }
            Ok(Applied::Unchanged) => {}
            Err(error) => ingested.set_aside.push(error.to_string()),
        }
    }
    let mut covers = verified.covers();
    // A device says nothing for others, nor for lives of which it has no more than the names: each would be a row for ever.
    covers.retain(|writer, _| *writer == snapshot.list.writer);
    for (id, mut item) in batch.device_items(&own)? {
        let listed = snapshot.list.items.iter().any(|entry| entry.item == id);
        let ItemKind::Register(register) = &item.kind else { continue };
        if !listed && item.is_covered(&covers) {
            item.kind = ItemKind::Removed(register.version);
            batch.put_device_item(&own, &id, &item)?;
            shown |= show(batch, node, &id, &item)?;
            ingested.applied += 1;
        }
    }
    batch.prune_removed_items(&own)?;
    for (writer, head) in &covers {
        if batch.device_head(&own, writer)?.seq < head.seq {
            batch.put_device_head(&own, *writer, *head)?;
        }
    }
    Ok(shown)
}

fn too_much(node: &NodeName, id: &ItemId) -> String {
    format!("item {id}: device {node} keeps more than the hub takes")
}

fn not_its_own(node: &NodeName, channel: &ChannelName) -> ApiError {
    ApiError::of(Reason::Forbidden, format!("device {node} may not write in channel {channel}"))
}

/// Brings the Override object of an item up to date. Answers whether it is an override, which the specs of Pods follow.
fn show(batch: &mut Batch<'_>, node: &NodeName, id: &ItemId, item: &Item) -> Result<bool, ApiError> {
    let Some(override_id) = id.as_str().strip_prefix("override/") else { return Ok(false) };
    let name = format!("{node}.{override_id}");
    let shown: Vec<ObjectKey> = batch
        .index()
        .list(&kind::OVERRIDE, None)
        .filter(|object| object.name() == name)
        .map(|object| object.key())
        .collect();
    let ItemKind::Register(register) = &item.kind else {
        for key in shown {
            batch.remove(&key)?;
        }
        return Ok(true);
    };
    let record: OverrideRecord = match serde_json::from_slice(&register.value) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(%node, item = %id, %error, "an override cannot be read; it is not shown");
            return Ok(false);
        }
    };
    let of_node = |object: &&std::sync::Arc<Object>| object.text("/spec/nodeName") == node.as_str();
    if shown.is_empty() && batch.index().list(&kind::OVERRIDE, None).filter(of_node).count() >= OVERRIDES_MAX {
        tracing::warn!(%node, item = %id, "the device has more than {OVERRIDES_MAX} overrides; this one is not shown");
        return Ok(false);
    }
    let object = overrides::object_of(&record, node.as_str());
    let key = object.key();
    for other in shown.into_iter().filter(|other| *other != key) {
        batch.remove(&other)?;
    }
    match batch.get(&key) {
        Some(_) => {
            let spec = object.spec().cloned().unwrap_or_default();
            batch.update(&key, |current| current.value_mut()["spec"] = spec)?;
        }
        None => {
            batch.create(object)?;
        }
    }
    Ok(true)
}
