//! Field selectors: `metadata.name=web,status.phase!=Failed`, with the fields kube-apiserver supports for each kind.

use std::fmt;

use serde_json::Value;

use super::{SELECTOR_BYTES_MAX, SELECTOR_TERMS_MAX};
use crate::api_error::{ApiError, Reason};
use crate::kind::KindRef;
use crate::object::Object;

/// A conjunction of equalities and inequalities over fields; empty selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    /// `status.phase`
    field: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Reads a `fieldSelector` query parameter for objects of `kind`.
    ///
    /// # Errors
    /// 400 for bad syntax or a field that cannot be selected by.
    pub fn parse(text: &str, kind: KindRef) -> Result<Self, ApiError> {
        let bad =
            |why: String| ApiError::of(Reason::BadRequest, format!("unable to parse field selector {text:?}: {why}"));
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(ApiError::of(
                Reason::BadRequest,
                format!("unable to parse field selector: longer than {SELECTOR_BYTES_MAX} bytes"),
            ));
        }
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            if terms.len() >= SELECTOR_TERMS_MAX {
                return Err(bad(format!("more than {SELECTOR_TERMS_MAX} terms")));
            }
            let (field, equal, value) = split_term(part)
                .ok_or_else(|| bad(format!("invalid selector: '{part}'; can't understand '{part}'")))?;
            let value = unescape(value).map_err(bad)?;
            if supported(kind, field).is_none() {
                return Err(ApiError::of(
                    Reason::BadRequest,
                    format!("field label {field:?} not supported for {kind}: field label not supported: {field}"),
                ));
            }
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value a `field=value` term demands, if there is one: lets a store look up by name.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.terms.iter().all(|term| (text_of(object, &term.field) == term.value) == term.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let sign = if term.equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(formatter, "{comma}{}{sign}{value}", term.field)?;
        }
        Ok(())
    }
}

/// How a selectable field is read when it is absent.
fn supported(kind: KindRef, field: &str) -> Option<&'static str> {
    if matches!(field, "metadata.name" | "metadata.namespace") {
        return Some("");
    }
    let rows: &[(&str, &'static str)] = match (kind.group, kind.name) {
        ("", "Pod") => &[
            ("spec.nodeName", ""),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("spec.hostNetwork", "false"),
            ("status.phase", ""),
            ("status.podIP", ""),
            ("status.podIPs", ""),
            ("status.nominatedNodeName", ""),
        ],
        ("apps", "ReplicaSet") => &[("status.replicas", "0")],
        ("", "Node") => &[("spec.unschedulable", "false")],
        ("", "Namespace") => &[("status.phase", "")],
        ("", "Secret") => &[("type", "")],
        ("flotilla.dev", "Override") => {
            &[("spec.nodeName", ""), ("spec.author", ""), ("spec.target.kind", ""), ("spec.target.name", "")]
        }
        ("", "Event") => &[
            ("involvedObject.kind", ""),
            ("involvedObject.namespace", ""),
            ("involvedObject.name", ""),
            ("involvedObject.uid", ""),
            ("involvedObject.apiVersion", ""),
            ("involvedObject.resourceVersion", ""),
            ("involvedObject.fieldPath", ""),
            ("reason", ""),
            ("reportingComponent", ""),
            ("source", ""),
            ("type", ""),
        ],
        _ => &[],
    };
    rows.iter().find(|(name, _)| *name == field).map(|(_, absent)| *absent)
}

/// The field as text, as kube-apiserver would index it.
fn text_of(object: &Object, field: &str) -> String {
    // An Event's two special fields do not lie where their labels say.
    match field {
        "source" => {
            let component = object.text("/source/component");
            return if component.is_empty() { object.text("/reportingComponent") } else { component }.to_owned();
        }
        "status.podIPs" => {
            let ips = object.at("/status/podIPs").and_then(Value::as_array);
            let texts = ips.into_iter().flatten().filter_map(|entry| entry.get("ip").and_then(Value::as_str));
            return texts.collect::<Vec<_>>().join(",");
        }
        _ => {}
    }
    let mut value = Some(object.value());
    for name in field.split('.') {
        value = value.and_then(|value| value.get(name));
    }
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(yes)) => yes.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => supported(object.kind(), field).unwrap_or("").to_owned(),
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// `(field, equal, value)` at the first sign.
fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    let field = field.trim();
    if let Some(value) = rest.strip_prefix("!=") {
        Some((field, false, value))
    } else if let Some(value) = rest.strip_prefix("==") {
        Some((field, true, value))
    } else {
        rest.strip_prefix('=').map(|value| (field, true, value))
    }
}

/// `\,`, `\=` and `\\` stand for the second character; other escapes and a bare sign are refused.
fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                _ => return Err(format!("invalid field selector: invalid escape sequence in value: {text}")),
            },
            '=' | ',' => return Err(format!("invalid field selector: unescaped character in value: {letter:?}")),
            _ => plain.push(letter),
        }
    }
    Ok(plain)
}
