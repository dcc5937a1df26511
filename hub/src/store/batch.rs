//! What a write may do: the view of the store inside the writer's transaction.
//!
//! A [`Batch`] sees its own uncommitted changes and those of the jobs before it in the same transaction. Each job runs in a
//! savepoint; a failing job leaves nothing behind, in the database or in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_sync::channel::ChannelName;
use flotilla_sync::record::Draft;
use rusqlite::{Transaction, params};

use super::history::{Change, Event};
use super::index::{Index, RolloutState};
use super::writer::{Moved, Working};
use super::{StoreError, schema};
use crate::mint;
use crate::publish::RolloutsTouched;

/// One way back to the state before a job.
#[derive(Debug)]
pub(super) enum Undo {
    Object(ObjectKey, Option<Arc<Object>>),
    Rollout(String, RolloutState),
    /// Workload, number, and its threshold before.
    Threshold(String, String, Option<u64>),
    /// Workload, node, and its grant before.
    Grant(String, String, Option<String>),
}

/// The store as one job sees and changes it.
pub struct Batch<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    pub(super) working: &'a mut Working,
    pub(super) now: Timestamp,
    /// Events of this job, in order.
    pub(super) events: Vec<Event>,
    pub(super) undo: Vec<Undo>,
    /// Workloads whose thresholds or grants this job changed.
    pub(super) rollouts_touched: RolloutsTouched,
    /// Records this job adds to channels.
    pub(super) drafts: BTreeMap<ChannelName, Vec<Draft>>,
    /// Nodes whose Secrets are to be sealed to another key.
    pub(super) resealed: BTreeSet<String>,
    /// Logs of others that this job made longer.
    pub(super) moved: Vec<Moved>,
    /// Who is behind this job: the author of its records.
    pub(super) author: String,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("now", &self.now)
            .field("events", &self.events.len())
            .finish_non_exhaustive()
    }
}

