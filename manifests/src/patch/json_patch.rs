//! JSON patch (RFC 6902) over JSON pointers (RFC 6901).
//!
//! Every operation is bounded: a list of them by number, copies by their accumulated size, the result by its depth, and all
//! together by the elements they touch, because a short patch can otherwise double a document with every line.

use serde_json::Value;

use super::{DEPTH_MAX, PatchError, depth};

/// Most operations in one patch (kube-apiserver's limit).
pub const OPERATIONS_MAX: usize = 10_000;

/// Most bytes, roughly, that all `copy` operations of one patch may add.
pub const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Most elements all operations together may visit or shift.
const WORK_ELEMENTS_MAX: usize = 50_000_000;

/// Applies all operations in order, or none.
pub fn apply(mut target: Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::malformed("", "a JSON patch is a list of operations"));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut budget = Budget { copied_bytes: 0, work_elements: 0 };
    for (index, operation) in operations.iter().enumerate() {
        let operation = Operation::read(operation, index)?;
        operation.apply(&mut target, &mut budget)?;
    }
    Ok(target)
}

struct Budget {
    copied_bytes: usize,
    work_elements: usize,
}

impl Budget {
    fn work(&mut self, elements: usize) -> Result<(), PatchError> {
        self.work_elements = self.work_elements.saturating_add(elements);
        if self.work_elements > WORK_ELEMENTS_MAX {
            return Err(PatchError::TooLarge("the operations of the JSON patch touch too many elements".into()));
        }
        Ok(())
    }

    fn copy(&mut self, value: &Value) -> Result<(), PatchError> {
        self.copied_bytes += bytes_of(value, COPIED_BYTES_MAX + 1);
        if self.copied_bytes > COPIED_BYTES_MAX {
            return Err(PatchError::TooLarge(format!(
                "the copy operations of the JSON patch add more than {COPIED_BYTES_MAX} bytes"
            )));
        }
        Ok(())
    }
}

struct Operation<'a> {
    index: usize,
    verb: Verb<'a>,
    path: Pointer<'a>,
}

