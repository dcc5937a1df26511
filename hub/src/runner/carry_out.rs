//! Carries one plan out inside the store's writer: all of it or nothing.

use flotilla_manifests::admission::{Context, DeleteOptions, FieldValidation, Mutation};
use flotilla_manifests::api_error::ApiError;
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::rollout::number_of;
use flotilla_rest::backend::{DryRun, User, WriteRequest};

use crate::admission;
use crate::controllers::events::Note;
use crate::controllers::{Deletion, Write};
use crate::store::Batch;

/// Writes that stand alone in one transaction: whoever writes meanwhile waits for all of them.
const ALONE_MAX: usize = 64;

/// What is carried out at once: nearly always all of it. Of very many writes that stand alone most come after the others, so many at
/// a time.
pub(super) fn in_pieces(writes: Vec<Write>) -> Vec<Vec<Write>> {
    if writes.iter().filter(|write| write.stands_alone()).count() <= ALONE_MAX {
        return vec![writes];
    }
    let (alone, together): (Vec<_>, Vec<_>) = writes.into_iter().partition(Write::stands_alone);
    let mut pieces = Vec::new();
    if !together.is_empty() {
        pieces.push(together);
    }
    let mut alone = alone.into_iter().peekable();
    while alone.peek().is_some() {
        pieces.push(alone.by_ref().take(ALONE_MAX).collect());
    }
    pieces
}

/// Carries out the writes of one plan in order.
///
/// # Errors
/// A conflict when an object is no longer the one that was planned for; what admission or the database say.
pub(super) fn carry_out(batch: &mut Batch<'_>, writes: Vec<Write>, user: &str) -> Result<(), ApiError> {
    for write in writes {
        match write {
            Write::Create(object) => {
                batch.create(object)?;
            }
            Write::Replace(object) => {
                let key = object.key();
                let current = batch.get(&key).ok_or_else(|| ApiError::not_found(&key))?;
                if current.resource_version() != object.resource_version() || current.uid() != object.uid() {
                    return Err(ApiError::modified(&key));
                }
                batch.update(&key, |stored| *stored = object)?;
            }
            Write::Delete(deletion) => delete(batch, &deletion, user)?,
            Write::Remove { key, uid } => {
                if is_present(batch, &key, &uid) {
                    batch.remove(&key)?;
                    batch.forget_rollout(&uid)?;
                }
            }
            Write::Threshold { workload_uid, number, threshold } => {
                if batch.index().by_uid(&workload_uid).is_some() {
                    batch.set_threshold(&workload_uid, &number.to_string(), threshold)?;
                }
            }
            Write::Grant { workload_uid, node, number } => {
                // Somebody may have taken the number back since the plan was made.
                let stands = |workload: &Object| number.is_none_or(|number| number_of(workload) == Some(number));
                if batch.index().by_uid(&workload_uid).is_some_and(|workload| stands(workload)) {
                    let number = number.map(|number| number.to_string());
                    batch.set_grant(&workload_uid, &node, number.as_deref())?;
                }
            }
            Write::Event(note) => event(batch, &note)?,
        }
    }
    Ok(())
}

fn is_present(batch: &Batch<'_>, key: &ObjectKey, uid: &str) -> bool {
    batch.get(key).is_some_and(|object| object.uid() == uid)
}

/// Deletes as a user would: gracefully, and not another object of the same name. What is gone already is as good.
fn delete(batch: &mut Batch<'_>, deletion: &Deletion, user: &str) -> Result<(), ApiError> {
    if !is_present(batch, &deletion.key, &deletion.uid) {
        return Ok(());
    }
    let options = DeleteOptions {
        grace_period_seconds: deletion.grace_seconds,
        propagation: deletion.propagation,
        uid: Some(deletion.uid.clone()),
        resource_version: None,
    };
    let request = WriteRequest {
        key: deletion.key.clone(),
        mutation: Mutation::Delete(options),
        dry_run: DryRun::No,
        field_validation: FieldValidation::Ignore,
        user: User { name: user.to_owned(), groups: vec!["system:controllers".to_owned()] },
        field_manager: None,
    };
    let context = Context {
        now: batch.now(),
        uid: String::new(),
        name_suffix: String::new(),
        field_validation: FieldValidation::Ignore,
    };
    let decision = admission::decide(batch.index(), batch.incarnation(), &request, &context)?;
    admission::apply(batch, decision)?;
    Ok(())
}

/// An Event of a namespace that is going is told to nobody.
fn event(batch: &mut Batch<'_>, note: &Note) -> Result<(), ApiError> {
    let namespace = ObjectKey::of(&kind::NAMESPACE, "", note.namespace());
    let open = batch.get(&namespace).is_some_and(|namespace| namespace.deletion_timestamp().is_none());
    if !open {
        return Ok(());
    }
    let key = ObjectKey::of(&kind::EVENT, note.namespace(), note.name());
    let now = batch.now();
    match batch.get(&key) {
        Some(existing) => {
            let event = note.event(Some(&existing), now);
            batch.update(&key, |stored| *stored = event)?;
        }
        None => {
            batch.create(note.event(None, now))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use flotilla_manifests::rollout::RolloutNumber;

    use super::*;

    fn grants(count: usize) -> Vec<Write> {
        let grant = |node| Write::Grant { workload_uid: "u".into(), node: format!("n{node:04}"), number: None };
        (0..count).map(grant).collect()
    }

    fn threshold() -> Write {
        Write::Threshold { workload_uid: "u".into(), number: RolloutNumber::default(), threshold: Some(1) }
    }

    #[test]
    fn a_plan_is_one_piece_unless_very_much_of_it_stands_alone() {
        let mut writes = grants(ALONE_MAX);
        writes.push(threshold());
        assert_eq!(in_pieces(writes.clone()), [writes]);
        assert_eq!(in_pieces(Vec::new()), [Vec::new()]);

        let mut writes = grants(2 * ALONE_MAX + 1);
        writes.push(threshold());
        let pieces = in_pieces(writes.clone());
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1, ALONE_MAX, ALONE_MAX, 1]);
        assert_eq!(pieces[0], [threshold()], "what belongs together comes first");
        writes.rotate_right(1);
        assert_eq!(pieces.concat(), writes, "and nothing is lost");
    }
}
