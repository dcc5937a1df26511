//! Between JSON and automerge, both ways, exactly.
//!
//! | JSON | automerge |
//! |---|---|
//! | null, boolean, string | the same scalar |
//! | number | Int, else Uint, else F64: as `serde_json` holds it |
//! | object | map; keys that are empty or begin with a control character below U+0004 are escaped by U+0002 |
//! | list whose items all have distinct merge keys | map with the key U+0001; each item is a map under the JSON array of its merge keys, with its order index under U+0001 |
//! | any other list | one scalar: Bytes holding CBOR |
//! | a string, or CBOR of a list, above [`BLOB_BYTES_MIN`] | one scalar: Bytes holding a tag below 0x80, SHA-256 and length of a blob |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use automerge::hydrate;
use automerge::transaction::Transactable;
use automerge::{
    AutoCommit, AutomergeError, ChangeHash, ObjId, ObjType, ReadDoc, ScalarValue, Value as AmValue, ValueRef,
};
use bytes::Bytes;
use serde_json::{Map, Number, Value};

use super::{DocumentError, OBJECT_DEPTH_MAX, Shape, order};
use crate::blob::{BLOB_BYTES_MAX, BLOB_BYTES_MIN, BLOBS_MAX, Blob, BlobRef, Blobs};

/// Reserved key: marks a keyed list, and holds an item's order index.
pub(super) const ORDER: &str = "\u{1}";
/// Reserved key prefix: escapes the keys of users.
const ESCAPE: char = '\u{2}';
/// Begin the bytes that stand for a blob: CBOR of a list begins with 0x80 or more.
const TEXT_BLOB: u8 = 1;
const LIST_BLOB: u8 = 2;

/// JSON on its way into automerge.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Scalar(ScalarValue),
    Map(BTreeMap<String, Self>),
    /// Items in order, by merge key.
    List(Vec<(String, BTreeMap<String, Self>)>),
}

/// Reads a JSON object into a node, and what of it is too large for a document into blobs.
pub(super) fn node_of(object: &Value, shape: Shape<'_>) -> Result<(Node, Vec<Blob>), DocumentError> {
    if !object.is_object() {
        return Err(DocumentError::NotAnObject);
    }
    let mut blobs = Vec::new();
    let node = node(object, &mut Vec::new(), shape, &mut blobs)?;
    Ok((node, blobs))
}

fn node<'a>(
    value: &'a Value,
    path: &mut Vec<&'a str>,
    shape: Shape<'_>,
    blobs: &mut Vec<Blob>,
) -> Result<Node, DocumentError> {
    if path.len() > OBJECT_DEPTH_MAX {
        return Err(too_deep());
    }
    Ok(match value {
        Value::Null => Node::Scalar(ScalarValue::Null),
        Value::Bool(value) => Node::Scalar(ScalarValue::Boolean(*value)),
        Value::Number(number) => Node::Scalar(number_in(number)),
        Value::String(text) if text.len() > BLOB_BYTES_MIN => {
            Node::Scalar(named(TEXT_BLOB, Bytes::copy_from_slice(text.as_bytes()), blobs)?)
        }
        Value::String(text) => Node::Scalar(ScalarValue::Str(text.as_str().into())),
        Value::Object(map) => Node::Map(fields(map, path, shape, blobs)?),
        Value::Array(list) => match keyed(list, path, shape, blobs)? {
            Some(items) => Node::List(items),
            None => {
                let bytes = atomic(value, OBJECT_DEPTH_MAX - path.len())?;
                let large = bytes.len() > BLOB_BYTES_MIN;
                Node::Scalar(if large { named(LIST_BLOB, bytes.into(), blobs)? } else { ScalarValue::Bytes(bytes) })
            }
        },
    })
}

/// The scalar that stands for a blob.
fn named(tag: u8, content: Bytes, blobs: &mut Vec<Blob>) -> Result<ScalarValue, DocumentError> {
    if content.len() > BLOB_BYTES_MAX {
        return Err(DocumentError::TooLarge { max: BLOB_BYTES_MAX, unit: "bytes in one value" });
    }
    let blob = Blob::of(content);
    let scalar = [&[tag], blob.name.hash.as_slice(), &blob.name.len.to_be_bytes()].concat();
    if blobs.iter().all(|known| known.name != blob.name) {
        blobs.push(blob);
    }
    if blobs.len() > BLOBS_MAX {
        return Err(DocumentError::TooLarge { max: BLOBS_MAX, unit: "values above 4 KiB" });
    }
    Ok(ScalarValue::Bytes(scalar))
}