impl Batch<'_> {
    pub(super) fn on<'b>(transaction: &'b Transaction<'b>, working: &'b mut Working, now: Timestamp) -> Batch<'b> {
        Batch {
            transaction,
            working,
            now,
            events: Vec::new(),
            undo: Vec::new(),
            rollouts_touched: RolloutsTouched::default(),
            drafts: BTreeMap::new(),
            resealed: BTreeSet::new(),
            moved: Vec::new(),
            author: String::new(),
        }
    }

    /// Names who is behind this job.
    pub fn set_author(&mut self, author: &str) {
        author.clone_into(&mut self.author);
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Which life of the database this is.
    pub fn incarnation(&self) -> u64 {
        self.working.incarnation
    }

    /// Current objects, this job's own changes included.
    pub fn index(&self) -> &Index {
        &self.working.index
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.working.index.get(key).cloned()
    }

    /// Stores a new object: uid (when empty), creationTimestamp and generation are set here.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the key is taken.
    pub fn create(&mut self, mut object: Object) -> Result<Arc<Object>, StoreError> {
        let key = object.key();
        if self.working.index.get(&key).is_some() {
            return Err(StoreError::Exists(key));
        }
        let now = self.now;
        if object.uid().is_empty() {
            let uid = mint::uid().map_err(|_| StoreError::NoRandomness)?;
            object.metadata_mut().insert("uid".into(), uid.into());
        }
        let has_spec = object.spec().is_some();
        let metadata = object.metadata_mut();
        metadata.entry("creationTimestamp").or_insert_with(|| now.to_rfc3339().into());
        if has_spec {
            metadata.entry("generation").or_insert_with(|| 1.into());
        }
        self.store(key, object, None)
    }

    /// Changes an object in place; raises its generation when the spec changed. A change that changes nothing writes nothing.
    /// An object that does not exist is left alone: `None`.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn update(
        &mut self,
        key: &ObjectKey,
        edit: impl FnOnce(&mut Object),
    ) -> Result<Option<Arc<Object>>, StoreError> {
        let Some(current) = self.get(key) else { return Ok(None) };
        let mut object = (*current).clone();
        edit(&mut object);
        if object.spec() != current.spec() && object.generation() == current.generation() {
            object.metadata_mut().insert("generation".into(), (current.generation() + 1).into());
        }
        self.replace(&current, object).map(Some)
    }

    /// Stores `object` in the place of `current`, as it is.
    pub(crate) fn replace(&mut self, current: &Arc<Object>, mut object: Object) -> Result<Arc<Object>, StoreError> {
        let key = current.key();
        if object.key() != key {
            return Err(StoreError::Renamed { from: key, to: object.key() });
        }
        object.set_resource_version(current.resource_version());
        if object == **current {
            return Ok(Arc::clone(current));
        }
        self.store(key, object, Some(Arc::clone(current)))
    }

    /// Removes an object at once, whatever its finalizers say; answers what it was.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn remove(&mut self, key: &ObjectKey) -> Result<Option<Arc<Object>>, StoreError> {
        let Some(current) = self.get(key) else { return Ok(None) };
        let version = self.take_version();
        let mut last = (*current).clone();
        last.set_resource_version(version);
        let body = encode(&current);
        self.transaction
            .prepare_cached("DELETE FROM object WHERE api_group = ?1 AND kind = ?2 AND namespace = ?3 AND name = ?4")?
            .execute(params![key.kind.group, key.kind.name, key.namespace, key.name])?;
        let last = Arc::new(last);
        self.record(version, Change::Deleted, key, Arc::clone(&last), Some(current), Some(&body))?;
        let previous = self.working.index.set(key, None);
        self.undo.push(Undo::Object(key.clone(), previous));
        self.revert_overrides_of(&last)?;
        Ok(Some(last))
    }

    /// Overrides end with their base: their devices are told.
    fn revert_overrides_of(&mut self, base: &Object) -> Result<(), StoreError> {
        if base.kind() == &kind::EVENT {
            // The base of none, and they go by the thousand.
            return Ok(());
        }
        let stands = |object: &&Arc<Object>| {
            object.text("/spec/target/uid") == base.uid() && object.deletion_timestamp().is_none()
        };
        let overrides: Vec<ObjectKey> =
            self.working.index.list(&kind::OVERRIDE, None).filter(stands).map(|object| object.key()).collect();
        let now = self.now.to_rfc3339();
        for key in overrides {
            self.update(&key, |object| {
                object.metadata_mut().insert("deletionTimestamp".into(), now.as_str().into());
            })?;
        }
        Ok(())
    }

    /// Sets (or with `None` ends) the threshold of one number of a workload.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_threshold(
        &mut self,
        workload_uid: &str,
        number: &str,
        threshold: Option<u64>,
    ) -> Result<(), StoreError> {
        let previous = self.working.index.set_threshold(workload_uid, number, threshold);
        if previous == threshold {
            return Ok(());
        }
        self.undo.push(Undo::Threshold(workload_uid.to_owned(), number.to_owned(), previous));
        match threshold {
            Some(threshold) => self
                .transaction
                .prepare_cached("INSERT OR REPLACE INTO threshold (workload, number, threshold) VALUES (?1, ?2, ?3)")?
                .execute(params![workload_uid, number, threshold.cast_signed()])?,
            None => self
                .transaction
                .prepare_cached("DELETE FROM threshold WHERE workload = ?1 AND number = ?2")?
                .execute(params![workload_uid, number])?,
        };
        self.touch_rollout(workload_uid);
        Ok(())
    }

    /// Lets one node move to a number, or (with `None`) takes its grant away.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn set_grant(&mut self, workload_uid: &str, node: &str, number: Option<&str>) -> Result<(), StoreError> {
        let previous = self.working.index.set_grant(workload_uid, node, number);
        if previous.as_deref() == number {
            return Ok(());
        }
        self.undo.push(Undo::Grant(workload_uid.to_owned(), node.to_owned(), previous));
        self.rollouts_touched.grants.insert((workload_uid.to_owned(), node.to_owned()));
        match number {
            Some(number) => self
                .transaction
                .prepare_cached("INSERT OR REPLACE INTO granted (workload, node, number) VALUES (?1, ?2, ?3)")?
                .execute(params![workload_uid, node, number])?,
            None => self
                .transaction
                .prepare_cached("DELETE FROM granted WHERE workload = ?1 AND node = ?2")?
                .execute(params![workload_uid, node])?,
        };
        self.touch_rollout(workload_uid);
        Ok(())
    }

    /// Forgets thresholds and grants of a workload that is gone.
    ///
    /// # Errors
    /// When the database refuses.
    pub fn forget_rollout(&mut self, workload_uid: &str) -> Result<(), StoreError> {
        let Some(state) = self.working.index.rollout_at(workload_uid) else { return Ok(()) };
        let granted = state.grants.keys().map(|node| (workload_uid.to_owned(), node.clone()));
        self.rollouts_touched.grants.extend(granted);
        self.transaction.prepare_cached("DELETE FROM threshold WHERE workload = ?1")?.execute([workload_uid])?;
        self.transaction.prepare_cached("DELETE FROM granted WHERE workload = ?1")?.execute([workload_uid])?;
        let previous = self.working.index.set_rollout(workload_uid, RolloutState::default());
        self.undo.push(Undo::Rollout(workload_uid.to_owned(), previous));
        self.touch_rollout(workload_uid);
        Ok(())
    }

    fn touch_rollout(&mut self, workload_uid: &str) {
        self.rollouts_touched.workloads.insert(workload_uid.to_owned());
        self.working.rollouts_touched.insert(workload_uid.to_owned());
    }

    fn take_version(&mut self) -> u64 {
        self.working.version += 1;
        self.working.version
    }

    fn store(
        &mut self,
        key: ObjectKey,
        mut object: Object,
        previous: Option<Arc<Object>>,
    ) -> Result<Arc<Object>, StoreError> {
        let version = self.take_version();
        object.set_resource_version(version);
        let body = encode(&object);
        self.transaction
            .prepare_cached(
                "INSERT INTO object (api_group, kind, namespace, name, version, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET version = excluded.version, body = excluded.body",
            )?
            .execute(params![key.kind.group, key.kind.name, key.namespace, key.name, version.cast_signed(), body])?;
        let object = Arc::new(object);
        let change = if previous.is_some() { Change::Modified } else { Change::Added };
        let old_body = previous.as_deref().map(encode);
        self.record(version, change, &key, Arc::clone(&object), previous, old_body.as_deref())?;
        let undone = self.working.index.set(&key, Some(Arc::clone(&object)));
        self.undo.push(Undo::Object(key, undone));
        Ok(object)
    }

    fn record(
        &mut self,
        version: u64,
        change: Change,
        key: &ObjectKey,
        object: Arc<Object>,
        previous: Option<Arc<Object>>,
        body: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "INSERT INTO event (version, change, api_group, kind, namespace, name, time, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                version.cast_signed(),
                change.code(),
                key.kind.group,
                key.kind.name,
                key.namespace,
                key.name,
                self.now.0.cast_signed(),
                body
            ])?;
        let bytes = super::history::memory_bytes(body.map_or(0, <[u8]>::len));
        self.events.push(Event { version, change, key: key.clone(), object, previous, time: self.now, bytes });
        Ok(())
    }

    pub(super) fn set_aside(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut statement = self.transaction.prepare("SELECT place, why FROM set_aside ORDER BY id LIMIT 1000")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One number of the `meta` table, raised by one: device incarnations, writer generations.
    pub(crate) fn next_number(&mut self, name: &str) -> Result<u64, StoreError> {
        let next = schema::meta(self.transaction, name)?.unwrap_or(0) + 1;
        schema::set_meta(self.transaction, name, next)?;
        Ok(next.cast_unsigned())
    }
}

pub(super) fn encode(object: &Object) -> Vec<u8> {
    object.value().to_string().into_bytes()
}
