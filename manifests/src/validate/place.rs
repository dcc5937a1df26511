//! Where a rule stands in an object, and the list of faults it adds to.

use std::fmt;

use serde_json::Value;

use super::FAULTS_MAX;
use crate::api_error::Violation;
use crate::schema;

const FIELD_BYTES_MAX: usize = 1024;
const MESSAGE_BYTES_MAX: usize = 4096;
/// Longest value shown in a message.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// A path as a chain up to the root: written out only when there is a fault to tell.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(formatter)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if parent.parent.is_none() => formatter.write_str(name),
            Step::Field(name) => write!(formatter, ".{name}"),
            Step::Index(index) => write!(formatter, "[{index}]"),
            Step::Key(key) => write!(formatter, "[{key}]"),
        }
    }
}

/// A value and its path; an absent value is null.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    path: Path<'a>,
    pub(super) value: &'a Value,
}

impl<'a> At<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { path: Path { parent: None, step: Step::Root }, value }
    }

    pub(super) fn field(&'a self, name: &'a str) -> Self {
        Self { path: Path { parent: Some(&self.path), step: Step::Field(name) }, value: &self.value[name] }
    }

    /// The items of a list; none if it is no list.
    pub(super) fn items(&'a self) -> impl Iterator<Item = Self> {
        let list = self.value.as_array().into_iter().flatten().enumerate();
        list.map(|(index, value)| Self { path: Path { parent: Some(&self.path), step: Step::Index(index) }, value })
    }

    /// The entries of a map; none if it is no map.
    pub(super) fn entries(&'a self) -> impl Iterator<Item = (&'a str, Self)> {
        let map = self.value.as_object().into_iter().flatten();
        map.map(|(key, value)| {
            (key.as_str(), Self { path: Path { parent: Some(&self.path), step: Step::Key(key) }, value })
        })
    }

    /// The text here; empty if there is none.
    pub(super) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    /// Whether something is said here: not absent, not the empty text.
    pub(super) fn is_said(&self) -> bool {
        !self.value.is_null() && self.value.as_str() != Some("")
    }

    pub(super) fn is_true(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    pub(super) fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(super) fn path(&self) -> String {
        self.path.to_string()
    }
}

/// The faults found so far, at most [`FAULTS_MAX`].
#[derive(Default)]
pub(super) struct Faults {
    list: Vec<Violation>,
}

impl Faults {
    pub(super) fn into_list(self) -> Vec<Violation> {
        self.list
    }

    /// One fault for one place and reason: the first rule to see it words it best.
    pub(super) fn push(&mut self, reason: &'static str, field: String, message: String) {
        let (field, message) = (schema::bounded(&field, FIELD_BYTES_MAX), schema::bounded(&message, MESSAGE_BYTES_MAX));
        let known = |fault: &Violation| {
            fault.field == field
                && fault.reason == reason
                && (reason == "FieldValueRequired" || fault.message == message)
        };
        if self.list.len() < FAULTS_MAX && !self.list.iter().any(known) {
            self.list.push(Violation { reason, field, message });
        }
    }

    pub(super) fn extend(&mut self, faults: Vec<Violation>) {
        for fault in faults {
            self.push(fault.reason, fault.field, fault.message);
        }
    }

    /// Whether a fault of this place is known.
    pub(super) fn has(&self, at: &At<'_>) -> bool {
        let path = at.path();
        self.list.iter().any(|fault| fault.field == path)
    }

    pub(super) fn required(&mut self, at: &At<'_>, detail: &str) {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.push("FieldValueRequired", at.path(), message);
    }

    pub(super) fn invalid(&mut self, at: &At<'_>, why: &str) {
        self.invalid_as(at, at.value, why);
    }

    /// As [`invalid`](Self::invalid), with another value shown: a key, or what the place would be without its secrets.
    pub(super) fn invalid_as(&mut self, at: &At<'_>, value: &Value, why: &str) {
        self.push("FieldValueInvalid", at.path(), format!("Invalid value: {}: {why}", shown(value)));
    }

    pub(super) fn unsupported(&mut self, at: &At<'_>, supported: &[&str]) {
        let supported = supported.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {}: supported values: {supported}", shown(at.value));
        self.push("FieldValueNotSupported", at.path(), message);
    }

    pub(super) fn duplicate(&mut self, at: &At<'_>, value: &Value) {
        self.push("FieldValueDuplicate", at.path(), format!("Duplicate value: {}", shown(value)));
    }

    pub(super) fn forbidden(&mut self, at: &At<'_>, why: &str) {
        self.push("FieldValueForbidden", at.path(), format!("Forbidden: {why}"));
    }

    pub(super) fn not_found(&mut self, at: &At<'_>) {
        self.push("FieldValueNotFound", at.path(), format!("Not found: {}", shown(at.value)));
    }

    pub(super) fn too_long(&mut self, at: &At<'_>, limit_bytes: usize) {
        let message = format!("Too long: may not be more than {limit_bytes} bytes");
        self.push("FieldValueTooLong", at.path(), message);
    }

    pub(super) fn too_many(&mut self, at: &At<'_>, actual: usize, limit: usize) {
        self.push("FieldValueTooMany", at.path(), format!("Too many: {actual}: must have at most {limit} items"));
    }

    /// A text that must follow a syntax; says nothing about an absent one.
    pub(super) fn syntax(&mut self, at: &At<'_>, check: impl Fn(&str) -> Result<(), &'static str>) {
        if at.is_said()
            && let Err(why) = check(at.text())
        {
            self.invalid(at, why);
        }
    }

    /// A text that must be there and follow a syntax.
    pub(super) fn required_syntax(&mut self, at: &At<'_>, check: impl Fn(&str) -> Result<(), &'static str>) {
        if at.is_said() { self.syntax(at, check) } else { self.required(at, "") }
    }

    /// A text that, if said, is one of these.
    pub(super) fn one_of(&mut self, at: &At<'_>, supported: &[&str]) {
        if at.is_said() && !supported.contains(&at.text()) {
            self.unsupported(at, supported);
        }
    }

    /// A number that, if said, is within bounds.
    pub(super) fn within(&mut self, at: &At<'_>, least: i64, most: i64) {
        if at.number().is_some_and(|number| !(least..=most).contains(&number)) {
            self.invalid(at, &format!("must be between {least} and {most}, inclusive"));
        }
    }

    pub(super) fn not_negative(&mut self, at: &At<'_>) {
        if at.number().is_some_and(|number| number < 0) {
            self.invalid(at, "must be greater than or equal to 0");
        }
    }
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