/// The tag and the blob that bytes in a document name, if they do.
fn name_in(bytes: &[u8]) -> Option<(u8, BlobRef)> {
    let (tag, rest) = bytes.split_first().filter(|(tag, _)| [TEXT_BLOB, LIST_BLOB].contains(tag))?;
    let (hash, len) = rest.split_first_chunk::<32>()?;
    Some((*tag, BlobRef { hash: *hash, len: u64::from_be_bytes(len.try_into().ok()?) }))
}

fn fields<'a>(
    map: &'a Map<String, Value>,
    path: &mut Vec<&'a str>,
    shape: Shape<'_>,
    blobs: &mut Vec<Blob>,
) -> Result<BTreeMap<String, Node>, DocumentError> {
    let mut fields = BTreeMap::new();
    for (key, value) in map {
        path.push(key);
        let node = node(value, path, shape, blobs);
        path.pop();
        fields.insert(escaped(key), node?);
    }
    Ok(fields)
}

/// The items by merge key, if the list has keys here and every item has all of them, no two the same.
#[allow(clippy::type_complexity, reason = "the content of Node::List")]
fn keyed<'a>(
    list: &'a [Value],
    path: &mut Vec<&'a str>,
    shape: Shape<'_>,
    blobs: &mut Vec<Blob>,
) -> Result<Option<Vec<(String, BTreeMap<String, Node>)>>, DocumentError> {
    let Some(keys) = shape(path).filter(|keys| !keys.is_empty()) else { return Ok(None) };
    let mut names = Vec::with_capacity(list.len());
    for item in list {
        match item.as_object().and_then(|item| merge_key(item, keys)) {
            Some(name) => names.push(name),
            None => return Ok(None),
        }
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    path.push("*");
    let items = list.iter().filter_map(Value::as_object);
    let items = items.map(|item| fields(item, path, shape, blobs)).collect::<Vec<_>>();
    path.pop();
    names.into_iter().zip(items).map(|(name, item)| Ok((name, item?))).collect::<Result<_, _>>().map(Some)
}

/// The JSON array of an item's merge keys; none if one is missing or no plain value.
fn merge_key(item: &Map<String, Value>, keys: &[&str]) -> Option<String> {
    let plain = |value: &&Value| value.is_string() || value.is_u64() || value.is_i64() || value.is_boolean();
    let values: Option<Vec<&Value>> = keys.iter().map(|key| item.get(*key).filter(plain)).collect();
    serde_json::to_string(&values?).ok()
}

fn number_in(number: &Number) -> ScalarValue {
    match (number.as_i64(), number.as_u64()) {
        (Some(value), _) => ScalarValue::Int(value),
        (None, Some(value)) => ScalarValue::Uint(value),
        (None, None) => ScalarValue::F64(number.as_f64().unwrap_or_default()),
    }
}

fn atomic(value: &Value, depth_max: usize) -> Result<Vec<u8>, DocumentError> {
    if !within_depth(value, depth_max) {
        return Err(too_deep());
    }
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| DocumentError::Damaged(error.to_string()))?;
    Ok(bytes)
}

fn within_depth(value: &Value, depth_max: usize) -> bool {
    match value {
        Value::Array(items) => depth_max > 0 && items.iter().all(|item| within_depth(item, depth_max - 1)),
        Value::Object(map) => depth_max > 0 && map.values().all(|item| within_depth(item, depth_max - 1)),
        _ => true,
    }
}

fn too_deep() -> DocumentError {
    DocumentError::TooLarge { max: OBJECT_DEPTH_MAX, unit: "levels of nesting" }
}

fn escaped(key: &str) -> String {
    if key.chars().next().is_none_or(|first| first < '\u{4}') { format!("{ESCAPE}{key}") } else { key.to_owned() }
}

fn unescaped(key: &str) -> &str {
    key.strip_prefix(ESCAPE).unwrap_or(key)
}

impl Node {
    /// For bulk creation.
    pub(super) fn hydrate(self) -> hydrate::Value {
        match self {
            Self::Scalar(scalar) => hydrate::Value::Scalar(scalar),
            Self::Map(map) => hydrate::Value::Map(hydrate_map(map)),
            Self::List(items) => {
                let orders = order::spread(items.len());
                let marker = (ORDER.to_owned(), hydrate::Value::Scalar(ScalarValue::Null));
                let items = items.into_iter().zip(orders).map(|((name, mut item), order)| {
                    item.insert(ORDER.to_owned(), Self::Scalar(ScalarValue::Bytes(order)));
                    (name, hydrate::Value::Map(hydrate_map(item)))
                });
                let map: HashMap<String, hydrate::Value> = items.chain([marker]).collect();
                hydrate::Value::Map(map.into())
            }
        }
    }
}

fn hydrate_map(map: BTreeMap<String, Node>) -> hydrate::Map {
    map.into_iter().map(|(key, node)| (key, node.hydrate())).collect::<HashMap<_, _>>().into()
}

