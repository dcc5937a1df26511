//! When a technician's change ends by itself: the annotation `flotilla.dev/override-expires` of a write at the device.
//!
//! `2h`, `1d12h` or a time; `never` takes an earlier one back. It is a word to this device about the change and never part of it.
//! Pure. Start at [`take`].

use flotilla_manifests::api_error::{ApiError, Violation};
use flotilla_manifests::object::Object;
use flotilla_manifests::overrides::{OverrideRecord, Revision};
use flotilla_manifests::time::Timestamp;

/// Where the wish stands.
pub(super) const EXPIRES_ANNOTATION: &str = "flotilla.dev/override-expires";
/// A change that is to stay longer has no expiry.
const SECONDS_MAX: u64 = 10 * 366 * 86_400;

/// What a write says about its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    Unsaid,
    Never,
    At(Timestamp),
}

impl Expiry {
    pub(super) fn time(self) -> Option<Timestamp> {
        match self {
            Self::At(time) => Some(time),
            Self::Unsaid | Self::Never => None,
        }
    }

    /// A write that says nothing but when: it is meant for the changes that stand.
    pub(super) fn extend(self, revision: &mut Revision, uid: &str, records: &[OverrideRecord]) {
        if self == Self::Unsaid || revision.created.is_some() {
            return;
        }
        for record in records.iter().filter(|record| record.target.uid == uid) {
            if revision.ended.contains(&record.id) || record.expires == self.time() {
                continue;
            }
            match revision.rewritten.iter_mut().find(|rewritten| rewritten.id == record.id) {
                Some(rewritten) => rewritten.expires = self.time(),
                None => revision.rewritten.push(OverrideRecord { expires: self.time(), ..record.clone() }),
            }
        }
    }
}

/// Takes the annotation off what is wanted. One that the base itself has is the manifest's and says nothing here.
///
/// # Errors
/// 422 for a text that is neither a span nor a time to come.
pub(super) fn take(wanted: &mut Object, base: &Object, now: Timestamp) -> Result<Expiry, ApiError> {
    let key = wanted.key();
    let of_base = base.annotation(EXPIRES_ANNOTATION);
    let Some(stated) = wanted.annotation(EXPIRES_ANNOTATION).map(str::to_owned) else { return Ok(Expiry::Unsaid) };
    if of_base == Some(stated.as_str()) {
        return Ok(Expiry::Unsaid);
    }
    let metadata = wanted.metadata_mut();
    if let Some(annotations) = metadata.get_mut("annotations").and_then(serde_json::Value::as_object_mut) {
        match of_base {
            Some(text) => drop(annotations.insert(EXPIRES_ANNOTATION.to_owned(), text.into())),
            None => drop(annotations.remove(EXPIRES_ANNOTATION)),
        }
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let text = stated.trim();
    parse(text, now).map_err(|why| {
        let field = format!("metadata.annotations[{EXPIRES_ANNOTATION}]");
        let message = format!("Invalid value: {text:?}: {why}");
        ApiError::invalid(&key, vec![Violation { reason: "FieldValueInvalid", field, message }])
    })
}

fn parse(text: &str, now: Timestamp) -> Result<Expiry, &'static str> {
    if text == "never" {
        return Ok(Expiry::Never);
    }
    let time = match span_seconds(text) {
        Some(seconds) if seconds > SECONDS_MAX => return Err("must be at most ten years"),
        Some(seconds) => Timestamp(now.0.saturating_add(seconds * 1000)),
        None => Timestamp::parse(text)
            .ok_or("must be a span such as 90m, 2h or 1d12h, a time such as 2026-11-21T18:00:00Z, or never")?,
    };
    if time <= now { Err("lies in the past by this device's clock") } else { Ok(Expiry::At(time)) }
}

/// `1d12h` in seconds; `None` for anything else.
fn span_seconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes().get(digits)? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn spans_and_times() {
        let check = |text: &str, expected: Option<Expiry>| {
            assert_eq!(parse(text, Timestamp(1_000)).ok(), expected, "{text:?}");
        };
        check("2h", Some(Expiry::At(Timestamp(7_201_000))));
        check("1d12h30m5s", Some(Expiry::At(Timestamp(131_406_000))));
        check("1w", Some(Expiry::At(Timestamp(604_801_000))));
        check("1970-01-01T00:00:02Z", Some(Expiry::At(Timestamp(2_000))));
        check("never", Some(Expiry::Never));
        for bad in ["", "2", "h", "2x", "-2h", "0s", "1970-01-01T00:00:01Z", "11000d", "99999999999999999999h", "2h "] {
            check(bad, None);
        }
    }
}
