//! Kubernetes' protobuf bodies (`application/vnd.kubernetes.protobuf`) as the JSON they stand for.
//!
//! Typed clients send them by default since client-go 0.32: `kubectl create`, `kubectl drain`, controllers. Owns the wire format
//! (proto2 as gogo-proto writes it) and the rules between Go's structs and their JSON; what a field is called comes from the
//! generated table `schema/protobuf.json`, what it is from the schema tables. Refuses to write protobuf: answers are JSON.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::{BODY_BYTES_MAX, DEPTH_MAX, DecodeError};
use crate::kind;
use crate::schema::{self, Schema, Type};
use crate::time::Timestamp;

/// One message a line: `"<schema>":{"<number>":"<field>"},`.
const TABLE: &str = include_str!("../../schema/protobuf.json");
/// `k8s` and a zero: what every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Values one body may hold: an empty message takes two bytes on the wire and much more in memory.
pub const VALUES_MAX: usize = 250_000;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Bodies that are no stored objects.
const PROTOCOL_KINDS: [(&str, &str, &str); 5] = [
    ("policy/v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
    ("autoscaling/v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview", "io.k8s.api.authorization.v1.SelfSubjectAccessReview"),
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview", "io.k8s.api.authorization.v1.SelfSubjectRulesReview"),
    ("authentication.k8s.io/v1", "SelfSubjectReview", "io.k8s.api.authentication.v1.SelfSubjectReview"),
];

/// Plain fields of Go's structs, whose zero says nothing; a pointer's zero (`spec.replicas: 0`) does.
const ZERO_SAYS_NOTHING: [&str; 27] = [
    "containerPort",
    "count",
    "failureThreshold",
    "generation",
    "globalDefault",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "observedGeneration",
    "orphan",
    "paused",
    "periodSeconds",
    "readOnly",
    "restartCount",
    "stdin",
    "stdinOnce",
    "successThreshold",
    "terminating",
    "timeoutSeconds",
    "tty",
    "unavailableReplicas",
    "unschedulable",
    "updatedReplicas",
    "ready",
];

/// The value a body stands for, with its `apiVersion` and `kind`.
///
/// # Errors
/// Limits, a body that is cut short or no protobuf of Kubernetes, a kind that is not served.
pub fn value(bytes: &[u8]) -> Result<Value, DecodeError> {
    if bytes.len() > BODY_BYTES_MAX {
        return Err(DecodeError::TooLarge { limit_bytes: BODY_BYTES_MAX, actual_bytes: bytes.len() });
    }
    let body = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin with the bytes k8s\\0"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(body) {
        let (number, wire) = field?;
        match number {
            1 => {
                for field in fields(wire.bytes()?) {
                    match field? {
                        (1, wire) => api_version = wire.text()?.to_owned(),
                        (2, wire) => kind = wire.text()?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes()?,
            3 if !wire.bytes()?.is_empty() => return Err(bad("it is compressed, which is not read here")),
            _ => {}
        }
    }
    let schema = schema_of(&api_version, &kind).ok_or_else(|| crate::object::ObjectError::UnknownKind {
        api_version: api_version.clone(),
        kind: kind.clone(),
    })?;
    let mut reader = Reader { values_left: VALUES_MAX };
    let mut map = reader.message(raw, schema, DEPTH_MAX)?;
    map.insert("apiVersion".to_owned(), api_version.into());
    map.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(map))
}

fn schema_of(api_version: &str, kind: &str) -> Option<Schema> {
    if kind == "DeleteOptions" {
        return schema::named(&format!("{META}DeleteOptions"));
    }
    if let Some((_, _, name)) =
        PROTOCOL_KINDS.iter().find(|(version, name, _)| (*version, *name) == (api_version, kind))
    {
        return schema::named(name);
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    kind::find(group, kind).filter(|row| row.version == version).map(schema::of)
}

fn bad(what: &str) -> DecodeError {
    DecodeError::Protobuf { what: what.to_owned() }
}

/// Field number to name, by message.
type Names = BTreeMap<&'static str, BTreeMap<u64, &'static str>>;

/// A name that begins with `>` is a message whose fields stand in JSON where this one is.
fn names() -> &'static Names {
    static NAMES: OnceLock<Names> = OnceLock::new();
    NAMES.get_or_init(|| {
        let row = |line: &'static str| -> Option<(&'static str, BTreeMap<u64, &'static str>)> {
            let (name, row) = line.trim_end_matches(',').strip_prefix('"')?.split_once("\":")?;
            let row: BTreeMap<&'static str, &'static str> = serde_json::from_str(row).ok()?;
            Some((name, row.into_iter().filter_map(|(number, name)| Some((number.parse().ok()?, name))).collect()))
        };
        TABLE.lines().filter_map(row).collect()
    })
}

struct Reader {
    values_left: usize,
}

impl Reader {
    fn message(&mut self, bytes: &[u8], schema: Schema, depth: usize) -> Result<Map<String, Value>, DecodeError> {
        let mut map = Map::new();
        self.fields_into(&mut map, bytes, schema.reference_name().unwrap_or(""), schema, depth)?;
        Ok(map)
    }

    /// `message` names the fields; `schema` is that of the JSON object they stand in.
    fn fields_into(
        &mut self,
        map: &mut Map<String, Value>,
        bytes: &[u8],
        message: &str,
        schema: Schema,
        depth: usize,
    ) -> Result<(), DecodeError> {
        let below = depth.checked_sub(1).ok_or(DecodeError::TooDeep { limit: DEPTH_MAX, line: 1 })?;
        let Some(names) = names().get(message) else { return Ok(()) };
        for field in fields(bytes) {
            let (number, wire) = field?;
            // A field of a newer Kubernetes: what is not known here is not kept, as in JSON.
            let Some(name) = names.get(&number) else { continue };
            if let Some(embedded) = name.strip_prefix('>') {
                self.fields_into(map, wire.bytes()?, embedded, schema, below)?;
                continue;
            }
            let Some(field) = schema.field(name) else { continue };
            match (field.node_type(), field.items()) {
                (Type::Array, Some(item)) => {
                    let items = self.items(wire, item, below)?;
                    if let Value::Array(list) = map.entry(*name).or_insert_with(|| Value::Array(Vec::new())) {
                        list.extend(items);
                    }
                }
                (Type::Map, Some(values)) => {
                    let (key, value) = self.entry(wire.bytes()?, values, below)?;
                    if let Value::Object(entries) = map.entry(*name).or_insert_with(|| Value::Object(Map::new())) {
                        entries.insert(key, value);
                    }
                }
                _ => {
                    let value = self.one(wire, field, below)?;
                    if !says_nothing(name, &value) {
                        map.insert((*name).to_owned(), value);
                    }
                }
            }
        }
        Ok(())
    }

    /// What one field of a list holds: one item, or numbers packed together.
    fn items(&mut self, wire: Wire<'_>, item: Schema, depth: usize) -> Result<Vec<Value>, DecodeError> {
        let Wire::Bytes(bytes) = wire else { return Ok(vec![self.one(wire, item, depth)?]) };
        if !matches!(item.node_type(), Type::Int32 | Type::Int64 | Type::Boolean) {
            return Ok(vec![self.one(wire, item, depth)?]);
        }
        let mut rest = bytes;
        let mut items = Vec::new();
        while !rest.is_empty() {
            let number = varint(&mut rest)?;
            items.push(self.one(Wire::Number(number), item, depth)?);
        }
        Ok(items)
    }

    fn entry(&mut self, bytes: &[u8], values: Schema, depth: usize) -> Result<(String, Value), DecodeError> {
        let mut key = String::new();
        let mut value = None;
        for field in fields(bytes) {
            match field? {
                (1, wire) => key = wire.text()?.to_owned(),
                (2, wire) => value = Some(self.one(wire, values, depth)?),
                _ => {}
            }
        }
        let absent = || match values.node_type() {
            Type::Object | Type::Map => json!({}),
            Type::Quantity => json!("0"),
            _ => json!(""),
        };
        Ok((key, value.unwrap_or_else(absent)))
    }

    fn one(&mut self, wire: Wire<'_>, schema: Schema, depth: usize) -> Result<Value, DecodeError> {
        self.values_left =
            self.values_left.checked_sub(1).ok_or_else(|| bad(&format!("it holds more than {VALUES_MAX} values")))?;
        Ok(match schema.node_type() {
            Type::Object => Value::Object(self.message(wire.bytes()?, schema, depth)?),
            Type::String => Value::String(wire.text()?.to_owned()),
            Type::Bytes => base64::engine::general_purpose::STANDARD.encode(wire.bytes()?).into(),
            Type::Boolean => (wire.number()? != 0).into(),
            Type::Int32 | Type::Int64 => wire.signed()?.into(),
            Type::Quantity => match first(wire.bytes()?, 1)? {
                Some(wire) => wire.text()?.into(),
                None => "0".into(),
            },
            Type::IntOrString => int_or_string(wire.bytes()?)?,
            Type::Time => time(wire.bytes()?, false)?,
            Type::MicroTime => time(wire.bytes()?, true)?,
            Type::Any => opaque(wire.bytes()?)?,
            // No field of a served kind is one of these: a list in a list, a floating-point number.
            Type::Array | Type::Map | Type::Number => Value::Null,
        })
    }
}

fn says_nothing(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Bool(false) => ZERO_SAYS_NOTHING.contains(&name),
        Value::Number(number) => number.as_i64() == Some(0) && ZERO_SAYS_NOTHING.contains(&name),
        // Go writes an embedded struct that holds nothing.
        Value::Object(map) => map.is_empty() && matches!(name, "metadata" | "status" | "resources" | "strategy"),
        _ => false,
    }
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let is_text = match first(bytes, 1)? {
        Some(wire) => wire.number()? == 1,
        None => false,
    };
    match first(bytes, if is_text { 3 } else { 2 })? {
        Some(wire) if is_text => Ok(wire.text()?.into()),
        Some(wire) => Ok(wire.signed()?.into()),
        None => Ok(if is_text { "".into() } else { 0.into() }),
    }
}

