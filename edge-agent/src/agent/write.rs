//! Writes at the local API: decide, make durable, answer.

use std::collections::BTreeMap;

use flotilla_manifests::admission::{Context, Outcome};
use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::derive::uuid_v8;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::overrides::Revision;
use flotilla_rest::backend::{DryRun, WriteRequest, Written};
use flotilla_sync::record::{Draft, RECORD_BODY_BYTES_MAX};

use super::{Agent, override_item};
use crate::backend::WriteCommand;
use crate::local_write::{self, Decision, Kept, Subject};
use crate::runtime::Runtime;
use crate::uplink::{Link, random};

impl<R: Runtime> Agent<R> {
    /// Decides a write, makes it durable, brings the view up to date, and answers.
    pub(super) async fn answer(&mut self, command: WriteCommand) {
        let result = self.write(&command.request).await;
        // The caller may have gone away; what is durable stays.
        drop(command.reply.send(result));
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<Written, ApiError> {
        let shown = self.shared.view().object(&request.key);
        let base = self.base_of(&request.key, shown.as_deref());
        let subject =
            Subject { shown: shown.as_deref(), base: base.as_ref(), records: &self.state.meant.read.known.overrides };
        let context = Context {
            now: self.clock.now(),
            uid: fresh_uuid(),
            name_suffix: fresh_uuid()[..5].to_owned(),
            field_validation: request.field_validation,
        };
        let id = fresh_uuid();
        let decided =
            local_write::decide(&request.key, &subject, &request.mutation, &context, &id, &request.user.name)?;
        let (decision, mut warnings) = decided;
        if request.dry_run == DryRun::All {
            return Ok(Written { outcome: self.outcome_of(decision), warnings });
        }
        let changes = !matches!(decision, Decision::Nothing(_));
        if changes {
            self.state.meant.forget();
        }
        self.carry_out(&decision, &request.user.name).await?;
        if changes && *self.inbox.link.borrow() == Link::Down {
            warnings.push(format!("accepted at {} only; not yet synced to the hub", self.node.name));
        }
        if changes && let Err(error) = self.pass().await {
            tracing::error!(error = %crate::enrolment::chain(&error), "a pass after a local change failed; it is tried again");
        }
        let mut outcome = self.outcome_of(decision);
        if let Outcome::Created(object) | Outcome::Updated(object) | Outcome::Unchanged(object) = &mut outcome {
            // What is shown now carries the version that watchers will see.
            if let Some(now) = self.shared.view().object(&request.key) {
                *object = (*now).clone();
            }
        }
        Ok(Written { outcome, warnings })
    }

    /// The hub's manifest behind a key; a Pod's is what it is derived as here.
    fn base_of(&self, key: &ObjectKey, shown: Option<&Object>) -> Option<Object> {
        match key.kind.name {
            "Pod" => self.state.meant.base(key).map(|base| Object::clone(&base.object)).or_else(|| {
                let mut pod = shown?.clone();
                if let Some(map) = pod.value_mut().as_object_mut() {
                    map.remove("status");
                }
                Some(pod)
            }),
            _ => self.state.meant.base(key).map(|base| Object::clone(&base.object)),
        }
    }

    async fn carry_out(&mut self, decision: &Decision, author: &str) -> Result<(), ApiError> {
        let now = self.clock.now().0;
        let drafts = match decision {
            Decision::Nothing(_) => return Ok(()),
            Decision::Restart { pod } => return self.restart(pod).await,
            Decision::EndOverride { id, .. } => {
                override_item(id).map(|item| Draft::remove(item, author, now)).into_iter().collect()
            }
            Decision::Revise { revision, outcome, kept } => {
                let drafts = drafts_of(revision, author, now)?;
                self.keep(outcome, kept).await?;
                drafts
            }
        };
        if drafts.is_empty() {
            return Ok(());
        }
        self.replica.append(drafts).await.map_err(|error| not_durable(&error))
    }

    /// Raises the attempt, durably, and lets the next pass begin the new life.
    async fn restart(&mut self, pod: &Object) -> Result<(), ApiError> {
        let Some(origin) = self.state.meant.effective.origins.get(pod.uid()) else { return Ok(()) };
        let counter = if origin.placed { &origin.subject } else { &origin.workload };
        let mut memory = self.memory.clone();
        memory.attempts.insert(counter.clone(), origin.attempt + 1);
        let bytes = serde_json::to_vec(&memory).map_err(|error| not_durable(&error))?;
        self.store.set_meta("memory", bytes).await.map_err(|error| not_durable(&error))?;
        self.memory = memory;
        self.state.renewed.push(pod.key());
        Ok(())
    }

    /// Keeps annotations on this device, and forgets those of objects that are gone.
    async fn keep(&mut self, outcome: &Outcome, kept: &Kept) -> Result<(), ApiError> {
        let (Outcome::Created(object) | Outcome::Updated(object)) = outcome else { return Ok(()) };
        let next = |mut all: BTreeMap<String, String>, text: &Option<String>| {
            all.retain(|uid, _| self.state.meant.read.known.manifests.values().any(|base| base.object.uid() == uid));
            match text {
                Some(text) => drop(all.insert(object.uid().to_owned(), text.clone())),
                None => drop(all.remove(object.uid())),
            }
            all
        };
        let last_applied = next(self.last_applied.clone(), &kept.last_applied);
        let causes = next(self.causes.clone(), &kept.cause);
        if last_applied != self.last_applied {
            self.store_kept("last-applied", &last_applied).await?;
            self.last_applied = last_applied;
        }
        if causes != self.causes {
            self.store_kept("change-cause", &causes).await?;
            self.causes = causes;
        }
        Ok(())
    }

    async fn store_kept(&self, name: &'static str, texts: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(texts).map_err(|error| not_durable(&error))?;
        self.store.set_meta(name, bytes).await.map_err(|error| not_durable(&error))
    }

    fn outcome_of(&self, decision: Decision) -> Outcome {
        match decision {
            Decision::Nothing(outcome) | Decision::Revise { outcome, .. } => *outcome,
            Decision::Restart { pod } => Outcome::Removed(*pod),
            Decision::EndOverride { removed, .. } => Outcome::Removed(*removed),
        }
    }
}

/// The records of one change: its own, those it shortened, those it ended. One batch: all or nothing.
fn drafts_of(revision: &Revision, author: &str, now_ms: u64) -> Result<Vec<Draft>, ApiError> {
    let mut drafts = Vec::new();
    let mut bytes = 0;
    for record in revision.created.iter().chain(&revision.rewritten) {
        let value = serde_json::to_vec(record).map_err(|error| not_durable(&error))?;
        bytes += value.len();
        drafts.extend(override_item(&record.id).map(|item| Draft::register(item, value, &record.author, now_ms)));
    }
    if bytes > RECORD_BODY_BYTES_MAX {
        let max = RECORD_BODY_BYTES_MAX / 1024;
        let why = format!(
            "the change has {bytes} bytes, at most {max} KiB can be changed at a device at once; change it at the hub"
        );
        return Err(ApiError::of(Reason::RequestEntityTooLarge, why));
    }
    let ended = revision.ended.iter().filter_map(|id| override_item(id));
    drafts.extend(ended.map(|item| Draft::remove(item, author, now_ms)));
    Ok(drafts)
}

fn not_durable(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let why = crate::enrolment::chain(error);
    ApiError::of(
        Reason::InternalError,
        format!("the change could not be stored on this device and has no effect: {why}"),
    )
}

/// A version 8 UUID (RFC 9562) of random bits.
fn fresh_uuid() -> String {
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random().to_be_bytes());
    }
    uuid_v8(&bytes)
}
