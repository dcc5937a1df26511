//! The canonical digest of a JSON value.
//!
//! Two values have the same digest when they mean the same: members are ordered by name and members that are `null` count as
//! absent. Numbers are written as serde_json writes them, so `1` and `1.0` differ.

use ring::digest::{Context, SHA256};
use serde_json::Value;

/// SHA-256 over the canonical text.
pub fn of_value(value: &Value) -> [u8; 32] {
    let mut text = Vec::with_capacity(256);
    write_canonical(value, &mut text);
    of_parts("flotilla/value/1", &[&text])
}

/// [`of_value`] as `sha256:<64 hex digits>`.
pub fn text_of_value(value: &Value) -> String {
    let mut text = String::from("sha256:");
    for byte in of_value(value) {
        push_hex(&mut text, byte);
    }
    text
}

/// SHA-256 over parts, each with its length before it, under a name for what is hashed, so that no two uses collide.
pub fn of_parts(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in std::iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// The first eight bytes of a digest, as a number.
pub(crate) fn leading_u64(digest: &[u8; 32]) -> u64 {
    digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// `length` characters of Kubernetes' alphabet without vowels and look-alikes (`k8s.io/apimachinery/pkg/util/rand`); at most
/// 24 of them are told by a digest.
pub fn safe_text(digest: &[u8; 32], length: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut number = digest[..16].iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let base = ALPHABET.len() as u128;
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        let index = usize::try_from(number % base).unwrap_or(0);
        text.push(char::from(ALPHABET[index]));
        number /= base;
    }
    text
}

pub(crate) fn push_hex(text: &mut String, byte: u8) {
    for digit in [byte >> 4, byte & 15] {
        text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
    }
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().filter(|(_, member)| !member.is_null()).collect();
            members.sort_by_key(|(name, _)| name.as_str());
            out.push(b'{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_scalar(&Value::String(name.clone()), out);
                out.push(b':');
                write_canonical(member, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        scalar => write_scalar(scalar, out),
    }
}

fn write_scalar(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_and_nulls_do_not_matter_but_everything_else_does() {
        let one = json!({"a": 1, "b": [{"x": null, "y": "z"}]});
        assert_eq!(text_of_value(&one), text_of_value(&json!({"b": [{"y": "z"}], "a": 1, "c": null})));
        for other in [json!({"a": 1, "b": []}), json!({"a": "1", "b": [{"y": "z"}]}), json!([1]), json!(null)] {
            assert_ne!(text_of_value(&one), text_of_value(&other), "{other}");
        }
    }

    #[test]
    fn the_digest_is_the_one_ever_shipped() {
        assert_eq!(
            text_of_value(&json!({"replicas": 3, "name": "web"})),
            "sha256:8da08826f3173410b1f6417f7c1aa1e63950d83961a28dba28fe20b8105fe8f3"
        );
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(of_parts("d", &[b"ab", b"c"]), of_parts("d", &[b"a", b"bc"]));
    }
}