/// Makes the map `object` say what `wanted` says, with as few operations as it takes. The reserved key is left alone.
pub(super) fn reconcile(
    doc: &mut AutoCommit,
    object: &ObjId,
    wanted: BTreeMap<String, Node>,
) -> Result<(), AutomergeError> {
    let surplus: Vec<String> = doc.keys(object).filter(|key| key != ORDER && !wanted.contains_key(key)).collect();
    for key in surplus {
        doc.delete(object, key)?;
    }
    for (key, node) in wanted {
        reconcile_field(doc, object, &key, node)?;
    }
    Ok(())
}

pub(super) fn reconcile_field(
    doc: &mut AutoCommit,
    object: &ObjId,
    key: &str,
    node: Node,
) -> Result<(), AutomergeError> {
    let current = doc.get(object, key)?.map(|(value, id)| (value.into_owned(), id));
    match (current, node) {
        (Some((AmValue::Scalar(current), _)), Node::Scalar(wanted)) if same(&current, &wanted) => Ok(()),
        (_, Node::Scalar(wanted)) => doc.put(object, key, wanted),
        (Some((AmValue::Object(ObjType::Map), id)), Node::Map(wanted)) if !is_keyed(doc, &id)? => {
            reconcile(doc, &id, wanted)
        }
        (Some((AmValue::Object(ObjType::Map), id)), Node::List(wanted)) if is_keyed(doc, &id)? => {
            reconcile_list(doc, &id, wanted)
        }
        (_, node) => doc.batch_create_object(object, key, &node.hydrate(), false).map(|_id| ()),
    }
}

fn reconcile_list(
    doc: &mut AutoCommit,
    list: &ObjId,
    wanted: Vec<(String, BTreeMap<String, Node>)>,
) -> Result<(), AutomergeError> {
    let names: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let surplus: Vec<String> = doc.keys(list).filter(|key| key != ORDER && !names.contains(key.as_str())).collect();
    for key in surplus {
        doc.delete(list, key)?;
    }
    let mut orders = Vec::with_capacity(wanted.len());
    for (name, _) in &wanted {
        orders.push(order_of(doc, list, name)?);
    }
    let keep = order::keepers(&orders.iter().map(Option::as_deref).collect::<Vec<_>>());
    let mut low = Vec::new();
    for (at, (name, mut item)) in wanted.into_iter().enumerate() {
        let order = match &orders[at] {
            Some(order) if keep[at] => order.clone(),
            _ => {
                let later = (at + 1..orders.len()).find(|later| keep[*later]);
                order::between(&low, later.and_then(|later| orders[later].as_deref()))
            }
        };
        low.clone_from(&order);
        let existing = doc.get(list, name.as_str())?.map(|(value, id)| (value.into_owned(), id));
        match existing {
            Some((AmValue::Object(ObjType::Map), id)) => {
                reconcile(doc, &id, item)?;
                reconcile_field(doc, &id, ORDER, Node::Scalar(ScalarValue::Bytes(order)))?;
            }
            _ => {
                item.insert(ORDER.to_owned(), Node::Scalar(ScalarValue::Bytes(order)));
                doc.batch_create_object(list, name.as_str(), &Node::Map(item).hydrate(), false)?;
            }
        }
    }
    Ok(())
}

pub(super) fn order_of(doc: &AutoCommit, list: &ObjId, name: &str) -> Result<Option<Vec<u8>>, AutomergeError> {
    let Some((AmValue::Object(ObjType::Map), item)) = doc.get(list, name)? else { return Ok(None) };
    Ok(doc.get(&item, ORDER)?.and_then(|(order, _)| order.into_bytes().ok()))
}

fn is_keyed(doc: &AutoCommit, object: &ObjId) -> Result<bool, AutomergeError> {
    Ok(doc.get(object, ORDER)?.is_some())
}

/// Equality that tells -0.0 from 0.0.
fn same(left: &ScalarValue, right: &ScalarValue) -> bool {
    match (left, right) {
        (ScalarValue::F64(left), ScalarValue::F64(right)) => left.to_bits() == right.to_bits(),
        _ => left == right,
    }
}

/// Reads JSON out of a document, now or at some heads.
pub(super) struct View<'a> {
    pub(super) doc: &'a AutoCommit,
    pub(super) heads: Option<&'a [ChangeHash]>,
    pub(super) large: Large<'a>,
}

/// What a view does about values that are blobs.
#[derive(Clone, Copy)]
pub(super) enum Large<'a> {
    /// Puts their content in their place.
    Filled(Blobs<'a>),
    /// Shows their names: for people.
    Named,
}

