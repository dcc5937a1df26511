//! Epochs: a document begun anew without its old history, and what arrives too late for an old one.
//!
//! A new epoch holds the manifest, each rollout number in flight with its template (a number's template is the document's state at
//! the change that made the number, so each is one change), who began it and where the epoch before was cut. Changes made to the old
//! epoch elsewhere are taken over field by field, as edits by their authors. Start at [`Document::succeed`] and
//! [`Document::late_changes`].

use std::collections::BTreeMap;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{AutoCommit, AutomergeError, ChangeHash, ObjId, ObjType, ROOT, ReadDoc, ScalarValue, Value as AmValue};

use super::mapping::{self, Node, ORDER};
use super::{
    Document, DocumentError, EPOCH, Edit, OBJECT, OBJECT_DEPTH_MAX, ROLLOUT, Rollouts, Shape, check, damaged, guarded,
    order,
};
use crate::channel::Hash;

pub(super) const KEEPER: &str = "keeper";
pub(super) const FOLLOWS: &str = "follows";

/// Most changes of an old epoch that are taken over at once.
const LATE_CHANGES_MAX: usize = 1024;

/// Which life of a document, and who began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// From 1 on.
    pub number: u64,
    /// Incarnation of the hub that began it. It alone begins the next one; a hub of a higher incarnation takes the office over.
    pub keeper: u64,
}

impl From<u64> for Epoch {
    /// Begun by nobody in particular.
    fn from(number: u64) -> Self {
        Self { number, keeper: 0 }
    }
}

/// One change of an old epoch, as edits of single fields.
#[derive(Debug, Clone, PartialEq)]
pub struct LateChange {
    /// Who, as named in the change; may be empty.
    pub author: String,
    /// When, by that writer's clock. Milliseconds.
    pub time_ms: u64,
    edits: Vec<FieldEdit>,
}

#[derive(Debug, Clone, PartialEq)]
struct FieldEdit {
    /// Keys of automerge from the object's root.
    path: Vec<String>,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Set(Node),
    Remove,
    /// The items of a keyed list, in their new order.
    Order(Vec<String>),
}

impl LateChange {
    /// The fields it touches, for people.
    pub fn fields(&self) -> Vec<String> {
        self.edits.iter().map(FieldEdit::shown).collect()
    }
}

impl FieldEdit {
    fn shown(&self) -> String {
        let keys: Vec<&str> = self.path.iter().map(|key| mapping::shown(key)).collect();
        keys.join(".")
    }
}

impl Document {
    /// Who began this epoch; 0 if the document does not say.
    pub fn keeper(&self) -> u64 {
        self.doc.get(ROOT, KEEPER).ok().flatten().and_then(|(keeper, _)| keeper.as_u64()).unwrap_or_default()
    }

    /// Where the epoch before was cut: its heads. Empty in a first epoch.
    pub fn follows(&self) -> Vec<Hash> {
        let bytes = self.doc.get(ROOT, FOLLOWS).ok().flatten().and_then(|(bytes, _)| bytes.into_bytes().ok());
        bytes.unwrap_or_default().chunks_exact(32).filter_map(|chunk| Hash::try_from(chunk).ok()).collect()
    }

    /// The change that began this history: histories with another one have nothing in common.
    pub(crate) fn genesis(&mut self) -> Hash {
        let changes = self.doc.get_changes_meta(&[]);
        let roots = changes.iter().filter(|change| change.deps.is_empty());
        roots.map(|change| change.hash.0).min().unwrap_or_default()
    }

