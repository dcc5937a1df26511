//! Query strings: `a=b&c=%20d`, parsed once, read by name. Pure.

use flotilla_manifests::api_error::{ApiError, Reason};

/// Decoded pairs, in order. Of a name that comes twice the first value counts, as in Go's `url.Values.Get`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    /// 400 when a percent escape is broken or does not give UTF-8.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |raw: &str| {
                percent_decode(&raw.replace('+', " "))
                    .ok_or_else(|| ApiError::of(Reason::BadRequest, format!("the query has a broken escape: {pair:?}")))
            };
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// The value of `name`; empty when absent.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// `true`, `1` and a name without value are yes; `false`, `0` and absence are no.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()) {
            None | Some("false" | "0" | "False" | "FALSE") => Ok(false),
            Some("" | "true" | "1" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(self.bad(name, other, "must be true or false")),
        }
    }

    /// # Errors
    /// 400 when the value is no whole number from 0 up.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| self.bad(name, text, "must be a whole number, 0 or more")),
        }
    }

    /// 400 about one parameter.
    pub fn bad(&self, name: &str, value: &str, why: &str) -> ApiError {
        ApiError::of(Reason::BadRequest, format!("query parameter {name}: invalid value {value:?}: {why}"))
    }
}

/// `None` for a broken escape or bytes that are not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