impl View<'_> {
    /// The JSON of a map that [`Node`] made. An item's order index is left out.
    pub(super) fn map(&self, object: &ObjId, depth: usize) -> Result<Value, DocumentError> {
        if depth > OBJECT_DEPTH_MAX + 2 {
            return Err(too_deep());
        }
        let mut fields = Map::new();
        let mut items: Vec<(Vec<u8>, String, Value)> = Vec::new();
        let mut keyed = false;
        let range = match self.heads {
            Some(heads) => self.doc.map_range_at(object, .., heads),
            None => self.doc.map_range(object, ..),
        };
        for entry in range {
            if entry.key == ORDER {
                // Null: this map is a keyed list. Bytes: it is an item of one.
                keyed = matches!(&entry.value, ValueRef::Scalar(automerge::ScalarValueRef::Null));
                continue;
            }
            let id = entry.id();
            let key = entry.key.into_owned();
            let value = self.value(&entry.value.into(), &id, depth)?;
            if keyed {
                items.push((self.order(&id), key, value));
            } else {
                fields.insert(unescaped(&key).to_owned(), value);
            }
        }
        if !keyed {
            return Ok(Value::Object(fields));
        }
        items.sort_by(|left, right| (&left.0, &left.1).cmp(&(&right.0, &right.1)));
        Ok(Value::Array(items.into_iter().map(|(_, _, value)| value).collect()))
    }

    /// The JSON of one value.
    pub(super) fn value(&self, value: &AmValue<'_>, id: &ObjId, depth: usize) -> Result<Value, DocumentError> {
        match value {
            AmValue::Object(ObjType::Map) => self.map(id, depth + 1),
            AmValue::Object(_) => Err(DocumentError::Damaged("it holds an automerge list or text".to_owned())),
            AmValue::Scalar(scalar) => self.scalar(scalar),
        }
    }

    fn scalar(&self, scalar: &ScalarValue) -> Result<Value, DocumentError> {
        Ok(match scalar {
            ScalarValue::Null => Value::Null,
            ScalarValue::Boolean(value) => Value::Bool(*value),
            ScalarValue::Str(text) => Value::String(text.to_string()),
            ScalarValue::Int(value) => Value::Number((*value).into()),
            ScalarValue::Uint(value) => Value::Number((*value).into()),
            ScalarValue::F64(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
            ScalarValue::Bytes(bytes) => match (name_in(bytes), self.large) {
                (Some((tag, name)), Large::Filled(blobs)) => filled(tag, name, blobs)?,
                (Some((_, name)), Large::Named) => Value::String(name.to_string()),
                (None, _) => list_of(bytes)?,
            },
            _ => return Err(DocumentError::Damaged("it holds a scalar of an unknown type".to_owned())),
        })
    }

    fn order(&self, item: &ObjId) -> Vec<u8> {
        let order = match self.heads {
            Some(heads) => self.doc.get_at(item, ORDER, heads),
            None => self.doc.get(item, ORDER),
        };
        order.ok().flatten().and_then(|(order, _)| order.into_bytes().ok()).unwrap_or_default()
    }
}

fn list_of(cbor: &[u8]) -> Result<Value, DocumentError> {
    ciborium::from_reader(cbor).map_err(|error| DocumentError::Damaged(format!("a list is not CBOR: {error}")))
}

fn filled(tag: u8, name: BlobRef, blobs: Blobs<'_>) -> Result<Value, DocumentError> {
    let Some(content) = blobs(&name.hash) else { return Err(DocumentError::MissingBlob { name }) };
    if content.len() as u64 != name.len {
        return Err(DocumentError::Damaged(format!("blob {name} has another length")));
    }
    if tag == LIST_BLOB {
        return list_of(&content);
    }
    let text = String::from_utf8(content.into());
    text.map(Value::String).map_err(|_bytes| DocumentError::Damaged(format!("blob {name} is no text")))
}

/// Adds the blobs that a map of a document names to `found`.
pub(super) fn blobs_in(
    doc: &AutoCommit,
    object: &ObjId,
    heads: Option<&[ChangeHash]>,
    depth: usize,
    found: &mut BTreeSet<BlobRef>,
) {
    if depth > OBJECT_DEPTH_MAX + 2 {
        return;
    }
    let range = match heads {
        Some(heads) => doc.map_range_at(object, .., heads),
        None => doc.map_range(object, ..),
    };
    for entry in range {
        match &entry.value {
            ValueRef::Object(ObjType::Map) => blobs_in(doc, &entry.id(), heads, depth + 1, found),
            ValueRef::Scalar(automerge::ScalarValueRef::Bytes(bytes)) if entry.key != ORDER => {
                found.extend(name_in(bytes).map(|(_, name)| name));
            }
            _ => {}
        }
    }
}

/// Shows a key of automerge to people.
pub(super) fn shown(key: &str) -> &str {
    unescaped(key)
}

/// The reserved key.
pub(super) fn is_reserved(key: &str) -> bool {
    key == ORDER
}