    /// The next epoch of this document, begun by `keeper`: what `edit` says, and the templates of the numbers in flight that this
    /// epoch knows. `actor`: fresh random bytes per boot and epoch.
    ///
    /// # Errors
    /// The object is no object, or over a limit.
    pub fn succeed(
        &mut self,
        edit: Edit<'_>,
        keeper: u64,
        shape: Shape<'_>,
        actor: [u8; 8],
    ) -> Result<Self, DocumentError> {
        check(&edit)?;
        let epoch = Epoch { number: self.epoch() + 1, keeper };
        let follows = self.heads();
        let mut carried = self.templates(edit.rollouts)?.into_iter();
        let (object, large) = mapping::node_of(edit.object, shape)?;
        let Some((number, template)) = carried.next() else {
            return Self::begin(object, large, edit, epoch, &follows, actor);
        };
        let mut rollouts = Rollouts::new();
        let mut add = |number: String| {
            rollouts.insert(number.clone(), edit.rollouts.get(&number).copied().unwrap_or_default());
            rollouts.clone()
        };
        let first = add(number);
        let step = Edit { rollouts: &first, ..edit };
        let mut next = Self::begin(template, Vec::new(), step, epoch, &follows, actor)?;
        for (number, template) in carried {
            let known = add(number);
            next.say(template, Edit { rollouts: &known, ..edit })?;
        }
        next.say(object, edit)?;
        next.large = large;
        Ok(next)
    }

    /// The numbers of `wanted` that this document knows, oldest first, each with its template.
    fn templates(&mut self, wanted: &Rollouts) -> Result<Vec<(String, Node)>, DocumentError> {
        let changes = self.doc.get_changes_meta(&[]);
        let places: BTreeMap<ChangeHash, u64> = changes.iter().map(|change| (change.hash, change.max_op)).collect();
        let Some((_, rollout)) = self.at(&ROOT, ROLLOUT, None)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for number in wanted.keys() {
            let Some((AmValue::Object(_), entry)) = self.at(&rollout, number, None)? else { continue };
            let Some(made) = self.doc.hash_for_opid(&entry) else { continue };
            found.push((places.get(&made).copied(), number.clone(), self.object_node(&[made])?));
        }
        found.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        Ok(found.into_iter().map(|(_, number, template)| (number, template)).collect())
    }

    fn say(&mut self, object: Node, edit: Edit<'_>) -> Result<(), DocumentError> {
        if let Err(error) = self.reconcile(object, edit.rollouts) {
            self.doc.rollback();
            return Err(damaged(error));
        }
        self.doc.commit_with(super::commit_options(&edit));
        Ok(())
    }

    fn object_node(&self, heads: &[ChangeHash]) -> Result<Node, DocumentError> {
        match self.at(&ROOT, OBJECT, Some(heads))? {
            Some((AmValue::Object(ObjType::Map), id)) => node_at(&self.doc, &id, heads, 0),
            _ => Err(DocumentError::Damaged("it has no object at its root".to_owned())),
        }
    }

    /// Whether all of these changes are in this document.
    pub fn knows(&mut self, heads: &[Hash]) -> bool {
        heads.iter().all(|head| self.doc.get_change_by_hash(&ChangeHash(*head)).is_some())
    }

    /// What changes that are not among the ancestors of `since` did to the manifest, oldest first: of an old epoch that was cut at
    /// `since`, the changes that came too late. Rollout numbers and thresholds are their hub's own and are not among them.
    ///
    /// # Errors
    /// Too many of them, or the document holds what no edit makes.
    pub fn late_changes(&mut self, since: &[Hash]) -> Result<Vec<LateChange>, DocumentError> {
        guarded(|| {
            let since: Vec<ChangeHash> = since
                .iter()
                .map(|hash| ChangeHash(*hash))
                .filter(|hash| self.doc.get_change_by_hash(hash).is_some())
                .collect();
            let changes = self.doc.get_changes(&since);
            if changes.len() > LATE_CHANGES_MAX {
                return Err(DocumentError::TooLarge { max: LATE_CHANGES_MAX, unit: "changes of an old epoch" });
            }
            let mut late = Vec::new();
            for change in changes.into_iter().filter(|change| !change.deps().is_empty()) {
                let (before, after) = (self.object_node(change.deps())?, self.object_node(&[change.hash()])?);
                let mut edits = Vec::new();
                difference(&before, &after, &mut Vec::new(), &mut edits);
                if !edits.is_empty() {
                    let author = change.message().unwrap_or_default().to_owned();
                    let time_ms = u64::try_from(change.timestamp()).unwrap_or(0) * 1000;
                    late.push(LateChange { author, time_ms, edits });
                }
            }
            Ok(late)
        })
    }