/// The zero time is an empty message: null in JSON.
fn time(bytes: &[u8], micro: bool) -> Result<Value, DecodeError> {
    let Some(seconds) = first(bytes, 1)? else { return Ok(Value::Null) };
    let seconds = seconds.signed()?;
    let nanos = match first(bytes, 2)? {
        Some(wire) => wire.signed()?,
        None => 0,
    };
    let milliseconds = seconds.checked_mul(1000).and_then(|whole| u64::try_from(whole).ok());
    let milliseconds = milliseconds.ok_or_else(|| bad("a time lies before 1970 or beyond what can be written"))?;
    let text = Timestamp(milliseconds).to_rfc3339();
    let micros = (nanos / 1000).clamp(0, 999_999);
    Ok(if micro { text.replace('Z', &format!(".{micros:06}Z")).into() } else { text.into() })
}

/// `RawExtension` and `FieldsV1`: JSON in bytes.
fn opaque(bytes: &[u8]) -> Result<Value, DecodeError> {
    match first(bytes, 1)? {
        None => Ok(Value::Null),
        Some(wire) => super::value(wire.bytes()?, super::Format::Json).map(|decoded| decoded.value),
    }
}

/// The last field of this number.
fn first(bytes: &[u8], number: u64) -> Result<Option<Wire<'_>>, DecodeError> {
    let mut found = None;
    for field in fields(bytes) {
        let (other, wire) = field?;
        if other == number {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(bad("a field holds a number where text or a message is expected")),
        }
    }

    fn text(self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_not_text| bad("a text is not UTF-8"))
    }

    fn number(self) -> Result<u64, DecodeError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(bad("a field holds bytes where a number is expected")),
        }
    }

    /// Negative numbers stand in two's complement.
    fn signed(self) -> Result<i64, DecodeError> {
        self.number().map(u64::cast_signed)
    }
}

/// The fields of a message in order. Ends after the first fault.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), DecodeError>> {
    let mut rest = bytes;
    let mut failed = false;
    std::iter::from_fn(move || {
        if rest.is_empty() || failed {
            return None;
        }
        let field = field(&mut rest);
        failed = field.is_err();
        Some(field)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), DecodeError> {
    let tag = varint(rest)?;
    let number = tag >> 3;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(rest)?),
        1 => Wire::Bytes(take(rest, 8)?),
        2 => {
            let length = varint(rest)?;
            Wire::Bytes(take(rest, length)?)
        }
        5 => Wire::Bytes(take(rest, 4)?),
        other => return Err(bad(&format!("wire type {other} is not one of Kubernetes'"))),
    };
    Ok((number, wire))
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], DecodeError> {
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (taken, left) = split.ok_or_else(|| bad("it is cut short"))?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first().ok_or_else(|| bad("it is cut short"))?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(bad("a number is longer than ten bytes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
