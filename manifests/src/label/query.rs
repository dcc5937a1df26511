//! The query-string form of a label selector: `a=b,c in (d,e),!f,x!=y,n>3`.

use super::{Operator, Requirement, SELECTOR_BYTES_MAX, SELECTOR_TERMS_MAX, syntax};

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    if text.len() > SELECTOR_BYTES_MAX {
        return Err(format!("longer than {SELECTOR_BYTES_MAX} bytes"));
    }
    let mut reader = Reader { text, at: 0 };
    let mut requirements = Vec::new();
    if reader.peek() == Token::End {
        return Ok(requirements);
    }
    loop {
        requirements.push(reader.requirement()?);
        if requirements.len() > SELECTOR_TERMS_MAX {
            return Err(format!("more than {SELECTOR_TERMS_MAX} requirements"));
        }
        match reader.next() {
            Token::End => break,
            Token::Sign(",") if reader.peek() == Token::End => {
                return Err("found '', expected: identifier after ','".into());
            }
            Token::Sign(",") => {}
            token => return Err(format!("found '{}', expected: ',' or 'end of string'", token.text())),
        }
    }
    requirements.sort();
    Ok(requirements)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// One of [`SIGNS`].
    Sign(&'static str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Sign(text) => text,
            Self::End => "",
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == Token::Sign("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            token => return Err(format!("found '{}', expected: identifier", token.text())),
        };
        if let Err(why) = syntax::qualified_name(key) {
            return Err(format!("key: Invalid value: {key:?}: {why}"));
        }
        let of = |operator, values| Ok(Requirement { key: key.to_owned(), operator, values });
        if absent {
            return of(Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return of(Operator::Exists, Vec::new());
        }
        match self.next() {
            Token::Sign("=" | "==") => of(Operator::In, vec![self.value(key)?]),
            Token::Sign("!=") => of(Operator::NotIn, vec![self.value(key)?]),
            Token::Sign(">") => of(Operator::Gt, vec![self.number(key)?]),
            Token::Sign("<") => of(Operator::Lt, vec![self.number(key)?]),
            Token::Word("in") => of(Operator::In, self.set(key)?),
            Token::Word("notin") => of(Operator::NotIn, self.set(key)?),
            token => {
                Err(format!("found '{}', expected: in, notin, =, ==, !=, >, <, ',' or 'end of string'", token.text()))
            }
        }
    }

    /// A value may be empty: `a=` and `a=,b`.
    fn value(&mut self, key: &str) -> Result<String, String> {
        match self.peek() {
            Token::Word(text) => {
                self.next();
                checked(key, text)
            }
            Token::End | Token::Sign(",") => Ok(String::new()),
            token @ Token::Sign(_) => Err(format!("found '{}', expected: identifier", token.text())),
        }
    }

    fn number(&mut self, key: &str) -> Result<String, String> {
        let text = self.value(key)?;
        if text.parse::<i64>().is_ok() {
            Ok(text)
        } else {
            Err(format!(
                "values[0][{key}]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        }
    }

    /// `(a,b,)`: sorted, without duplicates.
    fn set(&mut self, key: &str) -> Result<Vec<String>, String> {
        if self.peek() != Token::Sign("(") {
            return Err(format!("found '{}' expected: '('", self.next().text()));
        }
        self.next();
        let mut values = Vec::new();
        loop {
            if values.len() >= SELECTOR_TERMS_MAX {
                return Err(format!("more than {SELECTOR_TERMS_MAX} values of {key:?}"));
            }
            match self.next() {
                Token::Word(text) => {
                    values.push(checked(key, text)?);
                    match self.next() {
                        Token::Sign(",") if self.peek() == Token::Sign(")") => values.push(String::new()),
                        Token::Sign(",") => continue,
                        Token::Sign(")") => break,
                        token => return Err(format!("found '{}', expected: ',' or ')'", token.text())),
                    }
                }
                Token::Sign(",") => values.push(String::new()),
                Token::Sign(")") => break,
                token => return Err(format!("found '{}', expected: ',', ')' or identifier", token.text())),
            }
        }
        if values.is_empty() {
            // Kubernetes reads `in ()` as the set of the empty value.
            values.push(String::new());
        }
        values.sort();
        values.dedup();
        Ok(values)
    }

    fn peek(&self) -> Token<'a> {
        Reader { text: self.text, at: self.at }.next()
    }

    fn next(&mut self) -> Token<'a> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
        if trimmed.is_empty() {
            return Token::End;
        }
        if let Some(sign) = SIGNS.iter().find(|sign| trimmed.starts_with(**sign)) {
            self.at += sign.len();
            return Token::Sign(sign);
        }
        let end = trimmed
            .find(|letter: char| letter.is_ascii_whitespace() || "=!(),><".contains(letter))
            .unwrap_or(trimmed.len());
        self.at += end;
        Token::Word(&trimmed[..end])
    }
}

fn checked(key: &str, value: &str) -> Result<String, String> {
    syntax::label_value(value).map_err(|why| format!("values[0][{key}]: Invalid value: {value:?}: {why}"))?;
    Ok(value.to_owned())
}
