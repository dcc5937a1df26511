//! Changes made to an epoch that a document has left: replayed on the epoch in force, field by field, as edits by their authors,
//! and shown as Events of the object.
//!
//! They arise when two hubs edited without knowing of each other: a hub restored from a backup goes on in the epoch of the backup,
//! while the hub before it had begun the next. What a change said is read against what it was made on; a field whose place is gone is
//! named. Start at [`replay`].

use std::sync::Arc;

use flotilla_manifests::admission::Outcome;
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::object::Object;
use flotilla_manifests::rollout;
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::Written;
use flotilla_sync::channel::{Item, ItemKind};
use flotilla_sync::document::{Document, DocumentError, LateChange};

use crate::admission::{self, Decision};
use crate::controllers::events::Note;
use crate::store::Batch;

const SOURCE: &str = "flotilla-hub";
/// Fields named in one Event.
const FIELDS_SHOWN_MAX: usize = 16;

/// A document that is not the one in force: its epoch and saved state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OtherState<'a> {
    pub(crate) epoch: u64,
    pub(crate) saved: &'a [u8],
}

/// What came of it, for a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// One line for each change that was taken over.
    pub(crate) changes: Vec<String>,
    /// One line for each state whose changes could not be told from what is there.
    pub(crate) unclear: Vec<String>,
}

/// Takes what `others` know of the object `uid`, whose document in force is `saved`, and it does not, into the object. Again the
/// same: no effect.
///
/// # Errors
/// When the database fails, or the object would be refused.
pub(crate) fn replay(
    batch: &mut Batch<'_>,
    uid: &str,
    saved: &[u8],
    others: &[OtherState<'_>],
) -> Result<Replayed, ApiError> {
    let mut replayed = Replayed::default();
    let Some(object) = batch.index().by_uid(uid).cloned() else { return Ok(replayed) };
    let Ok(mut document) = Document::load(saved) else { return Ok(replayed) };
    let epoch = document.epoch();
    for other in others.iter().filter(|other| other.epoch < epoch) {
        match late_changes(batch, uid, &document, other, others) {
            Ok(Some(late)) => {
                for change in late {
                    one(batch, &object, &mut document, &change, &mut replayed)?;
                }
            }
            Ok(None) => {
                let why = format!(
                    "{}: what was changed in epoch {} cannot be told from epoch {epoch}",
                    object.key(),
                    other.epoch
                );
                tracing::warn!(object = %object.key(), epoch = other.epoch, "changes of an old epoch cannot be told apart");
                replayed.unclear.push(why);
            }
            Err(error) => {
                tracing::warn!(object = %object.key(), epoch = other.epoch, %error, "an old epoch of a document cannot be read");
                replayed.unclear.push(format!("{}: {error}", object.key()));
            }
        }
    }
    Ok(replayed)
}

/// Which states of older epochs may hold what the newest does not: those that a writer touched of whom the newest knows nothing.
pub(crate) fn strangers<'a>(items: &[&'a Item], epoch: u64) -> Vec<OtherState<'a>> {
    let document = |item: &&'a Item| match &item.kind {
        ItemKind::Document(document) => Some((document, &item.touched)),
        ItemKind::Absent | ItemKind::Register(_) | ItemKind::Removed(_) => None,
    };
    let (newest, older): (Vec<_>, Vec<_>) =
        items.iter().filter_map(document).partition(|(document, _)| document.epoch == epoch);
    let known = |writer| newest.iter().any(|(_, touched)| touched.contains_key(writer));
    older
        .into_iter()
        .filter(|(_, touched)| !touched.keys().all(known))
        .map(|(document, _)| OtherState { epoch: document.epoch, saved: &document.saved })
        .collect()
}

