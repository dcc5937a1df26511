//! YAML as Kubernetes reads it: plain scalars by the rules of YAML 1.1 (`0644` is octal, `yes` a boolean), merge keys, anchors; the
//! result is JSON.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::{ALIAS_BYTES_MAX, DEPTH_MAX, DOCUMENTS_MAX, DecodeError, Decoded, json, report_duplicate};

pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Decoded<Value>>, DecodeError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        DecodeError::Syntax { what: "invalid UTF-8".to_owned(), line, column: 0 }
    })?;
    if text.trim_start().starts_with('{')
        && let Ok(value) = json::parse(bytes)
    {
        return Ok(vec![value]);
    }
    let mut reader = Reader::default();
    let mut parser = Parser::new_from_str(text);
    while let Some((event, span)) = next(&mut parser)? {
        reader.event(event, span)?;
    }
    Ok(reader.documents)
}

fn next<'input>(parser: &mut Parser<'input, StrInput<'input>>) -> Result<Option<(Event<'input>, Span)>, DecodeError> {
    match parser.next_event() {
        None => Ok(None),
        Some(Ok(event)) => Ok(Some(event)),
        Some(Err(error)) => {
            let mark = error.marker();
            let what = format!("invalid YAML: {}", error.info());
            Err(DecodeError::Syntax { what, line: mark.line(), column: mark.col() + 1 })
        }
    }
}

/// A list or map that is still open.
struct Frame {
    anchor: usize,
    is_map: bool,
    list: Vec<Value>,
    map: Map<String, Value>,
    /// The key whose value comes next.
    key: Option<Key>,
    /// Values of `<<`.
    merged: Vec<Value>,
}

enum Key {
    Name(String),
    Merge,
}

/// An anchored value and what a copy of it costs.
struct Anchored {
    value: Value,
    bytes: usize,
    depth: usize,
}

#[derive(Default)]
struct Reader {
    documents: Vec<Decoded<Value>>,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    alias_bytes: usize,
    duplicates: Vec<String>,
    root: Value,
}

impl Reader {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), DecodeError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::DocumentEnd => self.end_document(),
            Event::Alias(anchor) => self.alias(anchor, span),
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                if self.wants_key() {
                    let plain = style == ScalarStyle::Plain && tag.is_none();
                    return self.key(&text, plain, span);
                }
                let value = scalar(&text, style, tag).map_err(|what| fault(what, span))?;
                self.place(value, anchor, span)
            }
            Event::SequenceStart(anchor, tag) => self.open(anchor, tag.as_deref(), false, span),
            Event::MappingStart(anchor, tag) => self.open(anchor, tag.as_deref(), true, span),
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
        }
    }

    fn end_document(&mut self) -> Result<(), DecodeError> {
        let value = std::mem::take(&mut self.root);
        let duplicates = std::mem::take(&mut self.duplicates);
        if value.is_null() {
            return Ok(());
        }
        if self.documents.len() == DOCUMENTS_MAX {
            return Err(DecodeError::TooManyDocuments { limit: DOCUMENTS_MAX });
        }
        self.documents.push(Decoded { value, duplicates });
        Ok(())
    }

    fn wants_key(&self) -> bool {
        self.frames.last().is_some_and(|frame| frame.is_map && frame.key.is_none())
    }

    fn key(&mut self, text: &str, plain: bool, span: Span) -> Result<(), DecodeError> {
        let key = match text {
            "<<" if plain => Key::Merge,
            _ if plain => Key::Name(plain_key(text).map_err(|what| fault(what, span))?),
            _ => Key::Name(text.to_owned()),
        };
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        if let Key::Name(name) = &key
            && frame.map.contains_key(name)
        {
            let report = format!("line {}: key {name:?} already set in map", span.start.line());
            report_duplicate(&mut self.duplicates, &report);
        }
        frame.key = Some(key);
        Ok(())
    }

    fn open(&mut self, anchor: usize, tag: Option<&Tag>, is_map: bool, span: Span) -> Result<(), DecodeError> {
        if self.wants_key() {
            return Err(fault("a list or map cannot be a key".to_owned(), span));
        }
        let expected = if is_map { "map" } else { "seq" };
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == expected)
        {
            return Err(fault(format!("the tag {} is not supported", written(tag)), span));
        }
        if self.frames.len() == DEPTH_MAX {
            return Err(DecodeError::TooDeep { limit: DEPTH_MAX, line: span.start.line() });
        }
        let (list, map, merged) = (Vec::new(), Map::new(), Vec::new());
        self.frames.push(Frame { anchor, is_map, list, map, key: None, merged });
        Ok(())
    }

    fn close(&mut self, span: Span) -> Result<(), DecodeError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let Frame { anchor, is_map, list, mut map, merged, .. } = frame;
        if !is_map {
            return self.place(Value::Array(list), anchor, span);
        }
        for source in merged {
            let sources = match source {
                Value::Array(list) => list,
                other => vec![other],
            };
            for source in sources {
                let Value::Object(source) = source else {
                    return Err(fault("`<<` needs a map or a list of maps".to_owned(), span));
                };
                for (name, value) in source {
                    map.entry(name).or_insert(value);
                }
            }
        }
        self.place(Value::Object(map), anchor, span)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), DecodeError> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(fault("an alias inside the value it names".to_owned(), span));
        };
        self.alias_bytes += anchored.bytes;
        if self.alias_bytes > ALIAS_BYTES_MAX {
            return Err(DecodeError::TooExpanded { limit_bytes: ALIAS_BYTES_MAX });
        }
        if self.frames.len() + anchored.depth > DEPTH_MAX {
            return Err(DecodeError::TooDeep { limit: DEPTH_MAX, line: span.start.line() });
        }
        let value = anchored.value.clone();
        match (&value, self.wants_key()) {
            (Value::String(text), true) => self.key(text, false, span),
            (_, true) => Err(fault("an alias used as a key must name a string".to_owned(), span)),
            (_, false) => self.place(value, 0, span),
        }
    }

    fn place(&mut self, value: Value, anchor: usize, span: Span) -> Result<(), DecodeError> {
        if anchor > 0 {
            let (bytes, depth) = weight(&value);
            self.alias_bytes += bytes;
            if self.alias_bytes > ALIAS_BYTES_MAX {
                return Err(DecodeError::TooExpanded { limit_bytes: ALIAS_BYTES_MAX });
            }
            self.anchors.insert(anchor, Anchored { value: value.clone(), bytes, depth });
        }
        match self.frames.last_mut() {
            None => self.root = value,
            Some(frame) if !frame.is_map => frame.list.push(value),
            Some(frame) => match frame.key.take() {
                Some(Key::Name(name)) => {
                    frame.map.insert(name, value);
                }
                Some(Key::Merge) => frame.merged.push(value),
                None => return Err(fault("a list or map cannot be a key".to_owned(), span)),
            },
        }
        Ok(())
    }
}

