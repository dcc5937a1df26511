//! JSON (RFC 8259) that remembers which keys stood twice.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{DEPTH_MAX, DecodeError, Decoded, report_duplicate};

#[derive(Default)]
struct State {
    path: String,
    depth: usize,
    too_deep: bool,
    duplicates: Vec<String>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Decoded<Value>, DecodeError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(DecodeError::Empty);
    }
    let mut state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let result = Seed(&mut state).deserialize(&mut deserializer);
    match result.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok(Decoded { value, duplicates: state.duplicates }),
        Err(error) if state.too_deep => Err(DecodeError::TooDeep { limit: DEPTH_MAX, line: error.line() }),
        Err(error) => {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
            Err(DecodeError::Syntax {
                what: format!("invalid JSON: {what}"),
                line: error.line(),
                column: error.column(),
            })
        }
    }
}

struct Seed<'a>(&'a mut State);

impl Seed<'_> {
    fn descend<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.0.depth += 1;
        if self.0.depth > DEPTH_MAX {
            self.0.too_deep = true;
            return Err(E::custom("nested too deep"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        self.descend()?;
        let state = self.0;
        let length = state.path.len();
        let mut list = Vec::new();
        loop {
            state.path.push_str(&format!("[{}]", list.len()));
            let Some(value) = access.next_element_seed(Seed(state))? else { break };
            list.push(value);
            state.path.truncate(length);
        }
        state.path.truncate(length);
        state.depth -= 1;
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        self.descend()?;
        let state = self.0;
        let length = state.path.len();
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if length > 0 {
                state.path.push('.');
            }
            state.path.push_str(&key);
            if map.contains_key(&key) {
                let text = format!("duplicate field \"{}\"", state.path);
                report_duplicate(&mut state.duplicates, &text);
            }
            let value = access.next_value_seed(Seed(state))?;
            map.insert(key, value);
            state.path.truncate(length);
        }
        state.depth -= 1;
        Ok(Value::Object(map))
    }
}