/// The changes of an old epoch after it was cut; `None` if nobody knows where that was.
fn late_changes(
    batch: &Batch<'_>,
    uid: &str,
    document: &Document,
    other: &OtherState<'_>,
    all: &[OtherState<'_>],
) -> Result<Option<Vec<LateChange>>, DocumentError> {
    let past = batch.past_epoch(uid, other.epoch).ok().flatten();
    let cut = match &past {
        Some(past) => past.heads.clone(),
        None if other.epoch + 1 == document.epoch() => document.follows(),
        None => return Ok(None),
    };
    let mut old = Document::load(other.saved)?;
    // Whoever knows more of that epoch helps to tell what was there before the cut.
    let helpers = all.iter().filter(|one| one.epoch == other.epoch).map(|one| one.saved.to_vec());
    for helper in helpers.chain(past.and_then(|past| past.state)) {
        if old.knows(&cut) {
            break;
        }
        let mut helper = Document::load(&helper)?;
        if old.merge(&mut helper).is_err() {
            old = Document::load(other.saved)?;
        }
    }
    if cut.is_empty() || !old.knows(&cut) { Ok(None) } else { old.late_changes(&cut).map(Some) }
}

fn one(
    batch: &mut Batch<'_>,
    object: &Arc<Object>,
    document: &mut Document,
    change: &LateChange,
    replayed: &mut Replayed,
) -> Result<(), ApiError> {
    let before = document.object(&|hash| batch.blob(hash));
    let lost = document.replay(change);
    let after = document.object(&|hash| batch.blob(hash));
    let (lost, before, after) = match (lost, before, after) {
        (Ok(lost), Ok(before), Ok(after)) => (lost, before, after),
        (Err(error), ..) | (_, Err(error), _) | (_, _, Err(error)) => {
            replayed.unclear.push(format!("{}: {error}", object.key()));
            return Ok(());
        }
    };
    let line = told(change, &lost);
    if before != after {
        let Some(current) = batch.get(&object.key()) else { return Ok(()) };
        let Ok(parsed) = Object::parse(after) else {
            replayed.unclear.push(format!("{}: {line}: it makes no object", object.key()));
            return Ok(());
        };
        let mut wanted = crate::learn::merge::overlaid(&current, &parsed);
        batch.set_author(if change.author.is_empty() { "hub:late-change" } else { &change.author });
        let number = rollout::stamp(Some(&current), &mut wanted, batch.incarnation());
        let written = Written { outcome: Outcome::Updated(wanted), warnings: Vec::new() };
        admission::apply(batch, Decision::of(written, number))?;
    } else if lost.is_empty() {
        return Ok(());
    }
    tracing::warn!(object = %object.key(), change = %line, "a change of an old epoch was taken over");
    tell(batch, object, &line, lost.is_empty())?;
    replayed.changes.push(format!("{}: {line}", object.key()));
    Ok(())
}

fn told(change: &LateChange, lost: &[String]) -> String {
    let fields = change.fields();
    let taken: Vec<&str> = fields.iter().filter(|field| !lost.contains(field)).map(String::as_str).collect();
    let author = if change.author.is_empty() { "somebody" } else { &change.author };
    let when = Timestamp(change.time_ms).to_rfc3339();
    let shown = |fields: &[&str]| fields.iter().take(FIELDS_SHOWN_MAX).copied().collect::<Vec<_>>().join(", ");
    let mut line = format!("an edit by {author} of {when} arrived late");
    if !taken.is_empty() {
        line = format!("{line} and was taken over: {}", shown(&taken));
    }
    if !lost.is_empty() {
        let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
        line = format!("{line}; no place is left for: {}", shown(&lost));
    }
    line
}

fn tell(batch: &mut Batch<'_>, object: &Object, line: &str, whole: bool) -> Result<(), ApiError> {
    let note = if whole {
        Note::normal(object, SOURCE, "LateChange", line.to_owned())
    } else {
        Note::warning(object, SOURCE, "LateChange", line.to_owned())
    };
    let event = note.event(None, batch.now());
    if batch.get(&event.key()).is_none() {
        batch.create(event)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