    /// Says again here what a late change said, as one change of its author. Answers the fields that have no place here any more.
    ///
    /// # Errors
    /// When automerge refuses; then the document is as before.
    pub fn replay(&mut self, late: &LateChange) -> Result<Vec<String>, DocumentError> {
        let Some((AmValue::Object(ObjType::Map), object)) = self.at(&ROOT, OBJECT, None)? else {
            return Err(DocumentError::Damaged("it has no object at its root".to_owned()));
        };
        let mut lost = Vec::new();
        for edit in &late.edits {
            match put(&mut self.doc, &object, edit) {
                Ok(true) => {}
                Ok(false) => lost.push(edit.shown()),
                Err(error) => {
                    self.doc.rollback();
                    return Err(damaged(error));
                }
            }
        }
        let options = CommitOptions::default().with_time(i64::try_from(late.time_ms / 1000).unwrap_or(i64::MAX));
        let named = !late.author.is_empty();
        self.doc.commit_with(if named { options.with_message(late.author.as_str()) } else { options });
        Ok(lost)
    }
}

/// The root's entries that tell epochs apart.
pub(super) fn marks(epoch: Epoch, follows: &[Hash]) -> Vec<(String, Node)> {
    let mut marks = vec![(EPOCH.to_owned(), Node::Scalar(ScalarValue::Uint(epoch.number)))];
    if epoch.keeper > 0 {
        marks.push((KEEPER.to_owned(), Node::Scalar(ScalarValue::Uint(epoch.keeper))));
    }
    if !follows.is_empty() {
        marks.push((FOLLOWS.to_owned(), Node::Scalar(ScalarValue::Bytes(follows.concat()))));
    }
    marks
}

/// A map as it was at some heads, as [`mapping::reconcile`] takes it.
fn node_at(doc: &AutoCommit, object: &ObjId, heads: &[ChangeHash], depth: usize) -> Result<Node, DocumentError> {
    if depth > OBJECT_DEPTH_MAX + 2 {
        return Err(DocumentError::TooLarge { max: OBJECT_DEPTH_MAX, unit: "levels of nesting" });
    }
    let entries: Vec<(String, AmValue<'_>, ObjId)> = doc
        .map_range_at(object, .., heads)
        .map(|entry| {
            let id = entry.id();
            (entry.key.into_owned(), AmValue::from(entry.value), id)
        })
        .collect();
    let keyed = entries.iter().any(|(key, value, _)| key == ORDER && value.is_null());
    let mut map = BTreeMap::new();
    let mut items = Vec::new();
    for (key, value, id) in entries.into_iter().filter(|(key, ..)| key != ORDER) {
        let node = match value {
            AmValue::Object(ObjType::Map) => node_at(doc, &id, heads, depth + 1)?,
            AmValue::Scalar(scalar) => Node::Scalar(scalar.into_owned()),
            AmValue::Object(_) => {
                return Err(DocumentError::Damaged("it holds an automerge list or text".to_owned()));
            }
        };
        match node {
            Node::Map(item) if keyed => {
                let order = doc.get_at(&id, ORDER, heads).ok().flatten();
                let order = order.and_then(|(order, _)| order.into_bytes().ok()).unwrap_or_default();
                items.push((order, key, item));
            }
            node => drop(map.insert(key, node)),
        }
    }
    if !keyed {
        return Ok(Node::Map(map));
    }
    items.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
    Ok(Node::List(items.into_iter().map(|(_, key, item)| (key, item)).collect()))
}

fn difference(before: &Node, after: &Node, path: &mut Vec<String>, edits: &mut Vec<FieldEdit>) {
    match (before, after) {
        (Node::Map(before), Node::Map(after)) => maps(before, after, path, edits),
        (Node::List(before), Node::List(after)) => {
            let item = |items: &[(String, BTreeMap<String, Node>)]| {
                items.iter().map(|(key, item)| (key.clone(), Node::Map(item.clone()))).collect::<BTreeMap<_, _>>()
            };
            maps(&item(before), &item(after), path, edits);
            let stays = |key: &String| after.iter().any(|(other, _)| other == key);
            let was = before.iter().map(|(key, _)| key);
            let new: std::collections::BTreeSet<&String> =
                after.iter().map(|(key, _)| key).filter(|key| !before.iter().any(|(other, _)| other == *key)).collect();
            let is: Vec<&String> = after.iter().map(|(key, _)| key).collect();
            // New items come last, by key, unless more is said.
            if was.filter(|key| stays(key)).chain(new).collect::<Vec<_>>() != is {
                let order = is.into_iter().cloned().collect();
                edits.push(FieldEdit { path: path.clone(), what: What::Order(order) });
            }
        }
        (before, after) if before == after => {}
        (_, after) => edits.push(FieldEdit { path: path.clone(), what: What::Set(after.clone()) }),
    }
}

fn maps(
    before: &BTreeMap<String, Node>,
    after: &BTreeMap<String, Node>,
    path: &mut Vec<String>,
    edits: &mut Vec<FieldEdit>,
) {
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        path.push(key.clone());
        match (before.get(key), after.get(key)) {
            (Some(was), Some(is)) => difference(was, is, path, edits),
            (None, Some(is)) => edits.push(FieldEdit { path: path.clone(), what: What::Set(is.clone()) }),
            (Some(_), None) => edits.push(FieldEdit { path: path.clone(), what: What::Remove }),
            (None, None) => {}
        }
        path.pop();
    }
}

