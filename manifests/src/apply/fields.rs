//! Sets of fields, and their form on the wire (`FieldsV1`, KEP-555).
//!
//! Owns the algebra of sets and the spelling of their elements. An element is kept as it is spelled: `f:replicas`,
//! `k:{"name":"web"}`, `v:"x"`; keys are sorted, so that equal elements are equal texts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Nesting of a set that is read.
const DEPTH_MAX: usize = 100;

/// A set of paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FieldSet(BTreeMap<String, Entry>);

/// What a set says of one element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// Whether the path to this element is itself a member.
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn entry(&self, element: &str) -> Option<&Entry> {
        self.0.get(element)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.0.iter()
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        let entry = self.0.entry(first.clone()).or_default();
        if rest.is_empty() {
            entry.member = true;
        } else {
            entry.below.insert(rest);
        }
    }

    /// Takes a path with all below it away.
    pub(super) fn remove(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.0.remove(*first);
        } else if let Some(entry) = self.0.get_mut(*first) {
            entry.below.remove(rest);
            if !entry.member && entry.below.is_empty() {
                self.0.remove(*first);
            }
        }
    }

    pub(super) fn union(&mut self, other: &Self) {
        for (element, theirs) in &other.0 {
            let entry = self.0.entry(element.clone()).or_default();
            entry.member |= theirs.member;
            entry.below.union(&theirs.below);
        }
    }

    /// The members that the other does not have.
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combined(other, |mine, theirs| mine && !theirs, true)
    }

    /// The members that both have.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combined(other, |mine, theirs| mine && theirs, false)
    }

    fn combined(&self, other: &Self, keep: fn(bool, bool) -> bool, keep_unmet: bool) -> Self {
        let mut out = BTreeMap::new();
        for (element, mine) in &self.0 {
            let entry = match other.0.get(element) {
                None if keep_unmet => mine.clone(),
                None => continue,
                Some(theirs) => Entry {
                    member: keep(mine.member, theirs.member),
                    below: mine.below.combined(&theirs.below, keep, keep_unmet),
                },
            };
            if entry.member || !entry.below.is_empty() {
                out.insert(element.clone(), entry);
            }
        }
        Self(out)
    }

    /// Every member as people read it: `.spec.containers[name="web"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, prefix: &str, found: &mut Vec<String>) {
        for (element, entry) in &self.0 {
            let path = format!("{prefix}{}", spoken(element));
            if entry.member {
                found.push(path.clone());
            }
            entry.below.collect(&path, found);
        }
    }

    /// `fieldsV1`
    pub(super) fn to_value(&self) -> Value {
        let row = |(element, entry): (&String, &Entry)| {
            let mut below = entry.below.to_value();
            if let (true, Value::Object(map)) = (entry.member && !entry.below.is_empty(), &mut below) {
                map.insert(".".to_owned(), Value::Object(Map::new()));
            }
            (element.clone(), below)
        };
        Value::Object(self.0.iter().map(row).collect())
    }

    /// Reads `fieldsV1`; `None` for what is none.
    pub(super) fn parse(value: &Value) -> Option<Self> {
        Self::parse_within(value, DEPTH_MAX)
    }

    fn parse_within(value: &Value, depth: usize) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        let mut set = BTreeMap::new();
        for (element, below) in value.as_object()? {
            if element == "." {
                continue;
            }
            let own = below.as_object()?;
            let entry =
                Entry { member: own.is_empty() || own.contains_key("."), below: Self::parse_within(below, depth)? };
            set.insert(canonical(element)?, entry);
        }
        Some(Self(set))
    }
}

/// `f:NAME`
pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// `k:{...}` of a list's item; `None` when it lacks a key.
pub(super) fn key(item: &Value, keys: &[&str]) -> Option<String> {
    let mut values: BTreeMap<&str, Value> = BTreeMap::new();
    for name in keys {
        let value = match item.get(*name) {
            // The one key that has a default, in the ports of containers.
            None | Some(Value::Null) if *name == "protocol" => Value::from("TCP"),
            Some(value) if !value.is_null() && !value.is_object() && !value.is_array() => value.clone(),
            _ => return None,
        };
        values.insert(name, value);
    }
    serde_json::to_string(&values).ok().map(|text| format!("k:{text}"))
}

/// `v:...` of an item of a set.
pub(super) fn member(item: &Value) -> String {
    format!("v:{item}")
}

/// The element spelled as [`key`] and [`member`] spell it.
fn canonical(element: &str) -> Option<String> {
    match element.split_at_checked(2)? {
        ("f:" | "i:", _) => Some(element.to_owned()),
        ("v:", text) => serde_json::from_str::<Value>(text).ok().map(|value| member(&value)),
        ("k:", text) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).ok()?;
            serde_json::to_string(&keys).ok().map(|text| format!("k:{text}"))
        }
        _ => None,
    }
}

fn spoken(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", text)) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        Some(("v:", text)) => format!("[={text}]"),
        _ => format!("[{}]", element.trim_start_matches("i:")),
    }
}
