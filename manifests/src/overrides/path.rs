//! Paths by merge key: `spec.template.spec.containers[name=web].env[name=A].value`.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// Longest path read.
const PATH_BYTES_MAX: usize = 4096;

/// A place in an object that survives the reordering of lists. Names with other characters than letters, digits, `-` and
/// `_` are quoted: `metadata.labels["app.kubernetes.io/name"]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Field(String),
    /// The item of a list whose key fields have these values, as text, in the order of the keys in the schema.
    Item(Vec<(String, String)>),
}

/// A text that is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is no field path at byte {at}: {problem}")]
pub struct PathError {
    path: String,
    at: usize,
    problem: &'static str,
}

impl Path {
    pub fn of(steps: Vec<Step>) -> Self {
        Self(steps)
    }

    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// This path with one more step.
    #[must_use]
    pub fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        self.then(Step::Field(name.to_owned()))
    }

    /// Whether this is `other` or a place inside it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

/// The text a key field is compared by; `None` for what is no scalar.
pub(super) fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if is_plain(name) => {
                    let dot = if index == 0 { "" } else { "." };
                    write!(formatter, "{dot}{name}")?;
                }
                Step::Field(name) => write!(formatter, "[{}]", quoted(name))?,
                Step::Item(keys) => {
                    formatter.write_str("[")?;
                    for (index, (name, text)) in keys.iter().enumerate() {
                        let comma = if index == 0 { "" } else { "," };
                        let text = if is_plain(text) { text.clone() } else { quoted(text) };
                        write!(formatter, "{comma}{name}={text}")?;
                    }
                    formatter.write_str("]")?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parser = Parser { text, at: 0 };
        parser.path().map_err(|problem| PathError { path: text.chars().take(200).collect(), at: parser.at, problem })
    }
}

impl serde::Serialize for Path {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Path {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// A JSON string, which needs no other rules for quotes, backslashes and control characters.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn path(&mut self) -> Result<Path, &'static str> {
        if self.text.len() > PATH_BYTES_MAX {
            return Err("longer than 4096 bytes");
        }
        let mut steps = Vec::new();
        while self.at < self.text.len() {
            if self.eat('[') {
                steps.push(self.bracket()?);
            } else {
                if !steps.is_empty() && !self.eat('.') {
                    return Err("expected `.` or `[`");
                }
                steps.push(Step::Field(self.plain()?));
            }
        }
        if steps.is_empty() { Err("it is empty") } else { Ok(Path(steps)) }
    }

    fn bracket(&mut self) -> Result<Step, &'static str> {
        if self.rest().starts_with('"') {
            let name = self.string()?;
            return if self.eat(']') { Ok(Step::Field(name)) } else { Err("expected `]`") };
        }
        let mut keys = Vec::new();
        loop {
            let name = self.plain()?;
            if !self.eat('=') {
                return Err("expected `=`");
            }
            let text = if self.rest().starts_with('"') { self.string()? } else { self.plain()? };
            keys.push((name, text));
            if self.eat(']') {
                return Ok(Step::Item(keys));
            }
            if !self.eat(',') {
                return Err("expected `,` or `]`");
            }
        }
    }

    fn plain(&mut self) -> Result<String, &'static str> {
        let rest = self.rest();
        let end = rest.find(|one: char| !(one.is_ascii_alphanumeric() || one == '_' || one == '-'));
        let word = &rest[..end.unwrap_or(rest.len())];
        if word.is_empty() {
            return Err("expected a name");
        }
        self.at += word.len();
        Ok(word.to_owned())
    }

    fn string(&mut self) -> Result<String, &'static str> {
        let mut stream = serde_json::Deserializer::from_str(self.rest()).into_iter::<String>();
        let Some(Ok(text)) = stream.next() else { return Err("expected a quoted string") };
        self.at += stream.byte_offset();
        Ok(text)
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }
}