fn fault(what: String, span: Span) -> DecodeError {
    DecodeError::Syntax { what, line: span.start.line(), column: span.start.col() + 1 }
}

/// Bytes a copy of a value takes, about, and its levels.
fn weight(value: &Value) -> (usize, usize) {
    const VALUE_BYTES: usize = 32;
    match value {
        Value::String(text) => (VALUE_BYTES + text.len(), 0),
        Value::Array(list) => list
            .iter()
            .map(weight)
            .fold((VALUE_BYTES, 1), |(bytes, depth), (child, below)| (bytes + child, depth.max(below + 1))),
        Value::Object(map) => map.iter().fold((VALUE_BYTES, 1), |(bytes, depth), (name, value)| {
            let (child, below) = weight(value);
            (bytes + child + VALUE_BYTES + name.len(), depth.max(below + 1))
        }),
        _ => (VALUE_BYTES, 0),
    }
}

fn plain_key(text: &str) -> Result<String, String> {
    match plain(text)? {
        Value::Null => Err("a map has a key without a name".to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        // `on:` and `y:` are the names they look like; Kubernetes' reading of them as `true:` helps nobody.
        _ => Ok(text.to_owned()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain { plain(text) } else { Ok(Value::String(text.to_owned())) };
    };
    let value = match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
        (true, "str") => return Ok(Value::String(text.to_owned())),
        (true, "int" | "float" | "bool" | "null") => plain(text)?,
        _ if tag.handle.is_empty() && tag.suffix == "!" => return Ok(Value::String(text.to_owned())),
        _ => return Err(format!("the tag {} is not supported", written(tag))),
    };
    let fits = match tag.suffix.as_str() {
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        "bool" => value.is_boolean(),
        _ => value.is_null(),
    };
    if fits { Ok(value) } else { Err(format!("{text:?} is not what its tag {} says", written(tag))) }
}

/// A tag as its author wrote it.
fn written(tag: &Tag) -> String {
    if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { format!("{}{}", tag.handle, tag.suffix) }
}

/// A plain scalar by YAML 1.1.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Ok(Value::Bool(true));
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Ok(Value::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" => return Err("JSON has no NaN".to_owned()),
        _ => {}
    }
    if matches!(text.trim_start_matches(['+', '-']), ".inf" | ".Inf" | ".INF") {
        return Err("JSON has no infinity".to_owned());
    }
    let looks_numeric = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    if !looks_numeric {
        return Ok(Value::String(text.to_owned()));
    }
    let digits = text.replace('_', "");
    let number = integer(&digits).or_else(|| float(&digits));
    Ok(number.unwrap_or_else(|| Value::String(text.to_owned())))
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    if !negative {
        return u64::from_str_radix(digits, radix).ok().map(Value::from);
    }
    i64::from_str_radix(&format!("-{digits}"), radix).ok().map(Value::from)
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let all_digits = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_fits = all_digits(whole) && all_digits(part) && !(whole.is_empty() && part.is_empty());
    let exponent_fits = exponent.is_none_or(|digits| !digits.is_empty() && all_digits(digits));
    if !mantissa_fits || !exponent_fits {
        return None;
    }
    text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
}