enum Verb<'a> {
    Add(&'a Value),
    Remove,
    Replace(&'a Value),
    Move(Pointer<'a>),
    Copy(Pointer<'a>),
    Test(&'a Value),
}

/// A parsed JSON pointer, with its text for messages.
struct Pointer<'a> {
    text: &'a str,
    tokens: Vec<String>,
}

impl<'a> Operation<'a> {
    fn read(operation: &'a Value, index: usize) -> Result<Self, PatchError> {
        let bad = |why: String| PatchError::malformed("", format!("operation {index}: {why}"));
        if !operation.is_object() {
            return Err(bad("not a JSON object".into()));
        }
        let pointer = |field: &str| {
            let text = operation.get(field).and_then(Value::as_str);
            let text = text.ok_or_else(|| bad(format!("{field:?} is missing or not a string")))?;
            Pointer::parse(text).ok_or_else(|| bad(format!("{field:?}: {text:?} is no JSON pointer (RFC 6901)")))
        };
        let value = || operation.get("value").ok_or_else(|| bad("\"value\" is missing".into()));
        let verb = match operation.get("op").and_then(Value::as_str) {
            Some("add") => Verb::Add(value()?),
            Some("remove") => Verb::Remove,
            Some("replace") => Verb::Replace(value()?),
            Some("move") => Verb::Move(pointer("from")?),
            Some("copy") => Verb::Copy(pointer("from")?),
            Some("test") => Verb::Test(value()?),
            Some(other) => return Err(bad(format!("Unexpected kind: {other}"))),
            None => return Err(bad("\"op\" is missing or not a string".into())),
        };
        Ok(Self { index, verb, path: pointer("path")? })
    }

    fn apply(&self, target: &mut Value, budget: &mut Budget) -> Result<(), PatchError> {
        match self.verb {
            Verb::Add(value) => self.add(target, value.clone(), budget),
            Verb::Remove => self.remove(target, &self.path, budget).map(drop),
            Verb::Replace(value) => {
                let place = self.find_mut(target, &self.path)?;
                self.check_depth(value, budget)?;
                *place = value.clone();
                Ok(())
            }
            Verb::Move(ref from) => {
                if self.path.tokens == from.tokens {
                    return self.find_mut(target, from).map(drop);
                }
                if self.path.tokens.starts_with(&from.tokens) {
                    return Err(self.refuse(from, "a value cannot be moved into itself"));
                }
                let value = self.remove(target, from, budget)?;
                self.add(target, value, budget)
            }
            Verb::Copy(ref from) => {
                let value = self.find(target, from)?;
                budget.copy(value)?;
                let value = value.clone();
                self.add(target, value, budget)
            }
            Verb::Test(expected) => {
                let found = self.find(target, &self.path)?;
                if same(found, expected) { Ok(()) } else { Err(self.refuse(&self.path, "testing value failed")) }
            }
        }
    }

    fn add(&self, target: &mut Value, value: Value, budget: &mut Budget) -> Result<(), PatchError> {
        self.check_depth(&value, budget)?;
        let Some((last, parents)) = self.path.tokens.split_last() else {
            *target = value;
            return Ok(());
        };
        match descend_mut(target, parents).ok_or_else(|| self.missing(&self.path))? {
            Value::Object(map) => {
                map.insert(last.clone(), value);
                Ok(())
            }
            Value::Array(list) => {
                let at = if last == "-" { Some(list.len()) } else { array_index(last) };
                let at = at.filter(|at| *at <= list.len());
                let at = at.ok_or_else(|| self.refuse(&self.path, "invalid index referenced"))?;
                budget.work(list.len() - at)?;
                list.insert(at, value);
                Ok(())
            }
            _ => Err(self.missing(&self.path)),
        }
    }

    fn remove(&self, target: &mut Value, path: &Pointer<'_>, budget: &mut Budget) -> Result<Value, PatchError> {
        let Some((last, parents)) = path.tokens.split_last() else {
            return Ok(std::mem::take(target));
        };
        let removed = match descend_mut(target, parents) {
            Some(Value::Object(map)) => map.remove(last),
            Some(Value::Array(list)) => match array_index(last).filter(|at| *at < list.len()) {
                Some(at) => {
                    budget.work(list.len() - at)?;
                    Some(list.remove(at))
                }
                None => None,
            },
            _ => None,
        };
        removed.ok_or_else(|| self.missing(path))
    }

    fn find<'v>(&self, target: &'v Value, path: &Pointer<'_>) -> Result<&'v Value, PatchError> {
        let found = path.tokens.iter().try_fold(target, |value, token| match value {
            Value::Object(map) => map.get(token),
            Value::Array(list) => list.get(array_index(token)?),
            _ => None,
        });
        found.ok_or_else(|| self.missing(path))
    }

    fn find_mut<'v>(&self, target: &'v mut Value, path: &Pointer<'_>) -> Result<&'v mut Value, PatchError> {
        descend_mut(target, &path.tokens).ok_or_else(|| self.missing(path))
    }

    /// Counts the visit too: a patch that moves a large value to and fro is stopped by its work.
    fn check_depth(&self, value: &Value, budget: &mut Budget) -> Result<(), PatchError> {
        budget.work(bytes_of(value, WORK_ELEMENTS_MAX))?;
        let limit = DEPTH_MAX.saturating_sub(self.path.tokens.len());
        depth(value, limit).map(drop).ok_or_else(|| {
            PatchError::TooLarge(format!("operation {} would nest deeper than {DEPTH_MAX} levels", self.index))
        })
    }

    fn missing(&self, path: &Pointer<'_>) -> PatchError {
        self.refuse(path, "missing value")
    }

    fn refuse(&self, path: &Pointer<'_>, why: &str) -> PatchError {
        let verb = match self.verb {
            Verb::Add(_) => "add",
            Verb::Remove => "remove",
            Verb::Replace(_) => "replace",
            Verb::Move(_) => "move",
            Verb::Copy(_) => "copy",
            Verb::Test(_) => "test",
        };
        PatchError::does_not_fit("", format!("{verb} operation {} does not apply: {:?}: {why}", self.index, path.text))
    }
}

impl<'a> Pointer<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self { text, tokens: Vec::new() });
        }
        let tokens: Option<Vec<String>> = text.strip_prefix('/')?.split('/').map(unescape).collect();
        Some(Self { text, tokens: tokens? })
    }
}

/// `~1` is a slash, `~0` a tilde, and nothing else may follow a tilde.
fn unescape(token: &str) -> Option<String> {
    let mut plain = String::with_capacity(token.len());
    let mut letters = token.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '~' => plain.push(match letters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            }),
            _ => plain.push(letter),
        }
    }
    Some(plain)
}

/// Digits without a leading zero.
fn array_index(token: &str) -> Option<usize> {
    let plain = token == "0" || (!token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { token.parse().ok() } else { None }
}

fn descend_mut<'v>(target: &'v mut Value, tokens: &[String]) -> Option<&'v mut Value> {
    tokens.iter().try_fold(target, |value, token| match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(list) => list.get_mut(array_index(token)?),
        _ => None,
    })
}

/// Equality of RFC 6902, section 4.6: numbers by value, so that `1` equals `1.0`.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(one), Value::Number(other)) if one.is_f64() || other.is_f64() => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| same(one, other)))
        }
        _ => left == right,
    }
}

/// Roughly what the value takes as JSON; stops counting beyond `limit`.
fn bytes_of(value: &Value, limit: usize) -> usize {
    let mut bytes = 8;
    match value {
        Value::String(text) => bytes += text.len(),
        Value::Array(items) => {
            for item in items {
                if bytes > limit {
                    break;
                }
                bytes += bytes_of(item, limit.saturating_sub(bytes));
            }
        }
        Value::Object(map) => {
            for (name, item) in map {
                if bytes > limit {
                    break;
                }
                bytes += name.len() + bytes_of(item, limit.saturating_sub(bytes));
            }
        }
        _ => {}
    }
    bytes
}