/// Whether there was a place for it.
fn put(doc: &mut AutoCommit, object: &ObjId, edit: &FieldEdit) -> Result<bool, AutomergeError> {
    let (parents, last) = match (&edit.what, edit.path.split_last()) {
        (What::Order(_), _) => (edit.path.as_slice(), None),
        (_, Some((last, parents))) => (parents, Some(last)),
        (_, None) => return Ok(false),
    };
    let mut place = object.clone();
    for key in parents {
        let Some((AmValue::Object(ObjType::Map), next)) = doc.get(&place, key.as_str())? else { return Ok(false) };
        place = next;
    }
    match (&edit.what, last) {
        (What::Remove, Some(key)) => {
            if doc.get(&place, key.as_str())?.is_some() {
                doc.delete(&place, key.as_str())?;
            }
        }
        (What::Set(node), Some(key)) => set(doc, &place, key, node.clone())?,
        (What::Order(names), _) => reorder(doc, &place, names)?,
        (_, None) => return Ok(false),
    }
    Ok(true)
}

fn set(doc: &mut AutoCommit, place: &ObjId, key: &str, node: Node) -> Result<(), AutomergeError> {
    let keyed = matches!(doc.get(place, ORDER)?, Some((marker, _)) if marker.is_null());
    let Node::Map(mut item) = node else { return mapping::reconcile_field(doc, place, key, node) };
    if !keyed {
        return mapping::reconcile_field(doc, place, key, Node::Map(item));
    }
    if let Some((AmValue::Object(ObjType::Map), existing)) = doc.get(place, key)? {
        return mapping::reconcile(doc, &existing, item);
    }
    let names: Vec<String> = doc.keys(place).filter(|name| name != ORDER).collect();
    let mut last = Vec::new();
    for name in names {
        last = mapping::order_of(doc, place, &name)?.unwrap_or_default().max(last);
    }
    item.insert(ORDER.to_owned(), Node::Scalar(ScalarValue::Bytes(order::between(&last, None))));
    doc.batch_create_object(place, key, &Node::Map(item).hydrate(), false).map(|_id| ())
}

/// Puts these items first, in this order; the others follow as they stood.
fn reorder(doc: &mut AutoCommit, list: &ObjId, names: &[String]) -> Result<(), AutomergeError> {
    let mut present = Vec::new();
    for name in doc.keys(list).filter(|name| name != ORDER).collect::<Vec<_>>() {
        if let Some((AmValue::Object(ObjType::Map), id)) = doc.get(list, name.as_str())? {
            let order = mapping::order_of(doc, list, &name)?.unwrap_or_default();
            let wanted = names.iter().position(|other| *other == name).unwrap_or(names.len());
            present.push(((wanted, order.clone(), name), id, order));
        }
    }
    present.sort_by(|one, other| one.0.cmp(&other.0));
    let orders = order::spread(present.len());
    for ((_, id, was), order) in present.into_iter().zip(orders) {
        if was != order {
            doc.put(&id, ORDER, ScalarValue::Bytes(order))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
