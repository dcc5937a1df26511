//! Reading the database at a start: fold the tables into memory, set unreadable rows aside.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use rusqlite::{Connection, Row, Transaction, params};

use super::history::{Change, History, Kept, Row as EventRow};
use super::index::Index;
use super::{StoreError, damage, schema};
use crate::config::Retention;

/// Bits of a resource version below the incarnation.
pub(super) const SEQ_BITS: u32 = 40;

pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) history: History,
    pub(super) version: u64,
    pub(super) incarnation: u64,
}

pub(super) fn load(connection: &mut Connection, retention: &Retention, now: Timestamp) -> Result<Loaded, StoreError> {
    let transaction = connection.transaction()?;
    let incarnation = incarnation(&transaction)?;
    let mut index = Index::default();
    load_objects(&transaction, &mut index, now)?;
    load_rollouts(&transaction, &mut index)?;
    damage::heal_device_items(&transaction, now)?;
    let first = incarnation << SEQ_BITS;
    let version = schema::meta(&transaction, "version")?.map_or(first, i64::cast_unsigned).max(first);
    let mut history = load_history(&transaction, &index, version)?;
    history.trim(retention, now);
    transaction.commit()?;
    Ok(Loaded { index, history, version, incarnation })
}

/// A second index over the same objects.
pub(super) fn copy(index: &Index) -> Index {
    let mut copy = Index::default();
    for object in index.objects() {
        copy.set(&object.key(), Some(Arc::clone(object)));
    }
    for (workload, state) in index.rollouts() {
        copy.set_rollout(workload, state.clone());
    }
    copy
}

/// The first number of `next_incarnation`, which devices draw from too, is this database's own.
fn incarnation(transaction: &Transaction<'_>) -> Result<u64, StoreError> {
    if let Some(own) = schema::meta(transaction, "incarnation")? {
        return Ok(own.cast_unsigned());
    }
    let own = schema::meta(transaction, "incarnations_issued")?.unwrap_or(0) + 1;
    schema::set_meta(transaction, "incarnations_issued", own)?;
    schema::set_meta(transaction, "incarnation", own)?;
    Ok(own.cast_unsigned())
}

fn load_objects(transaction: &Transaction<'_>, index: &mut Index, now: Timestamp) -> Result<(), StoreError> {
    let mut poison = Vec::new();
    let mut statement = transaction.prepare("SELECT api_group, kind, namespace, name, body FROM object")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (group, name): (String, String) = (row.get(0)?, row.get(1)?);
        let (namespace, object): (String, String) = (row.get(2)?, row.get(3)?);
        let body = row.get_ref(4)?.as_bytes().unwrap_or_default().to_vec();
        match decode(&body) {
            Ok(read) if read.name() == object && read.namespace() == namespace && read.kind().name == name => {
                index.set(&read.key(), Some(Arc::new(read)));
            }
            Ok(read) => poison.push((group, name, namespace, object, body, format!("the row holds {}", read.key()))),
            Err(why) => poison.push((group, name, namespace, object, body, why)),
        }
    }
    drop(rows);
    drop(statement);
    for (group, kind, namespace, name, body, why) in poison {
        let place = format!("object {group}/{kind} {namespace}/{name}");
        damage::set_row_aside(transaction, &place, &why, now, &body);
        transaction.execute(
            "DELETE FROM object WHERE api_group = ?1 AND kind = ?2 AND namespace = ?3 AND name = ?4",
            params![group, kind, namespace, name],
        )?;
    }
    Ok(())
}

fn load_rollouts(transaction: &Transaction<'_>, index: &mut Index) -> Result<(), StoreError> {
    let mut statement = transaction.prepare("SELECT workload, number, threshold FROM threshold")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (workload, number, threshold): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        index.set_threshold(&workload, &number, Some(threshold.cast_unsigned()));
    }
    let mut statement = transaction.prepare("SELECT workload, node, number FROM granted")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (workload, node, number): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        index.set_grant(&workload, &node, Some(&number));
    }
    Ok(())
}

/// Walks the events backwards: what an object became is what its next event found, or what it is now.
fn load_history(transaction: &Transaction<'_>, index: &Index, version: u64) -> Result<History, StoreError> {
    let mut statement = transaction.prepare(
        "SELECT version, change, api_group, kind, namespace, name, time, body FROM event ORDER BY version DESC",
    )?;
    let mut rows = statement.query([])?;
    let mut after: HashMap<ObjectKey, Kept> = HashMap::new();
    let mut events = Vec::new();
    let mut floor = version;
    while let Some(row) = rows.next()? {
        let Some(event) = read_event(row, index, &mut after)? else { break };
        floor = event.version - 1;
        events.push(event);
    }
    let mut history = History::starting_at(floor);
    events.into_iter().rev().for_each(|event| history.push(event));
    Ok(history)
}

/// `None` for an event that cannot be understood: history starts after it.
fn read_event(
    row: &Row<'_>,
    index: &Index,
    after: &mut HashMap<ObjectKey, Kept>,
) -> Result<Option<EventRow>, StoreError> {
    let version = row.get::<_, i64>(0)?.cast_unsigned();
    let (group, name): (String, String) = (row.get(2)?, row.get(3)?);
    let (Some(change), Some(kind)) = (Change::from_code(row.get(1)?), kind::find(&group, &name)) else {
        return Ok(None);
    };
    let key = ObjectKey::of(kind, row.get::<_, String>(4)?, row.get::<_, String>(5)?);
    let time = Timestamp(row.get::<_, i64>(6)?.cast_unsigned());
    let body: Option<Vec<u8>> = row.get(7)?;
    let previous = match body.as_deref().map(decode) {
        Some(Ok(object)) => Some(object),
        Some(Err(_)) => return Ok(None),
        None => None,
    };
    let object = match (change, previous) {
        (Change::Deleted, Some(mut last)) => {
            last.set_resource_version(version);
            Kept::Shared(Arc::new(last))
        }
        (Change::Deleted, None) => return Ok(None),
        _ => match (after.get(&key), index.get(&key)) {
            (Some(kept), _) => kept.clone(),
            (None, Some(object)) => Kept::Shared(Arc::clone(object)),
            (None, None) => return Ok(None),
        },
    };
    let previous = body.map(|json| Kept::Packed(json.into()));
    match &previous {
        Some(previous) => after.insert(key.clone(), previous.clone()),
        None => after.remove(&key),
    };
    let mut row = EventRow { version, change, key, object, previous, time, bytes: 0 };
    // Nobody reads along yet, and all of them at once are many.
    row.pack();
    Ok(Some(row))
}

fn decode(body: &[u8]) -> Result<Object, String> {
    let value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Object::parse(value).map_err(|error| error.to_string())
}
